"""What FOCUS 1.2 asks of a file, written out by hand from the specification, and a reader that holds a file against it.

Source: https://focus.finops.org/focus-specification/v1-2, each column's requirements and content constraints.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal

MANDATORY, RECOMMENDED, CONDITIONAL = "mandatory", "recommended", "conditional"
DECIMAL, STRING, DATETIME, KEY_VALUES, CURRENCY = "decimal", "string", "date/time", "key-values", "currency"

TABLE: tuple[tuple[str, str, str, bool, tuple[str, ...]], ...] = (
    # column, feature level, type, may be null, allowed values
    ("AvailabilityZone", RECOMMENDED, STRING, True, ()),
    ("BilledCost", MANDATORY, DECIMAL, False, ()),
    ("BillingAccountId", MANDATORY, STRING, False, ()),
    ("BillingAccountName", MANDATORY, STRING, True, ()),
    ("BillingAccountType", CONDITIONAL, STRING, False, ()),
    ("BillingCurrency", MANDATORY, CURRENCY, False, ()),
    ("BillingPeriodEnd", MANDATORY, DATETIME, False, ()),
    ("BillingPeriodStart", MANDATORY, DATETIME, False, ()),
    ("CapacityReservationId", CONDITIONAL, STRING, True, ()),
    ("CapacityReservationStatus", CONDITIONAL, STRING, True, ("Used", "Unused")),
    ("ChargeCategory", MANDATORY, STRING, False, ("Usage", "Purchase", "Tax", "Credit", "Adjustment")),
    ("ChargeClass", MANDATORY, STRING, True, ("Correction",)),
    ("ChargeDescription", MANDATORY, STRING, True, ()),
    ("ChargeFrequency", RECOMMENDED, STRING, False, ("One-Time", "Recurring", "Usage-Based")),
    ("ChargePeriodEnd", MANDATORY, DATETIME, False, ()),
    ("ChargePeriodStart", MANDATORY, DATETIME, False, ()),
    ("CommitmentDiscountCategory", CONDITIONAL, STRING, True, ("Spend", "Usage")),
    ("CommitmentDiscountId", CONDITIONAL, STRING, True, ()),
    ("CommitmentDiscountName", CONDITIONAL, STRING, True, ()),
    ("CommitmentDiscountQuantity", CONDITIONAL, DECIMAL, True, ()),
    ("CommitmentDiscountStatus", CONDITIONAL, STRING, True, ("Used", "Unused")),
    ("CommitmentDiscountType", CONDITIONAL, STRING, True, ()),
    ("CommitmentDiscountUnit", CONDITIONAL, STRING, True, ()),
    ("ConsumedQuantity", CONDITIONAL, DECIMAL, True, ()),
    ("ConsumedUnit", CONDITIONAL, STRING, True, ()),
    ("ContractedCost", MANDATORY, DECIMAL, False, ()),
    ("ContractedUnitPrice", CONDITIONAL, DECIMAL, True, ()),
    ("EffectiveCost", MANDATORY, DECIMAL, False, ()),
    ("InvoiceId", RECOMMENDED, STRING, True, ()),
    ("InvoiceIssuerName", MANDATORY, STRING, False, ()),
    ("ListCost", MANDATORY, DECIMAL, False, ()),
    ("ListUnitPrice", CONDITIONAL, DECIMAL, True, ()),
    ("PricingCategory", CONDITIONAL, STRING, True, ("Standard", "Dynamic", "Committed", "Other")),
    ("PricingCurrency", CONDITIONAL, CURRENCY, False, ()),
    ("PricingCurrencyContractedUnitPrice", CONDITIONAL, DECIMAL, True, ()),
    ("PricingCurrencyEffectiveCost", CONDITIONAL, DECIMAL, False, ()),
    ("PricingCurrencyListUnitPrice", CONDITIONAL, DECIMAL, True, ()),
    ("PricingQuantity", MANDATORY, DECIMAL, True, ()),
    ("PricingUnit", MANDATORY, STRING, True, ()),
    ("ProviderName", MANDATORY, STRING, False, ()),
    ("PublisherName", MANDATORY, STRING, False, ()),
    ("RegionId", CONDITIONAL, STRING, True, ()),
    ("RegionName", CONDITIONAL, STRING, True, ()),
    ("ResourceId", CONDITIONAL, STRING, True, ()),
    ("ResourceName", CONDITIONAL, STRING, True, ()),
    ("ResourceType", CONDITIONAL, STRING, True, ()),
    ("ServiceCategory", MANDATORY, STRING, False, ("AI and Machine Learning",)),
    ("ServiceName", MANDATORY, STRING, False, ()),
    # Those of the category above.
    (
        *("ServiceSubcategory", RECOMMENDED, STRING, False),
        (
            *("Bots", "Generative AI", "Machine Learning", "Natural Language Processing"),
            "Other (AI and Machine Learning)",
        ),
    ),
    ("SkuId", CONDITIONAL, STRING, True, ()),
    ("SkuMeter", CONDITIONAL, STRING, True, ()),
    ("SkuPriceDetails", CONDITIONAL, KEY_VALUES, True, ()),
    ("SkuPriceId", CONDITIONAL, STRING, True, ()),
    ("SubAccountId", CONDITIONAL, STRING, True, ()),
    ("SubAccountName", CONDITIONAL, STRING, True, ()),
    ("SubAccountType", CONDITIONAL, STRING, True, ()),
    ("Tags", CONDITIONAL, KEY_VALUES, True, ()),
)
NEEDED_FOR_USAGE = (
    *("ConsumedQuantity", "ConsumedUnit", "ContractedUnitPrice", "ListUnitPrice", "PricingCategory"),
    *("PricingQuantity", "PricingUnit", "SkuId", "SkuPriceId"),
)
FORMS = {
    DECIMAL: r"-?\d+(\.\d+)?",
    STRING: r"(?!(?i:null|n/a|not applicable|none)$).*\S.*",
    DATETIME: r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    KEY_VALUES: r"\{.*\}",
    CURRENCY: r"USD",
}


def written(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    return text.getvalue()


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def problems(text: str) -> list[str]:
    """What the specification would object to in a file."""
    header = next(csv.reader(io.StringIO(text, newline="")))
    known = [column for column, *_ in TABLE]
    own = [column for column in header if column not in known]
    found = [f"{column} is missing" for column in known if column not in header]
    found += [f"{column} lacks x_" for column in own if not column.startswith("x_")]
    if header != sorted(known) + sorted(own):
        found.append("columns are not in the order of the specification")
    for number, row in enumerate(read(text), start=1):
        found += [f"row {number}: {problem}" for problem in _of_cells(row) + _of_row(row)]
    return found


def _of_cells(row: dict[str, str]) -> list[str]:
    found = []
    for column, _, kind, is_nullable, allowed in TABLE:
        cell = row.get(column, "")
        if not cell:
            found += [] if is_nullable else [f"{column} is null"]
        elif not re.fullmatch(FORMS[kind], cell, re.DOTALL) or (allowed and cell not in allowed):
            found.append(f"{column} is {cell!r}")
        elif kind == KEY_VALUES and not all(isinstance(value, str | bool) for value in json.loads(cell).values()):
            found.append(f"{column} holds other than text")
    return found


def _of_row(row: dict[str, str]) -> list[str]:
    found = []
    if row["ChargeCategory"] == "Usage":
        found += [f"{column} is null for usage" for column in NEEDED_FOR_USAGE if not row[column]]
        if row["ConsumedQuantity"] and Decimal(row["ConsumedQuantity"]) <= 0:
            found.append("ConsumedQuantity is not positive")
    else:
        found += [f"Consumed{what} of no usage" for what in ("Quantity", "Unit") if row[f"Consumed{what}"]]
    if bool(row["PricingQuantity"]) != bool(row["PricingUnit"]):
        found.append("PricingUnit without PricingQuantity, or the reverse")
    for kind in ("List", "Contracted"):
        unit, cost = row[f"{kind}UnitPrice"], Decimal(row[f"{kind}Cost"])
        if unit and Decimal(unit) * Decimal(row["PricingQuantity"]) != cost:
            found.append(f"{kind}UnitPrice x PricingQuantity is not {kind}Cost")
        if not unit and cost != Decimal(row["BilledCost"]):
            found.append(f"{kind}Cost without a price is not BilledCost")
    month, day, next_day, next_month = (
        datetime.fromisoformat(row[name])
        for name in ("BillingPeriodStart", "ChargePeriodStart", "ChargePeriodEnd", "BillingPeriodEnd")
    )
    if not month <= day < next_day <= next_month:
        found.append("the charge period is not within the billing period")
    return found
