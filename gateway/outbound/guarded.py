"""HTTP clients behind the address guard, for URLs that others wrote: results to fetch, receivers to tell.

Rules: `outbound/address` decides where a connection may go; redirects are not followed; the URL is asked for byte for
byte; neither cookies nor keys of ours take part, nor any proxy but the operator's own. There are two clients, because
plain http and other ports than 443 may only go to the networks that the operator opened.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Final

import aiohttp
import httpx
import yarl
from httpx_aiohttp import AiohttpTransport

from gateway.outbound import address, tunnel

FAILURES: Final = (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError)
"""All that a request through these clients can raise."""
_AS_WRITTEN: Final = "X-Url-As-Written"


class Clients:
    """Two HTTP clients: https to the public, and anything to the opened networks."""

    def __init__(
        self,
        *,
        allowed: Sequence[address.Network],
        tls: ssl.SSLContext,
        connections_max: int,
        keeps_connections: bool = True,
        timeout: httpx.Timeout,
        headers: Mapping[str, str],
        proxy: tunnel.Proxy | None = None,
    ) -> None:
        def client(private_only: bool) -> httpx.AsyncClient:
            def session() -> aiohttp.ClientSession:
                """Called at the first request, when there is a loop."""
                connector = address.connector(
                    allowed=allowed,
                    private_only=private_only,
                    tls=tls,
                    connections_max=connections_max,
                    keeps_connections=keeps_connections,
                    proxy=proxy,
                )
                return aiohttp.ClientSession(
                    connector=connector,
                    middlewares=(_as_written,),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    trust_env=False,
                )

            return httpx.AsyncClient(
                transport=AiohttpTransport(client=session, verify=tls, trust_env=False),
                trust_env=False,
                follow_redirects=False,
                headers={"User-Agent": "wave-gateway", "Accept": "*/*", "Accept-Encoding": "identity", **headers},
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                timeout=timeout,
            )

        self._public = client(private_only=False)
        self._private = client(private_only=True)

    def of(self, target: address.Target) -> httpx.AsyncClient:
        """The client through which a target may be tried."""
        return self._private if target.private_only else self._public

    async def aclose(self) -> None:
        """Close all connections."""
        await self._public.aclose()
        await self._private.aclose()


def authorities(ca_bundle: Path | None) -> ssl.SSLContext:
    """Who may vouch for a host: the public authorities and those of a bundle; a tenth of a second to read."""
    tls = httpx.create_ssl_context(trust_env=False)
    if ca_bundle is not None:
        tls.load_verify_locations(ca_bundle)  # beside the public ones: private hosts come in addition
    return tls


def as_written(url: httpx.URL) -> dict[str, str]:
    """The header by which a client here asks for exactly this URL; it is not sent."""
    return {_AS_WRITTEN: str(url)}


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and its causes: the transport reports refused and broken connections as httpx.ConnectTimeout."""
    while error is not None:
        yield error
        error = error.__cause__


def reason_of(error: BaseException) -> str:
    """What went wrong, in words that hold no URL: aiohttp's and httpx's may, those of the system and of TLS cannot."""
    found = tuple(causes(error))
    system = next((each for each in found if _is_systems(each)), None)
    return str(system or type(found[-1]).__name__)


def _is_systems(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(error, aiohttp.ClientError)


async def _as_written(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Ask for the URL byte for byte: aiohttp would decode `%2F`, `%3A` and `%28`, and some signatures cover those."""
    request.url = yarl.URL(request.headers.pop(_AS_WRITTEN), encoded=True)
    return await send(request)
