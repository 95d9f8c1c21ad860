"""The vendor goes away under load, the short forms of `tests/proofs/outage`: fewer submits, the same minutes."""

from __future__ import annotations

from tests.proofs import outage


async def test_an_outage_of_a_minute_is_seen_by_no_client_and_probed_every_five_seconds(tmp_path):
    await outage.a_minute_down(tmp_path, per_s=5)


async def test_a_vendor_that_comes_and_goes_loses_and_doubles_nothing(tmp_path):
    await outage.flapping(tmp_path, per_s=15, seconds=20)


async def test_a_vendor_that_drops_every_second_answer_gets_no_more_retries_than_the_budget(tmp_path):
    await outage.half_deaf(tmp_path, per_s=20, seconds=12)
