from __future__ import annotations

import asyncio
import dataclasses
import pathlib
import random
import sqlite3
from collections.abc import AsyncIterator, Sequence

import pytest

from gateway.rules import budget, policy, pricing
from gateway.rules.money import Nanos
from gateway.store import ledger, sqlite
from gateway.store.database import Tx
from tests.store import builders
from tests.store.builders import (
    DAY_ENDS,
    FLASH,
    MONEY_TABLES,
    MONTH_ENDS,
    MONTH_STARTS,
    NOW,
    PRO,
    PRO_OFFICIAL,
    allowance,
    balance,
    contents,
    cost,
    hold,
    release,
    reserve,
    rows,
    settle,
    used,
)

DAY, WEEK, MONTH, TOTAL = policy.Window
ORG, TEAM, KEY = budget.Scope

ONLY_PRO = f'["{PRO}"]'
ONLY_OFFICIAL = f'["{PRO_OFFICIAL}"]'

ENTRIES = "SELECT task_id, kind, nanos, at, reserved_at, model, official, tier, images, why FROM entries ORDER BY id"


@pytest.fixture
async def kept(tmp_path: pathlib.Path) -> AsyncIterator[sqlite.SqliteDatabase]:
    opened = builders.open_database(tmp_path)
    yield opened
    opened.close()


async def run(kept: sqlite.SqliteDatabase, sql: str) -> int:
    return await kept.write(lambda tx: tx.run(sql))


async def make(kept: sqlite.SqliteDatabase, wanted: budget.Allowance) -> bool:
    return await kept.write(lambda tx: ledger.make_balance(tx, wanted))


# Reserve


async def test_reserve_takes_the_quote_from_every_cap_it_touches(kept: sqlite.SqliteDatabase) -> None:
    caps = [allowance(1_000), allowance(5_000, MONTH), allowance(9_000, TOTAL, scope=ORG, name="")]
    assert await reserve(kept, hold(nanos=400), caps) == ()
    assert await used(kept, balance(DAY)) == (0, 400)
    assert await used(kept, balance(MONTH)) == (0, 400)
    assert await used(kept, balance(TOTAL, scope=ORG, name="")) == (0, 400)
    assert await rows(kept, ENTRIES) == [("task-1", "reserve", 400, NOW, NOW, PRO, None, "standard", 0, "")]
    assert await rows(kept, "SELECT scope, name, period, starts_at, ends_at FROM balances ORDER BY period") == [
        ("team", "growth", "day", 1_781_481_600, 1_781_568_000),
        ("team", "growth", "month", 1_780_272_000, 1_782_864_000),
        ("org", "", "total", 0, None),
    ]


async def test_a_reserve_without_caps_still_opens_an_entry(kept: sqlite.SqliteDatabase) -> None:
    assert await reserve(kept, hold(nanos=400, official=PRO_OFFICIAL), []) == ()
    assert await rows(kept, ENTRIES) == [("task-1", "reserve", 400, NOW, NOW, PRO, PRO_OFFICIAL, "standard", 0, "")]
    assert await rows(kept, "SELECT * FROM balances") == []


async def test_a_cap_may_be_used_up_to_the_last_nano(kept: sqlite.SqliteDatabase) -> None:
    cap = allowance(1_000)
    assert await reserve(kept, hold("a", 999), [cap]) == ()
    assert await reserve(kept, hold("b", 2), [cap]) == (cap,)
    assert await reserve(kept, hold("c", 1), [cap]) == ()
    assert await used(kept, balance()) == (0, 1_000)


async def test_reserve_refuses_past_the_cap_and_changes_nothing(kept: sqlite.SqliteDatabase) -> None:
    cap = allowance(1_000)
    await reserve(kept, hold("a", 600), [cap])
    before = await contents(kept, *MONEY_TABLES)
    assert await reserve(kept, hold("b", 401), [cap]) == (cap,)
    after = await contents(kept, *MONEY_TABLES)
    assert after == before


async def test_a_refused_reserve_in_a_new_window_leaves_no_row(kept: sqlite.SqliteDatabase) -> None:
    cap = allowance(100)
    assert await reserve(kept, hold(nanos=101), [cap]) == (cap,)
    assert await rows(kept, "SELECT * FROM balances") == []
    assert await rows(kept, "SELECT * FROM entries") == []


