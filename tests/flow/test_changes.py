"""The lines of a task: one for each change of state, none before it is committed, all under the submit's request id."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest

from gateway import errors, log_events
from gateway.flow import advance, cancel, recover, resolve
from gateway.outbound import upstream
from gateway.rules import policy, task
from tests import receiver
from tests import stage as stages

CAP = 'spend: [{cap: "1.00", per: day}]\n'
QUICK = {"queue_s": 0, "work_s": 0}
QUOTE, COST = "0.013282", "0.01328"


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "gateway")


def lines(caplog: pytest.LogCaptureFixture, event: type[log_events.Event], **fields: object) -> list[Any]:
    """What was logged as an event, with these fields."""
    found = [record.msg for record in caplog.records if isinstance(record.msg, event)]
    return [each for each in found if all(getattr(each, name) == value for name, value in fields.items())]


def path(caplog: pytest.LogCaptureFixture, task_id: str) -> list[tuple[str | None, str, str | None]]:
    """(from, to, what the ledger did) of each line about a task's state."""
    return [(each.before, each.after, each.hold) for each in lines(caplog, log_events.TaskChanged, task_id=task_id)]


async def test_a_task_has_one_line_for_each_state_with_its_money(tmp_path, caplog):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted()
        await stage.finish()
        assert path(caplog, row.id) == [
            (None, "reserved", "reserve"),
            ("reserved", "submitted", None),
            ("submitted", "delivered", "settle"),
            ("delivered", "completed", None),
        ]
        upstream_id = (await stage.row(row.id)).upstream_task_id
        born, _, _, last = lines(caplog, log_events.TaskChanged)
        assert msgspec.to_builtins(born) == {
            "event": "task_changed",
            "task_id": row.id,
            "request_id": "req-1",
            "team": "growth",
            "key": "ci",
            "to": "reserved",
            "hold": "reserve",
            "model": stages.FLASH,
            "tier": "standard",
            "cache": "bypass" if row.fingerprint is None else "miss",
            "quote_usd": QUOTE,
            "attempts": 1,
            "age_s": 0.0,
        }
        assert (last.cost_usd, last.quote_usd, last.upstream_task_id, last.cause) == (
            COST,
            QUOTE,
            upstream_id,
            "mirrored",
        )
        assert last.age_s > 0


async def test_a_hit_is_born_completed_and_followers_end_with_their_leader(tmp_path, caplog):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        leader = await stage.admitted(seed=7)
        follower = await stage.admitted(seed=7)
        await stage.finish()
        hit = await stage.admitted(seed=7)
        assert path(caplog, follower.id) == [(None, "following", None), ("following", "completed", None)]
        assert path(caplog, hit.id) == [(None, "completed", None)]
        ended = lines(caplog, log_events.TaskChanged, task_id=follower.id)[-1]
        assert (ended.leader_id, ended.cost_usd, ended.request_id, ended.team) == (leader.id, "0", "req-1", "growth")
        [born] = lines(caplog, log_events.TaskChanged, task_id=hit.id)
        assert (born.cache, born.quote_usd, born.cost_usd, born.leader_id) == ("hit", "0", "0", leader.id)


@pytest.mark.parametrize(
    ("fault", "rest"),
    [
        ({"status": 400, "code": "upstream_bad_request"}, [("reserved", "refused", "release")]),
        (
            {"status": 429, "retry_after": 1},
            [
                ("reserved", "waiting", None),
                ("waiting", "reserved", None),
                ("reserved", "submitted", None),
                ("submitted", "delivered", "settle"),
                ("delivered", "completed", None),
            ],
        ),
        (
            {"accept_and_drop": True},
            [
                ("reserved", "in_doubt", None),
                ("in_doubt", "submitted", None),
                ("submitted", "delivered", "settle"),
                ("delivered", "completed", None),
            ],
        ),
        (
            {"outcome": "failed"},
            [("reserved", "submitted", None), ("submitted", "failed", "release")],
        ),
    ],
)
async def test_however_a_task_ends_its_lines_are_a_path_to_the_state_it_is_in(tmp_path, caplog, fault, rest):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "do": QUICK | fault}])
        row = await stage.admitted()
        await stage.finish()
        assert path(caplog, row.id) == [(None, "reserved", "reserve"), *rest]
        assert (await stage.row(row.id)).state.value == rest[-1][1]


