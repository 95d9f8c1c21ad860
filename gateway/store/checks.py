"""What the audit reads: the books recomputed from entries and task rows, each by one pass however many rows there are.

Every function here only reads, and is meant for one snapshot of the whole file.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping
from typing import Final

from gateway.rules import budget, task
from gateway.store import ledger
from gateway.store.database import Row, Tx

_ONE_PART: Final = 2**53
"""Seconds; longer than time."""
_ENTRIES_A_STEP: Final = 20_000
_ENDED_PAID: Final = ", ".join(f"'{state}'" for state in (*task.ENDED, task.State.DELIVERED))
_END: Final = "kind IN ('settle', 'release')"
_ENDED: Final = f"SELECT task_id FROM entries WHERE {_END}"  # noqa: S608 - constant text
_OPEN: Final = f"kind = 'reserve' AND task_id NOT IN ({_ENDED})"


Key = tuple[str, str, str]
"""Team, model, tier."""


class _Windows:
    """The balances that look at the same entries, each in a window of its own, and what the entries say of each."""

    def __init__(self) -> None:
        self.ids: list[budget.BalanceId] = []
        self.starts: list[int] = []
        self.ends: list[float] = []
        self.longest_s = 0.0
        self.settled: list[int] = []
        self.reserved: list[int] = []

    def add(self, balance: budget.BalanceId, ends_at: int | None) -> None:
        """One more window; they come in the order of their starts."""
        end = math.inf if ends_at is None else ends_at
        self.ids.append(balance)
        self.starts.append(balance.start)
        self.ends.append(end)
        self.longest_s = max(self.longest_s, end - balance.start)
        self.settled.append(0)
        self.reserved.append(0)

    def around(self, at: int) -> Iterator[int]:
        """The places of the windows that an instant lies in: more than one where the timezone has changed."""
        place = bisect.bisect_right(self.starts, at) - 1
        while place >= 0 and at - self.starts[place] < self.longest_s:
            if at < self.ends[place]:
                yield place
            place -= 1


def by_balance(tx: Tx) -> Mapping[budget.BalanceId, tuple[int, int]]:
    """(settled, reserved) that each balance must hold, by the settles and the open reserves.

    The entries are read some at a time: a year's sums all at once would be a million values, and the interpreter stands
    still while it looks through them for garbage, and when they go.
    """
    windows: dict[tuple[str, str, str], _Windows] = {}
    for balance, ends_at, _ in ledger.balances(tx):
        windows.setdefault((balance.name, balance.filter, balance.window), _Windows()).add(balance, ends_at)
    of_team: dict[str, list[tuple[str, str, _Windows]]] = {}
    for (name, filter_text, _), each in windows.items():
        team, _, key = name.partition("/")
        of_team.setdefault(team, []).append((key, filter_text, each))
    width = math.gcd(*(at for each in windows.values() for at in _bounds(each))) or _ONE_PART
    last = tx.one("SELECT COALESCE(MAX(id), 0) AS id FROM entries")
    for after in range(0, 0 if last is None else last["id"], _ENTRIES_A_STEP):
        which = "kind = 'settle' AND id > :after AND id <= :after + :step"
        for row in _summed(tx, which, width=width, after=after, step=_ENTRIES_A_STEP):
            for touched, place in _touched(of_team, row):
                touched.settled[place] += row["nanos"]
    for row in _summed(tx, _OPEN, width=width):
        for touched, place in _touched(of_team, row):
            touched.reserved[place] += row["nanos"]
    return {
        balance: (each.settled[place], each.reserved[place])
        for each in windows.values()
        for place, balance in enumerate(each.ids)
    }


def _bounds(windows: _Windows) -> Iterator[int]:
    yield from windows.starts
    yield from (int(end) for end in windows.ends if end != math.inf)


def _summed(tx: Tx, which: str, **values: int) -> list[Row]:
    """Sums by key and models over the longest time that no balance's window divides; `at`: when that begins."""
    return tx.all(
        "SELECT team, key_name, model, official, CAST(reserved_at AS INTEGER) / :width * :width AS at, "  # noqa: S608
        f"SUM(nanos) AS nanos FROM entries WHERE {which} GROUP BY 1, 2, 3, 4, 5",
        **values,
    )


def _touched(of_team: Mapping[str, list[tuple[str, str, _Windows]]], row: Row) -> Iterator[tuple[_Windows, int]]:
    """Where a sum counts: balances of the organisation, of its team, and of its key."""
    models = [each for each in (row["model"], row["official"]) if each is not None]
    for team in ("", row["team"]):
        for key, filter_text, windows in of_team.get(team, ()):
            if key in ("", row["key_name"]) and budget.counts(filter_text, models):
                for place in windows.around(row["at"]):
                    yield windows, place


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


def usage(tx: Tx) -> tuple[int, int]:
    """(blobs, bytes) by counting the rows."""
    row = tx.one("SELECT COUNT(*) AS blobs, COALESCE(SUM(size_bytes), 0) AS bytes FROM blobs")
    return (0, 0) if row is None else (row["blobs"], row["bytes"])


def digests_without_blob(tx: Tx) -> list[str]:
    """Digests that a task's result names and no row of `blobs` knows."""
    rows = tx.all(
        "SELECT DISTINCT digest FROM task_media WHERE digest IS NOT NULL AND digest NOT IN (SELECT digest FROM blobs)"
    )
    return [row["digest"] for row in rows]
