from __future__ import annotations

import asyncio
import dataclasses
import datetime
import pathlib
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from gateway.flow import changes, report, resolve, submit
from gateway.rules import budget, focus, policy, pricing
from gateway.rules.money import Nanos
from gateway.store import ledger, sqlite, tasks
from tests import focus_table
from tests import stage as stages
from tests.store import builders

AUCKLAND = 'timezone: Pacific/Auckland\nspend: [{name: all, cap: "50", per: total}]\n'
"""13 hours ahead: NOON, Sunday 22 November 2026, is Monday the 23rd there, 01:00."""
GROWTH = """
labels: {cost_center: "4711", product: blog}
spend: [{name: daily, cap: "5", per: day}, {name: ci-day, cap: "0.1", per: day, key: ci}]
"""
RESEARCH = 'labels: {cost_center: "0815"}\n'
LOST = [{"on": "submit", "times": None, "do": {"status": 503}}]
LONG = {"since": 0, "until": 2**34}


@dataclasses.dataclass(frozen=True)
class Books:
    """A ledger on disk with the policies it was made under."""

    file: pathlib.Path
    policies: policy.PolicySet
    now: float
    totals: list[pricing.Total]

    def report(self, *by: str, **span: float) -> report.Report:
        asked: dict[str, Any] = LONG | span
        return sqlite.scan_file(self.file, lambda tx: report.report(tx, self.policies, by=by, now=self.now, **asked))

    def costs(self, *by: str, **span: float) -> dict[str, int]:
        """Cost by group."""
        return {" ".join(line.group): line.cost_nanos for line in self.report(*by, **span).lines}

    def focus(self, **span: float) -> list[dict[str, str]]:
        """The file's rows, after the specification was held against them."""
        asked: dict[str, Any] = LONG | span
        charges = sqlite.scan_file(self.file, lambda tx: report.charges(tx, self.policies, **asked))
        timezone = budget.timezone_of(self.policies.organisation.timezone)
        teams = self.policies.teams
        rows = [focus.row(each, labels=teams[each.team].labels, timezone=timezone) for each in charges]
        text = focus_table.written(focus.COLUMNS, rows)
        assert focus_table.problems(text) == []
        return focus_table.read(text)


async def books_of(stage: stages.Stage, directory: pathlib.Path) -> Books:
    policies, totals = stage.parts.in_force.policies, await stage.parts.database.read(ledger.totals)
    return Books(directory / "data" / "wave.db", policies, stage.clock(), totals)


async def tagged(stage: stages.Stage, tags: Mapping[str, str], **fields: Any) -> tasks.Task:
    body = {"model": stages.FLASH, "prompt": "a fox"} | fields
    options = submit.Options(request_id="req-1", tags=tags)
    result = await submit.submit(stage.parts, stages.CALLER, msgspec.json.encode(body), options)
    assert isinstance(result, submit.Submitted), result
    return result.row


async def spend_a_day_and_more(directory: pathlib.Path) -> Books:
    """Paid, official at a premium, a hit, a follower and an operator's charge; one more, a day later."""
    async with stages.staged(directory, org=AUCKLAND, growth=GROWTH, research=RESEARCH) as stage:
        await tagged(stage, {"project": "blog", "stage": "draft"}, seed=7, n=2)
        await tagged(stage, {"project": "blog"}, seed=7, n=2)
        await stage.finish()
        await tagged(stage, {}, seed=7, n=2)
        stage.vendor.set_script([{"on": "submit", "times": 1, "do": {"fallback": True}}])
        await stage.admitted(stages.OTHER, model=stages.PRO, official_fallback=True)
        await stage.finish()
        stage.vendor.set_script(LOST)
        lost = await tagged(stage, {}, official_fallback=True, n=2)
        decision = resolve.Decision(task_id=lost.id, charged_nanos=Nanos(66_300_000), why="the invoice")
        assert isinstance(await resolve.resolve(stage.parts.database, decision, now=stage.clock()), changes.Change)
        stage.vendor.set_script([])
        stage.clock.advance(86_400)
        await tagged(stage, {"project": "=1+1"}, action="edit", image_urls=["https://example.com/1.png"])
        await stage.finish()
        return await books_of(stage, directory)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Books:
    """Made once: these tests only read it."""
    return asyncio.run(spend_a_day_and_more(tmp_path_factory.mktemp("busy")))


# 2 x 0.01328 + 0.0663 charged + 0.01328 for growth; 0.1139 official for research
TOTAL = 220_040_000


def test_lines_by_team_hold_cost_counts_savings_and_premium(busy):
    found = busy.report("team")
    assert [(line.group, line.tasks, line.images, line.cost_nanos, line.free) for line in found.lines] == [
        (("growth",), 3, 3, 106_140_000, 2),
        (("research",), 1, 1, 113_900_000, 0),
    ]
    assert [(line.avoided_cache_nanos, line.avoided_coalesced_nanos) for line in found.lines] == [
        (26_560_000, 26_560_000),
        (0, 0),
    ]
    assert found.lines[0].avoided_nanos() == 53_120_000
    assert [line.premium_nanos for line in found.lines] == [39_737_500, 71_400_000]
    assert (found.total.cost_nanos, found.total.tasks, found.total.free) == (TOTAL, 4, 2)


