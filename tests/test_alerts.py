"""The recording and alerting rules, without Prometheus: `make rules` runs their unit tests with promtool.

What is asked here is whether they fit what the program exports, and whether whoever is woken is told enough.
"""

from __future__ import annotations

import functools
import itertools
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from gateway import cli
from tests import exported, promql

ROOT = Path(__file__).parent.parent
RULES = ROOT / "grafana" / "prometheus"
RUNBOOK = (ROOT / "grafana" / "RUNBOOK.md").read_text(encoding="utf-8")

OF_THE_SCRAPE = frozenset({"job", "instance"})
"""What Prometheus adds to every series that it scrapes."""
DASHBOARDS = {"wave-spend", "wave-traffic", "wave-media"}
QUERY = re.compile(r'"((?:[^"\\]|\\.)*)"(?:\s+\$labels\.\w+)*\s*\|\s*query')
"""A query in a template: its text, with %q for each label that is put in."""


def groups_of(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((RULES / name).read_text(encoding="utf-8"))["groups"]
    return found


RECORDED = {rule["record"]: rule["expr"] for group in groups_of("recording.yaml") for rule in group["rules"]}
ALERTS = {rule["alert"]: rule for group in groups_of("alerts.yaml") for rule in group["rules"]}
WORLDS = [
    world
    for path in sorted((RULES / "tests").glob("*.yaml"))
    for world in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
]
EXPORTED = exported.labels()


def texts(alert: str) -> str:
    """All annotations of an alert."""
    return "\n".join(ALERTS[alert]["annotations"].values())


def queries(alert: str) -> list[str]:
    """The expressions that its templates ask Prometheus."""
    found: list[str] = QUERY.findall(texts(alert))
    return [each.replace("%q", "'x'") for each in found]


def problems(expression: str) -> list[str]:
    """What is wrong with an expression: metrics and labels that nobody exports or records."""
    try:
        selected = promql.selectors(expression)
    except ValueError as error:
        return [str(error)]
    return [problem for name, labels in selected for problem in _problems_of(name, labels)]


def _problems_of(name: str, labels: frozenset[str]) -> Iterator[str]:
    if name in RECORDED:
        yield from (f"{name} has no {each}" for each in sorted(labels) if not keeps(RECORDED[name], each))
    elif name in EXPORTED:
        yield from (f"{name} has no {each}" for each in sorted(labels - EXPORTED[name] - OF_THE_SCRAPE))
    elif name == "up":
        yield from (f"up has no {each}" for each in sorted(labels - OF_THE_SCRAPE))
    else:
        yield f"{name} is not exported and not recorded"


@functools.cache
def keeps(expression: str, label: str) -> bool:
    """Whether what an expression gives has a label: it could be grouped by it. What is absent has none."""
    return "absent(" not in expression and not problems(f"sum by ({label}) ({expression})")


def metrics_behind(expression: str) -> set[str]:
    """The exported metrics that an expression stands on, through what is recorded."""
    names = {name for name, _ in promql.selectors(expression)}
    return names | set(itertools.chain.from_iterable(metrics_behind(RECORDED[each]) for each in names & set(RECORDED)))


def sections() -> dict[str, str]:
    """The runbook's sections about alerts, by heading."""
    parts = re.split(r"^## (Wave\w+)$", RUNBOOK, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def unit_tests(alert: str) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Each world with what is expected of the alert in it."""
    for world in WORLDS:
        for test in world.get("alert_rule_test", []):
            if test["alertname"] == alert:
                yield world, test


# What the checks say of a rule that is wrong


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("wave_gateway_nothing > 0", "wave_gateway_nothing is not exported and not recorded"),
        ('wave_gateway_tasks_in_doubt{team="growth"} > 0', "wave_gateway_tasks_in_doubt has no team"),
        (
            "sum by (model) (team:wave_gateway_cost_usd:increase1h)",
            "team:wave_gateway_cost_usd:increase1h has no model",
        ),
        ('up{team="growth"}', "up has no team"),
    ],
)
def test_a_metric_or_label_that_does_not_exist_is_found(expression, problem):
    assert problems(expression) == [problem]


@pytest.mark.parametrize(
    ("expression", "label", "expected"),
    [
        ("cap:wave_gateway_budget_used:ratio", "team", True),
        ("cap:wave_gateway_budget_used:ratio", "instance", False),
        ("wave_gateway_disk_free_bytes < 5", "instance", True),
        ("sum without (instance) (wave_gateway_tasks_open)", "team", True),
        ("sum(wave_gateway_tasks_open)", "team", False),
        ("wave_gateway_tasks_overdue or wave_gateway_tasks_open", "team", False),
        ('absent(up{job="wave-gateway"})', "team", False),
    ],
)
def test_it_is_known_which_labels_an_expression_keeps(expression, label, expected):
    assert keeps(expression, label) is expected


# Expressions


@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_rule_reads_what_is_exported_and_is_named_level_metric_operation(name):
    assert problems(RECORDED[name]) == []
    assert re.fullmatch(r"[a-z_]+:wave_gateway_[a-z_]+:[a-z0-9_]+", name)
    level = name.split(":")[0]
    labels = {"cap": ("scope", "name", "window", "cap", "team"), "team_model": ("team", "model")}.get(level, (level,))
    assert [each for each in labels if not keeps(RECORDED[name], each)] == []


@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_rule_has_a_unit_test_or_alert_that_reads_it(name):
    tested = {
        each
        for world in WORLDS
        for test in world.get("promql_expr_test", [])
        if test["exp_samples"]
        for each, _ in promql.selectors(test["expr"])
    }
    assert name in tested


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_reads_what_is_exported_or_recorded(alert):
    assert problems(ALERTS[alert]["expr"]) == []
    assert len(queries(alert)) == len(re.findall(r"\|\s*query\b", texts(alert)))
    assert [problem for each in queries(alert) for problem in problems(each)] == []


def test_every_alert_and_recorded_series_has_a_name_of_its_own():
    rules = [rule for name in ("recording.yaml", "alerts.yaml") for group in groups_of(name) for rule in group["rules"]]
    names = [rule.get("alert") or rule["record"] for rule in rules]
    assert sorted(names) == sorted(set(names))


def test_every_group_is_evaluated_often_enough_for_its_series_not_to_go_stale():
    assert {group.get("interval", "1m") for group in groups_of("recording.yaml") + groups_of("alerts.yaml")} <= {
        "1m",
        "2m",
    }


# What whoever is woken is told


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_since_when_and_where_to_read_on(alert):
    rule = ALERTS[alert]
    assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"[1-9][0-9]*[mh]", rule["for"])
    assert rule["labels"].keys() == {"severity"} and rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url", "dashboard"}
    assert rule["annotations"]["runbook_url"] == f"grafana/RUNBOOK.md#{alert.lower()}"
    assert re.findall(r"^/d/([a-z-]+)", rule["annotations"]["dashboard"])[0] in DASHBOARDS
    assert rule["annotations"]["description"].endswith((".", "}}", "%"))


@pytest.mark.parametrize("alert", ALERTS)
def test_the_labels_in_an_alerts_texts_are_those_that_its_expression_keeps(alert):
    used = set(re.findall(r"\$labels\.(\w+)", texts(alert)))
    assert {each for each in used if not keeps(ALERTS[alert]["expr"], each)} == set()


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_about_a_team_names_it_in_its_summary(alert):
    summary = ALERTS[alert]["annotations"]["summary"]
    if keeps(ALERTS[alert]["expr"], "team"):
        assert re.search(r"\$labels\.(team|name)\b", summary)
    else:
        assert "$labels.team" not in summary


def test_every_alert_has_its_section_in_the_runbook_and_every_section_its_alert():
    assert list(sections()) == list(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_a_section_says_what_it_means_how_bad_it_is_and_what_to_do(alert):
    headings = re.findall(r"^\*\*([A-Z][a-z ]+)\.\*\*", sections()[alert], flags=re.MULTILINE)
    assert headings == ["Means", "How bad", "Look at", "Do", "Do not"]
    assert ALERTS[alert]["labels"]["severity"] in sections()[alert].partition("**Look at.**")[0]


def shown_lines() -> list[str]:
    """Every command of ours in the runbook, in examples and in code quotes; one may go on over a line's end."""
    quoted = re.findall(r"`(wave-gateway [^`]+)`", RUNBOOK)
    return sorted({" ".join(line.split()) for line in quoted + re.findall(r"^wave-gateway [^#\n]+", RUNBOOK, re.M)})


@pytest.mark.parametrize("line", shown_lines())
def test_every_command_in_the_runbook_is_one_that_the_program_takes(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("request.json").touch()
    words = shlex.split(line)[1:]
    command: click.Command = cli.cli
    while isinstance(command, click.Group):
        assert words and words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    with command.make_context("wave-gateway", words):
        pass  # the words were understood; nothing is run


def test_every_link_in_the_runbook_leads_somewhere():
    for target, _, anchor in re.findall(r"\]\(([^)#\s]*)(#([^)\s]+))?\)", RUNBOOK):
        path = ROOT / "grafana" / target if target else ROOT / "grafana" / "RUNBOOK.md"
        headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}
        assert not anchor or anchor in anchors


# Unit tests


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_unit_test_that_fires_it_and_one_in_which_it_nearly_does(alert):
    behind = metrics_behind(ALERTS[alert]["expr"])
    fires, near_misses = [], []
    for world, test in unit_tests(alert):
        if test["exp_alerts"]:
            fires.append(test)
        elif behind & {re.split(r"[{ ]", each["series"])[0] for each in world["input_series"]}:
            near_misses.append(test)
    assert fires and near_misses


@pytest.mark.parametrize("alert", ALERTS)
def test_what_a_unit_test_expects_is_written_out_with_every_label_and_annotation(alert):
    for _, test in unit_tests(alert):
        for each in test["exp_alerts"]:
            assert each["exp_annotations"].keys() == ALERTS[alert]["annotations"].keys()
            assert each["exp_labels"]["severity"] == ALERTS[alert]["labels"]["severity"]
            assert "{{" not in str(each)


def test_the_series_in_unit_tests_are_ones_that_are_exported():
    for world in WORLDS:
        for each in world["input_series"]:
            assert problems(each["series"]) == [], world["name"]
            ((name, labels),) = promql.selectors(each["series"])
            known = EXPORTED.get(name, frozenset())
            assert labels >= known | OF_THE_SCRAPE, each["series"]


def test_only_alerts_that_exist_are_tested():
    assert {test["alertname"] for world in WORLDS for test in world.get("alert_rule_test", [])} == ALERTS.keys()
