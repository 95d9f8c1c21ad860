"""The report as a person and a script meet it: what it prints, and its exit codes."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from click import testing

from gateway import cli, cli_report
from gateway.flow import report
from gateway.rules import budget, share
from gateway.rules.money import Nanos
from gateway.rules.policy import Window
from tests import focus_table, process

FLASH = "gemini-2.5-flash-image-preview"
GROWTH = """
labels: {cost_center: "4711"}
spend: [{name: budget, cap: "0.12", per: total}]
"""


@pytest.fixture(scope="module")
def spent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[process.Gateway]:
    """Growth has completed a task of two images, a hit of it, and one of an image with tags."""
    with process.pair(tmp_path_factory.mktemp("spent"), growth=GROWTH) as (gateway, _):
        gateway.complete(gateway.submit(seed=7, n=2)[2]["task_id"])
        gateway.submit(seed=7, n=2)
        body = {"model": FLASH, "prompt": "a fox"}
        tagged = gateway.call("POST", "/v1/tasks", body, **{"X-Wave-Tags": "-1=cmd,stage=draft"})
        gateway.complete(tagged[2]["task_id"])
        yield gateway


def run(gateway: process.Gateway, *words: str, code: int = 0) -> str:
    """What a report says, in this process: it reads the files beside the running gateway all the same."""
    places = ["--data", str(gateway.data), "--policies", str(gateway.policies)]
    done = testing.CliRunner().invoke(cli.cli, ["report", *words, *places], prog_name="wave-gateway")
    assert done.exit_code == code, done.output
    return done.output if code else done.stdout


def test_the_table_fits_80_columns_and_sums_up(spent):
    # The names of models give way to the share of the cap.
    assert run(spent) == (
        "team    model                    tasks  images      cost  free   avoided  of cap\n"
        "------  -----------------------  -----  ------  --------  ----  --------  ------\n"
        "growth  gemini-2.5-…age-preview      2       3  $0.03984     1  $0.02656   33.2%\n"
        "------  -----------------------  -----  ------  --------  ----  --------  ------\n"
        "total                                2       3  $0.03984     1  $0.02656\n"
    )


def test_a_narrow_table_has_the_average_cost_of_an_image_too(spent):
    assert run(spent, "--by", "team") == (
        "team    tasks  images      cost  free   avoided   average  of cap\n"
        "------  -----  ------  --------  ----  --------  --------  ------\n"
        "growth      2       3  $0.03984     1  $0.02656  $0.01328   33.2%\n"
        "------  -----  ------  --------  ----  --------  --------  ------\n"
        "total       2       3  $0.03984     1  $0.02656  $0.01328\n"
    )


def test_csv_holds_decimal_strings_and_new_columns_come_last(spent):
    assert run(spent, "--by", "key", "--format", "csv") == (
        "key,tasks,images,cost_usd,free,avoided_usd,average_usd,avoided_cache_usd,avoided_coalesced_usd,premium_usd,"
        "cap_scope,cap_window,cap,cap_usd,cap_share\n"
        "ci,2,3,0.03984,1,0.02656,0.01328,0.02656,0,0,,,,,\n"
    )


def test_json_holds_decimal_strings_and_null_for_what_there_is_not(spent):
    line = {
        "team": "growth",
        "tier": "standard",
        "tasks": 2,
        "images": 3,
        "free": 1,
        "cost_usd": "0.03984",
        "avoided_usd": "0.02656",
        "average_usd": "0.01328",
        "avoided_cache_usd": "0.02656",
        "avoided_coalesced_usd": "0",
        "premium_usd": "0",
        "cap_scope": "team",
        "cap_window": "total",
        "cap": "budget",
        "cap_usd": "0.12",
        "cap_share": "0.332",
    }
    assert json.loads(run(spent, "--by", "team,tier", "--format", "json")) == [line]
    no_cap = {"cap_scope": None, "cap_window": None, "cap": None, "cap_usd": None, "cap_share": None}
    asked = ("--by", "tier", "--since", time.strftime("%Y-01-01", time.gmtime()), "--format", "json")
    assert json.loads(run(spent, *asked)) == [{name: line[name] for name in line if name != "team"} | no_cap]


def test_a_cell_that_a_spreadsheet_would_run_begins_with_an_apostrophe(spent):
    text = run(spent, "--by", "tag", "--format", "csv")
    assert [row[0] for row in csv.reader(io.StringIO(text))] == ["tag", "", "'-1=cmd", "stage=draft"]
    assert [line["tag"] for line in json.loads(run(spent, "--by", "tag", "--format", "json"))] == [
        "",
        "-1=cmd",
        "stage=draft",
    ]


def test_a_focus_file_holds_to_the_specification_and_adds_up_to_the_report(spent):
    text = run(spent, "--format", "focus")
    assert focus_table.problems(text) == []
    rows = focus_table.read(text)
    assert sum(Decimal(row["BilledCost"]) for row in rows) == Decimal("0.03984")
    assert sum(Decimal(row["x_AvoidedCost"]) for row in rows) == Decimal("0.02656")
    assert {row["Tags"] for row in rows} == {
        '{"label/cost_center": "4711"}',
        '{"-1": "cmd", "label/cost_center": "4711", "stage": "draft"}',
    }
    assert {row["BillingAccountId"] for row in rows} == {"env:KEY_GROWTH"}


def test_focus_has_rows_of_its_own_so_groups_are_refused(spent):
    assert "leave --by out" in run(spent, "--format", "focus", "--by", "team", code=2)


def test_a_time_without_tasks_says_so_and_a_wrong_date_is_refused(spent):
    past = ("--since", "2020-01-01", "--until", "2020-01-02")
    assert run(spent, *past) == "Nothing was settled in this time.\n"
    assert run(spent, *past, "--format", "json") == "[]\n"
    assert run(spent, *past, "--format", "csv").count("\n") == 1
    assert focus_table.read(run(spent, *past, "--format", "focus")) == []
    run(spent, "--since", "2020-13-01", code=2)
    run(spent, "--since", "yesterday", code=2)


def test_a_group_is_named_once_and_exists(spent):
    run(spent, "--by", "team,team", code=2)
    run(spent, "--by", "colour", code=2)


def test_without_policies_a_report_says_what_it_does_not_know(spent, tmp_path):
    places = ["--data", str(spent.data), "--policies", str(tmp_path / "none")]
    done = testing.CliRunner().invoke(cli.cli, ["report", "--by", "team", *places])
    assert done.exit_code == 0
    assert done.stderr == f"{tmp_path}/none cannot be read; days are those of UTC, and labels and caps are unknown.\n"
    assert "of cap" not in done.stdout and "$0.03984" in done.stdout


# The table's choice of columns


def line(*group: str, **said: Any) -> report.Line:
    return report.Line(group=group, **{"tasks": 1, "images": 3, "cost_nanos": 100_000_000} | said)


def shown(*lines: report.Line, groups: tuple[str, ...] = ("team",), **said: Any) -> list[list[str]]:
    """The words of each line of the table, which is never wider than a terminal."""
    text = cli_report.table(groups, report.Report(lines=lines, total=line(**said)))
    assert max(map(len, text.splitlines())) <= 80
    return [words.split() for words in text.splitlines() if not words.startswith("-")]


def test_an_average_is_rounded_to_the_nano_and_without_images_there_is_none():
    header, first, second, _ = shown(line("growth"), line("research", images=0))
    assert header == ["team", "tasks", "images", "cost", "free", "avoided", "average"]
    assert first[-1] == "$0.033333333"
    assert second == ["research", "1", "0", "$0.1", "0", "$0"]


def test_what_fallback_cost_extra_is_shown_where_there_is_some_and_room():
    header, first, _ = shown(line("growth", premium_nanos=71_400_000))
    assert header == ["team", "tasks", "images", "cost", "free", "avoided", "premium", "average"]
    assert first[-2] == "$0.0714"
    wide = shown(line("growth", FLASH, premium_nanos=71_400_000), groups=("team", "model"))
    assert wide[0] == ["team", "model", "tasks", "images", "cost", "free", "avoided"]


def test_a_cap_of_nothing_has_no_share():
    nothing = share.Ceiling(scope=budget.Scope.TEAM, window=Window.DAY, cap="stop", limit_nanos=Nanos(0))
    tenth = share.Ceiling(scope=budget.Scope.TEAM, window=Window.DAY, cap="day", limit_nanos=Nanos(1_000_000_000))
    header, first, second, _ = shown(line("growth", ceiling=nothing), line("research", ceiling=tenth))
    assert (header[-2:], first[-1], second[-1]) == (["of", "cap"], "$0.033333333", "10.0%")
