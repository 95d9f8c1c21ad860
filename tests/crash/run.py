"""The crash proof: `python -m tests.crash.run --kills 200 --rounds 5`.

A life: a gateway is killed with SIGKILL at one failpoint after another while clients and a hostile vendor keep it
busy; the last start is left alone until every task has ended, and then the ledger is held against the vendor's bill.
A random round does the same with fifty submits at once and one kill at any moment. Done lives are kept in the state
directory, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from typing import Any, Final

import aiohttp

from gateway import failpoints
from tests import process
from tests.crash import books, clients, forks, plans, receiver

LANES: Final = 6
"""Lives side by side: most of a life is waiting."""
REACH_WITHIN_S: Final = 30.0
QUIET_WITHIN_S: Final = 60.0
LOOK_AGAIN_S: Final = 0.02
SAY_EVERY_S: Final = 10.0
LONGEST_BEFORE_KILL_S: Final = 1.5
REPEATED: Final = 3
"""Submits of each life that are repeated under their keys when everything has ended."""
SUBMITS_OF_A_ROUND: Final = 50
RANDOM: Final = "(any moment)"
"""Where the kill of a random round falls, in the table."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One life or round, as the state file keeps it."""

    kind: str
    number: int
    kills: tuple[str, ...]
    lost_nanos: int = 0
    gained_nanos: int = 0
    duplicates: int = 0
    open_tasks: int = 0
    tasks: int = 0
    billed_nanos: int = 0
    findings: tuple[str, ...] = ()


class Life:
    """One plan as it is played on a lane, in a directory of its own."""

    def __init__(self, lane: forks.Lane, plan: plans.Plan, directory: pathlib.Path) -> None:
        self._lane = lane
        self._plan = plan
        self._directory = directory
        self._key_file = directory / "doubt.key"
        self.kills: list[str] = []
        self.findings: list[str] = []

    async def play(self, session: aiohttp.ClientSession) -> books.Verdict:
        """Live it, die as planned, and compare the books."""
        async with receiver.receiving() as hook:
            return await self._live(session, hook)

    async def _live(self, session: aiohttp.ClientSession, hook: receiver.Receiver) -> books.Verdict:
        self._key_file.write_text("vendor-secret-doubt-0")
        await _vendor(session, self._lane, "reset")
        everybody = clients.Clients(session, self._lane.url, self._key_file, hook_url=hook.url)
        playing: list[asyncio.Task[None]] = []
        await self._script(session, is_last=False)
        for start in self._plan.starts[:-1]:
            pid = await self._start(start)
            if start.parts:
                playing += [asyncio.create_task(everybody.play(part)) for part in start.parts]
            if start.then_variant is not None:
                await everybody.answered()
                books.write_policies(self._directory / "policies", start.then_variant, self._key_file)
            if not await self._die(start, pid):
                break
        await self._script(session, is_last=True)
        pid = await self._start(self._plan.starts[-1])
        await self._settle_down(playing)
        await self._ask_again(everybody)
        bill = await _vendor(session, self._lane, "bill")
        os.kill(pid, signal.SIGKILL)
        code = await self._lane.ended()
        if code != -signal.SIGKILL:
            self.findings.append(f"the last gateway ended by itself with {code}")
        verdict = await books.compare(self._directory / "data", bill, everybody.journal, hook)
        return dataclasses.replace(verdict, findings=(*verdict.findings, *self.findings, *everybody.findings))

    async def _start(self, start: plans.Start) -> int:
        books.write_policies(self._directory / "policies", start.variant, self._key_file)
        options: dict[str, object] = {
            "listen": f"127.0.0.1:{self._lane.port}",
            "upstream": self._lane.vendor_url,
            "data": str(self._directory / "data"),
            "policies": str(self._directory / "policies"),
            "allow_private": ["127.0.0.0/8"],
            "min_free": "0B",
            "submit_deadline": "4s",
            "log_level": "error",
        }
        return await self._lane.start(options, process.ENVIRON, start.kill, self._directory / "gateway.log")

    async def _die(self, start: plans.Start, pid: int) -> bool:
        """Wait for the kill of a failpoint; without one, kill at a moment of the plan's own. False: it did not die."""
        kill = start.kill
        if kill is None:
            await asyncio.sleep(plans.kill_after_s(self._plan, LONGEST_BEFORE_KILL_S))
            os.kill(pid, signal.SIGKILL)
            code = await self._lane.ended()
        else:
            ending = asyncio.create_task(self._lane.ended())
            await asyncio.wait([ending], timeout=REACH_WITHIN_S)
            if not ending.done():
                self.findings.append(f"{kill.name} was not reached {kill.nth} times")
                os.kill(pid, signal.SIGKILL)
                await ending
                return False
            code = ending.result()
        if code == -signal.SIGKILL:
            self.kills.append(RANDOM if kill is None else kill.name)
            return True
        self.findings.append(f"the gateway ended by itself with {code}; see gateway.log")
        return False

    async def _settle_down(self, playing: list[asyncio.Task[None]]) -> None:
        """Wait until every client is done and every task has ended."""
        until = time.monotonic() + QUIET_WITHIN_S
        if playing:
            _, late = await asyncio.wait(playing, timeout=QUIET_WITHIN_S)
            self.findings += [f"a client is still waiting: {each.get_coro()}" for each in late]
            for each in playing:
                if each not in late and (error := each.exception()) is not None:
                    self.findings.append(f"a client ended with {error!r}")
                each.cancel()
        while books.count_open(self._directory / "data") and time.monotonic() < until:  # noqa: ASYNC110 - it is a file
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _ask_again(self, everybody: clients.Clients) -> None:
        """Every task that was promised is there, and a repeat under its key is that task."""
        promised = [each for each in everybody.journal if each.task_id is not None]
        shown = await asyncio.gather(*(everybody.shown(each) for each in promised))
        has_ended = [each for each, document in zip(promised, shown, strict=True) if _has_ended(document)]
        for each in [each for each in has_ended if each.key is not None][:REPEATED]:
            again = await everybody.submit(each.part, each.key, team=each.team, **each.body)
            assert again is not None
            if again.status == 200 and again.task_id != each.task_id:
                self.findings.append(f"{each.key}: was task {each.task_id}, is {again.task_id} when repeated")

    async def _script(self, session: aiohttp.ClientSession, *, is_last: bool) -> None:
        rules = [rule for part in self._plan.parts() for rule in part.rules(is_last=is_last)]
        await _vendor(session, self._lane, "script", rules)


