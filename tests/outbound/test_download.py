import asyncio
import gc
import hashlib
import io
import ipaddress
import shutil
import ssl
import subprocess
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pytest import MonkeyPatch, fixture, mark, skip

from gateway.outbound import download
from gateway.outbound.download import Failed, Fetched, Reason

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
JPEG = bytes.fromhex("ffd8ffe000104a46494600") + b"picture" * 20 + b"\xff\xd9"
JPEG_SHA256 = "9021cb2d8db688acd828cbe7d41013f3d8956cba8d87f080e6596c84b17748e2"
LARGE = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 12_000 + b"\xff\xd9"  # 3 072 006 bytes
MP4 = b"\0\0\0\x10ftypisom\0\0\2\0" + b"v" * 100

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Host:
    """A media host that answers every request with the same bytes, and keeps the requests."""

    def __init__(self, answer: bytes | Answer) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.url = ""
        self.closed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                if not isinstance(self.answer, bytes):
                    await self.answer(writer)
                    break
                writer.write(self.answer)
                await writer.drain()
                if b"Content-Length" not in self.answer and b"chunked" not in self.answer:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.closed.set()

    def sent(self) -> list[str]:
        return self.requests[-1].decode("ascii").split("\r\n")


@asynccontextmanager
async def host(answer: bytes | Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Host]:
    running = Host(answer)
    server = await asyncio.start_server(running.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    running.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    try:
        yield running
    finally:
        server.close()


@fixture
async def downloader() -> AsyncIterator[download.Downloader]:
    made = download.Downloader(allowed=LOOPBACK, size_max_bytes=4_000_000)
    yield made
    await made.aclose()


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def outcome(downloader: download.Downloader, answer: bytes | Answer, deadline_s: float = 10.0) -> tuple[str, str]:
    """What becomes of an answer that should fail: the reason, and the detail with the host left out."""
    async with host(answer) as running:
        failed = await downloader.fetch(f"{running.url}/a.jpg?sig=s3cret", sink=io.BytesIO(), deadline_s=deadline_s)
    assert isinstance(failed, Failed)
    assert "s3cret" not in failed.detail and "a.jpg" not in failed.detail
    return failed.reason.value, failed.detail.removeprefix("127.0.0.1").lstrip(": ")


async def test_a_good_picture_is_written_and_described(downloader: download.Downloader) -> None:
    sink = io.BytesIO()
    async with host(ok(JPEG, "Content-Type: text/html")) as running:
        fetched = await downloader.fetch(running.url + "/a.png", sink=sink)
    assert fetched == Fetched(digest=JPEG_SHA256, size_bytes=153, mime="image/jpeg", extension="jpg")
    assert sink.getvalue() == JPEG


async def test_a_picture_of_many_steps_arrives_byte_for_byte(downloader: download.Downloader, tmp_path: Path) -> None:
    with (tmp_path / "sink").open("wb", buffering=0) as sink:
        async with host(ok(LARGE)) as running:
            fetched = await downloader.fetch(running.url, sink=sink)
    digest = hashlib.sha256(LARGE).hexdigest()
    assert fetched == Fetched(digest=digest, size_bytes=3_072_006, mime="image/jpeg", extension="jpg")
    assert (tmp_path / "sink").read_bytes() == LARGE


async def test_a_chunked_answer_needs_no_length(downloader: download.Downloader) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n74\r\n" + MP4 + b"\r\n0\r\n\r\n"
    async with host(chunked) as running:
        fetched = await downloader.fetch(running.url, sink=io.BytesIO())
    assert isinstance(fetched, Fetched)
    assert (fetched.size_bytes, fetched.mime, fetched.extension) == (116, "video/mp4", "mp4")


async def test_a_body_without_a_declared_end_must_show_its_own(downloader: download.Downloader) -> None:
    async with host(b"HTTP/1.1 200 OK\r\n\r\n" + JPEG) as running:
        assert isinstance(await downloader.fetch(running.url, sink=io.BytesIO()), Fetched)
    reason, detail = await outcome(downloader, b"HTTP/1.1 200 OK\r\n\r\n" + MP4)
    assert (reason, detail) == ("truncated", "did not say how long the file is, and a mp4 cannot")


async def test_nothing_of_ours_is_sent_but_a_user_agent(downloader: download.Downloader) -> None:
    async with host(ok(JPEG, "Set-Cookie: a=b")) as running:
        for _ in range(2):
            await downloader.fetch(running.url + "/a.jpg", sink=io.BytesIO())
        assert len(running.requests) == 2
        assert sorted(line.lower() for line in running.sent() if line) == [
            "accept-encoding: identity",
            "accept: */*",
            "connection: keep-alive",
            "get /a.jpg http/1.1",
            f"host: {running.url.removeprefix('http://')}",
            "user-agent: wave-gateway",
        ]


@mark.parametrize(
    "target",
    [
        "/a%2Fb%28c%29/%7Ex.jpg?X-Credential=AK%2F2025%2Fs3&Signature=ab%2Bc%3D%3D&Date=T00%3A00%3A00Z&x=%20+%2C~%27",
        "/%E5%9B%BE.jpg?e=1&token=a:b_-c=",
        "/a.jpg",
    ],
)
async def test_a_signed_url_is_asked_for_byte_for_byte(downloader: download.Downloader, target: str) -> None:
    async with host(ok(JPEG)) as running:
        await downloader.fetch(running.url + target, sink=io.BytesIO())
        assert running.sent()[0] == f"GET {target} HTTP/1.1"


@mark.parametrize(
    ("body", "reason", "detail"),
    [
        (JPEG[:-2], "truncated", "the end of the file is missing after 151 bytes"),
        (b"", "not_media", "the file begins like no medium (0 bytes seen)"),
        (b"<html>Sign in</html>", "not_media", "the file begins like no medium (20 bytes seen)"),
        (b'{"error": "gone"}', "not_media", "the file begins like no medium (17 bytes seen)"),
    ],
)
async def test_what_is_no_whole_medium_is_refused(
    downloader: download.Downloader, body: bytes, reason: str, detail: str
) -> None:
    got = await outcome(downloader, ok(body, "Content-Type: image/jpeg"))
    assert got == (reason, detail)


async def test_a_body_shorter_than_declared_is_truncated(downloader: download.Downloader) -> None:
    async def cut(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + JPEG)

    expected = ("truncated", "the connection ended before the file did")
    assert await outcome(downloader, cut) == expected


async def test_an_unfinished_chunked_body_is_truncated(downloader: download.Downloader) -> None:
    async def cut(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n99\r\n" + JPEG + b"\r\n")

    assert (await outcome(downloader, cut))[0] == "truncated"


@mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "identity, gzip"])
async def test_an_encoded_body_is_refused_unread(downloader: download.Downloader, encoding: str) -> None:
    got = await outcome(downloader, ok(JPEG, f"Content-Encoding: {encoding}"))
    assert got == ("encoding", "sent the file encoded, though asked not to")


