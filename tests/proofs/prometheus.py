"""A real Prometheus watches an hour of a busy organisation in three minutes: what it says is the ledger and the bill.

Every expression of the dashboards and rules in grafana/ is then asked of it. The data directory is kept where KEEP
says: `KEEP=/tmp/kept make proofs ARGS=prometheus`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import datetime
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from gateway import policy_files
from tests import process
from tests.proofs import prometheus_books as books
from tests.proofs import prometheus_panels as panels
from tests.proofs import prometheus_server as server
from tests.proofs import prometheus_traffic as traffic
from tests.proofs import run

GRAFANA: Final = pathlib.Path(__file__).parents[2] / "grafana"
PACE: Final = traffic.Pace(seconds=230, per_s=12)
PATIENCE: Final = ("--mirror-patience", "3s")
SLOW_S: Final = 10.0
"""An expression that takes longer over a few minutes is too slow for a month, however busy the machine is."""

EMPTY: Final[Mapping[str, str]] = {
    "alerts.yaml: WaveAuditDifferences": "the books agree",
    "alerts.yaml: WaveTasksOverdue": "no task is an hour old after minutes",
    "alerts.yaml: WaveDiskFullSoon": "needs six hours",
    "alerts.yaml: WaveInternalErrors": "503s of unreadable keys and of teams that do not wait are under 5 %",
    "alerts.yaml: WaveMetricsAbsent": "while the gateway is gone, Prometheus knows its target",
    "alerts.yaml: WaveWebhooksWaiting": "fewer than a hundred are waiting",
    "alerts.yaml: WaveWebhooksGivenUp": "no receiver answers 410, and the schedule takes a day and a half",
    "traffic.json: Open tasks A": "every task has ended; the panel says 0 then",
}
"""Expressions that must have nothing to show here, by file and title, and why."""
EITHER: Final[Mapping[str, str]] = {
    "alerts.yaml: WaveAuditNotRun": "a scrape may come before the first audit after a start has ended",
    "alerts.yaml: WaveDiskNearlyFull": "the machine's own disk",
    "media.json: Full in A": "the machine's own disk: other programs may free more than is written",
    "spend.json: Month's forecast A": "asks at whole ten minutes, which may not be among these",
    "spend.json: Teams this month B": "asks at whole ten minutes, which may not be among these",
}
"""Expressions of which nobody can say here whether they have something to show."""

WITNESSES: Final[Mapping[str, str]] = {
    "the gateway was gone": 'min_over_time(up{job="wave-gateway"}[1h]) == 0',
    "a counter of the process began anew": "sum(resets(wave_gateway_cache_requests_total[1h])) > 0",
    "the circuit opened": "max_over_time(wave_gateway_upstream_circuit_open[1h]) == 1",
    "a key was refused": 'min_over_time(wave_gateway_upstream_key_ok{team="partner"}[1h]) == 0',
    "a key cannot be read": 'min_over_time(wave_gateway_upstream_key_ok{team="ghost"}[1h]) == 0',
    "policies were broken": "min_over_time(wave_gateway_policy_reload_ok[1h]) == 0",
    "tasks were in doubt": "max_over_time(wave_gateway_tasks_in_doubt[1h]) > 0",
    "URLs were at risk": "max_over_time(wave_gateway_mirror_at_risk_urls[1h]) > 0",
    "downloads failed in many ways": "count(max_over_time(wave_gateway_mirror_failures_total[1h]) > 0) >= 4",
    "every answer of the cache": (
        "count(count by (status) (max_over_time(wave_gateway_cache_requests_total[1h]) > 0)) == 4"
    ),
    "every end of a task": "count(count by (outcome) (max_over_time(wave_gateway_tasks_total[1h]) > 0)) == 4",
    "every tier": "count(count by (tier) (wave_gateway_cost_usd_total > 0)) == 2",
    "models outside the catalogue": 'sum(wave_gateway_cost_usd_total{model="other"}) > 0',
    "hits": 'sum(wave_gateway_cost_avoided_usd_total{reason="cache"}) > 0',
    "followers": 'sum(wave_gateway_cost_avoided_usd_total{reason="coalesced"}) > 0',
    "fallback": "sum(wave_gateway_fallback_premium_usd_total) > 0",
    "bills off the list": "sum(wave_gateway_cost_drift_usd_total) > 0",
    "only if cached, and it was not": 'max_over_time(wave_gateway_http_requests_total{status="504"}[1h]) > 0',
    "a cap that is full": (
        "max((wave_gateway_budget_settled_usd + wave_gateway_budget_reserved_usd) "
        "/ wave_gateway_budget_limit_usd) > 0.9"
    ),
    **{
        f"denied: {code}": f'max_over_time(wave_gateway_policy_decisions_total{{code="{code}"}}[1h]) > 0'
        for code in (
            "action_not_allowed",
            "capability_violation",
            "concurrency_limit_exceeded",
            "limit_exceeded",
            "max_cost_exceeded",
            "model_not_allowed",
            "official_fallback_denied",
            "price_not_configured",
            "quota_window_exceeded",
            "rate_limited",
            "spend_cap_reached",
        )
    },
}
"""What must have happened, so that the rest means something; each asks for a number that is there."""


@dataclasses.dataclass(slots=True)
class Watched:
    """An organisation's traffic with a Prometheus beside it, from the start on."""

    gateway: process.Gateway
    vendor: process.Vendor
    prometheus: server.Prometheus
    load: traffic.Load
    began_at: float


