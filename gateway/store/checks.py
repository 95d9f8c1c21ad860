"""What the audit reads: the books recomputed from entries and task rows, each by one pass however many rows there are.

Every function here only reads, and is meant for one snapshot of the whole file.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping
from typing import Final

from gateway.rules import budget, task
from gateway.store import ledger
from gateway.store.database import Row, Tx

_ONE_PART: Final = 2**53
"""Seconds; longer than time."""
_ENDED_PAID: Final = ", ".join(f"'{state}'" for state in (*task.ENDED, task.State.DELIVERED))
_END: Final = "kind IN ('settle', 'release')"
_ENDED: Final = f"SELECT task_id FROM entries WHERE {_END}"  # noqa: S608 - constant text
_OPEN: Final = f"kind = 'reserve' AND task_id NOT IN ({_ENDED})"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """The amount of one key and its models in a part of every window that it touches; `at`: when that part begins."""

    key: str
    models: tuple[str, ...]
    at: int
    nanos: int


Key = tuple[str, str, str]
"""Team, model, tier."""


class Entries:
    """Settles and open reserves, summed up by the longest time that no balance's window divides."""

    def __init__(self, tx: Tx) -> None:
        bounds = [at for balance, ends_at, _ in ledger.balances(tx) for at in (balance.start, ends_at) if at]
        width = math.gcd(*bounds) or _ONE_PART
        self._settled = _summed(tx, "kind = 'settle'", width)
        self._open = _summed(tx, _OPEN, width)

    def of(self, balance: budget.BalanceId, ends_at: int | None) -> tuple[int, int]:
        """(settled, reserved) that a balance must hold."""
        return _in(self._settled, balance, ends_at), _in(self._open, balance, ends_at)


def _summed(tx: Tx, which: str, width: int) -> dict[str, list[Sums]]:
    """Sums by team, those of all teams under the empty name, each list by time."""
    rows = tx.all(
        "SELECT team, key_name, model, official, CAST(reserved_at AS INTEGER) / :width * :width AS at, "  # noqa: S608
        f"SUM(nanos) AS nanos FROM entries WHERE {which} GROUP BY 1, 2, 3, 4, 5 ORDER BY at",
        width=width,
    )
    sums: dict[str, list[Sums]] = {"": []}
    for row in rows:
        models = tuple(each for each in (row["model"], row["official"]) if each is not None)
        each = Sums(key=row["key_name"], models=models, at=row["at"], nanos=row["nanos"])
        sums[""].append(each)
        sums.setdefault(row["team"], []).append(each)
    return sums


def _in(sums: Mapping[str, list[Sums]], balance: budget.BalanceId, ends_at: int | None) -> int:
    team, _, key = balance.name.partition("/")
    mine = sums.get(team, [])
    begins = bisect.bisect_left(mine, balance.start, key=_at)
    ends = len(mine) if ends_at is None else bisect.bisect_left(mine, ends_at, key=_at)
    return sum(
        each.nanos for each in mine[begins:ends] if key in ("", each.key) and budget.counts(balance.filter, each.models)
    )


def _at(each: Sums) -> int:
    return each.at


def holds_by_balance(tx: Tx) -> Mapping[budget.BalanceId, int]:
    """What the rows of `holds` say that each balance holds."""
    rows = tx.all(
        "SELECT scope, name, model_filter, period, starts_at, SUM(nanos) AS nanos FROM holds GROUP BY 1, 2, 3, 4, 5"
    )
    return {ledger.balance_id(row): row["nanos"] for row in rows}


def holds_of_ended(tx: Tx) -> list[Row]:
    """Rows of `holds` (task_id, nanos) that are not the amount of an open reserve of their task."""
    return tx.all(_HOLDS_OF_ENDED)


def free_with_entries(tx: Tx) -> list[str]:
    """Ids of hits and followers, which cost nothing, that have an entry all the same (M4)."""
    rows = tx.all(
        "SELECT id FROM tasks WHERE leader_id IS NOT NULL AND id IN (SELECT task_id FROM entries) ORDER BY id"
    )
    return [row["id"] for row in rows]


def ended_without_end(tx: Tx) -> list[str]:
    """Ids of paid tasks that have ended, or were delivered, and whose reserve was never settled or released (M2)."""
    rows = tx.all(
        f"SELECT id FROM tasks WHERE leader_id IS NULL AND state IN ({_ENDED_PAID}) "  # noqa: S608
        f"AND id NOT IN ({_ENDED}) ORDER BY id"
    )
    return [row["id"] for row in rows]


