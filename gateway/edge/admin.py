"""Health and metrics: for whoever runs the gateway, not for teams."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import errors
from gateway.edge import render

Scrape = Callable[[bool], Awaitable[tuple[bytes, str]]]
"""Called with whether OpenMetrics is wanted; returns the exposition and its content type."""

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
            )
        text, content_type = await scrape("application/openmetrics-text" in request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": content_type})

    return [
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]


def _may_scrape(request: Request, metrics_token: str | None) -> bool:
    if metrics_token is not None:
        sent = request.headers.get("authorization", "")
        return hmac.compare_digest(sent.encode("latin-1"), f"Bearer {metrics_token}".encode())
    if request.client is None or any(name in request.headers for name in _FORWARDING):
        return False
    return ipaddress.ip_address(request.client.host).is_loopback