@pytest.mark.parametrize(("limit", "nanos"), [(0, 1), (0, 42_500_000), (42_499_999, 42_500_000)])
async def test_a_cap_below_one_image_admits_none(kept: sqlite.SqliteDatabase, limit: int, nanos: int) -> None:
    cap = allowance(limit)
    assert await reserve(kept, hold(nanos=nanos), [cap]) == (cap,)


async def test_a_free_request_fits_into_a_cap_that_is_used_up_but_not_beyond(kept: sqlite.SqliteDatabase) -> None:
    await reserve(kept, hold("a", 100), [allowance(100)])
    assert await reserve(kept, hold("b", 0), [allowance(100)]) == ()
    lowered = allowance(99)
    assert await reserve(kept, hold("c", 0), [lowered]) == (lowered,)


async def test_racing_reserves_stop_exactly_at_the_cap(kept: sqlite.SqliteDatabase) -> None:
    day, month = allowance(703), allowance(10_000, MONTH)  # room for 100 of 7 each, and 3 nanos over
    outcomes = await asyncio.gather(*(reserve(kept, hold(f"t{number}", 7), [day, month]) for number in range(800)))
    assert outcomes.count(()) == 100
    assert outcomes.count((day,)) == 700
    assert await used(kept, balance(DAY)) == (0, 700)
    assert await used(kept, balance(MONTH)) == (0, 700)
    assert len(await rows(kept, "SELECT * FROM entries")) == 100
    assert len(await rows(kept, "SELECT * FROM holds")) == 200


async def test_the_same_task_reserves_once_however_often_it_is_sent(kept: sqlite.SqliteDatabase) -> None:
    async def send(task_id: str) -> str:
        try:
            await reserve(kept, hold(task_id, 10), [allowance(10_000)])
        except sqlite3.IntegrityError:
            return "refused"
        return "reserved"

    outcomes = await asyncio.gather(*(send(f"t{number % 50}") for number in range(100)))
    assert (outcomes.count("reserved"), outcomes.count("refused")) == (50, 50)
    assert await used(kept, balance()) == (0, 500)


async def test_the_day_has_room_the_month_has_not_and_the_day_is_untouched(kept: sqlite.SqliteDatabase) -> None:
    day, month = allowance(1_000), allowance(500, MONTH)
    await reserve(kept, hold("a", 450), [day, month])
    assert await reserve(kept, hold("b", 100), [day, month]) == (month,)
    assert await used(kept, balance(DAY)) == (0, 450)
    assert await used(kept, balance(MONTH)) == (0, 450)
    assert await rows(kept, "SELECT DISTINCT task_id FROM holds") == [("a",)]


async def test_of_two_caps_on_one_balance_the_lowest_counts_and_the_balance_once(kept: sqlite.SqliteDatabase) -> None:
    high, low = allowance(100), allowance(70)
    for caps in ([high, low], [low, high]):
        assert await reserve(kept, hold(f"fits {caps[0].limit_nanos}", 35), caps) == ()
    assert await used(kept, balance()) == (0, 70)
    assert await reserve(kept, hold("one more", 1), [high, low]) == (low,)
    assert await reserve(kept, hold("many more", 31), [high, low]) == (high, low)
    assert len(await rows(kept, "SELECT * FROM holds")) == 2


async def test_a_threshold_is_counted_and_never_refuses(kept: sqlite.SqliteDatabase) -> None:
    assert await reserve(kept, hold(nanos=10**18), [allowance(None, MONTH)]) == ()
    assert await used(kept, balance(MONTH)) == (0, 10**18)


async def test_a_threshold_on_a_caps_balance_does_not_lift_the_cap(kept: sqlite.SqliteDatabase) -> None:
    cap = allowance(100)
    assert await reserve(kept, hold(nanos=101), [allowance(None), cap]) == (cap,)
    assert await reserve(kept, hold(nanos=100), [allowance(None), cap]) == ()
    assert await used(kept, balance()) == (0, 100)


