"""The vendor's callbacks: what is sent so that they come, and that each is a hint to poll, nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from typing import Any

import msgspec
import pytest

from gateway import errors
from gateway.flow import callback_tokens, cancel, hint, poll
from gateway.rules import task
from gateway.store import tasks
from gateway.store.database import Tx
from tests import receiver
from tests import stage as stages

FIRST = "0" * 42 + "1"
"""The token of a stage's first task."""
FORGED = "x" * 43
SLOW = {"queue_s": 0, "work_s": 1000}
CAP = 'spend: [{cap: "1.00", per: day}]\n'


def bodies(stage: stages.Stage) -> list[bytes]:
    return [each.body for each in stage.vendor.requests.submits]


def polls(stage: stages.Stage) -> int:
    return stage.vendor.requests.counts["poll"]


async def poll_what_is_due(stage: stages.Stage) -> int:
    """One look of the poll loop; returns how many polls the vendor then heard."""
    before = polls(stage)
    due = await poll.due(stage.parts, 100)
    await asyncio.gather(*(poll.step(stage.parts, task_id) for task_id in due))
    return polls(stage) - before


async def kept(stage: stages.Stage) -> list[Any]:
    """Every row of every table that a poll or an end would change."""
    tables = ("tasks", "entries", "balances", "holds", "totals", "outbox", "task_media")

    def read(tx: Tx) -> list[Any]:
        return [[stages.values(row) for row in tx.all(f"SELECT * FROM {table}")] for table in tables]  # noqa: S608

    return await stage.parts.database.read(read)


# What the upstream is given


async def test_the_upstream_is_given_our_url_never_the_clients_and_every_other_field_keeps_its_bytes(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        await stage.admitted(
            callback_url="https://hooks.example.com/x", callback_events=["failed"], odd=msgspec.Raw(b'{ "a" : 1.10 }')
        )
        [sent] = bodies(stage)
        assert json.loads(sent)["callback_url"] == f"http://gateway.test/callbacks/{FIRST}"
        assert json.loads(sent)["callback_events"] == ["completed", "failed"]
        assert b"hooks.example.com" not in sent
        assert b'"odd":{ "a" : 1.10 }' in sent


async def test_without_the_setting_the_upstream_gets_neither_field(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted(callback_url="https://hooks.example.com/x", callback_events=["failed"])
        assert json.loads(bodies(stage)[0]).keys() == {"model", "prompt"}
        assert (row.callback_token, row.callback_public_url) == (None, None)


@pytest.mark.parametrize("was_on", [True, False])
async def test_a_repeat_sends_the_same_bytes_though_the_settings_changed_meanwhile(tmp_path, was_on):
    async with stages.staged(tmp_path, callbacks_are_on=was_on) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"accept_and_drop": True}}])
        row = await stage.admitted()
        assert row.state is task.State.IN_DOUBT
        other = (lambda: FORGED) if not was_on else None
        stage.parts = dataclasses.replace(stage.parts, new_callback_token=other, public_url="http://moved.test")
        await stage.finish()
        first, second = bodies(stage)
        assert first == second
        assert (b"callback_url" in first) == was_on
        assert (await stage.row(row.id)).state is task.State.COMPLETED


