"""Every answer of the vendor to a submit, and what becomes of the hold (CONTRACT §2).

What the simulator can answer, it answers; the rest is written to a socket byte by byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gateway.flow import resubmit
from gateway.outbound import upstream
from gateway.rules import task
from gateway.store import sqlite
from tests import stage as stages

CAP = 'spend: [{cap: "1.00", per: day}]\n'
QUOTE = 13_282_000
KEPT = [("reserve", QUOTE)]
RELEASED = [("reserve", QUOTE), ("release", QUOTE)]

SUBMITTED, REFUSED, WAITING, IN_DOUBT = (
    task.State.SUBMITTED,
    task.State.REFUSED,
    task.State.WAITING,
    task.State.IN_DOUBT,
)
RESET = b""
"""Instead of an answer: the connection is reset."""


def answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    """An answer as it stands on the wire, its length told."""
    head = [f"HTTP/1.1 {status}", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@contextlib.asynccontextmanager
async def vendor_that(stage: stages.Stage, respond: Callable[[int], bytes], *, reads_body: bool = True):
    """From now on the upstream is a socket: `respond` gets 1, 2, … and returns what is written before the close."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        head = await reader.readuntil(b"\r\n\r\n")
        if reads_body:
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
        count += 1
        said = respond(count)
        if said == RESET:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            return
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, connected_to(stage, f"http://127.0.0.1:{port}"):
        yield


@contextlib.asynccontextmanager
async def connected_to(stage: stages.Stage, url: str) -> AsyncIterator[None]:
    """For a while the upstream is at another address."""
    there = stage.parts.upstream
    object.__setattr__(stage.parts, "upstream", upstream.Upstream(url))
    try:
        yield
    finally:
        await stage.parts.upstream.aclose()
        object.__setattr__(stage.parts, "upstream", there)


SIMULATED: list[tuple[str, dict[str, Any], task.State, list[tuple[str, int]]]] = [
    ("200 with a task id", {"delay_s": 0}, SUBMITTED, KEPT),
    ("200 without a task id", {"answer": {"code": "success"}}, IN_DOUBT, KEPT),
    ("200 with a number for an id", {"answer": {"task_id": 7, "status": "queued"}}, IN_DOUBT, KEPT),
    ("200 with an id of 5,000 letters", {"answer": {"task_id": "x" * 5_000}}, IN_DOUBT, KEPT),
    ("200 that is no JSON", {"garbage": True}, IN_DOUBT, KEPT),
    ("200 that is a page", {"garbage": "html"}, IN_DOUBT, KEPT),
    ("200 of more than 1 MiB", {"answer": {"task_id": "v-12345678", "x": "x" * 1_100_000}}, IN_DOUBT, KEPT),
    ("301", {"status": 301, "location": "/v1/tasks"}, IN_DOUBT, KEPT),
    ("302", {"status": 302, "location": "/v1/tasks"}, IN_DOUBT, KEPT),
    ("307 to a place that takes it", {"status": 307, "location": "/v1/tasks"}, IN_DOUBT, KEPT),
    ("308 to a place that takes it", {"status": 308, "location": "/v1/tasks"}, IN_DOUBT, KEPT),
    ("400", {"status": 400}, REFUSED, RELEASED),
    ("400 without a body that can be read", {"status": 400, "garbage": "html"}, IN_DOUBT, KEPT),
    ("401", {"status": 401}, WAITING, KEPT),
    ("402", {"status": 402}, WAITING, KEPT),
    ("403", {"status": 403}, WAITING, KEPT),
    ("404", {"status": 404}, REFUSED, RELEASED),
    ("404 without a body that can be read", {"status": 404, "garbage": "html"}, IN_DOUBT, KEPT),
    ("405", {"status": 405}, IN_DOUBT, KEPT),
    ("408", {"status": 408}, IN_DOUBT, KEPT),
    ("409", {"status": 409}, IN_DOUBT, KEPT),
    ("413", {"status": 413}, REFUSED, RELEASED),
    ("418", {"status": 418}, IN_DOUBT, KEPT),
    ("422", {"status": 422}, REFUSED, RELEASED),
    ("425", {"status": 425}, IN_DOUBT, KEPT),
    ("429", {"status": 429, "retry_after": 30}, WAITING, KEPT),
    ("429 that is a page", {"status": 429, "garbage": "html"}, WAITING, KEPT),
    ("500", {"status": 500}, IN_DOUBT, KEPT),
    ("500 price_not_configured", {"status": 500, "code": "price_not_configured"}, REFUSED, RELEASED),
    ("500 that is a page", {"status": 500, "garbage": "html"}, IN_DOUBT, KEPT),
    ("501", {"status": 501}, IN_DOUBT, KEPT),
    ("502", {"status": 502, "garbage": "html"}, IN_DOUBT, KEPT),
    ("503", {"status": 503}, IN_DOUBT, KEPT),
    ("504", {"status": 504}, IN_DOUBT, KEPT),
    ("dropped before it is done", {"drop": True}, IN_DOUBT, KEPT),
    ("dropped after it is done", {"accept_and_drop": True}, IN_DOUBT, KEPT),
]