def other_costs(tx: Tx) -> list[Row]:
    """Tasks (id, cost_nanos, nanos) whose row says another cost than their settle, 0 where it was released."""
    return tx.all(_OTHER_COSTS)


def free_with_cost(tx: Tx) -> list[str]:
    """Ids of hits and followers whose row names a cost."""
    return [row["id"] for row in tx.all("SELECT id FROM tasks WHERE leader_id IS NOT NULL AND cost_nanos <> 0")]


def totals(tx: Tx) -> dict[Key, dict[str, int]]:
    """Every sum of `totals`, by its column, from the entries and the tasks' frozen prices."""
    sums: dict[Key, dict[str, int]] = {}
    for sql in (_SPENT, _PREMIUM, _AVOIDED):
        for row in tx.all(sql):
            kept = sums.setdefault((row["team"], row["model"], row["tier"]), {})
            for column in row.keys()[3:]:
                if row[column]:
                    kept[column] = kept.get(column, 0) + row[column]
    return sums


_HOLDS_OF_ENDED: Final = f"""
SELECT DISTINCT holds.task_id AS task_id, holds.nanos AS nanos FROM holds LEFT JOIN entries AS opened
ON opened.task_id = holds.task_id AND opened.kind = 'reserve' AND opened.nanos = holds.nanos
WHERE opened.id IS NULL OR holds.task_id IN ({_ENDED}) ORDER BY holds.task_id
"""  # noqa: S608 - constant text
_OTHER_COSTS: Final = f"""
SELECT id, cost_nanos, nanos FROM (
    SELECT tasks.id AS id, tasks.cost_nanos AS cost_nanos, CASE kind WHEN 'settle' THEN nanos ELSE 0 END AS nanos
    FROM entries JOIN tasks ON tasks.id = task_id WHERE {_END}
) WHERE cost_nanos IS NOT nanos ORDER BY id
"""  # noqa: S608 - constant text

# As `pricing` does it, by the prices frozen on the row. An operator's charge is judged as for all images.
_JUDGED: Final = """
SELECT entries.team AS team, entries.model AS model, entries.tier AS tier,
    tasks.model AS asked, tasks.tier AS asked_tier, nanos, images, standard_unit_nanos,
    CASE WHEN why LIKE 'operator:%' THEN n ELSE images END AS judged, entries.model = tasks.official AS is_official,
    CASE WHEN entries.model = tasks.official THEN official_unit_nanos ELSE standard_unit_nanos END AS unit
FROM entries LEFT JOIN tasks ON tasks.id = task_id WHERE kind = 'settle'
"""
_SPENT: Final = f"""
SELECT team, model, tier, SUM(nanos) AS cost_nanos, SUM(images) AS images,
    SUM(CASE WHEN ABS(nanos - judged * unit) > judged * 2000 THEN ABS(nanos - judged * unit) ELSE 0 END) AS drift_nanos
FROM ({_JUDGED}) GROUP BY 1, 2, 3
"""  # noqa: S608 - constant text
_PREMIUM: Final = f"""
SELECT team, asked AS model, asked_tier AS tier, SUM(nanos - judged * standard_unit_nanos) AS premium_nanos
FROM ({_JUDGED}) WHERE is_official GROUP BY 1, 2, 3
"""  # noqa: S608 - constant text
_AVOIDED: Final = """
SELECT free.team AS team, CASE free.x_cache WHEN 'HIT' THEN free.model ELSE paid.model END AS model,
    CASE free.x_cache WHEN 'HIT' THEN free.tier ELSE paid.tier END AS tier,
    SUM(CASE free.x_cache WHEN 'HIT' THEN paid.cost_nanos ELSE 0 END) AS avoided_cache_nanos,
    SUM(CASE free.x_cache WHEN 'HIT' THEN 0 ELSE paid.cost_nanos END) AS avoided_coalesced_nanos
FROM tasks AS free JOIN tasks AS paid ON paid.id = free.leader_id WHERE free.state = 'completed' GROUP BY 1, 2, 3
"""


def digests_without_blob(tx: Tx) -> list[str]:
    """Digests that a task's result names and no row of `blobs` knows."""
    rows = tx.all(
        "SELECT DISTINCT digest FROM task_media WHERE digest IS NOT NULL AND digest NOT IN (SELECT digest FROM blobs)"
    )
    return [row["digest"] for row in rows]
