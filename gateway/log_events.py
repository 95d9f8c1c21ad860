"""What may be logged: a closed set of events, each with its fields.

An event's name is its class's in snake_case; docs/LOGS.md lists them all. A field that is None is not written. No event
has a place for a key, a prompt (but for `TaskChanged.prompt`, see there) or the path of a URL: hosts only. Amounts are
decimal strings in USD, `ms` milliseconds, times unix seconds.

Here is no word about how a line looks; that is `logs`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="event", tag=_snake):
    """Something that happened; its text is what a log for people shows."""

    def __str__(self) -> str:
        said = " ".join(f"{name}={value}" for name, value in fields_of(self).items())
        return f"{name_of(self)} {said}".rstrip()


class Message(Event, frozen=True, kw_only=True):
    """Words without fields of their own: of libraries, and about what is no task and no request."""

    message: str
    task_id: str | None = None


class Request(Event, frozen=True, kw_only=True):
    """A client's request was answered, or its client left (status 499)."""

    method: str
    route: str
    status: int
    ms: float | None = None
    request_id: str | None = None
    team: str | None = None
    key: str | None = None
    """The virtual key's name, never the key."""
    task_id: str | None = None
    cache: str | None = None
    quote_usd: str | None = None
    cost_usd: str | None = None
    code: str | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    peer: str | None = None


class RequestFailed(Event, frozen=True, kw_only=True):
    """A request met a failure that nobody foresaw; the exception is with it."""

    request_id: str
    route: str


class PolicyDenied(Event, frozen=True, kw_only=True):
    """A submit was denied; nothing was stored or sent."""

    request_id: str
    team: str
    key: str
    code: str
    rule: str


class TaskChanged(Event, frozen=True, kw_only=True, rename={"before": "from", "after": "to"}):
    """A task was born (no `from`) or changed its state; its settle or release is part of that."""

    task_id: str
    request_id: str
    """Of its submit, on every line about the task."""
    team: str
    key: str
    before: str | None = None
    after: str
    cause: str | None = None
    """The event of the table of transitions."""
    hold: str | None = None
    """What the ledger did with it: reserve, settle, release, overage."""
    model: str
    tier: str
    cache: str | None = None
    quote_usd: str | None = None
    cost_usd: str | None = None
    leader_id: str | None = None
    upstream_task_id: str | None = None
    attempts: int | None = None
    age_s: float | None = None
    prompt: str | None = None
    """At a task's birth, with --log-content only."""


class TaskLeftToOperator(Event, frozen=True, kw_only=True):
    """In doubt, and not repeated any more: `tasks resolve` ends the hold."""

    task_id: str
    request_id: str
    team: str
    quote_usd: str
    why: str


class UpstreamCall(Event, frozen=True, kw_only=True):
    """A call to the upstream has ended."""

    operation: str
    outcome: str
    status: int | None = None
    reason: str | None = None
    ms: float
    task_id: str | None = None
    request_id: str | None = None
    attempt: int | None = None


class UpstreamDown(Event, frozen=True, kw_only=True):
    """The circuit opened: submits are held back but for a probe now and then."""

    probe_every_s: float


class UpstreamBack(Event, frozen=True, kw_only=True):
    """The circuit closed: what was held back leaves, oldest first."""


class UpstreamKeyRefused(Event, frozen=True, kw_only=True):
    """The upstream refuses the key or wallet of a team."""

    team: str
    task_id: str


class UpstreamKeyMissing(Event, frozen=True, kw_only=True):
    """A task waits for an upstream key that cannot be read, or must not be used for it."""

    team: str
    task_id: str
    request_id: str
    operation: str
    reference: str
    """`env:NAME` or `file:PATH`."""


class UpstreamTaskIdReused(Event, frozen=True, kw_only=True):
    """The vendor answered a submit with an id that another task has: it is in doubt."""

    task_id: str
    request_id: str
    holder_id: str


class UpstreamCostUnreadable(Event, frozen=True, kw_only=True):
    """The vendor names a cost that makes no sense; the frozen price counts."""

    task_id: str
    request_id: str


class MirrorKept(Event, frozen=True, kw_only=True):
    """A result file is kept."""

    task_id: str
    request_id: str
    position: int
    digest: str
    bytes: int
    host: str
    ms: float
    url: str | None = None
    """Whole, signature and all, with --log-content only."""


class MirrorFailed(Event, frozen=True, kw_only=True):
    """A result file could not be fetched or kept this time."""

    task_id: str
    request_id: str
    position: int
    reason: str
    detail: str
    host: str
    ms: float
    url: str | None = None
    """As in `MirrorKept`."""


class MirrorExpired(Event, frozen=True, kw_only=True):
    """Results were lost: their URLs ended before they could be mirrored."""

    task_id: str
    request_id: str
    files: int


class WebhookAttempt(Event, frozen=True, kw_only=True):
    """A webhook was sent or could not be."""

    outcome: str
    task_id: str
    request_id: str
    team: str
    webhook_id: str
    receiver: str
    attempt: int
    status: int | None = None
    detail: str | None = None
    ms: float


class PolicyLoaded(Event, frozen=True, kw_only=True):
    """A policy set came into force."""

    teams: int


class PolicyBroken(Event, frozen=True, kw_only=True):
    """A problem of the policy files; what was in force stays so."""

    problem: str
    in_force: str = "the last good set"


class PolicyNotKept(Event, frozen=True, kw_only=True):
    """The policy set in force could not be kept as the last good one."""

    problem: str


class Started(Event, frozen=True, kw_only=True):
    """The gateway answers requests."""

    version: str
    public_url: str
    upstream: str
    internal_listen: str | None = None


class Recovered(Event, frozen=True, kw_only=True):
    """Submits were under way when the gateway ended; they are in doubt and repeated under their keys."""

    tasks: int


class CutOff(Event, frozen=True, kw_only=True):
    """Background steps did not end within the drain; they go on after the next start."""

    steps: int


class Stopped(Event, frozen=True, kw_only=True):
    """The gateway has ended in order."""


class LogLinesDropped(Event, frozen=True, kw_only=True):
    """Whoever reads the log did not keep up, or could not be written to; so many lines are missing here."""

    lines: int


EVENTS: Final[Mapping[str, tuple[str, ...]]] = {
    str(each.__struct_config__.tag): each.__struct_encode_fields__ for each in Event.__subclasses__()
}
"""Every event's name and the names of its fields."""


def name_of(event: Event) -> str:
    """The event's name."""
    return str(event.__struct_config__.tag)


def fields_of(event: Event) -> dict[str, object]:
    """What is known, by the names that are written, in their order."""
    encoded = zip(event.__struct_encode_fields__, event.__struct_fields__, strict=True)
    return {name: value for name, field in encoded if (value := getattr(event, field)) is not None}
