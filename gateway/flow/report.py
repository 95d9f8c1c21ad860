"""What was spent, avoided and counted, from the ledger and the task rows, grouped as asked.

A task with several tags, or of a team with several labels, is in the group of each; its cost is not split. So lines
by tag or label may add up to more than was spent, and the total is never made of them: it is the report `by` nothing.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from gateway.rules import budget
from gateway.store import ledger, tasks
from gateway.store.database import Row, Tx

GROUPS: Final = ("team", "key", "model", "tier", "action", "tag", "label", "day", "week", "month")

Labels = Mapping[str, Mapping[str, str]]
"""Labels by team."""


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


def report(
    tx: Tx, *, by: Sequence[str], since: float, until: float, timezone: datetime.tzinfo, labels: Labels | None = None
) -> list[Line]:
    """Spend by the groups asked for, over what was settled in [since, until), in unix seconds.

    A day, ISO week or month is that of the settle, in `timezone`. `labels` are those of the policies in force. Sorted
    by group. A tag or label is `name=value`, empty where there is none.
    """
    lines: dict[tuple[str, ...], Line] = {}
    for paid in ledger.settles(tx, since=since, until=until):
        for group in _groups(by, paid, paid["at"], timezone, labels or {}):
            line = lines.get(group, Line(group=group))
            lines[group] = dataclasses.replace(
                line,
                tasks=line.tasks + paid["tasks"],
                images=line.images + paid["images"],
                cost_nanos=line.cost_nanos + paid["nanos"],
            )
    for free in tasks.free_results(tx, since=since, until=until):
        for group in _groups(by, free, free["ended_at"], timezone, labels or {}):
            line = lines.get(group, Line(group=group))
            lines[group] = dataclasses.replace(
                line, free=line.free + 1, avoided_nanos=line.avoided_nanos + free["avoided_nanos"]
            )
    return [lines[group] for group in sorted(lines)]


def total(lines: Sequence[Line]) -> Line:
    """The sum of all lines; not for lines by tag or label, in which a task may be twice."""
    return Line(
        group=(),
        tasks=sum(line.tasks for line in lines),
        images=sum(line.images for line in lines),
        cost_nanos=sum(line.cost_nanos for line in lines),
        free=sum(line.free for line in lines),
        avoided_nanos=sum(line.avoided_nanos for line in lines),
    )


def _groups(
    by: Sequence[str], row: Row, at: float, timezone: datetime.tzinfo, labels: Labels
) -> Iterator[tuple[str, ...]]:
    """Every group that a row counts in."""
    return itertools.product(*(_values(name, row, at, timezone, labels) for name in by))


def _values(name: str, row: Row, at: float, timezone: datetime.tzinfo, labels: Labels) -> Sequence[str]:
    match name:
        case "day":
            return [budget.today(at, timezone).isoformat()]
        case "week":
            year, week, _ = budget.today(at, timezone).isocalendar()
            return [f"{year}-W{week:02d}"]
        case "month":
            return [f"{budget.today(at, timezone):%Y-%m}"]
        case "tag":
            return _pairs(json.loads(row["tags"]))
        case "label":
            return _pairs(labels.get(row["team"], {}))
        case "key":
            return [row["key_name"]]
        case _:
            return [row[name]]


def _pairs(named: Mapping[str, str]) -> Sequence[str]:
    return [f"{name}={value}" for name, value in named.items()] or [""]
