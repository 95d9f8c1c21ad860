import asyncio
import ipaddress
import socket
import threading
from typing import Any

import aiohttp
import httpx
from pytest import mark, raises

from gateway.outbound import address

NONE: tuple[address.Network, ...] = ()
TEN = (ipaddress.ip_network("10.0.0.0/8"),)
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))

FORBIDDEN = [
    ("0.0.0.0", "this network itself"),
    ("0.1.2.3", "this network itself"),
    ("10.1.2.3", "private"),
    ("100.64.0.1", "shared by a carrier's customers"),
    ("100.100.100.200", "shared by a carrier's customers"),
    ("127.0.0.1", "loopback"),
    ("127.255.255.254", "loopback"),
    ("168.63.129.16", "a cloud's internal service"),
    ("169.254.169.254", "link-local"),
    ("172.16.0.1", "private"),
    ("172.31.255.255", "private"),
    ("192.0.0.192", "reserved for protocols"),
    ("192.0.2.1", "for documentation"),
    ("192.88.99.1", "a 6to4 relay"),
    ("192.168.1.1", "private"),
    ("198.19.255.255", "for benchmarks"),
    ("198.51.100.7", "for documentation"),
    ("203.0.113.7", "for documentation"),
    ("224.0.0.1", "multicast"),
    ("239.255.255.250", "multicast"),
    ("240.0.0.1", "reserved"),
    ("255.255.255.255", "broadcast"),
    ("::", "unspecified"),
    ("::1", "loopback"),
    ("::2", "an IPv4-compatible address"),
    ("::127.0.0.1", "an IPv4-compatible address"),
    ("::8.8.8.8", "an IPv4-compatible address"),
    ("::ffff:0:127.0.0.1", "an IPv4-translated address"),
    ("64:ff9b::127.0.0.1", "a NAT64 address"),
    ("64:ff9b::8.8.8.8", "a NAT64 address"),
    ("64:ff9b:1::10.0.0.1", "a NAT64 address"),
    ("100::1", "discarded"),
    ("2001::1", "a Teredo address"),
    ("2001:2::1", "for benchmarks"),
    ("2001:20::1", "reserved for protocols"),
    ("2001:db8::1", "for documentation"),
    ("2002:7f00:1::1", "a 6to4 address"),
    ("2002:808:808::1", "a 6to4 address"),
    ("3fff::1", "for documentation"),
    ("4000::1", "reserved"),
    ("5f00::1", "reserved"),
    ("8000::1", "reserved"),
    ("fc00::1", "private"),
    ("fd00:ec2::254", "private"),
    ("fe80::1", "link-local"),
    ("fec0::1", "site-local"),
    ("ff02::1", "multicast"),
]


@mark.parametrize(("text", "kind"), FORBIDDEN)
def test_check_refuses_every_special_network(text: str, kind: str) -> None:
    assert address.check(text, allowed=NONE) == f"{ipaddress.ip_address(text)} is {kind}"


@mark.parametrize(
    "text",
    [
        "8.8.8.8",
        "1.0.0.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "2400:3200::1",
        "2001:4860:4860::8888",
        "::ffff:8.8.8.8",
    ],
)
def test_check_permits_public_addresses(text: str) -> None:
    assert address.check(text, allowed=NONE) is None


@mark.parametrize(
    ("text", "inner"),
    [
        ("::ffff:127.0.0.1", "127.0.0.1 is loopback"),
        ("::ffff:a00:1", "10.0.0.1 is private"),
        ("::ffff:169.254.169.254", "169.254.169.254 is link-local"),
    ],
)
def test_a_mapped_address_is_judged_as_its_ipv4_address(text: str, inner: str) -> None:
    assert address.check(text, allowed=NONE) == inner


@mark.parametrize(
    ("text", "opened", "inner"),
    [
        ("64:ff9b::7f00:1", "64:ff9b::/96", "127.0.0.1"),
        ("64:ff9b:1::7f00:1", "64:ff9b:1::/48", "127.0.0.1"),
        ("2002:7f00:1::9", "2002::/16", "127.0.0.1"),
        ("::7f00:1", "::/96", "127.0.0.1"),
        ("::ffff:0:7f00:1", "::ffff:0:0:0/96", "127.0.0.1"),
        ("2001:0:7f00:1::f7f7:f7f7", "2001::/32", "127.0.0.1"),  # the server; the client is 8.8.8.8
        ("2001:0:808:808::80ff:fffe", "2001::/32", "127.0.0.1"),  # the client, bits turned over
        ("2606:4700::5efe:7f00:1", "2606:4700::/32", "127.0.0.1"),
        ("2606:4700::200:5efe:7f00:1", "2606:4700::/32", "127.0.0.1"),
    ],
)
def test_an_embedded_address_is_checked_even_in_an_opened_network(text: str, opened: str, inner: str) -> None:
    reason = address.check(text, allowed=(ipaddress.ip_network(opened),))
    assert reason is not None
    assert reason.endswith(f"holds {inner}, which is loopback")


