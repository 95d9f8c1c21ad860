"""A scrape and an audit beside a gateway at work, over a million kept tasks: neither holds the event loop up.

The rows are made by SQL on a real file, 200 teams by 12 models, and every instrument is populated. Then a gateway
runs in this process, so that its event loop can be watched: a task on it sleeps a millisecond again and again and
notes how late it wakes, while it reads points and writes. The scrapers are processes of their own, on real sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import pathlib
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

import uvicorn
import uvloop

from gateway import app, metrics, settings
from gateway.flow import audit, parts
from gateway.rules import task
from gateway.store import sqlite, tasks
from gateway.store.database import Tx
from tests import process
from tests.proofs import run

TEAMS: Final = tuple(f"team-{number:03}" for number in range(200))
MODELS: Final = tuple(f"model-{number:02}" for number in range(12))
ACTIONS: Final = ("generate", "image2image", "edit", "reference")
CODES: Final = ("quota_window_exceeded", "spend_cap_reached", "model_not_allowed", "limit_exceeded", "rate_limited")
ROUTES: Final = ("/v1/tasks", "/v1/tasks/{task_id}", "/media/{name}", "/metrics", "other")
COST_NANOS: Final = 13_282_000
OPEN_TASKS: Final = 1_000
PICTURES: Final = 20_000
"""Files of three bytes; more tasks show the same ones."""
TIMES: Final = 5
"""Each measure of a scrape is the median of so many rounds."""

SCRAPE_WITHIN_S: Final = 1.0
LATE_AT_MOST_S: Final = 0.020

MODEL: Final = '  {name}: {{prices: [{{from: 2026-04-01, usd: "0.01328125"}}], actions: [{actions}]}}\n'
TEAM: Final = """team: {name}
upstream_key: env:KEY_GROWTH
keys: [{{name: ci, sha256: "{digest}", expires: 2099-01-01}}]
spend:
  - {{name: daily, cap: "25.00", per: day}}
  - {{name: monthly, cap: "400.00", per: month, warn_at: 0.8}}
  - {{name: ci-day, cap: "5.00", per: day, key: ci}}
"""

NUMBERS: Final = """
CREATE TEMP TABLE numbers AS WITH RECURSIVE
    counted (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM counted WHERE n + 1 < :many)
SELECT n, printf('task-wg%026d', n) AS id, printf('team-%03d', n % 200) AS team,
    printf('model-%02d', n / 200 % 12) AS model, :until - 86400.0 * 365 * (:many - n) / :many AS at,
    CASE WHEN n < :many - :open THEN 'completed' WHEN n % 3 THEN 'submitted' ELSE 'in_doubt' END AS state FROM counted
"""
FILL: Final = (
    """
INSERT INTO tasks (id, team, key_name, request_id, body_digest, x_cache, changes, model, action, n, request, tags,
    callback_events, state, upstream_key_ref, upstream_idempotency_key, upstream_task_id, price_version, tier,
    standard_unit_nanos, quote_nanos, cost_nanos, attempts, troubles, created_at, deadline_at, ended_at, document)
SELECT id, team, 'ci', 'req-' || n, X'00', 'MISS', '', model, 'generate', 1, '{"model":"m","prompt":"a fox"}', '{}',
    '', state, 'env:KEY_GROWTH', 'key-' || n, 'vendor-' || n, '2026-04-01', 'standard', 13281250, :cost,
    CASE state WHEN 'completed' THEN :cost END, 1, 0, at, at, CASE state WHEN 'completed' THEN at END,
    printf('%.400c', 'x') FROM numbers ORDER BY n""",
    """
INSERT INTO entries (task_id, kind, nanos, at, reserved_at, team, key_name, model, tier, images, why)
SELECT id, 'reserve', :cost, at, at, team, 'ci', model, 'standard', 0, '' FROM numbers ORDER BY n""",
    """
