"""Purged results, garbage among the blobs, and a task by any of its names, with a clock that stands still."""

from __future__ import annotations

import asyncio
import datetime
import functools
import os
import pathlib
from typing import Any

import msgspec

from gateway.edge import control
from gateway.flow import keep, lookup, submit
from gateway.store import cache, media, results, tasks
from gateway.store.database import Tx
from tests import stage as stages

YEARS = 10 * 366 * 86_400.0


async def _purge(stage: stages.Stage, **which: str) -> int:
    return await keep.purge(stage.parts.database, stage.parts.cache, keep.Which(**which))


async def _completed(stage: stages.Stage, caller: submit.Caller = stages.CALLER, **fields: Any) -> tasks.Task:
    row = await stage.admitted(caller, **fields)
    await stage.finish()
    return await stage.row(row.id)


async def test_a_purged_result_is_a_miss_and_stays_visible_to_its_task(tmp_path):
    async with stages.staged(tmp_path) as stage:
        paid = await _completed(stage, seed=7)
        assert (await stage.admitted(seed=7)).x_cache == "HIT"
        assert await _purge(stage) == 1
        assert stage.parts.cache.in_memory() == 0
        assert cache.on_disk(tmp_path / "data" / "cache")[0] == 0
        assert (await stage.admitted(seed=7)).x_cache == "MISS"
        assert (await stage.shown(paid))["status"] == "completed"
        assert "/media/" in str((await stage.shown(paid))["result"])
        assert stage.posts() == 2
        assert await stage.audit() == []


async def test_a_purge_takes_only_the_team_model_and_fingerprint_it_names(tmp_path):
    async with stages.staged(tmp_path) as stage:
        flash = await _completed(stage, seed=7)
        await _completed(stage, seed=8, model=stages.PRO)
        await _completed(stage, stages.OTHER, seed=7)
        counted = await stage.parts.database.scan(results.counts)
        assert [(each.team, each.model, each.results) for each in counted] == [
            ("growth", stages.FLASH, 1),
            ("growth", stages.PRO, 1),
            ("research", stages.FLASH, 1),
        ]
        assert await _purge(stage, team="growth", model="gemini-3-*") == 1
        assert await _purge(stage, team="growth", model="gemini-3-*") == 0
        assert await _purge(stage, fingerprint=flash.fingerprint or "") == 1
        assert (await stage.admitted(seed=7)).x_cache == "MISS"
        assert (await stage.admitted(seed=8, model=stages.PRO)).x_cache == "MISS"
        assert (await stage.admitted(stages.OTHER, seed=7)).x_cache == "HIT"


async def test_a_result_that_reaches_the_cache_after_its_purge_is_no_hit(tmp_path):
    async with stages.staged(tmp_path) as stage:
        paid = await _completed(stage, seed=7)
        assert paid.fingerprint is not None
        late = stage.parts.cache.get(paid.fingerprint)
        assert late is not None
        await _purge(stage)
        await stage.parts.cache.put(paid.fingerprint, late)
        assert (await stage.admitted(seed=7)).x_cache == "MISS"


async def test_a_purge_goes_on_past_one_batch_and_tells_how_far_it_is(tmp_path):
    async with stages.staged(tmp_path) as stage:
        paid = await _completed(stage, seed=7)

        def copy(tx: Tx) -> None:
            names = [row["name"] for row in tx.all("SELECT name FROM pragma_table_info('tasks')")]
            own = {"id", "upstream_task_id", "fingerprint"}
            kept = [name for name in names if name not in own]
            for number in range(450):
                tx.run(
                    f"INSERT INTO tasks (id, fingerprint, {', '.join(kept)}) "  # noqa: S608 - its own columns
                    f"SELECT :id, :fingerprint, {', '.join(kept)} FROM tasks WHERE id = :paid",
                    id=f"copy-{number}",
                    fingerprint=f"{number:064d}",
                    paid=paid.id,
                )

        await stage.parts.database.write(copy)
        told: list[tuple[int, int]] = []
        done = await keep.purge(
            stage.parts.database, stage.parts.cache, keep.Which(), progress=lambda *each: told.append(each)
        )
        assert (done, told) == (451, [(200, 451), (400, 451), (451, 451)])


