"""A submit, top to bottom: parse → replay? → decide → hit? → follow or reserve → upstream → record.

Nothing is stored for a request that is denied. The reservation is durable before the upstream hears of it, and the
POST runs on its own task, so a client that leaves changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Final

from gateway import errors, failpoints, log_events, logs, metrics, wire
from gateway.flow import advance, attempt, changes, mirror, notice, parts, plan, references
from gateway.outbound import address
from gateway.rules import budget, policy, pricing, rate, task
from gateway.rules import request as requests
from gateway.rules.money import Nanos
from gateway.store import cache, ledger, tasks
from gateway.store.database import Tx

MOST_FOLLOWERS: Final = 10_000
MOST_ROUNDS: Final = 8
ANSWER_WITHIN_S: Final = 40.0
"""A client waits no longer for the first POST; the task goes on without it."""
LOOK_AGAIN_S: Final = 1.0
RETRIED_WITHIN_S: Final = 600.0
"""A request that says it is a retry is one of a task this young: an SDK waits no longer for an answer."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks: a team, by one of its virtual keys."""

    team: str
    key: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the request's headers ask for."""

    request_id: str
    idempotency_key: str | None = None
    is_retry: bool = False
    """The client says that it sent this request before; counts where there is no idempotency key."""
    max_cost_nanos: Nanos | None = None
    cache: plan.CacheMode = plan.CacheMode.DEFAULT
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    traceparent: str | None = None
    """The parent of what is done upstream, kept with the task."""

    @property
    def is_first(self) -> bool:
        """Whether a retry that says no more than that it is one may be a retry of this."""
        return self.idempotency_key is None and not self.is_retry


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A task that exists now; one in state `refused` carries the vendor's refusal."""

    row: tasks.Task
    is_replay: bool = False


class _Denied(Exception):
    """Rolls the transaction back and carries the denial out of it."""

    def __init__(self, deny: policy.Deny) -> None:
        super().__init__(deny.code)
        self.deny = deny


class _Stale(Exception):
    """Another policy set came into force meanwhile; decide again."""


class _Rewritten(Exception):
    """A threshold is reached: decide again with another model."""

    def __init__(self, request: requests.Request) -> None:
        super().__init__(request.model)
        self.request = request


async def submit(with_parts: parts.Parts, caller: Caller, body: bytes, options: Options) -> Submitted | policy.Deny:
    """Carry a submit out as far as the upstream's first answer.

    Raises CallerError for a body or callback that cannot be accepted, OurError `team_not_ready` or `unavailable`,
    UpstreamError while the upstream is down and the team will not wait for it.
    """
    parsed = wire.parse_submit(body)
    digest = parsed.body_digest()
    if options.is_retry and options.idempotency_key is None:
        await _first_admitted(with_parts, caller, digest)
    with _arriving(with_parts, caller, digest) if options.is_first else contextlib.nullcontext():
        request = await references.resolved(with_parts, parsed)
        replay = await _replay(with_parts, caller, digest, options)
        decided = await _decide(with_parts, caller, request, options) if replay is None else (replay, False)
    if isinstance(decided, policy.Deny):
        metrics.POLICY_DECISIONS.labels(caller.team, "deny", decided.code).inc()
        denied = log_events.PolicyDenied(
            request_id=options.request_id, team=caller.team, key=caller.key, code=decided.code, rule=decided.rule
        )
        logs.note(log, logging.INFO, denied)
        return decided
    row, is_new = decided
    if not is_new:
        return await _settled(with_parts, row, is_replay=True)
    metrics.POLICY_DECISIONS.labels(caller.team, "allow", "").inc()
    metrics.CACHE_REQUESTS.labels(caller.team, row.x_cache.lower()).inc()
    if row.leader_id is not None:
        advance.announce(with_parts, changes.Change(row=row, before=None))
        return Submitted(row=row)
    changes.tell(with_parts, changes.Change(row=row, before=None, hold=changes.Hold.RESERVE))
    with_parts.retry_budget.submitted(now=row.created_at)
    failpoints.reach("submit.admitted")
    if row.state is task.State.RESERVED:
        _begin(with_parts, row)
    settled = await _settled(with_parts, row, is_replay=False)
    failpoints.reach("submit.answered")
    return settled


