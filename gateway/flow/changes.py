"""A change of a task, and how the log tells of it once it is committed.

A line for the task, with its settle or release, and one for each follower that ended with it. Nothing is told of what
stayed as it was. `flow/advance` makes changes; this decides nothing.
"""

from __future__ import annotations

import dataclasses
import enum
import logging

from gateway import log_events, logs, metrics, wire
from gateway.flow import parts
from gateway.rules import money, task
from gateway.store import tasks

log = logging.getLogger(__name__)


class Hold(enum.StrEnum):
    """What the ledger did with a task's reservation."""

    RESERVE = "reserve"
    SETTLE = "settle"
    RELEASE = "release"
    OVERAGE = "overage"
    """Settled, to more than was reserved."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A task after its change, and the followers that ended with it."""

    row: tasks.Task
    before: task.State | None
    """Its state before the transaction, the same where it stayed; None: it was born."""
    cause: task.Event | None = None
    hold: Hold | None = None
    followers: tuple[tasks.Follower, ...] = ()
    left_because: str | None = None
    """Why it was left to the operator, if it was."""
    holder_id: str | None = None
    """The task that already has the id which the vendor gave to this one."""


def tell(with_parts: parts.Parts, change: Change) -> None:
    """Log a change that is committed: a line for the task, and one for each follower that ended with it."""
    row, now = change.row, with_parts.clock()
    if change.holder_id is not None:
        reused = log_events.UpstreamTaskIdReused(task_id=row.id, request_id=row.request_id, holder_id=change.holder_id)
        logs.note(log, logging.ERROR, reused)
    is_overage = change.hold is Hold.OVERAGE
    if change.before is not row.state and log.isEnabledFor(logging.ERROR if is_overage else logging.INFO):
        logs.note(log, logging.ERROR if is_overage else logging.INFO, _line_of(with_parts, change, now=now))
    if change.left_because is not None:
        left = log_events.TaskLeftToOperator(
            task_id=row.id,
            request_id=row.request_id,
            team=row.team,
            quote_usd=money.render_usd(row.quote_nanos),
            why=change.left_because,
        )
        logs.note(log, logging.ERROR, left)
    if not change.followers or not log.isEnabledFor(logging.INFO):
        return
    model, end = model_of(with_parts, row), follower_end(row.state).value
    for each in change.followers:
        ended = log_events.TaskChanged(
            task_id=each.id,
            request_id=each.request_id,
            team=each.team,
            key=each.key_name,
            before=task.State.FOLLOWING.value,
            after=end,
            model=model,
            tier=row.tier,
            cost_usd="0",
            leader_id=row.id,
            age_s=_age_s(each.created_at, now),
        )
        logs.note(log, logging.INFO, ended)


def follower_end(state: task.State) -> task.State:
    """The end of those who follow a task in this state."""
    return state if state in (task.State.COMPLETED, task.State.CANCELLED) else task.State.FAILED


def model_of(with_parts: parts.Parts, row: tasks.Task) -> str:
    """The model, if the catalogue has it: where it has not, a client may have named anything."""
    return row.model if row.model in with_parts.in_force.policies.models else metrics.OTHER


def _line_of(with_parts: parts.Parts, change: Change, *, now: float) -> log_events.TaskChanged:
    row = change.row
    return log_events.TaskChanged(
        task_id=row.id,
        request_id=row.request_id,
        team=row.team,
        key=row.key_name,
        before=None if change.before is None else change.before.value,
        after=row.state.value,
        cause=None if change.cause is None else change.cause.value,
        hold=None if change.hold is None else change.hold.value,
        model=model_of(with_parts, row),
        tier=row.tier,
        cache=row.x_cache.lower(),
        quote_usd=money.render_usd(row.quote_nanos),
        cost_usd=None if row.cost_nanos is None else money.render_usd(row.cost_nanos),
        leader_id=row.leader_id,
        upstream_task_id=row.upstream_task_id,
        attempts=row.attempts,
        age_s=_age_s(row.created_at, now),
        prompt=wire.parse_submit(row.request).prompt if with_parts.logs_content and change.before is None else None,
    )


def _age_s(created_at: float, now: float) -> float:
    return round(max(0.0, now - created_at), 3)