async def test_the_full_caps_are_exactly_those_without_room(kept: sqlite.SqliteDatabase) -> None:
    caps = [
        allowance(350),  # 200 used: fits, also after this very reserve has taken its 100
        allowance(299, WEEK),
        allowance(300, MONTH),
        allowance(250, TOTAL),
        allowance(None, TOTAL),
    ]
    await reserve(kept, hold("a", 200), caps)
    assert await reserve(kept, hold("b", 100), caps) == (caps[1], caps[3])
    assert [await used(kept, each.balance) for each in caps] == [(0, 200)] * 5


# Settle and release


async def test_settle_turns_the_reserve_into_the_cost(kept: sqlite.SqliteDatabase) -> None:
    await reserve(kept, hold(nanos=300), [allowance(1_000), allowance(1_000, MONTH)])
    await settle(kept, hold(nanos=300), cost(120, images=3), now=NOW + 30)
    assert await used(kept, balance(DAY)) == (120, 0)
    assert await used(kept, balance(MONTH)) == (120, 0)
    assert await rows(kept, "SELECT * FROM holds") == []
    assert await rows(kept, ENTRIES) == [
        ("task-1", "reserve", 300, NOW, NOW, PRO, None, "standard", 0, ""),
        ("task-1", "settle", 120, NOW + 30, NOW, PRO, None, "standard", 3, ""),
    ]


async def test_release_gives_everything_back(kept: sqlite.SqliteDatabase) -> None:
    cap = allowance(1_000)
    await reserve(kept, hold("a", 1_000), [cap])
    await release(kept, hold("a", 1_000), now=NOW + 5, why="the upstream refused")
    assert await used(kept, balance()) == (0, 0)
    assert await rows(kept, "SELECT * FROM holds") == []
    assert (await rows(kept, ENTRIES))[1] == (
        ("a", "release", 1_000, NOW + 5, NOW, PRO, None, "standard", 0, "the upstream refused")
    )
    assert await reserve(kept, hold("b", 1_000), [cap]) == ()
    assert await kept.read(ledger.totals) == []


@pytest.mark.parametrize("first", ["settle", "release"])
@pytest.mark.parametrize("second", ["settle", "release"])
async def test_each_hold_ends_exactly_once(kept: sqlite.SqliteDatabase, first: str, second: str) -> None:
    await reserve(kept, hold("a", 100), [allowance(1_000)])
    await reserve(kept, hold("b", 100), [allowance(1_000)])

    async def end(how: str) -> None:
        if how == "settle":
            await settle(kept, hold("a", 100), cost(60))
        else:
            await release(kept, hold("a", 100))

    await end(first)
    before = await contents(kept, *MONEY_TABLES)
    with pytest.raises(sqlite3.IntegrityError, match=r"UNIQUE constraint failed: entries\.task_id"):
        await end(second)
    after = await contents(kept, *MONEY_TABLES)
    assert after == before
    assert await used(kept, balance()) == ((60, 100) if first == "settle" else (0, 100))


async def test_of_racing_ends_one_wins(kept: sqlite.SqliteDatabase) -> None:
    await reserve(kept, hold(nanos=100), [allowance(1_000)])
    outcomes = await asyncio.gather(
        *(settle(kept, hold(nanos=100), cost(60)) for _ in range(10)),
        *(release(kept, hold(nanos=100)) for _ in range(10)),
        return_exceptions=True,
    )
    assert outcomes.count(None) == 1
    assert await used(kept, balance()) == (60, 0)


async def test_a_settle_of_the_next_day_lands_in_the_day_of_its_reserve(kept: sqlite.SqliteDatabase) -> None:
    late = float(DAY_ENDS - 1)
    await reserve(kept, hold(nanos=100, reserved_at=late), [allowance(1_000), allowance(1_000, MONTH)])
    await settle(kept, hold(nanos=100, reserved_at=late), cost(80), now=DAY_ENDS + 3_600)
    assert await rows(
        kept, "SELECT period, starts_at, settled_nanos, reserved_nanos FROM balances ORDER BY period"
    ) == [
        ("day", 1_781_481_600, 80, 0),
        ("month", 1_780_272_000, 80, 0),
    ]
    assert await rows(kept, "SELECT at, reserved_at FROM entries WHERE kind = 'settle'") == [
        (DAY_ENDS + 3_600.0, DAY_ENDS - 1.0)
    ]


