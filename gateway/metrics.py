"""Every instrument, once; and the collector that reads money from the ledger at scrape time.

Labels come from closed sets; a model outside the catalogue is `other`. Money is never counted here: the collector
gets a snapshot of the ledger handed in, so a scrape is exact, survives a restart and agrees across processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from gateway.rules import money, pricing

OTHER: Final = "other"

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
"""One `_created` series for each counter would double the exposition and say nothing that anybody asks."""

REGISTRY: Final = CollectorRegistry(auto_describe=True)

TASKS: Final = Counter(
    "wave_gateway_tasks",
    "Tasks that reached their end, by outcome.",
    ["team", "model", "action", "outcome"],
    registry=REGISTRY,
)
TASK_DURATION: Final = Histogram(
    "wave_gateway_task_duration_seconds",
    "From a submit to its completed task, for tasks that went upstream.",
    ["model", "tier"],
    buckets=(0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600),
    registry=REGISTRY,
)
POLICY_DECISIONS: Final = Counter(
    "wave_gateway_policy_decisions",
    "Decisions about submits; `code` is that of the denial, empty for allow.",
    ["team", "decision", "code"],
    registry=REGISTRY,
)
CACHE_REQUESTS: Final = Counter(
    "wave_gateway_cache_requests",
    "Admitted submits by what the result cache said.",
    ["team", "status"],
    registry=REGISTRY,
)
HTTP_REQUESTS: Final = Counter(
    "wave_gateway_http_requests",
    "Requests answered.",
    ["route", "method", "status"],
    registry=REGISTRY,
)
HTTP_DURATION: Final = Histogram(
    "wave_gateway_http_request_duration_seconds",
    "From the request's first byte to the answer's last.",
    ["route", "method", "status"],
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60),
    registry=REGISTRY,
)
UPSTREAM_REQUESTS: Final = Counter(
    "wave_gateway_upstream_requests",
    "Requests to the upstream by what came of them.",
    ["operation", "outcome"],
    registry=REGISTRY,
)
UPSTREAM_DURATION: Final = Histogram(
    "wave_gateway_upstream_request_duration_seconds",
    "How long the upstream took to answer.",
    ["operation", "outcome"],
    buckets=(0.01, 0.05, 0.2, 0.5, 1, 2, 5, 10, 30),
    registry=REGISTRY,
)
UPSTREAM_KEY_OK: Final = Gauge(
    "wave_gateway_upstream_key_ok",
    "0 while the upstream refuses a team's key or wallet, or the key cannot be read.",
    ["team"],
    registry=REGISTRY,
)
UPSTREAM_CIRCUIT_OPEN: Final = Gauge(
    "wave_gateway_upstream_circuit_open",
    "1 while the upstream is down and submits are held back.",
    registry=REGISTRY,
)
POLLS_AVOIDED: Final = Counter(
    "wave_gateway_upstream_polls_avoided",
    "Polls by clients that were answered without one upstream.",
    registry=REGISTRY,
)
MIRROR_BYTES: Final = Counter("wave_gateway_mirror_bytes", "Bytes of results mirrored.", registry=REGISTRY)
MIRROR_FAILURES: Final = Counter(
    "wave_gateway_mirror_failures", "Downloads of results that failed, by reason.", ["reason"], registry=REGISTRY
)
DISK_FREE: Final = Gauge("wave_gateway_disk_free_bytes", "Free bytes where the data lies.", registry=REGISTRY)
POLICY_RELOAD_OK: Final = Gauge(
    "wave_gateway_policy_reload_ok",
    "1 if the policy files on disk are in force, 0 if they are broken.",
    registry=REGISTRY,
)
POLICY_LOADED: Final = Gauge(
    "wave_gateway_policy_loaded_timestamp_seconds", "When the policies in force were loaded.", registry=REGISTRY
)
KEY_EXPIRY: Final = Gauge(
    "wave_gateway_key_expiry_timestamp_seconds",
    "When a virtual key expires; keys that never do are left out.",
    ["team", "key"],
    registry=REGISTRY,
)
BUILD_INFO: Final = Gauge("wave_gateway_build_info", "The version that runs.", ["version"], registry=REGISTRY)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CapReading:
    """One cap and its balance in the present window."""

    scope: str
    name: str
    window: str
    cap: str
    limit_nanos: int
    warn_nanos: int | None
    settled_nanos: int
    reserved_nanos: int
    resets_at: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a scrape reads from the database, in one transaction."""

    spend: tuple[pricing.Total, ...]
    caps: tuple[CapReading, ...]
    open_tasks: Mapping[tuple[str, str], int]
    in_doubt: int
    overdue: int
    at_risk_urls: int
    blobs: int
    blob_bytes: int


