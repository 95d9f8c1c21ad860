"""A small forward proxy on a real socket: it opens tunnels by CONNECT, or does what it is told to instead."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

Refusal = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Proxy:
    """`goes_to` is where every tunnel ends, whatever it was asked for; None: where it was asked to."""

    def __init__(self, goes_to: int | None, instead: bytes | Refusal | None) -> None:
        self.goes_to = goes_to
        self.instead = instead
        self.asked: list[list[str]] = []
        """The lines of each head."""
        self.carried = 0
        """Bytes that left through tunnels."""
        self.port = 0
        self.serving: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
            self.asked.append(head.split("\r\n")[:-2])
            if callable(self.instead):
                await self.instead(reader, writer)
            elif self.instead is not None:
                writer.write(self.instead)
                await writer.drain()
            else:
                await self._tunnel(reader, writer)
        writer.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.asked[-1][0].split(" ")[1].rpartition(":")
        away = ("127.0.0.1", self.goes_to) if self.goes_to is not None else (host, int(port))
        there_reader, there = await asyncio.open_connection(*away)
        writer.write(b"HTTP/1.1 200 Connection established\r\nVia: small\r\n\r\n")
        try:
            back = asyncio.create_task(self._pump(there_reader, writer))
            self.carried += await self._pump(reader, there)
            await back
        finally:
            there.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> int:
        passed = 0
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while step := await source.read(65536):
                passed += len(step)
                sink.write(step)
                await sink.drain()
        with contextlib.suppress(ConnectionError, RuntimeError):
            sink.close()
        return passed


@contextlib.asynccontextmanager
async def proxying(
    *, goes_to: int | None = None, instead: bytes | Refusal | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Proxy]:
    """A proxy on a free port of this event loop."""
    proxy = Proxy(goes_to, instead)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=tls)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        serving = list(proxy.serving)
        for each in serving:
            each.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