@pytest.mark.parametrize(
    ("billed", "on_asked", "on_official"),
    [(PRO, (100, 0), (0, 0)), (PRO_OFFICIAL, (0, 0), (100, 0)), (FLASH, (0, 0), (0, 0))],
)
async def test_a_filtered_balance_keeps_the_cost_only_of_a_billed_model_that_it_counts(
    kept: sqlite.SqliteDatabase, billed: str, on_asked: tuple[int, int], on_official: tuple[int, int]
) -> None:
    caps = [allowance(1_000, filter_text=text) for text in ("", ONLY_PRO, ONLY_OFFICIAL)]
    held = hold(nanos=300, official=PRO_OFFICIAL)
    await reserve(kept, held, caps)
    assert [await used(kept, each.balance) for each in caps] == [(0, 300)] * 3
    await settle(kept, held, cost(100, model=billed))
    assert [await used(kept, each.balance) for each in caps] == [(100, 0), on_asked, on_official]


async def test_a_bill_above_the_quote_is_noted_as_overage_and_counted_in_full(kept: sqlite.SqliteDatabase) -> None:
    cap = allowance(100)
    await reserve(kept, hold("a", 100), [cap])
    await settle(kept, hold("a", 100), cost(130), now=NOW + 30)
    assert await used(kept, balance()) == (130, 0)
    assert (await rows(kept, ENTRIES))[1:] == [
        ("a", "settle", 130, NOW + 30, NOW, PRO, None, "standard", 1, ""),
        ("a", "overage", 30, NOW + 30, NOW, PRO, None, "standard", 0, "bill above the quote"),
    ]
    assert await reserve(kept, hold("b", 1), [cap]) == (cap,)


async def test_a_bill_of_the_quote_is_no_overage(kept: sqlite.SqliteDatabase) -> None:
    await reserve(kept, hold(nanos=100), [allowance(100)])
    await settle(kept, hold(nanos=100), cost(100))
    assert await rows(kept, "SELECT kind FROM entries ORDER BY id") == [("reserve",), ("settle",)]


# What the database itself refuses


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE entries SET nanos = 0",
        "UPDATE entries SET kind = 'release' WHERE kind = 'reserve'",
        "DELETE FROM entries",
    ],
)
async def test_entries_are_append_only(kept: sqlite.SqliteDatabase, sql: str) -> None:
    await reserve(kept, hold(nanos=100), [])
    with pytest.raises(sqlite3.IntegrityError, match="entries are append-only"):
        await run(kept, sql)
    assert await rows(kept, "SELECT kind, nanos FROM entries") == [("reserve", 100)]


async def test_an_entry_below_zero_is_refused(kept: sqlite.SqliteDatabase) -> None:
    await reserve(kept, hold(nanos=100), [])
    with pytest.raises(sqlite3.IntegrityError, match="CHECK constraint failed: nanos >= 0"):
        await settle(kept, hold(nanos=100), cost(-1))


@pytest.mark.parametrize(
    ("column", "sql"),
    [
        ("reserved_nanos", "UPDATE balances SET reserved_nanos = reserved_nanos - 101"),
        ("settled_nanos", "UPDATE balances SET settled_nanos = settled_nanos - 1"),
    ],
)
async def test_a_balance_below_zero_is_refused(kept: sqlite.SqliteDatabase, column: str, sql: str) -> None:
    await reserve(kept, hold(nanos=100), [allowance(1_000)])
    with pytest.raises(sqlite3.IntegrityError, match=f"CHECK constraint failed: {column} >= 0"):
        await run(kept, sql)
    assert await used(kept, balance()) == (0, 100)


async def test_a_release_of_more_than_is_reserved_fails_and_is_not_clamped(kept: sqlite.SqliteDatabase) -> None:
    await reserve(kept, hold(nanos=100), [allowance(1_000)])
    await run(kept, "UPDATE balances SET reserved_nanos = 99")  # a lost nano, however it was lost
    with pytest.raises(sqlite3.IntegrityError, match="CHECK constraint failed"):
        await release(kept, hold(nanos=100))
    assert await used(kept, balance()) == (0, 99)
    assert await kept.read(ledger.open_reserves) == {"task-1"}


# Balances from entries


