"""The books beside the vendor's: the ledger is read, the vendor is asked about tasks, then about the wallets.

The order matters on a running gateway. A task that the vendor calls ended before the wallet is read is in the wallet
with exactly its cost; what is reserved after the ledger was read is looked up once more at the end. Nothing is written
and nothing is concluded here: `rules/reconcile` judges.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

from gateway.flow import attempt
from gateway.outbound import upstream
from gateway.rules import reconcile as rules
from gateway.rules import task
from gateway.store import books
from gateway.store.database import Tx

T = TypeVar("T")

AT_ONCE: Final = 8
MOST_SILENT: Final = 16
"""Polls in a row that were not answered, or not taken, after which no further task is asked about."""
ROUNDS: Final = 5
"""How often the wallets are read where they differ: keys of one account do so while money moves."""

NOT_THERE: Final = "404"
"""The vendor has no balance page."""
TOO_MANY: Final = "429"
"""The vendor's rate limit, which the gateway itself lives under too."""


class Scan(Protocol):
    """Runs a function on one snapshot of the database: that of a gateway, or of a file beside one."""

    def __call__(self, fn: Callable[[Tx], T], /) -> Awaitable[T]:
        """The function's value."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to reconcile."""

    refs: frozenset[str]
    """The upstream keys of the policies."""
    openings: Mapping[str, int]
    """Nanos by reference: what the account used that no ledger entry stands for."""
    since: float
    """Unix seconds; tasks that ended before are not asked about."""
    most: int
    """How many tasks are asked about at most."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of it."""

    accounts: tuple[rules.Account, ...]
    findings: tuple[rules.Finding, ...]
    asked: int
    not_asked: int
    """Tasks with an id at the vendor that were not asked about: more than the bound, no key, or no answers."""

    def faults(self) -> list[rules.Finding]:
        """What is wrong with single tasks."""
        return [each for each in self.findings if each.reason in rules.FAULTS]

    def is_explained(self) -> bool:
        """Whether every wallet is known and nothing is left unexplained."""
        return not self.faults() and all(each.is_explained() for each in self.accounts)


