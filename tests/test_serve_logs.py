"""The log of a running gateway, as whoever runs it reads it: every line of a day, and a reader that stopped reading."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from typing import Any, Final

import pytest

from gateway import log_events
from tests import process

LEVELS: Final = {"debug", "info", "warning", "error"}
AT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
QUICK: Final = {"queue_s": 0, "work_s": 0}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """What was logged, and what the clients and the vendor saw."""

    text: bytes
    lines: list[dict[str, Any]]
    answered: dict[str, int]
    """Request id → status, of every answer."""
    paid: str
    """The request id of a submit that was paid for."""
    vendor: Any
    exit_code: int

    def events(self, event: str, **fields: object) -> list[dict[str, Any]]:
        found = [each for each in self.lines if each["event"] == event]
        return [each for each in found if fields.items() <= each.items()]


@pytest.fixture(scope="module")
def day(tmp_path_factory) -> Iterator[Day]:
    directory = tmp_path_factory.mktemp("logs")
    log = directory / "log"
    options = ("--log-level", "debug", "--log-format", "json")
    to_file = ("sh", "-c", 'exec "$@" 2>>"$0"', str(log))
    with process.pair(directory, *options, launcher=to_file, growth="limits: {n: 2}\n") as (gateway, vendor):
        answered: dict[str, int] = {}

        def ask(method: str, path: str, body: object = None, **headers: str) -> tuple[Any, Any]:
            status, answer, document = gateway.call(method, path, body, **headers)
            answered[answer["X-Wave-Request-Id"]] = status
            return answer, document

        model = {"model": "gemini-2.5-flash-image-preview", "prompt": "a canary"}
        vendor.script([{"on": "submit", "times": None, "do": QUICK}])
        answer, task = ask("POST", "/v1/tasks", model | {"seed": 7})
        ask("GET", f"/v1/tasks/{task['task_id']}", Prefer="wait=20")
        ask("POST", "/v1/tasks", model | {"seed": 7})
        ask("POST", "/v1/tasks", model | {"n": 3})
        ask("GET", "/v1/tasks/canary%0Aforged")
        ask("GET", "/v1/models", Authorization="Bearer canary")
        ask("GET", "/healthz")
        with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])), timeout=30) as raw:
            raw.sendall(b"canary\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 400")
        seen = vendor.requests()
        exit_code = gateway.end(signal.SIGTERM)
        text = log.read_bytes()
        yield Day(
            text=text,
            lines=[json.loads(line) for line in text.splitlines()],
            answered=answered,
            paid=answer["X-Wave-Request-Id"],
            vendor=seen,
            exit_code=exit_code,
        )


def test_every_line_is_an_event_of_the_closed_set_with_fields_of_its_own(day):
    for each in day.lines:
        time, level, logger, event = list(each)[:4]
        assert (time, level, logger, event) == ("time", "level", "logger", "event")
        assert AT.fullmatch(each["time"]) and each["level"] in LEVELS
        assert set(each) - {"time", "level", "logger", "event", "exception"} <= set(log_events.EVENTS[each["event"]])
    assert [each["time"] for each in day.lines] == sorted(each["time"] for each in day.lines)


def test_every_request_has_one_line_with_its_status(day):
    requests = [each for each in day.events("request") if each.get("request_id") in day.answered]
    assert {each["request_id"]: each["status"] for each in requests} == day.answered
    assert len(requests) == len(day.answered) == 7


def test_the_line_of_a_request_says_whose_it_was_and_what_came_of_it(day):
    [paid] = day.events("request", request_id=day.paid)
    assert {name: value for name, value in paid.items() if name not in ("time", "ms", "task_id")} == {
        "level": "info",
        "logger": "access",
        "event": "request",
        "method": "POST",
        "route": "/v1/tasks",
        "status": 200,
        "request_id": day.paid,
        "team": "growth",
        "key": "ci",
        "cache": "miss",
        "quote_usd": "0.013282",
        "bytes_in": 76,
        "bytes_out": paid["bytes_out"],
        "peer": "127.0.0.1",
    }
    [hit] = day.events("request", cache="hit")
    assert (hit["quote_usd"], hit["cost_usd"], hit["team"]) == ("0", "0", "growth")
    [denied] = day.events("request", code="limit_exceeded")
    assert (denied["status"], denied["team"]) == (403, "growth")
    [unknown] = day.events("request", code="invalid_api_key")
    assert (unknown["status"], "team" in unknown) == (401, False)
    [nothing] = day.events("request", code="task_not_found")
    assert "task_id" not in nothing  # what the client wrote there is no id of ours
    [garbage] = day.events("request", code="invalid_request")
    assert (garbage["method"], garbage["route"], garbage["status"]) == ("other", "other", 400)


def test_machines_that_ask_for_health_are_for_debugging(day):
    assert {each["level"] for each in day.events("request") if each["route"] in ("/healthz", "/readyz")} == {"debug"}


def test_one_request_id_leads_through_the_life_of_its_task(day):
    told = [each for each in day.lines if each.get("request_id") == day.paid and each["event"] != "request"]
    assert [(each["event"], each.get("to") or each.get("operation")) for each in told] == [
        ("task_changed", "reserved"),
        ("upstream_call", "submit"),
        ("task_changed", "submitted"),
        ("upstream_call", "poll"),
        ("task_changed", "delivered"),
        ("mirror_kept", None),
        ("task_changed", "completed"),
    ]
    assert [each["headers"]["x-request-id"] for each in day.vendor["submits"]] == [day.paid]


def test_no_prompt_no_path_and_no_key_is_in_any_line(day):
    assert b"canary" not in day.text and b"wgk_growth" not in day.text and b"vendor-secret" not in day.text
    assert b"/media/" not in day.text and b"?" not in day.text


def test_it_begins_with_the_start_and_ends_with_the_stop(day):
    assert [each["event"] for each in day.lines[:2]] == ["policy_loaded", "started"]
    assert day.lines[-1]["event"] == "stopped" and day.exit_code == 0


def test_a_gateway_whose_log_nobody_reads_serves_on_and_stops_in_time(tmp_path):
    """Its pipe holds 64 KiB, two thirds of what 500 requests have to say."""
    os.mkfifo(tmp_path / "fifo")
    # Opened for both, it needs no reader.
    stuck = ("sh", "-c", 'exec "$@" 2<>"$0"', str(tmp_path / "fifo"))
    gateway = process.gateway_before("http://127.0.0.1:9", tmp_path, "--log-level", "debug", "--drain", "2s")
    gateway.launcher = stuck
    gateway.start()
    try:
        for _ in range(500):
            assert gateway.call("GET", "/v1/models")[0] == 200
    finally:
        reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        code = gateway.end(signal.SIGTERM, within_s=20)
    written = os.read(reader, 1 << 20)
    os.close(reader)
    assert code == 0
    assert written.count(b"GET route=/v1/models") < 500 and b"stopped" not in written  # so it was full
    assert written.count(b"GET route=/v1/models") > 50
