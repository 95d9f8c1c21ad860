"""Sends the webhooks of the outbox: at least once each, under the same `webhook-id`, the body as a GET shows it then.

What fails is tried again on the schedule of `rules/delivery` and then given up; a receiver that answers 410 is given up
at once. Attempts at one receiver are few at a time, so that a slow one takes no place from the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import urllib.parse
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from gateway import failpoints, log_events, logs, metrics
from gateway.flow import attempt, parts, read
from gateway.outbound import webhook
from gateway.rules import delivery, policy
from gateway.store import outbox, tasks
from gateway.store.database import Tx

AT_ONCE: Final = 4
"""How many attempts go on at one receiver."""

_OUTCOMES: Final[Mapping[outbox.State, str]] = {
    outbox.State.DELIVERED: "delivered",
    outbox.State.PENDING: "failed",
    outbox.State.GIVEN_UP: "given_up",
}
"""What came of an attempt, by where it left its webhook."""
for _outcome in _OUTCOMES.values():  # from 0, so that `increase()` sees the first
    metrics.WEBHOOKS.labels(_outcome)

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Letter:
    """A webhook as it would be sent now."""

    row: outbox.Delivery
    request_id: str
    """Of the submit."""
    url: str
    body: bytes


async def due(with_parts: parts.Parts, most: int) -> Collection[str]:
    """Ids of tasks whose webhook is to be sent now, few for each receiver."""
    now = with_parts.clock()
    return await with_parts.database.scan(lambda tx: outbox.due(tx, now=now, each=AT_ONCE, limit=most))


async def step(with_parts: parts.Parts, task_id: str) -> None:
    """One attempt at one webhook, and what came of it."""
    letter = await with_parts.database.read(lambda tx: _letter(tx, with_parts, task_id))
    if letter is None:
        return
    with _place(with_parts, letter.row.receiver) as has_place:
        if not has_place:
            return
        began_at = with_parts.clock()
        failpoints.reach("deliver.before")
        outcome = await _send(with_parts, letter)
        failpoints.reach("deliver.after")
        now, luck = with_parts.clock(), with_parts.luck()
        record = functools.partial(_record, row=letter.row, outcome=outcome, now=now, luck=luck)
        state = await attempt.persist(with_parts, record)
        failpoints.reach("deliver.recorded")
    with_parts.wake_deliver()  # more may be due for this receiver than had a place
    _tell(letter, outcome, state, ms=round((now - began_at) * 1000, 1))


def _letter(tx: Tx, with_parts: parts.Parts, task_id: str) -> _Letter | None:
    row, task_row = outbox.get(tx, task_id), tasks.get(tx, task_id)
    if row is None or row.due_at is None or row.due_at > with_parts.clock():
        return None
    if task_row is None or task_row.callback_url is None:
        return None
    body = read.shown(tx, with_parts, task_row).document
    return _Letter(row=row, request_id=task_row.request_id, url=task_row.callback_url, body=body)


@contextlib.contextmanager
def _place(with_parts: parts.Parts, receiver: str) -> Iterator[bool]:
    """A place among the attempts at a receiver, or False; what finds none is still due."""
    under_way = with_parts.delivering
    if under_way.get(receiver, 0) >= AT_ONCE:
        yield False
        return
    under_way[receiver] = under_way.get(receiver, 0) + 1
    try:
        yield True
    finally:
        under_way[receiver] -= 1
        if not under_way[receiver]:
            del under_way[receiver]


async def _send(with_parts: parts.Parts, letter: _Letter) -> webhook.Delivered | webhook.Failed:
    """One attempt; never unsigned where the team wants signatures, nor to a host that it has ruled out since."""
    team = with_parts.in_force.policies.teams.get(letter.row.team)
    if team is None:
        return webhook.Failed(detail="the team's file is gone, and with it how to sign")
    host = urllib.parse.urlsplit(letter.url).hostname or ""
    if team.webhook_hosts is not None and not policy.matches(host, team.webhook_hosts):
        return webhook.Failed(detail="the host is not among the team's webhooks.allow_hosts any more")
    try:
        headers = _headers(with_parts, team, letter)
    except ValueError as error:
        return webhook.Failed(detail=f"not sent unsigned: {error}")
    return await with_parts.sender.send(letter.url, letter.body, headers)


def _headers(with_parts: parts.Parts, team: policy.Team, letter: _Letter) -> Mapping[str, str]:
    """Raises ValueError where the team has a secret that cannot be used."""
    webhook_id, timestamp = delivery.webhook_id(letter.row.task_id), int(with_parts.clock())
    headers = {"webhook-id": webhook_id, "webhook-timestamp": str(timestamp)}
    if team.webhook_secret is None:
        return headers
    secret = with_parts.webhook_secret(team.webhook_secret)
    if secret is None:
        raise ValueError(f"the secret {team.webhook_secret} cannot be read")
    return headers | {
        "webhook-signature": delivery.sign(secret, letter.body, webhook_id=webhook_id, timestamp=timestamp)
    }


def _record(
    tx: Tx, row: outbox.Delivery, outcome: webhook.Delivered | webhook.Failed, *, now: float, luck: float
) -> outbox.State:
    """Note what came of an attempt; returns where the webhook is then."""
    if isinstance(outcome, webhook.Delivered):
        outbox.delivered(tx, row, now=now)
        return outbox.State.DELIVERED
    wished_s = delivery.wished_wait(outcome.retry_after, now=now)
    delay_s = None if outcome.is_gone else delivery.next_delay(row.attempts + 1, luck=luck, wished_s=wished_s)
    if delay_s is None:
        outbox.give_up(tx, row, now=now, problem=outcome.detail)
        return outbox.State.GIVEN_UP
    outbox.put_off(tx, row, due_at=now + delay_s, problem=outcome.detail)
    return outbox.State.PENDING


def _tell(letter: _Letter, outcome: webhook.Delivered | webhook.Failed, state: outbox.State, *, ms: float) -> None:
    row, is_failed = letter.row, isinstance(outcome, webhook.Failed)
    metrics.WEBHOOKS.labels(_OUTCOMES[state]).inc()
    tried = log_events.WebhookAttempt(
        outcome=_OUTCOMES[state],
        task_id=row.task_id,
        request_id=letter.request_id,
        team=row.team,
        webhook_id=delivery.webhook_id(row.task_id),
        receiver=row.receiver,
        attempt=row.attempts + 1,
        status=outcome.status,
        detail=outcome.detail if isinstance(outcome, webhook.Failed) else None,
        ms=ms,
    )
    logs.note(log, logging.WARNING if is_failed else logging.INFO, tried)
