"""The arithmetic of the table: medians, spreads, ratios, and whether a goal is met. Pure."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The median of some rounds, and between what they lie."""

    median: float
    least: float
    most: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One server on one path in one round."""

    path: str
    server: str
    requests: int
    seconds: float
    cpu_s: float
    """Processor time of the server's tree of processes, with what it did for these requests after the answers."""
    p50_ms: float
    p99_ms: float

    @property
    def per_s(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of processor time for each request."""
        return self.cpu_s * 1e6 / self.requests


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A bound that the found value is held against."""

    name: str
    found: Spread
    bound: float
    is_most: bool = False
    """The bound is the most that may be found, else the least."""
    unit: str = "x"

    @property
    def is_met(self) -> bool:
        """Whether the median keeps to the bound."""
        return self.found.median <= self.bound if self.is_most else self.found.median >= self.bound


def spread(values: Sequence[float]) -> Spread:
    """Of one value or more."""
    return Spread(median=statistics.median(values), least=min(values), most=max(values))


def cpu_ratio(rounds: Sequence[Measured], *, path: str, of: str, to: str) -> Spread | None:
    """How many requests `of` answers in the processor time that `to` needs for one, round by round.

    0.5: it needs twice the time of `to`. The two rounds of one pair followed each other, so what the machine did
    meanwhile is in both. None where one of them was not measured.
    """
    ours = [each.cpu_us for each in rounds if (each.path, each.server) == (path, of)]
    theirs = [each.cpu_us for each in rounds if (each.path, each.server) == (path, to)]
    pairs = [their / our for our, their in zip(ours, theirs, strict=False) if our > 0]
    return spread(pairs) if pairs else None


def growth(rounds: Sequence[Measured], *, path: str, empty: str, full: str) -> Spread | None:
    """By how much a request costs more with many kept tasks than with few, round by round."""
    return cpu_ratio(rounds, path=path, of=empty, to=full)
