"""Clients that leave in the middle of everything: afterwards the gateway is as healthy as before, and no task is lost.

Raw sockets against a real gateway. Five ways to leave, in turn: half a head, half a body, a whole request, a whole
request that waits for its end, a whole request and a reset connection. What the gateway holds open is read from /proc:
the first half of the clients warms it up, the second half must not add to it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import struct
import time
from typing import Final

import aiohttp

from tests import process
from tests.proofs import run

MODEL: Final = "gemini-2.5-flash-image-preview"
HEALTHY: Final = 100
AT_ONCE: Final = 50
SETTLES_WITHIN_S: Final = 120
# The vendor's pictures must not be what takes the time, and the last kind of client must leave before its task ends.
VENDOR: Final = [{"on": "submit", "times": None, "do": {"queue_s": 0, "work_s": 0.4}}]
MOST_RSS_GROWTH_BYTES: Final = 48 * 2**20
"""Memory may grow by so much from one half to the next: caches that fill, not clients that stay."""

WAYS: Final = ("half a head", "half a body", "whole", "waiting", "reset")
WHOLE: Final = ("whole", "waiting", "reset")
"""Those that sent a request which the gateway has to carry out; a reset one, when it is repeated."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a gateway process holds, without idle connections to the vendor, of which it may keep some."""

    files: int
    clients: int
    threads: int
    rss_bytes: int


def held(gateway: process.Gateway, vendor: process.Vendor) -> Held:
    """Read from /proc."""
    assert gateway.process is not None
    at = pathlib.Path("/proc") / str(gateway.process.pid)
    targets = []
    for each in (at / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            targets.append(os.readlink(each))
    peers = {inode: (local, remote) for inode, local, remote in _established(at / "net" / "tcp")}
    sockets = [peers.get(target.removeprefix("socket:[").rstrip("]")) for target in targets]
    ours, theirs = (int(each.url.rpartition(":")[2]) for each in (gateway, vendor))
    status = dict(line.split(":", 1) for line in (at / "status").read_text().splitlines())
    return Held(
        files=sum(each is None or each[1] != theirs for each in sockets),
        clients=sum(each is not None and each[0] == ours for each in sockets),
        threads=int(status["Threads"]),
        rss_bytes=int(status["VmRSS"].split()[0]) * 1024,
    )


def _established(table: pathlib.Path):
    """(inode, local port, remote port) of each connection, listeners left out."""
    for line in table.read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] != "0A":
            yield fields[9], int(fields[1].rpartition(":")[2], 16), int(fields[2].rpartition(":")[2], 16)


