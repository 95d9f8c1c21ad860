"""What a gateway has kept when the measurement begins: its policies, and copies of one real task.

One task per team is bought through the gateway, as a client does it. Then its rows are copied under other ids, one
fingerprint each, so the copies are what the gateway itself writes, whatever the schema; the sums follow, and `audit`
agrees at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import pathlib
import shutil
import sqlite3
from typing import Final

from bench import asks, upstream
from gateway import wire
from gateway.rules import fingerprint
from gateway.store import cache

ENVIRON: Final = {f"VENDOR_{team.upper()}": f"vendor-{team}" for team in upstream.TEAMS}
MODEL: Final = "gemini-2.5-flash-image-preview"
HIT_BODY: Final = f'{{"model":"{MODEL}","prompt":"a red fox in the snow, at dawn, {asks.NUMBER}","seed":{asks.NUMBER}}}'
"""Of a request whose result may be kept."""
PER_COMMIT: Final = 100_000
COPIED: Final = ("tasks", "entries", "task_media")

_ORG: Final = """timezone: UTC
contact: "#bench"
spend:
  - {name: org-day, cap: "1000000.00", per: day}
  - {cap: "9000000.00", per: month, warn_at: 0.8}
defaults:
  official_fallback: {default: deny}
"""
_TEAM: Final = """team: {team}
upstream_key: env:VENDOR_{upper}
labels: {{cost_center: "4711"}}
keys:
  - {{name: ci, sha256: "{digest}", expires: 2099-01-01, can: [submit, read, cancel]}}
  - {{name: spare, sha256: "{spare}"}}
models:
  allow: ["gemini-*"]
  deny: ["gemini-3-pro-*-official"]
  actions: [generate, edit, image2image, reference]
  rewrite: {{gemini-3-pro-image: gemini-3-pro-image-preview}}
official_fallback:
  default: deny
  rules: [{{models: ["gemini-3.1-*"], action: allow, while_spend_below: 0.5}}]
limits: {{n: 4, resolution: 2K, reference_images: 4, open_tasks: 100000, requests_per_minute: 10000000}}
spend:
  - {{name: daily, cap: "100000.00", per: day}}
  - {{name: monthly, cap: "400000.00", per: month, warn_at: 0.8}}
  - {{name: ci-day, cap: "100000.00", per: day, key: ci}}
  - {{name: official, cap: "1000.00", per: day, models: ["*-official"]}}
"""


def key_of(team: str) -> str:
    """A team's virtual key."""
    return f"wgk_bench-{team}"


def headers(team: str) -> dict[str, str]:
    """What a client of a team sends."""
    return {"Authorization": f"Bearer {key_of(team)}", "Content-Type": "application/json"}


def write_policies(folder: pathlib.Path) -> pathlib.Path:
    """Policies of the usual size: caps of three scopes and a filter, rewrites, fallback rules, limits."""
    (folder / "teams").mkdir(parents=True)
    (folder / "org.yaml").write_text(_ORG)
    starter = pathlib.Path(wire.__file__).parent / "starter" / "models.yaml"
    shutil.copyfile(starter, folder / "models.yaml")
    for team in upstream.TEAMS:
        digest, spare = (hashlib.sha256(f"{key_of(team)}{more}".encode()).hexdigest() for more in ("", "-spare"))
        text = _TEAM.format(team=team, upper=team.upper(), digest=digest, spare=spare)
        (folder / "teams" / f"{team}.yaml").write_text(text)
    return folder


def copy_task(data: pathlib.Path, task_id: str, *, hits: int, others: int) -> list[str]:
    """Copy a finished task `hits` times as the results of HIT_BODY, and `others` times as history over a year.

    It must be the only one, and the gateway must not be running. Returns the ids of the hits' results.
    """
    with contextlib.closing(sqlite3.connect(data / "wave.db", isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous = OFF")
        rows = {table: _rows(connection, table, task_id) for table in COPIED}
        [task] = rows["tasks"]
        if task["state"] != "completed":
            raise RuntimeError(f"the task that is to be copied is {task['state']}")
        total = hits + others
        ids = [f"task-wg{number:026d}" for number in range(total)]
        for first in range(0, total, PER_COMMIT):
            connection.execute("BEGIN")
            for number in range(first, min(first + PER_COMMIT, total)):
                age_s = 0.0 if number < hits else 86_400.0 * 365 * (total - number) / total
                mark = fingerprint_of(number) if number < hits else hashlib.sha256(ids[number].encode()).hexdigest()
                _copy(connection, rows, ids[number], number, fingerprint=mark, age_s=age_s)
            connection.execute("COMMIT")
        _scale(connection, total + 1)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        completed_at, digests = task["ended_at"], tuple(each["digest"] for each in rows["task_media"])
    asyncio.run(_fill_cache(data / "cache", ids[:hits], completed_at, digests))
    return ids[:hits]


def fingerprint_of(number: int) -> str:
    """The fingerprint of one of the hits."""
    body = HIT_BODY.replace(asks.NUMBER, str(number)).encode()
    return fingerprint.of(wire.parse_submit(body), scope=fingerprint.team_scope("kept"))


def _rows(connection: sqlite3.Connection, table: str, task_id: str) -> list[sqlite3.Row]:
    name = "id" if table == "tasks" else "task_id"
    return connection.execute(f"SELECT * FROM {table} WHERE {name} = ?", (task_id,)).fetchall()  # noqa: S608 - ours


def _copy(
    connection: sqlite3.Connection,
    rows: dict[str, list[sqlite3.Row]],
    task_id: str,
    number: int,
    *,
    fingerprint: str,
    age_s: float,
) -> None:
    fresh: dict[str, dict[str, object]] = {
        "tasks": {
            "id": task_id,
            "fingerprint": fingerprint,
            "upstream_task_id": f"task-wave-copy-{number}",
            "upstream_idempotency_key": f"wg-copy-{number}",
        },
        "entries": {"id": None, "task_id": task_id},
        "task_media": {"task_id": task_id},
    }
    for table in COPIED:
        for row in rows[table]:
            values = dict(row) | fresh[table]
            aged = {name for name, value in values.items() if name.endswith("_at") and isinstance(value, float)}
            values |= {name: values[name] - age_s for name in aged if name != "reserved_at"}
            marks = ", ".join("?" * len(values))
            # The names are those of our own schema.
            sql = f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})"  # noqa: S608
            connection.execute(sql, tuple(values.values()))


def _scale(connection: sqlite3.Connection, times: int) -> None:
    """The sums of so many equal tasks."""
    connection.execute("UPDATE balances SET settled_nanos = settled_nanos * ?", (times,))
    connection.execute(
        "UPDATE totals SET cost_nanos = cost_nanos * :n, images = images * :n, drift_nanos = drift_nanos * :n",
        {"n": times},
    )


async def _fill_cache(folder: pathlib.Path, ids: list[str], completed_at: float, digests: tuple[str, ...]) -> None:
    kept = cache.ResultCache(folder)
    for number, task_id in enumerate(ids):
        result = cache.Result(task_id=task_id, completed_at=completed_at, digests=digests)
        await kept.put(fingerprint_of(number), result)
    kept.close()
