"""The life of a task: every state, every event and every transition, in one table.

What is not in the table is ignored (`step` returns None): a late, duplicate or backward word of the upstream
changes nothing (M10). Source: DESIGN.md §2, CONTRACT.md §2.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Final


class State(enum.StrEnum):
    """Where a task is."""

    RESERVED = "reserved"
    """A POST may be under way; after a crash this means in doubt."""
    WAITING = "waiting"
    """Provably not accepted; only here may the deadline or a local cancel release."""
    IN_DOUBT = "in_doubt"
    """The POST may have arrived; only the vendor's word or an operator ends the hold."""
    SUBMITTED = "submitted"
    DELIVERED = "delivered"
    """Settled; the media are not yet mirrored."""
    FOLLOWING = "following"
    """Waits for its leader, at cost 0."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    """The upstream answered the POST with a refusal, which the client got."""


class Event(enum.StrEnum):
    """What can happen to a task."""

    ATTEMPTED = "attempted"
    """A POST is about to start; written before the first byte leaves (M6)."""
    NOT_SENT = "not_sent"
    """The POST provably was not accepted: no connection, 429, or a complaint about our key."""
    LOST = "lost"
    """The POST may have arrived, its answer did not."""
    ACCEPTED = "accepted"
    REFUSED = "refused"
    EXPIRED = "expired"
    """The submit deadline passed while the task was provably not accepted."""
    DELIVERED = "delivered"
    MIRRORED = "mirrored"
    """The media are kept, or the patience is over."""
    FAILED = "failed"
    CANCELLED = "cancelled"
    WITHDRAWN = "withdrawn"
    """The client cancelled what the vendor never had: no word of the vendor is needed."""
    RESOLVED = "resolved"
    """An operator decided what the vendor never said (M7)."""


TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = {
    (State.RESERVED, Event.NOT_SENT): State.WAITING,
    (State.RESERVED, Event.LOST): State.IN_DOUBT,
    (State.RESERVED, Event.ACCEPTED): State.SUBMITTED,
    (State.RESERVED, Event.REFUSED): State.REFUSED,
    (State.WAITING, Event.ATTEMPTED): State.RESERVED,
    (State.IN_DOUBT, Event.ATTEMPTED): State.IN_DOUBT,
    (State.WAITING, Event.EXPIRED): State.FAILED,
    (State.WAITING, Event.WITHDRAWN): State.CANCELLED,
    (State.IN_DOUBT, Event.ACCEPTED): State.SUBMITTED,
    (State.IN_DOUBT, Event.REFUSED): State.FAILED,
    (State.SUBMITTED, Event.DELIVERED): State.DELIVERED,
    (State.SUBMITTED, Event.FAILED): State.FAILED,
    (State.SUBMITTED, Event.CANCELLED): State.CANCELLED,
    (State.DELIVERED, Event.MIRRORED): State.COMPLETED,
    (State.FOLLOWING, Event.WITHDRAWN): State.CANCELLED,
    (State.IN_DOUBT, Event.RESOLVED): State.FAILED,
    (State.SUBMITTED, Event.RESOLVED): State.FAILED,
}

HOLDING: Final = (State.RESERVED, State.WAITING, State.IN_DOUBT, State.SUBMITTED)
"""States in which a task holds a reservation."""

OPEN: Final = (*HOLDING, State.DELIVERED, State.FOLLOWING)
"""States that are not an end."""

ENDED: Final = tuple(state for state in State if state not in OPEN)

SHOWN: Final[Mapping[State, str]] = {
    State.RESERVED: "queued",
    State.WAITING: "queued",
    State.IN_DOUBT: "queued",
    State.SUBMITTED: "queued",
    State.DELIVERED: "processing",
    State.FOLLOWING: "queued",
    State.COMPLETED: "completed",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
    State.REFUSED: "failed",
}
"""The status that a client sees, unless the vendor's own word for an open task is known."""


def step(state: State, event: Event) -> State | None:
    """The state after an event, or None if the event means nothing here."""
    return TRANSITIONS.get((state, event))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """One result file as the vendor names it; `expires_at` in unix seconds."""

    url: str
    expires_at: int | None = None
    is_billed: bool = True
    """False for a thumbnail beside what was asked for."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the vendor says about a task that it accepted."""

    event: Event | None
    """DELIVERED, FAILED or CANCELLED; None while it is under way or the status is unknown."""
    status: str = ""
    cost_quota: int | None = None
    is_cost_readable: bool = True
    """False where the vendor named a cost that makes no sense; then it counts as none."""
    pre_consumed_quota: int | None = None
    media: tuple[Media, ...] = ()
    images: int = 0
    """How many results were delivered: what is billed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The vendor took the submit under this id."""

    upstream_task_id: str
    document: bytes
    outcome: Outcome


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The vendor refused under its idempotency key; status and body go to the client."""

    status: int
    document: bytes


NO_CONNECTION: Final = "connect"
"""The reason where not even a connection was made."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NotSent:
    """Provably not accepted; `retry_after_s` is the vendor's wish, `is_key_refused` a complaint about our key."""

    reason: str
    retry_after_s: int | None = None
    is_key_refused: bool = False
    reset_at: int | None = None
    """Unix seconds at which the vendor's own quota window ends."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InDoubt:
    """It may have been accepted; nobody knows. `is_down`: no answer came, or one that says the vendor is not there.

    `is_garbled`: what came is what no vendor in its right mind sends.
    """

    reason: str
    is_down: bool = False
    is_garbled: bool = False


SubmitOutcome = Accepted | Refused | NotSent | InDoubt


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The vendor answered a cancel, with a yes or a no; status and body go to the client."""

    status: int
    document: bytes
    is_refusal: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The vendor may have heard a cancel and nobody knows what it did; `is_answered` with what says nothing.

    `is_garbled` as in `InDoubt`.
    """

    reason: str
    is_answered: bool
    is_garbled: bool = False


CancelOutcome = Told | NotSent | Lost
