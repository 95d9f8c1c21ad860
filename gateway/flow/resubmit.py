"""Submits that did not end with the first POST: the waiting are sent again, the doubtful repeated under their key.

While the upstream is down, one of them leaves at a time as a probe; nothing else is touched but what has come to its
end. On recovery the most overdue leave first: a first POST that was held back is due since its submit. Repeats leave
as far as the retry budget goes; a first POST is none.

A task in doubt is repeated only with the idempotency key and the upstream key that it was sent with. 23 hours after
the first attempt, or where that key is still replaced by another one past the deadline (a mistake may be mended until
then), it is not repeated any more and waits for the operator (CONTRACT §2).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection
from typing import Final

from gateway import failpoints, log_events, logs
from gateway.flow import advance, attempt, changes, parts
from gateway.rules import retry, task
from gateway.store import tasks
from gateway.store.database import Tx

STATES: Final = (task.State.WAITING, task.State.IN_DOUBT)
WITHOUT_KEY_AGAIN_S: Final = 2.0

log = logging.getLogger(__name__)


async def due(with_parts: parts.Parts, most: int) -> Collection[str]:
    """Tasks whose submit is to be tried again now."""
    now = with_parts.clock()
    forgotten_at = now - retry.FORGETS_AFTER_S

    def look(tx: Tx) -> tuple[list[str], list[tuple[float, str]], list[tuple[float, str]]]:
        return (
            tasks.due_to_end(tx, now=now, forgotten_at=forgotten_at, limit=most),
            tasks.due_submits(tx, is_repeat=False, now=now, limit=most),
            tasks.due_submits(tx, is_repeat=True, now=now, limit=most),
        )

    ended, firsts, repeats = await with_parts.database.read(look)
    allowed = set(with_parts.retry_budget.select([task_id for _, task_id in repeats], now=now))
    to_send = [task_id for _, task_id in sorted([*firsts, *(each for each in repeats if each[1] in allowed)])]
    if with_parts.circuit.is_open:
        to_send = to_send[: 1 if with_parts.circuit.may_send(now=now) else 0]
    return list(dict.fromkeys([*ended, *to_send]))[:most]


async def step(with_parts: parts.Parts, task_id: str) -> None:
    """Try one submit again, or end it if its time is over."""
    row = await with_parts.database.read(lambda tx: tasks.get(tx, task_id))
    if row is None or row.state not in STATES:
        return
    now = with_parts.clock()
    if row.state is task.State.WAITING and now >= row.deadline_at:
        expire = functools.partial(advance.expire, row=row, now=now, why="not accepted before the deadline")
        expired = await with_parts.database.write(expire)
        failpoints.reach("resubmit.expired")
        advance.announce(with_parts, expired)
        return
    if row.state is task.State.IN_DOUBT and now - (row.first_attempt_at or now) >= retry.FORGETS_AFTER_S:
        await _abandon(
            with_parts, row, "it has been in doubt for 23 hours, and the vendor forgets idempotency keys at 24"
        )
        return
    await _send_again(with_parts, row)


async def _send_again(with_parts: parts.Parts, row: tasks.Task) -> None:
    now = with_parts.clock()
    key_ref, key = _key_for(with_parts, row)
    if key is None and _is_key_replaced(with_parts, row) and now >= row.deadline_at:
        await _abandon(with_parts, row, "its upstream key was replaced, and another one must not see it")
        return
    if key is None:
        missing = log_events.UpstreamKeyMissing(
            team=row.team, task_id=row.id, request_id=row.request_id, operation="submit", reference=key_ref
        )
        logs.note(log, logging.WARNING, missing)
        again = now + WITHOUT_KEY_AGAIN_S
        await with_parts.database.write(lambda tx: tasks.note(tx, row, next_at=again))
        return
    if not with_parts.circuit.may_send(now=now):
        return  # the circuit opened since the task was found due; it stays so
    if row.attempts > 0 and not with_parts.retry_budget.take(row.id, now=now):
        return
    if not with_parts.circuit.take(now=now):
        return
    begin = functools.partial(advance.attempt, row=row, key_ref=key_ref, key_digest=attempt.digest_of(key), now=now)
    with_parts.repeating.add(row.id)  # before the attempt is written: an operator's decision comes before it, or waits
    try:
        begun = await with_parts.database.write(begin)
        if begun is not None:
            failpoints.reach("resubmit.begun")
            changes.tell(with_parts, changes.Change(row=begun, before=row.state, cause=task.Event.ATTEMPTED))
            await attempt.post(with_parts, begun, key)
    finally:
        with_parts.repeating.discard(row.id)


async def _abandon(with_parts: parts.Parts, row: tasks.Task, why: str) -> None:
    abandon = functools.partial(advance.abandon, row=row, now=with_parts.clock(), why=why)
    advance.announce(with_parts, await with_parts.database.write(abandon))


def _is_key_replaced(with_parts: parts.Parts, row: tasks.Task) -> bool:
    """Whether a task in doubt was sent with another key than the one that can be read: it must not see this one."""
    key = with_parts.upstream_key(row.upstream_key_ref)
    return row.state is task.State.IN_DOUBT and key is not None and attempt.digest_of(key) != row.upstream_key_digest


def _key_for(with_parts: parts.Parts, row: tasks.Task) -> tuple[str, str | None]:
    """The upstream key to send with: the team's present one, but for a task in doubt only the one it was sent with."""
    if row.state is task.State.IN_DOUBT:
        key = None if _is_key_replaced(with_parts, row) else with_parts.upstream_key(row.upstream_key_ref)
        return row.upstream_key_ref, key
    team = with_parts.in_force.policies.teams.get(row.team)
    key_ref = team.upstream_key if team is not None else row.upstream_key_ref
    return key_ref, with_parts.upstream_key(key_ref)
