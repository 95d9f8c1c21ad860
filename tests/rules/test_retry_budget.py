"""At most 20 % of the live submits over 60 s, never held under 3 a second, burst 50 (CONTRACT §2)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rules import retry_budget


class Played:
    """A budget under a load, second by second, with as many retries as it allows."""

    def __init__(self) -> None:
        self.budget = retry_budget.Budget()
        self.submits: dict[int, int] = {}
        self.retries: dict[int, int] = {}

    def second(self, at: int, *, submits: int, wanted: int) -> int:
        self.submits[at] = submits
        self.retries[at] = 0
        for _ in range(wanted):
            live = sum(retry_budget.recent(self.submits, now=at).values())
            sent = sum(retry_budget.recent(self.retries, now=at).values())
            self.budget = retry_budget.refilled(self.budget, now=at, submits=live)
            if retry_budget.allows(self.budget, submits=live, retries=sent) < 1:
                break
            self.budget = retry_budget.taken(self.budget)
            self.retries[at] += 1
        return self.retries[at]


def test_fifty_may_leave_at_once_then_three_a_second():
    played = Played()
    assert [played.second(at, submits=0, wanted=1000) for at in range(1000, 1005)] == [50, 3, 3, 3, 3]


def test_what_was_not_used_is_saved_up_to_fifty():
    played = Played()
    assert played.second(0, submits=0, wanted=50) == 50
    assert played.second(10, submits=0, wanted=1000) == 30
    assert played.second(3600, submits=0, wanted=1000) == 50


def test_under_a_steady_load_of_a_hundred_a_second_twenty_retries_a_second_may_leave():
    played = Played()
    for at in range(60):
        played.second(at, submits=100, wanted=0)
    assert [played.second(at, submits=100, wanted=1000) for at in range(60, 64)] == [50, 20, 20, 20]


def test_when_the_load_ends_retries_fall_back_to_three_a_second_and_not_below():
    played = Played()
    for at in range(120):
        played.second(at, submits=100, wanted=1000)
    after = [played.second(at, submits=0, wanted=1000) for at in range(120, 200)]
    assert min(after) == 3
    assert after[-1] == 3


def test_what_left_in_the_last_minute_counts_against_the_share():
    budget = retry_budget.Budget(tokens=50.0, least_tokens=0.0, at=100.0)
    assert [retry_budget.allows(budget, submits=1000, retries=sent) for sent in (0, 190, 200, 201)] == [50, 10, 0, 0]


def test_a_clock_that_goes_backwards_earns_nothing_and_forgets_what_was_ahead():
    budget = retry_budget.Budget(tokens=0.0, least_tokens=0.0, at=100.0)
    assert retry_budget.refilled(budget, now=40.0, submits=0).tokens == 0.0
    assert retry_budget.recent({30: 1, 40: 2, 99: 4}, now=40.0) == {30: 1, 40: 2}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 80)), min_size=1, max_size=150))
def test_over_any_minute_the_retries_are_within_the_share_or_the_floor_and_its_burst(load):
    played = Played()
    for at, (submits, wanted) in enumerate(load):
        played.second(at, submits=submits, wanted=wanted)
    for at in range(len(load)):
        minute = range(max(0, at - 59), at + 1)
        retries = sum(played.retries[each] for each in minute)
        assert played.retries[at] <= 50 + 1
        # What left on the share was within it then; from there on 3 a second and what was saved.
        most_live = max(sum(played.submits[each] for each in range(max(0, to - 59), to + 1)) for to in minute)
        assert retries <= 0.2 * most_live + 50 + 180


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 200), min_size=80, max_size=150))
def test_three_a_second_are_never_held(loads):
    played = Played()
    for at, submits in enumerate(loads):
        assert played.second(at, submits=submits, wanted=3) == 3
