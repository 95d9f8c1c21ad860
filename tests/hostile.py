"""A vendor that means harm: an upstream and a media host on one raw socket, which can send anything.

What it does is asked for by name. A submit's prompt says who attacks and how (`submit gzip-bomb`, `poll deep`, `cancel
redirect`, `media svg`, or `sane`), the vendor's task id repeats it, and a result's URL too: so each request finds its
attack, however many are under way. `python -m tests.hostile PORT BYTES` serves until it
is ended, with sane pictures of so many bytes.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gzip
import json
import socket
import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

from tests import hostile_documents as documents

MIB: Final = 1024 * 1024
BLOCK: Final = bytes(65536)
JPEG: Final = bytes.fromhex("ffd8ffe000104a46494600") + b"picture" * 20 + b"\xff\xd9"

Send = Callable[[asyncio.StreamWriter], Awaitable[None]]
"""Sends a whole answer, or whatever it likes."""


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """A well-formed answer, but for what the headers and the body say."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def head(*headers: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers]).encode("latin-1") + b"\r\n\r\n"


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


def _bomb(begin: bytes) -> bytes:
    """256 MiB of zeros, deflated: about 256 KiB. Each mebibyte is a block that can be repeated."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return begin + (squeeze.compress(bytes(MIB)) + squeeze.flush(zlib.Z_FULL_FLUSH)) * 256


_bombs: dict[str, bytes] = {}


def bomb(name: str) -> bytes:
    """A small body that would be 256 MiB or more, were it taken apart as its encoding says."""
    if not _bombs:
        gzipped = _bomb(b"\x1f\x8b\x08" + bytes(6) + b"\xff")
        deflated = _bomb(b"\x78\xda")
        _bombs["gzip"], _bombs["deflate"], _bombs["gzip, gzip"] = gzipped, deflated, gzip.compress(gzipped)
        # Nothing here can write these two; nothing may look at them either.
        _bombs["br"], _bombs["zstd"] = b"\x5b\xff\xff\xff" + b"\x5a" * 4096, b"\x28\xb5\x2f\xfd" + b"\xff" * 4096
    return _bombs[name]


async def _pour(writer: asyncio.StreamWriter, begin: bytes, again: bytes, pause_s: float = 0.0) -> None:
    """Begin, and then the same again without end."""
    writer.write(begin)
    while True:
        writer.write(again)
        await writer.drain()
        await asyncio.sleep(pause_s)


def endless(begin: bytes, again: bytes) -> Send:
    times = max(1, 65536 // len(again))
    return lambda writer: _pour(writer, begin, again * times)


def slow(begin: bytes, again: bytes = b"x") -> Send:
    """One byte a second."""
    return lambda writer: _pour(writer, begin, again, pause_s=1.0)


async def silence(_writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


def broken_off(sent: bytes) -> Send:
    """So much, then a reset."""

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()
        await asyncio.sleep(0.05)  # or the reset takes the bytes back
        raw = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):  # the other side was quicker
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return send


def _twice(first: bytes, second: bytes) -> Send:
    """An answer, and another one that nobody asked for while the connection is kept."""

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await asyncio.sleep(0.1)
        writer.write(second)
        await asyncio.sleep(60)

    return send


def transports(sane: bytes, elsewhere: str) -> Mapping[str, bytes | Send]:
    """Answers that HTTP forbids, or that no sane vendor sends, around a body that would be right.

    `elsewhere`: a URL that nobody may ask for.
    """
    ok = answer(sane)
    many = b"".join(b"X-%d: x\r\n" % number for number in range(5000))
    lying = {
        "no-http": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        "http-0-9": sane,
        "http-2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64" + b"\x00" * 9,
        "http-2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "http-9-9": ok.replace(b"HTTP/1.1", b"HTTP/9.9"),
        "status-text": ok.replace(b"200 OK", b"abc OK"),
        "status-of-5-digits": ok.replace(b"200 OK", b"20000 OK"),
        "status-0": ok.replace(b"200 OK", b"000 OK"),
        "status-999": answer(sane, status="999 Odd"),
        "status-600": answer(sane, status="600 Odd"),
        "status-418": answer(sane, status="418 Teapot"),
        "switching": head("Upgrade: websocket", "Connection: Upgrade", status="101 Switching Protocols") + sane,
        "204-with-body": answer(sane, status="204 No Content"),
        "205-with-body": answer(sane, status="205 Reset Content"),
        "304-with-body": answer(sane, status="304 Not Modified"),
        "206": answer(sane, f"Content-Range: bytes 0-{len(sane) - 1}/{len(sane)}", status="206 Partial Content"),
        "header-of-9-kib": head(f"Content-Length: {len(sane)}", "X: " + "x" * 9216) + sane,
        "5000-headers": b"HTTP/1.1 200 OK\r\n" + many + b"Content-Length: 2\r\n\r\n{}",
        "header-without-colon": head("Nonsense", f"Content-Length: {len(sane)}") + sane,
        "header-folded": head(f"Content-Length: {len(sane)}", "X: a\r\n b") + sane,
        "header-with-nul": head(f"Content-Length: {len(sane)}", "X: a\x00b") + sane,
        "length-short": head(f"Content-Length: {len(sane) - 5}") + sane,
        "length-long": head(f"Content-Length: {len(sane) + 5}") + sane,
        "length-negative": head("Content-Length: -1") + sane,
        "length-signed": head(f"Content-Length: +{len(sane)}") + sane,
        "length-hexadecimal": head("Content-Length: 0x10") + sane,
        "length-of-400-digits": head("Content-Length: " + "9" * 400) + sane,
        "length-2-to-63": head("Content-Length: 9223372036854775808") + sane,
        "length-twice": head(f"Content-Length: {len(sane)}", "Content-Length: 3") + sane,
        "length-and-chunks": head(f"Content-Length: {len(sane)}", "Transfer-Encoding: chunked") + chunk(sane),
        "chunk-size-huge": head("Transfer-Encoding: chunked") + b"ffffffffffffffff0\r\n" + sane,
        "chunk-size-negative": head("Transfer-Encoding: chunked") + b"-5\r\n" + sane,
        "chunk-cut": head("Transfer-Encoding: chunked") + b"fff\r\n" + sane,
        "chunks-without-end": head("Transfer-Encoding: chunked") + chunk(sane),
        "transfer-gzip": head("Transfer-Encoding: gzip, chunked") + chunk(bomb("gzip")) + b"0\r\n\r\n",
        "hung-up": b"",
        "answered-twice": ok + answer(b'{"task_id":"somebody-elses","status":"queued"}'),
    }
    lying |= {f"redirect-{status}": answer(sane, f"Location: {elsewhere}", status=f"{status} Go")
              for status in (301, 302, 303, 307, 308)}  # fmt: skip
    lying["redirect-metadata"] = answer(b"", "Location: http://169.254.169.254/latest/meta-data/", status="302 Go")
    for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip"):
        body = bomb(encoding)
        lying[f"bomb-{encoding.replace(', ', '-')}"] = answer(body, f"Content-Encoding: {encoding}")
    wild: dict[str, Send] = {
        "endless-status": endless(b"HTTP/1.1 200 ", b"O"),
        "endless-header": endless(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        "endless-headers": endless(b"HTTP/1.1 200 OK\r\n", b"X-Again: and again\r\n"),
        "endless-100": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        "endless-103": endless(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
        "endless-body": endless(head(), b" "),
        "endless-gzip": endless(head("Content-Encoding: gzip"), bomb("gzip")[:4096]),
        "endless-chunks": endless(head("Transfer-Encoding: chunked"), chunk(b" " * 4096)),
        "endless-small-chunks": endless(head("Transfer-Encoding: chunked"), chunk(b" ")),
        "endless-chunk-extensions": endless(head("Transfer-Encoding: chunked"), chunk(b" ", b";" + b"x" * 4096)),
        "endless-chunk-extension": endless(head("Transfer-Encoding: chunked") + b"1;", b"x"),
        "endless-trailers": endless(head("Transfer-Encoding: chunked") + chunk(sane) + b"0\r\n", b"X-T: t\r\n"),
        "answered-again-later": _twice(ok, answer(b'{"task_id":"somebody-elses","status":"queued"}')),
        "reset": broken_off(b""),
        "reset-in-head": broken_off(b"HTTP/1.1 200 OK\r\nContent-"),
        "reset-in-body": broken_off(ok[:-5]),
    }
    waits: dict[str, Send] = {
        "half-a-mebibyte-then-silence": slow(head(f"Content-Length: {MIB}") + b" " * (MIB // 2), b""),
        "slow-head": slow(b"HTTP/1.1 200 O", b"O"),
        "slow-headers": slow(b"HTTP/1.1 200 OK\r\nX: "),
        "slow-body": slow(head("Content-Length: 100000")),
        "slow-chunks": slow(head("Transfer-Encoding: chunked"), chunk(b" ")),
        "slow-100": slow(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        "silence": silence,
    }
    return {**lying, **wild, **waits}


ENDED: Final = (
    *("http-0-9", "hung-up", "length-long", "length-2-to-63", "chunk-cut", "chunks-without-end"),
    *("gif-without-length", "mp4-without-length"),
)
"""After these bytes the connection is closed; after others it is the gateway's to close."""

