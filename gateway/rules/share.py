"""Which cap a line of a report is held against: its ceiling.

The narrowest scope that the line names and that has a fitting cap: its key, else its team, else the organisation. Of
the caps there without a filter by model, the shortest window that contains the whole time of the line; of two such
caps the lower. Caps are those in force now, with the raises of the line's last day.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Final

from gateway.rules import budget, money, policy
from gateway.rules.money import Nanos

_BY_LENGTH: Final = tuple(policy.Window)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """A cap as a line of a report sees it."""

    scope: budget.Scope
    window: policy.Window
    cap: str
    """Its own name."""
    limit_nanos: Nanos

    def share(self, cost_nanos: int) -> Fraction | None:
        """How much of the limit a cost is; None for a limit of nothing."""
        return Fraction(cost_nanos, self.limit_nanos) if self.limit_nanos else None


def ceiling(
    policies: policy.PolicySet, *, team: str | None, key: str | None, since: float, until: float, now: float
) -> Ceiling | None:
    """The cap that a line is held against, if any.

    `team` and `key` where the line is of one team, and of one key of it; its time is [since, until) in unix seconds.
    """
    timezone = budget.timezone_of(policies.organisation.timezone)
    first, last = _so_far(since, now), _so_far(until - 1, now)
    last_day = budget.today(last, timezone)
    for scope, caps in _scopes(policies, team, key):
        fitting = [
            Ceiling(scope=scope, window=cap.window, cap=cap.name, limit_nanos=budget.limit(cap, last_day))
            for cap in caps
            if not cap.models and _contains(budget.bounds(cap.window, first, timezone)[1], until)
        ]
        if fitting:
            return min(fitting, key=lambda each: (_BY_LENGTH.index(each.window), each.limit_nanos))
    return None


def average(cost_nanos: int, images: int) -> int | None:
    """Cost per image in nanos, rounded half to even; None without images."""
    return round(Fraction(cost_nanos, images)) if images else None


def render(share: Fraction) -> str:
    """A share as a decimal of at most nine places, rounded half to even: `"0.664062"`."""
    return money.render_usd(round(share * money.NANOS_PER_USD))


def percent(share: Fraction) -> str:
    """A share for people, rounded half to even: `"66.4%"`."""
    whole, tenth = divmod(round(share * 1000), 10)
    return f"{whole}.{tenth}%"


def _so_far(at: float, now: float) -> float:
    """An instant between the epoch and now: dates far away have no window."""
    return min(max(at, 0.0), now)


def _contains(ends_at: int | None, until: float) -> bool:
    """Whether a window that began before a line's time lasts as long; to the second, as `now` ends a report."""
    return ends_at is None or until <= ends_at + 1


def _scopes(
    policies: policy.PolicySet, team: str | None, key: str | None
) -> Iterator[tuple[budget.Scope, Iterable[policy.Cap]]]:
    """Scopes that contain the line, the narrowest first, each with its caps."""
    caps = policies.teams[team].caps if team is not None and team in policies.teams else ()
    if key is not None:
        yield budget.Scope.KEY, [cap for cap in caps if cap.key == key]
    yield budget.Scope.TEAM, [cap for cap in caps if cap.key is None]
    yield budget.Scope.ORG, policies.organisation.caps
