"""When to try again: polls, submits, downloads. Seconds throughout; `luck` is a random number in [0, 1)."""

from __future__ import annotations

from typing import Final

FORGETS_AFTER_S: Final = 23 * 3600
"""In doubt longer than this, a submit is not repeated: the vendor forgets idempotency keys at 24 h."""

RESUBMIT_FIRST_S: Final = 0.8  # and up to 0.2 s until somebody looks
RESUBMIT_LONGEST_S: Final = 10.0
RETRY_AFTER_LONGEST_S: Final = 300
POLL_WATCHED_S: Final = 1.0
MIRROR_FIRST_S: Final = 0.5
MIRROR_LONGEST_S: Final = 60.0


def resubmit_delay(attempts: int, *, luck: float, retry_after_s: int | None = None) -> float:
    """Wait before the next POST of a task after `attempts` (≥ 1): within 1 s at first, doubling to 10 s, jittered."""
    longest = min(RESUBMIT_LONGEST_S, RESUBMIT_FIRST_S * 2.0 ** min(attempts - 1, 16))
    delay = longest * (0.5 + luck / 2)
    if retry_after_s is None:
        return delay
    return max(delay, min(retry_after_s, RETRY_AFTER_LONGEST_S) + luck)


def poll_delay(age_s: float, *, luck: float, is_watched: bool = False) -> float:
    """Wait before the next poll of a task that was accepted `age_s` ago.

    Fast at first and slower later; at most 1 s while a client waits for the task.
    """
    delay = min(10.0, max(0.5, age_s / 6)) * (0.9 + luck / 5)
    return min(delay, POLL_WATCHED_S) if is_watched else delay


def poll_trouble_delay(failures: int, *, luck: float) -> float:
    """Wait after `failures` (≥ 1) polls in a row that brought no word: 1 s, doubling to 30 s, jittered."""
    return float(min(30.0, 2.0 ** min(failures - 1, 8))) * (0.5 + luck / 2)


def mirror_delay(attempts: int, *, luck: float) -> float:
    """Wait before the next download after `attempts` (≥ 1): from 0.5 s, doubling to a minute, jittered."""
    return float(min(MIRROR_LONGEST_S, MIRROR_FIRST_S * 2.0 ** min(attempts - 1, 16))) * (0.8 + luck / 5)
