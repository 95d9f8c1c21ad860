"""What holds whatever happens, where it belongs to no single module: docs/MONEY.md says which line keeps it."""

from __future__ import annotations

import asyncio

import pytest

from gateway import errors
from gateway.flow import advance, cancel, recover, scrape, submit
from gateway.rules import task
from tests import stage as stages

DAY = ("team", "growth", "day")
QUOTE = 13_282_000
ONE = 'spend: [{cap: "0.0133", per: day}]\n'
"""Room for one picture."""


# M4, M5: what costs nothing


async def test_a_replay_a_hit_and_a_follower_are_served_when_the_cap_is_used_up(tmp_path):
    async with stages.staged(tmp_path, growth='spend: [{cap: "0.0266", per: day}]\n') as stage:
        first = await stage.admitted(key="k1", seed=1)
        await stage.finish()
        leader = await stage.admitted(seed=2)
        assert (await stage.denied(seed=3)).code == "quota_window_exceeded"
        before = await stage.balances()
        replay = await stage.submit(key="k1", seed=1)
        assert isinstance(replay, submit.Submitted) and replay.is_replay and replay.row.id == first.id
        hit, follower = await stage.admitted(seed=1), await stage.admitted(seed=2)
        assert (hit.x_cache, follower.x_cache, follower.leader_id) == ("HIT", "COALESCED", leader.id)
        for free in (hit, follower):
            assert (free.cost_nanos, free.quote_nanos, await stage.entries(free.id)) == (0, 0, [])
        assert await stage.balances() == before == {DAY: (13_280_000, QUOTE)}
        assert stage.posts() == 2
        assert await stage.audit() == []


async def test_a_hit_and_a_follower_hold_nothing_where_there_is_room(tmp_path):
    async with stages.staged(tmp_path, growth='spend: [{cap: "1", per: day}]\n') as stage:
        await stage.admitted(seed=1)
        await stage.finish()
        await stage.admitted(seed=2)
        for free in (await stage.admitted(seed=1), await stage.admitted(seed=2)):
            assert (free.quote_nanos, await stage.entries(free.id)) == (0, [])
        assert await stage.balances() == {DAY: (13_280_000, QUOTE)}


async def test_a_hit_and_a_follower_obey_the_model_rules_and_a_replay_is_the_same_task(tmp_path):
    async with stages.staged(tmp_path) as stage:
        first = await stage.admitted(key="k1", seed=1)
        await stage.finish()
        await stage.admitted(seed=2)
        lines = f'models: {{deny: ["{stages.FLASH}"]}}\n'
        await stage.adopt(stages.write_policies(tmp_path / "policies", growth=lines))
        assert [(await stage.denied(seed=seed)).code for seed in (1, 2)] == ["model_not_allowed", "model_not_allowed"]
        replay = await stage.submit(key="k1", seed=1)
        assert isinstance(replay, submit.Submitted) and replay.row.id == first.id
        assert stage.posts() == 2


async def test_racing_replays_at_a_cap_with_room_for_one_are_one_task_and_nobody_is_refused(tmp_path):
    async with stages.staged(tmp_path, growth=ONE) as stage:
        rows = await asyncio.gather(*(stage.admitted(key="k1") for _ in range(30)))
        assert {row.id for row in rows} == {rows[0].id}
        assert (stage.posts(), await stage.balances()) == (1, {DAY: (0, QUOTE)})


async def test_a_leader_that_came_since_the_decision_is_followed_and_not_bought_again(tmp_path):
    async with stages.staged(tmp_path, growth=ONE) as stage:
        rows = await asyncio.gather(*(stage.admitted(seed=7) for _ in range(30)))
        assert sorted(row.x_cache for row in rows) == ["COALESCED"] * 29 + ["MISS"]
        assert (stage.posts(), await stage.balances()) == (1, {DAY: (0, QUOTE)})


# M6: nothing is sent before it is durable


async def test_without_a_durable_reservation_the_client_gets_503_and_the_vendor_hears_nothing(tmp_path):
    async with stages.staged(tmp_path, growth=ONE) as stage:
        prompt = "a fox " * 50_000  # needs pages that the file may not have
        await stage.parts.database.write(lambda tx: tx.one("PRAGMA max_page_count = 1"))
        with pytest.raises(errors.OurError) as caught:
            await stage.submit(key="k1", prompt=prompt)
        assert (caught.value.code, caught.value.status) == ("unavailable", 503)
        assert (stage.posts(), await stage.balances()) == (0, {DAY: (0, 0)})
        await stage.parts.database.write(lambda tx: tx.one("PRAGMA max_page_count = 1000000"))
        assert (await stage.admitted(key="k1", prompt=prompt)).state is task.State.SUBMITTED
        assert stage.posts() == 1


