"""Policies as values, and the decision about a request.

The order of a decision is fixed (INTERFACE §2): rewrite, model allowed, what the model can do, the team's actions,
`official_fallback`, limits. What follows (cache, price, thresholds, caps) needs the ledger and is `flow/submit`.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import fnmatch
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Final

from gateway.rules import money
from gateway.rules import request as requests
from gateway.rules.money import Nanos

BUILT_IN: Final = "built-in default"
"""What a decision names as its rule when no file said anything."""


class Window(enum.StrEnum):
    """The period that a cap counts over."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"


class Tier(enum.StrEnum):
    """The channel that a model id stands for."""

    STANDARD = "standard"
    OFFICIAL = "official"


class Fallback(enum.StrEnum):
    """What becomes of `official_fallback`."""

    ALLOW = "allow"
    DENY = "deny"
    STRIP = "strip"
    FORCE = "force"


class Mode(enum.StrEnum):
    """Whether a team's keys work."""

    ENFORCE = "enforce"
    DISABLED = "disabled"


class UpstreamDown(enum.StrEnum):
    """What becomes of a submit while the upstream cannot be reached."""

    QUEUE = "queue"
    REFUSE = "refuse"


class Cacheable(enum.StrEnum):
    """Which requests are content-addressed."""

    SEEDED = "seeded"
    ALL = "all"
    OFF = "off"


class CacheScope(enum.StrEnum):
    """Who shares results."""

    TEAM = "team"
    ORG = "org"


