"""The outermost guard: what holds for every request, whichever route it is for.

It gives the request its id, refuses heads and bodies past their limits, waits for a body only so long, puts on every
answer the headers that all carry, turns every failure into our error form, and reports each request once.

A connection whose request body was left unread cannot carry a next request: the answer says `Connection: close`, and
what is still coming is dropped for a moment, so that the client reads the answer and not a reset connection.

It does not log the path: callback tokens and media URLs are in it; the route says which page it was. It sees only
requests whose head came whole; `edge/protocol.py` stands in front of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable
from typing import Final

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import log_events
from gateway.edge import noted, render
from gateway.errors import CallerError, GatewayError, OurError

log = logging.getLogger(__name__)

CLIENT_LEFT: Final = 499
"""The status reported where the client left before anything was sent (nginx's number; never on the wire)."""

OTHER: Final = "other"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_LENGTH_DIGITS_MAX: Final = 18
_ONCE: Final = frozenset(
    {
        *(b"host", b"authorization", b"content-type", b"idempotency-key"),
        *(b"x-wave-cache", b"x-wave-dry-run", b"x-wave-max-cost-usd"),
    }
)
"""Headers with one value: of two, a proxy in front may have looked at the other one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AccessRecord:
    """One request as the access log has it; `bytes` are of bodies, `seconds` until the last byte was handed over."""

    request_id: str
    method: str
    route: str
    status: int
    seconds: float
    request_bytes: int
    response_bytes: int
    client: str | None
    noted: noted.Noted = dataclasses.field(default_factory=noted.Noted)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request may measure: one header, all of them with the path, the body, and the waits for the body.

    `linger_s` is how long what a client still sends is dropped behind an answer that did not want it.
    """

    header_max_bytes: int
    headers_max_bytes: int
    body_max_bytes: int
    body_deadline_s: float
    linger_s: float


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What the headers say of a request's size and framing."""

    bytes_total: int
    bytes_of_largest: int
    content_length: bytes | None
    chunked: bool
    coding: bytes | None
    """The transfer coding that is not plainly `chunked`."""
    expects_continue: bool
    repeated: str | None
    """The first header that came twice and may not."""

    @property
    def announces_body(self) -> bool:
        """Whether a body will follow."""
        return self.chunked or self.content_length not in (None, b"0")


class Guard:
    """The ASGI app around the app; `scope["state"]["request_id"]` holds the id for everything inside.

    `observe(route, method, status, seconds)` is called once for each request, `log` too. The route is
    `scope["state"]["route"]`, else the matched Starlette route's path, else `other`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        new_request_id: Callable[[], str],
        clock: Callable[[], float],
        observe: Callable[[str, str, int, float], None],
        log: Callable[[AccessRecord], None] | None = None,
        header_max_bytes: int = 8 * 1024,
        headers_max_bytes: int = 32 * 1024,
        body_deadline_s: float = 30.0,
        linger_s: float = 1.0,
    ) -> None:
        self._app = app
        self._new_request_id = new_request_id
        self._clock = clock
        self._observe = observe
        self._log = log
        self._limits = Limits(
            header_max_bytes=header_max_bytes,
            headers_max_bytes=headers_max_bytes,
            body_max_bytes=max_body_bytes,
            body_deadline_s=body_deadline_s,
            linger_s=linger_s,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other scopes (lifespan) pass untouched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head = read_head(scope)
        request_id = self._new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        exchange = _Exchange(receive, send, head=head, limits=self._limits, clock=self._clock, request_id=request_id)
        try:
            await self._serve(scope, exchange, head=head)
        finally:
            self._report(scope, exchange)

    async def _serve(self, scope: Scope, exchange: _Exchange, *, head: Head) -> None:
        """Run the app; whatever it raises becomes an answer, unless one has begun or nobody is there to read it."""
        try:
            try:
                refusal = decide_head(head, self._limits)
                if refusal is not None:
                    raise refusal
                await self._app(scope, exchange.receive, exchange.send)
                if exchange.unanswered:
                    raise RuntimeError("the app returned without an answer")
            except GatewayError as error:
                if exchange.status is not None:
                    raise
                await exchange.answer(error, scope)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            await exchange.answer(OurError("unavailable", "The gateway is stopping; send the request again."), scope)
            raise
        except Exception:
            log.exception(log_events.RequestFailed(request_id=exchange.request_id, route=_route_label(scope)))
            await exchange.answer(render.internal_error(), scope)

    def _report(self, scope: Scope, exchange: _Exchange) -> None:
        method = scope["method"] if scope["method"] in _METHODS else OTHER
        route = _route_label(scope)
        status = exchange.status or (CLIENT_LEFT if exchange.disconnected else 500)
        seconds = self._clock() - exchange.started_at
        self._observe(route, method, status, seconds)
        if self._log is not None:
            self._log(
                AccessRecord(
                    request_id=exchange.request_id,
                    method=method,
                    route=route,
                    status=status,
                    seconds=seconds,
                    request_bytes=exchange.received_bytes,
                    response_bytes=exchange.sent_bytes,
                    client=scope["client"][0] if scope.get("client") else None,
                    noted=noted.of(scope),
                )
            )


def read_head(scope: Scope) -> Head:
    """Measure a request's head: names, values, path and query, without the separators."""
    total = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
    largest = 0
    content_length = None
    chunked = expects_continue = False
    once: set[bytes] = set()
    coding = repeated = None
    for name, value in scope["headers"]:
        size = len(name) + len(value)
        total += size
        largest = max(largest, size)
        if name == b"content-length":
            content_length = value
        elif name == b"transfer-encoding":
            chunked = True
            coding = coding if value.strip().lower() == b"chunked" else value
        elif name == b"expect":
            expects_continue = True
        elif name in _ONCE:
            repeated = repeated or (name.decode("ascii") if name in once else None)
            once.add(name)
    return Head(
        bytes_total=total,
        bytes_of_largest=largest,
        content_length=content_length,
        chunked=chunked,
        coding=coding,
        expects_continue=expects_continue,
        repeated=repeated,
    )


def decide_head(head: Head, limits: Limits) -> CallerError | None:
    """The refusal that a head earns before its body is looked at, or None.

    Source: RFC 6585 section 5 (431), RFC 9112 section 6.3 (both framings: refuse and close) and 3.2 (two hosts).
    """
    if head.bytes_of_largest > limits.header_max_bytes:
        return CallerError("headers_too_large", f"One header is larger than {limits.header_max_bytes} bytes.")
    if head.bytes_total > limits.headers_max_bytes:
        message = f"Path and headers together are larger than {limits.headers_max_bytes} bytes."
        return CallerError("headers_too_large", message)
    if head.repeated is not None:
        return _unclear(f"The header {head.repeated} came twice; send it once.")
    if head.coding is not None:
        return _unclear("Of the transfer codings only chunked is taken here.")
    length = head.content_length
    if length is None:
        return None
    if head.chunked:
        return _unclear("Send either Content-Length or Transfer-Encoding, not both.")
    if not length.isdigit():
        return _unclear("Content-Length must be a number of bytes.")
    if len(length) > _LENGTH_DIGITS_MAX or int(length) > limits.body_max_bytes:
        return _body_too_large(limits)
    return None


def _unclear(message: str) -> CallerError:
    return CallerError("invalid_request", message, headers={"Connection": "close"})


def _body_too_large(limits: Limits) -> CallerError:
    message = f"The body is larger than {limits.body_max_bytes} bytes; pass large images by URL."
    return CallerError("body_too_large", message)


def _request_timeout(limits: Limits) -> CallerError:
    message = f"The body did not come whole within {limits.body_deadline_s:g} s; send the request again."
    return CallerError("request_timeout", message, headers={"Connection": "close"})


def _route_label(scope: Scope) -> str:
    label = scope["state"].get("route") or getattr(scope.get("route"), "path", None)
    return label if isinstance(label, str) else OTHER


class _Exchange:
    """One request and its answer on their way through: counts both, bounds the body, completes the answer's headers."""

    def __init__(
        self,
        receive: Receive,
        send: Send,
        *,
        head: Head,
        limits: Limits,
        clock: Callable[[], float],
        request_id: str,
    ) -> None:
        self._receive = receive
        self._send = send
        self._limits = limits
        self._clock = clock
        self._expects_continue = head.expects_continue
        self._body_pending = head.announces_body
        self._receiving = False
        self.request_id = request_id
        self.started_at = clock()
        self.status: int | None = None
        self.disconnected = False
        self.received_bytes = 0
        self.sent_bytes = 0

    @property
    def unanswered(self) -> bool:
        """Whether the client is still there and has been sent nothing."""
        return self.status is None and not self.disconnected

    async def answer(self, error: GatewayError, scope: Scope) -> None:
        """Answer with an error, unless an answer has begun already or the client is gone."""
        if self.unanswered:
            noted.of(scope).code = error.code
            response = render.error_response(error, self.request_id)
            await response(scope, self.receive, self.send)

    async def receive(self) -> Message:
        """The app's `receive`. Raises CallerError (408, 413) past the deadline or the size of the body."""
        self._receiving = True
        try:
            message = await (self._receive_in_time() if self._body_pending and self.unanswered else self._receive())
        finally:
            self._receiving = False
        self._note(message)
        if self.received_bytes > self._limits.body_max_bytes:
            raise _body_too_large(self._limits)
        return message

    async def send(self, message: Message) -> None:
        """The app's `send`. What is sent to a client that left is dropped and not counted."""
        if self.disconnected and self.status is None:
            return
        if message["type"] == "http.response.start":
            await self._start(message)
        elif message["type"] == "http.response.body":
            await self._send_body(message)
        else:
            await self._send(message)

    async def _start(self, message: Message) -> None:
        if self._body_pending and not self._receiving and not self._expects_continue:
            await self._take_what_came()
        headers = render.seal(list(message.get("headers", ())), self.request_id)
        if self._body_pending and all(name.lower() != b"connection" for name, _ in headers):
            headers.append((b"connection", b"close"))
        self.status = message["status"]
        await self._send({**message, "headers": headers})

    async def _send_body(self, message: Message) -> None:
        self.sent_bytes += len(message.get("body", b""))
        if message.get("more_body", False) or not self._body_pending or self._receiving:
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        await self._linger()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _receive_in_time(self) -> Message:
        left_s = self.started_at + self._limits.body_deadline_s - self._clock()
        try:
            async with asyncio.timeout(max(0.0, left_s)):
                return await self._receive()
        except TimeoutError:
            raise _request_timeout(self._limits) from None

    async def _take_what_came(self) -> None:
        """Read what the server holds already: a small body that nobody wanted need not cost the connection."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                while self._body_pending and self.received_bytes <= self._limits.body_max_bytes:
                    self._note(await self._receive())

    async def _linger(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.linger_s):
                while self._body_pending:
                    self._note(await self._receive())

    def _note(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self.disconnected = True
            self._body_pending = False
        elif message["type"] == "http.request":
            self.received_bytes += len(message.get("body", b""))
            self._body_pending = message.get("more_body", False)
