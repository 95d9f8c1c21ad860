"""What the books must say: a reference of plain dicts and integers, worked out from the price list and the bill.

It is the oracle of the model test, so it imports nothing of the gateway. Amounts are nano-USD, times unix seconds.
"""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
import json
import zoneinfo
from collections.abc import Iterable, Mapping
from typing import Any, Final

QUOTA: Final = 2_000
KEPT_S: Final = 30 * 86_400
"""How long a result may be a hit."""
FORGETS_S: Final = 23 * 3600
"""In doubt for longer, a submit is never sent again."""

LIST: Final[Mapping[str, tuple[int, int]]] = {
    "gemini-2.5-flash-image-preview": (13_281_250, 33_150_000),
    "gemini-3-pro-image-preview": (42_500_000, 113_900_000),
    "gemini-3.1-flash-image-preview": (31_875_000, 56_950_000),
}
"""What one image costs, and what it costs where `official_fallback` is used."""

HOLDING: Final = frozenset({"reserved", "waiting", "in_doubt", "submitted"})
DELIVERED: Final = frozenset({"delivered", "completed"})
ENDED: Final = frozenset({"completed", "failed", "cancelled", "refused"})

Key = tuple[str, str, str, str, int]
"""A balance: scope, name, filter, window, start."""
Sums = tuple[int, int]
"""Settled, reserved."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One submit: who, what, and the wishes in its headers."""

    team: str
    key: str
    model: str
    prompt: str
    n: int
    seed: int | None
    fallback: bool
    idempotency_key: str | None
    cache: str
    max_cost_nanos: int | None

    def fields(self) -> dict[str, Any]:
        """The body."""
        fields: dict[str, Any] = {"model": self.model, "prompt": self.prompt, "n": self.n, "aspect_ratio": "21:9"}
        if self.seed is not None:
            fields["seed"] = self.seed
        if self.fallback:
            fields["official_fallback"] = True
        return fields

    def is_seeded(self) -> bool:
        """Whether the result may be kept for later requests."""
        return self.seed is not None and self.cache != "no-store"

    def same(self) -> tuple[object, ...]:
        """What two requests have in common that may share a result."""
        return self.team, self.model, self.prompt, self.n, self.seed, self.fallback


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """A ceiling; `models` are globs, none of them: every model."""

    scope: str
    name: str
    window: str
    nanos: int
    models: tuple[str, ...] = ()
    raised_nanos: int = 0
    raised_until: datetime.date | None = None

    def filter(self) -> str:
        """The globs as the balance names them."""
        return json.dumps(sorted(self.models), separators=(",", ":")) if self.models else ""

    def limit(self, day: datetime.date) -> int:
        """The cap with its raise while that lasts."""
        is_raised = self.raised_until is not None and day < self.raised_until
        return self.nanos + (self.raised_nanos if is_raised else 0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is in force: caps, prices of one image, the timezone of windows."""

    caps: tuple[Cap, ...] = ()
    prices: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=lambda: LIST)
    timezone: str = "UTC"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What a task's row says, as far as money goes."""

    id: str
    team: str
    key_name: str
    state: str
    idempotency_key: str | None
    upstream_idempotency_key: str
    upstream_task_id: str | None
    inflight: str | None
    leader_id: str | None
    x_cache: str
    model: str
    quote_nanos: int
    cost_nanos: int | None
    created_at: float
    ended_at: float | None
    settled_at: float | None
    next_at: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Everything that is kept, after a step."""

    rows: Mapping[str, Row]
    entries: Mapping[str, list[tuple[str, int, str, int]]]
    """Task -> (kind, nanos, model, images)."""
    balances: Mapping[Key, Sums]
    holds: int
    kept: Mapping[str, int]
    """Task -> how many of its files are mirrored."""
    differences: list[str]
    spend: Mapping[tuple[str, str], tuple[int, int, int, int]]
    """(team, model) -> cost, images, avoided by the cache and by joining, as the metrics show them."""
    readings: Mapping[str, tuple[int, int, int]]
    """Cap -> limit, settled, reserved, as the metrics show them."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Task:
    """One task that is paid for, with what was frozen when it was admitted."""

    id: str
    ask: Ask
    created_at: float
    standard: int
    official: int | None
    quote: int
    is_doubted: bool = False
    """A POST of it may have arrived without the gateway knowing."""
    is_refused: bool = False
    first_post_at: float | None = None
    last_post_at: float | None = None
    is_cost_named: bool = True
    end: str | None = None
    cost: int = 0
    images: int = 0
    billed: str = ""

    def models(self) -> tuple[str, ...]:
        """Every model that it may be billed as."""
        asked = self.ask.model
        return (asked,) if self.official is None else (asked, f"{asked}-official")

    def price(self, line: Mapping[str, Any]) -> int:
        """What a task of the vendor's bill must have cost: the cost it named, else the frozen price (M9)."""
        if self.is_cost_named:
            return int(line["quota"]) * QUOTA
        return int(line["delivered"]) * max(self.standard, self.official or 0)

    def settle(self, cost: int, images: int, *, priced: int | None = None) -> None:
        """It ended with a bill; an operator's is judged as one for `priced` images, of which none was delivered."""
        is_official = self.official is not None and cost > (images if priced is None else priced) * whole(self.standard)
        self.end, self.cost, self.images = "settle", cost, images
        self.billed = f"{self.ask.model}-official" if is_official else self.ask.model


@dataclasses.dataclass(slots=True, kw_only=True)
class Window:
    """One balance: when it ends, and which tasks count in it."""

    end: int | None
    tasks: set[str]


class Books:
    """Every paid task, every balance, and the rules in force."""

    def __init__(self) -> None:
        self.rules = Rules()
        self.tasks: dict[str, Task] = {}
        self.windows: dict[Key, Window] = {}
        self.avoided: dict[tuple[str, str], Sums] = {}
        """(team, model) -> what hits and followers did not cost."""

    def quote(self, ask: Ask) -> tuple[int, int | None, int]:
        """The prices of one image on either channel, and the most that the request can cost."""
        standard, dear = self.rules.prices[ask.model]
        official = dear if ask.fallback else None
        return standard, official, ask.n * whole(max(standard, official or 0))

    def touched(self, ask: Ask, now: float) -> list[tuple[Key, int | None, int]]:
        """Every cap that a request touches: its balance, the end of its window, its limit."""
        models = [ask.model] + ([f"{ask.model}-official"] if ask.fallback else [])
        owners = {"", ask.team, f"{ask.team}/{ask.key}"}
        return [self.place(cap, now) for cap in self.rules.caps if cap.name in owners and counts(cap.filter(), models)]

    def place(self, cap: Cap, now: float) -> tuple[Key, int | None, int]:
        """A cap as it stands now."""
        start, end = bounds(cap.window, now, self.rules.timezone)
        day = datetime.datetime.fromtimestamp(now, zoneinfo.ZoneInfo(self.rules.timezone)).date()
        return (cap.scope, cap.name, cap.filter(), cap.window, start), end, cap.limit(day)

    def full(self, ask: Ask, now: float) -> list[Key]:
        """The balances without room for the request."""
        quote = self.quote(ask)[2]
        return [key for key, _, limit in self.touched(ask, now) if sum(self.sums(key)) + quote > limit]

    def admit(self, ask: Ask, task_id: str, now: float) -> Task:
        """A task is paid for from now on."""
        standard, official, quote = self.quote(ask)
        task = Task(id=task_id, ask=ask, created_at=now, standard=standard, official=official, quote=quote)
        self.tasks[task_id] = task
        for key, end, _ in self.touched(ask, now):
            self.windows.setdefault(key, Window(end=end, tasks=set())).tasks.add(task_id)
        return task

    def adopt(self, rules: Rules, now: float) -> None:
        """Other rules: present windows that nobody looks at go, those that are new count from their start."""
        self.rules = rules
        wanted = {key: end for key, end, _ in (self.place(cap, now) for cap in rules.caps)}
        for key, window in list(self.windows.items()):
            if (window.end is None or window.end > now) and key not in wanted:
                del self.windows[key]
        for key, end in wanted.items():
            if key not in self.windows or self.windows[key].end != end:
                mine = {task.id for task in self.tasks.values() if _is_in(task, key, end)}
                self.windows[key] = Window(end=end, tasks=mine)

    def sums(self, key: Key) -> Sums:
        """What is settled and what is reserved in a balance."""
        window = self.windows.get(key)
        mine = [] if window is None else [self.tasks[task_id] for task_id in window.tasks]
        settled = sum(task.cost for task in mine if task.end == "settle" and counts(key[2], [task.billed]))
        return settled, sum(task.quote for task in mine if task.end is None)

    def balances(self) -> dict[Key, Sums]:
        """Every balance."""
        return {key: self.sums(key) for key in self.windows}

    def spent(self) -> dict[tuple[str, str], Sums]:
        """(team, billed model) -> cost and images."""
        sums: dict[tuple[str, str], Sums] = {}
        for task in self.tasks.values():
            if task.end == "settle" and (task.cost or task.images):
                cost, images = sums.get((task.ask.team, task.billed), (0, 0))
                sums[task.ask.team, task.billed] = cost + task.cost, images + task.images
        return sums

    def avoid(self, team: str, model: str, *, cache: int = 0, coalesced: int = 0) -> None:
        """A hit or a follower got for nothing what another task was paid for."""
        by_cache, by_joining = self.avoided.get((team, model), (0, 0))
        self.avoided[team, model] = by_cache + cache, by_joining + coalesced


def whole(nanos: int) -> int:
    """Rounded up to whole quotas of the vendor."""
    return -(-nanos // QUOTA) * QUOTA


def counts(filter_text: str, models: Iterable[str]) -> bool:
    """Whether a balance with this filter counts a task on any of these models."""
    globs = json.loads(filter_text) if filter_text else ["*"]
    return any(fnmatch.fnmatchcase(model, glob) for model in models for glob in globs)


def bounds(window: str, now: float, timezone: str) -> tuple[int, int | None]:
    """Start and end of the window that an instant lies in."""
    zone = zoneinfo.ZoneInfo(timezone)
    day = datetime.datetime.fromtimestamp(now, zone).date()
    if window == "total":
        return 0, None
    first = {
        "day": day,
        "week": day - datetime.timedelta(days=day.weekday()),
        "month": day.replace(day=1),
    }[window]
    after = {
        "day": first + datetime.timedelta(days=1),
        "week": first + datetime.timedelta(days=7),
        "month": (first + datetime.timedelta(days=31)).replace(day=1),
    }[window]
    return _midnight(first, zone), _midnight(after, zone)


def _midnight(day: datetime.date, zone: zoneinfo.ZoneInfo) -> int:
    return int(datetime.datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())


def _is_in(task: Task, key: Key, end: int | None) -> bool:
    scope, name, filter_text, _, start = key
    owners = {"org": "", "team": task.ask.team, "key": f"{task.ask.team}/{task.ask.key}"}
    is_then = start <= task.created_at and (end is None or task.created_at < end)
    # A settled task counts by the model that was billed; `sums` looks at that.
    return is_then and owners[scope] == name and counts(filter_text, task.models())
