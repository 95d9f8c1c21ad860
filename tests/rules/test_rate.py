import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rules import rate
from gateway.rules.rate import Bucket


def run(moments: list[float], *, per_minute: int) -> list[int | None]:
    """What each request is told, one after another."""
    bucket, told = None, []
    for now_s in moments:
        bucket, wait_s = rate.take(bucket, now_s, per_minute=per_minute)
        told.append(wait_s)
    return told


def test_a_minutes_worth_may_come_at_once() -> None:
    assert run([100.0] * 4, per_minute=3) == [None, None, None, 20]


def test_requests_come_back_evenly() -> None:
    assert run([0, 0, 0, 10, 19.5, 20, 20, 60, 60, 60], per_minute=3) == [
        None,
        None,
        None,
        10,
        1,
        None,
        20,
        None,
        None,
        20,
    ]


def test_what_was_not_used_is_not_saved_beyond_a_minutes_worth() -> None:
    assert run([0, 86_400, 86_400, 86_400], per_minute=2) == [None, None, None, 30]


def test_a_refused_request_costs_nothing() -> None:
    assert run([0, 1, 2, 3, 60], per_minute=1) == [None, 59, 58, 57, None]


def test_the_wait_is_at_least_a_second() -> None:
    assert run([0.0] * 601, per_minute=600)[-1] == 1


def test_a_clock_that_goes_backwards_earns_nothing() -> None:
    bucket, wait_s = rate.take(Bucket(tokens=0.0, at_s=100.0), 40.0, per_minute=60)
    assert (bucket, wait_s) == (Bucket(tokens=0.0, at_s=40.0), 1)


def test_a_lowered_limit_holds_at_once() -> None:
    bucket, wait_s = rate.take(Bucket(tokens=600.0, at_s=0.0), 0.0, per_minute=2)
    assert (bucket, wait_s) == (Bucket(tokens=1.0, at_s=0.0), None)


@pytest.mark.parametrize(("per_minute", "wait"), [(1, 60), (2, 30), (7, 9), (60, 1), (600, 1)])
def test_an_empty_bucket_says_how_long_to_wait(per_minute: int, wait: int) -> None:
    assert rate.take(Bucket(tokens=0.0, at_s=0.0), 0.0, per_minute=per_minute)[1] == wait


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.sampled_from([1, 2, 3, 7, 60]))
@settings(deadline=None, max_examples=100)
def test_never_more_than_a_minutes_worth_and_what_was_earned(gaps: list[int], per_minute: int) -> None:
    moments = [float(sum(gaps[: index + 1])) for index in range(len(gaps))]
    admitted = run(moments, per_minute=per_minute).count(None)
    assert admitted <= per_minute + (moments[-1] - moments[0]) * per_minute / 60 + 1e-6


@given(st.floats(0, 0.999), st.sampled_from([1, 2, 3, 6, 60, 600]))
@settings(deadline=None, max_examples=100)
def test_who_waits_as_told_may_go_on(tokens: float, per_minute: int) -> None:
    bucket, wait_s = rate.take(Bucket(tokens=tokens, at_s=0.0), 0.0, per_minute=per_minute)
    assert wait_s is not None
    assert rate.take(bucket, float(wait_s), per_minute=per_minute)[1] is None


def test_a_request_that_is_given_back_did_not_count() -> None:
    bucket, _ = rate.take(None, 0.0, per_minute=2)
    for _ in range(5):
        bucket, wait_s = rate.take(bucket, 0.0, per_minute=2)
        assert wait_s is None
        bucket = rate.give_back(bucket)
    assert run([0.0, 0.0, 0.0], per_minute=2) == [None, None, 30]
    assert rate.take(rate.give_back(Bucket(tokens=2.0, at_s=0.0)), 0.0, per_minute=2)[0].tokens == 1.0
