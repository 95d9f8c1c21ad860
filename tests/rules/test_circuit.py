import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules import circuit, task
from gateway.rules.circuit import Circuit, Word

DOWN, THERE, NOTHING = Word.DOWN, Word.THERE, Word.NOTHING


def heard(*words: Word, known: Circuit | None = None, at: float = 100.0) -> Circuit:
    """What is known after these words, one a second, each of a call that took no time."""
    known = known or Circuit()
    for seconds, word in enumerate(words):
        known = circuit.hear(known, word, began_at=at + seconds, now=at + seconds)
    return known


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        (task.Accepted(upstream_task_id="v-1", document=b"{}", outcome=task.Outcome(event=None)), THERE),
        (task.Refused(status=400, document=b"{}"), THERE),
        (task.NotSent(reason=task.NO_CONNECTION), DOWN),
        (task.NotSent(reason="429", retry_after_s=30), THERE),
        (task.NotSent(reason="401", is_key_refused=True), THERE),
        (task.NotSent(reason="402", is_key_refused=True), THERE),
        (task.NotSent(reason="403", is_key_refused=True), THERE),
        (task.InDoubt(reason="timeout", is_down=True), DOWN),
        (task.InDoubt(reason="answer 503", is_down=True), DOWN),
        (task.InDoubt(reason="answer 302"), NOTHING),
    ],
)
def test_what_the_outcome_of_a_post_says_about_the_upstream(outcome: task.SubmitOutcome, word: Word) -> None:
    assert circuit.word_of(outcome) is word


@pytest.mark.parametrize(
    ("words", "is_open"),
    [
        ([], False),
        ([DOWN] * 4, False),
        ([DOWN] * 5, True),
        ([DOWN] * 50, True),
        ([DOWN] * 4 + [THERE] + [DOWN] * 4, False),
        ([DOWN] * 4 + [NOTHING] + [DOWN], True),
        ([NOTHING] * 50, False),
        ([DOWN] * 5 + [THERE], False),
        ([DOWN] * 5 + [NOTHING], True),
        ([DOWN] * 5 + [THERE] + [DOWN] * 4, False),
        ([DOWN] * 5 + [THERE] + [DOWN] * 5, True),
    ],
)
def test_five_failures_in_a_row_open_it_and_the_first_success_closes_it(words: list[Word], is_open: bool) -> None:
    assert heard(*words).is_open is is_open


def test_failures_of_calls_that_began_before_the_upstream_was_back_do_not_open_it_again():
    known = Circuit(there_at=200.0)
    for _ in range(50):
        known = circuit.hear(known, DOWN, began_at=199.9, now=229.0)
    assert known == Circuit(there_at=200.0)
    for _ in range(5):
        known = circuit.hear(known, DOWN, began_at=200.0, now=230.0)
    assert known.is_open


def test_a_clock_that_was_set_back_keeps_it_neither_closed_nor_without_a_probe():
    known = Circuit(there_at=5000.0)
    for _ in range(5):
        known = circuit.hear(known, DOWN, began_at=100.0, now=130.0)
    assert known.is_open
    known = dataclasses.replace(known, probed_at=5000.0)
    assert circuit.may_send(known, now=131.0)


def test_while_closed_everything_may_be_sent():
    assert circuit.may_send(Circuit(probed_at=100.0), now=100.0)
    assert circuit.sent(Circuit(there_at=1.0), now=100.0) == Circuit(there_at=1.0)


@pytest.mark.parametrize(("now", "may"), [(104.0, False), (108.9, False), (109.0, True), (200.0, True)])
def test_the_first_probe_leaves_five_seconds_after_it_opened(now: float, may: bool) -> None:
    assert circuit.may_send(heard(*[DOWN] * 5), now=now) is may


def test_the_next_probe_leaves_five_seconds_after_the_last_whatever_came_of_that():
    known = circuit.sent(heard(*[DOWN] * 5), now=200.0)
    known = heard(DOWN, known=known, at=203.0)
    assert [circuit.may_send(known, now=now) for now in (200.0, 204.9, 205.0)] == [False, False, True]


@given(st.lists(st.sampled_from(Word)))
def test_it_is_open_only_if_five_failures_came_since_the_last_success(words: list[Word]) -> None:
    since = [word for word in words[len(words) - [*reversed(words), THERE].index(THERE) :] if word is DOWN]
    assert heard(*words).is_open is (len(since) >= 5)
