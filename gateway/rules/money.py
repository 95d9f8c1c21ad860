"""Money as integer nano-USD; `float` never touches it.

One US dollar is 1,000,000,000 nanos; one upstream quota is 2,000 nanos. In text an amount is a decimal string.
"""

from __future__ import annotations

import re
from typing import Final, NewType

Nanos = NewType("Nanos", int)

NANOS_PER_USD: Final = 1_000_000_000
NANOS_PER_QUOTA: Final = 2_000
MAX_NANOS: Final = 1_000_000_000 * NANOS_PER_USD
"""The largest amount that is accepted anywhere, 10⁹ USD; sums of a few stay inside 64 bits."""

ZERO: Final = Nanos(0)

_AMOUNT: Final = re.compile(r"(\d{1,10})(?:\.(\d{1,9}))?", re.ASCII)


def parse_usd(text: str) -> Nanos:
    """Read a decimal string such as `"0.01328125"`.

    Raises ValueError for a sign, an exponent, more than nine decimals, or more than 10⁹ USD.
    """
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an amount: write US dollars as a decimal string such as '0.0425'")
    whole, decimals = match.group(1), match.group(2) or ""
    nanos = int(whole) * NANOS_PER_USD + int(decimals.ljust(9, "0"))
    if nanos > MAX_NANOS:
        raise ValueError(f"{text!r} is more than 1000000000 US dollars")
    return Nanos(nanos)


def render_usd(nanos: int) -> str:
    """Write an amount without exponent or trailing zeros: `"0.0425"`, `"0"`, `"-1.5"`."""
    whole, rest = divmod(abs(nanos), NANOS_PER_USD)
    sign = "-" if nanos < 0 else ""
    decimals = f"{rest:09d}".rstrip("0")
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"


def ceil_to_quota(nanos: int) -> Nanos:
    """Round up to a whole upstream quota, because the vendor bills whole quotas."""
    return Nanos(-(-nanos // NANOS_PER_QUOTA) * NANOS_PER_QUOTA)


def quota_to_nanos(quota: int) -> Nanos:
    """Price of whole upstream quotas."""
    return Nanos(quota * NANOS_PER_QUOTA)


def quota_below(nanos: int) -> int:
    """Whole quotas that fit into the amount; used for caps in the vendor's own unit."""
    return nanos // NANOS_PER_QUOTA


def quota_above(nanos: int) -> int:
    """Whole quotas that cover the amount; used for spend in the vendor's own unit."""
    return -(-nanos // NANOS_PER_QUOTA)
