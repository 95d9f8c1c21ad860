"""Small rows of the store, and a few steps that several of its tests take. Times in unix seconds, all UTC."""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
from collections.abc import Iterable
from typing import Any

from gateway.rules import budget, policy, pricing, task
from gateway.rules.money import Nanos
from gateway.store import database, ledger, sqlite, tasks

PRO = "gemini-3-pro-image-preview"
PRO_OFFICIAL = "gemini-3-pro-image-preview-official"
FLASH = "gemini-3.1-flash-image-preview"

MONTH_STARTS = 1_780_272_000  # 2026-06-01T00:00:00Z
DAY_STARTS = 1_781_481_600  # 2026-06-15T00:00:00Z, a Monday
NOW = 1_781_524_800  # 2026-06-15T12:00:00Z
DAY_ENDS = 1_781_568_000  # 2026-06-16T00:00:00Z
MONTH_ENDS = 1_782_864_000  # 2026-07-01T00:00:00Z

_BOUNDS: dict[policy.Window, tuple[int, int | None]] = {
    policy.Window.DAY: (DAY_STARTS, DAY_ENDS),
    policy.Window.WEEK: (DAY_STARTS, DAY_STARTS + 7 * 86_400),
    policy.Window.MONTH: (MONTH_STARTS, MONTH_ENDS),
    policy.Window.TOTAL: (0, None),
}


def open_database(folder: pathlib.Path, **said: Any) -> sqlite.SqliteDatabase:
    return sqlite.SqliteDatabase(folder / "ledger.db", **said)


def shell(folder: pathlib.Path, sql: str, *, file: str = "ledger.db") -> list[tuple[Any, ...]]:
    """Run a statement on the file from outside, as an operator's shell does."""
    with contextlib.closing(sqlite3.connect(folder / file, isolation_level=None)) as connection:
        return connection.execute(sql).fetchall()


def task_row(task_id: str = "task-1", **said: Any) -> tasks.Task:
    row: dict[str, Any] = {
        "id": task_id,
        "team": "growth",
        "key_name": "ci",
        "request_id": f"request of {task_id}",
        "body_digest": b"\x01" * 32,
        "x_cache": "MISS",
        "model": PRO,
        "action": "generate",
        "n": 1,
        "request": b'{"model":"gemini-3-pro-image-preview","prompt":"a red fox"}',
        "state": task.State.RESERVED,
        "upstream_key_ref": "env:WAVE_KEY_GROWTH",
        "upstream_idempotency_key": f"upstream key of {task_id}",
        "price_version": "2026-04-01",
        "tier": "standard",
        "standard_unit_nanos": 42_500_000,
        "quote_nanos": 42_500_000,
        "created_at": float(NOW),
        "deadline_at": float(NOW + 120),
    }
    return tasks.Task(**(row | said))


def hold(task_id: str = "task-1", nanos: int = 100, **said: Any) -> ledger.Hold:
    held: dict[str, Any] = {
        "task_id": task_id,
        "team": "growth",
        "key": "ci",
        "model": PRO,
        "official": None,
        "tier": "standard",
        "quote_nanos": Nanos(nanos),
        "reserved_at": float(NOW),
    }
    return ledger.Hold(**(held | said))


def balance(
    window: policy.Window = policy.Window.DAY,
    *,
    scope: budget.Scope = budget.Scope.TEAM,
    name: str = "growth",
    filter_text: str = "",
) -> budget.BalanceId:
    return budget.BalanceId(scope=scope, name=name, filter=filter_text, window=window, start=_BOUNDS[window][0])


def allowance(
    limit: int | None,
    window: policy.Window = policy.Window.DAY,
    *,
    scope: budget.Scope = budget.Scope.TEAM,
    name: str = "growth",
    filter_text: str = "",
) -> budget.Allowance:
    """A cap as it stands in the window that NOW lies in; `limit` in nanos, None for a threshold's balance."""
    return budget.Allowance(
        balance=balance(window, scope=scope, name=name, filter_text=filter_text),
        cap=None if limit is None else policy.Cap(name=f"{limit} a {window}", nanos=Nanos(limit), window=window),
        limit_nanos=None if limit is None else Nanos(limit),
        resets_at=_BOUNDS[window][1],
    )


def cost(nanos: int, **said: Any) -> pricing.Cost:
    spent: dict[str, Any] = {
        "nanos": Nanos(nanos),
        "model": PRO,
        "tier": policy.Tier.STANDARD,
        "images": 1,
        "premium_nanos": Nanos(0),
        "drift_nanos": Nanos(0),
    }
    return pricing.Cost(**(spent | said))


class Full(Exception):
    """What a caller raises to roll back a reserve that was refused."""

    def __init__(self, caps: tuple[budget.Allowance, ...]) -> None:
        super().__init__("no room")
        self.caps = caps


async def reserve(
    kept: database.Database, wanted: ledger.Hold, allowances: Iterable[budget.Allowance]
) -> tuple[budget.Allowance, ...]:
    """Reserve as the submit does: raise on a full cap, so that nothing stays; returns the full caps."""
    touched = tuple(allowances)

    def fn(tx: database.Tx) -> None:
        full = ledger.reserve(tx, wanted, touched)
        if full:
            raise Full(full)

    try:
        await kept.write(fn)
    except Full as refused:
        return refused.caps
    return ()


async def settle(kept: database.Database, held: ledger.Hold, spent: pricing.Cost, *, now: float = NOW + 30) -> None:
    await kept.write(lambda tx: ledger.settle(tx, held, spent, now=now))


async def release(kept: database.Database, held: ledger.Hold, *, now: float = NOW + 30, why: str = "refused") -> None:
    await kept.write(lambda tx: ledger.release(tx, held, now=now, why=why))


async def used(kept: database.Database, which: budget.BalanceId) -> tuple[int, int]:
    """(settled, reserved) nanos of a balance."""
    found = await kept.read(lambda tx: ledger.balance_of(tx, which))
    return found.settled_nanos, found.reserved_nanos


async def rows(kept: database.Database, sql: str, **parameters: object) -> list[tuple[Any, ...]]:
    """Rows as tuples, to compare with what is written out."""
    found = await kept.read(lambda tx: tx.all(sql, **parameters))
    return [tuple(each[name] for name in each.keys()) for each in found]


MONEY_TABLES = ("entries", "balances", "holds", "totals")


async def contents(kept: database.Database, *tables: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of these tables, to compare before and after."""
    return {table: await rows(kept, f"SELECT * FROM {table}") for table in tables}  # noqa: S608 - our own names


async def insert(kept: database.Database, *new: tasks.Task) -> None:
    def fn(tx: database.Tx) -> None:
        for each in new:
            tasks.insert(tx, each)

    await kept.write(fn)


class Explained:
    """A transaction that notes how each query of it is carried out."""

    def __init__(self, tx: database.Tx) -> None:
        self.tx = tx
        self.plans: list[str] = []

    def run(self, sql: str, /, **parameters: object) -> int:
        raise AssertionError("only queries are explained")

    def one(self, sql: str, /, **parameters: object) -> database.Row | None:
        self._note(sql, parameters)
        return self.tx.one(sql, **parameters)

    def all(self, sql: str, /, **parameters: object) -> list[database.Row]:
        self._note(sql, parameters)
        return self.tx.all(sql, **parameters)

    def _note(self, sql: str, parameters: dict[str, object]) -> None:
        self.plans += [row["detail"] for row in self.tx.all(f"EXPLAIN QUERY PLAN {sql}", **parameters)]