@pytest.mark.parametrize(
    ("fault", "state", "entries"), [row[1:] for row in SIMULATED], ids=[row[0] for row in SIMULATED]
)
async def test_an_answer_decides_what_becomes_of_the_hold(tmp_path, fault, state, entries):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "do": fault}])
        await _submitted(stage, state, entries)


WHOLE = b'{"task_id":"v-12345678","status":"queued"}'
WRITTEN: list[tuple[str, bytes, task.State]] = [
    ("201 with a task id", answer("201 Created", WHOLE), SUBMITTED),
    ("204", b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", IN_DOUBT),
    ("200 without a body", answer("200 OK"), IN_DOUBT),
    ("200 whose body is cut", answer("200 OK", WHOLE)[:-1], IN_DOUBT),
    ("400 whose body is cut", answer("400 Bad Request", b'{"error":{"code":"bad"}}')[:-1], IN_DOUBT),
    ("200 whose chunks are cut", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2a\r\n" + WHOLE, IN_DOUBT),
    ("200 in an encoding nobody asked for", answer("200 OK", b"\x1f\x8b\x08", "Content-Encoding: gzip"), IN_DOUBT),
    ("half a head", b"HTTP/1.1 200 O", IN_DOUBT),
    ("no HTTP", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", IN_DOUBT),
    ("a reset after the request", RESET, IN_DOUBT),
]


@pytest.mark.parametrize(("said", "state"), [row[1:] for row in WRITTEN], ids=[row[0] for row in WRITTEN])
async def test_bytes_that_are_no_whole_answer_leave_it_in_doubt(tmp_path, said, state):
    async with stages.staged(tmp_path, growth=CAP) as stage, vendor_that(stage, lambda _: said):
        await _submitted(stage, state, KEPT)


async def test_a_reset_while_the_request_is_written_leaves_it_in_doubt(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage, vendor_that(stage, lambda _: RESET, reads_body=False):
        await _submitted(stage, IN_DOUBT, KEPT, prompt="x" * 8_000_000)


async def test_an_answer_that_does_not_come_in_time_leaves_it_in_doubt(tmp_path, monkeypatch):
    monkeypatch.setattr(upstream, "TOTAL_S", 0.2)
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"accept_and_hang_s": 20}}])
        await _submitted(stage, IN_DOUBT, KEPT)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://no-such-host.invalid"])
async def test_what_was_never_connected_was_not_sent(tmp_path, url):
    async with stages.staged(tmp_path, growth=CAP) as stage, connected_to(stage, url):
        await _submitted(stage, WAITING, KEPT)


async def test_without_a_tls_handshake_it_was_not_sent(tmp_path):
    received: list[bytes] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(65_536))
        writer.close()

    async with (
        stages.staged(tmp_path, growth=CAP) as stage,
        await asyncio.start_server(hang_up, "127.0.0.1", 0) as door,
    ):
        async with connected_to(stage, f"https://127.0.0.1:{door.sockets[0].getsockname()[1]}"):
            await _submitted(stage, WAITING, KEPT)
    assert [b"v1/tasks" in each for each in received] == [False]


