"""The single door through which a task changes state.

Each function runs inside one transaction, may be run again, and does the transition, the settle or release, the
followers' end and the webhooks that tell of it together. A word that means nothing in the task's state changes nothing
(returns None). What must happen after the commit (who is told, what is counted and logged) is `announce`; nothing is
logged here before, since a transaction may be run again.
"""

from __future__ import annotations

import dataclasses
from typing import Final, assert_never

from gateway import failpoints, metrics
from gateway.flow import changes, notice, parts
from gateway.rules import money, pricing, retry, strict_json, task
from gateway.rules import request as requests
from gateway.rules.money import Nanos
from gateway.store import ledger, tasks
from gateway.store.database import Tx

LOST_AFTER_S: Final = 90.0
"""A repeated POST whose outcome nobody recorded by then is due again: the process ended meanwhile."""


def attempt(tx: Tx, row: tasks.Task, *, key_ref: str, key_digest: bytes, now: float) -> tasks.Task | None:
    """Another POST is about to start; durable before its first byte leaves (M6)."""
    state = task.step(row.state, task.Event.ATTEMPTED)
    if state is None:
        return None
    failpoints.reach("advance.attempt")
    return tasks.move(
        tx,
        row,
        state,
        attempts=row.attempts + 1,
        first_attempt_at=row.first_attempt_at or now,
        upstream_key_ref=key_ref,
        upstream_key_digest=key_digest,
        next_at=now + LOST_AFTER_S,
    )


def answer(tx: Tx, row: tasks.Task, outcome: task.SubmitOutcome, *, now: float, luck: float) -> changes.Change | None:
    """What came of a POST."""
    match outcome:
        case task.Accepted():
            return _accept(tx, row, outcome, now=now, luck=luck)
        case task.Refused():
            failure = _error_of(outcome.document)
            said = {"failure": failure, "document": outcome.document, "refusal_status": outcome.status, "cost_nanos": 0}
            ended = _end(tx, row, task.Event.REFUSED, now=now, is_answer=row.is_awaited(), **said)
            if ended is not None:
                failpoints.reach("advance.refuse")
                ledger.release(tx, hold_of(row), now=now, why=f"refused {outcome.status}")
            return _with(ended, changes.Hold.RELEASE)
        case task.NotSent():
            return _put_off(tx, row, outcome, now=now, luck=luck)
        case task.InDoubt():
            return _doubt(tx, row, now=now, luck=luck)
        case _:
            assert_never(outcome)


def expire(tx: Tx, row: tasks.Task, *, now: float, why: str, is_answer: bool = False) -> changes.Change | None:
    """The task was provably never accepted, and its time is over.

    `is_answer`: the client hears of it as the answer to its submit, so the same idempotency key may try again.
    """
    failure = strict_json.dumps(
        {
            "message": "The upstream could not take the task in time and nothing was spent; send it again later.",
            "code": "upstream_unavailable",
        }
    )
    freed: dict[str, object] = {"idempotency_key": None} if is_answer else {}
    ended = _end(tx, row, task.Event.EXPIRED, now=now, is_answer=is_answer, failure=failure, cost_nanos=0, **freed)
    if ended is not None:
        failpoints.reach("advance.expire")
        ledger.release(tx, hold_of(row), now=now, why=why)
    return _with(ended, changes.Hold.RELEASE)


def withdraw(tx: Tx, row: tasks.Task, *, now: float) -> changes.Change | None:
    """The client cancels what the vendor never had: a waiting task is released, a follower leaves its leader."""
    ended = _end(tx, row, task.Event.WITHDRAWN, now=now, cost_nanos=0)
    if ended is not None and row.state in task.HOLDING:
        failpoints.reach("advance.withdraw")
        ledger.release(tx, hold_of(row), now=now, why="cancelled before it was accepted")
        return _with(ended, changes.Hold.RELEASE)
    return ended


def hide(tx: Tx, row: tasks.Task) -> None:
    """Nobody may follow the task from now on: it may be about to be cancelled."""
    tasks.note(tx, row, inflight=None)


