"""What a team file may say -> `rules.policy.Team`, with the organisation's defaults under it.

Rules: INTERFACE §2. What is not available yet is refused, because accepting it would promise what nothing does. Every
cap, rule and key keeps the line it was said on; a default keeps its own line, in org.yaml.

Not here: org.yaml and models.yaml (`policy_documents`), reading YAML (`policy_yaml`, `policy_fields`).
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from gateway import policy_fields, policy_yaml
from gateway.policy_fields import Fields
from gateway.policy_yaml import Node, Place, Problems, Scalar, Table
from gateway.rules import money, policy

FILE_PREFIX: Final = "teams/"

OWN_KEYS: Final = ("team", "upstream_key", "keys")
"""Keys of a team file that the organisation's defaults cannot say."""

SHARED_KEYS: Final = (
    "mode",
    "labels",
    "contact",
    "models",
    "official_fallback",
    "limits",
    "upstream_down",
    "spend",
    "thresholds",
    "cache",
    "retention",
    "webhooks",
)

_ENVIRONMENT_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_NAME: Final = policy_fields.matching(
    r"[a-z0-9_.-]{1,63}", "1 to 63 lower-case letters, digits, hyphens, dots or underscores"
)
_TEAM_NAME: Final = policy_fields.matching(r"[a-z0-9-]{1,63}", "1 to 63 lower-case letters, digits or hyphens")
_HOST: Final = policy_fields.matching(
    r"(?=.{1,253}\Z)[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})*", "a host name in lower case without port or path"
)
_NO_DATE: Final = datetime.date(2000, 1, 1)
"""Stands in for a date that is wrong; never part of a set that loads."""


class TeamReader:
    """Reads team files one after another; remembers which key digest was listed where."""

    def __init__(self, problems: Problems, defaults: Table, models: Mapping[str, policy.Model] | None) -> None:
        self._problems = problems
        self._defaults = defaults
        self._models = models
        self._listed: dict[bytes, Place] = {}

    def team(self, own: Table) -> policy.Team:
        """One team, with the organisation's defaults under what its file says."""
        merged = policy_yaml.merge(self._defaults, own)
        fields = Fields(own, self._problems, OWN_KEYS + SHARED_KEYS, what="a team file")
        name = fields.need("team", _TEAM_NAME, "")
        file_name = own.at.file.removeprefix(FILE_PREFIX).removesuffix(".yaml")
        if name and name != file_name:
            at = fields.entries["team"].value.at
            self._problems.add(at, f"team: {name!r} is not the file's name; write {file_name!r}, or rename the file")
        known = shared(merged, self._problems)
        keys = self._keys(fields)
        team = dataclasses.replace(
            known,
            name=name or file_name,
            upstream_key=fields.need("upstream_key", _secret_reference, ""),
            keys=keys,
            origins=dict(_origins(merged)),
        )
        _check_cap_keys(merged, {key.name for key in keys}, file_name, self._problems)
        if self._models is not None and team.unlisted_nanos is None:
            _check_targets(merged, self._models, self._problems)
        return team

    def _keys(self, fields: Fields) -> tuple[policy.Key, ...]:
        keys: list[policy.Key] = []
        for node in fields.items("keys"):
            key = self._key(node)
            if key.name and key.name in {other.name for other in keys}:
                self._problems.add(
                    node.at, f"keys: two are called {key.name!r}; rename one, or list both digests on one"
                )
            keys.append(key)
        return tuple(keys)

    def _key(self, node: Node) -> policy.Key:
        fields = Fields(node, self._problems, ("name", "sha256", "expires", "can"), what="a key")
        can = fields.list("can", policy_fields.choice(policy.Permission))
        return policy.Key(
            name=fields.need("name", _NAME, ""),
            sha256=self._digests(fields),
            expires=fields.get("expires", policy_fields.date),
            can=frozenset(policy.Permission if can is None else can),
            origin=str(node.at),
        )

    def _digests(self, fields: Fields) -> tuple[bytes, ...]:
        node = fields.required("sha256")
        if node is None:
            return ()
        nodes = node.nodes if isinstance(node, policy_yaml.Items) else (node,)
        if not nodes:
            self._problems.add(node.at, "sha256: is empty; write what `wave-gateway keys new` prints")
        digests = []
        for each in nodes:
            digest = policy_fields.leaf(each, _digest, self._problems, "sha256")
            if digest is None:
                continue
            if digest in self._listed:
                first = self._listed[digest]
                self._problems.add(each.at, f"sha256: this key is listed at {first} already; a key belongs to one team")
            self._listed.setdefault(digest, each.at)
            digests.append(digest)
        return tuple(digests)


