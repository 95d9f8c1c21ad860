"""Mirrors results: `completed` is shown when every file is kept, so a picture that a client sees does not expire.

A file is durable before its row. What cannot be fetched is tried again from 0.5 s on, with one fresh poll; after the
patience the task completes with the vendor's own URL, and mirroring goes on until that expires.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import urllib.parse
from collections.abc import AsyncIterator, Collection
from typing import Final

from gateway import failpoints, log_events, logs, metrics, tracing
from gateway.flow import advance, attempt, parts, poll
from gateway.outbound import download, upstream
from gateway.rules import retry, task
from gateway.store import blobs_disk, cache, media, tasks
from gateway.store.database import Tx

FILES_AT_ONCE: Final = 4
"""How many files of one task are fetched side by side."""
KEEP_TRYING_S: Final = 7 * 86_400.0
"""How long after the settle a URL without `expires_at` is tried."""
LEAST_FETCH_S: Final = 2.0
FRESH_POLL_AFTER: Final = 1
"""Failed rounds before the vendor is asked once more where the files are."""

log = logging.getLogger(__name__)


async def due(with_parts: parts.Parts, most: int) -> Collection[str]:
    """Delivered tasks with files to fetch now."""
    return await _due(with_parts, task.State.DELIVERED, most)


async def due_late(with_parts: parts.Parts, most: int) -> Collection[str]:
    """Tasks that were completed without a mirror; they never take a place from those that clients wait for."""
    return await _due(with_parts, task.State.COMPLETED, most)


async def _due(with_parts: parts.Parts, state: task.State, most: int) -> Collection[str]:
    now = with_parts.clock()
    return await with_parts.database.read(lambda tx: tasks.due(tx, (state,), now=now, limit=most))


async def step(with_parts: parts.Parts, task_id: str) -> None:
    """Fetch what is missing of one task's files; complete the task if nothing is, or if the patience is over."""
    row = await with_parts.database.read(lambda tx: tasks.get(tx, task_id))
    if row is None or row.state not in (task.State.DELIVERED, task.State.COMPLETED):
        return
    missing = await _missing(with_parts, task_id)
    if missing and row.troubles == FRESH_POLL_AFTER:
        missing = await _refreshed(with_parts, row, missing)
    left = [each for each in missing if each.expires_at is None or each.expires_at > with_parts.clock()]
    for some in (left[at : at + FILES_AT_ONCE] for at in range(0, len(left), FILES_AT_ONCE)):
        fetched = await asyncio.gather(*(_fetch(with_parts, row, each) for each in some))
        missing = [each for each in missing if each.position not in {done for done in fetched if done is not None}]
    if missing:
        await _again(with_parts, row, missing)
    else:
        await _complete(with_parts, row, next_at=None)


async def _missing(with_parts: parts.Parts, task_id: str) -> list[tasks.Medium]:
    rows = await with_parts.database.read(lambda tx: tasks.media_of(tx, task_id))
    return [each for each in rows if each.digest is None]


async def _fetch(with_parts: parts.Parts, row: tasks.Task, medium: tasks.Medium) -> int | None:
    """Fetch one file, keep its bytes, then its row; returns its position, or None where it failed."""
    with with_parts.tracing.span("wave.mirror", row.traceparent) as span:
        if span.is_recording:
            span.set({"wave.task_id": row.id, "wave.position": medium.position})
        return await _fetch_into(with_parts, row, medium, span)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Try:
    """One try at one file, as it is told of."""

    with_parts: parts.Parts
    row: tasks.Task
    medium: tasks.Medium
    span: tracing.Span
    began_at: float

    def kept(self, blob: media.BlobRow) -> None:
        """The file and its row are there."""
        metrics.MIRROR_BYTES.inc(blob.size_bytes)
        if self.span.is_recording:
            self.span.set({"wave.bytes": blob.size_bytes})
        kept = log_events.MirrorKept(
            task_id=self.row.id,
            request_id=self.row.request_id,
            position=self.medium.position,
            digest=blob.digest,
            bytes=blob.size_bytes,
            host=_host_of(self.medium.upstream_url),
            ms=self._ms(),
            url=self._url(),
        )
        logs.note(log, logging.INFO, kept)

    def failed(self, reason: str, detail: str) -> None:
        """Nothing was kept."""
        self.span.fail(reason)
        metrics.MIRROR_FAILURES.labels(reason).inc()
        failed = log_events.MirrorFailed(
            task_id=self.row.id,
            request_id=self.row.request_id,
            position=self.medium.position,
            reason=reason,
            detail=detail,
            host=_host_of(self.medium.upstream_url),
            ms=self._ms(),
            url=self._url(),
        )
        logs.note(log, logging.WARNING, failed)

    def _ms(self) -> float:
        return round((self.with_parts.clock() - self.began_at) * 1000, 1)

    def _url(self) -> str | None:
        return self.medium.upstream_url if self.with_parts.logs_content else None


def _host_of(url: str) -> str:
    """The host of a URL that the vendor wrote; empty where it names none."""
    try:
        return urllib.parse.urlsplit(url).hostname or ""
    except ValueError:
        return ""


