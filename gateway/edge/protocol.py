"""uvicorn's httptools protocol with bounds on what comes before a request is whole.

uvicorn alone waits for ever for a head that does not end, keeps heads of any size, answers what it cannot parse in
plain text, and writes that answer in front of those still owed to earlier requests of the connection. Here:

- a head must be complete `header_deadline_s` after its first byte (the first one: after the connection opened), else
  408; a connection that never said anything is closed without a word, since a client may be keeping it for later;
- path and headers may measure `headers_max_bytes` (431), also while they are coming in; so may trailers;
- what is not HTTP gets our 400; every refusal closes the connection, after the answers owed to earlier requests;
- trailers are dropped: merged into the headers, as uvicorn does, an `Authorization` could come in behind the checks
  (RFC 9110 section 6.5.1);
- `Upgrade` is ignored (RFC 9110 section 7.8) with the body kept: uvicorn loses it, and reads what follows as the next
  request. Java's HttpClient asks for h2c by default.

The wait between requests is uvicorn's `timeout_keep_alive`. Bodies are the guard's. For uvicorn's
`Config(http=bounded_protocol(…), ws="none")`; `limit_concurrency` must stay unset, its 503 is plain text.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http import httptools_impl
from uvicorn.server import ServerState

from gateway.edge import render
from gateway.errors import CallerError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a connection is held to, and who hears of a refusal."""

    new_request_id: Callable[[], str]
    refused: Callable[[CallerError], None]
    header_deadline_s: float
    headers_max_bytes: int
    linger_s: float


def bounded_protocol(
    *,
    new_request_id: Callable[[], str],
    refused: Callable[[CallerError], None],
    header_deadline_s: float = 10.0,
    headers_max_bytes: int = 32 * 1024,
    linger_s: float = 1.0,
) -> type[httptools_impl.HttpToolsProtocol]:
    """The protocol class for uvicorn's `Config(http=…)`.

    `refused` is called for each request refused before the app saw it. For `linger_s` after a refusal what the client
    still sends is read and dropped, so that it gets the answer and not a reset connection.
    """
    bounds = Bounds(
        new_request_id=new_request_id,
        refused=refused,
        header_deadline_s=header_deadline_s,
        headers_max_bytes=headers_max_bytes,
        linger_s=linger_s,
    )
    return type("BoundedProtocol", (_BoundedProtocol,), {"bounds": bounds})


