"""The rules of the model test: what may happen to a gateway, in any order.

Every draw is independent of the state, so that a run is repeated by its seed alone and shrinks well: an index is
taken modulo what there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, Final

import hypothesis.strategies as st
from hypothesis import stateful

from tests.stateful import judge, model, world

STARTS: Final = (
    1_795_348_800.0,  # 2026-11-22 12:00 UTC, a Sunday
    1_806_174_000.0,  # 2027-03-27 23:00 UTC, the night before summer time begins in Europe
    1_798_754_100.0,  # 2026-12-31 21:55 UTC
)
DAY: Final = datetime.timedelta(days=1)
TIMEZONES: Final = ("UTC", "Europe/London", "America/New_York")
PATIENCE: Final = (31.0, *(10.0,) * 12)
"""Seconds between the last rounds: with the vendor healthy every task ends in them (M14)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mood:
    """What the vendor does with submits, and what the gateway then knows."""

    do: Mapping[str, Any]
    is_deaf: bool = False
    """It does so before it looks at the submit: nothing is accepted, nothing refused."""
    is_lost: bool = False
    """The gateway does not learn what came of it."""
    is_cost_named: bool = True

    def outcome(self, prompt: str) -> str:
        """What comes of a POST."""
        if not self.is_deaf and BAD in prompt:
            return judge.REFUSED
        if self.is_lost:
            return judge.LOST
        return judge.NOT_SENT if self.is_deaf else judge.ACCEPTED


BAD: Final = "something bad"
"""A prompt that the vendor always refuses."""

HEALTHY: Final = Mood(do={})
MOODS: Final[Mapping[str, Mood]] = {
    "accepts": HEALTHY,
    "accepts, later shapes": Mood(do={"generation": "later"}),
    "accepts, early shapes": Mood(do={"generation": "early"}, is_cost_named=False),
    "takes its time": Mood(do={"queue_s": 40, "work_s": 40}),
    "wavers": Mood(do={"statuses": ["processing", "queued", "strange", "completed"]}),
    "delivers one": Mood(do={"deliver": 1}),
    "delivers one, names no cost": Mood(do={"deliver": 1, "generation": "early"}, is_cost_named=False),
    "delivers nothing": Mood(do={"no_result": True}),
    "bills above": Mood(do={"cost": 70_000}),
    "falls back": Mood(do={"fallback": True}),
    "fails": Mood(do={"outcome": "failed"}),
    "fails and bills": Mood(do={"outcome": "failed", "cost": 1_000}),
    "cancels": Mood(do={"outcome": "cancelled"}),
    "drops": Mood(do={"drop": True}, is_deaf=True, is_lost=True),
    "500": Mood(do={"status": 500}, is_deaf=True, is_lost=True),
    "garbage": Mood(do={"garbage": True}, is_deaf=True, is_lost=True),
    "429": Mood(do={"status": 429, "retry_after": 3}, is_deaf=True),
    "401": Mood(do={"status": 401}, is_deaf=True),
    "accepts and drops": Mood(do={"accept_and_drop": True}, is_lost=True),
    "accepts, 503": Mood(do={"status": 503, "accept": True}, is_lost=True),
    "accepts, garbage": Mood(do={"garbage": True, "accept": True}, is_lost=True),
}
HANGS: Final = {
    "accepted": Mood(do={"accept_and_hang_s": world.LONG_S}, is_lost=True),
    "lost": Mood(do={"delay_s": world.LONG_S, "drop": True}, is_deaf=True, is_lost=True),
}
REFUSES_BAD: Final = {"prompt": BAD, "do": {"status": 400, "code": "invalid_request"}}
FINE: Final[Mapping[str, Any]] = {}
SAYS: Final[Mapping[str, tuple[Mapping[str, Any], ...]]] = {
    "poll": (
        FINE,
        FINE,
        {"status": 404, "code": "task_not_found"},
        {"status": 500},
        {"status": 401},
        {"drop": True},
        {"garbage": True},
        {"merge": {"status": "strange"}},
    ),
    "media": (FINE, FINE, {"status": 500}, {"media": "html"}, {"truncate": True}),
    "cancel": (FINE, FINE, {"pretend": True}, {"drop": True}, {"status": 500}),
}

