"""Traces: a real gateway process, a real OTLP collector. Names, parents and attributes are those of docs/TRACING.md."""

from __future__ import annotations

import contextlib
import pathlib
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from gateway import errors, tracing
from tests import collector as collectors
from tests import process

FLASH = "gemini-2.5-flash-image-preview"
CALLER_SPAN = "b7ad6b7169203331"
PROMPT = "canary-prompt-73"
CALLBACK = "http://127.0.0.1:9/canary-hook-73"
"""Nobody listens there: no webhook of these tests leaves the machine."""
REFERENCE = "https://8.8.8.8/in.png?sig=canary-signature-73"

GROWTH = "models: {deny: [gemini-3-*]}\n"
RESEARCH = 'spend: [{name: daily, cap: "0.02", per: day}]\n'

AT_ONCE = [{"on": "submit", "times": None, "do": {"queue_s": 0, "work_s": 0}}]
"""The vendor's work takes no time."""
GOING_ON = [{"on": "poll", "times": None, "do": {"merge": {"status": "processing"}}}]
"""The vendor's work takes until it is said to be at once."""

Running = tuple[process.Gateway, process.Vendor, collectors.Collector]


def _exporting_to(url: str) -> dict[str, str]:
    """`BSP`: how often what is queued leaves, in milliseconds."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "50"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("traces")
    with collectors.Collector() as collector:
        environ = _exporting_to(collector.url)
        with process.pair(directory, "--traces", environ=environ, growth=GROWTH, research=RESEARCH) as (
            gateway,
            vendor,
        ):
            vendor.script(AT_ONCE)
            yield gateway, vendor, collector


def _submit(gateway: process.Gateway, trace_id: str, *, flags: str = "01", team: str = "growth", **fields: object):
    """A submit in the client's own trace, with everything in it that no trace may tell."""
    secret = {"prompt": PROMPT, "callback_url": CALLBACK}
    headers = {"traceparent": f"00-{trace_id}-{CALLER_SPAN}-{flags}", "tracestate": "vendor=7"}
    return gateway.call("POST", "/v1/tasks", {"model": FLASH} | secret | fields, team=team, **headers)


def _trace(collector: collectors.Collector, trace_id: str, *, until: str, times: int = 1) -> list[collectors.Seen]:
    """The spans of a trace when so many of one name have come."""
    collector.wait(lambda: [each.name for each in collector.trace(trace_id)].count(until) >= times)
    return collector.trace(trace_id)


def _server(spans: list[collectors.Seen]) -> collectors.Seen:
    [server] = [each for each in spans if each.kind == "server"]
    return server


def _named(spans: list[collectors.Seen], name: str) -> list[collectors.Seen]:
    return [each for each in spans if each.name == name and each.kind != "server"]


def test_a_submit_is_one_connected_trace_from_the_clients_span_to_the_kept_pictures(running: Running) -> None:
    gateway, vendor, collector = running
    trace_id = secrets.token_hex(16)
    status, headers, document = _submit(gateway, trace_id, n=2, action="reference", image_urls=[REFERENCE])
    assert status == 200, document
    task_id = document["task_id"]
    gateway.complete(task_id)
    spans = _trace(collector, trace_id, until="wave.task")
    server = _server(spans)
    assert (server.name, server.parent_id, server.tracestate) == ("POST /v1/tasks", CALLER_SPAN, "vendor=7")
    assert sorted((each.name, each.kind, each.is_error) for each in spans if each.parent_id == server.span_id) == [
        ("GET /v1/tasks/{task_id}", "client", False),
        ("POST /v1/tasks", "client", False),
        ("wave.decide", "internal", False),
        ("wave.mirror", "internal", False),
        ("wave.mirror", "internal", False),
        ("wave.reserve", "internal", False),
        ("wave.settle", "internal", False),
        ("wave.task", "internal", False),
    ]
    assert len(spans) == 9
    assert server.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/tasks",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "wave.request_id": headers["X-Wave-Request-Id"],
        "wave.team": "growth",
        "wave.decision": "allow",
        "wave.task_id": task_id,
        "wave.model": FLASH,
        "wave.cache": "bypass",
        "wave.quote_usd": "0.026564",
        "wave.in_doubt": False,
    }
    [decide], [reserve] = _named(spans, "wave.decide"), _named(spans, "wave.reserve")
    assert (decide.attributes, reserve.attributes) == ({"wave.decision": "allow"}, {})
    [post] = _named(spans, "POST /v1/tasks")
    assert post.attributes == {
        "http.request.method": "POST",
        "url.template": "/v1/tasks",
        "server.address": "127.0.0.1",
        "server.port": int(vendor.url.rpartition(":")[2]),
        "http.response.status_code": 200,
        "wave.task_id": task_id,
        "wave.attempt": 1,
        "wave.in_doubt": False,
    }
    assert vendor.requests()["submits"][-1]["headers"]["traceparent"] == f"00-{trace_id}-{post.span_id}-01"
    [settle], [life] = _named(spans, "wave.settle"), _named(spans, "wave.task")
    money = {"wave.task_id": task_id, "wave.quote_usd": "0.026564", "wave.cost_usd": "0.02656"}
    assert settle.attributes == money
    assert life.attributes == money | {"wave.team": "growth", "wave.model": FLASH, "wave.state": "completed"}
    mirrors = _named(spans, "wave.mirror")
    assert sorted(each.attributes["wave.position"] for each in mirrors) == [0, 1]  # type: ignore[type-var]
    assert {tuple(sorted(each.attributes)) for each in mirrors} == {("wave.bytes", "wave.position", "wave.task_id")}
    assert decide.began_at <= reserve.began_at <= post.began_at <= settle.began_at <= mirrors[0].began_at
    assert life.began_at <= post.began_at and life.ended_at >= mirrors[0].ended_at


