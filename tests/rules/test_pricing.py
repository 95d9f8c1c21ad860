import dataclasses
import datetime
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.rules import policy, pricing, task
from gateway.rules.money import Nanos
from gateway.rules.policy import Deny, Fallback, Tier
from tests.rules import builders
from tests.rules.builders import (
    FLASH,
    FLASH_OFFICIAL,
    OLD,
    OLD_OFFICIAL,
    ONE,
    PRO,
    PRO_OFFICIAL,
    SINCE,
    TODAY,
    TWO,
)


def quote_or_deny(
    *changed: policy.Model, team: policy.Team | None = None, today: datetime.date = TODAY, **said: Any
) -> pricing.Quote | Deny:
    policies = builders.policies(*changed)
    team = team or builders.team(fallback=Fallback.ALLOW)
    allow = policy.decide(policies, team, builders.request(**said), fullness=Fraction(0))
    assert isinstance(allow, policy.Allow), allow
    return pricing.quote(policies, team, allow, today)


def quote(*changed: policy.Model, **said: Any) -> pricing.Quote:
    quoted = quote_or_deny(*changed, **said)
    assert isinstance(quoted, pricing.Quote), quoted
    return quoted


# Quotes.


@pytest.mark.parametrize(
    ("model", "one", "three"),
    [
        (PRO_OFFICIAL, 113_900_000, 341_700_000),
        (PRO, 42_500_000, 127_500_000),
        (FLASH_OFFICIAL, 56_950_000, 170_850_000),
        (FLASH, 31_876_000, 95_628_000),
        (OLD_OFFICIAL, 33_150_000, 99_450_000),
        (OLD, 13_282_000, 39_846_000),
    ],
)
def test_a_quote_is_the_listed_price_in_whole_quotas_per_image(model: str, one: int, three: int) -> None:
    assert quote(model=model).nanos == one
    assert quote(model=model, n=3).nanos == three


@pytest.mark.parametrize(
    ("model", "official", "one", "three"),
    [
        (PRO, PRO_OFFICIAL, 113_900_000, 341_700_000),
        (FLASH, FLASH_OFFICIAL, 56_950_000, 170_850_000),
        (OLD, OLD_OFFICIAL, 33_150_000, 99_450_000),
    ],
)
def test_with_fallback_a_quote_is_that_of_the_dearest_channel(model: str, official: str, one: int, three: int) -> None:
    quoted = quote(model=model, official_fallback=True)
    assert quoted.nanos == one
    assert quoted.official == official
    assert quote(model=model, official_fallback=True, n=3).nanos == three


@pytest.mark.parametrize("official", [PRO_OFFICIAL, FLASH_OFFICIAL, OLD_OFFICIAL])
def test_on_an_official_id_the_flag_means_nothing(official: str) -> None:
    assert quote(model=official, official_fallback=True) == quote(model=official)


def test_without_fallback_the_official_price_does_not_count() -> None:
    quoted = quote(model=OLD, official_fallback=False)
    assert quoted == pricing.Quote(
        nanos=Nanos(13_282_000),
        standard_unit_nanos=Nanos(13_281_250),
        official_unit_nanos=None,
        model=OLD,
        tier=Tier.STANDARD,
        official=None,
        version="2026-04-01",
    )
    assert quoted.dearest_unit_nanos() == 13_281_250


def test_a_quote_keeps_the_exact_prices_it_was_made_of() -> None:
    quoted = quote(model=OLD, official_fallback=True, n=3)
    assert quoted == pricing.Quote(
        nanos=Nanos(99_450_000),
        standard_unit_nanos=Nanos(13_281_250),
        official_unit_nanos=Nanos(33_150_000),
        model=OLD,
        tier=Tier.STANDARD,
        official=OLD_OFFICIAL,
        version="2026-04-01,2026-04-01",
    )
    assert quoted.dearest_unit_nanos() == 33_150_000


def test_an_official_price_below_the_standard_one_lowers_nothing() -> None:
    cheap = builders.model(PRO_OFFICIAL, 30_000_000, tier=Tier.OFFICIAL)
    quoted = quote(cheap, official_fallback=True)
    assert quoted.nanos == 42_500_000
    assert quoted.dearest_unit_nanos() == 42_500_000


def test_an_official_quote_is_of_the_official_tier() -> None:
    assert quote(model=PRO_OFFICIAL).tier is Tier.OFFICIAL


