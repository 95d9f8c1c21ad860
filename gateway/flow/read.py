"""A task as its team sees it: the row, its leader's result, and which files are mirrored."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Final

from gateway import metrics, wire
from gateway.flow import parts
from gateway.rules import money, task
from gateway.store import tasks
from gateway.store.database import Tx

LOOK_AGAIN_S: Final = 2.0
"""A waiting client's task is looked at this often even if nobody says that it changed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A task and the document that the client gets."""

    row: tasks.Task
    document: bytes
    upstream_task_id: str | None
    is_upstream_unavailable: bool
    """The task waits for the vendor to be there."""


async def get(with_parts: parts.Parts, team: str, task_id: str) -> Seen | None:
    """A team's task; another team's is like an unknown one. Asks for an upstream poll while the task is open."""
    seen = await with_parts.database.read(lambda tx: _get(tx, with_parts, team, task_id))
    if seen is None:
        return None
    paid_id = seen.row.leader_id or seen.row.id
    if seen.row.state in task.OPEN:
        if with_parts.watch.ask(paid_id, now=with_parts.clock()):
            with_parts.wake_poll()
        else:
            metrics.POLLS_AVOIDED.inc()
    return seen


async def wait(with_parts: parts.Parts, seen: Seen, *, wait_s: float) -> Seen:
    """The task when it has ended, or as it is after `wait_s`; it counts as watched meanwhile."""
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    while seen.row.state in task.OPEN and not with_parts.watch.is_closed and (left_s := until - loop.time()) > 0:
        await with_parts.watch.wait(seen.row.id, timeout_s=min(left_s, LOOK_AGAIN_S))
        again = await get(with_parts, seen.row.team, seen.row.id)
        seen = seen if again is None else again
    return seen


async def show(with_parts: parts.Parts, row: tasks.Task) -> Seen:
    """A task that was just submitted."""
    return await with_parts.database.read(lambda tx: shown(tx, with_parts, row))


def _get(tx: Tx, with_parts: parts.Parts, team: str, task_id: str) -> Seen | None:
    row = tasks.get(tx, task_id)
    return None if row is None or row.team != team else shown(tx, with_parts, row)


def shown(tx: Tx, with_parts: parts.Parts, row: tasks.Task) -> Seen:
    """A task with its document, within a transaction of the caller."""
    paid = row if row.leader_id is None else tasks.get(tx, row.leader_id) or row
    state = paid.state if row.state is task.State.FOLLOWING and paid.state in task.OPEN else row.state
    if _has_left(row, paid):
        paid = row
    media = tasks.media_of(tx, paid.id)
    view = wire.View(
        task_id=row.id,
        model=row.model,
        action=row.action,
        state=state,
        created_at=row.created_at,
        ended_at=row.ended_at,
        quote_quota=money.quota_above(row.quote_nanos),
        cost_quota=money.quota_above(paid.cost_nanos or 0),
        is_free=row.is_free(),
        upstream_task_id=paid.upstream_task_id,
        document=paid.document,
        failure=paid.failure,
        links={each.upstream_url: _link(with_parts, each) for each in media},
        public_url=with_parts.public_url,
    )
    return Seen(
        row=row,
        document=wire.render_task(view),
        upstream_task_id=paid.upstream_task_id,
        is_upstream_unavailable=paid.state in (task.State.WAITING, task.State.IN_DOUBT),
    )


def _has_left(row: tasks.Task, paid: tasks.Task) -> bool:
    """Whether a follower was cancelled by itself: what becomes of its leader is no news about it."""
    return row.state is task.State.CANCELLED and (paid.state, paid.ended_at) != (row.state, row.ended_at)


def _link(with_parts: parts.Parts, medium: tasks.Medium) -> str | None:
    if medium.digest is None:
        return None
    return f"{with_parts.media_public_url}/media/{medium.digest}.{medium.extension}"
