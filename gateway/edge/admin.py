"""Health and metrics: for whoever runs the gateway, not for teams."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway import errors
from gateway.edge import render

Scrape = Callable[[bool, bool], Awaitable[tuple[bytes, str]]]
"""Called with whether OpenMetrics and whether gzip is wanted; returns the exposition and its content type."""

_OPENMETRICS: Final = "application/openmetrics-text"
_VERSIONS: Final = ("1.0.0", "0.0.1")
_PLAIN: Final = ("text/plain", "text/*", "*/*")
"""What plain text is asked for by; the most exact one that is there counts."""
_WEIGHT: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
_PIECE_BYTES: Final = 256 * 1024
_FORWARDING: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


def routes(*, scrape: Scrape, is_ready: Callable[[], Awaitable[str | None]], metrics_token: str | None) -> list[Route]:
    """`/healthz`, `/readyz` and `/metrics`; `is_ready` returns None or what is missing."""

    async def healthz(_: Request) -> Response:
        return render.json_response({"status": "ok"})

    async def readyz(_: Request) -> Response:
        missing = await is_ready()
        if missing is not None:
            raise errors.OurError("unavailable", missing)
        return render.json_response({"status": "ready"})

    async def metrics(request: Request) -> Response:
        if not _may_scrape(request, metrics_token):
            raise errors.CallerError(
                "invalid_api_key",
                "Metrics are for loopback peers without a proxy between, or for whoever has the --metrics-token.",
                headers={"WWW-Authenticate": "Bearer"},  # RFC 9110 section 15.5.2: a 401 says how
            )
        is_gzip = takes_gzip(request.headers.get("accept-encoding", ""))
        text, content_type = await scrape(prefers_openmetrics(request.headers.get("accept", "")), is_gzip)
        headers = {"Content-Type": content_type, "Content-Length": str(len(text)), "Vary": "Accept, Accept-Encoding"}
        if is_gzip:
            headers["Content-Encoding"] = "gzip"
        return StreamingResponse(_pieces(text), headers=headers)

    return [
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]


def prefers_openmetrics(accept: str) -> bool:
    """Whether OpenMetrics is asked for, and plain text not more so; nobody gets it unasked.

    Source: RFC 9110 sections 12.4.2 and 12.5.1. What cannot be read of the header is passed over.
    """
    weights: dict[str, float] = {}
    for each in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in each.split(";"))
        said = dict(part.split("=", 1) for part in parameters if "=" in part)
        weight = said.get("q", "1")
        if _WEIGHT.fullmatch(weight) and not (kind == _OPENMETRICS and said.get("version", "1.0.0") not in _VERSIONS):
            weights[kind] = max(float(weight), weights.get(kind, 0.0))
    plain = next((weights[kind] for kind in _PLAIN if kind in weights), 0.0)
    return 0.0 < weights.get(_OPENMETRICS, 0.0) >= plain


def takes_gzip(accept_encoding: str) -> bool:
    """Whether gzip is asked for; any coding (`*`) is no reason to compress."""
    for each in accept_encoding.lower().split(","):
        coding, *parameters = (part.strip() for part in each.split(";"))
        if coding == "gzip":
            return not any(re.fullmatch(r"q=0(\.0*)?", part) for part in parameters)
    return False


async def _pieces(text: bytes) -> AsyncIterator[bytes]:
    """Of a size that is handed over in a millisecond; an exposition may have megabytes."""
    for at in range(0, len(text), _PIECE_BYTES):
        yield text[at : at + _PIECE_BYTES]


def _may_scrape(request: Request, metrics_token: str | None) -> bool:
    if metrics_token is not None:
        sent = request.headers.get("authorization", "")
        return hmac.compare_digest(sent.encode("latin-1"), f"Bearer {metrics_token}".encode())
    if request.client is None or any(name in request.headers for name in _FORWARDING):
        return False
    return ipaddress.ip_address(request.client.host).is_loopback
