"""After a start: what was under way when the process ended.

A task in `reserved` had a POST under way, so it is in doubt; what is in doubt is repeated at once. Everything else
goes on where it stood.
"""

from __future__ import annotations

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
        tasks.resume_in_doubt(tx, now=now)
        return len(changes)

    return await with_parts.database.write(interrupted)
