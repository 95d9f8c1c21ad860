from __future__ import annotations

import pytest

from gateway import metrics
from gateway.rules import task
from gateway.store import tasks
from tests import stage as stages


async def _delivered(stage: stages.Stage, **fields) -> str:
    """A task that the vendor has finished and of which nothing could be fetched yet."""
    row = await stage.admitted(**fields)
    while (await stage.row(row.id)).state is task.State.SUBMITTED:
        await stage.run(1)
    return row.id


@pytest.mark.parametrize(
    "fault",
    [
        {"truncate": True},
        {"media": "html"},
        {"media": "html_as_jpeg"},
        {"media": "empty"},
        {"media": "gzip_bomb"},
        {"media": "wrong_type"},
        {"redirect": "http://127.0.0.1:1/x.jpg"},
        {"status": 503},
    ],
)
async def test_what_is_not_a_whole_medium_is_never_published_and_is_tried_again(tmp_path, fault):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "media", "times": 2, "do": fault}])
        task_id = await _delivered(stage)
        if fault != {"media": "wrong_type"}:
            assert (await stage.row(task_id)).state is task.State.DELIVERED
            assert list(stage.parts.blobs.each()) == []
        await stage.finish()
        shown = await stage.shown(await stage.row(task_id))
        assert shown["status"] == "completed"
        assert shown["result"]["images"][0]["url"][0].startswith("http://gateway.test/media/")


async def test_result_cost_and_completed_at_are_withheld_until_the_picture_is_kept(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "media", "times": 1, "do": {"status": 503}}])
        task_id = await _delivered(stage)
        shown = await stage.shown(await stage.row(task_id))
        assert shown["status"] == "processing"
        assert not {"result", "cost", "completed_at"} & shown.keys()


async def test_after_the_patience_the_vendors_url_is_shown_and_later_the_mirror(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "media", "times": None, "do": {"status": 503}}])
        task_id = await _delivered(stage, seed=7)
        for _ in range(20):
            await stage.run(1)
        row = await stage.row(task_id)
        assert row.state is task.State.COMPLETED
        shown = await stage.shown(row)
        [url] = shown["result"]["images"][0]["url"]
        assert url.startswith("http://127.0.0.1:") and "/files/" in url
        assert shown["result"]["images"][0]["expires_at"] < 4_102_444_800
        assert (await stage.admitted(seed=7)).x_cache == "MISS"
        stage.vendor.set_script([])
        await stage.finish(rounds=3, seconds=60)
        shown = await stage.shown(await stage.row(task_id))
        assert shown["result"]["images"][0]["url"][0].startswith("http://gateway.test/media/")
        assert (await stage.row(task_id)).next_at is None


def _lost() -> float:
    return metrics.REGISTRY.get_sample_value("wave_gateway_mirror_failures_total", {"reason": "expired"}) or 0.0


async def test_mirroring_stops_when_the_url_has_expired_and_its_result_is_lost_no_longer_at_risk(tmp_path):
    async with stages.staged(tmp_path, vendor={"url_ttl_s": 600}) as stage:
        before = _lost()
        stage.vendor.set_script([{"on": "media", "times": None, "do": {"status": 503}}])
        task_id = await _delivered(stage)
        await stage.finish(rounds=5, seconds=10)
        assert (await stage.row(task_id)).state is task.State.COMPLETED
        assert (await stage.parts.database.scan(tasks.count_unmirrored), _lost() - before) == (1, 0)
        await stage.finish(rounds=20, seconds=60)
        row = await stage.row(task_id)
        assert (row.state, row.next_at) == (task.State.COMPLETED, None)
        assert (await stage.parts.database.scan(tasks.count_unmirrored), _lost() - before) == (0, 1)


async def test_one_fresh_poll_asks_where_the_files_are_now(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "media", "times": 1, "do": {"status": 403}}])
        await _delivered(stage)
        before = stage.vendor.requests.counts["poll"]
        await stage.run(1)
        assert stage.vendor.requests.counts["poll"] == before + 1


async def test_below_min_free_mirroring_waits_and_resumes_by_itself(tmp_path):
    async with stages.staged(tmp_path) as stage:
        object.__setattr__(stage.parts, "min_free_bytes", 2**62)
        task_id = await _delivered(stage)
        assert (await stage.row(task_id)).state is task.State.DELIVERED
        object.__setattr__(stage.parts, "min_free_bytes", 0)
        await stage.finish()
        assert (await stage.row(task_id)).state is task.State.COMPLETED


async def test_a_disk_that_cannot_be_written_leaves_no_file_and_is_tried_again(tmp_path):
    async with stages.staged(tmp_path) as stage:
        media = tmp_path / "data" / "media"
        media.write_text("a file where the directory should be")
        task_id = await _delivered(stage)
        assert (await stage.row(task_id)).state is task.State.DELIVERED
        media.unlink()
        await stage.finish()
        assert (await stage.row(task_id)).state is task.State.COMPLETED


async def test_several_images_are_all_kept_in_their_order(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted(n=3, seed=7)
        await stage.finish()
        images = (await stage.shown(row))["result"]["images"]
        urls = [url for image in images for url in image["url"]]
        assert len(set(urls)) == 3
        assert all(url.startswith("http://gateway.test/media/") for url in urls)
        hit = await stage.admitted(n=3, seed=7)
        assert (await stage.shown(hit))["result"]["images"] == images
        assert len(list(stage.parts.blobs.each())) == 3


async def test_no_authorization_ever_reaches_a_media_host(tmp_path):
    async with stages.staged(tmp_path) as stage:
        await stage.admitted(n=2)
        await stage.finish()
        assert stage.vendor.requests.counts["media"] == 2
        assert stage.vendor.requests.counts["media_with_auth"] == 0


async def test_videos_and_audios_are_mirrored_like_images_with_the_type_of_their_content(tmp_path):
    async with stages.staged(tmp_path) as stage:
        picture = await stage.admitted()
        await stage.finish()
        source = (await stage.parts.database.read(lambda tx: tasks.media_of(tx, picture.id)))[0].upstream_url
        for name in ("videos", "audios"):
            result = {name: [{"url": source, "expires_at": 4_000_000_000}]}
            stage.vendor.set_script([{"on": "poll", "times": None, "do": {"merge": {"result": result}}}])
            row = await stage.admitted()
            await stage.finish()
            [item] = (await stage.shown(row))["result"][name]
            assert item["url"].startswith("http://gateway.test/media/") and item["url"].endswith(".jpg")
            assert item["expires_at"] == 4_102_444_800
