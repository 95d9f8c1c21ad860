"""How anything can fail, split by whose fault it is.

Each error has one stable code and one HTTP status (INTERFACE: errors). An expected outcome of a rule is a
return value, not an error. A message says what failed, on what, and what to do; it never holds a key or a
signed URL. Third-party exceptions are translated once, at the door that calls the library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

STATUS_OF_CODE: Final[Mapping[str, int]] = {
    "invalid_json": 400,
    "invalid_request": 400,
    "capability_violation": 400,
    "price_not_configured": 400,
    "task_not_cancellable": 400,
    "callback_url_not_allowed": 400,
    "reference_not_reachable": 400,
    "invalid_api_key": 401,
    "spend_cap_reached": 402,
    "model_not_allowed": 403,
    "action_not_allowed": 403,
    "official_fallback_denied": 403,
    "limit_exceeded": 403,
    "max_cost_exceeded": 403,
    "not_permitted": 403,
    "task_not_found": 404,
    "model_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "range_not_satisfiable": 416,
    "idempotency_key_reused": 422,
    "quota_window_exceeded": 429,
    "rate_limited": 429,
    "concurrency_limit_exceeded": 429,
    "headers_too_large": 431,
    "internal_error": 500,
    "upstream_error": 502,
    "unavailable": 503,
    "team_not_ready": 503,
    "upstream_unavailable": 503,
    "upstream_timeout": 504,
    "only_if_cached": 504,
}
"""Every code that a client can see from us, and the HTTP status it comes with."""


class GatewayError(Exception):
    """A failure with a stable code; `details` are further fields of the error object, `headers` go with it."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        details: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Raises KeyError for a code that is not in `STATUS_OF_CODE`."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = STATUS_OF_CODE[code]
        self.details: Mapping[str, object] = details or {}
        self.headers: Mapping[str, str] = headers or {}


class CallerError(GatewayError):
    """The client's request is at fault; sending it again unchanged will fail again."""


class UpstreamError(GatewayError):
    """The upstream, or the way to it, is at fault."""


class OurError(GatewayError):
    """The gateway is at fault or not able to work right now."""


class StartError(Exception):
    """The gateway refuses to start, or a command cannot run; the message says what to do."""
