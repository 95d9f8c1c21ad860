"""Submits whose first POST brought no answer, a no, or a lie (CONTRACT §2)."""

from __future__ import annotations

import asyncio

import pytest

from gateway.flow import advance, attempt, recover, resubmit
from gateway.outbound import upstream
from gateway.rules import task
from tests import stage as stages

HELD = ("team", "growth", "day")
CAP = 'spend: [{cap: "1.00", per: day}]\n'


async def test_a_lost_answer_is_in_doubt_and_repeated_under_the_same_key_until_the_vendor_says(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "times": 2, "do": {"accept_and_drop": True}}])
        row = await stage.admitted()
        assert row.state is task.State.IN_DOUBT
        assert (await stage.shown(row))["status"] == "queued"
        await stage.run(1)
        assert (await stage.row(row.id)).state is task.State.IN_DOUBT
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED
        keys = {record.idempotency_key for record in stage.vendor.requests.submits}
        assert (len(keys), stage.posts()) == (1, 3)
        assert stage.vendor.bill()["tasks"] == 1
        assert await stage.settled_nanos() == stage.vendor.bill()["nanos"] == 13_280_000


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500, "code": "internal"},
        {"status": 502, "garbage": "html"},
        {"status": 302, "location": "http://127.0.0.1:1/"},
        {"status": 418},
        {"garbage": True},
        {"answer": {"code": "success"}},
        {"drop": True},
    ],
)
async def test_what_nobody_can_be_sure_of_keeps_the_hold(tmp_path, fault):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "times": 1, "do": fault}])
        row = await stage.admitted()
        assert row.state is task.State.IN_DOUBT
        assert (await stage.balances())[HELD] == (0, 13_282_000)
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED
        assert await stage.settled_nanos() == stage.vendor.bill()["nanos"] == 13_280_000


async def test_a_task_in_doubt_outlives_the_deadline_and_no_age_releases_it(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "times": None, "do": {"status": 503}}])
        row = await stage.admitted()
        await stage.finish(rounds=30, seconds=60)
        assert (await stage.row(row.id)).state is task.State.IN_DOUBT
        assert (await stage.balances())[HELD] == (0, 13_282_000)


async def test_in_doubt_after_23_hours_is_never_posted_again_and_frees_the_fingerprint(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "times": None, "do": {"status": 503}}])
        leader, follower = await stage.admitted(seed=7), await stage.admitted(seed=7)
        await stage.run(23 * 3600)
        posts = stage.posts()
        await stage.finish()
        assert stage.posts() == posts
        kept = await stage.row(leader.id)
        assert (kept.state, kept.inflight, kept.next_at) == (task.State.IN_DOUBT, None, None)
        assert await stage.entries(leader.id) == [("reserve", 13_282_000)]
        shown = await stage.shown(follower)
        assert (shown["status"], shown["error"]["code"]) == ("failed", "upstream_unavailable")
        assert (await stage.shown(leader))["status"] == "queued"
        stage.vendor.set_script([])
        assert (await stage.admitted(seed=7)).x_cache == "MISS"


async def test_a_connect_failure_waits_and_fails_at_the_deadline_with_nothing_spent(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        await _cut_off(stage)
        row = await stage.admitted(seed=7)
        follower = await stage.admitted(seed=7)
        assert row.state is task.State.WAITING
        await stage.run(119)
        assert (await stage.row(row.id)).state is task.State.WAITING
        await stage.run(1)
        for each in (row, follower):
            shown = await stage.shown(each)
            assert (shown["status"], shown["error"]["code"], shown["cost"]) == ("failed", "upstream_unavailable", 0)
            assert (await stage.row(each.id)).cost_nanos == 0
        assert await stage.entries(row.id) == [("reserve", 13_282_000), ("release", 13_282_000)]
        assert (await stage.balances())[HELD] == (0, 0)


async def test_a_task_that_waits_is_sent_when_the_vendor_is_back(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        there = stage.parts.upstream
        await _cut_off(stage)
        row = await stage.admitted()
        await _reconnect(stage, there)
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED
        assert stage.vendor.bill()["tasks"] == 1


async def test_a_429_waits_as_long_as_the_vendor_says(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"status": 429, "code": "rate_limit", "retry_after": 30}}])
        row = await stage.admitted()
        assert row.state is task.State.WAITING
        await stage.run(30)
        assert stage.posts() == 1
        await stage.run(1)
        assert (await stage.row(row.id)).state is task.State.SUBMITTED


