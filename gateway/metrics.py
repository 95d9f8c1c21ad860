"""Every instrument, once; and the collector that reads money from the ledger at scrape time.

Labels come from closed sets; a model outside the catalogue is `other`. Money is never counted here: the collector
gets a snapshot of the ledger handed in, so a scrape is exact, survives a restart and agrees across processes.

The exposition is written here: prometheus-client's own writer looks at every name of every sample with a regular
expression, which for 50,000 series is most of a second under the interpreter's lock.
"""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_OPENMETRICS

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
    "wave_gateway_mirror_failures",
    "Downloads that failed, by reason; `expired`: results that are lost.",
    ["reason"],
    registry=REGISTRY,
)
WEBHOOKS: Final = Counter(
    "wave_gateway_webhooks",
    "Attempts at a webhook by what came of them; `failed`: another one is planned.",
    ["outcome"],
    registry=REGISTRY,
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


def note_keys(readable: Mapping[str, bool], before: Mapping[str, bool]) -> None:
    """Show, by team, whether its upstream key can be read; what the upstream said of one that still can be stays.

    Teams that are gone are forgotten: nothing would ever put right what is said of them.
    """
    for team, is_readable in readable.items():
        if not (is_readable and before.get(team)):
            UPSTREAM_KEY_OK.labels(team).set(is_readable)
    _keep(UPSTREAM_KEY_OK, {(team,) for team in readable})


def note_expiries(expiries: Mapping[tuple[str, str], float]) -> None:
    """Show when keys expire, by (team, key), and no other keys; never none at all, as a scrape may come between."""
    for (team, key), at in expiries.items():
        KEY_EXPIRY.labels(team, key).set(at)
    _keep(KEY_EXPIRY, expiries.keys())


def _keep(gauge: Gauge, wanted: Collection[tuple[str, ...]]) -> None:
    for family in gauge.collect():
        for sample in family.samples:
            labels = tuple(sample.labels.values())
            if labels not in wanted:
                gauge.remove(*labels)


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
class AuditReading:
    """What the last audit found, and when it ended, in unix seconds."""

    differences: int
    at: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a scrape reads from the database, in one transaction; and the last audit, None until one has ended."""

    spend: tuple[pricing.Total, ...]
    caps: tuple[CapReading, ...]
    open_tasks: Mapping[tuple[str, str], int]
    in_doubt: int
    overdue: int
    at_risk_urls: int
    blobs: int
    blob_bytes: int
    webhooks_pending: int
    audit: AuditReading | None = None


def render(snapshot: Snapshot, *, is_openmetrics: bool = False, is_gzip: bool = False) -> tuple[bytes, str]:
    """The exposition of every instrument and of the snapshot, and its content type.

    `is_gzip` compresses it, which lets other threads work meanwhile: megabytes become some hundred kilobytes that the
    event loop hands over in no time.
    """
    text = _exposition(snapshot, is_openmetrics=is_openmetrics)
    content_type = CONTENT_TYPE_OPENMETRICS if is_openmetrics else CONTENT_TYPE_PLAIN_0_0_4
    return gzip.compress(text, compresslevel=1, mtime=0) if is_gzip else text, content_type


def _exposition(snapshot: Snapshot, *, is_openmetrics: bool) -> bytes:
    lines: list[str] = []
    for family in REGISTRY.collect():
        lines += _head(family.name, family.type, family.documentation, is_openmetrics=is_openmetrics)
        lines += [f"{each.name}{_labelled(each.labels.items())} {each.value!r}" for each in family.samples]
    for read in (*_spend(snapshot.spend), *_caps(snapshot.caps), *_state(snapshot)):
        lines += _head(read.name, read.kind, read.text, is_openmetrics=is_openmetrics)
        name = f"{read.name}_total" if read.kind == _COUNTER else read.name
        lines += [f"{name}{_labelled(zip(read.labels, at, strict=True))} {value!r}" for at, value in read.values]
    lines += ["# EOF", ""] if is_openmetrics else [""]
    return "\n".join(lines).encode()


def _head(name: str, kind: str, text: str, *, is_openmetrics: bool) -> tuple[str, str]:
    """The lines that announce a family; only OpenMetrics knows a counter by its name without `_total`."""
    named = f"{name}_total" if kind == _COUNTER and not is_openmetrics else name
    return f"# HELP {named} {text}", f"# TYPE {named} {kind}"


def _labelled(labels: Iterable[tuple[str, str]]) -> str:
    text = ",".join([f'{name}="{_escaped(value)}"' for name, value in sorted(labels)])
    return f"{{{text}}}" if text else ""


def _escaped(value: str) -> str:
    """A label's value as both formats write it."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


_COUNTER: Final = "counter"
_GAUGE: Final = "gauge"


class _Read:
    """One family that is read from a snapshot, and its values by those of its labels."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = (), *, kind: str = _GAUGE) -> None:
        self.name = f"wave_gateway_{name}"
        self.text = text
        self.labels = labels
        self.kind = kind
        self.values: list[tuple[Sequence[str], float]] = []

    def add(self, labels: Sequence[str], value: float) -> None:
        self.values.append((labels, float(value)))


def _usd(nanos: int) -> float:
    """For Prometheus, whose samples are doubles; never used to count with. Exact to the nano up to 8,388,608 USD."""
    return nanos / money.NANOS_PER_USD


def _spend(sums: Iterable[pricing.Total]) -> list[_Read]:
    by_tier, by_team = ("team", "model", "tier"), ("team", "model")
    cost = _Read("cost_usd", "Settled cost, from the ledger.", by_tier, kind=_COUNTER)
    images = _Read("images", "Images paid for.", by_tier, kind=_COUNTER)
    avoided = _Read("cost_avoided_usd", "What hits and followers would have cost.", (*by_team, "reason"), kind=_COUNTER)
    premium = _Read(
        "fallback_premium_usd", "Paid above the standard price through official_fallback.", by_team, kind=_COUNTER
    )
    drift = _Read(
        "cost_drift_usd",
        "How far bills were from the price list, where that is more than one quota per image.",
        by_team,
        kind=_COUNTER,
    )
    by_model: dict[tuple[str, str], list[int]] = {}
    for each in sums:
        cost.add((each.team, each.model, each.tier), _usd(each.cost_nanos))
        images.add((each.team, each.model, each.tier), each.images)
        added = (each.avoided_cache_nanos, each.avoided_coalesced_nanos, each.premium_nanos, each.drift_nanos)
        before = by_model.get((each.team, each.model), [0, 0, 0, 0])
        by_model[each.team, each.model] = [old + new for old, new in zip(before, added, strict=True)]
    for (team, model), (cached, coalesced, extra, off) in by_model.items():
        avoided.add((team, model, "cache"), _usd(cached))
        avoided.add((team, model, "coalesced"), _usd(coalesced))
        premium.add((team, model), _usd(extra))
        drift.add((team, model), _usd(off))
    return [cost, images, avoided, premium, drift]


def _caps(readings: Iterable[CapReading]) -> list[_Read]:
    labels = ("scope", "name", "window", "cap")
    limit = _Read("budget_limit_usd", "The cap, raises included.", labels)
    warn = _Read("budget_warn_usd", "Where the cap wants a warning.", labels)
    settled = _Read("budget_settled_usd", "Settled in this window.", labels)
    reserved = _Read("budget_reserved_usd", "Reserved in this window.", labels)
    reset = _Read("budget_reset_timestamp_seconds", "When the window ends; `total` never does.", labels)
    for each in readings:
        at = (each.scope, each.name, each.window, each.cap)
        limit.add(at, _usd(each.limit_nanos))
        settled.add(at, _usd(each.settled_nanos))
        reserved.add(at, _usd(each.reserved_nanos))
        if each.warn_nanos is not None:
            warn.add(at, _usd(each.warn_nanos))
        if each.resets_at is not None:
            reset.add(at, each.resets_at)
    return [limit, warn, settled, reserved, reset]


def _state(snapshot: Snapshot) -> list[_Read]:
    opened = _Read("tasks_open", "Tasks that have not ended.", ("team", "state"))
    for team_and_state, count in snapshot.open_tasks.items():
        opened.add(team_and_state, count)
    audit = snapshot.audit
    return [
        opened,
        _single("tasks_in_doubt", "Tasks whose submit may or may not have arrived.", snapshot.in_doubt),
        _single("tasks_overdue", "Open tasks that are older than they should be.", snapshot.overdue),
        _single(
            "mirror_at_risk_urls",
            "Results of completed tasks that are not mirrored yet; their URLs will expire.",
            snapshot.at_risk_urls,
        ),
        _single("media_bytes", "Bytes of kept results.", snapshot.blob_bytes),
        _single("media_blobs", "Kept results.", snapshot.blobs),
        _single("webhooks_pending", "Webhooks that are still to be delivered.", snapshot.webhooks_pending),
        _single(
            "audit_differences",
            "Differences that the last audit of the books found; none until one has ended.",
            None if audit is None else audit.differences,
        ),
        _single(
            "audit_timestamp_seconds",
            "When the last audit of the books ended; none until one has.",
            None if audit is None else audit.at,
        ),
    ]


def _single(name: str, text: str, value: float | None) -> _Read:
    family = _Read(name, text)
    if value is not None:
        family.add((), value)
    return family
