from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.rules import policy
from gateway.rules.task import State
from gateway.store import ledger, spend, sqlite, tasks
from tests.store import builders
from tests.store.builders import NOW, PRO, PRO_OFFICIAL, cost, hold, insert, reserve, settle, task_row

NOON = 1_781_524_800  # NOW, which is a multiple of a quarter of an hour


@pytest.fixture
async def kept(tmp_path: pathlib.Path) -> AsyncIterator[sqlite.SqliteDatabase]:
    opened = builders.open_database(tmp_path)
    yield opened
    opened.close()


async def results(
    kept: sqlite.SqliteDatabase, *columns: str, since: float = 0, until: float = 2**40
) -> list[tuple[Any, ...]]:
    """Rows without the constant that comes first."""
    found = await kept.scan(lambda tx: spend.results(tx, columns, since=since, until=until))
    return sorted(tuple(row[name] for name in row.keys() if name != "1") for row in found)


async def pay(kept: sqlite.SqliteDatabase, task_id: str, nanos: int, *, at: float = NOW, why: str = "", **said: Any):
    """A task, its reserve and its settle."""
    official = {"official": PRO_OFFICIAL, "official_unit_nanos": 113_900_000}
    await insert(kept, task_row(task_id, **official | said))
    held = hold(task_id, nanos)
    await reserve(kept, held, [])
    is_fallback = nanos > 42_500_000
    billed = cost(
        nanos,
        model=PRO_OFFICIAL if is_fallback else PRO,
        tier=policy.Tier.OFFICIAL if is_fallback else policy.Tier.STANDARD,
        images=0 if why else 1,
    )
    await kept.write(lambda tx: ledger.settle(tx, held, billed, now=at, why=why))


def free(task_id: str, leader_id: str, **said: Any) -> tasks.Task:
    row: dict[str, Any] = {"x_cache": "HIT", "state": State.COMPLETED, "ended_at": float(NOW), "cost_nanos": 0}
    return task_row(task_id, leader_id=leader_id, **row | said)


async def test_settles_are_found_by_their_own_time_from_the_first_instant_and_before_the_last(kept):
    for task_id, at in (("a", 1000.0), ("b", 2000.0), ("c", 3000.0)):
        await reserve(kept, hold(task_id, 5), [])
        await settle(kept, hold(task_id, 5), cost(3), now=at)
    # columns, then tasks, images, cost, premium, avoided
    assert await results(kept, "team", "key", "model", "tier", "action", "tags", "at", since=1000.0, until=3000.0) == [
        ("growth", "ci", PRO, "standard", "", "{}", 900, 1, 1, 3, 0, 0),
        ("growth", "ci", PRO, "standard", "", "{}", 1800, 1, 1, 3, 0, 0),
    ]


async def test_settles_of_a_quarter_of_an_hour_are_one_row_with_their_sums(kept):
    for task_id, at in (("a", 900.0), ("b", 1799.0), ("c", 1800.0)):
        await reserve(kept, hold(task_id, 5), [])
        await settle(kept, hold(task_id, 5), cost(3), now=at)
    assert await results(kept, "at") == [(900, 2, 2, 6, 0, 0), (1800, 1, 1, 3, 0, 0)]
    assert await results(kept) == [(3, 3, 9, 0, 0)]


async def test_an_empty_ledger_has_no_row_whatever_is_asked_for(kept):
    assert await results(kept) == []
    assert await results(kept, "team", "reason") == []


async def test_a_settle_says_what_its_tasks_row_says(kept):
    await pay(kept, "plain", 42_500_000, action="edit", tags='{"a":"b"}', upstream_key_ref="env:OTHER")
    columns = ("action", "tags", "account", "requested", "model", "unit_nanos", "is_delivered", "reason")
    assert await results(kept, *columns) == [
        ("edit", '{"a":"b"}', "env:OTHER", PRO, PRO, 42_500_000, 1, "", 1, 1, 42_500_000, 0, 0)
    ]


async def test_a_settle_whose_task_is_not_kept_has_no_price_and_no_premium(kept):
    await reserve(kept, hold("gone", 5), [])
    await settle(kept, hold("gone", 5), cost(3, model=PRO_OFFICIAL))
    assert await results(kept, "requested", "account", "unit_nanos") == [(PRO_OFFICIAL, "", None, 1, 1, 3, 0, 0)]


async def test_a_fallback_has_the_official_price_and_what_it_cost_above_the_standard_one(kept):
    await pay(kept, "official", 113_900_000)
    assert await results(kept, "model", "requested", "unit_nanos") == [
        (PRO_OFFICIAL, PRO, 113_900_000, 1, 1, 113_900_000, 71_400_000, 0)
    ]


async def test_a_charge_that_an_operator_named_has_its_premium_above_all_images_asked_for(kept):
    await pay(kept, "resolved", 227_800_000, n=2, why="invoice, line 17")
    # 227,800,000 - 2 x 42,500,000
    assert await results(kept, "is_delivered") == [(0, 1, 0, 227_800_000, 142_800_000, 0)]


async def test_what_came_free_avoided_what_its_leader_cost(kept):
    await pay(kept, "paid", 42_500_000, state=State.COMPLETED, cost_nanos=42_500_000)
    await insert(
        kept,
        task_row("unpriced", state=State.COMPLETED, ended_at=NOW + 5.0),
        free("hit", "paid", action="edit"),
        free("follower", "paid", team="other", key_name="web", x_cache="COALESCED", ended_at=NOW + 5.0),
        free("of the unpriced", "unpriced", ended_at=NOW + 6.0),
        free("too late", "paid", ended_at=NOW + 10.0),
        free("too early", "paid", ended_at=NOW - 0.001),
        free("not completed", "paid", state=State.FAILED, ended_at=NOW + 5.0),
        free("of nobody", "gone", ended_at=NOW + 5.0),
    )
    columns = ("team", "key", "reason", "action", "at", "unit_nanos", "account", "is_delivered")
    key = "env:WAVE_KEY_GROWTH"
    assert await results(kept, *columns, since=NOW, until=NOW + 10.0) == [
        ("growth", "ci", "", "generate", NOON, 42_500_000, key, 1, 1, 1, 42_500_000, 0, 0),
        ("growth", "ci", "cache", "edit", NOON, 42_500_000, key, 1, 1, 1, 0, 0, 42_500_000),
        ("growth", "ci", "cache", "generate", NOON, 42_500_000, key, 0, 1, 0, 0, 0, 0),
        ("other", "web", "coalesced", "generate", NOON, 42_500_000, key, 1, 1, 1, 0, 0, 42_500_000),
    ]
