"""What would become of a request: the decision in words and numbers, without any side effect."""

from __future__ import annotations

import dataclasses

from gateway import wire
from gateway.flow import mirror, parts, plan, references, submit
from gateway.rules import budget, money, policy, pricing
from gateway.rules import request as requests
from gateway.rules.money import Nanos
from gateway.store import blobs_disk, ledger, tasks
from gateway.store.database import Tx


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CapLine:
    """One cap that a request touches; amounts are decimal strings, None where they are not the team's to see."""

    scope: str
    name: str
    cap_name: str
    window: str
    cap_usd: str | None
    used_usd: str | None
    reserved_usd: str | None
    left_usd: str | None
    reset_at: int | None
    rule: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A decision, its rule, what it would cost and the caps it touches."""

    decision: str
    code: str | None
    message: str | None
    rule: str
    quote_usd: str
    fingerprint: str | None
    cache: str
    """hit, coalesced, miss or bypass."""
    changed: tuple[str, ...]
    caps: tuple[CapLine, ...]


async def dry_run(with_parts: parts.Parts, caller: submit.Caller, body: bytes, options: submit.Options) -> Explanation:
    """Explain what this submit would meet; stores, sends and counts nothing. Raises CallerError as a submit does."""
    request = await references.resolved(with_parts, wire.parse_submit(body))
    policies, now = with_parts.in_force.policies, with_parts.clock()
    team = submit.team_of(policies, caller)

    def read(tx: Tx) -> Explanation:
        known = submit.replayed(tx, caller, request.body_digest(), options, now=now)
        if known is not None:
            return _replayed(known, "x-stainless-retry-count" if options.idempotency_key is None else "Idempotency-Key")
        return explain(
            tx,
            policies,
            team,
            caller.key,
            request,
            now=now,
            max_cost_nanos=options.max_cost_nanos,
            wish=options.cache,
            blobs=with_parts.blobs,
        )

    return await with_parts.database.read(read)


def explain(
    tx: Tx,
    policies: policy.PolicySet,
    team: policy.Team,
    key: str,
    request: requests.Request,
    *,
    now: float,
    max_cost_nanos: Nanos | None = None,
    wish: plan.CacheMode = plan.CacheMode.DEFAULT,
    blobs: blobs_disk.DiskBlobs | None = None,
) -> Explanation:
    """Explain what a submit would meet at this instant; with `blobs` a hit is one only if its files are there."""
    planned = plan.make(tx, policies, team, key, request, now=now)
    if isinstance(planned, policy.Deny):
        return _denied(planned, quote_nanos=0, fingerprint=None, cache="bypass", changed=(), caps=())
    if wish is plan.CacheMode.NO_STORE:
        planned = dataclasses.replace(planned, fingerprint=None)
    free = "miss" if wish is plan.CacheMode.REFRESH and planned.fingerprint else _cache(tx, planned, now, blobs)
    if free in ("hit", "coalesced"):
        return _allowed(tx, planned, quote_nanos=0, cache=free)
    if wish is plan.CacheMode.ONLY_IF_CACHED:
        said = plan.deny_uncached()
        changed = planned.allow.changed
        return _denied(said, quote_nanos=0, fingerprint=planned.fingerprint, cache=free, changed=changed, caps=())
    reached = plan.reached_threshold(tx, planned, now=now)
    if reached is not None:
        again = plan.rewritten(planned, reached)
        without = dataclasses.replace(team, thresholds=())
        found = explain(
            tx, policies, without, key, again, now=now, max_cost_nanos=max_cost_nanos, wish=wish, blobs=blobs
        )
        return dataclasses.replace(found, rule=reached.origin if found.decision == "allow" else found.rule)
    return _priced(tx, planned, now, free, max_cost_nanos)


def _replayed(row: tasks.Task, rule: str) -> Explanation:
    """A task that is there already costs nothing more and touches no cap, whatever the policies say by now."""
    return Explanation(
        decision="allow",
        code=None,
        message=None,
        rule=rule,
        quote_usd="0",
        fingerprint=row.fingerprint,
        cache=row.x_cache.lower(),
        changed=tuple(row.changes.split(", ")) if row.changes else (),
        caps=(),
    )


def _priced(tx: Tx, planned: plan.Plan, now: float, free: str, max_cost_nanos: Nanos | None) -> Explanation:
    quoted = planned.price
    lines = _lines(tx, planned)
    changed = planned.allow.changed
    if isinstance(quoted, policy.Deny):
        return _denied(quoted, quote_nanos=0, fingerprint=planned.fingerprint, cache=free, changed=changed, caps=lines)
    denial = plan.deny_cost(quoted, max_cost_nanos, planned.allow.request.n) or _deny_room(tx, planned, quoted, now)
    if denial is not None:
        return _denied(
            denial,
            quote_nanos=quoted.nanos,
            fingerprint=planned.fingerprint,
            cache=free,
            changed=changed,
            caps=lines,
        )
    return _allowed(tx, planned, quote_nanos=quoted.nanos, cache=free)


def _cache(tx: Tx, planned: plan.Plan, now: float, blobs: blobs_disk.DiskBlobs | None) -> str:
    if planned.fingerprint is None:
        return "bypass"
    source = tasks.get_result(tx, planned.fingerprint, since=now - planned.team.cache.ttl_s)
    if source is not None and (blobs is None or mirror.is_kept(blobs, tasks.media_of(tx, source.id), source.n)):
        return "hit"
    return "miss" if tasks.get_leader(tx, planned.fingerprint) is None else "coalesced"


def _deny_room(tx: Tx, planned: plan.Plan, quoted: pricing.Quote, now: float) -> policy.Deny | None:
    team = planned.team
    holding = tasks.count_holding(tx, team.name)
    if holding >= team.limits.open_tasks:
        return plan.deny_open_tasks(team)
    full = [
        each
        for each in planned.allowances
        if each.limit_nanos is not None
        and ledger.balance_of(tx, each.balance).used_nanos() + quoted.nanos > each.limit_nanos
    ]
    if not full:
        return None
    last = budget.last_to_reset(full)
    return budget.deny(
        last,
        ledger.balance_of(tx, last.balance),
        team=team,
        organisation=planned.policies.organisation,
        now=now,
        open_tasks=holding,
    )


def _lines(tx: Tx, planned: plan.Plan) -> tuple[CapLine, ...]:
    return tuple(
        _line(each, ledger.balance_of(tx, each.balance), each.cap, each.limit_nanos)
        for each in planned.allowances
        if each.cap is not None and each.limit_nanos is not None
    )


def _line(each: budget.Allowance, balance: budget.Balance, cap: policy.Cap, limit_nanos: Nanos) -> CapLine:
    is_shown = each.balance.scope is not budget.Scope.ORG

    def usd(nanos: int) -> str | None:
        return money.render_usd(nanos) if is_shown else None

    return CapLine(
        scope=each.balance.scope.value,
        name=each.balance.name,
        cap_name=cap.name,
        window=each.balance.window.value,
        cap_usd=usd(limit_nanos),
        used_usd=usd(balance.settled_nanos),
        reserved_usd=usd(balance.reserved_nanos),
        left_usd=usd(limit_nanos - balance.used_nanos()),
        reset_at=each.resets_at,
        rule=cap.origin,
    )


def _allowed(tx: Tx, planned: plan.Plan, *, quote_nanos: int, cache: str) -> Explanation:
    return Explanation(
        decision="allow",
        code=None,
        message=None,
        rule=planned.allow.rule,
        quote_usd=money.render_usd(quote_nanos),
        fingerprint=planned.fingerprint,
        cache=cache,
        changed=planned.allow.changed,
        caps=_lines(tx, planned),
    )


def _denied(
    deny: policy.Deny,
    *,
    quote_nanos: int,
    fingerprint: str | None,
    cache: str,
    changed: tuple[str, ...],
    caps: tuple[CapLine, ...],
) -> Explanation:
    return Explanation(
        decision="deny",
        code=deny.code,
        message=deny.message,
        rule=deny.rule,
        quote_usd=money.render_usd(quote_nanos),
        fingerprint=fingerprint,
        cache=cache,
        changed=changed,
        caps=caps,
    )