SLOW: Final = (
    "half-a-mebibyte-then-silence",
    "slow-head",
    "slow-headers",
    "slow-body",
    "slow-chunks",
    "slow-100",
    "silence",
)
"""These last as long as the gateway's patience does."""


def media(whole: bytes, number: int) -> Mapping[str, bytes | Send]:
    """What a result's URL may hold instead of a picture; `number`: how often it was asked for before."""
    jpeg = b"\xff\xd8\xff\xe0"
    return {
        **{name: answer(body, f"Content-Type: {mime}") for name, (mime, body) in documents.FILES.items()},
        "changes": answer(whole.replace(b"picture", b"pictur%d" % (number % 10))),
        "etag-lies": answer(whole, 'ETag: "a"', "Last-Modified: Thu, 01 Jan 1970 00:00:00 GMT", "Age: -1"),
        "type-lies": answer(whole, "Content-Type: text/html", "Content-Disposition: attachment; filename=../../x"),
        "range-unasked": answer(whole, f"Content-Range: bytes 0-9/{len(whole)}", status="206 Partial Content"),
        "64-mib-and-1": head(f"Content-Length: {64 * MIB + 1}") + jpeg,
        "64-mib": _sized(64 * MIB),
        "64-mib-chunked": _sized(64 * MIB, is_chunked=True),
        "endless-jpeg": endless(head() + jpeg, BLOCK),
        "endless-jpeg-chunks": endless(head("Transfer-Encoding: chunked") + chunk(jpeg), chunk(b"p" * 4096)),
        "endless-jpeg-small-chunks": endless(head("Transfer-Encoding: chunked") + chunk(jpeg), chunk(b"p")),
        "gif-without-length": head() + documents.FILES["gif-bomb"][1],
        "mp4-without-length": head() + documents.MP4,
    }


