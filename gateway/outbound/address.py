"""Where a request may go: the guard against server-side request forgery (CONTRACT: SSRF).

Rules: https on port 443 to a public address; anything else (plain http, another port, a private address) only
inside the networks that the operator opened with --allow-private. Three gates, each in front of the next: the URL
as written, every address that its name resolves to, and the address of each socket before it is made. A connection
goes to the addresses that were checked and to no others, so a name that changes its mind between check and connect
gains nothing.

Not here: redirects (whoever sends must not follow them), what is done with the answer. A NAT64 prefix that
a network chose for itself looks like any public address; block it where the gateway runs.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.outbound import bounded, tunnel

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Lookup: TypeAlias = Callable[[str, int], Sequence[tuple[Any, ...]]]

RESOLVE_MAX_S: Final = 5.0
RESOLVE_THREADS: Final = 8
"""Lookups have threads of their own: slow name servers must not use up those that serve and write files."""


class AddressRefused(OSError):
    """The guard forbids this address; an OSError, so that aiohttp takes it as a failed connect."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A URL that may be tried; connecting decides about the addresses of its name."""

    url: httpx.URL
    private_only: bool
    """Plain http or another port than 443: send it through a connector with `private_only`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A URL that may not be fetched, and why; the reason does not hold its path or query."""

    reason: str


def check(address: str | Address, *, allowed: Sequence[Network], private_only: bool = False) -> str | None:
    """Return why no connection may go to `address`, or None if it may.

    `private_only` demands that it lies in `allowed`. Raises ValueError for text that is not a plain address.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return f"{ip} names a network interface"
        ip = ip.ipv4_mapped or ip  # the kernel connects to the IPv4 address
    if private_only and not _inside(ip, allowed):
        return f"{ip} is outside --allow-private; elsewhere only https on port 443 is permitted"
    for each in (ip, *_embedded(ip)):
        kind = None if _inside(each, allowed) else _forbidden(each)
        if kind is not None:
            return f"{each} is {kind}" if each is ip else f"{ip} holds {each}, which is {kind}"
    return None


def check_url(url: str, *, allowed: Sequence[Network]) -> Target | Refused:
    """Judge a URL by what is written in it; no name is resolved.

    A name passes here and is judged by its addresses when it connects. Source: WHATWG URL §3.5, the many spellings
    of an IPv4 address (`127.1`, `0x7f.1`, `2130706433`, `0177.0.0.1`).
    """
    try:
        parsed = httpx.URL(url)
        _ = parsed.host  # decodes `xn--` labels only now, and raises for those that stand for nothing
    except (httpx.InvalidURL, ValueError):
        return Refused(reason="not a valid URL")
    private_only = (parsed.scheme, parsed.port or 443) != ("https", 443)
    reason = _form(parsed) or _private_only(private_only, allowed)
    if reason is None and (literal := _literal(parsed.host)) is not None:
        reason = literal if isinstance(literal, str) else check(literal, allowed=allowed, private_only=private_only)
    return Target(url=parsed, private_only=private_only) if reason is None else Refused(reason=reason)


def connector(
    *,
    allowed: Sequence[Network],
    private_only: bool,
    tls: ssl.SSLContext,
    connections_max: int,
    keeps_connections: bool = True,
    proxy: tunnel.Proxy | None = None,
) -> aiohttp.TCPConnector:
    """Return a connector through which nothing but permitted addresses can be reached. Needs a running loop.

    With a `proxy` it is asked for the checked addresses, never for a name; to the networks in `allowed` the way is
    direct.
    """
    resolver = GuardedResolver(allowed=allowed, private_only=private_only)

    def open_socket(info: aiohttp.AddrInfoType) -> socket.socket:
        # aiohttp resolves no address literal, and so asks no resolver about it: this gate sees those too.
        family, kind, protocol, _, address = info
        if (reason := check(str(address[0]), allowed=allowed, private_only=private_only)) is not None:
            raise AddressRefused(reason)
        return socket.socket(family, kind, protocol)

    async def ways(host: str, port: int) -> Sequence[str] | None:
        found = [each["host"] for each in await resolver.resolve(host, port)]
        outside = [each for each in found if not _inside(ipaddress.ip_address(each), allowed)]
        return outside or None

    options: dict[str, Any] = {
        "resolver": resolver,
        "socket_factory": open_socket,
        "limit": connections_max,
        "force_close": not keeps_connections,
    }
    if proxy is None or private_only:
        return bounded.Connector(ssl=tls, **options)
    return tunnel.Connector(proxy=proxy, ways=ways, tls=tls, **options)


def is_literal_inside(host: str, networks: Sequence[Network]) -> bool:
    """Whether a host is an address, written plainly, in one of the networks; no name is resolved."""
    try:
        return _inside(ipaddress.ip_address(host), networks)
    except ValueError:
        return False


def _lookup(host: str, port: int) -> Sequence[tuple[Any, ...]]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


class GuardedResolver(AbstractResolver):
    """The system's resolver; a name of which any address is forbidden does not resolve."""

    def __init__(self, *, allowed: Sequence[Network], private_only: bool = False, lookup: Lookup = _lookup) -> None:
        self._allowed = tuple(allowed)
        self._private_only = private_only
        self._lookup = lookup
        self._threads = ThreadPoolExecutor(RESOLVE_THREADS, thread_name_prefix="resolve")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of `host`, all of them checked. Raises AddressRefused, socket.gaierror, TimeoutError."""
        async with asyncio.timeout(RESOLVE_MAX_S):
            found = await asyncio.get_running_loop().run_in_executor(self._threads, self._lookup, host, port)
        results = [_result(host, port, entry) for entry in found if family in (socket.AF_UNSPEC, entry[0])]
        for result in results:
            reason = check(result["host"], allowed=self._allowed, private_only=self._private_only)
            if reason is not None:
                raise AddressRefused(reason)
        return results

    async def close(self) -> None:
        """Give up the threads; a lookup under way ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _result(host: str, port: int, entry: tuple[Any, ...]) -> ResolveResult:
    family, _, protocol, _, address = entry
    # An address with an interface (fe80::1%eth0) is never permitted: its text alone will do.
    scope = f"%{address[3]}" if len(address) == 4 and address[3] else ""
    return ResolveResult(
        hostname=host,
        host=str(address[0]).partition("%")[0] + scope,
        port=port,
        family=family,
        proto=protocol,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )


