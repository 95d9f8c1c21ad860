"""The client API for tasks: parse the headers, call one flow function, render."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import errors, metrics
from gateway.edge import auth, noted, render, traced, wishes
from gateway.flow import cancel as cancelling
from gateway.flow import explain, listing, parts, read, submit
from gateway.rules import money, policy, strict_json, task
from gateway.store import tasks

_CACHE_STATUS: Final[Mapping[str, str]] = {
    "HIT": "hit",
    "MISS": "fwd=miss; stored",
    "COALESCED": "fwd=miss; collapsed",
    "BYPASS": "fwd=bypass",
}


def routes(with_parts: parts.Parts, keys: auth.Keys, *, max_wait_s: int) -> list[Route]:
    """`POST /v1/tasks` and `GET /v1/tasks/{id}`; `max_wait_s` bounds `Prefer: wait`."""

    taken = _taken(with_parts, keys)

    async def post(request: Request) -> Response:
        result = await taken(request)
        if isinstance(result, explain.Explanation):
            return _explained(result)
        return await _answer(with_parts, result, wishes.wait_s(request, max_wait_s), noted.of(request.scope))

    async def post_sync(request: Request) -> Response:
        result = await taken(request)
        if isinstance(result, explain.Explanation):
            return _explained(result)
        return await _answer(with_parts, result, max_wait_s, noted.of(request.scope), is_sync=True)

    async def list_own(request: Request) -> Response:
        caller = keys.caller(request, policy.Permission.READ)
        found = await listing.page(with_parts, caller.team, wishes.query(request))
        data = strict_json.join_items(list(found.documents))
        ends = strict_json.dumps({"has_more": found.next_before is not None, "next_before": found.next_before})
        return render.json_response(strict_json.join_fields({"data": data} | strict_json.fields_of(ends)))

    async def get(request: Request) -> Response:
        caller = keys.caller(request, policy.Permission.READ)
        noted.note_asked_for(request.scope, request.path_params["task_id"])
        seen = await read.get(with_parts, caller.team, request.path_params["task_id"])
        if seen is None:
            raise _unknown_task()
        answer = await _shown(with_parts, seen, wishes.wait_s(request, max_wait_s), noted.of(request.scope))
        return _unless_known(answer, request)

    return [
        Route("/v1/tasks", post, methods=["POST"]),
        Route("/v1/tasks", list_own, methods=["GET"]),
        Route("/v1/tasks/sync", post_sync, methods=["POST"]),
        Route("/v1/tasks/{task_id}", get, methods=["GET"]),
        Route("/v1/tasks/{task_id}/cancel", _cancel(with_parts, keys), methods=["POST"]),
    ]


def _taken(
    with_parts: parts.Parts, keys: auth.Keys
) -> Callable[[Request], Awaitable[submit.Submitted | explain.Explanation]]:
    """What both forms of submit do with a request, before they answer."""

    async def taken(request: Request) -> submit.Submitted | explain.Explanation:
        caller = keys.caller(request, policy.Permission.SUBMIT)
        body = await request.body()
        options = wishes.options(request)
        try:
            if wishes.is_dry_run(request):
                return await explain.dry_run(with_parts, caller, body, options)
            result = await submit.submit(with_parts, caller, body, options)
            _note(with_parts, request, caller, result)
        except errors.CallerError as error:
            raise _judged_by_type(error, request) from None
        if isinstance(result, policy.Deny):
            raise denied(result)
        return result

    return taken


def _cancel(with_parts: parts.Parts, keys: auth.Keys) -> Callable[[Request], Awaitable[Response]]:
    async def cancel(request: Request) -> Response:
        caller = keys.caller(request, policy.Permission.CANCEL)
        noted.note_asked_for(request.scope, request.path_params["task_id"])
        answer = await cancelling.cancel(with_parts, caller.team, request.path_params["task_id"])
        if answer is None:
            raise _unknown_task()
        return render.json_response(answer.document, answer.status)

    return cancel


def _unknown_task() -> errors.CallerError:
    return errors.CallerError("task_not_found", "There is no task with this id among your team's tasks.")


def denied(deny: policy.Deny) -> errors.CallerError:
    """A denial as the error that the client gets."""
    details: dict[str, object] = {} if deny.param is None else {"param": deny.param}
    return errors.CallerError(
        deny.code, deny.message, details=details | {"rule": deny.rule} | dict(deny.details), headers=deny.headers
    )


def _note(
    with_parts: parts.Parts, request: Request, caller: submit.Caller, result: submit.Submitted | policy.Deny
) -> None:
    """What came of a submit, for the log and for its span."""
    if isinstance(result, submit.Submitted):
        _note_task(noted.of(request.scope), result.row)
    _trace(with_parts, request, caller, result)


def _note_task(notes: noted.Noted, row: tasks.Task) -> None:
    notes.task_id, notes.cache = row.id, row.x_cache.lower()
    notes.quote_usd = money.render_usd(row.quote_nanos)
    notes.cost_usd = None if row.cost_nanos is None else money.render_usd(row.cost_nanos)


def _trace(
    with_parts: parts.Parts, request: Request, caller: submit.Caller, result: submit.Submitted | policy.Deny
) -> None:
    """What came of a submit, for its span; a model outside the catalogue is `other`, as in the metrics."""
    span = traced.span_of(request.scope)
    if not span.is_recording:
        return
    span.set({"wave.team": caller.team, "wave.decision": "deny" if isinstance(result, policy.Deny) else "allow"})
    if isinstance(result, submit.Submitted):
        row = result.row
        model = row.model if row.model in with_parts.in_force.policies.models else metrics.OTHER
        span.set({"wave.task_id": row.id, "wave.model": model, "wave.cache": row.x_cache.lower()})
        span.set(
            {"wave.quote_usd": money.render_usd(row.quote_nanos), "wave.in_doubt": row.state is task.State.IN_DOUBT}
        )
        if row.leader_id is not None:
            span.set({"wave.leader_id": row.leader_id})


async def _answer(
    with_parts: parts.Parts,
    submitted: submit.Submitted,
    wait_s: int | None,
    notes: noted.Noted,
    *,
    is_sync: bool = False,
) -> Response:
    row = submitted.row
    replayed = {"Idempotent-Replayed": "true"} if submitted.is_replay else {}
    if row.state is task.State.REFUSED and row.document is not None:
        return render.json_response(row.document, row.refusal_status or 400, headers=replayed)
    if row.was_never_taken() and row.is_awaited() and not row.idempotency_key:
        raise errors.UpstreamError(
            "upstream_unavailable",
            "The upstream cannot take the task now and nothing was spent; send it again later.",
            headers=replayed | {"Retry-After": "30"},
        )
    if is_sync:
        return await _synchronous(with_parts, row, wait_s or 0, notes, replayed)
    return await _shown(with_parts, await read.show(with_parts, row), wait_s, notes, replayed)


async def _synchronous(
    with_parts: parts.Parts, row: tasks.Task, wait_s: int, notes: noted.Noted, headers: Mapping[str, str]
) -> Response:
    """The vendor's old form: the task when it has ended, else where to poll for it."""
    seen = await read.wait(with_parts, await read.show(with_parts, row), wait_s=wait_s)
    _note_task(notes, seen.row)
    document = seen.document
    if seen.row.state in task.OPEN:
        fields = strict_json.fields_of(document)
        kept = {name: fields[name] for name in ("task_id", "status", "progress")}
        url = f"{with_parts.public_url}/v1/tasks/{row.id}"
        document = strict_json.join_fields(kept | {"poll_url": strict_json.dumps(url)})
    return render.json_response(document, headers=_headers(seen) | dict(headers))


