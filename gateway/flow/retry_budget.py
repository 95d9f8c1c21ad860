"""The retry budget of this process: counts live submits and retries, and says which retry may leave.

Used on the event loop only. In memory: after a start the budget is full, and what the recovery repeats is outside it.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.rules import retry_budget


class RetryBudget:
    """Who may be sent again; see `rules/retry_budget`."""

    def __init__(self) -> None:
        """Begin with a full budget."""
        self._budget = retry_budget.Budget()
        self._submits: dict[int, int] = {}
        self._retries: dict[int, int] = {}
        self._outside: set[str] = set()

    def submitted(self, *, now: float) -> None:
        """A client's submit was admitted that has to be paid for."""
        _count(self._submits, now)

    def leave_out(self, task_ids: Iterable[str]) -> None:
        """The next retry of these tasks is recovery after a restart, and outside the budget."""
        self._outside.update(task_ids)

    def select(self, task_ids: Iterable[str], *, now: float) -> list[str]:
        """Those of the tasks, in their order, whose retry may leave now; `take` decides."""
        left = self._allowed(now)
        selected = []
        for task_id in task_ids:
            if task_id not in self._outside:
                if left < 1:
                    continue
                left -= 1
            selected.append(task_id)
        return selected

    def take(self, task_id: str, *, now: float) -> bool:
        """Take the right to send one retry now."""
        if task_id in self._outside:
            self._outside.discard(task_id)
            return True
        if self._allowed(now) < 1:
            return False
        self._budget = retry_budget.taken(self._budget)
        _count(self._retries, now)
        return True

    def _allowed(self, now: float) -> int:
        self._submits = retry_budget.recent(self._submits, now=now)
        self._retries = retry_budget.recent(self._retries, now=now)
        submits = sum(self._submits.values())
        self._budget = retry_budget.refilled(self._budget, now=now, submits=submits)
        return retry_budget.allows(self._budget, submits=submits, retries=sum(self._retries.values()))


def _count(counts: dict[int, int], now: float) -> None:
    counts[int(now)] = counts.get(int(now), 0) + 1
