"""The way out through the organisation's proxy, on real sockets with real TLS."""

from __future__ import annotations

import asyncio
import base64
import io
import ipaddress
import pathlib
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.outbound import address, download, tunnel, upstream, webhook
from gateway.rules import task
from tests import proxy as proxies
from tests import receiver

PUBLIC = "93.184.215.14"
"""Where the names of these tests lie; no packet goes there, the proxy's tunnels all end on loopback."""
JPEG = bytes.fromhex("ffd8ffe000104a46494600") + b"picture" * 20 + b"\xff\xd9"
ACCEPTED = b'{"task_id":"task-wave1","status":"queued"}'
SECRET = "s3cret:p@ss"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    if shutil.which("openssl") is None:
        pytest.fail("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    names = "subjectAltName=DNS:vendor.example.com,DNS:media.example.com,DNS:localhost,IP:127.0.0.1"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-keyout", str(folder / "key.pem")]
    made = ["-subj", "/CN=test", "-addext", names, "-days", "2", "-out", str(folder / "cert.pem")]
    subprocess.run(["openssl", "req", "-x509", *key, *made], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def server_tls(certificate: pathlib.Path) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return made


@pytest.fixture(scope="module")
def client_tls(certificate: pathlib.Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate / "cert.pem"))


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A name server that knows these names; anything else is the system's."""
    known = {"media.example.com": PUBLIC}
    asked = socket.getaddrinfo

    def lookup(host: Any, port: Any, *args: Any, **named: Any) -> Any:
        return asked(known.get(host, host), port, *args, **named)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return known


def ok(body: bytes) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def port_of(there: receiver.Receiver) -> int:
    return int(there.url.rpartition(":")[2])


def proxy_at(port: int, *, is_tls: bool = False, userinfo: str = "") -> tunnel.Proxy:
    return tunnel.parse(f"{'https' if is_tls else 'http'}://{userinfo}127.0.0.1:{port}")


async def submitted(asked: upstream.Upstream) -> task.SubmitOutcome:
    try:
        return await asked.submit(b"{}", key="sk-key-of-the-upstream", idempotency_key="wg-1")
    finally:
        await asked.aclose()


@pytest.mark.parametrize("is_tls", [False, True], ids=["http proxy", "https proxy"])
async def test_the_upstream_is_asked_for_by_its_name_and_sees_the_request_alone(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, is_tls: bool
) -> None:
    async with (
        receiver.receiving(ok(ACCEPTED), tls=server_tls) as vendor,
        proxies.proxying(goes_to=port_of(vendor), tls=server_tls if is_tls else None) as proxy,
    ):
        through = proxy_at(proxy.port, is_tls=is_tls, userinfo="ann%40x:s3cret%3Ap%40ss@")
        outcome = await submitted(upstream.Upstream("https://vendor.example.com", verify=client_tls, proxy=through))
        assert isinstance(outcome, task.Accepted)
        credentials = base64.b64encode(b"ann@x:s3cret:p@ss").decode()
        assert proxy.asked == [
            [
                "CONNECT vendor.example.com:443 HTTP/1.1",
                "Host: vendor.example.com:443",
                f"Proxy-Authorization: Basic {credentials}",
            ]
        ]
        [sent] = vendor.requests
        assert (sent.line, sent.headers["host"]) == ("POST /v1/tasks HTTP/1.1", "vendor.example.com")
        assert sent.headers["authorization"] == "Bearer sk-key-of-the-upstream"
        assert "proxy-authorization" not in sent.headers


async def test_a_tunnel_is_kept_for_the_next_request(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            writer.write(ok(ACCEPTED))

    vendor = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_tls)
    async with vendor, proxies.proxying(goes_to=vendor.sockets[0].getsockname()[1]) as proxy:
        asked = upstream.Upstream("https://vendor.example.com", verify=client_tls, proxy=proxy_at(proxy.port))
        for _ in range(3):
            assert isinstance(await asked.submit(b"{}", key="k", idempotency_key=None), task.Accepted)
        await asked.aclose()
        assert len(proxy.asked) == 1


async def _hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def _reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000)
        await writer.drain()


async def _agree_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await reader.read(1)


