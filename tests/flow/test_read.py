from __future__ import annotations

import asyncio

from gateway.flow import read
from tests import stage as stages


async def test_another_teams_task_is_like_an_unknown_one(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted()
        assert await read.get(stage.parts, "research", row.id) is None
        assert await read.get(stage.parts, "growth", "task-wg-unknown") is None


async def test_waiting_returns_when_the_task_ends(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted()
        seen = await read.show(stage.parts, row)
        waiting = asyncio.create_task(read.wait(stage.parts, seen, wait_s=30))
        await asyncio.sleep(0)
        await stage.finish()
        done = await asyncio.wait_for(waiting, 5)
        assert b'"status":"completed"' in done.document


async def test_waiting_ends_with_its_time(tmp_path):
    async with stages.staged(tmp_path) as stage:
        seen = await read.show(stage.parts, await stage.admitted())
        assert b'"status":"queued"' in (await read.wait(stage.parts, seen, wait_s=0.05)).document


async def test_a_follower_shows_its_leaders_progress_under_its_own_id(tmp_path):
    async with stages.staged(tmp_path) as stage:
        leader, follower = await stage.admitted(seed=7), await stage.admitted(seed=7)
        await stage.run(0.8)
        shown = await stage.shown(follower)
        assert shown["task_id"] == follower.id
        assert shown["status"] == (await stage.shown(leader))["status"] == "processing"
