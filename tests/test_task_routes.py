"""What a client may wish of a submit, a poll and a list; on real sockets."""

from __future__ import annotations

import json
import socket
import sqlite3
import time

import pytest

from tests import process

FLASH = "gemini-2.5-flash-image-preview"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    caps = 'contact: "#growth"\nspend: [{name: daily, cap: "5", per: day}]\n'
    org = 'spend: [{name: org-day, cap: "50", per: day}]\n'
    with process.pair(tmp_path_factory.mktemp("wishes"), "--max-wait", "4s", org=org, growth=caps) as both:
        yield both


def _post(gateway, prompt, *, seed=None, path="/v1/tasks", team="growth", **headers):
    body = {"model": FLASH, "prompt": prompt} | ({} if seed is None else {"seed": seed})
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return gateway.call("POST", path, body, team=team, **named)


def test_no_store_is_neither_read_nor_written_nor_joined(running):
    gateway, _ = running
    _, headers, first = _post(gateway, "no-store", seed=1, X_Wave_Cache="no-store")
    assert (headers["X-Cache"], headers["Cache-Status"]) == ("BYPASS", "wave-gateway; fwd=bypass")
    _, headers, second = _post(gateway, "no-store", seed=1)
    assert headers["X-Cache"] == "MISS"
    gateway.complete(first["task_id"])
    gateway.complete(second["task_id"])
    assert _post(gateway, "no-store", seed=1, X_Wave_Cache="no-store")[1]["X-Cache"] == "BYPASS"


def test_refresh_is_not_read_or_joined_but_written(running):
    gateway, _ = running
    first = _post(gateway, "refresh", seed=1)[2]
    _, headers, second = _post(gateway, "refresh", seed=1, X_Wave_Cache="refresh")
    assert headers["X-Cache"] == "MISS"
    gateway.complete(first["task_id"])
    gateway.complete(second["task_id"])
    fresh = _post(gateway, "refresh", seed=1, X_Wave_Cache="refresh")
    assert fresh[1]["X-Cache"] == "MISS"
    gateway.complete(fresh[2]["task_id"])
    assert _post(gateway, "refresh", seed=1)[1]["X-Cache"] == "HIT"


def test_only_if_cached_takes_a_hit_or_a_leader_and_else_answers_504(running):
    gateway, vendor = running
    before = vendor.requests()["counts"]["submit"] if vendor.requests()["counts"] else 0
    status, _, document = _post(gateway, "only", seed=1, X_Wave_Cache="only-if-cached")
    assert (status, document["error"]["code"]) == (504, "only_if_cached")
    assert vendor.requests()["counts"].get("submit", 0) == before
    task_id = _post(gateway, "only", seed=1)[2]["task_id"]
    assert _post(gateway, "only", seed=1, X_Wave_Cache="only-if-cached")[1]["X-Cache"] == "COALESCED"
    gateway.complete(task_id)
    assert _post(gateway, "only", seed=1, X_Wave_Cache="only-if-cached")[1]["X-Cache"] == "HIT"


def test_a_client_may_bound_the_cost_of_its_own_request(running):
    gateway, _ = running
    status, _, document = _post(gateway, "dear", X_Wave_Max_Cost_Usd="0.01")
    assert (status, document["error"]["code"]) == (403, "max_cost_exceeded")
    assert _post(gateway, "dear", X_Wave_Max_Cost_Usd="0.01328125")[0] == 200


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Wave-Cache", "sometimes"),
        ("X-Wave-Max-Cost-Usd", "-1"),
        ("X-Wave-Max-Cost-Usd", "1e3"),
        ("X-Wave-Dry-Run", "maybe"),
        ("X-Wave-Tags", "novalue"),
        ("X-Wave-Tags", "a=1,a=2"),
        ("X-Wave-Tags", ",".join(f"k{number}=v" for number in range(9))),
    ],
)
def test_a_wish_that_makes_no_sense_is_400_and_named(running, header, value):
    gateway, _ = running
    status, _, document = gateway.call("POST", "/v1/tasks", {"model": FLASH, "prompt": "x"}, **{header: value})
    assert (status, document["error"]["code"], document["error"]["param"]) == (400, "invalid_request", header)


