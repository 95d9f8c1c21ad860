"""A receiver of webhooks on a real socket: it answers as it is told to, and keeps what it was sent."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was sent; header names in lower case."""

    line: str
    headers: Mapping[str, str]
    body: bytes

    def document(self) -> Any:
        return msgspec.json.decode(self.body)


def status(code: int, *headers: str) -> bytes:
    """An answer without a body."""
    return "\r\n".join([f"HTTP/1.1 {code} X", "Content-Length: 0", *headers, "", ""]).encode()


class Receiver:
    """`answers` are given one after the other, the last one for ever."""

    def __init__(self, *answers: bytes | Answer) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []
        self.url = ""
        self.under_way = 0
        self.most_at_once = 0
        self.has_request = asyncio.Event()
        self.serving: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other end has gone, or the test has ended
        finally:
            self.under_way -= 1
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii").split("\r\n")
        named = (each.partition(": ") for each in head[1:] if each)
        headers = {name.lower(): value for name, _, value in named}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests.append(Request(line=head[0], headers=headers, body=body))
        self.has_request.set()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, bytes):
            writer.write(answer)
            await writer.drain()
        else:
            await answer(writer)


@contextlib.asynccontextmanager
async def receiving(
    *answers: bytes | Answer, tls: ssl.SSLContext | None = None, as_a: type[Receiver] = Receiver
) -> AsyncIterator[Receiver]:
    """A receiver on a free port of this event loop."""
    receiver = as_a(*answers)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    receiver.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    try:
        yield receiver
    finally:
        server.close()
        serving = list(receiver.serving)
        for each in serving:
            each.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