def test_savings_and_premium_are_those_of_the_metrics(busy):
    total = busy.report().total
    assert sum(each.cost_nanos for each in busy.totals) == total.cost_nanos
    assert sum(each.avoided_cache_nanos for each in busy.totals) == total.avoided_cache_nanos
    assert sum(each.avoided_coalesced_nanos for each in busy.totals) == total.avoided_coalesced_nanos
    assert sum(each.premium_nanos for each in busy.totals) == total.premium_nanos == 111_137_500


def test_a_premium_stands_in_the_line_of_the_model_that_was_billed(busy):
    found = busy.report("model", "tier")
    assert [(line.group, line.premium_nanos) for line in found.lines] == [
        ((stages.FLASH, "standard"), 0),
        ((f"{stages.FLASH}-official", "official"), 39_737_500),
        ((f"{stages.PRO}-official", "official"), 71_400_000),
    ]


def test_days_weeks_and_months_are_those_of_the_organisations_timezone(busy):
    assert busy.costs("day") == {"2026-11-23": 206_760_000, "2026-11-24": 13_280_000}
    assert busy.costs("week") == {"2026-W48": TOTAL}
    assert busy.costs("month", "team") == {"2026-11 growth": 106_140_000, "2026-11 research": 113_900_000}


def test_a_task_is_in_the_line_of_each_tag_and_label_and_once_in_the_total(busy):
    by_tag = busy.report("tag")
    assert {line.group[0]: (line.cost_nanos, line.free) for line in by_tag.lines} == {
        "": (66_300_000 + 113_900_000, 1),
        "project=blog": (26_560_000, 1),
        "stage=draft": (26_560_000, 0),
        "project==1+1": (13_280_000, 0),
    }
    assert by_tag.total.cost_nanos == TOTAL
    assert busy.costs("label") == {
        "cost_center=0815": 113_900_000,
        "cost_center=4711": 106_140_000,
        "product=blog": 106_140_000,
    }
    assert busy.report("label", "tag").total.cost_nanos == TOTAL


def test_the_action_is_the_tasks(busy):
    assert busy.costs("action", "key") == {"edit ci": 13_280_000, "generate ci": 206_760_000}


def test_only_what_was_settled_in_the_time_asked_for_counts(busy):
    midnight = stages.NOON + 11 * 3600  # in Auckland
    assert busy.costs("day", since=midnight) == {"2026-11-24": 13_280_000}
    assert busy.costs("day", until=midnight) == {"2026-11-23": 206_760_000}
    nothing = busy.report("team", until=stages.NOON)
    assert (nothing.lines, nothing.total.cost_nanos, nothing.total.free) == ((), 0, 0)


def test_a_line_is_held_against_the_cap_of_its_scope_and_time(busy):
    def ceilings(*by: str, **span: float) -> dict[str, tuple[str, str, int]]:
        found = busy.report(*by, **span)
        held = {" ".join(line.group): line.ceiling for line in (*found.lines, found.total)}
        return {group: (each.scope.value, each.cap, each.limit_nanos) for group, each in held.items() if each}

    all_of_it = ("org", "all", 50_000_000_000)
    assert ceilings("team", "day") == {
        "growth 2026-11-23": ("team", "daily", 5_000_000_000),
        "growth 2026-11-24": ("team", "daily", 5_000_000_000),
        "research 2026-11-23": all_of_it,
        "": all_of_it,
    }
    assert ceilings("team") == {"growth": all_of_it, "research": all_of_it, "": all_of_it}
    assert ceilings("team", since=stages.NOON, until=stages.NOON + 3600)["growth"][1] == "daily"
    assert ceilings("day", "team", "key")["2026-11-23 growth ci"] == ("key", "ci-day", 100_000_000)
    # A key's name alone may be that of several teams.
    assert ceilings("day", "key")["2026-11-23 ci"] == all_of_it
    assert set(ceilings("day", "week", "month", "team", "model").values()) == {
        ("team", "daily", 5_000_000_000),
        all_of_it,
    }


async def test_a_report_of_an_empty_ledger_has_no_line_and_a_total_of_nothing(tmp_path):
    async with stages.staged(tmp_path) as stage:
        books = await books_of(stage, tmp_path)
        assert books.report("team") == report.Report(lines=(), total=report.Line(group=()))
        assert books.focus() == []


def test_a_team_whose_file_is_gone_has_no_label(busy):
    found = dataclasses.replace(busy, policies=policy.PolicySet()).report("label")
    assert [(line.group, line.cost_nanos, line.ceiling) for line in found.lines] == [(("",), TOTAL, None)]