async def _first_admitted(with_parts: parts.Parts, caller: Caller, digest: bytes) -> None:
    """Return when no request that a retry may repeat is on its way into the ledger any more.

    A client that gave up waiting sends its retry while the first is not there yet. Were the retry admitted before it,
    nobody would look again and both would be bought.
    """
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            for each in tuple(with_parts.arriving.get((caller.team, caller.key, digest), ())):
                await each.wait()
    except TimeoutError:
        raise errors.OurError(
            "unavailable", "The request that this one retries is still being admitted; send it again."
        ) from None


@contextlib.contextmanager
def _arriving(with_parts: parts.Parts, caller: Caller, digest: bytes) -> Iterator[None]:
    """Let a retry know of this request until it is in the ledger, or will not be."""
    identity = (caller.team, caller.key, digest)
    same = with_parts.arriving.setdefault(identity, set())
    is_admitted = asyncio.Event()
    same.add(is_admitted)
    try:
        yield
    finally:
        is_admitted.set()
        same.discard(is_admitted)
        if not same:
            with_parts.arriving.pop(identity, None)


async def _replay(with_parts: parts.Parts, caller: Caller, digest: bytes, options: Options) -> tasks.Task | None:
    if options.idempotency_key is None and not options.is_retry:
        return None
    now = with_parts.clock()
    return await with_parts.database.read(lambda tx: replayed(tx, caller, digest, options, now=now))


def replayed(tx: Tx, caller: Caller, digest: bytes, options: Options, *, now: float) -> tasks.Task | None:
    """The task that this request stands for already: by its idempotency key, else as a retry of the same body.

    Raises CallerError `idempotency_key_reused`.
    """
    if options.idempotency_key is not None:
        row = tasks.get_by_idempotency_key(tx, caller.team, options.idempotency_key)
        if row is not None and row.body_digest != digest:
            raise errors.CallerError(
                "idempotency_key_reused",
                "This Idempotency-Key was used with another body; use a new key for a new request.",
            )
        return row
    if not options.is_retry:
        return None
    row = tasks.get_newest_of_body(tx, caller.team, caller.key, digest, since=now - RETRIED_WITHIN_S, now=now)
    return None if row is None or row.was_never_taken() else row


async def _settled(with_parts: parts.Parts, row: tasks.Task, *, is_replay: bool) -> Submitted:
    """The task after the POST that is under way, whoever began it; or as it is when the client has waited enough."""
    loop = asyncio.get_running_loop()
    until = loop.time() + ANSWER_WITHIN_S
    while _is_worth_waiting(with_parts, row) and (left_s := until - loop.time()) > 0:
        await with_parts.watch.wait(row.id, timeout_s=min(left_s, LOOK_AGAIN_S))
        known = await with_parts.database.read(functools.partial(tasks.get, task_id=row.id))
        row = row if known is None else known
    return Submitted(row=row, is_replay=is_replay)


def _is_worth_waiting(with_parts: parts.Parts, row: tasks.Task) -> bool:
    return row.state is task.State.RESERVED and not with_parts.watch.is_closed


def _begin(with_parts: parts.Parts, row: tasks.Task) -> None:
    """Start the first POST on a task of its own, which nobody's leaving cancels."""
    key = with_parts.upstream_key(row.upstream_key_ref)
    if key is None or attempt.digest_of(key) != row.upstream_key_digest:
        key = ""  # it vanished within this very request; the upstream will complain and the task waits
    under_way = asyncio.create_task(attempt.post(with_parts, row, key), name=f"post {row.id}")
    with_parts.attempts[row.id] = under_way
    under_way.add_done_callback(lambda _: with_parts.attempts.pop(row.id, None))


