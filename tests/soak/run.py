"""A soak: mixed load with faults for minutes, and what the gateway's process holds meanwhile. `make soak`.

A real simulator, a real gateway and real receivers; requests leave at a fixed rate (`load`), the vendor, the policy
files and commands make trouble (`weather`), the process is looked at every few seconds (`samples`). The measuring
begins once bounded caches are full: growth after that is a leak. Ends with 1 where memory grows by more than 1 MiB with
100,000 requests, where an answer was not one of those that a request may get, or where the books do not agree.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, Final

import aiohttp

from gateway import wire
from gateway.rules import fingerprint
from gateway.store import cache
from tests import process
from tests.soak import books, load, organisation, receiver, samples, weather

MOST_SLOPE: Final = samples.MIB / samples.PER_REQUESTS
SCRAPE_EVERY_S: Final = 5.0
OPENMETRICS: Final = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
KEPT_ALIVE_S: Final = 25.0
"""Longer than any idle connection is kept, by the gateway to its clients or to the upstream."""
DRAIN_WITHIN_S: Final = 240.0
WATCHED: Final = pathlib.Path(__file__).with_name("watched.py")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How long and how much."""

    seconds: float
    per_s: float
    seed: int
    warm_s: float
    """Load of the same kind before the measuring begins."""
    idle_s: float = KEPT_ALIVE_S
    """Pause before and after, in which connections end; 0: none, and nothing is said about what is left open."""
    every_s: float = 5.0
    hooks: Sequence[str] = load.HOOKS
    """The receivers that clients name, by how they behave; see `tests.soak.receiver`."""
    fill: int = cache.MOST_IN_MEMORY
    """So many results fill the part of the result cache that is in memory."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Soaked:
    """What a soak found."""

    wanted: Wanted
    taken: list[samples.Sample] = dataclasses.field(default_factory=list)
    idle: list[samples.Sample] = dataclasses.field(default_factory=list)
    """Before and after, without load."""
    in_use: list[samples.Sample] = dataclasses.field(default_factory=list)
    """As `idle`, after a full garbage collection."""
    latencies: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    """(seconds since the measuring began, seconds)."""
    requests: int = 0
    took_s: float = 0.0
    held_back: int = 0
    scrapes: list[float] = dataclasses.field(default_factory=list)
    """How long each took, in seconds."""
    said: list[str] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)


class Soak:
    """One gateway under load."""

    def __init__(self, gateway: process.Gateway, vendor: process.Vendor, inside: pathlib.Path, wanted: Wanted) -> None:
        self.gateway = gateway
        self.vendor = vendor
        self.inside = inside
        self.wanted = wanted
        self.found = Soaked(wanted=wanted)

    async def run(self) -> Soaked:
        """Fill, warm up, measure, drain, judge."""
        wanted, found = self.wanted, self.found
        self.weather = weather.Weather(self.gateway, self.vendor, seed=wanted.seed)
        async with receiver.receiving(seed=wanted.seed) as receivers:
            self.load = load.Load(self.gateway.url, [receivers.urls[name] for name in wanted.hooks], seed=wanted.seed)
            async with _session() as session:
                await self.load.fill(session, seeded(wanted.fill), at_once=16)
                if wanted.fill:
                    found.said.append(await self._filled())
                if wanted.warm_s:
                    _say(f"warming up for {wanted.warm_s:g} s")
                    await self._under_load(session, wanted.warm_s, None)
            if wanted.warm_s:
                await self._rest()
                await self._collect()
            _say(f"measuring for {wanted.seconds:g} s at {wanted.per_s:g} visits a second")
            async with _session() as session:
                before, began = self.load.answered, time.monotonic()
                self.load.latencies.clear()
                self.load.held_back = 0
                await self._under_load(session, wanted.seconds, began)
                found.requests, found.took_s = self.load.answered - before, time.monotonic() - began
            first = min((at for at, _ in self.load.latencies), default=0.0)
            found.held_back = self.load.held_back
            found.latencies = [(at - first, took) for at, took in self.load.latencies]
            await self._rest()
            await self._collect()
            audited = await self.weather.command("audit")
            bill = self.vendor.bill()
            wrong, sums = books.findings(
                self.gateway.data / "wave.db",
                bill,
                receivers.heard,
                self.load.promised,
                gone_url=receivers.urls["gone"],
            )
            found.said += [sums, audited.strip().splitlines()[-1] if audited else ""]
            found.said.append(", ".join(f"{name}: {count}" for name, count in sorted(self.weather.done.items())))
            found.wrong += [*self.load.wrong, *receivers.wrong, *self.weather.wrong, *wrong, *left_open(found)]
        return found

    async def _under_load(self, session: aiohttp.ClientSession, seconds: float, began: float | None) -> None:
        """Load, trouble and scrapes for a time; samples where the time counts, `began` being its beginning."""
        beside = [asyncio.create_task(self.weather.play(session)), asyncio.create_task(self._scrape(session))]
        if began is not None:
            beside.append(asyncio.create_task(self._sample(began)))
        try:
            await self.load.run(session, seconds=seconds, per_s=self.wanted.per_s)
        finally:
            for each in beside:
                each.cancel()
            for ended in await asyncio.gather(*beside, return_exceptions=True):
                if not isinstance(ended, asyncio.CancelledError):
                    self.found.wrong.append(f"what plays beside the load ended early: {ended!r}")
            await self.weather.clear(session)

    async def _sample(self, began: float) -> None:
        first = self.load.answered
        while True:
            at_s = time.monotonic() - began
            self.found.taken.append(self._held(at_s=at_s, requests=self.load.answered - first))
            await asyncio.sleep(self.wanted.every_s - (time.monotonic() - began) % self.wanted.every_s)

    def _held(self, *, at_s: float, requests: int) -> samples.Sample:
        assert self.gateway.process is not None
        return samples.held(self.gateway.process.pid, self.gateway.data, self.inside, at_s=at_s, requests=requests)

    async def _scrape(self, session: aiohttp.ClientSession) -> None:
        """As a Prometheus does, in one text format and the other."""
        while True:
            for accept in (OPENMETRICS, "text/plain;version=0.0.4"):
                asked_at = time.monotonic()
                async with session.get(f"{self.gateway.url}/metrics", headers={"Accept": accept}) as answer:
                    text = await answer.text()
                self.found.scrapes.append(time.monotonic() - asked_at)
                if answer.status != 200 or "wave_gateway_build_info{" not in text:
                    self.found.wrong.append(f"a scrape: {answer.status} {text[:200]}")
                await asyncio.sleep(self.wanted.every_s)

    async def _rest(self) -> None:
        """Wait until nothing is open any more, and then until idle connections have ended."""
        until = time.monotonic() + DRAIN_WITHIN_S
        while (still := await asyncio.to_thread(open_now, self.gateway)) > 0:
            if time.monotonic() > until:
                self.found.wrong.append(f"{still} tasks or webhooks are open after {DRAIN_WITHIN_S:g} s")
                break
            await asyncio.sleep(0.5)
        if self.wanted.idle_s:
            await asyncio.sleep(self.wanted.idle_s)
            self.found.idle.append(self._held(at_s=0, requests=self.load.answered))

    async def _collect(self) -> None:
        """Have all garbage collected, without load; what is there then is in use."""
        assert self.gateway.process is not None
        done = self.inside.read_text().count('"collected"')
        self.gateway.process.send_signal(signal.SIGUSR2)
        while self.inside.read_text().count('"collected"') == done:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.05)
        self.found.in_use.append(self._held(at_s=0, requests=self.load.answered))

    async def _filled(self) -> str:
        """How many results are in memory; raises AssertionError if it is not full, for then its growth is no leak."""
        said = await self.weather.command("cache", "stats")
        assert f"{self.wanted.fill:,}" in said or str(self.wanted.fill) in said, said
        return f"result cache: {self.wanted.fill} results in memory from the start, which is all it keeps there"


def _session() -> aiohttp.ClientSession:
    # Kept for less than the 5 s of the gateway and the simulator: a POST on a connection that just closes is lost.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=75), trust_env=False)


def left_open(found: Soaked) -> list[str]:
    """What is open more than before the load that was measured; nothing is said where there was no pause."""
    if len(found.idle) < 2:
        return []
    before, after = found.idle[0], found.idle[-1]
    return [
        f"{name}: {getattr(before, name)} before the load, {getattr(after, name)} after it"
        for name in ("sockets", "files", "other_fds", "threads", "tasks")
        if getattr(after, name) > getattr(before, name)
    ]


def open_now(gateway: process.Gateway) -> int:
    """Tasks that have not ended and webhooks that are pending, as the gateway's metrics say."""
    counted = ("wave_gateway_tasks_open{", "wave_gateway_webhooks_pending ")
    lines = process.fetch(gateway.url + "/metrics")[2].decode().splitlines()
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(counted)))


