"""The policies of a life, and its books: after the last kill the ledger is held against the simulator's bill."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import pathlib
import sqlite3
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gateway import app
from gateway.flow import advance, audit
from gateway.rules import task
from gateway.store import blobs_disk, sqlite, tasks
from gateway.store.database import Tx
from tests import process
from tests.crash import clients, receiver

_ORGS: Final = (
    'timezone: UTC\nspend: [{name: d, cap: "500.00", per: day}, {name: m, cap: "5000.00", per: month}]\n',
    'timezone: UTC\nspend: [{name: w, cap: "900.00", per: week}, {name: m, cap: "5000.00", per: month}]\n',
    'timezone: Europe/Berlin\nspend: [{name: d, cap: "500.00", per: day}, {name: t, cap: "9000.00", per: total}]\n',
)
_GROWTHS: Final = (
    'spend: [{name: d, cap: "90.00", per: day}, {name: k, cap: "80.00", per: day, key: ci}]\n',
    'spend: [{name: d, cap: "95.00", per: day}, {name: o, cap: "70.00", per: day, models: ["*-official"]}]\n',
    'spend: [{name: f, cap: "60.00", per: week, models: ["gemini-2*"]}, {name: k, cap: "80.00", per: day, key: ci}]\n',
)
_FALLBACK: Final = "official_fallback: {default: allow}\n"
_DOUBT: Final = """
team: doubt
upstream_key: file:{path}
keys: [{{name: ci, sha256: "{digest}"}}]
spend: [{{name: d, cap: "50.00", per: day}}]
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the books of one life say. Nanos are summed task by task, so that two errors cannot cancel out."""

    lost_nanos: int
    gained_nanos: int
    duplicates: int
    open_tasks: int
    tasks: int
    billed_nanos: int
    findings: tuple[str, ...]


def write_policies(directory: pathlib.Path, variant: int, key_file: pathlib.Path) -> None:
    """One of the policy sets of a life: caps of several scopes and filters, with room for everything."""
    process.write_policies(directory, org=_ORGS[variant], growth=_FALLBACK + _GROWTHS[variant])
    digest = hashlib.sha256(clients.key_of(clients.DOUBT).encode()).hexdigest()
    (directory / "teams" / "doubt.yaml").write_text(_DOUBT.format(path=key_file, digest=digest))


def count_open(data: pathlib.Path) -> int:
    """How many tasks are on their way to an end, or to their client; those that are left to the operator are not."""
    path = data / app.DATABASE_NAME
    if not path.exists():
        return 0
    states = ", ".join(f"'{state}'" for state in task.OPEN)
    with contextlib.closing(sqlite.open_read_only(path)) as connection:
        try:
            row = connection.execute(
                f"SELECT COUNT(*) FROM tasks WHERE state IN ({states}) "  # noqa: S608 - our own enum
                "AND NOT (state = 'in_doubt' AND next_at IS NULL)"
            ).fetchone()
            pending = connection.execute("SELECT COUNT(*) FROM outbox WHERE state = 'pending'").fetchone()
        except sqlite3.OperationalError:
            return 1  # its schema is not there yet
    return int(row[0]) + int(pending[0])


async def compare(
    data: pathlib.Path, bill: Mapping[str, Any], told: Iterable[clients.Told], hook: receiver.Receiver
) -> Verdict:
    """Hold a life's ledger against the vendor's bill, after the gateway has ended."""
    database = sqlite.SqliteDatabase(data / app.DATABASE_NAME)
    blobs = blobs_disk.DiskBlobs(data / "media")
    try:
        untold = await database.read(lambda tx: hook.compare(tx, told))
        await database.write(_decide_as_operator)
        verdict = await database.read(lambda tx: _compare(tx, blobs, bill["by_task"], list(told)))
        return dataclasses.replace(verdict, findings=(*verdict.findings, *untold))
    finally:
        database.close()
        await asyncio.sleep(0)


def _decide_as_operator(tx: Tx) -> None:
    """Release what the scenarios leave to the operator: the vendor refused to say, and never took it."""
    for task_id in tasks.ids_in(tx, task.State.IN_DOUBT):
        row = tasks.get(tx, task_id)
        if row is not None and row.next_at is None:
            advance.resolve(tx, row, charged_nanos=None, why="the vendor's bill does not show it", now=time.time())


def _compare(
    tx: Tx, blobs: blobs_disk.DiskBlobs, by_task: Mapping[str, Mapping[str, Any]], told: list[clients.Told]
) -> Verdict:
    settled = {
        row["upstream_task_id"]: row["nanos"]
        for row in tx.all(
            "SELECT upstream_task_id, entries.nanos FROM entries JOIN tasks ON tasks.id = entries.task_id "
            "WHERE kind = 'settle'"
        )
    }
    billed = {task_id: line["quota"] * 2_000 for task_id, line in by_task.items()}
    findings = [
        f"vendor task {task_id}: billed {billed.get(task_id, 0)}, settled {settled.get(task_id, 0)} nanos"
        for task_id in sorted(billed.keys() | settled.keys(), key=str)
        if billed.get(task_id, 0) != settled.get(task_id, 0)
    ]
    over = [settled.get(each, 0) - billed.get(each, 0) for each in billed.keys() | settled.keys()]
    prompts = collections.Counter(line["prompt"] for line in by_task.values())
    findings += [f"{prompt}: {count} vendor tasks" for prompt, count in prompts.items() if count > 1]
    still_open = [row for state in task.OPEN for row in tasks.newest(tx, state=state, limit=1000)]
    findings += [f"task {row.id} is still {row.state}: {row.request!r}" for row in still_open]
    findings += audit.audit(tx, blobs)
    findings += _told_otherwise(tx, told)
    findings += _without_picture(tx, blobs)
    return Verdict(
        lost_nanos=sum(-each for each in over if each < 0),
        gained_nanos=sum(each for each in over if each > 0),
        duplicates=sum(count - 1 for count in prompts.values()),
        open_tasks=len(still_open),
        tasks=len(tasks.newest(tx, limit=100_000)),
        billed_nanos=sum(billed.values()),
        findings=tuple(findings),
    )


def _told_otherwise(tx: Tx, told: list[clients.Told]) -> list[str]:
    """Answers that are not true: a task that is not there, or two tasks for one idempotency key."""
    findings = [
        f"{each.part.prompt}: task {each.task_id} was promised and is not there"
        for each in told
        if each.task_id is not None and tasks.get(tx, each.task_id) is None
    ]
    by_key: dict[tuple[str, str], set[str]] = {}
    for each in told:
        if each.key is not None and each.task_id is not None:
            by_key.setdefault((each.team, each.key), set()).add(each.task_id)
    return findings + [f"key {key}: {len(ids)} tasks" for key, ids in by_key.items() if len(ids) > 1]


def _without_picture(tx: Tx, blobs: blobs_disk.DiskBlobs) -> list[str]:
    findings = []
    for row in tasks.newest(tx, state=task.State.COMPLETED, limit=100_000):
        media = tasks.media_of(tx, row.leader_id or row.id)
        kept = [each for each in media if each.digest is not None and blobs.path(each.digest) is not None]
        if not media or len(kept) < len(media):
            findings.append(f"task {row.id} is completed, {len(kept)} of its {len(media)} pictures are on disk")
    return findings
