"""The mission's catalogue and small requests, teams and policy sets; amounts as UPSTREAM.md lists them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

from gateway.rules import policy
from gateway.rules import request as requests
from gateway.rules.money import Nanos

PRO = "gemini-3-pro-image-preview"
PRO_OFFICIAL = "gemini-3-pro-image-preview-official"
FLASH = "gemini-3.1-flash-image-preview"
FLASH_OFFICIAL = "gemini-3.1-flash-image-preview-official"
OLD = "gemini-2.5-flash-image-preview"
OLD_OFFICIAL = "gemini-2.5-flash-image-preview-official"

ACTIONS = ("generate", "image2image", "edit", "reference")
RATIOS = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
SINCE = datetime.date(2026, 4, 1)
TODAY = datetime.date(2026, 6, 15)
ONE = "https://example.com/1.png"
TWO = "https://example.com/2.png"


def price(nanos: int, *, since: datetime.date = SINCE) -> policy.Price:
    return policy.Price(since=since, nanos={"default": Nanos(nanos)})


def model(name: str, nanos: int, **said: Any) -> policy.Model:
    known: dict[str, Any] = {
        "name": name,
        "prices": (price(nanos),),
        "actions": ACTIONS,
        "resolutions": ("1K", "2K", "4K"),
        "aspect_ratios": RATIOS,
        "reference_images_max": 14,
        "origin": f"models.yaml:{name}",
    }
    return policy.Model(**known | said)


def _official(name: str, nanos: int, **said: Any) -> policy.Model:
    return model(name, nanos, tier=policy.Tier.OFFICIAL, **said)


FLASH_CAN: dict[str, Any] = {
    "actions": (*ACTIONS, "search_grounded"),
    "resolutions": ("0.5K", "1K", "2K", "4K"),
    "grounded": True,
}

CATALOGUE: Mapping[str, policy.Model] = {
    each.name: each
    for each in (
        model(PRO, 42_500_000, official=PRO_OFFICIAL),
        _official(PRO_OFFICIAL, 113_900_000),
        model(FLASH, 31_875_000, official=FLASH_OFFICIAL, **FLASH_CAN),
        _official(FLASH_OFFICIAL, 56_950_000, **FLASH_CAN),
        model(OLD, 13_281_250, official=OLD_OFFICIAL, resolutions=("1K",)),
        _official(OLD_OFFICIAL, 33_150_000, resolutions=("1K",)),
    )
}


def policies(*changed: policy.Model, **said: Any) -> policy.PolicySet:
    """The catalogue with some entries replaced or added; `said`: the organisation."""
    models = dict(CATALOGUE) | {each.name: each for each in changed}
    return policy.PolicySet(organisation=policy.Organisation(**said), models=models)


def team(**said: Any) -> policy.Team:
    return policy.Team(**{"name": "growth", "upstream_key": "env:WAVE_KEY_GROWTH"} | said)


def request(**said: Any) -> requests.Request:
    """A request that said these JSON fields; model and prompt have defaults here."""
    values = {"model": PRO, "prompt": "a red fox"} | said
    fields: dict[str, Any] = {name: values[name] for name in values if name in _READ}
    if "image_urls" in fields:
        fields["image_urls"] = tuple(fields["image_urls"])
    return requests.Request(
        **fields,
        grounded=bool(values.get("google_search") or values.get("google_image_search")),
        values=values,
        written={name: json.dumps(value, ensure_ascii=False).encode() for name, value in values.items()},
    )


_READ = ("model", "prompt", "action", "n", "seed", "aspect_ratio", "resolution", "image_urls", "official_fallback")


def at(text: str) -> int:
    """Unix seconds of an ISO 8601 instant."""
    return int(datetime.datetime.fromisoformat(text).timestamp())