@contextlib.contextmanager
def watched(
    directory: pathlib.Path, pace: traffic.Pace, *options: str, every_s: int, grafana: pathlib.Path = GRAFANA
) -> Iterator[Watched]:
    """All three processes, running; ended in the order that leaves whole data."""
    today = datetime.datetime.now(datetime.UTC).date()
    gateway, vendor = traffic.pair(directory, pace, *options, today=today)
    prometheus = server.Prometheus(
        directory / "prometheus", gateway.url.removeprefix("http://"), rules=rule_files(grafana), every_s=every_s
    )
    try:
        vendor.start(path="/sim/bill")
        gateway.start()
        prometheus.start()
        prometheus.await_sample_after(0)
        load = traffic.Load(gateway, vendor, pace)
        yield Watched(gateway=gateway, vendor=vendor, prometheus=prometheus, load=load, began_at=time.time())
    finally:
        prometheus.end()
        traffic.stopped(gateway, vendor)


def rule_files(grafana: pathlib.Path) -> list[pathlib.Path]:
    """The rule files of a directory as it is in the tree."""
    return [file for file in sorted((grafana / "prometheus").glob("*.yaml")) if panels.is_rule_file(file)]


def prove(directory: pathlib.Path) -> str:
    """The traffic, then the sums, then every expression; all that does not hold is named."""
    directory = _kept_in() or directory
    with watched(directory, PACE, *PATIENCE, every_s=1) as at:
        asyncio.run(at.load.run())
        write_bill(at.vendor, directory / "bill.json")
        now = at.prometheus.await_sample_after(time.time())
        checks: list[Callable[[], str]] = [
            lambda: check_sums(at, now),
            lambda: check_witnesses(at, now),
            lambda: check_plain_text(at, directory, now),
            lambda: check_expressions(at, now),
            lambda: name_alerts(at, now),
            lambda: check_scrapes(at, now),
        ]
        said, wrong = [], []
        for check in checks:
            try:
                said.append(check())
            except AssertionError as error:
                wrong.append(str(error))
    sys.stdout.writelines(f"     {line}\n" for line in said)
    assert not wrong, "\n".join(wrong)
    kept = f"data in {directory}" if os.environ.get("KEEP") else "KEEP=DIR keeps the data"
    return f"{at.load.statuses.total()} visits, {at.load.ends.total()} tasks seen to their end; {kept}"


