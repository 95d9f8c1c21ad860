"""The ledger: append-only entries, and balances that equal their sums.

Every function runs inside a transaction of its caller. A cap is enforced by a guarded statement, never by check
then act. Nothing is clamped: a balance below zero is refused by the database.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from gateway import failpoints
from gateway.rules import budget, policy, pricing
from gateway.rules.money import Nanos
from gateway.store.database import Row, Tx


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Who reserves what; what an entry says about its task."""

    task_id: str
    team: str
    key: str
    model: str
    official: str | None
    tier: str
    quote_nanos: Nanos
    reserved_at: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the ledger, as a task's history shows it; `at` in unix seconds."""

    kind: str
    nanos: int
    at: float
    model: str
    tier: str
    images: int
    why: str


_ADD_ENTRY: Final = """
INSERT INTO entries (task_id, kind, nanos, at, reserved_at, team, key_name, model, official, tier, images, why)
VALUES (:task_id, :kind, :nanos, :at, :reserved_at, :team, :key_name, :model, :official, :tier, :images, :why)
"""
_THIS_BALANCE: Final = (
    "scope = :scope AND name = :name AND model_filter = :model_filter AND period = :period AND starts_at = :starts_at"
)
_ADD_BALANCE: Final = """
INSERT INTO balances (scope, name, model_filter, period, starts_at, ends_at, reserved_nanos, settled_nanos)
VALUES (:scope, :name, :model_filter, :period, :starts_at, :ends_at, :reserved_nanos, :settled_nanos)
ON CONFLICT (scope, name, model_filter, period, starts_at) DO NOTHING
"""
# The cap: says no by changing no row.
_RESERVE: Final = f"""
UPDATE balances SET reserved_nanos = reserved_nanos + :nanos
WHERE {_THIS_BALANCE} AND settled_nanos + reserved_nanos + :nanos <= :limit_nanos
"""  # noqa: S608 - constant text
_ADD_HOLD: Final = """
INSERT INTO holds (task_id, scope, name, model_filter, period, starts_at, nanos)
VALUES (:task_id, :scope, :name, :model_filter, :period, :starts_at, :nanos)
"""
_END_HOLD: Final = f"""
UPDATE balances SET reserved_nanos = reserved_nanos - :nanos, settled_nanos = settled_nanos + :cost_nanos
WHERE {_THIS_BALANCE}
"""  # noqa: S608 - constant text
_ADD_TOTAL: Final = """
INSERT INTO totals (team, model, tier, cost_nanos, images, avoided_cache_nanos, avoided_coalesced_nanos,
                    premium_nanos, drift_nanos)
VALUES (:team, :model, :tier, :cost_nanos, :images, :avoided_cache_nanos, :avoided_coalesced_nanos,
        :premium_nanos, :drift_nanos)
ON CONFLICT (team, model, tier) DO UPDATE SET
    cost_nanos = totals.cost_nanos + excluded.cost_nanos,
    images = totals.images + excluded.images,
    avoided_cache_nanos = totals.avoided_cache_nanos + excluded.avoided_cache_nanos,
    avoided_coalesced_nanos = totals.avoided_coalesced_nanos + excluded.avoided_coalesced_nanos,
    premium_nanos = totals.premium_nanos + excluded.premium_nanos,
    drift_nanos = totals.drift_nanos + excluded.drift_nanos
"""


def reserve(tx: Tx, hold: Hold, allowances: Sequence[budget.Allowance]) -> tuple[budget.Allowance, ...]:
    """Reserve the quote in every balance, or change nothing.

    Returns the caps that have no room; the caller must then roll back (raise) if any was returned. Balances are
    updated in one global order, each once, against the lowest of its caps.
    """
    guards = _lowest(allowances)
    if not all(_reserve_one(tx, hold, guard) for guard in guards):
        return tuple(each for each in allowances if _is_full(tx, hold, each))
    failpoints.reach("ledger.reserved")
    _add_entry(tx, hold, kind="reserve", nanos=hold.quote_nanos, at=hold.reserved_at, official=hold.official)
    return ()


