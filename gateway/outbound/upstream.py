"""Calls to the upstream, each with a bound on time and size, each answered with an outcome as a type.

No call follows a redirect, reads the environment, keeps a cookie or is cancelled because a client left. The team's
upstream key goes to the configured origin only.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, TypeVar
from urllib.parse import quote

import aiohttp
import httpx
import httpx_aiohttp

from gateway import VERSION, log_events, logs, metrics, tracing, wire
from gateway.outbound import address, bounded, tunnel
from gateway.rules import reconcile, task

T = TypeVar("T")

CONNECT_S: Final = 5.0
POOL_S: Final = 20.0
TOTAL_S: Final = 30.0
MOST_ANSWER_BYTES: Final = 1024 * 1024
LARGE_BYTES: Final = 16 * 1024
"""No sane answer is longer: a task is a kilobyte or two."""
LARGE_AT_ONCE: Final = 2
"""How many answers longer than that are in memory; others wait in the network's buffers."""
MOST_CONNECTIONS: Final = 256
GARBLED: Final = "garbled"
"""What no upstream in its right mind sends: no HTTP, an answer without an end, a redirect, a success about nothing."""
TOO_LARGE: Final = "too_large"
KEY_REMOVED: Final = b"[upstream key]"
TOKEN_REMOVED: Final = b"[callback token]"
LEAST_KEY_REMOVED: Final = 16
"""Shorter ones are no secrets, and could be found in any text."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Which task a call is about: for the log, and by `X-Request-Id` for the vendor's support."""

    task_id: str
    request_id: str
    """Of the client's submit, on every call about its task."""
    attempt: int | None = None
    """Of a submit, from 1."""
    callback_token: str | None = None
    """The secret that the task was sent with, which no answer is to repeat."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Polled:
    """The vendor's word about a task."""

    outcome: task.Outcome
    document: bytes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A GET that brought no word; says nothing about what was asked for. `is_down` as in `task.InDoubt`."""

    reason: str
    is_key_refused: bool = False
    is_down: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: int
    headers: httpx.Headers
    body: bytes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Silence:
    """There was no answer, or none that can be read whole; `is_garbled`: it was no HTTP, or more of it than allowed."""

    reason: str
    is_sent: bool = True
    is_answered: bool = False
    is_garbled: bool = False


@dataclasses.dataclass(slots=True, kw_only=True)
class _Call:
    """A request on its way, and what is known of its answer."""

    operation: str
    about: About | None
    started: float = dataclasses.field(default_factory=time.perf_counter)
    status: int | None = None

    def ended(self, outcome: str, *, reason: str | None, level: int) -> None:
        """Count it, and log it."""
        seconds = time.perf_counter() - self.started
        metrics.UPSTREAM_REQUESTS.labels(self.operation, outcome).inc()
        metrics.UPSTREAM_DURATION.labels(self.operation, outcome).observe(seconds)
        if not log.isEnabledFor(level):
            return
        called = log_events.UpstreamCall(
            operation=self.operation,
            outcome=outcome,
            status=self.status,
            reason=None if reason == str(self.status) else reason,
            ms=round(seconds * 1000, 1),
            task_id=self.about.task_id if self.about else None,
            request_id=self.about.request_id if self.about else None,
            attempt=self.about.attempt if self.about else None,
        )
        logs.note(log, level, called)


class _TooLarge(Exception):
    """The answer is longer than the bound."""


class Upstream:
    """The vendor at one origin."""

    def __init__(
        self,
        origin: str,
        *,
        verify: ssl.SSLContext | None = None,
        proxy: tunnel.Proxy | None = None,
        allowed: Sequence[address.Network] = (),
    ) -> None:
        """`origin`: scheme, host and port, e.g. `https://www.qingbo.dev`; `verify`: how to check its certificate.

        With a `proxy` that one is asked for the upstream by its name; an address in `allowed` is reached directly.
        """
        tls = verify or ssl.create_default_context()
        self._origin = origin.rstrip("/")
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._client = httpx.AsyncClient(
            transport=httpx_aiohttp.AiohttpTransport(
                verify=tls, trust_env=False, client=lambda: _session(tls, proxy, allowed)
            ),
            headers={"User-Agent": f"wave-gateway/{VERSION}", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(None, connect=CONNECT_S, pool=POOL_S),
            trust_env=False,
            follow_redirects=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # one wallet, many teams: nothing is remembered
        )

    async def submit(
        self,
        body: bytes,
        *,
        key: str,
        idempotency_key: str | None,
        about: About | None = None,
        traceparent: str | None = None,
        span: tracing.Span = tracing.NOTHING,
    ) -> task.SubmitOutcome:
        """POST a task; what cannot be known is in doubt (CONTRACT §2). The `span` is told of the exchange."""
        headers = {"Content-Type": "application/json"}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        if traceparent is not None:
            headers["traceparent"] = traceparent
        call = _Call(operation="submit", about=about)
        outcome = await self._submit(body, headers, key, span, call)
        _tell(call, _submit_label(outcome), outcome)
        return outcome

    async def poll(self, upstream_task_id: str, *, key: str, about: About | None = None) -> Polled | Trouble:
        """GET a task."""
        call = _Call(operation="poll", about=about)
        result = await self._poll(upstream_task_id, key, call)
        _tell_get(call, result)
        return result

    async def balance(self, *, key: str) -> reconcile.Wallet | Trouble:
        """GET the wallet of the account that the key belongs to."""
        call = _Call(operation="balance", about=None)
        result = await self._balance(key, call)
        _tell_get(call, result)
        return result

    async def cancel(self, upstream_task_id: str, *, key: str, about: About | None = None) -> task.CancelOutcome:
        """Ask for a task's cancellation; only a later poll says whether it was cancelled."""
        call = _Call(operation="cancel", about=about)
        outcome = await self._cancel(upstream_task_id, key, call)
        _tell(call, _cancel_label(outcome), outcome)
        return outcome

    def describe(self, span: tracing.Span, method: str, template: str, came: int | str) -> None:
        """Tell a span of an exchange with the upstream; what `came` is a status, or why there was no answer."""
        url = httpx.URL(self._origin)
        span.set({"http.request.method": method, "url.template": template, "server.address": url.host})
        span.set({"server.port": url.port or (443 if url.scheme == "https" else 80)})
        if isinstance(came, int):
            span.set({"http.response.status_code": came})
        if isinstance(came, str) or came >= 400:
            span.fail(str(came))

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def _submit(
        self, body: bytes, headers: dict[str, str], key: str, span: tracing.Span, call: _Call
    ) -> task.SubmitOutcome:
        def read(answer: _Answer) -> task.SubmitOutcome:
            if span.is_recording:
                self.describe(span, "POST", "/v1/tasks", answer.status)
            outcome = wire.classify_submit(answer.status, answer.body, retry_after=answer.headers.get("retry-after"))
            if isinstance(outcome, task.InDoubt) and _is_down(answer):
                return dataclasses.replace(outcome, is_down=True)
            return outcome

        outcome = await self._ask("POST", "/v1/tasks", read, call, key=key, headers=headers, body=body)
        if not isinstance(outcome, _Silence):
            return outcome
        if span.is_recording:
            self.describe(span, "POST", "/v1/tasks", outcome.reason)
        if not outcome.is_sent:
            return task.NotSent(reason=outcome.reason)
        return task.InDoubt(reason=outcome.reason, is_down=not outcome.is_answered, is_garbled=outcome.is_garbled)

    async def _poll(self, upstream_task_id: str, key: str, call: _Call) -> Polled | Trouble:
        def read(body: bytes) -> Polled | Trouble:
            outcome = wire.read_task(body, upstream_task_id)
            return Trouble(reason="not_a_task") if outcome is None else Polled(outcome=outcome, document=body)

        return await self._get(_path(upstream_task_id), read, call, key=key)

    async def _balance(self, key: str, call: _Call) -> reconcile.Wallet | Trouble:
        def read(body: bytes) -> reconcile.Wallet | Trouble:
            return wire.read_balance(body) or Trouble(reason="not_a_balance")

        return await self._get("/v1/dashboard/billing/balance", read, call, key=key)

    async def _get(self, path: str, read: Callable[[bytes], T | Trouble], call: _Call, *, key: str) -> T | Trouble:
        """What the body of an answer 200 says, or why there is none."""

        def read_ok(answer: _Answer) -> T | Trouble:
            if answer.status == 200:
                return read(answer.body)
            is_key_refused = answer.status in (401, 402, 403)
            return Trouble(reason=str(answer.status), is_key_refused=is_key_refused, is_down=_is_down(answer))

        result = await self._ask("GET", path, read_ok, call, key=key)
        if isinstance(result, _Silence):
            return Trouble(reason=result.reason, is_down=not result.is_answered)
        return result

    async def _cancel(self, upstream_task_id: str, key: str, call: _Call) -> task.CancelOutcome:
        def read(answer: _Answer) -> task.CancelOutcome:
            retry_after = answer.headers.get("retry-after")
            return wire.classify_cancel(answer.status, answer.body, upstream_task_id, retry_after=retry_after)

        outcome = await self._ask("POST", f"{_path(upstream_task_id)}/cancel", read, call, key=key)
        if not isinstance(outcome, _Silence):
            return outcome
        if not outcome.is_sent:
            return task.NotSent(reason=outcome.reason)
        return task.Lost(reason=outcome.reason, is_answered=outcome.is_answered, is_garbled=outcome.is_garbled)

    async def _ask(
        self,
        method: str,
        path: str,
        read: Callable[[_Answer], T],
        call: _Call,
        *,
        key: str,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> T | _Silence:
        """What `read` makes of the answer. It is called within the bounds on time and memory, so it cannot wait."""
        named = {"X-Request-Id": call.about.request_id} if call.about is not None else {}
        try:
            return await self._call(method, path, read, call, key=key, headers=named | (headers or {}), body=body)
        except TimeoutError:
            return _Silence(reason="timeout")
        except bounded.Overlong:
            return _Silence(reason=TOO_LARGE, is_answered=True, is_garbled=True)
        except _FAILURES as error:
            if _never_connected(error):
                return _Silence(reason=task.NO_CONNECTION, is_sent=False)
            if _is_no_http(error):
                return _Silence(reason=GARBLED, is_garbled=True)
            return _Silence(reason=_name(error))
        except _TooLarge:
            return _Silence(reason=TOO_LARGE, is_answered=True, is_garbled=True)

    async def _call(
        self,
        method: str,
        path: str,
        read: Callable[[_Answer], T],
        call: _Call,
        *,
        key: str,
        headers: dict[str, str],
        body: bytes | None,
    ) -> T:
        headers = headers | {"Authorization": f"Bearer {key}"}
        received = bytearray()
        async with asyncio.timeout(TOTAL_S), contextlib.AsyncExitStack() as while_large:
            async with self._client.stream(method, self._origin + path, headers=headers, content=body) as response:
                is_large = False
                async for chunk in response.aiter_raw():
                    received += chunk
                    if len(received) > MOST_ANSWER_BYTES:
                        received.clear()  # a failure leaves cycles, which would keep it until they are collected
                        raise _TooLarge
                    if len(received) > LARGE_BYTES and not is_large:
                        await while_large.enter_async_context(self._large)
                        is_large = True
            token = call.about.callback_token if call.about is not None else None
            said_whole = _without(bytes(received), key, token)
            del received
            said = _Answer(status=response.status_code, headers=response.headers, body=said_whole)
            call.status = said.status
            outcome = read(said)
            if is_large:
                await asyncio.sleep(0)  # each takes some milliseconds; others of this loop come in between
            return outcome


def _without(body: bytes, key: str, token: str | None) -> bytes:
    """An answer that repeats no secret that it was asked with: its text reaches clients and the database."""
    if len(key) >= LEAST_KEY_REMOVED:
        body = body.replace(key.encode(), KEY_REMOVED)
    return body if token is None else body.replace(token.encode(), TOKEN_REMOVED)


def _is_down(answer: _Answer) -> bool:
    """Whether the answer says that the vendor is not there, or not able to work."""
    return answer.status >= 500


def _path(upstream_task_id: str) -> str:
    return f"/v1/tasks/{quote(upstream_task_id, safe='')}"


def _session(
    tls: ssl.SSLContext, proxy: tunnel.Proxy | None, allowed: Sequence[address.Network]
) -> aiohttp.ClientSession:
    async def ways(host: str, port: int) -> Sequence[str] | None:
        return None if address.is_literal_inside(host, allowed) else [host]

    if proxy is None:
        connector = bounded.Connector(limit=MOST_CONNECTIONS, ssl=tls)
    else:
        connector = tunnel.Connector(proxy=proxy, ways=ways, tls=tls, limit=MOST_CONNECTIONS)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )


