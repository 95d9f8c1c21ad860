"""A month of a plausible organisation, for the pictures: what Prometheus would have scraped from the gateway.

The gateway's own routes, flows, ledger and mirror work against the simulator, as in earnest, but on a hand clock, so
that a month takes minutes. Each scrape is the true `/metrics` at its moment; they are written as one file with times,
which `promtool tsdb create-blocks-from openmetrics` turns into what Prometheus keeps.

Nothing that is measured on a real clock tells anything about a real upstream but in the last hours, when the simulator
takes as long as an upstream might.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import datetime
import hashlib
import ipaddress
import itertools
import math
import pathlib
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, TextIO

import httpx

from gateway import VERSION, app, metrics, policy_files, settings, simulator
from gateway.flow import adopt, auditor, mirror, parts, poll, resubmit, scrape, watch
from gateway.outbound import download, upstream, webhook
from gateway.store import blobs_disk, cache, sqlite
from tests import process, stage

BEGINS: Final = datetime.datetime(2026, 10, 19, tzinfo=datetime.UTC)
ENDS: Final = datetime.datetime(2026, 11, 20, 15, 40, tzinfo=datetime.UTC)
HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S
CLOSE_AT: Final = ENDS - datetime.timedelta(hours=6, minutes=20)
"""From here on there are more submits and scrapes, and the simulator takes its time."""
SCRAPE_S: Final = 60
SCRAPE_BEFORE_S: Final = 600
TICK_S: Final = 3.0
"""How often background steps run while a task is open."""
LABELS: Final = 'instance="gateway:8080",job="wave-gateway"'
SUBMITS_PER_HOUR: Final = 16
"""At the busiest time of a weekday."""

FLASH, FLASH_31, PRO = "gemini-2.5-flash-image-preview", "gemini-3.1-flash-image-preview", "gemini-3-pro-image-preview"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """Who it is, and what it asks for."""

    policy: str
    share: float
    """Of all submits."""
    models: Mapping[str, int]
    """Model → weight."""
    repeats: float
    """The share of submits that have a seed, of which there are few."""
    fallback: float = 0.0
    grows: float = 0.0
    """How much more it sends at the end of the month than at its beginning."""
    images: Sequence[int] = (1, 1, 2, 4)


TEAMS: Final[Mapping[str, Team]] = {
    "growth": Team(
        policy="""
official_fallback: {default: deny, rules: [{models: ["gemini-3*"], action: allow, while_spend_below: 0.9}]}
models: {deny: ["*-official"]}
spend:
  - {name: daily, cap: "12.00", per: day}
  - {name: monthly, cap: "80.00", per: month, warn_at: 0.8}
""",
        share=0.34,
        models={PRO: 5, FLASH_31: 3, FLASH: 2},
        repeats=0.35,
        fallback=0.4,
        grows=0.6,
    ),
    "design": Team(
        policy="""
official_fallback: {default: deny}
spend: [{name: monthly, cap: "60.00", per: month, warn_at: 0.8}]
""",
        share=0.22,
        models={PRO: 3, FLASH_31: 2, "imagen-4.0": 2, "qwen-image-2.0-pro": 1},
        repeats=0.2,
    ),
    "product": Team(
        policy="""
spend: [{name: weekly, cap: "8.00", per: week, warn_at: 0.8}]
""",
        share=0.24,
        models={FLASH_31: 5, FLASH: 3, "doubao-seedream-4.5": 1},
        repeats=0.55,
    ),
    "research": Team(
        policy="""
official_fallback: {default: strip}
models: {deny: ["gpt-*"]}
spend: [{name: grant, cap: "30.00", per: total, warn_at: 0.8}]
""",
        share=0.14,
        models={FLASH: 4, "doubao-seedream-4.5": 3, "z-image-turbo": 2, f"{PRO}-official": 1, "gpt-image-2": 1},
        repeats=0.1,
    ),
    "support": Team(
        policy="""
