"""The gateway is killed 200 times, at every failpoint, and its books agree with the vendor's bill each time."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

from gateway import failpoints
from tests.crash import plans, run

ROOT = pathlib.Path(__file__).parent.parent.parent
TOTALS = re.compile(r"(\d+) kills, (\d+) nanos lost, (\d+) gained, (\d+) duplicates, (.*)")


def test_every_failpoint_that_is_called_is_in_the_table_once_and_the_table_holds_no_other():
    called: list[str] = []
    for path in sorted((ROOT / "gateway").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        literal = re.findall(r'failpoints\.reach\("([^"]+)"\)', text)
        assert len(literal) == text.count("failpoints.reach("), f"{path}: a name that is not written out"
        called += literal
    assert sorted(called) == sorted(failpoints.NAMES)


def test_nothing_in_the_gateway_arms_a_failpoint():
    arming = [path.name for path in (ROOT / "gateway").rglob("*.py") if re.search(r"\barm\(", path.read_text("utf-8"))]
    assert arming == ["failpoints.py"]


def test_reach_calls_what_was_armed_and_nothing_otherwise():
    reached: list[str] = []
    failpoints.reach("submit.decided")
    failpoints.arm(reached.append)
    try:
        failpoints.reach("sqlite.ran")
    finally:
        failpoints.arm(None)
    failpoints.reach("submit.decided")
    assert reached == ["sqlite.ran"]


def test_every_failpoint_has_a_scenario_that_exists():
    assert set(plans.REACHED_BY) == set(failpoints.NAMES)
    assert set(plans.REACHED_BY.values()) <= set(plans.SCENARIOS)


def test_a_plan_is_made_of_its_seed_and_number_alone():
    assert plans.life(7, 3) == plans.life(7, 3)
    assert plans.life(7, 3) != plans.life(7, 4)
    assert plans.crowd(7, 3, 50) == plans.crowd(7, 3, 50)


def test_a_run_that_was_stopped_goes_on_and_one_that_was_done_begins_anew(tmp_path):
    path = tmp_path / "kills.jsonl"
    stopped = run.State(path, seed=7, kills=10, rounds=0)
    stopped.add(run.Result(kind="life", number=0, kills=("sqlite.ran",) * 5))
    going_on = run.State(path, seed=None, kills=10, rounds=0)
    assert (going_on.seed, going_on.left()) == (7, [("life", 1)])
    going_on.add(run.Result(kind="life", number=1, kills=("sqlite.ran",) * 5))
    anew = run.State(path, seed=8, kills=10, rounds=0)
    assert (anew.seed, anew.left()) == (8, [("life", 0), ("life", 1)])


@pytest.mark.timeout(420)
def test_after_205_kills_at_every_failpoint_the_ledger_equals_the_bill(tmp_path):
    # Of a process that ends by SIGKILL no coverage is kept; measuring it would only slow this down.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, "-m", "tests.crash.run", "--kills", "200", "--rounds", "5", "--state", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    totals = TOTALS.search(done.stdout)
    assert totals is not None, done.stdout
    assert totals.groups() == ("205", "0", "0", "0", "all tasks ended")
    killed_at = dict(re.findall(r"^(\S+\.\S+) +(\d+) +0$", done.stdout, flags=re.MULTILINE))
    assert killed_at.keys() == failpoints.NAMES.keys()
    assert min(map(int, killed_at.values())) >= 3
