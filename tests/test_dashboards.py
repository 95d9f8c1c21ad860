"""The dashboards as they are committed, held against the program and against each other."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from gateway import cli, errors
from tests import exported, promql

FOLDER = Path(__file__).parent.parent / "grafana"
FILES = ("media.json", "spend.json", "traffic.json")
COMMITTED: dict[str, dict[str, Any]] = {name: json.loads((FOLDER / name).read_text(encoding="utf-8")) for name in FILES}
OF_PROMETHEUS = {"up": frozenset[str]()}
TARGET = {"job", "instance"}
"""Labels that Prometheus itself gives to what it scrapes."""

EXPORTED = exported.labels()
KNOWN = EXPORTED | OF_PROMETHEUS
WIDTH = 24


def panels(name: str) -> list[dict[str, Any]]:
    return [each for each in COMMITTED[name]["panels"] if each["type"] != "row"]


ALL = [pytest.param(each, id=f"{name}: {each['title']}") for name in FILES for each in panels(name)]
BOARDS = [pytest.param(COMMITTED[name], id=name) for name in FILES]


def expressions(panel: dict[str, Any]) -> list[str]:
    return [each["expr"] for each in panel["targets"]]


def colours(found: Any) -> set[str]:
    """Every colour that is named anywhere in a document."""
    if isinstance(found, dict):
        own = {value for key, value in found.items() if key in ("color", "fixedColor") and isinstance(value, str)}
        return own.union(*map(colours, found.values()))
    if isinstance(found, list):
        return set().union(*map(colours, found))
    return set()


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}


def test_the_committed_files_are_those_that_the_generator_makes(tmp_path):
    # A process of its own, as `make dashboards` has one: the SDK warns on import, and warnings are errors here.
    subprocess.run([sys.executable, "-m", "grafana.generator", tmp_path], cwd=FOLDER.parent, check=True)
    assert texts(tmp_path).keys() == set(FILES)
    assert texts(tmp_path) == texts(FOLDER), "run `make dashboards`"


# What they ask for


@pytest.mark.parametrize("panel", ALL)
def test_everything_that_is_asked_for_is_exported_with_these_labels(panel):
    for expression in expressions(panel):
        for name, labels in promql.selectors(expression):
            assert name in KNOWN
            assert labels - TARGET <= KNOWN[name], name


@pytest.mark.parametrize("panel", ALL)
def test_every_series_is_one_of_the_chosen_gateway_and_of_the_chosen_teams_and_models(panel):
    for expression in expressions(panel):
        for name, labels in promql.selectors(expression):
            # A cap names its team in `name`, and has no model.
            chosen = {"name"} if name.startswith("wave_gateway_budget_") else {"team", "model"} & KNOWN[name]
            assert {"job"} | chosen <= labels, name


def test_every_exported_metric_is_on_a_dashboard():
    asked = {name for file in FILES for panel in panels(file) for each in expressions(panel) for name in names(each)}
    assert {family(name) for name in EXPORTED} - {family(name) for name in asked} == set()


def names(expression: str) -> set[str]:
    return {name for name, _ in promql.selectors(expression)}


def family(name: str) -> str:
    """A histogram's name without its suffix: one of its samples is enough."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


def test_money_is_never_extrapolated():
    ledger = re.compile(r"(rate|increase|delta)\(wave_gateway_(cost|images|fallback|budget)")
    found = [each for file in FILES for panel in panels(file) for each in expressions(panel) if ledger.search(each)]
    assert found == []


@pytest.mark.parametrize("board", BOARDS)
def test_every_variable_that_is_used_is_there(board):
    there = {each["name"] for each in board["templating"]["list"]}
    used = set().union(
        *(promql.variables(each["expr"]) for panel in board["panels"] for each in panel.get("targets", []))
    )
    assert {each for each in used if not each.startswith("__")} <= there
    assert used & {"__interval", "__range", "__rate_interval"} == {each for each in used if each.startswith("__")}


@pytest.mark.parametrize("board", BOARDS)
def test_team_and_model_can_be_chosen_several_at_once_or_all_and_the_data_source_too(board):
    kinds = {each["name"]: each for each in board["templating"]["list"]}
    assert kinds["datasource"]["type"] == "datasource"
    for name in ("team", "model"):
        assert (kinds[name]["multi"], kinds[name]["includeAll"], kinds[name]["allValue"]) == (True, True, ".*")
        (asked,) = re.findall(r"^label_values\((.+), (\w+)\)$", kinds[name]["query"]["query"])
        ((metric, labels),) = promql.selectors(asked[0])
        assert asked[1] == name and {name, *labels} - TARGET <= EXPORTED[metric]


# How each panel is dressed


