"""The file before it is used, the guards that the schema itself holds to, and the way from an older schema."""

from __future__ import annotations

import asyncio
import functools
import importlib.resources
import pathlib
import shutil
import sqlite3
from collections.abc import Callable

import pytest

from gateway import errors
from gateway.rules import task
from gateway.store import database, ledger, sqlite
from tests import process
from tests.store import builders

DAY = [builders.allowance(1_000)]


async def spent(folder: pathlib.Path, file: str = "ledger.db") -> None:
    """A database in which one task was settled and one holds a reservation."""
    kept = sqlite.SqliteDatabase(folder / file)
    for task_id in ("task-1", "task-2"):
        await builders.reserve(kept, builders.hold(task_id), DAY)
        await builders.insert(kept, builders.task_row(task_id))
    await builders.settle(kept, builders.hold("task-1"), builders.cost(60))
    await kept.write(lambda tx: tx.run("UPDATE tasks SET state = 'completed', cost_nanos = 60 WHERE id = 'task-1'"))
    kept.close()


# Refusals


def _random_bytes(data: pathlib.Path) -> None:
    (data / "wave.db").write_bytes(b"\xa7" * 20_000)


def _page_overwritten(data: pathlib.Path) -> None:
    with (data / "wave.db").open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xff" * 4096)


def _cut_short(data: pathlib.Path) -> None:
    with (data / "wave.db").open("r+b") as file:
        file.truncate(5 * 4096)


def _newer(data: pathlib.Path) -> None:
    builders.shell(data, "PRAGMA user_version = 99", file="wave.db")


def _of_another_program(data: pathlib.Path) -> None:
    (data / "wave.db").unlink()
    (data / "wave.mark").unlink()
    builders.shell(data, "CREATE TABLE entries (what TEXT)", file="wave.db")


def _header_without_its_log(data: pathlib.Path) -> None:
    for name in ("wave.db", "wave.mark"):
        (data / name).unlink()
    builders.shell(data, "PRAGMA journal_mode = WAL", file="wave.db")


def _older_copy(data: pathlib.Path) -> None:
    shutil.copy(data / "older.db", data / "wave.db")


def _removed(data: pathlib.Path) -> None:
    (data / "wave.db").unlink()


DAMAGES: dict[Callable[[pathlib.Path], None], str] = {
    _random_bytes: "cannot be used as the database: file is not a database. Restore it from a backup",
    _page_overwritten: "is damaged: ",
    _cut_short: "cannot be used as the database: database disk image is malformed. Restore it from a backup",
    _newer: "the database has schema 99, this program knows 7: start the newer program again",
    _of_another_program: "is a database of another program; nothing was changed in it",
    _header_without_its_log: "holds no tables: it is a copy without its write-ahead log wave.db-wal",
    _older_copy: "the ledger ends at entry 0, but",
    _removed: "the ledger ends at entry 0, but",
}