def test_force_bills_like_a_flag_that_was_asked_for() -> None:
    assert quote(team=builders.team(fallback=Fallback.FORCE)).nanos == 113_900_000


@pytest.mark.parametrize("action", [Fallback.FORCE, Fallback.ALLOW])
def test_without_an_official_entry_the_flag_changes_nothing_about_the_price(action: Fallback) -> None:
    alone = dataclasses.replace(builders.CATALOGUE[PRO], official=None)
    quoted = quote(alone, team=builders.team(fallback=action), official_fallback=True)
    assert (quoted.nanos, quoted.official) == (42_500_000, None)


def test_a_stripped_flag_is_quoted_at_the_standard_price() -> None:
    assert quote(team=builders.team(fallback=Fallback.STRIP), official_fallback=True).nanos == 42_500_000


REV = "gemini-3-pro-image-rev"


@pytest.mark.parametrize(
    ("resolution", "nanos"), [("1K", 33_750_000), ("2k", 33_750_000), ("4k", 45_000_000), ("4K", 45_000_000)]
)
def test_a_price_by_resolution_is_found_without_case(resolution: str, nanos: int) -> None:
    prices = (policy.Price(since=SINCE, nanos={"default": Nanos(33_750_000), "4K": Nanos(45_000_000)}),)
    assert quote(builders.model(REV, 0, prices=prices), model=REV, resolution=resolution).nanos == nanos


def test_a_resolution_without_a_price_or_default_is_not_quoted() -> None:
    prices = (policy.Price(since=SINCE, nanos={"1K": Nanos(33_750_000)}),)
    model = builders.model(REV, 0, prices=prices)
    assert quote(model, model=REV).nanos == 33_750_000
    denial = quote_or_deny(model, model=REV, resolution="4K")
    assert isinstance(denial, Deny)
    assert (denial.code, denial.param, denial.rule) == (
        "price_not_configured",
        "model",
        "models.yaml:gemini-3-pro-image-rev",
    )
    assert denial.message == (
        "models.yaml has no price in force for gemini-3-pro-image-rev at 4K; "
        "ask whoever keeps the policy files to add one."
    )


@pytest.mark.parametrize(
    ("today", "nanos", "version"),
    [
        ("2026-04-01", 42_500_000, "2026-04-01"),
        ("2026-06-30", 42_500_000, "2026-04-01"),
        ("2026-07-01", 50_000_000, "2026-07-01"),
        ("2026-07-02", 50_000_000, "2026-07-01"),
        ("2027-01-01", 40_000_000, "2027-01-01"),
        ("2030-01-01", 40_000_000, "2027-01-01"),
    ],
)
def test_the_latest_price_in_force_on_the_day_counts(today: str, nanos: int, version: str) -> None:
    prices = (
        builders.price(50_000_000, since=datetime.date(2026, 7, 1)),
        builders.price(40_000_000, since=datetime.date(2027, 1, 1)),
        builders.price(42_500_000, since=datetime.date(2026, 4, 1)),
    )
    quoted = quote(builders.model(PRO, 0, prices=prices), today=datetime.date.fromisoformat(today))
    assert (quoted.nanos, quoted.version) == (nanos, version)


def test_before_its_first_price_a_model_is_not_quoted() -> None:
    denial = quote_or_deny(today=datetime.date(2026, 3, 31))
    assert isinstance(denial, Deny) and denial.code == "price_not_configured"


def test_a_fallback_without_a_price_in_force_is_not_quoted() -> None:
    official = builders.model(PRO_OFFICIAL, 0, tier=Tier.OFFICIAL, prices=())
    denial = quote_or_deny(official, official_fallback=True)
    assert isinstance(denial, Deny)
    assert (denial.code, denial.rule) == ("price_not_configured", "models.yaml:gemini-3-pro-image-preview-official")
    assert quote(official, official_fallback=False).nanos == 42_500_000


def test_the_version_names_both_dates() -> None:
    official = builders.model(
        PRO_OFFICIAL,
        0,
        tier=Tier.OFFICIAL,
        prices=(builders.price(120_000_000, since=datetime.date(2026, 6, 1)),),
    )
    quoted = quote(official, official_fallback=True)
    assert (quoted.nanos, quoted.version) == (120_000_000, "2026-04-01,2026-06-01")


