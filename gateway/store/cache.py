"""The result cache: a small LRU in memory over diskcache, bytes only.

It only speeds up what the task rows know too, so it may be deleted at any time. The `Disk` stores bytes and
refuses a pickled row (CVE-2025-69872: `JSONDisk` does not stop it). Reads are on the loop (microseconds), writes
in one thread of its own, because diskcache opens a connection per thread and closes none of a thread that ends.
The scope is part of the fingerprint, so a team cannot reach another's results.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import logging
import os
import pathlib
import shutil
import sqlite3
from collections.abc import Callable, Collection
from typing import Any, Final

import diskcache
import msgspec

MOST_IN_MEMORY: Final = 10_000
MOST_BYTES: Final = 512 * 1024 * 1024
PAGES_IN_MEMORY: Final = 512
"""Of 4 KiB, for each of two connections. diskcache's own 8,192 are 64 MiB that fill over weeks, for 5 µs a read."""

log = logging.getLogger(__name__)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Which completed task holds the result of a fingerprint; `completed_at` in unix seconds."""

    task_id: str
    completed_at: float
    digests: tuple[str, ...]


class BytesDisk(diskcache.Disk):
    """Keeps text keys and bytes values as they are; never pickles, never unpickles."""

    def put(self, key: object) -> tuple[object, bool]:
        """Store a text key."""
        if not isinstance(key, str):
            raise TypeError("cache keys are text")
        return key, True

    def get(self, key: object, raw: bool) -> object:
        """Read a text key."""
        if not raw or not isinstance(key, str):
            raise ValueError("a cache row with a pickled key was refused")
        return key

    def store(self, value: object, read: bool, key: object = diskcache.UNKNOWN) -> tuple[int, int, None, object]:
        """Store bytes inside the row."""
        if read or not isinstance(value, bytes):
            raise TypeError("cache values are bytes")
        return len(value), diskcache.core.MODE_RAW, None, sqlite3.Binary(value)

    def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> object:
        """Read bytes from the row."""
        if mode != diskcache.core.MODE_RAW or filename is not None or not isinstance(value, bytes):
            raise ValueError("a cache row that is not plain bytes was refused")
        return value


class ResultCache:
    """Fingerprint -> Result, in memory and on disk."""

    def __init__(self, directory: pathlib.Path) -> None:
        """Open or create the cache in a directory of mode 0700; a damaged one is made anew."""
        try:
            self._disk = _open(directory)
        except sqlite3.OperationalError:
            raise  # no damage: the disk or somebody else's lock, which an empty cache would meet too
        except sqlite3.DatabaseError as error:
            log.warning("the cache in %s is damaged and made anew: %s", directory, error)
            shutil.rmtree(directory)
            self._disk = _open(directory)
        self._is_closed = False
        self._writer = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="cache-writer")
        self._memory: collections.OrderedDict[str, Result] = collections.OrderedDict()

    def get(self, fingerprint: str) -> Result | None:
        """The result of a fingerprint, if this cache knows it; a damaged row counts as none."""
        found = self._memory.get(fingerprint)
        if found is not None:
            self._memory.move_to_end(fingerprint)
            return found
        try:
            raw = self._disk.get(fingerprint)
            found = None if raw is None else _DECODER.decode(raw)
        except (ValueError, msgspec.MsgspecError, sqlite3.Error, OSError, diskcache.Timeout):
            return None
        if found is not None:
            self._remember(fingerprint, found)
        return found

    async def put(self, fingerprint: str, result: Result) -> None:
        """Keep a result; a cache that cannot be written is only slower."""
        self._remember(fingerprint, result)
        await self._write(self._disk.set, fingerprint, _ENCODER.encode(result))

    async def forget(self, fingerprint: str) -> None:
        """Drop a result that is no longer there."""
        self._memory.pop(fingerprint, None)
        await self._write(self._disk.delete, fingerprint)

    async def purge(self, fingerprints: Collection[str] | None) -> None:
        """Drop the results of these fingerprints, or all of them for None."""
        if fingerprints is None:
            self._memory.clear()
            await self._write(self._disk.clear)
            return
        for fingerprint in fingerprints:
            await self.forget(fingerprint)

    def in_memory(self) -> int:
        """How many results are kept in memory."""
        return len(self._memory)

    def close(self) -> None:
        """Finish what is being written and let go of the files; a later `put` reaches memory only."""
        if not self._is_closed:
            self._is_closed = True
            self._writer.submit(self._disk.close)
            self._writer.shutdown()
            self._disk.close()

    async def _write(self, step: Callable[..., object], *values: Any) -> None:
        if self._is_closed:
            return
        with contextlib.suppress(sqlite3.Error, OSError, diskcache.Timeout):
            await asyncio.get_running_loop().run_in_executor(self._writer, step, *values)

    def _remember(self, fingerprint: str, result: Result) -> None:
        self._memory[fingerprint] = result
        self._memory.move_to_end(fingerprint)
        while len(self._memory) > MOST_IN_MEMORY:
            self._memory.popitem(last=False)


def on_disk(directory: pathlib.Path) -> tuple[int, int]:
    """(results, bytes) in a cache directory, read beside whoever uses it; nothing where it cannot be read."""
    path = directory / diskcache.core.DBNAME
    if not path.exists():
        return 0, 0
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as opened:
            results, size_bytes = opened.execute("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM Cache").fetchone()
    except sqlite3.Error:
        return 0, 0
    return int(results), int(size_bytes)


def _open(directory: pathlib.Path) -> diskcache.Cache:
    directory.mkdir(parents=True, exist_ok=True)
    os.chmod(directory, 0o700)
    with contextlib.closing(sqlite3.connect(directory / diskcache.core.DBNAME)) as probe:
        probe.execute("SELECT name FROM sqlite_master").fetchall()  # diskcache would fail with the file left open
    return diskcache.Cache(
        str(directory),
        disk=BytesDisk,
        eviction_policy="least-recently-stored",
        size_limit=MOST_BYTES,
        sqlite_cache_size=PAGES_IN_MEMORY,
        sqlite_mmap_size=0,  # a mapped file counts as the process' memory, page by page, up to 64 MiB
    )


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Result)
