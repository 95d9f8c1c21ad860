"""Who waits for which task: a client's poll, or a hint of the vendor, makes the next upstream poll sooner; an end wakes
whoever waits.

Only hints live here; a task nobody asks about completes all the same. What is remembered of a task is forgotten once it
means nothing any more, seconds after the last question or when nobody waits: memory follows the traffic, not the tasks.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
from typing import Final

MOST_WATCHED: Final = 20_000
WATCHED_FOR_S: Final = 10.0
LEAST_BETWEEN_POLLS_S: Final = 1.0


class Watch:
    """The tasks that clients asked about lately, and those who wait for a change."""

    def __init__(self) -> None:
        """Nobody is waiting."""
        self._asked_at: collections.OrderedDict[str, float] = collections.OrderedDict()
        self._polled_at: collections.OrderedDict[str, float] = collections.OrderedDict()
        self._wanted: dict[str, None] = {}
        self._changed: dict[str, set[asyncio.Event]] = {}
        self.is_closed = False
        """The gateway is stopping: nobody waits any more."""

    def ask(self, task_id: str, *, now: float) -> bool:
        """A client asked about an open task; True if that wants an upstream poll of its own (at most one a second)."""
        _put(self._asked_at, task_id, now, kept_s=WATCHED_FOR_S)
        if task_id in self._wanted or not self._may_be_polled(task_id, now):
            return False
        if len(self._wanted) < MOST_WATCHED:
            self._wanted[task_id] = None
        return True

    def hint(self, task_id: str, *, now: float) -> bool:
        """The vendor hinted at a task: it is wanted once its last poll is a second old; True if that is now.

        It is not dropped within that second, as a client's question is: a client asks again, and a poll that was under
        way may just have missed the end.
        """
        if task_id in self._wanted or len(self._wanted) >= MOST_WATCHED:
            return False
        self._wanted[task_id] = None
        return self._may_be_polled(task_id, now)

    def take_wanted(self, most: int, *, now: float) -> list[str]:
        """Tasks that somebody wants polled and that may be now; each is handed out once."""
        ready = (task_id for task_id in self._wanted if self._may_be_polled(task_id, now))
        taken = list(itertools.islice(ready, most))
        for task_id in taken:
            del self._wanted[task_id]
        return taken

    def polled(self, task_id: str, *, now: float) -> None:
        """The task is looked at, to be polled if it is under way; nobody wants another poll for a second."""
        self._wanted.pop(task_id, None)
        _put(self._polled_at, task_id, now, kept_s=LEAST_BETWEEN_POLLS_S)

    def _may_be_polled(self, task_id: str, now: float) -> bool:
        return now - self._polled_at.get(task_id, 0.0) >= LEAST_BETWEEN_POLLS_S

    def is_watched(self, task_id: str, *, now: float) -> bool:
        """Whether a client asked about the task within the last seconds."""
        return now - self._asked_at.get(task_id, -WATCHED_FOR_S) < WATCHED_FOR_S

    def changed(self, task_id: str) -> None:
        """The task's state changed: wake who waits for it."""
        for event in self._changed.pop(task_id, ()):
            event.set()

    def close(self) -> None:
        """Let everybody go who waits; from now on nobody does."""
        self.is_closed = True
        for task_id in list(self._changed):
            self.changed(task_id)

    async def wait(self, task_id: str, *, timeout_s: float) -> None:
        """Return when the task changes, or after the timeout."""
        event = asyncio.Event()
        self._changed.setdefault(task_id, set()).add(event)
        try:
            # Not wait_for: on Python 3.11 it swallows a cancel that meets the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await event.wait()
        finally:
            self._leave(task_id, event)

    def _leave(self, task_id: str, event: asyncio.Event) -> None:
        """Forget one who waits no more; a task of which nobody hears again would keep its event for ever."""
        waiting = self._changed.get(task_id)
        if waiting is not None:
            waiting.discard(event)
            if not waiting:
                del self._changed[task_id]


def _put(times: collections.OrderedDict[str, float], task_id: str, now: float, *, kept_s: float) -> None:
    """Note a time, and forget those that are older than `kept_s`, which come first: what they told is over."""
    times[task_id] = now
    times.move_to_end(task_id)
    while len(times) > MOST_WATCHED or now - next(iter(times.values())) > kept_s:
        times.popitem(last=False)