def _has_ended(document: dict[str, Any]) -> bool:
    return document.get("status") in clients.ENDED


async def _vendor(session: aiohttp.ClientSession, lane: forks.Lane, what: str, body: object = None) -> Any:
    url = f"{lane.vendor_url}/sim/{what}"
    for _ in range(500):
        try:
            async with session.request("GET" if what == "bill" else "POST", url, json=body) as answer:
                assert answer.status == 200, await answer.text()
                return await answer.json()
        except aiohttp.ClientConnectorError:
            await asyncio.sleep(LOOK_AGAIN_S)  # the simulator is starting
    raise AssertionError("the simulator did not come up")


async def _play(lane: forks.Lane, plan: plans.Plan, kind: str, number: int, work: pathlib.Path) -> Result:
    directory = work / f"{kind}-{number}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    one = Life(lane, plan, directory)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=QUIET_WITHIN_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        verdict = await one.play(session)
    if not verdict.findings:
        shutil.rmtree(directory)
    return Result(kind=kind, number=number, kills=tuple(one.kills), **dataclasses.asdict(verdict))


class State:
    """The done lives of a run, a line of JSON each; the first line says which run."""

    def __init__(self, path: pathlib.Path, *, seed: int | None, kills: int, rounds: int) -> None:
        """Go on with the run in `path` if it is the wanted one and not done; else begin anew."""
        self._path = path
        head, self.done = self._load()
        self._wanted = [("round", number) for number in range(rounds)]
        self._wanted += [("life", number) for number in range(-(-kills // plans.KILLS_OF_A_LIFE))]
        is_same = head.get("kills") == kills and head.get("rounds") == rounds and seed in (None, head.get("seed"))
        if not is_same or not self.left():
            self.done = []
            head = {"seed": random.randrange(10**6) if seed is None else seed, "kills": kills, "rounds": rounds}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(head) + "\n")
        self.seed: int = head["seed"]

    def left(self) -> list[tuple[str, int]]:
        """(kind, number) of what is still to be played."""
        known = {(each.kind, each.number) for each in self.done}
        return [each for each in self._wanted if each not in known]

    def add(self, result: Result) -> None:
        """Keep one more."""
        self.done.append(result)
        with self._path.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(result)) + "\n")

    def kills(self, kind: str) -> int:
        """How many kills are done."""
        return sum(len(each.kills) for each in self.done if each.kind == kind)

    def _load(self) -> tuple[dict[str, Any], list[Result]]:
        if not self._path.exists():
            return {}, []
        lines = [json.loads(line) for line in self._path.read_text().splitlines() if line.endswith("}")]
        found = [Result(**line | {"kills": tuple(line["kills"])}) for line in lines[1:]]
        return (lines[0], found) if lines else ({}, [])