def test_the_resource_is_named_wave_gateway(running: Running) -> None:
    gateway, _, collector = running
    _submit(gateway, trace_id := secrets.token_hex(16))
    _trace(collector, trace_id, until="wave.decide")
    assert (collector.resource["service.name"], collector.resource["service.version"]) == ("wave-gateway", "0.1.0")


def test_a_hit_and_a_follower_end_with_their_decision_and_name_who_paid(running: Running) -> None:
    gateway, vendor, collector = running
    vendor.script(GOING_ON)
    leader = _submit(gateway, secrets.token_hex(16), seed=7)[2]["task_id"]
    following, hit = secrets.token_hex(16), secrets.token_hex(16)
    assert _submit(gateway, following, seed=7)[1]["X-Cache"] == "COALESCED"
    vendor.script(AT_ONCE)
    gateway.complete(leader)
    assert _submit(gateway, hit, seed=7)[1]["X-Cache"] == "HIT"
    for trace_id, cache in ((following, "coalesced"), (hit, "hit")):
        collector.wait(lambda of=trace_id: "server" in {each.kind for each in collector.trace(of)})  # type: ignore[misc]
        spans = collector.trace(trace_id)
        assert sorted(each.name for each in spans) == ["POST /v1/tasks", "wave.decide", "wave.reserve"]
        said = _server(spans).attributes
        assert (said["wave.cache"], said["wave.quote_usd"], said["wave.leader_id"]) == (cache, "0", leader)


def test_a_denial_says_its_code_where_it_was_decided(running: Running) -> None:
    gateway, _, collector = running
    by_rule, by_cap = secrets.token_hex(16), secrets.token_hex(16)
    assert _submit(gateway, by_rule, model="gemini-3-pro-image-preview")[0] == 403
    assert _submit(gateway, by_cap, team="research", n=2)[0] == 429
    for trace_id, team, name, status, code in (
        (by_rule, "growth", "wave.decide", 403, "model_not_allowed"),
        (by_cap, "research", "wave.reserve", 429, "quota_window_exceeded"),
    ):
        collector.wait(lambda of=trace_id: "server" in {each.kind for each in collector.trace(of)})  # type: ignore[misc]
        spans = collector.trace(trace_id)
        [decided] = _named(spans, name)
        assert decided.attributes == {"wave.decision": "deny", "wave.code": code}
        server = _server(spans)
        said = {name: server.attributes.get(name) for name in ("wave.team", "wave.decision", "wave.code")}
        assert said == {"wave.team": team, "wave.decision": "deny", "wave.code": code}
        assert (server.attributes["http.response.status_code"], server.is_error) == (status, False)


def test_an_answer_of_5xx_is_an_error_with_its_status_and_code(running: Running) -> None:
    gateway, _, collector = running
    trace_id = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace_id}-{CALLER_SPAN}-01", "X-Wave-Cache": "only-if-cached"}
    assert gateway.call("POST", "/v1/tasks", {"model": FLASH, "prompt": PROMPT, "seed": 504}, **headers)[0] == 504
    collector.wait(lambda: "server" in {each.kind for each in collector.trace(trace_id)})
    server = _server(collector.trace(trace_id))
    assert (server.is_error, server.attributes["error.type"], server.message) == (True, "504", "")
    assert server.attributes["wave.code"] == "only_if_cached"


