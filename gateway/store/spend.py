"""What reports read: settles and free results, summed in SQL by the columns that a report needs.

Each column costs time, so only those that are asked for are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.store.database import Row, Tx

QUARTER_S: Final = 900
"""No day anywhere begins within a quarter of an hour, so a time is summed as its quarter."""

_IS_FALLBACK: Final = "entries.model = tasks.official AND entries.model <> tasks.model"
_PAID: Final = {
    "team": "entries.team",
    "key": "entries.key_name",
    "model": "entries.model",
    "tier": "entries.tier",
    "action": "COALESCE(tasks.action, '')",
    "tags": "COALESCE(tasks.tags, '{}')",
    "at": f"CAST(entries.at / {QUARTER_S} AS INTEGER) * {QUARTER_S}",
    "requested": "COALESCE(tasks.model, entries.model)",
    "account": "COALESCE(tasks.upstream_key_ref, '')",
    "unit_nanos": f"CASE WHEN {_IS_FALLBACK} THEN tasks.official_unit_nanos ELSE tasks.standard_unit_nanos END",
    "is_delivered": "entries.images > 0",
    "reason": "''",
}
# A charge that an operator named has a reason, and is judged like a bill for all images asked for: `pricing.charge`.
_PREMIUM: Final = (
    f"CASE WHEN {_IS_FALLBACK} THEN entries.nanos - tasks.standard_unit_nanos * "
    "(CASE entries.why WHEN '' THEN entries.images ELSE tasks.n END) ELSE 0 END"
)
_FREE: Final = {
    "team": "free.team",
    "key": "free.key_name",
    "model": "free.model",
    "tier": "free.tier",
    "action": "free.action",
    "tags": "free.tags",
    "at": f"CAST(free.ended_at / {QUARTER_S} AS INTEGER) * {QUARTER_S}",
    "requested": "free.model",
    "account": "free.upstream_key_ref",
    "unit_nanos": "free.standard_unit_nanos",
    "is_delivered": "COALESCE(entries.images, 0) > 0",
    "reason": "CASE free.x_cache WHEN 'HIT' THEN 'cache' ELSE 'coalesced' END",
}


def results(tx: Tx, columns: Sequence[str], *, since: float, until: float) -> list[Row]:
    """What was settled, and what came free, in [since, until) unix seconds: the columns, and sums.

    Sums: tasks, images, cost_nanos, premium_nanos, avoided_nanos. A hit or follower counts at its end, with the images
    that the paid task delivered. Columns: team, key, model, tier, action, tags, at (the quarter of an hour), requested
    (the model asked for), account (the reference of the upstream key), unit_nanos (the frozen price of an image of the
    billed model), is_delivered, and reason: empty for what was paid, `cache` or `coalesced`. Where a task's row is not
    kept, what only it says is empty, and the premium 0.
    """
    return _settled(tx, columns, since=since, until=until) + _free(tx, columns, since=since, until=until)


def _settled(tx: Tx, columns: Sequence[str], *, since: float, until: float) -> list[Row]:
    return tx.all(
        f"SELECT {_named(_PAID, columns)}, COUNT(*) AS tasks, SUM(entries.images) AS images, "  # noqa: S608 - constants
        f"SUM(entries.nanos) AS cost_nanos, SUM({_PREMIUM}) AS premium_nanos, 0 AS avoided_nanos "
        "FROM entries LEFT JOIN tasks ON tasks.id = entries.task_id "
        "WHERE entries.kind = 'settle' AND entries.at >= :since AND entries.at < :until "
        f"GROUP BY {_ordinals(columns)}",
        since=since,
        until=until,
    )


def _free(tx: Tx, columns: Sequence[str], *, since: float, until: float) -> list[Row]:
    return tx.all(
        f"SELECT {_named(_FREE, columns)}, COUNT(*) AS tasks, SUM(COALESCE(entries.images, 0)) AS images, "  # noqa: S608
        "0 AS cost_nanos, 0 AS premium_nanos, SUM(COALESCE(paid.cost_nanos, 0)) AS avoided_nanos "
        "FROM tasks AS free JOIN tasks AS paid ON paid.id = free.leader_id "
        # Both kinds, as the unique index on the one end of a task has it.
        "LEFT JOIN entries ON entries.task_id = paid.id AND entries.kind IN ('settle', 'release') "
        "WHERE free.state = 'completed' AND free.ended_at >= :since AND free.ended_at < :until "
        f"GROUP BY {_ordinals(columns)}",
        since=since,
        until=until,
    )


def _named(expressions: dict[str, str], columns: Sequence[str]) -> str:
    """The columns, after one that is always there: without columns everything is one group, or none."""
    return ", ".join(["1", *(f"{expressions[name]} AS {name}" for name in columns)])


def _ordinals(columns: Sequence[str]) -> str:
    return ", ".join(str(number) for number in range(1, len(columns) + 2))
