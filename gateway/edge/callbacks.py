"""What the upstream calls when a task has ended: no key, only the token in the path; the body is dropped unread.

A known token is answered with an empty 204 whatever has become of its task; any other with the 404 of every unknown
path, before its body is there.
"""

from __future__ import annotations

from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.flow import hint, parts

PATH: Final = "/callbacks/{token}"


def routes(with_parts: parts.Parts) -> list[Route]:
    """`POST /callbacks/{token}`, whether or not the upstream is given such URLs now: it may have older ones."""

    async def post(request: Request) -> Response:
        if not await hint.hear(with_parts, request.path_params["token"]):
            raise HTTPException(404)
        async for _ in request.stream():
            pass  # the guard bounds its size and its time; read to the end, the connection can be used again
        return Response(status_code=204)

    return [Route(PATH, post, methods=["POST"])]
