"""A million settles of $0.01328125 by a vendor that names no cost: every page says 13281.25, and quickly.

In floats the sum is 13281.249999768. The ledger is made by the functions that the gateway uses, entry by entry, on a
real file; then the commands read it, and a gateway is started on it for the scrape.
"""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import functools
import io
import json
import pathlib
import time
from typing import Final

from gateway import policy_files, wire
from gateway.flow import plan
from gateway.rules import policy, pricing, task
from gateway.store import ledger, sqlite
from gateway.store.database import Tx
from tests import process
from tests.proofs import run

BODY: Final = b'{"model": "gemini-2.5-flash-image-preview", "prompt": "a fox"}'
PER_TRANSACTION: Final = 10_000
SPENT: Final = {10_000: "132.8125", 1_000_000: "13281.25"}
CAPS: Final = 'spend: [{cap: "20000", per: total}]\n'
OF_CAP: Final = {10_000: "0.7%", 1_000_000: "66.4%"}
SCRAPE_WITHIN_S: Final = 2.0
"""A scrape reads sums that are kept; it may not grow with the ledger."""
REPORT_WITHIN_S: Final = 30.0


async def fill(file: pathlib.Path, policies: policy.PolicySet, *, settles: int, now: float) -> None:
    """Reserve and settle so many tasks of one image, as a submit and a poll do."""
    kept = sqlite.SqliteDatabase(file)
    team = policies.teams["growth"]
    making = functools.partial(plan.make, policies=policies, team=team, key="ci", request=wire.parse_submit(BODY))
    planned = await kept.read(lambda tx: making(tx, now=now))
    assert isinstance(planned, plan.Plan) and isinstance(planned.price, pricing.Quote), planned
    cost = pricing.settle(planned.price, task.Outcome(event=task.Event.DELIVERED, images=1), n=1)
    assert (planned.price.nanos, cost.nanos) == (13_282_000, 13_281_250), (planned.price, cost)
    hold = ledger.Hold(
        task_id="",
        team="growth",
        key="ci",
        model=planned.price.model,
        official=planned.price.official,
        tier=planned.price.tier.value,
        quote_nanos=planned.price.nanos,
        reserved_at=now,
    )

    def some(tx: Tx, first: int) -> None:
        for number in range(first, min(first + PER_TRANSACTION, settles)):
            one = dataclasses.replace(hold, task_id=f"task-wg{number:026d}")
            full = ledger.reserve(tx, one, planned.allowances)
            assert full == (), full
            ledger.settle(tx, one, cost, now=now)

    for first in range(0, settles, PER_TRANSACTION):
        await kept.write(functools.partial(some, first=first))
    kept.close()


def prove(directory: pathlib.Path, *, settles: int = 1_000_000) -> str:
    """Fill a ledger, then ask every page that names money."""
    spent = SPENT[settles]
    policies = process.write_policies(directory / "policies", growth=CAPS)
    file = directory / "data" / "wave.db"
    file.parent.mkdir()
    asyncio.run(fill(file, policy_files.load(policies), settles=settles, now=time.time()))
    with process.pair(directory, growth=CAPS) as (gateway, _):
        report = functools.partial(gateway.cli, "report", "--by", "team", "--format")
        started = time.monotonic()
        table = report("table").stdout
        report_s = time.monotonic() - started
        cells = [line.split() for line in table.splitlines()]
        assert [line for line in cells if line[0] in ("growth", "total")] == [
            ["growth", str(settles), str(settles), f"${spent}", "0", "$0", "$0.01328125", OF_CAP[settles]],
            ["total", str(settles), str(settles), f"${spent}", "0", "$0", "$0.01328125"],
        ], table
        [row] = csv.DictReader(io.StringIO(report("csv").stdout))
        assert (row["cost_usd"], row["tasks"]) == (spent, str(settles)), row
        [line] = json.loads(report("json").stdout)
        assert (line["cost_usd"], line["tasks"]) == (spent, settles), line
        started = time.monotonic()
        text = process.fetch(gateway.url + "/metrics")[2].decode()
        scrape_s = time.monotonic() - started
        samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        of = 'model="gemini-2.5-flash-image-preview",team="growth",tier="standard"'
        assert samples[f"wave_gateway_cost_usd_total{{{of}}}"] == spent, samples
        cap = 'cap="total",name="growth",scope="team",window="total"'
        assert samples[f"wave_gateway_budget_settled_usd{{{cap}}}"] == spent, samples
        assert samples[f"wave_gateway_budget_reserved_usd{{{cap}}}"] == "0.0", samples
        drift = {name: value for name, value in samples.items() if name.startswith("wave_gateway_cost_drift_usd_total")}
        assert set(drift.values()) <= {"0.0"}, drift
        assert scrape_s < SCRAPE_WITHIN_S, f"the scrape took {scrape_s:.1f} s"
        assert report_s < REPORT_WITHIN_S, f"the report took {report_s:.1f} s"
        started = time.monotonic()
        audited = gateway.cli("audit")
        audit_s = time.monotonic() - started
        assert audited.returncode == 0, audited.stdout
    return (
        f"{settles} settles of $0.01328125 are ${spent} on every page; scrape {scrape_s:.2f} s, "
        f"report {report_s:.1f} s, audit {audit_s:.1f} s"
    )


if __name__ == "__main__":
    run.alone("sums", prove)
