"""How many retries may leave, so that they never become a storm of their own.

A retry is the second or a later POST of a task. Over 60 s they are at most a fifth of the live submits, but are never
held under 3 a second, and at most 50 leave at once. Source: CONTRACT §2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

OVER_S: Final = 60
SHARE: Final = 0.2
LEAST_PER_S: Final = 3.0
BURST: Final = 50.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may leave at an instant; `at` in unix seconds."""

    tokens: float = BURST
    """Refilled by the share of the live submits, at least by `LEAST_PER_S`."""
    least_tokens: float = BURST
    """Refilled by `LEAST_PER_S`: what nobody may hold back."""
    at: float | None = None


def refilled(budget: Budget, *, now: float, submits: int) -> Budget:
    """The budget at `now`, with `submits` live ones in the last 60 s. A clock set back refills nothing."""
    passed_s = 0.0 if budget.at is None else max(0.0, now - budget.at)
    per_s = max(LEAST_PER_S, SHARE * submits / OVER_S)
    return Budget(
        tokens=min(BURST, budget.tokens + passed_s * per_s),
        least_tokens=min(BURST, budget.least_tokens + passed_s * LEAST_PER_S),
        at=now,
    )


def allows(budget: Budget, *, submits: int, retries: int) -> int:
    """How many retries may leave at once, after so many submits and retries in the last 60 s."""
    share = max(0, int(SHARE * submits) - retries)
    return int(min(budget.tokens, max(share, budget.least_tokens)))


def taken(budget: Budget) -> Budget:
    """The budget after one retry left."""
    least_tokens = max(0.0, budget.least_tokens - 1)
    return dataclasses.replace(budget, tokens=budget.tokens - 1, least_tokens=least_tokens)


def recent(counts: Mapping[int, int], *, now: float) -> dict[int, int]:
    """The counts by second of the last 60 s, without any of a clock that was ahead."""
    return {second: count for second, count in counts.items() if now - OVER_S < second <= now}
