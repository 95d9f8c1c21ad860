from __future__ import annotations

import pytest

from tests import exported, promql


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('sum by (team) (rate(x{a="$team"}[$__rate_interval]))', [("x", {"a", "team"})]),
        ("max_over_time(x[${__range}:1m]) > ${__from:date:seconds}", [("x", set())]),
        ("x - (x @ start() or 0 * x)", [("x", set()), ("x", set()), ("x", set())]),
        ("a * on (team) group_left (model) b", [("a", {"team"}), ("b", {"team", "model"})]),
        ("sum by (tier) (a * on (team) group_left () b)", [("a", {"team", "tier"}), ("b", {"team"})]),
        ("sum by (tier) (a and on (team) b)", [("a", {"team", "tier"}), ("b", {"team"})]),
        ("sum(x) / on () y", [("x", set()), ("y", set())]),
        ("topk by (team) (3, sum by (team, model) (x))", [("x", {"team", "model"})]),
        ('sum by (d) (label_replace(x, "d", "$1", "s", "(.*)"))', [("x", {"s"})]),
        ('sum by (d) (label_join(x, "d", "/", "s", "t"))', [("x", {"s", "t"})]),
    ],
)
def test_every_selector_is_found_with_the_labels_that_are_wanted_of_it(expression, expected):
    assert promql.selectors(expression) == expected


@pytest.mark.parametrize(
    "expression",
    [
        "sum(",
        "rate(x)",
        '{team="a"}',
        "sum by (team) (sum by (model) (x))",
        "sum(x) / on (team) y",
        "sum by (team) (sum without (team) (x))",
    ],
)
def test_what_cannot_be_asked_is_refused(expression):
    with pytest.raises(ValueError):
        promql.selectors(expression)


def test_the_variables_of_an_expression_are_found():
    assert promql.variables('sum(x{a=~"$team"}[$__range] @ ${__to:date:seconds})') == {"team", "__range", "__to"}


def test_what_is_exported_has_instruments_and_what_a_scrape_reads_with_their_labels():
    labels = exported.labels()
    assert labels["wave_gateway_tasks_total"] == {"team", "model", "action", "outcome"}
    assert labels["wave_gateway_task_duration_seconds_bucket"] == {"model", "tier", "le"}
    assert labels["wave_gateway_task_duration_seconds_count"] == {"model", "tier"}
    assert labels["wave_gateway_cost_usd_total"] == {"team", "model", "tier"}
    assert labels["wave_gateway_budget_warn_usd"] == {"scope", "name", "window", "cap"}
    assert labels["wave_gateway_media_bytes"] == frozenset()
