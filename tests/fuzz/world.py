"""What is fuzzed: a gateway process in front of a simulator, three teams, and the books to be compared at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Final

from tests import process

WIDE, TIGHT = process.KEYS["growth"], process.KEYS["research"]
"""Keys of a team that hardly anything is refused to, and of one that meets every limit."""

_WIDE: Final = """
limits: {n: 4, resolution: 2K, reference_images: 4, open_tasks: 100000}
official_fallback: {default: allow}
spend: [{name: daily, cap: "900.00", per: day}]
"""
_TIGHT: Final = """
limits: {n: 2, requests_per_minute: 600, open_tasks: 5}
models: {deny: ["gemini-3-*"], actions: [generate]}
spend: [{name: daily, cap: "0.20", per: day}, {name: ci, cap: "0.10", per: total, key: ci}]
"""
_AT_ONCE: Final = [{"on": "submit", "times": None, "do": {"queue_s": 0, "work_s": 0}}]
SETTLES_WITHIN_S: Final = 120


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The gateway, the vendor behind it, and what the gateway wrote to its log."""

    gateway: process.Gateway
    vendor: process.Vendor
    log: pathlib.Path

    @property
    def port(self) -> int:
        return int(self.gateway.url.rpartition(":")[2])

    def check(self) -> list[str]:
        """What is wrong now that all has been said: health, log, open tasks, the audit, the ledger against the bill."""
        found: list[str] = []
        status, _, text = process.fetch(self.gateway.url + "/healthz")
        if (status, text) != (200, b'{"status":"ok"}'):
            found.append(f"/healthz answers {status} {text!r}")
        found += [f"the log says: {line}" for line in self.log.read_text(encoding="utf-8").splitlines()[:20]]
        bill = self._settled_bill()
        if self.gateway.settled_nanos() != bill:
            found.append(f"the ledger says {self.gateway.settled_nanos()} nanos, the vendor {bill}")
        for command in (("audit",), ("reconcile", "--upstream", self.vendor.url)):
            done = process.run_cli(
                *command,
                *("--data", str(self.gateway.data), "--policies", str(self.gateway.policies)),
                environ=process.ENVIRON,
            )
            if done.returncode != 0:
                found.append(f"`{command[0]}` ends with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return found

    def _settled_bill(self) -> int:
        """The vendor's bill once no task is open, or as it is when one never ends."""
        until = time.monotonic() + SETTLES_WITHIN_S
        while time.monotonic() < until:
            text = process.fetch(self.gateway.url + "/metrics")[2].decode()
            still_open = [line for line in text.splitlines() if line.startswith("wave_gateway_tasks_open{")]
            if all(line.endswith(" 0.0") for line in still_open) and self.vendor.bill()["open"] == 0:
                break
            time.sleep(0.2)
        return int(self.vendor.bill()["nanos"])


@contextlib.contextmanager
def made(directory: pathlib.Path) -> Iterator[World]:
    """A running world; what it keeps lies in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "gateway.log"
    log.touch()
    launcher = ("/bin/sh", "-c", 'exec "$@" 2>>"$0"', str(log))
    options = ("--max-wait", "2s", "--log-level", "warning")
    with process.pair(directory, *options, launcher=launcher, growth=_WIDE, research=_TIGHT) as (gateway, vendor):
        vendor.script(_AT_ONCE)
        yield World(gateway=gateway, vendor=vendor, log=log)


def note(path: pathlib.Path, found: object) -> None:
    """Keep something that failed, for whoever replays it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")
