"""SQLite: one writer thread with group commit, read-only connections beside it.

The writer takes every waiting function, runs each in a savepoint and commits them together at `synchronous=FULL`.
Nobody is answered before the COMMIT returned. After an error SQLite may have rolled back the whole transaction
(disk full, I/O): then every function of the batch failed. A COMMIT that fails for another reason than a full disk
leaves unknown what is on the disk, so the process ends. Source: CONTRACT §3 and §6; sqlite.org/lang_transaction.html.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import os
import pathlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from gateway import errors, failpoints
from gateway.store import database, sqlite_file

T = TypeVar("T")

LARGEST_BATCH: Final = 256
SCANS_AT_ONCE: Final = 4
_BUSY_TIMEOUT_S: Final = 5.0
_STEPS_BETWEEN_LOOKS: Final = 100_000
"""Steps of SQLite's machine, some milliseconds: each look takes the interpreter's lock."""

log = logging.getLogger(__name__)


class SqliteTx:
    """A transaction on one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Wrap a connection whose transaction somebody else begins and ends."""
        self._connection = connection

    def run(self, sql: str, /, **parameters: object) -> int:
        """Run a statement; returns how many rows it changed."""
        return self._connection.execute(sql, parameters).rowcount

    def one(self, sql: str, /, **parameters: object) -> database.Row | None:
        """The first row, or None."""
        row: database.Row | None = self._connection.execute(sql, parameters).fetchone()
        return row

    def all(self, sql: str, /, **parameters: object) -> list[database.Row]:
        """Every row."""
        return self._connection.execute(sql, parameters).fetchall()


class _Write:
    """One waiting function and who waits for it."""

    __slots__ = ("error", "fn", "future", "loop", "value")

    def __init__(self, fn: Callable[[database.Tx], object], loop: asyncio.AbstractEventLoop) -> None:
        self.fn = fn
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.value: object = None
        self.error: BaseException | None = None

    def answer(self) -> None:
        if not self.future.done():
            if self.error is None:
                self.future.set_result(self.value)
            else:
                self.future.set_exception(self.error)


class SqliteDatabase:
    """The embedded database: one file, one process."""

    def __init__(self, path: pathlib.Path, *, end_process: Callable[[], None] | None = None) -> None:
        """Open or create the file and bring its schema up to date.

        Raises StartError if the file is not a database of ours, is damaged, has lost commits, or is newer than this
        program.
        `end_process` is called when a COMMIT failed and nobody knows what is on the disk.
        """
        self._path = path
        self._end_process = end_process or _exit
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        # Of their own: in asyncio's few a scrape, or a look for webhooks, would queue behind the pictures' fsyncs.
        self._scanners = concurrent.futures.ThreadPoolExecutor(SCANS_AT_ONCE, thread_name_prefix="sqlite-scan")
        self._closed = False
        try:
            with contextlib.ExitStack() as opened:
                self._writer = opened.enter_context(contextlib.closing(_connect(path)))
                self._mark = sqlite_file.Mark(path)
                opened.callback(self._mark.close)
                self._mark.check(sqlite_file.check(self._writer, path))
                _set_up(self._writer, path)
                self._mark.note(self._writer)
                self._reader = open_read_only(path)
                opened.pop_all()
        except (sqlite3.DatabaseError, OSError) as error:
            raise errors.StartError(
                f"{path} cannot be used as the database: {error}. Restore it from a backup; an empty one would "
                "forget what every team has spent."
            ) from None
        self._thread = threading.Thread(target=self._serve, name="sqlite-writer", daemon=True)
        self._thread.start()

    async def write(self, fn: Callable[[database.Tx], T]) -> T:
        """Run `fn` in a durable transaction, together with whoever else is waiting."""
        if self._closed:
            raise errors.OurError("unavailable", "The gateway is stopping; send the request again in a moment.")
        waiting = _Write(fn, asyncio.get_running_loop())
        self._queue.put(waiting)
        result: T = await waiting.future
        return result

    async def read(self, fn: Callable[[database.Tx], T]) -> T:
        """Run a few point reads right here; they take microseconds."""
        return fn(SqliteTx(self._reader))

    async def scan(self, fn: Callable[[database.Tx], T]) -> T:
        """Run `fn` on a connection of its own in a thread, on one snapshot; a cancel ends the query under way.

        A thread cannot be cancelled, and a stop waits for every thread: a long query would outlast the drain.
        """
        stopped = threading.Event()
        try:
            look = functools.partial(scan_file, self._path, fn, is_stopped=stopped.is_set)
            return await asyncio.get_running_loop().run_in_executor(self._scanners, look)
        except asyncio.CancelledError:
            stopped.set()
            raise

    def close(self) -> None:
        """Commit what was accepted, then close."""
        self._closed = True
        self._queue.put(None)
        self._thread.join(timeout=30)
        self._scanners.shutdown(wait=False, cancel_futures=True)
        self._reader.close()

    def _serve(self) -> None:
        is_open = True
        while is_open:
            batch = [self._queue.get()]
            while len(batch) < LARGEST_BATCH and not self._queue.empty():
                batch.append(self._queue.get())
            is_open = None not in batch
            self._commit([each for each in batch if each is not None])
        self._writer.close()
        self._mark.close()

    def _commit(self, batch: list[_Write]) -> None:
        if batch and not self._run_batch(batch):
            for each in batch:
                each.value, each.error = None, _unavailable()
        for loop in {id(each.loop): each.loop for each in batch}.values():
            mine = [each for each in batch if each.loop is loop]
            try:
                loop.call_soon_threadsafe(_answer_all, mine)
            except RuntimeError:
                log.warning("%d writes were committed after their event loop had closed", len(mine))

    def _run_batch(self, batch: list[_Write]) -> bool:
        """Run and commit; False if nothing of the batch is kept."""
        connection = self._writer
        try:
            connection.execute("BEGIN IMMEDIATE")
            failpoints.reach("sqlite.begun")
            is_whole = all(self._run_one(each) for each in batch)
        except sqlite3.Error as error:
            log.error("a batch of %d writes failed: %s", len(batch), error)
            is_whole = False
        if not is_whole:
            _roll_back(connection)
            return False
        failpoints.reach("sqlite.ran")
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            # A full disk stops before the commit record is written; any other error leaves that unknown.
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                log.critical("COMMIT failed, ending the process: %s", error)
                self._end_process()
            log.error("the disk is full, a batch of %d writes was not kept", len(batch))
            _roll_back(connection)
            return False
        failpoints.reach("sqlite.committed")
        self._mark.note(connection)
        return True

    def _run_one(self, each: _Write) -> bool:
        """Run one function in a savepoint; False if its error took the whole transaction away."""
        connection = self._writer
        connection.execute("SAVEPOINT one")
        try:
            each.value = each.fn(SqliteTx(connection))
            connection.execute("RELEASE one")
        except Exception as error:  # noqa: BLE001 - whatever a function raises belongs to its caller
            if not connection.in_transaction:
                log.error("an error took the whole batch away: %s", error)
                return False
            connection.execute("ROLLBACK TO one")
            connection.execute("RELEASE one")
            each.error = _translated(error)
        return True


def scan_file(path: pathlib.Path, fn: Callable[[database.Tx], T], *, is_stopped: Callable[[], bool] | None = None) -> T:
    """Run `fn` on one snapshot of a database file, read-only; for commands beside a running gateway too.

    Raises StartError where the file has another schema than this program's, `sqlite3.OperationalError` soon after
    `is_stopped` says so, which is asked from time to time.
    """
    connection = open_read_only(path)
    try:
        sqlite_file.check_schema(connection)
        connection.set_progress_handler(is_stopped, _STEPS_BETWEEN_LOOKS)
        connection.execute("BEGIN")
        return fn(SqliteTx(connection))
    finally:
        connection.close()


def scan_empty(fn: Callable[[database.Tx], T]) -> T:
    """Run `fn` on an empty database in memory, for a question that needs no history."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    try:
        sqlite_file.migrate(connection)
        return fn(SqliteTx(connection))
    finally:
        connection.close()


