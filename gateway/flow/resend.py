"""An operator's wish to send webhooks once more: from the beginning of the schedule, under the same `webhook-id`."""

from __future__ import annotations

import dataclasses

from gateway.store import outbox
from gateway.store.database import Database


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """The webhook of one task, whatever became of it; without `task_id` all that were given up, or those of a team."""

    task_id: str | None = None
    team: str | None = None


async def resend(database: Database, which: Which, *, now: float) -> int:
    """Make these webhooks due at once; returns how many there are."""
    task_id = which.task_id
    if task_id is not None:
        return int(await database.write(lambda tx: outbox.resend(tx, task_id, now=now)))
    return await database.write(lambda tx: outbox.resend_given_up(tx, team=which.team, now=now))
