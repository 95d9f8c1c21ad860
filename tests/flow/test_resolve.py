"""An operator's decision about a task in doubt or overdue: recorded once, in the books to the nano (M7)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator

import pytest

from gateway.flow import advance, changes, lookup, poll, resolve, resubmit
from gateway.outbound import upstream
from gateway.rules import task
from gateway.rules.money import Nanos
from gateway.store import ledger
from gateway.store.database import Tx
from tests import stage as stages

HELD = ("team", "growth", "day")
CAP = 'spend: [{cap: "1.00", per: day}]\n'
QUOTE = 13_282_000
LOST = [{"on": "submit", "times": None, "do": {"status": 503}}]
DAY_S = 86_400
ACCEPTED = task.Accepted(
    upstream_task_id="v-12345678", document=b'{"status":"queued"}', outcome=task.Outcome(event=None)
)


async def _resolve(
    stage: stages.Stage, task_id: str, charged: int | None = None, *, why: str = "the vendor's list"
) -> changes.Change | resolve.Unresolved:
    """As the control socket does it."""
    decision = resolve.Decision(task_id=task_id, charged_nanos=None if charged is None else Nanos(charged), why=why)
    with_parts = stage.parts
    done = await resolve.resolve(with_parts.database, decision, now=stage.clock(), repeating=with_parts.repeating)
    if isinstance(done, changes.Change):
        advance.announce(with_parts, done)
    return done


async def _resolved(stage: stages.Stage, task_id: str, charged: int | None = None) -> changes.Change:
    done = await _resolve(stage, task_id, charged)
    assert isinstance(done, changes.Change), done
    return done


async def _refused(stage: stages.Stage, task_id: str) -> str:
    """Why nothing was decided; nothing may have changed."""
    before = await _everything(stage)
    done = await _resolve(stage, task_id, 42_500_000)
    assert isinstance(done, resolve.Unresolved), done
    assert await _everything(stage) == before
    return done.message


async def _everything(stage: stages.Stage) -> list[list[tuple[object, ...]]]:
    """Every row of what a decision could change."""

    def read(tx: Tx) -> list[list[tuple[object, ...]]]:
        tables = ("tasks", "entries", "balances", "holds", "totals")
        return [[stages.values(row) for row in tx.all(f"SELECT * FROM {table}")] for table in tables]  # noqa: S608

    return await stage.parts.database.read(read)


async def _why(stage: stages.Stage, task_id: str) -> list[tuple[str, str]]:
    entries = await stage.parts.database.read(lambda tx: ledger.entries_of(tx, task_id))
    return [(each.kind, each.why) for each in entries]


async def test_refused_releases_the_hold_and_fails_the_task_for_its_client(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script(LOST)
        row = await stage.admitted()
        await _resolved(stage, row.id)
        assert await _why(stage, row.id) == [("reserve", ""), ("release", "operator: refused: the vendor's list")]
        assert await stage.entries(row.id) == [("reserve", QUOTE), ("release", QUOTE)]
        assert (await stage.balances())[HELD] == (0, 0)
        shown = await stage.shown(row)
        assert (shown["status"], shown["error"]["code"], shown["cost"]) == ("failed", "upstream_unavailable", 0)
        assert shown["error"]["message"] == (
            "The upstream never said how this task ended; whoever runs the gateway found that it came to nothing and "
            "cost nothing."
        )
        stage.vendor.set_script([])
        await stage.finish()
        assert (stage.posts(), stage.vendor.bill()["tasks"]) == (1, 0)
        assert await stage.audit() == []


async def test_charged_settles_to_the_amount_and_tells_the_client_the_cost(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script(LOST)
        row = await stage.admitted()
        done = await _resolved(stage, row.id, 13_280_000)
        assert (done.row.state, done.row.cost_nanos) == (task.State.FAILED, 13_280_000)
        assert await stage.entries(row.id) == [("reserve", QUOTE), ("settle", 13_280_000)]
        assert (await _why(stage, row.id))[1] == ("settle", "operator: charged $0.01328: the vendor's list")
        assert (await stage.balances())[HELD] == (13_280_000, 0)
        shown = await stage.shown(row)
        assert (shown["status"], shown["error"]["code"], shown["cost"]) == ("failed", "upstream_unavailable", 6_640)
        assert shown["error"]["message"].endswith("found that it was billed and its result is lost.")
        [total] = await stage.parts.database.read(ledger.totals)
        assert (total.team, total.model, total.tier) == ("growth", stages.FLASH, "standard")
        assert (total.cost_nanos, total.images, total.premium_nanos, total.drift_nanos) == (13_280_000, 0, 0, 0)
        assert await stage.audit() == []


async def test_a_charge_above_the_standard_price_is_the_official_models(tmp_path):
    lines = 'spend: [{cap: "1", per: day}, {name: official, cap: "1", per: day, models: ["*-official"]}]\n'
    async with stages.staged(tmp_path, growth=lines) as stage:
        stage.vendor.set_script(LOST)
        standard, official = [await stage.admitted(official_fallback=True, n=2) for _ in range(2)]
        await _resolved(stage, standard.id, 26_564_000)
        await _resolved(stage, official.id, 66_300_000)
        totals = await stage.parts.database.read(ledger.totals)
        assert {(each.model, each.cost_nanos, each.premium_nanos) for each in totals} == {
            (stages.FLASH, 26_564_000, 39_737_500),
            (f"{stages.FLASH}-official", 66_300_000, 0),
        }
        balances = await stage.parts.database.read(
            lambda tx: tx.all("SELECT model_filter, settled_nanos, reserved_nanos FROM balances ORDER BY model_filter")
        )
        assert [stages.values(each)[1:] for each in balances] == [(92_864_000, 0), (66_300_000, 0)]
        assert await stage.audit() == []


async def test_a_charge_above_the_quote_is_recorded_as_overage_and_rings(tmp_path, caplog):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script(LOST)
        row = await stage.admitted()
        await _resolved(stage, row.id, 50_000_000)
        assert await stage.entries(row.id) == [("reserve", QUOTE), ("settle", 50_000_000), ("overage", 36_718_000)]
        assert (await stage.balances())[HELD] == (50_000_000, 0)
        [alarm] = [record.msg for record in caplog.records if record.levelname == "ERROR"]
        assert (alarm.task_id, alarm.after, alarm.hold, alarm.cost_usd) == (row.id, "failed", "overage", "0.05")
        assert await stage.audit() == []


async def test_a_failed_task_that_the_vendor_billed_above_the_quote_rings_too(tmp_path, caplog):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"outcome": "failed", "cost": 10_000}}])
        row = await stage.admitted()
        await stage.finish()
        assert (await stage.entries(row.id))[2] == ("overage", 6_718_000)
        [alarm] = [record.msg for record in caplog.records if record.levelname == "ERROR"]
        assert (alarm.task_id, alarm.after, alarm.hold, alarm.cost_usd) == (row.id, "failed", "overage", "0.02")


async def test_followers_end_with_the_task_at_no_cost_and_later_requests_miss(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script(LOST)
        leader, first, second = [await stage.admitted(seed=7) for _ in range(3)]
        assert (await _refused(stage, first.id)).endswith(
            f"holds nothing: it follows {leader.id} and ends with that one"
        )
        done = await _resolved(stage, leader.id, 13_280_000)
        assert {each.id for each in done.followers} == {first.id, second.id}
        for each in (first, second):
            shown = await stage.shown(each)
            assert (shown["status"], shown["error"]["code"], shown["cost"]) == ("failed", "upstream_unavailable", 0)
            assert await stage.entries(each.id) == []
        stage.vendor.set_script([])
        assert (await stage.admitted(seed=7)).x_cache == "MISS"
        assert await stage.audit() == []


async def test_a_second_decision_changes_nothing_and_is_told_how_the_task_ended(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script(LOST)
        charged, released = await stage.admitted(), await stage.admitted()
        await _resolved(stage, charged.id, 13_280_000)
        await _resolved(stage, released.id)
        assert await _refused(stage, charged.id) == (
            f"task {charged.id} has ended already, nothing was changed: failed, at a cost of $0.01328 "
            "(operator: charged $0.01328: the vendor's list)"
        )
        assert await _refused(stage, released.id) == (
            f"task {released.id} has ended already, nothing was changed: failed, at a cost of $0 "
            "(operator: refused: the vendor's list)"
        )


async def test_two_decisions_at_once_end_the_hold_once(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script(LOST)
        row = await stage.admitted()
        done = await asyncio.gather(*(_resolve(stage, row.id, charged) for charged in (None, 13_280_000, None)))
        assert sum(isinstance(each, changes.Change) for each in done) == 1
        assert len(await stage.entries(row.id)) == 2
        assert await stage.audit() == []


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (task.State.RESERVED, "let the gateway run and try again in half a minute"),
        (task.State.WAITING, "it is sent, or ends by itself at its deadline; its client may cancel it"),
        (task.State.SUBMITTED, "which is asked how it ends; it is overdue in 60 min"),
        (task.State.DELIVERED, "it completes when its pictures are kept"),
        (task.State.COMPLETED, "has ended already, nothing was changed: completed, at a cost of $0"),
        (task.State.CANCELLED, "has ended already, nothing was changed: cancelled, at a cost of $0"),
        (task.State.REFUSED, "has ended already, nothing was changed: refused, at a cost of $0"),
    ],
)
async def test_nothing_is_decided_about_a_task_in_another_state(tmp_path, state, said):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted()
        set_state = "UPDATE tasks SET state = :state WHERE id = :id"
        await stage.parts.database.write(lambda tx: tx.run(set_state, state=state.value, id=row.id))
        message = await _refused(stage, row.id)
        assert message.startswith(f"task {row.id} ") and said in message


async def test_an_unknown_id_is_told_where_to_look(tmp_path):
    async with stages.staged(tmp_path) as stage:
        assert "'tasks show' finds one by its other names" in await _refused(stage, "task-unknown")


async def test_an_accepted_task_is_decided_only_when_overdue_and_the_vendors_later_word_changes_nothing(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script(
            [
                {"on": "submit", "do": {"queue_s": 7200}},
                {"on": "poll", "times": None, "do": {"merge": {"error": None}}},
            ]
        )
        row = await stage.admitted()
        await stage.run(3600)
        assert "was accepted by the upstream" in await _refused(stage, row.id)
        await stage.run(1)
        await _resolved(stage, row.id, 13_280_000)
        ended = await _everything(stage)
        shown = await stage.shown(row)
        assert (shown["status"], shown["error"]["code"], shown["cost"]) == ("failed", "upstream_unavailable", 6_640)
        stage.clock.advance(7200)
        await poll.step(stage.parts, row.id)
        done = task.Outcome(event=task.Event.DELIVERED, cost_quota=6_640)
        late = await stage.parts.database.write(
            lambda tx: advance.report(tx, row, done, b"{}", now=stage.clock(), next_at=0.0)
        )
        assert late is None
        await stage.finish()
        assert await _everything(stage) == ended
        assert await stage.settled_nanos() == stage.vendor.bill()["nanos"] == 13_280_000
        assert await stage.audit() == []


async def test_a_late_acceptance_changes_nothing(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script(LOST)
        row = await stage.admitted()
        await _resolved(stage, row.id)
        before = await _everything(stage)
        now = stage.clock()
        for word in (ACCEPTED, task.Refused(status=400, document=b"{}"), task.InDoubt(reason="timeout")):
            late = functools.partial(advance.answer, row=row, outcome=word, now=now, luck=0.5)
            assert await stage.parts.database.write(late) is None
        assert await _everything(stage) == before


async def test_a_decision_while_a_repeat_is_on_its_way_is_refused_and_the_vendors_answer_counts(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script(LOST)
        row = await stage.admitted()
        stage.clock.advance(1)
        async with _vendor_that_waits(stage) as (arrived, go_on):
            repeat = asyncio.create_task(resubmit.step(stage.parts, row.id))
            await arrived.wait()
            assert (await _refused(stage, row.id)).endswith(
                "is being sent to the upstream right now, or was when the gateway ended; "
                "let the gateway run and try again in half a minute"
            )
            go_on.set()
            await repeat
        kept = await stage.row(row.id)
        assert (kept.state, kept.upstream_task_id) == (task.State.SUBMITTED, "v-12345678")
        assert stage.parts.repeating == set()


async def test_between_two_repeats_a_decision_is_taken_and_no_post_leaves_after_it(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script(LOST)
        row = await stage.admitted()
        await stage.run(1)
        assert stage.posts() == 2
        await _resolved(stage, row.id)
        await stage.finish()
        assert stage.posts() == 2


async def test_a_repeat_that_began_before_a_decision_was_committed_does_not_leave(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script(LOST)
        row = await stage.admitted()
        stage.clock.advance(1)
        now, decided, commit = stage.clock(), asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def decide(tx: Tx) -> changes.Change | None:
            change = advance.resolve(tx, row, charged_nanos=None, why="operator: refused: gone", now=now)
            loop.call_soon_threadsafe(decided.set)
            commit.wait(30)
            return change

        deciding = asyncio.create_task(stage.parts.database.write(decide))
        await decided.wait()
        # The repeat reads the row as it was, in doubt, and queues its attempt behind the decision.
        repeat = asyncio.create_task(resubmit.step(stage.parts, row.id))
        async with asyncio.timeout(20):
            while row.id not in stage.parts.repeating:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
        commit.set()
        await asyncio.gather(deciding, repeat)
        assert stage.posts() == 1
        assert (await stage.row(row.id)).state is task.State.FAILED
        assert await stage.entries(row.id) == [("reserve", QUOTE), ("release", QUOTE)]
        assert await stage.audit() == []


async def test_a_decision_that_comes_behind_an_attempt_waits_for_its_answer(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script(LOST[:1])
        row = await stage.admitted()
        stage.vendor.set_script([])
        stage.clock.advance(1)
        repeat = asyncio.create_task(resubmit.step(stage.parts, row.id))
        await asyncio.sleep(0)
        assert stage.parts.repeating == {row.id}
        assert isinstance(await _resolve(stage, row.id), resolve.Unresolved)
        await repeat
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED
        assert await stage.settled_nanos() == stage.vendor.bill()["nanos"] == 13_280_000


async def test_a_charge_lands_in_the_windows_of_its_reserve_also_the_next_day(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script(LOST)
        row = await stage.admitted()
        stage.clock.advance(DAY_S)
        await stage.admitted()
        await _resolved(stage, row.id, 13_280_000)
        balances = await stage.parts.database.read(
            lambda tx: tx.all("SELECT starts_at, settled_nanos, reserved_nanos FROM balances ORDER BY starts_at")
        )
        assert [stages.values(each) for each in balances] == [
            (1_795_305_600, 13_280_000, 0),
            (1_795_392_000, 0, QUOTE),
        ]
        assert await stage.audit() == []


async def test_the_list_names_the_oldest_first_and_whose_turn_it_is(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script(LOST)
        old = await stage.admitted(seed=7)
        await stage.run(23 * 3600)
        young = await stage.admitted()
        foreign = await stage.admitted(stages.OTHER)
        await stage.run(0)
        everybody = await stage.parts.database.read(lambda tx: lookup.in_doubt(tx, team=None, limit=10))
        assert [each.id for each in everybody] == [old.id, young.id, foreign.id]
        mine = await stage.parts.database.read(lambda tx: lookup.in_doubt(tx, team="growth", limit=10))
        assert [(each.id, each.is_yours, each.attempts, each.next_at) for each in mine] == [
            (old.id, True, 1, None),
            (young.id, False, 1, stages.NOON + 23 * 3600 + 0.6),
        ]
        first = mine[0]
        assert (first.team, first.quote_usd, first.first_attempt_at) == ("growth", "0.013282", stages.NOON)
        assert (first.upstream_key, first.request_id) == ("env:KEY_GROWTH", "req-1")
        assert first.upstream_idempotency_key == stage.vendor.requests.submits[0].idempotency_key
        await _resolved(stage, old.id, 13_280_000)
        left = await stage.parts.database.read(lambda tx: lookup.in_doubt(tx, team="growth", limit=10))
        assert [each.id for each in left] == [young.id]
        assert await stage.audit() == []


@contextlib.asynccontextmanager
async def _vendor_that_waits(stage: stages.Stage) -> AsyncIterator[tuple[asyncio.Event, asyncio.Event]]:
    """The upstream is a socket that has heard of the submit when the first event is set and accepts at the second."""
    arrived, go_on = asyncio.Event(), asyncio.Event()
    body = b'{"task_id":"v-12345678","status":"queued"}'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await go_on.wait()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    there = stage.parts.upstream
    waiting = upstream.Upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    object.__setattr__(stage.parts, "upstream", waiting)
    try:
        yield arrived, go_on
    finally:
        object.__setattr__(stage.parts, "upstream", there)
        await waiting.aclose()
        server.close()