def unhide(tx: Tx, row: tasks.Task) -> None:
    """The task goes on: it may be followed again, as `row` could be, unless another one took its place."""
    now_row = tasks.get(tx, row.id)
    if row.inflight is None or now_row is None or now_row.state not in (task.State.SUBMITTED, task.State.DELIVERED):
        return
    if tasks.get_leader(tx, row.inflight) is None:
        tasks.note(tx, now_row, inflight=row.inflight)


def hasten(tx: Tx, row: tasks.Task, *, now: float) -> None:
    """Poll the task at once, if it is still under way."""
    tasks.note(tx, row, next_at=now)


def abandon(tx: Tx, row: tasks.Task, *, now: float, why: str) -> changes.Change | None:
    """In doubt, and not to be repeated: only an operator ends the hold. Nobody follows the task any more."""
    failure = strict_json.dumps(
        {
            "message": "The upstream never said whether it took the task that this one waited for; send it again.",
            "code": "upstream_unavailable",
        }
    )
    kept = tasks.move(tx, row, row.state, next_at=None, inflight=None, failure=failure)
    if kept is None:
        return None
    failpoints.reach("advance.abandon")
    notice.note_followers(tx, row.id, task.State.FAILED, now=now)
    followers = tasks.end_followers(tx, row.id, task.State.FAILED, ended_at=now)
    return changes.Change(row=kept, before=row.state, followers=tuple(followers), left_because=why)


def resolve(tx: Tx, row: tasks.Task, *, charged_nanos: Nanos | None, why: str, now: float) -> changes.Change | None:
    """An operator's decision ends the hold (M7): it is settled to `charged_nanos`, or released where that is None."""
    found = "came to nothing and cost nothing" if charged_nanos is None else "was billed and its result is lost"
    message = f"The upstream never said how this task ended; whoever runs the gateway found that it {found}."
    failure = strict_json.dumps({"message": message, "code": "upstream_unavailable"})
    cost_nanos = charged_nanos or 0
    ended = _end(tx, row, task.Event.RESOLVED, now=now, failure=failure, cost_nanos=cost_nanos, settled_at=now)
    if ended is None:
        return None
    if charged_nanos is None:
        ledger.release(tx, hold_of(row), now=now, why=why)
        return _with(ended, changes.Hold.RELEASE)
    ledger.settle(tx, hold_of(row), pricing.charge(row.quote(), charged_nanos, n=row.n), now=now, why=why)
    return _with(ended, changes.Hold.SETTLE)


def report(
    tx: Tx, row: tasks.Task, outcome: task.Outcome, document: bytes, *, now: float, next_at: float
) -> changes.Change | None:
    """What the vendor says about an accepted task; the first word about its end decides."""
    match outcome.event:
        case None:
            kept = tasks.move(tx, row, row.state, document=document, troubles=0, next_at=next_at)
            return None if kept is None else changes.Change(row=kept, before=row.state)
        case task.Event.DELIVERED:
            return _deliver(tx, row, outcome, document, now=now)
        case _:
            ended = _end(tx, row, outcome.event, now=now, document=document)
            if ended is None:
                return None
            failpoints.reach("advance.report")
            cost = pricing.settle(row.quote(), outcome, n=row.n)
            if cost.nanos:
                ledger.settle(tx, hold_of(row), cost, now=now)
            else:
                ledger.release(tx, hold_of(row), now=now, why=outcome.event)
            tasks.note(tx, ended.row, cost_nanos=cost.nanos, settled_at=now)
            settled = dataclasses.replace(ended, row=dataclasses.replace(ended.row, cost_nanos=cost.nanos))
            return _with(settled, changes.Hold.SETTLE if cost.nanos else changes.Hold.RELEASE)


