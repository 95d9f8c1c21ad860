"""What a scrape reads, how much work it is, and how many are made at once."""

from __future__ import annotations

import asyncio
import pathlib
import re
from collections.abc import AsyncIterator
from fractions import Fraction

import pytest

from gateway import metrics
from gateway.flow import parts, scrape
from gateway.rules import pricing
from gateway.store.database import Tx
from tests import stage as stages
from tests.store import builders

CAPS = 'spend: [{name: daily, cap: "5", per: day, warn_at: 0.8}]\n'
PLAIN = (False, False)


@pytest.fixture
async def stage(tmp_path: pathlib.Path) -> AsyncIterator[stages.Stage]:
    async with stages.staged(tmp_path, growth=CAPS) as made:
        await made.admitted(seed=7)
        await made.finish()
        await made.admitted()
        yield made


async def test_a_scrape_looks_at_no_row_of_an_ended_task(stage: stages.Stage) -> None:
    """`tasks_open` and `outbox_due` hold open tasks and webhooks only; what is not mirrored has no digest."""

    def read(tx: Tx) -> set[str]:
        explained = builders.Explained(tx)
        scrape.snapshot(explained, stage.parts.in_force.policies, now=stage.clock())
        return {re.sub(r" \(.*", "", plan) for plan in explained.plans}

    assert await stage.parts.database.scan(read) == {
        "SCAN outbox USING INDEX outbox_due",
        "SCAN tasks USING COVERING INDEX tasks_open",
        "SCAN tasks USING INDEX tasks_open",
        "SCAN totals",
        "SCAN usage",
        "SEARCH balances USING INDEX sqlite_autoindex_balances_1",
        "SEARCH task_media USING INDEX task_media_by_digest",
        "SEARCH tasks USING INDEX sqlite_autoindex_tasks_1",
    }


# Turns


class Slow:
    """Makes numbered expositions, each when it is told to."""

    def __init__(self) -> None:
        self.begun: list[scrape.Form] = []
        self.go = asyncio.Semaphore(0)

    async def __call__(self, form: scrape.Form) -> scrape.Exposition:
        self.begun.append(form)
        number = len(self.begun)
        await self.go.acquire()
        return b"%d" % number, "text/plain"


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_hundred_scrapers_at_once_are_two_scrapes() -> None:
    turns, make = scrape.Turns(), Slow()
    first = asyncio.create_task(turns.take(PLAIN, make))
    await _settle()
    others = [asyncio.create_task(turns.take(PLAIN, make)) for _ in range(100)]
    await _settle()
    assert make.begun == [PLAIN]
    make.go.release()
    make.go.release()
    assert await first == (b"1", "text/plain")
    assert {await each for each in others} == {(b"2", "text/plain")}


async def test_forms_are_not_mixed_and_never_made_side_by_side() -> None:
    turns, make = scrape.Turns(), Slow()
    asked = [asyncio.create_task(turns.take(form, make)) for form in (PLAIN, (True, False), (True, True))]
    for made in range(3):
        await _settle()
        assert len(make.begun) == made + 1
        make.go.release()
    assert [(await each)[0] for each in asked] == [b"1", b"2", b"3"]
    assert make.begun == [PLAIN, (True, False), (True, True)]


async def test_a_scraper_that_gives_up_takes_nothing_from_the_others() -> None:
    turns, make = scrape.Turns(), Slow()
    leaving = asyncio.create_task(turns.take(PLAIN, make))
    staying = asyncio.create_task(turns.take(PLAIN, make))
    await _settle()
    leaving.cancel()
    await _settle()
    make.go.release()
    assert await staying == (b"1", "text/plain")
    assert leaving.cancelled()


async def test_a_scrape_that_fails_is_an_error_for_who_asked_and_the_next_is_made() -> None:
    turns = scrape.Turns()

    async def fail(_: scrape.Form) -> scrape.Exposition:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        await turns.take(PLAIN, fail)
    make = Slow()
    make.go.release()
    assert await turns.take(PLAIN, make) == (b"1", "text/plain")


# Money


def _cost(*totals: pricing.Total) -> list[str]:
    """The samples of the cost, as they are written."""
    nothing = metrics.Snapshot(
        spend=totals,
        caps=(),
        open_tasks={},
        in_doubt=0,
        overdue=0,
        at_risk_urls=0,
        blobs=0,
        blob_bytes=0,
        webhooks_pending=0,
    )
    lines = metrics.render(nothing)[0].decode().splitlines()
    return [line.rsplit(" ", 1)[1] for line in lines if line.startswith("wave_gateway_cost_usd_total{")]


def _total(nanos: int) -> pricing.Total:
    return pricing.Total(
        team="growth",
        model="m",
        tier="standard",
        cost_nanos=nanos,
        images=0,
        avoided_cache_nanos=0,
        avoided_coalesced_nanos=0,
        premium_nanos=0,
        drift_nanos=0,
    )


@pytest.mark.parametrize(
    ("nanos", "written"),
    [
        (0, "0.0"),
        (1, "1e-09"),
        (2_000, "2e-06"),
        (13_281_250, "0.01328125"),
        (13_281_250_000_000, "13281.25"),
        (999_999_999_999_999, "999999.999999999"),
        (8_388_607_999_999_999, "8388607.999999999"),
        (9_000_000_000_000_000, "9000000.0"),
    ],
)
def test_an_amount_is_written_as_its_nanos(nanos: int, written: str) -> None:
    assert _cost(_total(nanos)) == [written]


def test_each_nano_below_8_388_608_usd_has_a_sample_of_its_own() -> None:
    """Above, where a double is more than a nano wide, it is right to the nano beside it."""
    firsts = (0, 10**9, 10**12, 123_456_789_012_345, 2**23 * 10**9 - 1000)
    below = [nanos for first in firsts for nanos in range(first, first + 1000)]
    written = _cost(*map(_total, below))
    assert [round(Fraction(float(each)) * 10**9) for each in written] == below
    above = range(9_000_000 * 10**9 - 1000, 9_000_000 * 10**9)
    for nanos, each in zip(above, _cost(*map(_total, above)), strict=True):
        assert abs(round(Fraction(float(each)) * 10**9) - nanos) <= 1


async def test_models_outside_the_catalogue_are_added_up_in_nanos(stage: stages.Stage) -> None:
    """A tenth of a dollar three times is 0.30000000000000004 in floats."""
    policies = stage.parts.in_force.policies

    def read(tx: Tx) -> metrics.Snapshot:
        return scrape.snapshot(tx, policies, now=stage.clock())

    def add(tx: Tx) -> None:
        tx.run("DELETE FROM totals")
        for number in range(3):
            tx.run(
                "INSERT INTO totals VALUES ('growth', :model, 'standard', 100000000, 1, 0, 0, 0, 0)",
                model=f"made-up-{number}",
            )

    await stage.parts.database.write(add)
    [total] = (await stage.parts.database.scan(read)).spend
    assert (total.model, total.cost_nanos, total.images) == ("other", 300_000_000, 3)
    assert _cost(total) == ["0.3"]


def test_the_last_audit_is_nowhere_until_there_was_one() -> None:
    assert parts.Audited().latest is None
