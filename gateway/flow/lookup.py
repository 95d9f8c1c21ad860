"""A task as whoever runs the gateway sees it: found by any of its names, with its money, its steps and its files.

Nothing here is a secret: no key, no signed URL, no image of a client, of the prompt only its beginning.
"""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from typing import Final

from gateway import errors, wire
from gateway.rules import delivery, money, task
from gateway.store import ledger, outbox, tasks
from gateway.store.database import Tx

MOST_MATCHES: Final = 50
MOST_FOLLOWERS: Final = 20
PROMPT_SHOWN: Final = 120
"""Characters."""
_DIGEST: Final = re.compile(r"(?:^|/)([0-9a-f]{64})(?:\.[a-z0-9]+)?$")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One task in a list."""

    id: str
    team: str
    model: str
    state: str
    cost_usd: str | None
    """None until it is known."""
    quote_usd: str
    created_at: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """One task in doubt, with what to ask the vendor about it."""

    id: str
    team: str
    model: str
    quote_usd: str
    """What is held."""
    created_at: float
    first_attempt_at: float
    attempts: int
    next_at: float | None
    """When the vendor is asked again."""
    is_yours: bool
    """Nobody asks again: only an operator can end it."""
    request_id: str
    upstream_idempotency_key: str
    upstream_key: str
    """Where the key lies that it was sent with, never the key."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """One entry of the ledger."""

    at: float
    kind: str
    usd: str
    model: str
    tier: str
    images: int
    why: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One result file; `digest` None while it is not mirrored."""

    position: int
    digest: str | None
    extension: str | None
    upstream_host: str
    expires_at: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """What became of the webhook that tells of a task's end."""

    id: str
    """Its `webhook-id`."""
    event: str
    state: str
    """pending, delivered or given_up."""
    attempts: int
    due_at: float | None
    ended_at: float | None
    problem: str | None
    """Why the last attempt failed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Everything that is known of one task. Times in unix seconds, amounts in decimal US dollars."""

    id: str
    team: str
    key: str
    state: str
    shown_as: str
    """The status that its client sees."""
    error: str | None
    model: str
    """As it was called."""
    billed_model: str | None
    tier: str
    changes: str
    action: str
    n: int
    seed: int | None
    prompt: str
    tags: str
    quote_usd: str
    price_version: str
    cost_usd: str | None
    x_cache: str
    fingerprint: str | None
    request_id: str
    idempotency_key: str | None
    upstream_task_id: str | None
    upstream_idempotency_key: str
    upstream_key: str
    """Where the key lies, never the key."""
    callback_host: str | None
    webhook: Webhook | None
    """None: its client asked for none, or for none about this end, or the task is open."""
    attempts: int
    troubles: int
    created_at: float
    first_attempt_at: float | None
    deadline_at: float
    submitted_at: float | None
    settled_at: float | None
    ended_at: float | None
    next_at: float | None
    leader_id: str | None
    followers: tuple[Summary, ...]
    has_more_followers: bool
    ledger: tuple[Movement, ...]
    media: tuple[File, ...]


def newest(tx: Tx, *, team: str | None, state: task.State | None, limit: int) -> list[Summary]:
    """The newest tasks first."""
    return [_summary(row) for row in tasks.newest(tx, team=team, state=state, limit=limit)]


def in_doubt(tx: Tx, *, team: str | None, limit: int) -> list[Doubt]:
    """The tasks in doubt, the oldest first."""
    return [_doubt(row) for row in tasks.in_doubt(tx, team=team, limit=limit)]


def find(tx: Tx, ref: str) -> Record | list[Summary]:
    """The task that is meant, or all that may be meant: none, or several.

    `ref` is our id, the vendor's, a request id, an idempotency key, or a picture's digest, name or URL.
    """
    digest = _DIGEST.search(ref)
    rows = tasks.matching(tx, ref, digest=digest[1] if digest else None, limit=MOST_MATCHES)
    return _record(tx, rows[0]) if len(rows) == 1 else [_summary(row) for row in rows]


def _summary(row: tasks.Task) -> Summary:
    return Summary(
        id=row.id,
        team=row.team,
        model=row.model,
        state=row.state.value,
        cost_usd=_usd(row.cost_nanos),
        quote_usd=money.render_usd(row.quote_nanos),
        created_at=row.created_at,
    )


