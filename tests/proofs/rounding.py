"""A vendor that rounds every bill up to whole quotas, and one that rounds down: no committed state passes a cap.

While a flood runs against a real gateway, the database file is read beside it, again and again: every snapshot is a
committed state.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import pathlib
import threading
import time
from typing import Any, Final

from gateway.store import sqlite
from tests import process
from tests.proofs import run

MODEL: Final = "gemini-2.5-flash-image-preview"
QUOTE_NANOS: Final = 13_282_000
BILL_NANOS: Final = {"down": 13_280_000, "up": 13_282_000}
DRIFT: Final = b"wave_gateway_cost_drift_usd_total{"


class Sampler:
    """Reads every balance of a database file beside its gateway, until the block ends."""

    def __init__(self, file: pathlib.Path, *, cap_nanos: int) -> None:
        self._file = file
        self._cap_nanos = cap_nanos
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self.samples = 0
        self.states: set[tuple[int, ...]] = set()
        """Every distinct sum seen: settled and reserved of each balance, in order."""
        self.passed: list[dict[str, Any]] = []

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        with contextlib.closing(sqlite.open_read_only(self._file)) as connection:
            while not self._end.wait(0.001):
                rows = [dict(row) for row in connection.execute("SELECT * FROM balances ORDER BY scope, name, period")]
                self.samples += 1
                self.states.add(tuple(row[name] for row in rows for name in ("settled_nanos", "reserved_nanos")))
                self.passed += [row for row in rows if row["settled_nanos"] + row["reserved_nanos"] > self._cap_nanos]


def full(directory: pathlib.Path, *, rounding: str, submits: int, room: int, cap: str) -> str:
    """Fill a cap with room for `room` quotes by `submits` submits at once; team and organisation have the same cap."""
    org, team = f'spend: [{{cap: "{cap}", per: month}}]\n', f'spend: [{{cap: "{cap}", per: day}}]\n'
    vendor_options = ("--rounding", rounding)
    with process.pair(directory, org=org, growth=team, vendor_options=vendor_options) as (gateway, vendor):
        with Sampler(gateway.data / "wave.db", cap_nanos=room * QUOTE_NANOS) as sampler:
            bodies = [{"model": MODEL, "prompt": f"fox {number}"} for number in range(submits)]
            answers = asyncio.run(gateway.flood(bodies))
            statuses = collections.Counter(status for status, _, _ in answers)
            assert statuses == {200: room, 429: submits - room}, dict(statuses)
            admitted = [document["task_id"] for status, _, document in answers if status == 200]
            ended = collections.Counter(gateway.complete(task_id, within_s=60)["status"] for task_id in admitted)
            assert ended == {"completed": room}, dict(ended)
            status = gateway.submit(prompt="one more")[0]
            assert status == 429, status
            time.sleep(0.05)
        assert not sampler.passed, sampler.passed[0]
        assert any(sum(state[1::2]) > 0 for state in sampler.states), f"no reservation in {sampler.samples} samples"
        settled, bill = gateway.settled_nanos(), vendor.bill()
        assert settled == bill["nanos"] == room * BILL_NANOS[rounding], (settled, bill["nanos"])
        # The month of the organisation and the day of the team, in the last of the states that were seen.
        last = sqlite.scan_file(gateway.data / "wave.db", lambda tx: tx.all("SELECT * FROM balances"))
        sums = {(row["scope"], row["settled_nanos"], row["reserved_nanos"]) for row in last}
        assert sums == {("org", settled, 0), ("team", settled, 0)}, sums
        drifts = [line for line in process.fetch(gateway.url + "/metrics")[2].splitlines() if line.startswith(DRIFT)]
        assert all(line.endswith(b" 0.0") for line in drifts), drifts
        audited = gateway.cli("audit")
        assert audited.returncode == 0, audited.stdout
    return (
        f"rounded {rounding}: {room} of {submits} admitted, {len(sampler.states)} states in {sampler.samples} samples, "
        f"none past ${cap}"
    )


def prove(directory: pathlib.Path) -> str:
    """The long form: a thousand submits at a cap with room for 300, both ways of rounding."""
    said = []
    for rounding in ("up", "down"):
        said.append(full(directory / rounding, rounding=rounding, submits=1000, room=300, cap="3.9846"))
    return "; ".join(said)


if __name__ == "__main__":
    run.alone("rounding", prove)