async def history(kept: sqlite.SqliteDatabase) -> None:
    """Open, billed elsewhere, released, another key, another team, and yesterday's; no cap is there yet."""
    await reserve(kept, hold("open", 100, official=PRO_OFFICIAL), [])
    await reserve(kept, hold("official", 90, official=PRO_OFFICIAL), [])
    await settle(kept, hold("official", 90), cost(70, model=PRO_OFFICIAL, tier=policy.Tier.OFFICIAL))
    await reserve(kept, hold("released", 50), [])
    await release(kept, hold("released", 50))
    await reserve(kept, hold("web", 8, key="web", model=FLASH), [])
    await settle(kept, hold("web", 8, key="web", model=FLASH), cost(5, model=FLASH))
    await reserve(kept, hold("theirs", 30, team="other"), [])
    yesterday = float(NOW - 86_400)
    await reserve(kept, hold("yesterday", 40, reserved_at=yesterday), [])
    await settle(kept, hold("yesterday", 40, reserved_at=yesterday), cost(20), now=NOW)
    last_month = float(MONTH_STARTS - 1)
    await reserve(kept, hold("last month", 4, reserved_at=last_month), [])
    next_month = float(MONTH_ENDS)
    await reserve(kept, hold("next month", 2, reserved_at=next_month), [])


BUILT: Sequence[tuple[budget.Allowance, tuple[int, int]]] = [
    (allowance(1, DAY), (75, 100)),
    (allowance(1, MONTH), (95, 100)),
    (allowance(1, TOTAL), (95, 106)),
    (allowance(None, DAY), (75, 100)),
    (allowance(1, MONTH, filter_text=ONLY_PRO), (20, 100)),
    (allowance(1, MONTH, filter_text=ONLY_OFFICIAL), (70, 100)),
    (allowance(1, MONTH, filter_text=f'["{FLASH}"]'), (5, 0)),
    (allowance(1, MONTH, scope=KEY, name="growth/ci"), (90, 100)),
    (allowance(1, MONTH, scope=KEY, name="growth/web"), (5, 0)),
    (allowance(1, MONTH, scope=KEY, name="other/web"), (0, 0)),
    (allowance(1, MONTH, name="other"), (0, 30)),
    (allowance(1, MONTH, name="nobody"), (0, 0)),
    (allowance(1, DAY, scope=ORG, name=""), (75, 130)),
    (allowance(1, TOTAL, scope=ORG, name=""), (95, 136)),
]


@pytest.mark.parametrize(("wanted", "expected"), BUILT)
async def test_a_new_balance_is_built_from_the_entries_and_open_holds_of_its_window(
    kept: sqlite.SqliteDatabase, wanted: budget.Allowance, expected: tuple[int, int]
) -> None:
    await history(kept)
    assert await make(kept, wanted) is True
    assert await used(kept, wanted.balance) == expected


async def test_an_open_task_settles_in_a_balance_that_appeared_meanwhile(kept: sqlite.SqliteDatabase) -> None:
    held = hold(nanos=100, official=PRO_OFFICIAL)
    await reserve(kept, held, [allowance(1_000, TOTAL)])
    new = [allowance(50), allowance(1_000, filter_text=ONLY_PRO), allowance(1_000, filter_text=ONLY_OFFICIAL)]
    assert [await make(kept, each) for each in new] == [True, True, True]
    assert [await used(kept, each.balance) for each in new] == [(0, 100)] * 3
    assert await reserve(kept, hold("more", 1), new[:1]) == (new[0],)  # a cap below what is used admits nothing
    await settle(kept, held, cost(60))
    assert [await used(kept, each.balance) for each in new] == [(60, 0), (60, 0), (0, 0)]
    assert await used(kept, balance(TOTAL)) == (60, 0)
    assert await rows(kept, "SELECT * FROM holds") == []


async def test_making_a_balance_again_changes_nothing(kept: sqlite.SqliteDatabase) -> None:
    await history(kept)
    assert await make(kept, allowance(1_000)) is True
    await reserve(kept, hold("later", 7), [allowance(1_000)])
    before = await contents(kept, "balances", "holds")
    assert await make(kept, allowance(1_000)) is False
    assert await make(kept, allowance(2_000)) is False  # another cap, the same balance
    assert await contents(kept, "balances", "holds") == before
    assert await used(kept, balance()) == (75, 107)


