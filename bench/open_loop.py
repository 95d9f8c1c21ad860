"""The open loop: requests leave at a fixed rate whatever the answers do, and wait in a queue for a connection.

A latency counts from the moment at which its request was due, so a server that stalls pays for all who would have
come meanwhile; wrk, which waits for the answer first, cannot see that. It runs as a process of its own on the
load's core: `python -m bench.open_loop`, with its orders on standard input.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final, cast
from urllib.parse import urlsplit

import uvloop

from bench import asks

LOOK_EVERY_S: Final = 0.0005
LAST_ANSWERS_S: Final = 5.0
"""How long the answers that are due at the end are waited for."""
START_S: Final = 30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What a fixed rate came to."""

    offered_per_s: float
    answered_per_s: float
    """Within the time of the load; less than what was offered: the server cannot keep up."""
    p50_ms: float
    p99_ms: float
    sent: int


def run(ask: asks.Ask, url: str, *, rate: float, connections: int, seconds: float, core: int, nonce: int) -> Point:
    """Offer a rate from a process on a core; raises WrongAnswerError."""
    orders = {"ask": dataclasses.asdict(ask), "url": url, "rate": rate, "connections": connections}
    done = subprocess.run(
        ["taskset", "-c", str(core), sys.executable, "-m", "bench.open_loop"],
        input=json.dumps(orders | {"seconds": seconds, "nonce": nonce}),
        capture_output=True,
        text=True,
        timeout=seconds + LAST_ANSWERS_S + START_S,
        check=False,
    )
    if done.returncode == 1:
        raise asks.WrongAnswerError(done.stderr.strip())
    if done.returncode:
        raise RuntimeError(f"the open loop ended with {done.returncode}: {done.stderr}")
    return Point(**json.loads(done.stdout))


class _Load:
    """The requests that are due, the connections that are free, the latencies so far."""

    def __init__(self, ask: asks.Ask, made: Iterator[bytes]) -> None:
        self.ask = ask
        self.made = made
        self.waiting: collections.deque[float] = collections.deque()
        self.free: collections.deque[_Connection] = collections.deque()
        self.latencies: list[float] = []
        self.answered_in_time = 0
        self.ends_at = 0.0
        self.failure: Exception | None = None

    def send(self) -> None:
        """Let those leave that are due, as far as there are connections."""
        while self.waiting and self.free:
            self.free.popleft().ask(self.waiting.popleft(), next(self.made))

    def answered(self, connection: _Connection, due_at: float, head: bytes, body: bytes) -> None:
        """One whole answer."""
        now = time.perf_counter()
        try:
            asks.check(self.ask, head, body)
        except asks.WrongAnswerError as error:
            self.failure = self.failure or error
        self.latencies.append(now - due_at)
        self.answered_in_time += now <= self.ends_at
        self.free.append(connection)
        self.send()


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._bytes = b""
        self._due_at: float | None = None
        self._lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be free."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._load.free.append(self)

    def ask(self, due_at: float, request: bytes) -> None:
        """Send what was due at that time."""
        assert self._transport is not None
        self._due_at = due_at
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Put an answer together; all of ours have a Content-Length."""
        self._bytes += data
        head, end, body = self._bytes.partition(b"\r\n\r\n")
        if not end:
            return
        length = _length(head)
        if length is None:
            self._fail("an answer without a length")
        elif len(body) >= length and self._due_at is not None:
            due_at, self._due_at, self._bytes = self._due_at, None, b""
            self._load.answered(self, due_at, head, body)

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever closes while a request is under way owes its answer."""
        self._lost.set()
        if self._due_at is not None:
            self._fail("a connection was closed before its answer")

    async def close(self) -> None:
        """Give up what is under way, and leave."""
        assert self._transport is not None
        self._due_at = None
        self._transport.close()
        await self._lost.wait()

    def _fail(self, why: str) -> None:
        self._load.failure = self._load.failure or asks.WrongAnswerError(f"{self._load.ask.path}: {why}")


def _length(head: bytes) -> int | None:
    at = head.lower().find(b"content-length:")
    return None if at < 0 else int(head[at + 15 :].split(b"\r\n", 1)[0])


async def offer(ask: asks.Ask, url: str, *, rate: float, connections: int, seconds: float, nonce: int) -> Point:
    """Offer so many requests a second for so long; raises WrongAnswerError."""
    where = urlsplit(url)
    host, port = where.hostname or "", where.port or 80
    load = _Load(ask, asks.requests(ask, where.netloc, nonce=nonce))
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: _Connection(load), host, port) for _ in range(connections)]
    began_at = time.perf_counter()
    load.ends_at = began_at + seconds
    total, due = int(rate * seconds), 0
    while due < total and load.failure is None:
        now = time.perf_counter()
        while due < total and began_at + due / rate <= now:
            load.waiting.append(began_at + due / rate)
            due += 1
        load.send()
        await asyncio.sleep(LOOK_EVERY_S)
    until = time.perf_counter() + LAST_ANSWERS_S
    while len(load.latencies) < total and load.failure is None and time.perf_counter() < until:  # noqa: ASYNC110 - so
        await asyncio.sleep(LOOK_EVERY_S)  # the answers come by themselves
    # Whoever has no answer by now has waited at least so long.
    unanswered = [LAST_ANSWERS_S] * (total - len(load.latencies))
    for _, connection in made:
        await connection.close()
    if load.failure is not None:
        raise load.failure
    if not load.latencies:
        raise asks.WrongAnswerError(f"{ask.path}: none of {total} requests was answered")
    cuts = statistics.quantiles(load.latencies + unanswered, n=100)
    return Point(
        offered_per_s=rate,
        answered_per_s=load.answered_in_time / seconds,
        p50_ms=cuts[49] * 1000,
        p99_ms=cuts[98] * 1000,
        sent=len(load.latencies),
    )


def main() -> int:
    """Carry out the orders on standard input; exit code 1: an answer was wrong."""
    orders = json.load(sys.stdin)
    ask = orders.pop("ask")
    ask |= {"paths": tuple(ask["paths"]), "header": tuple(ask["header"])}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            point = runner.run(offer(asks.Ask(**ask), orders.pop("url"), **orders))
        except asks.WrongAnswerError as error:
            sys.stderr.write(str(error))
            return 1
    json.dump(dataclasses.asdict(point), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
