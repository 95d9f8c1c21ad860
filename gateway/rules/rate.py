"""A token bucket, as of `requests_per_minute`: a minute's worth at once, refilled evenly."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Requests that may still come at an instant, in seconds on any clock."""

    tokens: float
    at_s: float


def take(bucket: Bucket | None, now_s: float, *, per_minute: int) -> tuple[Bucket, int | None]:
    """Take one request out of the bucket.

    Returns the bucket afterwards, and None if the request may go on, else the whole seconds until it may.
    """
    if bucket is None:
        bucket = Bucket(tokens=per_minute, at_s=now_s)
    earned = max(0.0, now_s - bucket.at_s) * per_minute / 60
    tokens = min(float(per_minute), bucket.tokens + earned)
    if tokens >= 1:
        return Bucket(tokens=tokens - 1, at_s=now_s), None
    return Bucket(tokens=tokens, at_s=now_s), max(1, math.ceil((1 - tokens) * 60 / per_minute))


def give_back(bucket: Bucket) -> Bucket:
    """The bucket with a request put back that need not have counted; the next `take` bounds what it holds."""
    return dataclasses.replace(bucket, tokens=bucket.tokens + 1)
