"""What happens in a life: scenarios that clients play and the vendor's part in them, and the plan of a life by seed.

A plan is a value made of a seed and a number alone, so that a life can be played again.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from typing import Any, Final

from gateway import failpoints
from tests.crash import forks

KILLS_OF_A_LIFE: Final = 5
NOISE: Final = 3
"""Scenarios of a start beside those that reach its failpoint."""
MOST_TIMES: Final = 2
"""A failpoint is armed for its first or second time."""
MOST_BATCHES: Final = 6
"""As many batches of the SQLite writer are begun in each start, the first two before the gateway listens."""
VARIANTS: Final = 3
"""Policy sets that a life goes through; they are written in `books`."""

Rules = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What clients do, by the name of its coroutine in `clients`, and what the vendor does about it."""

    play: str = "plain"
    fields: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """Of the body."""
    shape: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """What the vendor makes of the task, whenever it creates it."""
    faults: tuple[tuple[str, int | None, Mapping[str, object]], ...] = ()
    """(on, times, do): what goes wrong; over before the last start."""
    for_ever: Mapping[str, object] | None = None
    """A fault of submits that stays."""
    answers: tuple[int, ...] = (200,)
    """Statuses that a submit may be answered with."""


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "plain": Scenario(),
    "slow": Scenario(shape={"work_s": 0.4}),
    "keyless": Scenario(play="keyless"),
    "two": Scenario(fields={"n": 2}),
    "repeated": Scenario(play="repeated"),
    "seeded": Scenario(play="seeded", shape={"work_s": 1.0}),
    "left": Scenario(play="left", shape={"work_s": 0.8}),
    "dropped": Scenario(faults=(("submit", 1, {"drop": True}),)),
    "taken": Scenario(faults=(("submit", 1, {"accept_and_drop": True}),)),
    "trouble": Scenario(faults=(("submit", 1, {"status": 500}), ("poll", 1, {"status": 502}))),
    "limited": Scenario(faults=(("submit", 1, {"status": 429}),)),
    "refused": Scenario(for_ever={"status": 400, "code": "bad_prompt"}, answers=(200, 400)),
    "failed": Scenario(shape={"outcome": "failed"}),
    "failed_billed": Scenario(shape={"outcome": "failed", "cost": 3000}),
    "partial": Scenario(fields={"n": 2}, shape={"deliver": 1}),
    "fallback": Scenario(fields={"official_fallback": True}, shape={"fallback": True}),
    "broken_file": Scenario(faults=(("media", 1, {"media": "cut"}),)),
    "late": Scenario(faults=(("submit", None, {"status": 429}),)),
    "window": Scenario(
        faults=(("submit", None, {"status": 429, "code": "quota_window_exceeded", "reset_at": 4_000_000_000}),),
        answers=(200, 503),
    ),
    "withdrawn": Scenario(play="cancelled", faults=(("submit", 1, {"status": 429, "retry_after": 60}),)),
    "cancelled": Scenario(play="cancelled", shape={"queue_s": 4.0}),
    "cancel_lost": Scenario(
        play="cancelled", shape={"queue_s": 4.0}, faults=(("cancel", 1, {"accept_and_drop": True}),)
    ),
    "abandoned": Scenario(play="abandoned", for_ever={"status": 418}),
}

AT_START: Final = frozenset(
    name for name in failpoints.NAMES if name.startswith(("adopt.", "recover.")) or name == "ledger.made"
)
"""Reached before the gateway listens; those of `adopt` again when the policies change."""

_BEFORE_ADOPTION: Final = frozenset({"adopt.before", "adopt.dropped", "adopt.made", "ledger.made"})
_OF_A_BATCH: Final = frozenset({"sqlite.begun", "sqlite.ran"})
"""The first batch of a start makes the balances."""

REACHED_BY: Final[Mapping[str, str]] = {
    **dict.fromkeys(failpoints.NAMES, "plain"),
    "submit.hit": "seeded",
    "submit.follow": "seeded",
    "submit.free": "seeded",
    "ledger.released": "refused",
    "advance.attempt": "dropped",
    "advance.refuse": "refused",
    "advance.doubt": "taken",
    "advance.put_off": "limited",
    "advance.expire": "window",
    "advance.withdraw": "withdrawn",
    "advance.abandon": "abandoned",
    "advance.report": "failed_billed",
    "resubmit.begun": "dropped",
    "resubmit.expired": "late",
    "mirror.put_off": "broken_file",
    "mirror.refreshed": "broken_file",
    "mirror.cached": "seeded",
    "cancel.ended": "withdrawn",
    "cancel.hidden": "cancelled",
    "cancel.after": "cancelled",
    "cancel.noted": "cancel_lost",
}
"""The scenario that brings a gateway to a failpoint; others may come by too."""