class _BoundedProtocol(httptools_impl.HttpToolsProtocol):
    bounds: ClassVar[Bounds]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.ws_protocol_class = None
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._is_ending = False
        self._owed: CallerError | None = None
        self._running: httptools_impl.RequestResponseCycle | None = None
        self._in_message = False
        self._head_begun = False
        self._reframing = False
        self._head_bytes = 0
        self._unclaimed_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._lingering = _Lingering(transport, self._linger)
        self._start_timer(self.bounds.header_deadline_s, self._on_deadline)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._leave(self._running)  # uvicorn tells only the last request of a pipeline
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._head_begun = self._head_begun or not self._in_message
        self._unclaimed_bytes += len(data)
        try:
            self._feed(memoryview(data))
            self._check_size()
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, CallerError) else _invalid())
        except CallerError as error:
            self._refuse(error)
        else:
            if not self._head_begun:
                self._stop_timer()
            elif self._timer is None:
                self._start_timer(self.bounds.header_deadline_s, self._on_deadline)

    def on_message_begin(self) -> None:
        if not self._reframing:
            self._in_message = self._head_begun = True
            self._head_bytes = self._unclaimed_bytes = 0
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._reframing:
            self._claim(len(url))
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._reframing:
            self._claim(len(name) + len(value))
            if self._head_begun:
                super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self._reframing:
            self._head_begun = False
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unclaimed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._in_message = False
            super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._is_ending:  # uvicorn would begin the next request of the pipeline
            self.server_state.total_requests += 1
            return
        is_last = not self.pipeline
        super().on_response_complete()
        if is_last and self._owed is not None and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._answer(self._owed)
        if self._timer is not None and not self._refused:  # reading begins again: until now we held the head up
            self._stop_timer()
            self._start_timer(self.bounds.header_deadline_s, self._on_deadline)

    def _feed(self, data: memoryview) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._reframe()

    def _reframe(self) -> None:
        """Go on as if no upgrade had been asked for: a fresh parser that is told this request's framing only."""
        framing = [pair for pair in self.headers if pair[0] in (b"content-length", b"transfer-encoding")]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._reframing = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(b"%s: %s\r\n" % pair for pair in framing))
        self._reframing = False

    def _claim(self, size: int) -> None:
        self._head_bytes += size
        self._unclaimed_bytes = 0
        self._check_size()

    def _check_size(self) -> None:
        """Raises CallerError (431). What the parser keeps to itself, a header without an end, counts as it comes."""
        limit = self.bounds.headers_max_bytes
        if self._head_bytes + self._unclaimed_bytes > limit:
            raise CallerError("headers_too_large", f"Path and headers together are larger than {limit} bytes.")

    def _on_deadline(self) -> None:
        self._timer = None
        if self.flow.read_paused:  # we hold the head up, not the client: earlier requests are still being answered
            self._start_timer(self.bounds.header_deadline_s, self._on_deadline)
        elif self._head_begun:
            limit = f"{self.bounds.header_deadline_s:g} s"
            self._refuse(CallerError("request_timeout", f"The headers did not come whole within {limit}; try again."))
        else:
            self.transport.close()

    def _refuse(self, error: CallerError) -> None:
        """Read no more; answer now, or let what is under way finish, and close."""
        self._refused = True
        self._stop_timer()
        self.bounds.refused(error)
        cycle = cast(httptools_impl.RequestResponseCycle | None, self.cycle)
        if cycle is None or cycle.response_complete:
            self._answer(error)
        elif not cycle.more_body:  # the fault is behind a whole request: uvicorn closes after the last answer owed
            cycle.keep_alive = False
        elif self.pipeline:  # the fault is in the body of a request that has not begun: those before it come first
            self.pipeline.popleft()
            self._owed = error
        else:  # the fault is in the body of the one request under way: to its app the client has left
            is_begun = cycle.response_started
            self._leave(cycle)
            if is_begun:
                self.transport.close()
            else:
                self._answer(error)

    def _start_asgi_task(self, cycle: httptools_impl.RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        cycle.transport = self._lingering  # type: ignore[assignment]  # all that it uses of one
        super()._start_asgi_task(cycle, app)

    def _leave(self, cycle: httptools_impl.RequestResponseCycle | None) -> None:
        """Let a request's app know that nobody is there any more, and write nothing for it."""
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.waiting_for_100_continue = False
            cycle.message_event.set()

    def _answer(self, error: CallerError) -> None:
        request_id = self.bounds.new_request_id()
        response = render.error_response(error, request_id)
        headers = [*render.seal(response.raw_headers, request_id), (b"connection", b"close")]
        lines = [b"%s: %s\r\n" % header for header in headers]
        status_line = httptools_impl.STATUS_LINE[response.status_code]
        self.transport.write(b"".join([status_line, *lines, b"\r\n", response.body]))
        self._linger()

    def _linger(self) -> None:
        """Close behind what is written. Bytes that nobody read would reset the connection, and the answer be lost."""
        self._refused = self._is_ending = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._stop_timer()
        self._start_timer(self.bounds.linger_s, self.transport.close)

    def _start_timer(self, seconds: float, then: Callable[[], None]) -> None:
        self._timer = self.loop.call_later(seconds, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Lingering:
    """The transport as an answer sees it: closing it behind the last one takes a moment."""

    def __init__(self, transport: asyncio.Transport, linger: Callable[[], None]) -> None:
        self._transport = transport
        self.write = transport.write
        self.close = linger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _invalid() -> CallerError:
    return CallerError("invalid_request", "This is not a valid HTTP/1.1 request.")
