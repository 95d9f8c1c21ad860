"""What the flows work with: one value, made at the start, handed to every flow function."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
from collections.abc import Callable, Iterator

from gateway import metrics, tracing
from gateway.flow import callback_tokens, circuit, retry_budget, scrape, watch
from gateway.outbound import download, upstream, webhook
from gateway.rules import policy, rate
from gateway.store import blobs_disk, cache, database


class InForce:
    """The policy set that decides now; `flow/adopt` replaces it after the transaction that made its balances."""

    def __init__(self, policies: policy.PolicySet) -> None:
        """Begin with a set whose balances are not made yet; `adopt` comes before the first request."""
        self.policies = policies
        self.is_changing = False
        """While true nothing may be admitted. Set on the event loop, read by the writer."""
        self._settled = asyncio.Event()
        self._settled.set()

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Admit nothing until the block ends."""
        self.is_changing = True
        self._settled.clear()
        try:
            yield
        finally:
            self.is_changing = False
            self._settled.set()

    async def settled(self) -> None:
        """Return when no set is being adopted."""
        await self._settled.wait()


class Audited:
    """What the last audit of the books found; nothing until one has ended."""

    latest: metrics.AuditReading | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything with a life of its own that a flow touches; durations in seconds."""

    database: database.Database
    upstream: upstream.Upstream
    downloader: download.Downloader
    sender: webhook.Sender
    blobs: blobs_disk.DiskBlobs
    cache: cache.ResultCache
    in_force: InForce
    upstream_key: Callable[[str], str | None]
    """The key behind `env:NAME` or `file:PATH`, None while it cannot be read."""
    webhook_secret: Callable[[str], str | None]
    """What a team's webhooks are signed with, by its reference; None while it cannot be read."""
    watch: watch.Watch
    clock: Callable[[], float]
    luck: Callable[[], float]
    new_task_id: Callable[[], str]
    public_url: str
    new_callback_token: Callable[[], str] | None = None
    """Makes the unguessable end of the URL that the upstream is to call about a task; None: it is given no such URL."""
    callback_tokens: callback_tokens.CallbackTokens = dataclasses.field(default_factory=callback_tokens.CallbackTokens)
    media_public_url: str
    is_media_public_url_given: bool = False
    """True: the upstream may be told to fetch our media there."""
    allow_private: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    submit_deadline_s: float = 120.0
    mirror_patience_s: float = 20.0
    min_free_bytes: int = 0
    arriving: dict[tuple[str, str, bytes], set[asyncio.Event]] = dataclasses.field(default_factory=dict)
    """Submits not admitted yet, by (team, key name, body digest): a retry waits for the first."""
    attempts: dict[str, asyncio.Task[None]] = dataclasses.field(default_factory=dict)
    """First POSTs under way, by task id; each runs to its end whether or not its client stays."""
    repeating: set[str] = dataclasses.field(default_factory=set)
    """Ids of the tasks of which a later POST is under way; `flow/resolve` keeps off them."""
    delivering: dict[str, int] = dataclasses.field(default_factory=dict)
    """How many attempts at a webhook are under way, by receiver."""
    circuit: circuit.UpstreamCircuit = dataclasses.field(default_factory=circuit.UpstreamCircuit)
    retry_budget: retry_budget.RetryBudget = dataclasses.field(default_factory=retry_budget.RetryBudget)
    is_upstream_idempotent: bool = True
    """False: the upstream ignores idempotency keys, so a submit in doubt is never repeated."""
    buckets: dict[str, rate.Bucket] = dataclasses.field(default_factory=dict)
    """`requests_per_minute`, by team."""
    logs_content: bool = False
    """True: prompts and the vendor's signed URLs are logged."""
    tracing: tracing.Tracing = tracing.OFF
    audited: Audited = dataclasses.field(default_factory=Audited)
    scrapes: scrape.Turns = dataclasses.field(default_factory=scrape.Turns)
    wake_mirror: Callable[[], None] = lambda: None
    wake_poll: Callable[[], None] = lambda: None
    wake_deliver: Callable[[], None] = lambda: None
