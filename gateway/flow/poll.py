"""Polls of accepted tasks: on our own schedule, sooner while a client waits, whether or not anybody asks.

A poll that brings no word says nothing about the task: the hold stays, and it is tried again (also after a 404).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection
from typing import Final

from gateway import failpoints, log_events, logs
from gateway.flow import advance, attempt, parts
from gateway.outbound import upstream
from gateway.rules import circuit, retry, task
from gateway.store import tasks

WITHOUT_KEY_AGAIN_S: Final = 10.0

log = logging.getLogger(__name__)


async def due(with_parts: parts.Parts, most: int) -> Collection[str]:
    """Tasks to be polled now: those that clients ask about or the vendor hints at, then those whose time has come."""
    now = with_parts.clock()
    wanted = with_parts.watch.take_wanted(most, now=now)
    states = (task.State.SUBMITTED,)
    planned = await with_parts.database.read(lambda tx: tasks.due(tx, states, now=now, limit=most))
    return list(dict.fromkeys([*wanted, *planned]))[:most]


async def step(with_parts: parts.Parts, task_id: str) -> None:
    """Poll one task upstream and record the vendor's word."""
    looked_at = with_parts.clock()
    with_parts.watch.polled(task_id, now=looked_at)  # one that has ended too: hints at it cost a look a second
    row = await with_parts.database.read(lambda tx: tasks.get(tx, task_id))
    if row is None or row.state is not task.State.SUBMITTED or row.upstream_task_id is None:
        return
    with_parts.callback_tokens.learn(row)
    key = key_for(with_parts, row)
    if key is None:
        missing = log_events.UpstreamKeyMissing(
            team=row.team,
            task_id=row.id,
            request_id=row.request_id,
            operation="poll",
            reference=row.upstream_key_ref,
        )
        logs.note(log, logging.ERROR, missing)
        again = with_parts.clock() + WITHOUT_KEY_AGAIN_S
        await with_parts.database.write(lambda tx: tasks.note(tx, row, next_at=again))
        return
    began_at = with_parts.clock()
    failpoints.reach("poll.before")
    polled = await with_parts.upstream.poll(row.upstream_task_id, key=key, about=attempt.about(row))
    failpoints.reach("poll.after")
    now, luck = with_parts.clock(), with_parts.luck()
    with_parts.circuit.hear(_word_of(polled), began_at=began_at, now=now)
    if isinstance(polled, upstream.Trouble):
        if polled.is_key_refused:
            attempt.note_key(row.team, row.id, is_refused=True)
        again = now + retry.poll_trouble_delay(row.troubles + 1, luck=luck)
        await with_parts.database.write(lambda tx: tasks.note(tx, row, next_at=again, troubles=row.troubles + 1))
        return
    if not polled.outcome.is_cost_readable:
        unreadable = log_events.UpstreamCostUnreadable(task_id=row.id, request_id=row.request_id)
        logs.note(log, logging.ERROR, unreadable)
    age_s = now - (row.submitted_at or now)
    is_watched = with_parts.watch.is_watched(row.id, now=now)
    record = functools.partial(
        advance.report,
        row=row,
        outcome=polled.outcome,
        document=polled.document,
        now=now,
        next_at=now + retry.poll_delay(age_s, luck=luck, is_watched=is_watched),
    )
    change = await attempt.persist(with_parts, record)
    failpoints.reach("poll.recorded")
    if polled.outcome.event is not None and change is not None:
        span = with_parts.tracing.span("GET /v1/tasks/{task_id}", row.traceparent, is_client=True, began_at=began_at)
        if span.is_recording:
            with_parts.upstream.describe(span, "GET", "/v1/tasks/{task_id}", 200)
            span.set({"wave.task_id": row.id})
        span.end(at=now)
    advance.announce(with_parts, change)
    if change is not None and change.row.state is task.State.DELIVERED:
        with_parts.wake_mirror()


def key_for(with_parts: parts.Parts, row: tasks.Task) -> str | None:
    """The key that the task was sent with while it can be read, then the team's present one."""
    key = with_parts.upstream_key(row.upstream_key_ref)
    if key is not None and attempt.digest_of(key) == row.upstream_key_digest:
        return key
    team = with_parts.in_force.policies.teams.get(row.team)
    present = with_parts.upstream_key(team.upstream_key) if team is not None else None
    return present or key


def _word_of(polled: upstream.Polled | upstream.Trouble) -> circuit.Word:
    """What a poll says about the upstream."""
    if isinstance(polled, upstream.Polled) or polled.is_key_refused:
        return circuit.Word.THERE
    return circuit.Word.DOWN if polled.is_down else circuit.Word.NOTHING
