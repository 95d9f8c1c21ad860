"""What is not requests per second: live tasks, mirroring, waiting clients, the start, memory."""

from __future__ import annotations

import concurrent.futures
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Final

from bench import asks, books, figures, kept, load, machine, servers, side_by_side

POLLERS: Final = 100
WAITERS: Final = 1_000
WAITED_TASKS: Final = 100
WAIT_S: Final = 5
MIRRORED: Final = 16
OPEN_TASKS: Final = 1_000
MOST_STARTS: Final = 5
MB: Final = 1_000_000.0


def submit(gateway: servers.Server, team: str, prompt: str) -> str:
    """Buy one task; its id."""
    body = json.dumps({"model": kept.MODEL, "prompt": prompt}).encode()
    headers = kept.headers(team)
    status, text = servers.fetch(f"{gateway.url}/v1/tasks", method="POST", body=body, headers=headers)
    if status != 200:
        raise asks.WrongAnswerError(f"a submit of team {team} was answered {status}: {text!r}")
    return str(json.loads(text)["task_id"])


def submit_many(gateway: servers.Server, team: str, many: int, *, prompt: str) -> list[str]:
    """Buy many at once; their ids."""
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda number: submit(gateway, team, f"{prompt} {number}"), range(many)))


def completed(gateway: servers.Server, team: str, task_id: str, *, within_s: float = 60.0) -> str:
    """The URL of a task's picture when it is mirrored."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        document = json.loads(servers.fetch(f"{gateway.url}/v1/tasks/{task_id}", headers=kept.headers(team))[1])
        if document["status"] == "completed":
            url = document["result"]["images"][0]["url"]
            return str(url if isinstance(url, str) else url[0])
        time.sleep(0.1)
    raise RuntimeError(f"the task of team {team} is not completed after {within_s:g} s")


def polled(bench: side_by_side.Bench, gateway: servers.Server) -> figures.Goal:
    """D: upstream polls per second of a live task that a hundred clients ask about."""
    task_id = submit(gateway, "live", "asked about by many")
    time.sleep(1.0)
    ask = asks.Ask(path=f"/v1/tasks/{task_id}", headers=kept.headers("live"), contains='"status":"processing"')
    per_s = []
    for _ in range(bench.rounds):
        before, began_at = polls(gateway), time.monotonic()
        load.closed(
            ask, gateway.url, connections=POLLERS, seconds=bench.seconds, core=bench.cores.load, folder=bench.folder
        )
        per_s.append(_between(polls(gateway) - before, 1, time.monotonic() - began_at))
    name = f"D upstream calls per second of a live task, {POLLERS} clients"
    return figures.Goal(name=name, found=figures.spread(per_s), bound=1.0, is_most=True, unit="/s")


def polls(gateway: servers.Server) -> int:
    """How many polls have gone upstream."""
    return books.total(gateway, "wave_gateway_upstream_requests_total", 'operation="poll"')


def _between(polls: int, tasks: int, seconds: float) -> float:
    """Polls per second between the first and the last of each task: at 1/s there may be six in five seconds."""
    return max(0, polls - tasks) / seconds


def waited(bench: side_by_side.Bench, gateway: servers.Server) -> Iterator[figures.Goal]:
    """G: a thousand clients that wait for a hundred tasks."""
    paths = tuple(f"/v1/tasks/{each}" for each in submit_many(gateway, "live", WAITED_TASKS, prompt="waited for"))
    headers = kept.headers("live") | {"Prefer": f"wait={WAIT_S}"}
    ask = asks.Ask(paths=paths, headers=headers, header=("preference-applied", f"wait={WAIT_S}"), contains="processing")
    time.sleep(1.0)
    per_s, share = [], []
    for _ in range(bench.rounds):
        before, used, began_at = polls(gateway), machine.cpu_s(gateway.pid), time.monotonic()
        load.closed(
            ask, gateway.url, connections=WAITERS, seconds=2 * WAIT_S + 1, core=bench.cores.load, folder=bench.folder
        )
        took_s = time.monotonic() - began_at
        share.append((machine.cpu_s(gateway.pid) - used) / took_s * 100)
        per_s.append(_between(polls(gateway) - before, WAITED_TASKS, took_s))
    name = f"G upstream calls per second, {WAITERS:,} waiting clients on {WAITED_TASKS} tasks"
    yield figures.Goal(name=name, found=figures.spread(per_s), bound=WAITED_TASKS, is_most=True, unit="/s")
    name = f"G processor time, {WAITERS:,} waiting clients on {WAITED_TASKS} tasks"
    yield figures.Goal(name=name, found=figures.spread(share), bound=20.0, is_most=True, unit="% of a core")


def mirrored(bench: side_by_side.Bench, gateway: servers.Server) -> tuple[figures.Goal, float]:
    """F: the memory of mirroring sixteen pictures of 20 MB at once, and MB/s; the picture is one, its URLs differ."""
    peaks, speeds = [], []
    for _ in range(bench.rounds):
        idle = servers.settled_rss_bytes(gateway)
        machine.reset_peak(gateway.pid)
        began_at = time.monotonic()
        ids = submit_many(gateway, "large", MIRRORED, prompt=f"large {began_at}")
        for task_id in ids:
            completed(gateway, "large", task_id, within_s=120.0)
        speeds.append(MIRRORED * 20.0 / (time.monotonic() - began_at))
        peaks.append((machine.peak_bytes(gateway.pid) - idle) / MB)
    goal = figures.Goal(
        name=f"F memory above idle, mirroring {MIRRORED} x 20 MB at once",
        found=figures.spread(peaks),
        bound=64.0,
        is_most=True,
        unit="MB",
    )
    return goal, statistics.median(speeds)


def started(bench: side_by_side.Bench, start: Callable[[], servers.Server]) -> figures.Goal:
    """From `serve` to ready, with nothing kept; `start` starts a gateway, sees it ready and ends it."""
    times = [start().ready_s for _ in range(min(bench.rounds, MOST_STARTS))]
    name = "from `serve` to ready"
    return figures.Goal(name=name, found=figures.spread(times), bound=1.0, is_most=True, unit="s")


def idle(gateway: servers.Server) -> figures.Goal:
    """The resident memory of a gateway that nobody asked anything."""
    found = figures.spread([servers.settled_rss_bytes(gateway, rest_s=3.0) / MB])
    return figures.Goal(name="memory at idle", found=found, bound=90.0, is_most=True, unit="MB")


def with_open_tasks(gateway: servers.Server) -> float:
    """MB of resident memory with a thousand open tasks."""
    submit_many(gateway, "live", OPEN_TASKS, prompt="open")
    return servers.settled_rss_bytes(gateway, rest_s=3.0) / MB