def test_tags_are_kept_on_the_task(running):
    gateway, _ = running
    task_id = _post(gateway, "tagged", X_Wave_Tags="project=blog, stage=draft 1")[2]["task_id"]
    with sqlite3.connect(f"file:{gateway.data / 'wave.db'}?mode=ro", uri=True) as database:
        [[tags]] = database.execute("SELECT tags FROM tasks WHERE id = ?", [task_id]).fetchall()
    database.close()
    assert json.loads(tags) == {"project": "blog", "stage": "draft 1"}


def test_a_retry_that_says_so_is_the_first_task_and_nonsense_is_a_new_one(running):
    gateway, vendor = running
    before = vendor.requests()["counts"].get("submit", 0)
    count = "x-stainless-retry-count"
    status, headers, first = gateway.call("POST", "/v1/tasks", {"model": FLASH, "prompt": "retried"}, **{count: "0"})
    assert (status, headers["Idempotent-Replayed"]) == (200, None)
    for path, said in (("/v1/tasks", "1"), ("/v1/tasks", "2"), ("/v1/tasks/sync", "1")):
        status, headers, again = gateway.call("POST", path, {"model": FLASH, "prompt": "retried"}, **{count: said})
        assert (status, headers["Idempotent-Replayed"], again["task_id"]) == (200, "true", first["task_id"])
    assert vendor.requests()["counts"]["submit"] == before + 1
    nonsense = ("0", "-1", "+1", "1.0", "one", "", "0x1", "1 2", "1" + "0" * 30)
    for said in nonsense:
        _, headers, again = gateway.call("POST", "/v1/tasks", {"model": FLASH, "prompt": "retried"}, **{count: said})
        assert headers["Idempotent-Replayed"] is None, said
    head = f"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {process.KEYS['growth']}\r\n"
    body = json.dumps({"model": FLASH, "prompt": "retried"})
    head += f"Connection: close\r\nContent-Length: {len(body)}\r\n{count}: 1\r\n{count}: 1\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])), timeout=30) as client:
        client.sendall((head + body).encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ") and b"idempotent-replayed" not in answer.lower()
    assert vendor.requests()["counts"]["submit"] == before + 2 + len(nonsense)


def test_a_dry_run_tells_everything_and_changes_nothing(running):
    gateway, vendor = running
    before = vendor.requests()["counts"].get("submit", 0)
    status, _, said = _post(gateway, "dry", seed=1, X_Wave_Dry_Run="true")
    assert (status, said["decision"], said["quote_usd"], said["cache"], said["changed"]) == (
        200,
        "allow",
        "0.013282",
        "miss",
        [],
    )
    assert len(said["fingerprint"]) == 64 and "code" not in said
    org, daily = said["caps"]
    assert (org["scope"], org["cap_name"]) == ("org", "org-day") and "cap_usd" not in org
    assert (daily["scope"], daily["name"], daily["window"], daily["cap_usd"]) == ("team", "growth", "day", "5")
    assert daily["reset_at"] % 86_400 == 0
    status, _, said = _post(gateway, "dry", X_Wave_Dry_Run="true", X_Wave_Max_Cost_Usd="0.001")
    assert (status, said["decision"], said["code"]) == (200, "deny", "max_cost_exceeded")
    assert _post(gateway, "dry", seed=1, X_Wave_Dry_Run="true", X_Wave_Cache="no-store")[2]["cache"] == "bypass"
    only = _post(gateway, "dry", seed=1, X_Wave_Dry_Run="true", X_Wave_Cache="only-if-cached")[2]
    assert (only["decision"], only["code"]) == ("deny", "only_if_cached")
    assert vendor.requests()["counts"].get("submit", 0) == before


def test_a_traceparent_is_passed_on_and_nonsense_is_not(running):
    gateway, vendor = running
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    _post(gateway, "traced", traceparent=parent)
    assert vendor.requests()["submits"][-1]["headers"].get("traceparent") == parent
    _post(gateway, "traced", traceparent="nonsense")
    assert "traceparent" not in vendor.requests()["submits"][-1]["headers"]


def test_a_poll_has_an_etag_that_changes_with_the_task(running):
    gateway, _ = running
    done = gateway.complete(_post(gateway, "tag me")[2]["task_id"])
    path = f"/v1/tasks/{done['task_id']}"
    tag = gateway.call("GET", path)[1]["ETag"]
    status, headers, document = gateway.call("GET", path, **{"If-None-Match": tag})
    assert (status, headers["ETag"], document) == (304, tag, None)
    assert gateway.call("GET", path, **{"If-None-Match": '"other"'})[0] == 200


def test_the_old_synchronous_form_waits_and_else_tells_where_to_poll(running):
    gateway, vendor = running
    status, _, document = _post(gateway, "sync", path="/v1/tasks/sync")
    assert (status, document["status"]) == (200, "completed")
    assert document["result"]["images"][0]["url"][0].startswith(gateway.url + "/media/")
    vendor.script([{"on": "submit", "do": {"work_s": 60}}])
    started = time.monotonic()
    status, _, document = _post(gateway, "sync slow", path="/v1/tasks/sync")
    assert time.monotonic() - started < 8
    assert (status, document["status"]) == (200, "processing")
    assert set(document) == {"task_id", "status", "progress", "poll_url"}
    assert document["poll_url"] == f"{gateway.url}/v1/tasks/{document['task_id']}"


def test_a_team_lists_its_own_tasks_newest_first_page_by_page(tmp_path):
    with process.pair(tmp_path) as (gateway, vendor):
        ids = [_post(gateway, f"picture {number}")[2]["task_id"] for number in range(5)]
        for task_id in ids:
            gateway.complete(task_id)
        vendor.script([{"on": "submit", "do": {"work_s": 60}}])
        open_id = _post(gateway, "100% open")[2]["task_id"]
        _post(gateway, "not yours", team="research")
        newest = [open_id, *reversed(ids)]

        def listed(query=""):
            status, _, page = gateway.call("GET", f"/v1/tasks{query}")
            assert status == 200, page
            return [each["task_id"] for each in page["data"]], page["has_more"], page["next_before"]

        assert listed() == (newest, False, None)
        first, has_more, before = listed("?limit=4")
        assert (first, has_more, before) == (newest[:4], True, newest[3])
        assert listed(f"?limit=4&before={before}") == (newest[4:], False, None)
        assert listed("?status=completed")[0] == newest[1:]
        assert listed("?status=failed")[0] == []
        assert listed("?q=picture%203")[0] == [ids[3]]
        assert listed("?q=100%25")[0] == [open_id]
        assert listed("?q=_")[0] == []
        assert listed("?since=2020-01-01")[0] == newest
        assert listed(f"?since={int(time.time()) + 60}")[0] == []
        for query in ("?limit=0", "?limit=101", "?status=odd", "?since=yesterday"):
            assert gateway.call("GET", f"/v1/tasks{query}")[0] == 400
        assert gateway.call("GET", "/v1/tasks?limit=1", team="research")[2]["data"][0]["task_id"] not in newest


def test_when_a_picture_was_first_read_is_kept(running):
    gateway, _ = running
    done = gateway.complete(_post(gateway, "read me")[2]["task_id"])
    [url] = done["result"]["images"][0]["url"]
    digest = url.rpartition("/")[2].partition(".")[0]

    def first_read_at():
        with sqlite3.connect(f"file:{gateway.data / 'wave.db'}?mode=ro", uri=True) as database:
            [[at]] = database.execute("SELECT first_read_at FROM blobs WHERE digest = ?", [digest]).fetchall()
        database.close()
        return at

    assert first_read_at() is None
    process.fetch(url)
    at = first_read_at()
    assert abs(at - time.time()) < 10
    process.fetch(url)
    assert first_read_at() == at
