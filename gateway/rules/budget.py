"""Caps, windows and which balances a request touches.

A balance is (scope, name, filter, window, start): one row however many caps look at it, checked against the lowest.
Windows begin at local midnight of the organisation's timezone; weeks begin on Monday.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import math
import zoneinfo
from collections.abc import Iterable
from fractions import Fraction

from gateway.rules import money, policy
from gateway.rules.money import Nanos


class Scope(enum.StrEnum):
    """Whose spend a balance counts."""

    ORG = "org"
    TEAM = "team"
    KEY = "key"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, order=True)
class BalanceId:
    """Identity of a balance; its order is the one global order in which balances are updated."""

    scope: Scope
    name: str
    """Empty for the organisation, the team, or `team/key`."""
    filter: str
    """Canonical text of the cap's model globs, empty for none."""
    window: policy.Window
    start: int
    """Unix seconds at which the window began; 0 for `total`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """One cap as it stands at an instant."""

    balance: BalanceId
    cap: policy.Cap | None
    limit_nanos: Nanos | None
    """The cap with the raises in force; None for a balance that only a threshold looks at."""
    resets_at: int | None
    """Unix seconds; None for `total`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What is settled and reserved in one balance."""

    settled_nanos: int
    reserved_nanos: int

    def used_nanos(self) -> int:
        """All that counts against a cap."""
        return self.settled_nanos + self.reserved_nanos


def local_midnight(day: datetime.date, timezone: datetime.tzinfo) -> int:
    """Unix seconds of the first instant of a local day, also where the day skips midnight."""
    return int(datetime.datetime(day.year, day.month, day.day, tzinfo=timezone).timestamp())


def timezone_of(name: str) -> datetime.tzinfo:
    """The timezone of that name; raises ValueError if it is unknown here."""
    if name == "UTC":
        return datetime.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is not a timezone; write a name such as Europe/Berlin") from None


def today(now: float, timezone: datetime.tzinfo) -> datetime.date:
    """The local date at an instant in unix seconds."""
    return datetime.datetime.fromtimestamp(now, timezone).date()


def bounds(window: policy.Window, now: float, timezone: datetime.tzinfo) -> tuple[int, int | None]:
    """Start and end, in unix seconds, of the window that an instant lies in; `total` is (0, None)."""
    day = today(now, timezone)
    if window is policy.Window.TOTAL:
        return 0, None
    if window is policy.Window.DAY:
        first, after = day, day + datetime.timedelta(days=1)
    elif window is policy.Window.WEEK:
        first = day - datetime.timedelta(days=day.weekday())
        after = first + datetime.timedelta(days=7)
    else:
        first = day.replace(day=1)
        after = (first + datetime.timedelta(days=32)).replace(day=1)
    return local_midnight(first, timezone), local_midnight(after, timezone)


def limit(cap: policy.Cap, day: datetime.date) -> Nanos:
    """The cap with the raises that are in force on a day; a raise ends at the beginning of its `until`."""
    return Nanos(cap.nanos + sum(extra.nanos for extra in cap.raises if day < extra.until))


def counts(filter_text: str, models: Iterable[str]) -> bool:
    """Whether a balance with this filter counts a task on any of these models."""
    return not filter_text or any(policy.matches(model, json.loads(filter_text)) for model in models)


def filter_of(cap: policy.Cap) -> str:
    """Canonical text of a cap's model globs."""
    return json.dumps(sorted(set(cap.models)), separators=(",", ":")) if cap.models else ""


def touched(
    policies: policy.PolicySet, team: policy.Team, *, key: str, models: Iterable[str], now: float
) -> tuple[Allowance, ...]:
    """Every cap that a request of this key touches, in the global order of balances, thresholds' balances included.

    `models`: the model sent and, where fallback may bill it, its official one.
    """
    names = tuple(models)
    others = {f"{team.name}/{cap.key}" for cap in team.caps if cap.key not in (None, key)}
    mine = [each for each in _allowances_of(policies, team, now) if each.balance.name not in others]
    found = [each for each in mine + _allowances_of_all(policies, now) if counts(each.balance.filter, names)]
    return tuple(sorted(found, key=lambda each: each.balance))


def all_allowances(policies: policy.PolicySet, *, now: float) -> tuple[Allowance, ...]:
    """Every cap of every team and of the organisation, as it stands now."""
    found = _allowances_of_all(policies, now)
    for team in policies.teams.values():
        found += _allowances_of(policies, team, now)
    return tuple(found)