async def test_the_vendors_quota_window_past_the_deadline_fails_now_and_never_as_the_clients_429(tmp_path):
    fault = {"status": 429, "code": "quota_window_exceeded", "reset_at": int(stages.NOON) + 3600}
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "do": fault}])
        shown = await stage.shown(await stage.admitted())
        assert (shown["status"], shown["error"]["code"]) == ("failed", "upstream_unavailable")
        assert (await stage.balances())[HELD] == (0, 0)


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_a_complaint_about_our_key_is_never_passed_on_and_goes_on_when_mended(tmp_path, status):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "times": 2, "do": {"status": status}}])
        row = await stage.admitted()
        assert (row.state, (await stage.shown(row))["status"]) == (task.State.WAITING, "queued")
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED


async def test_a_429_while_in_doubt_stays_in_doubt(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script(
            [{"on": "submit", "do": {"accept_and_drop": True}}, {"on": "submit", "do": {"status": 429}}]
        )
        row = await stage.admitted()
        await stage.run(1)
        assert (await stage.row(row.id)).state is task.State.IN_DOUBT
        await stage.run(200)
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED
        assert stage.vendor.bill()["tasks"] == 1


async def test_in_doubt_is_ended_by_a_refusal_under_its_own_key(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        refusal = {"status": 400, "code": "bad", "message": "no"}
        stage.vendor.set_script([{"on": "submit", "do": {"status": 503}}, {"on": "submit", "do": refusal}])
        row = await stage.admitted()
        await stage.run(1)
        shown = await stage.shown(row)
        assert (shown["status"], shown["error"]["code"]) == ("failed", "bad")
        assert await stage.entries(row.id) == [("reserve", 13_282_000), ("release", 13_282_000)]


async def test_in_doubt_is_repeated_only_with_the_upstream_key_it_was_sent_with(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"status": 503}}])
        row = await stage.admitted()
        stage.keys["env:KEY_GROWTH"] = "another-key"
        await stage.finish()
        assert (stage.posts(), (await stage.row(row.id)).state) == (1, task.State.IN_DOUBT)
        stage.keys["env:KEY_GROWTH"] = "vendor-key-growth"
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED


async def test_in_doubt_with_a_replaced_upstream_key_is_the_operators_after_the_deadline(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"status": 503}}])
        row = await stage.admitted(seed=7)
        stage.keys["env:KEY_GROWTH"] = "another-key"
        await stage.run(119)
        assert (await stage.row(row.id)).next_at is not None
        await stage.run(2)
        await stage.run(2)
        kept = await stage.row(row.id)
        assert (kept.state, kept.next_at, kept.inflight, stage.posts()) == (task.State.IN_DOUBT, None, None, 1)
        assert await stage.entries(row.id) == [("reserve", 13_282_000)]


async def test_a_key_that_cannot_be_read_is_waited_for(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"accept_and_drop": True}}])
        row = await stage.admitted()
        key = stage.keys.pop("env:KEY_GROWTH")
        await stage.finish(rounds=4, seconds=3600)
        assert (stage.posts(), (await stage.row(row.id)).next_at is not None) == (1, True)
        stage.keys["env:KEY_GROWTH"] = key
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED
        assert stage.vendor.bill()["tasks"] == 1