@pytest.mark.parametrize(
    ("images", "n", "nanos"),
    [([], 1, 42_500_000), ([ONE], 1, 43_502_000), ([ONE, TWO], 1, 44_502_000), ([ONE, TWO], 3, 133_506_000)],
)
def test_each_reference_image_is_priced_with_every_image(images: list[str], n: int, nanos: int) -> None:
    model = builders.model(PRO, 42_500_000, reference_image_nanos=Nanos(1_000_001))
    assert quote(model, image_urls=images, n=n).nanos == nanos


def test_the_officials_own_reference_price_counts_under_fallback() -> None:
    official = builders.model(PRO_OFFICIAL, 113_900_000, tier=Tier.OFFICIAL, reference_image_nanos=Nanos(5_000_000))
    quoted = quote(official, official_fallback=True, image_urls=[ONE, TWO])
    assert quoted.nanos == 123_900_000
    assert quoted.standard_unit_nanos == 42_500_000


def test_an_unlisted_model_is_quoted_at_the_teams_price() -> None:
    team = builders.team(unlisted_nanos=Nanos(200_000_001))
    assert quote(team=team, model="gpt-image-2", n=3) == pricing.Quote(
        nanos=Nanos(600_006_000),
        standard_unit_nanos=Nanos(200_000_001),
        official_unit_nanos=None,
        model="gpt-image-2",
        tier=Tier.STANDARD,
        official=None,
        version="",
    )


def test_a_price_of_nothing_is_a_price() -> None:
    assert quote(builders.model("free", 0), model="free").nanos == 0
    team = builders.team(unlisted_nanos=Nanos(0))
    assert quote(team=team, model="gpt-image-2").nanos == 0


def test_a_quote_beyond_every_budget_is_denied() -> None:
    dear = builders.model(PRO, 1_000_000_000_000_000_000)
    assert quote(dear, n=1).nanos == 1_000_000_000_000_000_000
    denial = quote_or_deny(dear, n=2)
    assert isinstance(denial, Deny)
    assert (denial.code, denial.param, denial.details) == ("limit_exceeded", "n", {"limit": "n", "value": 2})


# A client's own bound.


@pytest.mark.parametrize(
    ("limit", "n", "most"),
    [
        (0, 1, 0),
        (13_281_250, 1, 13_282_000),
        (13_282_000, 1, 13_282_000),
        (13_282_001, 1, 13_284_000),
        (39_843_750, 3, 39_846_000),
        (1, 3, 6_000),
        (50_000_000, 4, 50_000_000),
    ],
)
def test_a_bound_is_rounded_up_like_the_quote(limit: int, n: int, most: int) -> None:
    assert pricing.most_allowed(Nanos(limit), n) == most


@given(st.integers(0, 10**12), st.integers(1, 1_000))
@settings(deadline=None, max_examples=100)
def test_a_bound_of_the_exact_price_always_admits_the_quote(unit: int, n: int) -> None:
    quoted = quote(builders.model(PRO, unit), n=n)
    assert pricing.most_allowed(Nanos(unit * n), n) >= quoted.nanos
    assert 0 <= quoted.nanos - unit * n < 2_000 * n


# What a finished task cost.


def delivered(images: int, *, cost: int | None = None, pre: int | None = None) -> task.Outcome:
    return task.Outcome(
        event=task.Event.DELIVERED, status="completed", cost_quota=cost, pre_consumed_quota=pre, images=images
    )


PLAIN = quote(model=OLD, n=3)
FALLBACK = quote(model=OLD, official_fallback=True, n=3)
OFFICIAL = quote(model=OLD_OFFICIAL, n=3)


