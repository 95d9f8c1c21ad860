"""What a gateway process holds, read from /proc and its data directory; and how it grows with the requests. Linux only.

The slope is that of Theil and Sen, the median over all pairs of samples: a few peaks do not move it. Its interval is
a bootstrap over blocks of a minute, because neighbouring samples are alike.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import itertools
import json
import os
import pathlib
import random
import statistics
from collections.abc import Sequence
from typing import Any, Final

MIB: Final = 2**20
PER_REQUESTS: Final = 100_000
BLOCK: Final = 12
"""Samples in a block of the bootstrap: a minute of them."""
RESAMPLED: Final = 200


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at the gateway; sizes in bytes, times in seconds."""

    at_s: float
    """Since the traffic began that is measured."""
    cpu_s: float
    """Processor time since its start."""
    requests: int
    """Answered up to now."""
    rss: int
    anonymous: int
    """Of `rss`, what is no file: the rest can be read again from disk."""
    pss: int
    """As `rss`, with pages that are shared with other processes only in part."""
    sockets: int
    files: int
    """Open regular files."""
    other_fds: int
    threads: int
    tasks: int
    """asyncio tasks."""
    late_s: float
    """How late the event loop came to count them."""
    gc_young_s: float
    """The longest collection lately of new objects, and of all."""
    gc_full_s: float
    blocks: int
    """Objects that Python's own allocator holds."""
    heap: int
    """Held of malloc by the program."""
    heap_free: int
    """Held by malloc, used by nobody: fragments."""
    database: int
    wal: int
    cache: int
    """The directory of the result cache."""


def held(pid: int, data: pathlib.Path, inside: pathlib.Path, *, at_s: float, requests: int) -> Sample:
    """Look at a gateway; `inside` is what `tests.soak.watched` says of it from within."""
    process = pathlib.Path(f"/proc/{pid}")
    rollup = _kibibytes((process / "smaps_rollup").read_text())
    status = _kibibytes((process / "status").read_text())
    kinds = collections.Counter(_kind(each) for each in _links(process / "fd"))
    said = _last(inside)
    return Sample(
        at_s=at_s,
        cpu_s=_cpu_s((process / "stat").read_text()),
        requests=requests,
        rss=status["VmRSS"] * 1024,
        anonymous=(status["RssAnon"] + status["RssShmem"]) * 1024,
        pss=rollup["Pss"] * 1024,
        sockets=kinds["socket"],
        files=kinds["file"],
        other_fds=kinds["other"],
        threads=len(os.listdir(process / "task")),
        tasks=int(said.get("tasks", 0)),
        late_s=float(said.get("late_s", 0)),
        gc_young_s=max(said.get("gc_longest_s", [0.0])[:2]),
        gc_full_s=said.get("gc_longest_s", [0.0])[-1],
        blocks=int(said.get("blocks", 0)),
        heap=int(said.get("heap", 0)),
        heap_free=int(said.get("heap_free", 0)),
        database=_size(data / "wave.db"),
        wal=_size(data / "wave.db-wal"),
        cache=sum(_size(each) for each in (data / "cache").glob("*")),
    )


def _cpu_s(stat: str) -> float:
    user, system = stat.rpartition(") ")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _kibibytes(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): int(value) for name, value, _ in pairs}


def _links(directory: pathlib.Path) -> list[str]:
    found = []
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):  # closed meanwhile
            found.append(os.readlink(directory / name))
    return found


def _kind(link: str) -> str:
    if link.startswith("socket:"):
        return "socket"
    return "file" if link.startswith("/") and not link.startswith("/dev/") else "other"


def _size(path: pathlib.Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _last(inside: pathlib.Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, IndexError):
        said: dict[str, Any] = json.loads(inside.read_text().splitlines()[-1])
        return said
    return {}


def write(samples: Sequence[Sample], file: pathlib.Path) -> None:
    """Write them as CSV, for a plot."""
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(field.name for field in dataclasses.fields(Sample))
        writer.writerows(dataclasses.astuple(each) for each in samples)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """How something grows, in bytes for each request, and the interval that holds the slope 19 times of 20."""

    bytes_each: float
    least: float
    most: float

    def mebibytes(self) -> str:
        """In the unit of the bound."""
        least, middle, most = (each * PER_REQUESTS / MIB for each in (self.least, self.bytes_each, self.most))
        return f"{middle:+.2f} ({least:+.2f} to {most:+.2f})"


def slope(points: Sequence[tuple[float, float]], *, seed: int = 1) -> Slope:
    """The slope of (requests, bytes); needs two points with different requests."""
    luck = random.Random(seed)
    size = min(BLOCK, max(1, len(points) // 4))
    blocks = [points[at : at + size] for at in range(0, len(points) - size + 1)]
    wanted = max(1, round(len(points) / size))
    drawn = []
    for _ in range(RESAMPLED):
        again = [point for _ in range(wanted) for point in luck.choice(blocks)]
        if len({requests for requests, _ in again}) > 1:
            drawn.append(_theil_sen(again))
    drawn.sort()
    cut = len(drawn) // 40
    return Slope(bytes_each=_theil_sen(points), least=drawn[cut], most=drawn[-1 - cut])


def _theil_sen(points: Sequence[tuple[float, float]]) -> float:
    slopes = [(y - b) / (x - a) for (a, b), (x, y) in itertools.combinations(points, 2) if x != a]
    return statistics.median(slopes)


def quantile(values: Sequence[float], share: float) -> float:
    """What this share of the values does not pass; 0 for none."""
    return sorted(values)[max(0, int(len(values) * share) - 1)] if values else 0.0