def mirror(tx: Tx, row: tasks.Task, *, now: float, next_at: float | None) -> changes.Change | None:
    """The media are kept, or the patience is over: `completed` may be shown. `next_at`: mirroring goes on then."""
    ended = _end(tx, row, task.Event.MIRRORED, now=now, next_at=next_at, troubles=0)
    if ended is None:
        return None
    failpoints.reach("advance.mirror")
    avoided: dict[str, int] = {}
    for each in ended.followers:
        avoided[each.team] = avoided.get(each.team, 0) + (row.cost_nanos or 0)
    for team, nanos in avoided.items():
        ledger.avoid(tx, team=team, model=row.model, tier=row.tier, coalesced_nanos=nanos)
    return ended


def announce(with_parts: parts.Parts, change: changes.Change | None) -> None:
    """After the commit: wake who waits, count what ended and log what changed."""
    if change is None:
        return
    row = change.row
    changes.tell(with_parts, change)
    with_parts.watch.changed(row.id)
    if change.followers or (row.callback_url is not None and row.state in task.ENDED):
        with_parts.wake_deliver()
    models = with_parts.in_force.policies.models
    model = changes.model_of(with_parts, row)
    # Where the catalogue does not say what a model can do, a client may name any action.
    is_known = row.action == requests.DEFAULT_ACTION or any(
        row.action in (each.actions or ()) for each in models.values()
    )
    action = row.action if is_known else metrics.OTHER
    if with_parts.tracing.is_on and row.leader_id is None:
        _trace(with_parts, row, model)
    for each in change.followers:
        with_parts.watch.changed(each.id)
        metrics.TASKS.labels(each.team, model, action, changes.follower_end(row.state).value).inc()
    if row.state not in task.ENDED:
        return
    metrics.TASKS.labels(row.team, model, action, row.state.value).inc()
    if row.state is task.State.COMPLETED and row.leader_id is None:
        metrics.TASK_DURATION.labels(model, row.tier).observe(max(0.0, (row.ended_at or 0) - row.created_at))


def _trace(with_parts: parts.Parts, row: tasks.Task, model: str) -> None:
    """The settle of a delivery, and the life of a task that has ended, in the trace of its submit."""
    if row.state is task.State.DELIVERED and row.settled_at is not None:
        span = with_parts.tracing.span("wave.settle", row.traceparent, began_at=row.settled_at)
        ended_at = with_parts.clock()
    elif row.state in task.ENDED and row.ended_at is not None:
        span = with_parts.tracing.span("wave.task", row.traceparent, began_at=row.created_at)
        span.set({"wave.team": row.team, "wave.model": model, "wave.state": row.state.value})
        ended_at = row.ended_at
    else:
        return
    cost = {} if row.cost_nanos is None else {"wave.cost_usd": money.render_usd(row.cost_nanos)}
    span.set({"wave.task_id": row.id, "wave.quote_usd": money.render_usd(row.quote_nanos)} | cost)
    if row.state is task.State.FAILED:
        span.fail("failed")
    span.end(at=ended_at)


def hold_of(row: tasks.Task) -> ledger.Hold:
    """The reservation of a task, as the ledger knows it."""
    return ledger.Hold(
        task_id=row.id,
        team=row.team,
        key=row.key_name,
        model=row.model,
        official=row.official,
        tier=row.tier,
        quote_nanos=Nanos(row.quote_nanos),
        reserved_at=row.created_at,
    )


def _accept(tx: Tx, row: tasks.Task, outcome: task.Accepted, *, now: float, luck: float) -> changes.Change | None:
    holder = tasks.get_by_upstream_task_id(tx, outcome.upstream_task_id)
    if holder is not None and holder.id != row.id:
        doubted = _doubt(tx, row, now=now, luck=luck)
        return None if doubted is None else dataclasses.replace(doubted, holder_id=holder.id)
    failpoints.reach("advance.accept")
    return _move(
        tx,
        row,
        task.Event.ACCEPTED,
        upstream_task_id=outcome.upstream_task_id,
        document=outcome.document,
        submitted_at=now,
        troubles=0,
        next_at=now if outcome.outcome.event else now + retry.poll_delay(0, luck=luck),
    )


def _doubt(tx: Tx, row: tasks.Task, *, now: float, luck: float) -> changes.Change | None:
    failpoints.reach("advance.doubt")
    at = now + retry.resubmit_delay(row.attempts, luck=luck)
    return _move(tx, row, task.Event.LOST, next_at=at) or _stay(tx, row, at)


