"""The vendor goes away under load: no client sees it, nothing is bought twice, the repeats stay within their budget.

The flows, a real simulator, a real database and the hand clock of `tests/stage`, moved by 0.2 s as the gateway's loops
look. What is held against the contract is what the simulator received: each POST with its idempotency key and the time.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway.flow import mirror, poll, resubmit, submit
from gateway.rules import task
from tests import stage
from tests.proofs import run

TICK_S: Final = 0.2
DEADLINE_S: Final = 120.0
BILLED_NANOS: Final = 13_280_000

# Source: CONTRACT §2, "Retries"; by hand, not from the code that keeps it.
RETRY_SHARE_OF_SUBMITS: Final = (1, 5)
RETRIES_NEVER_HELD_UNDER_PER_S: Final = 3
RETRY_BURST: Final = 50
BETWEEN_PROBES_S: Final = 5.0

DOWN: Final = [{"on": "any", "times": None, "do": {"drop": True}}]
UNAVAILABLE: Final = [{"on": "any", "times": None, "do": {"status": 503}}]
UP: Final[list[dict[str, Any]]] = []

Weather = Callable[[int], Sequence[dict[str, Any]]]
"""The simulator's script in the n-th tick."""


class Load:
    """A steady load of submits against the stage, and what came of it."""

    def __init__(self, on: stage.Stage, *, per_tick: int) -> None:
        self.on = on
        self.per_tick = per_tick
        self.tick = 0
        self.began_at = on.clock()
        self.ids: list[str] = []
        self.admitted_at: list[float] = []

    async def pass_time(self, ticks: int, weather: Weather, *, is_loaded: bool) -> None:
        """Let so many ticks pass, with submits or without."""
        for _ in range(ticks):
            self.on.vendor.set_script(list(weather(self.tick)))
            if is_loaded:
                first = len(self.ids)
                prompts = [f"fox {number}" for number in range(first, first + self.per_tick)]
                results = await asyncio.gather(*(self.on.submit(prompt=prompt) for prompt in prompts))
                for result in results:
                    assert isinstance(result, submit.Submitted), f"a client sees {result}"
                    assert result.row.state in task.OPEN, f"a client sees a task that is {result.row.state}"
                    self.ids.append(result.row.id)
                    self.admitted_at.append(self.on.clock())
            await self._step()
            # Whole ticks from the beginning: a sum of fifths drifts away from what they mean.
            self.tick += 1
            self.on.clock.now = self.began_at + self.tick / 5

    async def drain(self, within_s: float) -> None:
        """Let time pass until every task has ended."""
        for _ in range(int(within_s / TICK_S)):
            await self.pass_time(1, lambda _: UP, is_loaded=False)
            if await self.open_tasks() == 0:
                return
        raise AssertionError(f"{await self.open_tasks()} tasks are open {within_s:g} s after the end of the outage")

    async def open_tasks(self) -> int:
        marks = ", ".join(f"'{state}'" for state in task.OPEN)
        sql = f"SELECT COUNT(*) AS n FROM tasks WHERE state IN ({marks})"  # noqa: S608 - constant text
        rows = await self.on.parts.database.read(lambda tx: tx.all(sql))
        return int(rows[0]["n"])

    async def _step(self) -> None:
        """One look of every loop, as the gateway runs them: name, how many at once, and how often."""
        loops = [(resubmit.due, resubmit.step, 32), (poll.due, poll.step, 64), (mirror.due, mirror.step, 64)]
        if self.tick % 10 == 0:
            loops.append((mirror.due_late, mirror.step, 8))
        for due, step, slots in loops:
            found = list(await due(self.on.parts, slots))[:slots]
            await asyncio.gather(*(step(self.on.parts, task_id) for task_id in found))


