"""Rows of the outbox: the webhooks that are to be sent, were delivered, or were given up."""

from __future__ import annotations

import dataclasses
import enum
from typing import Final

from gateway.store.database import Row, Tx


class State(enum.StrEnum):
    """Where a delivery is."""

    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One row of `outbox`; the schema says what each column holds. Times in unix seconds."""

    task_id: str
    team: str
    receiver: str
    event: str
    state: State = State.PENDING
    attempts: int = 0
    created_at: float
    due_at: float | None
    ended_at: float | None = None
    problem: str | None = None


COLUMNS: Final = tuple(field.name for field in dataclasses.fields(Delivery))
_INSERT: Final = f"INSERT INTO outbox ({', '.join(COLUMNS)}) VALUES ({', '.join(':' + name for name in COLUMNS)})"  # noqa: S608
_SELECT: Final = f"SELECT {', '.join(COLUMNS)} FROM outbox"  # noqa: S608 - constant text

# From one receiver to the next by the index: a long queue for one of them costs no more than its first few rows.
_DUE: Final = """
WITH RECURSIVE receivers (name) AS (
    SELECT MIN(receiver) FROM outbox WHERE state = 'pending'
    UNION ALL
    SELECT (SELECT MIN(receiver) FROM outbox WHERE state = 'pending' AND receiver > receivers.name)
    FROM receivers WHERE receivers.name IS NOT NULL
)
SELECT outbox.task_id FROM receivers JOIN outbox ON outbox.rowid IN (
    SELECT first.rowid FROM outbox AS first
    WHERE first.state = 'pending' AND first.receiver = receivers.name AND first.due_at <= :now
    ORDER BY first.due_at, first.rowid LIMIT :each
)
ORDER BY outbox.due_at, outbox.rowid LIMIT :most
"""


def add(tx: Tx, row: Delivery) -> None:
    """Note a webhook to be sent; the database refuses a second one for a task."""
    tx.run(_INSERT, **{name: getattr(row, name) for name in COLUMNS})


def get(tx: Tx, task_id: str) -> Delivery | None:
    """The webhook of a task."""
    return _delivery(tx.one(f"{_SELECT} WHERE task_id = :id", id=task_id))


def due(tx: Tx, *, now: float, each: int, limit: int) -> list[str]:
    """Ids of tasks whose webhook is to be sent now, the most overdue first, no more than `each` for one receiver."""
    return [row["task_id"] for row in tx.all(_DUE, now=now, each=each, most=limit)]


def delivered(tx: Tx, row: Delivery, *, now: float) -> bool:
    """The receiver took it."""
    return _end(tx, row, State.DELIVERED, now=now, problem=None)


def give_up(tx: Tx, row: Delivery, *, now: float, problem: str) -> bool:
    """The receiver will not have it, or had its chances."""
    return _end(tx, row, State.GIVEN_UP, now=now, problem=problem)


def put_off(tx: Tx, row: Delivery, *, due_at: float, problem: str) -> bool:
    """An attempt failed, another one is planned."""
    return bool(
        tx.run(
            "UPDATE outbox SET attempts = attempts + 1, due_at = :due_at, problem = :problem "
            "WHERE task_id = :id AND state = 'pending' AND due_at = :due_before",
            id=row.task_id,
            due_at=due_at,
            problem=problem,
            due_before=row.due_at,
        )
    )


def resend(tx: Tx, task_id: str, *, now: float) -> bool:
    """Send a task's webhook once more from the beginning of the schedule; False: it has none."""
    return bool(
        tx.run(
            "UPDATE outbox SET state = 'pending', attempts = 0, due_at = :now, ended_at = NULL WHERE task_id = :id",
            id=task_id,
            now=now,
        )
    )


def resend_given_up(tx: Tx, *, team: str | None = None, now: float) -> int:
    """Send all that were given up once more, of one team where it is given; returns how many."""
    return tx.run(
        "UPDATE outbox SET state = 'pending', attempts = 0, due_at = :now, ended_at = NULL "
        "WHERE state = 'given_up' AND (:team IS NULL OR team = :team)",
        team=team,
        now=now,
    )


def given_up(tx: Tx, *, team: str | None = None, limit: int) -> list[Delivery]:
    """Webhooks that were given up, of one team where it is given, the latest first."""
    rows = tx.all(
        f"{_SELECT} WHERE state = 'given_up' AND (:team IS NULL OR team = :team) "
        "ORDER BY ended_at DESC, task_id DESC LIMIT :most",
        team=team,
        most=limit,
    )
    return [row for row in map(_delivery, rows) if row is not None]


def count_pending(tx: Tx) -> int:
    """How many webhooks are still to be delivered."""
    row = tx.one("SELECT COUNT(*) AS held FROM outbox WHERE state = 'pending'")
    return int(row["held"]) if row is not None else 0


def _end(tx: Tx, row: Delivery, state: State, *, now: float, problem: str | None) -> bool:
    """Only of the attempt that was planned: a resend meanwhile has its own."""
    return bool(
        tx.run(
            "UPDATE outbox SET state = :state, attempts = attempts + 1, due_at = NULL, ended_at = :now, "
            "problem = :problem WHERE task_id = :id AND state = 'pending' AND due_at = :due_before",
            id=row.task_id,
            state=state,
            now=now,
            problem=problem,
            due_before=row.due_at,
        )
    )


def _delivery(row: Row | None) -> Delivery | None:
    if row is None:
        return None
    values = {name: row[name] for name in COLUMNS}
    return Delivery(**values | {"state": State(values["state"])})
