"""Cancelling over real sockets, and who may."""

from __future__ import annotations

import dataclasses
import hashlib
import time

import httpx
from starlette.applications import Starlette

from gateway.edge import auth, render
from gateway.edge import tasks as tasks_edge
from gateway.rules import policy
from tests import process
from tests import stage as stages


def test_a_client_cancels_what_is_queued_and_what_waits_and_is_told_of_the_rest(tmp_path):
    with process.pair(tmp_path) as (gateway, vendor):
        vendor.script(
            [
                {"on": "submit", "prompt": "queued", "do": {"queue_s": 60}},
                {"on": "submit", "prompt": "waiting", "do": {"status": 429, "retry_after": 100}},
            ]
        )
        queued = gateway.submit(prompt="queued")[2]["task_id"]
        waiting = gateway.submit(prompt="waiting")[2]["task_id"]
        for task_id in (queued, waiting):
            status, _, error = gateway.call("POST", f"/v1/tasks/{task_id}/cancel", team="research")
            assert (status, error["error"]["code"]) == (404, "task_not_found")
        status, headers, document = gateway.call("POST", f"/v1/tasks/{queued}/cancel")
        assert (status, headers["Content-Type"]) == (200, "application/json")
        assert document == {"task_id": queued, "status": "cancelled", "refunded": True, "refunded_quota": 6640}
        began = time.monotonic()
        assert gateway.complete(queued)["status"] == "cancelled"
        assert time.monotonic() - began < 5
        assert gateway.call("POST", f"/v1/tasks/{waiting}/cancel")[2] == {
            "task_id": waiting,
            "status": "cancelled",
            "refunded": True,
            "refunded_quota": 6641,
        }
        done = gateway.submit(prompt="done")[2]["task_id"]
        gateway.complete(done)
        for task_id in (queued, waiting, done):
            status, headers, error = gateway.call("POST", f"/v1/tasks/{task_id}/cancel")
            assert (status, error["error"]["code"]) == (400, "task_not_cancellable")
            assert error["error"]["request_id"] == headers["X-Wave-Request-Id"]
        assert gateway.call("GET", f"/v1/tasks/{done}/cancel")[0] == 405
        assert gateway.settled_nanos() == vendor.bill()["nanos"] == 13_280_000
        assert gateway.cli("audit").returncode == 0


async def test_only_a_key_that_can_cancel_may(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted()
        policies = stage.parts.in_force.policies
        can = frozenset({policy.Permission.SUBMIT, policy.Permission.READ})
        [ci] = policies.teams["growth"].keys
        key = dataclasses.replace(ci, sha256=(hashlib.sha256(b"wgk_reader").digest(),), can=can)
        growth = dataclasses.replace(policies.teams["growth"], keys=(key,))
        limited = dataclasses.replace(policies, teams={"growth": growth})
        routes = tasks_edge.routes(stage.parts, auth.Keys(lambda: limited, stage.clock), max_wait_s=1)
        app = Starlette(routes=routes, exception_handlers=render.exception_handlers())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway.test") as client:
            client.headers["Authorization"] = "Bearer wgk_reader"
            answer = await client.post(f"/v1/tasks/{row.id}/cancel")
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_permitted")
            del client.headers["Authorization"]
            assert (await client.post(f"/v1/tasks/{row.id}/cancel")).status_code == 401
        assert stage.vendor.requests.counts["cancel"] == 0
