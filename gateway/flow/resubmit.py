"""Submits that did not end with the first POST: the waiting are sent again, the doubtful repeated under their key.

While the upstream is down, one of them leaves at a time as a probe; nothing else is touched but what has come to its
end. On recovery the most overdue leave first: a first POST that was held back is due since its submit.

A task in doubt is repeated only with the idempotency key and the upstream key that it was sent with; 23 hours after
the first attempt it is not repeated any more and waits for the operator (CONTRACT §2).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection
from typing import Final

from gateway.flow import advance, attempt, parts
from gateway.rules import retry, task
from gateway.store import tasks
from gateway.store.database import Tx

STATES: Final = (task.State.WAITING, task.State.IN_DOUBT)
WITHOUT_KEY_AGAIN_S: Final = 2.0

log = logging.getLogger(__name__)


async def due(with_parts: parts.Parts, most: int) -> Collection[str]:
    """Tasks whose submit is to be tried again now."""
    now = with_parts.clock()
    if not with_parts.circuit.is_open:
        return await with_parts.database.read(lambda tx: tasks.due(tx, STATES, now=now, limit=most))
    probes = 1 if with_parts.circuit.may_send(now=now) else 0
    forgotten_at = now - retry.FORGETS_AFTER_S

    def look(tx: Tx) -> list[str]:
        ended = tasks.due_to_end(tx, now=now, forgotten_at=forgotten_at, limit=most)
        return list(dict.fromkeys([*tasks.due(tx, STATES, now=now, limit=probes), *ended]))

    return await with_parts.database.read(look)


async def step(with_parts: parts.Parts, task_id: str) -> None:
    """Try one submit again, or end it if its time is over."""
    row = await with_parts.database.read(lambda tx: tasks.get(tx, task_id))
    if row is None or row.state not in STATES:
        return
    now = with_parts.clock()
    if row.state is task.State.WAITING and now >= row.deadline_at:
        expire = functools.partial(advance.expire, row=row, now=now, why="not accepted before the deadline")
        advance.announce(with_parts, await with_parts.database.write(expire))
        return
    if row.state is task.State.IN_DOUBT and now - (row.first_attempt_at or now) >= retry.FORGETS_AFTER_S:
        log.error("task %s is in doubt for 23 hours and is not repeated any more; its hold stays", row.id)
        abandon = functools.partial(advance.abandon, row=row, now=now)
        advance.announce(with_parts, await with_parts.database.write(abandon))
        return
    await _send_again(with_parts, row)


async def _send_again(with_parts: parts.Parts, row: tasks.Task) -> None:
    now = with_parts.clock()
    key_ref, key = _key_for(with_parts, row)
    if key is None:
        log.warning("task %s cannot be sent: the upstream key %s cannot be used for it", row.id, key_ref)
        again = now + WITHOUT_KEY_AGAIN_S
        await with_parts.database.write(lambda tx: tasks.note(tx, row, next_at=again))
        return
    if not with_parts.circuit.take(now=now):
        return  # the circuit opened since the task was found due; it stays so
    begin = functools.partial(advance.attempt, row=row, key_ref=key_ref, key_digest=attempt.digest_of(key), now=now)
    begun = await with_parts.database.write(begin)
    if begun is not None:
        await attempt.post(with_parts, begun, key)


def _key_for(with_parts: parts.Parts, row: tasks.Task) -> tuple[str, str | None]:
    """The upstream key to send with: the team's present one, but for a task in doubt only the one it was sent with."""
    if row.state is task.State.IN_DOUBT:
        key = with_parts.upstream_key(row.upstream_key_ref)
        if key is not None and attempt.digest_of(key) != row.upstream_key_digest:
            return row.upstream_key_ref, None
        return row.upstream_key_ref, key
    team = with_parts.in_force.policies.teams.get(row.team)
    key_ref = team.upstream_key if team is not None else row.upstream_key_ref
    return key_ref, with_parts.upstream_key(key_ref)