def seeded(many: int) -> list[dict[str, Any]]:
    """Submits of which a result cache knows something."""
    return [{"model": load.FLASH, "prompt": "a kept fox", "seed": number} for number in range(many)]


async def fill_cache(directory: pathlib.Path, many: int) -> None:
    """Put results into a result cache, of the size that real ones have; no task has them, so they are no hits."""
    kept = cache.ResultCache(directory)
    for number, body in enumerate(seeded(many)):
        key = fingerprint.of(wire.parse_submit(json.dumps(body).encode()), scope=fingerprint.team_scope("growth"))
        result = cache.Result(task_id=f"task-wg{number:026d}", completed_at=time.time(), digests=(f"{number:064x}",))
        await kept.put(key, result)
    kept.close()


def soak(directory: pathlib.Path, wanted: Wanted) -> Soaked:
    """Soak a gateway in a directory."""
    port, vendor_port = process.free_port(), process.free_port()
    vendor = process.Vendor(f"http://127.0.0.1:{vendor_port}", "simulate", "--port", str(vendor_port))
    inside, log = directory / "inside.jsonl", directory / "gateway.log"
    gateway = process.Gateway(
        f"http://127.0.0.1:{port}",
        *("serve", "--listen", f"127.0.0.1:{port}", "--upstream", vendor.url),
        *("--data", str(directory / "data"), "--policies", str(organisation.write(directory / "policies"))),
        *("--allow-private", "127.0.0.0/8", "--min-free", "0B", "--log-level", "info", "--log-format", "json"),
        environ={**organisation.ENVIRON, "SOAK_INSIDE": str(inside), "SOAK_EVERY_S": f"{wanted.every_s:g}"},
    )
    gateway.data, gateway.policies = directory / "data", directory / "policies"
    gateway.launcher = ("sh", "-c", 'log=$1; shift; exec "$@" 2>>"$log"', "sh", str(log), sys.executable, str(WATCHED))
    gateway.data.mkdir()
    asyncio.run(fill_cache(gateway.data / "cache", wanted.fill))
    try:
        vendor.start(path="/sim/requests")
        gateway.start()
        found = asyncio.run(Soak(gateway, vendor, inside, wanted).run())
        code = gateway.end()
        if code != 0:
            found.wrong.append(f"the gateway ended with {code}")
    finally:
        for each in (gateway, vendor):
            if each.is_running():
                each.end()
    tracebacks = log.read_text(errors="replace").count('"exception"')
    if tracebacks:
        found.wrong.append(f"{tracebacks} tracebacks in the gateway's log")
    return found


