"""The books: every balance and hold recomputed from the ledger's entries, every media row against its blob."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from gateway.rules import money, task
from gateway.store import blobs_disk, checks, ledger, media, tasks
from gateway.store.database import Tx

Progress = Callable[[int, int], None]
"""Called with (done, of how many)."""
_FILES_A_STEP: Final = 100
_NAMES: Final = ("team", "model", "tier")


def audit(tx: Tx, blobs: blobs_disk.DiskBlobs, *, progress: Progress = lambda _done, _total: None) -> list[str]:
    """Every difference found, in words; none means the books agree to the nano."""
    parts = (_balances, _holds, _ends, _costs, _totals)
    rows = media.all_blobs(tx)
    # A query shows no progress of its own, so each part counts as a tenth of the files, however few.
    weight = max(1, len(rows) // 10)
    total = len(parts) * weight + len(rows)
    found: list[str] = []
    for done, part in enumerate(parts, start=1):
        found.extend(part(tx))
        progress(done * weight, total)
    found.extend(_media(tx, rows, blobs, lambda done: progress(len(parts) * weight + done, total)))
    return found


def _balances(tx: Tx) -> Iterator[str]:
    """Every balance is the sum of the settles and open reserves of its window (M3), and of its holds."""
    entries, holds = checks.Entries(tx), checks.holds_by_balance(tx)
    kept = ledger.balances(tx)
    for balance, ends_at, found in kept:
        settled, reserved = entries.of(balance, ends_at)
        held = holds.get(balance, 0)
        where = f"balance {balance.scope} {balance.name} {balance.filter} {balance.window} {balance.start}"
        if settled != found.settled_nanos:
            yield f"{where}: settled is {_usd(found.settled_nanos)}, the entries say {_usd(settled)}"
        if reserved != found.reserved_nanos:
            yield f"{where}: reserved is {_usd(found.reserved_nanos)}, the open holds say {_usd(reserved)}"
        if held != reserved:
            yield f"{where}: its rows of holds say {_usd(held)}, the open reserves {_usd(reserved)}"
    for balance in sorted(holds.keys() - {each for each, _, _ in kept}):
        where = f"balance {balance.scope} {balance.name} {balance.filter} {balance.window} {balance.start}"
        yield f"{where} has no row, and tasks hold {_usd(holds[balance])} in it"


def _holds(tx: Tx) -> Iterator[str]:
    """Every open task has an open reserve, and every open reserve an open task (M2)."""
    holding = {each for state in task.HOLDING for each in tasks.ids_in(tx, state)}
    reserved = ledger.open_reserves(tx)
    for task_id in sorted(holding - reserved):
        yield f"task {task_id} is open and holds no reservation"
    for task_id in sorted(reserved - holding):
        yield f"the reservation of task {task_id} was never settled or released"
    for row in checks.holds_of_ended(tx):
        yield f"a row of holds gives task {row['task_id']} {_usd(row['nanos'])}, which is no open reserve of it"


def _ends(tx: Tx) -> Iterator[str]:
    """Every paid task that ended has an end in the ledger (the schema allows one), every free one has nothing there."""
    for task_id in checks.ended_without_end(tx):
        yield f"task {task_id} has ended, and the ledger has neither a settle nor a release of it"
    for task_id in checks.free_with_entries(tx):
        yield f"task {task_id} is free, and the ledger has entries of it"


def _costs(tx: Tx) -> Iterator[str]:
    """A task's row says what its settle says; nothing where it was released or free (M4)."""
    for row in checks.other_costs(tx):
        said = "nothing" if row["cost_nanos"] is None else _usd(row["cost_nanos"])
        yield f"task {row['id']}: its row says that it cost {said}, its end in the ledger {_usd(row['nanos'])}"
    for task_id in checks.free_with_cost(tx):
        yield f"task {task_id} is free, and its row names a cost"


def _totals(tx: Tx) -> Iterator[str]:
    """Every total is the sum of what it counts."""
    sums = checks.totals(tx)
    kept: dict[checks.Key, dict[str, int]] = {}
    for each in ledger.totals(tx):
        columns = {name: value for name, value in dataclasses.asdict(each).items() if name not in _NAMES and value}
        kept[each.team, each.model, each.tier] = columns
    for key in sorted(sums.keys() | kept.keys()):
        found, wanted = kept.get(key, {}), sums.get(key, {})
        for column in sorted(found.keys() | wanted.keys()):
            if found.get(column, 0) != wanted.get(column, 0):
                where = f"totals of {' '.join(key)}: {column}"
                yield f"{where} is {found.get(column, 0)}, recomputed it is {wanted.get(column, 0)}"


def _media(
    tx: Tx, rows: Sequence[media.BlobRow], blobs: blobs_disk.DiskBlobs, progress: Callable[[int], None]
) -> Iterator[str]:
    """Every result that is said to be kept has a row, every row its file, of the size it says."""
    for digest in checks.digests_without_blob(tx):
        yield f"blob {digest} is named by a task's result and has no row"
    for done, row in enumerate(rows, start=1):
        kept = blobs.kept(row.digest)
        if kept is None:
            yield f"blob {row.digest} has a row and no file"
        elif kept.size_bytes != row.size_bytes:
            yield f"blob {row.digest} has {kept.size_bytes} bytes, its row says {row.size_bytes}"
        if done % _FILES_A_STEP == 0 or done == len(rows):
            progress(done)


def _usd(nanos: int) -> str:
    return f"${money.render_usd(nanos)}"
