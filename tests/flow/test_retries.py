"""A retry that says it is one and has no idempotency key: the same task, whatever became of the first answer."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import msgspec
import pytest

from gateway import errors
from gateway.flow import cancel, explain, parts, submit
from gateway.rules import policy, task
from tests import stage as stages

CAP = 'spend: [{name: daily, cap: "0.0133", per: day}]\n'
RETRY = submit.Options(request_id="req-2", is_retry=True)
FIRST = submit.Options(request_id="req-1")


def body_of(**fields: Any) -> bytes:
    return msgspec.json.encode({"model": stages.FLASH, "prompt": "a fox"} | fields)


async def sent(
    stage: stages.Stage, options: submit.Options, caller: submit.Caller = stages.CALLER, **fields: Any
) -> submit.Submitted:
    result = await submit.submit(stage.parts, caller, body_of(**fields), options)
    assert isinstance(result, submit.Submitted), result
    return result


async def test_a_retry_is_answered_with_the_task_of_the_first_under_way_finished_or_with_a_full_cap(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        first = await sent(stage, FIRST)
        under_way = await sent(stage, RETRY)
        await stage.finish()
        finished = await sent(stage, RETRY)
        assert (await stage.denied()).code == "quota_window_exceeded"
        assert [(each.row.id, each.is_replay) for each in (under_way, finished)] == [(first.row.id, True)] * 2
        assert finished.row.state is task.State.COMPLETED
        assert stage.posts() == 1
        assert await stage.audit() == []


async def test_a_retry_waits_for_the_first_answer_of_the_upstream(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"delay_s": 0.3}}])
        first = asyncio.create_task(sent(stage, FIRST))
        while not stage.parts.attempts:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)
        first.cancel()  # the client hung up
        again = await sent(stage, RETRY)
        assert (again.is_replay, again.row.state, stage.posts()) == (True, task.State.SUBMITTED, 1)


@pytest.mark.parametrize("fields", [{"prompt": "another fox"}, {"seed": 7}, {"callback_url": "https://x.example.com/"}])
async def test_another_body_is_no_retry(tmp_path, fields):
    async with stages.staged(tmp_path) as stage:
        await sent(stage, FIRST)
        assert not (await sent(stage, RETRY, **fields)).is_replay
        assert stage.posts() == 2


@pytest.mark.parametrize("caller", [stages.OTHER, submit.Caller(team="growth", key="laptop")], ids=["team", "key"])
async def test_another_virtual_key_is_no_retry(tmp_path, caller):
    async with stages.staged(tmp_path) as stage:
        await sent(stage, FIRST)
        assert not (await sent(stage, RETRY, caller)).is_replay


async def test_the_same_body_in_another_order_is_the_same_request(tmp_path):
    async with stages.staged(tmp_path) as stage:
        first = await sent(stage, FIRST, n=2)
        turned = b'{"n": 2, "prompt": "a f\\u006fx", "model": "gemini-2.5-flash-image-preview"}'
        again = await submit.submit(stage.parts, stages.CALLER, turned, RETRY)
        assert isinstance(again, submit.Submitted) and again.row.id == first.row.id


async def test_a_retry_is_one_for_ten_minutes(tmp_path):
    async with stages.staged(tmp_path) as stage:
        first = await sent(stage, FIRST)
        stage.clock.advance(600)
        assert (await sent(stage, RETRY)).row.id == first.row.id
        stage.clock.advance(1)
        assert not (await sent(stage, RETRY)).is_replay
        assert stage.posts() == 2


async def test_the_newest_of_several_tasks_with_one_body_is_the_one_retried(tmp_path):
    async with stages.staged(tmp_path) as stage:
        await sent(stage, FIRST)
        stage.clock.advance(1)
        second = await sent(stage, FIRST)
        assert (await sent(stage, RETRY)).row.id == second.row.id
        assert stage.posts() == 2


async def test_requests_that_do_not_say_they_are_retries_are_each_a_task_of_their_own(tmp_path):
    async with stages.staged(tmp_path) as stage:
        rows = await asyncio.gather(*(sent(stage, FIRST) for _ in range(10)))
        assert len({each.row.id for each in rows}) == 10
        assert stage.posts() == 10
        assert stage.parts.arriving == {}


async def test_a_retry_of_what_never_arrived_is_a_task_and_its_own_retries_are_that_task(tmp_path):
    async with stages.staged(tmp_path) as stage:
        results = await asyncio.gather(*(sent(stage, RETRY) for _ in range(20)))
        assert len({each.row.id for each in results}) == 1
        assert sorted(each.is_replay for each in results) == [False] + [True] * 19
        assert stage.posts() == 1


async def test_a_retry_that_overtakes_the_first_waits_until_that_is_in_the_ledger(tmp_path):
    async with stages.staged(tmp_path) as stage:
        held = parts.InForce(stage.parts.in_force.policies)
        slowly = dataclasses.replace(stage.parts, in_force=held)  # the first meets a change of the policies
        with held.changing():
            first = asyncio.create_task(submit.submit(slowly, stages.CALLER, body_of(), FIRST))
            while not stage.parts.arriving:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
            retry = asyncio.create_task(sent(stage, RETRY))
            other = await sent(stage, RETRY, prompt="another fox")
            assert not other.is_replay
            assert not retry.done() and stage.posts() == 1
        answered, again = await first, await retry
        assert isinstance(answered, submit.Submitted)
        assert (again.row.id, again.is_replay) == (answered.row.id, True)
        assert stage.posts() == 2
        assert stage.parts.arriving == {}


async def test_a_retry_of_a_first_that_was_denied_is_decided_on_its_own(tmp_path):
    async with stages.staged(tmp_path, growth="limits: {open_tasks: 1}\n") as stage:
        await sent(stage, FIRST, prompt="in the way")
        assert (await stage.denied()).code == "concurrency_limit_exceeded"
        await stage.finish()
        assert not (await sent(stage, RETRY)).is_replay


async def test_a_hit_and_a_follower_are_retried_as_themselves(tmp_path):
    async with stages.staged(tmp_path) as stage:
        leader = await sent(stage, submit.Options(request_id="req-0"), stages.CALLER, seed=7)
        follower = await sent(stage, FIRST, submit.Caller(team="growth", key="laptop"), seed=7)
        laptop = submit.Caller(team="growth", key="laptop")
        assert (await sent(stage, RETRY, laptop, seed=7)).row.id == follower.row.id
        await stage.finish()
        stage.clock.advance(1)
        hit = await sent(stage, FIRST, laptop, seed=7)
        assert (follower.row.x_cache, hit.row.x_cache) == ("COALESCED", "HIT")
        assert (await sent(stage, RETRY, laptop, seed=7)).row.id == hit.row.id
        assert (await sent(stage, RETRY, seed=7)).row.id == leader.row.id
        assert stage.posts() == 1


async def test_a_refusal_of_the_vendor_is_replayed(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"status": 400, "code": "bad", "message": "no"}}])
        first = await sent(stage, FIRST)
        again = await sent(stage, RETRY)
        assert (again.row.id, again.is_replay, again.row.refusal_status) == (first.row.id, True, 400)
        assert stage.posts() == 1


async def test_what_was_refused_for_an_outage_is_tried_again(tmp_path):
    async with stages.staged(tmp_path, growth="upstream_down: refuse\n") as stage:
        earlier = await sent(stage, FIRST)
        stage.clock.advance(1)
        stage.vendor.set_script(
            [{"on": "submit", "do": {"status": 429, "code": "quota_window_exceeded", "reset_at": 1_795_392_000}}]
        )
        refused = await sent(stage, FIRST)
        assert refused.row.state is task.State.FAILED and refused.row.was_never_taken()
        again = await sent(stage, RETRY)
        assert not again.is_replay and again.row.id not in (earlier.row.id, refused.row.id)
        assert again.row.state is task.State.SUBMITTED


async def test_what_waited_past_its_deadline_is_tried_again(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"status": 429, "retry_after": 300}}])
        waiting = await sent(stage, FIRST)
        assert (await sent(stage, RETRY)).row.id == waiting.row.id
        await stage.finish(rounds=30)
        assert (await stage.row(waiting.row.id)).state is task.State.FAILED
        assert not (await sent(stage, RETRY)).is_replay


async def test_what_failed_at_the_vendor_or_was_cancelled_is_replayed(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"outcome": "failed", "error": {"message": "x", "code": "y"}}}])
        failed = await sent(stage, FIRST)
        withdrawn = await sent(stage, FIRST, prompt="another fox")
        await cancel.cancel(stage.parts, "growth", withdrawn.row.id)
        await stage.finish()
        again = await sent(stage, RETRY)
        assert (again.row.id, again.row.state) == (failed.row.id, task.State.FAILED)
        again = await sent(stage, RETRY, prompt="another fox")
        assert (again.row.id, again.row.state) == (withdrawn.row.id, task.State.CANCELLED)
        assert stage.posts() == 2


async def test_a_retry_of_a_task_in_doubt_is_that_task(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"accept_and_drop": True}}])
        first = await sent(stage, FIRST)
        assert first.row.state is task.State.IN_DOUBT
        assert (await sent(stage, RETRY)).row.id == first.row.id
        await stage.finish()
        assert stage.vendor.bill()["tasks"] == 1


async def test_a_task_with_an_idempotency_key_is_found_by_that_key_alone(tmp_path):
    async with stages.staged(tmp_path) as stage:
        keyed = submit.Options(request_id="req-1", idempotency_key="k1", is_retry=True)
        first = await sent(stage, keyed)
        assert not (await sent(stage, RETRY)).is_replay
        assert (await sent(stage, keyed)).row.id == first.row.id
        other = dataclasses.replace(keyed, idempotency_key="k2")
        assert not (await sent(stage, other)).is_replay
        with pytest.raises(errors.CallerError):
            await sent(stage, keyed, prompt="another fox")


async def test_a_dry_run_says_what_a_retry_and_a_known_key_would_meet(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        keyed = submit.Options(request_id="req-1", idempotency_key="k1")
        dry = await explain.dry_run(stage.parts, stages.CALLER, body_of(), RETRY)
        assert (dry.decision, dry.quote_usd) == ("allow", "0.013282")
        await sent(stage, FIRST)
        dry = await explain.dry_run(stage.parts, stages.CALLER, body_of(), RETRY)
        assert (dry.decision, dry.quote_usd, dry.rule) == ("allow", "0", "x-stainless-retry-count")
        dry = await explain.dry_run(stage.parts, stages.CALLER, body_of(), keyed)
        assert (dry.decision, dry.code) == ("deny", "quota_window_exceeded")
        assert stage.posts() == 1


async def test_a_dry_run_with_a_used_idempotency_key_is_the_task_of_that_key_or_422(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        keyed = submit.Options(request_id="req-1", idempotency_key="k1")
        await sent(stage, keyed)
        dry = await explain.dry_run(stage.parts, stages.CALLER, body_of(), keyed)
        assert (dry.decision, dry.quote_usd, dry.rule, dry.caps) == ("allow", "0", "Idempotency-Key", ())
        with pytest.raises(errors.CallerError) as caught:
            await explain.dry_run(stage.parts, stages.CALLER, body_of(prompt="b"), keyed)
        assert caught.value.code == "idempotency_key_reused"


async def test_a_retry_finds_the_first_also_when_the_model_is_not_allowed_any_more(tmp_path):
    async with stages.staged(tmp_path) as stage:
        first = await sent(stage, FIRST)
        await stage.adopt(stages.write_policies(tmp_path / "policies", growth="models: {deny: ['*']}\n"))
        assert isinstance(await stage.submit(), policy.Deny)
        assert (await sent(stage, RETRY)).row.id == first.row.id
