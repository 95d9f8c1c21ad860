"""What an answer of the upstream may bring in, over real sockets."""

from __future__ import annotations

import pytest

from gateway.outbound import upstream
from gateway.rules import task
from tests import receiver, stage

BODY = b'{"model":"gemini-2.5-flash-image-preview","prompt":"a fox"}'


@pytest.mark.parametrize(
    ("key", "said", "kept"),
    [
        ("sk-0123456789abcdef", "bad key: sk-0123456789abcdef", "bad key: [upstream key]"),
        ("sk-0123456789abcdef", "sk-0123456789abcdef twice sk-0123456789abcdef", "[upstream key] twice [upstream key]"),
        ("sk-0123456789abcdef", "bad key: sk-0****def", "bad key: sk-0****def"),
        ("tooshort", "the prompt is tooshort", "the prompt is tooshort"),  # no secret, but a word
    ],
)
async def test_an_answer_that_repeats_our_key_is_taken_without_it(key, said, kept):
    refusal = {"status": 400, "code": "upstream_bad_request", "message": said}
    async with stage.served({}, stage.Clock()) as (vendor, url):
        vendor.set_script([{"on": "submit", "do": refusal}])
        asked = upstream.Upstream(url, verify=stage.NO_AUTHORITIES)
        try:
            outcome = await asked.submit(BODY, key=key, idempotency_key="1")
        finally:
            await asked.aclose()
    assert isinstance(outcome, task.Refused)
    assert outcome.document == b'{"error":{"message":"%s","code":"upstream_bad_request"}}' % kept.encode()


async def test_a_cookie_of_the_upstream_is_neither_kept_nor_sent_back():
    async with receiver.receiving(
        receiver.status(503, "Set-Cookie: session=first-team", "Connection: close")
    ) as vendor:
        asked = upstream.Upstream(vendor.url, verify=stage.NO_AUTHORITIES)
        try:
            for key in ("sk-of-the-first-team", "sk-of-the-second-team"):
                await asked.submit(BODY, key=key, idempotency_key="1")
        finally:
            await asked.aclose()
    assert [request.headers.get("cookie") for request in vendor.requests] == [None, None]
