"""PromQL, put together: what a counter of the ledger has gained, what a gauge says, rates and quantiles.

Money is exact: a last value minus a first one, never `increase()`, which extrapolates to the edges of a range. A ledger
is read by every process of a gateway, so equal series are one (`max`), not a sum. A restart leaves a hole in a series;
it is bridged by the last value before it.

No recorded name is used: a dashboard works on any Prometheus that scrapes the gateway.
"""

from __future__ import annotations

from typing import Final

JOB: Final = 'job="$job"'
TEAM: Final = 'team=~"$team"'
MODEL: Final = 'model=~"$model"'
LEDGER: Final = {
    "cost_usd_total": "team, model, tier",
    "images_total": "team, model, tier",
    "cost_avoided_usd_total": "team, model, reason",
    "fallback_premium_usd_total": "team, model",
    "cost_drift_usd_total": "team, model",
}
"""The counters that are read from the ledger at scrape time → their labels."""

BRIDGED: Final = "1h"
"""How long a counter of the ledger is taken for unchanged without a scrape: a gateway that is down spends nothing."""
RECENT: Final = "5m"
"""How long a gauge is believed without a scrape."""
DAY_S: Final = 86_400
PACE_S: Final = 7 * DAY_S
"""A forecast goes on at the pace of so many seconds."""

MONTH_LEFT_S: Final = (
    f"(scalar(days_in_month()) * {DAY_S} - (scalar(day_of_month()) - 1) * {DAY_S} - (time() % {DAY_S}))"
)


def selector(name: str, *matchers: str) -> str:
    """`wave_gateway_<name>` of the chosen gateway."""
    return f"wave_gateway_{name}{{{', '.join((JOB, *matchers))}}}"


def gauge(name: str, *matchers: str, by: str = "", least: bool = False) -> str:
    """The present value; the largest of several processes, or the least."""
    return f"{'min' if least else 'max'}{_by(by)} (last_over_time({selector(name, *matchers)}[{RECENT}]))"


def gained(counter: str, *matchers: str, by: str = "", over: str = "$__range", ahead: bool = False) -> str:
    """What a counter of the ledger gained in the time `over` that ends now, to the nano; `ahead`: that begins now."""
    window, end = (over, f" offset -{over}") if ahead else (BRIDGED, "")
    start = "" if ahead else f" offset {over}"
    return _difference(counter, *matchers, by=by, last=f"[{window}]{end}", start=start, within=f"[{over}]{end}")


def gained_since_start(counter: str, *, by: str) -> str:
    """For a graph: what it gained since the beginning of the range, at each step."""
    return _difference(counter, by=by, last=f"[{BRIDGED}]", start=" @ start()", within="[$__range] @ end()")


def _difference(counter: str, *matchers: str, by: str, last: str, start: str, within: str) -> str:
    """Last value minus first.

    A series that was not there at the beginning counts from 0 if the gateway was watched then, or from when it was.
    One that is in every scrape since the watching began (they are counted) is older than that: it counts from its
    first value, for what was spent before is not of this time.
    """
    labels = LEDGER[counter]
    series = selector(counter, TEAM, MODEL, *matchers)
    watch = selector("build_info")
    after = f"max by ({labels}) (last_over_time({series}{last}))"
    return (
        f"sum{_by(by)} (\n"
        f"  {after}\n"
        f"  - (\n"
        f"    max by ({labels}) (last_over_time({series}[{BRIDGED}]{start}))\n"
        f"    or (\n"
        f"      min by ({labels}) (min_over_time({series}{within}))\n"
        f"      and sum by ({labels}) (count_over_time({series}{within}))\n"
        f"        >= on () group_left () sum(count_over_time({watch}{within}))\n"
        f"      unless on () group(last_over_time({watch}[{BRIDGED}]{start}))\n"
        f"    )\n"
        f"    or 0 * {after}\n"
        f"  )\n"
        f")"
    )


def gained_before(counter: str, *, by: str) -> str:
    """What it gained in the range before this one, of the same length; to the minute."""
    return f"last_over_time((\n{gained(counter, by=by)}\n)[1m:1m] offset $__range)"


def first_scrape(over: str, step: str) -> str:
    """When the gateway was first scraped in the time `over`, as finely as `step`."""
    seen = f"min(timestamp({selector('build_info')}))"
    return f"min_over_time({seen}[{over}:{step}]) or {seen}"


def ratio(part: str, whole: str) -> str:
    """One part of a whole; nothing where the whole is 0."""
    return f"({part})\n/\n(({whole}) > 0)"


def month_forecast(*, by: str = "") -> str:
    """Cost at the end of the calendar month (UTC) at the pace of the last seven days; for a range of this month so far.

    Where the gateway has been watched for less, the pace is that of the time since, of an hour at least.
    """
    watched_s = f"scalar(clamp(time() - ({first_scrape('7d', '10m')}), {DAY_S // 24}, {PACE_S}))"
    spent = gained("cost_usd_total", by=by)
    pace = gained("cost_usd_total", by=by, over="7d")
    return f"{spent}\n+\n{pace}\n/ {watched_s}\n* {MONTH_LEFT_S}"


def rate(counter: str, *matchers: str, by: str = "") -> str:
    """How often a second, of a counter of the process's own."""
    return f"sum{_by(by)} (rate({selector(counter, *matchers)}[$__rate_interval]))"


def rate_of_moved(counter: str, *, by: str) -> str:
    """The same, without what never happened in the whole range: such a counter is exported as 0 from the start."""
    moved = f"sum by ({by}) (increase({selector(counter)}[$__range] @ end())) > 0"
    return f"{rate(counter, by=by)}\nand on ({by}) {moved}"


def grown(counter: str, *matchers: str, by: str = "") -> str:
    """How many in the whole range, of a counter of the process's own; an estimate where the process was restarted."""
    return f"sum{_by(by)} (increase({selector(counter, *matchers)}[$__range]))"


def quantile(share: float, histogram: str, *matchers: str, by: str = "") -> str:
    """A quantile of a histogram, estimated within its buckets."""
    clause = f"le, {by}" if by else "le"
    buckets = selector(f"{histogram}_bucket", *matchers)
    return f"histogram_quantile({share}, sum by ({clause}) (rate({buckets}[$__rate_interval])))"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""
