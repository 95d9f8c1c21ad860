"""What a server says about itself: the gateway's metrics, nginx's count."""

from __future__ import annotations

import functools
import pathlib
import time
from typing import Final

from bench import servers
from gateway.store import sqlite, tasks

LOOK_EVERY_S: Final = 0.2


def samples(gateway: servers.Server) -> dict[str, float]:
    """The gateway's metrics, by name and labels as they are written."""
    status, text = servers.fetch(f"{gateway.url}/metrics")
    if status != 200:
        raise RuntimeError(f"the metrics of {gateway.name} answer {status}")
    lines = (line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def total(gateway: servers.Server, metric: str, *labels: str) -> int:
    """The sum of a metric over all series that have these labels, written as `name="value"`."""
    return int(
        sum(
            value
            for name, value in samples(gateway).items()
            if name.partition("{")[0] == metric and all(label in name for label in labels)
        )
    )


def requests_of(gateway: servers.Server, route: str, method: str) -> int:
    """How many requests of a route the gateway answered."""
    return total(gateway, "wave_gateway_http_requests_total", f'route="{route}"', f'method="{method}"')


def requests_of_nginx(url: str) -> int:
    """How many requests an nginx answered before this one."""
    text = servers.fetch(f"{url}/status")[1].decode()
    # "server accepts handled requests", then the three numbers; each look is counted too and takes itself off.
    return int(text.splitlines()[2].split()[2])


def wait_until_done(file: pathlib.Path, team: str, *, within_s: float = 120.0) -> None:
    """Return when a team has no open task, as its database says: a scrape would be counted as the server's work."""
    until = time.monotonic() + within_s
    while sqlite.scan_file(file, functools.partial(tasks.count_holding, team=team)):
        if time.monotonic() > until:
            raise RuntimeError(f"team {team} still has open tasks after {within_s:g} s")
        time.sleep(LOOK_EVERY_S)


def wait_until_audited(gateway: servers.Server, *, within_s: float = 900.0) -> None:
    """Return when the first audit after the start has ended; raises RuntimeError where it found a difference."""
    until = time.monotonic() + within_s
    while "wave_gateway_audit_timestamp_seconds" not in (found := samples(gateway)):
        if time.monotonic() > until:
            raise RuntimeError(f"no audit ended within {within_s:g} s")
        time.sleep(1.0)
    if found["wave_gateway_audit_differences"]:
        raise RuntimeError(f"the audit found {found['wave_gateway_audit_differences']:.0f} differences")
