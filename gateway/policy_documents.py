"""All policy files together -> `rules.policy`, with org.yaml and models.yaml in detail.

Rules: INTERFACE §2. Unknown keys are refused; each model keeps the line it was said on.

Not here: what a team file says (`policy_team`), reading YAML (`policy_yaml`, `policy_fields`), and where files lie
(`policy_files`).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Mapping
from typing import Final

from gateway import policy_fields, policy_team, policy_yaml
from gateway.policy_fields import Fields
from gateway.policy_yaml import Node, Place, Problems, Scalar, Table
from gateway.rules import budget, money, policy

ORGANISATION_FILE: Final = "org.yaml"
MODELS_FILE: Final = "models.yaml"

_NO_DATE: Final = datetime.date(2000, 1, 1)
"""Stands in for a date that is wrong; never part of a set that loads."""


def parse(files: Mapping[str, bytes], problems: Problems, *, unread: Collection[str] = ()) -> policy.PolicySet:
    """Make a policy set of files by relative path; it is good only if no problem was added.

    `unread` are files that exist but could not be read: what would follow from their absence is no problem.
    """
    tables = {name: policy_yaml.read(content, name, problems) for name, content in sorted(files.items())}
    nothing = Table(at=Place(ORGANISATION_FILE, 1), entries={})
    organisation, defaults = _organisation(tables.get(ORGANISATION_FILE) or nothing, problems)
    catalogue = tables.get(MODELS_FILE)
    models = None if catalogue is None else _catalogue(catalogue, problems)
    if MODELS_FILE not in files and MODELS_FILE not in unread:
        problems.add(
            Place(MODELS_FILE, 1),
            "the file is missing; list what the upstream sells, or begin with `wave-gateway init`",
        )
    are_defaults_known = ORGANISATION_FILE not in unread and tables.get(ORGANISATION_FILE, nothing) is not None
    reader = policy_team.TeamReader(problems, defaults, models if are_defaults_known else None)
    teams = [reader.team(table) for name, table in tables.items() if table and name.startswith(policy_team.FILE_PREFIX)]
    return policy.PolicySet(organisation=organisation, models=models or {}, teams={team.name: team for team in teams})


def _organisation(table: Table, problems: Problems) -> tuple[policy.Organisation, Table]:
    fields = Fields(table, problems, ("timezone", "contact", "spend", "defaults"), what="org.yaml")
    organisation = policy.Organisation(
        timezone=fields.get_or("timezone", _timezone, "UTC"),
        contact=fields.get("contact", policy_fields.text),
        caps=policy_team.caps(fields, of_organisation=True),
    )
    defaults = Table(at=table.at, entries=_defaults(fields, problems))
    policy_team.shared(defaults, problems)
    return organisation, defaults


def _defaults(fields: Fields, problems: Problems) -> dict[str, policy_yaml.Entry]:
    node = fields.node("defaults")
    entries = {} if node is None else dict(policy_fields.entries_of(node, problems, "defaults"))
    for key in policy_team.OWN_KEYS:
        if key in entries:
            problems.add(entries.pop(key).at, f"{key}: belongs to one team; write it in that team's file")
    known = Table(at=fields.at, entries=entries)
    Fields(known, problems, policy_team.SHARED_KEYS, what="defaults")
    return {key: entry for key, entry in entries.items() if key in policy_team.SHARED_KEYS}


def _timezone(node: Scalar) -> str:
    name = policy_fields.text(node)
    budget.timezone_of(name)
    return name


def _catalogue(table: Table, problems: Problems) -> dict[str, policy.Model]:
    fields = Fields(table, problems, ("models",), what="models.yaml")
    entries = policy_fields.entries_of(node, problems, "models") if (node := fields.required("models")) else {}
    models = {name: _model(name, entry, problems) for name, entry in entries.items()}
    for model in models.values():
        _check_official(model, models, entries[model.name].value, problems)
    return models


def _model(name: str, entry: policy_yaml.Entry, problems: Problems) -> policy.Model:
    if re.fullmatch(r"[!-~]{1,128}", name) is None:
        problems.add(entry.at, f"{policy_yaml.show(name)} is no model id; write printable ASCII without spaces")
    known = ("prices", "tier", "official", "actions", "resolutions", "aspect_ratios", "reference_images", "grounded")
    fields = Fields(entry.value, problems, known, what="a model")
    resolutions = fields.list("resolutions", _upper)
    references = fields.within("reference_images", ("max", "usd"))
    return policy.Model(
        name=name,
        prices=_prices(fields, resolutions),
        tier=fields.get_or("tier", policy_fields.choice(policy.Tier), policy.Tier.STANDARD),
        official=fields.get("official", policy_fields.text),
        actions=fields.list("actions", policy_fields.text),
        resolutions=resolutions,
        aspect_ratios=fields.list("aspect_ratios", policy_fields.text),
        reference_images_max=references.get("max", policy_fields.integer(0)),
        reference_image_nanos=references.get_or("usd", policy_fields.amount, money.ZERO),
        grounded=fields.get_or("grounded", policy_fields.flag, False),
        origin=str(entry.at),
    )


def _prices(fields: Fields, resolutions: tuple[str, ...] | None) -> tuple[policy.Price, ...]:
    node = fields.required("prices")
    if node is None:
        return ()
    nodes = policy_fields.items_of(node, fields.problems, "prices")
    if isinstance(node, policy_yaml.Items) and not nodes:
        fields.problems.add(node.at, 'prices: is empty; write one, such as [{from: 2026-04-01, usd: "0.0425"}]')
    prices: list[policy.Price] = []
    for each in nodes:
        price = _price(each, fields.problems, resolutions)
        if price.since is not _NO_DATE and price.since in {earlier.since for earlier in prices}:
            fields.problems.add(each.at, f"prices: two begin on {price.since}; keep one of them")
        prices.append(price)
    return tuple(prices)


def _price(node: Node, problems: Problems, resolutions: tuple[str, ...] | None) -> policy.Price:
    fields = Fields(node, problems, ("from", "usd"), what="a price")
    since = fields.need("from", policy_fields.date, _NO_DATE)
    usd = fields.required("usd")
    if isinstance(usd, Table):
        return policy.Price(since=since, nanos=_by_resolution(usd, problems, resolutions))
    return policy.Price(since=since, nanos={"default": fields.get_or("usd", policy_fields.amount, money.ZERO)})


def _by_resolution(table: Table, problems: Problems, resolutions: tuple[str, ...] | None) -> dict[str, money.Nanos]:
    if not table.entries:
        problems.add(table.at, 'usd: is empty; write an amount, or {1K: "0.03", default: "0.05"}')
    prices: dict[str, money.Nanos] = {}
    for name, entry in table.entries.items():
        key = name if name == "default" else name.upper()
        if key in prices:
            problems.add(entry.at, f"usd: two prices for {key}, which is compared without case; keep one of them")
        if key != "default" and resolutions is not None and key not in resolutions:
            problems.add(
                entry.at,
                f"usd: {policy_yaml.show(name)} is not one of the model's resolutions ({', '.join(resolutions)}); "
                "write one of those, or default",
            )
        if key != "default" and policy.resolution_size(key) is None:
            problems.add(entry.at, f"usd: {policy_yaml.show(name)} is no resolution; write one such as 2K, or default")
        nanos = policy_fields.leaf(entry.value, policy_fields.amount, problems, name)
        prices[key] = money.ZERO if nanos is None else nanos
    return prices


def _check_official(model: policy.Model, models: Mapping[str, policy.Model], node: Node, problems: Problems) -> None:
    if model.official is None or not isinstance(node, Table):
        return
    at = node.entries["official"].value.at
    official = models.get(model.official)
    if model.tier is policy.Tier.OFFICIAL:
        problems.add(at, "official: this model is of tier official itself; remove the key")
    elif official is None:
        problems.add(
            at, f"official: {policy_yaml.show(model.official)} is not in models.yaml; add it or correct the id"
        )
    elif official.tier is not policy.Tier.OFFICIAL:
        problems.add(at, f"official: {policy_yaml.show(model.official)} is not of `tier: official`; say so there")


def _upper(node: Scalar) -> str:
    return policy_fields.text(node).upper()