@pytest.mark.parametrize("fault", [{"accept_and_drop": True}, {"status": 503}, {"garbage": True}])
async def test_where_the_vendor_ignores_idempotency_keys_a_post_in_doubt_is_never_repeated(tmp_path, fault):
    async with stages.staged(tmp_path, growth=CAP, vendor={"idempotency": False}) as stage:
        _ignore_idempotency(stage)
        stage.vendor.set_script([{"on": "submit", "do": fault}])
        leader = await stage.admitted(seed=7)
        assert (leader.state, (await stage.shown(leader))["status"]) == (task.State.IN_DOUBT, "queued")
        await stage.finish(rounds=30, seconds=3600)
        kept = await stage.row(leader.id)
        assert (kept.state, kept.next_at, kept.inflight, stage.posts()) == (task.State.IN_DOUBT, None, None, 1)
        assert await stage.entries(leader.id) == [("reserve", 13_282_000)]
        assert (await stage.balances())[HELD] == (0, 13_282_000)
        assert (await stage.admitted(seed=7)).x_cache == "MISS"


async def test_where_the_vendor_ignores_idempotency_keys_a_post_that_a_kill_interrupted_is_the_operators(tmp_path):
    async with stages.staged(tmp_path, growth=CAP, vendor={"idempotency": False}) as stage:
        row = await stage.admitted()
        undo = "UPDATE tasks SET state = 'reserved', upstream_task_id = NULL, document = NULL WHERE id = :id"
        await stage.parts.database.write(lambda tx: tx.run(undo, id=row.id))
        _ignore_idempotency(stage)
        assert await recover.recover(stage.parts) == 1
        await stage.finish()
        kept = await stage.row(row.id)
        assert (kept.state, kept.next_at, stage.posts()) == (task.State.IN_DOUBT, None, 1)
        assert await stage.entries(row.id) == [("reserve", 13_282_000)]


async def test_where_the_vendor_ignores_idempotency_keys_what_was_provably_not_sent_is_sent_again(tmp_path):
    async with stages.staged(tmp_path, vendor={"idempotency": False}) as stage:
        _ignore_idempotency(stage)
        stage.vendor.set_script([{"on": "submit", "do": {"status": 429}}])
        row = await stage.admitted()
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED
        assert stage.vendor.bill()["tasks"] == 1


async def test_retries_are_held_to_the_budget_and_first_posts_are_not(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "prompt": "lost", "times": None, "do": {"status": 418}}])
        lost = [await stage.admitted(prompt=f"lost {number}") for number in range(60)]
        await stage.run(1)
        assert stage.posts() == 60 + 50
        await stage.run(1)
        assert stage.posts() == 60 + 50 + 3
        assert (await stage.admitted(prompt="new")).state is task.State.SUBMITTED
        stage.vendor.set_script([])
        await stage.finish(rounds=30)
        assert {(await stage.row(row.id)).state for row in lost} == {task.State.COMPLETED}


async def test_recovery_after_a_restart_is_outside_the_retry_budget(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "times": 60, "do": {"status": 418}}])
        for number in range(60):
            await stage.admitted(prompt=f"lost {number}")
        await recover.recover(stage.parts)
        await stage.run()
        assert stage.posts() == 120
        stage.vendor.set_script([{"on": "submit", "times": None, "do": {"status": 418}}])
        for number in range(60):
            await stage.admitted(prompt=f"later {number}")
        await stage.run(1)
        assert stage.posts() == 120 + 60 + 50


async def test_of_what_was_recovered_only_the_first_repeat_is_outside_the_budget(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "times": None, "do": {"status": 418}}])
        row = await stage.admitted()
        await recover.recover(stage.parts)
        for posts in (2, 2, 2):
            while stage.parts.retry_budget.take("another task", now=stage.clock()):
                pass
            await resubmit.step(stage.parts, row.id)
            assert stage.posts() == posts
            stage.clock.advance(20)
        await stage.run()
        assert stage.posts() == 3


