from __future__ import annotations

import datetime
import json
import zoneinfo
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.rules import focus
from tests import focus_table

FLASH = "gemini-2.5-flash-image-preview"


def charge(**said: Any) -> focus.Charge:
    known: dict[str, Any] = {
        "day": "2026-11-22",
        "team": "growth",
        "key": "ci",
        "account": "env:WAVE_KEY_GROWTH",
        "model": FLASH,
        "requested": FLASH,
        "tier": "standard",
        "action": "generate",
        "tags": "{}",
        "unit_nanos": 13_281_250,
        "reason": "",
        "tasks": 2,
        "images": 3,
        "cost_nanos": 39_842_000,
    }
    return focus.Charge(**known | said)


def as_row(
    one: focus.Charge, *, labels: Mapping[str, str] | None = None, timezone: datetime.tzinfo = datetime.UTC
) -> dict[str, str]:
    """A row by its columns, after the specification was held against it."""
    text = focus_table.written(focus.COLUMNS, [focus.row(one, labels=labels or {}, timezone=timezone)])
    assert focus_table.problems(text) == []
    [row] = focus_table.read(text)
    return row


def test_every_column_of_the_specification_is_there_then_ours_in_order():
    assert len(focus_table.TABLE) == 57
    assert [name for name in focus.COLUMNS if not name.startswith("x_")] == [name for name, *_ in focus_table.TABLE]
    assert focus_table.problems(focus_table.written(focus.COLUMNS, [])) == []


def test_what_was_paid_is_usage_at_the_price_of_the_list_and_at_what_was_billed():
    row = as_row(charge())
    assert {name: cell for name, cell in row.items() if cell} == {
        "BilledCost": "0.039842",
        "BillingAccountId": "env:WAVE_KEY_GROWTH",
        "BillingAccountName": "env:WAVE_KEY_GROWTH",
        "BillingAccountType": "Upstream Key",
        "BillingCurrency": "USD",
        "BillingPeriodEnd": "2026-12-01T00:00:00Z",
        "BillingPeriodStart": "2026-11-01T00:00:00Z",
        "ChargeCategory": "Usage",
        "ChargeDescription": "Images by gemini-2.5-flash-image-preview",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": "2026-11-23T00:00:00Z",
        "ChargePeriodStart": "2026-11-22T00:00:00Z",
        "ConsumedQuantity": "3",
        "ConsumedUnit": "Images",
        "ContractedCost": "0.03984375",
        "ContractedUnitPrice": "0.01328125",
        "EffectiveCost": "0.039842",
        "InvoiceIssuerName": "Wave",
        "ListCost": "0.03984375",
        "ListUnitPrice": "0.01328125",
        "PricingCategory": "Standard",
        "PricingCurrency": "USD",
        "PricingCurrencyContractedUnitPrice": "0.01328125",
        "PricingCurrencyEffectiveCost": "0.039842",
        "PricingCurrencyListUnitPrice": "0.01328125",
        "PricingQuantity": "3",
        "PricingUnit": "Images",
        "ProviderName": "Wave",
        "PublisherName": "Wave",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Wave",
        "ServiceSubcategory": "Generative AI",
        "SkuId": FLASH,
        "SkuMeter": "Images",
        "SkuPriceId": FLASH,
        "SubAccountId": "growth",
        "SubAccountName": "growth",
        "SubAccountType": "Team",
        "x_Action": "generate",
        "x_AvoidedCost": "0",
        "x_FallbackPremium": "0",
        "x_KeyName": "ci",
        "x_RequestedSkuId": FLASH,
        "x_TaskCount": "2",
        "x_Tier": "standard",
    }


@pytest.mark.parametrize(
    ("reason", "description"), [("cache", "repeated from the cache"), ("coalesced", "shared with a request under way")]
)
def test_what_came_free_was_consumed_and_not_priced(reason, description):
    row = as_row(charge(reason=reason, cost_nanos=0, avoided_nanos=39_842_000))
    assert row["ChargeDescription"] == f"Images by {FLASH}, {description}"
    assert (row["ConsumedQuantity"], row["PricingQuantity"], row["ListUnitPrice"]) == ("3", "0", "0.01328125")
    assert (row["BilledCost"], row["ListCost"], row["ContractedCost"]) == ("0", "0", "0")
    assert (row["x_AvoidedCost"], row["x_AvoidedReason"]) == ("0.039842", reason)


def test_a_cost_without_an_image_is_an_adjustment():
    row = as_row(charge(images=0, cost_nanos=66_300_000, premium_nanos=39_737_500))
    assert row["ChargeCategory"] == "Adjustment"
    assert (row["BilledCost"], row["ListCost"], row["ContractedCost"]) == ("0.0663", "0.0663", "0.0663")
    assert (row["PricingQuantity"], row["SkuPriceId"], row["x_FallbackPremium"]) == ("", "", "0.0397375")


def test_a_charge_whose_task_is_not_kept_has_no_unit_price():
    text = focus_table.written(
        focus.COLUMNS, [focus.row(charge(unit_nanos=None, account="", action=""), labels={}, timezone=datetime.UTC)]
    )
    # The one point at which a file departs from the specification.
    assert focus_table.problems(text) == [
        "row 1: ContractedUnitPrice is null for usage",
        "row 1: ListUnitPrice is null for usage",
    ]
    [row] = focus_table.read(text)
    assert (row["ListCost"], row["BillingAccountId"], row["x_Action"]) == ("0.039842", "Wave", "")


def test_tags_are_the_clients_as_they_are_and_the_teams_labels_by_a_prefix():
    row = as_row(charge(tags='{"stage":"draft","project":"=x \\"y\\""}'), labels={"project": "blog", "größe": "1,5"})
    assert json.loads(row["Tags"]) == {
        "stage": "draft",
        "project": '=x "y"',
        "label/project": "blog",
        "label/größe": "1,5",
    }
    assert as_row(charge())["Tags"] == ""


@pytest.mark.parametrize(
    ("timezone", "day", "instants"),
    [
        ("Pacific/Auckland", "2026-11-01", ("2026-10-31T11:00:00Z", "2026-11-01T11:00:00Z", "2026-10-31T11:00:00Z")),
        # The clocks change on that day, so it is 25 hours long.
        ("America/New_York", "2026-11-01", ("2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z", "2026-11-01T04:00:00Z")),
        ("Asia/Kathmandu", "2026-12-31", ("2026-12-30T18:15:00Z", "2026-12-31T18:15:00Z", "2026-11-30T18:15:00Z")),
    ],
)
def test_days_and_months_are_those_of_the_timezone_written_in_utc(timezone, day, instants):
    row = as_row(charge(day=day), timezone=zoneinfo.ZoneInfo(timezone))
    assert (row["ChargePeriodStart"], row["ChargePeriodEnd"], row["BillingPeriodStart"]) == instants