@pytest.mark.parametrize("panel", ALL)
def test_every_panel_says_what_it_shows_in_which_unit_and_what_if_there_is_nothing(panel):
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["title"] and len(panel["title"]) < 45
    assert re.search(r"[.?]$", panel["description"])
    assert defaults["unit"] and defaults["noValue"]
    assert defaults["thresholds"]["steps"][0]["value"] is None


@pytest.mark.parametrize("panel", ALL)
def test_every_query_goes_to_the_chosen_data_source_and_is_instant_unless_it_is_drawn_over_time(panel):
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == source
    assert [each["datasource"] for each in panel["targets"]] == [source] * len(panel["targets"])
    is_over_time = panel["type"] in ("timeseries", "state-timeline")
    assert {(each["instant"], each["range"]) for each in panel["targets"]} == {(not is_over_time, is_over_time)}
    ids = [each["refId"] for each in panel["targets"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("panel", [each for each in ALL if each.values[0]["type"] == "table"])  # type: ignore[index]
def test_every_column_of_a_table_has_a_heading_and_a_unit(panel):
    (organize,) = (each["options"] for each in panel["transformations"] if each["id"] == "organize")
    headings = organize["renameByName"]
    several = len(panel["targets"]) > 1
    values = {f"Value #{each['refId']}" if several else "Value" for each in panel["targets"]}
    shown = {headings[each] for each in values}
    looks = {
        each["matcher"]["options"]: {one["id"] for one in each["properties"]}
        for each in panel["fieldConfig"]["overrides"]
    }
    assert looks.keys() == set(headings.values()) and all("noValue" in each for each in looks.values())
    assert all({"unit", "thresholds"} <= looks[each] for each in shown)
    (sort,) = panel["options"]["sortBy"]
    assert sort["displayName"] in shown
    assert {each["format"] for each in panel["targets"]} == {"table"}


@pytest.mark.parametrize("board", BOARDS)
def test_every_colour_is_a_name_that_has_a_shade_for_light_and_for_dark(board):
    assert colours(board) <= {"green", "yellow", "orange", "red", "blue", "purple", "text"}


@pytest.mark.parametrize("panel", ALL)
def test_every_command_and_error_code_that_a_text_names_exists(panel):
    text = panel["description"]
    for line in re.findall(
        r"`(?:wave-gateway )?((?:tasks|media|keys|webhooks|policy|reconcile|audit|report)\b[^`]*)`", text
    ):
        command: click.Command = cli.cli
        for word in line.split():
            assert isinstance(command, click.Group) and word in command.commands, line
            command = command.commands[word]
    of_policies = {"while_spend_below"}
    assert set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", text)) <= errors.STATUS_OF_CODE.keys() | of_policies


# Where they stand


@pytest.mark.parametrize("board", BOARDS)
def test_the_grid_is_full_and_nothing_overlaps(board):
    cells: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        at = panel["gridPos"]
        for place in itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])):
            assert place not in cells, f"{panel['title']} lies on {cells[place]}"
            cells[place] = panel["title"]
    height = 1 + max(y for _, y in cells)
    assert cells.keys() == set(itertools.product(range(WIDTH), range(height)))


def test_the_first_screen_of_spend_answers_whether_anyone_hits_a_cap_and_what_was_spent():
    first = {each["title"] for each in panels("spend.json") if each["gridPos"]["y"] + each["gridPos"]["h"] <= 22}
    assert {
        "Spent this month",
        "Month's forecast",
        "Fullest cap",
        "Caps running out",
        "Caps",
        "Cost per day, last 30 days",
    } <= first


@pytest.mark.parametrize("board", BOARDS)
def test_every_panel_has_an_id_of_its_own_and_none_is_set_for_the_dashboard(board):
    ids = [each["id"] for each in board["panels"]]
    assert len(ids) == len(set(ids)) and 0 not in ids
    assert board.get("id") is None


def test_the_uids_are_those_that_addresses_and_the_runbook_use():
    assert {name: each["uid"] for name, each in COMMITTED.items()} == {
        "media.json": "wave-media",
        "spend.json": "wave-spend",
        "traffic.json": "wave-traffic",
    }


@pytest.mark.parametrize("board", BOARDS)
def test_every_dashboard_links_to_both_others_and_takes_choice_and_time_along(board):
    others = {f"/d/{each['uid']}" for each in COMMITTED.values()} - {f"/d/{board['uid']}"}
    assert {each["url"] for each in board["links"]} == others
    assert all(each["includeVars"] and each["keepTime"] for each in board["links"])


def test_spend_begins_with_the_month_and_the_others_with_six_hours_and_are_refreshed_by_themselves():
    assert {name: (each["time"]["from"], each["refresh"], each["timezone"]) for name, each in COMMITTED.items()} == {
        "media.json": ("now-6h", "1m", "utc"),
        "spend.json": ("now/M", "5m", "utc"),
        "traffic.json": ("now-6h", "1m", "utc"),
    }