# What is printed.


def table(found: Soaked) -> list[str]:
    """Minute by minute: what is held at its end, or at most, and how long answers took; 80 columns wide."""
    lines = ["sizes in MiB, times in ms; descriptors, threads, tasks and log: the most seen"]
    lines.append("minute requests     RSS    anon  fds thr tasks   log     DB CPU %    p50    p99")
    before = found.taken[0] if found.taken else None
    for minute in range(int(found.took_s // 60) + 1):
        some = [each for each in found.taken if each.at_s // 60 == minute]
        if not some or before is None:
            continue
        last = some[-1]
        share = 100 * (last.cpu_s - before.cpu_s) / max(0.001, last.at_s - before.at_s)
        took = [took * 1000 for at, took in found.latencies if at // 60 == minute]
        lines.append(
            f"{minute + 1:6} {last.requests:8} {last.rss / samples.MIB:7.1f} {last.anonymous / samples.MIB:7.1f} "
            f"{max(each.sockets + each.files + each.other_fds for each in some):4} "
            f"{max(each.threads for each in some):3} {max(each.tasks for each in some):5} "
            f"{max(each.wal for each in some) / samples.MIB:5.1f} {last.database / samples.MIB:6.1f} {share:5.0f} "
            f"{samples.quantile(took, 0.5):6.0f} {samples.quantile(took, 0.99):6.0f}"
        )
        before = last
    return lines


def verdict(found: Soaked) -> tuple[bool, list[str]]:
    """Whether memory keeps within its bound, and the figures."""
    if found.idle:
        found.said.append(_idle(found))
    if len(found.in_use) > 1:
        found.said.append(_in_use(found))
    if len(found.taken) < 4:
        return True, ["too short for a slope"]
    slopes = {
        name: samples.slope([(float(each.requests), float(getattr(each, name))) for each in found.taken])
        for name in ("rss", "anonymous", "pss", "heap", "wal")
    }
    rss = slopes["rss"]
    holds = rss.bytes_each < MOST_SLOPE
    surely = "" if rss.most < MOST_SLOPE or not holds else "; the interval passes the bound: run longer to be sure"
    lines = ["MiB per 100,000 requests (Theil-Sen; 19 of 20 resamplings are within):"]
    lines += [f"  {name:<10} {each.mebibytes()}" for name, each in slopes.items()]
    late = [each.late_s * 1000 for each in found.taken]
    first, last = found.taken[0], found.taken[-1]
    each_ms = (last.cpu_s - first.cpu_s) * 1000 / max(1, last.requests - first.requests)
    lines.append(f"{each_ms:.1f} ms of processor time for each request, with the work that it leaves behind")
    lines.append(
        f"largest WAL {max(each.wal for each in found.taken) / samples.MIB:.1f} MiB, result cache "
        f"{found.taken[-1].cache / samples.MIB:.1f} MiB, loop late by {samples.quantile(late, 0.5):.0f} ms in the "
        f"middle, {max(late):.0f} at most"
    )
    lines.append(
        f"the longest garbage collection took {max(each.gc_young_s for each in found.taken) * 1000:.0f} ms, of all "
        f"objects {max(each.gc_full_s for each in found.taken) * 1000:.0f} ms"
    )
    lines.append(f"RSS {'keeps within' if holds else 'PASSES'} the bound of +1.00{surely}")
    return holds, lines


def _idle(found: Soaked) -> str:
    return "without load: " + "; then ".join(
        f"{each.sockets} sockets, {each.files} files, {each.other_fds} other descriptors, {each.threads} threads, "
        f"{each.tasks} tasks, RSS {each.rss / samples.MIB:.1f} MiB"
        for each in found.idle
    )


def _in_use(found: Soaked) -> str:
    before, after = found.in_use[0], found.in_use[-1]
    requests = max(1, after.requests - before.requests)
    return (
        f"in use after a full collection: {before.blocks} objects, malloc {before.heap / samples.MIB:.1f} MiB, RSS "
        f"{before.rss / samples.MIB:.1f}; then {after.blocks}, {after.heap / samples.MIB:.1f}, "
        f"{after.rss / samples.MIB:.1f}: {(after.blocks - before.blocks) * samples.PER_REQUESTS / requests:+.0f} "
        f"objects per 100,000 requests"
    )


def report(found: Soaked, *, seed: int) -> bool:
    """Print everything; whether the soak holds."""
    holds, figures = verdict(found)
    rate = found.requests / found.took_s if found.took_s else 0.0
    lines = [
        *table(found),
        f"{found.requests} requests in {found.took_s:.0f} s, {rate:.0f} a second; seed {seed}",
        f"{len(found.scrapes)} scrapes: {samples.quantile(found.scrapes, 0.5) * 1000:.0f} ms in the middle, "
        f"{max(found.scrapes, default=0) * 1000:.0f} at most",
        *([f"{found.held_back} visits were held back: the machine is too slow for this rate"] * bool(found.held_back)),
        *figures,
        *filter(None, found.said),
        *(f"WRONG: {each}" for each in found.wrong[:20]),
        *([f"… and {len(found.wrong) - 20} more"] if len(found.wrong) > 20 else []),
        "ok" if holds and not found.wrong else "FAIL",
    ]
    for line in lines:
        _say(line)
    return holds and not found.wrong


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(words: Sequence[str]) -> int:
    """Run one soak; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.run")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=110, help="visits a second; most are one request")
    parser.add_argument("--warm", type=float, default=120, help="seconds of load before the measuring")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=pathlib.Path, help="a new directory for the data, log and samples")
    asked = parser.parse_args(words)
    logging.disable(logging.CRITICAL)
    wanted = Wanted(seconds=asked.minutes * 60, per_s=asked.rate, seed=asked.seed, warm_s=asked.warm)
    with contextlib.ExitStack() as stack:
        if asked.keep is None:
            directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        else:
            directory = asked.keep.resolve()
            directory.mkdir(parents=True)
        found = soak(directory, wanted)
        file = pathlib.Path(os.environ.get("SAMPLES", "soak.csv"))
        samples.write(found.taken, file)
        found.said.append(f"samples: {file}")
        return 0 if report(found, seed=asked.seed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
