"""The client API for tasks: parse the headers, call one flow function, render."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import errors
from gateway.edge import auth, render
from gateway.flow import parts, read, submit
from gateway.rules import money, policy, task
from gateway.store import tasks

_IDEMPOTENCY_KEY: Final = re.compile(r"[!-~][ -~]{0,254}", re.ASCII)
_WAIT: Final = re.compile(r'wait\s*=\s*"?(\d{1,6})"?(?:\s*;.*)?', re.ASCII | re.IGNORECASE)
_CACHE_STATUS: Final[Mapping[str, str]] = {
    "HIT": "hit",
    "MISS": "fwd=miss; stored",
    "COALESCED": "fwd=miss; collapsed",
    "BYPASS": "fwd=bypass",
}


def routes(with_parts: parts.Parts, keys: auth.Keys, *, max_wait_s: int) -> list[Route]:
    """`POST /v1/tasks` and `GET /v1/tasks/{id}`; `max_wait_s` bounds `Prefer: wait`."""

    async def post(request: Request) -> Response:
        caller = keys.caller(request.headers.get("authorization"), policy.Permission.SUBMIT)
        body = await request.body()
        options = _options(request)
        try:
            result = await submit.submit(with_parts, caller, body, options)
        except errors.CallerError as error:
            raise _judged_by_type(error, request) from None
        if isinstance(result, policy.Deny):
            raise denied(result)
        return await _answer(with_parts, result, _wait_s(request, max_wait_s))

    async def get(request: Request) -> Response:
        caller = keys.caller(request.headers.get("authorization"), policy.Permission.READ)
        seen = await read.get(with_parts, caller.team, request.path_params["task_id"])
        if seen is None:
            raise errors.CallerError("task_not_found", "There is no task with this id among your team's tasks.")
        return await _shown(with_parts, seen, _wait_s(request, max_wait_s))

    return [
        Route("/v1/tasks", post, methods=["POST"]),
        Route("/v1/tasks/{task_id}", get, methods=["GET"]),
    ]


def denied(deny: policy.Deny) -> errors.CallerError:
    """A denial as the error that the client gets."""
    details: dict[str, object] = {} if deny.param is None else {"param": deny.param}
    return errors.CallerError(
        deny.code, deny.message, details=details | {"rule": deny.rule} | dict(deny.details), headers=deny.headers
    )


async def _answer(with_parts: parts.Parts, submitted: submit.Submitted, wait_s: int | None) -> Response:
    row = submitted.row
    replayed = {"Idempotent-Replayed": "true"} if submitted.is_replay else {}
    if row.state is task.State.REFUSED and row.document is not None:
        return render.json_response(row.document, row.refusal_status or 400, headers=replayed)
    if row.state is task.State.FAILED and row.upstream_task_id is None and row.attempts == 1:
        raise errors.UpstreamError(
            "upstream_unavailable",
            "The upstream cannot take the task now and nothing was spent; send it again later.",
            headers=replayed | {"Retry-After": "30"},
        )
    return await _shown(with_parts, await read.show(with_parts, row), wait_s, replayed)


async def _shown(
    with_parts: parts.Parts, seen: read.Seen, wait_s: int | None, headers: Mapping[str, str] | None = None
) -> Response:
    applied = dict(headers or {})
    if wait_s is not None:
        applied["Preference-Applied"] = f"wait={wait_s}"
        seen = await read.wait(with_parts, seen, wait_s=wait_s)
    return render.json_response(seen.document, headers=_headers(seen) | applied)


def _wait_s(request: Request, max_wait_s: int) -> int | None:
    """The `wait` of a Prefer header (RFC 7240), at most ours; None if there is none."""
    for preference in ",".join(request.headers.getlist("prefer")).split(","):
        found = _WAIT.fullmatch(preference.strip())
        if found is not None:
            return min(int(found.group(1)), max_wait_s)
    return None


def _options(request: Request) -> submit.Options:
    idempotency_key = request.headers.get("idempotency-key")
    if idempotency_key is not None and not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        raise errors.CallerError(
            "invalid_request",
            "Idempotency-Key must be 1 to 255 printable ASCII characters.",
            details={"param": "Idempotency-Key"},
        )
    return submit.Options(request_id=render.request_id_of(request.scope), idempotency_key=idempotency_key)


def _judged_by_type(error: errors.CallerError, request: Request) -> errors.CallerError:
    """A body that is not JSON and does not claim to be gets 415; one that is JSON may claim anything."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if error.code != "invalid_json" or media_type == "application/json" or media_type.endswith("+json"):
        return error
    return errors.CallerError(
        "unsupported_media_type", f"The body is {media_type[:80]}; send JSON as application/json. {error.message}"
    )


def _headers(seen: read.Seen) -> dict[str, str]:
    row = seen.row
    headers = {"X-Cache": row.x_cache, "Cache-Status": _cache_status(row), "X-Wave-Cost-Usd": _cost(row)}
    if seen.upstream_task_id is not None:
        headers["X-Wave-Upstream-Task-Id"] = seen.upstream_task_id
    if row.changes:
        headers["X-Wave-Policy"] = row.changes
    if seen.is_upstream_unavailable:
        headers["X-Wave-Upstream"] = "unavailable"
    return headers


def _cache_status(row: tasks.Task) -> str:
    said = f"wave-gateway; {_CACHE_STATUS[row.x_cache]}"
    return said if row.fingerprint is None else f'{said}; key="{row.fingerprint}"'


def _cost(row: tasks.Task) -> str:
    """The cost when it is known, else the quote."""
    return money.render_usd(row.quote_nanos if row.cost_nanos is None else row.cost_nanos)
