"""What was spent, avoided and counted, from the ledger and the task rows, grouped as asked."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Final

from gateway.rules import budget
from gateway.store import ledger, tasks
from gateway.store.database import Row, Tx

GROUPS: Final = ("team", "key", "model", "tier", "day", "month")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One group; amounts in nanos."""

    group: tuple[str, ...]
    tasks: int = 0
    images: int = 0
    cost_nanos: int = 0
    free: int = 0
    """Hits and followers."""
    avoided_nanos: int = 0


def report(tx: Tx, *, by: Sequence[str], since: float, until: float, timezone: datetime.tzinfo) -> list[Line]:
    """Spend by the groups asked for, over what was settled in [since, until), in unix seconds.

    A day or month is that of the settle, in `timezone`. Sorted by group.
    """
    lines: dict[tuple[str, ...], Line] = {}
    for paid in ledger.settles(tx, since=since, until=until):
        group = _group(by, paid, paid["at"], timezone)
        line = lines.get(group, Line(group=group))
        lines[group] = dataclasses.replace(
            line,
            tasks=line.tasks + 1,
            images=line.images + paid["images"],
            cost_nanos=line.cost_nanos + paid["nanos"],
        )
    for free in tasks.free_results(tx, since=since, until=until):
        group = _group(by, free, free["ended_at"], timezone)
        line = lines.get(group, Line(group=group))
        lines[group] = dataclasses.replace(
            line, free=line.free + 1, avoided_nanos=line.avoided_nanos + free["avoided_nanos"]
        )
    return [lines[group] for group in sorted(lines)]


def total(lines: Sequence[Line]) -> Line:
    """The sum of all lines."""
    return Line(
        group=(),
        tasks=sum(line.tasks for line in lines),
        images=sum(line.images for line in lines),
        cost_nanos=sum(line.cost_nanos for line in lines),
        free=sum(line.free for line in lines),
        avoided_nanos=sum(line.avoided_nanos for line in lines),
    )


def _group(by: Sequence[str], row: Row, at: float, timezone: datetime.tzinfo) -> tuple[str, ...]:
    day = budget.today(at, timezone)
    made = {"day": day.isoformat(), "month": f"{day:%Y-%m}"}
    return tuple(made.get(name) or row["key_name" if name == "key" else name] for name in by)
