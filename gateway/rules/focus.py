"""Charges as rows of the FinOps Open Cost and Usage Specification (FOCUS), version 1.2.

Every column of that version is there, in its order; what does not apply to a task API is null, an empty cell. Then
come ours, with `x_`. Source: https://focus.finops.org/focus-specification/v1-2; docs/REPORTS.md says where each
value comes from. Pure: reads no file and no clock.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping
from typing import Final

from gateway.rules import budget, money, policy

VENDOR: Final = "Wave"
"""Who provides, publishes and invoices; also the account of a charge whose upstream key is not known any more."""
LABEL: Final = "label/"
"""Before the name of a team's label, so that it cannot be mistaken for a client's tag."""

COLUMNS: Final = (
    "AvailabilityZone",
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "CapacityReservationId",
    "CapacityReservationStatus",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "CommitmentDiscountCategory",
    "CommitmentDiscountId",
    "CommitmentDiscountName",
    "CommitmentDiscountQuantity",
    "CommitmentDiscountStatus",
    "CommitmentDiscountType",
    "CommitmentDiscountUnit",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingCurrency",
    "PricingCurrencyContractedUnitPrice",
    "PricingCurrencyEffectiveCost",
    "PricingCurrencyListUnitPrice",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "RegionId",
    "RegionName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceDetails",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "Tags",
    "x_Action",
    "x_AvoidedCost",
    "x_AvoidedReason",
    "x_FallbackPremium",
    "x_KeyName",
    "x_RequestedSkuId",
    "x_TaskCount",
    "x_Tier",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What the tasks of one day that are alike in everything but their results cost, or did not cost."""

    day: str
    """The local date, as in `2026-11-22`."""
    team: str
    key: str
    account: str
    """The reference of the upstream key; empty where it is not known any more."""
    model: str
    """The billed model."""
    requested: str
    tier: str
    action: str
    tags: str
    """The client's, as a JSON object."""
    unit_nanos: int | None
    """The frozen price of one image on the billed channel; None where the task's row is not kept any more."""
    reason: str
    """Why it was free: `cache` or `coalesced`; empty for what was paid."""
    tasks: int = 0
    images: int = 0
    cost_nanos: int = 0
    premium_nanos: int = 0
    avoided_nanos: int = 0


def row(charge: Charge, *, labels: Mapping[str, str], timezone: datetime.tzinfo) -> tuple[str, ...]:
    """The cells of a charge, in the order of `COLUMNS`; null is empty. `labels` are those of its team."""
    values = _always(charge, timezone) | _priced(charge)
    values["Tags"] = _tags(charge.tags, labels)
    return tuple(values.get(name, "") for name in COLUMNS)


def _always(charge: Charge, timezone: datetime.tzinfo) -> dict[str, str]:
    begins = budget.local_midnight(datetime.date.fromisoformat(charge.day), timezone)
    day_start, day_end = budget.bounds(policy.Window.DAY, begins, timezone)
    month_start, month_end = budget.bounds(policy.Window.MONTH, begins, timezone)
    account, cost = charge.account or VENDOR, money.render_usd(charge.cost_nanos)
    return {
        "BilledCost": cost,
        "BillingAccountId": account,
        "BillingAccountName": account,
        "BillingAccountType": "Upstream Key",
        "BillingCurrency": "USD",
        "BillingPeriodEnd": _instant(month_end),
        "BillingPeriodStart": _instant(month_start),
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": _instant(day_end),
        "ChargePeriodStart": _instant(day_start),
        "EffectiveCost": cost,
        "InvoiceIssuerName": VENDOR,
        "PricingCurrency": "USD",
        "PricingCurrencyEffectiveCost": cost,
        "ProviderName": VENDOR,
        "PublisherName": VENDOR,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": VENDOR,
        "ServiceSubcategory": "Generative AI",
        "SkuId": charge.model,
        "SkuMeter": "Images",
        "SubAccountId": charge.team,
        "SubAccountName": charge.team,
        "SubAccountType": "Team",
        "x_Action": charge.action,
        "x_AvoidedCost": money.render_usd(charge.avoided_nanos),
        "x_AvoidedReason": charge.reason,
        "x_FallbackPremium": money.render_usd(charge.premium_nanos),
        "x_KeyName": charge.key,
        "x_RequestedSkuId": charge.requested,
        "x_TaskCount": str(charge.tasks),
        "x_Tier": charge.tier,
    }


def _priced(charge: Charge) -> dict[str, str]:
    """What depends on whether there were images, and whether they were paid for.

    A cost without an image (an operator's decision, a failure that was billed) has no quantity and no price, so it is
    an adjustment. The price of the list is what was agreed on, so the contracted cost is the list's; a vendor's
    rounding and drift show in the billed cost only.
    """
    if not charge.images:
        cost = money.render_usd(charge.cost_nanos)
        description = f"Charge by {charge.model} without an image"
        return {
            "ChargeCategory": "Adjustment",
            "ChargeDescription": description,
            "ContractedCost": cost,
            "ListCost": cost,
        }
    images = "0" if charge.reason else str(charge.images)
    unit = "" if charge.unit_nanos is None else money.render_usd(charge.unit_nanos)
    at_list = charge.cost_nanos if charge.unit_nanos is None else charge.unit_nanos * int(images)
    of_what = {"": "", "cache": ", repeated from the cache", "coalesced": ", shared with a request under way"}
    return {
        "ChargeCategory": "Usage",
        "ChargeDescription": f"Images by {charge.model}{of_what[charge.reason]}",
        "ConsumedQuantity": str(charge.images),
        "ConsumedUnit": "Images",
        "ContractedCost": money.render_usd(at_list),
        "ContractedUnitPrice": unit,
        "ListCost": money.render_usd(at_list),
        "ListUnitPrice": unit,
        "PricingCategory": "Standard",
        "PricingCurrencyContractedUnitPrice": unit,
        "PricingCurrencyListUnitPrice": unit,
        "PricingQuantity": images,
        "PricingUnit": "Images",
        "SkuPriceId": charge.model,
    }


def _tags(tags: str, labels: Mapping[str, str]) -> str:
    """Null where there are none."""
    both = json.loads(tags) | {LABEL + name: value for name, value in labels.items()}
    return json.dumps(both, ensure_ascii=False, sort_keys=True) if both else ""


def _instant(at: int | None) -> str:
    """`2026-11-22T00:00:00Z`; a day and a month always end."""
    assert at is not None
    return f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
