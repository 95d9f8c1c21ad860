"""What explains a difference between the ledger and the vendor, as tables and as properties."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules import policy, pricing, task
from gateway.rules.money import Nanos
from gateway.rules.reconcile import Book, Booked, Part, Reason, Unheard, add_up, compare, judge
from gateway.rules.task import Event, State

FLASH = pricing.Quote(
    nanos=Nanos(26_564_000),
    standard_unit_nanos=Nanos(13_281_250),
    official_unit_nanos=None,
    model="flash",
    tier=policy.Tier.STANDARD,
    official=None,
    version="2026-01-01",
)
"""Two images at 6,640.625 quota each."""


def booked(state: State = State.COMPLETED, cost: int = 26_560_000, **changed: Any) -> Booked:
    known: dict[str, Any] = {
        "id": "task-wg1",
        "team": "growth",
        "upstream_task_id": "task-wave1",
        "state": state,
        "n": 2,
        "quote": FLASH,
        "cost_nanos": cost,
        "images": 2 if cost else 0,
    }
    return Booked(**known | changed)


def said(event: Event | None, status: str = "", **changed: Any) -> task.Outcome:
    return task.Outcome(event=event, status=status, **changed)


DONE = said(Event.DELIVERED, "completed", cost_quota=13_280, images=2)
FROZEN = 26_562_500
"""Two images at the frozen price: what is settled where the vendor names no cost."""

CASES: list[tuple[str, Booked, task.Outcome | Unheard | None, tuple[Reason, int, int] | None]] = [
    ("settled, not asked", booked(), None, None),
    ("settled as billed", booked(), DONE, None),
    ("released as failed", booked(State.FAILED, 0), said(Event.FAILED, "failed"), None),
    ("released as failed, at 0", booked(State.FAILED, 0), said(Event.FAILED, "failed", cost_quota=0), None),
    ("failed here, cancelled there", booked(State.FAILED, 0), said(Event.CANCELLED, "cancelled", cost_quota=0), None),
    ("no cost named any more", booked(), said(Event.DELIVERED, "completed", images=2), None),
    ("open", booked(State.SUBMITTED, 0), said(None, "processing"), (Reason.OPEN, 0, 26_564_000)),
    (
        "open, more taken",
        booked(State.SUBMITTED, 0),
        said(None, pre_consumed_quota=20_000),
        (Reason.OPEN, 0, 40_000_000),
    ),
    ("open, not asked", booked(State.SUBMITTED, 0), None, (Reason.OPEN, 0, 26_564_000)),
    ("in doubt", booked(State.IN_DOUBT, 0), None, (Reason.IN_DOUBT, 0, 26_564_000)),
    ("a POST under way", booked(State.RESERVED, 0), None, (Reason.IN_DOUBT, 0, 26_564_000)),
    ("waiting", booked(State.WAITING, 0), None, (Reason.WAITING, 0, 26_564_000)),
    ("ended there", booked(State.SUBMITTED, 0), DONE, (Reason.UNPOLLED, 26_560_000, 26_560_000)),
    (
        "failed there",
        booked(State.SUBMITTED, 0),
        said(Event.FAILED, "failed", cost_quota=0),
        (Reason.UNPOLLED, 0, 0),
    ),
    (
        "ended there without a cost",
        booked(State.SUBMITTED, 0),
        said(Event.DELIVERED, "success", images=2),
        (Reason.UNPOLLED, 26_560_000, 26_564_000),
    ),
    (
        "ended there, taken beforehand",
        booked(State.SUBMITTED, 0),
        said(Event.DELIVERED, "success", images=2, pre_consumed_quota=13_281),
        (Reason.UNPOLLED, 26_562_000, 26_562_000),
    ),
    ("estimated", booked(cost=FROZEN, is_estimated=True), None, (Reason.ESTIMATED, -2_500, 1_500)),
    ("estimated, known now", booked(cost=FROZEN, is_estimated=True), DONE, (Reason.ESTIMATED, -2_500, -2_500)),
    (
        "estimated, and far from it",
        booked(cost=FROZEN, is_estimated=True),
        said(Event.DELIVERED, "completed", cost_quota=13_279, images=2),
        (Reason.COST, -4_500, -4_500),
    ),
    (
        "billed more",
        booked(),
        said(Event.DELIVERED, "completed", cost_quota=13_281, images=2),
        (Reason.COST, 2_000, 2_000),
    ),
    ("billed though it failed here", booked(State.FAILED, 0), DONE, (Reason.COST, 26_560_000, 26_560_000)),
    ("failed there, settled here", booked(), said(Event.FAILED, "failed"), (Reason.COST, -26_560_000, -26_560_000)),
    ("open there, settled here", booked(), said(None, "processing"), (Reason.REOPENED, -26_560_000, 4_000)),
    ("open there, failed here", booked(State.FAILED, 0), said(None, "queued"), (Reason.REOPENED, 0, 26_564_000)),
    (
        "ended by an operator, open there",
        booked(State.FAILED, 13_280_000, is_by_operator=True, images=0),
        said(None, "processing"),
        (Reason.RESOLVED, -13_280_000, 13_284_000),
    ),
    (
        "settled at the frozen price, and still no cost named",
        booked(cost=FROZEN, is_estimated=True),
        said(Event.DELIVERED, "success", images=2),
        (Reason.ESTIMATED, -2_500, 1_500),
    ),
    ("unknown there, settled", booked(), Unheard(reason="404"), (Reason.UNKNOWN, -26_560_000, 0)),
    ("unknown there, open", booked(State.SUBMITTED, 0), Unheard(reason="404"), (Reason.UNKNOWN, 0, 26_564_000)),
    ("no answer, settled", booked(), Unheard(reason="timeout"), (Reason.UNASKED, 0, 0)),
    ("no answer, open", booked(State.SUBMITTED, 0), Unheard(reason="503"), (Reason.UNASKED, 0, 26_564_000)),
    ("an operator released it", booked(State.FAILED, 0, is_by_operator=True), None, (Reason.RESOLVED, 0, 26_564_000)),
    (
        "an operator charged it",
        booked(State.FAILED, 26_560_000, is_by_operator=True),
        None,
        (Reason.RESOLVED, -26_560_000, 4_000),
    ),
    (
        "an operator charged it otherwise than the vendor",
        booked(State.FAILED, 26_000_000, is_by_operator=True),
        DONE,
        (Reason.RESOLVED, 560_000, 560_000),
    ),
    (
        "an operator released it and the vendor forgot it",
        booked(State.FAILED, 0, is_by_operator=True),
        Unheard(reason="404"),
        (Reason.RESOLVED, 0, 26_564_000),
    ),
]


@pytest.mark.parametrize(("here", "heard", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_task_explains_exactly_what_the_vendor_may_have_made_of_it(here, heard, expected):
    found = compare(here, heard)
    assert (found and (found.reason, found.least_nanos, found.most_nanos)) == expected


def test_findings_add_up_by_reason():
    found = [compare(booked(State.SUBMITTED, 0), None), compare(booked(State.SUBMITTED, 0), DONE)]
    again = [*found, compare(booked(State.SUBMITTED, 0), None)]
    assert add_up(each for each in again if each is not None) == (
        Part(reason=Reason.OPEN, tasks=2, least_nanos=0, most_nanos=53_128_000),
        Part(reason=Reason.UNPOLLED, tasks=1, least_nanos=26_560_000, most_nanos=26_560_000),
    )


def book(name: str, used: int | None, settled: int, *parts: tuple[Reason, int, int]) -> Book:
    explained = tuple(Part(reason=reason, tasks=1, least_nanos=least, most_nanos=most) for reason, least, most in parts)
    return Book(refs=(name,), used_nanos=used, settled_nanos=settled, parts=explained)


def left(*books: Book) -> list[tuple[tuple[str, ...], int | None]]:
    return [(each.refs, each.unexplained_nanos()) for each in judge(books)]


OPEN_100 = (Reason.OPEN, 0, 100)


@pytest.mark.parametrize(
    ("books", "expected"),
    [
        pytest.param([book("a", 500, 500)], [(("a",), 0)], id="equal"),
        pytest.param([book("a", 501, 500)], [(("a",), 1)], id="one nano more there"),
        pytest.param([book("a", 499, 500)], [(("a",), -1)], id="one nano more here"),
        pytest.param([book("a", 600, 500, OPEN_100)], [(("a",), 0)], id="all of an open task"),
        pytest.param([book("a", 500, 500, OPEN_100)], [(("a",), 0)], id="nothing of an open task"),
        pytest.param([book("a", 601, 500, OPEN_100)], [(("a",), 1)], id="more than an open task"),
        pytest.param([book("a", 499, 500, OPEN_100)], [(("a",), -1)], id="an open task gives nothing back"),
        pytest.param(
            [book("a", 560, 500, (Reason.OPENING, 70, 70), (Reason.ESTIMATED, -10, 5))], [(("a",), 0)], id="both"
        ),
        pytest.param([book("a", None, 500)], [(("a",), None)], id="not known"),
        pytest.param([book("a", 500, 300), book("b", 500, 200)], [(("a", "b"), 0)], id="one account"),
        pytest.param(
            [book("a", 500, 500), book("b", 500, 500)], [(("a",), 0), (("b",), 0)], id="two that look like one"
        ),
        pytest.param([book("a", 500, 300), book("b", 500, 190)], [(("a", "b"), 10)], id="one account, something left"),
        pytest.param([book("a", 500, 500), book("b", 500, 499)], [(("a", "b"), -499)], id="one is right alone"),
        pytest.param([book("a", 500, 500), book("b", 0, 0)], [(("a",), 0), (("b",), 0)], id="two accounts"),
        pytest.param([book("a", None, 1), book("b", None, 2)], [(("a",), None), (("b",), None)], id="neither is known"),
    ],
)
def test_what_is_left_is_what_no_explanation_takes(books, expected):
    assert left(*books) == expected


SPLITS = st.lists(
    st.tuples(st.integers(0, 10**12), st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=5
)


@given(books=SPLITS, share=st.fractions(0, 1))
def test_whatever_the_vendor_did_within_the_bounds_is_explained_and_a_nano_beyond_is_not(books, share):
    """Keys of one account: settled exactly, with room below and above; the wallet is somewhere in between."""
    room = [(Reason.OPEN, -below, above) for _, below, above in books]
    least = sum(settled - below for settled, below, _ in books)
    most = sum(settled + above for settled, _, above in books)

    def judged(used: int) -> int | None:
        keys = [book(str(at), used, books[at][0], room[at]) for at in range(len(books))]
        accounts = judge(keys)
        return sum(each.unexplained_nanos() or 0 for each in accounts)

    assert judged(least + int((most - least) * share)) == 0
    if len(books) == 1:
        assert judged(most + 1) == 1
        assert judged(least - 1) == -1
