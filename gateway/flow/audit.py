"""The books: every balance and hold recomputed from the ledger's entries, every media row against its blob."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gateway.rules import money, task
from gateway.store import blobs_disk, ledger, media, tasks
from gateway.store.database import Tx

Progress = Callable[[int, int], None]
"""Called with (done, of how many)."""


def audit(tx: Tx, blobs: blobs_disk.DiskBlobs, *, progress: Progress = lambda _done, _total: None) -> list[str]:
    """Every difference found, in words; none means the books agree to the nano."""
    return [*_balances(tx, progress), *_holds(tx), *_totals(tx), *_media(tx, blobs, progress)]


def _balances(tx: Tx, progress: Progress) -> Iterator[str]:
    kept = ledger.balances(tx)
    for done, (balance, ends_at, found) in enumerate(kept, start=1):
        settled, open_holds = ledger.recompute(tx, balance, ends_at)
        reserved = sum(each["nanos"] for each in open_holds)
        where = f"balance {balance.scope} {balance.name} {balance.filter} {balance.window} {balance.start}"
        if settled != found.settled_nanos:
            yield f"{where}: settled is {_usd(found.settled_nanos)}, the entries say {_usd(settled)}"
        if reserved != found.reserved_nanos:
            yield f"{where}: reserved is {_usd(found.reserved_nanos)}, the open holds say {_usd(reserved)}"
        progress(done, len(kept))


def _holds(tx: Tx) -> Iterator[str]:
    """Every open task has an open reserve, and every open reserve an open task (M2)."""
    holding = {each for state in task.HOLDING for each in tasks.ids_in(tx, state)}
    reserved = ledger.open_reserves(tx)
    for task_id in sorted(holding - reserved):
        yield f"task {task_id} is open and holds no reservation"
    for task_id in sorted(reserved - holding):
        yield f"the reservation of task {task_id} was never settled or released"


def _totals(tx: Tx) -> Iterator[str]:
    sums = ledger.settled_by_model(tx)
    kept = {
        (each.team, each.model, each.tier): (each.cost_nanos, each.images)
        for each in ledger.totals(tx)
        if each.cost_nanos or each.images
    }
    for key in sorted(sums.keys() | kept.keys()):
        if sums.get(key, (0, 0)) != kept.get(key, (0, 0)):
            yield f"totals of {' '.join(key)}: {kept.get(key)} kept, {sums.get(key)} by the entries"


def _media(tx: Tx, blobs: blobs_disk.DiskBlobs, progress: Progress) -> Iterator[str]:
    rows = media.all_blobs(tx)
    for done, row in enumerate(rows, start=1):
        path = blobs.path(row.digest)
        if path is None:
            yield f"blob {row.digest} has a row and no file"
        elif path.stat().st_size != row.size_bytes:
            yield f"blob {row.digest} has {path.stat().st_size} bytes, its row says {row.size_bytes}"
        progress(done, len(rows))


def _usd(nanos: int) -> str:
    return f"${money.render_usd(nanos)}"
