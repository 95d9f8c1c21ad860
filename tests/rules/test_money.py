import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rules import money

AMOUNTS = st.integers(0, 1_000_000_000_000_000_000)


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("0", 0),
        ("0.00", 0),
        ("0.000000001", 1),
        ("0.000002", 2_000),
        ("0.01328125", 13_281_250),
        ("0.0425", 42_500_000),
        ("25.00", 25_000_000_000),
        ("1000000000", 1_000_000_000_000_000_000),
        ("1000000000.000000000", 1_000_000_000_000_000_000),
    ],
)
def test_an_amount_is_read_exactly(text: str, nanos: int) -> None:
    assert money.parse_usd(text) == nanos


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "-1", "+1", "1e3", ".5", "5.", "1,5", " 1", "1 ", "1\n", "1_000", "0x10", "NaN", "Infinity"),
        *("１", "٣", "0.0000000001", "11111111111", "99999999999.5"),
    ],
)
def test_what_is_no_plain_decimal_with_at_most_nine_places_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an amount"):
        money.parse_usd(text)


@pytest.mark.parametrize("text", ["1000000000.000000001", "1000000001", "9999999999"])
def test_more_than_a_billion_dollars_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="more than 1000000000"):
        money.parse_usd(text)


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "0"),
        (1, "0.000000001"),
        (13_281_250, "0.01328125"),
        (42_500_000, "0.0425"),
        (1_000_000_000, "1"),
        (10_000_000_000, "10"),
        (-1_500_000_000, "-1.5"),
        (-1, "-0.000000001"),
        (1_000_000_000_000_000_000, "1000000000"),
    ],
)
def test_an_amount_is_written_without_exponent_or_trailing_zeros(nanos: int, text: str) -> None:
    assert money.render_usd(nanos) == text


def test_a_million_images_cost_what_a_million_images_cost() -> None:
    assert money.render_usd(1_000_000 * money.parse_usd("0.01328125")) == "13281.25"


@given(AMOUNTS)
@settings(deadline=None, max_examples=100)
def test_writing_and_reading_changes_nothing(nanos: int) -> None:
    assert money.parse_usd(money.render_usd(nanos)) == nanos


@pytest.mark.parametrize(
    ("nanos", "rounded", "above", "below"),
    [
        (0, 0, 0, 0),
        (1, 2_000, 1, 0),
        (1_999, 2_000, 1, 0),
        (2_000, 2_000, 1, 1),
        (2_001, 4_000, 2, 1),
        (13_281_250, 13_282_000, 6_641, 6_640),
        (31_875_000, 31_876_000, 15_938, 15_937),
        (42_500_000, 42_500_000, 21_250, 21_250),
    ],
)
def test_an_amount_is_rounded_to_whole_quotas(nanos: int, rounded: int, above: int, below: int) -> None:
    assert money.ceil_to_quota(nanos) == rounded
    assert money.quota_above(nanos) == above
    assert money.quota_below(nanos) == below


def test_five_hundred_thousand_quota_are_one_dollar() -> None:
    assert money.quota_to_nanos(500_000) == 1_000_000_000
    assert money.quota_to_nanos(1) == 2_000
    assert money.quota_to_nanos(0) == 0


@given(AMOUNTS)
@settings(deadline=None, max_examples=100)
def test_rounding_up_adds_less_than_one_quota(nanos: int) -> None:
    rounded = money.ceil_to_quota(nanos)
    assert 0 <= rounded - nanos < 2_000
    assert rounded % 2_000 == 0