async def test_several_changes_in_one_transaction_are_one_line(tmp_path, caplog):
    async with stages.staged(tmp_path, growth=CAP + "upstream_down: refuse\n") as stage:
        await stage.parts.upstream.aclose()
        object.__setattr__(stage.parts, "upstream", upstream.Upstream("http://127.0.0.1:1"))
        row = await stage.admitted()
        assert path(caplog, row.id) == [(None, "reserved", "reserve"), ("reserved", "failed", "release")]


async def test_a_cancel_before_the_vendor_had_it_and_an_operators_word_are_told_as_their_cause(tmp_path, caplog):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"status": 429, "retry_after": 60}}])
        waiting = await stage.admitted()
        await cancel.cancel(stage.parts, "growth", waiting.id)
        stage.vendor.set_script([{"on": "submit", "times": None, "do": {"drop": True}}])
        doubtful = await stage.admitted()
        decision = resolve.Decision(task_id=doubtful.id, charged_nanos=None, why="asked them")
        done = await resolve.resolve(stage.parts.database, decision, now=stage.clock())
        assert not isinstance(done, resolve.Unresolved)
        advance.announce(stage.parts, done)
        ends = [lines(caplog, log_events.TaskChanged, task_id=each.id)[-1] for each in (waiting, doubtful)]
        assert [(each.after, each.cause, each.hold) for each in ends] == [
            ("cancelled", "withdrawn", "release"),
            ("failed", "resolved", "release"),
        ]


async def test_nothing_is_told_of_a_change_that_was_rolled_back_or_of_none(tmp_path, caplog):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted()
        kept = await stage.row(row.id)
        caplog.clear()
        delivered = task.Outcome(event=task.Event.DELIVERED, cost_quota=10)

        def roll_back(tx) -> None:
            assert advance.report(tx, kept, delivered, b"{}", now=stage.clock(), next_at=stage.clock()) is not None
            raise errors.OurError("unavailable", "as when the disk is full")

        with pytest.raises(errors.OurError):
            await stage.parts.database.write(roll_back)
        assert caplog.records == []
        unchanged = task.Outcome(event=None)
        stays = await stage.parts.database.write(
            lambda tx: advance.report(tx, kept, unchanged, b"{}", now=stage.clock(), next_at=stage.clock())
        )
        advance.announce(stage.parts, stays)
        assert caplog.records == []


async def test_what_a_kill_interrupted_is_told_of_after_the_next_start(tmp_path, caplog):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted()
        undo = "UPDATE tasks SET state = 'reserved', upstream_task_id = NULL, document = NULL WHERE id = :id"
        await stage.parts.database.write(lambda tx: tx.run(undo, id=row.id))
        caplog.clear()
        await recover.recover(stage.parts)
        assert path(caplog, row.id) == [("reserved", "in_doubt", None)]


async def test_what_is_left_to_the_operator_is_an_error_with_what_is_at_stake(tmp_path, caplog):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "times": None, "do": {"drop": True}}])
        row = await stage.admitted()
        await stage.run(23 * 3600)
        [left] = lines(caplog, log_events.TaskLeftToOperator)
        assert (left.task_id, left.team, left.quote_usd) == (row.id, "growth", QUOTE)
        assert "23 hours" in left.why
        [record] = [each for each in caplog.records if each.msg is left]
        assert record.levelno == logging.ERROR


