"""The route of the vendor's callbacks behind the guard; with real processes it is tried in tests/test_callbacks.py."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from starlette.applications import Starlette
from starlette.types import Message

from gateway.edge import callbacks, guard, render
from tests import stage as stages

KNOWN = "0" * 42 + "1"


async def exchange(stage: stages.Stage, token: str, *parts: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """What a sender gets that sends these parts of a body and then no more, without ending it."""
    app = Starlette(routes=callbacks.routes(stage.parts), exception_handlers=render.exception_handlers())
    guarded = guard.Guard(
        app,
        max_body_bytes=1000,
        new_request_id=lambda: "req-1",
        clock=time.monotonic,
        observe=lambda *labels: None,
        body_deadline_s=0.2,
        linger_s=0.05,
    )
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": f"/callbacks/{token}", "query_string": b""}
    scope |= {"headers": [(b"transfer-encoding", b"chunked")], "scheme": "http", "server": None, "client": None}
    left, sent = list(parts), []

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": left.pop(0), "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    async with asyncio.timeout(20):
        await guarded(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(each.get("body", b"") for each in sent)


async def test_a_body_that_never_ends_is_given_up_and_its_hint_counts_all_the_same(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        row = await stage.admitted()
        status, headers, body = await exchange(stage, KNOWN, b"a", b"b")
        assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
        assert headers[b"connection"] == b"close"
        assert stage.parts.watch.take_wanted(10, now=stage.clock()) == [row.id]


async def test_a_body_that_grows_past_the_bound_is_a_413(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        await stage.admitted()
        status, _, body = await exchange(stage, KNOWN, b"x" * 600, b"x" * 600)
        assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")


async def test_a_strangers_body_is_not_waited_for(tmp_path):
    async with stages.staged(tmp_path, callbacks_are_on=True) as stage:
        for parts in ((), (b"a",), (b"x" * 600, b"x" * 600)):
            status, headers, body = await exchange(stage, "x" * 43, *parts)
            assert (status, json.loads(body)["error"]["code"]) == (404, "not_found")
            assert headers[b"connection"] == b"close"
