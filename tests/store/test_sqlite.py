from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pathlib
import sqlite3
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from gateway import errors
from gateway.store import sqlite
from gateway.store.database import Tx
from tests.store import builders

SCRATCH = "CREATE TABLE scratch (name TEXT NOT NULL)"


@pytest.fixture
async def kept(tmp_path: pathlib.Path) -> AsyncIterator[sqlite.SqliteDatabase]:
    """A database with a scratch table beside the schema."""
    opened = builders.open_database(tmp_path)
    await opened.write(lambda tx: tx.run(SCRATCH))
    yield opened
    opened.close()


def add(name: str) -> Callable[[Tx], str]:
    def fn(tx: Tx) -> str:
        tx.run("INSERT INTO scratch (name) VALUES (:name)", name=name)
        return name

    return fn


async def names(kept: sqlite.SqliteDatabase) -> list[str]:
    return [row["name"] for row in await kept.read(lambda tx: tx.all("SELECT name FROM scratch ORDER BY rowid"))]


def commits(folder: pathlib.Path) -> int:
    """How many commit records the write-ahead log holds. Source: sqlite.org/fileformat2.html, section 4.1."""
    log = (folder / "ledger.db-wal").read_bytes()
    (page_bytes,) = struct.unpack(">I", log[8:12])
    found = 0
    for start in range(32, len(log), 24 + page_bytes):
        _, pages_after_commit = struct.unpack(">II", log[start : start + 8])
        found += log[start + 8 : start + 16] == log[16:24] and pages_after_commit > 0
    return found


class Gate:
    """Keeps the writer inside one function, so that what comes meanwhile waits for the next batch."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, tx: Tx) -> None:
        self.entered.set()
        assert self.opened.wait(10)

    async def hold(self, kept: sqlite.SqliteDatabase) -> asyncio.Task[None]:
        held = asyncio.create_task(kept.write(self))
        await asyncio.to_thread(self.entered.wait, 10)
        return held

    @contextlib.asynccontextmanager
    async def one_batch(self, kept: sqlite.SqliteDatabase) -> AsyncIterator[None]:
        """Every write that is started inside lands in one batch (up to the largest)."""
        held = await self.hold(kept)
        yield
        await asyncio.sleep(0.01)  # the tasks started inside reach the queue
        self.opened.set()
        await held


async def together(kept: sqlite.SqliteDatabase, *fns: Callable[[Tx], object]) -> list[object]:
    """Run functions in one batch; each one's value or error."""
    async with Gate().one_batch(kept):
        started = [asyncio.create_task(kept.write(fn)) for fn in fns]
    return list(await asyncio.gather(*started, return_exceptions=True))


def code(outcome: object) -> str:
    assert isinstance(outcome, errors.OurError), outcome
    return outcome.code


# Opening


def test_a_new_file_gets_the_schema(tmp_path: pathlib.Path) -> None:
    builders.open_database(tmp_path).close()
    found = builders.shell(tmp_path, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    assert [name for (name,) in found] == [
        "balances",
        "blobs",
        "entries",
        "holds",
        "outbox",
        "task_media",
        "tasks",
        "totals",
        "usage",
    ]
    assert builders.shell(tmp_path, "PRAGMA user_version") == [(7,)]
    assert builders.shell(tmp_path, "PRAGMA application_id") == [(0x57415645,)]


async def test_what_was_committed_is_there_after_opening_again(tmp_path: pathlib.Path) -> None:
    first = builders.open_database(tmp_path)
    await builders.insert(first, builders.task_row("a"))
    first.close()
    again = builders.open_database(tmp_path)
    assert await builders.rows(again, "SELECT id FROM tasks") == [("a",)]
    again.close()


def test_only_the_owner_may_read_the_file_or_its_log(tmp_path: pathlib.Path) -> None:
    before = os.umask(0)
    try:
        kept = builders.open_database(tmp_path)
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
        kept.close()
    finally:
        os.umask(before)
    assert modes == {"ledger.db": 0o600, "ledger.db-shm": 0o600, "ledger.db-wal": 0o600, "ledger.mark": 0o600}


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: pathlib.Path) -> None:
    (tmp_path / "ledger.db").touch(mode=0o644)
    builders.open_database(tmp_path).close()
    assert stat.S_IMODE((tmp_path / "ledger.db").stat().st_mode) == 0o600


