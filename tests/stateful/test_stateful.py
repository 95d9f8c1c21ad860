"""The model test, short and always the same; `make stateful` runs it for as long as one likes."""

import pathlib
import subprocess
import sys

import pytest
from hypothesis import stateful

from tests.stateful import machine, run


@pytest.mark.timeout(300)  # ten seconds of work, on however busy a machine
def test_the_books_equal_the_reference_and_the_bill_whatever_happens_in_whatever_order():
    before = machine.steps_played()
    stateful.run_state_machine_as_test(machine.Gateway, settings=run.settings(examples=36, is_repeatable=True))
    assert machine.steps_played() - before >= 1_500


def test_a_run_prints_its_seed_its_steps_and_how_often_each_rule_was_played():
    command = [sys.executable, "-m", "tests.stateful.run", "--steps", "300", "--seed", "7"]
    root = pathlib.Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "seed 7" in ended.stdout
    assert "violations: 0" in ended.stdout
    assert "crash in a submit" in ended.stdout
