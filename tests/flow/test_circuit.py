"""The upstream is down: submits are held back and probed, and leave when it is there again (CONTRACT §2)."""

from __future__ import annotations

import asyncio

import pytest

from gateway import errors, metrics
from gateway.flow import circuit as flow_circuit
from gateway.flow import read, recover, resubmit, submit
from gateway.outbound import upstream
from gateway.rules import circuit, task
from tests import stage as stages

HELD = ("team", "growth", "day")
CAP = 'spend: [{cap: "1.00", per: day}]\n'
REFUSE = CAP + "upstream_down: refuse\n"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DOWN = [{"on": "any", "times": None, "do": {"status": 503}}]


async def test_five_failures_open_it_and_the_next_submit_is_held_back_without_an_attempt(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script(DOWN)
        for _ in range(5):
            assert not stage.parts.circuit.is_open
            assert (await stage.admitted()).state is task.State.IN_DOUBT
        assert stage.parts.circuit.is_open and _gauge() == 1
        row = await stage.admitted()
        assert (row.state, row.attempts, row.first_attempt_at) == (task.State.WAITING, 0, None)
        assert row.next_at == row.created_at == stages.NOON
        assert await stage.entries(row.id) == [("reserve", 13_282_000)]
        assert (await stage.balances())[HELD] == (0, 6 * 13_282_000)
        assert (await stage.shown(row))["status"] == "queued"
        assert (await read.show(stage.parts, row)).is_upstream_unavailable
        assert (stage.posts(), stage.parts.attempts) == (5, {})


async def test_a_first_post_that_was_held_back_and_its_repeats_carry_the_clients_traceparent(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script(DOWN)
        await _submit(stage, 5)
        options = submit.Options(request_id="req-1", traceparent=PARENT)
        body = b'{"model":"gemini-2.5-flash-image-preview","prompt":"late"}'
        held = await submit.submit(stage.parts, stages.CALLER, body, options)
        assert isinstance(held, submit.Submitted) and held.row.state is task.State.WAITING
        stage.vendor.set_script([{"on": "submit", "prompt": "late", "times": 2, "do": {"accept_and_drop": True}}])
        await stage.finish()
        row = await stage.row(held.row.id)
        assert (row.state, row.attempts, row.traceparent) == (task.State.COMPLETED, 3, PARENT)
        carried = [each.headers.get("traceparent") for each in stage.vendor.requests.submits if b'"late"' in each.body]
        assert carried == [PARENT] * 3
        others = [each.headers for each in stage.vendor.requests.submits if b'"late"' not in each.body]
        assert others and all("traceparent" not in each for each in others)


@pytest.mark.parametrize("fault", [{"drop": True}, {"accept_and_drop": True}, {"status": 500}, {"status": 502}])
async def test_a_dropped_answer_and_a_5xx_mean_down(tmp_path, fault):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "times": None, "do": fault}])
        await _submit(stage, 5)
        assert stage.parts.circuit.is_open


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 401},
        {"status": 402},
        {"status": 403},
        {"status": 429, "code": "rate_limit"},
        {"status": 400, "code": "bad"},
        {"status": 302, "location": "http://127.0.0.1:1/"},
        {"garbage": True},
    ],
)
async def test_what_the_vendor_itself_says_is_no_outage(tmp_path, fault):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "times": None, "do": fault}])
        await _submit(stage, 8)
        assert not stage.parts.circuit.is_open
        assert stage.posts() == 8


async def test_while_open_one_probe_leaves_every_five_seconds_and_nothing_else_is_found_due(tmp_path):
    async with stages.staged(tmp_path) as stage:
        await _cut_off(stage)
        await _submit(stage, 5)
        held = [await stage.admitted() for _ in range(20)]
        posts: list[tuple[int, str]] = []
        for second in range(1, 21):
            stage.clock.advance(1)
            due = await resubmit.due(stage.parts, 100)
            posts.extend((second, task_id) for task_id in due)
            for task_id in due:
                await resubmit.step(stage.parts, task_id)
            assert await resubmit.due(stage.parts, 100) == []
        # The most overdue first: what was held back has been due since its submit.
        assert posts == [(5, held[0].id), (10, held[1].id), (15, held[2].id), (20, held[3].id)]
        assert [(await stage.row(row.id)).attempts for row in held[:5]] == [1, 1, 1, 1, 0]


async def test_a_step_that_was_due_before_it_opened_sends_nothing_and_changes_nothing(tmp_path):
    async with stages.staged(tmp_path) as stage:
        await _cut_off(stage)
        await _submit(stage, 5)
        row = await stage.admitted()
        await resubmit.step(stage.parts, row.id)
        assert await stage.row(row.id) == row


