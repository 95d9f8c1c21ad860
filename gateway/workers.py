"""Background work: loops that find what is due and work on it, each task at most once at a time. Knows no domain."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Final

log = logging.getLogger(__name__)

TROUBLE_PAUSE_S: Final = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """One kind of work; `interval_s` is the pause between two looks for it, `slots` how many go on at once."""

    name: str
    interval_s: float
    slots: int
    due: Callable[[int], Awaitable[Collection[str]]]
    step: Callable[[str], Awaitable[None]]
    wake: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """Set it to have the loop look at once."""


async def run(loop: Loop) -> None:
    """Look for work and do it, until cancelled; then what is under way is finished."""
    busy: dict[str, asyncio.Task[None]] = {}
    try:
        while True:
            loop.wake.clear()
            await _start_due(loop, busy)
            # Not wait_for: that of Python 3.11 swallows a cancel that meets the wake.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(loop.interval_s):
                    await loop.wake.wait()
    finally:
        if busy:
            await asyncio.wait(list(busy.values()))


async def repeat(name: str, interval_s: float, step: Callable[[], Awaitable[None]]) -> None:
    """Do one thing again and again, until cancelled."""
    while True:
        await _guarded(name, step())
        await asyncio.sleep(interval_s)


async def _start_due(loop: Loop, busy: dict[str, asyncio.Task[None]]) -> None:
    free = loop.slots - len(busy)
    if free <= 0:
        return
    try:
        # As many more as are busy: those may be the first that are found.
        found = await loop.due(free + len(busy))
    except Exception:
        log.exception("%s: looking for work failed", loop.name)
        await asyncio.sleep(TROUBLE_PAUSE_S)
        return
    for task_id in [each for each in found if each not in busy][:free]:
        busy[task_id] = asyncio.create_task(_guarded(loop.name, loop.step(task_id)), name=f"{loop.name} {task_id}")
        busy[task_id].add_done_callback(lambda _, done=task_id: _finished(loop, busy, done))  # type: ignore[misc]


def _finished(loop: Loop, busy: dict[str, asyncio.Task[None]], task_id: str) -> None:
    was_full = len(busy) >= loop.slots
    del busy[task_id]
    if was_full:
        loop.wake.set()


async def _guarded(name: str, work: Awaitable[None]) -> None:
    try:
        await work
    except Exception:
        log.exception("%s: a step failed and will be tried again", name)
        await asyncio.sleep(TROUBLE_PAUSE_S)
