"""The callback tokens of this process, kept in memory: those it knows, and how many others may be looked up.

A flood of forged callbacks costs the database no more than `LOOK_UPS_PER_MINUTE`, and keeps no genuine one out for
long: the token of a task is known here once the task was sent or polled, also after a restart.
"""

from __future__ import annotations

import collections
from typing import Final

from gateway.rules import rate
from gateway.store import tasks

MOST_KNOWN: Final = 20_000
LOOK_UPS_PER_MINUTE: Final = 600


class CallbackTokens:
    """Tokens of tasks at work, and what is left for strange ones."""

    def __init__(self) -> None:
        """Nothing is known."""
        self._known: collections.OrderedDict[str, str] = collections.OrderedDict()
        self._bucket: rate.Bucket | None = None

    def learn(self, row: tasks.Task) -> None:
        """Know the token of a task, if it has one."""
        if row.callback_token is not None:
            self.add(row.callback_token, row.id)

    def add(self, token: str, task_id: str) -> None:
        """Know a token; the longest unused one is forgotten past the bound."""
        self._known[token] = task_id
        self._known.move_to_end(token)
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)

    def get(self, token: str) -> str | None:
        """The id of the task that a token is known to belong to."""
        return self._known.get(token)

    def take_look_up(self, *, now: float) -> int | None:
        """Take the right to look one strange token up: None if it may be, else the whole seconds until one may."""
        self._bucket, wait_s = rate.take(self._bucket, now, per_minute=LOOK_UPS_PER_MINUTE)
        return wait_s

    def give_back(self) -> None:
        """The token that was looked up was genuine: it costs nothing."""
        if self._bucket is not None:
            self._bucket = rate.give_back(self._bucket)