def settle(tx: Tx, hold: Hold, cost: pricing.Cost, *, now: float, why: str = "") -> None:
    """End a hold with what was billed; raises on a second end (unique entry)."""
    entry = dataclasses.replace(hold, model=cost.model, tier=cost.tier)
    _add_entry(tx, entry, kind="settle", nanos=cost.nanos, at=now, images=cost.images, why=why)
    if cost.nanos > hold.quote_nanos:
        _add_entry(tx, entry, kind="overage", nanos=cost.nanos - hold.quote_nanos, at=now, why="bill above the quote")
    failpoints.reach("ledger.settled")
    _end_hold(tx, hold, cost.nanos, billed=cost.model)
    failpoints.reach("ledger.ended")
    _add_total(tx, team=hold.team, model=cost.model, tier=cost.tier, cost_nanos=cost.nanos, images=cost.images)
    if cost.drift_nanos:
        _add_total(tx, team=hold.team, model=cost.model, tier=cost.tier, drift_nanos=cost.drift_nanos)
    if cost.premium_nanos:
        _add_total(tx, team=hold.team, model=hold.model, tier=hold.tier, premium_nanos=cost.premium_nanos)


def release(tx: Tx, hold: Hold, *, now: float, why: str) -> None:
    """End a hold of which nothing was spent; raises on a second end (unique entry)."""
    _add_entry(tx, hold, kind="release", nanos=hold.quote_nanos, at=now, why=why)
    failpoints.reach("ledger.released")
    _end_hold(tx, hold, 0, billed=hold.model)


def avoid(tx: Tx, *, team: str, model: str, tier: str, cache_nanos: int = 0, coalesced_nanos: int = 0) -> None:
    """Count what a hit or a follower did not cost."""
    _add_total(
        tx,
        team=team,
        model=model,
        tier=tier,
        avoided_cache_nanos=cache_nanos,
        avoided_coalesced_nanos=coalesced_nanos,
    )


def balance_id(row: Row) -> budget.BalanceId:
    """The balance that a row of `balances` or `holds` is about."""
    return budget.BalanceId(
        scope=budget.Scope(row["scope"]),
        name=row["name"],
        filter=row["model_filter"],
        window=policy.Window(row["period"]),
        start=row["starts_at"],
    )


def balance_of(tx: Tx, balance: budget.BalanceId) -> budget.Balance:
    """What a balance holds; nothing if it has no row yet."""
    row = tx.one(
        f"SELECT settled_nanos, reserved_nanos FROM balances WHERE {_THIS_BALANCE}",  # noqa: S608 - constant text
        **_balance_key(balance),
    )
    if row is None:
        return budget.Balance(settled_nanos=0, reserved_nanos=0)
    return budget.Balance(settled_nanos=row["settled_nanos"], reserved_nanos=row["reserved_nanos"])


def held_by(tx: Tx, task_id: str, balance: budget.BalanceId) -> int:
    """What one task holds in a balance."""
    row = tx.one(
        f"SELECT nanos FROM holds WHERE task_id = :task_id AND {_THIS_BALANCE}",  # noqa: S608 - constant text
        task_id=task_id,
        **_balance_key(balance),
    )
    return 0 if row is None else int(row["nanos"])


def totals(tx: Tx) -> list[pricing.Total]:
    """Every total; as many rows as teams x models x tiers."""
    return [pricing.Total(**{name: row[name] for name in row.keys()}) for row in tx.all("SELECT * FROM totals")]


