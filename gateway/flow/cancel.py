"""A cancel: what the vendor never had ends here; about what it accepted, the vendor is asked and its answer relayed.

Its answer to a cancel moves no money: the hold stays until a poll says how the task ended, and that poll is made at
once. While the vendor is asked nobody may begin to follow the task, so that no cancel ends what others wait for.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import Final, assert_never

from gateway import errors, failpoints, wire
from gateway.flow import advance, attempt, changes, parts, poll
from gateway.rules import money, task
from gateway.store import tasks
from gateway.store.database import Tx

AGAIN_AFTER_S: Final = 5
AGAIN_AFTER_MOST_S: Final = 60

_WHY_NOT: Final[Mapping[task.State, str]] = {
    task.State.RESERVED: "is being sent to the upstream right now; cancel it again in a moment",
    task.State.IN_DOUBT: "may or may not have reached the upstream; it can be cancelled once that is known",
    task.State.DELIVERED: "has been delivered; poll it for its result",
}

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the client gets: our word about a task that ended here, or the vendor's, its refusal too."""

    status: int
    document: bytes


async def cancel(with_parts: parts.Parts, team: str, task_id: str) -> Answer | None:
    """Cancel a team's task; None for an unknown one, and for another team's.

    Raises CallerError `task_not_cancellable`, UpstreamError where the vendor's answer is not known or says nothing,
    OurError `team_not_ready`.
    """
    row = await with_parts.database.read(lambda tx: tasks.get(tx, task_id))
    if row is None or row.team != team:
        return None
    begin = functools.partial(_begin, seen=row, now=with_parts.clock())
    begun = await with_parts.database.write(begin)
    if isinstance(begun, changes.Change):
        failpoints.reach("cancel.ended")
        advance.announce(with_parts, begun)
        refunded = money.quota_above(begun.row.quote_nanos)
        return Answer(status=200, document=wire.render_cancelled(begun.row.id, refunded))
    failpoints.reach("cancel.hidden")
    return await _ask(with_parts, begun)


def _begin(tx: Tx, *, seen: tasks.Task, now: float) -> changes.Change | tasks.Task:
    """End what the vendor never had, or return the task that it must be asked about."""
    row = tasks.get(tx, seen.id) or seen
    if tasks.has_followers(tx, row.id):
        raise _not_cancellable("is followed by others, who wait for its result")
    change = advance.withdraw(tx, row, now=now)
    if change is not None:
        return change
    if row.state is not task.State.SUBMITTED:
        raise _not_cancellable(_WHY_NOT.get(row.state, f"has ended: it is {task.SHOWN[row.state]}"))
    advance.hide(tx, row)
    return row


def _not_cancellable(why: str) -> errors.CallerError:
    return errors.CallerError("task_not_cancellable", f"The task {why}.")


async def _ask(with_parts: parts.Parts, row: tasks.Task) -> Answer:
    key = poll.key_for(with_parts, row)
    if key is None or row.upstream_task_id is None:
        await _note(with_parts, functools.partial(advance.unhide, row=row))
        raise errors.OurError(
            "team_not_ready",
            f"The upstream key of team {row.team} cannot be read, so the upstream was not asked; whoever runs the "
            "gateway must set it. The task goes on.",
            headers={"Retry-After": str(AGAIN_AFTER_S)},
        )
    outcome = await with_parts.upstream.cancel(row.upstream_task_id, key=key, about=attempt.about(row))
    failpoints.reach("cancel.after")
    match outcome:
        case task.Told():
            attempt.note_key(row.team, row.id, is_refused=False)
            await _look_soon(with_parts, row, is_going_on=outcome.is_refusal)
            return Answer(status=outcome.status, document=wire.render_answer(_view(with_parts, row), outcome.document))
        case task.NotSent():
            if outcome.is_key_refused:
                attempt.note_key(row.team, row.id, is_refused=True)
            await _note(with_parts, functools.partial(advance.unhide, row=row))
            raise _not_sent(outcome)
        case task.Lost():
            await _look_soon(with_parts, row, is_going_on=False)
            raise _lost(outcome)
        case _:
            assert_never(outcome)


async def _look_soon(with_parts: parts.Parts, row: tasks.Task, *, is_going_on: bool) -> None:
    """Have the vendor polled for what the cancel did."""
    if is_going_on:
        await _note(with_parts, functools.partial(advance.unhide, row=row))
    else:
        await _note(with_parts, functools.partial(advance.hasten, row=row, now=with_parts.clock()))
    failpoints.reach("cancel.noted")
    with_parts.watch.ask(row.id, now=with_parts.clock())
    with_parts.wake_poll()


async def _note(with_parts: parts.Parts, note: functools.partial[None]) -> None:
    """Write what only speeds things up: without it the task is polled a little later, or followed by nobody."""
    try:
        await with_parts.database.write(note)
    except errors.OurError as error:
        log.warning("after a cancel, what to do next could not be noted: %s", error)


def _view(with_parts: parts.Parts, row: tasks.Task) -> wire.View:
    return wire.View(
        task_id=row.id,
        model=row.model,
        action=row.action,
        state=row.state,
        created_at=row.created_at,
        upstream_task_id=row.upstream_task_id,
        public_url=with_parts.public_url,
    )


def _not_sent(outcome: task.NotSent) -> errors.UpstreamError:
    again_s = min(outcome.retry_after_s or AGAIN_AFTER_S, AGAIN_AFTER_MOST_S)
    return errors.UpstreamError(
        "upstream_unavailable",
        "The upstream cannot take the cancel now; the task goes on. Cancel it again later.",
        headers={"Retry-After": str(again_s)},
    )


def _lost(outcome: task.Lost) -> errors.UpstreamError:
    if outcome.is_answered:
        said = "The upstream answered the cancel with nothing that can be understood"
        return errors.UpstreamError("upstream_error", f"{said}; poll the task to see whether it goes on.")
    said = "The upstream did not answer the cancel"
    return errors.UpstreamError("upstream_timeout", f"{said}; poll the task to see whether it goes on.")