@pytest.mark.parametrize(
    ("quoted", "outcome", "nanos"),
    [
        (PLAIN, delivered(3, cost=19_922), 39_844_000),
        (PLAIN, delivered(3, cost=19_922, pre=50_000), 39_844_000),
        (PLAIN, delivered(2, cost=13_282), 26_564_000),
        (PLAIN, delivered(3, cost=0), 0),
        (PLAIN, delivered(0, cost=7), 14_000),
        (PLAIN, delivered(3, pre=19_923), 39_846_000),
        (PLAIN, delivered(3, pre=0), 0),
        (PLAIN, delivered(2, pre=19_923), 26_562_500),
        (PLAIN, delivered(4, pre=19_923), 53_125_000),
        (PLAIN, delivered(3), 39_843_750),
        (PLAIN, delivered(1), 13_281_250),
        (PLAIN, delivered(0), 0),
        (PLAIN, delivered(0, pre=19_923), 0),
        (FALLBACK, delivered(3), 99_450_000),
        (FALLBACK, delivered(2), 66_300_000),
        (FALLBACK, delivered(3, cost=19_922), 39_844_000),
        (OFFICIAL, delivered(3), 99_450_000),
        (OFFICIAL, delivered(3, cost=49_725), 99_450_000),
    ],
)
def test_a_task_costs_what_the_vendor_said_else_what_it_took_else_the_frozen_price(
    quoted: pricing.Quote, outcome: task.Outcome, nanos: int
) -> None:
    settled = pricing.settle(quoted, outcome, n=3)
    assert settled.nanos == nanos
    assert settled.images == outcome.images


def test_a_settle_without_a_cost_does_not_read_what_was_taken_for_other_images() -> None:
    assert pricing.settle(quote(model=PRO, n=2), delivered(1, pre=42_500), n=2).nanos == 42_500_000


@pytest.mark.parametrize(
    ("quoted", "outcome", "model", "tier", "premium"),
    [
        (PLAIN, delivered(3, cost=19_922), OLD, Tier.STANDARD, 0),
        (PLAIN, delivered(3, cost=49_725), OLD, Tier.STANDARD, 0),
        (OFFICIAL, delivered(3, cost=49_725), OLD_OFFICIAL, Tier.OFFICIAL, 0),
        (FALLBACK, delivered(3, cost=19_922), OLD, Tier.STANDARD, 0),
        (FALLBACK, delivered(3, cost=19_923), OLD, Tier.STANDARD, 0),
        (FALLBACK, delivered(3, cost=19_924), OLD_OFFICIAL, Tier.OFFICIAL, 4_250),
        (FALLBACK, delivered(3, cost=49_725), OLD_OFFICIAL, Tier.OFFICIAL, 59_606_250),
        (FALLBACK, delivered(1, cost=16_575), OLD_OFFICIAL, Tier.OFFICIAL, 19_868_750),
        (FALLBACK, delivered(1, cost=6_641), OLD, Tier.STANDARD, 0),
        (FALLBACK, delivered(2), OLD_OFFICIAL, Tier.OFFICIAL, 39_737_500),
        (FALLBACK, delivered(3, pre=49_725), OLD_OFFICIAL, Tier.OFFICIAL, 59_606_250),
        (FALLBACK, delivered(0), OLD, Tier.STANDARD, 0),
        (FALLBACK, delivered(0, cost=1), OLD_OFFICIAL, Tier.OFFICIAL, 2_000),
    ],
)
def test_the_billed_channel_is_official_when_the_cost_exceeds_the_rounded_standard_price(
    quoted: pricing.Quote, outcome: task.Outcome, model: str, tier: Tier, premium: int
) -> None:
    settled = pricing.settle(quoted, outcome, n=3)
    assert (settled.model, settled.tier, settled.premium_nanos) == (model, tier, premium)


@pytest.mark.parametrize(
    ("quoted", "outcome", "drift"),
    [
        (PLAIN, delivered(3, cost=19_922), 0),  # 39,844,000 billed for 39,843,750
        (PLAIN, delivered(3, cost=19_920), 0),  # 3,750 too little: within 6,000
        (PLAIN, delivered(3, cost=19_924), 0),  # 4,250 too much
        (PLAIN, delivered(3, cost=19_925), 6_250),  # 39,850,000
        (PLAIN, delivered(3, cost=19_918), 7_750),  # 39,836,000
        (PLAIN, delivered(3, cost=0), 39_843_750),
        (PLAIN, delivered(1, cost=6_641), 0),  # 13,282,000 for 13,281,250
        (PLAIN, delivered(1, cost=6_642), 2_750),
        (PLAIN, delivered(0, cost=1), 2_000),
        (PLAIN, delivered(3), 0),
        (FALLBACK, delivered(3, cost=49_725), 0),
        (FALLBACK, delivered(3, cost=49_728), 0),  # exactly one quota per image
        (FALLBACK, delivered(3, cost=49_729), 8_000),
        (FALLBACK, delivered(3, cost=30_000), 39_450_000),  # 60,000,000 on the official channel's 99,450,000
        (FALLBACK, delivered(3), 0),
        (OFFICIAL, delivered(3, cost=49_722), 0),
        (OFFICIAL, delivered(3, cost=49_721), 8_000),
    ],
)
def test_a_bill_further_from_the_list_than_a_quota_per_image_is_drift(
    quoted: pricing.Quote, outcome: task.Outcome, drift: int
) -> None:
    assert pricing.settle(quoted, outcome, n=3).drift_nanos == drift