def _form(url: httpx.URL) -> str | None:
    if url.scheme not in ("https", "http"):
        return "neither https nor http"
    if url.userinfo:
        return "a URL with a user name or password"
    if url.port is not None and not 0 < url.port < 65536:
        return "not a port"
    # ASCII only and nothing escaped, so that no later parser can read another host out of it.
    if not _HOST.fullmatch(url.raw_host.decode("ascii")):
        return "not a host name"
    return None


def _private_only(private_only: bool, allowed: Sequence[Network]) -> str | None:
    if private_only and not allowed:
        return "only https on port 443 is permitted (--allow-private opens more)"
    return None


def _literal(host: str) -> Address | str | None:
    """Return the address that a host spells, or why it spells none although it looks like one; None for a name."""
    if ":" in host:
        return ipaddress.IPv6Address(host)  # httpx has parsed it as one
    if not _ENDS_IN_NUMBER.search(host):
        return None
    try:
        ip = ipaddress.IPv4Address(socket.inet_aton(host.removesuffix(".")))
    except OSError:
        return "not an IPv4 address"
    # No client writes these: they are only ever there to slip past somebody's check.
    return ip if host == str(ip) else f"an unusual spelling of {ip}"


def _inside(ip: Address, networks: Sequence[Network]) -> bool:
    return any(ip in network for network in networks)