REFUSALS: Sequence[tuple[str, bytes | proxies.Refusal, str]] = (
    ("407", b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\n\r\n", "the egress proxy answered 407"),
    ("403", b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nnope", "the egress proxy answered 403"),
    ("502", b"HTTP/1.0 502 Bad\r\n\r\n", "the egress proxy answered 502"),
    ("redirect", b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1/\r\n\r\n", "the egress proxy answered 302"),
    ("garbage", b"\x16\x03\x01garbage\r\n\r\n", "the egress proxy's answer is no HTTP"),
    ("empty", b"", "the egress proxy closed the connection without an answer"),
    ("no end", _drip, "the egress proxy's answer has no end"),
    ("reset", _reset, "the egress proxy closed the connection without an answer"),
    ("eager", b"HTTP/1.1 200 OK\r\n\r\nhello", "the egress proxy speaks before it is asked"),
)


@pytest.mark.parametrize(("instead", "why"), [each[1:] for each in REFUSALS], ids=[each[0] for each in REFUSALS])
async def test_a_proxy_that_opens_no_tunnel_leaves_a_submit_unsent(
    client_tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture, instead: bytes | proxies.Refusal, why: str
) -> None:
    async with proxies.proxying(instead=instead) as proxy:
        through = proxy_at(proxy.port, userinfo="ann:s3cret@")
        outcome = await submitted(upstream.Upstream("https://vendor.example.com", verify=client_tls, proxy=through))
    assert outcome == task.NotSent(reason=task.NO_CONNECTION)
    assert [each.message for each in caplog.records if each.name == tunnel.__name__] == [
        f"vendor.example.com:443: {why}"
    ]


async def test_a_proxy_that_is_down_or_hangs_leaves_a_submit_unsent(
    client_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    down = upstream.Upstream("https://vendor.example.com", verify=client_tls, proxy=proxy_at(port))
    assert await submitted(down) == task.NotSent(reason=task.NO_CONNECTION)
    why = "the egress proxy cannot be reached: Connection refused"
    assert [each.message for each in caplog.records if each.name == tunnel.__name__] == [
        f"vendor.example.com:443: {why}"
    ]
    monkeypatch.setattr(tunnel, "CONNECT_S", 0.2)
    async with proxies.proxying(instead=_hang) as proxy:
        hanging = upstream.Upstream("https://vendor.example.com", verify=client_tls, proxy=proxy_at(proxy.port))
        assert await submitted(hanging) == task.NotSent(reason=task.NO_CONNECTION)


async def test_a_tunnel_that_ends_before_tls_is_agreed_leaves_a_submit_unsent(client_tls: ssl.SSLContext) -> None:
    async with proxies.proxying(instead=_agree_and_close) as proxy:
        asked = upstream.Upstream("https://vendor.example.com", verify=client_tls, proxy=proxy_at(proxy.port))
        assert await submitted(asked) == task.NotSent(reason=task.NO_CONNECTION)


async def test_whoever_answers_in_the_tunnel_must_be_the_name_that_was_asked_for(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with (
        receiver.receiving(ok(ACCEPTED), tls=server_tls) as vendor,
        proxies.proxying(goes_to=port_of(vendor)) as proxy,
    ):
        other = upstream.Upstream("https://other.example.com", verify=client_tls, proxy=proxy_at(proxy.port))
        assert await submitted(other) == task.NotSent(reason=task.NO_CONNECTION)
        assert vendor.requests == []


async def test_what_is_lost_inside_a_tunnel_is_in_doubt(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async def hang_up(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with (
        receiver.receiving(hang_up, tls=server_tls) as vendor,
        proxies.proxying(goes_to=port_of(vendor)) as proxy,
    ):
        asked = upstream.Upstream("https://vendor.example.com", verify=client_tls, proxy=proxy_at(proxy.port))
        assert isinstance(await submitted(asked), task.InDoubt)
        assert len(vendor.requests) == 1


async def test_media_and_webhooks_name_the_checked_address_and_verify_the_name(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, certificate: pathlib.Path, names: dict[str, str]
) -> None:
    async def picture(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(ok(JPEG) if head.startswith(b"GET") else ok(b""))
        writer.close()

    host = await asyncio.start_server(picture, "127.0.0.1", 0, ssl=server_tls)
    async with host, proxies.proxying(goes_to=host.sockets[0].getsockname()[1]) as proxy:
        through = proxy_at(proxy.port)
        fetching = download.Downloader(ca_bundle=certificate / "cert.pem", proxy=through)
        sending = webhook.Sender(tls=client_tls, proxy=through)
        fetched = await fetching.fetch("https://media.example.com/a.jpg?sig=1", sink=io.BytesIO())
        assert isinstance(fetched, download.Fetched)
        assert await sending.send("https://media.example.com/x", b"{}", {}) == webhook.Delivered(status=200)
        names["else.example.com"] = PUBLIC
        stranger = await sending.send("https://else.example.com/x", b"{}", {})
        assert isinstance(stranger, webhook.Failed) and "certificate verify failed" in stranger.detail
        await fetching.aclose()
        await sending.aclose()
        assert [each[0] for each in proxy.asked] == [f"CONNECT {PUBLIC}:443 HTTP/1.1"] * 3


@pytest.mark.parametrize("private", ["127.0.0.1", "10.0.0.7", "169.254.169.254", "::ffff:10.0.0.7", "64:ff9b::a00:7"])
async def test_a_name_of_a_private_address_never_reaches_the_proxy(
    client_tls: ssl.SSLContext, names: dict[str, str], private: str
) -> None:
    names["media.example.com"] = private
    async with proxies.proxying(instead=b"HTTP/1.1 200 OK\r\n\r\n") as proxy:
        sending = webhook.Sender(tls=client_tls, proxy=proxy_at(proxy.port))
        outcome = await sending.send("https://media.example.com/x", b"{}", {})
        await sending.aclose()
        assert isinstance(outcome, webhook.Failed) and outcome.detail.startswith("the address is not allowed: ")
        assert proxy.asked == []


async def test_an_ipv6_address_is_named_in_brackets_and_the_next_address_is_tried(
    client_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lookup(host: str, port: int, *args: Any, **named: Any) -> Any:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2606:4700::1111", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, port)),
        ]

    async with proxies.proxying(instead=b"HTTP/1.1 502 X\r\n\r\n") as proxy:
        sending = webhook.Sender(tls=client_tls, proxy=proxy_at(proxy.port))
        with monkeypatch.context() as patched:
            patched.setattr(address, "_lookup", lookup)
            patched.setattr(
                address.GuardedResolver.__init__, "__kwdefaults__", {"private_only": False, "lookup": lookup}
            )
            outcome = await sending.send("https://media.example.com/x", b"{}", {})
        await sending.aclose()
        assert outcome == webhook.Failed(detail="the egress proxy answered 502")
        assert [each[0] for each in proxy.asked] == [
            "CONNECT [2606:4700::1111]:443 HTTP/1.1",
            f"CONNECT {PUBLIC}:443 HTTP/1.1",
        ]


async def test_networks_that_the_operator_opened_are_reached_directly(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    loopback = (ipaddress.ip_network("127.0.0.0/8"),)
    async with (
        receiver.receiving(ok(ACCEPTED), tls=server_tls) as private,
        receiver.receiving(ok(ACCEPTED)) as plain,
        proxies.proxying() as proxy,
    ):
        through = proxy_at(proxy.port)
        sending = webhook.Sender(allowed=loopback, tls=client_tls, proxy=through)
        assert await sending.send(plain.url, b"{}", {}) == webhook.Delivered(status=200)
        assert await sending.send(private.url, b"{}", {}) == webhook.Delivered(status=200)
        await sending.aclose()
        asked = upstream.Upstream(private.url, verify=client_tls, proxy=through, allowed=loopback)
        assert isinstance(await submitted(asked), task.Accepted)
        asked = upstream.Upstream(plain.url, verify=client_tls, proxy=through)
        assert isinstance(await submitted(asked), task.Accepted)
        assert proxy.asked == []


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://proxy.example.com:3128", ("proxy.example.com", 3128, False, None)),
        ("http://proxy.example.com", ("proxy.example.com", 80, False, None)),
        ("https://[2606:4700::1]/", ("2606:4700::1", 443, True, None)),
        ("http://10.0.0.7:8080/", ("10.0.0.7", 8080, False, None)),
        ("http://ann:b%3Ac@p:1", ("p", 1, False, "Basic YW5uOmI6Yw==")),
        ("http://ann@p:1", ("p", 1, False, "Basic YW5uOg==")),
    ],
)
def test_a_proxys_url_is_read(url: str, proxy: tuple[str, int, bool, str | None]) -> None:
    read = tunnel.parse(url)
    assert (read.host, read.port, read.is_tls, read.authorization) == proxy
    assert "YW5u" not in repr(read)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "proxy:3128",
        "socks5://p:1",
        "http://",
        "http://p:0",
        "http://p:99999",
        "http://p:1/x",
        "http://p:1?x",
        "http://a b:1",
        "http://s3cret@p:1#x",
        "http://p\\x:1",
        "http://[::1:1",
        "http://s3cret:\n@p:1",
    ],
)
def test_what_is_no_proxys_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="not shown here") as caught:
        tunnel.parse(url)
    assert "s3cret" not in str(caught.value)
