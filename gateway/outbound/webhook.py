"""Sends one webhook to wherever a client wants to be told; the receiver is hostile until it has answered.

Rules: the address guard decides where a connection may go, anew for each attempt; redirects are not followed; nothing
of ours but the body, the headers handed in and a user agent is sent. Time and what is read of the answer are bounded.

Not here: when to try again, what is signed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import httpx

from gateway.outbound import address, guarded, tunnel

DEADLINE_S: Final = 15.0
"""For one attempt, from the look-up of the name to the end of the answer."""
ANSWER_MAX_BYTES: Final = 64 * 1024
CONNECTIONS_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """The receiver answered with a 2xx."""

    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """It did not; `is_gone`: it answered 410 and wants no more of these."""

    detail: str
    """For the log and the outbox: never the URL's path or query."""
    is_gone: bool = False
    retry_after: str | None = None
    """What a receiver that is overloaded (429, 503) wishes, as it wrote it."""
    status: int | None = None
    """Where it answered at all."""


class Sender:
    """Sends through clients behind the address guard, each webhook on a connection of its own.

    A kept connection may be closed by the receiver just as a POST leaves on it, and its address was judged long ago.
    """

    def __init__(
        self,
        *,
        allowed: Sequence[address.Network] = (),
        tls: ssl.SSLContext,
        deadline_s: float = DEADLINE_S,
        proxy: tunnel.Proxy | None = None,
    ) -> None:
        self._allowed = tuple(allowed)
        self._deadline_s = deadline_s
        self._clients = guarded.Clients(
            allowed=self._allowed,
            tls=tls,
            connections_max=CONNECTIONS_MAX,
            keeps_connections=False,
            timeout=httpx.Timeout(None),  # the deadline covers every part
            headers={"Connection": "close", "Content-Type": "application/json"},
            proxy=proxy,
        )

    async def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> Delivered | Failed:
        """POST the body, all within the deadline. Once there is a status, what follows it changes nothing."""
        target = address.check_url(url, allowed=self._allowed)
        if isinstance(target, address.Refused):
            return Failed(detail=f"the address is not allowed: {target.reason}")
        outcome: Delivered | Failed | None = None
        try:
            async with (
                asyncio.timeout(self._deadline_s),
                self._clients.of(target).stream(
                    "POST", target.url, content=body, headers={**headers, **guarded.as_written(target.url)}
                ) as answer,
            ):
                outcome = _judge(answer.status_code, answer.headers.get("retry-after"))
                await _read_some(answer)
        except guarded.FAILURES as error:
            outcome = outcome or self._failed_by(error)
        return outcome

    async def aclose(self) -> None:
        """Close all connections."""
        await self._clients.aclose()

    def _failed_by(self, error: BaseException) -> Failed:
        causes = tuple(guarded.causes(error))
        refused = next((each for each in causes if isinstance(each, address.AddressRefused)), None)
        if refused is not None:
            return Failed(detail=f"the address is not allowed: {refused.reason}")
        if any(isinstance(each, TimeoutError) for each in causes):
            return Failed(detail=f"no answer within {self._deadline_s:g} s")
        return Failed(detail=guarded.reason_of(error))


def _judge(status: int, retry_after: str | None) -> Delivered | Failed:
    if 200 <= status < 300:
        return Delivered(status=status)
    if 300 <= status < 400:
        return Failed(detail=f"answered {status}: redirects are not followed", status=status)
    wish = retry_after if status in (429, 503) else None
    return Failed(detail=f"answered {status}", is_gone=status == 410, retry_after=wish, status=status)


async def _read_some(answer: httpx.Response) -> None:
    """Let a receiver finish what it says, as far as it is short."""
    size_bytes = 0
    async for chunk in answer.aiter_raw():
        size_bytes += len(chunk)
        if size_bytes >= ANSWER_MAX_BYTES:
            return