def _doubt(row: tasks.Task) -> Doubt:
    return Doubt(
        id=row.id,
        team=row.team,
        model=row.model,
        quote_usd=money.render_usd(row.quote_nanos),
        created_at=row.created_at,
        first_attempt_at=row.first_attempt_at or row.created_at,
        attempts=row.attempts,
        next_at=row.next_at,
        is_yours=row.next_at is None,
        request_id=row.request_id,
        upstream_idempotency_key=row.upstream_idempotency_key,
        upstream_key=row.upstream_key_ref,
    )


def _record(tx: Tx, row: tasks.Task) -> Record:
    entries = ledger.entries_of(tx, row.id)
    followers = tasks.followers_of(tx, row.id, limit=MOST_FOLLOWERS + 1)
    prompt, seed = _asked(row)
    return Record(
        id=row.id,
        team=row.team,
        key=row.key_name,
        state=row.state.value,
        shown_as=task.SHOWN[row.state],
        error=_error(row),
        model=row.model,
        billed_model=next((each.model for each in entries if each.kind == "settle"), None),
        tier=row.tier,
        changes=row.changes,
        action=row.action,
        n=row.n,
        seed=seed,
        prompt=prompt,
        tags=row.tags,
        quote_usd=money.render_usd(row.quote_nanos),
        price_version=row.price_version,
        cost_usd=_usd(row.cost_nanos),
        x_cache=row.x_cache,
        fingerprint=row.fingerprint,
        request_id=row.request_id,
        idempotency_key=row.idempotency_key,
        upstream_task_id=row.upstream_task_id,
        upstream_idempotency_key=row.upstream_idempotency_key,
        upstream_key=row.upstream_key_ref,
        callback_host=None if row.callback_url is None else _host(row.callback_url),
        webhook=_webhook(outbox.get(tx, row.id)),
        attempts=row.attempts,
        troubles=row.troubles,
        created_at=row.created_at,
        first_attempt_at=row.first_attempt_at,
        deadline_at=row.deadline_at,
        submitted_at=row.submitted_at,
        settled_at=row.settled_at,
        ended_at=row.ended_at,
        next_at=row.next_at,
        leader_id=row.leader_id,
        followers=tuple(_summary(each) for each in followers[:MOST_FOLLOWERS]),
        has_more_followers=len(followers) > MOST_FOLLOWERS,
        ledger=tuple(_movement(each) for each in entries),
        media=tuple(_file(each) for each in tasks.media_of(tx, row.leader_id or row.id)),
    )


def _asked(row: tasks.Task) -> tuple[str, int | None]:
    """The beginning of the prompt, and the seed, by the body that is kept; nothing where it was erased."""
    try:
        request = wire.parse_submit(row.request)
    except errors.CallerError:
        return "", None
    cut = request.prompt[:PROMPT_SHOWN]
    return cut + ("…" if len(request.prompt) > PROMPT_SHOWN else ""), request.seed if request.is_seeded() else None


def _error(row: tasks.Task) -> str | None:
    if row.state not in (task.State.FAILED, task.State.REFUSED, task.State.CANCELLED):
        return None
    for document in (row.document, row.failure and b'{"error":' + row.failure + b"}"):
        said = wire.error_of(document) if document else None
        if said is not None:
            return ": ".join(part for part in said if part)
    return None


def _webhook(row: outbox.Delivery | None) -> Webhook | None:
    if row is None:
        return None
    return Webhook(
        id=delivery.webhook_id(row.task_id),
        event=row.event,
        state=row.state.value,
        attempts=row.attempts,
        due_at=row.due_at,
        ended_at=row.ended_at,
        problem=row.problem,
    )


def _movement(entry: ledger.Entry) -> Movement:
    return Movement(
        at=entry.at,
        kind=entry.kind,
        usd=money.render_usd(entry.nanos),
        model=entry.model,
        tier=entry.tier,
        images=entry.images,
        why=entry.why,
    )


def _file(medium: tasks.Medium) -> File:
    return File(
        position=medium.position,
        digest=medium.digest,
        extension=medium.extension,
        upstream_host=_host(medium.upstream_url),
        expires_at=medium.expires_at,
    )


def _host(url: str) -> str:
    """Of a URL only the host: the rest may be a secret."""
    try:
        return urllib.parse.urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _usd(nanos: int | None) -> str | None:
    return None if nanos is None else money.render_usd(nanos)