class Permission(enum.StrEnum):
    """What a virtual key may do."""

    SUBMIT = "submit"
    READ = "read"
    CANCEL = "cancel"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Price of one image from a date on; by resolution in upper case, with `default`."""

    since: datetime.date
    nanos: Mapping[str, Nanos]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One entry of models.yaml; None means: not checked."""

    name: str
    prices: tuple[Price, ...] = ()
    tier: Tier = Tier.STANDARD
    official: str | None = None
    actions: tuple[str, ...] | None = None
    resolutions: tuple[str, ...] | None = None
    aspect_ratios: tuple[str, ...] | None = None
    reference_images_max: int | None = None
    reference_image_nanos: Nanos = money.ZERO
    grounded: bool = False
    origin: str = BUILT_IN


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Raise:
    """More room in a cap until a date."""

    nanos: Nanos
    until: datetime.date
    why: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """A ceiling on settled + reserved in a window; `key` and `models` narrow what counts."""

    name: str
    nanos: Nanos
    window: Window
    warn_at: Fraction | None = None
    key: str | None = None
    models: tuple[str, ...] = ()
    raises: tuple[Raise, ...] = ()
    origin: str = BUILT_IN


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """When this much is spent, the model is rewritten and the decision made once more."""

    nanos: Nanos
    window: Window
    rewrite: Mapping[str, str]
    origin: str = BUILT_IN


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FallbackRule:
    """One rule about `official_fallback`; it matches only while the fullest cap is below the ratio, if given."""

    models: tuple[str, ...]
    action: Fallback
    while_spend_below: Fraction | None = None
    origin: str = BUILT_IN


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on one request and on a team's traffic; None: no limit."""

    n: int | None = None
    resolution: str | None = None
    reference_images: int | None = None
    open_tasks: int = 1000
    requests_per_minute: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """Which results are kept for whom and how long; `ttl_s` in seconds."""

    requests: Cacheable = Cacheable.SEEDED
    scope: CacheScope = CacheScope.TEAM
    ttl_s: int = 30 * 86400
    grounded: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A virtual key as listed in a team file: digests only."""

    name: str
    sha256: tuple[bytes, ...]
    expires: datetime.date | None = None
    can: frozenset[Permission] = frozenset(Permission)
    origin: str = BUILT_IN


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """One team file with the organisation's defaults merged in."""

    name: str
    upstream_key: str
    """`env:NAME` or `file:PATH`; never the key itself."""
    mode: Mode = Mode.ENFORCE
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    contact: str | None = None
    keys: tuple[Key, ...] = ()
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    actions: tuple[str, ...] | None = None
    rewrite: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unlisted_nanos: Nanos | None = None
    fallback: Fallback = Fallback.DENY
    fallback_rules: tuple[FallbackRule, ...] = ()
    limits: Limits = Limits()
    upstream_down: UpstreamDown = UpstreamDown.QUEUE
    caps: tuple[Cap, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    cache: CachePolicy = CachePolicy()
    webhook_secret: str | None = None
    """Where the secret is that webhooks are signed with, `env:NAME` or `file:PATH`; None: they are not signed."""
    webhook_hosts: tuple[str, ...] | None = None
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Dotted key, e.g. `models.deny` -> `teams/growth.yaml:14`."""

    def origin(self, *keys: str) -> str:
        """Where the first of these dotted keys was said."""
        return next((self.origins[key] for key in keys if key in self.origins), BUILT_IN)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Organisation:
    """org.yaml without its defaults."""

    timezone: str = "UTC"
    contact: str | None = None
    caps: tuple[Cap, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PolicySet:
    """All policy files together; replaced as a whole."""

    organisation: Organisation = Organisation()
    models: Mapping[str, Model] = dataclasses.field(default_factory=dict)
    teams: Mapping[str, Team] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Allow:
    """The request may go on as `request`; `changed` names what a policy changed."""

    request: requests.Request
    model: Model | None
    """The catalogue's entry; None for an unlisted model."""
    official: Model | None
    """The entry that `official_fallback` may bill, if it can apply."""
    changed: tuple[str, ...]
    rule: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Deny:
    """The request ends here; nothing is stored or sent."""

    code: str
    message: str
    rule: str
    param: str | None = None
    details: Mapping[str, object] = dataclasses.field(default_factory=dict)
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


def matches(model: str, globs: Iterable[str]) -> bool:
    """Whether a model id matches one of the shell-style globs, with case."""
    return any(fnmatch.fnmatchcase(model, glob) for glob in globs)


def needs_fullness(team: Team) -> bool:
    """Whether a decision for the team asks how full its caps are."""
    return any(rule.while_spend_below is not None for rule in team.fallback_rules)


def rewrite(team: Team, request: requests.Request) -> requests.Request:
    """Replace the model that was asked for by the one to be called."""
    called = team.rewrite.get(request.model)
    return request if called is None else dataclasses.replace(request, model=called)


def decide(policies: PolicySet, team: Team, request: requests.Request, *, fullness: Fraction) -> Allow | Deny:
    """Decide about a request up to its limits; `fullness` is that of the fullest cap it touches, advisory."""
    request = rewrite(team, request)
    model = policies.models.get(request.model)
    denial = _deny_model(team, request, model) or _deny_capability(request, model) or _deny_action(team, request)
    if denial is not None:
        return denial
    decided = _decide_fallback(team, request, model, fullness)
    if isinstance(decided, Deny):
        return decided
    denial = _deny_limits(team, decided)
    if denial is not None:
        return denial
    official = policies.models.get(model.official) if model and model.official and decided.official_fallback else None
    return Allow(
        request=decided,
        model=model,
        official=official,
        changed=_changes(decided),
        rule=team.origin("models.allow", "models"),
    )


def is_grounded(request: requests.Request) -> bool:
    """Whether the request asks for a search, by its action or by a flag."""
    return request.grounded or request.action == "search_grounded"


def is_cacheable(team: Team, request: requests.Request) -> bool:
    """Whether the request is content-addressed: seeded (or all), and not grounded unless the team says so."""
    if team.cache.requests is Cacheable.OFF:
        return False
    if is_grounded(request) and not team.cache.grounded:
        return False
    return team.cache.requests is Cacheable.ALL or request.is_seeded()


def _deny_model(team: Team, request: requests.Request, model: Model | None) -> Deny | None:
    name = request.model
    if matches(name, team.deny):
        return _not_allowed(team, name, "models.deny")
    if team.allow is not None and not matches(name, team.allow):
        return _not_allowed(team, name, "models.allow")
    if model is None and team.unlisted_nanos is None:
        return _not_allowed(team, name, "models.unlisted")
    return None


def _not_allowed(team: Team, name: str, key: str) -> Deny:
    why = {
        "models.deny": "the policy denies it",
        "models.allow": "it is not on the team's list",
        "models.unlisted": "it is not in the organisation's catalogue",
    }[key]
    return Deny(
        code="model_not_allowed",
        message=f"Team {team.name} may not use the model {name!r}: {why}.",
        rule=team.origin(key),
        param="model",
    )


def _deny_capability(request: requests.Request, model: Model | None) -> Deny | None:
    if model is None:
        return None
    listed = (
        ("action", request.action, model.actions),
        ("resolution", request.resolution.upper(), model.resolutions),
        ("aspect_ratio", request.aspect_ratio, model.aspect_ratios),
    )
    for param, value, choices in listed:
        if choices is not None and value not in choices:
            return _incapable(model, param, f"{param} {value!r}; it takes {', '.join(choices)}")
    if is_grounded(request) and not model.grounded:
        return _incapable(model, "google_search" if request.grounded else "action", "search grounding")
    if request.action in NEEDS_IMAGES and not request.image_urls:
        return _incapable(model, "image_urls", f"action {request.action!r} without image_urls")
    most = model.reference_images_max
    if most is not None and len(request.image_urls) > most:
        return _incapable(model, "image_urls", f"more than {most} reference images")
    return None


NEEDS_IMAGES: Final = frozenset({"image2image", "edit", "reference"})
"""Actions that work on reference images. Source: UPSTREAM.md, the Gemini image series."""


def _incapable(model: Model, param: str, what: str) -> Deny:
    return Deny(
        code="capability_violation",
        message=f"The model {model.name} does not do {what}.",
        rule=model.origin,
        param=param,
    )


def _deny_action(team: Team, request: requests.Request) -> Deny | None:
    if team.actions is None or request.action in team.actions:
        return None
    return Deny(
        code="action_not_allowed",
        message=f"Team {team.name} may not use action {request.action!r}; it may use {', '.join(team.actions)}.",
        rule=team.origin("models.actions"),
        param="action",
    )


def _decide_fallback(
    team: Team, request: requests.Request, model: Model | None, fullness: Fraction
) -> requests.Request | Deny:
    if request.model.endswith("-official") or (model is not None and model.tier is Tier.OFFICIAL):
        return request
    action, rule = _fallback_rule(team, request, fullness)
    match action:
        case Fallback.DENY if request.official_fallback:
            return Deny(
                code="official_fallback_denied",
                message=f"Team {team.name} may not use official_fallback with {request.model}; "
                "send the request without it.",
                rule=rule,
                param="official_fallback",
            )
        case Fallback.STRIP if request.official_fallback:
            return dataclasses.replace(request, official_fallback=False)
        case Fallback.FORCE:
            return dataclasses.replace(request, official_fallback=True)
        case _:
            return request


def _fallback_rule(team: Team, request: requests.Request, fullness: Fraction) -> tuple[Fallback, str]:
    for rule in team.fallback_rules:
        room = rule.while_spend_below is None or fullness < rule.while_spend_below
        if room and matches(request.model, rule.models):
            return rule.action, rule.origin
    return team.fallback, team.origin("official_fallback.default")


def _deny_limits(team: Team, request: requests.Request) -> Deny | None:
    limits = team.limits
    if limits.n is not None and request.n > limits.n:
        return _over_limit(team, "n", limits.n, request.n)
    if limits.resolution is not None and not _fits(request.resolution, limits.resolution):
        return _over_limit(team, "resolution", limits.resolution, request.resolution)
    references = len(request.image_urls)
    if limits.reference_images is not None and references > limits.reference_images:
        return _over_limit(team, "reference_images", limits.reference_images, references)
    return None


def _over_limit(team: Team, limit: str, value: object, asked: object) -> Deny:
    return Deny(
        code="limit_exceeded",
        message=f"Team {team.name} may ask for {limit} up to {value}; the request asks for {asked}.",
        rule=team.origin(f"limits.{limit}"),
        param="image_urls" if limit == "reference_images" else limit,
        details={"limit": limit, "value": value},
    )


def resolution_size(text: str) -> Fraction | None:
    """The number before `K` in a resolution such as `0.5K`; None for another form."""
    match = re.fullmatch(r"(\d{1,4}(?:\.\d{1,4})?)[kK]", text, re.ASCII)
    return Fraction(match.group(1)) if match else None


def _fits(resolution: str, limit: str) -> bool:
    size, most = resolution_size(resolution), resolution_size(limit)
    return size is not None and most is not None and size <= most


def _changes(sent: requests.Request) -> tuple[str, ...]:
    """What differs from the client's own words."""
    changes = []
    if sent.official_fallback != sent.values.get("official_fallback", False):
        changes.append("official_fallback=forced" if sent.official_fallback else "official_fallback=stripped")
    if sent.model != sent.values.get("model"):
        changes.append("model=rewritten")
    return tuple(changes)
