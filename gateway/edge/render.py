"""Result or error → HTTP answer.

Every answer of ours is compact JSON; every error has the one form `{"error": {"message", "code", …, "request_id"}}`.
What an error adds (its fields, `Retry-After`, `x-should-retry`) was decided where it was raised: nothing is added here
but the request id. The text of an exception that is not a GatewayError never reaches a client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ExceptionHandler, Scope

from gateway.edge import noted, traced
from gateway.errors import CallerError, GatewayError, OurError

_TAG: Final = re.compile(r'(?:W/)?("[^"]*")')
_CODE_OF_STATUS: Final[Mapping[int, str]] = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    431: "headers_too_large",
}


def json_response(value: object, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Response:
    """An answer holding `value` as compact JSON; `bytes` are taken as JSON already."""
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def error_response(error: GatewayError, request_id: str) -> Response:
    """The answer to a failure: its status, its headers, its fields; no detail can displace `code` or `message`."""
    named = {"message": error.message, "code": error.code}
    fields = named | dict(error.details) | named | {"request_id": request_id}
    return json_response({"error": fields}, error.status, headers=error.headers)


def internal_error() -> OurError:
    """What a client is told of a failure that nobody foresaw: its id, and nothing of the exception."""
    return OurError("internal_error", "The gateway failed on this request. Report its request_id to the operator.")


def seal(headers: list[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    """The headers of an answer with those that every answer carries; a `Cache-Control` already set stays."""
    names = {name.lower() for name, _ in headers}
    sealed = [*headers, (b"x-wave-request-id", request_id.encode("latin-1"))]
    if b"cache-control" not in names:
        sealed.append((b"cache-control", b"no-store"))
    if b"x-content-type-options" not in names:
        sealed.append((b"x-content-type-options", b"nosniff"))
    return sealed


def is_known(headers: Headers, tag: str) -> bool:
    """Whether `If-None-Match` names this entity tag, in the weak comparison of RFC 9110 section 13.1.2."""
    value = ",".join(headers.getlist("if-none-match")).strip()
    return value == "*" or tag in _TAG.findall(value)


def request_id_of(scope: Scope) -> str:
    """The id that the guard gave this request; empty where no guard stands in front, as in a test of one route."""
    request_id: str = scope.get("state", {}).get("request_id", "")
    return request_id


def exception_handlers() -> dict[Any, ExceptionHandler]:
    """For `Starlette(exception_handlers=…)`: without these Starlette answers its own failures in plain text.

    The one for Exception renders only: Starlette raises the exception again behind it, and the guard logs it.
    """
    return {
        HTTPException: _render_http_exception,
        GatewayError: _render_exception,
        Exception: _render_exception,
    }


async def _render_http_exception(request: Request, exception: Exception) -> Response:
    assert isinstance(exception, HTTPException)
    return _render(request, _error_of_http_exception(request, exception))


async def _render_exception(request: Request, exception: Exception) -> Response:
    return _render(request, exception if isinstance(exception, GatewayError) else internal_error())


def _render(request: Request, error: GatewayError) -> Response:
    traced.span_of(request.scope).set({"wave.code": error.code})
    noted.of(request.scope).code = error.code
    return error_response(error, request_id_of(request.scope))


def _error_of_http_exception(request: Request, exception: HTTPException) -> GatewayError:
    """Starlette's own refusals in our codes; of its texts only those for a malformed request are passed on."""
    status, headers = exception.status_code, dict(exception.headers or {})
    if status >= 500:
        return internal_error()
    if status == 404:
        return CallerError("not_found", "There is nothing at this path; tasks are at /v1/tasks.")
    if status == 405:
        headers["Allow"] = ", ".join(_allowed_methods(request)) or headers.get("Allow", "")
        message = f"{request.method} is not possible here; this path takes {headers['Allow']}."
        return CallerError("method_not_allowed", message, headers=headers)
    return CallerError(_CODE_OF_STATUS.get(status, "invalid_request"), exception.detail, headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    """The methods of all routes at this path: Starlette names only those of the first one."""
    methods: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is Match.PARTIAL:
            methods |= route.methods or set()
    return sorted(methods)
