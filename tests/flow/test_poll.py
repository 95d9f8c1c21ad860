from __future__ import annotations

from gateway.flow import poll
from gateway.rules import task
from tests import stage as stages

CAP = 'spend: [{cap: "1.00", per: day}]\n'
HELD = ("team", "growth", "day")


async def test_a_task_that_nobody_polls_completes(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted()
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED


async def test_a_404_for_a_task_we_know_keeps_the_hold_and_is_tried_again(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted()
        stage.vendor.set_script([{"on": "poll", "times": 3, "do": {"status": 404, "code": "task_not_found"}}])
        await stage.run(2)
        assert (await stage.row(row.id)).troubles == 1
        assert (await stage.balances())[HELD] == (0, 13_282_000)
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED


async def test_garbage_another_tasks_answer_and_a_dropped_poll_say_nothing(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted()
        lie = {"task_id": "task-wave-other", "status": "completed", "cost": 1}
        stage.vendor.set_script(
            [
                {"on": "poll", "do": {"garbage": True}},
                {"on": "poll", "do": {"answer": lie}},
                {"on": "poll", "times": 2, "do": {"drop": True}},
                {"on": "poll", "do": {"status": 401}},
            ]
        )
        for _ in range(4):
            await stage.run(30)
            assert (await stage.row(row.id)).state is task.State.SUBMITTED
        await stage.finish()
        assert await stage.settled_nanos() == 13_280_000


async def test_statuses_out_of_order_and_unknown_words_do_not_end_a_task_early(tmp_path):
    async with stages.staged(tmp_path) as stage:
        said = ["processing", "queued", "exploding", "completed", "processing", "failed"]
        stage.vendor.set_script([{"on": "submit", "do": {"statuses": said, "work_s": 1000}}])
        row = await stage.admitted()
        await stage.finish(rounds=3)
        assert (await stage.row(row.id)).state is task.State.SUBMITTED
        await stage.finish(rounds=6)
        assert (await stage.row(row.id)).state is task.State.COMPLETED
        assert [kind for kind, _ in await stage.entries(row.id)] == ["reserve", "settle"]


async def test_a_failed_task_is_released_and_a_failed_task_with_a_cost_is_settled(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script(
            [
                {"on": "submit", "do": {"outcome": "failed"}},
                {"on": "submit", "do": {"outcome": "failed", "cost": 100}},
            ]
        )
        free, charged = await stage.admitted(), await stage.admitted()
        await stage.finish()
        assert await stage.entries(free.id) == [("reserve", 13_282_000), ("release", 13_282_000)]
        assert await stage.entries(charged.id) == [("reserve", 13_282_000), ("settle", 200_000)]
        assert (await stage.balances())[HELD] == (200_000, 0)
        assert (await stage.shown(free))["status"] == "failed"
        assert await stage.settled_nanos() == stage.vendor.bill()["nanos"]


async def test_a_partial_delivery_is_settled_to_what_was_delivered_and_is_no_hit_later(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"deliver": 2}}])
        row = await stage.admitted(n=3, seed=7)
        await stage.finish()
        assert await stage.entries(row.id) == [("reserve", 39_846_000), ("settle", 26_560_000)]
        assert (await stage.admitted(n=3, seed=7)).x_cache == "MISS"


async def test_completed_without_an_image_is_settled_by_the_vendors_cost_and_not_cached(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"no_result": True, "cost": 50}}])
        row = await stage.admitted(seed=7)
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED
        assert await stage.entries(row.id) == [("reserve", 13_282_000), ("settle", 100_000)]
        assert (await stage.admitted(seed=7)).x_cache == "MISS"


