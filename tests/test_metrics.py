"""What `/metrics` of a fresh gateway announces, over HTTP, in each form that a scraper may ask for."""

from __future__ import annotations

import gzip
import http.client
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import parser
from prometheus_client.core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser

from gateway import metrics
from tests import process

PROMETHEUS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"

ANNOUNCED = {
    "cost_usd": "counter",
    "images": "counter",
    "cost_avoided_usd": "counter",
    "fallback_premium_usd": "counter",
    "cost_drift_usd": "counter",
    "budget_limit_usd": "gauge",
    "budget_warn_usd": "gauge",
    "budget_settled_usd": "gauge",
    "budget_reserved_usd": "gauge",
    "budget_reset_timestamp_seconds": "gauge",
    "tasks": "counter",
    "tasks_open": "gauge",
    "tasks_in_doubt": "gauge",
    "tasks_overdue": "gauge",
    "task_duration_seconds": "histogram",
    "policy_decisions": "counter",
    "cache_requests": "counter",
    "http_requests": "counter",
    "http_request_duration_seconds": "histogram",
    "upstream_requests": "counter",
    "upstream_request_duration_seconds": "histogram",
    "upstream_circuit_open": "gauge",
    "upstream_key_ok": "gauge",
    "audit_differences": "gauge",
    "audit_timestamp_seconds": "gauge",
    "upstream_polls_avoided": "counter",
    "mirror_bytes": "counter",
    "mirror_failures": "counter",
    "mirror_at_risk_urls": "gauge",
    "media_bytes": "gauge",
    "media_blobs": "gauge",
    "webhooks": "counter",
    "webhooks_pending": "gauge",
    "disk_free_bytes": "gauge",
    "policy_reload_ok": "gauge",
    "policy_loaded_timestamp_seconds": "gauge",
    "key_expiry_timestamp_seconds": "gauge",
    "build_info": "gauge",
}
SPENT = {"team", "model"}
CAPPED = {"scope", "name", "window", "cap"}
LABELS = {
    "cost_usd_total": {*SPENT, "tier"},
    "images_total": {*SPENT, "tier"},
    "cost_avoided_usd_total": {*SPENT, "reason"},
    "fallback_premium_usd_total": SPENT,
    "cost_drift_usd_total": SPENT,
    "budget_limit_usd": CAPPED,
    "budget_warn_usd": CAPPED,
    "budget_settled_usd": CAPPED,
    "budget_reserved_usd": CAPPED,
    "budget_reset_timestamp_seconds": CAPPED,
    "tasks_total": {*SPENT, "action", "outcome"},
    "tasks_open": {"team", "state"},
    "tasks_in_doubt": set(),
    "tasks_overdue": set(),
    "task_duration_seconds_bucket": {"model", "tier", "le"},
    "task_duration_seconds_sum": {"model", "tier"},
    "task_duration_seconds_count": {"model", "tier"},
    "policy_decisions_total": {"team", "decision", "code"},
    "cache_requests_total": {"team", "status"},
    "http_requests_total": {"route", "method", "status"},
    "http_request_duration_seconds_bucket": {"route", "method", "status", "le"},
    "http_request_duration_seconds_sum": {"route", "method", "status"},
    "http_request_duration_seconds_count": {"route", "method", "status"},
    "upstream_requests_total": {"operation", "outcome"},
    "upstream_request_duration_seconds_bucket": {"operation", "outcome", "le"},
    "upstream_request_duration_seconds_sum": {"operation", "outcome"},
    "upstream_request_duration_seconds_count": {"operation", "outcome"},
    "upstream_circuit_open": set(),
    "upstream_key_ok": {"team"},
    "audit_differences": set(),
    "audit_timestamp_seconds": set(),
    "upstream_polls_avoided_total": set(),
    "mirror_bytes_total": set(),
    "mirror_failures_total": {"reason"},
    "mirror_at_risk_urls": set(),
    "media_bytes": set(),
    "media_blobs": set(),
    "webhooks_total": {"outcome"},
    "webhooks_pending": set(),
    "disk_free_bytes": set(),
    "policy_reload_ok": set(),
    "policy_loaded_timestamp_seconds": set(),
    "key_expiry_timestamp_seconds": {"team", "key"},
    "build_info": {"version"},
}
CAPS = 'spend: [{name: daily, cap: "5", per: day, warn_at: 0.8}]\n'


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[process.Gateway]:
    with process.pair(tmp_path_factory.mktemp("metrics"), growth=CAPS) as (started, _):
        yield started


