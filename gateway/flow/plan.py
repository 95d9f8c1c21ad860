"""What a request would do, before anything is stored: the decision, the quote, the fingerprint, the caps it touches.

`submit` carries a plan out, `explain` shows it.
"""

from __future__ import annotations

import dataclasses
import enum
from fractions import Fraction

from gateway.flow import references
from gateway.rules import budget, fingerprint, policy, pricing
from gateway.rules import request as requests
from gateway.rules.money import Nanos
from gateway.store import ledger
from gateway.store.database import Tx


class CacheMode(enum.StrEnum):
    """What a client wants of the result cache."""

    DEFAULT = ""
    NO_STORE = "no-store"
    """Neither read, written nor joined."""
    REFRESH = "refresh"
    """Not read or joined, but written."""
    ONLY_IF_CACHED = "only-if-cached"
    """A hit or a leader to follow, else nothing."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An allowed request; `price` may still deny it, but not a hit or a follower."""

    policies: policy.PolicySet
    team: policy.Team
    key: str
    asked: requests.Request
    allow: policy.Allow
    fingerprint: str | None
    """None where the request is not cacheable."""
    price: pricing.Quote | policy.Deny
    allowances: tuple[budget.Allowance, ...]


def make(
    tx: Tx, policies: policy.PolicySet, team: policy.Team, key: str, request: requests.Request, *, now: float
) -> Plan | policy.Deny:
    """Plan a request at an instant; reads balances only where a rule asks how full they are."""
    full = _fullness(tx, policies, team, key, request, now)
    decided = policy.decide(policies, team, request, fullness=full)
    if isinstance(decided, policy.Deny):
        return decided
    sent = decided.request
    scope = fingerprint.ORG_SCOPE if team.cache.scope is policy.CacheScope.ORG else fingerprint.team_scope(team.name)
    timezone = budget.timezone_of(policies.organisation.timezone)
    models = [sent.model] + ([decided.official.name] if decided.official else [])
    return Plan(
        policies=policies,
        team=team,
        key=key,
        asked=request,
        allow=decided,
        fingerprint=fingerprint.of(sent, scope=scope) if policy.is_cacheable(team, sent) else None,
        price=references.deny(sent) or pricing.quote(policies, team, decided, budget.today(now, timezone)),
        allowances=budget.touched(policies, team, key=key, models=models, now=now),
    )


def reached_threshold(tx: Tx, plan: Plan, *, now: float) -> policy.Threshold | None:
    """The first threshold that is spent and rewrites this request's model."""
    for each in plan.team.thresholds:
        if plan.allow.request.model in each.rewrite:
            watched = budget.threshold_balance(plan.policies, plan.team, each, now=now)
            if ledger.balance_of(tx, watched.balance).used_nanos() >= each.nanos:
                return each
    return None


def rewritten(plan: Plan, reached: policy.Threshold) -> requests.Request:
    """The request as it was asked, with the model that a threshold puts in its place."""
    return dataclasses.replace(plan.asked, model=reached.rewrite[plan.allow.request.model])


def deny_cost(quoted: pricing.Quote, limit_nanos: Nanos | None, n: int) -> policy.Deny | None:
    """Hold the client's own bound on the cost against the quote."""
    if limit_nanos is None or quoted.nanos <= pricing.most_allowed(limit_nanos, n):
        return None
    return policy.Deny(
        code="max_cost_exceeded",
        message="The request may cost more than its X-Wave-Max-Cost-Usd; raise that or ask for less.",
        rule="X-Wave-Max-Cost-Usd",
    )


def deny_uncached() -> policy.Deny:
    """The answer to a client that wants a kept result or none."""
    return policy.Deny(
        code="only_if_cached",
        message="No result of this request is kept or on its way; send it without X-Wave-Cache: only-if-cached.",
        rule="X-Wave-Cache",
    )


def deny_open_tasks(team: policy.Team) -> policy.Deny:
    """The answer to a team whose every place for an open task is taken."""
    most = team.limits.open_tasks
    return _deny_crowd(f"Team {team.name} has {most} open tasks, its limit", team.origin("limits.open_tasks"))


def deny_followers(team: str, most: int) -> policy.Deny:
    """The answer to a team of which too many tasks wait for others."""
    return _deny_crowd(f"{most} tasks of team {team} wait for others already", policy.BUILT_IN)


def _deny_crowd(why: str, rule: str) -> policy.Deny:
    return policy.Deny(
        code="concurrency_limit_exceeded",
        message=f"{why}; send the request again when some have ended.",
        rule=rule,
        headers={"Retry-After": "5"},
    )


def _fullness(
    tx: Tx, policies: policy.PolicySet, team: policy.Team, key: str, request: requests.Request, now: float
) -> Fraction:
    if not policy.needs_fullness(team):
        return Fraction(0)
    called = policy.rewrite(team, request).model
    entry = policies.models.get(called)
    models = [called] + ([entry.official] if entry is not None and entry.official else [])
    touched = budget.touched(policies, team, key=key, models=models, now=now)
    return budget.fullness((each, ledger.balance_of(tx, each.balance)) for each in touched)