async def test_a_bill_above_the_quote_is_recorded_as_overage_and_as_drift_and_rings(tmp_path, caplog):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"cost": 10_000}}])
        row = await stage.admitted()
        await stage.finish()
        assert await stage.entries(row.id) == [
            ("reserve", 13_282_000),
            ("settle", 20_000_000),
            ("overage", 6_718_000),
        ]
        assert (await stage.balances())[HELD] == (20_000_000, 0)
        [alarm] = [record.msg for record in caplog.records if record.levelname == "ERROR"]
        assert (alarm.task_id, alarm.hold, alarm.quote_usd, alarm.cost_usd) == (row.id, "overage", "0.013282", "0.02")
        [total] = await stage.parts.database.read(lambda tx: tx.all("SELECT drift_nanos FROM totals"))
        assert total["drift_nanos"] == 6_718_750


async def test_a_settle_lands_in_the_windows_of_its_reserve(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        await stage.admitted()
        await stage.finish(rounds=3, seconds=50_000)
        rows = await stage.parts.database.read(lambda tx: tx.all("SELECT starts_at, settled_nanos FROM balances"))
        assert [stages.values(row) for row in rows] == [(1_795_305_600, 13_280_000)]


async def test_all_three_generations_settle_to_the_bill_or_within_a_quota_per_image(tmp_path):
    nanos = {"early": 13_281_250, "documented": 13_280_000, "later": 13_280_000}
    for generation, expected in nanos.items():
        async with stages.staged(tmp_path / generation, vendor={"generation": generation}) as stage:
            row = await stage.admitted()
            await stage.finish()
            assert (await stage.row(row.id)).state is task.State.COMPLETED, generation
            assert await stage.settled_nanos() == expected, generation


async def test_a_watched_task_is_polled_at_once_but_at_most_once_a_second(tmp_path):
    async with stages.staged(tmp_path, vendor={"work_s": 1000}) as stage:
        row = await stage.admitted()
        for _ in range(50):
            await stage.shown(row)
        assert await poll.due(stage.parts, 10) == [row.id]
        await poll.step(stage.parts, row.id)
        await stage.shown(row)
        assert await poll.due(stage.parts, 10) == []
        stage.clock.advance(1)
        await stage.shown(row)
        assert await poll.due(stage.parts, 10) == [row.id]


async def test_open_tasks_are_polled_with_the_key_they_were_sent_with_then_with_the_teams(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted()
        stage.keys["env:KEY_GROWTH"] = "rotated"
        assert poll.key_for(stage.parts, await stage.row(row.id)) == "rotated"
        stage.keys["env:KEY_GROWTH"] = "vendor-key-growth"
        assert poll.key_for(stage.parts, await stage.row(row.id)) == "vendor-key-growth"
        stage.keys.clear()
        await stage.run(20)
        assert (await stage.row(row.id)).state is task.State.SUBMITTED
        stage.keys["env:KEY_GROWTH"] = "vendor-key-growth"
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED


async def test_a_team_whose_file_went_away_has_its_open_tasks_finished(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted()
        (tmp_path / "policies" / "teams" / "growth.yaml").unlink()
        from gateway import policy_files

        await stage.adopt(policy_files.load(tmp_path / "policies"))
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED


async def test_a_late_word_about_an_ended_task_changes_nothing(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted()
        await stage.finish()
        before = await stage.row(row.id)
        await poll.step(stage.parts, row.id)
        assert await stage.row(row.id) == before


async def test_a_cost_that_makes_no_sense_counts_as_none(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "poll", "times": None, "do": {"merge": {"cost": 9_000_000_000_000_000}}}])
        row = await stage.admitted()
        await stage.finish()
        assert await stage.entries(row.id) == [("reserve", 13_282_000), ("settle", 13_281_250)]


async def test_a_link_of_the_vendor_that_is_no_url_does_not_hide_the_task(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "poll", "times": None, "do": {"merge": {"urls": {"get": "http://[bad/x"}}}}])
        row = await stage.admitted()
        await stage.finish()
        assert (await stage.shown(row))["urls"] == {"get": f"http://gateway.test/v1/tasks/{row.id}"}
