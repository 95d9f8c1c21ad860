"""A thousand clients that leave, the short form of `tests/proofs/disconnects`."""

from __future__ import annotations

from tests.proofs import disconnects


def test_a_thousand_clients_that_leave_lose_no_task_and_leave_nothing_open(tmp_path):
    disconnects.prove(tmp_path, clients=1000)
