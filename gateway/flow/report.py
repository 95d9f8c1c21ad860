"""What was spent, avoided and counted, from the ledger and the task rows, grouped as asked.

A task with several tags, or of a team with several labels, is in the group of each; its cost is not split. So lines
by tag or label may add up to more than was spent, and the total is not made of them: it counts each task once.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.rules import budget, focus, policy, share
from gateway.store import spend
from gateway.store.database import Row, Tx

_COLUMN: Final = {
    "team": "team",
    "key": "key",
    "model": "model",
    "tier": "tier",
    "action": "action",
    "tag": "tags",
    "label": "team",
    "day": "at",
    "week": "at",
    "month": "at",
}
GROUPS: Final = tuple(_COLUMN)
_TIMES: Final = {"day": policy.Window.DAY, "week": policy.Window.WEEK, "month": policy.Window.MONTH}
_ALIKE: Final = ("team", "key", "account", "model", "requested", "tier", "action", "tags", "unit_nanos", "reason")
"""What the tasks of one charge have in common, beside their day and whether they delivered."""
_SUMS: Final = ("tasks", "images", "cost_nanos", "premium_nanos", "avoided_nanos")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One group; amounts in nanos."""

    group: tuple[str, ...]
    tasks: int = 0
    images: int = 0
    """Paid for."""
    cost_nanos: int = 0
    free: int = 0
    """Hits and followers."""
    avoided_cache_nanos: int = 0
    avoided_coalesced_nanos: int = 0
    premium_nanos: int = 0
    """Paid above the standard price through `official_fallback`; part of the cost."""
    ceiling: share.Ceiling | None = None

    def avoided_nanos(self) -> int:
        """What hits and followers would have cost."""
        return self.avoided_cache_nanos + self.avoided_coalesced_nanos


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Lines sorted by group, and the total, which is not always their sum."""

    lines: tuple[Line, ...]
    total: Line


def report(tx: Tx, policies: policy.PolicySet, *, by: Sequence[str], since: float, until: float, now: float) -> Report:
    """Spend by the groups asked for, over what was settled in [since, until), in unix seconds.

    A day, ISO week or month is that of the settle, in the organisation's timezone; labels and caps are those of
    `policies`. A tag or label is `name=value`, empty where there is none.
    """
    timezone = budget.timezone_of(policies.organisation.timezone)
    columns = sorted({"reason", *(_COLUMN[name] for name in by)})
    sums: dict[tuple[str, ...], list[int]] = {}
    total = [0] * _AMOUNTS
    times: dict[tuple[str, ...], float] = {}
    for row in spend.results(tx, columns, since=since, until=until):
        amounts = _amounts(row)
        total = [one + other for one, other in zip(total, amounts, strict=True)]
        for group in itertools.product(*(_values(name, row, policies, timezone) for name in by)):
            sums[group] = [one + other for one, other in zip(sums.get(group, _NOTHING), amounts, strict=True)]
            if "at" in columns:
                times.setdefault(group, row["at"])
    ceiling = functools.partial(share.ceiling, policies, now=now)
    lines = []
    for group in sorted(sums):
        first, last = _time_of(by, times.get(group, since), timezone, since=since, until=until)
        names = dict(zip(by, group, strict=True))
        team, key = names.get("team"), names.get("key") if "team" in names else None
        lines.append(_line(group, sums[group], ceiling(team=team, key=key, since=first, until=last)))
    return Report(lines=tuple(lines), total=_line((), total, ceiling(team=None, key=None, since=since, until=until)))


def charges(tx: Tx, policies: policy.PolicySet, *, since: float, until: float) -> list[focus.Charge]:
    """The same as rows of FOCUS: what is alike in all but its results is one charge a day. Sorted by day.

    Tags and labels are not split up: each task is in one charge, so their sum is the report's total.
    """
    timezone = budget.timezone_of(policies.organisation.timezone)
    sums: dict[tuple[Any, ...], list[int]] = {}
    for row in spend.results(tx, ("at", "is_delivered", *_ALIKE), since=since, until=until):
        day = budget.today(row["at"], timezone).isoformat()
        same = (day, row["is_delivered"], *(row[name] for name in _ALIKE))
        sums[same] = [one + row[name] for one, name in zip(sums.get(same, [0] * len(_SUMS)), _SUMS, strict=True)]
    found = []
    for (day, _, *alike), amounts in sorted(sums.items(), key=str):
        values = dict(zip((*_ALIKE, *_SUMS), [*alike, *amounts], strict=True))
        found.append(focus.Charge(day=day, **values))
    return found


def _amounts(row: Row) -> tuple[int, ...]:
    """The amounts of a line, in the order of its fields."""
    tasks, images, avoided = row["tasks"], row["images"], row["avoided_nanos"]
    match row["reason"]:
        case "cache":
            return 0, 0, 0, tasks, avoided, 0, 0
        case "coalesced":
            return 0, 0, 0, tasks, 0, avoided, 0
        case _:
            return tasks, images, row["cost_nanos"], 0, 0, 0, row["premium_nanos"]


_AMOUNTS: Final = 7
_NOTHING: Final = (0,) * _AMOUNTS


def _line(group: tuple[str, ...], amounts: Sequence[int], ceiling: share.Ceiling | None) -> Line:
    tasks, images, cost, free, cached, coalesced, premium = amounts
    return Line(
        group=group,
        tasks=tasks,
        images=images,
        cost_nanos=cost,
        free=free,
        avoided_cache_nanos=cached,
        avoided_coalesced_nanos=coalesced,
        premium_nanos=premium,
        ceiling=ceiling,
    )


def _time_of(
    by: Sequence[str], at: float, timezone: datetime.tzinfo, *, since: float, until: float
) -> tuple[float, float]:
    """The part of [since, until) that a line is about: its day, week or month, if it has one."""
    for name in by:
        if name in _TIMES:
            start, end = budget.bounds(_TIMES[name], at, timezone)
            since, until = max(since, start), min(until, until if end is None else end)
    return since, until


def _values(name: str, row: Row, policies: policy.PolicySet, timezone: datetime.tzinfo) -> Sequence[str]:
    """The groups of one kind that a row counts in."""
    match name:
        case "day":
            return [budget.today(row["at"], timezone).isoformat()]
        case "week":
            year, week, _ = budget.today(row["at"], timezone).isocalendar()
            return [f"{year}-W{week:02d}"]
        case "month":
            return [f"{budget.today(row['at'], timezone):%Y-%m}"]
        case "tag":
            return _pairs(json.loads(row["tags"]))
        case "label":
            team = policies.teams.get(row["team"])
            return _pairs({} if team is None else team.labels)
        case _:
            return [row[name]]


def _pairs(named: Mapping[str, str]) -> Sequence[str]:
    return [f"{name}={value}" for name, value in named.items()] or [""]