class Posts:
    """What the simulator received, by time and idempotency key."""

    def __init__(self, load: Load) -> None:
        records = load.on.vendor.requests.submits
        assert len(records) == load.on.posts(), "the simulator forgot some records: make the load smaller"
        self.began_at = load.began_at
        self.all = [(record.at, str(record.idempotency_key)) for record in records]
        seen: set[str] = set()
        self.retries: list[float] = []
        for at, key in self.all:
            if key in seen:
                self.retries.append(at)
            seen.add(key)
        self.keys = len(seen)

    def at_ticks(self, first: int, last: int) -> list[float]:
        """Times of the POSTs in a half-open range of ticks."""
        since, until = self.began_at + (first - 0.5) / 5, self.began_at + (last - 0.5) / 5
        return [at for at, _ in self.all if since <= at < until]

    def check_budget(self, submitted_at: Sequence[float]) -> int:
        """Hold the retries against the contract; the most of them in any 60 s.

        What is beyond the share of the submits of the last 60 s is what may not be held: 3 a second, 50 at once.
        """
        of, each = RETRY_SHARE_OF_SUBMITS
        most, left, refilled_at = 0, float(RETRY_BURST), self.began_at
        for index, at in enumerate(self.retries, start=1):
            since = at - 60
            retries = sum(since < other for other in itertools.islice(self.retries, index))
            submits = sum(since < other <= at for other in submitted_at)
            most = max(most, retries)
            if retries * each > submits * of:
                left = min(RETRY_BURST, left + (at - refilled_at) * RETRIES_NEVER_HELD_UNDER_PER_S) - 1
                refilled_at = at
                assert left > -0.01, f"{retries} retries and {submits} submits in 60 s, too many of them at once"
        per_tick = collections.Counter(self.retries)
        assert max(per_tick.values(), default=0) <= RETRY_BURST, f"a burst of {max(per_tick.values())} retries"
        return most


async def check_each_is_billed_once(load: Load) -> None:
    """Every submit is one completed task here and one at the vendor, and the books are the bill."""
    rows = [await load.on.row(task_id) for task_id in load.ids]
    states = collections.Counter(row.state.value for row in rows)
    assert states == {"completed": len(load.ids)}, dict(states)
    bill = load.on.vendor.bill()
    assert (bill["tasks"], bill["open"]) == (len(load.ids), 0), (bill["tasks"], bill["open"], len(load.ids))
    assert len({line["prompt"] for line in bill["by_task"].values()}) == len(load.ids)
    assert await load.on.settled_nanos() == bill["nanos"] == len(load.ids) * BILLED_NANOS
    assert await load.on.audit() == []


async def check_accepted_before_the_deadline(load: Load) -> float:
    """Every task was accepted by the vendor before its deadline; the longest that one waited, in seconds."""
    rows = [await load.on.row(task_id) for task_id in load.ids]
    waits = [(row.submitted_at or float("inf")) - row.created_at for row in rows]
    assert max(waits) < DEADLINE_S, f"one waited {max(waits):.1f} s"
    return max(waits)