def open_read_only(path: pathlib.Path) -> sqlite3.Connection:
    """A connection that can change nothing."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        timeout=_BUSY_TIMEOUT_S,
        check_same_thread=False,
    )
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA query_only = ON")
    return connection


def _connect(path: pathlib.Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_TIMEOUT_S, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    return connection


def _set_up(connection: sqlite3.Connection, path: pathlib.Path) -> None:
    os.chmod(path, 0o600)
    for pragma in (
        "synchronous = FULL",
        "foreign_keys = ON",
        "recursive_triggers = ON",  # else INSERT OR REPLACE would pass by the trigger that keeps entries
        "wal_autocheckpoint = 1000",
    ):
        connection.execute(f"PRAGMA {pragma}")
    sqlite_file.migrate(connection)
    # After the schema: a file in WAL mode without tables has lost its log.
    connection.execute("PRAGMA journal_mode = WAL")


def _answer_all(batch: list[_Write]) -> None:
    for each in batch:
        each.answer()


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _translated(error: Exception) -> Exception:
    if isinstance(error, sqlite3.OperationalError):
        log.error("a write failed: %s", error)
        return _unavailable()
    if isinstance(error, StopIteration):
        # No future can hold one: setting it would raise, and the rest of the batch would wait for ever.
        wrapped = RuntimeError("a write ended with StopIteration")
        wrapped.__cause__ = error
        return wrapped
    return error


def _unavailable() -> errors.OurError:
    return errors.OurError(
        "unavailable",
        "The ledger cannot be written right now; nothing was sent. Try again in a moment.",
        headers={"Retry-After": "2"},
    )


def _exit() -> None:
    os._exit(70)
