"""After a start: what was under way when the process ended.

A task in `reserved` had a POST under way, so it is in doubt; what is in doubt is repeated at once, or left to the
operator where the upstream ignores idempotency keys. Everything else goes on where it stood.
"""

from __future__ import annotations

from gateway import failpoints
from gateway.flow import advance, parts
from gateway.rules import task
from gateway.store import tasks
from gateway.store.database import Tx


async def recover(with_parts: parts.Parts) -> int:
    """Put every interrupted submit in doubt, due at once; returns how many."""
    now = with_parts.clock()

    def interrupted(tx: Tx) -> int:
        lost = task.InDoubt(reason="the gateway stopped during the POST")
        rows = [tasks.get(tx, task_id) for task_id in tasks.ids_in(tx, task.State.RESERVED)]
        changes = [advance.answer(tx, row, lost, now=now, luck=0.0) for row in rows if row is not None]
        failpoints.reach("recover.doubted")
        if with_parts.is_upstream_idempotent:
            tasks.resume_in_doubt(tx, now=now)
        else:
            _leave_to_operator(tx, now)
        failpoints.reach("recover.resumed")
        return len(changes)

    failpoints.reach("recover.before")
    count = await with_parts.database.write(interrupted)
    failpoints.reach("recover.committed")
    with_parts.retry_budget.leave_out(await with_parts.database.read(tasks.ids_to_repeat))
    return count


def _leave_to_operator(tx: Tx, now: float) -> None:
    for row in (tasks.get(tx, task_id) for task_id in tasks.ids_in(tx, task.State.IN_DOUBT)):
        if row is not None and row.next_at is not None:
            advance.abandon(tx, row, now=now)
