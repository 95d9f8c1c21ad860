"""The table of seeded bugs does not rot; that each bug is caught is `make mutants`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests import named_tests
from tests.mutants import mutants

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=[each.name for each in mutants.MUTANTS])
def test_a_mutant_can_be_put_in_and_its_tests_exist(mutant):
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.old!r} occurs {text.count(mutant.old)} times in {mutant.file}"
    changed = text.replace(mutant.old, mutant.new)
    assert changed != text
    if mutant.file.endswith(".py"):
        ast.parse(changed)
    assert mutant.tests and [test for test in mutant.tests if not named_tests.exists(test)] == []


def test_no_two_mutants_are_alike():
    assert len({each.name for each in mutants.MUTANTS}) == len(mutants.MUTANTS) >= 28
    assert len({(each.file, each.old, each.new) for each in mutants.MUTANTS}) == len(mutants.MUTANTS)