class _Progress:
    """One line that is written over on a terminal; elsewhere a line now and then."""

    def __init__(self, state: State, wanted: argparse.Namespace) -> None:
        self._state = state
        self._wanted = wanted
        self._began_at = self._said_at = time.monotonic()

    def show(self) -> None:
        """Say how far the run is."""
        now = time.monotonic()
        if not sys.stdout.isatty() and now - self._said_at < SAY_EVERY_S:
            return
        self._said_at = now
        state, wanted = self._state, self._wanted
        bad = sum(1 for each in state.done if each.findings)
        done = f"{state.kills('life')}/{wanted.kills} kills, {state.kills('round')}/{wanted.rounds} random rounds"
        line = f"{done}, {bad} with differences, {now - self._began_at:.0f} s"
        _say(f"\r{line}" if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n")


async def _work(lanes: list[forks.Lane], state: State, wanted: argparse.Namespace, work: pathlib.Path) -> None:
    left = iter(state.left() if wanted.life is None else [("life", wanted.life)])
    progress = _Progress(state, wanted)

    async def one_lane(lane: forks.Lane) -> None:
        for kind, number in left:
            if kind == "life":
                plan = plans.life(state.seed, number)
            else:
                plan = plans.crowd(state.seed, number, SUBMITS_OF_A_ROUND)
            state.add(await _play(lane, plan, kind, number, work))
            progress.show()

    await asyncio.gather(*(one_lane(lane) for lane in lanes))


def _report(state: State, work: pathlib.Path) -> int:
    """Print the table and the totals; returns the exit code."""
    kills: collections.Counter[str] = collections.Counter()
    differences: collections.Counter[str] = collections.Counter()
    for each in state.done:
        kills.update(each.kills)
        if each.findings:
            differences.update(set(each.kills))
    names = [*sorted(failpoints.NAMES), *([RANDOM] if kills[RANDOM] else [])]
    _say(f"\n\n{'failpoint':<20} {'kills':>6} {'differences':>12}")
    for name in names:
        _say(f"{name:<20} {kills[name]:>6} {differences[name]:>12}")
    bad = [each for each in state.done if each.findings]
    for each in bad:
        _say(f"\n{each.kind} {each.number} of seed {state.seed}, kept in {work / f'{each.kind}-{each.number}'}")
        for finding in each.findings:
            _say(f"  {finding}")
    total = _sums(state.done)
    ended = "all tasks ended" if not total["open_tasks"] else f"{total['open_tasks']} tasks did not end"
    _say(
        f"\n{sum(kills.values())} kills, {total['lost_nanos']} nanos lost, {total['gained_nanos']} gained, "
        f"{total['duplicates']} duplicates, {ended}\n"
        f"{len(state.done)} lives and rounds, {total['tasks']} tasks, {total['billed_nanos']} nanos billed, "
        f"seed {state.seed}, {len(bad)} with differences"
    )
    return 1 if bad else 0


def _sums(done: list[Result]) -> dict[str, int]:
    names = ("lost_nanos", "gained_nanos", "duplicates", "open_tasks", "tasks", "billed_nanos")
    return {name: sum(getattr(each, name) for each in done) for name in names}


def _say(text: str, *, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Run what is wanted; 1 on any difference."""
    parser = argparse.ArgumentParser(description="Kill the gateway and compare its books with the vendor's bill.")
    parser.add_argument("--kills", type=int, default=0, help="at failpoints")
    parser.add_argument("--rounds", type=int, default=0, help="of fifty submits and one kill at a random moment")
    parser.add_argument("--seed", type=int, help="default: that of the unfinished run, else a new one")
    parser.add_argument("--life", type=int, help="play this one life of --seed again")
    parser.add_argument("--lanes", type=int, default=LANES)
    parser.add_argument("--state", type=pathlib.Path, default=pathlib.Path(".crash"))
    wanted = parser.parse_args(arguments)
    name = "kills" if wanted.kills else "rounds"
    if wanted.life is not None:
        name, wanted.lanes = "life", 1
        (wanted.state / "life.jsonl").unlink(missing_ok=True)
    state = State(wanted.state / f"{name}.jsonl", seed=wanted.seed, kills=wanted.kills, rounds=wanted.rounds)
    work = pathlib.Path(tempfile.mkdtemp(prefix="wave-crash-"))
    _say(f"seed {state.seed}, {wanted.lanes} lives side by side, in {work}")
    with forks.lanes(wanted.lanes) as lanes:
        asyncio.run(_work(lanes, state, wanted, work))
    code = _report(state, work)
    if not any(work.iterdir()):
        work.rmdir()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
