"""A team's own tasks, newest first, a page at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

import msgspec

from gateway import wire
from gateway.flow import parts, read
from gateway.rules import task
from gateway.store import tasks
from gateway.store.database import Tx

MOST_ON_A_PAGE: Final = 100
MOST_LOOKED_AT: Final = 2_000
"""Rows that one page looks at where a filter matches few of them; `next_before` goes on behind."""

STATES_SHOWN_AS: Final[Mapping[str, tuple[task.State, ...]]] = {
    "queued": (
        task.State.RESERVED,
        task.State.WAITING,
        task.State.IN_DOUBT,
        task.State.SUBMITTED,
        task.State.FOLLOWING,
    ),
    "processing": (task.State.SUBMITTED, task.State.DELIVERED, task.State.FOLLOWING),
    "completed": (task.State.COMPLETED,),
    "failed": (task.State.FAILED,),
    "cancelled": (task.State.CANCELLED,),
}
"""Every status to filter by, and the states that may be shown as it. A refused submit never was a task."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to list; `since` in unix seconds, `text` is looked for in the request and the ids."""

    limit: int = 20
    before: str | None = None
    status: str | None = None
    since: float | None = None
    text: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page: each task's JSON, and where the next page begins."""

    documents: tuple[bytes, ...]
    next_before: str | None


async def page(with_parts: parts.Parts, team: str, query: Query) -> Page:
    """The next page of a team's tasks."""
    return await with_parts.database.scan(lambda tx: _page(tx, with_parts, team, query))


def _page(tx: Tx, with_parts: parts.Parts, team: str, query: Query) -> Page:
    states = (
        STATES_SHOWN_AS[query.status] if query.status else tuple({s for all_ in STATES_SHOWN_AS.values() for s in all_})
    )
    rows = tasks.of_team(
        tx, team, states, before=query.before, since=query.since, text=query.text, limit=MOST_LOOKED_AT
    )
    found: list[tuple[str, bytes]] = []
    for row in rows:
        document = read.shown(tx, with_parts, row).document
        if query.status is None or _status(document) == query.status:
            found.append((row.id, document))
        if len(found) > query.limit:
            break
    kept = found[: query.limit]
    if len(found) > query.limit:
        return Page(documents=tuple(document for _, document in kept), next_before=kept[-1][0])
    is_cut = len(rows) == MOST_LOOKED_AT
    return Page(documents=tuple(document for _, document in kept), next_before=rows[-1].id if is_cut else None)


def _status(document: bytes) -> str:
    """The shown status in our five words, whatever the vendor's own word is."""
    said = msgspec.json.decode(document, type=_Status).status.lower()
    if said not in wire.STATUSES:
        return "processing"
    ends = {task.Event.DELIVERED: "completed", task.Event.FAILED: "failed", task.Event.CANCELLED: "cancelled"}
    event = wire.STATUSES[said]
    return ends[event] if event is not None else "queued" if said == "queued" else "processing"


class _Status(msgspec.Struct):
    status: str
