from __future__ import annotations

import functools
import pathlib
from collections.abc import AsyncIterator

import pytest

from gateway.rules import task
from gateway.store import media, sqlite, tasks
from gateway.store.database import Tx
from tests.store import builders
from tests.store.builders import NOW, rows

HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # sha256("hello")
OTHER = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa"  # sha256("other")


@pytest.fixture
async def kept(tmp_path: pathlib.Path) -> AsyncIterator[sqlite.SqliteDatabase]:
    opened = builders.open_database(tmp_path)
    yield opened
    opened.close()


def blob(digest: str = HELLO, size_bytes: int = 5, mime: str = "image/png", extension: str = "png") -> media.BlobRow:
    return media.BlobRow(digest=digest, size_bytes=size_bytes, mime=mime, extension=extension)


async def keep(kept: sqlite.SqliteDatabase, new: media.BlobRow, task_id: str, position: int, now: float = NOW) -> None:
    await kept.write(lambda tx: media.keep(tx, new, task_id=task_id, position=position, now=now))


async def add_media(kept: sqlite.SqliteDatabase, task_id: str, files: int) -> None:
    def fn(tx: Tx) -> None:
        tasks.add_media(tx, task_id, [task.Media(url=f"https://cdn.example.com/{each}") for each in range(files)])

    await kept.write(fn)


async def test_a_kept_blob_mirrors_the_one_file_it_was_loaded_for(kept: sqlite.SqliteDatabase) -> None:
    await add_media(kept, "a", 2)
    await add_media(kept, "b", 1)
    await keep(kept, blob(), "a", 1)
    assert await kept.read(lambda tx: media.get(tx, HELLO)) == blob()
    assert await rows(kept, "SELECT task_id, position, digest FROM task_media ORDER BY task_id, position") == [
        ("a", 0, None),
        ("a", 1, HELLO),
        ("b", 0, None),
    ]


async def test_an_unknown_digest_is_no_blob(kept: sqlite.SqliteDatabase) -> None:
    assert await kept.read(lambda tx: media.get(tx, HELLO)) is None


async def test_the_same_bytes_of_two_tasks_are_one_blob_as_it_was_first_kept(kept: sqlite.SqliteDatabase) -> None:
    await add_media(kept, "a", 1)
    await add_media(kept, "b", 1)
    await keep(kept, blob(), "a", 0, now=10.0)
    await keep(kept, blob(), "b", 0, now=20.0)
    assert await rows(kept, "SELECT digest, size_bytes, mime, extension, kept_at FROM blobs") == [
        (HELLO, 5, "image/png", "png", 10.0)
    ]
    assert await rows(kept, "SELECT digest FROM task_media") == [(HELLO,), (HELLO,)]


async def test_the_source_of_a_blob_is_the_upstream_url_that_lives_longest(kept: sqlite.SqliteDatabase) -> None:
    async def source(unsaid_s: float) -> media.Source | None:
        return await kept.read(lambda tx: media.get_source(tx, HELLO, unsaid_s=unsaid_s))

    assert await source(100) is None
    await keep(kept, blob(), "a", 0)
    assert await source(100) == media.Source(extension="png", upstream_url=None, lives_until=NOW + 100)
    for task_id, expires_at in (("a", NOW + 50), ("b", NOW + 90), ("c", None)):
        new = task.Media(url=f"https://cdn.example.com/{task_id}", expires_at=expires_at)
        await kept.write(functools.partial(tasks.add_media, task_id=task_id, media=[new]))
        await keep(kept, blob(), task_id, 0, now=NOW + 1000)
    for unsaid_s, task_id, lives_until in ((80, "b", NOW + 90), (95, "c", NOW + 95)):
        url = f"https://cdn.example.com/{task_id}"
        assert await source(unsaid_s) == media.Source(extension="png", upstream_url=url, lives_until=lives_until)


async def test_usage_counts_each_blob_once(kept: sqlite.SqliteDatabase) -> None:
    assert await kept.scan(media.usage) == (0, 0)
    await keep(kept, blob(size_bytes=5), "a", 0)
    await keep(kept, blob(size_bytes=5), "b", 0)
    await keep(kept, blob(OTHER, size_bytes=7, mime="image/jpeg", extension="jpg"), "a", 1)
    assert await kept.scan(media.usage) == (2, 12)
    assert await kept.write(lambda tx: media.drop_unreferenced(tx, [HELLO], kept_before=2**40)) == [HELLO]
    assert await kept.scan(media.usage) == (1, 7)
    await kept.write(lambda tx: tx.run("UPDATE blobs SET size_bytes = size_bytes + 2"))
    assert await kept.scan(media.usage) == (1, 9)


async def test_blobs_are_gone_through_by_digest_some_at_a_time(kept: sqlite.SqliteDatabase) -> None:
    await keep(kept, blob(OTHER, size_bytes=7, mime="image/jpeg", extension="jpg"), "a", 1)
    await keep(kept, blob(), "a", 0)
    assert await kept.scan(lambda tx: media.after(tx, "", limit=1)) == [(HELLO, 5)]
    assert await kept.scan(lambda tx: media.after(tx, HELLO, limit=9)) == [(OTHER, 7)]
    assert await kept.scan(lambda tx: media.after(tx, OTHER, limit=9)) == []


async def test_every_blob_is_listed_by_digest(kept: sqlite.SqliteDatabase) -> None:
    await keep(kept, blob(OTHER, size_bytes=7, mime="image/jpeg", extension="jpg"), "a", 1)
    await keep(kept, blob(), "a", 0)
    assert await kept.scan(media.all_blobs) == [
        media.BlobRow(digest=HELLO, size_bytes=5, mime="image/png", extension="png"),
        media.BlobRow(digest=OTHER, size_bytes=7, mime="image/jpeg", extension="jpg"),
    ]