def _age(stage: stages.Stage, path: pathlib.Path, seconds: float) -> None:
    os.utime(path, (stage.clock() - seconds, stage.clock() - seconds))


def _orphan(directory: pathlib.Path, digest: str) -> pathlib.Path:
    path = directory / "data" / "media" / digest[:2] / digest[2:4] / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"picture")
    return path


async def _collect(stage: stages.Stage) -> keep.Collected:
    return await keep.collect(stage.parts.database, stage.parts.blobs, now=stage.clock())


async def _lost(stage: stages.Stage, task_id: str) -> None:
    """As a retention that removes a task would leave its blobs."""
    await stage.parts.database.write(lambda tx: tx.run("DELETE FROM tasks WHERE id = :id", id=task_id))


async def test_a_blob_that_a_kept_task_shows_is_never_collected(tmp_path):
    async with stages.staged(tmp_path) as stage:
        paid = await _completed(stage, seed=7)
        stage.clock.advance(YEARS)
        assert await _collect(stage) == keep.Collected(blobs=0, orphans=0, size_bytes=0)
        [blob] = await stage.parts.database.read(media.all_blobs)
        assert stage.parts.blobs.path(blob.digest) is not None
        await _lost(stage, paid.id)
        found = await stage.parts.database.scan(lambda tx: keep.garbage(tx, stage.parts.blobs, now=stage.clock()))
        assert found == keep.Garbage(blobs=(blob.digest,), orphans=(), size_bytes=blob.size_bytes)
        assert stage.parts.blobs.path(blob.digest) is not None
        assert await _collect(stage) == keep.Collected(blobs=1, orphans=0, size_bytes=blob.size_bytes)
        assert stage.parts.blobs.path(blob.digest) is None
        rows = await stage.parts.database.read(lambda tx: tx.all("SELECT digest FROM task_media"))
        assert rows == []


async def test_an_orphan_file_is_collected_after_an_hour_and_not_before(tmp_path):
    async with stages.staged(tmp_path) as stage:
        young, old = _orphan(tmp_path, "a" * 64), _orphan(tmp_path, "b" * 64)
        _age(stage, young, 3590)
        _age(stage, old, 3610)
        assert await _collect(stage) == keep.Collected(blobs=0, orphans=1, size_bytes=7)
        assert young.exists() and not old.exists()


async def test_a_blob_that_is_being_mirrored_again_stays(tmp_path):
    """Its file was published anew a moment ago, and its media row has not come yet."""
    async with stages.staged(tmp_path) as stage:
        paid = await _completed(stage, seed=7)
        await _lost(stage, paid.id)
        [blob] = await stage.parts.database.read(media.all_blobs)
        path = stage.parts.blobs.path(blob.digest)
        assert path is not None
        stage.clock.advance(YEARS)
        _age(stage, path, 5)
        assert await _collect(stage) == keep.Collected(blobs=0, orphans=0, size_bytes=0)
        assert path.exists()


async def test_a_blob_published_between_the_row_and_the_file_is_not_removed(tmp_path):
    async with stages.staged(tmp_path) as stage:
        path = _orphan(tmp_path, "c" * 64)
        _age(stage, path, 5)
        now = datetime.datetime.fromtimestamp(stage.clock(), datetime.UTC)
        assert not stage.parts.blobs.delete_old("c" * 64, older_than_s=3600, now=now)
        _age(stage, path, 7200)
        assert stage.parts.blobs.delete_old("c" * 64, older_than_s=3600, now=now)
        assert not stage.parts.blobs.delete_old("c" * 64, older_than_s=3600, now=now)


async def test_a_row_that_is_used_again_before_its_turn_is_not_dropped(tmp_path):
    async with stages.staged(tmp_path) as stage:
        await _completed(stage, seed=7)
        [blob] = await stage.parts.database.read(media.all_blobs)
        assert (
            await stage.parts.database.write(
                lambda tx: media.drop_unreferenced(tx, [blob.digest], kept_before=stage.clock() + YEARS)
            )
            == []
        )
        assert await stage.audit() == []


