"""Connections that bound what an answer may hold beside its body, below aiohttp's parser.

aiohttp bounds lines and headers. It reads interim answers (1xx), chunk extensions and chunks of a byte without end, at
the full speed of a core, and answers the next request on a kept connection with whatever came while nobody asked.
Rules: a head, with all interim ones, is 64 KiB at most; so is what frames a body, above the body's own size; who sends
anything after an answer loses the connection.

Not here: the size of a body and the time for all of it, which the callers bound.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any, Final

import aiohttp
from aiohttp import client_proto, streams

BESIDE_BODY_BYTES: Final = 64 * 1024
STEP_BYTES: Final = 64 * 1024
"""How much is parsed before the bound is looked at again: a read may bring 256 KiB."""


class Overlong(aiohttp.ClientError):
    """There is more around the answer's body than any server has to say."""


class Connector(aiohttp.TCPConnector):
    """aiohttp's connector, with these bounds on each connection."""

    def __init__(self, **options: Any) -> None:
        """`options` are those of aiohttp's."""
        super().__init__(**options)
        makes: type[client_proto.ResponseHandler] = _Bounded
        self._factory = functools.partial(makes, loop=self._loop)


class _Bounded(client_proto.ResponseHandler):
    """One connection. The parser calls `feed_data` with each head that it has read."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._body: streams.StreamReader | None = None
        """The body of the present request's answer, once its head is there."""
        self._received_bytes = 0

    def set_response_params(self, **parameters: Any) -> None:
        """A request is about to be sent."""
        self._body = None
        self._received_bytes = 0
        super().set_response_params(**parameters)

    def feed_data(self, data: tuple[aiohttp.http.RawResponseMessage, streams.StreamReader], size: int = 0) -> None:
        """A head was read."""
        message, body = data
        if message.code >= 200 or message.code == 101:
            self._body = body
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        """Bytes came; or none, where the parser is to go on with what it has."""
        if data and (self._parser is None or (self._body is not None and self._body.is_eof())):
            self._give_up(Overlong("something came that nobody asked for"))
            return
        for begin in range(0, len(data), STEP_BYTES) or (0,):
            step = data if len(data) <= STEP_BYTES else data[begin : begin + STEP_BYTES]
            self._received_bytes += len(step)
            super().data_received(step)
            if self.transport is None or self.transport.is_closing():
                return
            # While it is paused the parser holds back what may be body.
            if not self._reading_paused and self._beside_body_bytes() > BESIDE_BODY_BYTES:
                self._give_up(Overlong("too much around the body"))
                return

    def _beside_body_bytes(self) -> int:
        """How much there is beside the body, less what a body of its size may need."""
        return self._received_bytes - (0 if self._body is None else 2 * self._body.total_bytes)

    def _give_up(self, error: Overlong) -> None:
        self._should_close = True
        if self._body is not None and not self._body.is_eof():
            self._body.set_exception(error)
        self.set_exception(error)
        # Nothing is left for the parser to complain about when the connection is lost.
        self._parser, self._payload = None, None
        if self.transport is not None:
            self.transport.abort()