async def _decide(
    with_parts: parts.Parts, caller: Caller, request: requests.Request, options: Options
) -> tuple[tasks.Task, bool] | policy.Deny:
    """Decide, and admit what is allowed; returns the task and whether it is new.

    Goes round again when a threshold rewrites the request (once) or another policy set came meanwhile.
    """
    may_rewrite, is_counted = True, False
    for _ in range(MOST_ROUNDS):
        policies = with_parts.in_force.policies
        team = team_of(policies, caller)
        key = _upstream_key(with_parts, team)
        _check_callback(with_parts, team, request)
        now = with_parts.clock()
        making = functools.partial(plan.make, policies=policies, team=team, key=caller.key, request=request, now=now)
        with with_parts.tracing.span("wave.decide", options.traceparent) as deciding:
            planned = await with_parts.database.read(making)
            if deciding.is_recording:
                deciding.set(_told(planned))
        if isinstance(planned, policy.Deny):
            return planned
        if not is_counted:
            is_counted = True
            denial = _take_rate(with_parts, team, now)
            if denial is not None:
                return denial
        draft = _draft(with_parts, planned, request, options, key, now)
        admit = functools.partial(
            _admit,
            with_parts=with_parts,
            planned=planned,
            draft=draft,
            cached=None if draft.fingerprint is None else with_parts.cache.get(draft.fingerprint),
            options=options,
            may_rewrite=may_rewrite,
        )
        failpoints.reach("submit.decided")
        reserving = with_parts.tracing.span("wave.reserve", options.traceparent)
        try:
            return await with_parts.database.write(admit)
        except _Denied as denied:
            reserving.set(_told(denied.deny))
            return denied.deny
        except _Rewritten as rewritten:
            request, may_rewrite = rewritten.request, False
        except _Stale:
            await with_parts.in_force.settled()
        except errors.OurError as error:
            reserving.fail(error.code)
            raise
        finally:
            reserving.end()
    raise errors.OurError("unavailable", "The policies are changing right now; send the request again.")


def _told(decided: plan.Plan | policy.Deny) -> Mapping[str, str]:
    """A decision as a span has it."""
    if isinstance(decided, policy.Deny):
        return {"wave.decision": "deny", "wave.code": decided.code}
    return {"wave.decision": "allow"}


def team_of(policies: policy.PolicySet, caller: Caller) -> policy.Team:
    """The caller's team; raises CallerError `invalid_api_key` where its file went away or says `disabled`."""
    team = policies.teams.get(caller.team)
    if team is None or team.mode is policy.Mode.DISABLED:
        raise errors.CallerError("invalid_api_key", "This team is disabled; ask whoever keeps the policy files.")
    return team


def _upstream_key(with_parts: parts.Parts, team: policy.Team) -> str:
    key = with_parts.upstream_key(team.upstream_key)
    if key is None:
        metrics.UPSTREAM_KEY_OK.labels(team.name).set(0)
        raise errors.OurError(
            "team_not_ready",
            f"The upstream key of team {team.name} cannot be read; whoever runs the gateway must set "
            f"{team.upstream_key}. Nothing was sent.",
            headers={"Retry-After": "5"},
        )
    return key


def _check_callback(with_parts: parts.Parts, team: policy.Team, request: requests.Request) -> None:
    """Refuse a webhook address that can never be delivered to; a name is judged again at delivery."""
    url = request.callback_url
    if url is None:
        return
    target = address.check_url(url, allowed=with_parts.allow_private)
    reason = target.reason if isinstance(target, address.Refused) else None
    host = target.url.host if isinstance(target, address.Target) else ""
    if reason is None and team.webhook_hosts is not None and not policy.matches(host, team.webhook_hosts):
        reason = f"{host} is not among the team's webhooks.allow_hosts"
    if reason is not None:
        raise errors.CallerError(
            "callback_url_not_allowed",
            f"The callback_url cannot be used: {reason}. Give an https URL of a public host.",
            details={"param": "callback_url"},
        )


def _take_rate(with_parts: parts.Parts, team: policy.Team, now: float) -> policy.Deny | None:
    per_minute = team.limits.requests_per_minute
    if per_minute is None:
        return None
    bucket, wait_s = rate.take(with_parts.buckets.get(team.name), now, per_minute=per_minute)
    with_parts.buckets[team.name] = bucket
    if wait_s is None:
        return None
    return policy.Deny(
        code="rate_limited",
        message=f"Team {team.name} sent more than {per_minute} submits a minute; wait {wait_s} s.",
        rule=team.origin("limits.requests_per_minute"),
        headers={"Retry-After": str(wait_s)},
    )