async def test_the_writer_is_durable_at_every_commit(kept: sqlite.SqliteDatabase) -> None:
    def pragmas(tx: Tx) -> list[object]:
        wanted = ("journal_mode", "synchronous", "foreign_keys", "wal_autocheckpoint")
        return [row[name] for name in wanted if (row := tx.one(f"PRAGMA {name}")) is not None]

    assert await kept.write(pragmas) == ["wal", 2, 1, 1000]  # synchronous 2 is FULL


@pytest.mark.parametrize(
    "damage",
    [
        b"This is no database, it is a letter. " * 200,
        b"SQLite format 3\x00" + b"\xff" * 4096,
    ],
    ids=["other file", "damaged header"],
)
def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path: pathlib.Path, damage: bytes) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(damage)
    with pytest.raises(errors.StartError) as refused:
        sqlite.SqliteDatabase(path)
    assert str(refused.value) == (
        f"{path} cannot be used as the database: file is not a database. Restore it from a backup; an empty one "
        "would forget what every team has spent."
    )
    assert path.read_bytes() == damage


def test_a_path_that_cannot_hold_a_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.StartError, match="cannot be used as the database: unable to open database file"):
        sqlite.SqliteDatabase(tmp_path / "missing" / "ledger.db")


# Group commit


async def test_writes_that_wait_together_are_committed_together(
    kept: sqlite.SqliteDatabase, tmp_path: pathlib.Path
) -> None:
    before = commits(tmp_path)
    outcomes = await together(kept, *(add(f"n{number}") for number in range(256)))
    assert outcomes == [f"n{number}" for number in range(256)]
    assert await names(kept) == [f"n{number}" for number in range(256)]
    assert commits(tmp_path) - before == 1


async def test_a_batch_has_a_most(kept: sqlite.SqliteDatabase, tmp_path: pathlib.Path) -> None:
    before = commits(tmp_path)
    outcomes = await together(kept, *(add(f"n{number}") for number in range(600)))
    assert outcomes == [f"n{number}" for number in range(600)]
    assert commits(tmp_path) - before == 3  # 256 + 256 + 88


async def test_a_write_returns_the_value_of_its_function(kept: sqlite.SqliteDatabase) -> None:
    assert await kept.write(add("a")) == "a"
    assert await kept.write(lambda tx: tx.run("UPDATE scratch SET name = 'b'")) == 1
    assert await kept.write(lambda tx: tx.one("SELECT name FROM scratch WHERE name = 'a'")) is None


async def test_a_failing_function_leaves_the_work_of_the_others(kept: sqlite.SqliteDatabase) -> None:
    def fails(tx: Tx) -> None:
        add("half")(tx)
        raise ValueError("no room")

    first, failed, last = await together(kept, add("first"), fails, add("last"))
    assert (first, last) == ("first", "last")
    assert isinstance(failed, ValueError)
    assert str(failed) == "no room"
    assert await names(kept) == ["first", "last"]


async def test_a_refusal_by_a_constraint_reaches_its_caller_only(kept: sqlite.SqliteDatabase) -> None:
    first, failed, last = await together(
        kept, add("first"), lambda tx: tx.run("INSERT INTO scratch (name) VALUES (NULL)"), add("last")
    )
    assert (first, last) == ("first", "last")
    assert isinstance(failed, sqlite3.IntegrityError)
    assert await names(kept) == ["first", "last"]


