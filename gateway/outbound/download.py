"""Fetches one result file from wherever the upstream put it; the answer is hostile until proven to be media.

Rules: the address guard decides where a connection may go; redirects are not followed; nothing of ours but a user
agent is sent, above all no key; nothing is decompressed. Size, time and memory are bounded. A file counts as fetched
only if it arrived whole and its first and last bytes are those of a medium.

Not here: when to try again, where the bytes are kept, who may see them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Final

import aiohttp
import httpx

from gateway.outbound import address, bounded, guarded, tunnel
from gateway.rules import media

SIZE_MAX_BYTES: Final = 64 * 1024 * 1024
DEADLINE_S: Final = 60.0
CONNECT_MAX_S: Final = 5.0
SILENCE_MAX_S: Final = 20.0
CONNECTIONS_MAX: Final = 256
STEP_BYTES: Final = 256 * 1024
"""How much is gathered before it is hashed and written, in a thread: the loop is never held up by either."""


class Reason(StrEnum):
    """Why a file was not fetched; a closed set, fit for a metric's label."""

    ADDRESS = "address"
    STATUS = "status"
    REDIRECT = "redirect"
    ENCODING = "encoding"
    TOO_LARGE = "too_large"
    TRUNCATED = "truncated"
    NOT_MEDIA = "not_media"
    TIMEOUT = "timeout"
    NETWORK = "network"
    DISK = "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """The whole file is in the sink."""

    digest: str
    """SHA-256, 64 lower-case hex digits."""
    size_bytes: int
    mime: str
    extension: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """No file; what the sink holds is worthless."""

    reason: Reason
    detail: str
    """For the log: names the host, never the URL's path or query."""
    permanent: bool
    """No later try of this URL can succeed."""


class Downloader:
    """Fetches through clients behind the address guard."""

    def __init__(
        self,
        *,
        allowed: Sequence[address.Network] = (),
        ca_bundle: Path | None = None,
        size_max_bytes: int = SIZE_MAX_BYTES,
        proxy: tunnel.Proxy | None = None,
    ) -> None:
        self._allowed = tuple(allowed)
        self._size_max_bytes = size_max_bytes
        self._clients = guarded.Clients(
            allowed=self._allowed,
            tls=guarded.authorities(ca_bundle),
            connections_max=CONNECTIONS_MAX,
            # No limit of its own for the wait for a free connection: the deadline covers it.
            timeout=httpx.Timeout(SILENCE_MAX_S, connect=CONNECT_MAX_S, pool=None),
            headers={},
            proxy=proxy,
        )

    async def fetch(self, url: str, *, sink: BinaryIO, deadline_s: float = DEADLINE_S) -> Fetched | Failed:
        """Write the file at `url` into `sink`, from where that stands, all within `deadline_s`.

        The sink is not flushed, and after a Failed or an exception it holds anything. It is not touched any more
        once this returned, also when cancelled.
        """
        target = address.check_url(url, allowed=self._allowed)
        if isinstance(target, address.Refused):
            return Failed(reason=Reason.ADDRESS, detail=target.reason, permanent=True)
        client = self._clients.of(target)
        try:
            async with (
                asyncio.timeout(deadline_s),
                client.stream("GET", target.url, headers=guarded.as_written(target.url)) as answer,
            ):
                return self._judge(answer) or await self._receive(answer, sink)
        except guarded.FAILURES as error:
            return _failed_by(error, host=target.url.host)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._clients.aclose()

    def _judge(self, answer: httpx.Response) -> Failed | None:
        """Judge by status and headers."""
        host, status = answer.url.host, answer.status_code
        if answer.is_redirect:
            return _failed(Reason.REDIRECT, f"{host} answered {status}: redirects are not followed")
        if status != 200:
            return _failed(Reason.STATUS, f"{host} answered {status}", permanent=status == 410)
        encoding = answer.headers.get("content-encoding", "identity")
        if encoding.strip().lower() != "identity":
            return _failed(Reason.ENCODING, f"{host} sent the file encoded, though asked not to")
        if (_declared_bytes(answer) or 0) > self._size_max_bytes:
            return self._too_large(host)
        return None

    async def _receive(self, answer: httpx.Response, sink: BinaryIO) -> Fetched | Failed:
        host = answer.url.host
        body = _Body(sink=sink)
        waiting = bytearray()
        async for chunk in answer.aiter_raw():
            waiting += chunk
            if body.size_bytes + len(waiting) > self._size_max_bytes:
                return self._too_large(host)
            if len(waiting) >= STEP_BYTES:
                if (failed := await body.take(waiting)) is not None:
                    return failed
                waiting = bytearray()
        return await body.take(waiting) or _judge_whole(body, answer)

    def _too_large(self, host: str) -> Failed:
        return _failed(Reason.TOO_LARGE, f"{host}: more than {self._size_max_bytes} bytes", permanent=True)