INSERT INTO entries (task_id, kind, nanos, at, reserved_at, team, key_name, model, tier, images, why)
SELECT id, 'settle', :cost, at, at, team, 'ci', model, 'standard', 1, '' FROM numbers WHERE state = 'completed'
ORDER BY n""",
    """
INSERT INTO totals SELECT team, model, 'standard', COUNT(*) * :cost, COUNT(*), 0, 0, 0, 0 FROM numbers
WHERE state = 'completed' GROUP BY 1, 2""",
    """
INSERT INTO blobs (digest, size_bytes, mime, extension, kept_at)
SELECT printf('%064x', n), 3, 'image/png', 'png', at FROM numbers WHERE n < :pictures""",
    """
INSERT INTO task_media (task_id, position, upstream_url, digest)
SELECT id, 0, 'https://cdn.example.com/' || n, printf('%064x', n % :pictures) FROM numbers
WHERE state = 'completed'""",
)


def fill(data: pathlib.Path, *, kept_tasks: int, until: float) -> None:
    """So many tasks over the year before an instant, one picture each, the last ones open; the books agree."""
    data.mkdir(parents=True)
    file = data / app.DATABASE_NAME
    sqlite.SqliteDatabase(file).close()
    pictures = min(kept_tasks - OPEN_TASKS, PICTURES)
    values = {"many": kept_tasks, "until": until, "open": OPEN_TASKS, "cost": COST_NANOS, "pictures": pictures}
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for sql in ("BEGIN", NUMBERS, *FILL, "COMMIT", "PRAGMA wal_checkpoint(TRUNCATE)"):
            connection.execute(sql, {name: value for name, value in values.items() if f":{name}" in sql})
    folder = data / "media" / "00" / "00"
    folder.mkdir(parents=True)
    for number in range(pictures):
        (folder / f"{number:064x}").write_bytes(b"PNG")


def write_policies(directory: pathlib.Path) -> pathlib.Path:
    """Two hundred teams with three caps each, twelve models."""
    (directory / "teams").mkdir(parents=True, exist_ok=True)
    (directory / "org.yaml").write_text('timezone: UTC\nspend: [{name: org-month, cap: "90000", per: month}]\n')
    actions = ", ".join(ACTIONS)
    models = "".join(MODEL.format(name=name, actions=actions) for name in MODELS)
    (directory / "models.yaml").write_text(f"models:\n{models}")
    for name in TEAMS:
        digest = hashlib.sha256(f"wgk_{name}".encode()).hexdigest()
        (directory / "teams" / f"{name}.yaml").write_text(TEAM.format(name=name, digest=digest))
    return directory


def populate() -> None:
    """A value for every series that this many teams and models can have."""
    for team, model, action, outcome in itertools.product(TEAMS, MODELS, ACTIONS, task.ENDED):
        metrics.TASKS.labels(team, model, action, outcome.value).inc()
    for team in TEAMS:
        for code in CODES:
            metrics.POLICY_DECISIONS.labels(team, "deny", code).inc()
        metrics.POLICY_DECISIONS.labels(team, "allow", "").inc()
        for status in ("hit", "miss", "coalesced", "bypass"):
            metrics.CACHE_REQUESTS.labels(team, status).inc()
        metrics.UPSTREAM_KEY_OK.labels(team).set(1)
    for model in MODELS:
        metrics.TASK_DURATION.labels(model, "standard").observe(3)
    for labels in itertools.product(ROUTES, ("GET", "POST"), ("200", "400", "404", "429", "503")):
        metrics.HTTP_REQUESTS.labels(*labels).inc()
        metrics.HTTP_DURATION.labels(*labels).observe(0.01)
    for operation in ("submit", "poll", "cancel"):
        metrics.UPSTREAM_DURATION.labels(operation, "ok").observe(0.2)


class Watched:
    """How late the event loop woke, and how long writes took, in seconds."""

    def __init__(self) -> None:
        self.late: list[float] = []
        """Without what other programs took of the processors meanwhile."""
        self.seen: list[float] = []
        """With it."""
        self.writes: list[float] = []

    def late_s(self, share: float = 1.0) -> float:
        """What this share of all wake-ups did not pass."""
        return _quantile(self.late, share)

    def write_s(self) -> float:
        """What 99 of 100 writes did not pass."""
        return _quantile(self.writes, 0.99)


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[max(0, int(len(values) * share) - 1)]


@contextlib.asynccontextmanager
async def watching(with_parts: parts.Parts) -> AsyncIterator[Watched]:
    """Watch the event loop, which reads points and writes meanwhile, until the block ends."""
    watched = Watched()

    async def look() -> None:
        for number in itertools.count():
            stolen, asked = _waits(), time.perf_counter()
            await asyncio.sleep(0.001)
            late_s = time.perf_counter() - asked - 0.001
            watched.seen.append(late_s)
            watched.late.append(max(0.0, late_s - _stolen_s(stolen, _waits())))
            await with_parts.database.read(functools.partial(tasks.get, task_id=f"task-wg{number % 10_000:026d}"))

    async def write() -> None:
        while True:
            await asyncio.sleep(0.02)
            asked = time.perf_counter()
            await with_parts.database.write(_touch)
            watched.writes.append(time.perf_counter() - asked)

    both = [asyncio.create_task(look()), asyncio.create_task(write())]
    try:
        yield watched
    finally:
        for each in both:
            each.cancel()
        await asyncio.gather(*both, return_exceptions=True)


def _waits() -> dict[int, int]:
    """For how many nanoseconds each thread of this process was ready to run and had no processor (Linux)."""
    waits = {}
    for thread in pathlib.Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            waits[int(thread.name)] = int((thread / "schedstat").read_text().split()[1])
    return waits


def _stolen_s(before: Mapping[int, int], after: Mapping[int, int]) -> float:
    """What the threads of this process, each of which may have held the interpreter, lost to other programs."""
    return sum(wait - before.get(thread, wait) for thread, wait in after.items()) / 1e9


def _touch(tx: Tx) -> None:
    tx.run("UPDATE tasks SET troubles = troubles + 1 WHERE id = :id", id=f"task-wg{7:026d}")


_SCRAPER: Final = """
import gzip, sys, time, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
sys.stdin.readline()
asked = time.perf_counter()
text = opener.open(urllib.request.Request(sys.argv[1], headers={"Accept-Encoding": "gzip"}), timeout=60).read()
took = time.perf_counter() - asked
print(took, sum(not line.startswith(b"#") for line in gzip.decompress(text).splitlines()))
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scraped:
    """One round of scrapes: seconds of the slowest, series, how late the loop woke at most, and 99 of 100 writes."""

    seconds: float
    series: int
    late_s: float
    seen_s: float
    """As `late_s`, with what other programs took."""
    write_s: float