async def test_on_recovery_the_held_back_leave_oldest_first_32_at_a_time_and_each_is_bought_once(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        there = stage.parts.upstream
        await _cut_off(stage)
        rows = await _submit(stage, 5)
        held = []
        for _ in range(40):
            stage.clock.advance(0.1)
            held.append(await stage.admitted())
        assert {row.attempts for row in held} == {0}
        stage.clock.advance(1.5)
        await _reconnect(stage, there)
        [probe] = await resubmit.due(stage.parts, 32)
        await resubmit.step(stage.parts, probe)
        assert not stage.parts.circuit.is_open and _gauge() == 0
        due = list(await resubmit.due(stage.parts, 32))
        first_posts = [each for each in due if (await stage.row(each)).attempts == 0]
        assert len(due) == 32 and len(first_posts) >= 26
        assert first_posts == [row.id for row in held if row.id != probe][: len(first_posts)]
        await stage.finish()
        for row in [*rows, *held]:
            assert (await stage.row(row.id)).state is task.State.COMPLETED
        assert {(await stage.row(row.id)).attempts for row in held} == {1}
        assert stage.vendor.bill()["tasks"] == 45
        assert await stage.settled_nanos() == stage.vendor.bill()["nanos"] == 45 * 13_280_000
        assert await stage.audit() == []


async def test_a_first_post_that_was_held_back_leaves_with_no_retry_left(tmp_path):
    async with stages.staged(tmp_path) as stage:
        there = stage.parts.upstream
        await _cut_off(stage)
        await _submit(stage, 5)
        held = [await stage.admitted() for _ in range(3)]
        stage.clock.advance(5)
        await _reconnect(stage, there)
        _spend_the_retries(stage)
        for row in held:
            await resubmit.step(stage.parts, row.id)
        assert {(await stage.row(row.id)).state for row in held} == {task.State.SUBMITTED}


async def test_a_fifth_of_the_live_submits_is_there_for_retries(tmp_path):
    async with stages.staged(tmp_path) as stage:
        await _cut_off(stage)
        await _submit(stage, 5)
        for caller in (stages.CALLER, stages.OTHER):
            await asyncio.gather(*(stage.admitted(caller) for _ in range(750)))
        assert _spend_the_retries(stage) == 50
        stage.clock.advance(1)
        # 1,505 in the last minute: a fifth of them is 5 a second, where without them it is 3.
        assert _spend_the_retries(stage) == 5


async def test_a_word_about_an_open_task_closes_it(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted()
        there = stage.parts.upstream
        await _cut_off(stage)
        await _submit(stage, 5)
        assert _gauge() == 1
        await _reconnect(stage, there)
        await stage.run(1)
        assert not stage.parts.circuit.is_open
        assert (await stage.row(row.id)).state is task.State.SUBMITTED


async def test_polls_that_nobody_answers_open_it_and_those_about_our_key_do_not(tmp_path):
    async with stages.staged(tmp_path) as stage:
        await _submit(stage, 5)
        stage.vendor.set_script([{"on": "poll", "times": None, "do": {"status": 401}}])
        await stage.run(1)
        stage.vendor.set_script([{"on": "poll", "times": None, "do": {"status": 404}}])
        await stage.run(60)
        assert _gauge() == 0
        stage.vendor.set_script(DOWN)
        await stage.run(60)
        assert _gauge() == 1


async def test_a_held_back_task_fails_at_the_deadline_with_nothing_spent(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        await _cut_off(stage)
        await _submit(stage, 5)
        leader, follower = await stage.admitted(key="k1", seed=7), await stage.admitted(seed=7)
        assert (follower.x_cache, follower.leader_id) == ("COALESCED", leader.id)
        stage.clock.advance(119)
        assert leader.id not in list(await resubmit.due(stage.parts, 100))[1:]
        await stage.run(1)
        for row in (leader, follower):
            shown = await stage.shown(row)
            assert (shown["status"], shown["error"]["code"]) == ("failed", "upstream_unavailable")
        assert await stage.entries(leader.id) == [("reserve", 13_282_000), ("release", 13_282_000)]
        assert (await stage.balances())[HELD] == (0, 0)
        assert stage.parts.circuit.is_open
        replay = await stage.admitted(key="k1", seed=7)
        assert (replay.id, replay.state) == (leader.id, task.State.FAILED)


async def test_a_task_in_doubt_for_23_hours_is_given_up_while_it_is_open(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script(DOWN)
        rows = await _submit(stage, 5)
        await stage.run(23 * 3600)
        assert [(await stage.row(row.id)).next_at for row in rows] == [None] * 5


async def test_a_team_that_will_not_wait_is_refused_at_once_and_nothing_is_kept(tmp_path):
    async with stages.staged(tmp_path, growth=REFUSE) as stage:
        await _cut_off(stage)
        await _submit(stage, 5, stages.OTHER)
        before = await stage.balances()
        with pytest.raises(errors.UpstreamError) as refused:
            await stage.submit(key="k1")
        assert (refused.value.code, refused.value.status) == ("upstream_unavailable", 503)
        assert await _count(stage) == 5
        assert await stage.balances() == before
        assert HELD not in before or before[HELD] == (0, 0)


async def test_where_only_such_a_team_asks_its_submit_is_the_probe(tmp_path):
    async with stages.staged(tmp_path, growth=REFUSE) as stage:
        there = stage.parts.upstream
        await _cut_off(stage)
        for _ in range(5):
            assert (await stage.admitted()).state is task.State.FAILED
        for _ in range(3):
            stage.clock.advance(5)
            assert (await stage.admitted()).state is task.State.FAILED
            with pytest.raises(errors.UpstreamError):
                await stage.submit()
        await _reconnect(stage, there)
        with pytest.raises(errors.UpstreamError):
            await stage.submit()
        stage.clock.advance(5)
        assert (await stage.admitted()).state is task.State.SUBMITTED
        assert (await stage.admitted()).state is task.State.SUBMITTED


async def test_a_denied_submit_uses_up_no_probe(tmp_path):
    async with stages.staged(tmp_path, growth='spend: [{cap: "0.01", per: day}]\nupstream_down: refuse\n') as stage:
        await _cut_off(stage)
        await _submit(stage, 5, stages.OTHER)
        stage.clock.advance(5)
        assert (await stage.denied()).code == "quota_window_exceeded"
        assert stage.parts.circuit.may_send(now=stage.clock())


async def test_a_held_back_task_outlives_a_change_to_refuse(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        await _cut_off(stage)
        await _submit(stage, 5)
        row = await stage.admitted(key="k1")
        await stage.adopt(stages.write_policies(tmp_path / "policies", growth=REFUSE))
        await stage.run(5)
        known = await stage.row(row.id)
        assert (known.state, known.attempts, known.idempotency_key) == (task.State.WAITING, 1, "k1")


async def test_a_hit_is_served_while_it_is_open(tmp_path):
    async with stages.staged(tmp_path, growth=REFUSE) as stage:
        await stage.admitted(seed=7)
        await stage.finish()
        there = stage.parts.upstream
        await _cut_off(stage)
        await _submit(stage, 5, stages.OTHER)
        row = await stage.admitted(seed=7)
        assert (row.x_cache, row.state) == ("HIT", task.State.COMPLETED)
        await _reconnect(stage, there)


async def test_after_a_restart_the_held_back_are_due_at_once(tmp_path):
    async with stages.staged(tmp_path) as stage:
        there = stage.parts.upstream
        await _cut_off(stage)
        await _submit(stage, 5)
        row = await stage.admitted()
        await _reconnect(stage, there)
        object.__setattr__(stage.parts, "circuit", flow_circuit.UpstreamCircuit())
        assert await recover.recover(stage.parts) == 0
        assert (await stage.row(row.id)).state is task.State.WAITING
        await stage.run()
        assert (await stage.row(row.id)).state is task.State.SUBMITTED


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_twenty_seconds_of_complaints_about_a_key_reach_no_client_and_end_when_it_is_mended(tmp_path, status):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        fault = {"status": status, "retry_after": 300}
        stage.vendor.set_script([{"on": "submit", "times": None, "do": fault}])
        rows = []
        for _ in range(20):
            result = await stage.submit()
            assert isinstance(result, submit.Submitted)
            assert (await stage.shown(result.row))["status"] == "queued"
            rows.append(result.row)
            await stage.run(1)
        assert metrics.REGISTRY.get_sample_value("wave_gateway_upstream_key_ok", {"team": "growth"}) == 0
        assert not stage.parts.circuit.is_open
        stage.keys["env:KEY_GROWTH"] = "mended-key"
        stage.vendor.set_script([])
        # No Retry-After of the old key holds a task back: the longest pause is 10 s.
        await stage.run(10)
        assert {(await stage.row(row.id)).state for row in rows} == {task.State.SUBMITTED}
        assert metrics.REGISTRY.get_sample_value("wave_gateway_upstream_key_ok", {"team": "growth"}) == 1
        await stage.finish()
        assert {(await stage.row(row.id)).state for row in rows} == {task.State.COMPLETED}
        assert await stage.settled_nanos() == stage.vendor.bill()["nanos"] == 20 * 13_280_000


def test_hearing_nothing_new_is_said_once(caplog):
    with_circuit = flow_circuit.UpstreamCircuit()
    for _ in range(10):
        with_circuit.hear(circuit.Word.DOWN, began_at=1.0, now=1.0)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    with_circuit.hear(circuit.Word.THERE, began_at=2.0, now=2.0)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


async def _submit(stage, times, caller=stages.CALLER):
    return [await stage.admitted(caller) for _ in range(times)]


async def _count(stage):
    return (await stage.parts.database.read(lambda tx: tx.one("SELECT COUNT(*) AS held FROM tasks")))["held"]


def _gauge():
    return metrics.REGISTRY.get_sample_value("wave_gateway_upstream_circuit_open")


async def _cut_off(stage: stages.Stage) -> None:
    """From now on nobody listens where the upstream was."""
    object.__setattr__(stage.parts, "upstream", upstream.Upstream("http://127.0.0.1:1"))


def _spend_the_retries(stage: stages.Stage) -> int:
    """Leave no retry for anybody now; returns how many there were."""
    count = 0
    while stage.parts.retry_budget.take("another task", now=stage.clock()):
        count += 1
    return count


async def _reconnect(stage: stages.Stage, there: upstream.Upstream) -> None:
    await stage.parts.upstream.aclose()
    object.__setattr__(stage.parts, "upstream", there)