async def test_a_task_never_accepted_is_sent_with_the_teams_present_key(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"status": 401}}])
        row = await stage.admitted()
        stage.keys["env:KEY_GROWTH"] = "mended-key"
        await stage.run(1)
        assert (await stage.row(row.id)).state is task.State.SUBMITTED
        digests = {record.authorization_sha256 for record in stage.vendor.requests.submits}
        assert len(digests) == 2


async def test_after_a_crash_a_post_that_was_under_way_is_in_doubt_and_repeated(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted()
        # What a kill between the POST and the record of its answer leaves behind.
        undo = "UPDATE tasks SET state = 'reserved', upstream_task_id = NULL, document = NULL WHERE id = :id"
        await stage.parts.database.write(lambda tx: tx.run(undo, id=row.id))
        assert await recover.recover(stage.parts) == 1
        assert (await stage.row(row.id)).state is task.State.IN_DOUBT
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED
        assert stage.vendor.bill()["tasks"] == 1
        assert await stage.audit() == []


async def test_a_repeated_post_that_a_kill_interrupted_is_repeated_again(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"accept_and_drop": True}}])
        row = await stage.admitted()
        # The attempt is durable, then the process ends before its outcome is recorded.
        now = stage.clock()
        digest = attempt.digest_of("vendor-key-growth")
        await stage.parts.database.write(
            lambda tx: advance.attempt(tx, row, key_ref="env:KEY_GROWTH", key_digest=digest, now=now)
        )
        assert await recover.recover(stage.parts) == 0
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED
        assert stage.vendor.bill()["tasks"] == 1


async def test_two_of_our_tasks_never_settle_one_of_the_vendors(tmp_path):
    async with stages.staged(tmp_path) as stage:
        answer = {"answer": {"task_id": "v-12345678", "status": "queued"}}
        stage.vendor.set_script([{"on": "submit", "times": 2, "do": answer}])
        first, second = await stage.admitted(), await stage.admitted()
        assert (first.state, second.state) == (task.State.SUBMITTED, task.State.IN_DOUBT)
        await stage.finish()
        assert (await stage.row(second.id)).state is task.State.COMPLETED
        assert await stage.settled_nanos() == stage.vendor.bill()["nanos"]


async def test_a_team_may_rather_be_refused_than_wait_for_a_connection(tmp_path):
    async with stages.staged(tmp_path, growth=CAP + "upstream_down: refuse\n") as stage:
        there = stage.parts.upstream
        await _cut_off(stage)
        row = await stage.admitted(key="k1")
        assert (row.state, row.cost_nanos) == (task.State.FAILED, 0)
        assert await stage.entries(row.id) == [("reserve", 13_282_000), ("release", 13_282_000)]
        await _reconnect(stage, there)
        again = await stage.admitted(key="k1")
        assert (again.state, again.id != row.id) == (task.State.SUBMITTED, True)


async def test_a_waiting_client_is_let_go_with_its_task_when_the_gateway_stops(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"delay_s": 5}}])
        client = asyncio.create_task(stage.admitted())
        await asyncio.sleep(0.1)
        stage.parts.watch.close()
        row = await asyncio.wait_for(client, 1)
        assert (row.state, (await stage.shown(row))["status"]) == (task.State.RESERVED, "queued")


def _ignore_idempotency(stage: stages.Stage) -> None:
    object.__setattr__(stage.parts, "is_upstream_idempotent", False)


async def _cut_off(stage: stages.Stage) -> None:
    """From now on nobody listens where the upstream was."""
    object.__setattr__(stage.parts, "upstream", upstream.Upstream("http://127.0.0.1:1"))


async def _reconnect(stage: stages.Stage, there: upstream.Upstream) -> None:
    await stage.parts.upstream.aclose()
    object.__setattr__(stage.parts, "upstream", there)
