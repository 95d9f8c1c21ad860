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
from collections.abc import Mapping
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

_TASK_ID: Final = "printf('task-wg%026d', nth)"
_FRESH: Final[Mapping[str, Mapping[str, str]]] = {
    "tasks": {
        "id": _TASK_ID,
        "body_digest": "randomblob(32)",
        "fingerprint": "CASE WHEN nth < :hits THEN fingerprint_of(nth) ELSE lower(hex(randomblob(32))) END",
        "upstream_task_id": "'task-wave-copy-' || nth",
        "upstream_idempotency_key": "'wg-copy-' || nth",
    },
    "entries": {"id": "NULL", "task_id": _TASK_ID},
    "task_media": {"task_id": _TASK_ID},
}
"""What is copied, and what is of each copy's own."""
_AGING: Final = ("at", "created_at", "first_attempt_at", "deadline_at", "submitted_at", "settled_at", "ended_at")
_AGE_S: Final = "CASE WHEN nth < :hits THEN 0 ELSE 31536000.0 * (:total - nth) / :total END"
_NUMBERS: Final = """
CREATE TEMP TABLE numbers AS WITH RECURSIVE
    counted (nth) AS (SELECT 0 UNION ALL SELECT nth + 1 FROM counted WHERE nth + 1 < :total) SELECT nth FROM counted
"""
_SUMS: Final = (
    "UPDATE balances SET settled_nanos = settled_nanos * :times",
    "UPDATE totals SET cost_nanos = cost_nanos * :times, images = images * :times, drift_nanos = drift_nanos * :times",
)

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
    total = hits + others
    with contextlib.closing(sqlite3.connect(data / "wave.db", isolation_level=None)) as connection:
        connection.create_function("fingerprint_of", 1, fingerprint_of, deterministic=True)
        connection.execute("PRAGMA synchronous = OFF")
        state, completed_at = connection.execute(
            "SELECT state, ended_at FROM tasks WHERE id = ?", (task_id,)
        ).fetchone()
        if state != "completed":
            raise RuntimeError(f"the task that is to be copied is {state}")
        connection.execute(_NUMBERS, {"total": total})
        for first in range(0, total, PER_COMMIT):
            values = {"task_id": task_id, "first": first, "past": first + PER_COMMIT, "hits": hits, "total": total}
            connection.execute("BEGIN")
            for table, fresh in _FRESH.items():
                sql = _copying(connection, table, fresh)
                connection.execute(sql, {name: value for name, value in values.items() if f":{name}" in sql})
            connection.execute("COMMIT")
        for sql in _SUMS:
            connection.execute(sql, {"times": total + 1})
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        digests = connection.execute("SELECT digest FROM task_media WHERE task_id = ?", (task_id,)).fetchall()
    ids = [f"task-wg{number:026d}" for number in range(hits)]
    asyncio.run(_fill_cache(data / "cache", ids, completed_at, tuple(digest for (digest,) in digests)))
    return ids


def fingerprint_of(number: int) -> str:
    """The fingerprint of one of the hits."""
    body = HIT_BODY.replace(asks.NUMBER, str(number)).encode()
    return fingerprint.of(wire.parse_submit(body), scope=fingerprint.team_scope("kept"))


def _copying(connection: sqlite3.Connection, table: str, fresh: Mapping[str, str]) -> str:
    """The statement that copies a task's rows of a table, whatever columns that has."""
    names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    key = "id" if table == "tasks" else "task_id"
    taken = [fresh.get(name, f"one.{name} - {_AGE_S}" if name in _AGING else f"one.{name}") for name in names]
    # The names are those of our own schema. A settle must come after its reserve.
    return (
        f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(taken)} FROM numbers, "  # noqa: S608
        f"(SELECT rowid AS place, * FROM {table} WHERE {key} = :task_id) AS one "
        "WHERE nth >= :first AND nth < :past ORDER BY nth, one.place"
    )


async def _fill_cache(folder: pathlib.Path, ids: list[str], completed_at: float, digests: tuple[str, ...]) -> None:
    kept = cache.ResultCache(folder)
    for number, task_id in enumerate(ids):
        result = cache.Result(task_id=task_id, completed_at=completed_at, digests=digests)
        await kept.put(fingerprint_of(number), result)
    kept.close()