def _draft(
    with_parts: parts.Parts,
    planned: plan.Plan,
    asked: requests.Request,
    options: Options,
    key: str,
    now: float,
) -> tasks.Task:
    """The row of a task that would be paid for; hits and followers change a few columns of it."""
    allow, price = planned.allow, planned.price
    fingerprint = None if options.cache is plan.CacheMode.NO_STORE else planned.fingerprint
    quoted = price if isinstance(price, pricing.Quote) else None
    task_id = with_parts.new_task_id()
    callback_token = None if with_parts.new_callback_token is None else with_parts.new_callback_token()
    return tasks.Task(
        id=task_id,
        team=planned.team.name,
        key_name=planned.key,
        request_id=options.request_id,
        idempotency_key=options.idempotency_key,
        body_digest=asked.body_digest(),
        fingerprint=fingerprint,
        inflight=None if options.cache is plan.CacheMode.REFRESH else fingerprint,
        x_cache="BYPASS" if fingerprint is None else "MISS",
        changes=", ".join(allow.changed),
        model=allow.request.model,
        action=allow.request.action,
        n=allow.request.n,
        request=wire.encode_submit(allow.request),
        tags=json.dumps(dict(options.tags), separators=(",", ":")),
        callback_url=allow.request.callback_url,
        callback_events=json.dumps(allow.request.callback_events),
        state=task.State.RESERVED,
        upstream_key_ref=planned.team.upstream_key,
        upstream_key_digest=attempt.digest_of(key),
        upstream_idempotency_key="wg-" + hashlib.sha256(task_id.encode()).hexdigest()[:40],
        price_version=quoted.version if quoted else "",
        tier=(quoted.tier if quoted else allow.model.tier if allow.model else policy.Tier.STANDARD).value,
        standard_unit_nanos=quoted.standard_unit_nanos if quoted else 0,
        official_unit_nanos=quoted.official_unit_nanos if quoted else None,
        official=quoted.official if quoted else None,
        quote_nanos=quoted.nanos if quoted else 0,
        attempts=1,
        created_at=now,
        first_attempt_at=now,
        deadline_at=now + with_parts.submit_deadline_s,
        traceparent=options.traceparent,
        callback_token=callback_token,
        callback_public_url=None if callback_token is None else with_parts.public_url,
    )


def _admit(
    tx: Tx,
    *,
    with_parts: parts.Parts,
    planned: plan.Plan,
    draft: tasks.Task,
    cached: cache.Result | None,
    options: Options,
    may_rewrite: bool,
) -> tuple[tasks.Task, bool]:
    """The reserving transaction: replay, hit or follow if it can, else reserve and insert."""
    if with_parts.in_force.is_changing or with_parts.in_force.policies is not planned.policies:
        raise _Stale
    caller = Caller(team=draft.team, key=draft.key_name)
    known = replayed(tx, caller, draft.body_digest, options, now=draft.created_at)
    if known is not None:
        return known, False
    free = _free_result(tx, with_parts, planned, draft, cached, options)
    if free is not None:
        tasks.insert(tx, free)
        failpoints.reach("submit.free")
        if free.state is task.State.COMPLETED:
            notice.note(tx, free, now=draft.created_at)
        return free, True
    quoted = planned.price
    if isinstance(quoted, policy.Deny):
        raise _Denied(quoted)
    too_dear = plan.deny_cost(quoted, options.max_cost_nanos, draft.n)
    if too_dear is not None:
        raise _Denied(too_dear)
    if may_rewrite:
        _check_thresholds(tx, planned, draft)
    _check_open_tasks(tx, planned.team)
    full = ledger.reserve(tx, advance.hold_of(draft), planned.allowances)
    if full:
        raise _Denied(_deny_full(tx, planned, draft, full))
    failpoints.reach("submit.reserved")
    row = _held_back_if_down(with_parts, planned.team, draft)
    tasks.insert(tx, row)
    failpoints.reach("submit.inserted")
    return row, True


def _held_back_if_down(with_parts: parts.Parts, team: policy.Team, draft: tasks.Task) -> tasks.Task:
    """The task as it begins: about to be sent, or waiting for an upstream that is down; then it had no attempt yet.

    A team that will not wait is refused. Where a probe is due its submit is that probe: were only such teams to ask,
    nobody else would find out that the upstream is there again.
    """
    now = draft.created_at
    if team.upstream_down is policy.UpstreamDown.REFUSE:
        if with_parts.circuit.take(now=now):
            return draft
        raise errors.UpstreamError(
            "upstream_unavailable",
            f"The upstream is down and team {team.name} wants no submits kept for it; nothing was spent, "
            "send it again later.",
            headers={"Retry-After": "5"},
        )
    if not with_parts.circuit.is_open:
        return draft
    return dataclasses.replace(draft, state=task.State.WAITING, attempts=0, first_attempt_at=None, next_at=now)