def _sized(size_bytes: int, *, is_chunked: bool = False) -> Send:
    """A JPEG by its first and last bytes, with nothing sensible between."""

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(head("Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {size_bytes}"))
        left = size_bytes
        while left > 0:
            block = b"\xff\xd8\xff\xe0" + BLOCK[4:] if left == size_bytes else BLOCK[: min(left, 65536)]
            block = block if left > 65536 else block[:-2] + b"\xff\xd9"
            left -= len(block)
            writer.write(chunk(block) if is_chunked else block)
            await writer.drain()
        if is_chunked:
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    return send


class Vendor:
    """The vendor at one address; `mood` says what polls get: `quiet` (under way), `attack`, or `calm` (completed)."""

    def __init__(self, url: str, elsewhere: str = "") -> None:
        self.url = url
        self.elsewhere = elsewhere or f"{url}/elsewhere"
        self.mood = "attack"
        self.asked: collections.Counter[str] = collections.Counter()
        """How often each attack was asked for, as `operation name`."""
        self.strayed: list[str] = []
        """Requests that should never have been made."""
        self.keeps_targets = False
        """Whether requests are noted in `targets` and answered with nothing."""
        self.targets: list[str] = []
        self.posted: set[str] = set()
        self.accepted = 0
        self.picture = JPEG

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while await self._exchange(reader, writer):
                pass
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and what it gets; whether the connection stays."""
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        (method, target, _), lines = text.split("\r\n")[0].split(" "), text.split("\r\n")[1:]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        operation, name, sane = self._what(method, target, headers, body)
        if operation == "":
            writer.write(answer(sane, "Content-Type: application/json"))
            await writer.drain()
            return True
        self.asked[f"{operation} {name}"] += 1
        found = self._attack(operation, name, sane)
        if not isinstance(found, bytes):
            await found(writer)
            return False
        writer.write(found)
        await writer.drain()
        return name not in ENDED

    def _what(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[str, str, bytes]:
        """(operation, attack, the sane answer); an empty operation is no attack."""
        if self.keeps_targets:
            self.targets.append(f"{method} {target}")
            return "", "", b"{}"
        parts = [unquote(part) for part in target.strip("/").split("/")]
        match method, parts:
            case _, ["control", *wish]:
                return "", "", self._control("/".join(wish))
            case "POST", ["v1", "tasks"]:
                return self._submit(str(json.loads(body)["prompt"]), headers.get("idempotency-key", ""))
            case "GET", ["v1", "tasks", vendor_id]:
                return self._poll(vendor_id)
            case "POST", ["v1", "tasks", vendor_id, "cancel"]:
                kind, _, name = vendor_id.rpartition(".")[0].partition(".")
                said = b'{"task_id":"%s","status":"cancelled","refunded":true}' % vendor_id.encode()
                return ("cancel", name, said) if kind == "cancel" else ("", "", said)
            case "GET", ["media", name, *_]:
                return ("media", "picture", b"") if self.mood == "calm" else ("media", name, b"")
            case "GET", ["v1", "dashboard", "billing", "balance"]:
                said = b'{"object":"credit_summary","currency":"USD","total_used_usd":0}'
                return "balance", headers.get("authorization", "").removeprefix("Bearer sk-balance-"), said
            case _:
                pass
        self.strayed.append(f"{method} {target} {headers.get('authorization', '')}".strip())
        return "", "", b"{}"

    def _submit(self, prompt: str, idempotency_key: str) -> tuple[str, str, bytes]:
        kind, _, name = prompt.partition(" ")
        self.accepted += 1
        vendor_id = f"{kind}.{name}.{self.accepted}"
        said = b'{"task_id":"%s","status":"queued","pre_consumed_cost":6641}' % vendor_id.encode()
        if kind != "submit" or (self.mood == "calm" and idempotency_key in self.posted):
            return "", "", said
        if idempotency_key in self.posted:  # heard and not accepted: what is in doubt stays so
            return "submit", "busy", said
        self.posted.add(idempotency_key)
        return "submit", name, said

    def _poll(self, vendor_id: str) -> tuple[str, str, bytes]:
        kind, name, _ = vendor_id.split(".", 2) if vendor_id.count(".") >= 2 else ("odd", "", "")
        done = documents.completed(vendor_id, f"{self.url}/media/{name if kind == 'media' else 'picture'}/{vendor_id}")
        under_way = b'{"task_id":"%s","status":"processing"}' % vendor_id.encode()
        if kind == "poll" and self.mood == "attack":
            return "poll", name, done
        if self.mood == "quiet" or (kind not in ("media", "sane") and self.mood == "attack"):
            return "", "", under_way
        return "", "", done

    def _attack(self, operation: str, name: str, sane: bytes) -> bytes | Send:
        if operation == "media":
            if name == "picture":
                return answer(self.picture)
            number = self.asked[f"media {name}"]
            return {**transports(self.picture, self.elsewhere), **media(self.picture, number)}[name]
        if name == "busy":
            return answer(b'{"error":{"message":"busy"}}', status="429 Busy")
        if name in documents.BODIES:
            return answer(documents.body(name, sane))
        if name in documents.IDS:
            return answer(json.dumps({"task_id": documents.IDS[name], "status": "queued"}).encode())
        if name in documents.OUTCOMES:
            return answer(documents.outcome(name, json.loads(sane)["task_id"], self.url))
        return transports(sane, self.elsewhere)[name]

    def _control(self, wish: str) -> bytes:
        if wish in ("quiet", "attack", "calm"):
            self.mood = wish
        return json.dumps({"asked": self.asked, "strayed": self.strayed}).encode()


@contextlib.asynccontextmanager
async def served(port: int = 0) -> AsyncIterator[Vendor]:
    """The vendor on a port of this event loop."""
    vendor = Vendor("")
    # Tasks that outlive the test would warn: each connection is ended with the vendor.
    under_way: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        assert serving is not None
        under_way.add(serving)
        try:
            await vendor.serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            under_way.discard(serving)

    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=512)
    vendor.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    vendor.elsewhere = f"{vendor.url}/elsewhere"
    try:
        yield vendor
    finally:
        server.close()
        for each in list(under_way):
            each.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _main(port: int, picture_bytes: int) -> None:
    async with served(port) as vendor:
        vendor.picture = JPEG[:-2] + bytes(max(0, picture_bytes - len(JPEG))) + JPEG[-2:]
        vendor.mood = "quiet"
        bomb("gzip")
        await asyncio.Event().wait()


@contextlib.contextmanager
def process(*, picture_bytes: int = 0, niceness: int = 0) -> Iterator[str]:
    """The vendor as a process of its own, quiet at first; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "tests.hostile", str(port), str(picture_bytes)]
    running = subprocess.Popen(["nice", "-n", str(niceness), *command], stdin=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 30
        while True:
            try:
                control(url)
                break
            except OSError:
                assert time.monotonic() < until and running.poll() is None, "the hostile vendor did not come up"
                time.sleep(0.05)
        yield url
    finally:
        running.kill()
        running.wait()


def control(url: str, mood: str = "") -> Any:
    """Set the mood of a vendor in another process; returns what it was asked for."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/control/{mood}", timeout=30) as answered:
        return json.loads(answered.read())


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2])))
