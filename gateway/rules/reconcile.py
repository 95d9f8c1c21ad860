"""The ledger against the vendor's wallet and tasks: what is explained, by what, and what is left.

Values in, findings out. The wallet is one number per account; what a task may have done to it is an interval, because
the vendor may take anything up to the quote before a task ends. A difference is explained where it lies inside the sum
of the intervals; what is outside has no explanation, to the nano. Amounts are what the wallet may show beyond the
ledger: positive where the vendor counts more than we do.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Sequence
from typing import Final, assert_never

from gateway.rules import money, pricing, task


class Reason(enum.StrEnum):
    """Why wallet and ledger may differ, or what is wrong with a task."""

    OPENING = "opening"
    """Use that the operator names: before the gateway began, or known to be outside of it."""
    OPEN = "open"
    WAITING = "waiting"
    IN_DOUBT = "in_doubt"
    MEANWHILE = "submitted_meanwhile"
    """Reserved after the ledger was read and before the wallet was."""
    UNPOLLED = "ended_at_the_vendor"
    """Has ended at the vendor, which was not polled for it here yet."""
    ESTIMATED = "no_vendor_cost"
    """Settled at the frozen price, because the vendor named no cost."""
    RESOLVED = "resolved_by_operator"
    COST = "cost_differs"
    REOPENED = "open_at_the_vendor"
    """Has ended here and is open there: the vendor went back on its word."""
    UNKNOWN = "unknown_to_the_vendor"
    UNASKED = "no_answer"


FAULTS: Final = frozenset({Reason.COST, Reason.REOPENED, Reason.UNKNOWN, Reason.UNASKED})
"""What says no, even where the amounts agree."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """A task as our books have it."""

    id: str
    team: str
    upstream_task_id: str | None
    state: task.State
    n: int
    quote: pricing.Quote
    cost_nanos: int
    """What the ledger settled; 0 while it is open and after a release."""
    images: int = 0
    is_estimated: bool = False
    """Settled at the frozen price: the vendor had named no cost."""
    is_by_operator: bool = False
    """An operator ended its hold."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unheard:
    """The vendor was asked about a task and brought no word of it; `404` is an answer that it does not know it."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wallet:
    """The vendor's balance page; what an account has used since it began."""

    used_nanos: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one task may have done to the wallet beyond the ledger, from `least_nanos` to `most_nanos`."""

    reason: Reason
    booked: Booked
    status_there: str | None
    """The vendor's own word; None where it was not heard."""
    cost_there_nanos: int | None
    """The vendor's cost, where it names one."""
    least_nanos: int
    most_nanos: int
    detail: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One explanation of a difference: so many tasks, from so much to so much."""

    reason: Reason
    tasks: int
    least_nanos: int
    most_nanos: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """What the ledger has under one upstream key, beside what the vendor says under that key."""

    refs: tuple[str, ...]
    """How the policies call the key: `env:NAME` or `file:PATH`."""
    used_nanos: int | None
    """None: not known, for the reason in `trouble`."""
    trouble: str = ""
    settled_nanos: int
    settles: int = 0
    earlier_nanos: int = 0
    """The share of `settled_nanos` that was sent with an earlier key of the same reference."""
    parts: tuple[Part, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One wallet beside the ledger of every key that is looked at as a key of it."""

    refs: tuple[str, ...]
    used_nanos: int | None
    trouble: str
    settled_nanos: int
    settles: int
    earlier_nanos: int
    parts: tuple[Part, ...]

    def difference_nanos(self) -> int | None:
        """What the wallet has beyond the ledger; None where the wallet is not known."""
        return None if self.used_nanos is None else self.used_nanos - self.settled_nanos

    def unexplained_nanos(self) -> int | None:
        """What is left of the difference when every explanation has taken what it can; None where not known."""
        difference = self.difference_nanos()
        if difference is None:
            return None
        least, most = sum(each.least_nanos for each in self.parts), sum(each.most_nanos for each in self.parts)
        return difference - min(max(difference, least), most)

    def is_explained(self) -> bool:
        """Whether the wallet is known and nothing is left."""
        return self.unexplained_nanos() == 0


def compare(booked: Booked, heard: task.Outcome | Unheard | None) -> Finding | None:
    """What our books and the vendor's word about a task make of each other; None where they agree to the nano.

    `heard` is None where the vendor was not asked: there is no id to ask for, or the task is too old.
    """
    match heard:
        case None:
            return _by_the_books(booked)
        case Unheard():
            return _unheard(booked, heard)
        case task.Outcome(event=None):
            return _open_there(booked, heard)
        case task.Outcome():
            return _ended_there(booked, heard)
        case _:
            assert_never(heard)


def add_up(findings: Iterable[Finding]) -> tuple[Part, ...]:
    """The findings as explanations, one for each reason."""
    sums: dict[Reason, Part] = {}
    for each in findings:
        one = Part(reason=each.reason, tasks=1, least_nanos=each.least_nanos, most_nanos=each.most_nanos)
        sums[each.reason] = add(sums[each.reason], one) if each.reason in sums else one
    return tuple(sums.values())


def add(one: Part, other: Part) -> Part:
    """Both under the first one's reason."""
    return dataclasses.replace(
        one,
        tasks=one.tasks + other.tasks,
        least_nanos=one.least_nanos + other.least_nanos,
        most_nanos=one.most_nanos + other.most_nanos,
    )


