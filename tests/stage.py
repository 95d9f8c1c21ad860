"""A stage for flow tests: the real simulator on a real socket, a real database, a clock that only the test moves."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import pathlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import msgspec
import uvicorn
from starlette.applications import Starlette

from gateway import policy_files, simulator
from gateway.edge import callbacks, render
from gateway.flow import adopt, audit, deliver, mirror, parts, poll, read, resubmit, submit, watch
from gateway.outbound import download, upstream, webhook
from gateway.rules import policy
from gateway.store import blobs_disk, cache, sqlite, tasks
from gateway.store.database import Row

NOON = 1_795_348_800.0
"""2026-11-22 12:00:00 UTC, a Sunday."""

FLASH = "gemini-2.5-flash-image-preview"
PRO = "gemini-3-pro-image-preview"

MODELS = """
models:
  gemini-2.5-flash-image-preview-official:
    prices: [{from: 2026-01-01, usd: "0.03315"}]
    tier: official
  gemini-2.5-flash-image-preview:
    prices: [{from: 2026-01-01, usd: "0.01328125"}]
    official: gemini-2.5-flash-image-preview-official
    actions: [generate, image2image, edit, reference]
    resolutions: [1K]
  gemini-3-pro-image-preview-official:
    prices: [{from: 2026-01-01, usd: "0.1139"}]
    tier: official
  gemini-3-pro-image-preview:
    prices: [{from: 2026-01-01, usd: "0.0425"}]
    official: gemini-3-pro-image-preview-official
"""
TEAM = """
team: {name}
upstream_key: env:KEY_{upper}
keys: [{{name: ci, sha256: "{digest}"}}]
official_fallback: {{default: allow}}
"""

NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""The simulator speaks plain HTTP, and reading the system's certificates takes 0.1 s."""

Caller = submit.Caller
CALLER = Caller(team="growth", key="ci")
OTHER = Caller(team="research", key="ci")


def values(row: Row) -> tuple[Any, ...]:
    """A row's values, in the order of its columns."""
    return tuple(row[name] for name in row.keys())


class Clock:
    """Unix seconds that stand still until a test moves them."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def write_policies(directory: pathlib.Path, *, org: str = "", models: str = MODELS, **teams: str) -> policy.PolicySet:
    """Policy files of teams `growth` and `research`, each with further lines, loaded as the gateway does."""
    (directory / "teams").mkdir(parents=True, exist_ok=True)
    (directory / "models.yaml").write_text(models)
    (directory / "org.yaml").write_text(org or "timezone: UTC\n")
    for number, name in enumerate(("growth", "research"), start=1):
        text = TEAM.format(name=name, upper=name.upper(), digest=str(number) * 64)
        lines = teams.get(name, "")
        if "official_fallback" in lines:
            text = text.replace("official_fallback: {default: allow}\n", "")
        (directory / "teams" / f"{name}.yaml").write_text(text + lines)
    return policy_files.load(directory)


class Stage:
    """Everything a flow works with, and the vendor that it works against."""

    def __init__(
        self,
        with_parts: parts.Parts,
        vendor: simulator.Simulator,
        clock: Clock,
        keys: dict[str, str],
        *,
        url: str,
        door: httpx.AsyncBaseTransport,
    ) -> None:
        self.parts = with_parts
        self.url = url
        self.vendor = vendor
        self.clock = clock
        self.keys = keys
        self.door = door
        """Where the vendor's callbacks arrive."""

    async def submit(
        self, caller: Caller = CALLER, *, key: str | None = None, **fields: Any
    ) -> submit.Submitted | policy.Deny:
        body = {"model": FLASH, "prompt": "a fox"} | fields
        options = submit.Options(request_id="req-1", idempotency_key=key)
        return await submit.submit(self.parts, caller, msgspec.json.encode(body), options)

    async def admitted(self, caller: Caller = CALLER, *, key: str | None = None, **fields: Any) -> tasks.Task:
        result = await self.submit(caller, key=key, **fields)
        assert isinstance(result, submit.Submitted), result
        return result.row

    async def denied(self, caller: Caller = CALLER, **fields: Any) -> policy.Deny:
        result = await self.submit(caller, **fields)
        assert isinstance(result, policy.Deny), result
        return result

    async def run(self, seconds: float = 0.0) -> None:
        """Move the clock and take every background step that is due then, once."""
        self.clock.advance(seconds)
        steps = (
            (resubmit.due, resubmit.step),
            (poll.due, poll.step),
            (mirror.due, mirror.step),
            (mirror.due_late, mirror.step),
        )
        for due, step in steps:
            await asyncio.gather(*(step(self.parts, task_id) for task_id in await due(self.parts, 100)))

    async def finish(self, rounds: int = 12, seconds: float = 5.0) -> None:
        """Let everything that can end do so."""
        for _ in range(rounds):
            await self.run(seconds)

    async def deliver(self, seconds: float = 0.0) -> None:
        """Move the clock and make each attempt at a webhook that is due then, once."""
        self.clock.advance(seconds)
        due = await deliver.due(self.parts, 100)
        await asyncio.gather(*(deliver.step(self.parts, task_id) for task_id in due))

    async def call_back(self, token: str, *, times: int = 1, body: bytes = b"") -> list[int]:
        """Send a callback so many times at once; returns the statuses."""
        async with httpx.AsyncClient(transport=self.door, base_url="http://gateway.test") as client:
            answers = await asyncio.gather(*(client.post(f"/callbacks/{token}", content=body) for _ in range(times)))
        return [answer.status_code for answer in answers]

    async def row(self, task_id: str) -> tasks.Task:
        row = await self.parts.database.read(lambda tx: tasks.get(tx, task_id))
        assert row is not None
        return row

    async def shown(self, row: tasks.Task) -> dict[str, Any]:
        seen = await read.get(self.parts, row.team, row.id)
        assert seen is not None
        shown: dict[str, Any] = msgspec.json.decode(seen.document)
        return shown

    async def balances(self) -> dict[tuple[str, str, str], tuple[int, int]]:
        """(scope, name, window) -> (settled, reserved), of unfiltered balances of the present windows."""
        rows = await self.parts.database.read(
            lambda tx: tx.all("SELECT * FROM balances WHERE model_filter = '' ORDER BY starts_at")
        )
        return {
            (row["scope"], row["name"], row["period"]): (row["settled_nanos"], row["reserved_nanos"]) for row in rows
        }

    async def entries(self, task_id: str) -> list[tuple[str, int]]:
        rows = await self.parts.database.read(
            lambda tx: tx.all("SELECT kind, nanos FROM entries WHERE task_id = :id ORDER BY id", id=task_id)
        )
        return [(row["kind"], row["nanos"]) for row in rows]

    async def settled_nanos(self) -> int:
        rows = await self.parts.database.read(lambda tx: tx.all("SELECT nanos FROM entries WHERE kind = 'settle'"))
        return sum(row["nanos"] for row in rows)

    async def adopt(self, policies: policy.PolicySet) -> int:
        return await adopt.adopt(self.parts.database, self.parts.in_force, policies, now=self.clock())

    async def audit(self) -> list[str]:
        return await self.parts.database.scan(lambda tx: audit.audit(tx, self.parts.blobs))

    def posts(self) -> int:
        return self.vendor.requests.counts["submit"]


