"""A team's account: what it may spend, has spent and has left, from the tightest of its caps.

The organisation's caps are not the team's to see, so they never count here, although they may stop a submit earlier.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from typing import Final

from gateway.rules import budget, money
from gateway.rules.money import Nanos

NO_LIMIT_NANOS: Final = Nanos(100_000_000 * money.NANOS_PER_USD)
"""The limit that is shown where no cap is. Rejected: a limit equal to the spend, which reads as an empty account.

Source: gateways with these billing pages answer 100000000 for a key without a quota, and clients take that as none.
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One cap as an account, or the whole spend where there is none."""

    limit_nanos: int
    """The cap with the raises in force."""
    warn_nanos: int
    """`warn_at` of the cap, else the limit."""
    settled_nanos: int
    reserved_nanos: int

    def used_nanos(self) -> int:
        """All that counts against the limit."""
        return self.settled_nanos + self.reserved_nanos

    def left_nanos(self) -> int:
        """What may still be reserved; nothing where a cap was lowered below what is used."""
        return max(0, self.limit_nanos - self.used_nanos())


def tightest(readings: Iterable[tuple[budget.Allowance, budget.Balance]], models: Collection[str]) -> Account | None:
    """The cap of the team or key with the least left; of equal ones the one that resets last. None without a cap.

    `models`: those that the team may have called. A cap on some of them is left out: when it is full, the others go on.
    """
    binding = [(each, balance) for each, balance in readings if _binds(each, models)]
    if not binding:
        return None
    return _account(*min(binding, key=_tightness))


def uncapped(spent_nanos: int) -> Account:
    """The account of a team without a cap: all that it ever spent, against a limit that nobody reaches."""
    return Account(limit_nanos=NO_LIMIT_NANOS, warn_nanos=NO_LIMIT_NANOS, settled_nanos=spent_nanos, reserved_nanos=0)


def _binds(each: budget.Allowance, models: Collection[str]) -> bool:
    if each.balance.scope is budget.Scope.ORG or each.limit_nanos is None:
        return False
    return all(budget.counts(each.balance.filter, [model]) for model in models)


def _tightness(reading: tuple[budget.Allowance, budget.Balance]) -> tuple[int, bool, int]:
    each, balance = reading
    return (each.limit_nanos or 0) - balance.used_nanos(), each.resets_at is not None, -(each.resets_at or 0)


def _account(each: budget.Allowance, balance: budget.Balance) -> Account:
    limit_nanos = each.limit_nanos or 0
    warn_at = each.cap.warn_at if each.cap is not None else None
    return Account(
        limit_nanos=limit_nanos,
        warn_nanos=limit_nanos if warn_at is None else limit_nanos * warn_at.numerator // warn_at.denominator,
        settled_nanos=balance.settled_nanos,
        reserved_nanos=balance.reserved_nanos,
    )