def judge(books: Sequence[Book]) -> list[Account]:
    """The accounts behind the keys.

    A wallet belongs to an account, so keys that report the same are looked at as keys of one account. Two accounts may
    report the same by chance: where one account leaves something unexplained and each key alone does not, each is one.
    """
    accounts = []
    for used in dict.fromkeys(each.used_nanos for each in books):
        alike = [each for each in books if each.used_nanos == used]
        alone = [_account([each]) for each in alike]
        together = _account(alike)
        is_one = used is not None and (together.is_explained() or not all(each.is_explained() for each in alone))
        accounts += [together] if is_one else alone
    return accounts


def estimate(quote: pricing.Quote, images: int) -> tuple[int, int]:
    """The least and the most that the vendor bills for images whose cost it does not name: whole quotas each."""
    least = money.quota_below(quote.standard_unit_nanos) * money.NANOS_PER_QUOTA
    return images * least, images * money.ceil_to_quota(quote.dearest_unit_nanos())


def _account(books: Sequence[Book]) -> Account:
    parts: dict[Reason, Part] = {}
    for part in (part for book in books for part in book.parts):
        parts[part.reason] = add(parts[part.reason], part) if part.reason in parts else part
    order = list(Reason)
    return Account(
        refs=tuple(ref for book in books for ref in book.refs),
        used_nanos=books[0].used_nanos,
        trouble=books[0].trouble,
        settled_nanos=sum(book.settled_nanos for book in books),
        settles=sum(book.settles for book in books),
        earlier_nanos=sum(book.earlier_nanos for book in books),
        parts=tuple(sorted(parts.values(), key=lambda part: order.index(part.reason))),
    )


def _by_the_books(booked: Booked) -> Finding | None:
    """What is possible where nobody asked the vendor."""
    here, quote = booked.cost_nanos, booked.quote.nanos
    if booked.is_by_operator:
        return _finding(Reason.RESOLVED, booked, -here, max(quote, here) - here)
    if booked.state in task.HOLDING:
        reasons = {task.State.WAITING: Reason.WAITING, task.State.SUBMITTED: Reason.OPEN}
        return _finding(reasons.get(booked.state, Reason.IN_DOUBT), booked, 0, quote)
    if booked.is_estimated:
        least, most = estimate(booked.quote, booked.images)
        return _finding(Reason.ESTIMATED, booked, least - here, most - here)
    return None


def _unheard(booked: Booked, heard: Unheard) -> Finding | None:
    known = _by_the_books(booked)
    if booked.is_by_operator:
        return known
    least, most = (known.least_nanos, known.most_nanos) if known is not None else (0, 0)
    if heard.reason == "404":
        return _finding(Reason.UNKNOWN, booked, min(least, -booked.cost_nanos), most, detail=heard.reason)
    return _finding(Reason.UNASKED, booked, least, most, detail=heard.reason)


def _open_there(booked: Booked, heard: task.Outcome) -> Finding:
    here = booked.cost_nanos
    taken = money.quota_to_nanos(heard.pre_consumed_quota or 0)
    most = max(booked.quote.nanos, taken, here) - here
    if booked.is_by_operator:
        reason = Reason.RESOLVED
    else:
        reason = Reason.OPEN if booked.state in task.HOLDING else Reason.REOPENED
    return _finding(reason, booked, -here, most, heard)


def _ended_there(booked: Booked, heard: task.Outcome) -> Finding | None:
    least, most = _bill(booked, heard)
    here = booked.cost_nanos
    if booked.is_by_operator:
        reason = Reason.RESOLVED
    elif booked.state in task.HOLDING:
        reason = Reason.UNPOLLED
    elif least <= here <= most:
        # The vendor names no cost any more: what it named when we settled stays true.
        if least == most or not booked.is_estimated:
            return None
        reason = Reason.ESTIMATED
    else:
        lowest, highest = estimate(booked.quote, booked.images)
        is_rounding = booked.is_estimated and lowest <= least and most <= highest
        reason = Reason.ESTIMATED if is_rounding else Reason.COST
    return _finding(reason, booked, least - here, most - here, heard)


def _bill(booked: Booked, heard: task.Outcome) -> tuple[int, int]:
    """What the vendor billed for an ended task, as exactly as it says (M9)."""
    if heard.cost_quota is not None:
        cost = money.quota_to_nanos(heard.cost_quota)
        return cost, cost
    if heard.event is not task.Event.DELIVERED:
        return 0, 0
    if heard.pre_consumed_quota is not None and heard.images == booked.n:
        taken = money.quota_to_nanos(heard.pre_consumed_quota)
        return taken, taken
    return estimate(booked.quote, heard.images)


def _finding(
    reason: Reason, booked: Booked, least: int, most: int, heard: task.Outcome | None = None, *, detail: str = ""
) -> Finding:
    cost = None if heard is None or heard.cost_quota is None else money.quota_to_nanos(heard.cost_quota)
    return Finding(
        reason=reason,
        booked=booked,
        status_there=None if heard is None else heard.status,
        cost_there_nanos=cost,
        least_nanos=least,
        most_nanos=most,
        detail=detail,
    )
