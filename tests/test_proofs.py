"""The long proofs of the money in their short forms: real processes; see `tests/proofs` and docs/MONEY.md."""

from __future__ import annotations

import pytest

from tests.proofs import drops, rounding, sums


def test_a_hundred_of_a_hundred_answers_lost_are_a_hundred_tasks_each_billed_once(tmp_path):
    drops.prove(tmp_path)


def test_ten_thousand_settles_without_a_cost_are_exact_in_the_report_and_the_scrape(tmp_path):
    sums.prove(tmp_path, settles=10_000)


@pytest.mark.parametrize("how", ["up", "down"])
def test_no_committed_state_passes_a_cap_however_the_vendor_rounds(tmp_path, how):
    rounding.full(tmp_path, rounding=how, submits=150, room=50, cap="0.6641")
