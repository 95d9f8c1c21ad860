import datetime
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rules import budget, policy
from gateway.rules.budget import Allowance, Balance, BalanceId, Scope
from gateway.rules.money import Nanos
from gateway.rules.policy import Window
from tests.rules import builders
from tests.rules.builders import PRO, PRO_OFFICIAL, at

NOW = at("2026-06-17T10:30:00Z")  # a Wednesday
DAY, WEEK, MONTH = at("2026-06-17T00:00:00Z"), at("2026-06-15T00:00:00Z"), at("2026-06-01T00:00:00Z")


def cap(name: str = "daily", usd: int = 25, window: Window = Window.DAY, **said: Any) -> policy.Cap:
    return policy.Cap(name=name, nanos=Nanos(usd * 1_000_000_000), window=window, **said)


# Windows.


@pytest.mark.parametrize(
    ("timezone", "window", "now", "start", "end"),
    [
        ("UTC", "day", "2026-06-17T10:30:00Z", "2026-06-17T00:00:00Z", "2026-06-18T00:00:00Z"),
        ("UTC", "day", "2026-06-17T00:00:00Z", "2026-06-17T00:00:00Z", "2026-06-18T00:00:00Z"),
        ("UTC", "day", "2026-06-16T23:59:59Z", "2026-06-16T00:00:00Z", "2026-06-17T00:00:00Z"),
        ("UTC", "day", "2028-02-28T12:00:00Z", "2028-02-28T00:00:00Z", "2028-02-29T00:00:00Z"),
        ("UTC", "day", "2026-12-31T12:00:00Z", "2026-12-31T00:00:00Z", "2027-01-01T00:00:00Z"),
        ("UTC", "week", "2026-06-15T00:00:00Z", "2026-06-15T00:00:00Z", "2026-06-22T00:00:00Z"),  # a Monday
        ("UTC", "week", "2026-06-21T23:59:59Z", "2026-06-15T00:00:00Z", "2026-06-22T00:00:00Z"),  # a Sunday
        ("UTC", "week", "2026-06-14T23:59:59Z", "2026-06-08T00:00:00Z", "2026-06-15T00:00:00Z"),
        ("UTC", "week", "2027-01-01T12:00:00Z", "2026-12-28T00:00:00Z", "2027-01-04T00:00:00Z"),
        ("UTC", "month", "2026-06-30T23:59:59Z", "2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z"),
        ("UTC", "month", "2026-01-31T12:00:00Z", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"),
        ("UTC", "month", "2026-02-28T23:59:59Z", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"),
        ("UTC", "month", "2028-02-29T00:00:00Z", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
        ("UTC", "month", "2026-12-31T23:59:59Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        # Berlin: the clocks go forward on 2026-03-29 at 01:00Z and back on 2026-10-25 at 01:00Z.
        ("Europe/Berlin", "day", "2026-06-16T22:00:00Z", "2026-06-16T22:00:00Z", "2026-06-17T22:00:00Z"),
        ("Europe/Berlin", "day", "2026-06-16T21:59:59Z", "2026-06-15T22:00:00Z", "2026-06-16T22:00:00Z"),
        ("Europe/Berlin", "day", "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),
        ("Europe/Berlin", "day", "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
        ("Europe/Berlin", "day", "2026-10-25T00:30:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
        ("Europe/Berlin", "day", "2026-10-25T01:30:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
        ("Europe/Berlin", "week", "2026-03-29T12:00:00Z", "2026-03-22T23:00:00Z", "2026-03-29T22:00:00Z"),
        ("Europe/Berlin", "week", "2026-10-25T12:00:00Z", "2026-10-18T22:00:00Z", "2026-10-25T23:00:00Z"),
        ("Europe/Berlin", "month", "2026-03-15T12:00:00Z", "2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z"),
        ("Europe/Berlin", "month", "2026-10-31T23:30:00Z", "2026-10-31T23:00:00Z", "2026-11-30T23:00:00Z"),
        # Santiago: midnight of 2023-09-03 is skipped, 00:00 became 01:00 at 04:00Z.
        ("America/Santiago", "day", "2023-09-03T04:00:00Z", "2023-09-03T04:00:00Z", "2023-09-04T03:00:00Z"),
        ("America/Santiago", "day", "2023-09-03T03:59:59Z", "2023-09-02T04:00:00Z", "2023-09-03T04:00:00Z"),
        # … and 2023-04-01 has 25 hours: 24:00 became 23:00 at 03:00Z of the next day.
        ("America/Santiago", "day", "2023-04-02T03:30:00Z", "2023-04-01T03:00:00Z", "2023-04-02T04:00:00Z"),
        ("America/Santiago", "day", "2023-04-02T04:00:00Z", "2023-04-02T04:00:00Z", "2023-04-03T04:00:00Z"),
        # Beirut: midnight of 2024-03-31 is skipped at 2024-03-30T22:00Z.
        ("Asia/Beirut", "day", "2024-03-31T10:00:00Z", "2024-03-30T22:00:00Z", "2024-03-31T21:00:00Z"),
        ("Asia/Beirut", "month", "2024-03-31T10:00:00Z", "2024-02-29T22:00:00Z", "2024-03-31T21:00:00Z"),
        ("Asia/Beirut", "week", "2024-03-31T10:00:00Z", "2024-03-24T22:00:00Z", "2024-03-31T21:00:00Z"),
        ("Asia/Kolkata", "day", "2026-06-17T18:29:59Z", "2026-06-16T18:30:00Z", "2026-06-17T18:30:00Z"),
        ("Pacific/Kiritimati", "month", "2026-06-30T10:00:00Z", "2026-06-30T10:00:00Z", "2026-07-31T10:00:00Z"),
    ],
)
def test_a_window_begins_and_ends_at_local_midnight(timezone: str, window: str, now: str, start: str, end: str) -> None:
    bounds = budget.bounds(Window(window), at(now), budget.timezone_of(timezone))
    assert bounds == (at(start), at(end))


@pytest.mark.parametrize("timezone", ["UTC", "America/Santiago"])
def test_a_total_never_resets(timezone: str) -> None:
    assert budget.bounds(Window.TOTAL, NOW, budget.timezone_of(timezone)) == (0, None)


ZONES = ["UTC", "Europe/Berlin", "America/Santiago", "Asia/Beirut", "Asia/Kolkata", "America/Havana", "Pacific/Apia"]


@given(
    now=st.integers(at("2010-01-01T00:00:00Z"), at("2035-01-01T00:00:00Z")),
    window=st.sampled_from([Window.DAY, Window.WEEK, Window.MONTH]),
    timezone=st.sampled_from(ZONES),
)
@settings(deadline=None, max_examples=150)
def test_windows_tile_the_time(now: int, window: Window, timezone: str) -> None:
    zone = budget.timezone_of(timezone)
    start, end = budget.bounds(window, now, zone)
    assert end is not None
    assert start <= now < end
    assert budget.bounds(window, start, zone) == (start, end)
    assert budget.bounds(window, end, zone)[0] == end
    assert budget.bounds(window, start - 1, zone)[1] == start


@pytest.mark.parametrize(
    ("timezone", "now", "day"),
    [
        ("UTC", "2026-06-17T23:59:59Z", "2026-06-17"),
        ("Europe/Berlin", "2026-06-17T22:00:00Z", "2026-06-18"),
        ("America/Santiago", "2023-09-03T03:59:59Z", "2023-09-02"),
        ("America/Santiago", "2023-09-03T04:00:00Z", "2023-09-03"),
        ("America/Santiago", "2023-04-02T03:30:00Z", "2023-04-01"),
    ],
)
def test_today_is_the_local_date(timezone: str, now: str, day: str) -> None:
    assert budget.today(at(now), budget.timezone_of(timezone)) == datetime.date.fromisoformat(day)


def test_a_day_that_skips_midnight_begins_at_its_first_instant() -> None:
    santiago = budget.timezone_of("America/Santiago")
    assert budget.local_midnight(datetime.date(2023, 9, 3), santiago) == at("2023-09-03T01:00:00-03:00")


def test_a_midnight_that_comes_twice_counts_once() -> None:
    havana = budget.timezone_of("America/Havana")  # 2023-11-05: 01:00 became 00:00
    assert budget.local_midnight(datetime.date(2023, 11, 5), havana) == at("2023-11-05T00:00:00-04:00")


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "/etc/passwd", "../UTC", "Europe", "UTC\x00", "utc+1"])
def test_an_unknown_timezone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a timezone; write a name such as Europe/Berlin"):
        budget.timezone_of(name)


# Limits.


@pytest.mark.parametrize(
    ("day", "usd"),
    [
        ("2026-06-17", 700),
        ("2026-11-30", 700),
        ("2026-12-01", 500),
        ("2026-12-14", 500),
        ("2026-12-15", 400),
        ("2030-01-01", 400),
    ],
)
def test_a_raise_ends_by_itself(day: str, usd: int) -> None:
    raises = (
        policy.Raise(nanos=Nanos(200_000_000_000), until=datetime.date(2026, 12, 1), why="launch"),
        policy.Raise(nanos=Nanos(100_000_000_000), until=datetime.date(2026, 12, 15), why="fair"),
    )
    monthly = cap("monthly", 400, Window.MONTH, raises=raises)
    assert budget.limit(monthly, datetime.date.fromisoformat(day)) == usd * 1_000_000_000


def test_a_raise_ends_at_midnight_of_the_organisations_timezone() -> None:
    raises = (policy.Raise(nanos=Nanos(1_000_000_000), until=datetime.date(2026, 12, 1), why="launch"),)
    team = builders.team(caps=(cap(raises=raises),))
    policies = builders.policies(timezone="Europe/Berlin")

    def limit(now: str) -> int | None:
        (found,) = budget.touched(policies, team, key="ci", models=[PRO], now=at(now))
        return found.limit_nanos

    assert limit("2026-11-30T22:59:59Z") == 26_000_000_000
    assert limit("2026-11-30T23:00:00Z") == 25_000_000_000


# Which balances a request touches.


@pytest.mark.parametrize(
    ("globs", "text"),
    [((), ""), (("*-official",), '["*-official"]'), (("b", "a", "b"), '["a","b"]'), (("中*",), '["\\u4e2d*"]')],
)
def test_the_same_globs_have_the_same_text(globs: tuple[str, ...], text: str) -> None:
    assert budget.filter_of(cap(models=globs)) == text


@pytest.mark.parametrize(
    ("filter_text", "models", "expected"),
    [
        ("", [], True),
        ("", [PRO], True),
        ('["*-official"]', [PRO], False),
        ('["*-official"]', [PRO, PRO_OFFICIAL], True),
        ('["*-official"]', [PRO_OFFICIAL], True),
        ('["gpt-*","gemini-3-*"]', [PRO], True),
        ('["gpt-*"]', [], False),
    ],
)
def test_a_filter_counts_the_models_it_matches(filter_text: str, models: list[str], expected: bool) -> None:
    assert budget.counts(filter_text, models) is expected


def balance_id(
    scope: Scope = Scope.TEAM, name: str = "growth", window: Window = Window.DAY, start: int = DAY, filter: str = ""
) -> BalanceId:
    return BalanceId(scope=scope, name=name, filter=filter, window=window, start=start)


ORG_MONTH = cap("org-month", 8000, Window.MONTH)
CAPS = (
    cap("daily", 25),
    cap("weekly", 100, Window.WEEK),
    cap("ever", 1000, Window.TOTAL),
    cap("ci-day", 5, key="ci"),
    cap("web-day", 6, key="web"),
    cap("official", 10, models=("*-official",)),
)
TEAM = builders.team(
    caps=CAPS, thresholds=(policy.Threshold(nanos=Nanos(1), window=Window.MONTH, rewrite={PRO: "other"}),)
)


def names(found: tuple[Allowance, ...]) -> list[str]:
    return [each.cap.name if each.cap else "threshold" for each in found]


def touched(*, key: str = "ci", models: tuple[str, ...] = (PRO,), now: float = NOW) -> tuple[Allowance, ...]:
    return budget.touched(builders.policies(caps=(ORG_MONTH,)), TEAM, key=key, models=models, now=now)


def test_a_request_touches_its_keys_its_teams_and_the_organisations_caps_in_one_order() -> None:
    assert [(each.balance, each.limit_nanos, each.resets_at) for each in touched()] == [
        (balance_id(Scope.KEY, "growth/ci"), 5_000_000_000, at("2026-06-18T00:00:00Z")),
        (balance_id(Scope.ORG, "", Window.MONTH, MONTH), 8_000_000_000_000, at("2026-07-01T00:00:00Z")),
        (balance_id(), 25_000_000_000, at("2026-06-18T00:00:00Z")),
        (balance_id(window=Window.MONTH, start=MONTH), None, at("2026-07-01T00:00:00Z")),
        (balance_id(window=Window.TOTAL, start=0), 1_000_000_000_000, None),
        (balance_id(window=Window.WEEK, start=WEEK), 100_000_000_000, at("2026-06-22T00:00:00Z")),
    ]


@pytest.mark.parametrize(
    ("key", "models", "expected"),
    [
        ("ci", (PRO,), ["ci-day", "org-month", "daily", "threshold", "ever", "weekly"]),
        ("web", (PRO,), ["web-day", "org-month", "daily", "threshold", "ever", "weekly"]),
        ("other", (PRO,), ["org-month", "daily", "threshold", "ever", "weekly"]),
        ("other", (PRO_OFFICIAL,), ["org-month", "daily", "threshold", "ever", "weekly", "official"]),
        ("other", (PRO, PRO_OFFICIAL), ["org-month", "daily", "threshold", "ever", "weekly", "official"]),
    ],
)
def test_only_caps_of_this_key_and_these_models_are_touched(
    key: str, models: tuple[str, ...], expected: list[str]
) -> None:
    assert names(touched(key=key, models=models)) == expected


def test_models_may_come_as_an_iterator() -> None:
    found = budget.touched(builders.policies(), TEAM, key="web", models=iter([PRO, PRO_OFFICIAL]), now=NOW)
    assert names(found) == ["web-day", "daily", "threshold", "ever", "weekly", "official"]


def test_two_caps_on_one_balance_are_both_there() -> None:
    team = builders.team(caps=(cap("high", 25), cap("low", 10)))
    found = budget.touched(builders.policies(), team, key="ci", models=[PRO], now=NOW)
    assert [each.balance for each in found] == [balance_id(), balance_id()]
    assert [each.limit_nanos for each in found] == [25_000_000_000, 10_000_000_000]


def test_without_caps_nothing_is_touched() -> None:
    assert budget.touched(builders.policies(), builders.team(), key="ci", models=[PRO], now=NOW) == ()


def test_windows_begin_in_the_organisations_timezone() -> None:
    team = builders.team(caps=(cap(),))
    (found,) = budget.touched(
        builders.policies(timezone="America/Santiago"), team, key="ci", models=[PRO], now=at("2023-09-03T03:59:59Z")
    )
    assert (found.balance.start, found.resets_at) == (at("2023-09-02T04:00:00Z"), at("2023-09-03T04:00:00Z"))


def test_a_threshold_watches_the_teams_whole_spend_without_a_limit() -> None:
    watched = budget.threshold_balance(builders.policies(), TEAM, TEAM.thresholds[0], now=NOW)
    assert watched == Allowance(
        balance=balance_id(window=Window.MONTH, start=MONTH),
        cap=None,
        limit_nanos=None,
        resets_at=at("2026-07-01T00:00:00Z"),
    )


def test_all_allowances_are_those_of_every_team_and_of_the_organisation() -> None:
    teams = {
        "growth": TEAM,
        "tiny": builders.team(name="tiny", caps=(cap("only"),)),
    }
    policies = policy.PolicySet(organisation=policy.Organisation(caps=(ORG_MONTH,)), teams=teams)
    found = budget.all_allowances(policies, now=NOW)
    assert names(found) == [
        "org-month",
        "daily",
        "weekly",
        "ever",
        "ci-day",
        "web-day",
        "official",
        "threshold",
        "only",
    ]
    assert found[4].balance == balance_id(Scope.KEY, "growth/ci")
    assert found[6].balance == balance_id(filter='["*-official"]')
    assert found[8].balance == balance_id(name="tiny")


# How full.


def allowance(usd: int | None, *, scope: Scope = Scope.TEAM, resets_at: int | None = None, **said: Any) -> Allowance:
    return Allowance(
        balance=balance_id(scope, {"org": "", "team": "growth", "key": "growth/ci"}[scope]),
        cap=None if usd is None else cap(usd=usd, **said),
        limit_nanos=None if usd is None else Nanos(usd * 1_000_000_000),
        resets_at=resets_at,
    )


def spent(settled_usd: int, reserved_usd: int = 0) -> Balance:
    return Balance(settled_nanos=settled_usd * 1_000_000_000, reserved_nanos=reserved_usd * 1_000_000_000)


@pytest.mark.parametrize(
    ("caps", "expected"),
    [
        ([], Fraction(0)),
        ([(None, spent(5))], Fraction(0)),
        ([(10, spent(0))], Fraction(0)),
        ([(10, spent(2, 3))], Fraction(1, 2)),
        ([(10, spent(2)), (100, spent(60, 30)), (None, spent(900))], Fraction(9, 10)),
        ([(0, spent(0)), (10, spent(2))], Fraction(1)),
        ([(10, spent(12))], Fraction(6, 5)),
    ],
)
def test_the_fullest_cap_decides_how_full_it_is(caps: list[tuple[int | None, Balance]], expected: Fraction) -> None:
    assert budget.fullness((allowance(usd), balance) for usd, balance in caps) == expected


def test_used_is_settled_and_reserved() -> None:
    assert spent(2, 3).used_nanos() == 5_000_000_000


@pytest.mark.parametrize(
    ("resets", "expected"),
    [([DAY], DAY), ([DAY, MONTH, WEEK], DAY), ([MONTH, DAY, None], None), ([None, DAY], None), ([None], None)],
)
def test_of_several_full_caps_the_one_that_resets_last_answers(resets: list[int | None], expected: int | None) -> None:
    full = [allowance(10, resets_at=each) for each in resets]
    assert budget.last_to_reset(full) is full[resets.index(expected)]


# The answer of a full cap.


def deny(
    full: Allowance,
    balance: Balance,
    *,
    now: float = NOW,
    contact: str | None = "growth-oncall@example.com",
    organisation: policy.Organisation | None = None,
) -> policy.Deny:
    return budget.deny(
        full,
        balance,
        team=builders.team(contact=contact),
        organisation=organisation or policy.Organisation(contact="#genai-spend"),
        now=now,
        open_tasks=3,
    )


TOMORROW = at("2026-06-18T00:00:00Z")


def test_a_full_window_answers_in_the_vendors_own_fields() -> None:
    balance = Balance(settled_nanos=24_900_001_000, reserved_nanos=95_625_000)
    denial = deny(allowance(25, resets_at=TOMORROW, origin="teams/growth.yaml:31"), balance)
    assert denial == policy.Deny(
        code="quota_window_exceeded",
        message="Team growth has no room left in its cap 'daily' for this day; it resets at 2026-06-18T00:00:00Z. "
        "Ask growth-oncall@example.com for more.",
        rule="teams/growth.yaml:31",
        details={
            "scope": "team",
            "name": "growth",
            "cap_name": "daily",
            "window": "day",
            "open_tasks": 3,
            "contact": "growth-oncall@example.com",
            "used": 12_450_001,
            "cap": 12_500_000,
            "used_usd": "24.900001",
            "cap_usd": "25",
            "reserved_usd": "0.095625",
            "reset_at": 1_781_740_800,
        },
        headers={"Retry-After": "60", "x-should-retry": "false"},
    )


def test_a_full_total_answers_that_it_does_not_reset() -> None:
    full = Allowance(
        balance=balance_id(Scope.KEY, "growth/ci", Window.TOTAL, 0),
        cap=cap("ever", 1000, Window.TOTAL, origin="teams/growth.yaml:33"),
        limit_nanos=Nanos(1_000_000_001_999),
        resets_at=None,
    )
    assert deny(full, Balance(settled_nanos=1_000_000_000_001, reserved_nanos=0)) == policy.Deny(
        code="spend_cap_reached",
        message="Key growth/ci has used up its cap 'ever', which does not reset. "
        "Ask growth-oncall@example.com for more.",
        rule="teams/growth.yaml:33",
        details={
            "scope": "key",
            "name": "growth/ci",
            "cap_name": "ever",
            "window": "total",
            "open_tasks": 3,
            "contact": "growth-oncall@example.com",
            "used": 500_000_001,
            "cap": 500_000_000,
            "used_usd": "1000.000000001",
            "cap_usd": "1000.000001999",
            "reserved_usd": "0",
        },
    )


@pytest.mark.parametrize("resets_at", [TOMORROW, None])
def test_the_organisations_amounts_are_left_out(resets_at: int | None) -> None:
    denial = deny(allowance(500, scope=Scope.ORG, resets_at=resets_at), spent(499, 1), contact=None)
    reset = {} if resets_at is None else {"reset_at": TOMORROW}
    assert (
        denial.details
        == {
            "scope": "org",
            "name": "",
            "cap_name": "daily",
            "window": "day",
            "open_tasks": 3,
            "contact": "#genai-spend",
        }
        | reset
    )
    assert denial.message.startswith("The organisation has ")
    assert not any(digits in denial.message for digits in ("499", "500"))


@pytest.mark.parametrize(
    ("now", "seconds"),
    [
        (TOMORROW - 86_400, "60"),
        (TOMORROW - 61, "60"),
        (TOMORROW - 60, "60"),
        (TOMORROW - 59.5, "60"),
        (TOMORROW - 30, "30"),
        (TOMORROW - 29.5, "30"),
        (TOMORROW - 1, "1"),
        (TOMORROW - 0.25, "1"),
        (TOMORROW, "1"),
        (TOMORROW + 5, "1"),
    ],
)
def test_retry_after_is_the_time_to_the_reset_and_at_most_60(now: float, seconds: str) -> None:
    denial = deny(allowance(25, resets_at=TOMORROW), spent(25), now=now)
    assert denial.headers == {"Retry-After": seconds, "x-should-retry": "false"}
    assert denial.details["reset_at"] == TOMORROW


def test_a_total_names_no_time_to_retry() -> None:
    assert deny(allowance(25), spent(25)).headers == {}


def test_without_a_contact_nobody_is_to_be_asked() -> None:
    denial = deny(allowance(25, resets_at=TOMORROW), spent(25), contact=None, organisation=policy.Organisation())
    assert denial.details["contact"] is None
    assert denial.message.endswith("it resets at 2026-06-18T00:00:00Z.")


def test_a_cap_of_nothing_answers_like_any_other() -> None:
    denial = deny(allowance(0, resets_at=TOMORROW), spent(0))
    assert (denial.details["cap"], denial.details["cap_usd"], denial.details["used_usd"]) == (0, "0", "0")


def test_a_balance_without_a_cap_has_no_name_to_give() -> None:
    denial = deny(allowance(None, resets_at=TOMORROW), spent(1))
    assert (denial.details["cap_name"], denial.details["cap_usd"], denial.rule) == ("", "0", "built-in default")
