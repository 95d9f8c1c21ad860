"""Serves kept media: `GET|HEAD /media/{name}`, where the name is `<sha256>.<extension>`.

Whoever knows the URL may read that one blob; the digest is the secret, nothing is listed. A blob never changes, so it
is cacheable for ever and its digest is its strong ETag. The browser is told not to guess the type and to run nothing.

Rules: one range (RFC 9110 §14); a file is read in large steps, off the loop; a client that leaves or stalls ends the
reading. Not here: which blobs exist (`find` knows), how an error looks.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import errors
from gateway.edge import render
from gateway.store import blobs_disk

Find: TypeAlias = Callable[[str], Awaitable[blobs_disk.Blob | None]]

PATH: Final = "/media/{name}"
"""The route's path."""
STEP_BYTES: Final = 256 * 1024
STALL_MAX_S: Final = 60.0
"""How long a client may take for one step before it is given up."""

_NAME: Final = re.compile(r"([0-9a-f]{64})\.([a-z0-9]{1,8})")
_RANGE: Final = re.compile(r"bytes=(.*)", re.IGNORECASE | re.ASCII)
_RANGE_SPEC: Final = re.compile(r"(\d*)-(\d*)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The bytes of a file that are asked for: `length` of them from `start`."""

    start: int
    length: int


class Unsatisfiable(Exception):
    """The Range header asks for nothing that the file has, or for several ranges."""


def endpoint(find: Find, *, stall_max_s: float = STALL_MAX_S) -> Callable[[Request], Awaitable[ASGIApp]]:
    """Return the endpoint for PATH; `find` takes a digest and returns its blob, or None.

    The endpoint and its answer raise errors.GatewayError, the answer only before anything is sent.
    """

    async def show(request: Request) -> ASGIApp:
        digest, extension = _parse_name(request.path_params["name"])
        blob = await find(digest)
        if blob is None or blob.extension != extension:
            raise _not_found()
        tag = f'"{digest}"'
        if render.is_known(request.headers, tag):
            return _NotModified(tag=tag)
        span = _asked(request, tag, blob.size_bytes)
        return _Answer(blob=blob, tag=tag, span=span, with_body=request.method == "GET", stall_max_s=stall_max_s)

    return show


def parse_range(value: str, size_bytes: int) -> Span | None:
    """Return the one range asked for; None if the header is to be ignored. Raises Unsatisfiable.

    Source: RFC 9110 §14.1.2 (form), §14.2 (ignore what is malformed or of another unit).
    """
    found = _RANGE.fullmatch(value.strip())
    specs = [] if found is None else [text.strip() for text in found[1].split(",") if text.strip()]
    parsed = [_RANGE_SPEC.fullmatch(spec) for spec in specs]
    bounds = [(each[1], each[2]) for each in parsed if each is not None and (each[1] or each[2])]
    if not bounds or len(bounds) < len(specs):
        return None
    numbers = [(_number(first), _number(last)) for first, last in bounds]
    if any(first is not None and last is not None and first > last for first, last in numbers):
        return None
    if len(numbers) > 1:
        raise Unsatisfiable
    return _span(*numbers[0], size_bytes)


def _span(first: int | None, last: int | None, size_bytes: int) -> Span:
    if first is None:  # a suffix: the last so many bytes
        length = min(last or 0, size_bytes)
        start = size_bytes - length
    else:
        start = first
        length = size_bytes - start if last is None else min(last + 1, size_bytes) - start
    if length <= 0:
        raise Unsatisfiable
    return Span(start=start, length=length)


def _number(digits: str) -> int | None:
    if not digits:
        return None
    # No file is 10¹⁸ bytes long, and int() refuses thousands of digits.
    return int(digits) if len(digits.lstrip("0")) <= 18 else 10**18


def _parse_name(name: str) -> tuple[str, str]:
    found = _NAME.fullmatch(name)
    if found is None:
        raise _not_found()
    return found[1], found[2]


def _not_found() -> errors.CallerError:
    return errors.CallerError("not_found", "There is no such file here. Take the URL from the task.")


def _asked(request: Request, tag: str, size_bytes: int) -> Span | None:
    value = ",".join(request.headers.getlist("range"))
    # RFC 9110 §14.2: a range is for GET alone. §13.1.5: If-Range compares strongly; a date matches nothing here.
    if not value or request.method != "GET" or request.headers.get("if-range", tag).strip() != tag:
        return None
    try:
        return parse_range(value, size_bytes)
    except Unsatisfiable as error:
        raise errors.CallerError(
            "range_not_satisfiable",
            f"Ask for one range within the file's {size_bytes} bytes.",
            headers={"Content-Range": f"bytes */{size_bytes}"},
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _NotModified:
    """RFC 9110 §15.4.5: the headers that concern caching, and no body."""

    tag: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(_start(304, _cache_headers(self.tag)))
        await send({"type": "http.response.body", "body": b""})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """The file, or a span of it."""

    blob: blobs_disk.Blob
    tag: str
    span: Span | None
    with_body: bool
    stall_max_s: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        span = self.span or Span(start=0, length=self.blob.size_bytes)
        with _opened(self.blob) as number:
            steps = _steps(span) if self.with_body else []
            # The first step is read before the status is sent: what cannot be read is an error and no broken body.
            first = await _read(number, steps[0]) if steps else b""
            await send(_start(200 if self.span is None else 206, self._headers(span)))
            if len(steps) <= 1:
                await send({"type": "http.response.body", "body": first})
            else:
                await self._stream(number, first, steps[1:], receive, send)

    def _headers(self, span: Span) -> list[tuple[str, str]]:
        last = span.start + span.length - 1
        ranged = [("content-range", f"bytes {span.start}-{last}/{self.blob.size_bytes}")] if self.span else []
        return [
            ("content-type", self.blob.mime),
            ("content-length", str(span.length)),
            *ranged,
            ("accept-ranges", "bytes"),
            *_cache_headers(self.tag),
            ("x-content-type-options", "nosniff"),
            ("content-security-policy", "sandbox; default-src 'none'"),
        ]

    async def _stream(self, number: int, first: bytes, rest: Sequence[Span], receive: Receive, send: Send) -> None:
        """Send step by step until all is sent or the client is gone; the server closes what is left unfinished."""
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            body = first
            for step in rest:
                if gone.done() or not await self._sent(send, body, more=True):
                    return
                body = await _read(number, step)
            await self._sent(send, body, more=False)
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def _sent(self, send: Send, body: bytes, *, more: bool) -> bool:
        try:
            async with asyncio.timeout(self.stall_max_s):
                await send({"type": "http.response.body", "body": body, "more_body": more})
        except OSError:  # the client left, or took too long (TimeoutError is one)
            return False
        return True


def _start(status: int, headers: list[tuple[str, str]]) -> Message:
    raw = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers]
    return {"type": "http.response.start", "status": status, "headers": raw}


def _cache_headers(tag: str) -> list[tuple[str, str]]:
    return [("etag", tag), ("cache-control", "public, max-age=31536000, immutable")]


def _steps(span: Span) -> list[Span]:
    """At most 256 of them: no kept file is larger than 64 MiB."""
    end = span.start + span.length
    return [Span(start=at, length=min(STEP_BYTES, end - at)) for at in range(span.start, end, STEP_BYTES)]


@contextmanager
def _opened(blob: blobs_disk.Blob) -> Iterator[int]:
    """A file descriptor: opening waits for no content, so it is done on the loop and cannot be lost to a cancel."""
    try:
        number = os.open(blob.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _not_found() from error
    try:
        if os.fstat(number).st_size != blob.size_bytes:
            raise _damaged()
        yield number
    finally:
        os.close(number)


async def _read(number: int, step: Span) -> bytes:
    """Read one step in a thread; a regular file gives all of it at once, or has been cut meanwhile."""
    body = await asyncio.to_thread(os.pread, number, step.length, step.start)
    if len(body) < step.length:
        raise _damaged()
    return body


def _damaged() -> errors.OurError:
    return errors.OurError("internal_error", "The kept file is damaged; the operator can run `audit`.")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
