"""Named places in the life of a task at which the crash proof ends the process.

In service `reach` does nothing: no setting and no environment variable arms it, only the proof's own entry point does.
Inside a transaction it is the writer's thread that comes by. A test compares the table with the calls, so a name that
is not in it, or that nobody reaches, is found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

NAMES: Final[Mapping[str, str]] = {
    "submit.decided": "allowed, the reserving transaction not begun",
    "submit.hit": "in it: what a hit avoided is counted, its row is not there",
    "submit.follow": "in it: a leader is found, the follower's row is not there",
    "submit.free": "in it: the row of a hit or follower is there",
    "submit.reserved": "in it: reserved in every balance, the task's row is not there",
    "submit.inserted": "in it: the task's row is there",
    "submit.admitted": "committed, the POST not begun",
    "submit.answered": "the first POST has its outcome, the client has no answer",
    "ledger.held": "a balance holds the quote, its hold's row is not there",
    "ledger.reserved": "the balances hold the quote, the reserve entry is not there",
    "ledger.settled": "the settle entry is there, the balances are as before",
    "ledger.released": "the release entry is there, the balances are as before",
    "ledger.moved": "one balance is moved from reserved to settled, the hold's rows are there",
    "ledger.ended": "the balances are moved, the totals are as before",
    "ledger.made": "a balance is made, its holds are not there",
    "sqlite.begun": "a batch is begun",
    "sqlite.ran": "every write of a batch ran, before COMMIT",
    "sqlite.committed": "after COMMIT, nobody is answered",
    "attempt.before": "the reservation is durable, no byte of the POST has left",
    "attempt.after": "the POST is answered, the answer not recorded",
    "attempt.recorded": "the answer is recorded, nobody is told",
    "advance.attempt": "in its transaction: another POST is allowed, not noted",
    "advance.accept": "in its transaction: the vendor's id is known, not noted",
    "advance.refuse": "in its transaction: refused, not released",
    "advance.doubt": "in its transaction: an answer is lost, the task not in doubt",
    "advance.put_off": "in its transaction: waiting again",
    "advance.expire": "in its transaction: past the deadline, not released",
    "advance.withdraw": "in its transaction: cancelled here, not released",
    "advance.abandon": "in its transaction: left to the operator, the followers not ended",
    "advance.report": "in its transaction: failed or cancelled by the vendor, not settled",
    "advance.deliver": "in its transaction: delivered, not settled",
    "advance.settled": "in its transaction: delivered and settled, its files not noted",
    "advance.mirror": "in its transaction: completed, what its followers avoided not counted",
    "advance.end": "in its transaction: at its end, its followers not",
    "outbox.noted": "in its transaction: a webhook is noted, what ends with its task is not",
    "resubmit.begun": "another POST is durably noted, not begun",
    "resubmit.expired": "expired and committed, nobody is told",
    "poll.before": "the vendor not asked yet",
    "poll.after": "the vendor's word is there, not recorded",
    "poll.recorded": "the vendor's word is recorded, nobody is told",
    "mirror.downloaded": "a file is fetched, not durable",
    "mirror.kept": "a file is durable, its row is not there",
    "mirror.noted": "a file and its row are durable, the task is not completed",
    "mirror.put_off": "a file could not be fetched, the next round is planned",
    "mirror.refreshed": "the vendor named its files once more",
    "mirror.completed": "completed and committed, the cache is not filled",
    "mirror.cached": "the cache is filled, nobody is told",
    "blob.synced": "a file's bytes are durable under its temporary name",
    "blob.renamed": "a file has its name, its directory is not durable",
    "media.kept": "in its transaction: a blob's row is there, the task does not point at it",
    "cancel.ended": "cancelled here and committed, nobody is told",
    "cancel.hidden": "nobody may follow any more, the vendor is not asked",
    "cancel.after": "the vendor has answered a cancel, nothing is noted",
    "cancel.noted": "the next poll is wanted at once, the client has no answer",
    "adopt.before": "new policies are read, their balances not made",
    "adopt.dropped": "in its transaction: what nobody looks at is dropped",
    "adopt.made": "in its transaction: the missing balances are made",
    "adopt.committed": "the balances are committed, the rules not in force",
    "deliver.before": "a webhook is due, no byte of it has left",
    "deliver.after": "a webhook's receiver has answered, the answer is not recorded",
    "deliver.recorded": "what came of a webhook is recorded",
    "recover.before": "after a start, nothing is put in doubt",
    "recover.doubted": "in its transaction: interrupted submits are in doubt",
    "recover.resumed": "in its transaction: what is in doubt is due at once",
    "recover.committed": "recovered and committed, no loop runs",
}
"""Every failpoint, and what is true there."""

_hook: Callable[[str], None] | None = None


def reach(name: str) -> None:
    """Say that a failpoint is reached."""
    if _hook is not None:
        _hook(name)


def arm(hook: Callable[[str], None] | None) -> None:
    """Have `hook` called with each failpoint that is reached, from any thread; None: never again."""
    global _hook
    _hook = hook