async def test_without_a_durable_attempt_nothing_is_sent_again(tmp_path):
    async with stages.staged(tmp_path, growth=ONE) as stage:
        stage.vendor.set_script([{"on": "submit", "times": 1, "do": {"status": 429}}])
        row = await stage.admitted()
        refuse = "CREATE TRIGGER refuse BEFORE UPDATE ON tasks BEGIN SELECT RAISE(ABORT, 'no'); END"
        await stage.parts.database.write(lambda tx: tx.run(refuse))
        with pytest.raises(Exception, match="no"):
            await stage.run(5)
        await stage.parts.database.write(lambda tx: tx.run("DROP TRIGGER refuse"))
        assert (stage.posts(), (await stage.row(row.id)).attempts) == (1, 1)
        await stage.run(5)
        assert ((await stage.row(row.id)).state, stage.posts()) == (task.State.SUBMITTED, 2)


async def test_a_client_that_leaves_during_the_post_has_its_task_bought_once_and_settled(tmp_path):
    async with stages.staged(tmp_path, growth=ONE) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"delay_s": 0.3}}])
        client = asyncio.create_task(stage.admitted(key="k1"))
        while not stage.parts.attempts:  # noqa: ASYNC110 - a dictionary offers no event
            await asyncio.sleep(0.01)
        client.cancel()
        await asyncio.gather(client, return_exceptions=True)
        await asyncio.gather(*stage.parts.attempts.values(), return_exceptions=True)
        [row] = await stage.parts.database.read(lambda tx: tx.all("SELECT id, state FROM tasks"))
        assert row["state"] == "submitted"
        await stage.finish()
        assert await stage.settled_nanos() == stage.vendor.bill()["nanos"] == 13_280_000


# M7, M9: what ends a hold, and at which price


async def test_a_complaint_about_our_key_past_the_deadline_fails_as_an_outage_with_nothing_spent(tmp_path):
    async with stages.staged(tmp_path, growth=ONE) as stage:
        stage.vendor.set_script([{"on": "submit", "times": None, "do": {"status": 402, "code": "insufficient_funds"}}])
        row = await stage.admitted()
        await stage.run(119)
        assert (await stage.row(row.id)).state is task.State.WAITING
        await stage.run(1)
        posts = stage.posts()
        shown = await stage.shown(row)
        assert (shown["status"], shown["error"]["code"], shown["cost"]) == ("failed", "upstream_unavailable", 0)
        assert await stage.balances() == {DAY: (0, 0)}
        stage.vendor.set_script([])
        await stage.finish()
        assert (stage.posts(), stage.vendor.bill()["tasks"]) == (posts, 0)


async def test_a_price_that_changes_while_a_task_is_open_changes_nothing_about_it(tmp_path):
    async with stages.staged(
        tmp_path, growth='spend: [{cap: "1", per: day}]\n', vendor={"generation": "early"}
    ) as stage:
        row = await stage.admitted(n=2)
        dearer = stages.MODELS.replace("0.01328125", "0.5")
        lines = 'spend: [{cap: "1", per: day}]\n'
        await stage.adopt(stages.write_policies(tmp_path / "policies", models=dearer, growth=lines))
        await stage.finish()
        assert await stage.entries(row.id) == [("reserve", 26_564_000), ("settle", 26_562_500)]
        assert (await stage.admitted()).quote_nanos == 500_000_000


# M13: another team's rows