async def test_an_identity_encoding_is_none(downloader: download.Downloader) -> None:
    async with host(ok(JPEG, "Content-Encoding: Identity")) as running:
        assert isinstance(await downloader.fetch(running.url, sink=io.BytesIO()), Fetched)


@mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(downloader: download.Downloader, status: int) -> None:
    async with host(ok(JPEG)) as elsewhere:
        head = f"HTTP/1.1 {status} Go\r\nLocation: {elsewhere.url}/a.jpg\r\nContent-Length: 0\r\n\r\n"
        got = await outcome(downloader, head.encode())
        assert elsewhere.requests == []
    assert got == ("redirect", f"answered {status}: redirects are not followed")


@mark.parametrize(("status", "permanent"), [(403, False), (404, False), (410, True), (500, False), (206, False)])
async def test_any_other_status_fails_and_only_gone_is_for_good(
    downloader: download.Downloader, status: int, permanent: bool
) -> None:
    async with host(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode()) as running:
        failed = await downloader.fetch(running.url, sink=io.BytesIO())
    assert failed == Failed(reason=Reason.STATUS, detail=f"127.0.0.1 answered {status}", permanent=permanent)


async def test_a_declared_size_past_the_limit_is_refused_unread(downloader: download.Downloader) -> None:
    sink = io.BytesIO()
    async with host(b"HTTP/1.1 200 OK\r\nContent-Length: 4000001\r\n\r\n" + JPEG) as running:
        failed = await downloader.fetch(running.url, sink=sink)
    assert failed == Failed(reason=Reason.TOO_LARGE, detail="127.0.0.1: more than 4000000 bytes", permanent=True)
    assert sink.getvalue() == b""


async def pour(writer: asyncio.StreamWriter, first: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + first)
    while True:
        writer.write(b"p" * 65536)
        await writer.drain()


