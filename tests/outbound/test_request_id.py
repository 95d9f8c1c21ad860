"""`X-Request-Id`: by it the vendor's support finds every call about a task."""

from __future__ import annotations

import pytest

from gateway.outbound import upstream
from tests import receiver, stage

ABOUT = upstream.About(task_id="task-wg1", request_id="req-of-the-submit")


@pytest.mark.parametrize("about", [ABOUT, None])
async def test_every_call_about_a_task_carries_the_request_id_of_its_submit_and_no_other_call_does(about):
    async with receiver.receiving(receiver.status(503, "Connection: close")) as there:
        asked = upstream.Upstream(there.url, verify=stage.NO_AUTHORITIES)
        try:
            for _ in range(2):
                await asked.submit(b"{}", key="k", idempotency_key="1", about=about)
            await asked.poll("v-1", key="k", about=about)
            await asked.cancel("v-1", key="k", about=about)
            await asked.balance(key="k")
        finally:
            await asked.aclose()
    sent = None if about is None else "req-of-the-submit"
    assert [each.headers.get("x-request-id") for each in there.requests] == [sent, sent, sent, sent, None]
    assert not any("task-wg1" in str(each) for each in there.requests)  # our ids are nobody's business
