from __future__ import annotations

import datetime
from fractions import Fraction
from typing import Any

import pytest

from gateway.rules import policy, share
from gateway.rules.budget import Scope
from gateway.rules.money import Nanos
from gateway.rules.policy import Window
from tests.rules.builders import PRO, at

NOW = at("2026-06-17T10:30:00Z")  # a Wednesday
DAY, WEEK, MONTH, TOTAL = Window


def cap(usd: int, window: Window, **said: Any) -> policy.Cap:
    return policy.Cap(name=f"{usd} a {window}", nanos=Nanos(usd * 1_000_000_000), window=window, **said)


def policies(*caps: policy.Cap, org: tuple[policy.Cap, ...] = (), timezone: str = "UTC") -> policy.PolicySet:
    return policy.PolicySet(
        organisation=policy.Organisation(timezone=timezone, caps=org),
        teams={"growth": policy.Team(name="growth", upstream_key="env:K", caps=caps)},
    )


def held(
    set_: policy.PolicySet, since: str, until: str, *, team: str | None = "growth", key: str | None = None
) -> tuple[str, Scope] | None:
    """Name and scope of the ceiling of a time."""
    found = share.ceiling(set_, team=team, key=key, since=at(since), until=at(until), now=NOW)
    return None if found is None else (found.cap, found.scope)


def test_the_ceiling_is_the_shortest_window_that_contains_the_whole_time():
    every = policies(cap(900, TOTAL), cap(400, MONTH), cap(100, WEEK), cap(25, DAY))
    assert held(every, "2026-06-17T00:00:00Z", "2026-06-18T00:00:00Z") == ("25 a day", Scope.TEAM)
    assert held(every, "2026-06-16T00:00:00Z", "2026-06-18T00:00:00Z") == ("100 a week", Scope.TEAM)
    assert held(every, "2026-06-14T00:00:00Z", "2026-06-17T00:00:00Z") == ("400 a month", Scope.TEAM)
    assert held(every, "2026-05-31T00:00:00Z", "2026-06-02T00:00:00Z") == ("900 a total", Scope.TEAM)
    assert held(policies(cap(25, DAY)), "2026-06-16T00:00:00Z", "2026-06-18T00:00:00Z") is None


def test_a_report_up_to_now_lies_in_the_window_that_now_lies_in():
    # The command reads up to a second after now.
    last_second = at("2026-06-17T23:59:59Z")
    found = share.ceiling(
        policies(cap(25, DAY)),
        team="growth",
        key=None,
        since=at("2026-06-17T00:00:00Z"),
        until=last_second + 2,
        now=last_second + 1,
    )
    assert found is not None and found.window is DAY


def test_dates_that_no_calendar_reaches_are_in_no_window_but_the_last_one():
    far = policies(cap(900, TOTAL), cap(400, MONTH), timezone="Europe/Berlin")
    asked: dict[str, Any] = {"team": "growth", "key": None, "now": NOW}
    for since, until in ((-1e12, 1e12), (1e12, 2e12)):
        found = share.ceiling(far, since=since, until=until, **asked)
        assert found is not None and found.window is TOTAL
    assert share.ceiling(far, since=-2e12, until=-1e12, **asked) is not None


def test_a_window_is_that_of_the_timezone():
    berlin = policies(cap(25, DAY), timezone="Europe/Berlin")
    assert held(berlin, "2026-06-16T22:00:00Z", "2026-06-17T22:00:00Z") == ("25 a day", Scope.TEAM)
    assert held(berlin, "2026-06-17T00:00:00Z", "2026-06-18T00:00:00Z") is None


def test_a_key_is_held_against_its_own_cap_then_its_teams_then_the_organisations():
    day = ("2026-06-17T00:00:00Z", "2026-06-18T00:00:00Z")
    org = (cap(500, DAY),)
    both = policies(cap(25, DAY), cap(5, DAY, key="ci"), org=org)
    assert held(both, *day, key="ci") == ("5 a day", Scope.KEY)
    assert held(both, *day, key="web") == ("25 a day", Scope.TEAM)
    assert held(both, *day) == ("25 a day", Scope.TEAM)
    assert held(both, *day, team=None) == ("500 a day", Scope.ORG)
    assert held(both, *day, team="gone", key="ci") == ("500 a day", Scope.ORG)
    assert held(policies(org=org), *day, key="ci") == ("500 a day", Scope.ORG)