async def leave(url: str, way: str, number: int) -> None:
    """One client that begins a request in its way and goes."""
    host, _, port = url.removeprefix("http://").partition(":")
    body = json.dumps({"model": MODEL, "prompt": f"fox {number}"}).encode()
    wish = "Prefer: wait=30\r\n" if way == "waiting" else ""
    head = (
        f"POST /v1/tasks HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {process.KEYS['growth']}\r\n"
        f"Content-Type: application/json\r\nIdempotency-Key: k-{number}\r\n{wish}Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    sent = {"half a head": head[: len(head) // 2], "half a body": head + body[: len(body) // 2]}.get(way, head + body)
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    await writer.drain()
    if way == "waiting":
        await asyncio.sleep(0.2)
    if way == "reset":
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def storm(url: str, numbers: range) -> None:
    """These clients, some at once."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with gate:
            await leave(url, WAYS[number % len(WAYS)], number)

    await asyncio.gather(*(one(number) for number in numbers))


async def repeat_resets(url: str, numbers: range) -> int:
    """Repeat each request that was reset, under its key, as its client would; how many had not arrived.

    A reset throws away what the other side has not taken yet, so nobody can promise that such a request was heard.
    """
    gate = asyncio.Semaphore(AT_ONCE)
    headers = {"Authorization": f"Bearer {process.KEYS['growth']}"}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def one(number: int) -> bool:
            body, key = {"model": MODEL, "prompt": f"fox {number}"}, {"Idempotency-Key": f"k-{number}"}
            async with gate, session.post(f"{url}/v1/tasks", json=body, headers=key) as answer:
                assert answer.status == 200, f"a repeat got {answer.status}: {await answer.text()}"
                return "Idempotent-Replayed" not in answer.headers

        resets = [number for number in numbers if WAYS[number % len(WAYS)] == "reset"]
        return sum(await asyncio.gather(*(one(number) for number in resets)))


def settle(gateway: process.Gateway, vendor: process.Vendor, *, tasks: int) -> None:
    """Wait until nothing is open any more, at the vendor or here."""
    until = time.monotonic() + SETTLES_WITHIN_S
    while True:
        text = process.fetch(gateway.url + "/metrics")[2].decode()
        lines = [line for line in text.splitlines() if line.startswith("wave_gateway_tasks_open{")]
        still_open = int(sum(float(line.rpartition(" ")[2]) for line in lines))
        bill = vendor.bill()
        if still_open == 0 and bill["open"] == 0 and bill["tasks"] >= tasks and held(gateway, vendor).clients == 0:
            return
        assert time.monotonic() < until, (
            f"{still_open} tasks are open, the vendor has {bill['tasks']} of {tasks}, {held(gateway, vendor)}"
        )
        time.sleep(0.2)


def prove(directory: pathlib.Path, *, clients: int = 10_000) -> str:
    """So many clients leave, then a hundred healthy ones get their pictures."""
    with process.pair(directory, growth="limits: {open_tasks: 100000}\n") as (gateway, vendor):
        vendor.script(VENDOR)
        whole = [number for number in range(clients) if WAYS[number % len(WAYS)] in WHOLE]
        first, second = range(clients // 2), range(clients // 2, clients)
        asyncio.run(storm(gateway.url, first))
        unheard = asyncio.run(repeat_resets(gateway.url, first))
        settle(gateway, vendor, tasks=sum(number in first for number in whole))
        before = held(gateway, vendor)
        asyncio.run(storm(gateway.url, second))
        unheard += asyncio.run(repeat_resets(gateway.url, second))
        settle(gateway, vendor, tasks=len(whole))
        _check_healthy(gateway)
        settle(gateway, vendor, tasks=len(whole) + HEALTHY)
        after = held(gateway, vendor)
        assert (after.files, after.clients) <= (before.files, 0), f"{before} became {after}"
        assert after.threads <= before.threads, f"{before} became {after}"
        grown = after.rss_bytes - before.rss_bytes
        assert grown < MOST_RSS_GROWTH_BYTES, f"{before} became {after}"
        bill = vendor.bill()
        prompts = collections.Counter(line["prompt"] for line in bill["by_task"].values())
        assert max(prompts.values()) == 1, prompts.most_common(3)
        lost = {f"fox {number}" for number in whole} - prompts.keys()
        assert not lost, f"{len(lost)} whole requests have no task: {sorted(lost)[:3]}"
        assert bill["tasks"] == len(whole) + HEALTHY, (bill["tasks"], len(whole))
        settled = gateway.settled_nanos()
        assert settled == bill["nanos"] == bill["tasks"] * 13_280_000, (settled, bill["nanos"])
        audited = gateway.cli("audit")
        assert audited.returncode == 0, audited.stdout
    return (
        f"{clients} clients left, {len(whole)} whole requests carried out and billed once ({unheard} resets were heard "
        f"only when repeated), then {HEALTHY} of {HEALTHY} "
        f"healthy; {after.files} files and {after.threads} threads as after the first half, "
        f"{grown / 2**20:+.0f} MiB"
    )


def _check_healthy(gateway: process.Gateway) -> None:
    """A hundred clients that stay until their picture is there."""
    answers = asyncio.run(gateway.flood([{"model": MODEL, "prompt": f"healthy {each}"} for each in range(HEALTHY)]))
    statuses = collections.Counter(status for status, _, _ in answers)
    assert statuses == {200: HEALTHY}, dict(statuses)
    ended = collections.Counter(gateway.complete(document["task_id"])["status"] for _, _, document in answers)
    assert ended == {"completed": HEALTHY}, dict(ended)


if __name__ == "__main__":
    run.alone("disconnects", prove)
