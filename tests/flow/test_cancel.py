"""Cancels: what was never sent ends here, the vendor is asked about the rest, and only a poll moves money."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from gateway import errors
from gateway.flow import advance, attempt, cancel, poll
from gateway.outbound import upstream
from gateway.rules import task
from gateway.store import tasks
from tests import stage as stages

CAP = 'spend: [{cap: "1.00", per: day}]\n'
HELD = ("team", "growth", "day")
QUOTE = 13_282_000
BUSY = {"status": 429, "code": "rate_limit", "retry_after": 100}
"""A first POST that was provably not accepted, put off for a while."""


async def cancelled(stage: stages.Stage, row: tasks.Task) -> tuple[int, Any]:
    answer = await cancel.cancel(stage.parts, row.team, row.id)
    assert answer is not None
    return answer.status, msgspec.json.decode(answer.document)


async def refused(stage: stages.Stage, row: tasks.Task) -> errors.GatewayError:
    with pytest.raises(errors.GatewayError) as caught:
        await cancel.cancel(stage.parts, row.team, row.id)
    return caught.value


def asked(stage: stages.Stage) -> int:
    return stage.vendor.requests.counts["cancel"]


async def waiting(stage: stages.Stage, **fields: Any) -> tasks.Task:
    stage.vendor.set_script([{"on": "submit", "do": BUSY}])
    row = await stage.admitted(**fields)
    assert row.state is task.State.WAITING
    return row


async def test_an_unknown_task_and_another_teams_are_alike_and_nobody_is_asked(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted()
        assert await cancel.cancel(stage.parts, "growth", "task-wg-unknown") is None
        assert await cancel.cancel(stage.parts, "research", row.id) is None
        assert asked(stage) == 0
        assert await stage.row(row.id) == row


async def test_a_task_never_accepted_is_cancelled_here_and_released(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await waiting(stage, seed=7)
        done = {"task_id": row.id, "status": "cancelled", "refunded": True, "refunded_quota": 6641}
        assert await cancelled(stage, row) == (200, done)
        assert await stage.entries(row.id) == [("reserve", QUOTE), ("release", QUOTE)]
        assert (await stage.balances())[HELD] == (0, 0)
        shown = await stage.shown(row)
        assert (shown["status"], shown["cost"]) == ("cancelled", 0)
        await stage.finish(rounds=30)
        assert (stage.posts(), asked(stage)) == (1, 0)
        assert (await stage.admitted(seed=7)).x_cache == "MISS"
        assert await stage.audit() == []


async def test_a_cancelled_task_cannot_be_cancelled_again_and_its_key_still_returns_it(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await waiting(stage, key="k1")
        await cancelled(stage, row)
        error = await refused(stage, row)
        assert (error.status, error.code) == (400, "task_not_cancellable")
        assert "cancelled" in error.message
        assert await stage.entries(row.id) == [("reserve", QUOTE), ("release", QUOTE)]
        again = await stage.admitted(key="k1")
        assert (again.id, again.state) == (row.id, task.State.CANCELLED)


async def test_a_waiting_task_with_followers_stays(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        leader = await waiting(stage, seed=7)
        follower = await stage.admitted(seed=7)
        assert (await refused(stage, leader)).code == "task_not_cancellable"
        assert await stage.entries(leader.id) == [("reserve", QUOTE)]
        await cancelled(stage, follower)
        assert (await cancelled(stage, leader))[1]["refunded_quota"] == 6641


async def test_while_the_post_is_under_way_a_task_cannot_be_cancelled(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"delay_s": 0.3}}])
        client = asyncio.create_task(stage.admitted())
        while not stage.posts():  # noqa: ASYNC110 - until the vendor has it
            await asyncio.sleep(0.01)
        [found] = await stage.parts.database.read(lambda tx: tx.all("SELECT id FROM tasks"))
        row = await stage.row(found["id"])
        assert row.state is task.State.RESERVED
        assert (await refused(stage, row)).code == "task_not_cancellable"
        assert (await client).state is task.State.SUBMITTED
        assert (await stage.balances())[HELD] == (0, QUOTE)
        assert asked(stage) == 0


async def test_what_is_in_doubt_cannot_be_cancelled(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "times": 1, "do": {"accept_and_drop": True}}])
        row = await stage.admitted()
        assert row.state is task.State.IN_DOUBT
        assert (await refused(stage, row)).code == "task_not_cancellable"
        assert (asked(stage), (await stage.balances())[HELD]) == (0, (0, QUOTE))
        await stage.finish()
        assert await stage.settled_nanos() == stage.vendor.bill()["nanos"] == 13_280_000


async def test_a_follower_leaves_at_cost_0_and_its_leader_goes_on(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        leader, follower = await stage.admitted(seed=7), await stage.admitted(seed=7)
        done = {"task_id": follower.id, "status": "cancelled", "refunded": True, "refunded_quota": 0}
        assert await cancelled(stage, follower) == (200, done)
        assert await stage.row(leader.id) == leader
        left = await stage.shown(follower)
        assert (left["status"], left["cost"]) == ("cancelled", 0)
        await stage.finish()
        assert (await stage.row(leader.id)).state is task.State.COMPLETED
        assert await stage.shown(follower) == left
        assert await stage.entries(follower.id) == []
        assert (await refused(stage, follower)).code == "task_not_cancellable"
        assert asked(stage) == 0
        assert await stage.audit() == []


async def test_a_follower_that_left_does_not_get_its_leaders_failure(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"outcome": "failed"}}])
        leader, follower = await stage.admitted(seed=7), await stage.admitted(seed=7)
        await cancelled(stage, follower)
        await stage.finish()
        assert (await stage.row(leader.id)).state is task.State.FAILED
        shown = await stage.shown(follower)
        assert (shown["status"], "error" in shown) == ("cancelled", False)


async def test_a_submitted_task_with_followers_stays_and_nobody_is_asked(tmp_path):
    async with stages.staged(tmp_path) as stage:
        leader, follower = await stage.admitted(seed=7), await stage.admitted(seed=7)
        assert (await refused(stage, leader)).code == "task_not_cancellable"
        assert asked(stage) == 0
        await stage.finish()
        assert (await stage.row(follower.id)).state is task.State.COMPLETED


async def test_another_teams_follower_keeps_the_leader_from_being_cancelled(tmp_path):
    shared = "cache: {requests: seeded, scope: org}\n"
    async with stages.staged(tmp_path, growth=shared, research=shared) as stage:
        leader = await stage.admitted(seed=7)
        follower = await stage.admitted(stages.OTHER, seed=7)
        assert follower.leader_id == leader.id
        assert (await refused(stage, leader)).code == "task_not_cancellable"
        await cancelled(stage, follower)
        assert (await cancelled(stage, leader))[1]["status"] == "cancelled"


async def test_the_vendors_yes_is_relayed_and_the_hold_stays_until_a_poll_confirms(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted()
        done = {"task_id": row.id, "status": "cancelled", "refunded": True, "refunded_quota": 6640}
        assert await cancelled(stage, row) == (200, done)
        assert await stage.entries(row.id) == [("reserve", QUOTE)]
        assert (await stage.balances())[HELD] == (0, QUOTE)
        assert (await stage.shown(row))["status"] != "cancelled"
        await stage.run()
        assert (await stage.row(row.id)).state is task.State.CANCELLED
        assert await stage.entries(row.id) == [("reserve", QUOTE), ("release", QUOTE)]
        assert (await stage.shown(row))["status"] == "cancelled"
        assert stage.vendor.bill()["nanos"] == await stage.settled_nanos() == 0
        assert (await refused(stage, row)).code == "task_not_cancellable"


async def test_after_a_yes_the_poll_is_due_at_once_also_for_a_gateway_that_was_just_started(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted()
        assert row.next_at == stages.NOON + 0.5
        await cancelled(stage, row)
        assert (await stage.row(row.id)).next_at == stages.NOON


async def test_the_vendors_fields_come_through_with_ids_and_links_made_ours(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted()
        theirs = row.upstream_task_id
        link = f"https://vendor.example/v1/tasks/{theirs}"
        merged = {"urls": {"get": link}, "note": f"task {theirs} is gone", "extra": 1}
        stage.vendor.set_script([{"on": "cancel", "do": {"merge": merged}}])
        _, document = await cancelled(stage, row)
        assert document["urls"] == {"get": f"http://gateway.test/v1/tasks/{row.id}"}
        assert (document["note"], document["extra"]) == (f"task {row.id} is gone", 1)
        assert theirs is not None and theirs not in str(document)


async def test_the_vendors_no_is_passed_on_and_the_task_goes_on_and_can_be_followed(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted(seed=7)
        stage.clock.advance(0.4)
        error = {"message": "the task is processing", "code": "task_not_cancellable"}
        assert await cancelled(stage, row) == (400, {"error": error})
        assert (await stage.admitted(seed=7)).leader_id == row.id
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED
        assert await stage.entries(row.id) == [("reserve", QUOTE), ("settle", 13_280_000)]


async def test_a_task_that_completes_after_the_vendors_yes_is_settled_in_full(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted(seed=7)
        stage.vendor.set_script([{"on": "cancel", "do": {"pretend": True}}])
        assert (await cancelled(stage, row))[1]["status"] == "cancelled"
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED
        assert await stage.entries(row.id) == [("reserve", QUOTE), ("settle", 13_280_000)]
        assert (await stage.shown(row))["status"] == "completed"
        assert await stage.settled_nanos() == stage.vendor.bill()["nanos"]
        assert (await stage.admitted(seed=7)).x_cache == "HIT"


LOST: list[tuple[dict[str, Any], int, str]] = [
    ({"drop": True}, 504, "upstream_timeout"),
    ({"accept_and_drop": True}, 504, "upstream_timeout"),
    ({"status": 500}, 502, "upstream_error"),
    ({"status": 503}, 502, "upstream_error"),
    ({"status": 503, "accept": True}, 502, "upstream_error"),
    ({"garbage": True}, 502, "upstream_error"),
    ({"garbage": "html"}, 502, "upstream_error"),
    ({"answer": {"task_id": "task-wave-another", "status": "cancelled"}}, 502, "upstream_error"),
    ({"answer": {}}, 502, "upstream_error"),
    ({"answer": "x" * 1_100_000}, 502, "upstream_error"),
    ({"status": 302, "location": "http://127.0.0.1:1/"}, 502, "upstream_error"),
    ({"status": 404, "code": "task_not_found"}, 502, "upstream_error"),
    ({"status": 400, "garbage": "html"}, 502, "upstream_error"),
]


@pytest.mark.parametrize(("fault", "status", "code"), LOST)
async def test_an_answer_that_is_lost_or_says_nothing_releases_nothing(tmp_path, fault, status, code):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted()
        stage.vendor.set_script([{"on": "cancel", "do": fault}])
        error = await refused(stage, row)
        assert (error.status, error.code) == (status, code)
        assert await stage.entries(row.id) == [("reserve", QUOTE)]
        assert (await stage.row(row.id)).next_at == stages.NOON
        await stage.finish()
        assert await stage.settled_nanos() == stage.vendor.bill()["nanos"]
        assert (await stage.balances())[HELD] == (stage.vendor.bill()["nanos"], 0)
        assert await stage.audit() == []


async def test_an_answer_that_does_not_come_in_time_is_a_504(tmp_path, monkeypatch):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted()
        monkeypatch.setattr(upstream, "TOTAL_S", 0.2)
        stage.vendor.set_script([{"on": "cancel", "do": {"accept_and_hang_s": 1}}])
        error = await refused(stage, row)
        assert (error.status, error.code) == (504, "upstream_timeout")
        assert await stage.entries(row.id) == [("reserve", QUOTE)]
        monkeypatch.undo()
        await stage.run()
        assert (await stage.row(row.id)).state is task.State.CANCELLED


@pytest.mark.parametrize("status", [401, 402, 403, 429])
async def test_a_complaint_about_our_key_or_rate_is_never_passed_on(tmp_path, status):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted(seed=7)
        stage.vendor.set_script([{"on": "cancel", "do": {"status": status, "code": "bad_key"}}])
        error = await refused(stage, row)
        assert (error.status, error.code, error.headers) == (503, "upstream_unavailable", {"Retry-After": "5"})
        assert "bad_key" not in error.message
        assert await stage.entries(row.id) == [("reserve", QUOTE)]
        assert (await stage.admitted(seed=7)).leader_id == row.id


async def test_without_a_connection_the_vendor_was_not_asked_and_the_task_goes_on(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted(seed=7)
        there = stage.parts.upstream
        nobody = upstream.Upstream("http://127.0.0.1:1")
        object.__setattr__(stage.parts, "upstream", nobody)
        error = await refused(stage, row)
        await nobody.aclose()
        object.__setattr__(stage.parts, "upstream", there)
        assert (error.status, error.code) == (503, "upstream_unavailable")
        assert (await stage.admitted(seed=7)).leader_id == row.id
        assert await stage.entries(row.id) == [("reserve", QUOTE)]


async def test_without_a_key_that_can_be_read_the_team_is_not_ready(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted()
        stage.keys.clear()
        error = await refused(stage, row)
        assert (error.status, error.code, asked(stage)) == (503, "team_not_ready", 0)


async def test_what_was_delivered_or_has_ended_cannot_be_cancelled(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "media", "times": None, "do": {"status": 503}}])
        row = await stage.admitted(seed=7)
        await stage.run(2)
        assert (await stage.row(row.id)).state is task.State.DELIVERED
        assert (await refused(stage, row)).code == "task_not_cancellable"
        stage.vendor.set_script([{"on": "submit", "do": {"status": 400, "code": "no"}}])
        await stage.finish()
        for each in (row, await stage.admitted(), await stage.admitted(seed=7)):
            assert (await refused(stage, each)).code == "task_not_cancellable"
        assert asked(stage) == 0


async def test_a_cancel_and_the_poll_that_delivers_settle_once_whoever_is_first(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted()
        stage.vendor.set_script([{"on": "cancel", "do": {"delay_s": 0.2}}])
        stage.clock.advance(2)
        cancelling = asyncio.create_task(cancelled(stage, row))
        while not asked(stage):  # noqa: ASYNC110 - until the vendor has it
            await asyncio.sleep(0.01)
        await poll.step(stage.parts, row.id)
        delivered = await stage.row(row.id)
        assert delivered.state is task.State.DELIVERED
        status, document = await cancelling
        assert (status, document["error"]["code"]) == (400, "task_not_cancellable")
        assert await stage.row(row.id) == delivered
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED
        assert await stage.entries(row.id) == [("reserve", QUOTE), ("settle", 13_280_000)]
        assert await stage.audit() == []


async def test_a_yes_that_comes_after_the_poll_that_delivered_changes_nothing(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted()
        lie = {"task_id": row.upstream_task_id, "status": "cancelled", "refunded": True, "refunded_quota": 6640}
        stage.vendor.set_script([{"on": "cancel", "do": {"delay_s": 0.2, "answer": lie}}])
        stage.clock.advance(2)
        cancelling = asyncio.create_task(cancelled(stage, row))
        while not asked(stage):  # noqa: ASYNC110 - until the vendor has it
            await asyncio.sleep(0.01)
        await stage.run()
        assert (await cancelling)[0] == 200
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED
        assert await stage.entries(row.id) == [("reserve", QUOTE), ("settle", 13_280_000)]


async def test_a_poll_that_saw_the_task_before_its_cancel_does_not_revive_it(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted()
        stage.vendor.set_script([{"on": "poll", "do": {"delay_s": 0.2, "merge": {"status": "processing"}}}])
        polling = asyncio.create_task(poll.step(stage.parts, row.id))
        while not stage.vendor.requests.counts["poll"]:  # noqa: ASYNC110 - until the vendor has it
            await asyncio.sleep(0.01)
        await cancelled(stage, row)
        await polling
        assert (await stage.row(row.id)).state is task.State.SUBMITTED
        await stage.run(1)
        assert (await stage.row(row.id)).state is task.State.CANCELLED
        assert await stage.entries(row.id) == [("reserve", QUOTE), ("release", QUOTE)]


async def test_nobody_begins_to_follow_a_task_while_the_vendor_is_asked_to_cancel_it(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted(seed=7)
        stage.vendor.set_script([{"on": "cancel", "do": {"delay_s": 0.2}}])
        cancelling = asyncio.create_task(cancelled(stage, row))
        while not asked(stage):  # noqa: ASYNC110 - until the vendor has it
            await asyncio.sleep(0.01)
        other = await stage.admitted(seed=7)
        assert (other.leader_id, other.x_cache) == (None, "MISS")
        await cancelling
        await stage.finish()
        states = [(await stage.row(each.id)).state for each in (row, other)]
        assert states == [task.State.CANCELLED, task.State.COMPLETED]
        assert await stage.settled_nanos() == stage.vendor.bill()["nanos"] == 13_280_000


async def test_a_no_does_not_take_the_fingerprint_back_from_who_leads_now(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted(seed=7)
        stage.vendor.set_script([{"on": "cancel", "do": {"delay_s": 0.2, "status": 400, "code": "no"}}])
        cancelling = asyncio.create_task(cancelled(stage, row))
        while not asked(stage):  # noqa: ASYNC110 - until the vendor has it
            await asyncio.sleep(0.01)
        other = await stage.admitted(seed=7)
        assert (await cancelling)[0] == 400
        assert (await stage.admitted(seed=7)).leader_id == other.id


async def test_a_cancel_that_meets_the_next_post_loses_or_wins_but_never_both(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        first, second = await waiting(stage), await waiting(stage, prompt="a hare")
        digest = attempt.digest_of("vendor-key-growth")

        async def begin(row: tasks.Task) -> tasks.Task | None:
            return await stage.parts.database.write(
                lambda tx: advance.attempt(tx, row, key_ref="env:KEY_GROWTH", key_digest=digest, now=stage.clock())
            )

        await cancelled(stage, first)
        assert await begin(first) is None
        assert await begin(second) is not None
        assert (await refused(stage, second)).code == "task_not_cancellable"
        assert await stage.entries(second.id) == [("reserve", QUOTE)]


async def test_the_vendors_word_is_relayed_also_when_the_ledger_cannot_be_written(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted()
        stage.vendor.set_script([{"on": "cancel", "do": {"delay_s": 0.2}}])
        cancelling = asyncio.create_task(cancelled(stage, row))
        while not asked(stage):  # noqa: ASYNC110 - until the vendor has it
            await asyncio.sleep(0.01)
        stage.parts.database.close()
        assert (await cancelling)[1]["status"] == "cancelled"
        assert stage.parts.watch.take_wanted(10, now=stage.clock()) == [row.id]


async def test_many_cancels_at_once_release_once(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await waiting(stage)
        said = await asyncio.gather(
            *(cancel.cancel(stage.parts, "growth", row.id) for _ in range(20)), return_exceptions=True
        )
        assert sum(isinstance(each, cancel.Answer) for each in said) == 1
        assert sum(isinstance(each, errors.CallerError) for each in said) == 19
        assert await stage.entries(row.id) == [("reserve", QUOTE), ("release", QUOTE)]
        assert (await stage.balances())[HELD] == (0, 0)


async def test_the_vendor_cancelling_by_itself_and_a_client_cancelling_release_once(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted()
        await asyncio.gather(cancelled(stage, row), cancelled(stage, row))
        await asyncio.gather(poll.step(stage.parts, row.id), poll.step(stage.parts, row.id))
        assert await stage.entries(row.id) == [("reserve", QUOTE), ("release", QUOTE)]
        assert (await stage.row(row.id)).state is task.State.CANCELLED