async def test_an_endless_picture_stops_at_the_limit_and_the_connection_is_closed(
    downloader: download.Downloader,
) -> None:
    sink = io.BytesIO()
    async with host(lambda writer: pour(writer, b"\xff\xd8\xff\xe0")) as running:
        failed = await downloader.fetch(running.url, sink=sink)
        await asyncio.wait_for(running.closed.wait(), 5)
    assert failed == Failed(reason=Reason.TOO_LARGE, detail="127.0.0.1: more than 4000000 bytes", permanent=True)
    assert len(sink.getvalue()) <= 4_000_000


async def test_an_endless_page_is_given_up_at_its_first_step(downloader: download.Downloader) -> None:
    sink = io.BytesIO()
    async with host(lambda writer: pour(writer, b"<html>")) as running:
        failed = await downloader.fetch(running.url, sink=sink)
    assert isinstance(failed, Failed) and failed.reason is Reason.NOT_MEDIA
    assert sink.getvalue() == b""


async def test_memory_stays_bounded_whatever_the_size(tmp_path: Path) -> None:
    """The whole stays below 4 MiB for a body of 48 MiB."""
    body_bytes = 48 * 1024 * 1024

    async def large(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {body_bytes}\r\n\r\n".encode() + b"\xff\xd8\xff\xe0")
        piece = bytes(65536)
        for _ in range(body_bytes // 65536 - 1):
            writer.write(piece)
            await writer.drain()
        writer.write(piece[:-6] + b"\xff\xd9")
        await writer.drain()

    downloader = download.Downloader(allowed=LOOPBACK)
    with (tmp_path / "sink").open("wb") as sink:
        async with host(large) as running:
            tracemalloc.start()
            try:
                fetched = await downloader.fetch(running.url, sink=sink)
                _, peak_bytes = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    await downloader.aclose()
    assert isinstance(fetched, Fetched) and fetched.size_bytes == body_bytes
    assert peak_bytes < 4 * 1024 * 1024


async def test_a_slow_body_ends_at_the_deadline(downloader: download.Downloader) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + JPEG[:4])
        while True:
            writer.write(b"p")
            await writer.drain()
            await asyncio.sleep(0.02)

    assert await outcome(downloader, drip, deadline_s=0.2) == ("timeout", "took too long")


async def test_a_host_that_never_answers_ends_at_the_deadline(downloader: download.Downloader) -> None:
    async def silent(_writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    assert await outcome(downloader, silent, deadline_s=0.2) == ("timeout", "took too long")


async def test_a_refused_connection_is_a_network_failure(downloader: download.Downloader) -> None:
    async with host(b"") as running:
        url = running.url
    failed = await downloader.fetch(url + "/a.jpg?sig=s3cret", sink=io.BytesIO())
    assert isinstance(failed, Failed) and not failed.permanent
    assert failed.reason is Reason.NETWORK
    assert failed.detail.startswith("127.0.0.1: [Errno ")


async def test_a_connection_closed_before_the_answer_is_a_network_failure(downloader: download.Downloader) -> None:
    async def close(_writer: asyncio.StreamWriter) -> None:
        return

    assert await outcome(downloader, close) == ("network", "ServerDisconnectedError")


@mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_an_answer_that_is_no_http_is_a_network_failure(downloader: download.Downloader, answer: bytes) -> None:
    assert (await outcome(downloader, answer))[0] == "network"


@mark.parametrize(
    "authority",
    ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"],
)
async def test_loopback_is_refused_in_any_spelling_without_a_connection(authority: str) -> None:
    strict = download.Downloader()
    async with host(ok(JPEG)) as running:
        port = running.url.rpartition(":")[2]
        for url in (f"https://{authority}/a.jpg", f"http://{authority}:{port}/a.jpg"):
            failed = await strict.fetch(url, sink=io.BytesIO())
            assert isinstance(failed, Failed)
            assert (failed.reason, failed.permanent) == (Reason.ADDRESS, True)
        assert running.requests == []
    await strict.aclose()


async def test_a_name_that_resolves_to_loopback_is_refused_at_connect() -> None:
    strict = download.Downloader()
    failed = await strict.fetch("https://localhost/a.jpg", sink=io.BytesIO())
    await strict.aclose()
    assert isinstance(failed, Failed)
    assert (failed.reason, failed.permanent) == (Reason.ADDRESS, False)
    assert failed.detail in ("localhost: 127.0.0.1 is loopback", "localhost: ::1 is loopback")


async def test_a_name_outside_the_opened_networks_gets_no_plain_http() -> None:
    other = download.Downloader(allowed=(ipaddress.ip_network("10.0.0.0/8"),))
    async with host(ok(JPEG)) as running:
        failed = await other.fetch(running.url.replace("127.0.0.1", "localhost"), sink=io.BytesIO())
        assert running.requests == []
    await other.aclose()
    assert isinstance(failed, Failed) and failed.reason is Reason.ADDRESS
    assert "is outside --allow-private" in failed.detail


async def test_a_name_inside_the_opened_networks_is_fetched(downloader: download.Downloader) -> None:
    async with host(ok(JPEG)) as running:
        fetched = await downloader.fetch(running.url.replace("127.0.0.1", "localhost"), sink=io.BytesIO())
    assert isinstance(fetched, Fetched)


async def test_a_name_that_does_not_resolve_is_a_network_failure(downloader: download.Downloader) -> None:
    failed = await downloader.fetch("https://nowhere.invalid/a.jpg", sink=io.BytesIO())
    assert isinstance(failed, Failed)
    assert (failed.reason, failed.permanent) == (Reason.NETWORK, False)


async def test_proxies_of_the_environment_are_not_asked(
    downloader: download.Downloader, monkeypatch: MonkeyPatch
) -> None:
    async with host(ok(JPEG)) as proxy, host(ok(JPEG)) as running:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert isinstance(await downloader.fetch(running.url, sink=io.BytesIO()), Fetched)
        assert proxy.requests == []


class FullDisk(io.BytesIO):
    def write(self, _data: Any, /) -> int:
        raise OSError(28, "No space left on device")


async def test_a_full_disk_is_told_apart_from_the_network(downloader: download.Downloader) -> None:
    async with host(ok(JPEG)) as running:
        failed = await downloader.fetch(running.url, sink=FullDisk())
    expected = "cannot write the file: No space left on device"
    assert failed == Failed(reason=Reason.DISK, detail=expected, permanent=False)


class SlowDisk(io.BytesIO):
    """A disk that writes when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def write(self, data: Any, /) -> int:
        self.begun.set()
        self.go_on.wait(5)
        return super().write(data)


async def test_a_cancelled_fetch_returns_only_when_no_thread_writes_any_more(downloader: download.Downloader) -> None:
    sink = SlowDisk()
    async with host(ok(JPEG)) as running:
        fetching = asyncio.ensure_future(downloader.fetch(running.url, sink=sink))
        await asyncio.to_thread(sink.begun.wait, 5)
        fetching.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not fetching.done()
        sink.go_on.set()
        await asyncio.wait([fetching])
    assert fetching.cancelled()
    assert sink.getvalue() == JPEG


async def test_cancelled_fetches_leave_no_connection_behind(downloader: download.Downloader) -> None:
    async def silent(_writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)

    async with host(silent) as running:
        fetching = [asyncio.ensure_future(downloader.fetch(running.url, sink=io.BytesIO())) for _ in range(200)]
        await asyncio.sleep(0.1)
        for each in fetching:
            each.cancel()
        await asyncio.wait(fetching)
        running.answer = ok(JPEG)
        assert isinstance(await downloader.fetch(running.url, sink=io.BytesIO(), deadline_s=5), Fetched)


@fixture
def certificate(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None:
        skip("needs the openssl command")
    path = tmp_path / "cert.pem"
    subject = ["-subj", "/CN=media", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-keyout", str(path)]
    made = tmp_path / "only.pem"
    subprocess.run(["openssl", "req", "-x509", *key, *subject, "-out", str(made)], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + made.read_bytes())
    return path


async def test_a_private_authority_is_trusted_only_with_its_bundle(
    downloader: download.Downloader, certificate: Path
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    trusting = download.Downloader(allowed=LOOPBACK, ca_bundle=certificate)
    async with host(ok(JPEG), tls) as running:
        assert isinstance(await trusting.fetch(running.url, sink=io.BytesIO()), Fetched)
        failed = await downloader.fetch(running.url, sink=io.BytesIO())
    await trusting.aclose()
    assert isinstance(failed, Failed) and failed.reason is Reason.NETWORK
    assert "certificate verify failed" in failed.detail


async def test_a_downloader_that_was_never_used_closes_quietly() -> None:
    await download.Downloader().aclose()
    gc.collect()