@contextlib.asynccontextmanager
async def served(vendor_options: Mapping[str, Any], clock: Clock) -> AsyncIterator[tuple[simulator.Simulator, str]]:
    """The simulator on a free port of this event loop."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        vendor = simulator.Simulator(base_url=url, clock=clock, **vendor_options)
        config = uvicorn.Config(vendor.app, log_config=None, access_log=False, lifespan="off", loop="none", ws="none")
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110 - uvicorn offers no event
            await asyncio.sleep(0.005)
        try:
            yield vendor, url
        finally:
            # Its own way out sleeps for 0.2 s, which adds up over the tests; the clients have left already.
            await vendor.aclose()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            for each in server.servers:
                each.close()
            while server.server_state.connections:
                for connection in list(server.server_state.connections):
                    connection.shutdown()
                await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def staged(
    directory: pathlib.Path,
    *,
    org: str = "",
    models: str = MODELS,
    vendor: Mapping[str, Any] | None = None,
    callbacks_are_on: bool = False,
    **teams: str,
) -> AsyncIterator[Stage]:
    """A stage with these policy lines; `vendor`: options of the simulator, whose callbacks arrive if they are on."""
    clock = Clock()
    policies = write_policies(directory / "policies", org=org, models=models, **teams)
    keys = {"env:KEY_GROWTH": "vendor-key-growth", "env:KEY_RESEARCH": "vendor-key-research"}
    app = Starlette(exception_handlers=render.exception_handlers())
    door = httpx.ASGITransport(app)
    async with served({"callback_transport": door} | dict(vendor or {}), clock) as (simulated, url):
        (directory / "data").mkdir(exist_ok=True)
        database = sqlite.SqliteDatabase(directory / "data" / "wave.db")
        numbers, tokens = itertools.count(1), itertools.count(1)
        networks = (ipaddress.ip_network("127.0.0.0/8"),)
        with_parts = parts.Parts(
            database=database,
            upstream=upstream.Upstream(url, verify=NO_AUTHORITIES),
            downloader=download.Downloader(allowed=networks),
            sender=webhook.Sender(allowed=networks, tls=NO_AUTHORITIES),
            blobs=blobs_disk.DiskBlobs(directory / "data" / "media"),
            cache=cache.ResultCache(directory / "data" / "cache"),
            in_force=parts.InForce(policies),
            upstream_key=keys.get,
            webhook_secret=keys.get,
            watch=watch.Watch(),
            clock=clock,
            luck=lambda: 0.5,
            new_task_id=lambda: f"task-wg{next(numbers):026d}",
            public_url="http://gateway.test",
            media_public_url="http://gateway.test",
            allow_private=networks,
            new_callback_token=(lambda: f"{next(tokens):043d}") if callbacks_are_on else None,
        )
        app.routes.extend(callbacks.routes(with_parts))
        stage = Stage(with_parts, simulated, clock, keys, url=url, door=door)
        await stage.adopt(policies)
        try:
            yield stage
        finally:
            pending = list(with_parts.attempts.values())
            for each in pending:
                each.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            await with_parts.upstream.aclose()
            await with_parts.downloader.aclose()
            await with_parts.sender.aclose()
            with_parts.cache.close()
            database.close()