@dataclass(slots=True, kw_only=True)
class _Body:
    """What has arrived so far."""

    sink: BinaryIO
    size_bytes: int = 0
    head: bytes = b""
    tail: bytes = b""
    _hash: hashlib._Hash = field(default_factory=hashlib.sha256)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    async def take(self, step: bytearray) -> Failed | None:
        """Keep the next bytes; an endless page of text is given up at the first of them."""
        if self.size_bytes == 0:
            self.head = bytes(step[: media.HEAD_BYTES])
            if media.begin(self.head) is None:
                return _failed(Reason.NOT_MEDIA, f"the file begins like no medium ({len(step)} bytes seen)")
        try:
            await _to_its_end(lambda: self._keep(step))
        except OSError as error:
            return _failed(Reason.DISK, f"cannot write the file: {error.strerror or type(error).__name__}")
        self.size_bytes += len(step)
        self.tail = (self.tail + step[-media.TAIL_BYTES :])[-media.TAIL_BYTES :]
        return None

    def _keep(self, step: bytearray) -> None:
        self._hash.update(step)
        unwritten = memoryview(step)
        while unwritten:  # an unbuffered file may take a part
            unwritten = unwritten[self.sink.write(unwritten) :]


def _judge_whole(body: _Body, answer: httpx.Response) -> Fetched | Failed:
    host = answer.url.host
    kind = media.sniff(body.head, body.tail, body.size_bytes)
    if kind is None:
        return _failed(Reason.TRUNCATED, f"{host}: the end of the file is missing after {body.size_bytes} bytes")
    # A body that ends when the connection does may have been cut anywhere; HTTP cannot tell (RFC 9112 §6.3).
    framed = _declared_bytes(answer) == body.size_bytes or "transfer-encoding" in answer.headers
    if not (framed or kind.sealed):
        return _failed(Reason.TRUNCATED, f"{host} did not say how long the file is, and a {kind.extension} cannot")
    return Fetched(digest=body.digest, size_bytes=body.size_bytes, mime=kind.mime, extension=kind.extension)


def _declared_bytes(answer: httpx.Response) -> int | None:
    """The parser below has refused everything but plain digits, and fails a body that is shorter."""
    declared = answer.headers.get("content-length")
    return None if declared is None else int(declared)


def _failed(reason: Reason, detail: str, *, permanent: bool = False) -> Failed:
    return Failed(reason=reason, detail=detail, permanent=permanent)


def _failed_by(error: BaseException, *, host: str) -> Failed:
    causes = tuple(guarded.causes(error))
    refused = next((cause for cause in causes if isinstance(cause, address.AddressRefused)), None)
    if refused is not None:
        return _failed(Reason.ADDRESS, f"{host}: {refused.reason}")
    if any(isinstance(cause, bounded.Overlong) for cause in causes):
        return _failed(Reason.TOO_LARGE, f"{host}: {causes[-1]}")
    if any(isinstance(cause, aiohttp.ClientPayloadError) for cause in causes):
        return _failed(Reason.TRUNCATED, f"{host}: the connection ended before the file did")
    if any(isinstance(cause, TimeoutError) for cause in causes):
        return _failed(Reason.TIMEOUT, f"{host} took too long")
    return _failed(Reason.NETWORK, f"{host}: {guarded.reason_of(error)}")


async def _to_its_end(work: Callable[[], None]) -> None:
    """Run `work` in a thread and outlast a cancellation: the sink must not be closed while a thread writes to it."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.gather(running, return_exceptions=True)
        raise