async def test_nothing_that_one_team_does_changes_a_row_of_another(tmp_path):
    caps = 'spend: [{cap: "1", per: day}]\n'
    async with stages.staged(tmp_path, growth=caps, research=caps, vendor={"work_s": 60}) as stage:
        theirs = [await stage.admitted(stages.OTHER, key="k1", seed=7), await stage.admitted(stages.OTHER, seed=8)]
        before = await _rows_of(stage, "research")
        mine = await stage.admitted(key="k1", seed=7)
        assert mine.id not in {row.id for row in theirs} and mine.x_cache == "MISS"
        await stage.admitted(key="k1", seed=7)
        stage.vendor.set_script([{"on": "submit", "do": {"status": 400}}, {"on": "submit", "do": {"drop": True}}])
        await stage.admitted(seed=10)
        await stage.admitted(seed=11)
        assert (await stage.denied(n=100)).code == "quota_window_exceeded"
        for row in theirs:
            assert await cancel.cancel(stage.parts, "growth", row.id) is None
        assert await cancel.cancel(stage.parts, "growth", mine.id) is not None
        assert await _rows_of(stage, "research") == before
        assert len(before["tasks"]) == len(before["entries"]) == len(before["holds"]) == 2


async def _rows_of(stage: stages.Stage, team: str) -> dict[str, list[tuple[object, ...]]]:
    """Every row of a team, in every table that has any."""
    own = "SELECT id FROM tasks WHERE team = :team"
    conditions = {
        "tasks": "team = :team",
        "entries": "team = :team",
        "balances": "name = :team",
        "holds": f"task_id IN ({own})",
        "totals": "team = :team",
        "task_media": f"task_id IN ({own})",
    }
    found = {}
    for table, condition in conditions.items():
        sql = f"SELECT * FROM {table} WHERE {condition}"  # noqa: S608 - our own names
        rows = await stage.parts.database.read(lambda tx, sql=sql: tx.all(sql, team=team))  # type: ignore[misc]
        found[table] = [stages.values(row) for row in rows]
    return found


# M14: every open task ends, or is seen


async def test_with_the_vendor_healthy_a_task_in_every_open_state_reaches_its_end(tmp_path):
    async with stages.staged(tmp_path, growth='spend: [{cap: "1", per: day}]\n') as stage:
        stage.vendor.set_script(
            [
                {"on": "submit", "do": {"status": 429}},
                {"on": "submit", "do": {"accept_and_drop": True}},
                {"on": "media", "do": {"status": 500}},
            ]
        )
        await stage.admitted()
        await stage.admitted()
        delivered = await stage.admitted(seed=7)
        assert delivered.upstream_task_id is not None
        document = b'{"task_id":"%s"}' % delivered.upstream_task_id.encode()
        said = task.Outcome(event=task.Event.DELIVERED, cost_quota=6_640, images=1)
        report = {"row": delivered, "outcome": said, "document": document, "now": stage.clock(), "next_at": 0.0}
        await stage.parts.database.write(lambda tx: advance.report(tx, **report))  # type: ignore[arg-type]
        await stage.admitted(seed=8)
        await stage.admitted(seed=8)
        waiting = await stage.admitted(seed=9)
        # A kill between the POST and the record of its answer leaves this behind.
        undo = "UPDATE tasks SET state = 'reserved', upstream_task_id = NULL, document = NULL WHERE id = :id"
        await stage.parts.database.write(lambda tx: tx.run(undo, id=waiting.id))
        assert await _states(stage) == ["delivered", "following", "in_doubt", "reserved", "submitted", "waiting"]
        await recover.recover(stage.parts)
        await stage.finish()
        assert await _states(stage) == ["completed"] * 6
        assert await stage.balances() == {DAY: (66_400_000, 0)}
        assert await stage.settled_nanos() == stage.vendor.bill()["nanos"] == 66_400_000
        assert await stage.audit() == []


async def _states(stage: stages.Stage) -> list[str]:
    rows = await stage.parts.database.read(lambda tx: tx.all("SELECT state FROM tasks ORDER BY state"))
    return [row["state"] for row in rows]


async def test_what_is_older_than_it_should_be_is_visible_and_still_held(tmp_path):
    async with stages.staged(tmp_path, growth='spend: [{cap: "1", per: day}]\n') as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"status": 503}}])
        await stage.admitted()
        await stage.admitted(stages.OTHER)
        stage.keys.clear()  # neither can be asked about any more
        await stage.finish(rounds=2, seconds=3_600)
        policies = stage.parts.in_force.policies
        read = await stage.parts.database.scan(lambda tx: scrape.snapshot(tx, policies, now=stage.clock()))
        assert (read.overdue, read.in_doubt) == (2, 1)
        assert dict(read.open_tasks) == {("growth", "in_doubt"): 1, ("research", "submitted"): 1}
        assert await stage.balances() == {DAY: (0, QUOTE)}
