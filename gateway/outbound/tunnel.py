"""The way out through a proxy of the organisation (--egress-proxy): a CONNECT for each connection, then TLS inside it.

Rules: only https goes through it; plain http, which only the operator can open, goes direct. The proxy is told host and
port, never a path, a key or a body: those are inside TLS, which verifies the name as it would without a proxy. Until
the tunnel stands and TLS in it is agreed, not one byte of a request has left. The proxy's credentials are in the
CONNECT and nowhere else: no error and no log line holds them.

Not here: which addresses are permitted (`address`).
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import ssl
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import aiohttp
from aiohttp.client_proto import ResponseHandler

from gateway.outbound import bounded

MOST_HEAD_BYTES: Final = 16 * 1024
"""Of a proxy's answer."""
MOST_TRIES: Final = 4
"""Addresses of one name that the proxy is asked for."""
CONNECT_S: Final = 10.0
"""From the first packet to the proxy to the end of the handshake inside the tunnel, for each address."""

Ways: TypeAlias = Callable[[str, int], Awaitable[Sequence[str] | None]]
"""What to name in a CONNECT to a host and port, one after the other; None: go there directly."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """Where the proxy is, and what it wants to hear."""

    host: str
    port: int
    is_tls: bool
    authorization: str | None = field(default=None, repr=False)
    """The value of Proxy-Authorization."""


class ProxyFailed(OSError):
    """There is no tunnel; says why without anything that the proxy or we wrote."""


def parse(url: str) -> Proxy:
    """Read `http://user:password@proxy.example.com:3128`; raises ValueError, which does not repeat the text."""
    right = "write http:// or https:// and a host and port, such as http://proxy.example.com:3128 (not shown here)"
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"is not a URL; {right}") from None
    is_plain = url.isascii() and url.isprintable() and " " not in url and "\\" not in url
    if not is_plain or parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"is not the URL of a proxy; {right}")
    if parts.path.strip("/") or "?" in url or "#" in url:
        raise ValueError(f"has a path, a query or a fragment; {right}")
    authorization = None
    if parts.username is not None:
        words = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(words.encode()).decode("ascii")
    is_tls = parts.scheme == "https"
    return Proxy(host=parts.hostname, port=port or (443 if is_tls else 80), is_tls=is_tls, authorization=authorization)


class Connector(bounded.Connector):
    """Makes each https connection inside a tunnel; the pool above it is aiohttp's own."""

    def __init__(self, *, proxy: Proxy, ways: Ways, tls: ssl.SSLContext, **options: Any) -> None:
        """`tls`: how to check the proxy and whoever is at the other end; `options`: of a TCPConnector."""
        super().__init__(ssl=tls, **options)
        self._proxy = proxy
        self._ways = ways
        self._tls = tls

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Any],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> ResponseHandler:
        """The seam at which aiohttp's own connectors differ from each other."""
        host, port = req.url.raw_host or "", req.port or 443
        if not req.is_ssl():
            return await super()._create_connection(req, traces, timeout)
        try:
            ways = await self._ways(host, port)
        except OSError as error:
            raise aiohttp.ClientConnectorDNSError(req.connection_key, error) from error
        if ways is None:
            return await super()._create_connection(req, traces, timeout)
        failure: OSError = ProxyFailed("the name has no address")
        for way in ways[:MOST_TRIES]:
            try:
                async with asyncio.timeout(min(timeout.sock_connect or CONNECT_S, CONNECT_S)):
                    return await self._tunnelled(way, port, server_hostname=host.rstrip("."))
            except TimeoutError:
                failure = ProxyFailed("no tunnel through the egress proxy in time")
            except ssl.SSLError as error:
                failure = error
            except OSError as error:
                failure = error if isinstance(error, ProxyFailed) else _unreachable(error)
        log.warning("%s:%d: %s", host, port, failure)
        raise aiohttp.ClientConnectorError(req.connection_key, failure) from failure

    async def _tunnelled(self, way: str, port: int, *, server_hostname: str) -> ResponseHandler:
        proxy, loop = self._proxy, asyncio.get_running_loop()
        tls = self._tls if proxy.is_tls else None
        transport, answer = await loop.create_connection(_Answer, proxy.host, proxy.port, ssl=tls)
        try:
            authority = f"[{way}]:{port}" if ":" in way else f"{way}:{port}"
            lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
            if proxy.authorization is not None:
                lines.append(f"Proxy-Authorization: {proxy.authorization}")
            transport.write("\r\n".join([*lines, "", ""]).encode("ascii"))
            _check(await answer.head)
            return await self._secured(transport, server_hostname)
        except BaseException:
            transport.abort()
            raise

    async def _secured(self, tunnel: asyncio.WriteTransport, server_hostname: str) -> ResponseHandler:
        loop = asyncio.get_running_loop()
        handler = self._factory()
        inside = await loop.start_tls(tunnel, handler, self._tls, server_hostname=server_hostname)
        if inside is None:
            raise ProxyFailed("the tunnel through the egress proxy closed at once")
        handler.connection_made(inside)
        return handler


class _Answer(asyncio.Protocol):
    """Collects the head of a proxy's answer; asyncio's streams would close the tunnel when they are let go."""

    def __init__(self) -> None:
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._read = bytearray()

    def data_received(self, data: bytes) -> None:
        """Nothing belongs behind the head: in TLS the client speaks first."""
        self._read += data
        if self.head.done():
            return
        if b"\r\n\r\n" in self._read:
            self.head.set_result(bytes(self._read))
        elif len(self._read) > MOST_HEAD_BYTES:
            self.head.set_exception(ProxyFailed("the egress proxy's answer has no end"))

    def connection_lost(self, error: Exception | None) -> None:
        """Whatever ended it, there is no answer."""
        if not self.head.done():
            self.head.set_exception(ProxyFailed("the egress proxy closed the connection without an answer"))
            self.head.exception()  # nobody may wait for it any more


def _check(head: bytes) -> None:
    """Raises ProxyFailed unless a proxy's answer to a CONNECT is a 2xx."""
    version, _, rest = head.partition(b" ")
    status = rest[:3]
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or not status.isdigit() or rest[3:4] not in (b" ", b"\r"):
        raise ProxyFailed("the egress proxy's answer is no HTTP")
    if not status.startswith(b"2"):
        raise ProxyFailed(f"the egress proxy answered {status.decode('ascii')}")
    if not head.endswith(b"\r\n\r\n"):
        raise ProxyFailed("the egress proxy speaks before it is asked")


def _unreachable(error: OSError) -> ProxyFailed:
    """aiohttp's and asyncio's own words name the address; the system's do not."""
    why = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else type(error).__name__
    return ProxyFailed(f"the egress proxy cannot be reached: {why}")