def _free_result(
    tx: Tx,
    with_parts: parts.Parts,
    planned: plan.Plan,
    draft: tasks.Task,
    cached: cache.Result | None,
    options: Options,
) -> tasks.Task | None:
    """A hit or a follower, as far as the client wants one."""
    if options.cache is plan.CacheMode.REFRESH:
        return None
    free = _hit(tx, with_parts, planned, draft, cached) or _follow(tx, draft)
    if free is None and options.cache is plan.CacheMode.ONLY_IF_CACHED:
        raise _Denied(plan.deny_uncached())
    return free


def _hit(
    tx: Tx, with_parts: parts.Parts, planned: plan.Plan, draft: tasks.Task, cached: cache.Result | None
) -> tasks.Task | None:
    """A task that is completed at once with a kept result, at cost 0."""
    if draft.fingerprint is None:
        return None
    since = draft.created_at - planned.team.cache.ttl_s
    source = _cached(tx, cached, since) or tasks.get_result(tx, draft.fingerprint, since=since)
    if source is None or not mirror.is_kept(with_parts.blobs, tasks.media_of(tx, source.id), source.n):
        return None
    ledger.avoid(tx, team=draft.team, model=draft.model, tier=draft.tier, cache_nanos=source.cost_nanos or 0)
    failpoints.reach("submit.hit")
    return _free(draft, source, "HIT", state=task.State.COMPLETED, ended_at=draft.created_at)


def _cached(tx: Tx, found: cache.Result | None, since: float) -> tasks.Task | None:
    if found is None or found.completed_at <= since:
        return None
    source = tasks.get(tx, found.task_id)
    if source is None or source.state is not task.State.COMPLETED or source.fingerprint is None:
        return None  # without a fingerprint: purged, and the cache learnt of it too late
    return source


def _follow(tx: Tx, draft: tasks.Task) -> tasks.Task | None:
    """A task that follows the one in flight, at cost 0."""
    leader = None if draft.inflight is None else tasks.get_leader(tx, draft.inflight)
    if leader is None:
        return None
    if tasks.count_followers(tx, draft.team) >= MOST_FOLLOWERS:
        raise _Denied(plan.deny_followers(draft.team, MOST_FOLLOWERS))
    failpoints.reach("submit.follow")
    return _free(draft, leader, "COALESCED", state=task.State.FOLLOWING, ended_at=None)


def _free(
    draft: tasks.Task, paid: tasks.Task, x_cache: str, *, state: task.State, ended_at: float | None
) -> tasks.Task:
    return dataclasses.replace(
        draft,
        inflight=None,
        leader_id=paid.id,
        x_cache=x_cache,
        state=state,
        quote_nanos=0,
        cost_nanos=0,
        attempts=0,
        first_attempt_at=None,
        ended_at=ended_at,
        callback_token=None,
        callback_public_url=None,
    )


def _check_thresholds(tx: Tx, planned: plan.Plan, draft: tasks.Task) -> None:
    reached = plan.reached_threshold(tx, planned, now=draft.created_at)
    if reached is not None:
        raise _Rewritten(plan.rewritten(planned, reached))


def _check_open_tasks(tx: Tx, team: policy.Team) -> None:
    if tasks.count_holding(tx, team.name) >= team.limits.open_tasks:
        raise _Denied(plan.deny_open_tasks(team))


def _deny_full(tx: Tx, planned: plan.Plan, draft: tasks.Task, full: tuple[budget.Allowance, ...]) -> policy.Deny:
    """The answer of the cap that resets last; what this reserve added in the transaction is left out."""
    last = budget.last_to_reset(full)
    added = ledger.held_by(tx, draft.id, last.balance)
    balance = ledger.balance_of(tx, last.balance)
    return budget.deny(
        last,
        budget.Balance(settled_nanos=balance.settled_nanos, reserved_nanos=balance.reserved_nanos - added),
        team=planned.team,
        organisation=planned.policies.organisation,
        now=draft.created_at,
        open_tasks=tasks.count_holding(tx, draft.team),
    )
