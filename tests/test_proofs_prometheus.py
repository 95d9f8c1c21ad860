"""What `tests/proofs/prometheus` judges with: that it sees a nano that is missing, and asks what Grafana would ask."""

from __future__ import annotations

import datetime
import json
import math
import random

import pytest

from gateway import policy_files, simulator
from tests import stage
from tests.proofs import prometheus
from tests.proofs import prometheus_books as books
from tests.proofs import prometheus_organisation as organisation
from tests.proofs import prometheus_panels as panels
from tests.proofs import prometheus_server as server
from tests.proofs import prometheus_traffic as traffic

COST = "wave_gateway_cost_usd_total"
IMAGES = "wave_gateway_images_total"
KNOWN: books.Sums = {
    ("growth", "z-image-turbo", "standard"): 40_010_032_001,
    ("growth", "other", "standard"): 13_281_250,
}
SAID: dict[tuple[str, ...], float] = {
    ("growth", "z-image-turbo", "standard"): 40.010032001,
    ("growth", "other", "standard"): 0.01328125,
}

WINDOW = panels.Window(seconds=300, scrape_s=1)


# The sums.


def test_sums_that_are_the_ledger_s_are_not_reported():
    assert books.differences(COST, SAID, KNOWN) == []
    assert books.sum_differs(40.023313251, KNOWN) == ""
    assert books.sum_differs(math.nextafter(40.023313251, 41), KNOWN) == "", "two additions may be rounded once each"


def test_one_nano_too_few_in_one_series_is_reported():
    said = SAID | {("growth", "z-image-turbo", "standard"): 40.010032}
    [wrong] = books.differences(COST, said, KNOWN)
    assert "['growth', 'z-image-turbo', 'standard'] is 40.010032, the ledger says 40010032001" in wrong


def test_a_series_that_prometheus_lacks_or_made_up_is_reported():
    made_up: dict[tuple[str, ...], float] = {("trial", "z-image-turbo", "standard"): 0.5}
    assert len(books.differences(COST, {}, KNOWN)) == 2
    assert len(books.differences(COST, SAID | made_up, KNOWN)) == 1


def test_a_value_that_is_the_right_nanos_and_another_double_is_reported():
    said = SAID | {("growth", "other", "standard"): math.nextafter(0.01328125, 1)}
    assert len(books.differences(COST, said, KNOWN)) == 1


def test_one_image_too_many_is_reported():
    assert books.differences(IMAGES, {("growth",): 3.0}, {("growth",): 3}) == []
    assert len(books.differences(IMAGES, {("growth",): 3.0}, {("growth",): 2})) == 1


@pytest.mark.parametrize(("said", "why"), [(40.02331325, "-1 nanos off"), (40.0233132514, "more than 2 roundings")])
def test_a_sum_that_is_off_is_reported(said, why):
    assert why in books.sum_differs(said, KNOWN)


def test_a_bill_that_is_one_quota_or_one_image_above_the_settles_is_reported_by_team():
    settled: dict[str, books.Sums] = {
        COST: {("growth", "other", "standard"): 26_562_000},
        IMAGES: {("growth", "other", "standard"): 2},
    }
    line = {"prompt": "[dear] fox 7 for growth", "quota": 13_281, "delivered": 2}
    bill = {"nanos": 26_562_000, "by_task": {"task-1": line}}
    assert books.bill_differs(bill, books.Books(sums=settled)) == []
    dearer = {"nanos": 26_564_000, "by_task": {"task-1": line | {"quota": 13_282}}}
    assert books.bill_differs(dearer, books.Books(sums=settled)) == [
        "growth: billed 26564000 nanos, settled 26562000",
        "billed 26564000, settled 26562000 nanos",
    ]
    more = {"nanos": 26_562_000, "by_task": {"task-1": line | {"delivered": 3}}}
    assert books.bill_differs(more, books.Books(sums=settled)) == ["growth: billed 3 images, settled 2"]


async def test_the_books_are_summed_from_the_entries_with_models_outside_the_catalogue_as_one(tmp_path):
    async with stage.staged(tmp_path, growth='models: {unlisted: {usd: "0.5"}}\n') as on:
        for model in ("qwen-image-2.0", "wan2.7-image", stage.PRO):
            await on.admitted(model=model, prompt=f"{model} for growth")
        await on.finish()
        known = books.read(tmp_path / "data" / "wave.db", catalogue=on.parts.in_force.policies.models)
        assert books.bill_differs(on.vendor.bill(), known) == []
    # 0.02125 and 0.02295 USD are 10625 and 11475 quota, 0.0425 USD is 21250.
    assert known.sums[COST] == {
        ("growth", "other", "standard"): 44_200_000,
        ("growth", "gemini-3-pro-image-preview", "standard"): 42_500_000,
    }
    assert known.sums[IMAGES] == {
        ("growth", "other", "standard"): 2,
        ("growth", "gemini-3-pro-image-preview", "standard"): 1,
    }
    # Held against a price of 0.5 USD each.
    assert known.sums["wave_gateway_cost_drift_usd_total"] == {("growth", "other"): 955_800_000}


# What is asked.


def test_variables_are_replaced_in_every_form():
    text = 'sum(rate(x{team=~"$team", a=~"${team:regex}", b=~"[[team]]"}[$__rate_interval])) / $__range_s'
    said = panels.replaced(text, {"team": "(a|b)"} | WINDOW.builtins(1))
    assert said == 'sum(rate(x{team=~"(a|b)", a=~"(a|b)", b=~"(a|b)"}[4s])) / 300'


