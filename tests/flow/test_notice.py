"""Which ends are noted in the outbox, and that each is noted with the end itself."""

from __future__ import annotations

import pytest

from gateway.flow import cancel, resolve
from gateway.rules import task
from tests import stage as stages

HOOK = "https://hooks.example.com/x?token=t"
NOTED = "SELECT task_id, team, receiver, event, state, attempts, due_at FROM outbox ORDER BY task_id"


async def noted(stage: stages.Stage) -> list[tuple[str, str]]:
    """(task id, event) of every webhook in the outbox."""
    rows = await stage.parts.database.read(lambda tx: tx.all("SELECT task_id, event FROM outbox ORDER BY task_id"))
    return [(row["task_id"], row["event"]) for row in rows]


async def test_a_completed_task_has_its_webhook_in_the_outbox_once_and_an_open_one_has_none(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted(callback_url=HOOK)
        await stage.admitted(prompt="nobody is told of this one")
        assert await noted(stage) == []
        await stage.finish()
        [kept] = await stage.parts.database.read(lambda tx: tx.all(NOTED))
        ended_at = (await stage.row(row.id)).ended_at
        assert stages.values(kept) == (row.id, "growth", "hooks.example.com:443", "completed", "pending", 0, ended_at)


async def test_while_a_result_is_not_mirrored_nobody_is_told(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "media", "times": None, "do": {"status": 503}}])
        row = await stage.admitted(callback_url=HOOK)
        await stage.run(10)
        await stage.run()
        assert (await stage.row(row.id)).state is task.State.DELIVERED
        assert await noted(stage) == []


async def test_a_failed_task_is_told_of_and_so_are_its_followers(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"outcome": "failed"}}])
        leader = await stage.admitted(seed=7)
        one = await stage.admitted(seed=7, callback_url=HOOK)
        await stage.admitted(seed=7)
        other = await stage.admitted(seed=7, callback_url=HOOK, callback_events=["failed"])
        await stage.admitted(seed=7, callback_url=HOOK, callback_events=["succeeded"])
        await stage.finish()
        assert (await stage.row(leader.id)).state is task.State.FAILED
        assert await noted(stage) == [(one.id, "failed"), (other.id, "failed")]


async def test_a_hit_is_told_of_at_once(tmp_path):
    async with stages.staged(tmp_path) as stage:
        await stage.admitted(seed=7)
        await stage.finish()
        hit = await stage.admitted(seed=7, callback_url=HOOK, callback_events=["succeeded"])
        assert hit.x_cache == "HIT"
        await stage.admitted(seed=7, callback_url=HOOK, callback_events=["failed", "cancelled"])
        assert await noted(stage) == [(hit.id, "completed")]


async def test_a_replay_adds_no_second_webhook(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted(key="k", callback_url=HOOK)
        await stage.finish()
        await stage.admitted(key="k", callback_url=HOOK)
        assert await noted(stage) == [(row.id, "completed")]


async def test_cancels_are_told_of_whoever_ends_the_task(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"status": 429, "code": "rate_limit", "retry_after": 100}}])
        waiting = await stage.admitted(callback_url=HOOK)
        await cancel.cancel(stage.parts, "growth", waiting.id)
        assert await noted(stage) == [(waiting.id, "cancelled")]
        leader = await stage.admitted(seed=7)
        leaving = await stage.admitted(seed=7, callback_url=HOOK)
        await cancel.cancel(stage.parts, "growth", leaving.id)
        assert await noted(stage) == [(waiting.id, "cancelled"), (leaving.id, "cancelled")]
        sent = await stage.admitted(callback_url=HOOK, callback_events=["cancelled"])
        await cancel.cancel(stage.parts, "growth", sent.id)
        await stage.finish()
        assert (await stage.row(leader.id)).state is task.State.COMPLETED
        assert await noted(stage) == [(each.id, "cancelled") for each in (waiting, leaving, sent)]


async def test_a_refusal_that_answers_the_submit_is_not_told_again(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"status": 400, "code": "bad", "message": "no"}}])
        row = await stage.admitted(callback_url=HOOK)
        assert row.state is task.State.REFUSED
        assert await noted(stage) == []


async def test_a_refusal_that_came_after_the_submit_was_answered_is_told_of(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script(
            [{"on": "submit", "do": {"status": 429}}, {"on": "submit", "do": {"status": 400, "code": "bad"}}]
        )
        row = await stage.admitted(callback_url=HOOK)
        await stage.run(60)
        assert (await stage.row(row.id)).state is task.State.REFUSED
        assert await noted(stage) == [(row.id, "failed")]


async def test_a_task_that_expires_is_told_of(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "times": None, "do": {"status": 429}}])
        row = await stage.admitted(callback_url=HOOK)
        await stage.finish(rounds=14, seconds=10)
        assert (await stage.row(row.id)).state is task.State.FAILED
        assert await noted(stage) == [(row.id, "failed")]


async def test_what_is_left_to_the_operator_ends_for_its_followers_and_later_for_itself(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "times": None, "do": {"status": 503}}])
        leader = await stage.admitted(seed=7, callback_url=HOOK)
        follower = await stage.admitted(seed=7, callback_url=HOOK)
        await stage.run(23 * 3600)
        assert await noted(stage) == [(follower.id, "failed")]
        decision = resolve.Decision(task_id=leader.id, charged_nanos=None, why="the vendor's list")
        await resolve.resolve(stage.parts.database, decision, now=stage.clock(), repeating=set())
        assert await noted(stage) == [(leader.id, "failed"), (follower.id, "failed")]


@pytest.mark.parametrize("events", [["queued"], ["running", "processing"]])
async def test_events_that_are_no_end_are_taken_and_never_sent(tmp_path, events):
    async with stages.staged(tmp_path) as stage:
        await stage.admitted(callback_url=HOOK, callback_events=events)
        await stage.finish()
        assert await noted(stage) == []