async def _fetch_into(with_parts: parts.Parts, row: tasks.Task, medium: tasks.Medium, span: tracing.Span) -> int | None:
    blobs = with_parts.blobs
    this = _Try(with_parts=with_parts, row=row, medium=medium, span=span, began_at=with_parts.clock())
    try:
        async with _temporary(blobs) as temporary:
            if blobs.free_bytes() < with_parts.min_free_bytes:
                this.failed("disk", "less than --min-free is left; mirroring waits for room")
                return None
            deadline_s = _fetch_deadline_s(with_parts, row)
            fetched = await with_parts.downloader.fetch(medium.upstream_url, sink=temporary.file, deadline_s=deadline_s)
            if isinstance(fetched, download.Failed):
                this.failed(fetched.reason.value, fetched.detail)
                return None
            failpoints.reach("mirror.downloaded")
            await asyncio.to_thread(blobs.keep, temporary, fetched.digest)
    except OSError as error:
        this.failed("disk", error.strerror or "I/O error")
        return None
    blob = media.BlobRow(
        digest=fetched.digest, size_bytes=fetched.size_bytes, mime=fetched.mime, extension=fetched.extension
    )
    now = with_parts.clock()
    failpoints.reach("mirror.kept")

    def note(tx: Tx) -> None:
        media.keep(tx, blob, task_id=row.id, position=medium.position, now=now)

    await attempt.persist(with_parts, note)
    failpoints.reach("mirror.noted")
    this.kept(blob)
    return medium.position


@contextlib.asynccontextmanager
async def _temporary(blobs: blobs_disk.DiskBlobs) -> AsyncIterator[blobs_disk.Temporary]:
    """A temporary file, made and removed in a thread: to remove 64 MiB takes a while, and disks are slow."""
    opened = contextlib.ExitStack()
    temporary = await asyncio.to_thread(opened.enter_context, blobs.temporary())
    try:
        yield temporary
    finally:
        closing = asyncio.ensure_future(asyncio.to_thread(opened.close))
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.gather(closing, return_exceptions=True)
            raise


def _fetch_deadline_s(with_parts: parts.Parts, row: tasks.Task) -> float:
    """While a client waits, no longer than the patience lasts."""
    if row.state is task.State.COMPLETED or row.settled_at is None:
        return download.DEADLINE_S
    left_s = row.settled_at + with_parts.mirror_patience_s - with_parts.clock()
    return min(download.DEADLINE_S, max(LEAST_FETCH_S, left_s))


EXPIRED: Final = "expired"
"""The reason of a result that is lost: its URL ended before it could be mirrored."""
for _reason in (*download.Reason, EXPIRED):  # from 0, so that `increase()` sees the first
    metrics.MIRROR_FAILURES.labels(_reason.value if isinstance(_reason, download.Reason) else _reason)


async def _refreshed(with_parts: parts.Parts, row: tasks.Task, missing: list[tasks.Medium]) -> list[tasks.Medium]:
    """Ask the vendor once more: it may name other URLs for the same files."""
    key = poll.key_for(with_parts, row)
    if key is None or row.upstream_task_id is None:
        return missing
    polled = await with_parts.upstream.poll(row.upstream_task_id, key=key, about=attempt.about(row))
    if not isinstance(polled, upstream.Polled) or polled.outcome.event is not task.Event.DELIVERED:
        return missing
    fresh = functools.partial(tasks.renew_media, row=row, media=polled.outcome.media, document=polled.document)
    await with_parts.database.write(fresh)
    failpoints.reach("mirror.refreshed")
    return await _missing(with_parts, row.id)


async def _again(with_parts: parts.Parts, row: tasks.Task, missing: list[tasks.Medium]) -> None:
    """Not everything could be fetched: plan the next round; complete without a mirror when the patience is over."""
    now = with_parts.clock()
    next_at: float | None = now + retry.mirror_delay(row.troubles + 1, luck=with_parts.luck())
    patient_until = (row.settled_at or now) + with_parts.mirror_patience_s
    if row.state is task.State.DELIVERED and now >= patient_until:
        await _complete(with_parts, row, next_at=next_at)
        return
    if row.state is task.State.DELIVERED and next_at is not None:
        next_at = min(next_at, patient_until)
    elif all((each.expires_at or (row.settled_at or now) + KEEP_TRYING_S) <= now for each in missing):
        metrics.MIRROR_FAILURES.labels(EXPIRED).inc(len(missing))
        lost = log_events.MirrorExpired(task_id=row.id, request_id=row.request_id, files=len(missing))
        logs.note(log, logging.ERROR, lost)
        next_at = None
    troubles = row.troubles + 1
    await with_parts.database.write(lambda tx: tasks.note(tx, row, next_at=next_at, troubles=troubles))
    failpoints.reach("mirror.put_off")


async def _complete(with_parts: parts.Parts, row: tasks.Task, *, next_at: float | None) -> None:
    now = with_parts.clock()
    if row.state is task.State.COMPLETED:
        await with_parts.database.write(lambda tx: tasks.note(tx, row, next_at=None))
        return
    finish = functools.partial(advance.mirror, row=row, now=now, next_at=next_at)
    change = await attempt.persist(with_parts, finish)
    if change is None:
        return
    failpoints.reach("mirror.completed")
    if next_at is None:
        await _remember(with_parts, change.row)
    advance.announce(with_parts, change)


async def _remember(with_parts: parts.Parts, row: tasks.Task) -> None:
    """Fill the result cache after the commit."""
    rows = await with_parts.database.read(lambda tx: tasks.media_of(tx, row.id))
    digests = tuple(each.digest for each in rows if each.digest is not None)
    if row.fingerprint is not None and len(digests) >= row.n:
        result = cache.Result(task_id=row.id, completed_at=row.ended_at or 0.0, digests=digests)
        await with_parts.cache.put(row.fingerprint, result)
        failpoints.reach("mirror.cached")


def is_kept(blobs: blobs_disk.DiskBlobs, rows: Collection[tasks.Medium], n: int) -> bool:
    """Whether a result is whole: as many files as were asked for, each still in the blob store."""
    return len(rows) >= n and all(each.digest is not None and blobs.path(each.digest) is not None for each in rows)