def test_a_bill_above_the_quote_is_recorded_as_it_is() -> None:
    settled = pricing.settle(quote(model=PRO), delivered(1, cost=1_000_000), n=1)
    assert (settled.nanos, settled.drift_nanos, settled.premium_nanos) == (2_000_000_000, 1_957_500_000, 0)


@pytest.mark.parametrize(
    ("nanos", "model", "premium", "drift"),
    [
        (127_500_000, PRO, 0, 0),
        (42_500_000, PRO, 0, 85_000_000),
        (127_500_001, PRO_OFFICIAL, 1, 214_199_999),
        (341_700_000, PRO_OFFICIAL, 214_200_000, 0),
    ],
)
def test_what_an_operator_says_was_charged_is_judged_as_a_bill_for_all_images_with_none_delivered(
    nanos: int, model: str, premium: int, drift: int
) -> None:
    charged = pricing.charge(quote(model=PRO, n=3, official_fallback=True), Nanos(nanos), n=3)
    assert (charged.nanos, charged.images, charged.model) == (nanos, 0, model)
    assert (charged.premium_nanos, charged.drift_nanos) == (premium, drift)


def test_a_failed_task_with_its_money_back_costs_nothing() -> None:
    outcome = task.Outcome(event=task.Event.FAILED, status="failed", cost_quota=0, pre_consumed_quota=21_250)
    settled = pricing.settle(quote(model=PRO), outcome, n=1)
    assert (settled.nanos, settled.images, settled.drift_nanos) == (0, 0, 0)


def test_a_failed_task_without_a_cost_costs_nothing() -> None:
    outcome = task.Outcome(event=task.Event.FAILED, status="failed", pre_consumed_quota=21_250)
    assert pricing.settle(quote(model=PRO), outcome, n=1).nanos == 0


@given(st.integers(0, 3), st.sampled_from([PLAIN, FALLBACK, OFFICIAL]))
@settings(deadline=None, max_examples=40)
def test_without_a_vendors_word_a_settle_of_what_was_asked_for_stays_inside_the_quote(
    images: int, quoted: pricing.Quote
) -> None:
    assert pricing.settle(quoted, delivered(images), n=3).nanos <= quoted.nanos


@given(st.integers(0, 100_000), st.integers(0, 3), st.sampled_from([PLAIN, FALLBACK, OFFICIAL]))
@example(65, 1, PLAIN)  # through floats 129,999 nanos
@example(498, 3, FALLBACK)  # 995,999
@settings(deadline=None, max_examples=100)
def test_the_vendors_cost_is_kept_to_the_nano(cost: int, images: int, quoted: pricing.Quote) -> None:
    settled = pricing.settle(quoted, delivered(images, cost=cost), n=3)
    assert settled.nanos == cost * 2_000
    assert settled.premium_nanos >= 0
    assert settled.drift_nanos >= 0


def test_two_totals_are_added_field_by_field_under_the_firsts_names() -> None:
    one = pricing.Total(
        team="growth",
        model=PRO,
        tier="standard",
        cost_nanos=1,
        images=20,
        avoided_cache_nanos=300,
        avoided_coalesced_nanos=4_000,
        premium_nanos=50_000,
        drift_nanos=600_000,
    )
    other = pricing.Total(
        team="tiny",
        model=OLD,
        tier="official",
        cost_nanos=7,
        images=70,
        avoided_cache_nanos=700,
        avoided_coalesced_nanos=7_000,
        premium_nanos=70_000,
        drift_nanos=700_000,
    )
    assert pricing.add(one, other) == pricing.Total(
        team="growth",
        model=PRO,
        tier="standard",
        cost_nanos=8,
        images=90,
        avoided_cache_nanos=1_000,
        avoided_coalesced_nanos=11_000,
        premium_nanos=120_000,
        drift_nanos=1_300_000,
    )
