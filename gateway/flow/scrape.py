"""What a scrape reads: money and counts from the database, in one snapshot; and how many scrapes are made at once."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

from gateway import metrics
from gateway.rules import budget, policy, pricing, task
from gateway.store import ledger, media, outbox, tasks
from gateway.store.database import Tx

OVERDUE_AFTER_S = 3600.0
"""An open task older than this is counted as overdue."""

Form = tuple[bool, bool]
"""Whether OpenMetrics, whether gzip."""
Exposition = tuple[bytes, str]
"""The text and its content type."""


class Turns:
    """One scrape at a time: who asks meanwhile shares the next one, which begins when the present one has ended.

    However many ask, one is made and one of each form waits at most, and no answer is older than its question.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._next: dict[Form, asyncio.Task[Exposition]] = {}

    async def take(self, form: Form, make: Callable[[Form], Awaitable[Exposition]]) -> Exposition:
        """Make an exposition, or share one of the same form that has not begun yet."""
        waiting = self._next.get(form)
        if waiting is None:
            waiting = self._next[form] = asyncio.create_task(self._make(form, make))
        # A scraper that gives up ends its own wait only.
        return await asyncio.shield(waiting)

    async def _make(self, form: Form, make: Callable[[Form], Awaitable[Exposition]]) -> Exposition:
        async with self._turn:
            del self._next[form]
            return await make(form)


def snapshot(
    tx: Tx, policies: policy.PolicySet, *, now: float, audit: metrics.AuditReading | None = None
) -> metrics.Snapshot:
    """Read every sum and count that is kept; never a scan over ended tasks."""
    open_tasks = tasks.count_open(tx)
    blobs, blob_bytes = media.usage(tx)
    readings = [
        _reading(each, cap, ledger.balance_of(tx, each.balance))
        for each in budget.all_allowances(policies, now=now)
        if (cap := each.cap) is not None
    ]
    return metrics.Snapshot(
        spend=_within(policies, ledger.totals(tx)),
        caps=tuple(readings),
        open_tasks=open_tasks,
        in_doubt=sum(count for (_, state), count in open_tasks.items() if state == task.State.IN_DOUBT),
        overdue=tasks.count_overdue(tx, before=now - OVERDUE_AFTER_S),
        at_risk_urls=tasks.count_unmirrored(tx),
        blobs=blobs,
        blob_bytes=blob_bytes,
        webhooks_pending=outbox.count_pending(tx),
        audit=audit,
    )


def _within(policies: policy.PolicySet, totals: list[pricing.Total]) -> tuple[pricing.Total, ...]:
    """The totals with every model outside the catalogue as one `other`."""
    sums: dict[tuple[str, str, str], pricing.Total] = {}
    for each in totals:
        named = each if each.model in policies.models else dataclasses.replace(each, model=metrics.OTHER)
        key = (named.team, named.model, named.tier)
        sums[key] = named if key not in sums else pricing.add(sums[key], named)
    return tuple(sums.values())


def _reading(each: budget.Allowance, cap: policy.Cap, balance: budget.Balance) -> metrics.CapReading:
    limit_nanos = each.limit_nanos or 0
    warn_nanos = None if cap.warn_at is None else limit_nanos * cap.warn_at.numerator // cap.warn_at.denominator
    return metrics.CapReading(
        scope=each.balance.scope.value,
        name=each.balance.name,
        window=each.balance.window.value,
        cap=cap.name,
        limit_nanos=limit_nanos,
        warn_nanos=warn_nanos,
        settled_nanos=balance.settled_nanos,
        reserved_nanos=balance.reserved_nanos,
        resets_at=each.resets_at,
    )