def test_a_variable_that_nobody_defined_is_an_error():
    with pytest.raises(KeyError, match="tema"):
        panels.replaced("sum($tema)", {"team": "growth"})


def test_all_is_the_values_escaped_and_joined():
    assert panels.all_of(["gemini-2.5", "z"]) == r"(gemini-2\\.5|z)"
    assert panels.all_of(["growth"]) == "growth"


@pytest.mark.parametrize(
    ("seconds", "scrape_s", "least", "interval", "rate"),
    [
        (300, 1, "", "1s", "4s"),
        (3600, 5, "", "8s", "20s"),
        (86_400, 15, "", "173s", "188s"),
        (300, 1, "1m", "60s", "61s"),
    ],
)
def test_intervals_are_those_of_grafana(seconds, scrape_s, least, interval, rate):
    window = panels.Window(seconds=seconds, scrape_s=scrape_s)
    builtins = window.builtins(window.step_s(least))
    assert (builtins["__interval"], builtins["__rate_interval"]) == (interval, rate)


def test_a_dashboard_is_asked_with_its_rows_variables_and_annotations(tmp_path):
    team = {"name": "team", "type": "query", "query": {"query": "label_values(x, team)"}, "includeAll": True}
    source = {"name": "source", "type": "datasource", "query": "prometheus"}
    inner = {"title": "B", "targets": [{"refId": "A", "expr": 'y{team=~"$team"}', "instant": True}]}
    panel = {"title": "A", "interval": "10s", "targets": [{"refId": "Q", "expr": "x", "range": True}]}
    document = {
        "templating": {"list": [source, team]},
        "panels": [panel, {"title": "row", "type": "row", "panels": [inner]}, {"title": "text"}],
        "annotations": {"list": [{"name": "starts", "expr": "changes(z[$__interval])"}, {"name": "built in"}]},
    }
    file = tmp_path / "board.json"
    file.write_text(json.dumps(document))
    panel_count, asked = panels.dashboard(file, WINDOW, lambda label, selector: [f"{label} of {selector}", "b"])
    assert panel_count == 2
    assert [(each.name, each.text, each.step_s) for each in asked] == [
        ("board.json: $team", "count by (team) (x)", 1),
        ("board.json: A Q", "x", 10),
        ("board.json: B A", 'y{team=~"(team of x|b)"}', None),
        ("board.json: starts", "changes(z[1s])", 1),
    ]


def test_rules_are_asked_and_what_they_recorded_too(tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text("groups: [{name: a, rules: [{record: b, expr: c}, {alert: D, expr: e > 1}]}]\n")
    asked = panels.rules(file, WINDOW)
    assert [(each.name, each.text) for each in asked] == [
        ("rules.yaml: b", "c"),
        ("rules.yaml: b as recorded", "b"),
        ("rules.yaml: D", "e > 1"),
    ]


def answer(*values: float, **more) -> server.Answer:
    return server.Answer(series=[server.Series(labels={}, values=values)] if values else [], **more)


ASKED = panels.Expression(file="a.json", title="Spend", ref="A", text="x", step_s=1)


@pytest.mark.parametrize(
    ("said", "empty", "verdict"),
    [
        (answer(0.0), {}, ""),
        (answer(), {}, "empty"),
        (answer(math.nan), {}, "empty"),
        (answer(), {"a.json: Spend A": "why"}, ""),
        (answer(1.0), {"a.json: Spend A": "why"}, "has data, and is listed as empty"),
        (answer(error="bad_data: parse error"), {}, "error"),
        (answer(1.0, warnings=["x"]), {}, "warned"),
        (answer(1.0, took_s=60), {}, "slow"),
    ],
)
def test_an_answer_is_judged(said, empty, verdict):
    assert prometheus.verdict(ASKED, said, empty).startswith(verdict)
    assert bool(prometheus.verdict(ASKED, said, empty)) == bool(verdict)


# The traffic.


def test_the_organisation_s_policies_load_and_its_scripts_are_understood(tmp_path):
    written = organisation.write(tmp_path, visits=3200, today=datetime.date(2026, 12, 31))
    assert set(policy_files.load(written).teams) == set(organisation.TEAMS)
    for faults in (traffic.TRICKLE, traffic.MEDIA_DOWN, traffic.LOST_ANSWERS, traffic.KEY_REFUSED, traffic.SLOW):
        assert len(simulator.parse_script(organisation.scripted(*faults, gone_at=1))) > len(faults)


def test_the_same_seed_draws_the_same_visits_of_every_kind():
    one, other = organisation.Mixture(1), organisation.Mixture(1)
    drawn = [one.draw() for _ in range(2000)]
    assert drawn == [other.draw() for _ in range(2000)]
    assert {visit.team for visit in drawn} == set(organisation.TEAMS)
    models = {visit.body["model"] for visit in drawn}
    assert models > {*organisation.GEMINI, *organisation.OFFICIAL, *organisation.OTHERS, *organisation.UNLISTED}


def test_a_pace_has_its_average_and_its_swing():
    pace = traffic.Pace(seconds=100, per_s=10, swing=0.5)
    assert [pace.rate(at) for at in (0, 50, 100)] == pytest.approx([5, 15, 5])
    drawn = random.Random(1)
    assert sum(pace.rate(drawn.uniform(0, 100)) for _ in range(4000)) / 4000 == pytest.approx(10, abs=0.2)
    assert pace.visits() == 1000
