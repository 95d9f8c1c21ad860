"""A few webhooks among bad receivers, the short form of `tests/proofs/webhooks`."""

from __future__ import annotations

from tests.proofs import webhooks


def test_bad_receivers_delay_no_good_one_and_a_failed_attempt_is_repeated_on_schedule(tmp_path):
    webhooks.prove(tmp_path, attempts=2, tasks=12)