def fullness(allowances: Iterable[tuple[Allowance, Balance]]) -> Fraction:
    """(settled + reserved) ÷ cap of the fullest cap; 0 where there is none, 1 for a cap of nothing."""
    ratios = [
        Fraction(balance.used_nanos(), each.limit_nanos) if each.limit_nanos else Fraction(1)
        for each, balance in allowances
        if each.limit_nanos is not None
    ]
    return max(ratios, default=Fraction(0))


def last_to_reset(full: Iterable[Allowance]) -> Allowance:
    """Of several full caps, the one that answers: `total` before any window, else the one that resets last."""
    return max(full, key=lambda each: (each.resets_at is None, each.resets_at or 0))


def deny(
    allowance: Allowance,
    balance: Balance,
    *,
    team: policy.Team,
    organisation: policy.Organisation,
    now: float,
    open_tasks: int,
) -> policy.Deny:
    """The answer of a full cap: 429 in the vendor's own fields, or 402 for a `total`.

    A team does not see the organisation's amounts.
    """
    cap, balance_id = allowance.cap, allowance.balance
    contact = team.contact or organisation.contact
    details: dict[str, object] = {"scope": balance_id.scope.value, "name": balance_id.name}
    details |= {"cap_name": cap.name if cap else "", "window": balance_id.window.value}
    details |= {"open_tasks": open_tasks, "contact": contact}
    limit_nanos = allowance.limit_nanos or 0
    if balance_id.scope is not Scope.ORG:
        details |= {
            "used": money.quota_above(balance.settled_nanos),
            "cap": money.quota_below(limit_nanos),
            "used_usd": money.render_usd(balance.settled_nanos),
            "cap_usd": money.render_usd(limit_nanos),
            "reserved_usd": money.render_usd(balance.reserved_nanos),
        }
    whose = {Scope.ORG: "The organisation", Scope.TEAM: f"Team {team.name}", Scope.KEY: f"Key {balance_id.name}"}
    ask = f" Ask {contact} for more." if contact else ""
    rule = cap.origin if cap else policy.BUILT_IN
    name = cap.name if cap else ""
    if allowance.resets_at is None:
        return policy.Deny(
            code="spend_cap_reached",
            message=f"{whose[balance_id.scope]} has used up its cap {name!r}, which does not reset.{ask}",
            rule=rule,
            details=details,
        )
    reset = datetime.datetime.fromtimestamp(allowance.resets_at, datetime.UTC)
    return policy.Deny(
        code="quota_window_exceeded",
        message=f"{whose[balance_id.scope]} has no room left in its cap {name!r} for this {balance_id.window.value}; "
        f"it resets at {reset:%Y-%m-%dT%H:%M:%SZ}.{ask}",
        rule=rule,
        details=details | {"reset_at": allowance.resets_at},
        headers={"Retry-After": str(max(1, min(60, math.ceil(allowance.resets_at - now)))), "x-should-retry": "false"},
    )


def _allowances_of(policies: policy.PolicySet, team: policy.Team, now: float) -> list[Allowance]:
    return [
        _allowance(policies, Scope.KEY, f"{team.name}/{cap.key}", cap, now)
        if cap.key
        else _allowance(policies, Scope.TEAM, team.name, cap, now)
        for cap in team.caps
    ] + [threshold_balance(policies, team, each, now=now) for each in team.thresholds]


def threshold_balance(
    policies: policy.PolicySet, team: policy.Team, threshold: policy.Threshold, *, now: float
) -> Allowance:
    """The team's whole spend in a threshold's window, without a limit."""
    cap = policy.Cap(name="", nanos=threshold.nanos, window=threshold.window)
    return dataclasses.replace(_allowance(policies, Scope.TEAM, team.name, cap, now), cap=None, limit_nanos=None)


def _allowances_of_all(policies: policy.PolicySet, now: float) -> list[Allowance]:
    return [_allowance(policies, Scope.ORG, "", cap, now) for cap in policies.organisation.caps]


def _allowance(policies: policy.PolicySet, scope: Scope, name: str, cap: policy.Cap, now: float) -> Allowance:
    timezone = timezone_of(policies.organisation.timezone)
    start, end = bounds(cap.window, now, timezone)
    return Allowance(
        balance=BalanceId(scope=scope, name=name, filter=filter_of(cap), window=cap.window, start=start),
        cap=cap,
        limit_nanos=limit(cap, today(now, timezone)),
        resets_at=end,
    )
