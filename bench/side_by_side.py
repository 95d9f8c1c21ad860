"""The same request at one server after another, round by round, each as the machine is at that moment."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Final

from bench import asks, figures, load, machine, open_loop, servers

WARM_S: Final = (1, 2, 4, 8, 16)
AFTER_S: Final = 0.3
"""Answers that were under way when the load left are counted by the server by then."""
FRACTIONS: Final = (0.1, 0.3, 0.5, 0.7, 0.9, 1.1)
"""Of what a server did in the closed loop: the rates of the open one."""
MOST_OPEN_PER_S: Final = 6_000
"""What the open loop can offer and check on one core without being late itself."""
OPEN_CONNECTIONS: Final = 256


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A server on a path: what it is asked, and how to know what it did."""

    path: str
    name: str
    server: servers.Server
    url: str
    ask: asks.Ask
    connections: int = 32
    count: Callable[[], int] | None = None
    """How many requests of this path the server has counted; None: it does not say."""
    drain: Callable[[], None] | None = None
    """Returns when what these requests caused is done."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where and how long is measured."""

    cores: machine.Cores
    folder: pathlib.Path
    rounds: int
    seconds: int
    say: Callable[[str], None]


def warm(bench: Bench, one: Contender) -> None:
    """Ask until each answer is as it must be; raises WrongAnswerError if that does not come."""
    lenient = dataclasses.replace(one.ask, header=("", ""))
    for seconds in WARM_S:
        with contextlib.suppress(asks.WrongAnswerError):
            _load(bench, one, lenient, seconds)
            _load(bench, one, one.ask, seconds)
            return
    _load(bench, one, one.ask, WARM_S[-1])


def measure(bench: Bench, contenders: Sequence[Contender]) -> list[figures.Measured]:
    """Some rounds of those on one path, in turn; every second round goes the other way."""
    found: list[figures.Measured] = []
    for one in contenders:
        warm(bench, one)
        _drain(one)
    for number in range(bench.rounds):
        for one in contenders if number % 2 == 0 else reversed(contenders):
            measured = _round(bench, one)
            found.append(measured)
            bench.say(
                f"{one.path} {one.name}: {measured.per_s:.0f}/s, p99 {measured.p99_ms:.1f} ms, {measured.cpu_us:.0f} µs"
            )
    return found


def opened(
    bench: Bench, contenders: Sequence[Contender], rounds: Sequence[figures.Measured]
) -> list[tuple[str, str, open_loop.Point]]:
    """Fixed rates, each a part of what the server did in the closed loop."""
    found = []
    for one in contenders:
        speeds = [each.per_s for each in rounds if (each.path, each.server) == (one.path, one.name)]
        most = figures.spread(speeds).median
        for rate in dict.fromkeys(min(round(most * part), MOST_OPEN_PER_S) for part in FRACTIONS):
            point = open_loop.run(
                one.ask,
                one.url,
                rate=max(rate, 1),
                connections=OPEN_CONNECTIONS,
                seconds=bench.seconds,
                core=bench.cores.load,
                nonce=load.next_nonce(),
            )
            _drain(one)
            bench.say(f"{one.path} {one.name} at {rate}/s: {point.answered_per_s:.0f}/s, p99 {point.p99_ms:.1f} ms")
            found.append((one.path, one.name, point))
    return found


def _round(bench: Bench, one: Contender) -> figures.Measured:
    counted, used = one.count() if one.count else 0, machine.cpu_s(one.server.pid)
    seen = _load(bench, one, one.ask, bench.seconds)
    time.sleep(AFTER_S)
    _drain(one)
    used = machine.cpu_s(one.server.pid) - used
    if one.count:
        check_count(one, seen.requests, one.count() - counted)
    return figures.Measured(
        path=one.path,
        server=one.name,
        requests=seen.requests,
        seconds=seen.seconds,
        cpu_s=used,
        p50_ms=seen.p50_ms,
        p99_ms=seen.p99_ms,
    )


def check_count(one: Contender, seen: int, counted: int) -> None:
    """Hold the server's own count against the load's; what was under way at the end may differ."""
    if not seen <= counted <= seen + one.connections:
        raise asks.WrongAnswerError(f"{one.path} {one.name}: {seen} answers were seen, the server counted {counted}")


def _load(bench: Bench, one: Contender, ask: asks.Ask, seconds: int) -> load.Round:
    return load.closed(
        ask, one.url, connections=one.connections, seconds=seconds, core=bench.cores.load, folder=bench.folder
    )


def _drain(one: Contender) -> None:
    if one.drain is not None:
        one.drain()