LATER: list[tuple[str, dict[str, Any], task.State, list[tuple[str, int]]]] = [
    ("accepted", {"delay_s": 0}, SUBMITTED, KEPT),
    ("refused", {"status": 400, "code": "bad"}, task.State.FAILED, RELEASED),
    ("refused for want of a price", {"status": 500, "code": "price_not_configured"}, task.State.FAILED, RELEASED),
    ("429", {"status": 429}, IN_DOUBT, KEPT),
    ("401", {"status": 401}, IN_DOUBT, KEPT),
    ("402", {"status": 402}, IN_DOUBT, KEPT),
    ("403", {"status": 403}, IN_DOUBT, KEPT),
    ("500", {"status": 500}, IN_DOUBT, KEPT),
    ("302", {"status": 302, "location": "/v1/tasks"}, IN_DOUBT, KEPT),
    ("dropped", {"drop": True}, IN_DOUBT, KEPT),
    ("a vendor's window past the deadline", {"status": 429, "code": "quota_window_exceeded"}, IN_DOUBT, KEPT),
]


@pytest.mark.parametrize(("fault", "state", "entries"), [row[1:] for row in LATER], ids=[row[0] for row in LATER])
async def test_doubt_ends_only_on_acceptance_or_refusal_under_its_key(tmp_path, fault, state, entries):
    if fault.get("code") == "quota_window_exceeded":
        fault = fault | {"reset_at": int(stages.NOON) + 3_600}
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"status": 503}}, {"on": "submit", "do": fault}])
        row = await stage.admitted()
        stage.clock.advance(1)
        await _repeated(stage, row.id)
        assert ((await stage.row(row.id)).state, await stage.entries(row.id)) == (state, entries)
        assert stage.posts() == 2
        assert await stage.audit() == []


async def test_doubt_outlives_a_later_failure_to_connect(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"status": 503}}])
        row = await stage.admitted()
        async with connected_to(stage, "http://127.0.0.1:1"):
            for _ in range(3):
                stage.clock.advance(60)
                await _repeated(stage, row.id)
        kept = await stage.row(row.id)
        assert (kept.state, kept.attempts, await stage.entries(row.id)) == (IN_DOUBT, 4, KEPT)


@pytest.mark.parametrize(
    ("first", "state", "attempts"), [("503 Unavailable", IN_DOUBT, 2), ("429 Slow Down", task.State.RESERVED, 2)]
)
async def test_each_attempt_is_on_the_disk_before_the_vendor_hears_of_it(tmp_path, first, state, attempts):
    seen: list[tuple[Any, ...]] = []

    def look(number: int) -> bytes:
        """What stands in the file at the moment when the request arrives, for a process that opens it."""
        sql = (
            "SELECT state, attempts, (SELECT SUM(nanos) FROM entries WHERE kind = 'reserve') AS held, "
            "(SELECT reserved_nanos FROM balances) AS reserved FROM tasks"
        )
        path = tmp_path / "data" / "wave.db"
        seen.extend(stages.values(row) for row in sqlite.scan_file(path, lambda tx: tx.all(sql)))
        return answer(first, b"{}") if number == 1 else answer("200 OK", WHOLE)

    async with stages.staged(tmp_path, growth=CAP) as stage, vendor_that(stage, look):
        row = await stage.admitted()
        stage.clock.advance(1)
        await _repeated(stage, row.id)
        assert (await stage.row(row.id)).state is SUBMITTED
    assert seen == [("reserved", 1, QUOTE, QUOTE), (state, attempts, QUOTE, QUOTE)]


async def _submitted(stage: stages.Stage, state: task.State, entries: list[tuple[str, int]], **fields: Any) -> None:
    """Submit; the task is in this state with these entries, the client sees no error of ours, the books agree."""
    row = await stage.admitted(**fields)
    assert (row.state, await stage.entries(row.id)) == (state, entries)
    reserved = sum(nanos if kind == "reserve" else -nanos for kind, nanos in entries)
    assert await stage.balances() == {("team", "growth", "day"): (0, reserved)}
    if state is not REFUSED:
        assert (await stage.shown(row))["status"] == "queued"
    assert await stage.audit() == []


async def _repeated(stage: stages.Stage, task_id: str) -> None:
    """Take the background step of submits that did not end with the first POST, for one task."""
    assert list(await resubmit.due(stage.parts, 10)) == [task_id]
    await resubmit.step(stage.parts, task_id)