limits: {n: 1}
spend: [{name: daily, cap: "0.15", per: day, warn_at: 0.8}]
""",
        share=0.06,
        models={FLASH: 4, "qwen-image-2.0": 1},
        repeats=0.6,
        images=(1,),
    ),
}
ORGANISATION: Final = """
timezone: UTC
contact: "#genai-spend"
spend: [{name: day, cap: "25.00", per: day}, {name: month, cap: "200.00", per: month, warn_at: 0.8}]
"""
WORK_S: Final = {PRO: (9, 14, 22), FLASH_31: (5, 7, 11)}
"""How long the upstream works, by model; others are faster."""
WORK_ELSE_S: Final = (3, 4, 6)
MARKS: Final[Mapping[str, Mapping[str, Any]]] = {
    "": {},
    " official": {"fallback": True},
    " blocked": {
        "outcome": "failed",
        "error": {"message": "The picture was blocked.", "code": "content_policy_violation"},
    },
}
DOWN_AT: Final = ENDS - datetime.timedelta(hours=2, minutes=20)
DOWN_S: Final = 9 * 60
"""When the upstream is down, and how long."""
EXPIRES: Final = datetime.datetime(2026, 12, 11, tzinfo=datetime.UTC)
DISK_BYTES: Final = 40 * 2**30
"""Of a disk on which there is nothing but the pictures."""


async def main() -> None:
    """Play it and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path, help="the file to write")
    parser.add_argument("--keep", type=pathlib.Path, help="a new folder for the gateway's data, which is kept")
    parser.add_argument("--hours", type=float, help="play only so many, from the beginning")
    options = parser.parse_args()
    ends = ENDS if options.hours is None else BEGINS + datetime.timedelta(hours=options.hours)
    with contextlib.ExitStack() as stack:
        directory = options.keep or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(exist_ok=True)
        out = stack.enter_context(options.out.open("w"))
        async with playing(directory) as month:
            await month.play(out, ends=ends.timestamp())
        out.write("# EOF\n")


