"""The gateway that the model test plays: real flows, database, simulator and socket, driven one step at a time.

A crash throws every part in memory away, with calls to the vendor under way, and goes on from a copy of the files as
they lay on the disk at that moment: what a killed process leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import itertools
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Awaitable, Coroutine, Mapping
from typing import Any, Final, TypeVar

import httpx
import msgspec
import uvloop

from gateway import errors
from gateway.flow import (
    adopt,
    audit,
    cancel,
    changes,
    hint,
    mirror,
    parts,
    plan,
    poll,
    recover,
    resolve,
    resubmit,
    scrape,
    submit,
    watch,
)
from gateway.outbound import upstream
from gateway.rules import policy
from gateway.rules.money import Nanos
from gateway.store import cache, sqlite, tasks
from gateway.store.database import Tx
from tests import stage
from tests.stateful import model

T = TypeVar("T")

SHARED_MEMORY: Final = pathlib.Path("/dev/shm")
MODELS: Final = (
    stage.MODELS
    + """
  gemini-3.1-flash-image-preview-official:
    prices: [{from: 2026-01-01, usd: "0.05695"}]
    tier: official
  gemini-3.1-flash-image-preview:
    prices: [{from: 2026-01-01, usd: "0.031875"}]
    official: gemini-3.1-flash-image-preview-official