_FAILURES: Final = (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError)
"""A malformed answer leaves the transport as aiohttp's own error. TimeoutError, our deadline, is caught before."""


def _never_connected(error: Exception) -> bool:
    """Whether not one byte was sent.

    The transport's own mapping cannot be used: it turns a dropped answer (`ServerDisconnectedError`) into
    `httpx.ConnectTimeout`. The cause tells them apart.
    """
    return isinstance(error.__cause__ or error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError))


def _is_no_http(error: Exception) -> bool:
    """Whether what came is none that a parser takes; one that broke off may have been."""
    cause = error.__cause__ or error
    if isinstance(cause, aiohttp.ClientPayloadError):
        return False
    return isinstance(cause, aiohttp.ClientResponseError) or isinstance(
        cause.__cause__, aiohttp.http.HttpProcessingError
    )


def _name(error: Exception) -> str:
    return type(error.__cause__ or error).__name__


def _submit_label(outcome: task.SubmitOutcome) -> str:
    match outcome:
        case task.Accepted():
            return "accepted"
        case task.Refused():
            return "refused"
        case task.NotSent():
            return "not_sent"
        case task.InDoubt():
            return GARBLED if outcome.is_garbled else "in_doubt"


def _cancel_label(outcome: task.CancelOutcome) -> str:
    match outcome:
        case task.Told():
            return "refused" if outcome.is_refusal else "accepted"
        case task.NotSent():
            return "not_sent"
        case task.Lost():
            return GARBLED if outcome.is_garbled else "lost"