async def scraped(url: str, with_parts: parts.Parts, *, at_once: int = 1) -> Scraped:
    """Scrape by so many processes, as Prometheus does it."""
    scrapers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _SCRAPER, f"{url}/metrics"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(at_once)
    ]
    await asyncio.sleep(0.3)  # their start takes the machine's time, which is no part of a scrape
    async with watching(with_parts) as watched:
        said = [answer.split() for answer, _ in await asyncio.gather(*(each.communicate(b"\n") for each in scrapers))]
    return Scraped(
        seconds=max(float(seconds) for seconds, _ in said),
        series=int(said[0][1]),
        late_s=watched.late_s(),
        seen_s=max(watched.seen),
        write_s=watched.write_s(),
    )


@contextlib.asynccontextmanager
async def gateway(directory: pathlib.Path) -> AsyncIterator[tuple[str, parts.Parts]]:
    """A gateway in this event loop, as `serve` runs it; its first audit has ended."""
    port = process.free_port()
    said = {"listen": f"127.0.0.1:{port}", "upstream": "http://127.0.0.1:9", "min_free": "0B"}
    chosen = settings.parse({**said, **{name: directory / name for name in ("policies", "data")}}, process.ENVIRON)
    async with app.running(chosen, process.ENVIRON) as (served, with_parts):
        config = uvicorn.Config(served, port=port, log_config=None, access_log=False, lifespan="off", loop="none")
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        serving = asyncio.create_task(server.serve())
        app.tune_interpreter()
        while not server.started or with_parts.audited.latest is None:  # noqa: ASYNC110 - neither offers an event
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{port}", with_parts
        finally:
            server.should_exit = True
            await serving


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The median of some rounds, and one audit."""

    alone: Scraped
    crowded: Scraped
    audit_s: float
    audit_late_s: float
    audit_latest_s: float
    audit_write_s: float


async def measure(directory: pathlib.Path) -> Measured:
    """What a scrape, ten at once and an audit do to a gateway."""
    async with gateway(directory) as (url, with_parts):
        assert with_parts.audited.latest is not None and with_parts.audited.latest.differences == 0
        alone = [await scraped(url, with_parts) for _ in range(TIMES)]
        crowded = [await scraped(url, with_parts, at_once=10) for _ in range(TIMES)]
        async with watching(with_parts) as watched:
            asked = time.perf_counter()
            found = [each async for each in audit.beside(with_parts.database.scan, with_parts.blobs)]
            audit_s = time.perf_counter() - asked
        assert found == [], found[:3]
        return Measured(
            alone=_median(alone),
            crowded=_median(crowded),
            audit_s=audit_s,
            audit_late_s=watched.late_s(0.999),
            audit_latest_s=watched.late_s(),
            audit_write_s=watched.write_s(),
        )


def _median(rounds: Sequence[Scraped]) -> Scraped:
    """The median of each measure."""
    return Scraped(
        seconds=statistics.median(each.seconds for each in rounds),
        series=rounds[0].series,
        late_s=statistics.median(each.late_s for each in rounds),
        seen_s=statistics.median(each.seen_s for each in rounds),
        write_s=statistics.median(each.write_s for each in rounds),
    )


def prove(directory: pathlib.Path, *, few: int = 10_000, many: int = 1_000_000) -> str:
    """Measure with few kept tasks and with many."""
    populate()
    found = {}
    for kept_tasks in (few, many):
        there = directory / str(kept_tasks)
        write_policies(there / "policies")
        fill(there / "data", kept_tasks=kept_tasks, until=time.time() - 40 * 86_400)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found[kept_tasks] = runner.run(measure(there))
    small, large = found[few], found[many]
    said = "; ".join(f"{kept_tasks} kept tasks: {_said(each)}" for kept_tasks, each in found.items())
    assert small.alone.series == large.alone.series > 50_000, said
    assert large.alone.seconds < SCRAPE_WITHIN_S and large.alone.seconds < 2 * small.alone.seconds, said
    assert max(large.alone.late_s, large.audit_late_s) < LATE_AT_MOST_S, said
    return said


def _said(measured: Measured) -> str:
    def in_ms(seconds: float) -> str:
        return f"{seconds * 1000:.0f} ms"

    alone, crowded = measured.alone, measured.crowded
    return (
        f"{alone.series} series in {alone.seconds:.2f} s, loop late by {in_ms(alone.late_s)} at most "
        f"({in_ms(alone.seen_s)} with what other programs took), "
        f"a write {in_ms(alone.write_s)}; ten at once {crowded.seconds:.2f} s, "
        f"{in_ms(crowded.late_s)} ({in_ms(crowded.seen_s)}); "
        f"audit {measured.audit_s:.0f} s, loop late by {in_ms(measured.audit_late_s)} for one in a thousand, "
        f"{in_ms(measured.audit_latest_s)} at most, a write {in_ms(measured.audit_write_s)}"
    )


if __name__ == "__main__":
    run.alone("scrape", prove)