def test_a_public_prefix_does_not_hide_a_private_isatap_host() -> None:
    reason = address.check("2606:4700::5efe:10.0.0.1", allowed=NONE)
    assert reason is not None
    assert reason.endswith("holds 10.0.0.1, which is private")


def test_an_opened_nat64_prefix_passes_public_addresses() -> None:
    assert address.check("64:ff9b::8.8.8.8", allowed=(ipaddress.ip_network("64:ff9b::/96"),)) is None


def test_what_the_operator_opened_is_permitted() -> None:
    assert address.check("10.1.2.3", allowed=TEN) is None
    assert address.check("::ffff:10.1.2.3", allowed=TEN) is None
    assert address.check("::1", allowed=LOOPBACK) is None
    assert address.check("192.168.1.1", allowed=TEN) == "192.168.1.1 is private"


def test_private_only_refuses_public_addresses() -> None:
    reason = address.check("8.8.8.8", allowed=TEN, private_only=True)
    assert reason == "8.8.8.8 is outside --allow-private; elsewhere only https on port 443 is permitted"
    assert address.check("10.0.0.1", allowed=TEN, private_only=True) is None


def test_an_interface_in_the_address_is_refused() -> None:
    opened = (ipaddress.ip_network("fe80::/10"),)
    assert address.check("fe80::1%eth0", allowed=opened) == "fe80::1%eth0 names a network interface"


def test_check_raises_for_what_is_no_address() -> None:
    with raises(ValueError, match="does not appear to be"):
        address.check("127.1", allowed=NONE)


SPELLINGS = [
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127.0.1",
    "0x7f.1",
    "0X7F.0.0.1",
    "0x7f000001",
    "2130706433",
    "017700000001",
    "0177.0.0.1",
    "0177.0.0.01",
    "127.000.000.001",
    "[::1]",
    "[::]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "0",
    "0.0.0.0",
    "10.0.0.1",
    "169.254.169.254",
    "0xa9fea9fe",
    "2852039166",
    "256.1.1.1",
    "1.2.3.4.5",
    "127.0.0.1.0x",
    "4294967296",
]


@mark.parametrize("host", SPELLINGS)
def test_a_private_address_is_refused_in_any_spelling(host: str) -> None:
    assert isinstance(address.check_url(f"https://{host}/a.jpg", allowed=NONE), address.Refused)


@mark.parametrize("host", SPELLINGS)
def test_no_spelling_slips_past_another_opened_network(host: str) -> None:
    other = (ipaddress.ip_network("172.20.0.0/16"),)
    assert isinstance(address.check_url(f"https://{host}/a.jpg", allowed=other), address.Refused)
    assert isinstance(address.check_url(f"http://{host}:8080/a.jpg", allowed=other), address.Refused)


@mark.parametrize(
    ("url", "reason"),
    [
        ("", "neither https nor http"),
        ("media.example/a.jpg", "neither https nor http"),
        ("ftp://media.example/a.jpg", "neither https nor http"),
        ("file:///etc/passwd", "neither https nor http"),
        ("data:image/png;base64,AAAA", "neither https nor http"),
        ("https:///a.jpg", "not a host name"),
        ("https://user@media.example/a.jpg", "a URL with a user name or password"),
        ("https://user:word@media.example/a.jpg", "a URL with a user name or password"),
        ("https://media.example\\@10.0.0.1/", "a URL with a user name or password"),
        ("https://127%2e0.0.1/", "not a host name"),
        ("https://media%00.example/", "not a host name"),
        ("https://me dia.example/", "not a host name"),
        ("https://[fe80::1%25eth0]/", "not a host name"),
        ("https://１２７.0.0.1/", "not a valid URL"),
        ("https://media.example/\n", "not a valid URL"),
        ("https://media.example:0/", "not a port"),
        ("https://media.example:65536/", "not a port"),
        ("https://media.example:x/", "not a valid URL"),
        ("https://[1:2:3]/", "not a valid URL"),
        ("http://media.example/", "only https on port 443 is permitted (--allow-private opens more)"),
        ("https://media.example:8443/", "only https on port 443 is permitted (--allow-private opens more)"),
        ("https://127.1/", "an unusual spelling of 127.0.0.1"),
        ("https://1.2.3.4.5/", "not an IPv4 address"),
        ("https://10.0.0.1/", "10.0.0.1 is private"),
    ],
)
def test_check_url_says_why_it_refuses(url: str, reason: str) -> None:
    assert address.check_url(url, allowed=NONE) == address.Refused(reason=reason)


