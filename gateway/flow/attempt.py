"""One POST of a task, and what its answer does to it.

The reservation and the attempt are durable before this begins. It is never cancelled because a client left, and it
does not end before its outcome is recorded: while the ledger cannot be written it tries again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from typing import Final, TypeVar

from gateway import errors, failpoints, log_events, logs, metrics, tracing, wire
from gateway.flow import advance, changes, parts
from gateway.outbound import upstream
from gateway.rules import callback, circuit, policy, task
from gateway.store import tasks
from gateway.store.database import Tx

T = TypeVar("T")

RECORD_AGAIN_S: Final = 1.0

log = logging.getLogger(__name__)


def digest_of(key: str) -> bytes:
    """What a row keeps of the upstream key that it was sent with."""
    return hashlib.sha256(key.encode()).digest()


async def post(with_parts: parts.Parts, row: tasks.Task, key: str) -> None:
    """Send the task upstream once and record what came of it."""
    began_at = with_parts.clock()
    with_parts.callback_tokens.learn(row)  # before it is sent: the vendor's call may come before its answer
    failpoints.reach("attempt.before")
    outcome = await _send(with_parts, row, key)
    failpoints.reach("attempt.after")
    with_parts.circuit.hear(circuit.word_of(outcome), began_at=began_at, now=with_parts.clock())
    if isinstance(outcome, (task.Accepted, task.Refused)):
        note_key(row.team, row.id, is_refused=False)
    elif isinstance(outcome, task.NotSent) and outcome.is_key_refused:
        note_key(row.team, row.id, is_refused=True)
    try:
        change = await _record(with_parts, row, outcome)
    except Exception:
        told = "the vendor's answer could not be recorded; it is in doubt"
        log.exception(log_events.Message(message=told, task_id=row.id))
        change = await _record(with_parts, row, task.InDoubt(reason="unrecorded"))
    failpoints.reach("attempt.recorded")
    advance.announce(with_parts, change)


async def _record(with_parts: parts.Parts, row: tasks.Task, outcome: task.SubmitOutcome) -> changes.Change | None:
    now, luck = with_parts.clock(), with_parts.luck()
    is_refused_now = outcome == task.NotSent(reason=task.NO_CONNECTION) and _refuses_outages(with_parts, row)

    def record(tx: Tx) -> changes.Change | None:
        change = advance.answer(tx, row, outcome, now=now, luck=luck)
        if change is not None and change.row.state is task.State.IN_DOUBT and not with_parts.is_upstream_idempotent:
            why = "the upstream ignores idempotency keys, so it must not be sent twice"
            return advance.began_as(row, advance.abandon(tx, change.row, now=now, why=why))
        if is_refused_now and change is not None and change.row.state is task.State.WAITING:
            why = "no connection, and the team's upstream_down is refuse"
            return advance.began_as(row, advance.expire(tx, change.row, now=now, why=why, is_answer=True))
        return change

    return await persist(with_parts, record)


def _refuses_outages(with_parts: parts.Parts, row: tasks.Task) -> bool:
    team = with_parts.in_force.policies.teams.get(row.team)
    return row.is_awaited() and team is not None and team.upstream_down is policy.UpstreamDown.REFUSE


async def _send(with_parts: parts.Parts, row: tasks.Task, key: str) -> task.SubmitOutcome:
    with with_parts.tracing.span("POST /v1/tasks", row.traceparent, is_client=True) as span:
        outcome = await _sent(with_parts, row, key, span)
        if span.is_recording:
            is_in_doubt = isinstance(outcome, task.InDoubt)
            span.set({"wave.task_id": row.id, "wave.attempt": row.attempts, "wave.in_doubt": is_in_doubt})
        return outcome


async def _sent(with_parts: parts.Parts, row: tasks.Task, key: str, span: tracing.Span) -> task.SubmitOutcome:
    traceparent = span.traceparent or row.traceparent
    try:
        return await with_parts.upstream.submit(
            _body_of(row),
            key=key,
            idempotency_key=row.upstream_idempotency_key,
            about=about(row, attempt=row.attempts),
            traceparent=traceparent,
            span=span,
        )
    except Exception:  # a bug of ours must not leave a hold that nobody looks after
        span.fail("unforeseen")
        told = "the POST failed in a way that nobody foresaw"
        log.exception(log_events.Message(message=told, task_id=row.id))
        return task.InDoubt(reason="unforeseen")


def about(row: tasks.Task, *, attempt: int | None = None) -> upstream.About:
    """The task that a call to the upstream is about; `attempt`: of a submit."""
    return upstream.About(task_id=row.id, request_id=row.request_id, attempt=attempt, callback_token=row.callback_token)


def _body_of(row: tasks.Task) -> bytes:
    """What is sent, made of the row alone: a repeat under the same key is the same bytes, whatever is set now."""
    if row.callback_token is None or row.callback_public_url is None:
        return row.request
    return wire.add_callback(row.request, callback.url_of(row.callback_public_url, row.callback_token))


async def persist(with_parts: parts.Parts, fn: Callable[[Tx], T]) -> T:
    """Write what the vendor said, however long the ledger cannot be written."""
    while True:
        try:
            return await with_parts.database.write(fn)
        except errors.OurError as error:
            log.error("an answer of the upstream cannot be recorded yet: %s", error)
            await asyncio.sleep(RECORD_AGAIN_S)


def note_key(team: str, task_id: str, *, is_refused: bool) -> None:
    """Raise or lower the alarm about a team's upstream key."""
    metrics.UPSTREAM_KEY_OK.labels(team).set(0 if is_refused else 1)
    if is_refused:
        logs.note(log, logging.ERROR, log_events.UpstreamKeyRefused(team=team, task_id=task_id))
