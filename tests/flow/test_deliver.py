"""Webhooks on their way: when each attempt is made, what it carries, and that one receiver never holds up another."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import datetime
import functools
import hashlib
import hmac
import itertools
import time
from typing import Any

import pytest
import standardwebhooks

from gateway import metrics, policy_files, workers
from gateway.flow import deliver, scrape
from gateway.outbound import webhook
from gateway.store import outbox
from tests import receiver
from tests import stage as stages
from tests.receiver import status

SIGNED = "webhooks: {secret: env:HOOK}\n"


async def ended(stage: stages.Stage, url: str, **fields: Any) -> str:
    """The id of a task that has just ended, its webhook due."""
    row = await stage.admitted(callback_url=url, **fields)
    await stage.finish(rounds=3)
    return row.id


async def kept(stage: stages.Stage, task_id: str) -> tuple[str, int, str | None]:
    """(state, attempts, problem) of a webhook."""
    row = await stage.parts.database.read(lambda tx: outbox.get(tx, task_id))
    assert row is not None
    return row.state.value, row.attempts, row.problem


async def test_a_completed_task_is_posted_once_as_a_get_shows_it(tmp_path):
    async with stages.staged(tmp_path) as stage, receiver.receiving(status(200)) as there:
        row = await stage.admitted(callback_url=f"{there.url}/x?token=t")
        await stage.finish(rounds=3)
        await stage.deliver()
        await stage.deliver(100_000)
        [sent] = there.requests
        assert sent.line == "POST /x?token=t HTTP/1.1"
        assert sent.document() == await stage.shown(row)
        assert sent.document()["status"] == "completed"
        assert sent.document()["result"]["images"][0]["url"][0].startswith("http://gateway.test/media/")
        assert await kept(stage, row.id) == ("delivered", 1, None)


async def test_a_failed_task_is_posted_with_its_error(tmp_path):
    async with stages.staged(tmp_path) as stage, receiver.receiving(status(200)) as there:
        stage.vendor.set_script([{"on": "submit", "do": {"outcome": "failed", "error": {"message": "x", "code": "y"}}}])
        await ended(stage, there.url)
        await stage.deliver()
        [sent] = there.requests
        assert (sent.document()["status"], sent.document()["error"]) == ("failed", {"message": "x", "code": "y"})


async def test_a_hit_and_a_follower_are_posted_under_their_own_ids_at_cost_0(tmp_path):
    async with stages.staged(tmp_path) as stage, receiver.receiving(status(200)) as there:
        leader = await stage.admitted(seed=7)
        follower = await stage.admitted(seed=7, callback_url=there.url)
        await stage.finish(rounds=3)
        hit = await stage.admitted(seed=7, callback_url=there.url)
        await stage.deliver()
        told = {sent.headers["webhook-id"]: sent.document() for sent in there.requests}
        assert set(told) == {each.id.replace("task-", "msg_") for each in (follower, hit)}
        assert {document["task_id"] for document in told.values()} == {follower.id, hit.id}
        assert [(each["status"], each["cost"]) for each in told.values()] == [("completed", 0)] * 2
        assert leader.id.encode() not in b"".join(sent.body for sent in there.requests)


async def test_what_fails_is_tried_again_at_growing_waits_under_the_same_id_and_then_given_up(tmp_path):
    async with stages.staged(tmp_path) as stage, receiver.receiving(status(500)) as there:
        task_id = await ended(stage, there.url)
        await stage.deliver()
        assert await kept(stage, task_id) == ("pending", 1, "answered 500")
        for made, wait_s in enumerate((5, 30, 120, 600, 3600, 21_600, 86_400), start=1):
            await stage.deliver(wait_s - 1)
            assert len(there.requests) == made
            await stage.deliver(1)
            assert len(there.requests) == made + 1
        assert await kept(stage, task_id) == ("given_up", 8, "answered 500")
        await stage.deliver(1_000_000)
        assert len(there.requests) == 8
        assert len({sent.headers["webhook-id"] for sent in there.requests}) == 1
        assert len({sent.headers["webhook-timestamp"] for sent in there.requests}) == 8


async def test_a_receiver_that_comes_back_gets_its_webhook(tmp_path):
    answers = (status(503), status(302, "Location: http://127.0.0.1:9/"), status(200))
    async with stages.staged(tmp_path) as stage, receiver.receiving(*answers) as there:
        task_id = await ended(stage, there.url)
        await stage.deliver()
        await stage.deliver(5)
        assert await kept(stage, task_id) == ("pending", 2, "answered 302: redirects are not followed")
        await stage.deliver(30)
        assert await kept(stage, task_id) == ("delivered", 3, None)


async def test_a_receiver_that_fails_five_times_then_works_gets_each_attempt_on_schedule_and_verifies_it(tmp_path):
    key = "whsec_" + base64.b64encode(b"a key of 24 bytes or so.").decode()
    answers = (status(500), status(404), status(302, "Location: /"), b"garbage\r\n\r\n", status(503), status(204))
    async with stages.staged(tmp_path, growth=SIGNED) as stage, receiver.receiving(*answers) as there:
        stage.keys["env:HOOK"] = key
        stage.clock.now = began_at = float(int(time.time()))  # the library refuses what is older than five minutes
        task_id = await ended(stage, there.url)
        ended_at = stage.clock()
        with_luck = itertools.cycle((0.0, 1.0))  # a wait that is a tenth shorter, then one that is a tenth longer
        stage.parts = dataclasses.replace(stage.parts, luck=lambda: next(with_luck))
        await stage.deliver()
        for made, wait_s in enumerate((4.5, 33.0, 108.0, 660.0, 3240.0), start=1):
            await stage.deliver(wait_s - 0.25)
            assert len(there.requests) == made
            await stage.deliver(0.25)
            assert len(there.requests) == made + 1
        reference = standardwebhooks.Webhook(key)
        for after_s, sent in zip((0.0, 4.5, 37.5, 145.5, 805.5, 4045.5), there.requests, strict=True):
            at = datetime.datetime.fromtimestamp(int(ended_at + after_s), datetime.UTC)
            assert sent.headers["webhook-timestamp"] == str(int(at.timestamp()))
            signature = reference.sign(msg_id=sent.headers["webhook-id"], timestamp=at, data=sent.body.decode())
            assert sent.headers["webhook-signature"] == signature
            if after_s < 200:
                assert reference.verify(sent.body, dict(sent.headers))["task_id"] == task_id
        assert stage.clock() == began_at + 15 + 4045.5
        assert {sent.headers["webhook-id"] for sent in there.requests} == {task_id.replace("task-", "msg_")}
        assert await kept(stage, task_id) == ("delivered", 6, None)


async def test_an_overloaded_receiver_is_given_the_time_that_it_asks_for_within_the_schedule(tmp_path):
    answers = (status(429, "Retry-After: 20"), status(503, "Retry-After: 1"), status(503, "Retry-After: 9999999"))
    async with stages.staged(tmp_path) as stage, receiver.receiving(*answers) as there:
        await ended(stage, there.url)
        await stage.deliver()
        for made, wait_s in enumerate((20, 30, 600, 3600), start=1):
            await stage.deliver(wait_s - 1)
            assert len(there.requests) == made
            await stage.deliver(1)
            assert len(there.requests) == made + 1


async def test_a_receiver_that_is_gone_is_given_up_at_once(tmp_path):
    async with stages.staged(tmp_path) as stage, receiver.receiving(status(410)) as there:
        task_id = await ended(stage, there.url)
        await stage.deliver()
        assert await kept(stage, task_id) == ("given_up", 1, "answered 410")


async def test_a_webhook_is_signed_with_the_teams_secret(tmp_path):
    async with stages.staged(tmp_path, growth=SIGNED) as stage, receiver.receiving(status(200)) as there:
        stage.keys["env:HOOK"] = "whsec_aHVzaC1odXNoLWh1c2g="
        task_id = await ended(stage, there.url)
        await stage.deliver()
        [sent] = there.requests
        signed = f"{task_id.replace('task-', 'msg_')}.{int(stage.clock.now)}.".encode() + sent.body
        mac = hmac.new(b"hush-hush-hush", signed, hashlib.sha256).digest()
        assert sent.headers["webhook-signature"] == "v1," + base64.b64encode(mac).decode()


async def test_without_a_secret_id_and_timestamp_are_there_and_no_signature(tmp_path):
    async with stages.staged(tmp_path) as stage, receiver.receiving(status(200)) as there:
        task_id = await ended(stage, there.url)
        await stage.deliver()
        named = {name: value for name, value in there.requests[0].headers.items() if name.startswith("webhook-")}
        assert named == {"webhook-id": task_id.replace("task-", "msg_"), "webhook-timestamp": "1795348815"}


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        (None, "not sent unsigned: the secret env:HOOK cannot be read"),
        ("whsec_?", "not sent unsigned: the secret begins with whsec_ and does not go on in base64"),
    ],
)
async def test_a_webhook_that_cannot_be_signed_waits_until_it_can(tmp_path, secret, problem):
    async with stages.staged(tmp_path, growth=SIGNED) as stage, receiver.receiving(status(200)) as there:
        if secret is not None:
            stage.keys["env:HOOK"] = secret
        task_id = await ended(stage, there.url)
        await stage.deliver()
        assert await kept(stage, task_id) == ("pending", 1, problem)
        assert there.requests == []
        stage.keys["env:HOOK"] = "hush"
        await stage.deliver(5)
        assert await kept(stage, task_id) == ("delivered", 2, None)


async def test_a_host_that_the_team_has_ruled_out_since_is_not_told(tmp_path):
    async with stages.staged(tmp_path) as stage, receiver.receiving(status(200)) as there:
        task_id = await ended(stage, there.url)
        lines = 'webhooks: {allow_hosts: ["hooks.example.com"]}\n'
        await stage.adopt(stages.write_policies(tmp_path / "policies", growth=lines))
        await stage.deliver()
        assert there.requests == []
        why = "the host is not among the team's webhooks.allow_hosts any more"
        assert await kept(stage, task_id) == ("pending", 1, why)


async def test_a_team_whose_file_is_gone_is_told_when_it_is_back(tmp_path):
    async with stages.staged(tmp_path) as stage, receiver.receiving(status(200)) as there:
        task_id = await ended(stage, there.url)
        before = stage.parts.in_force.policies
        (tmp_path / "policies" / "teams" / "growth.yaml").unlink()
        await stage.adopt(policy_files.load(tmp_path / "policies"))
        await stage.deliver()
        assert await kept(stage, task_id) == ("pending", 1, "the team's file is gone, and with it how to sign")
        await stage.adopt(before)
        await stage.deliver(5)
        assert await kept(stage, task_id) == ("delivered", 2, None)


async def test_each_attempt_is_counted_by_its_outcome_and_the_backlog_is_read_from_the_database(tmp_path):
    def counted() -> list[float]:
        outcomes = ("delivered", "failed", "given_up")
        name = "wave_gateway_webhooks_total"
        return [metrics.REGISTRY.get_sample_value(name, {"outcome": each}) or 0.0 for each in outcomes]

    async def pending(stage: stages.Stage) -> int:
        policies, now = stage.parts.in_force.policies, stage.clock()
        snapshot = await stage.parts.database.read(lambda tx: scrape.snapshot(tx, policies, now=now))
        return snapshot.webhooks_pending

    async with (
        stages.staged(tmp_path) as stage,
        receiver.receiving(status(500), status(200)) as flapping,
        receiver.receiving(status(410)) as gone,
    ):
        before = counted()
        await ended(stage, flapping.url)
        await ended(stage, gone.url)
        assert await pending(stage) == 2
        await stage.deliver()
        assert [now - was for now, was in zip(counted(), before, strict=True)] == [0, 1, 1]
        assert await pending(stage) == 1
        await stage.deliver(5)
        assert [now - was for now, was in zip(counted(), before, strict=True)] == [1, 1, 1]
        assert await pending(stage) == 0


async def test_one_receiver_that_hangs_delays_no_other(tmp_path):
    let_go = asyncio.Event()

    async def hang(writer: asyncio.StreamWriter) -> None:
        await let_go.wait()

    async with (
        stages.staged(tmp_path) as stage,
        receiver.receiving(hang) as bad,
        receiver.receiving(status(200)) as good,
    ):
        for number in range(12):
            await stage.admitted(prompt=f"bad {number}", callback_url=bad.url)
        await stage.finish(rounds=3)
        wanted = await ended(stage, good.url)
        found = list(await deliver.due(stage.parts, 64))
        assert (len(found), found[-1]) == (5, wanted)
        hanging = [asyncio.create_task(deliver.step(stage.parts, task_id)) for task_id in found[:4]]
        while len(bad.requests) < 4:  # noqa: ASYNC110 - the event is set by the first
            await asyncio.sleep(0.005)
        async with asyncio.timeout(10):
            await deliver.step(stage.parts, wanted)
        assert await kept(stage, wanted) == ("delivered", 1, None)
        # Those that find no place change nothing and are still due.
        rows = await stage.parts.database.read(
            lambda tx: tx.all("SELECT task_id FROM outbox WHERE state = 'pending' ORDER BY task_id DESC LIMIT 3")
        )
        await asyncio.gather(*(deliver.step(stage.parts, row["task_id"]) for row in rows))
        assert (len(bad.requests), bad.most_at_once) == (4, 4)
        let_go.set()
        await asyncio.gather(*hanging)
        assert stage.parts.delivering == {}


async def test_an_attempt_that_is_not_due_or_has_no_webhook_is_not_made(tmp_path):
    async with stages.staged(tmp_path) as stage, receiver.receiving(status(500)) as there:
        task_id = await ended(stage, there.url)
        await stage.deliver()
        await deliver.step(stage.parts, task_id)
        await deliver.step(stage.parts, "task-wg-unknown")
        assert len(there.requests) == 1


async def test_a_webhook_that_is_sent_again_while_an_attempt_is_under_way_is_not_ended_by_it(tmp_path):
    go_on = asyncio.Event()

    async def slow(writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        writer.write(status(410))
        await writer.drain()

    async with stages.staged(tmp_path) as stage, receiver.receiving(slow, status(200)) as there:
        task_id = await ended(stage, there.url)
        first = asyncio.create_task(deliver.step(stage.parts, task_id))
        await there.has_request.wait()
        stage.clock.advance(1)
        await stage.parts.database.write(lambda tx: outbox.resend(tx, task_id, now=stage.clock()))
        go_on.set()
        await first
        assert await kept(stage, task_id) == ("pending", 0, None)
        await stage.deliver()
        assert await kept(stage, task_id) == ("delivered", 1, None)


async def test_a_deadline_ends_an_attempt_as_a_failure(tmp_path):
    async def hang(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async with stages.staged(tmp_path) as stage, receiver.receiving(hang) as there:
        task_id = await ended(stage, there.url)
        hasty = webhook.Sender(allowed=stage.parts.allow_private, tls=stages.NO_AUTHORITIES, deadline_s=0.1)
        try:
            await deliver.step(dataclasses.replace(stage.parts, sender=hasty), task_id)
        finally:
            await hasty.aclose()
        assert await kept(stage, task_id) == ("pending", 1, "no answer within 0.1 s")


async def test_a_queue_for_one_receiver_leaves_at_the_pace_of_its_answers(tmp_path):
    async with stages.staged(tmp_path) as stage, receiver.receiving(status(200)) as there:
        for number in range(12):
            await stage.admitted(prompt=f"fox {number}", callback_url=there.url)
        await stage.finish(rounds=3)
        wake = asyncio.Event()
        waking = dataclasses.replace(stage.parts, wake_deliver=wake.set)
        loop = workers.Loop(
            name="webhooks",
            interval_s=3600,
            slots=64,
            due=functools.partial(deliver.due, waking),
            step=functools.partial(deliver.step, waking),
            wake=wake,
        )
        running = asyncio.create_task(workers.run(loop))
        async with asyncio.timeout(20):
            while len(there.requests) < 12:  # noqa: ASYNC110 - the event is set by the first
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert there.most_at_once <= 4