def shared(table: Table, problems: Problems) -> policy.Team:
    """What both a team file and the defaults may say, as a team without a name."""
    known = Table(at=table.at, entries={key: entry for key, entry in table.entries.items() if key in SHARED_KEYS})
    fields = Fields(known, problems, SHARED_KEYS, what="a team file")
    models = fields.within("models", ("allow", "deny", "actions", "rewrite", "unlisted"))
    fallback = fields.within("official_fallback", ("default", "rules"))
    secret, hosts = _webhooks(fields)
    _check_retention(fields)
    unlisted = models.within("unlisted", ("usd",))
    return policy.Team(
        name="",
        upstream_key="",
        mode=fields.get_or("mode", _mode, policy.Mode.ENFORCE),
        labels=fields.map("labels", policy_fields.text),
        contact=fields.get("contact", policy_fields.text),
        allow=models.list("allow", policy_fields.text),
        deny=models.list("deny", policy_fields.text) or (),
        actions=models.list("actions", policy_fields.text),
        rewrite=models.map("rewrite", policy_fields.text),
        unlisted_nanos=unlisted.need("usd", policy_fields.amount, money.ZERO) if models.node("unlisted") else None,
        fallback=fallback.get_or("default", policy_fields.choice(policy.Fallback), policy.Fallback.DENY),
        fallback_rules=tuple(_fallback_rule(node, problems) for node in fallback.items("rules")),
        limits=_limits(fields),
        upstream_down=fields.get_or(
            "upstream_down", policy_fields.choice(policy.UpstreamDown), policy.UpstreamDown.QUEUE
        ),
        caps=caps(fields),
        thresholds=tuple(_threshold(node, problems) for node in fields.items("thresholds")),
        cache=_cache(fields),
        webhook_secret=secret,
        webhook_hosts=hosts,
    )


def _fallback_rule(node: Node, problems: Problems) -> policy.FallbackRule:
    fields = Fields(node, problems, ("models", "action", "while_spend_below"), what="a rule")
    fields.required("models")
    return policy.FallbackRule(
        models=fields.list("models", policy_fields.text) or (),
        action=fields.need("action", policy_fields.choice(policy.Fallback), policy.Fallback.DENY),
        while_spend_below=fields.get("while_spend_below", policy_fields.ratio),
        origin=str(node.at),
    )


def _limits(parent: Fields) -> policy.Limits:
    known = ("n", "resolution", "reference_images", "open_tasks", "requests_per_minute")
    fields = parent.within("limits", known)
    return policy.Limits(
        n=fields.get("n", policy_fields.integer(1)),
        resolution=fields.get("resolution", _resolution),
        reference_images=fields.get("reference_images", policy_fields.integer(0)),
        open_tasks=fields.get_or("open_tasks", policy_fields.integer(1), policy.Limits().open_tasks),
        requests_per_minute=fields.get("requests_per_minute", policy_fields.integer(1)),
    )


def _cache(parent: Fields) -> policy.CachePolicy:
    fields = parent.within("cache", ("requests", "scope", "ttl", "grounded"))
    built_in = policy.CachePolicy()
    return policy.CachePolicy(
        requests=fields.get_or("requests", policy_fields.choice(policy.Cacheable), built_in.requests),
        scope=fields.get_or("scope", policy_fields.choice(policy.CacheScope), built_in.scope),
        ttl_s=fields.get_or("ttl", policy_fields.duration, built_in.ttl_s),
        grounded=fields.get_or("grounded", policy_fields.flag, built_in.grounded),
    )


def _webhooks(parent: Fields) -> tuple[str | None, tuple[str, ...] | None]:
    fields = parent.within("webhooks", ("secret", "allow_hosts"))
    return fields.get("secret", _secret_reference), fields.list("allow_hosts", _HOST)


def _check_retention(parent: Fields) -> None:
    fields = parent.within("retention", ("media", "prompts", "tasks"))
    for key in ("media", "prompts", "tasks"):
        fields.get(key, _keep)


def caps(fields: Fields, *, of_organisation: bool = False) -> tuple[policy.Cap, ...]:
    """The caps under `spend`; the organisation's know no `key`."""
    found = []
    names: Counter[str] = Counter()
    for node in fields.items("spend"):
        cap = _cap(node, fields.problems, of_organisation=of_organisation)
        names[cap.name] += 1
        if names[cap.name] > 1:
            fields.problems.add(node.at, f"spend: two caps are called {cap.name!r}; give this one a name of its own")
        found.append(cap)
    return tuple(found)