def check_sums(at: Watched, now: float) -> str:
    """What Prometheus says about money is the ledger, entry by entry, and the bill; nothing ever went down."""
    known = books.read(at.gateway.data / "wave.db", catalogue=policy_files.load(at.gateway.policies).models)
    wrong = books.bill_differs(at.vendor.bill(), known)
    since = f"[{round(now - at.began_at) + 60}s]"
    for metric, labels in books.SCRAPED.items():
        samples = at.prometheus.instant(metric, at=now).series
        said = {tuple(each.labels[label] for label in labels): each.values[0] for each in samples}
        assert len(said) == len(samples), f"{metric} has other labels than {labels}"
        wrong += books.differences(metric, said, known.sums[metric])
        fell = at.prometheus.instant(f"resets({metric}{since}) > 0", at=now).series
        wrong += [f"{metric}{dict(each.labels)} went down" for each in fell]
    cost = known.sums["wave_gateway_cost_usd_total"]
    total = at.prometheus.number("sum(wave_gateway_cost_usd_total)", at=now)
    wrong += [text] if (text := books.sum_differs(total, cost)) else []
    assert wrong == [], "\n".join(wrong)
    series = sum(len(sums) for sums in known.sums.values())
    return (
        f"Σ cost {total!r} USD = ledger {sum(cost.values())} nanos = bill {at.vendor.bill()['nanos']} nanos; "
        f"{series} series of {len(books.SCRAPED)} counters equal to the bit, none ever went down, "
        f"{known.total('wave_gateway_images_total')} images; "
        f"the gateway was killed and back after {at.load.restarted_after_s[0]:.1f} s"
    )


def check_witnesses(at: Watched, now: float) -> str:
    """What was to happen did."""
    answers = {what: at.prometheus.instant(text, at=now) for what, text in WITNESSES.items()}
    missing = {what: answer.error for what, answer in answers.items() if not answer.has_data()}
    assert missing == {}, f"did not happen: {missing}; clients saw {dict(at.load.statuses)}"
    return f"{len(WITNESSES)} kinds of trouble, denial and saving were seen"


def check_plain_text(at: Watched, directory: pathlib.Path, now: float) -> str:
    """An older Prometheus, which asks for the older text format, sees the same."""
    door = server.PlainText(at.gateway.url)
    older = server.Prometheus(directory / "prometheus-plain", door.target, every_s=1)
    try:
        older.start()
        later = older.await_sample_after(time.time())
        for metric in books.SCRAPED:
            one = _samples(at.prometheus.instant(metric, at=now))
            other = _samples(older.instant(metric, at=later))
            assert one == other != {}, f"{metric} differs between the formats"
        assert older.complaints() == [], older.complaints()
    finally:
        older.end()
        door.close()
    assert {content_type.partition(";")[0] for content_type in door.types} == {"text/plain"}, door.types
    return "the older text format says the same"


def _samples(answer: server.Answer) -> dict[tuple[tuple[str, str], ...], float]:
    """Values by labels, without those that name the target."""
    return {
        tuple(sorted(item for item in each.labels.items() if item[0] not in ("instance", "job"))): each.values[0]
        for each in answer.series
    }


def check_expressions(
    at: Watched, now: float, *, grafana: pathlib.Path = GRAFANA, empty: Mapping[str, str] = EMPTY
) -> str:
    """Every expression has data, or is listed as empty."""
    window = panels.Window(seconds=now - at.began_at, scrape_s=at.prometheus.every_s)

    def ask(label: str, selector: str) -> Sequence[str]:
        return at.prometheus.label_values(label, selector=selector, since=at.began_at, until=now)

    count, asked = 0, [each for file in rule_files(grafana) for each in panels.rules(file, window)]
    for file in sorted(grafana.glob("*.json")):
        more, found = panels.dashboard(file, window, ask)
        count, asked = count + more, asked + found
    answers = [(each, _asked(at, each, now)) for each in asked]
    wrong = [text for each, answer in answers if (text := verdict(each, answer, empty))]
    unknown = (empty.keys() | EITHER.keys()) - {each.name for each in asked}
    wrong += [f"{name} is listed as empty and asked nowhere" for name in sorted(unknown)]
    with_data = sum(answer.has_data() for _, answer in answers)
    slow = sorted(((answer.took_s, each.name) for each, answer in answers), reverse=True)[:3]
    said = [
        f"{count} panels; {len(asked)} expressions: {with_data} with data, {len(empty)} expectedly empty, "
        f"{len(asked) - with_data - len(empty)} of {len(EITHER)} that may be",
        "the slowest: " + ", ".join(f"{took_s * 1000:.0f} ms {name}" for took_s, name in slow),
        *(f"expectedly empty: {name}: {why}" for name, why in sorted(empty.items())),
    ]
    assert wrong == [], "\n".join([*said, *wrong])
    return "\n     ".join(said)


