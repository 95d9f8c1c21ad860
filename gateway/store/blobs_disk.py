"""Blobs as files, named by their content: `ab/cd/<sha256>` under one root directory.

Rules: a file appears under its digest whole and durable, or not at all: temporary file → fsync → rename → fsync of the
directories. A blob never changes. Directories are 0700, files 0600. A digest is checked before it becomes a path.

Every method blocks: call it in a thread. OSError comes through as it is. Which blobs are still wanted is not known
here; `each` and `delete` are for those who know.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from gateway import failpoints

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A kept file, as it is served."""

    path: Path
    size_bytes: int
    mime: str
    extension: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Temporary:
    """A file that is not published yet."""

    path: Path
    file: BinaryIO


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A published file as the directory knows it."""

    digest: str
    size_bytes: int
    kept_at: datetime
    """When it was last published; publishing it again renews it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What all blobs take up."""

    blobs: int
    size_bytes: int


class DiskBlobs:
    """All blobs under one root; the directory is made at the first write."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary = root / ".tmp"
        self._publishing = threading.Lock()

    @contextmanager
    def temporary(self) -> Iterator[Temporary]:
        """Yield an open, empty file; it is gone when the block ends, unless `keep` has published it.

        The file is unbuffered, so that closing it cannot fail on a full disk; a write may take only a part.
        """
        self._make_root()
        self._temporary.mkdir(mode=0o700, exist_ok=True)
        number, name = tempfile.mkstemp(dir=self._temporary)
        path = Path(name)
        try:
            with os.fdopen(number, "wb", buffering=0) as file:
                yield Temporary(path=path, file=file)
        finally:
            path.unlink(missing_ok=True)

    def keep(self, temporary: Temporary, digest: str) -> None:
        """Publish the file as `digest`, durably; to publish the same blob again only renews its `kept_at`.

        The caller has computed `digest` from what it wrote.
        """
        path = self._place(digest)
        os.fsync(temporary.file.fileno())
        failpoints.reach("blob.synced")
        path.parent.parent.mkdir(mode=0o700, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with self._publishing:
            if path.exists():
                os.utime(path)
                temporary.path.unlink()
            else:
                temporary.path.rename(path)
        failpoints.reach("blob.renamed")
        # Always all three: whoever made a directory or renamed the same blob may not have come to its fsync yet.
        for directory in (path.parent, path.parent.parent, self._root):
            _sync(directory)

    def path(self, digest: str) -> Path | None:
        """Return where the blob is, or None if it is not kept."""
        path = self._place(digest)
        return path if path.is_file() else None

    def kept(self, digest: str) -> Kept | None:
        """Return what the directory knows of the blob, or None if it is not kept."""
        return _kept(self._place(digest))

    def delete_old(self, digest: str, *, older_than_s: float, now: datetime) -> bool:
        """Remove the blob if it was not published lately; return whether it was removed.

        Publishing waits meanwhile: a blob that `keep` found there cannot be removed behind its back.
        """
        with self._publishing:
            kept = self.kept(digest)
            if kept is None or (now - kept.kept_at).total_seconds() <= older_than_s:
                return False
            return self.delete(digest)

    def delete(self, digest: str) -> bool:
        """Remove the blob; return whether it was there."""
        try:
            self._place(digest).unlink()
        except FileNotFoundError:
            return False
        return True

    def each(self) -> Iterator[Kept]:
        """Yield every blob, in no particular order; one that vanishes meanwhile is left out."""
        for path in self._root.glob("[0-9a-f][0-9a-f]/[0-9a-f][0-9a-f]/*"):
            if _DIGEST.fullmatch(path.name) and (kept := _kept(path)) is not None:
                yield kept

    def usage(self) -> Usage:
        """Return the number and size of all blobs; walks the whole directory."""
        sizes = [kept.size_bytes for kept in self.each()]
        return Usage(blobs=len(sizes), size_bytes=sum(sizes))

    def sweep(self, *, older_than_s: float, now: datetime) -> int:
        """Remove temporary files that a crash left behind, by age; return how many."""
        stale = [path for path in self._temporary.glob("*") if _age_s(path, now) > older_than_s]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)

    def free_bytes(self) -> int:
        """Return how much room is left where the blobs are, or would be."""
        return shutil.disk_usage(
            next(path for path in (self._root, *self._root.absolute().parents) if path.exists())
        ).free

    def _place(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ValueError("a digest is 64 lower-case hex digits")
        return self._root / digest[:2] / digest[2:4] / digest

    def _make_root(self) -> None:
        if not self._root.exists():
            self._root.parent.mkdir(parents=True, exist_ok=True)
            self._root.mkdir(mode=0o700, exist_ok=True)
            _sync(self._root.parent)


def _kept(path: Path) -> Kept | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return Kept(digest=path.name, size_bytes=status.st_size, kept_at=datetime.fromtimestamp(status.st_mtime, tz=UTC))


def _age_s(path: Path, now: datetime) -> float:
    try:
        return now.timestamp() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _sync(directory: Path) -> None:
    number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
