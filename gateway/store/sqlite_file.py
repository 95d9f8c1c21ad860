"""The database file before it is used: whose it is, whether it is whole, and which schema it has.

A ledger that lost its last commits is worse than none, because it lets everyone spend them again: so what looks like
a lost write-ahead log or an old copy is refused, and so is whatever is not ours. Nothing is changed before.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import os
import pathlib
import sqlite3
from typing import Final

from gateway import errors

APPLICATION_ID: Final = 0x57415645
"""'WAVE', in the file's header since schema 2."""
_TABLES: Final = {"tasks", "entries", "balances", "holds", "totals", "blobs", "task_media"}
_MOST_PROBLEMS: Final = 3


def check(connection: sqlite3.Connection, path: pathlib.Path) -> int:
    """The number of the ledger's last entry, 0 in an empty file.

    Raises StartError unless the file is a whole database of ours, or empty; reads every page.
    """
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        if path.stat().st_size:
            raise errors.StartError(
                f"{path} holds no tables: it is a copy without its write-ahead log {path.name}-wal, or of something "
                "else. Restore both files together, or move it away to begin anew."
            )
        return 0
    [owner] = connection.execute("PRAGMA application_id").fetchone()
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if owner != APPLICATION_ID and not (owner == 0 and version == 1 and tables >= _TABLES):
        raise errors.StartError(f"{path} is a database of another program; nothing was changed in it. Check --data.")
    found = [row[0] for row in connection.execute(f"PRAGMA quick_check({_MOST_PROBLEMS})")]
    if found != ["ok"]:
        raise errors.StartError(
            f"{path} is damaged: {'; '.join(' '.join(each.split()) for each in found)}. Restore it from a backup; an "
            "empty one would forget what every team has spent."
        )
    return _last_entry(connection)


def migrate(connection: sqlite3.Connection) -> None:
    """Apply the numbered schema files that are missing, each in a transaction; forward only."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    scripts = _scripts()
    if version > len(scripts):
        raise _newer(version, len(scripts))
    for number, script in enumerate(scripts[version:], start=version + 1):
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")


def check_schema(connection: sqlite3.Connection) -> None:
    """Raises StartError where the schema is older or newer than what this program reads; for who may not migrate it."""
    version, known = connection.execute("PRAGMA user_version").fetchone()[0], len(_scripts())
    if version < known:
        raise errors.StartError(
            f"the database has schema {version}, this program reads {known}: start the gateway of this release once, "
            "which brings it up to date"
        )
    if version > known:
        raise _newer(version, known)


def _newer(version: int, known: int) -> errors.StartError:
    return errors.StartError(
        f"the database has schema {version}, this program knows {known}: start the newer program again"
    )


@functools.cache
def _scripts() -> list[str]:
    folder = importlib.resources.files("gateway.store") / "schema"
    files = sorted((each for each in folder.iterdir() if each.name.endswith(".sql")), key=lambda each: each.name)
    return [each.read_text(encoding="utf-8") for each in files]


class Mark:
    """How far the ledger has come, kept beside it: the number of its last entry, noted after each commit.

    Entries are never deleted, so a ledger that ends before its mark has lost commits: its log is missing or cut off,
    or the file is an old copy. The mark is not synced and may lag after a power cut; it is never ahead.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path.with_suffix(".mark")
        self._noted = -1
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)

    def check(self, last: int) -> None:
        """Raise StartError if the ledger's last entry comes before the mark."""
        text = os.pread(self._file, 32, 0).decode("ascii", "replace").strip()
        noted = int(text) if text.isdecimal() else 0
        if last < noted:
            raise errors.StartError(
                f"the ledger ends at entry {last}, but {self._path} says that it had {noted}: commits are lost, "
                "because the write-ahead log is missing or cut off, or because this is an old copy. Restore the "
                "database with its -wal file. If it cannot be had, compare with the vendor's bill, then remove "
                f"{self._path.name}."
            )

    def note(self, connection: sqlite3.Connection) -> None:
        """Note the last entry, after a commit; an error is no reason to stop."""
        with contextlib.suppress(OSError, sqlite3.Error):
            last = _last_entry(connection)
            if last != self._noted:
                os.pwrite(self._file, b"%-20d\n" % last, 0)
                self._noted = last

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def _last_entry(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT COALESCE(MAX(id), 0) FROM entries").fetchone()[0])
