"""What is kept and not wanted any more: purged results, and blobs that no task points at.

The task rows decide: they change first, the cache and the files follow. A crash in between leaves a slower cache or
an orphan file, never a hit that was purged or a row without its file. A picture that is being mirrored is young, and
what is young stays.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import functools
from collections.abc import Callable, Sequence
from typing import Final

from gateway.rules import policy
from gateway.store import blobs_disk, cache, media, results
from gateway.store.database import Database, Tx

GRACE_S: Final = 3600.0
"""A file and its row are left alone this long: its mirror may not have come to the row yet."""
BATCH: Final = 200
"""Rows changed in one transaction: others wait for it."""

Progress = Callable[[int, int], None]
"""Called with (done, of how many)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """Which results; None for any."""

    team: str | None = None
    model: str | None = None
    """A shell-style glob."""
    fingerprint: str | None = None

    def is_all(self) -> bool:
        """Whether nothing narrows it."""
        return self.team is None and self.model is None and self.fingerprint is None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """What nobody points at, old enough to go."""

    blobs: tuple[str, ...]
    """Digests with a row."""
    orphans: tuple[str, ...]
    """Digests of files without a row."""
    size_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What was removed."""

    blobs: int
    orphans: int
    size_bytes: int


def _no_progress(_done: int, _total: int) -> None:
    pass


async def purge(database: Database, kept: cache.ResultCache, which: Which, *, progress: Progress = _no_progress) -> int:
    """Make results hits no longer, on task rows, on disk and in memory; returns how many.

    A task in flight is left alone: what it will deliver is new.
    """
    groups = [each for each in await database.scan(results.counts) if _is_meant(which, each)]
    total, done = sum(each.results for each in groups), 0
    for group in groups:
        step = functools.partial(
            results.purge, team=group.team, model=group.model, fingerprint=which.fingerprint, limit=BATCH
        )
        while purged := await database.write(step):
            await kept.purge(set(purged))
            done += len(purged)
            progress(done, max(done, total))
    if which.is_all():
        await kept.purge(None)
    return done


def _is_meant(which: Which, count: results.Count) -> bool:
    is_team = which.team is None or which.team == count.team
    return is_team and (which.model is None or policy.matches(count.model, [which.model]))


def garbage(tx: Tx, blobs: blobs_disk.DiskBlobs, *, now: float, grace_s: float = GRACE_S) -> Garbage:
    """Find blobs that no task's media row points at, and files without a row; changes nothing.

    The files are listed before the transaction reads: what got its row in between is not taken for an orphan.
    """
    before = now - grace_s
    files = {each.digest: each for each in blobs.each()}
    old = {digest for digest, each in files.items() if each.kept_at.timestamp() < before}
    unwanted = [
        row for row in media.unreferenced(tx, kept_before=before) if row.digest not in files or row.digest in old
    ]
    known = {row.digest for row in media.all_blobs(tx)}
    orphans = sorted(old - known)
    going = [row.digest for row in unwanted] + orphans
    return Garbage(
        blobs=tuple(row.digest for row in unwanted),
        orphans=tuple(orphans),
        size_bytes=sum(files[digest].size_bytes for digest in going if digest in files),
    )


async def collect(
    database: Database,
    blobs: blobs_disk.DiskBlobs,
    *,
    now: float,
    grace_s: float = GRACE_S,
    progress: Progress = _no_progress,
) -> Collected:
    """Remove the garbage: each row in the writer's transaction, then its file, if that is still old."""
    found = await database.scan(lambda tx: garbage(tx, blobs, now=now, grace_s=grace_s))
    before = now - grace_s
    total = len(found.blobs) + len(found.orphans)
    removed, size_bytes, orphans = 0, 0, 0
    for some in _batches(found.blobs):
        dropping = functools.partial(media.drop_unreferenced, digests=some, kept_before=before)
        dropped = await database.write(dropping)
        _, freed = await asyncio.to_thread(_delete, blobs, dropped, now=now, grace_s=grace_s)
        removed, size_bytes = removed + len(dropped), size_bytes + freed
        progress(removed, total)
    for some in _batches(found.orphans):
        rowless = await database.read(functools.partial(_without_row, digests=some))
        deleted, freed = await asyncio.to_thread(_delete, blobs, rowless, now=now, grace_s=grace_s)
        orphans, size_bytes = orphans + deleted, size_bytes + freed
        progress(len(found.blobs) + orphans, total)
    return Collected(blobs=removed, orphans=orphans, size_bytes=size_bytes)


def _batches(digests: Sequence[str]) -> list[Sequence[str]]:
    return [digests[at : at + BATCH] for at in range(0, len(digests), BATCH)]


def _without_row(tx: Tx, digests: Sequence[str]) -> list[str]:
    return [digest for digest in digests if media.get(tx, digest) is None]


def _delete(blobs: blobs_disk.DiskBlobs, digests: Sequence[str], *, now: float, grace_s: float) -> tuple[int, int]:
    """Delete the files that are still old; returns how many, and their bytes."""
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    deleted, size_bytes = 0, 0
    for digest in digests:
        kept = blobs.kept(digest)
        if kept is not None and blobs.delete_old(digest, older_than_s=grace_s, now=at):
            deleted, size_bytes = deleted + 1, size_bytes + kept.size_bytes
    return deleted, size_bytes