async def test_followers_and_hits_have_no_token(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        leader = await stage.admitted(seed=7)
        follower = await stage.admitted(seed=7)
        await stage.finish()
        hit = await stage.admitted(seed=7)
        assert (follower.x_cache, hit.x_cache) == ("COALESCED", "HIT")
        assert [each.callback_token for each in (leader, follower, hit)] == [FIRST, None, None]


async def test_a_token_is_in_no_text_of_its_row(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        row = await stage.admitted()
        assert FIRST not in repr(row)
        assert FIRST not in str(row)


async def test_a_vendor_that_repeats_what_it_was_sent_is_heard_without_the_token(tmp_path):
    """In a task, whenever it is asked, in a refusal and in an answer to a cancel: all of them reach clients."""
    echo = f"cannot call http://gateway.test/callbacks/{FIRST}"
    async with stages.staged(tmp_path / "task", callbacks_are_on=True) as stage:
        merge = {"merge": {"note": echo}}
        stage.vendor.set_script([{"on": "submit", "do": {"queue_s": 60} | merge}, {"on": "poll", "do": merge}])
        row = await stage.admitted()
        said = [(await stage.shown(row))["note"]]
        await stage.run(1)
        assert polls(stage) == 1
        said.append((await stage.shown(row))["note"])
        no = {"status": 400, "code": "task_not_cancellable", "message": echo}
        stage.vendor.set_script([{"on": "cancel", "do": no}])
        answer = await cancel.cancel(stage.parts, "growth", row.id)
        assert answer is not None
        said.append(json.loads(answer.document)["error"]["message"])
        assert said == ["cannot call http://gateway.test/callbacks/[callback token]"] * 3
    async with stages.staged(tmp_path / "mirror", callbacks_are_on=True) as stage:
        unkept = {"on": "media", "times": None, "do": {"status": 500}}
        stage.vendor.set_script([{"on": "poll", "times": None, "do": merge}, unkept])
        row = await stage.admitted()
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED
        assert (await stage.shown(row))["note"] == "cannot call http://gateway.test/callbacks/[callback token]"
    async with stages.staged(tmp_path / "refusal", callbacks_are_on=True) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"status": 400, "code": "x", "message": echo}}])
        row = await stage.admitted()
        assert row.state is task.State.REFUSED
        assert json.loads(row.document or b"")["error"]["message"].endswith("/callbacks/[callback token]")


# What comes of a hint


async def test_a_hint_has_the_task_polled_at_once_and_the_end_is_found(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"queue_s": 0, "work_s": 15}}])
        row = await stage.admitted()
        await stage.run(14)  # not ended; next by schedule in some seconds
        stage.clock.advance(1.5)
        assert await poll_what_is_due(stage) == 0
        assert await stage.vendor.send_callbacks() == 1
        assert stage.vendor.requests.counts["callback"] == 1
        assert await poll_what_is_due(stage) == 1
        assert (await stage.row(row.id)).state is task.State.DELIVERED


async def test_however_many_hints_come_a_task_is_polled_once_a_second_and_nothing_is_written_for_them(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        stage.vendor.set_script([{"on": "submit", "do": SLOW}])
        await stage.admitted()
        await stage.run(20)  # next by schedule in ten seconds
        heard = []
        for _ in range(12):  # a quarter of a second each
            before = await kept(stage)
            assert set(await stage.call_back(FIRST, times=20)) == {204}
            assert await kept(stage) == before
            heard.append(await poll_what_is_due(stage))
            stage.clock.advance(0.25)
        assert heard == [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]


async def test_a_hint_within_a_second_of_a_poll_is_not_lost(tmp_path):
    """The poll that was under way may just have missed the end."""
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"queue_s": 0, "work_s": 15}}])
        row = await stage.admitted()
        await stage.run(14.9)  # next by schedule in two seconds
        assert polls(stage) == 1
        stage.clock.advance(0.3)
        assert await stage.call_back(FIRST) == [204]
        assert await poll_what_is_due(stage) == 0
        stage.clock.advance(0.7)
        assert await poll_what_is_due(stage) == 1
        assert (await stage.row(row.id)).state is task.State.DELIVERED


async def test_a_hint_before_the_submits_answer_is_recorded_is_harmless_and_the_schedule_covers_it(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"delay_s": 0.2, "queue_s": 0, "work_s": 0}}])
        submitting = asyncio.create_task(stage.admitted())
        while not stage.vendor.requests.submits:  # noqa: ASYNC110 - the simulator offers no event
            await asyncio.sleep(0.005)
        before = await kept(stage)
        assert await stage.call_back(FIRST, times=3) == [204] * 3
        assert await poll_what_is_due(stage) == 0
        assert await kept(stage) == before
        row = await submitting
        assert row.state is task.State.SUBMITTED
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED


async def test_a_hint_about_a_task_in_doubt_does_not_repeat_its_post(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"accept_and_drop": True}}])
        row = await stage.admitted()
        before = await kept(stage)
        assert await stage.call_back(FIRST, times=3) == [204] * 3
        await stage.run(0)
        assert (stage.posts(), polls(stage)) == (1, 0)
        assert await kept(stage) == before
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED


