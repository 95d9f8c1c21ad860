"""The description of our HTTP at `/openapi.json`, which anyone may read.

`openapi.json` beside this file is written by hand and holds all of it; a test compares it with the routes, the error
codes and the headers of the program, and with real answers. Put in at the start: where clients reach the gateway, and
its version.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.edge import render

PATH: Final = "/openapi.json"
"""The route's path, and the name of the file."""
_CACHE_CONTROL: Final = "public, max-age=300"
"""For minutes only: the next release, or another --public-url, comes under the same path."""


def routes(*, public_url: str, version: str) -> list[Route]:
    """`/openapi.json`, with `public_url` as its only server."""

    async def show(request: Request) -> Response:
        body, tag = made()
        headers = {"ETag": tag, "Cache-Control": _CACHE_CONTROL}
        if render.is_known(request.headers, tag):
            return Response(status_code=304, headers=headers)
        return render.json_response(body, headers=headers)

    @functools.cache  # read on the first request: most gateways are never asked, and commands list routes too
    def made() -> tuple[bytes, str]:
        body = msgspec.json.encode(document(public_url=public_url, version=version))
        return body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'

    return [Route(PATH, show, methods=["GET"])]


def document(*, public_url: str, version: str) -> dict[str, Any]:
    """The whole description, an OpenAPI 3.1 document."""
    text = importlib.resources.files("gateway.edge").joinpath(PATH.lstrip("/")).read_bytes()
    written: dict[str, Any] = msgspec.json.decode(text)
    info = written["info"] | {"version": version}
    return written | {"info": info, "servers": [{"url": public_url}]}