"""
)
COLUMNS: Final = (
    "id, team, key_name, state, idempotency_key, upstream_idempotency_key, upstream_task_id, inflight, leader_id, "
    "x_cache, model, quote_nanos, cost_nanos, created_at, ended_at, settled_at, next_at"
)
LONG_S: Final = 60.0
STEPS: Final[Mapping[str, tuple[Any, Any]]] = {
    "resubmit": (resubmit.due, resubmit.step),
    "poll": (poll.due, poll.step),
    "mirror": (mirror.due, mirror.step),
    "late": (mirror.due_late, mirror.step),
}


class World:
    """One gateway and its vendor on an event loop of their own."""

    def __init__(self, *, now: float) -> None:
        self._logger = logging.getLogger("gateway")
        self._level = self._logger.level
        self._logger.setLevel(logging.CRITICAL + 1)
        where = SHARED_MEMORY if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK) else None
        self._directory = pathlib.Path(tempfile.mkdtemp(prefix="wave-model-", dir=where))
        self._loop = uvloop.new_event_loop()
        self._opened = contextlib.AsyncExitStack()
        self._lives = itertools.count(1)
        self._files = self._directory / "data"
        self._stage = self.run(self._opened.enter_async_context(self._staged()))
        self.parts = self._stage.parts
        self._base = self.parts.in_force.policies
        self.vendor, self.clock, self.keys = self._stage.vendor, self._stage.clock, self._stage.keys
        self.clock.now = now
        self._scripts: dict[str, list[dict[str, Any]]] = {}

    def _staged(self) -> contextlib.AbstractAsyncContextManager[stage.Stage]:
        """With callbacks on; those that the vendor sends by itself are lost, for nobody chooses their moment."""
        lost = httpx.MockTransport(lambda request: httpx.Response(204))
        return stage.staged(self._directory, models=MODELS, callbacks_are_on=True, vendor={"callback_transport": lost})

    def run(self, step: Awaitable[T]) -> T:
        """Carry one step out."""
        return self._loop.run_until_complete(step)

    def close(self) -> None:
        """End everything and leave nothing behind."""
        try:
            self.run(self._shut())
            self.run(self._opened.aclose())
            self.run(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()
            self._logger.setLevel(self._level)
            shutil.rmtree(self._directory, ignore_errors=True)

    def script(self, on: str, *rules: dict[str, Any]) -> None:
        """What the vendor does from now on; each rule as in a fault script, without `on`."""
        self._scripts[on] = [{"on": on, "times": None, **rule} for rule in rules]
        self.vendor.set_script(list(itertools.chain.from_iterable(self._scripts.values())))

    async def submit(self, ask: model.Ask) -> submit.Submitted | policy.Deny | str:
        """One submit; a refusal that is raised comes back as its code."""
        options = submit.Options(
            request_id="req-1",
            idempotency_key=ask.idempotency_key,
            cache=plan.CacheMode(ask.cache),
            max_cost_nanos=None if ask.max_cost_nanos is None else Nanos(ask.max_cost_nanos),
        )
        caller = submit.Caller(team=ask.team, key=ask.key)
        try:
            return await submit.submit(self.parts, caller, msgspec.json.encode(ask.fields()), options)
        except errors.CallerError as error:
            return error.code

    async def cancel(self, team: str, task_id: str) -> str:
        """One cancel; "" where it is answered, else why not."""
        try:
            return "" if await cancel.cancel(self.parts, team, task_id) is not None else "task_not_found"
        except (errors.CallerError, errors.UpstreamError) as error:
            return error.code

    async def call_back(self, task_id: str | None, *, times: int) -> list[bool]:
        """The vendor's callback about a task, or one with a forged token; whether each was taken for genuine."""
        row = None if task_id is None else await self.parts.database.read(lambda tx: tasks.get(tx, task_id))
        token = None if row is None else row.callback_token
        return [await hint.hear(self.parts, token or "x" * 43) for _ in range(times)]

    async def resolve(self, task_id: str, charged_nanos: int | None) -> bool:
        """An operator's decision about a hold: billed this much, or not at all; whether it ended the hold."""
        charged = None if charged_nanos is None else Nanos(charged_nanos)
        decision = resolve.Decision(task_id=task_id, charged_nanos=charged, why="the vendor's log")
        with_parts = self.parts
        ended = await resolve.resolve(with_parts.database, decision, now=self.clock.now, repeating=with_parts.repeating)
        return isinstance(ended, changes.Change)

    async def work(self, *kinds: str) -> None:
        """Every background step that is due now, once."""
        for due, step in (STEPS[kind] for kind in kinds):
            await asyncio.gather(*(step(self.parts, task_id) for task_id in await due(self.parts, 100)))

    async def poke(self, kind: str, task_id: str, *, times: int) -> None:
        """One background step, due or not, side by side with itself."""
        await asyncio.gather(*(STEPS[kind][1](self.parts, task_id) for _ in range(times)))

    async def adopt(self, rules: model.Rules) -> None:
        """Other policies come into force."""
        await self._adopt(self.parts, self._policies(rules))

    async def due(self, kind: str) -> list[str]:
        """Tasks that a background step would look at now."""
        return list(await STEPS[kind][0](self.parts, 100))

    async def crash(self, rules: model.Rules, flight: Coroutine[Any, Any, object] | None = None) -> None:
        """Begin `flight`, die as soon as the vendor hears of it (or when it is over), start again on what was kept."""
        heard = self._heard()
        under_way = asyncio.create_task(flight or asyncio.sleep(0))
        while self._heard() == heard and not under_way.done():  # noqa: ASYNC110 - the simulator offers no event
            await asyncio.sleep(0)
        dying = [under_way, *self.parts.attempts.values()]
        for each in dying:
            each.cancel()
        for ended in await asyncio.gather(*dying, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
        files = self._directory / f"data-{next(self._lives)}"
        files.mkdir()
        for name in ("wave.db", "wave.db-wal"):
            shutil.copy(self._files / name, files / name)
        await self._shut()
        self._files = files
        fresh: dict[str, Any] = {
            field.name: field.default_factory()
            for field in dataclasses.fields(parts.Parts)
            if field.default_factory is not dataclasses.MISSING
        }
        policies = self._policies(rules)
        self.parts = dataclasses.replace(
            self.parts,
            database=sqlite.SqliteDatabase(files / "wave.db"),
            upstream=upstream.Upstream(self._stage.url, verify=stage.NO_AUTHORITIES),
            cache=cache.ResultCache(files / "cache"),
            in_force=parts.InForce(policies),
            watch=watch.Watch(),
            **fresh,
        )
        await self._adopt(self.parts, policies)
        await recover.recover(self.parts)

    def see(self) -> model.Seen:
        """Read everything that is kept."""
        return self.run(self.parts.database.read(self._read))

    def _read(self, tx: Tx) -> model.Seen:
        rows = [model.Row(*stage.values(row)) for row in tx.all(f"SELECT {COLUMNS} FROM tasks ORDER BY id")]  # noqa: S608
        entries: dict[str, list[tuple[str, int, str, int]]] = {}
        for entry in tx.all("SELECT task_id, kind, nanos, model, images FROM entries ORDER BY id"):
            task_id, *rest = stage.values(entry)
            entries.setdefault(task_id, []).append((rest[0], rest[1], rest[2], rest[3]))
        balances = {
            (each["scope"], each["name"], each["model_filter"], each["period"], each["starts_at"]): (
                each["settled_nanos"],
                each["reserved_nanos"],
            )
            for each in tx.all("SELECT * FROM balances")
        }
        kept = tx.all("SELECT task_id, COUNT(digest) FROM task_media GROUP BY task_id")
        holds = tx.all("SELECT COUNT(DISTINCT task_id) FROM holds")
        scraped = scrape.snapshot(tx, self.parts.in_force.policies, now=self.clock.now)
        spend: dict[tuple[str, str], tuple[int, int, int, int]] = {}
        for each in scraped.spend:
            spend[each.team, each.model] = (
                each.cost_nanos,
                each.images,
                each.avoided_cache_nanos,
                each.avoided_coalesced_nanos,
            )
        return model.Seen(
            rows={row.id: row for row in rows},
            entries=entries,
            balances=balances,
            holds=stage.values(holds[0])[0],
            kept=dict(stage.values(row) for row in kept),
            differences=audit.audit(tx, self.parts.blobs),
            spend=spend,
            readings={each.cap: (each.limit_nanos, each.settled_nanos, each.reserved_nanos) for each in scraped.caps},
        )

    async def _adopt(self, with_parts: parts.Parts, policies: policy.PolicySet) -> None:
        await adopt.adopt(with_parts.database, with_parts.in_force, policies, now=self.clock.now)

    def _heard(self) -> tuple[int, ...]:
        """What the vendor was asked; of a submit, when its body is there."""
        counts = self.vendor.requests.counts
        return len(self.vendor.requests.submits), counts["poll"], counts["media"], counts["cancel"]

    async def _shut(self) -> None:
        await self.parts.upstream.aclose()
        self.parts.cache.close()
        self.parts.database.close()

    def _policies(self, rules: model.Rules) -> policy.PolicySet:
        since = datetime.date(2026, 1, 1)
        prices = {name: standard for name, (standard, _) in rules.prices.items()}
        prices |= {f"{name}-official": official for name, (_, official) in rules.prices.items()}
        models = {
            name: dataclasses.replace(
                entry, prices=(policy.Price(since=since, nanos={"default": Nanos(prices[name])}),)
            )
            for name, entry in self._base.models.items()
        }
        caps: dict[str, list[policy.Cap]] = {}
        for number, cap in enumerate(rules.caps):
            owner, _, key = cap.name.partition("/")
            caps.setdefault(owner, []).append(_cap(cap, f"cap-{number}", key or None))
        return dataclasses.replace(
            self._base,
            organisation=dataclasses.replace(
                self._base.organisation, timezone=rules.timezone, caps=tuple(caps.get("", ()))
            ),
            models=models,
            teams={
                name: dataclasses.replace(team, caps=tuple(caps.get(name, ())))
                for name, team in self._base.teams.items()
            },
        )


def _cap(cap: model.Cap, name: str, key: str | None) -> policy.Cap:
    extra: tuple[policy.Raise, ...] = ()
    if cap.raised_until is not None:
        extra = (policy.Raise(nanos=Nanos(cap.raised_nanos), until=cap.raised_until, why="launch"),)
    return policy.Cap(
        name=name,
        nanos=Nanos(cap.nanos),
        window=policy.Window(cap.window),
        key=key,
        models=cap.models,
        raises=extra,
    )
