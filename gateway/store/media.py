"""Rows of the blobs that are kept, and which result file each one mirrors."""

from __future__ import annotations

import dataclasses

from gateway.store.database import Tx


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlobRow:
    """What is known of one blob; its bytes are in the blob store."""

    digest: str
    size_bytes: int
    mime: str
    extension: str


def get(tx: Tx, digest: str) -> BlobRow | None:
    """A kept blob by its digest."""
    row = tx.one("SELECT digest, size_bytes, mime, extension FROM blobs WHERE digest = :digest", digest=digest)
    return None if row is None else BlobRow(**{name: row[name] for name in row.keys()})


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
    tx.run(
        "UPDATE task_media SET digest = :digest WHERE task_id = :task_id AND position = :position",
        digest=blob.digest,
        task_id=task_id,
        position=position,
    )


def usage(tx: Tx) -> tuple[int, int]:
    """(blobs, bytes) kept."""
    row = tx.one("SELECT COUNT(*) AS blobs, COALESCE(SUM(size_bytes), 0) AS bytes FROM blobs")
    return (0, 0) if row is None else (row["blobs"], row["bytes"])


def all_blobs(tx: Tx) -> list[BlobRow]:
    """Every blob row, for the audit."""
    rows = tx.all("SELECT digest, size_bytes, mime, extension FROM blobs ORDER BY digest")
    return [BlobRow(**{name: row[name] for name in row.keys()}) for row in rows]
