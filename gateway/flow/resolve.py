"""An operator's decision about a task whose end nobody else can know: in doubt, or accepted and overdue (M7).

It is recorded with its reason in the ledger, once: what has ended stays as it is, and what the vendor says later
changes nothing. So nothing is decided while a POST of the task is under way, whose answer would come too late; and the
next one does not leave, because its attempt is written only while the task is still in doubt.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from typing import Final

from gateway.flow import advance, changes, scrape
from gateway.rules import money, task
from gateway.rules.money import Nanos
from gateway.store import ledger, tasks
from gateway.store.database import Database, Tx

LONGEST_WHY: Final = 500
"""Characters."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What an operator found out about a task, and from where."""

    task_id: str
    charged_nanos: Nanos | None
    """What the vendor billed; None where it never took the task or took nothing for it."""
    why: str

    def words(self) -> str:
        """What the ledger's entry says."""
        found = "refused" if self.charged_nanos is None else f"charged ${money.render_usd(self.charged_nanos)}"
        return f"operator: {found}: {self.why}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unresolved:
    """Nothing was changed; the message says why, and what to do."""

    message: str


async def resolve(
    database: Database, decision: Decision, *, now: float, repeating: Collection[str] = ()
) -> changes.Change | Unresolved:
    """End a hold by an operator's decision; `repeating`: the tasks of which a later POST is under way, as it changes.

    Raises OurError `unavailable` while the ledger cannot be written.
    """
    return await database.write(functools.partial(_resolve, decision=decision, now=now, repeating=repeating))


def _resolve(tx: Tx, *, decision: Decision, now: float, repeating: Collection[str]) -> changes.Change | Unresolved:
    row = tasks.get(tx, decision.task_id)
    if row is None:
        return Unresolved(
            message=f"there is no task {decision.task_id}; 'tasks show' finds one by its other names and prints its id"
        )
    why_not = _why_not(tx, row, now=now, is_repeated_now=row.id in repeating)
    if why_not is not None:
        return Unresolved(message=f"task {row.id} {why_not}")
    change = advance.resolve(tx, row, charged_nanos=decision.charged_nanos, why=decision.words(), now=now)
    return change or Unresolved(message=f"task {row.id} changed meanwhile; look at it again")


def _why_not(tx: Tx, row: tasks.Task, *, now: float, is_repeated_now: bool) -> str | None:
    """Why an operator has nothing to decide about a task, and what to do; None where there is something."""
    match row.state:
        case task.State.IN_DOUBT if not is_repeated_now:
            return None
        case task.State.IN_DOUBT | task.State.RESERVED:
            return (
                "is being sent to the upstream right now, or was when the gateway ended; "
                "let the gateway run and try again in half a minute"
            )
        case task.State.WAITING:
            return "was never accepted: it is sent, or ends by itself at its deadline; its client may cancel it"
        case task.State.SUBMITTED if now - row.created_at > scrape.OVERDUE_AFTER_S:
            return None
        case task.State.SUBMITTED:
            minutes = -int(-(scrape.OVERDUE_AFTER_S - (now - row.created_at)) // 60)
            return f"was accepted by the upstream, which is asked how it ends; it is overdue in {minutes} min"
        case task.State.DELIVERED:
            return f"was delivered and settled at ${_usd(row)}; it completes when its pictures are kept"
        case task.State.FOLLOWING:
            return f"holds nothing: it follows {row.leader_id} and ends with that one"
        case _:
            return f"has ended already, nothing was changed: {row.state}, {_end(tx, row)}"


def _end(tx: Tx, row: tasks.Task) -> str:
    """How the hold of an ended task ended."""
    said = [each.why for each in ledger.entries_of(tx, row.id) if each.kind in ("settle", "release") and each.why]
    return " ".join([f"at a cost of ${_usd(row)}", *(f"({why})" for why in said)])


def _usd(row: tasks.Task) -> str:
    return money.render_usd(row.cost_nanos or 0)