@mark.parametrize(
    ("url", "private_only"),
    [
        ("https://media.example/a.jpg?X=1%2F2", False),
        ("https://media.example:443/a.jpg", False),
        ("https://bücher.example/a.jpg", False),
        ("https://8.8.8.8/a.jpg", False),
        ("https://[2606:4700::1111]/a.jpg", False),
        ("https://10.0.0.1/a.jpg", False),
        ("http://10.0.0.1/a.jpg", True),
        ("http://10.0.0.1:443/a.jpg", True),
        ("https://10.0.0.1:9000/a.jpg", True),
        ("http://minio.internal:9000/a.jpg", True),
    ],
)
def test_anything_but_https_on_443_goes_only_to_opened_networks(url: str, private_only: bool) -> None:
    expected = address.Target(url=httpx.URL(url), private_only=private_only)
    assert address.check_url(url, allowed=TEN) == expected


def test_plain_http_to_a_public_address_is_refused_though_a_network_is_open() -> None:
    refused = address.check_url("http://8.8.8.8/a.jpg", allowed=TEN)
    reason = "8.8.8.8 is outside --allow-private; elsewhere only https on port 443 is permitted"
    assert refused == address.Refused(reason=reason)


def answer(*addresses: str) -> address.Lookup:
    """A name server that knows one name."""

    def lookup(_host: str, port: int) -> list[tuple[Any, ...]]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (text, port, 0, 0))
            if ":" in text
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port))
            for text in addresses
        ]

    return lookup


async def resolve(lookup: address.Lookup, *, private_only: bool = False, family: int = socket.AF_UNSPEC) -> list[str]:
    resolver = address.GuardedResolver(allowed=TEN, private_only=private_only, lookup=lookup)
    try:
        found = await resolver.resolve("media.example", 443, socket.AddressFamily(family))
    finally:
        await resolver.close()
    assert {(each["hostname"], each["port"]) for each in found} == {("media.example", 443)}
    return [each["host"] for each in found]


async def test_a_name_resolves_to_its_checked_addresses() -> None:
    both = answer("8.8.8.8", "2606:4700::1111")
    assert await resolve(both) == ["8.8.8.8", "2606:4700::1111"]
    assert await resolve(both, family=socket.AF_INET) == ["8.8.8.8"]
    assert await resolve(answer("10.0.0.9"), private_only=True) == ["10.0.0.9"]


async def test_one_forbidden_address_spoils_the_name() -> None:
    with raises(address.AddressRefused, match=r"127\.0\.0\.1 is loopback"):
        await resolve(answer("8.8.8.8", "127.0.0.1"))


async def test_a_link_local_address_keeps_its_interface_and_is_refused() -> None:
    def lookup(_host: str, port: int) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", port, 0, 2))]

    with raises(address.AddressRefused, match="fe80::1%2 names a network interface"):
        await resolve(lookup)


async def test_a_public_name_is_refused_where_only_opened_networks_are() -> None:
    with raises(address.AddressRefused, match=r"8\.8\.8\.8 is outside --allow-private"):
        await resolve(answer("10.0.0.9", "8.8.8.8"), private_only=True)


async def test_localhost_is_refused_by_the_systems_own_resolver() -> None:
    resolver = address.GuardedResolver(allowed=NONE)
    try:
        with raises(address.AddressRefused, match="is loopback"):
            await resolver.resolve("localhost", 443)
    finally:
        await resolver.close()


async def test_a_name_that_does_not_resolve_is_the_systems_error() -> None:
    resolver = address.GuardedResolver(allowed=NONE)
    try:
        with raises(socket.gaierror):
            await resolver.resolve("nowhere.invalid", 443)
    finally:
        await resolver.close()


async def test_slow_lookups_leave_the_loops_own_threads_free() -> None:
    release = threading.Event()

    def lookup(_host: str, _port: int) -> list[tuple[Any, ...]]:
        release.wait()
        return []

    resolver = address.GuardedResolver(allowed=NONE, lookup=lookup)
    lookups = [asyncio.ensure_future(resolver.resolve(f"{n}.example")) for n in range(200)]
    try:
        assert await asyncio.to_thread(lambda: "served") == "served"
    finally:
        release.set()
        assert await asyncio.gather(*lookups) == [[]] * 200
        await resolver.close()


async def test_the_socket_gate_sees_literals_that_no_resolver_is_asked_about() -> None:
    tls = httpx.create_ssl_context(trust_env=False)
    guarded = address.connector(allowed=NONE, private_only=False, tls=tls, connections_max=1)
    async with aiohttp.ClientSession(connector=guarded) as session:
        for url in ("http://127.0.0.1:9/", "http://[::1]:9/", "http://[::ffff:127.0.0.1]:9/"):
            with raises(aiohttp.ClientConnectorError) as caught:
                await session.get(url)
            assert isinstance(caught.value.os_error, address.AddressRefused)


@mark.parametrize("host", ["xn--", "xn--a", "xn--a.example", "XN--99999999999"])
def test_a_label_that_stands_for_no_name_is_no_valid_url(host):
    assert address.check_url(f"https://{host}/", allowed=()) == address.Refused(reason="not a valid URL")
