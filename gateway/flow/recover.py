"""After a start: what was under way when the process ended.

A task in `reserved` had a POST under way, so it is in doubt; what is in doubt is repeated at once, or left to the
operator where the upstream ignores idempotency keys. Everything else goes on where it stood.
"""

from __future__ import annotations

from gateway import failpoints
from gateway.flow import advance, changes, parts
from gateway.rules import task
from gateway.store import tasks
from gateway.store.database import Tx


async def recover(with_parts: parts.Parts) -> int:
    """Put every interrupted submit in doubt, due at once; returns how many."""
    now = with_parts.clock()

    def interrupted(tx: Tx) -> tuple[int, list[changes.Change]]:
        lost = task.InDoubt(reason="the gateway stopped during the POST")
        rows = [tasks.get(tx, task_id) for task_id in tasks.ids_in(tx, task.State.RESERVED)]
        doubted = [advance.answer(tx, row, lost, now=now, luck=0.0) for row in rows if row is not None]
        made = [each for each in doubted if each is not None]
        failpoints.reach("recover.doubted")
        if with_parts.is_upstream_idempotent:
            tasks.resume_in_doubt(tx, now=now)
        else:
            made += _leave_to_operator(tx, now)
        failpoints.reach("recover.resumed")
        return len(doubted), made

    failpoints.reach("recover.before")
    count, made = await with_parts.database.write(interrupted)
    failpoints.reach("recover.committed")
    for each in made:
        changes.tell(with_parts, each)
    with_parts.retry_budget.leave_out(await with_parts.database.read(tasks.ids_to_repeat))
    return count


def _leave_to_operator(tx: Tx, now: float) -> list[changes.Change]:
    why = "the upstream ignores idempotency keys, so it must not be sent twice"
    found = (tasks.get(tx, task_id) for task_id in tasks.ids_in(tx, task.State.IN_DOUBT))
    open_rows = [row for row in found if row is not None and row.next_at is not None]
    left = [advance.abandon(tx, row, now=now, why=why) for row in open_rows]
    return [each for each in left if each is not None]
