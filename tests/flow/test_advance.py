"""The single door: what means nothing in a task's state changes nothing (M10), and no answer is ever lost."""

from __future__ import annotations

import asyncio

from gateway.flow import advance, attempt, mirror, poll, resubmit, submit
from gateway.rules import task
from tests import stage as stages

DIGEST = attempt.digest_of("vendor-key-growth")


async def _ignored(stage: stages.Stage, row, change) -> None:
    """A change that is refused leaves the row, its entries and every balance as they are."""
    before = (await stage.row(row.id), await stage.entries(row.id), await stage.balances())
    assert await stage.parts.database.write(change) is None
    assert (await stage.row(row.id), await stage.entries(row.id), await stage.balances()) == before


async def test_a_late_duplicate_or_backward_word_changes_nothing(tmp_path):
    async with stages.staged(tmp_path, growth='spend: [{cap: "1", per: day}]\n') as stage:
        sent = await stage.admitted()
        await stage.finish()
        done = await stage.row(sent.id)
        now = stage.clock()
        words = [
            task.Accepted(upstream_task_id="v-87654321", document=b"{}", outcome=task.Outcome(event=None)),
            task.Refused(status=400, document=b"{}"),
            task.NotSent(reason="connect"),
            task.InDoubt(reason="timeout"),
        ]
        for word in words:
            await _ignored(stage, done, lambda tx, word=word: advance.answer(tx, done, word, now=now, luck=0))
        for event in (task.Event.DELIVERED, task.Event.FAILED, task.Event.CANCELLED):
            outcome = task.Outcome(event=event, cost_quota=9999)
            await _ignored(
                stage, done, lambda tx, said=outcome: advance.report(tx, done, said, b"{}", now=now, next_at=now)
            )
        await _ignored(stage, done, lambda tx: advance.expire(tx, done, now=now, why="late"))
        await _ignored(stage, done, lambda tx: advance.mirror(tx, done, now=now, next_at=None))
        await _ignored(stage, done, lambda tx: advance.attempt(tx, done, key_ref="env:X", key_digest=DIGEST, now=now))


async def test_whoever_read_the_row_before_another_changed_it_comes_too_late(tmp_path):
    async with stages.staged(tmp_path, growth='spend: [{cap: "1", per: day}]\n') as stage:
        stale = await stage.admitted()
        await stage.finish()
        now = stage.clock()
        for event in (None, task.Event.DELIVERED, task.Event.FAILED):
            outcome = task.Outcome(event=event, cost_quota=9999)
            await _ignored(
                stage, stale, lambda tx, said=outcome: advance.report(tx, stale, said, b"{}", now=now, next_at=now)
            )
        await _ignored(stage, stale, lambda tx: advance.abandon(tx, stale, now=now, why="too late"))


async def test_a_step_for_a_task_that_is_elsewhere_by_now_does_nothing(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted()
        await stage.finish()
        before = await stage.row(row.id)
        for step in (resubmit.step, poll.step):
            await step(stage.parts, row.id)
        await mirror.step(stage.parts, "task-wg-unknown")
        assert await stage.row(row.id) == before


async def test_a_post_that_fails_in_a_way_nobody_foresaw_is_in_doubt(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.keys["env:KEY_GROWTH"] = "a key that no header can carry: é"
        assert (await stage.admitted()).state is task.State.IN_DOUBT


async def test_an_answer_that_cannot_be_recorded_is_recorded_when_the_ledger_is_back(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"delay_s": 1.5}}])
        client = asyncio.create_task(stage.admitted())
        for _ in range(1000):
            if stage.posts():
                break
            await asyncio.sleep(0.01)
        failing = "CREATE TRIGGER failing BEFORE UPDATE ON tasks BEGIN INSERT INTO away VALUES (1); END"
        await stage.parts.database.write(lambda tx: tx.run(failing))
        await asyncio.sleep(2)
        kept = await stage.parts.database.read(lambda tx: tx.one("SELECT state FROM tasks"))
        assert kept is not None and kept["state"] == "reserved"
        await stage.parts.database.write(lambda tx: tx.run("DROP TRIGGER failing"))
        row = await asyncio.wait_for(client, 10)
        while row.state is task.State.RESERVED:
            await asyncio.sleep(0.1)
            row = await stage.row(row.id)
        assert (row.state, stage.posts()) == (task.State.SUBMITTED, 1)


async def test_a_refusal_without_an_error_object_still_tells_the_client_why(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"status": 503}}])
        row = await stage.admitted()
        refused = task.Refused(status=404, document=b'{"oops":1}')
        now = stage.clock()
        await stage.parts.database.write(lambda tx: advance.answer(tx, row, refused, now=now, luck=0))
        shown = await stage.shown(row)
        assert (shown["status"], shown["error"]["code"], shown["oops"]) == ("failed", "upstream_bad_request", 1)


async def test_a_cancellation_at_the_vendors_releases_and_ends_the_followers(tmp_path):
    async with stages.staged(tmp_path, growth='spend: [{cap: "1", per: day}]\n') as stage:
        leader, follower = await stage.admitted(seed=7), await stage.admitted(seed=7)
        stage.vendor.set_script([{"on": "poll", "times": None, "do": {"merge": {"status": "canceled", "cost": 0}}}])
        await stage.finish(rounds=2)
        for row in (leader, follower):
            assert (await stage.shown(row))["status"] in ("cancelled", "canceled")
        assert await stage.entries(leader.id) == [("reserve", 13_282_000), ("release", 13_282_000)]


async def test_a_task_without_a_readable_key_waits_and_is_sent_when_there_is_one(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"status": 429}}])
        row = await stage.admitted()
        del stage.keys["env:KEY_GROWTH"]
        await stage.run(2)
        assert ((await stage.row(row.id)).state, stage.posts()) == (task.State.WAITING, 1)
        stage.keys["env:KEY_GROWTH"] = "vendor-key-growth"
        await stage.run(5)
        assert (await stage.row(row.id)).state is not task.State.WAITING


async def test_followers_are_bounded_per_team(tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "MOST_FOLLOWERS", 2)
    async with stages.staged(tmp_path) as stage:
        for _ in range(3):
            await stage.admitted(seed=7)
        assert (await stage.denied(seed=7)).code == "concurrency_limit_exceeded"
