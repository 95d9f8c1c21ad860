"""What `reconcile` reads: the ledger by upstream key, and the tasks that the vendor is asked about.

A task belongs to the key that its last attempt used; the ledger's entry says what was settled, whatever the task's
row says.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from gateway.rules import money, policy, pricing, reconcile, task
from gateway.rules.money import Nanos
from gateway.store.database import Row, Tx

BY_OPERATOR: Final = "operator: "
"""How the reason of an entry begins that an operator's decision made."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeyId:
    """An upstream key as task rows know it; both None where the task's row is not kept any more."""

    ref: str | None
    digest: bytes | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """How many tasks with a key, and amounts of them: settled, or from least to most (then both are the same)."""

    key: KeyId
    tasks: int
    least_nanos: int
    most_nanos: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """The ledger at one instant."""

    settled: tuple[Sum, ...]
    estimated: tuple[Sum, ...]
    """What the vendor may have billed beyond the ledger for older settles whose cost it never named."""
    tasks: tuple[tuple[KeyId, reconcile.Booked], ...]
    """Open ones, those that ended lately, and those that an operator ended; open ones first, then the newest."""
    last_entry: int


_HOLDING: Final = ", ".join(f"'{state}'" for state in task.HOLDING)
# A cost of the vendor's is in whole quotas and in its JSON; reading each JSON of years would take minutes.
_ESTIMATED: Final = (
    f"(ended.nanos > 0 AND (ended.nanos % {money.NANOS_PER_QUOTA} <> 0 "
    "OR CAST(tasks.document AS TEXT) NOT LIKE '%\"cost\"%'))"
)
_KEY: Final = "tasks.upstream_key_ref AS ref, tasks.upstream_key_digest AS digest"
_SETTLED: Final = f"""
SELECT {_KEY}, COUNT(*) AS tasks, SUM(ended.nanos) AS least, SUM(ended.nanos) AS most
FROM entries AS ended LEFT JOIN tasks ON tasks.id = ended.task_id
WHERE ended.kind = 'settle' GROUP BY tasks.upstream_key_ref, tasks.upstream_key_digest
"""  # noqa: S608 - constant text
_OLD_ESTIMATED: Final = f"""
SELECT {_KEY}, COUNT(*) AS tasks,
    SUM(ended.images * (standard_unit_nanos - standard_unit_nanos % {money.NANOS_PER_QUOTA}) - ended.nanos) AS least,
    SUM(ended.images * ((CASE WHEN COALESCE(official_unit_nanos, 0) > standard_unit_nanos
        THEN official_unit_nanos ELSE standard_unit_nanos END + {money.NANOS_PER_QUOTA - 1})
        / {money.NANOS_PER_QUOTA} * {money.NANOS_PER_QUOTA}) - ended.nanos) AS most
FROM entries AS ended JOIN tasks ON tasks.id = ended.task_id
WHERE ended.kind = 'settle' AND tasks.settled_at < :since AND ended.why NOT LIKE :by_operator AND {_ESTIMATED}
GROUP BY tasks.upstream_key_ref, tasks.upstream_key_digest
"""  # noqa: S608 - constant text
_TASKS: Final = f"""
SELECT {_KEY}, tasks.id, tasks.team, upstream_task_id, state, n, tasks.model, tasks.tier, tasks.official, price_version,
    standard_unit_nanos, official_unit_nanos, quote_nanos, COALESCE(ended.images, 0) AS images,
    CASE WHEN ended.kind = 'settle' THEN ended.nanos ELSE 0 END AS cost_nanos,
    CASE WHEN ended.kind = 'settle' AND {_ESTIMATED} THEN 1 ELSE 0 END AS is_estimated,
    CASE WHEN ended.why LIKE :by_operator THEN 1 ELSE 0 END AS is_by_operator
FROM tasks LEFT JOIN entries AS ended ON ended.task_id = tasks.id AND ended.kind IN ('settle', 'release')
WHERE leader_id IS NULL AND (state IN ({_HOLDING}) OR COALESCE(settled_at, ended_at) >= :since
    OR COALESCE(ended.why, '') LIKE :by_operator)
ORDER BY CASE WHEN state IN ({_HOLDING}) THEN 0 ELSE 1 END, created_at DESC, tasks.id DESC
"""  # noqa: S608 - constant text
_RESERVED_AFTER: Final = f"""
SELECT {_KEY}, COUNT(*) AS tasks, 0 AS least, SUM(opened.nanos) AS most
FROM entries AS opened JOIN tasks ON tasks.id = opened.task_id
WHERE opened.id > :last AND opened.kind = 'reserve' GROUP BY tasks.upstream_key_ref, tasks.upstream_key_digest
"""  # noqa: S608 - constant text


def read(tx: Tx, *, since: float) -> Books:
    """The books; ended tasks one by one where they ended at or after `since`, in unix seconds."""
    window = {"since": since, "by_operator": f"{BY_OPERATOR}%"}
    last = tx.one("SELECT COALESCE(MAX(id), 0) AS id FROM entries")
    return Books(
        settled=tuple(map(_sum, tx.all(_SETTLED))),
        estimated=tuple(map(_sum, tx.all(_OLD_ESTIMATED, **window))),
        tasks=tuple((_key(row), _booked(row)) for row in tx.all(_TASKS, **window)),
        last_entry=last["id"] if last is not None else 0,
    )


def reserved_after(tx: Tx, entry: int) -> list[Sum]:
    """What was reserved after an entry: from nothing to the quotes."""
    return [_sum(row) for row in tx.all(_RESERVED_AFTER, last=entry)]


def _key(row: Row) -> KeyId:
    return KeyId(ref=row["ref"], digest=row["digest"])


def _sum(row: Row) -> Sum:
    return Sum(key=_key(row), tasks=row["tasks"], least_nanos=row["least"], most_nanos=row["most"])


def _booked(row: Row) -> reconcile.Booked:
    official_unit = row["official_unit_nanos"]
    return reconcile.Booked(
        id=row["id"],
        team=row["team"],
        upstream_task_id=row["upstream_task_id"],
        state=task.State(row["state"]),
        n=row["n"],
        quote=pricing.Quote(
            nanos=Nanos(row["quote_nanos"]),
            standard_unit_nanos=Nanos(row["standard_unit_nanos"]),
            official_unit_nanos=None if official_unit is None else Nanos(official_unit),
            model=row["model"],
            tier=policy.Tier(row["tier"]),
            official=row["official"],
            version=row["price_version"],
        ),
        cost_nanos=row["cost_nanos"],
        images=row["images"],
        is_estimated=bool(row["is_estimated"]),
        is_by_operator=bool(row["is_by_operator"]),
    )