async def test_balances_that_nobody_looks_at_are_dropped_with_their_holds_and_the_entries_stay(
    kept: sqlite.SqliteDatabase,
) -> None:
    yesterday = budget.Allowance(
        balance=dataclasses.replace(balance(DAY), start=builders.DAY_STARTS - 86_400),
        cap=None,
        limit_nanos=None,
        resets_at=builders.DAY_STARTS,
    )
    caps = [allowance(1_000), allowance(1_000, filter_text=ONLY_PRO), allowance(1_000, TOTAL), yesterday]
    await reserve(kept, hold(nanos=100), caps)
    entries = await contents(kept, "entries")
    wanted = {balance(DAY)}
    await kept.write(lambda tx: ledger.drop_balances(tx, keep=wanted, now=NOW))
    present = await kept.read(ledger.balances)
    assert [each for each, _, _ in present] == [yesterday.balance, balance(DAY)]  # what is over is history
    assert await rows(kept, "SELECT model_filter, starts_at FROM holds ORDER BY starts_at") == [
        ("", 1_781_395_200),
        ("", 1_781_481_600),
    ]
    assert await contents(kept, "entries") == entries
    await settle(kept, hold(nanos=100), cost(60))
    assert await used(kept, balance(DAY)) == (60, 0)
    assert await used(kept, balance(TOTAL)) == (0, 0)


async def test_a_dropped_balance_that_comes_back_counts_what_happened_meanwhile(kept: sqlite.SqliteDatabase) -> None:
    await reserve(kept, hold("before", 100), [allowance(1_000)])
    await reserve(kept, hold("open", 30), [allowance(1_000)])
    await kept.write(lambda tx: ledger.drop_balances(tx, keep=(), now=NOW))
    await settle(kept, hold("before", 100), cost(60))
    await reserve(kept, hold("meanwhile", 7), [])
    assert await make(kept, allowance(1_000)) is True
    assert await used(kept, balance()) == (60, 37)
    await release(kept, hold("open", 30))
    await settle(kept, hold("meanwhile", 7), cost(5))
    assert await used(kept, balance()) == (65, 0)


async def test_recompute_agrees_with_every_balance_after_a_long_random_day(kept: sqlite.SqliteDatabase) -> None:
    luck = random.Random(20260615)
    teams = ("growth", "other")
    limits = {DAY: 3_000, MONTH: 9_000}

    def caps_of(held: ledger.Hold) -> list[budget.Allowance]:
        models = [each for each in (held.model, held.official) if each is not None]
        wanted = [
            allowance(limits[DAY], name=held.team),
            allowance(limits[MONTH], MONTH, name=held.team, filter_text=ONLY_PRO),
            allowance(limits[MONTH], MONTH, name=held.team, filter_text=ONLY_OFFICIAL),
            allowance(limits[DAY], scope=KEY, name=f"{held.team}/{held.key}"),
            allowance(5_000, TOTAL, scope=ORG, name=""),
        ]
        return [each for each in wanted if budget.counts(each.balance.filter, models)]

    open_holds: list[ledger.Hold] = []
    refused = 0
    for number in range(400):
        if luck.random() < 0.6 or not open_holds:
            held = hold(
                f"t{number}",
                luck.randrange(0, 400),
                team=luck.choice(teams),
                key=luck.choice(("ci", "web")),
                model=luck.choice((PRO, FLASH)),
                official=luck.choice((None, PRO_OFFICIAL)),
            )
            if await reserve(kept, held, caps_of(held)):
                refused += 1
            else:
                open_holds.append(held)
        else:
            held = open_holds.pop(luck.randrange(len(open_holds)))
            if luck.random() < 0.5:
                await release(kept, held)
            else:
                billed = luck.choice([held.model, held.official or held.model])
                await settle(kept, held, cost(luck.randrange(held.quote_nanos + 1), model=billed))

    def check(tx: Tx) -> int:
        found = ledger.balances(tx)
        for each, ends_at, kept_there in found:
            settled, open_entries = ledger.recompute(tx, each, ends_at)
            assert (kept_there.settled_nanos, kept_there.reserved_nanos) == (
                settled,
                sum(row["nanos"] for row in open_entries),
            ), each
            assert kept_there.used_nanos() <= (5_000 if each.scope is ORG else limits[each.window])
        assert ledger.open_reserves(tx) == {held.task_id for held in open_holds}
        return len(found)

    assert refused > 20
    assert await kept.scan(check) == 2 * (1 + 1 + 1 + 2) + 1