def _scrape(gateway: process.Gateway, **headers: Any) -> tuple[str, bytes]:
    """Content type and text."""
    status, answered, text = process.fetch(gateway.url + "/metrics", **headers)
    assert status == 200
    return answered["Content-Type"], text


def _plain(gateway: process.Gateway) -> list[Metric]:
    return list(parser.text_string_to_metric_families(_scrape(gateway)[1].decode()))


def _strict(text: bytes) -> list[Metric]:
    return list(openmetrics_parser.text_string_to_metric_families(text.decode()))


def _announced(families: list[Metric]) -> dict[str, str]:
    return {each.name.removeprefix("wave_gateway_"): each.type for each in families}


def _labels(families: list[Metric]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            labels = found.setdefault(sample.name.removeprefix("wave_gateway_"), set(sample.labels))
            assert labels == set(sample.labels), sample
    return found


def _value(families: list[Metric], name: str, /, **labels: str) -> float | None:
    found = [
        each.value
        for family in families
        for each in family.samples
        if each.name == f"wave_gateway_{name}" and each.labels == labels
    ]
    return found[0] if found else None


def test_a_fresh_gateway_announces_every_metric_in_plain_text(gateway: process.Gateway) -> None:
    content_type, text = _scrape(gateway)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert _announced(_plain(gateway)) == ANNOUNCED
    assert text.endswith(b"\n") and b"# EOF" not in text
    lines = text.decode().splitlines()
    assert len([line for line in lines if line.startswith("# HELP wave_gateway_")]) == len(ANNOUNCED)
    assert "# TYPE wave_gateway_cost_usd_total counter" in lines


def test_a_fresh_gateway_announces_every_metric_in_openmetrics(gateway: process.Gateway) -> None:
    content_type, text = _scrape(gateway, Accept=PROMETHEUS)
    assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert _announced(_strict(text)) == ANNOUNCED
    assert text.endswith(b"\n# EOF\n") and b"# TYPE wave_gateway_cost_usd counter\n" in text


def test_plain_text_is_given_to_who_prefers_it(gateway: process.Gateway) -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.2,text/plain;version=0.0.4;q=0.5"
    assert _scrape(gateway, Accept=accept)[0].startswith("text/plain")


def test_every_label_is_one_that_is_announced_and_no_other(gateway: process.Gateway) -> None:
    task = gateway.submit(seed=7)[2]
    assert gateway.complete(task["task_id"])["status"] == "completed"
    gateway.submit(seed=7)
    gateway.submit(model="made-up")
    plain, strict = _plain(gateway), _strict(_scrape(gateway, Accept=PROMETHEUS)[1])
    assert _labels(plain) == _labels(strict)
    found = _labels(plain)
    assert found == {name: LABELS[name] for name in found}
    # No key expires; and an audit or a task may or may not be under way.
    absent = {"key_expiry_timestamp_seconds", "tasks_open", "audit_timestamp_seconds", "audit_differences"}
    assert set(LABELS) - set(found) <= absent


def test_what_alerts_wait_for_is_counted_from_zero(gateway: process.Gateway) -> None:
    families = _plain(gateway)
    reasons = ("address", "status", "redirect", "encoding", "too_large", "truncated", "not_media", "timeout", "network")
    for reason in (*reasons, "disk", "expired"):
        assert _value(families, "mirror_failures_total", reason=reason) == 0
    for outcome in ("delivered", "failed", "given_up"):
        assert _value(families, "webhooks_total", outcome=outcome) == 0
    outcomes = {
        "submit": ("refused", "not_sent", "in_doubt", "garbled"),
        "poll": (
            *("lost", "other", "3xx", "4xx", "5xx", "401", "402", "403", "404", "429"),
            *("connect", "timeout", "too_large", "garbled", "not_a_task"),
        ),
        "cancel": ("accepted", "refused", "not_sent", "lost", "garbled"),
    }
    for operation, named in outcomes.items():
        for outcome in named:
            assert _value(families, "upstream_requests_total", operation=operation, outcome=outcome) == 0
    assert _value(families, "upstream_circuit_open") == 0
    assert _value(families, "policy_reload_ok") == 1


def test_the_first_audit_comes_right_after_the_start(gateway: process.Gateway) -> None:
    until = time.monotonic() + 30
    while _value(families := _plain(gateway), "audit_timestamp_seconds") is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert _value(families, "audit_differences") == 0
    started = _value(families, "policy_loaded_timestamp_seconds")
    ended = _value(families, "audit_timestamp_seconds")
    assert started is not None and ended is not None and 0 <= ended - started < 60


def test_an_exposition_is_compressed_for_who_takes_gzip(gateway: process.Gateway) -> None:
    status, headers, packed = process.fetch(gateway.url + "/metrics", Accept=PROMETHEUS, Accept_Encoding="gzip")
    assert (status, headers["Content-Encoding"], headers["Vary"]) == (200, "gzip", "Accept, Accept-Encoding")
    assert int(headers["Content-Length"]) == len(packed)
    assert _announced(_strict(gzip.decompress(packed))) == ANNOUNCED


def test_methods_and_paths_of_strangers_are_other(gateway: process.Gateway) -> None:
    connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=30)
    for number, method in enumerate(("PROPFIND", "REPORT", "TRACE", "MADEUP", "M-SEARCH")):
        connection.request(method, f"/made-up/{number}")
        connection.getresponse().read()
    connection.close()
    counted = {
        (each.labels["route"], each.labels["method"])
        for family in _plain(gateway)
        for each in family.samples
        if each.name == "wave_gateway_http_requests_total" and each.labels["status"] in ("400", "404", "405")
    }
    assert ("other", "other") in counted
    assert {route for route, _ in counted} <= {"other", "/v1/tasks", "/v1/tasks/{task_id}"}
    assert {method for _, method in counted} <= {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"}


# The writer of the exposition, against the library's readers


@pytest.mark.parametrize("name", ['a "b"', "a\\b", "a\nb", "模型", "a{b}", "a,b=c", ""])
def test_any_name_survives_both_forms(name: str) -> None:
    reading = metrics.CapReading(
        scope="team",
        name=name,
        window="day",
        cap="daily",
        limit_nanos=1_500_000_000,
        warn_nanos=None,
        settled_nanos=0,
        reserved_nanos=0,
        resets_at=1_781_568_000,
    )
    snapshot = metrics.Snapshot(
        spend=(),
        caps=(reading,),
        open_tasks={},
        in_doubt=0,
        overdue=0,
        at_risk_urls=0,
        blobs=0,
        blob_bytes=0,
        webhooks_pending=0,
    )
    labels = {"scope": "team", "name": name, "window": "day", "cap": "daily"}
    plain = list(parser.text_string_to_metric_families(metrics.render(snapshot)[0].decode()))
    for families in (plain, _strict(metrics.render(snapshot, is_openmetrics=True)[0])):
        assert _value(families, "budget_limit_usd", **labels) == 1.5
        assert _value(families, "budget_reset_timestamp_seconds", **labels) == 1_781_568_000


def test_a_key_that_expires_is_shown_until_it_is_gone_and_the_others_meanwhile() -> None:
    metrics.note_expiries({("growth", "old"): 1.0, ("growth", "new"): 2.0})
    metrics.note_expiries({("growth", "new"): 3.0})
    name = "wave_gateway_key_expiry_timestamp_seconds"
    shown = [metrics.REGISTRY.get_sample_value(name, {"team": "growth", "key": key}) for key in ("new", "old")]
    assert shown == [3, None]


def test_the_alarm_about_the_key_of_a_team_that_is_gone_ends() -> None:
    for team in ("stays", "goes"):
        metrics.UPSTREAM_KEY_OK.labels(team).set(0)
    metrics.note_keys({"stays": True}, {"stays": True, "goes": True})
    assert [_key_ok(team) for team in ("stays", "goes")] == [0, None]


def test_an_upstream_key_that_cannot_be_read_is_an_alarm_without_a_submit_until_it_can_be() -> None:
    metrics.note_keys({"unset": False, "set": True}, {})
    assert [_key_ok(team) for team in ("unset", "set")] == [0, 1]
    metrics.note_keys({"unset": True, "set": False}, {"unset": False, "set": True})
    assert [_key_ok(team) for team in ("unset", "set")] == [1, 0]


def _key_ok(team: str) -> float | None:
    return metrics.REGISTRY.get_sample_value("wave_gateway_upstream_key_ok", {"team": team})
