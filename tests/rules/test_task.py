import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rules import task
from gateway.rules.task import Event, State

TABLE = {
    ("reserved", "not_sent"): "waiting",
    ("reserved", "lost"): "in_doubt",
    ("reserved", "accepted"): "submitted",
    ("reserved", "refused"): "refused",
    ("waiting", "attempted"): "reserved",
    ("waiting", "expired"): "failed",
    ("waiting", "withdrawn"): "cancelled",
    ("in_doubt", "attempted"): "in_doubt",
    ("in_doubt", "accepted"): "submitted",
    ("in_doubt", "refused"): "failed",
    ("submitted", "delivered"): "delivered",
    ("submitted", "failed"): "failed",
    ("submitted", "cancelled"): "cancelled",
    ("delivered", "mirrored"): "completed",
    ("following", "withdrawn"): "cancelled",
    ("in_doubt", "resolved"): "failed",
    ("submitted", "resolved"): "failed",
}
PAIRS = sorted(itertools.product(State, Event))


@pytest.mark.parametrize(("state", "event"), sorted(TABLE))
def test_an_event_of_the_table_moves_the_task(state: str, event: str) -> None:
    assert task.step(State(state), Event(event)) == TABLE[state, event]


@pytest.mark.parametrize(("state", "event"), [pair for pair in PAIRS if pair not in TABLE])
def test_an_event_outside_the_table_is_ignored(state: State, event: Event) -> None:
    assert task.step(state, event) is None


def test_the_table_holds_nothing_else() -> None:
    assert dict(task.TRANSITIONS) == TABLE


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled", "refused"])
def test_terminal_is_terminal(state: str) -> None:
    assert {task.step(State(state), event) for event in Event} == {None}


@given(st.lists(st.sampled_from(Event), max_size=12))
@settings(deadline=None, max_examples=100)
def test_a_task_leaves_a_hold_at_most_once(events: list[Event]) -> None:
    state, ends = State.RESERVED, 0
    for event in events:
        after = task.step(state, event) or state
        ends += state in task.HOLDING and after not in task.HOLDING
        state = after
    assert ends == (state not in task.HOLDING)
    assert ends in (0, 1)


def test_doubt_ends_only_on_the_vendors_word_or_an_operators() -> None:
    leaving = {event for event in Event if task.step(State.IN_DOUBT, event) not in (None, State.IN_DOUBT)}
    assert leaving == {"accepted", "refused", "resolved"}


def test_only_what_was_provably_not_accepted_expires() -> None:
    assert [state for state in State if task.step(state, Event.EXPIRED)] == ["waiting"]


def test_only_what_the_vendor_never_had_is_cancelled_without_its_word() -> None:
    assert [state for state in State if task.step(state, Event.WITHDRAWN)] == ["waiting", "following"]


def test_an_attempt_is_written_before_each_later_post() -> None:
    assert task.step(State.WAITING, Event.ACCEPTED) is None
    assert task.step(State.WAITING, Event.ATTEMPTED) == "reserved"


def test_the_states_are_sorted_into_holding_open_and_ended() -> None:
    assert set(task.HOLDING) == {"reserved", "waiting", "in_doubt", "submitted"}
    assert set(task.OPEN) == {"reserved", "waiting", "in_doubt", "submitted", "delivered", "following"}
    assert set(task.ENDED) == {"completed", "failed", "cancelled", "refused"}


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("reserved", "queued"),
        ("waiting", "queued"),
        ("in_doubt", "queued"),
        ("submitted", "queued"),
        ("following", "queued"),
        ("delivered", "processing"),
        ("completed", "completed"),
        ("failed", "failed"),
        ("cancelled", "cancelled"),
        ("refused", "failed"),
    ],
)
def test_a_client_sees_one_of_the_vendors_words(state: str, shown: str) -> None:
    assert task.SHOWN[State(state)] == shown


def test_every_state_is_shown() -> None:
    assert set(task.SHOWN) == set(State)