async def test_balances_are_listed_with_the_end_of_their_window(kept: sqlite.SqliteDatabase) -> None:
    await reserve(kept, hold(nanos=10), [allowance(None, TOTAL), allowance(50)])
    assert await kept.scan(ledger.balances) == [
        (balance(DAY), DAY_ENDS, budget.Balance(settled_nanos=0, reserved_nanos=10)),
        (balance(TOTAL), None, budget.Balance(settled_nanos=0, reserved_nanos=10)),
    ]


async def test_a_balance_without_a_row_holds_nothing(kept: sqlite.SqliteDatabase) -> None:
    assert await used(kept, balance()) == (0, 0)
    assert await kept.read(lambda tx: ledger.held_by(tx, "task-1", balance())) == 0


async def test_what_one_task_holds_in_a_balance(kept: sqlite.SqliteDatabase) -> None:
    await reserve(kept, hold("a", 10), [allowance(50)])
    await reserve(kept, hold("b", 20), [allowance(50)])
    assert await kept.read(lambda tx: ledger.held_by(tx, "a", balance())) == 10
    assert await kept.read(lambda tx: ledger.held_by(tx, "a", balance(MONTH))) == 0


# Totals and reports


def total(**said: int | str) -> pricing.Total:
    nothing: dict[str, int | str] = {"team": "growth", "model": PRO, "tier": "standard", "cost_nanos": 0, "images": 0}
    nothing |= {"avoided_cache_nanos": 0, "avoided_coalesced_nanos": 0, "premium_nanos": 0, "drift_nanos": 0}
    return pricing.Total(**(nothing | said))  # type: ignore[arg-type]


async def test_totals_add_up_cost_and_images_by_team_model_and_tier(kept: sqlite.SqliteDatabase) -> None:
    for held, spent in (
        (hold("a", 100), cost(60, images=2)),
        (hold("b", 100), cost(40, images=1)),
        (hold("c", 100, model=FLASH), cost(30, images=1, model=FLASH)),
        (hold("d", 100, team="other"), cost(0, images=0)),
    ):
        await reserve(kept, held, [])
        await settle(kept, held, spent)
    assert sorted(await kept.read(ledger.totals), key=lambda each: (each.team, each.model)) == [
        total(cost_nanos=100, images=3),
        total(model=FLASH, cost_nanos=30, images=1),
        total(team="other"),
    ]


async def test_the_premium_is_counted_on_the_model_sent_and_cost_and_drift_on_the_model_billed(
    kept: sqlite.SqliteDatabase,
) -> None:
    held = hold(nanos=120, official=PRO_OFFICIAL)
    await reserve(kept, held, [])
    billed = cost(
        114,
        model=PRO_OFFICIAL,
        tier=policy.Tier.OFFICIAL,
        premium_nanos=Nanos(71),
        drift_nanos=Nanos(5),
    )
    await settle(kept, held, billed)
    assert sorted(await kept.read(ledger.totals), key=lambda each: each.model) == [
        total(premium_nanos=71),
        total(model=PRO_OFFICIAL, tier="official", cost_nanos=114, images=1, drift_nanos=5),
    ]
    assert await rows(kept, "SELECT kind, model, tier FROM entries ORDER BY id") == [
        ("reserve", PRO, "standard"),
        ("settle", PRO_OFFICIAL, "official"),
    ]


async def test_what_was_avoided_is_counted_without_an_entry(kept: sqlite.SqliteDatabase) -> None:
    def avoid(tx: Tx) -> None:
        ledger.avoid(tx, team="growth", model=PRO, tier="standard", cache_nanos=42)
        ledger.avoid(tx, team="growth", model=PRO, tier="standard", cache_nanos=42)
        ledger.avoid(tx, team="growth", model=PRO, tier="standard", coalesced_nanos=7)

    await kept.write(avoid)
    assert await kept.read(ledger.totals) == [total(avoided_cache_nanos=84, avoided_coalesced_nanos=7)]
    assert await rows(kept, "SELECT * FROM entries") == []


async def test_open_reserves_are_those_without_an_end(kept: sqlite.SqliteDatabase) -> None:
    await history(kept)
    assert await kept.scan(ledger.open_reserves) == {"open", "theirs", "last month", "next month"}