async def damaged(folder: pathlib.Path, damage: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """A data directory with a ledger that was damaged after its gateway had ended."""
    data = folder / "data"
    data.mkdir()
    sqlite.SqliteDatabase(data / "wave.db").close()
    shutil.copy(data / "wave.db", data / "older.db")
    await spent(data, "wave.db")
    damage(data)
    return data


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_database_that_cannot_be_trusted_is_refused_and_left_as_it_is(
    tmp_path: pathlib.Path, damage: Callable[[pathlib.Path], None]
) -> None:
    path = await damaged(tmp_path, damage) / "wave.db"
    before = path.read_bytes() if path.exists() else b""
    with pytest.raises(errors.StartError) as refused:
        sqlite.SqliteDatabase(path)
    assert DAMAGES[damage] in str(refused.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [_page_overwritten, _of_another_program, _older_copy])
async def test_the_gateway_does_not_start_on_it_and_says_why(
    tmp_path: pathlib.Path, damage: Callable[[pathlib.Path], None]
) -> None:
    data = await damaged(tmp_path, damage)
    done = await asyncio.to_thread(
        process.run_cli,
        *("serve", "--listen", f"127.0.0.1:{process.free_port()}", "--upstream", "http://127.0.0.1:9"),
        *("--data", str(data), "--policies", str(process.write_policies(tmp_path / "policies"))),
        *("--allow-private", "127.0.0.0/8"),
        environ=process.ENVIRON,
    )
    assert (done.returncode, DAMAGES[damage] in done.stderr) == (1, True), done.stderr
    assert "Traceback" not in done.stderr


async def test_a_log_that_is_cut_off_is_refused(tmp_path: pathlib.Path) -> None:
    """SQLite takes what is left of the log for all there was, without a word."""
    kept = builders.open_database(tmp_path)
    await builders.reserve(kept, builders.hold("task-1"), DAY)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "ledger.db-wal").write_bytes((tmp_path / "ledger.db-wal").read_bytes()[:-4096])
    for name in ("ledger.db", "ledger.mark"):
        shutil.copy(tmp_path / name, copy / name)
    kept.close()
    with pytest.raises(errors.StartError) as refused:
        builders.open_database(copy)
    assert str(refused.value) == (
        f"the ledger ends at entry 0, but {copy / 'ledger.mark'} says that it had 1: commits are lost, because the "
        "write-ahead log is missing or cut off, or because this is an old copy. Restore the database with its -wal "
        "file. If it cannot be had, compare with the vendor's bill, then remove ledger.mark."
    )
    (copy / "ledger.mark").unlink()
    builders.open_database(copy).close()


async def test_the_mark_follows_each_commit_and_never_what_was_rolled_back(tmp_path: pathlib.Path) -> None:
    kept = builders.open_database(tmp_path)
    seen = [(tmp_path / "ledger.mark").read_text().strip()]
    await builders.reserve(kept, builders.hold("task-1"), DAY)
    seen.append((tmp_path / "ledger.mark").read_text().strip())
    assert await builders.reserve(kept, builders.hold("task-2", nanos=901), DAY) == (builders.allowance(1_000),)
    await kept.write(lambda tx: tx.one("SELECT 1"))
    seen.append((tmp_path / "ledger.mark").read_text().strip())
    kept.close()
    assert seen == ["0", "1", "1"]


@pytest.mark.parametrize("text", ["", "x", "\0\0\0", "-1"])
async def test_a_mark_that_cannot_be_read_is_none(tmp_path: pathlib.Path, text: str) -> None:
    await spent(tmp_path)
    (tmp_path / "ledger.mark").write_text(text)
    builders.open_database(tmp_path).close()
    assert (tmp_path / "ledger.mark").read_text().split() == ["3"]


# The guards


def _run(tx: database.Tx, *, sql: str, **values: object) -> int:
    return tx.run(sql, **values)


async def _refused(kept: sqlite.SqliteDatabase, fn: Callable[[database.Tx], object]) -> str:
    with pytest.raises(sqlite3.IntegrityError) as refused:
        await kept.write(fn)
    return str(refused.value)


@pytest.fixture
async def held(tmp_path: pathlib.Path):
    await spent(tmp_path)
    kept = builders.open_database(tmp_path)
    yield kept
    kept.close()


async def test_the_database_refuses_a_settle_and_a_release_without_a_reserve(held: sqlite.SqliteDatabase) -> None:
    """M2, whatever the program does."""
    before = await builders.contents(held, *builders.MONEY_TABLES)
    nobody = builders.hold("task-9")
    for fn in (
        lambda tx: ledger.settle(tx, nobody, builders.cost(1), now=builders.NOW),
        lambda tx: ledger.release(tx, nobody, now=builders.NOW, why="x"),
    ):
        assert await _refused(held, fn) == "no reserve of this task"
    assert await builders.contents(held, *builders.MONEY_TABLES) == before


