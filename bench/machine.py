"""What the machine says: its cores, and the processor time and memory of a tree of processes. Linux only."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator, Sequence
from typing import Final

PROC: Final = pathlib.Path("/proc")
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
RESET_PEAK: Final = "5"
"""Written to `clear_refs`: the peak of the resident memory begins anew. Source: proc(5)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """Which core the servers have, and which one the load and the upstream."""

    server: int
    load: int


def cores() -> Cores:
    """The first two that this process may use; with one only, both are the same and the figures say little."""
    usable = sorted(os.sched_getaffinity(0))
    return Cores(server=usable[0], load=usable[min(1, len(usable) - 1)])


def tree(pid: int) -> list[int]:
    """A process and all its descendants that are alive."""
    parents = {child: parent for child, (parent, _) in _stats()}
    found = [pid]
    for one in found:
        found.extend(child for child, parent in parents.items() if parent == one)
    return found


def cpu_s(pid: int) -> float:
    """Processor seconds, user and system, of a tree of processes since it began; ended children count."""
    used = {child: seconds for child, (_, seconds) in _stats()}
    return sum(used.get(one, 0.0) for one in tree(pid))


def rss_bytes(pid: int) -> int:
    """Resident memory of a tree of processes now."""
    return sum(_status_bytes(one, "VmRSS") for one in tree(pid))


def peak_bytes(pid: int) -> int:
    """The most resident memory that each process of a tree had since `reset_peak`, added up."""
    return sum(_status_bytes(one, "VmHWM") for one in tree(pid))


def reset_peak(pid: int) -> None:
    """Begin the peak of a tree of processes anew."""
    for one in tree(pid):
        (PROC / str(one) / "clear_refs").write_text(RESET_PEAK)


def describe() -> list[str]:
    """The machine in a few lines, without its name or its paths."""
    model = next((line.split(":")[1].strip() for line in _lines(PROC / "cpuinfo") if line.startswith("model name")), "")
    memory = next((line.split()[1] for line in _lines(PROC / "meminfo") if line.startswith("MemTotal")), "0")
    return [
        f"{model or platform.machine()}, {len(os.sched_getaffinity(0))} cores, {int(memory) / 2**20:.0f} GiB",
        f"{platform.system()} {platform.release()}",
        f"Python {platform.python_version()}",
    ]


def version_of(command: Sequence[str]) -> str:
    """The first line that a program says about its version, wherever it says it."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return said[0] if said else ""


def _stats() -> Iterator[tuple[int, tuple[int, float]]]:
    """(pid, (parent, processor seconds)) of each process that can be read."""
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                # After the name come state, parent, …; 11 to 14 are utime, stime and both of the ended children.
                yield int(entry.name), (int(fields[1]), sum(int(field) for field in fields[11:15]) / TICKS_PER_S)


def _status_bytes(pid: int, name: str) -> int:
    found = [line.split()[1] for line in _lines(PROC / str(pid) / "status") if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else 0


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