async def test_a_task_is_found_by_each_of_its_names(tmp_path):
    async with stages.staged(tmp_path) as stage:
        paid = await _completed(stage, seed=7, key="order-1", callback_url="https://hooks.example/x?token=t")
        follower = await stage.admitted(seed=7)
        [blob] = await stage.parts.database.read(media.all_blobs)
        names = (
            paid.id,
            paid.upstream_task_id or "",
            "order-1",
            paid.upstream_idempotency_key,
            blob.digest,
            f"http://gateway.test/media/{blob.digest}.{blob.extension}",
        )
        for name in names:
            found = await stage.parts.database.scan(functools.partial(lookup.find, ref=name))
            assert isinstance(found, lookup.Record), name
            assert found.id == paid.id
            assert (found.cost_usd, found.quote_usd, found.seed, found.prompt) == ("0.01328", "0.013282", 7, "a fox")
            assert [(each.kind, each.usd) for each in found.ledger] == [("reserve", "0.013282"), ("settle", "0.01328")]
            assert [each.digest for each in found.media] == [blob.digest]
            assert [each.id for each in found.followers] == [follower.id]
            assert found.callback_host == "hooks.example"
            text = msgspec.json.encode(found).decode()
            assert "token=t" not in text and "vendor-key" not in text
        several = await stage.parts.database.scan(lambda tx: lookup.find(tx, "req-1"))
        assert isinstance(several, list) and [each.id for each in several] == [follower.id, paid.id]
        assert await stage.parts.database.scan(lambda tx: lookup.find(tx, "nothing")) == []


async def test_a_failed_task_shows_the_words_of_the_vendor_and_a_long_prompt_its_beginning(tmp_path):
    async with stages.staged(tmp_path) as stage:
        refused = await stage.admitted(prompt="x" * 500, n=1, aspect_ratio="9:1000")
        found = await stage.parts.database.scan(lambda tx: lookup.find(tx, refused.id))
        assert isinstance(found, lookup.Record)
        assert found.prompt == "x" * 120 + "…"


async def _asked(stage: stages.Stage, data: pathlib.Path, request: control.Request) -> control.Answer | None:
    return await asyncio.to_thread(control.ask, data, request, progress=lambda _done, _total: None)


async def test_the_control_socket_is_private_replaces_a_stale_one_and_is_removed(tmp_path):
    data = tmp_path / ("long-" * 30) / "data"
    data.mkdir(parents=True)
    assert len(str(data)) > 108
    (data / control.NAME).write_text("stale")
    async with stages.staged(tmp_path) as stage:
        assert await _asked(stage, data, control.CacheStats()) is None
        async with control.serving(data, stage.parts):
            assert (data / control.NAME).stat().st_mode & 0o777 == 0o600
            assert await _asked(stage, data, control.CacheStats()) == control.InMemory(0)
            await _completed(stage, seed=7)
            assert await _asked(stage, data, control.CacheStats()) == control.InMemory(1)
            purge = control.Purge(team=None, model=None, fingerprint=None)
            assert await _asked(stage, data, purge) == control.Purged(1)
            _age(stage, _orphan(tmp_path, "d" * 64), 7200)
            assert await _asked(stage, data, control.Collect()) == control.Collected(blobs=0, orphans=1, size_bytes=7)
        assert list(data.iterdir()) == []
        assert await _asked(stage, data, control.CacheStats()) is None


async def test_the_control_socket_answers_what_it_does_not_understand(tmp_path):
    async with stages.staged(tmp_path) as stage:
        data = tmp_path / "data"
        async with control.serving(data, stage.parts):
            for line in (b"nonsense\n", b'{"type":"Erase"}\n', b'{"type":"Purge","team":5}\n'):
                with control._short(data) as path:  # noqa: SLF001 - the test's own client
                    reader, writer = await asyncio.open_unix_connection(str(path))
                writer.write(line)
                answer = msgspec.json.decode(await reader.readline())
                assert answer["type"] == "Failed" and "does not understand" in answer["message"]
                writer.close()
                await writer.wait_closed()