MODELS: Final = tuple(model.LIST)
ASKS: Final = st.builds(
    model.Ask,
    team=st.sampled_from(("growth", "research")),
    key=st.sampled_from(("ci", "web")),
    model=st.sampled_from(MODELS),
    prompt=st.sampled_from(("a fox", "a fox", "a hare", BAD)),
    n=st.integers(1, 3),
    seed=st.sampled_from((None, 7, 8)),
    fallback=st.booleans(),
    idempotency_key=st.sampled_from((None, None, "1", "2", "3")),
    cache=st.sampled_from(("", "", "", "", "no-store", "refresh", "only-if-cached")),
    max_cost_nanos=st.sampled_from((None, None, None, None, 30_000_000, 100_000_000)),
)
SLOTS: Final = (
    ("org", ""),
    ("org", ""),
    ("team", "growth"),
    ("team", "growth"),
    ("team", "research"),
    ("key", "growth/ci"),
)
FILTERS: Final[tuple[tuple[str, ...], ...]] = ((), (), ("gemini-3-pro-*",), ("*-official",))
CAPS: Final = st.builds(
    model.Cap,
    scope=st.just(""),
    name=st.just(""),
    window=st.sampled_from(("day", "day", "week", "month", "total")),
    nanos=st.sampled_from((250_000_000, 1_000_000_000, 0, 40_000_000, 100_000_000)),
    models=st.sampled_from(FILTERS),
    raised_nanos=st.just(100_000_000),
    raised_until=st.sampled_from((None, None, datetime.date.min + DAY, datetime.date.min + 2 * DAY)),
)
"""`raised_until` counts from the first day that there is; whoever adopts the cap moves it to today."""
CRASHES: Final = {"resubmit": "submit", "poll": "poll", "mirror": "media"}
"""Background steps to die in, and what they ask of the vendor."""
INDEX: Final = st.integers(0, 63)
TALLY: Counter[str] = Counter()
"""How often each rule was played in this process."""


