"""The upstream goes away and comes back, with real processes: no client sees it, nothing is bought twice."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable

from tests import process

UNAVAILABLE = "unavailable"
CIRCUIT_OPEN = b"wave_gateway_upstream_circuit_open 1.0"
CIRCUIT_CLOSED = b"wave_gateway_upstream_circuit_open 0.0"


def test_a_vendor_that_is_stopped_and_started_again_under_a_trickle_of_submits_loses_and_doubles_nothing(tmp_path):
    with process.pair(tmp_path) as (gateway, vendor):
        vendor.end()
        said, slowest_s = _trickle(gateway, range(24), pause_s=0.25)
        assert CIRCUIT_OPEN in _metrics(gateway)
        assert {status for status, _, _ in said} == {200}
        assert {document["status"] for _, _, document in said} == {"queued"}
        assert {headers["X-Wave-Upstream"] for _, headers, _ in said} == {UNAVAILABLE}
        assert slowest_s < 2
        vendor.start(path="/sim/bill")
        assert _until(lambda: CIRCUIT_CLOSED in _metrics(gateway))
        later, _ = _trickle(gateway, range(24, 28), pause_s=0.1)
        ended = [gateway.complete(document["task_id"]) for _, _, document in [*said, *later]]
        assert {document["status"] for document in ended} == {"completed"}
        _check_each_is_billed_once(gateway, vendor, prompts=28)


def test_a_vendor_that_breaks_down_under_a_trickle_of_submits_loses_and_doubles_nothing(tmp_path):
    with process.pair(tmp_path) as (gateway, vendor):
        before, _ = _trickle(gateway, range(4), pause_s=0.1)
        # Some of what fails is bought all the same, and nobody hears of it.
        vendor.script(
            [
                {"on": "submit", "times": 3, "do": {"accept_and_drop": True}},
                {"on": "any", "times": None, "do": {"status": 503}},
            ]
        )
        during, slowest_s = _trickle(gateway, range(4, 24), pause_s=0.15)
        assert CIRCUIT_OPEN in _metrics(gateway)
        assert slowest_s < 2
        vendor.script([])
        said = [*before, *during]
        assert {status for status, _, _ in said} == {200}
        ended = [gateway.complete(document["task_id"]) for _, _, document in said]
        assert {document["status"] for document in ended} == {"completed"}
        assert CIRCUIT_CLOSED in _metrics(gateway)
        _check_each_is_billed_once(gateway, vendor, prompts=24)


def test_a_gateway_that_is_killed_during_the_outage_forgets_nothing(tmp_path):
    with process.pair(tmp_path) as (gateway, vendor):
        vendor.end()
        said, _ = _trickle(gateway, range(12), pause_s=0.05)
        assert gateway.end(signal.SIGKILL) == -signal.SIGKILL
        gateway.start()
        later, _ = _trickle(gateway, range(12, 16), pause_s=0.05)
        vendor.start(path="/sim/bill")
        ended = [gateway.complete(document["task_id"]) for _, _, document in [*said, *later]]
        assert {document["status"] for document in ended} == {"completed"}
        _check_each_is_billed_once(gateway, vendor, prompts=16)


def test_a_team_that_will_not_wait_is_told_at_once_and_goes_on_when_the_vendor_is_back(tmp_path):
    with process.pair(tmp_path, growth="upstream_down: refuse\n") as (gateway, vendor):
        vendor.end()
        said, slowest_s = _trickle(gateway, range(10), pause_s=0.05)
        assert {(status, document["error"]["code"]) for status, _, document in said} == {(503, "upstream_unavailable")}
        assert all(int(headers["Retry-After"]) > 0 for _, headers, _ in said)
        assert slowest_s < 2
        vendor.start(path="/sim/bill")
        # Nothing waits here that could be the probe: the next submit that comes when one is due is.
        assert _until(lambda: gateway.submit()[0] == 200)
        assert gateway.submit()[0] == 200
        assert CIRCUIT_CLOSED in _metrics(gateway)
        assert _until(lambda: vendor.bill()["open"] == 0 and gateway.settled_nanos() == vendor.bill()["nanos"])
        assert vendor.bill()["tasks"] == 2


def test_an_outage_past_the_deadline_fails_what_was_held_back_and_a_replay_says_so(tmp_path):
    with process.pair(tmp_path, "--submit-deadline", "3s") as (gateway, vendor):
        vendor.end()
        _trickle(gateway, range(6), pause_s=0.0)
        body = {"model": "gemini-2.5-flash-image-preview", "prompt": "late"}
        sent = {"Idempotency_Key": "k1"}
        status, _, document = gateway.call("POST", "/v1/tasks", body, **sent)
        assert status == 200
        failed = gateway.complete(document["task_id"])
        assert (failed["status"], failed["error"]["code"], failed["cost"]) == ("failed", "upstream_unavailable", 0)
        status, headers, replayed = gateway.call("POST", "/v1/tasks", body, **sent)
        assert (status, headers["Idempotent-Replayed"]) == (200, "true")
        assert (replayed["task_id"], replayed["status"]) == (document["task_id"], "failed")
        vendor.start(path="/sim/bill")
        assert vendor.bill()["tasks"] == 0
        assert gateway.cli("audit").returncode == 0


def test_a_vendor_that_refuses_our_key_for_a_while_is_an_alarm_and_no_clients_error(tmp_path):
    with process.pair(tmp_path) as (gateway, vendor):
        vendor.script([{"on": "submit", "times": None, "do": {"status": 401, "retry_after": 300}}])
        said, _ = _trickle(gateway, range(6), pause_s=0.2)
        assert {(status, document["status"]) for status, _, document in said} == {(200, "queued")}
        assert b'wave_gateway_upstream_key_ok{team="growth"} 0.0' in _metrics(gateway)
        assert CIRCUIT_CLOSED in _metrics(gateway)
        vendor.script([])
        ended = [gateway.complete(document["task_id"]) for _, _, document in said]
        assert {document["status"] for document in ended} == {"completed"}
        assert b'wave_gateway_upstream_key_ok{team="growth"} 1.0' in _metrics(gateway)
        _check_each_is_billed_once(gateway, vendor, prompts=6)


def test_with_no_upstream_idempotency_a_lost_answer_is_never_asked_for_again(tmp_path):
    with process.pair(tmp_path, "--no-upstream-idempotency") as (gateway, vendor):
        vendor.script([{"on": "submit", "do": {"accept_and_drop": True}}])
        status, _, document = gateway.submit(prompt="lost")
        assert (status, document["status"]) == (200, "queued")
        assert gateway.complete(gateway.submit(prompt="found")[2]["task_id"])["status"] == "completed"
        assert gateway.end(signal.SIGKILL) == -signal.SIGKILL
        gateway.start()
        assert gateway.complete(gateway.submit(prompt="later")[2]["task_id"])["status"] == "completed"
        assert gateway.call("GET", f"/v1/tasks/{document['task_id']}")[2]["status"] == "queued"
        assert (vendor.requests()["counts"]["submit"], vendor.bill()["tasks"]) == (3, 3)
        assert b"wave_gateway_tasks_in_doubt 1.0" in _metrics(gateway)


def _trickle(gateway: process.Gateway, numbers: range, *, pause_s: float):
    """One submit after another, each with a prompt of its own; the answers, and the longest anybody waited."""
    answers, slowest_s = [], 0.0
    for number in numbers:
        started = time.monotonic()
        answers.append(gateway.submit(prompt=f"fox {number}"))
        slowest_s = max(slowest_s, time.monotonic() - started)
        time.sleep(pause_s)
    return answers, slowest_s


def _check_each_is_billed_once(gateway: process.Gateway, vendor: process.Vendor, *, prompts: int) -> None:
    bill = vendor.bill()
    assert (bill["tasks"], bill["open"]) == (prompts, 0)
    assert len({line["prompt"] for line in bill["by_task"].values()}) == prompts
    assert gateway.settled_nanos() == bill["nanos"] == prompts * 13_280_000
    assert gateway.cli("audit").returncode == 0


def _metrics(gateway: process.Gateway) -> list[bytes]:
    return process.fetch(gateway.url + "/metrics")[2].splitlines()


def _until(is_so: Callable[[], bool], *, within_s: float = 20) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if is_so():
                return True
        time.sleep(0.1)
    return False