_SELDOM: Final = frozenset({"abandoned", "late"})
"""Not among the noise: these take seconds, and the vendor's circuit must not open for them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One scenario as it is played once; `prompt` is its own, whatever else runs."""

    scenario: str
    prompt: str

    def rules(self, *, is_last: bool) -> Rules:
        """The vendor's part in it; before the last start every fault that can end has ended."""
        scenario = SCENARIOS[self.scenario]
        rules: Rules = [] if is_last else [_rule(on, self.prompt, times, do) for on, times, do in scenario.faults]
        if scenario.for_ever is not None:
            rules.append(_rule("submit", self.prompt, None, scenario.for_ever))
        if scenario.shape:
            rules.append(_rule("submit", self.prompt, None, scenario.shape))
        return rules


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of the gateway: where it dies, what clients begin then, which policies are in force."""

    kill: forks.Kill | None
    parts: tuple[Part, ...] = ()
    variant: int = 0
    then_variant: int | None = None
    """Policies that come while the gateway runs; it dies as it adopts them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A life: starts that are killed, then one that is not."""

    seed: str
    starts: tuple[Start, ...]

    def parts(self) -> list[Part]:
        """Every scenario of the life."""
        return [part for start in self.starts for part in start.parts]


def life(seed: int, number: int) -> Plan:
    """The plan of a life. Over the lives of a seed each failpoint has its turn before one comes again."""
    names = [_name(seed, number * KILLS_OF_A_LIFE + turn) for turn in range(KILLS_OF_A_LIFE)]
    chance = random.Random(f"{seed}/{number}")
    names.sort(key=lambda name: (name in AT_START) - 2 * chance.random())
    if names[0] in AT_START:  # a recovery is worth more with something to recover
        names.append(names.pop(0))
    starts: list[Start] = []
    kept = 0  # the policies whose balances are in the database
    for turn, name in enumerate(names):
        is_changed = name == "ledger.made" or chance.random() < 0.4
        variant = (kept + chance.randrange(1, VARIANTS)) % VARIANTS if is_changed else kept
        starts.append(_start(chance, f"{number}.{turn}", name, variant))
        kept = _kept_by(starts[-1], kept)
    return Plan(seed=f"{seed}/{number}", starts=(*starts, Start(kill=None, variant=chance.randrange(VARIANTS))))


def _start(chance: random.Random, where: str, name: str, variant: int) -> Start:
    if name.startswith("adopt.") and chance.random() < 0.5:
        then = (variant + 1) % VARIANTS
        parts = _parts(chance, where, "slow", 2)
        return Start(kill=forks.Kill(name=name, nth=2), parts=parts, variant=variant, then_variant=then)
    if name in AT_START:
        return Start(kill=forks.Kill(name=name), variant=variant)
    nth = chance.randint(1, MOST_BATCHES if name.startswith("sqlite.") else MOST_TIMES)
    parts = _parts(chance, where, REACHED_BY[name], min(nth, MOST_TIMES))
    return Start(kill=forks.Kill(name=name, nth=nth), parts=parts, variant=variant)


def _kept_by(start: Start, before: int) -> int:
    """The policies whose balances are in the database when a start has died."""
    assert start.kill is not None
    if start.then_variant is not None:
        return start.then_variant if start.kill.name == "adopt.committed" else start.variant
    is_too_early = start.kill.name in _BEFORE_ADOPTION or (start.kill.name in _OF_A_BATCH and start.kill.nth == 1)
    return before if is_too_early else start.variant


def crowd(seed: int, number: int, size: int) -> Plan:
    """The plan of a random round: so many submits at once, then a kill at a moment that `kill_after_s` names."""
    chance = random.Random(f"{seed}/random/{number}")
    names = chance.choices(sorted(SCENARIOS.keys() - _SELDOM), k=size)
    parts = tuple(Part(scenario=name, prompt=f"<{number}.{at} {name}>") for at, name in enumerate(names))
    return Plan(seed=f"{seed}/random/{number}", starts=(Start(kill=None, parts=parts), Start(kill=None)))


def kill_after_s(plan: Plan, longest_s: float) -> float:
    """When the gateway of a random round is killed."""
    return random.Random(f"{plan.seed}/when").uniform(0, longest_s)


def _name(seed: int, turn: int) -> str:
    names = sorted(failpoints.NAMES)
    deck, place = divmod(turn, len(names))
    random.Random(f"{seed}/deck/{deck}").shuffle(names)
    return names[place]


def _parts(chance: random.Random, where: str, wanted: str, nth: int) -> tuple[Part, ...]:
    noise = chance.choices(sorted(SCENARIOS.keys() - _SELDOM), k=NOISE)
    names = [wanted] * nth + noise
    chance.shuffle(names)
    return tuple(Part(scenario=name, prompt=f"<{where}.{at} {name}>") for at, name in enumerate(names))


def _rule(on: str, prompt: str, times: int | None, do: Mapping[str, object]) -> dict[str, Any]:
    return {"on": on, "prompt": prompt, "times": times, "do": dict(do)}