async def test_the_database_refuses_a_release_of_another_amount_than_was_reserved(held: sqlite.SqliteDatabase) -> None:
    for nanos in (99, 101):
        wrong = builders.hold("task-2", nanos=nanos)
        release = functools.partial(ledger.release, hold=wrong, now=builders.NOW, why="x")
        said = await _refused(held, release)
        assert said == "a release is the whole reserve"
    await builders.release(held, builders.hold("task-2"))
    assert await builders.used(held, builders.balance()) == (60, 0)


async def test_the_database_refuses_a_hold_for_a_reserve_that_has_ended(held: sqlite.SqliteDatabase) -> None:
    sql = "INSERT INTO holds SELECT :id, scope, name, model_filter, period, starts_at + 1, 1 FROM holds LIMIT 1"
    assert await _refused(held, lambda tx: tx.run(sql, id="task-1")) == "the reserve of this task has ended"
    assert await held.write(lambda tx: tx.run(sql, id="task-2")) == 1


@pytest.mark.parametrize("state", task.ENDED)
async def test_the_database_refuses_that_an_ended_task_changes_its_state(
    held: sqlite.SqliteDatabase, state: task.State
) -> None:
    """M10, whatever the program does; what is noted on the row later may be noted."""
    await held.write(lambda tx: tx.run("UPDATE tasks SET state = :state WHERE id = 'task-2'", state=state))
    for other in task.State:
        if other is not state:
            sql = "UPDATE tasks SET state = :other WHERE id = 'task-2'"
            said = await _refused(held, functools.partial(_run, sql=sql, other=other))
            assert said == "an ended task stays as it ended"
    noted = "UPDATE tasks SET state = :state, next_at = 1.0, fingerprint = NULL, cost_nanos = 0 WHERE id = 'task-2'"
    assert await held.write(lambda tx: tx.run(noted, state=state)) == 1


# From an older schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (6, "schema 6, this program reads 7: start the gateway of this release once, which brings it up to date"),
        (8, "schema 8, this program knows 7: start the newer program again"),
    ],
)
def test_a_command_that_only_reads_refuses_another_schema_than_its_own(
    tmp_path: pathlib.Path, schema: int, message: str
) -> None:
    builders.open_database(tmp_path).close()
    builders.shell(tmp_path, f"PRAGMA user_version = {schema}")
    with pytest.raises(errors.StartError, match=message):
        sqlite.scan_file(tmp_path / "ledger.db", lambda tx: tx.one("SELECT 1"))


async def test_a_database_of_the_first_schema_is_brought_up_with_its_rows(tmp_path: pathlib.Path) -> None:
    fresh, old = tmp_path / "fresh", tmp_path / "old"
    for folder in (fresh, old):
        folder.mkdir()
    first = (importlib.resources.files("gateway.store") / "schema" / "0001_first.sql").read_text()
    with sqlite3.connect(old / "ledger.db") as connection:
        connection.executescript(first + "PRAGMA user_version = 1;")
    connection.close()
    builders.shell(old, "PRAGMA journal_mode = WAL")
    row = (
        "INSERT INTO entries (task_id, kind, nanos, at, reserved_at, team, key_name, model, tier, images, why) "
        "VALUES ('task-1', 'reserve', 7, 1, 1, 'growth', 'ci', 'm', 'standard', 0, '')"
    )
    builders.shell(old, row)
    builders.shell(
        old, "INSERT INTO blobs VALUES ('d', 5, 'image/png', 'png', 1, NULL), ('e', 7, 'image/png', 'png', 1, 2)"
    )
    for folder in (fresh, old):
        builders.open_database(folder).close()
    assert builders.shell(old, "SELECT task_id, nanos FROM entries") == [("task-1", 7)]
    assert builders.shell(old, "SELECT blobs, bytes FROM usage") == [(2, 12)]
    assert builders.shell(old, "PRAGMA application_id") == [(0x57415645,)]
    schema = "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"
    assert builders.shell(old, schema) == builders.shell(fresh, schema)
    assert builders.shell(old, "PRAGMA user_version") == [(7,)]
