"""Quotes and costs: what a request can cost at most, and what a finished task did cost.

A price is frozen at admission (`Quote` is kept on the task's row), so a settle never reads today's price.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping

from gateway.rules import money, policy, task
from gateway.rules import request as requests
from gateway.rules.money import Nanos


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """The most that a request can cost, and the exact unit prices that it was made of."""

    nanos: Nanos
    standard_unit_nanos: Nanos
    """Exact price of one image on the channel that was asked for."""
    official_unit_nanos: Nanos | None
    """Exact price of one image where `official_fallback` may bill it."""
    model: str
    tier: policy.Tier
    official: str | None
    """The model id that `official_fallback` may bill."""
    version: str
    """The dates of the prices used, for the task's row."""

    def dearest_unit_nanos(self) -> Nanos:
        """Exact price of one image on the dearest channel possible."""
        return max(self.standard_unit_nanos, self.official_unit_nanos or money.ZERO)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a finished task cost, on whose account, and how far that is from the list."""

    nanos: Nanos
    model: str
    tier: policy.Tier
    images: int
    premium_nanos: Nanos
    """Paid above the standard price through `official_fallback`."""
    drift_nanos: Nanos
    """How far the vendor's bill is from the price of the billed channel, where that is more than rounding."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """Sums of one team, model and tier since the beginning."""

    team: str
    model: str
    tier: str
    cost_nanos: int
    images: int
    avoided_cache_nanos: int
    avoided_coalesced_nanos: int
    premium_nanos: int
    drift_nanos: int


def quote(
    policies: policy.PolicySet, team: policy.Team, allow: policy.Allow, today: datetime.date
) -> Quote | policy.Deny:
    """Quote an allowed request at today's prices, rounded up to a whole upstream quota per image.

    Denies a request that has no price in force, or whose quote is beyond any amount that we count.
    """
    quoted = _quote_any(policies, team, allow, today)
    if isinstance(quoted, Quote) and quoted.nanos > money.MAX_NANOS:
        return policy.Deny(
            code="limit_exceeded",
            message=f"n = {allow.request.n} images would cost more than any budget; ask for fewer.",
            rule=policy.BUILT_IN,
            param="n",
            details={"limit": "n", "value": allow.request.n},
        )
    return quoted


def in_force(model: policy.Model, today: datetime.date) -> Mapping[str, Nanos]:
    """Price of one image on a day, by resolution in upper case, with `default`; empty where none is in force."""
    return _dated(model, today).nanos


def _quote_any(
    policies: policy.PolicySet, team: policy.Team, allow: policy.Allow, today: datetime.date
) -> Quote | policy.Deny:
    request, model, official = allow.request, allow.model, allow.official
    if model is None:
        unit = team.unlisted_nanos or money.ZERO
        return _quote(request, unit, None, model=request.model, tier=policy.Tier.STANDARD, official=None, version="")
    standard = _unit(model, request, today)
    if standard is None:
        return _no_price(model, request)
    dearer = None if official is None else _unit(official, request, today)
    if official is not None and dearer is None:
        return _no_price(official, request)
    version = ",".join(_dated(entry, today).since.isoformat() for entry in (model, official) if entry is not None)
    return _quote(
        request,
        standard,
        dearer,
        model=model.name,
        tier=model.tier,
        official=None if official is None else official.name,
        version=version,
    )


def most_allowed(limit_nanos: Nanos, n: int) -> Nanos:
    """A client's own bound on the cost, rounded up to a whole quota per image like the quote it is held against."""
    return Nanos(n * money.ceil_to_quota(-(-limit_nanos // n)))


def add(one: Total, other: Total) -> Total:
    """The sums of two totals, under the first one's names."""
    return dataclasses.replace(
        one,
        cost_nanos=one.cost_nanos + other.cost_nanos,
        images=one.images + other.images,
        avoided_cache_nanos=one.avoided_cache_nanos + other.avoided_cache_nanos,
        avoided_coalesced_nanos=one.avoided_coalesced_nanos + other.avoided_coalesced_nanos,
        premium_nanos=one.premium_nanos + other.premium_nanos,
        drift_nanos=one.drift_nanos + other.drift_nanos,
    )


def settle(quoted: Quote, outcome: task.Outcome, *, n: int) -> Cost:
    """Cost of a finished task: the vendor's `cost`, else what it took beforehand, else the frozen price (M9)."""
    return _booked(quoted, _billed(quoted, outcome, n), images=outcome.images)


def charge(quoted: Quote, nanos: Nanos, *, n: int) -> Cost:
    """Cost that an operator names: judged like a bill for all `n` images, none of which was delivered."""
    return dataclasses.replace(_booked(quoted, nanos, images=n), images=0)


def _booked(quoted: Quote, nanos: Nanos, *, images: int) -> Cost:
    is_official = quoted.official is not None and nanos > images * money.ceil_to_quota(quoted.standard_unit_nanos)
    unit = quoted.official_unit_nanos if is_official else quoted.standard_unit_nanos
    difference = abs(nanos - images * (unit or money.ZERO))
    return Cost(
        nanos=nanos,
        model=quoted.official if is_official and quoted.official else quoted.model,
        tier=policy.Tier.OFFICIAL if is_official else quoted.tier,
        images=images,
        premium_nanos=Nanos(nanos - images * quoted.standard_unit_nanos) if is_official else money.ZERO,
        drift_nanos=Nanos(difference) if difference > images * money.NANOS_PER_QUOTA else money.ZERO,
    )


def _billed(quoted: Quote, outcome: task.Outcome, n: int) -> Nanos:
    if outcome.cost_quota is not None:
        return money.quota_to_nanos(outcome.cost_quota)
    if outcome.pre_consumed_quota is not None and outcome.images == n:
        return money.quota_to_nanos(outcome.pre_consumed_quota)
    return Nanos(outcome.images * quoted.dearest_unit_nanos())


def _quote(
    request: requests.Request,
    standard: Nanos,
    dearer: Nanos | None,
    *,
    model: str,
    tier: policy.Tier,
    official: str | None,
    version: str,
) -> Quote:
    dearest = max(standard, dearer or money.ZERO)
    return Quote(
        nanos=Nanos(request.n * money.ceil_to_quota(dearest)),
        standard_unit_nanos=standard,
        official_unit_nanos=dearer,
        model=model,
        tier=tier,
        official=official,
        version=version,
    )


def _dated(model: policy.Model, today: datetime.date) -> policy.Price:
    in_force = [price for price in model.prices if price.since <= today]
    return max(in_force, key=lambda price: price.since, default=_NO_PRICE)


def _unit(model: policy.Model, request: requests.Request, today: datetime.date) -> Nanos | None:
    prices = in_force(model, today)
    price = prices.get(request.resolution.upper(), prices.get("default"))
    if price is None:
        return None
    return Nanos(price + len(request.image_urls) * model.reference_image_nanos)


def _no_price(model: policy.Model, request: requests.Request) -> policy.Deny:
    return policy.Deny(
        code="price_not_configured",
        message=f"models.yaml has no price in force for {model.name} at {request.resolution}; "
        "ask whoever keeps the policy files to add one.",
        rule=model.origin,
        param="model",
    )


_NO_PRICE = policy.Price(since=datetime.date.min, nanos={})