def _asked(at: Watched, each: panels.Expression, now: float) -> server.Answer:
    if each.step_s is None:
        return at.prometheus.instant(each.text, at=now)
    # Whole steps back from now: a panel of few points may have a step that is longer than all of this.
    steps = math.floor((now - at.began_at) / each.step_s)
    return at.prometheus.range(each.text, since=now - steps * each.step_s, until=now, step_s=each.step_s)


def verdict(each: panels.Expression, answer: server.Answer, empty: Mapping[str, str]) -> str:
    """What is wrong with an answer; empty where nothing is."""
    asked = f"{each.name}\n    {each.text}"
    if answer.error:
        return f"error: {asked}\n    {answer.error}"
    if answer.warnings:
        return f"warned: {asked}\n    {answer.warnings}"
    if answer.took_s > SLOW_S:
        return f"slow, {answer.took_s:.1f} s: {asked}"
    if each.name not in EITHER and answer.has_data() == (each.name in empty):
        return f"{'has data, and is listed as empty' if answer.has_data() else 'empty'}: {asked}"
    return ""


def name_alerts(at: Watched, now: float) -> str:
    """Which alerts fired and which waited; their `for` is longer than these minutes for most."""
    window_s = round(now - at.began_at)
    named: dict[str, set[str]] = collections.defaultdict(set)
    for each in at.prometheus.instant(f"max_over_time(ALERTS[{window_s}s])", at=now).series:
        named[each.labels["alertstate"]].add(each.labels["alertname"])
    waited = named["pending"] - named["firing"]
    return (
        f"alerts that fired: {', '.join(sorted(named['firing'])) or 'none'}; "
        f"that began and were shorter than their `for`: {', '.join(sorted(waited)) or 'none'}"
    )


def check_scrapes(at: Watched, now: float) -> str:
    """Prometheus had nothing to complain about; how large and how slow the scrapes were."""
    assert at.prometheus.complaints() == [], "\n".join(at.prometheus.complaints()[:10])
    asked = {
        "longest": "max_over_time(scrape_duration_seconds[1h])",
        "middle": "quantile_over_time(0.5, scrape_duration_seconds[1h])",
        "samples": "max_over_time(scrape_samples_scraped[1h])",
        "scrapes": "sum_over_time(up[1h])",
        "tries": "count_over_time(up[1h])",
    }
    found = {name: at.prometheus.number(text, at=now) for name, text in asked.items()}
    return (
        f"{found['scrapes']:.0f} of {found['tries']:.0f} scrapes of up to {found['samples']:.0f} samples: "
        f"{found['middle'] * 1000:.0f} ms in the middle, {found['longest'] * 1000:.0f} ms at most; "
        "no complaint in its log"
    )


def _kept_in() -> pathlib.Path | None:
    """Where KEEP says that the data shall stay; it must be new, so that two runs are not mixed."""
    named = os.environ.get("KEEP")
    if not named:
        return None
    directory = pathlib.Path(named).resolve()
    assert not directory.exists() or not any(directory.iterdir()), f"KEEP={named} is not empty"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def write_bill(vendor: process.Vendor, file: pathlib.Path) -> Any:
    """Leave the simulator's bill behind, which is in its memory only."""
    bill = vendor.bill()
    file.write_text(json.dumps(bill, indent=1))
    return bill


if __name__ == "__main__":
    run.alone("prometheus", prove)