_TROUBLES: Final = frozenset(
    {
        *("401", "402", "403", "404", "429"),
        *(task.NO_CONNECTION, "timeout", TOO_LARGE, GARBLED, "not_a_task", "not_a_balance"),
    }
)


def _trouble_label(trouble: Trouble) -> str:
    """Of a closed set, whatever status the vendor makes up and whatever its connection dies of."""
    reason = trouble.reason
    if reason in _TROUBLES:
        return reason
    return {"3": "3xx", "4": "4xx", "5": "5xx"}.get(reason[0], "other") if reason.isdigit() else "lost"


OUTCOMES: Final[Mapping[str, tuple[str, ...]]] = {
    "submit": ("accepted", "refused", "not_sent", "in_doubt", GARBLED),
    "poll": ("ok", "lost", "other", "3xx", "4xx", "5xx", *sorted(_TROUBLES - {"not_a_balance"})),
    "cancel": ("accepted", "refused", "not_sent", "lost", GARBLED),
}
"""What can come of a gateway's requests. Each is counted from 0, so that `increase()` sees the first."""
for _operation, _outcomes in OUTCOMES.items():
    for _outcome in _outcomes:
        metrics.UPSTREAM_REQUESTS.labels(_operation, _outcome)


def _tell(call: _Call, label: str, outcome: task.SubmitOutcome | task.CancelOutcome) -> None:
    if isinstance(outcome, task.Accepted | task.Refused | task.Told):
        call.ended(label, reason=None, level=logging.INFO)
    else:
        call.ended(label, reason=outcome.reason, level=logging.WARNING)


def _tell_get(call: _Call, result: Polled | reconcile.Wallet | Trouble) -> None:
    if isinstance(result, Trouble):
        call.ended(_trouble_label(result), reason=result.reason, level=logging.WARNING)
    else:
        call.ended("ok", reason=None, level=logging.DEBUG)
