"""The webhook of a task that has ended: noted in the outbox in the transaction of that end, so that it is never lost.

Sent later, by `flow/deliver`; the body is made then.
"""

from __future__ import annotations

import json

from gateway import failpoints
from gateway.rules import delivery, task
from gateway.store import outbox, tasks
from gateway.store.database import Tx


def note(tx: Tx, row: tasks.Task, *, now: float) -> None:
    """Note the webhook of a task that has just ended, if its client wants to hear of that."""
    if row.callback_url is not None:
        asked = tasks.Callback(task_id=row.id, team=row.team, url=row.callback_url, events=row.callback_events)
        _note(tx, asked, row.state, now=now)


def note_followers(tx: Tx, leader_id: str, state: task.State, *, now: float) -> None:
    """Note the webhooks of those who follow a task and are about to end in `state` with it."""
    for each in tasks.callbacks_of_followers(tx, leader_id):
        _note(tx, each, state, now=now)


def _note(tx: Tx, asked: tasks.Callback, state: task.State, *, now: float) -> None:
    event = task.SHOWN[state]
    if not delivery.is_wanted(event, json.loads(asked.events or "[]")):
        return
    receiver = delivery.receiver_of(asked.url)
    row = outbox.Delivery(
        task_id=asked.task_id, team=asked.team, receiver=receiver, event=event, created_at=now, due_at=now
    )
    outbox.add(tx, row)
    failpoints.reach("outbox.noted")