async def test_sums_are_exact_where_floats_are_not(tmp_path):
    kept = builders.open_database(tmp_path)
    for task_id, nanos in (("a", 13_281_250 * 10**6), ("b", 1), ("c", 10**18)):
        await builders.reserve(kept, builders.hold(task_id, nanos), [])
        await builders.settle(kept, builders.hold(task_id, nanos), builders.cost(nanos))
    asked: Any = LONG
    found = await kept.scan(lambda tx: report.report(tx, policy.PolicySet(), by=("team",), now=0, **asked))
    charges = await kept.scan(lambda tx: report.charges(tx, policy.PolicySet(), **asked))
    kept.close()
    assert found.total.cost_nanos == found.lines[0].cost_nanos == 1_000_013_281_250_000_001
    rows = [
        dict(zip(focus.COLUMNS, focus.row(each, labels={}, timezone=datetime.UTC), strict=True)) for each in charges
    ]
    assert [row["BilledCost"] for row in rows] == ["1000013281.250000001"]


# FOCUS


def test_a_focus_file_adds_up_to_the_report_to_the_nano(busy):
    midnight = stages.NOON + 11 * 3600
    spans: list[dict[str, float]] = [{}, {"since": midnight}, {"until": midnight}, {"until": stages.NOON}]
    for span in spans:
        total = busy.report(**span).total
        rows = busy.focus(**span)
        for column, nanos in (
            ("BilledCost", total.cost_nanos),
            ("EffectiveCost", total.cost_nanos),
            ("x_FallbackPremium", total.premium_nanos),
            ("x_AvoidedCost", total.avoided_nanos()),
        ):
            assert sum(Decimal(row[column]) for row in rows) == Decimal(nanos) / 10**9, (span, column)
        assert sum(int(row["x_TaskCount"]) for row in rows) == total.tasks + total.free
        assert sum(int(row["PricingQuantity"] or 0) for row in rows) == total.images


def test_a_focus_row_is_a_day_of_what_is_alike(busy):
    rows = busy.focus()
    asked = (
        "ChargePeriodStart",
        "SubAccountId",
        "SkuId",
        "ChargeCategory",
        "PricingQuantity",
        "BilledCost",
        "ListCost",
    )
    assert [tuple(row[name] for name in asked) for row in rows] == [
        # The operator's charge brought no image.
        ("2026-11-22T11:00:00Z", "growth", f"{stages.FLASH}-official", "Adjustment", "", "0.0663", "0.0663"),
        ("2026-11-22T11:00:00Z", "growth", stages.FLASH, "Usage", "2", "0.02656", "0.0265625"),
        ("2026-11-22T11:00:00Z", "growth", stages.FLASH, "Usage", "0", "0", "0"),
        ("2026-11-22T11:00:00Z", "growth", stages.FLASH, "Usage", "0", "0", "0"),
        ("2026-11-22T11:00:00Z", "research", f"{stages.PRO}-official", "Usage", "1", "0.1139", "0.1139"),
        ("2026-11-23T11:00:00Z", "growth", stages.FLASH, "Usage", "1", "0.01328", "0.01328125"),
    ]
    assert {(row["BillingPeriodStart"], row["BillingPeriodEnd"]) for row in rows} == {
        ("2026-10-31T11:00:00Z", "2026-11-30T11:00:00Z")
    }
    assert {row["BillingAccountId"] for row in rows} == {"env:KEY_GROWTH", "env:KEY_RESEARCH"}
    official = rows[4]
    assert (official["x_RequestedSkuId"], official["x_FallbackPremium"]) == (stages.PRO, "0.0714")


def test_what_came_free_is_a_row_of_its_own_with_what_it_avoided(busy):
    free = [row for row in busy.focus() if row["x_AvoidedReason"]]
    names = ("x_AvoidedReason", "x_AvoidedCost", "ConsumedQuantity", "ListUnitPrice", "EffectiveCost", "Tags")
    labels = '"label/cost_center": "4711", "label/product": "blog"'
    assert sorted(tuple(row[name] for name in names) for row in free) == [
        ("cache", "0.02656", "2", "0.01328125", "0", f"{{{labels}}}"),
        ("coalesced", "0.02656", "2", "0.01328125", "0", f'{{{labels}, "project": "blog"}}'),
    ]


async def test_charges_of_two_months_are_in_the_billing_periods_of_each(tmp_path):
    async with stages.staged(tmp_path, org="timezone: America/New_York\n") as stage:
        stage.clock.now = datetime.datetime(2026, 12, 1, 4, 30, tzinfo=datetime.UTC).timestamp()
        await stage.admitted()
        await stage.finish(rounds=2)
        stage.clock.advance(3600)
        await stage.admitted()
        await stage.finish(rounds=2)
        books = await books_of(stage, tmp_path)
        rows = books.focus()
        assert [(row["ChargePeriodStart"], row["BillingPeriodStart"], row["BillingPeriodEnd"]) for row in rows] == [
            ("2026-11-30T05:00:00Z", "2026-11-01T04:00:00Z", "2026-12-01T05:00:00Z"),
            ("2026-12-01T05:00:00Z", "2026-12-01T05:00:00Z", "2027-01-01T05:00:00Z"),
        ]
        assert books.costs("month") == {"2026-11": 13_280_000, "2026-12": 13_280_000}
