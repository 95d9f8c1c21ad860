from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules import account, budget, policy
from gateway.rules.account import Account
from gateway.rules.budget import Balance
from gateway.rules.money import Nanos
from tests.rules import builders
from tests.rules.builders import OLD, PRO, PRO_OFFICIAL, at

NOW = at("2026-06-17T10:30:00Z")
USD = 1_000_000_000
Used = dict[str, tuple[int, int]]


def cap(name: str, usd: int, window: str = "day", **said: Any) -> policy.Cap:
    return policy.Cap(name=name, nanos=Nanos(usd * USD), window=policy.Window(window), **said)


def seen(*caps: policy.Cap, used: Used, org: tuple[policy.Cap, ...] = (), **said: Any) -> Account | None:
    """The account of key `ci`; `used`: (settled, reserved) by cap name."""
    team = builders.team(caps=caps, **said)
    policies = builders.policies(caps=org)
    touched = budget.touched(policies, team, key="ci", models=[PRO, OLD], now=NOW)
    readings = []
    for each in touched:
        settled, reserved = used.get(each.cap.name if each.cap else "", (0, 0))
        readings.append((each, Balance(settled_nanos=settled, reserved_nanos=reserved)))
    return account.tightest(readings, [PRO, OLD])


def test_the_cap_with_the_least_left_is_the_account():
    caps = (cap("daily", 25), cap("monthly", 400, "month"))
    assert seen(*caps, used={"daily": (2 * USD, USD), "monthly": (300 * USD, USD)}) == Account(
        limit_nanos=25 * USD, warn_nanos=25 * USD, settled_nanos=2 * USD, reserved_nanos=USD
    )
    assert seen(*caps, used={"daily": (2 * USD, USD), "monthly": (390 * USD, USD)}) == Account(
        limit_nanos=400 * USD, warn_nanos=400 * USD, settled_nanos=390 * USD, reserved_nanos=USD
    )


@pytest.mark.parametrize(
    ("tighter", "limit_usd"),
    [
        (cap("ci-day", 5, key="ci"), 5),
        (cap("nightly-day", 5, key="nightly"), 25),
        (cap("official", 5, models=("*-official",)), 25),
        (cap("pro", 5, models=("gemini-3-pro-*",)), 25),
        (cap("gemini", 5, models=("gemini-*",)), 5),
    ],
)
def test_a_cap_counts_if_it_stops_every_submit_of_the_key(tighter: policy.Cap, limit_usd: int):
    found = seen(cap("daily", 25), tighter, used={})
    assert found is not None and found.limit_nanos == limit_usd * USD


def test_the_organisations_cap_is_never_shown():
    found = seen(cap("daily", 25), used={}, org=(cap("org-day", 1),))
    assert found is not None and found.limit_nanos == 25 * USD
    assert seen(used={}, org=(cap("org-day", 1),)) is None


def test_a_threshold_is_no_cap():
    threshold = policy.Threshold(nanos=Nanos(USD), window=policy.Window.DAY, rewrite={PRO_OFFICIAL: PRO})
    assert seen(used={}, thresholds=(threshold,)) is None


def test_of_equally_tight_caps_the_one_that_resets_last_is_shown():
    used = {"monthly": (10 * USD, 0), "daily": (5 * USD, 0), "ever": (20 * USD, 0)}
    dated = seen(cap("daily", 25), cap("monthly", 30, "month"), used=used)
    assert dated is not None and dated.limit_nanos == 30 * USD
    total = seen(cap("daily", 25), cap("monthly", 30, "month"), cap("ever", 40, "total"), used=used)
    assert total is not None and total.limit_nanos == 40 * USD


def test_the_soft_limit_is_where_the_cap_warns():
    found = seen(cap("daily", 25, warn_at=Fraction(4, 5)), used={})
    assert found is not None and (found.warn_nanos, found.limit_nanos) == (20 * USD, 25 * USD)


def test_a_cap_of_nothing_is_the_tightest():
    found = seen(cap("daily", 25), cap("none", 0), used={})
    assert found is not None and (found.limit_nanos, found.left_nanos()) == (0, 0)


def test_nothing_is_left_of_a_cap_that_was_lowered_below_what_is_used():
    found = seen(cap("daily", 25), used={"daily": (24 * USD, 3 * USD)})
    assert found is not None and (found.used_nanos(), found.left_nanos()) == (27 * USD, 0)


def test_without_a_cap_the_limit_is_a_hundred_million_dollars():
    assert account.uncapped(13_280_000) == Account(
        limit_nanos=100_000_000_000_000_000,
        warn_nanos=100_000_000_000_000_000,
        settled_nanos=13_280_000,
        reserved_nanos=0,
    )
    assert account.uncapped(13_280_000).left_nanos() == 99_999_999_986_720_000


@given(st.integers(0, 10**18), st.integers(0, 10**18), st.integers(0, 10**18))
def test_used_and_left_make_the_limit_while_the_cap_holds(limit: int, settled: int, reserved: int):
    each = Account(limit_nanos=limit, warn_nanos=limit, settled_nanos=settled, reserved_nanos=reserved)
    if settled + reserved <= limit:
        assert each.used_nanos() + each.left_nanos() == limit
    else:
        assert each.left_nanos() == 0
