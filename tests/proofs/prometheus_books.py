"""What Prometheus must say about money, by the ledger's entries and the simulator's bill, and where it does not.

Sums are made from the append-only entries, not from the table that a scrape reads. A float64 keeps an amount apart from
its neighbours in nanos up to 2^53 nanos (9 million USD), so each series is compared to the nano, and to the bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import re
import sqlite3
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

NANOS_PER_USD: Final = 10**9
EXACT_BELOW: Final = 2**53
OTHER: Final = "other"
SCRAPED: Final[Mapping[str, tuple[str, ...]]] = {
    "wave_gateway_cost_usd_total": ("team", "model", "tier"),
    "wave_gateway_images_total": ("team", "model", "tier"),
    "wave_gateway_cost_avoided_usd_total": ("team", "model", "reason"),
    "wave_gateway_fallback_premium_usd_total": ("team", "model"),
    "wave_gateway_cost_drift_usd_total": ("team", "model"),
}
"""The counters that come from the ledger, and their labels in the order of the keys below."""

Sums = dict[tuple[str, ...], int]
"""Nanos, or images, by labels."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """What a ledger says, by metric: nanos, or images for `images_total`; zeros are left out."""

    sums: Mapping[str, Sums]

    def total(self, metric: str) -> int:
        """Of all series."""
        return sum(self.sums[metric].values())

    def by_team(self, metric: str) -> dict[str, int]:
        """Summed over everything but the team."""
        teams: dict[str, int] = {}
        for (team, *_), value in self.sums[metric].items():
            teams[team] = teams.get(team, 0) + value
        return teams


def read(database: pathlib.Path, *, catalogue: Collection[str]) -> Books:
    """The ledger's sums; a model outside the catalogue is `other`. Cost and images are summed from the entries."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as ledger:
        settled = "SELECT team, model, tier, SUM({}) FROM entries WHERE kind = 'settle' GROUP BY 1, 2, 3"
        kept = "SELECT team, model, {} FROM totals"
        rows = {
            "wave_gateway_cost_usd_total": ledger.execute(settled.format("nanos")).fetchall(),
            "wave_gateway_images_total": ledger.execute(settled.format("images")).fetchall(),
            "wave_gateway_cost_avoided_usd_total": [
                *ledger.execute(kept.format("'cache', avoided_cache_nanos")),
                *ledger.execute(kept.format("'coalesced', avoided_coalesced_nanos")),
            ],
            "wave_gateway_fallback_premium_usd_total": ledger.execute(kept.format("premium_nanos")).fetchall(),
            "wave_gateway_cost_drift_usd_total": ledger.execute(kept.format("drift_nanos")).fetchall(),
        }
    return Books(sums={metric: _summed(found, catalogue) for metric, found in rows.items()})


def _summed(rows: Iterable[tuple[Any, ...]], catalogue: Collection[str]) -> Sums:
    sums: Sums = {}
    for team, model, *rest, value in rows:
        key = (team, model if model in catalogue else OTHER, *rest)
        sums[key] = sums.get(key, 0) + value
    return {key: value for key, value in sums.items() if value}


def differences(metric: str, said: Mapping[tuple[str, ...], float], known: Sums) -> list[str]:
    """Where Prometheus' samples of one counter are not the ledger's sums, series by series; a zero may be missing."""
    unit = 1 if metric == "wave_gateway_images_total" else NANOS_PER_USD
    wrong = []
    for key in sorted(said.keys() | known.keys()):
        value, whole = said.get(key, 0.0), known.get(key, 0)
        assert whole < EXACT_BELOW, f"{whole} is beyond what a float64 tells apart"
        if round(value * unit) != whole or value != whole / unit:
            wrong.append(f"{metric}{list(key)} is {value!r}, the ledger says {whole} / {unit}")
    return wrong


def sum_differs(said: float, known: Sums) -> str:
    """Why a sum that Prometheus made of all cost series is not the ledger's; empty where it is.

    Prometheus adds doubles one after another, so it may be off by half a unit in the last place for each addition.
    """
    whole = sum(known.values())
    exact = whole / NANOS_PER_USD
    if round(said * NANOS_PER_USD) != whole:
        return f"the sum is {said!r}, which is {round(said * NANOS_PER_USD) - whole} nanos off {whole}"
    if abs(said - exact) > len(known) * math.ulp(exact) / 2:
        return f"the sum is {said!r}, more than {len(known)} roundings off {exact!r}"
    return ""


def bill_differs(bill: Mapping[str, Any], books: Books) -> list[str]:
    """Where the simulator's bill, whole and by the team that each prompt names, is not what the ledger settled."""
    nanos: dict[str, int] = {}
    images: dict[str, int] = {}
    for line in bill["by_task"].values():
        found = re.search(r" for (\S+)$", line["prompt"])
        team = found[1] if found else ""
        nanos[team] = nanos.get(team, 0) + line["quota"] * 2_000
        images[team] = images.get(team, 0) + line["delivered"]
    wrong = []
    for what, metric, billed in (
        ("nanos", "wave_gateway_cost_usd_total", nanos),
        ("images", "wave_gateway_images_total", images),
    ):
        known = books.by_team(metric)
        for team in sorted(billed.keys() | known.keys()):
            if billed.get(team, 0) != known.get(team, 0):
                wrong.append(f"{team}: billed {billed.get(team, 0)} {what}, settled {known.get(team, 0)}")
    if bill["nanos"] != books.total("wave_gateway_cost_usd_total"):
        wrong.append(f"billed {bill['nanos']}, settled {books.total('wave_gateway_cost_usd_total')} nanos")
    return wrong
