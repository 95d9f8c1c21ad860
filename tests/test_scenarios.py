"""The main job and its worst days, with real processes on real sockets."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import signal
import socket
import time

import pytest

from tests import process

FLASH = "gemini-2.5-flash-image-preview"


async def test_a_thousand_submits_at_a_cap_with_room_for_a_hundred(tmp_path):
    with process.pair(tmp_path, growth='spend: [{name: daily, cap: "1.3282", per: day}]\n') as (gateway, vendor):
        body = {"model": FLASH, "prompt": "a fox"}
        answers = await gateway.flood([body] * 1000)
        refused = [(headers, document["error"]) for status, headers, document in answers if status == 429]
        assert sum(status == 200 for status, _, _ in answers) == 100
        assert len(refused) == 900
        assert vendor.requests()["counts"]["submit"] == 100
        for headers, error in refused:
            assert error["code"] == "quota_window_exceeded"
            assert (error["window"], error["used"], error["cap"]) == ("day", 0, 664_100)
            assert (error["used_usd"], error["cap_usd"], error["reserved_usd"]) == ("0", "1.3282", "1.3282")
            assert (error["scope"], error["name"], error["cap_name"]) == ("team", "growth", "daily")
            assert error["open_tasks"] == 100
            assert error["reset_at"] % 86_400 == 0 and error["contact"] is None
            assert error["rule"] == "teams/growth.yaml:5" and error["request_id"] == headers["X-Wave-Request-Id"]
            assert headers["x-should-retry"] == "false" and 1 <= int(headers["Retry-After"]) <= 60
        for status, _, document in answers:
            if status == 200:
                await asyncio.to_thread(gateway.complete, document["task_id"])
        assert gateway.settled_nanos() == vendor.bill()["nanos"] == 1_328_000_000
        assert gateway.cli("audit").returncode == 0


async def test_a_thousand_identical_seeded_submits_are_one_post_and_all_complete(tmp_path):
    with process.pair(tmp_path) as (gateway, vendor):
        vendor.script([{"on": "submit", "do": {"delay_s": 2, "work_s": 3}}])
        answers = await gateway.flood([{"model": FLASH, "prompt": "a fox", "seed": 7}] * 1000)
        assert {status for status, _, _ in answers} == {200}
        ids = [document["task_id"] for _, _, document in answers]
        assert len(set(ids)) == 1000
        caches = [headers["X-Cache"] for _, headers, _ in answers]
        assert (caches.count("MISS"), caches.count("COALESCED")) == (1, 999)
        documents = [await asyncio.to_thread(gateway.complete, task_id) for task_id in ids]
        assert {document["status"] for document in documents} == {"completed"}
        assert [document["task_id"] for document in documents] == ids
        assert sorted({document["cost"] for document in documents}) == [0, 6640]
        assert vendor.requests()["counts"]["submit"] == 1
        assert gateway.settled_nanos() == vendor.bill()["nanos"] == 13_280_000
        [line] = json.loads(gateway.cli("report", "--by", "team", "--format", "json").stdout)
        assert (line["tasks"], line["free"], line["avoided_usd"]) == (1, 999, "13.26672")


def test_every_mirrored_picture_outlives_the_vendor_byte_for_byte(tmp_path):
    with process.pair(tmp_path) as (gateway, vendor):
        originals: dict[str, bytes] = {}
        kept: dict[str, bytes] = {}
        for seed in range(3):
            _, _, document = gateway.submit(seed=seed, n=2)
            done = gateway.complete(document["task_id"])
            urls = [url for image in done["result"]["images"] for url in image["url"]]
            upstream_id = gateway.call("GET", f"/v1/tasks/{done['task_id']}")[1]["X-Wave-Upstream-Task-Id"]
            theirs = json.loads(process.fetch(f"{vendor.url}/v1/tasks/{upstream_id}", Authorization="Bearer any")[2])[
                "result"
            ]["images"]
            sources = [url for image in theirs for url in image["url"]]
            originals |= {url: process.fetch(source)[2] for url, source in zip(urls, sources, strict=True)}
        vendor.end()
        for url in originals:
            status, headers, kept[url] = process.fetch(url)
            assert (status, headers["Content-Type"]) == (200, "image/jpeg")
            assert "immutable" in headers["Cache-Control"]
        assert len(originals) == 6
        assert kept == originals


def test_all_six_gemini_models_settle_to_the_vendors_bill_to_the_nano(tmp_path):
    billed = {
        "gemini-3-pro-image-preview-official": 113_900_000,
        "gemini-3-pro-image-preview": 42_500_000,
        "gemini-3.1-flash-image-preview-official": 56_950_000,
        "gemini-3.1-flash-image-preview": 31_874_000,
        "gemini-2.5-flash-image-preview-official": 33_150_000,
        "gemini-2.5-flash-image-preview": 13_280_000,
    }
    with process.pair(tmp_path) as (gateway, vendor):
        ids = {}
        for model in billed:
            status, _, document = gateway.submit(model=model, n=1)
            assert status == 200, document
            ids[model] = document["task_id"]
        for model, task_id in ids.items():
            assert gateway.complete(task_id)["cost"] * 2000 == billed[model]
        lines = json.loads(gateway.cli("report", "--by", "model", "--format", "json").stdout)
        assert {line["model"]: line["cost_usd"] for line in lines} == {
            "gemini-3-pro-image-preview-official": "0.1139",
            "gemini-3-pro-image-preview": "0.0425",
            "gemini-3.1-flash-image-preview-official": "0.05695",
            "gemini-3.1-flash-image-preview": "0.031874",
            "gemini-2.5-flash-image-preview-official": "0.03315",
            "gemini-2.5-flash-image-preview": "0.01328",
        }
        assert gateway.settled_nanos() == vendor.bill()["nanos"] == 291_654_000
        _, _, text = process.fetch(gateway.url + "/metrics")
        exported = [line.split(b" ") for line in text.splitlines() if line.startswith(b"wave_gateway_cost_usd_total")]
        assert sorted(float(value) for _, value in exported) == [0.01328, 0.031874, 0.03315, 0.0425, 0.05695, 0.1139]


async def test_killed_under_load_and_restarted_the_books_equal_the_vendors_bill(tmp_path):
    with process.pair(tmp_path, growth='spend: [{cap: "1", per: day}]\n') as (gateway, vendor):
        vendor.script([{"on": "submit", "times": None, "do": {"delay_s": 0.2}}])
        flood = asyncio.create_task(gateway.flood([{"model": FLASH, "prompt": "a fox"}] * 60))
        await asyncio.sleep(0.5)
        assert gateway.end(signal.SIGKILL) == -signal.SIGKILL
        await asyncio.gather(flood, return_exceptions=True)
        gateway.start()
        until = time.monotonic() + 30
        while time.monotonic() < until:
            bill = vendor.bill()
            if bill["open"] == 0 and gateway.settled_nanos() == bill["nanos"] and _open_tasks(gateway) == 0:
                break
            await asyncio.sleep(0.3)
        bill = vendor.bill()
        assert bill["tasks"] > 0
        assert gateway.settled_nanos() == bill["nanos"]
        assert _open_tasks(gateway) == 0
        audited = gateway.cli("audit")
        assert (audited.returncode, audited.stdout[:31]) == (0, "The books agree to the nano, in")


def _open_tasks(gateway: process.Gateway) -> int:
    _, _, text = process.fetch(gateway.url + "/metrics")
    lines = [line for line in text.splitlines() if line.startswith(b"wave_gateway_tasks_open{")]
    return int(sum(float(line.split(b" ")[1]) for line in lines))


def test_sigterm_ends_with_exit_code_0_and_what_was_under_way_goes_on_after_a_start(tmp_path):
    with process.pair(tmp_path) as (gateway, vendor):
        vendor.script([{"on": "submit", "do": {"work_s": 1}}])
        task_id = gateway.submit()[2]["task_id"]
        started = time.monotonic()
        assert gateway.end(signal.SIGTERM) == 0
        assert time.monotonic() - started < 20
        gateway.start()
        assert gateway.complete(task_id)["status"] == "completed"
        assert vendor.requests()["counts"]["submit"] == 1


def test_a_second_process_on_one_data_directory_refuses_to_start(tmp_path):
    with process.pair(tmp_path) as (gateway, _):
        port = process.free_port()
        second = process.run_cli(
            *("serve", "--listen", f"127.0.0.1:{port}", "--data", str(gateway.data)),
            *("--policies", str(gateway.policies)),
        )
        assert second.returncode == 1
        assert "another process uses --data" in second.stderr and "PostgreSQL" in second.stderr


def test_a_missing_database_beside_kept_media_refuses_to_start(tmp_path):
    with process.pair(tmp_path) as (gateway, _):
        gateway.complete(gateway.submit()[2]["task_id"])
        gateway.end()
        for each in gateway.data.glob("wave.db*"):
            each.unlink()
        done = process.run_cli(*gateway.arguments, environ=process.ENVIRON)
        assert done.returncode == 1
        assert "is missing or empty beside kept media" in done.stderr


def test_an_empty_database_beside_kept_media_refuses_to_start(tmp_path):
    with process.pair(tmp_path) as (gateway, _):
        gateway.complete(gateway.submit()[2]["task_id"])
        gateway.end()
        (gateway.data / "wave.db").write_bytes(b"")
        done = process.run_cli(*gateway.arguments, environ=process.ENVIRON)
        assert done.returncode == 1 and "is missing or empty" in done.stderr


def test_a_stop_with_a_post_that_hangs_ends_in_time_and_the_client_keeps_its_task(tmp_path):
    with process.pair(tmp_path, "--drain", "5s") as (gateway, vendor):
        vendor.script([{"on": "submit", "do": {"accept_and_hang_s": 60}}])
        with concurrent.futures.ThreadPoolExecutor() as pool:
            client = pool.submit(gateway.submit)
            assert _until(lambda: vendor.requests()["counts"].get("submit", 0) == 1)
            started = time.monotonic()
            assert gateway.end(signal.SIGTERM) == 0
            assert time.monotonic() - started < 5
            status, _, document = client.result()
        assert (status, document["status"]) == (200, "queued")
        gateway.start()
        assert gateway.complete(document["task_id"])["status"] == "completed"
        assert vendor.bill()["tasks"] == 1


def test_while_the_vendors_own_quota_is_used_up_a_submit_is_503_and_never_429(running):
    gateway, vendor = running
    quota = {"status": 429, "code": "quota_window_exceeded", "reset_at": int(time.time()) + 3600}
    vendor.script([{"on": "submit", "do": quota}])
    status, headers, document = gateway.submit(prompt="too much")
    assert (status, document["error"]["code"], headers["Retry-After"]) == (503, "upstream_unavailable", "30")


def test_policy_changes_come_into_force_and_broken_files_leave_the_last_good_set(tmp_path):
    with process.pair(tmp_path) as (gateway, _):
        assert gateway.submit()[0] == 200
        process.write_policies(gateway.policies, growth='models: {deny: ["gemini-*"]}\n')
        assert _until(lambda: gateway.submit()[0] == 403)
        (gateway.policies / "teams" / "growth.yaml").write_text("team: growth\nkeyz: []\n")
        assert _until(lambda: b"wave_gateway_policy_reload_ok 0.0" in process.fetch(gateway.url + "/metrics")[2])
        assert gateway.submit()[0] == 403
        gateway.end()
        gateway.start()
        assert gateway.submit()[0] == 403
        process.write_policies(gateway.policies)
        assert _until(lambda: gateway.submit()[0] == 200)
        assert b"wave_gateway_policy_reload_ok 1.0" in process.fetch(gateway.url + "/metrics")[2]


def _until(holds, within_s: float = 5.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.2)
    return False


def test_one_teams_missing_secret_is_that_teams_503(tmp_path):
    with process.pair(tmp_path) as (gateway, _):
        gateway.end()
        gateway.environ = {"KEY_RESEARCH": "vendor-secret-research"}
        gateway.start()
        status, headers, document = gateway.submit()
        assert (status, document["error"]["code"], headers["Retry-After"]) == (503, "team_not_ready", "5")
        assert gateway.submit("research")[0] == 200


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b'{"model":"m","prompt":"p","n":NaN}', "invalid_json", None),
        (b'{"model":"m","prompt":"p","x":Infinity}', "invalid_json", None),
        (b'{"model":"m","prompt":"p","x":1e400}', "invalid_json", None),
        (b'{"model":"m","prompt":"p","n":-1}', "invalid_request", "n"),
        (b'{"model":"m","prompt":"p","n":true}', "invalid_request", "n"),
        (b'{"model":"m","prompt":"p","seed":9223372036854775808}', "invalid_request", "seed"),
        (b'{"model":"m","prompt":"p","n":' + b"9" * 5000 + b"}", "invalid_json", None),
        (b'{"model":"m","prompt":"p","x":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "invalid_json", None),
        (b'{"model":"m","prompt":"p","prompt":"q"}', "invalid_json", None),
        (b'{"model":"m","prompt":"\\ud800"}', "invalid_json", None),
        (b'{"model":"m","prompt":"\\u0000"}', "invalid_json", None),
        ('{"model":"m","prompt":"p"}'.encode("utf-16"), "invalid_json", None),
        (b"[]", "invalid_request", None),
        (b'{"prompt":"p"}', "invalid_request", "model"),
        (b'{"model":"m"}', "invalid_request", "prompt"),
        (b'{"model":"m","prompt":"p","image_urls":"x"}', "invalid_request", "image_urls"),
        (b'{"model":"m","prompt":"p","official_fallback":"no"}', "invalid_request", "official_fallback"),
    ],
)
def test_a_body_that_cannot_be_accepted_is_400_and_nothing_is_sent(running, body, code, param):
    gateway, vendor = running
    before = vendor.requests()["counts"].get("submit", 0)
    status, _, document = gateway.call("POST", "/v1/tasks", body)
    error = document["error"]
    assert (status, error["code"], error.get("param")) == (400, code, param)
    assert error["request_id"].startswith("req-")
    assert vendor.requests()["counts"].get("submit", 0) == before


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with process.pair(tmp_path_factory.mktemp("running")) as both:
        yield both


def test_a_body_that_is_not_json_and_does_not_claim_to_be_is_415(running):
    gateway, _ = running
    status, _, document = gateway.call("POST", "/v1/tasks", b"--x\r\n", **{"Content-Type": "multipart/form-data"})
    assert (status, document["error"]["code"]) == (415, "unsupported_media_type")
    body = b'{"model":"gemini-2.5-flash-image-preview","prompt":"p"}'
    status, _, _ = gateway.call("POST", "/v1/tasks", body, **{"Content-Type": "application/x-www-form-urlencoded"})
    assert status == 200


@pytest.mark.parametrize("authorization", ["", "Bearer ", "Bearer wrong", "Basic d2drX2dyb3d0aA==", "wgk_growth"])
def test_a_key_that_is_missing_or_unknown_is_401(running, authorization):
    gateway, _ = running
    status, headers, text = process.fetch(gateway.url + "/v1/tasks/x", Authorization=authorization)
    assert (status, json.loads(text)["error"]["code"]) == (401, "invalid_api_key")
    assert headers["WWW-Authenticate"] == "Bearer"


def test_another_teams_task_is_404_byte_for_byte_like_an_unknown_one(running):
    gateway, _ = running
    task_id = gateway.submit()[2]["task_id"]

    def seen(path):
        status, _, document = gateway.call("GET", path, team="research")
        document["error"].pop("request_id")
        return status, document

    assert seen(f"/v1/tasks/{task_id}") == seen("/v1/tasks/task-wg00000000000000000000000000")
    assert seen(f"/v1/tasks/{task_id}")[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("POST", "/v1/chat/completions", 404, "not_found"),
        ("GET", "/nothing", 404, "not_found"),
        ("DELETE", "/v1/tasks/x", 405, "method_not_allowed"),
        ("GET", "/media/" + "0" * 64 + ".jpg", 404, "not_found"),
        ("GET", "/media/../wave.db", 404, "not_found"),
    ],
)
def test_what_is_not_there_is_said_in_one_form(running, method, path, status, code):
    gateway, _ = running
    answered, headers, document = gateway.call(method, path)
    assert (answered, document["error"]["code"]) == (status, code)
    assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")


def test_health_is_open_and_metrics_are_for_loopback_without_a_proxy(running):
    gateway, _ = running
    assert process.fetch(gateway.url + "/healthz")[0] == 200
    assert process.fetch(gateway.url + "/readyz")[0] == 200
    assert process.fetch(gateway.url + "/metrics")[0] == 200
    assert process.fetch(gateway.url + "/metrics", X_Forwarded_For="8.8.8.8")[0] == 401


def test_with_a_metrics_token_only_who_has_it_may_scrape(tmp_path):
    with process.pair(tmp_path, "--metrics-token", "t0ken") as (gateway, _):
        assert process.fetch(gateway.url + "/metrics")[0] == 401
        assert process.fetch(gateway.url + "/metrics", Authorization="Bearer wgk_growth")[0] == 401
        accept = "application/openmetrics-text"
        status, headers, text = process.fetch(gateway.url + "/metrics", Authorization="Bearer t0ken", Accept=accept)
        assert status == 200 and headers["Content-Type"].startswith(accept) and text.endswith(b"# EOF\n")


def test_the_headers_of_a_task_tell_cost_cache_and_upstream(running):
    gateway, _ = running
    _, headers, document = gateway.submit(seed=4711, prompt="headers")
    assert (headers["X-Cache"], headers["X-Wave-Cost-Usd"]) == ("MISS", "0.013282")
    assert headers["Cache-Status"].startswith('wave-gateway; fwd=miss; stored; key="')
    gateway.complete(document["task_id"])
    _, headers, _ = gateway.call("GET", f"/v1/tasks/{document['task_id']}")
    assert headers["X-Wave-Cost-Usd"] == "0.01328"
    assert headers["X-Wave-Upstream-Task-Id"].startswith("task-wave")
    _, headers, hit = gateway.submit(seed=4711, prompt="headers", n=1, resolution="1k")
    assert (headers["X-Cache"], headers["X-Wave-Cost-Usd"], hit["status"]) == ("HIT", "0", "completed")
    assert headers["Cache-Status"].startswith("wave-gateway; hit; key=")


def test_prefer_wait_answers_when_the_task_has_ended(running):
    gateway, _ = running
    body = {"model": FLASH, "prompt": "wait for it"}
    status, headers, document = gateway.call("POST", "/v1/tasks", body, Prefer="wait=20")
    assert (status, document["status"], headers["Preference-Applied"]) == (200, "completed", "wait=20")
    _, headers, _ = gateway.call("GET", f"/v1/tasks/{document['task_id']}", Prefer="respond-async, wait=900")
    assert headers["Preference-Applied"] == "wait=55"


def test_an_idempotency_key_returns_the_first_task_and_says_so(running):
    gateway, _ = running
    body = {"model": FLASH, "prompt": "once"}
    _, first, task = gateway.call("POST", "/v1/tasks", body, **{"Idempotency-Key": "k-1"})
    _, again, same = gateway.call("POST", "/v1/tasks", body, **{"Idempotency-Key": "k-1"})
    assert (first["Idempotent-Replayed"], again["Idempotent-Replayed"]) == (None, "true")
    assert task["task_id"] == same["task_id"]
    other = {"model": FLASH, "prompt": "twice"}
    status, _, document = gateway.call("POST", "/v1/tasks", other, **{"Idempotency-Key": "k-1"})
    assert (status, document["error"]["code"]) == (422, "idempotency_key_reused")
    status, _, document = gateway.call("POST", "/v1/tasks", body, **{"Idempotency-Key": "x" * 256})
    assert (status, document["error"]["param"]) == (400, "Idempotency-Key")


def test_a_refusal_of_the_vendor_reaches_the_client_with_its_status_and_body(running):
    gateway, vendor = running
    vendor.script([{"on": "submit", "do": {"status": 422, "code": "bad_thing", "message": "no", "param": "x"}}])
    status, _, document = gateway.submit(prompt="refuse me")
    assert (status, document["error"]["code"], document["error"]["param"]) == (422, "bad_thing", "x")


def test_a_media_range_is_one_range(running):
    gateway, _ = running
    done = gateway.complete(gateway.submit()[2]["task_id"])
    [url] = done["result"]["images"][0]["url"]
    whole = process.fetch(url)[2]
    status, headers, part = process.fetch(url, Range="bytes=10-19")
    assert (status, headers["Content-Range"], part) == (206, f"bytes 10-19/{len(whole)}", whole[10:20])
    assert process.fetch(url, Range="bytes=0-1,5-6")[0] == 416
    assert process.fetch(url, method="HEAD")[2] == b""


def test_a_flood_of_half_sent_headers_does_not_stop_the_gateway(running):
    gateway, _ = running
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    half = [socket.create_connection((host, int(port))) for _ in range(50)]
    try:
        for each in half:
            each.sendall(b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nX-A: ")
        assert gateway.submit()[0] == 200
    finally:
        for each in half:
            each.close()
