"""Whether the upstream is down, from what its calls come to; and how seldom it is asked while it is. Seconds.

Down means that nobody answered as the vendor: no connection, a timeout, a dropped answer, a 5xx. A 429 or a complaint
about a key is the vendor's own word, so it is there (CONTRACT §2).
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Final, assert_never

from gateway.rules import task

OPENS_AFTER: Final = 5
"""Failures that mean down, with no word of the vendor between them. One submit that always ends in a 500 is not that,
while others or polls get through."""
PROBE_EVERY_S: Final = 5.0


class Word(enum.StrEnum):
    """What a call says about the upstream."""

    THERE = "there"
    DOWN = "down"
    NOTHING = "nothing"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """What is known; times in unix seconds. Open: submits are held back, but for a probe now and then."""

    is_open: bool = False
    failures: int = 0
    """Calls in a row that mean down."""
    there_at: float = 0.0
    """When the upstream last showed that it is there."""
    probed_at: float = 0.0
    """When the last probe left; at first, when the circuit opened."""


def word_of(outcome: task.SubmitOutcome) -> Word:
    """What the outcome of a POST says about the upstream."""
    match outcome:
        case task.Accepted() | task.Refused():
            return Word.THERE
        case task.NotSent():
            return Word.DOWN if outcome.reason == task.NO_CONNECTION else Word.THERE
        case task.InDoubt():
            return Word.DOWN if outcome.is_down else Word.NOTHING
        case _:
            assert_never(outcome)


def hear(known: Circuit, word: Word, *, began_at: float, now: float) -> Circuit:
    """What is known after a call that began at `began_at` has ended.

    A failure of a call that began before the upstream was last there says nothing about the time since: after a
    recovery, the timeouts of the outage still come in.
    """
    match word:
        case Word.NOTHING:
            return known
        case Word.THERE:
            return Circuit(there_at=now)
        case Word.DOWN:
            if began_at < known.there_at <= now:
                return known
            failures = known.failures + 1
            if known.is_open or failures < OPENS_AFTER:
                return dataclasses.replace(known, failures=failures)
            return dataclasses.replace(known, failures=failures, is_open=True, probed_at=now)
        case _:
            assert_never(word)


def may_send(known: Circuit, *, now: float) -> bool:
    """Whether a submit may leave now: always while closed, else as a probe. A clock set back forbids none."""
    return not known.is_open or not 0 <= now - known.probed_at < PROBE_EVERY_S


def sent(known: Circuit, *, now: float) -> Circuit:
    """What is known once a submit that `may_send` has left."""
    return dataclasses.replace(known, probed_at=now) if known.is_open else known
