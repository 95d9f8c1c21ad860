"""What the commands that change something share: they ask the gateway that runs, or take its place.

Without a gateway this process does the work for the moment, with the same lock on the data directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Iterator
from typing import NoReturn, TypeVar

from gateway import app, errors, settings, terminal
from gateway.edge import control
from gateway.store import blobs_disk, cache, sqlite

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """What a flow works with while no gateway runs."""

    database: sqlite.SqliteDatabase
    blobs: blobs_disk.DiskBlobs
    results: Callable[[], cache.ResultCache]


def asked(
    store: settings.Settings, request: control.Request, progress: Callable[[int, int], None]
) -> control.Answer | None:
    """The running gateway's answer; None if none runs here. Raises StartError for a failure."""
    _check_ledger(store)
    answer = control.ask(store.data, request, progress=progress)
    if isinstance(answer, control.Failed):
        fail(answer.message)
    return answer


def fail(message: str) -> NoReturn:
    """The answer is no, and why."""
    raise errors.StartError(message)


def _check_ledger(store: settings.Settings) -> None:
    """A wrong --data must not create an empty ledger."""
    terminal.read_store(app.database_file(store), lambda tx: tx.one("SELECT 1 AS one"))


def alone(store: settings.Settings, fn: Callable[[Alone], Awaitable[T]]) -> T:
    """Carry a flow out in the gateway's place, under its lock."""

    async def carry_out() -> T:
        with _opened(store) as alone:
            return await fn(alone)

    with app.data_lock(store.data):
        try:
            return asyncio.run(carry_out())
        except errors.GatewayError as error:
            fail(error.message)


@contextlib.contextmanager
def _opened(store: settings.Settings) -> Iterator[Alone]:
    with contextlib.ExitStack() as opened:
        database = opened.enter_context(contextlib.closing(sqlite.SqliteDatabase(app.database_file(store))))

        def results_cache() -> cache.ResultCache:
            return opened.enter_context(contextlib.closing(cache.ResultCache(app.cache_directory(store))))

        yield Alone(database=database, blobs=blobs_disk.DiskBlobs(store.media), results=results_cache)


def quiet(_done: int, _total: int) -> None:
    """No progress to show."""