def render(snapshot: Snapshot, *, is_openmetrics: bool = False) -> tuple[bytes, str]:
    """The exposition of every instrument and of the snapshot, and its content type."""
    joined = _Joined(snapshot)
    if is_openmetrics:
        text = openmetrics.generate_latest(joined)  # type: ignore[no-untyped-call]
        return text, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(joined), CONTENT_TYPE_LATEST


class _Joined:
    """The process's instruments and one snapshot, in the form that the exposition wants of a registry."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        yield from REGISTRY.collect()
        yield from _spend(self._snapshot.spend)
        yield from _caps(self._snapshot.caps)
        yield from _state(self._snapshot)


def _usd(nanos: int) -> float:
    """For Prometheus, whose samples are doubles; never used to count with."""
    return nanos / money.NANOS_PER_USD


def _spend(sums: Iterable[pricing.Total]) -> list[Metric]:
    cost = CounterMetricFamily(
        "wave_gateway_cost_usd", "Settled cost, from the ledger.", labels=["team", "model", "tier"]
    )
    images = CounterMetricFamily("wave_gateway_images", "Images paid for.", labels=["team", "model", "tier"])
    avoided = CounterMetricFamily(
        "wave_gateway_cost_avoided_usd",
        "What hits and followers would have cost.",
        labels=["team", "model", "reason"],
    )
    premium = CounterMetricFamily(
        "wave_gateway_fallback_premium_usd",
        "Paid above the standard price through official_fallback.",
        labels=["team", "model"],
    )
    drift = CounterMetricFamily(
        "wave_gateway_cost_drift_usd",
        "How far bills were from the price list, where that is more than one quota per image.",
        labels=["team", "model"],
    )
    by_model: dict[tuple[str, str], list[int]] = {}
    for each in sums:
        cost.add_metric([each.team, each.model, each.tier], _usd(each.cost_nanos))
        images.add_metric([each.team, each.model, each.tier], each.images)
        added = (each.avoided_cache_nanos, each.avoided_coalesced_nanos, each.premium_nanos, each.drift_nanos)
        before = by_model.get((each.team, each.model), [0, 0, 0, 0])
        by_model[each.team, each.model] = [old + new for old, new in zip(before, added, strict=True)]
    for (team, model), (cached, coalesced, extra, off) in by_model.items():
        avoided.add_metric([team, model, "cache"], _usd(cached))
        avoided.add_metric([team, model, "coalesced"], _usd(coalesced))
        premium.add_metric([team, model], _usd(extra))
        drift.add_metric([team, model], _usd(off))
    return [cost, images, avoided, premium, drift]


def _caps(readings: Iterable[CapReading]) -> list[Metric]:
    labels = ["scope", "name", "window", "cap"]
    limit = GaugeMetricFamily("wave_gateway_budget_limit_usd", "The cap, raises included.", labels=labels)
    warn = GaugeMetricFamily("wave_gateway_budget_warn_usd", "Where the cap wants a warning.", labels=labels)
    settled = GaugeMetricFamily("wave_gateway_budget_settled_usd", "Settled in this window.", labels=labels)
    reserved = GaugeMetricFamily("wave_gateway_budget_reserved_usd", "Reserved in this window.", labels=labels)
    reset = GaugeMetricFamily(
        "wave_gateway_budget_reset_timestamp_seconds", "When the window ends; `total` never does.", labels=labels
    )
    for each in readings:
        at = [each.scope, each.name, each.window, each.cap]
        limit.add_metric(at, _usd(each.limit_nanos))
        settled.add_metric(at, _usd(each.settled_nanos))
        reserved.add_metric(at, _usd(each.reserved_nanos))
        if each.warn_nanos is not None:
            warn.add_metric(at, _usd(each.warn_nanos))
        if each.resets_at is not None:
            reset.add_metric(at, each.resets_at)
    return [limit, warn, settled, reserved, reset]


def _state(snapshot: Snapshot) -> list[Metric]:
    opened = GaugeMetricFamily("wave_gateway_tasks_open", "Tasks that have not ended.", labels=["team", "state"])
    for (team, state), count in snapshot.open_tasks.items():
        opened.add_metric([team, state], count)
    single = {
        "wave_gateway_tasks_in_doubt": ("Tasks whose submit may or may not have arrived.", snapshot.in_doubt),
        "wave_gateway_tasks_overdue": ("Open tasks that are older than they should be.", snapshot.overdue),
        "wave_gateway_mirror_at_risk_urls": (
            "Results that are not mirrored although their task has ended; their URLs will expire.",
            snapshot.at_risk_urls,
        ),
        "wave_gateway_media_bytes": ("Bytes of kept results.", snapshot.blob_bytes),
        "wave_gateway_media_blobs": ("Kept results.", snapshot.blobs),
    }
    return [opened, *(GaugeMetricFamily(name, text, value=value) for name, (text, value) in single.items())]