def _unless_known(answer: Response, request: Request) -> Response:
    """Give the answer its ETag, and 304 to a client that has it already."""
    tag = f'"{hashlib.sha256(bytes(answer.body)).hexdigest()[:32]}"'
    answer.headers["ETag"] = tag
    if not render.is_known(request.headers, tag):
        return answer
    headers = {name: value for name, value in answer.headers.items() if name not in ("content-length", "content-type")}
    return Response(status_code=304, headers=headers)


def _explained(found: explain.Explanation) -> Response:
    """A dry run's document; what is not to be told is left out."""
    said = {name: value for name, value in dataclasses.asdict(found).items() if value is not None}
    said["caps"] = [
        {name: value for name, value in cap.items() if value is not None or name == "reset_at"} for cap in said["caps"]
    ]
    return render.json_response(said)


async def _shown(
    with_parts: parts.Parts,
    seen: read.Seen,
    wait_s: int | None,
    notes: noted.Noted,
    headers: Mapping[str, str] | None = None,
) -> Response:
    applied = dict(headers or {})
    if wait_s is not None:
        applied["Preference-Applied"] = f"wait={wait_s}"
        seen = await read.wait(with_parts, seen, wait_s=wait_s)
    _note_task(notes, seen.row)
    return render.json_response(seen.document, headers=_headers(seen) | applied)


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