class Month:
    """The organisation's clients, the gateway, and the scrapes of it."""

    def __init__(
        self, with_parts: parts.Parts, vendor: simulator.Simulator, clock: stage.Clock, client: httpx.AsyncClient
    ) -> None:
        self.parts = with_parts
        self.vendor = vendor
        self.clock = clock
        self.client = client
        self.random = random.Random(5)
        self.open: dict[str, str] = {}
        """Task id → team, of those whose client still polls."""

    async def play(self, out: TextIO, *, ends: float) -> None:
        """From the beginning to the end, a scrape at a time."""
        begins = BEGINS.timestamp()
        changes = {
            begins: script(),
            CLOSE_AT.timestamp(): script(is_close=True),
            DOWN_AT.timestamp(): script(is_down=True),
            DOWN_AT.timestamp() + DOWN_S: script(is_close=True),
        }
        audited = 0.0
        while True:
            if self.clock() in changes:
                self.vendor.set_script(changes[self.clock()])
            if self.clock() >= audited + HOUR_S:
                audited = self.clock()
                await auditor.step(self.parts)
                sys.stderr.write(f"\r{(audited - begins) / (ends - begins):.0%}")
            await self._scrape(out)
            if self.clock() >= ends:
                break
            is_close = self.clock() >= CLOSE_AT.timestamp()
            step_s = SCRAPE_S if is_close else SCRAPE_BEFORE_S
            await self._live(until=self.clock() + step_s, factor=4 if is_close else 1)
        sys.stderr.write("\n")

    async def _live(self, *, until: float, factor: float) -> None:
        """Submits as they come, until a moment."""
        busy = factor * SUBMITS_PER_HOUR * busyness(self.clock())
        while True:
            next_at = self.clock() + self.random.expovariate(busy / HOUR_S)
            await self._work(until=min(next_at, until))
            if next_at >= until:
                return
            await self._submit()

    async def _work(self, *, until: float) -> None:
        """Background steps and polls until a moment; with nothing open, time just passes."""
        while self.open and self.clock() < until:
            self.clock.now = min(self.clock() + TICK_S, until)
            for due, step in STEPS:
                await asyncio.gather(*(step(self.parts, task_id) for task_id in await due(self.parts, 100)))
            await asyncio.gather(*(self._look(task_id, team) for task_id, team in list(self.open.items())))
        self.clock.now = until

    async def _submit(self) -> None:
        gone = (self.clock() - BEGINS.timestamp()) / (ENDS - BEGINS).total_seconds()
        [name] = self.random.choices(list(TEAMS), [team.share * (1 + team.grows * gone) for team in TEAMS.values()])
        team = TEAMS[name]
        [model] = self.random.choices(list(team.models), list(team.models.values()))
        work_s = self.random.choice(WORK_S.get(model, WORK_ELSE_S))
        mark = ""
        if self.random.random() < team.fallback:
            mark = self.random.choice(("", " official"))
        elif self.random.random() < 0.03:
            mark = " blocked"
        begin = marked(work_s, mark)
        body: dict[str, Any] = {"model": model, "n": self.random.choice(team.images)}
        copies = 1
        if self.random.random() < team.repeats:
            # The pictures of the week, asked for again and again, by several at once now and then.
            banner = self.random.randrange(12)
            begin = marked(WORK_S.get(model, WORK_ELSE_S)[0], "")
            body |= {"seed": 7, "n": 1, "prompt": f"{begin} banner {banner} of week {self.clock() // (7 * DAY_S)}"}
            copies = self.random.choice((1, 1, 1, 1, 3))
        else:
            body["prompt"] = f"{begin} idea {self.random.random()}"
            if team.fallback:
                body["official_fallback"] = mark == " official" or self.random.random() < 0.2
        await asyncio.gather(*(self._send(name, body) for _ in range(copies)))

    async def _send(self, team: str, body: dict[str, Any]) -> None:
        answer = await self.client.post("/v1/tasks", json=body, headers=bearer(team))
        if answer.status_code == 200:
            self.open[answer.json()["task_id"]] = team

    async def _look(self, task_id: str, team: str) -> None:
        """One poll; who sees the end fetches the first picture."""
        task = (await self.client.get(f"/v1/tasks/{task_id}", headers=bearer(team))).json()
        if task["status"] in ("queued", "processing"):
            return
        del self.open[task_id]
        for image in task.get("result", {}).get("images", [])[:1]:
            [url] = image["url"]
            if url.startswith(self.parts.media_public_url):
                await self.client.get(url)

    async def _scrape(self, out: TextIO) -> None:
        now, policies = self.clock(), self.parts.in_force.policies
        audit = self.parts.audited.latest
        snapshot = await self.parts.database.scan(lambda tx: scrape.snapshot(tx, policies, now=now, audit=audit))
        metrics.DISK_FREE.set(DISK_BYTES - snapshot.blob_bytes)
        text, _ = metrics.render(snapshot)
        out.write(f"up{{{LABELS}}} 1 {now:.0f}\n")
        out.writelines(f"{timed(line)} {now:.0f}\n" for line in text.decode().splitlines() if not line.startswith("#"))


STEPS: Final = (
    (resubmit.due, resubmit.step),
    (poll.due, poll.step),
    (mirror.due, mirror.step),
    (mirror.due_late, mirror.step),
)


def timed(line: str) -> str:
    """A sample as Prometheus keeps it, with the labels of its target."""
    head, _, value = line.rpartition(" ")
    name, brace, labels = head.partition("{")
    return f"{name}{{{LABELS},{labels} {value}" if brace else f"{name}{{{LABELS}}} {value}"


def busyness(now: float) -> float:
    """How much goes on at a time: 1 at the busiest, little at night and on Sundays."""
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    hour = at.hour + at.minute / 60
    day = math.exp(-(((hour - 14) / 4.5) ** 2))
    return (0.06 + 0.94 * day) * (1, 0.95, 1.05, 1, 0.9, 0.3, 0.2)[at.weekday()]


def bearer(team: str) -> dict[str, str]:
    """As a client of a team sends it."""
    return {"Authorization": f"Bearer wgk_{team}"}