def _deliver(tx: Tx, row: tasks.Task, outcome: task.Outcome, document: bytes, *, now: float) -> changes.Change | None:
    cost = pricing.settle(row.quote(), outcome, n=row.n)
    moved = _move(
        tx,
        row,
        task.Event.DELIVERED,
        document=document,
        cost_nanos=cost.nanos,
        settled_at=now,
        troubles=0,
        next_at=now,
    )
    if moved is not None:
        failpoints.reach("advance.deliver")
        ledger.settle(tx, hold_of(row), cost, now=now)
        failpoints.reach("advance.settled")
        tasks.add_media(tx, row.id, outcome.media)
    return _with(moved, changes.Hold.SETTLE)


def _put_off(tx: Tx, row: tasks.Task, outcome: task.NotSent, *, now: float, luck: float) -> changes.Change | None:
    """Not accepted this time. A task in doubt stays in doubt: an earlier POST may have arrived.

    With a complaint about our key, Retry-After is not heard: a key that is mended is to be used at once.
    """
    retry_after_s = None if outcome.is_key_refused else outcome.retry_after_s
    at = now + retry.resubmit_delay(row.attempts, luck=luck, retry_after_s=retry_after_s)
    waiting = _move(tx, row, task.Event.NOT_SENT, next_at=min(at, row.deadline_at))
    if waiting is None:
        return _stay(tx, row, at)
    failpoints.reach("advance.put_off")
    if outcome.reset_at is not None and outcome.reset_at > row.deadline_at:
        why = "the vendor's quota window resets past the deadline"
        return began_as(row, expire(tx, waiting.row, now=now, why=why, is_answer=row.is_awaited()))
    return waiting


def _stay(tx: Tx, row: tasks.Task, next_at: float) -> changes.Change | None:
    kept = tasks.move(tx, row, row.state, next_at=next_at) if row.state is task.State.IN_DOUBT else None
    return None if kept is None else changes.Change(row=kept, before=row.state)


def began_as(row: tasks.Task, change: changes.Change | None) -> changes.Change | None:
    """The last of several changes in one transaction, seen from where the first one began."""
    return None if change is None else dataclasses.replace(change, before=row.state)


def _with(change: changes.Change | None, hold: changes.Hold) -> changes.Change | None:
    """The change with what the ledger did."""
    if change is None:
        return None
    if hold is changes.Hold.SETTLE and (change.row.cost_nanos or 0) > change.row.quote_nanos:
        hold = changes.Hold.OVERAGE
    return dataclasses.replace(change, hold=hold)


def _move(tx: Tx, row: tasks.Task, event: task.Event, **columns: object) -> changes.Change | None:
    state = task.step(row.state, event)
    moved = None if state is None else tasks.move(tx, row, state, **columns)
    return None if moved is None else changes.Change(row=moved, before=row.state, cause=event)


def _end(
    tx: Tx, row: tasks.Task, event: task.Event, *, now: float, is_answer: bool = False, **columns: object
) -> changes.Change | None:
    """Move to an end: nobody follows the task any more, and its followers end with it.

    `is_answer`: the client hears of it as the answer to its submit and never learns the task's id, so no webhook
    tells of it.
    """
    moved = _move(tx, row, event, **{"next_at": None, "ended_at": now, "inflight": None} | columns)
    if moved is None:
        return None
    failpoints.reach("advance.end")
    if not is_answer:
        notice.note(tx, moved.row, now=now)
    state = changes.follower_end(moved.row.state)
    notice.note_followers(tx, row.id, state, now=now)
    return dataclasses.replace(moved, followers=tuple(tasks.end_followers(tx, row.id, state, ended_at=now)))


def _error_of(document: bytes) -> bytes:
    error = strict_json.fields_of(document).get("error", b"")
    if error.startswith(b"{"):
        return error
    return strict_json.dumps({"message": "The upstream refused the task.", "code": "upstream_bad_request"})