def _forbidden(ip: Address) -> str | None:
    return next((kind for network, kind in _FORBIDDEN if ip in network), None)


def _embedded(ip: Address) -> Iterator[ipaddress.IPv4Address]:
    """The IPv4 addresses to which a translator or tunnel would pass on what is sent to an IPv6 address."""
    if isinstance(ip, ipaddress.IPv4Address):
        return
    for kind in _EMBEDDING:
        bits = int(ip) >> kind.shift & 0xFFFF_FFFF
        # ::1 and its neighbours are IPv6 addresses of their own, not 0.0.0.1.
        if int(ip) & kind.mask == kind.prefix and bits >= kind.least:
            yield ipaddress.IPv4Address(bits ^ kind.flip)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Embedding:
    """IPv6 addresses whose bits under `mask` are `prefix` hold an IPv4 address `shift` bits from the right."""

    prefix: int
    mask: int
    shift: int = 0
    flip: int = 0
    least: int = 0


def _under(network: str, *, shift: int = 0, flip: int = 0, least: int = 0) -> _Embedding:
    net = ipaddress.IPv6Network(network)
    return _Embedding(prefix=int(net.network_address), mask=int(net.netmask), shift=shift, flip=flip, least=least)


_HOST: Final = re.compile(r"(?=.{1,255}$)(?:[a-z0-9_-]+\.)*[a-z0-9_-]+\.?|[0-9a-f:.]*:[0-9a-f:.]*", re.IGNORECASE)
_ENDS_IN_NUMBER: Final = re.compile(r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)\.?$", re.IGNORECASE)

_EMBEDDING: Final = (
    _under("::/96", least=1 << 24),  # IPv4-compatible, RFC 4291 §2.5.5.1
    _under("::ffff:0:0:0/96"),  # IPv4-translated, RFC 2765 §2.1
    _under("64:ff9b::/96"),  # NAT64, RFC 6052 §2.1
    _under("64:ff9b:1::/48"),  # NAT64 of the local network, in its /96 form, RFC 8215
    _under("2002::/16", shift=80),  # 6to4, RFC 3056 §2
    _under("2001::/32", shift=64),  # Teredo: the server, RFC 4380 §4
    _under("2001::/32", flip=0xFFFF_FFFF),  # Teredo: the client, every bit turned over
    _Embedding(prefix=0x0000_5EFE << 32, mask=0xFDFF_FFFF << 32),  # ISATAP under any prefix, RFC 5214 §6.1
)

_FORBIDDEN: Final[Sequence[tuple[Network, str]]] = tuple(
    (ipaddress.ip_network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "this network itself"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by a carrier's customers"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "a cloud's internal service"),  # Azure's, on a public-looking address
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved for protocols"),
        ("192.0.2.0/24", "for documentation"),
        ("192.88.99.0/24", "a 6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "for benchmarks"),
        ("198.51.100.0/24", "for documentation"),
        ("203.0.113.0/24", "for documentation"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "an IPv4-compatible address"),
        ("::ffff:0:0:0/96", "an IPv4-translated address"),
        ("64:ff9b::/96", "a NAT64 address"),
        ("64:ff9b:1::/48", "a NAT64 address"),
        ("100::/64", "discarded"),
        ("2001::/32", "a Teredo address"),
        ("2001:2::/48", "for benchmarks"),
        ("2001::/23", "reserved for protocols"),
        ("2001:db8::/32", "for documentation"),
        ("2002::/16", "a 6to4 address"),
        ("3fff::/20", "for documentation"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
        # Global unicast is 2000::/3 alone; these three are the rest of the space.
        ("::/3", "reserved"),
        ("4000::/2", "reserved"),
        ("8000::/1", "reserved"),
    )
)
"""The first match names the kind. Source: IANA's special-purpose address registries; `ipaddress.is_global` lets NAT64
and 6to4 forms of private addresses through."""