def _cap(node: Node, problems: Problems, *, of_organisation: bool) -> policy.Cap:
    known = ("name", "cap", "per", "warn_at", "models", "raises") + (() if of_organisation else ("key",))
    fields = Fields(node, problems, known, what="a cap of the organisation" if of_organisation else "a cap")
    window = fields.need("per", policy_fields.choice(policy.Window), policy.Window.TOTAL)
    models = fields.list("models", policy_fields.text)
    if models == ():
        problems.add(fields.entries["models"].value.at, "models: is empty; list globs, or remove the key to count all")
    return policy.Cap(
        name=fields.get_or("name", _NAME, window.value),
        nanos=fields.need("cap", policy_fields.amount, money.ZERO),
        window=window,
        warn_at=fields.get("warn_at", policy_fields.ratio),
        key=None if of_organisation else fields.get("key", policy_fields.text),
        models=models or (),
        raises=tuple(_raise(each, problems) for each in fields.items("raises")),
        origin=str(node.at),
    )


def _raise(node: Node, problems: Problems) -> policy.Raise:
    fields = Fields(node, problems, ("by", "until", "why"), what="a raise")
    return policy.Raise(
        nanos=fields.need("by", policy_fields.amount, money.ZERO),
        until=fields.need("until", policy_fields.date, _NO_DATE),
        why=fields.need("why", policy_fields.text, ""),
    )


def _threshold(node: Node, problems: Problems) -> policy.Threshold:
    fields = Fields(node, problems, ("at", "per", "rewrite"), what="a threshold")
    fields.required("rewrite")
    return policy.Threshold(
        nanos=fields.need("at", policy_fields.amount, money.ZERO),
        window=fields.need("per", policy_fields.choice(policy.Window), policy.Window.TOTAL),
        rewrite=fields.map("rewrite", policy_fields.text),
        origin=str(node.at),
    )


def _check_cap_keys(merged: Table, names: set[str], team: str, problems: Problems) -> None:
    for cap in _each(merged, "spend"):
        for key in _scalars(cap, "key"):
            if key.text not in names:
                listed = ", ".join(sorted(names)) or "none"
                problems.add(
                    key.at,
                    f"key: team {team} has no key {policy_yaml.show(key.text)}; write one of its keys ({listed})",
                )


def _check_targets(merged: Table, models: Mapping[str, policy.Model], problems: Problems) -> None:
    own = [node for node in (_value(merged, "models"),) if node is not None]
    for node in own + list(_each(merged, "thresholds")):
        rewrite = _value(node, "rewrite")
        for entry in rewrite.entries.values() if isinstance(rewrite, Table) else ():
            if isinstance(entry.value, Scalar) and entry.value.text not in models:
                problems.add(
                    entry.value.at,
                    f"rewrite: {policy_yaml.show(entry.value.text)} is not in models.yaml; add it, correct the id, "
                    "or set models.unlisted",
                )


def _origins(table: Table) -> Iterator[tuple[str, str]]:
    for key, entry in table.entries.items():
        yield key, str(entry.at)
        if isinstance(entry.value, Table):
            for inner, value in entry.value.entries.items():
                yield f"{key}.{inner}", str(value.at)


def _value(node: Node, key: str) -> Node | None:
    entry = node.entries.get(key) if isinstance(node, Table) else None
    return None if entry is None else entry.value


def _each(node: Node, key: str) -> tuple[Node, ...]:
    value = _value(node, key)
    return value.nodes if isinstance(value, policy_yaml.Items) else ()


def _scalars(node: Node, key: str) -> tuple[Scalar, ...]:
    value = _value(node, key)
    return (value,) if isinstance(value, Scalar) else ()


def _mode(node: Scalar) -> policy.Mode:
    if node.text == "observe":
        raise ValueError("observe is not available yet; write enforce or disabled")
    return policy_fields.choice(policy.Mode)(node)


def _keep(node: Scalar) -> str:
    if node.text != "keep":
        raise ValueError(f"{policy_yaml.show(node.text)} is not available yet, nothing would be deleted; write keep")
    return node.text


def _resolution(node: Scalar) -> str:
    value = policy_fields.text(node)
    if policy.resolution_size(value) is None:
        raise ValueError(f"{policy_yaml.show(value)} is no resolution; write a number and K, such as 2K or 0.5K")
    return value.upper()


def _digest(node: Scalar) -> bytes:
    if re.fullmatch(r"[0-9a-fA-F]{64}", node.text, re.ASCII) is None:
        raise ValueError(
            "is not a SHA-256 (the value is not shown here); write the 64 hex digits of `wave-gateway keys new`"
        )
    return bytes.fromhex(node.text)


def _secret_reference(node: Scalar) -> str:
    scheme, _, rest = node.text.partition(":")
    is_name = scheme == "env" and _ENVIRONMENT_NAME.fullmatch(rest) is not None
    is_path = scheme == "file" and rest.strip() == rest != "" and rest.isprintable()
    if not is_name and not is_path:
        raise ValueError(
            "is not a reference (the value is not shown here); write env:NAME or file:PATH, never the key itself"
        )
    return node.text
