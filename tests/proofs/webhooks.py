"""Webhooks of a real gateway to real receivers: when attempts are made, and what bad receivers do to good ones.

One receiver fails until the last attempt that is waited for; its attempts are held against the schedule. Beside that a
crowd of tasks, a few at a time, tells a healthy receiver, while as many tell each of four others: first these are
healthy too, then one hangs, one takes ten seconds, one pours an endless answer, and one breaks every second connection.
What a delivery took is the time from the row in the outbox, written with the end of the task, to the request at its
receiver.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pathlib
import sqlite3
import time
from typing import Final

from tests import process, receiver
from tests.proofs import run

MODEL: Final = "gemini-2.5-flash-image-preview"
SCHEDULE_S: Final = (0.0, 5.0, 30.0, 120.0)
SLACK_S: Final = 2.0
"""The loop looks each second."""
MOST_P99_S: Final = 5.0
"""A receiver that hangs has 15 s: nobody waited for one."""
WITHIN_S: Final = 90.0
AT_A_TIME: Final = 5
VENDOR: Final = [{"on": "submit", "times": None, "do": {"queue_s": 0, "work_s": 0.2}}]


class Healthy(receiver.Receiver):
    """Takes everything, and notes when each id arrived first."""

    def __init__(self) -> None:
        super().__init__(self._take)
        self.arrived: dict[str, float] = {}
        self.news = asyncio.Event()

    async def _take(self, writer: asyncio.StreamWriter) -> None:
        self.arrived.setdefault(self.requests[-1].document()["task_id"], time.time())
        self.news.set()
        writer.write(receiver.status(204))
        await writer.drain()


async def hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def slow(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(10)
    writer.write(receiver.status(200))
    await writer.drain()


async def pour(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


class Flapping(receiver.Receiver):
    """Breaks every second connection."""

    def __init__(self) -> None:
        super().__init__(self._flap)

    async def _flap(self, writer: asyncio.StreamWriter) -> None:
        if len(self.requests) % 2:
            writer.transport.abort()
            return
        writer.write(receiver.status(200))
        await writer.drain()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """Seconds from the outbox to the receiver."""

    p50_s: float
    p99_s: float


def prove(directory: pathlib.Path, *, attempts: int = len(SCHEDULE_S), tasks: int = 200) -> str:
    """`attempts`: how many of the schedule are waited for; `tasks`: for each receiver."""
    with process.pair(directory, "--drain", "1s") as (gateway, vendor):
        vendor.script(VENDOR)
        return asyncio.run(_prove(gateway, attempts, tasks))


async def _prove(gateway: process.Gateway, attempts: int, tasks: int) -> str:
    failing = [receiver.status(500)] * (attempts - 1)
    async with (
        receiver.receiving(*failing, receiver.status(204), as_a=Timed) as scheduled,
        receiver.receiving(as_a=Healthy) as healthy,
        receiver.receiving(hang) as hanging,
        receiver.receiving(slow) as slowly,
        receiver.receiving(pour) as endless,
        receiver.receiving(as_a=Flapping) as flapping,
    ):
        [first] = await gateway.flood([_body("scheduled", scheduled.url)])
        assert first[0] == 200, first
        async with contextlib.AsyncExitStack() as stack:
            others = [await stack.enter_async_context(receiver.receiving(receiver.status(200))) for _ in range(4)]
            alone = await _crowd(gateway, healthy, [each.url for each in others], tasks)
        bad = [each.url for each in (hanging, slowly, endless, flapping)]
        among = await _crowd(gateway, healthy, bad, tasks)
        for each in (hanging, slowly, endless, flapping):
            assert each.requests, "a bad receiver heard nothing"
        assert isinstance(scheduled, Timed)
        waits = await scheduled.waits(attempts)
        assert len({sent.headers["webhook-id"] for sent in scheduled.requests}) == 1
        for planned_s, wait_s in zip(SCHEDULE_S[1:attempts], waits, strict=True):
            assert 0.9 * planned_s - 0.1 <= wait_s <= 1.1 * planned_s + SLACK_S, (planned_s, wait_s)
        assert among.p99_s < MOST_P99_S, among
    made = ", ".join(f"{wait_s:.1f} of {s:.0f} s" for s, wait_s in zip(SCHEDULE_S[1:], waits, strict=False))
    return (
        f"waits {made}; {tasks} webhooks to healthy receivers: p50 {alone.p50_s:.2f} s, p99 {alone.p99_s:.2f} s alone, "
        f"p50 {among.p50_s:.2f} s, p99 {among.p99_s:.2f} s while others hang, are slow, endless and flapping"
    )


class Timed(receiver.Receiver):
    """Notes when each attempt came."""

    def __init__(self, *answers: bytes | receiver.Answer) -> None:
        super().__init__(*(self._noting(each) for each in answers))
        self.came_at: list[float] = []

    def _noting(self, answer: bytes | receiver.Answer) -> receiver.Answer:
        async def note(writer: asyncio.StreamWriter) -> None:
            self.came_at.append(time.monotonic())
            assert isinstance(answer, bytes)
            writer.write(answer)
            await writer.drain()

        return note

    async def waits(self, attempts: int) -> list[float]:
        """Seconds between the attempts, once so many were made."""
        async with asyncio.timeout(1.1 * sum(SCHEDULE_S[:attempts]) + 60):
            while len(self.came_at) < attempts:  # noqa: ASYNC110 - once a second will do
                await asyncio.sleep(1)
        return [later - earlier for earlier, later in zip(self.came_at, self.came_at[1:], strict=False)]


def _body(prompt: str, url: str) -> dict[str, object]:
    return {"model": MODEL, "prompt": prompt, "callback_url": url}


async def _crowd(gateway: process.Gateway, healthy: receiver.Receiver, others: list[str], tasks: int) -> Took:
    """So many tasks for the healthy receiver, and as many for each of the others beside them."""
    assert isinstance(healthy, Healthy)
    mine: set[str] = set()
    for first in range(0, tasks, AT_A_TIME):
        count = min(AT_A_TIME, tasks - first)
        urls = [healthy.url] * count + others * count
        answers = await gateway.flood([_body(f"fox {first}", url) for url in urls])
        assert {status for status, _, _ in answers} == {200}
        mine |= {document["task_id"] for _, _, document in answers[:count]}
        async with asyncio.timeout(WITHIN_S):
            while not mine <= healthy.arrived.keys():
                healthy.news.clear()
                await healthy.news.wait()
    took = sorted(healthy.arrived[task_id] - at for task_id, at in _ended_at(gateway.data).items() if task_id in mine)
    assert len(took) == tasks
    return Took(p50_s=took[tasks // 2], p99_s=took[int(tasks * 0.99)])


def _ended_at(data: pathlib.Path) -> dict[str, float]:
    """When each webhook was noted, by task id."""
    with contextlib.closing(sqlite3.connect(f"file:{data / 'wave.db'}?mode=ro", uri=True)) as database:
        return dict(database.execute("SELECT task_id, created_at FROM outbox").fetchall())


if __name__ == "__main__":
    run.alone("webhooks", prove)