async def test_a_late_hint_changes_nothing_and_asks_nobody(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        await stage.admitted()
        await stage.finish()
        before, asked = await kept(stage), polls(stage)
        for _ in range(3):
            assert set(await stage.call_back(FIRST, times=20)) == {204}
            await poll_what_is_due(stage)
            stage.clock.advance(1)
        assert await kept(stage) == before
        assert polls(stage) == asked


async def test_a_hint_about_an_ended_task_has_its_row_looked_at_once_a_second(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        row = await stage.admitted()
        await stage.finish()
        found = []
        for _ in range(8):
            await stage.call_back(FIRST, times=3)
            found.append(len(due := await poll.due(stage.parts, 10)))
            await asyncio.gather(*(poll.step(stage.parts, task_id) for task_id in due))
            stage.clock.advance(0.25)
        assert found == [1, 0, 0, 0, 1, 0, 0, 0]
        assert (await stage.row(row.id)).state is task.State.COMPLETED


async def test_the_body_is_not_believed(tmp_path):
    async with stages.staged(tmp_path, growth=CAP, callbacks_are_on=True) as stage:
        stage.vendor.set_script([{"on": "submit", "do": SLOW}])
        row = await stage.admitted()
        vendor_id = (await stage.row(row.id)).upstream_task_id
        lie = {"task_id": vendor_id, "status": "completed", "cost": 1, "result": {"images": [{"url": "https://e.x/1"}]}}
        for body in (json.dumps({"event": "task.completed", "data": lie}).encode(), b"\xff\x00", b"[" * 100_000, b""):
            assert await stage.call_back(FIRST, body=body) == [204]
            await stage.run(1)
        assert (await stage.row(row.id)).state is task.State.SUBMITTED
        assert await stage.entries(row.id) == [("reserve", 13_282_000)]


async def test_a_token_of_another_task_polls_that_task(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        mine, other = await stage.admitted(), await stage.admitted(stages.OTHER)
        assert await stage.call_back(other.callback_token or "") == [204]
        assert await poll.due(stage.parts, 10) == [other.id]
        assert mine.callback_token != other.callback_token


async def test_a_hint_is_heard_after_a_restart_with_the_setting_off(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        row = await stage.admitted()
        await stage.run(1)
        fresh = callback_tokens.CallbackTokens()
        again = dataclasses.replace(stage.parts, new_callback_token=None, callback_tokens=fresh)
        assert fresh.get(FIRST) is None
        assert await hint.hear(again, FIRST)
        assert fresh.get(FIRST) == row.id


async def test_a_hint_does_not_count_as_a_client_who_watches(tmp_path):
    """Else a stranger with a token would have the task polled each second for good."""
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        row = await stage.admitted()
        await stage.call_back(FIRST)
        assert not stage.parts.watch.is_watched(row.id, now=stage.clock())


# Strangers


@pytest.mark.parametrize("token", [FORGED, "0" * 43, FIRST + "0", FIRST[:-1], FIRST[:-1] + "%00", "%2e%2e", "x" * 9000])
async def test_a_forged_token_is_a_404_and_asks_nobody(tmp_path, token):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        stage.vendor.set_script([{"on": "submit", "do": SLOW}])
        await stage.admitted()
        before = await kept(stage)
        assert await stage.call_back(token) == [404]
        assert await poll.due(stage.parts, 10) == []
        assert await kept(stage) == before


async def test_a_flood_of_forged_tokens_is_refused_and_keeps_no_genuine_one_out(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        await stage.admitted()
        statuses = await stage.call_back(FORGED, times=700)
        assert (statuses.count(404), statuses.count(429)) == (600, 100)
        assert await stage.call_back(FIRST, times=50) == [204] * 50
        assert await stage.call_back("not-a-token", times=3) == [404] * 3  # no look is needed to know
        stage.clock.advance(1)
        statuses = await stage.call_back(FORGED, times=20)
        assert (statuses.count(404), statuses.count(429)) == (10, 10)


async def test_after_a_restart_in_a_flood_a_task_is_known_with_its_next_poll(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        stage.vendor.set_script([{"on": "submit", "do": SLOW}])
        row = await stage.admitted()
        fresh = callback_tokens.CallbackTokens()
        stage.parts = dataclasses.replace(stage.parts, callback_tokens=fresh)
        while fresh.take_look_up(now=stage.clock()) is None:
            pass
        with pytest.raises(errors.CallerError) as refused:
            await hint.hear(stage.parts, FIRST)
        assert (refused.value.code, refused.value.headers) == ("rate_limited", {"Retry-After": "1"})
        await poll.step(stage.parts, row.id)
        assert await hint.hear(stage.parts, FIRST)


async def test_a_genuine_token_that_was_looked_up_costs_nothing(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        await stage.admitted()
        fresh = callback_tokens.CallbackTokens()
        stage.parts = dataclasses.replace(stage.parts, callback_tokens=fresh)
        for _ in range(599):
            assert fresh.take_look_up(now=stage.clock()) is None
        assert await hint.hear(stage.parts, FIRST)  # with the last of them
        assert not await hint.hear(stage.parts, FORGED)
        with pytest.raises(errors.CallerError, match="Too many callbacks"):
            await hint.hear(stage.parts, FORGED)


def test_what_is_known_is_bounded_and_the_oldest_goes():
    known = callback_tokens.CallbackTokens()
    for number in range(20_001):
        known.add(f"{number}", f"task-{number}")
    assert (known.get("0"), known.get("1"), known.get("20000")) == (None, "task-1", "task-20000")


async def test_a_token_is_found_by_its_index(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        row = await stage.admitted()
        assert await stage.parts.database.read(lambda tx: tasks.id_by_callback_token(tx, FIRST)) == row.id
        how = await stage.parts.database.read(
            lambda tx: tx.all("EXPLAIN QUERY PLAN SELECT id FROM tasks WHERE callback_token = :token", token=FIRST)
        )
        assert [row["detail"] for row in how] == ["SEARCH tasks USING INDEX tasks_of_callback (callback_token=?)"]


async def test_no_line_of_the_log_holds_a_token(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"accept_and_drop": True}}])
        await stage.admitted()
        await stage.call_back(FIRST)
        await stage.finish()
    ours = [each.getMessage() for each in caplog.records if each.name.startswith("gateway")]
    assert ours
    assert not any(FIRST in line for line in ours)


# The whole story


async def told(directory: Any, *, is_on: bool, are_lost: bool) -> tuple[list[Any], list[bytes], list[Any]]:
    """What a client sees of a story at each second of it, what its receiver gets, and the ledger at the end."""
    async with (
        stages.staged(directory, growth=CAP, callbacks_are_on=is_on) as stage,
        receiver.receiving(receiver.status(200)) as there,
    ):
        times = {"callback_times": 0 if are_lost else 2}
        stage.vendor.set_script(
            [
                {"on": "submit", "prompt": "fails", "times": None, "do": {"outcome": "failed"} | times},
                {"on": "submit", "prompt": "lost", "do": {"accept_and_drop": True} | times},
                {"on": "submit", "times": None, "do": times},
            ]
        )
        hook: dict[str, Any] = {"callback_url": f"{there.url}/x", "callback_events": ["completed", "failed"]}
        rows = [
            await stage.admitted(seed=7, **hook),
            await stage.admitted(seed=7, **hook),
            await stage.admitted(prompt="fails", **hook),
            await stage.admitted(prompt="lost", **hook),
        ]
        seen: list[Any] = []
        for _ in range(20):
            seen.append([await stage.shown(row) for row in rows])
            await stage.run(1)
            if is_on:
                await stage.vendor.send_callbacks()
            await stage.deliver()
        seen.append([await stage.shown(row) for row in rows])
        assert stage.vendor.requests.counts["callback"] == (6 if is_on and not are_lost else 0)
        entries = [await stage.entries(row.id) for row in rows]
        return seen, sorted(each.body for each in there.requests), entries


async def test_a_client_sees_the_same_story_with_callbacks_without_and_with_all_of_them_lost(tmp_path):
    without = await told(tmp_path / "without", is_on=False, are_lost=False)
    assert [each["status"] for each in without[0][-1]] == ["completed", "completed", "failed", "completed"]
    assert len(without[1]) == 4
    assert await told(tmp_path / "with", is_on=True, are_lost=False) == without
    assert await told(tmp_path / "lost", is_on=True, are_lost=True) == without
