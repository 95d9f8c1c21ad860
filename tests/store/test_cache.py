from __future__ import annotations

import asyncio
import io
import os
import pathlib
import pickle
import shutil
import sqlite3
import stat
from collections.abc import Iterator

import diskcache
import pytest

from gateway.store import cache

FINGERPRINT = "f" * 64
RESULT = cache.Result(task_id="task-1", completed_at=1_781_524_800.25, digests=("d" * 64, "e" * 64))
ROW = b'{"task_id":"task-1","completed_at":1781524800.25,"digests":["' + b"d" * 64 + b'","' + b"e" * 64 + b'"]}'


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "data" / "cache"


@pytest.fixture
def results(folder: pathlib.Path) -> Iterator[cache.ResultCache]:
    opened = cache.ResultCache(folder)
    yield opened
    opened.close()


def again(folder: pathlib.Path, fingerprint: str = FINGERPRINT) -> cache.Result | None:
    """What a cache that was opened anew, with nothing in memory, knows."""
    opened = cache.ResultCache(folder)
    try:
        return opened.get(fingerprint)
    finally:
        opened.close()


def row_of(folder: pathlib.Path, sql: str, *values: object) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(folder / "cache.db", isolation_level=None)
    try:
        return connection.execute(sql, values).fetchall()
    finally:
        connection.close()


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return pathlib.Path.touch, (self.path,)


async def test_what_was_put_is_found_also_after_opening_again(results: cache.ResultCache, folder: pathlib.Path) -> None:
    await results.put(FINGERPRINT, RESULT)
    assert results.get(FINGERPRINT) == RESULT
    assert again(folder) == RESULT
    assert row_of(folder, "SELECT key, raw, mode, filename, value FROM Cache") == [(FINGERPRINT, 1, 1, None, ROW)]


def test_what_was_never_put_is_not_there(results: cache.ResultCache) -> None:
    assert results.get(FINGERPRINT) is None


async def test_a_later_result_replaces_the_earlier(results: cache.ResultCache, folder: pathlib.Path) -> None:
    later = cache.Result(task_id="task-2", completed_at=2.0, digests=())
    await results.put(FINGERPRINT, RESULT)
    await results.put(FINGERPRINT, later)
    assert results.get(FINGERPRINT) == later
    assert again(folder) == later


async def test_what_was_forgotten_is_gone_from_memory_and_disk(
    results: cache.ResultCache, folder: pathlib.Path
) -> None:
    await results.put(FINGERPRINT, RESULT)
    await results.put("other", RESULT)
    await results.forget(FINGERPRINT)
    await results.forget("never known")
    assert results.get(FINGERPRINT) is None
    assert again(folder) is None
    assert again(folder, "other") == RESULT


async def test_what_was_read_from_disk_stays_in_memory(folder: pathlib.Path) -> None:
    first = cache.ResultCache(folder)
    await first.put(FINGERPRINT, RESULT)
    first.close()
    second = cache.ResultCache(folder)
    assert second.get(FINGERPRINT) == RESULT
    row_of(folder, "DELETE FROM Cache")
    assert second.get(FINGERPRINT) == RESULT
    second.close()


def test_memory_holds_ten_thousand_results_and_drops_the_one_unused_longest(
    results: cache.ResultCache, folder: pathlib.Path
) -> None:
    connection = sqlite3.connect(folder / "cache.db")
    connection.executemany(
        "INSERT INTO Cache (key, raw, store_time, access_time, size, mode, value) VALUES (?, 1, 0, 0, 10, 1, ?)",
        [(f"n{number}", ROW) for number in range(10_001)],
    )
    connection.commit()
    for number in range(10_000):
        assert results.get(f"n{number}") == RESULT
    assert results.get("n0") == RESULT  # used again, so n1 is the oldest
    assert results.get("n10000") == RESULT
    connection.execute("DELETE FROM Cache")
    connection.commit()
    connection.close()
    assert results.get("n0") == RESULT
    assert results.get("n1") is None
    assert results.get("n2") == RESULT
    assert results.get("n10000") == RESULT


