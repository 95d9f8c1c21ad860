import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from pytest import fixture, mark, raises
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from gateway import errors
from gateway.edge import media
from gateway.store import blobs_disk

DIGEST = "9a" * 32
LARGE = "1b" * 32
URL = f"/media/{DIGEST}.jpg"
TAG = f'"{DIGEST}"'
BODY = bytes(range(100))
LARGE_BODY = bytes(range(256)) * 4096  # 1 MiB: four steps


async def refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.GatewayError)
    return JSONResponse({"code": error.code}, error.status, headers=dict(error.headers))


@fixture
def kept(tmp_path: Path) -> dict[str, blobs_disk.Blob]:
    """Two blobs: 100 bytes, and 1 MiB."""

    def blob(name: str, body: bytes) -> blobs_disk.Blob:
        (tmp_path / name).write_bytes(body)
        return blobs_disk.Blob(path=tmp_path / name, size_bytes=len(body), mime="image/jpeg", extension="jpg")

    return {DIGEST: blob("small", BODY), LARGE: blob("large", LARGE_BODY)}


@fixture
def app(kept: dict[str, blobs_disk.Blob]) -> Starlette:
    async def find(digest: str) -> blobs_disk.Blob | None:
        return kept.get(digest)

    route = Route(media.PATH, media.endpoint(find, stall_max_s=0.5), methods=["GET"])
    return Starlette(routes=[route], exception_handlers={errors.GatewayError: refuse})


