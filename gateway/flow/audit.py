"""The books: every balance and hold recomputed from the ledger's entries, every media row against its blob.

Each part of the books is compared within one snapshot, where nothing moves. A file lies outside of any: it may be
collected after its row was read, so what is found about a file beside a gateway at work is looked at a second time.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Final, Protocol, TypeVar

from gateway.rules import money, task
from gateway.store import blobs_disk, checks, ledger, media, tasks
from gateway.store.database import Tx

Progress = Callable[[int, int], None]
"""Called with (done, of how many)."""
FILES_A_STEP: Final = 500
_NAMES: Final = ("team", "model", "tier")
T = TypeVar("T")


class Scan(Protocol):
    """Runs a function on a fresh snapshot, away from the event loop."""

    def __call__(self, fn: Callable[[Tx], T], /) -> Awaitable[T]:
        """Return what the function returns."""


def audit(tx: Tx, blobs: blobs_disk.DiskBlobs) -> list[str]:
    """Every difference found, in words, in a store that nobody changes meanwhile; none: the books agree to the nano."""
    rows = ((row.digest, row.size_bytes) for row in media.all_blobs(tx))
    return [*itertools.chain.from_iterable(part(tx) for part in _PARTS), *_files(blobs, rows).values()]


async def beside(
    scan: Scan, blobs: blobs_disk.DiskBlobs, *, progress: Progress = lambda _done, _total: None
) -> AsyncIterator[str]:
    """Every difference found, in words, beside a gateway at work.

    No snapshot is held for the whole of it: the write-ahead log cannot shrink while one is.
    """
    kept, _ = await scan(media.usage)
    # A query shows no progress of its own, so each part counts as a tenth of the files, however few.
    weight = max(1, kept // 10)
    done, total = 0, len(_PARTS) * weight + kept
    for part in _PARTS:
        for difference in await scan(functools.partial(_all, part)):
            yield difference
        done += weight
        progress(done, total)
    last: str | None = ""
    while last is not None:
        looked = await scan(functools.partial(_look, blobs=blobs, after=last))
        if looked.suspects:
            for difference in await scan(functools.partial(_look_again, blobs=blobs, digests=looked.suspects)):
                yield difference
        last, done = looked.last, done + looked.files
        progress(min(done, total), total)


def _balances(tx: Tx) -> Iterator[str]:
    """Every balance is the sum of the settles and open reserves of its window (M3), and of its holds."""
    wanted, holds = checks.by_balance(tx), checks.holds_by_balance(tx)
    kept = ledger.balances(tx)
    for balance, _, found in kept:
        settled, reserved = wanted[balance]
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


def _media(tx: Tx) -> Iterator[str]:
    """Every result that is said to be kept has a row, and the kept sums are those of the rows."""
    for digest in checks.digests_without_blob(tx):
        yield f"blob {digest} is named by a task's result and has no row"
    kept, counted = media.usage(tx), checks.usage(tx)
    if kept != counted:
        yield f"usage is {kept[0]} blobs of {kept[1]} bytes, recomputed it is {counted[0]} of {counted[1]}"


_PARTS: Final = (_balances, _holds, _ends, _costs, _totals, _media)
"""Of the books; each agrees in any one snapshot."""


def _all(part: Callable[[Tx], Iterator[str]], tx: Tx) -> list[str]:
    return list(part(tx))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What a step over the files found; `last`: the digest to go on after, None at the end."""

    files: int
    suspects: tuple[str, ...]
    last: str | None


def _look(tx: Tx, blobs: blobs_disk.DiskBlobs, after: str) -> Looked:
    rows = media.after(tx, after, limit=FILES_A_STEP)
    last = rows[-1][0] if len(rows) == FILES_A_STEP else None
    return Looked(files=len(rows), suspects=tuple(_files(blobs, rows)), last=last)


def _look_again(tx: Tx, blobs: blobs_disk.DiskBlobs, digests: Iterable[str]) -> list[str]:
    rows = [row for digest in digests if (row := media.get(tx, digest)) is not None]
    return list(_files(blobs, ((row.digest, row.size_bytes) for row in rows)).values())


def _files(blobs: blobs_disk.DiskBlobs, rows: Iterable[tuple[str, int]]) -> Mapping[str, str]:
    """Differences by digest: every row has its file, of the size it says."""
    found: dict[str, str] = {}
    for digest, size_bytes in rows:
        kept = blobs.kept(digest)
        if kept is None:
            found[digest] = f"blob {digest} has a row and no file"
        elif kept.size_bytes != size_bytes:
            found[digest] = f"blob {digest} has {kept.size_bytes} bytes, its row says {size_bytes}"
    return found


def _usd(nanos: int) -> str:
    return f"${money.render_usd(nanos)}"