# Who may look, and what is refused


@pytest.mark.parametrize("mode_before", [None, 0o755])
def test_only_the_owner_may_enter_the_directory(folder: pathlib.Path, mode_before: int | None) -> None:
    before = os.umask(0)
    try:
        if mode_before is not None:
            folder.mkdir(parents=True)
            folder.chmod(mode_before)
        cache.ResultCache(folder).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_a_pickled_row_is_refused_and_nothing_of_it_runs(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """CVE-2025-69872: who can write into the cache's directory must not gain the process."""
    first = cache.ResultCache(folder)
    await first.put(FINGERPRINT, RESULT)
    first.close()
    made = tmp_path / "made by a pickle"
    planted = pickle.dumps(Bomb(made))
    row_of(folder, "UPDATE Cache SET mode = 4, value = ? WHERE key = ?", planted, FINGERPRINT)
    assert again(folder) is None
    assert not made.exists()

    careless = diskcache.Cache(str(folder), disk=diskcache.Disk)
    careless.get(FINGERPRINT)
    careless.close()
    assert made.exists()  # the row was live: diskcache's own Disk runs it


async def test_a_pickle_in_a_plain_row_is_only_bytes(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    first = cache.ResultCache(folder)
    await first.put(FINGERPRINT, RESULT)
    first.close()
    made = tmp_path / "made by a pickle"
    row_of(folder, "UPDATE Cache SET value = ?", pickle.dumps(Bomb(made)))
    assert again(folder) is None
    assert not made.exists()


async def test_a_row_that_points_at_a_file_is_refused(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    first = cache.ResultCache(folder)
    await first.put(FINGERPRINT, RESULT)
    first.close()
    (tmp_path / "data" / "elsewhere").write_bytes(ROW)
    for mode in (1, 2, 3, 4):  # raw, binary, text, pickle
        row_of(folder, "UPDATE Cache SET mode = ?, filename = '../elsewhere', value = NULL", mode)
        assert again(folder) is None


def test_a_pickled_key_is_refused(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    made = tmp_path / "made by a pickle"
    opened = diskcache.Cache(str(folder), disk=cache.BytesDisk)
    opened.set(FINGERPRINT, ROW)
    assert list(opened) == [FINGERPRINT]
    row_of(folder, "UPDATE Cache SET key = ?, raw = 0", pickle.dumps(Bomb(made)))
    with pytest.raises(ValueError, match="a cache row with a pickled key was refused"):
        list(opened)
    row_of(folder, "UPDATE Cache SET key = 5, raw = 1")
    with pytest.raises(ValueError, match="a cache row with a pickled key was refused"):
        list(opened)
    opened.close()
    assert not made.exists()


@pytest.mark.parametrize("value", ["text", 5, None, 1.5, {"task_id": "x"}, RESULT, bytearray(b"x"), memoryview(b"x")])
def test_a_value_that_is_not_bytes_is_never_stored(folder: pathlib.Path, value: object) -> None:
    opened = diskcache.Cache(str(folder), disk=cache.BytesDisk)
    with pytest.raises(TypeError, match="cache values are bytes"):
        opened.set(FINGERPRINT, value)
    assert len(opened) == 0
    opened.close()


def test_a_file_is_never_stored(folder: pathlib.Path) -> None:
    opened = diskcache.Cache(str(folder), disk=cache.BytesDisk)
    with pytest.raises(TypeError, match="cache values are bytes"):
        opened.set(FINGERPRINT, io.BytesIO(b"x"), read=True)
    opened.close()


@pytest.mark.parametrize("key", [5, b"bytes", None, ("a", "b")])
def test_a_key_that_is_not_text_is_never_stored(folder: pathlib.Path, key: object) -> None:
    opened = diskcache.Cache(str(folder), disk=cache.BytesDisk)
    with pytest.raises(TypeError, match="cache keys are text"):
        opened.set(key, b"x")
    opened.close()


# Damage


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        ROW[:-1],
        b"null",
        b"[]",
        b'{"task_id":"task-1"}',
        b'{"task_id":1,"completed_at":1.0,"digests":[]}',
        b'{"task_id":"task-1","completed_at":"now","digests":[]}',
        "text",
        5,
        None,
    ],
)
async def test_a_damaged_row_counts_as_none(folder: pathlib.Path, value: object) -> None:
    first = cache.ResultCache(folder)
    await first.put(FINGERPRINT, RESULT)
    first.close()
    row_of(folder, "UPDATE Cache SET value = ?", value)
    second = cache.ResultCache(folder)
    assert second.get(FINGERPRINT) is None
    await second.put(FINGERPRINT, RESULT)
    second.close()
    assert again(folder) == RESULT


def test_a_damaged_cache_file_is_made_anew(folder: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.mkdir(parents=True)
    (folder / "cache.db").write_bytes(b"This is no database, it is a letter. " * 200)
    opened = cache.ResultCache(folder)
    asyncio.run(opened.put(FINGERPRINT, RESULT))
    opened.close()
    assert again(folder) == RESULT
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert f"the cache in {folder} is damaged and made anew: file is not a database" in caplog.text


def test_a_cache_that_cannot_be_opened_is_not_thrown_away(folder: pathlib.Path) -> None:
    (folder / "cache.db").mkdir(parents=True)
    with pytest.raises(sqlite3.OperationalError, match="unable to open database file"):
        cache.ResultCache(folder)
    assert (folder / "cache.db").is_dir()


def test_a_cache_of_other_settings_is_opened_with_two_mebibytes_of_pages_and_nothing_mapped(
    folder: pathlib.Path,
) -> None:
    diskcache.Cache(str(folder), disk=cache.BytesDisk).close()  # as an earlier version left it
    cache.ResultCache(folder).close()
    kept = row_of(folder, "SELECT key, value FROM Settings WHERE key LIKE 'sqlite_%size' ORDER BY key")
    assert kept == [("sqlite_cache_size", 512), ("sqlite_mmap_size", 0)]


async def test_after_closing_only_memory_is_written(folder: pathlib.Path) -> None:
    closed = cache.ResultCache(folder)
    await closed.put("before", RESULT)
    closed.close()
    closed.close()
    await closed.put(FINGERPRINT, RESULT)
    await closed.forget("before")
    assert again(folder) is None
    assert again(folder, "before") == RESULT


async def test_a_directory_that_was_deleted_between_two_runs_is_made_again(folder: pathlib.Path) -> None:
    first = cache.ResultCache(folder)
    await first.put(FINGERPRINT, RESULT)
    first.close()
    shutil.rmtree(folder)
    assert again(folder) is None
    second = cache.ResultCache(folder)
    await second.put(FINGERPRINT, RESULT)
    second.close()
    assert again(folder) == RESULT


async def test_a_directory_that_is_deleted_while_it_is_in_use_harms_nobody(
    results: cache.ResultCache, folder: pathlib.Path
) -> None:
    await results.put("before", RESULT)
    shutil.rmtree(folder)
    assert results.get("before") == RESULT  # from memory
    assert results.get("unknown") is None
    await results.put("after", RESULT)
    assert results.get("after") == RESULT
    await results.forget("before")
    assert results.get("before") is None


async def test_tables_that_are_gone_make_the_cache_only_slower(
    results: cache.ResultCache, folder: pathlib.Path
) -> None:
    row_of(folder, "DROP TABLE Cache")
    assert results.get(FINGERPRINT) is None
    await results.put(FINGERPRINT, RESULT)
    assert results.get(FINGERPRINT) == RESULT
    await results.forget(FINGERPRINT)
    assert results.get(FINGERPRINT) is None
