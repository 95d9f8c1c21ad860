"""Rows of the blobs that are kept, and which result file each one mirrors."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Final

from gateway import failpoints
from gateway.store.database import Tx


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlobRow:
    """What is known of one blob; its bytes are in the blob store."""

    digest: str
    size_bytes: int
    mime: str
    extension: str
    first_read_at: float | None = None
    """When a client first fetched it, in unix seconds."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a kept blob came from; `lives_until` in unix seconds."""

    extension: str
    upstream_url: str | None
    """Of the tasks with this result, the URL that lives longest."""
    lives_until: float


def get(tx: Tx, digest: str) -> BlobRow | None:
    """A kept blob by its digest."""
    row = tx.one(
        "SELECT digest, size_bytes, mime, extension, first_read_at FROM blobs WHERE digest = :digest", digest=digest
    )
    return None if row is None else BlobRow(**{name: row[name] for name in row.keys()})


def get_source(tx: Tx, digest: str, *, unsaid_s: float) -> Source | None:
    """A kept blob's source; a URL without `expires_at` counts as living this long after the blob was kept."""
    row = tx.one(
        "SELECT extension, upstream_url, COALESCE(expires_at, kept_at + :unsaid_s) AS lives_until FROM blobs "
        "LEFT JOIN task_media ON task_media.digest = blobs.digest WHERE blobs.digest = :digest "
        "ORDER BY lives_until DESC LIMIT 1",
        digest=digest,
        unsaid_s=unsaid_s,
    )
    return None if row is None else Source(**{name: row[name] for name in row.keys()})


def keep(tx: Tx, blob: BlobRow, *, task_id: str, position: int, now: float) -> None:
    """Note that a result file is mirrored by a blob; the file must be durable before."""
    tx.run(
        "INSERT INTO blobs (digest, size_bytes, mime, extension, kept_at) "
        "VALUES (:digest, :size_bytes, :mime, :extension, :now) ON CONFLICT (digest) DO NOTHING",
        digest=blob.digest,
        size_bytes=blob.size_bytes,
        mime=blob.mime,
        extension=blob.extension,
        now=now,
    )
    failpoints.reach("media.kept")
    tx.run(
        "UPDATE task_media SET digest = :digest WHERE task_id = :task_id AND position = :position",
        digest=blob.digest,
        task_id=task_id,
        position=position,
    )


def note_read(tx: Tx, digest: str, *, now: float) -> None:
    """Note when a blob was first read; later reads change nothing."""
    tx.run(
        "UPDATE blobs SET first_read_at = :now WHERE digest = :digest AND first_read_at IS NULL", digest=digest, now=now
    )


def unreferenced(tx: Tx, *, kept_before: float) -> list[BlobRow]:
    """Blobs, kept before an instant, that no media row of a task points at."""
    rows = tx.all(
        f"SELECT digest, size_bytes, mime, extension FROM blobs WHERE kept_at < :before AND {_UNREFERENCED} "  # noqa: S608
        "ORDER BY digest",
        before=kept_before,
    )
    return [BlobRow(**{name: row[name] for name in row.keys()}) for row in rows]


def drop_unreferenced(tx: Tx, digests: Collection[str], *, kept_before: float) -> list[str]:
    """Delete the rows of those blobs that are still unreferenced; returns their digests.

    Media rows that a task left behind go with them: no row points at a missing file.
    """
    dropped = [
        digest
        for digest in digests
        if tx.run(
            f"DELETE FROM blobs WHERE digest = :digest AND kept_at < :before AND {_UNREFERENCED}",  # noqa: S608
            digest=digest,
            before=kept_before,
        )
    ]
    for digest in dropped:
        tx.run("DELETE FROM task_media WHERE digest = :digest", digest=digest)
    return dropped


def usage(tx: Tx) -> tuple[int, int]:
    """(blobs, bytes) kept, as triggers have counted them."""
    row = tx.one("SELECT blobs, bytes FROM usage")
    return (0, 0) if row is None else (row["blobs"], row["bytes"])


def after(tx: Tx, digest: str, *, limit: int) -> list[tuple[str, int]]:
    """(digest, size in bytes) of the next blobs by digest, for the audit."""
    rows = tx.all(
        "SELECT digest, size_bytes FROM blobs WHERE digest > :digest ORDER BY digest LIMIT :most",
        digest=digest,
        most=limit,
    )
    return [(row["digest"], row["size_bytes"]) for row in rows]


def all_blobs(tx: Tx) -> list[BlobRow]:
    """Every blob row, for the garbage collection."""
    rows = tx.all("SELECT digest, size_bytes, mime, extension, first_read_at FROM blobs ORDER BY digest")
    return [BlobRow(**{name: row[name] for name in row.keys()}) for row in rows]


_UNREFERENCED: Final = (
    "NOT EXISTS (SELECT 1 FROM task_media JOIN tasks ON tasks.id = task_media.task_id "
    "WHERE task_media.digest = blobs.digest)"
)