@fixture
async def client(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as made:
        yield made


async def test_a_picture_is_served_whole_with_every_promised_header(client: httpx.AsyncClient) -> None:
    answer = await client.get(URL)
    assert answer.status_code == 200
    assert answer.content == BODY
    assert dict(answer.headers) == {
        "content-type": "image/jpeg",
        "content-length": "100",
        "accept-ranges": "bytes",
        "etag": TAG,
        "cache-control": "public, max-age=31536000, immutable",
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox; default-src 'none'",
    }


async def test_head_has_the_headers_of_get_and_no_body(client: httpx.AsyncClient) -> None:
    answer = await client.head(URL, headers={"Range": "bytes=0-9"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers == (await client.get(URL)).headers


async def test_a_large_file_is_served_byte_for_byte(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/media/{LARGE}.jpg")
    assert answer.content == LARGE_BODY
    assert answer.headers["content-length"] == "1048576"


@mark.parametrize(
    "name",
    [
        f"{'0' * 64}.jpg",
        f"{DIGEST}.png",
        f"{DIGEST}.JPG",
        f"{DIGEST.upper()}.jpg",
        f"{DIGEST}",
        f"{DIGEST}.",
        f"{DIGEST}.jpg.exe",
        f"{DIGEST[1:]}.jpg",
        f"{DIGEST}.jpg%0A",
        "..",
        "..%2f..%2fetc%2fpasswd",
        "%00.jpg",
        "small",
    ],
)
async def test_any_other_name_is_not_found(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/media/{name}")).status_code == 404


@mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_only_get_and_head_are_routed(client: httpx.AsyncClient, method: str) -> None:
    assert (await client.request(method, URL)).status_code == 405


async def test_a_file_deleted_since_it_was_found_is_not_found(
    client: httpx.AsyncClient, kept: dict[str, blobs_disk.Blob]
) -> None:
    kept[DIGEST].path.unlink()
    assert (await client.get(URL)).status_code == 404


async def test_a_file_of_another_size_is_not_served(
    client: httpx.AsyncClient, kept: dict[str, blobs_disk.Blob]
) -> None:
    kept[DIGEST].path.write_bytes(BODY[:-1])
    answer = await client.get(URL)
    assert (answer.status_code, answer.json()) == (500, {"code": "internal_error"})


@mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-9", 0, 9),
        ("bytes=0-0", 0, 0),
        ("bytes=10-", 10, 99),
        ("bytes=0-", 0, 99),
        ("bytes=99-", 99, 99),
        ("bytes=90-1000", 90, 99),
        ("bytes=-10", 90, 99),
        ("bytes=-1", 99, 99),
        ("bytes=-1000", 0, 99),
        ("Bytes=5-6", 5, 6),
        ("bytes= 5-6 ", 5, 6),
        ("bytes=,5-6,", 5, 6),
        ("bytes=0-" + "9" * 5000, 0, 99),
        ("bytes=" + "0" * 100 + "5-6", 5, 6),
    ],
)
async def test_one_range_is_served(client: httpx.AsyncClient, asked: str, first: int, last: int) -> None:
    answer = await client.get(URL, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {first}-{last}/100"
    assert answer.headers["content-length"] == str(last + 1 - first)
    assert answer.content == bytes(range(first, last + 1))


async def test_a_range_across_steps_is_served_byte_for_byte(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/media/{LARGE}.jpg", headers={"Range": "bytes=262143-786433"})
    assert answer.headers["content-range"] == "bytes 262143-786433/1048576"
    assert answer.content == LARGE_BODY[262143:786434]


@mark.parametrize(
    "asked", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=" + "9" * 5000 + "-", "bytes=0-1,5-6", "bytes=0-1, -5"]
)
async def test_a_range_past_the_end_or_several_ranges_are_416(client: httpx.AsyncClient, asked: str) -> None:
    answer = await client.get(URL, headers={"Range": asked})
    assert (answer.status_code, answer.json()) == (416, {"code": "range_not_satisfiable"})
    assert answer.headers["content-range"] == "bytes */100"


async def test_several_range_headers_are_several_ranges(client: httpx.AsyncClient) -> None:
    answer = await client.get(URL, headers=[("Range", "bytes=0-1"), ("Range", "5-6")])
    assert answer.status_code == 416


@mark.parametrize(
    "asked",
    [
        *("bytes", "bytes=", "bytes=,", "bytes=-", "bytes=9-5", "bytes=a-b", "bytes=1", "bytes=0-1,x", "bytes=-1-2"),
        *("bytes=0x1-2", "items=0-1", "0-1", "bytes 0-1", "bytes=0 - 1", "bytes=0-1,9-5"),
    ],
)
async def test_a_malformed_range_is_ignored(client: httpx.AsyncClient, asked: str) -> None:
    answer = await client.get(URL, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, BODY)


@mark.parametrize(
    ("condition", "status"),
    [
        (TAG, 206),
        (f"W/{TAG}", 200),
        ('"other"', 200),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 200),
    ],
)
async def test_if_range_wants_the_very_tag(client: httpx.AsyncClient, condition: str, status: int) -> None:
    answer = await client.get(URL, headers={"Range": "bytes=0-9", "If-Range": condition})
    assert answer.status_code == status


@mark.parametrize("method", ["GET", "HEAD"])
@mark.parametrize("condition", [TAG, f"W/{TAG}", f'"a", {TAG}', f'"a,b",W/{TAG}', "*"])
async def test_a_known_tag_is_not_modified(client: httpx.AsyncClient, method: str, condition: str) -> None:
    answer = await client.request(method, URL, headers={"If-None-Match": condition, "Range": "bytes=500-"})
    assert (answer.status_code, answer.content) == (304, b"")
    assert dict(answer.headers) == {"etag": TAG, "cache-control": "public, max-age=31536000, immutable"}


@mark.parametrize("condition", ['"other"', DIGEST, "", '"a*"'])
async def test_another_tag_gets_the_picture(client: httpx.AsyncClient, condition: str) -> None:
    assert (await client.get(URL, headers={"If-None-Match": condition})).status_code == 200


async def test_an_unknown_picture_is_404_whatever_tag_is_named(client: httpx.AsyncClient) -> None:
    assert (await client.get(f"/media/{'0' * 64}.jpg", headers={"If-None-Match": "*"})).status_code == 404


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


def scope(name: str) -> Scope:
    return {"type": "http", "method": "GET", "path": f"/media/{name}", "headers": [], "path_params": {"name": name}}


def answering(app: Starlette) -> Callable[[Receive, Send], Any]:
    """The route's answer to a request for the large file, below the layer that renders errors."""
    route = app.routes[0]
    assert isinstance(route, Route)

    async def answer(receive: Receive, send: Send) -> None:
        request = Request(scope(f"{LARGE}.jpg"))
        await (await route.endpoint(request))(request.scope, receive, send)

    return answer


async def stay() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def test_reading_ends_when_the_client_leaves(app: Starlette) -> None:
    sent: list[Message] = []
    left = asyncio.Event()
    before = open_files()

    async def receive() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        left.set()
        await asyncio.sleep(0)

    await answering(app)(receive, send)
    assert sum(len(message.get("body", b"")) for message in sent) <= 2 * 262144
    assert sent[-1].get("more_body") is True
    assert open_files() == before


async def test_reading_ends_when_sending_fails(app: Starlette) -> None:
    sent: list[Message] = []
    before = open_files()

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            raise ConnectionResetError

    await answering(app)(stay, send)
    assert len(sent) == 2
    assert open_files() == before


async def test_a_client_that_takes_nothing_is_given_up(app: Starlette) -> None:
    before = open_files()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    await asyncio.wait_for(answering(app)(stay, send), 5)
    assert open_files() == before


async def test_a_cancelled_answer_closes_its_file(app: Starlette) -> None:
    before = open_files()
    reached = asyncio.Event()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            reached.set()
            await asyncio.Event().wait()

    serving = asyncio.ensure_future(answering(app)(stay, send))
    await reached.wait()
    serving.cancel()
    await asyncio.wait([serving])
    assert serving.cancelled()
    assert open_files() == before


async def test_a_file_cut_while_it_is_served_breaks_the_answer_off(
    app: Starlette, kept: dict[str, blobs_disk.Blob]
) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        os.truncate(kept[LARGE].path, 300_000)

    with raises(errors.OurError, match="damaged"):
        await answering(app)(stay, send)
    assert sent[-1].get("more_body") is True


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    running = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await running
        listener.close()


async def test_a_real_server_serves_files_ranges_and_heads(app: Starlette) -> None:
    async with serving(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        assert (await client.get(f"/media/{LARGE}.jpg")).content == LARGE_BODY
        part = await client.get(f"/media/{LARGE}.jpg", headers={"Range": "bytes=-300000"})
        assert (part.status_code, part.content) == (206, LARGE_BODY[-300_000:])
        head = await client.head(f"/media/{LARGE}.jpg")
        assert (head.status_code, head.headers["content-length"]) == (200, "1048576")
        same = await client.get(URL, headers={"If-None-Match": TAG})
        assert (same.status_code, same.content) == (304, b"")


async def test_a_real_server_closes_files_of_clients_that_left(
    app: Starlette, kept: dict[str, blobs_disk.Blob], tmp_path: Path
) -> None:
    """32 MiB do not fit into socket buffers, so every file is still open when its client goes."""
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(32 * 1024 * 1024)
    kept[LARGE] = blobs_disk.Blob(path=huge, size_bytes=32 * 1024 * 1024, mime="image/jpeg", extension="jpg")

    def open_copies() -> int:
        links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        return sum(os.path.exists(link) and os.path.realpath(link) == str(huge) for link in links)

    async with serving(app) as port:
        for _ in range(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET /media/{LARGE}.jpg HTTP/1.1\r\nHost: gateway\r\n\r\n".encode())
            await reader.readexactly(1000)
            writer.transport.abort()
        for _ in range(500):
            if open_copies() == 0:
                break
            await asyncio.sleep(0.01)
        assert open_copies() == 0