async def a_minute_down(directory: pathlib.Path, *, per_s: int, seconds: int = 60, is_answering: bool = False) -> str:
    """Five seconds of calm, then an outage under load, then recovery. `is_answering`: the outage is a 503."""
    async with stage.staged(directory, growth="limits: {open_tasks: 100000}\n") as on:
        load = Load(on, per_tick=per_s // 5)
        await load.pass_time(25, lambda _: UP, is_loaded=True)
        await load.pass_time(seconds * 5, lambda _: UNAVAILABLE if is_answering else DOWN, is_loaded=True)
        posted = Posts(load)
        # The first tick finds out: that is when five calls in a row have failed.
        probes = posted.at_ticks(26, 25 + seconds * 5)
        assert len(probes) <= seconds / BETWEEN_PROBES_S, f"{len(probes)} POSTs in {seconds} s of outage"
        gaps = [later - earlier for earlier, later in itertools.pairwise(probes)]
        assert min(gaps, default=BETWEEN_PROBES_S) >= BETWEEN_PROBES_S - 0.001, f"probes {min(gaps)} s apart"
        await load.drain(within_s=DEADLINE_S - seconds)
        slowest_s = await check_accepted_before_the_deadline(load)
        await check_each_is_billed_once(load)
        most = Posts(load).check_budget(load.admitted_at)
    return (
        f"{len(load.ids)} submits, {seconds} s down, {len(probes)} probes, at most {most} retries a minute, "
        f"the last accepted after {slowest_s:.0f} s, each billed once"
    )


async def flapping(directory: pathlib.Path, *, per_s: int, seconds: int = 60) -> str:
    """Five seconds up, five seconds down, under load."""

    def weather(tick: int) -> Sequence[dict[str, Any]]:
        return DOWN if tick // 25 % 2 else UP

    async with stage.staged(directory, growth="limits: {open_tasks: 100000}\n") as on:
        load = Load(on, per_tick=per_s // 5)
        await load.pass_time(seconds * 5, weather, is_loaded=True)
        posted = Posts(load)
        for began in range(25, seconds * 5, 50):
            late = posted.at_ticks(began + 1, began + 25)
            assert len(late) <= 1, f"{len(late)} POSTs in 5 s of outage that began in tick {began}"
        await load.drain(within_s=60)
        slowest_s = await check_accepted_before_the_deadline(load)
        await check_each_is_billed_once(load)
        most = Posts(load).check_budget(load.admitted_at)
    return (
        f"{len(load.ids)} submits, 5 s up and 5 s down, at most {most} retries a minute, the last accepted after "
        f"{slowest_s:.0f} s, each billed once"
    )


async def half_deaf(directory: pathlib.Path, *, per_s: int, seconds: int = 60) -> str:
    """Every second POST is accepted and its answer dropped: as many retries are due as there are submits."""
    async with stage.staged(directory, growth="limits: {open_tasks: 100000}\n") as on:
        load = Load(on, per_tick=per_s // 5)
        heard, unheard = {"on": "submit", "do": {}}, {"on": "submit", "do": {"accept_and_drop": True}}

        def weather(_: int) -> Sequence[dict[str, Any]]:
            return [heard, unheard] * 64

        await load.pass_time(seconds * 5, weather, is_loaded=True)
        left = await load.open_tasks()
        # Never held under 3 a second: so many are over within this time, and the last one's poll and picture.
        await load.drain(within_s=left / RETRIES_NEVER_HELD_UNDER_PER_S + 20)
        await check_each_is_billed_once(load)
        posted = Posts(load)
        assert len(posted.retries) >= len(load.ids) // 2, "nothing much was dropped"
        most = posted.check_budget(load.admitted_at)
        took_s = load.tick / 5 - seconds
    return (
        f"{len(load.ids)} submits, every second answer dropped, {len(posted.retries)} retries, at most {most} a "
        f"minute, the last of {left} in doubt over {took_s:.0f} s later, each billed once"
    )


def down(directory: pathlib.Path) -> str:
    """The long form: 50 submits a second, no answer for a minute."""
    return asyncio.run(a_minute_down(directory, per_s=50))


def unavailable(directory: pathlib.Path) -> str:
    """The long form: 50 submits a second, nothing but 503 for a minute."""
    return asyncio.run(a_minute_down(directory, per_s=50, is_answering=True))


def flaps(directory: pathlib.Path) -> str:
    """The long form: 50 submits a second."""
    return asyncio.run(flapping(directory, per_s=50))


def deaf(directory: pathlib.Path) -> str:
    """The long form: 50 submits a second."""
    return asyncio.run(half_deaf(directory, per_s=50))


def all_forms(directory: pathlib.Path) -> str:
    """Every long form, one after another."""
    said = []
    for form in (down, unavailable, flaps, deaf):
        place = directory / form.__name__
        place.mkdir()
        said.append(f"{form.__name__}: {form(place)}")
    return "; ".join(said)


if __name__ == "__main__":
    run.alone("outage", all_forms)