def test_an_unknown_key_and_a_poll_have_spans_of_their_own(running: Running) -> None:
    gateway, _, collector = running
    refused, polled = secrets.token_hex(16), secrets.token_hex(16)
    task_id = _submit(gateway, secrets.token_hex(16))[2]["task_id"]
    for trace_id, key, expected in ((refused, "wgk_canary-unknown-73", 401), (polled, process.KEYS["growth"], 200)):
        headers = {"traceparent": f"00-{trace_id}-{CALLER_SPAN}-01", "Authorization": f"Bearer {key}"}
        assert gateway.call("GET", f"/v1/tasks/{task_id}", **headers)[0] == expected
    spans = [
        *_trace(collector, refused, until="GET /v1/tasks/{task_id}"),
        *_trace(collector, polled, until="GET /v1/tasks/{task_id}"),
    ]
    assert [(each.kind, each.attributes["wave.task_id"], each.attributes.get("wave.code")) for each in spans] == [
        ("server", task_id, "invalid_api_key"),
        ("server", task_id, None),
    ]


def test_what_the_client_does_not_sample_is_not_exported_and_goes_on_unsampled(running: Running) -> None:
    gateway, vendor, collector = running
    unsampled, sampled = secrets.token_hex(16), secrets.token_hex(16)
    gateway.complete(_submit(gateway, unsampled, flags="00")[2]["task_id"])
    sent = vendor.requests()["submits"][-1]["headers"]["traceparent"]
    assert sent.startswith(f"00-{unsampled}-") and sent.endswith("-00") and CALLER_SPAN not in sent
    _submit(gateway, sampled)
    _trace(collector, sampled, until="wave.reserve")
    assert collector.trace(unsampled) == []


@pytest.mark.parametrize(
    "sent", [None, "nonsense", f"00-{'0' * 32}-{CALLER_SPAN}-01", f"ff-{'a' * 32}-{CALLER_SPAN}-01"]
)
def test_without_a_valid_traceparent_a_new_trace_begins(running: Running, sent: str | None) -> None:
    gateway, vendor, collector = running
    headers = {} if sent is None else {"traceparent": sent}
    _, answered, _ = gateway.call("POST", "/v1/tasks", {"model": FLASH, "prompt": PROMPT}, **headers)
    _, trace_id, parent_id, flags = vendor.requests()["submits"][-1]["headers"]["traceparent"].split("-")
    spans = _trace(collector, trace_id, until="wave.reserve")
    collector.wait(lambda: "server" in {each.kind for each in collector.trace(trace_id)})
    server = _server(collector.trace(trace_id))
    assert server.parent_id == "" and server.attributes["wave.request_id"] == answered["X-Wave-Request-Id"]
    assert trace_id not in ("0" * 32, "a" * 32) and parent_id != server.span_id and int(flags, 16) & 1
    assert len(spans) >= 2


def test_a_lost_answer_and_its_repeat_are_two_attempts_in_one_trace(running: Running) -> None:
    gateway, vendor, collector = running
    trace_id = secrets.token_hex(16)
    vendor.script([{"on": "submit", "times": 1, "do": {"accept_and_drop": True}}, *AT_ONCE])
    task_id = _submit(gateway, trace_id)[2]["task_id"]
    gateway.complete(task_id)
    spans = _trace(collector, trace_id, until="wave.task")
    lost, repeated = _named(spans, "POST /v1/tasks")
    assert _server(spans).attributes["wave.in_doubt"] is True
    assert [(each.attributes["wave.attempt"], each.attributes["wave.in_doubt"]) for each in (lost, repeated)] == [
        (1, True),
        (2, False),
    ]
    assert (lost.is_error, lost.attributes["error.type"], lost.message) == (True, "ServerDisconnectedError", "")
    assert (repeated.is_error, repeated.parent_id) == (False, lost.parent_id)
    heard = [each["headers"]["traceparent"] for each in vendor.requests()["submits"][-2:]]
    assert heard == [f"00-{trace_id}-{each.span_id}-01" for each in (lost, repeated)]


def test_a_restart_between_submit_and_completion_keeps_the_trace(running: Running) -> None:
    gateway, vendor, collector = running
    trace_id = secrets.token_hex(16)
    vendor.script(GOING_ON)
    task_id = _submit(gateway, trace_id)[2]["task_id"]
    assert gateway.end() == 0
    server = _server(collector.trace(trace_id))  # exported before the process ended
    assert {each.name for each in collector.trace(trace_id)} == {"POST /v1/tasks", "wave.decide", "wave.reserve"}
    vendor.script(AT_ONCE)
    gateway.start()
    gateway.complete(task_id)
    spans = _trace(collector, trace_id, until="wave.task")
    late = ["GET /v1/tasks/{task_id}", "wave.mirror", "wave.settle", "wave.task"]
    assert [each.parent_id for name in late for each in _named(spans, name)] == [server.span_id] * 4