class Gateway(stateful.RuleBasedStateMachine):
    """A gateway with two teams, and everything that may happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.world: world.World | None = None
        self.is_broken = False

    @stateful.initialize(start=st.sampled_from(STARTS), caps=st.sampled_from((0, 200_000_000, 1_000_000_000)))
    def begin(self, start: float, caps: int) -> None:
        self.in_force = model.Rules()
        if caps:
            team = model.Cap(scope="team", name="growth", window="day", nanos=caps)
            self.in_force = model.Rules(caps=(team, model.Cap(scope="org", name="", window="month", nanos=2 * caps)))
        self.slots: dict[int, model.Cap] = dict(zip((2, 0), self.in_force.caps, strict=False))
        self.world = self.gateway = world.World(now=start)
        self.keys = dict(self.gateway.keys)
        self.asked: list[model.Ask] = []
        self.posts = 0
        self.bodies: dict[str, bytes] = {}
        self.gateway.run(self.gateway.adopt(self.in_force))
        for on in SAYS:
            self.gateway.script(on)
        self.mood = HEALTHY
        self._say(HEALTHY)
        self.judge = judge.Judge(self.gateway.see(), self.in_force, start)

    # What clients do.

    @stateful.rule(ask=ASKS)
    def submit(self, ask: model.Ask) -> None:
        self._submit("submit", ask)

    @stateful.rule(ask=ASKS)
    def submit_plainly(self, ask: model.Ask) -> None:
        plain = dataclasses.replace(ask, cache="", max_cost_nanos=None, idempotency_key=None)
        self._submit("submit plainly", plain)

    @stateful.rule(index=INDEX, is_same_key=st.booleans())
    def submit_again(self, index: int, is_same_key: bool) -> None:
        if self.asked:
            ask = self.asked[-1 - index % len(self.asked)]
            if not is_same_key:
                ask = dataclasses.replace(ask, idempotency_key=None, cache="", max_cost_nanos=None)
            self._submit("submit again", ask)

    @stateful.rule(ask=ASKS, times=st.integers(2, 5))
    def submit_side_by_side(self, ask: model.Ask, times: int) -> None:
        ask = dataclasses.replace(ask, max_cost_nanos=None)
        with self._step("submit side by side", ask=ask, team=ask.team):
            outcomes = self.gateway.run(_together([self.gateway.submit(ask) for _ in range(times)]))
            if ask.idempotency_key is not None:
                made = {
                    outcome.row.id for outcome in outcomes if not isinstance(outcome, str) and hasattr(outcome, "row")
                }
                assert len(made) <= 1, f"M5: {made} under one key of one team"

    @stateful.rule(index=INDEX, team=st.sampled_from(("growth", "research")))
    def cancel(self, index: int, team: str) -> None:
        task_id = self._any(index)
        if task_id is not None:
            with self._step("cancel", team=team):
                code = self.gateway.run(self.gateway.cancel(team, task_id))
                is_stranger = self.judge.asks[task_id].team != team
                assert is_stranger == (code == "task_not_found"), f"M13: team {team} cancels {task_id}: {code!r}"

    # What the vendor does.

    @stateful.rule(mood=st.sampled_from(tuple(MOODS)))
    def vendor_submit(self, mood: str) -> None:
        TALLY["vendor: submits"] += 1
        self._say(MOODS[mood])

    @stateful.rule(on=st.sampled_from(tuple(SAYS)), index=INDEX, team=st.sampled_from(("", "", "", "GROWTH")))
    def vendor_answer(self, on: str, index: int, team: str) -> None:
        if team:
            TALLY["vendor: another key"] += 1
            self.gateway.keys[f"env:KEY_{team}"] = f"vendor-key-{index % 2}"
            return
        TALLY["vendor: answers"] += 1
        self.gateway.script(on, {"do": SAYS[on][index % len(SAYS[on])]})

    @stateful.rule(index=INDEX, times=st.integers(1, 3), is_forged=st.sampled_from((False, False, True)))
    def call_back(self, index: int, times: int, is_forged: bool) -> None:
        """Early, late, doubled or forged: it changes nothing; a poll that it causes is one like any other."""
        task_id = None if is_forged else self._any(index)
        before = self.gateway.see()
        with self._step("forged callback" if task_id is None else "callback"):
            heard = self.gateway.run(self.gateway.call_back(task_id, times=times))
            is_free = task_id not in self.judge.books.tasks
            if heard != [not is_free] * times or self.gateway.see() != before:
                raise judge.Violation(f"M10: callbacks about {task_id} came to {heard}, or changed something")
        with self._step("background: poll"):
            self.gateway.run(self.gateway.work("poll"))

    # What time does.

    @stateful.rule(seconds=st.sampled_from((5.0, 0.0, 0.6, 1.0, 2.0, 15.0)))
    def background(self, seconds: float) -> None:
        with self._step("background"):
            self.gateway.clock.advance(seconds)
            self.gateway.run(self.gateway.work(*world.STEPS))

    @stateful.rule(kind=st.sampled_from((*world.STEPS, "")), seconds=st.sampled_from((0.0, 1.0, 10.0)))
    def background_one(self, kind: str, seconds: float) -> None:
        with self._step(f"background: {kind or 'healthy'}"):
            if not kind:
                self._heal()
            self.gateway.clock.advance(seconds)
            self.gateway.run(self.gateway.work(*([kind] if kind else world.STEPS)))

    @stateful.rule(kind=st.sampled_from(tuple(world.STEPS)), index=INDEX, times=st.integers(1, 3))
    def poke(self, kind: str, index: int, times: int) -> None:
        task_id = self._any(index)
        if task_id is not None:
            # No loop works on a task twice at once, so only a poll, whose order is the vendor's, has company.
            with self._step(f"poke: {kind}"):
                self.gateway.run(self.gateway.poke(kind, task_id, times=times if kind == "poll" else 1))

    @stateful.rule(
        seconds=st.sampled_from(
            (30, 61, 130, 3_601, 6 * 3_600, 23 * 3_600, 25 * 3_600, 3 * 86_400, 31 * 86_400, -1_800, -1, 0, 1)
        ),
        window=st.sampled_from(("day", "day", "month")),
    )
    def clock(self, seconds: int, window: str) -> None:
        with self._step("clock"):
            if seconds > 1:
                self.gateway.clock.advance(seconds)
            else:  # to the end of a window, shortly before it, or past it
                _, end = model.bounds(window, self.gateway.clock.now, self.in_force.timezone)
                self.gateway.clock.now = max(self.gateway.clock.now, (end or 0) + seconds)

    # What whoever runs the gateway does, and what befalls it.

    @stateful.rule(slot=st.integers(0, len(SLOTS) - 1), cap=CAPS, is_wanted=st.sampled_from((True, True, True, False)))
    def adopt_cap(self, slot: int, cap: model.Cap, is_wanted: bool) -> None:
        scope, name = SLOTS[slot]
        self.slots.pop(slot, None)
        if is_wanted:
            today = datetime.datetime.fromtimestamp(self.gateway.clock.now, datetime.UTC).date()
            until = None if cap.raised_until is None else today + (cap.raised_until - datetime.date.min)
            self.slots[slot] = dataclasses.replace(cap, scope=scope, name=name, raised_until=until)
        self._adopt("adopt a cap" if is_wanted else "adopt: a cap goes")

    @stateful.rule(
        timezone=st.sampled_from((*TIMEZONES, "")), name=st.sampled_from(MODELS), parts=st.sampled_from((1, 2, 2, 3))
    )
    def adopt_prices(self, timezone: str, name: str, parts: int) -> None:
        if timezone:
            self._adopt("adopt a timezone", timezone=timezone)
            return
        standard, official = model.LIST[name]
        prices = {**self.in_force.prices, name: (standard * parts // 2, official * parts // 2)}
        self._adopt("adopt a price", prices=prices)

    @stateful.rule(index=INDEX, charged_nanos=st.sampled_from((None, 0, 13_280_000, 200_000_000)))
    def resolve(self, index: int, charged_nanos: int | None) -> None:
        open_tasks = [task.id for task in self.judge.books.tasks.values() if task.end is None]
        if open_tasks:
            task_id = open_tasks[index % len(open_tasks)]
            with self._step("resolve", team=self.judge.asks[task_id].team):
                if self.gateway.run(self.gateway.resolve(task_id, charged_nanos)):
                    TALLY["  which ended a hold"] += 1
                    self.judge.resolved.add(task_id)

    @stateful.rule(ask=ASKS, hang=st.sampled_from(tuple(HANGS)))
    def crash_in_submit(self, ask: model.Ask, hang: str) -> None:
        ask = dataclasses.replace(ask, max_cost_nanos=None)
        with self._step("crash in a submit", ask=ask, mood=HANGS[hang]):
            self._crash(self.gateway.submit(ask))

    @stateful.rule(kind=st.sampled_from(("", *CRASHES)), hang=st.sampled_from(tuple(HANGS)))
    def crash(self, kind: str, hang: str) -> None:
        with self._step(f"crash in a {kind}" if kind else "crash", mood=HANGS[hang] if kind == "resubmit" else None):
            if not kind:
                self._crash(None)
                return
            self.gateway.clock.advance(10)
            if kind != "resubmit":
                self.gateway.script(CRASHES[kind], {"do": {"delay_s": world.LONG_S, "drop": True}})
            due = self.gateway.run(self.gateway.due(kind))
            self._crash(self.gateway.poke(kind, due[0], times=1) if due else None)
            if kind != "resubmit":
                self.gateway.script(CRASHES[kind])

    def teardown(self) -> None:
        if self.world is None:
            return
        try:
            if not self.is_broken:
                self._finish()
        finally:
            self.world.close()

    def _finish(self) -> None:
        """With the vendor healthy every task ends, but for what is the operator's (M14); and the books are its bill."""
        self._heal()
        for seconds in PATIENCE:
            if not self.judge.left_open():
                break
            self.background(seconds)
        if self.judge.left_open():
            raise judge.Violation(f"M14: nobody works on {self.judge.left_open()}")

    def _submit(self, name: str, ask: model.Ask) -> None:
        expected, task_id = self.judge.expected(ask, self.gateway.clock.now)
        with self._step(name, ask=ask, team=ask.team):
            outcome = self.gateway.run(self.gateway.submit(ask))
            found = _outcome_of(outcome)
            if found[0] != expected or (task_id and found[1] != task_id):
                raise judge.Violation(f"{ask} came to {found}, and should to {expected} {task_id}: {outcome}")
        TALLY[f"  which came to: {expected}"] += 1

    def _crash(self, flight: Coroutine[Any, Any, object] | None) -> None:
        self.judge.books.adopt(
            self.in_force, self.gateway.clock.now
        )  # a start makes the balances of the present windows
        self.gateway.run(self.gateway.crash(self.in_force, flight))

    def _adopt(self, name: str, **changes: Any) -> None:
        caps = tuple(self.slots[slot] for slot in sorted(self.slots))
        with self._step(name):
            self.in_force = dataclasses.replace(self.in_force, caps=caps, **changes)
            self.judge.books.adopt(self.in_force, self.gateway.clock.now)
            self.gateway.run(self.gateway.adopt(self.in_force))

    def _heal(self) -> None:
        """The vendor is well, and the keys are those that the tasks were sent with."""
        self._say(HEALTHY)
        for on in SAYS:
            self.gateway.script(on)
        self.gateway.keys |= self.keys

    def _say(self, mood: Mood) -> None:
        self.mood = mood
        said = {"do": dict(mood.do)}
        self.gateway.script("submit", *((said, REFUSES_BAD) if mood.is_deaf else (REFUSES_BAD, said)))

    def _any(self, index: int) -> str | None:
        known = list(self.judge.asks)
        return known[-1 - index % len(known)] if known else None

    @contextlib.contextmanager
    def _step(
        self, name: str, *, ask: model.Ask | None = None, team: str | None = None, mood: Mood | None = None
    ) -> Iterator[None]:
        """One step, and everything that must hold after it; `mood`: the vendor's, for this step only."""
        usual = self.mood
        if mood is not None:
            self._say(mood)
        TALLY[name] += 1
        try:
            yield
            self.judge.judge(
                self.gateway.see(),
                now=self.gateway.clock.now,
                bill=self.gateway.vendor.bill(),
                posts=self._posts(),
                is_cost_named=self.mood.is_cost_named,
                ask=ask,
                team=team,
            )
        except BaseException:
            self.is_broken = True
            raise
        if mood is not None:
            self._say(usual)
        if ask is not None:
            self.asked.append(ask)

    def _posts(self) -> list[tuple[str, str]]:
        """What the vendor heard since the last look."""
        records = list(self.gateway.vendor.requests.submits)[self.posts :]
        self.posts += len(records)
        for each in records:
            if self.bodies.setdefault(each.idempotency_key or "", each.body) != each.body:
                raise judge.Violation(f"M5: under {each.idempotency_key} the vendor heard two bodies")
        return [
            (each.idempotency_key or "", self.mood.outcome(BAD if BAD.encode() in each.body else ""))
            for each in records
        ]


def _outcome_of(outcome: Any) -> tuple[str, str]:
    if isinstance(outcome, str):
        return outcome, ""
    if hasattr(outcome, "code"):
        return outcome.code, ""
    if outcome.is_replay:
        return judge.REPLAY, outcome.row.id
    if outcome.row.x_cache == "HIT":
        return judge.HIT, outcome.row.id
    if outcome.row.leader_id is not None:
        return judge.FOLLOW, outcome.row.leader_id
    return judge.ADMIT, outcome.row.id


async def _together(steps: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    return await asyncio.gather(*steps)


def steps_played() -> int:
    """Steps of this process that were judged, and those that changed what the vendor does."""
    return sum(times for name, times in TALLY.items() if not name.startswith(" "))
