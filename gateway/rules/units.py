"""Durations and sizes as people write them: `30d`, `2m`, `2GiB`.

A number without a unit is refused: whether it means seconds or days is a guess.
"""

from __future__ import annotations

import re
from typing import Final

MAX_SIZE_BYTES: Final = 2**60
"""The largest size that is accepted; sums of a few stay inside 64 bits."""

_DURATION: Final = re.compile(r"(0|[1-9]\d{0,8})([smhd])", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

_SIZE: Final = re.compile(r"(0|[1-9]\d{0,17})(B|[KMGT]iB|[kMGT]B)", re.ASCII)
_BYTES: Final = {
    "B": 1,
    "kB": 1_000,
    "MB": 1_000_000,
    "GB": 1_000_000_000,
    "TB": 1_000_000_000_000,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}


def parse_duration(text: str) -> int:
    """Read a whole number of seconds, minutes, hours or days (`45s`, `90m`, `12h`, `30d`) as seconds.

    Raises ValueError for anything else.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a duration; write a whole number and s, m, h or d, such as 30d or 45s")
    return int(match.group(1)) * _SECONDS[match.group(2)]


def parse_size(text: str) -> int:
    """Read a whole number of bytes with its unit (`2GiB`, `500MB`, `0B`) as bytes.

    Raises ValueError for anything else, and for more than `MAX_SIZE_BYTES`.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a size; write a whole number and a unit, such as 512KiB, 1MiB or 2GiB")
    size = int(match.group(1)) * _BYTES[match.group(2)]
    if size > MAX_SIZE_BYTES:
        raise ValueError(f"{text!r} is more than {MAX_SIZE_BYTES >> 40}TiB")
    return size