def make_balance(tx: Tx, allowance: budget.Allowance) -> bool:
    """Build a missing balance from the entries and open holds of its window; False if it is there already.

    A cap that appears in mid-window counts from the window's start, and every open task that it touches gets a
    row in `holds`, so that it settles there too. A window of another timezone may begin at the same instant and end
    at another (London and UTC in March): its balance is made anew.
    """
    balance = allowance.balance
    ends = {"ends_at": allowance.resets_at, **_balance_key(balance)}
    if tx.run(f"DELETE FROM balances WHERE {_THIS_BALANCE} AND ends_at <> :ends_at", **ends):  # noqa: S608
        tx.run(f"DELETE FROM holds WHERE {_THIS_BALANCE}", **_balance_key(balance))  # noqa: S608 - constant text
    if not tx.run(_ADD_BALANCE, **ends, reserved_nanos=0, settled_nanos=0):
        return False
    failpoints.reach("ledger.made")
    settled, open_holds = recompute(tx, balance, allowance.resets_at)
    for entry in open_holds:
        tx.run(_ADD_HOLD, task_id=entry["task_id"], nanos=entry["nanos"], **_balance_key(balance))
    tx.run(
        "UPDATE balances SET settled_nanos = :settled, reserved_nanos = :reserved "  # noqa: S608 - constant text
        f"WHERE {_THIS_BALANCE}",
        settled=settled,
        reserved=sum(entry["nanos"] for entry in open_holds),
        **_balance_key(balance),
    )
    return True


def drop_balances(tx: Tx, *, keep: Collection[budget.BalanceId], now: float) -> None:
    """Drop the balances of present windows that nobody looks at, with their holds' rows; the entries stay."""
    present = tx.all("SELECT * FROM balances WHERE ends_at IS NULL OR ends_at > :now", now=now)
    for balance in {balance_id(row) for row in present}.difference(keep):
        tx.run(f"DELETE FROM holds WHERE {_THIS_BALANCE}", **_balance_key(balance))  # noqa: S608 - constant text
        tx.run(f"DELETE FROM balances WHERE {_THIS_BALANCE}", **_balance_key(balance))  # noqa: S608 - constant text


def recompute(tx: Tx, balance: budget.BalanceId, ends_at: int | None) -> tuple[int, list[Row]]:
    """What a balance must hold by the entries: settled nanos, and the reserve entries that are still open."""
    window = {"since": balance.start, "until": ends_at if ends_at is not None else 2**53, **_owner(balance)}
    settled = tx.all(
        f"SELECT model, SUM(nanos) AS nanos FROM entries WHERE kind = 'settle' AND {_OWNED} GROUP BY model",  # noqa: S608
        **window,
    )
    reserves = tx.all(
        f"SELECT task_id, model, official, nanos FROM entries AS opened WHERE kind = 'reserve' AND {_OWNED} "  # noqa: S608
        "AND NOT EXISTS (SELECT 1 FROM entries AS ended WHERE ended.task_id = opened.task_id "
        "AND ended.kind IN ('settle', 'release'))",
        **window,
    )
    return (
        sum(row["nanos"] for row in settled if budget.counts(balance.filter, [row["model"]])),
        [row for row in reserves if budget.counts(balance.filter, _models(row))],
    )


def balances(tx: Tx) -> list[tuple[budget.BalanceId, int | None, budget.Balance]]:
    """Every balance with the end of its window."""
    rows = tx.all("SELECT * FROM balances ORDER BY scope, name, model_filter, period, starts_at")
    return [(balance_id(row), row["ends_at"], _balance(row)) for row in rows]


def open_reserves(tx: Tx) -> set[str]:
    """Ids of the tasks whose reserve has no end."""
    rows = tx.all(
        "SELECT task_id FROM entries AS opened WHERE kind = 'reserve' AND NOT EXISTS (SELECT 1 FROM entries AS ended "
        "WHERE ended.task_id = opened.task_id AND ended.kind IN ('settle', 'release'))"
    )
    return {row["task_id"] for row in rows}


def entries_of(tx: Tx, task_id: str) -> list[Entry]:
    """The entries of one task, the oldest first."""
    rows = tx.all(
        "SELECT kind, nanos, at, model, tier, images, why FROM entries WHERE task_id = :id ORDER BY id", id=task_id
    )
    return [Entry(**{name: row[name] for name in row.keys()}) for row in rows]


