import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rules import retry

LUCK = st.floats(0, 1, exclude_max=True)
ALMOST = 0.999999999


@pytest.mark.parametrize(
    ("attempts", "least", "most"),
    [(1, 0.4, 0.8), (2, 0.8, 1.6), (3, 1.6, 3.2), (4, 3.2, 6.4), (5, 5, 10), (100, 5, 10), (10_000_000, 5, 10)],
)
def test_a_submit_is_repeated_within_a_second_then_doubling_to_ten(attempts: int, least: float, most: float) -> None:
    assert retry.resubmit_delay(attempts, luck=0.0) == least
    assert retry.resubmit_delay(attempts, luck=ALMOST) == pytest.approx(most)


@pytest.mark.parametrize(
    ("attempts", "retry_after_s", "expected"),
    [
        (1, 0, 0.6000000000000001),
        (1, 1, 1.5),
        (1, 30, 30.5),
        (5, 2, 7.5),
        (5, 30, 30.5),
        (1, 300, 300.5),
        (1, 301, 300.5),
        (1, 999_999_999, 300.5),
    ],
)
def test_the_vendors_retry_after_is_honoured_up_to_five_minutes(
    attempts: int, retry_after_s: int, expected: float
) -> None:
    assert retry.resubmit_delay(attempts, luck=0.5, retry_after_s=retry_after_s) == expected


@given(st.integers(1, 10_000), LUCK, st.integers(0, 300))
@settings(deadline=None, max_examples=100)
def test_nothing_is_repeated_before_retry_after(attempts: int, luck: float, retry_after_s: int) -> None:
    delay = retry.resubmit_delay(attempts, luck=luck, retry_after_s=retry_after_s)
    assert delay >= retry_after_s
    assert delay >= retry.resubmit_delay(attempts, luck=luck)


@pytest.mark.parametrize(
    ("age_s", "expected"), [(0, 0.5), (3, 0.5), (6, 1.0), (12, 2.0), (30, 5.0), (60, 10.0), (86_400, 10.0)]
)
def test_a_task_is_polled_fast_at_first_and_slower_later(age_s: float, expected: float) -> None:
    assert retry.poll_delay(age_s, luck=0.5) == pytest.approx(expected)
    assert retry.poll_delay(age_s, luck=0.0) == pytest.approx(expected * 0.9)
    assert retry.poll_delay(age_s, luck=ALMOST) == pytest.approx(expected * 1.1)


@pytest.mark.parametrize(("age_s", "expected"), [(0, 0.5), (3, 0.5), (12, 1.0), (86_400, 1.0)])
def test_a_watched_task_is_polled_every_second_at_least(age_s: float, expected: float) -> None:
    assert retry.poll_delay(age_s, luck=0.5, is_watched=True) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("failures", "least", "most"), [(1, 0.5, 1), (2, 1, 2), (5, 8, 16), (6, 15, 30), (7, 15, 30), (10_000, 15, 30)]
)
def test_polls_without_a_word_are_spread_to_half_a_minute(failures: int, least: float, most: float) -> None:
    assert retry.poll_trouble_delay(failures, luck=0.0) == least
    assert retry.poll_trouble_delay(failures, luck=ALMOST) == pytest.approx(most)


@pytest.mark.parametrize(
    ("attempts", "least", "most"), [(1, 0.4, 0.5), (2, 0.8, 1), (7, 25.6, 32), (8, 48, 60), (10_000, 48, 60)]
)
def test_downloads_are_tried_again_from_half_a_second_to_a_minute(attempts: int, least: float, most: float) -> None:
    assert retry.mirror_delay(attempts, luck=0.0) == pytest.approx(least)
    assert retry.mirror_delay(attempts, luck=ALMOST) == pytest.approx(most)


def test_a_submit_in_doubt_is_given_up_an_hour_before_the_vendor_forgets_it() -> None:
    assert retry.FORGETS_AFTER_S == 82_800
