"""The server span of each request under `/v1/`; in the app only while traces are on.

What the flows do for a request is below its span: its `traceparent` takes the place of the client's. Of the request
only the method, the route and a task id of our own form are told; of the answer the status and our error code.

Not here: health, metrics and pictures, which say nothing about a task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import tracing

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_TASK_ID: Final = re.compile(r"task-wg[0-9A-Z]{26}", re.ASCII)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_TRACESTATE_MAX: Final = 512
"""Source: W3C Trace Context section 3.3.1.5; a longer one may be dropped."""


def traceparent_of(request: Request) -> str | None:
    """The parent of what is done for this request: our own span where it is traced, else what the client sent."""
    return span_of(request.scope).traceparent or _sent(request.headers)


def span_of(scope: Scope) -> tracing.Span:
    """The request's span, which is nothing where traces are off."""
    span: tracing.Span = scope.get("state", {}).get("span", tracing.NOTHING)
    return span


class Traced:
    """The ASGI app around the app, inside the guard."""

    def __init__(self, app: ASGIApp, tracing_on: tracing.Tracing) -> None:
        self._app = app
        self._tracing = tracing_on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; what is not under `/v1/` passes untouched."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        status: int | None = None

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._tracing.server(method, _context(Headers(scope=scope))) as span:
            scope.setdefault("state", {})["span"] = span
            try:
                await self._app(scope, receive, note_status)
            finally:
                if span.is_recording:
                    _describe(span, scope, method, status)


def _sent(headers: Headers) -> str | None:
    traceparent = headers.get("traceparent", "")
    return traceparent if _TRACEPARENT.fullmatch(traceparent) else None


def _context(headers: Headers) -> Mapping[str, str]:
    """The client's trace context, as far as it is one: the library would log each that is not."""
    parent, state = _sent(headers), ",".join(headers.getlist("tracestate"))
    if parent is None:
        return {}
    return {"traceparent": parent} | ({"tracestate": state} if 0 < len(state) <= _TRACESTATE_MAX else {})


def _describe(span: tracing.Span, scope: Scope, method: str, status: int | None) -> None:
    said: dict[str, str | int | bool] = {"http.request.method": method, "url.scheme": scope["scheme"]}
    said["wave.request_id"] = scope["state"].get("request_id", "")
    route = getattr(scope.get("route"), "path", None)
    if isinstance(route, str):
        said["http.route"] = route
        span.rename(f"{method} {route}")
    task_id = scope.get("path_params", {}).get("task_id", "")
    if _TASK_ID.fullmatch(task_id):
        said["wave.task_id"] = task_id
    if status is not None:
        said["http.response.status_code"] = status
    span.set(said)
    if status is not None and status >= 500:
        span.fail(str(status))