async def test_a_function_that_runs_out_of_its_iterator_harms_nobody_else(kept: sqlite.SqliteDatabase) -> None:
    """A StopIteration cannot be put into a future: it came between the others and their answers."""
    empty: list[str] = []
    async with asyncio.timeout(30):
        first, failed, last = await together(kept, add("first"), lambda tx: next(iter(empty)), add("last"))
    assert (first, last) == ("first", "last")
    assert isinstance(failed, RuntimeError)
    assert isinstance(failed.__cause__, StopIteration)


async def test_an_error_of_the_engine_is_answered_as_unavailable(
    kept: sqlite.SqliteDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    first, failed = await together(kept, add("first"), lambda tx: tx.run("INSERT INTO nowhere VALUES (1)"))
    assert first == "first"
    assert isinstance(failed, errors.OurError)
    assert (failed.code, failed.status) == ("unavailable", 503)
    assert failed.headers == {"Retry-After": "2"}
    assert failed.message == "The ledger cannot be written right now; nothing was sent. Try again in a moment."
    assert [record.getMessage() for record in caplog.records] == ["a write failed: no such table: nowhere"]


async def test_a_caller_that_left_harms_nobody_and_its_write_stays(kept: sqlite.SqliteDatabase) -> None:
    async with Gate().one_batch(kept):
        leaver = asyncio.create_task(kept.write(add("left")))
        stayer = asyncio.create_task(kept.write(add("stayed")))
        await asyncio.sleep(0)
        leaver.cancel()
    assert await stayer == "stayed"
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert await names(kept) == ["left", "stayed"]


# An error that takes the whole transaction away


async def test_a_lost_transaction_fails_everyone_of_its_batch_and_all_succeed_when_repeated(
    kept: sqlite.SqliteDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    is_broken = True

    def loses(tx: Tx) -> str:
        value = add("loses")(tx)
        if is_broken:
            tx.run("ROLLBACK")
        return value

    def raises(tx: Tx) -> None:
        raise ValueError("its own refusal")

    outcomes = await together(kept, add("first"), raises, loses, add("last"))
    assert [code(each) for each in outcomes] == ["unavailable"] * 4
    assert len({id(each) for each in outcomes}) == 4  # each caller raises an error of its own
    assert "an error took the whole batch away: no such savepoint: one" in caplog.text
    assert await names(kept) == []
    is_broken = False
    first, failed, lost, last = await together(kept, add("first"), raises, loses, add("last"))
    assert (first, lost, last) == ("first", "loses", "last")
    assert isinstance(failed, ValueError)
    assert await names(kept) == ["first", "loses", "last"]


async def test_a_full_database_fails_all_fifty_of_its_batch_and_all_succeed_when_there_is_room(
    kept: sqlite.SqliteDatabase,
) -> None:
    """SQLITE_FULL rolls the whole transaction back, also what other functions did in it."""
    await kept.write(add("before"))

    def limit(pages: int) -> Callable[[Tx], object]:
        return lambda tx: tx.one(f"PRAGMA max_page_count = {pages}")

    big = "x" * 100_000
    fifty = [*(f"n{number}" for number in range(25)), big, *(f"n{number}" for number in range(26, 50))]
    await kept.write(limit(1))  # SQLite takes the size that the file has
    outcomes = await together(kept, *map(add, fifty))
    assert [code(each) for each in outcomes] == ["unavailable"] * 50
    assert await names(kept) == ["before"]
    assert code((await together(kept, add(big)))[0]) == "unavailable"
    await kept.write(limit(1_000_000))
    assert await together(kept, *map(add, fifty)) == fifty
    assert await names(kept) == ["before", *fifty]


async def test_an_error_of_one_statement_leaves_the_other_forty_nine_of_its_batch(kept: sqlite.SqliteDatabase) -> None:
    """SQLite undoes the statement only, and what its function did before goes with the savepoint."""

    def breaks(tx: Tx) -> None:
        add("half")(tx)
        tx.one("SELECT zeroblob(2000000000)")  # more than a value may hold: SQLITE_TOOBIG

    outcomes = await together(kept, *(breaks if number == 25 else add(f"n{number}") for number in range(50)))
    assert isinstance(outcomes.pop(25), sqlite3.DataError)
    stayed = [f"n{number}" for number in range(50) if number != 25]
    assert outcomes == stayed
    assert await names(kept) == stayed


async def test_nothing_is_kept_while_another_process_has_the_file(tmp_path: pathlib.Path) -> None:
    """BEGIN waits five seconds for the other, then the batch fails; the next one is written."""
    kept = builders.open_database(tmp_path)
    await kept.write(lambda tx: tx.run(SCRATCH))
    await kept.write(lambda tx: tx.one("PRAGMA busy_timeout = 20"))
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.OurError) as refused:
            await kept.write(add("early"))
        other.execute("ROLLBACK")
    assert refused.value.code == "unavailable"
    assert await kept.write(add("late")) == "late"
    assert await names(kept) == ["late"]
    kept.close()


# COMMIT


def break_commit(tx: Tx) -> None:
    """Leave a row behind that only COMMIT refuses."""
    tx.run("INSERT INTO child (parent) VALUES (1)")


CHILDREN = (
    "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
    "CREATE TABLE child (parent INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)",
)


async def test_a_failing_commit_ends_the_process_before_anybody_is_answered(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    answered: list[str] = []
    answered_at_end: list[list[str]] = []

    def end_process() -> None:
        # The loop has every chance to deliver an answer that was given too early.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.02), loop).result(timeout=5)
        answered_at_end.append(list(answered))

    kept = builders.open_database(tmp_path, end_process=end_process)
    for sql in (SCRATCH, *CHILDREN):
        await kept.write(lambda tx, sql=sql: tx.run(sql))  # type: ignore[misc]

    async def write(fn: Callable[[Tx], object]) -> object:
        try:
            return await kept.write(fn)
        finally:
            answered.append("one")

    async with Gate().one_batch(kept):
        started = [asyncio.create_task(write(fn)) for fn in (add("first"), break_commit, add("last"))]
    outcomes = await asyncio.gather(*started, return_exceptions=True)
    assert answered_at_end == [[]]
    assert [code(each) for each in outcomes] == ["unavailable"] * 3
    assert await names(kept) == []
    assert caplog.record_tuples[0] == (
        "gateway.store.sqlite",
        logging.CRITICAL,
        "COMMIT failed, ending the process: FOREIGN KEY constraint failed",
    )
    kept.close()


PROGRAM = """
import asyncio, pathlib, sys
from gateway.store import sqlite

async def main(path, *tables):
    kept = sqlite.SqliteDatabase(pathlib.Path(path))
    for sql in tables:
        await kept.write(lambda tx: tx.run(sql))
    await kept.write(lambda tx: tx.run("INSERT INTO scratch (name) VALUES ('answered')"))
    print("answered", flush=True)
    await kept.write(lambda tx: tx.run("INSERT INTO child (parent) VALUES (1)"))
    print("answered after a failed commit", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def test_the_process_really_ends_and_what_was_answered_is_kept(tmp_path: pathlib.Path) -> None:
    root = pathlib.Path(sqlite.__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "ledger.db"), SCRATCH, *CHILDREN],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (70, "answered\n"), ended.stderr
    assert builders.shell(tmp_path, "SELECT name FROM scratch") == [("answered",)]
    assert builders.shell(tmp_path, "SELECT COUNT(*) FROM child") == [(0,)]


async def test_nobody_is_answered_while_the_batch_is_not_committed(
    kept: sqlite.SqliteDatabase, tmp_path: pathlib.Path
) -> None:
    before = commits(tmp_path)
    gate = Gate()
    async with Gate().one_batch(kept):
        first = asyncio.create_task(kept.write(add("first")))
        second = asyncio.create_task(kept.write(gate))
        await asyncio.sleep(0)
    await asyncio.to_thread(gate.entered.wait, 10)
    await asyncio.sleep(0.02)
    assert not first.done()  # though its function has run
    assert commits(tmp_path) == before
    assert await names(kept) == []
    gate.opened.set()
    await asyncio.gather(first, second)
    assert commits(tmp_path) == before + 1
    assert await names(kept) == ["first"]


FULL_DISK = """
import asyncio, json, pathlib, sys
from gateway import errors
from gateway.store import sqlite

async def main(path, rule):
    kept = sqlite.SqliteDatabase(path)

    async def add(name):
        try:
            await kept.write(lambda tx: tx.run("INSERT INTO scratch (name) VALUES (:name)", name=name))
        except errors.OurError as error:
            return error.code
        return name

    print(await add("before"))
    rule.with_suffix(".draft").write_text(json.dumps({"calls": ["pwrite64"], "file": "-wal", "errno": 28}))
    rule.with_suffix(".draft").rename(rule)
    print(await asyncio.gather(add("first"), add("last")))
    print(await add("again"))
    rule.unlink()
    print(await asyncio.gather(add("first"), add("last")))
    kept.close()

asyncio.run(main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])))
"""


def test_a_disk_that_is_full_at_commit_refuses_the_batch_and_the_process_goes_on(tmp_path: pathlib.Path) -> None:
    """The rows are in memory until COMMIT writes them to the log: ENOSPC of a real system call, without a full disk."""
    builders.open_database(tmp_path).close()
    builders.shell(tmp_path, SCRATCH)
    root = pathlib.Path(sqlite.__file__).parents[2]
    program = (sys.executable, "-c", FULL_DISK, tmp_path / "ledger.db", tmp_path / "fail.json")
    ended = subprocess.run(
        [sys.executable, root / "tests" / "tracing.py", tmp_path, *program],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout.splitlines()) == (
        0,
        ["before", "['unavailable', 'unavailable']", "unavailable", "['first', 'last']"],
    )
    assert "the disk is full, a batch of" in ended.stderr
    assert builders.shell(tmp_path, "SELECT name FROM scratch") == [("before",), ("first",), ("last",)]


# Reading


@pytest.mark.parametrize("sql", ["INSERT INTO scratch (name) VALUES ('x')", "DROP TABLE scratch", "DELETE FROM tasks"])
async def test_reads_and_scans_cannot_write(kept: sqlite.SqliteDatabase, sql: str) -> None:
    for query_only in ("ON", "OFF"):

        def fn(tx: Tx, mode: str = query_only) -> int:
            tx.run(f"PRAGMA query_only = {mode}")
            return tx.run(sql)

        for way in (kept.read, kept.scan):
            with pytest.raises(sqlite3.OperationalError, match="attempt to write a readonly database"):
                await way(fn)
    assert await names(kept) == []


async def test_a_scan_sees_one_snapshot_while_others_write(kept: sqlite.SqliteDatabase) -> None:
    await kept.write(add("before"))
    looked, written = threading.Event(), threading.Event()

    def scan(tx: Tx) -> list[int]:
        counts = [len(tx.all("SELECT * FROM scratch"))]
        looked.set()
        assert written.wait(10)
        return [*counts, len(tx.all("SELECT * FROM scratch"))]

    scanning = asyncio.create_task(kept.scan(scan))
    await asyncio.to_thread(looked.wait, 10)
    await kept.write(add("meanwhile"))
    assert await names(kept) == ["before", "meanwhile"]
    written.set()
    assert await scanning == [1, 1]
    assert await kept.scan(lambda tx: len(tx.all("SELECT * FROM scratch"))) == 2


async def test_a_scan_runs_away_from_the_event_loop(kept: sqlite.SqliteDatabase) -> None:
    here = threading.get_ident()
    assert await kept.scan(lambda tx: threading.get_ident()) != here


async def test_a_scan_does_not_wait_for_the_work_of_others_in_threads(kept: sqlite.SqliteDatabase) -> None:
    stalled = threading.Event()
    others = [asyncio.create_task(asyncio.to_thread(stalled.wait, 60)) for _ in range(64)]
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(30):
            assert await kept.scan(lambda tx: len(tx.all("SELECT * FROM scratch"))) == 0
    finally:
        stalled.set()
        await asyncio.gather(*others)


async def test_a_command_may_scan_the_file_beside_a_running_gateway(
    kept: sqlite.SqliteDatabase, tmp_path: pathlib.Path
) -> None:
    await kept.write(add("a"))
    assert sqlite.scan_file(tmp_path / "ledger.db", lambda tx: tx.all("SELECT name FROM scratch")[0]["name"]) == "a"


def test_a_scan_of_a_missing_file_makes_none(tmp_path: pathlib.Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="unable to open database file"):
        sqlite.scan_file(tmp_path / "ledger.db", lambda tx: None)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_has_the_schema_and_no_rows() -> None:
    assert sqlite.scan_empty(lambda tx: tx.all("SELECT * FROM entries")) == []


@pytest.mark.parametrize("name", ["with space", "with?question", "with#hash", "with%41percent"])
async def test_odd_characters_in_a_path_mean_themselves(tmp_path: pathlib.Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    kept = builders.open_database(folder)
    await builders.insert(kept, builders.task_row("a"))
    assert await builders.rows(kept, "SELECT id FROM tasks") == [("a",)]
    kept.close()


# Closing


async def test_close_commits_what_was_accepted_and_refuses_what_comes_later(tmp_path: pathlib.Path) -> None:
    kept = builders.open_database(tmp_path)
    await kept.write(lambda tx: tx.run(SCRATCH))
    gate = Gate()
    held = await gate.hold(kept)
    accepted = [asyncio.create_task(kept.write(add(f"n{number}"))) for number in range(300)]
    await asyncio.sleep(0.01)
    closing = asyncio.create_task(asyncio.to_thread(kept.close))
    await asyncio.sleep(0.01)
    with pytest.raises(errors.OurError) as refused:
        await kept.write(add("late"))
    gate.opened.set()
    assert await asyncio.gather(held, *accepted) == [None, *(f"n{number}" for number in range(300))]
    await closing
    assert (refused.value.code, refused.value.status) == ("unavailable", 503)
    assert refused.value.message == "The gateway is stopping; send the request again in a moment."
    assert builders.shell(tmp_path, "SELECT COUNT(*) FROM scratch") == [(300,)]
    assert builders.shell(tmp_path, "SELECT COUNT(*) FROM scratch WHERE name = 'late'") == [(0,)]


async def test_an_event_loop_that_closed_meanwhile_does_not_harm_the_writer(
    kept: sqlite.SqliteDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    def borrow() -> None:
        async def leave() -> None:
            write = asyncio.create_task(kept.write(add("from the closed loop")))
            await asyncio.sleep(0)
            write.cancel()

        asyncio.run(leave())

    async with Gate().one_batch(kept):
        await asyncio.to_thread(borrow)
        stays = asyncio.create_task(kept.write(add("from this loop")))
    assert await stays == "from this loop"
    assert await kept.write(add("later")) == "later"
    assert await names(kept) == ["from the closed loop", "from this loop", "later"]
    assert "1 writes were committed after their event loop had closed" in caplog.text


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    assert not [each for each in threading.enumerate() if each.name == "sqlite-writer"]


async def test_a_scan_that_is_cancelled_ends_its_query(kept: sqlite.SqliteDatabase) -> None:
    """Else its thread would hold up the process's end for as long as the query takes."""
    begun, ended = threading.Event(), threading.Event()

    def endless(tx: Tx) -> None:
        begun.set()
        try:
            tx.one("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n")
        finally:
            ended.set()

    scanning = asyncio.create_task(kept.scan(endless))
    assert await asyncio.to_thread(begun.wait, 30)
    scanning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scanning
    assert await asyncio.to_thread(ended.wait, 30)
    assert await kept.scan(lambda tx: tx.all("SELECT 1 AS one")) != []
