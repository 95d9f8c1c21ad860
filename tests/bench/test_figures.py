"""The arithmetic of the table. Every expected value is worked out by hand."""

from __future__ import annotations

import pytest

from bench import figures, open_loop, plot, table


def measured(server: str, *, cpu_s: float, requests: int = 1_000, path: str = "A") -> figures.Measured:
    return figures.Measured(
        path=path, server=server, requests=requests, seconds=2.0, cpu_s=cpu_s, p50_ms=1.0, p99_ms=9.0
    )


def test_a_spread_is_the_median_between_the_least_and_the_most():
    found = figures.spread([3.0, 1.0, 10.0, 2.0, 4.0])
    assert (found.median, found.least, found.most) == (3.0, 1.0, 10.0)


def test_a_request_costs_the_processor_time_of_the_round_divided_by_its_requests():
    one = measured("gateway", cpu_s=1.5, requests=3_000)
    assert one.cpu_us == 500.0
    assert one.per_s == 1_500.0


def test_a_ratio_is_how_many_requests_fit_into_the_time_of_one_of_the_other_round_by_round():
    # Round by round: 20/100, 30/60, 10/40; of the sums it would be 60/200.
    rounds = [
        *(measured("nginx", cpu_s=0.020), measured("gateway", cpu_s=0.100)),
        *(measured("gateway", cpu_s=0.060), measured("nginx", cpu_s=0.030)),
        *(measured("nginx", cpu_s=0.010), measured("gateway", cpu_s=0.040)),
    ]
    found = figures.cpu_ratio(rounds, path="A", of="gateway", to="nginx")
    assert found is not None
    assert (found.median, found.least, found.most) == pytest.approx((0.25, 0.2, 0.5))


def test_a_ratio_takes_rounds_of_its_own_path_only():
    rounds = [
        *(measured("nginx", cpu_s=1.0, path="B"), measured("gateway", cpu_s=1.0, path="B")),
        *(measured("nginx", cpu_s=1.0), measured("gateway", cpu_s=4.0)),
    ]
    found = figures.cpu_ratio(rounds, path="A", of="gateway", to="nginx")
    assert found is not None and found.median == 0.25


def test_there_is_no_ratio_to_what_was_not_measured():
    assert figures.cpu_ratio([measured("gateway", cpu_s=1.0)], path="A", of="gateway", to="litellm") is None


def test_growth_is_the_cost_with_a_full_ledger_divided_by_that_with_an_empty_one():
    rounds = [measured("gateway", cpu_s=0.5), measured("gateway, 1M kept", cpu_s=0.6)]
    found = figures.growth(rounds, path="A", empty="gateway", full="gateway, 1M kept")
    assert found is not None and found.median == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("median", "bound", "is_most", "is_met"),
    [(0.45, 0.45, False, True), (0.44, 0.45, False, False), (64.0, 64.0, True, True), (65.0, 64.0, True, False)],
)
def test_a_goal_is_held_against_its_median(median, bound, is_most, is_met):
    found = figures.Spread(median=median, least=0.0, most=1_000.0)
    assert figures.Goal(name="g", found=found, bound=bound, is_most=is_most).is_met is is_met


def test_the_table_says_median_and_spread_of_the_rounds():
    rounds = [measured("gateway", cpu_s=cpu_s) for cpu_s in (0.4, 0.5, 0.9)]
    assert table.closed(rounds) == (
        "| path | server  | req/s | p50 ms | p99 ms | CPU µs/request | spread     | rounds |\n"
        "|------|---------|-------|--------|--------|----------------|------------|--------|\n"
        "| A    | gateway | 500   | 1      | 9      | 500            | 400 to 900 | 3      |"
    )


def test_a_goal_that_is_missed_is_loud_in_the_table():
    goal = figures.Goal(name="A hit", found=figures.spread([0.0123, 0.02, 0.4]), bound=0.45)
    assert table.goals([goal]).splitlines()[2] == "| A hit | ≥ 0.45 x | 0.02 x | 0.0123 to 0.4 | **no** |"


@pytest.mark.parametrize(
    ("value", "written"), [(12_345.6, "12,346"), (99.95, "100"), (12.34, "12.3"), (0.00431, "0.00431"), (5.0, "5")]
)
def test_a_number_has_three_digits_or_is_whole(value, written):
    assert table.number(value) == written


def test_the_plot_puts_a_rate_where_its_decade_says():
    point = open_loop.Point(offered_per_s=100.0, answered_per_s=100.0, p50_ms=1.0, p99_ms=10.0, sent=200)
    last = open_loop.Point(offered_per_s=1_000.0, answered_per_s=10.0, p50_ms=1.0, p99_ms=100.0, sent=2_000)
    drawn = plot.draw([("A", "gateway", point), ("A", "gateway", last)], {"A": "A hit"})
    # From 100 to 1,000 across the whole width; 100 answered are the top of 10 to 100, and 10 ms the bottom.
    assert 'points="60.0,40.0 360.0,240.0"' in drawn
    assert 'points="60.0,496.0 360.0,296.0"' in drawn
