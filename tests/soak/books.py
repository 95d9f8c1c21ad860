"""What must be true once a soak has ended: every task, the money, the webhooks."""

from __future__ import annotations

import collections
import contextlib
import pathlib
import sqlite3
from collections.abc import Collection, Mapping
from typing import Any, Final

from tests.soak.receiver import Heard

ENDS: Final = ("completed", "failed", "cancelled", "refused")
NANOS_PER_QUOTA: Final = 2_000


def findings(
    file: pathlib.Path,
    bill: Mapping[str, Any],
    heard: Mapping[str, Heard],
    promised: Collection[str],
    *,
    gone_url: str,
) -> tuple[list[str], str]:
    """What is wrong with a ledger beside the vendor's bill and what the receivers heard; and its sums in words.

    `promised`: ids of tasks that an answer named. `gone_url`: webhooks for it are given up.
    """
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as ledger:
        ledger.row_factory = sqlite3.Row
        rows = ledger.execute(
            "SELECT id, state, upstream_task_id, callback_url, attempts, leader_id FROM tasks"
        ).fetchall()
        settled = dict(
            ledger.execute(
                "SELECT upstream_task_id, SUM(nanos) FROM entries JOIN tasks ON tasks.id = entries.task_id "
                "WHERE kind = 'settle' GROUP BY 1"
            ).fetchall()
        )
        outbox = {row["task_id"]: row["state"] for row in ledger.execute("SELECT task_id, state FROM outbox")}
        (held,) = ledger.execute("SELECT COALESCE(SUM(reserved_nanos), 0) FROM balances").fetchone()
    wrong = [f"{row['id']} is {row['state']}" for row in rows if row["state"] not in ENDS]
    wrong += [f"{held} nanos are still reserved"] if held else []
    wrong += [f"{each} was promised and is not there" for each in set(promised) - {row["id"] for row in rows}]
    wrong += _money(bill, settled)
    wrong += _webhooks(rows, outbox, heard, gone_url)
    states = collections.Counter(str(row["state"]) for row in rows)
    told = sum(each.taken > 0 for each in heard.values())
    again = sum(each.taken > 1 for each in heard.values())
    return wrong, (
        f"{len(rows)} tasks ({', '.join(f'{count} {state}' for state, count in states.most_common())}), "
        f"{bill['tasks']} at the vendor, {sum(settled.values())} nanos settled = the bill; "
        f"{told} webhooks taken ({again} of them again), "
        f"{sum(state == 'given_up' for state in outbox.values())} given up"
    )


def _money(bill: Mapping[str, Any], settled: Mapping[str, int]) -> list[str]:
    """Task by task, so that two errors cannot cancel out."""
    by_task = bill["by_task"]
    wrong = []
    for task_id in sorted(by_task.keys() | settled.keys(), key=str):
        billed = by_task.get(task_id, {"quota": 0})["quota"] * NANOS_PER_QUOTA
        if billed != settled.get(task_id, 0):
            wrong.append(f"vendor task {task_id}: billed {billed}, settled {settled.get(task_id, 0)} nanos")
    if bill["nanos"] != sum(settled.values()):
        wrong.append(f"billed {bill['nanos']}, settled {sum(settled.values())} nanos")
    keys = collections.Counter(line["idempotency_key"] for line in by_task.values())
    return wrong + [f"{count} vendor tasks under one idempotency key" for count in keys.values() if count > 1]


def _may_be_the_answer(row: sqlite3.Row) -> bool:
    """Whether the client may have heard of the end as the answer to its submit."""
    is_never_taken = row["state"] == "failed" and row["upstream_task_id"] is None and row["leader_id"] is None
    return row["state"] == "refused" or (is_never_taken and row["attempts"] == 1)


def _webhooks(
    rows: Collection[sqlite3.Row], outbox: Mapping[str, str], heard: Mapping[str, Heard], gone_url: str
) -> list[str]:
    """One webhook for each end of which a client wanted to hear, taken under one id; none for any other.

    A refusal, and an end at once where the team waits for no upstream, is told of only where it came too late to be the
    answer to the submit. At least once: a receiver whose answer comes too late hears again.
    """
    wanted = {
        row["id"]: row["callback_url"]
        for row in rows
        if row["callback_url"] and (row["id"] in outbox or not _may_be_the_answer(row))
    }
    wrong = [f"a webhook told of {task_id}, and nobody asked" for task_id in heard.keys() - wanted.keys()]
    for task_id, url in wanted.items():
        known = heard.get(task_id, Heard())
        expected = ("given_up", False) if url == gone_url else ("delivered", True)
        if (outbox.get(task_id), known.taken > 0) != expected or len(known.ids) != 1:
            wrong.append(f"webhook of {task_id}: {outbox.get(task_id)}, {known}")
    return wrong
