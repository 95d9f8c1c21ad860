"""A real hour of the organisation, at a low rate that goes up and down as over a day; everything is left behind.

    python -m tests.proofs.prometheus_hour DIRECTORY [SECONDS]

In DIRECTORY: `prometheus/data` (scraped every 5 s; any Prometheus can be started on it), `data` (the gateway's),
`policies`, `bill.json` (the simulator's) and `said.txt` (how the sums compare). For looking at the dashboards, and for
alerts whose `for` is longer than the minutes of `prometheus`. Run it from a copy of the tree if the tree may change:
the gateway is started twice.
"""

from __future__ import annotations

import asyncio
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable
from typing import Final

from tests.proofs import prometheus, prometheus_traffic

HOUR_S: Final = 3600.0


def pace(seconds: float) -> prometheus_traffic.Pace:
    """Two visits a second on average."""
    return prometheus_traffic.Pace(
        seconds=seconds, per_s=2, swing=0.8, poll_every_s=2, gone_s=40, task_within_s=900, open_max=1000
    )


def run(directory: pathlib.Path, seconds: float) -> bool:
    """The hour; returns whether the sums agree in the end."""
    directory.mkdir(parents=True, exist_ok=True)
    with prometheus.watched(directory, pace(seconds), every_s=5) as at:
        pids = [each.process.pid for each in (at.gateway, at.vendor) if each.process is not None]
        pids = [os.getpid(), *pids, at.prometheus.pid]
        (directory / "pids").write_text(" ".join(str(pid) for pid in pids) + "\n")
        checks: list[Callable[[], str]] = [
            lambda: _sent(at),
            lambda: f"the bill is {prometheus.write_bill(at.vendor, directory / 'bill.json')['nanos']} nanos",
            lambda: prometheus.check_sums(at, at.prometheus.await_sample_after(time.time())),
            lambda: prometheus.check_witnesses(at, time.time()),
            lambda: prometheus.name_alerts(at, time.time()),
            lambda: prometheus.check_scrapes(at, time.time()),
            lambda: prometheus.check_expressions(at, time.time()),
        ]
        return all([_said(check, directory / "said.txt") for check in checks])


def _sent(at: prometheus.Watched) -> str:
    asyncio.run(at.load.run())
    return f"clients saw {dict(at.load.statuses)} and the ends {dict(at.load.ends)}"


def _said(check: Callable[[], str], file: pathlib.Path) -> bool:
    """Write down what one check says, whether or not it holds: the others are done all the same."""
    try:
        said, holds = check(), True
    except Exception:  # noqa: BLE001 - whatever ends a check, the hour's data are worth keeping
        said, holds = traceback.format_exc(), False
    with file.open("a") as out:
        out.write(f"{said}\n")
    return holds


if __name__ == "__main__":
    sys.exit(0 if run(pathlib.Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else HOUR_S) else 1)