def test_no_span_tells_a_prompt_a_key_or_a_url(running: Running) -> None:
    gateway, _, collector = running
    _submit(gateway, trace_id := secrets.token_hex(16), action="reference", image_urls=[REFERENCE])
    _submit(gateway, secrets.token_hex(16), model="canary-model-73")
    assert any(each.name == "wave.decide" for each in _trace(collector, trace_id, until="wave.task"))
    for secret in (b"canary", b"8.8.8.8", b"wgk_", b"vendor-secret", b"/media/", b"http://", b"https://"):
        assert secret not in collector.bodies


def test_every_span_and_attribute_of_ours_is_documented_and_none_that_does_not_exist() -> None:
    root = pathlib.Path(__file__).parent.parent
    program = "\n".join(path.read_text() for path in (root / "gateway").rglob("*.py"))
    used = set(re.findall(r'"(wave\.[a-z_]+)"', program)) - {"wave.db"}
    assert {"wave.decide", "wave.cost_usd"} <= used
    assert set(re.findall(r"`(wave\.[a-z_]+)`", (root / "docs/TRACING.md").read_text())) == used


# A collector that is not there


@contextlib.contextmanager
def _silent() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def _closed() -> Iterator[str]:
    yield f"http://127.0.0.1:{process.free_port()}"


@contextlib.contextmanager
def _beside(
    running: Running, directory: pathlib.Path, *options: str, environ: dict[str, str]
) -> Iterator[process.Gateway]:
    """Another gateway in front of the same simulator."""
    gateway = process.gateway_before(running[1].url, directory, *options, environ=environ)
    gateway.start()
    try:
        yield gateway
    finally:
        if gateway.is_running():
            gateway.end()


@pytest.mark.parametrize("there", [_closed, _silent])
def test_without_a_collector_requests_are_served_and_a_stop_is_clean(
    running: Running,
    tmp_path: pathlib.Path,
    capfd: pytest.CaptureFixture[str],
    there: Callable[[], contextlib.AbstractContextManager[str]],
) -> None:
    small = {"OTEL_BSP_MAX_QUEUE_SIZE": "4", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4"}
    with (
        there() as url,
        _beside(running, tmp_path, "--traces", "--log-level", "warning", environ=_exporting_to(url) | small) as gateway,
    ):
        for number in range(4):  # more spans than the queue holds
            assert gateway.submit(prompt=f"unheard {number}")[0] == 200
        began = time.monotonic()
        assert gateway.end() == 0
        assert time.monotonic() - began < 8  # alone the library waits for an answer, 10 s a batch
    said = capfd.readouterr().err
    assert "the last spans were not exported within 2.0 s" in said and "Traceback" not in said


# Off


def test_what_stands_for_every_span_while_off_is_one_object() -> None:
    spans = {tracing.OFF.server("GET", {}), tracing.OFF.span("wave.decide", f"00-{'a' * 32}-{CALLER_SPAN}-01")}
    assert spans == {tracing.NOTHING}
    assert (tracing.NOTHING.is_recording, tracing.NOTHING.traceparent) == (False, None)


def test_while_off_the_library_is_never_imported(
    running: Running, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with _beside(running, tmp_path, environ={"PYTHONPROFILEIMPORTTIME": "1"}) as gateway:
        gateway.complete(gateway.submit()[2]["task_id"])
        assert gateway.end() == 0
    imported = capfd.readouterr().err
    assert "gateway.tracing" in imported and "opentelemetry" not in imported


# What cannot be


def test_without_the_extra_the_start_is_refused_with_the_command_that_installs_it(tmp_path: pathlib.Path) -> None:
    (tmp_path / "opentelemetry.py").write_text("raise ModuleNotFoundError('not installed')\n")
    policies = process.write_policies(tmp_path / "policies")
    places = ["--data", str(tmp_path / "data"), "--policies", str(policies), "--listen", "127.0.0.1:0"]
    done = process.run_cli("serve", "--traces", *places, environ={"PYTHONPATH": str(tmp_path)})
    assert done.returncode != 0
    assert "pip install 'wave-gateway[otel]'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "said", "message"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "'grpc' cannot be used here; write http/protobuf."),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "'http/json' cannot be used here; write http/protobuf."),
        ("OTEL_TRACES_EXPORTER", "zipkin", "'zipkin' cannot be used here; write otlp or none."),
    ],
)
def test_a_protocol_or_an_exporter_that_there_is_not_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, said: str, message: str
) -> None:
    monkeypatch.setenv(variable, said)
    with pytest.raises(errors.StartError, match=re.escape(f"{variable}: {message}")):
        tracing.start()


def test_variables_that_contradict_each_other_refuse_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5")
    with pytest.raises(
        errors.StartError, match=r"^--traces: the OTEL_\* variables cannot be used: max_export_batch_size"
    ):
        tracing.start()


def test_the_librarys_own_switch_for_off_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracing.start() is tracing.OFF