async def test_each_call_to_the_vendor_is_told_with_its_task_and_the_submits_request_id(tmp_path, caplog):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"accept_and_drop": True, "queue_s": 60}}])
        row = await stage.admitted()
        await stage.run(5)
        await stage.run(5)
        await cancel.cancel(stage.parts, "growth", row.id)
        called = lines(caplog, log_events.UpstreamCall)
        assert [(each.operation, each.outcome, each.status, each.attempt) for each in called] == [
            ("submit", "in_doubt", None, 1),
            ("submit", "accepted", 200, 2),
            ("poll", "ok", 200, None),
            ("cancel", "accepted", 200, None),
        ]
        assert {(each.task_id, each.request_id) for each in called} == {(row.id, "req-1")}
        levels = [record.levelname for record in caplog.records if record.msg in called]
        assert levels == ["WARNING", "INFO", "DEBUG", "INFO"]
        assert [each.headers["x-request-id"] for each in stage.vendor.requests.submits] == ["req-1", "req-1"]


async def test_a_denial_names_the_rule_and_not_what_the_client_wrote(tmp_path, caplog):
    async with stages.staged(tmp_path, growth="limits: {n: 2}\n") as stage:
        assert isinstance(await stage.submit(n=3, prompt="a canary"), policy.Deny)
        assert isinstance(await stage.submit(model="canary"), policy.Deny)
        by_limit, by_model = lines(caplog, log_events.PolicyDenied)
        assert (by_limit.team, by_limit.key, by_limit.code) == ("growth", "ci", "limit_exceeded")
        assert by_limit.rule.startswith("teams/growth.yaml:") and by_model.code == "model_not_allowed"
        assert "canary" not in caplog.text


async def test_a_kept_file_and_a_failed_try_are_told_with_the_host_only(tmp_path, caplog):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "media", "do": {"status": 500}}])
        row = await stage.admitted()
        await stage.finish()
        [failed], [kept] = lines(caplog, log_events.MirrorFailed), lines(caplog, log_events.MirrorKept)
        assert (failed.task_id, failed.reason, failed.host, failed.url) == (row.id, "status", "127.0.0.1", None)
        [digest] = [
            each["digest"] for each in await stage.parts.database.read(lambda tx: tx.all("SELECT digest FROM blobs"))
        ]
        assert (kept.digest, kept.position, kept.host, kept.url) == (digest, 0, "127.0.0.1", None)
        assert kept.bytes > 1_000


async def test_with_log_content_the_prompt_and_the_signed_url_are_there_and_only_then(tmp_path, caplog):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        await stage.admitted(prompt="a canary")
        await stage.finish()
        assert "canary" not in caplog.text
        object.__setattr__(stage.parts, "logs_content", True)
        row = await stage.admitted(prompt="a canary")
        await stage.finish()
        told = lines(caplog, log_events.TaskChanged, task_id=row.id)
        assert [each.prompt for each in told] == ["a canary", None, None, None]
        [kept] = lines(caplog, log_events.MirrorKept, task_id=row.id)
        assert kept.url.startswith(stage.url) and "?" in kept.url


async def test_each_attempt_at_a_webhook_is_told_with_what_came_of_it(tmp_path, caplog):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        async with receiver.receiving(receiver.status(500), receiver.status(204)) as there:
            row = await stage.admitted(callback_url=f"{there.url}/hook?token=canary")
            await stage.finish()
            await stage.deliver()
            await stage.deliver(6)
        tried = lines(caplog, log_events.WebhookAttempt)
        assert [(each.outcome, each.attempt, each.status, each.detail) for each in tried] == [
            ("failed", 1, 500, "answered 500"),
            ("delivered", 2, 204, None),
        ]
        assert {(each.task_id, each.request_id, each.webhook_id) for each in tried} == {
            (row.id, "req-1", "msg_" + row.id.removeprefix("task-"))
        }
        assert "canary" not in caplog.text and tried[0].receiver == there.url.removeprefix("http://")