def test_of_two_caps_of_one_window_the_lower_counts():
    found = held(policies(cap(30, DAY), cap(25, DAY)), "2026-06-17T00:00:00Z", "2026-06-18T00:00:00Z")
    assert found == ("25 a day", Scope.TEAM)


def test_a_cap_of_some_models_is_no_ceiling():
    only = policies(cap(1, DAY, models=(PRO,)), cap(400, MONTH))
    assert held(only, "2026-06-17T00:00:00Z", "2026-06-18T00:00:00Z") == ("400 a month", Scope.TEAM)


@pytest.mark.parametrize(
    ("since", "until", "limit_usd"),
    [
        ("2026-06-01T00:00:00Z", "2026-06-10T00:00:00Z", 600),  # its last day is the 9th
        ("2026-06-01T00:00:00Z", "2026-06-17T10:30:01Z", 600),  # up to now
        ("2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z", 600),  # the days to come do not end a raise
        ("2026-05-01T00:00:00Z", "2026-06-01T00:00:00Z", 600),
    ],
)
def test_a_raise_counts_while_it_is_in_force_on_the_last_day_so_far(since, until, limit_usd):
    launch = policy.Raise(nanos=Nanos(200_000_000_000), until=datetime.date(2026, 6, 20), why="launch")
    found = share.ceiling(
        policies(cap(400, MONTH, raises=(launch,))), team="growth", key=None, since=at(since), until=at(until), now=NOW
    )
    assert found is not None and found.limit_nanos == limit_usd * 1_000_000_000


def test_a_raise_that_had_ended_by_the_last_day_does_not_count():
    launch = policy.Raise(nanos=Nanos(200_000_000_000), until=datetime.date(2026, 6, 15), why="launch")
    raised = policies(cap(400, MONTH, raises=(launch,)))
    june: dict[str, Any] = {"team": "growth", "key": None, "since": at("2026-06-01T00:00:00Z"), "now": NOW}
    before = share.ceiling(raised, until=at("2026-06-15T00:00:00Z"), **june)
    after = share.ceiling(raised, until=at("2026-06-15T00:00:01Z"), **june)
    assert before is not None and before.limit_nanos == 600_000_000_000
    assert after is not None and after.limit_nanos == 400_000_000_000


def test_a_share_is_exact_and_of_a_cap_of_nothing_there_is_none():
    third = share.Ceiling(scope=Scope.TEAM, window=DAY, cap="day", limit_nanos=Nanos(3))
    assert third.share(1) == Fraction(1, 3)
    nothing = share.Ceiling(scope=Scope.TEAM, window=DAY, cap="day", limit_nanos=Nanos(0))
    assert nothing.share(1) is None


@pytest.mark.parametrize(
    ("cost", "images", "average"),
    [
        (26_560_000, 2, 13_280_000),
        (100, 3, 33),
        (200, 3, 67),
        (1, 2, 0),  # a half goes to the even nano
        (3, 2, 2),
        (5, 2, 2),
        (13_281_250 * 10**6, 10**6, 13_281_250),
        (7, 0, None),
    ],
)
def test_an_average_is_rounded_half_to_even_to_the_nano(cost, images, average):
    assert share.average(cost, images) == average


@pytest.mark.parametrize(
    ("part", "decimal", "percent"),
    [
        (Fraction(0), "0", "0.0%"),
        (Fraction(1, 3), "0.333333333", "33.3%"),
        (Fraction(2, 3), "0.666666667", "66.7%"),
        (Fraction(1), "1", "100.0%"),
        (Fraction(5, 4), "1.25", "125.0%"),
        (Fraction(1, 2000), "0.0005", "0.0%"),  # a half goes to the even tenth
        (Fraction(3, 2000), "0.0015", "0.2%"),
        (Fraction(1328125, 2000000), "0.6640625", "66.4%"),
    ],
)
def test_a_share_is_shown_as_a_decimal_and_as_a_percentage(part, decimal, percent):
    assert (share.render(part), share.percent(part)) == (decimal, percent)