_OWNED: Final = (
    "reserved_at >= :since AND reserved_at < :until AND (:team = '' OR team = :team) "
    "AND (:key_name = '' OR key_name = :key_name)"
)
_NO_LIMIT: Final = 2**62


def _lowest(allowances: Iterable[budget.Allowance]) -> list[budget.Allowance]:
    lowest: dict[budget.BalanceId, budget.Allowance] = {}
    for each in sorted(allowances, key=lambda each: (each.balance, _limit(each))):
        lowest.setdefault(each.balance, each)
    return list(lowest.values())


def _limit(allowance: budget.Allowance) -> int:
    return _NO_LIMIT if allowance.limit_nanos is None else allowance.limit_nanos


def _reserve_one(tx: Tx, hold: Hold, guard: budget.Allowance) -> bool:
    key = _balance_key(guard.balance)
    change = {"nanos": hold.quote_nanos, "limit_nanos": _limit(guard)}
    if not tx.run(_RESERVE, **key, **change):
        tx.run(_ADD_BALANCE, **key, ends_at=guard.resets_at, reserved_nanos=0, settled_nanos=0)
        if not tx.run(_RESERVE, **key, **change):
            return False
    failpoints.reach("ledger.held")
    tx.run(_ADD_HOLD, task_id=hold.task_id, nanos=hold.quote_nanos, **key)
    return True


def _is_full(tx: Tx, hold: Hold, each: budget.Allowance) -> bool:
    used = balance_of(tx, each.balance).used_nanos() - held_by(tx, hold.task_id, each.balance)
    return used + hold.quote_nanos > _limit(each)


def _end_hold(tx: Tx, hold: Hold, cost_nanos: int, *, billed: str) -> None:
    for row in tx.all("SELECT * FROM holds WHERE task_id = :task_id", task_id=hold.task_id):
        balance = balance_id(row)
        counted = cost_nanos if budget.counts(balance.filter, [billed]) else 0
        tx.run(_END_HOLD, nanos=row["nanos"], cost_nanos=counted, **_balance_key(balance))
        failpoints.reach("ledger.moved")
    tx.run("DELETE FROM holds WHERE task_id = :task_id", task_id=hold.task_id)


def _add_entry(
    tx: Tx,
    hold: Hold,
    *,
    kind: str,
    nanos: int,
    at: float,
    official: str | None = None,
    images: int = 0,
    why: str = "",
) -> None:
    tx.run(
        _ADD_ENTRY,
        task_id=hold.task_id,
        kind=kind,
        nanos=nanos,
        at=at,
        reserved_at=hold.reserved_at,
        team=hold.team,
        key_name=hold.key,
        model=hold.model,
        official=official,
        tier=hold.tier,
        images=images,
        why=why,
    )


def _add_total(tx: Tx, *, team: str, model: str, tier: str, **sums: int) -> None:
    zeros = dict.fromkeys(
        ("cost_nanos", "images", "avoided_cache_nanos", "avoided_coalesced_nanos", "premium_nanos", "drift_nanos"), 0
    )
    tx.run(_ADD_TOTAL, team=team, model=model, tier=tier, **(zeros | sums))


def _models(row: Row) -> list[str]:
    return [model for model in (row["model"], row["official"]) if model is not None]


def _balance_key(balance: budget.BalanceId) -> dict[str, object]:
    return {
        "scope": balance.scope.value,
        "name": balance.name,
        "model_filter": balance.filter,
        "period": balance.window.value,
        "starts_at": balance.start,
    }


def _owner(balance: budget.BalanceId) -> dict[str, object]:
    team, _, key = balance.name.partition("/")
    return {"team": team, "key_name": key}


def _balance(row: Row) -> budget.Balance:
    return budget.Balance(settled_nanos=row["settled_nanos"], reserved_nanos=row["reserved_nanos"])