def write_policies(directory: pathlib.Path) -> pathlib.Path:
    """The organisation's policy files."""
    (directory / "teams").mkdir(parents=True)
    (directory / "org.yaml").write_text(ORGANISATION)
    (directory / "models.yaml").write_bytes(process.MODELS.read_bytes())
    for name, team in TEAMS.items():
        digest = hashlib.sha256(f"wgk_{name}".encode()).hexdigest()
        expires = f", expires: {EXPIRES:%Y-%m-%d}" if name == "product" else ""
        head = f'team: {name}\nupstream_key: env:KEY\nkeys: [{{name: app, sha256: "{digest}"{expires}}}]\n'
        (directory / "teams" / f"{name}.yaml").write_text(head + team.policy)
    return directory


def script(*, is_close: bool = False, is_down: bool = False) -> list[dict[str, Any]]:
    """What the simulator does for a mark in a prompt; `is_close`: in as much real time as an upstream takes."""
    if is_down:
        return [{"on": "any", "times": None, "do": {"status": 503, "code": "overloaded"}}]
    rules: list[dict[str, Any]] = []
    for work_s in sorted({*WORK_ELSE_S, *itertools.chain(*WORK_S.values())}):
        works = {"queue_s": 1, "work_s": work_s, "delay_s": work_s * 0.02 if is_close else 0}
        for mark, outcome in MARKS.items():
            rules.append({"on": "submit", "prompt": marked(work_s, mark), "times": None, "do": {**works, **outcome}})
    if is_close:
        rules.append({"on": "media", "skip": 90, "times": 3, "do": {"status": 503}})
        rules.append({"on": "poll", "times": None, "do": {"delay_s": 0.03}})
    return rules


def marked(work_s: int, mark: str) -> str:
    """The beginning of a prompt."""
    return f"[{work_s} s{mark}]"


@contextlib.asynccontextmanager
async def playing(directory: pathlib.Path) -> AsyncIterator[Month]:
    """The gateway and the simulator in this process, on one hand clock."""
    clock = stage.Clock(BEGINS.timestamp())
    async with contextlib.AsyncExitStack() as stack:
        vendor, url = await stack.enter_async_context(stage.served({"url_ttl_s": DAY_S}, clock))
        chosen = settings.parse(
            {
                "listen": "127.0.0.1:8080",
                "upstream": url,
                "policies": str(write_policies(directory / "policies")),
                "data": str(directory / "data"),
                "allow_private": ["127.0.0.0/8"],
            },
            {},
        )
        policies = policy_files.load(chosen.policies)
        (directory / "data").mkdir()
        database = sqlite.SqliteDatabase(app.database_file(chosen))
        stack.callback(database.close)
        numbers = itertools.count(1)
        with_parts = parts.Parts(
            database=database,
            upstream=upstream.Upstream(url, verify=stage.NO_AUTHORITIES),
            downloader=download.Downloader(allowed=(ipaddress.ip_network("127.0.0.0/8"),)),
            sender=webhook.Sender(tls=stage.NO_AUTHORITIES),
            blobs=blobs_disk.DiskBlobs(chosen.media),
            cache=cache.ResultCache(app.cache_directory(chosen)),
            in_force=parts.InForce(policies),
            upstream_key={"env:KEY": "vendor-key"}.get,
            webhook_secret=lambda reference: None,
            watch=watch.Watch(),
            clock=clock,
            luck=lambda: 0.5,
            new_task_id=lambda: f"task-wg{next(numbers):026d}",
            public_url=chosen.public_url,
            media_public_url=chosen.media_public_url,
            allow_private=chosen.allow_private,
        )
        stack.callback(with_parts.cache.close)
        stack.push_async_callback(with_parts.downloader.aclose)
        stack.push_async_callback(with_parts.sender.aclose)
        stack.push_async_callback(with_parts.upstream.aclose)
        await adopt.adopt(database, with_parts.in_force, policies, now=clock())
        metrics.BUILD_INFO.labels(VERSION).set(1)
        metrics.POLICY_RELOAD_OK.set(1)
        metrics.POLICY_LOADED.set(clock())
        metrics.note_expiries({("product", "app"): EXPIRES.timestamp()})
        served = app._guarded(app._app(app.routes(chosen, with_parts)), chosen)  # noqa: SLF001 - only `app` composes it
        transport = httpx.ASGITransport(app=served)
        client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url=chosen.public_url))
        yield Month(with_parts, vendor, clock, client)


if __name__ == "__main__":
    asyncio.run(main())