class UnknownReference(Exception):
    """An opening names a key that neither the policies nor the ledger know."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """An upstream key; without a secret where it cannot be read."""

    refs: tuple[str, ...]
    digest: bytes | None = None
    secret: str | None = dataclasses.field(default=None, repr=False)


async def reconcile(
    scan: Scan,
    vendor: upstream.Upstream,
    *,
    question: Question,
    key_of: Callable[[str], str | None],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Report:
    """Compare the ledger with every wallet and every open or recent task; raises UnknownReference."""
    found = await scan(lambda tx: books.read(tx, since=question.since))
    keys = _keys(question, found, key_of)
    first = await _wallets(vendor, keys)
    answering = [key for key in keys if _is_worth_asking(first.get(key.refs))]
    heard = await _ask_about_tasks(vendor, question, found, answering, progress)
    wallets = first | await _quiet_wallets(vendor, [key for key in keys if isinstance(first[key.refs], rules.Wallet)])
    reserved = await scan(lambda tx: books.reserved_after(tx, found.last_entry))

    parts: defaultdict[tuple[str, ...], list[rules.Part]] = defaultdict(list)
    findings: defaultdict[tuple[str, ...], list[rules.Finding]] = defaultdict(list)
    for key_id, booked in found.tasks:
        finding = rules.compare(booked, heard.get(booked.id))
        if finding is not None:
            findings[_place(keys, key_id).refs].append(finding)
    for reason, sums in ((rules.Reason.ESTIMATED, found.estimated), (rules.Reason.MEANWHILE, reserved)):
        for each in sums:
            part = rules.Part(reason=reason, tasks=each.tasks, least_nanos=each.least_nanos, most_nanos=each.most_nanos)
            parts[_place(keys, each.key).refs].append(part)
    for key in keys:
        parts[key.refs] += [*rules.add_up(findings[key.refs]), *_openings(question, key)]
    judged = rules.judge([_book(key, question, found, keys, wallets[key.refs], parts[key.refs]) for key in keys])
    askable = sum(booked.upstream_task_id is not None for _, booked in found.tasks)
    return Report(
        accounts=tuple(judged),
        findings=tuple(finding for key in keys for finding in findings[key.refs]),
        asked=len(heard),
        not_asked=askable - len(heard),
    )


def _keys(question: Question, found: books.Books, key_of: Callable[[str], str | None]) -> list[_Key]:
    """Every key that the policies or the ledger name, once; several references may hold the same."""
    sums = [*found.settled, *found.estimated]
    booked = [key_id.ref for key_id in [*(each.key for each in sums), *(key_id for key_id, _ in found.tasks)]]
    refs = dict.fromkeys([*sorted(question.refs), *(ref or "" for ref in booked)])
    if unknown := sorted(question.openings.keys() - refs.keys()):
        raise UnknownReference(unknown[0])
    keys: dict[bytes | str, _Key] = {}
    for ref in refs:
        secret = key_of(ref) if ref else None
        digest = None if secret is None else attempt.digest_of(secret)
        known = keys.get(digest or ref)
        keys[digest or ref] = _Key(refs=(*(known.refs if known else ()), ref), digest=digest, secret=secret)
    return list(keys.values())


def _place(keys: Sequence[_Key], key_id: books.KeyId) -> _Key:
    """The key that an amount belongs to: the very one, else the present one of the same reference.

    Of the latest reserves it may be neither: a team came into force meanwhile.
    """
    same = [key for key in keys if key_id.digest is not None and key.digest == key_id.digest]
    return next(iter(same or [key for key in keys if (key_id.ref or "") in key.refs]), _NOWHERE)


_NOWHERE: Final = _Key(refs=())


def _is_worth_asking(wallet: rules.Wallet | upstream.Trouble | None) -> bool:
    """Whether polls under a key may bring a word."""
    return not isinstance(wallet, upstream.Trouble) or not (wallet.is_down or wallet.is_key_refused)


async def _wallets(
    vendor: upstream.Upstream, keys: Sequence[_Key]
) -> dict[tuple[str, ...], rules.Wallet | upstream.Trouble]:
    async def one(key: _Key) -> rules.Wallet | upstream.Trouble:
        if key.secret is None:
            return upstream.Trouble(reason="no_key", is_key_refused=True)
        async with gate:
            return await vendor.balance(key=key.secret)

    gate = asyncio.Semaphore(AT_ONCE)
    answers = await asyncio.gather(*(one(key) for key in keys))
    return {key.refs: answer for key, answer in zip(keys, answers, strict=True)}


async def _quiet_wallets(
    vendor: upstream.Upstream, keys: Sequence[_Key]
) -> dict[tuple[str, ...], rules.Wallet | upstream.Trouble]:
    """The wallets at a moment at which as many as possible agree, as keys of one account do unless money moves."""
    best = await _wallets(vendor, keys)
    for _ in range(ROUNDS - 1):
        if len(set(best.values())) <= 1:
            break
        again = await _wallets(vendor, keys)
        if len(set(again.values())) < len(set(best.values())):
            best = again
    return best


async def _ask_about_tasks(
    vendor: upstream.Upstream,
    question: Question,
    found: books.Books,
    keys: Sequence[_Key],
    progress: Callable[[int, int], None],
) -> dict[str, task.Outcome | rules.Unheard]:
    """The vendor's word about each task that has an id there, open ones first, each asked for with its key."""
    by_key = {each.digest: each.secret for each in keys} | {ref: each.secret for each in keys for ref in each.refs}
    asked = [
        (booked.id, booked.upstream_task_id, by_key.get(key_id.digest) or by_key.get(key_id.ref or ""))
        for key_id, booked in found.tasks
    ]
    queue = [(own, theirs, secret) for own, theirs, secret in asked if theirs is not None and secret is not None]
    todo = iter(queue[: question.most])
    total = min(len(queue), question.most)
    heard: dict[str, task.Outcome | rules.Unheard] = {}
    silent = 0

    async def work() -> None:
        nonlocal silent
        for own, theirs, secret in todo:
            polled = await vendor.poll(theirs, key=secret)
            if isinstance(polled, upstream.Polled):
                silent, heard[own] = 0, polled.outcome
            else:
                silent = silent + 1 if polled.is_down or polled.reason == TOO_MANY else 0
                heard[own] = rules.Unheard(reason=polled.reason)
            progress(len(heard), total)
            if silent >= MOST_SILENT:
                return

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return heard


def _openings(question: Question, key: _Key) -> Iterable[rules.Part]:
    for ref in key.refs:
        if ref in question.openings:
            nanos = question.openings[ref]
            yield rules.Part(reason=rules.Reason.OPENING, tasks=0, least_nanos=nanos, most_nanos=nanos)


def _book(
    key: _Key,
    question: Question,
    found: books.Books,
    keys: Sequence[_Key],
    wallet: rules.Wallet | upstream.Trouble,
    parts: Sequence[rules.Part],
) -> rules.Book:
    settled = [each for each in found.settled if _place(keys, each.key) is key]
    # A key that is gone for good has no wallet any more; the operator's word stands for what it settled.
    is_gone = key.secret is None and question.refs.isdisjoint(key.refs)
    used = wallet.used_nanos if isinstance(wallet, rules.Wallet) else None
    if used is None and is_gone and not question.openings.keys().isdisjoint(key.refs):
        used = 0
    return rules.Book(
        refs=key.refs,
        used_nanos=used,
        trouble=wallet.reason if isinstance(wallet, upstream.Trouble) else "",
        settled_nanos=sum(each.least_nanos for each in settled),
        settles=sum(each.tasks for each in settled),
        earlier_nanos=sum(each.least_nanos for each in settled if each.key.digest != key.digest),
        parts=tuple(parts),
    )
