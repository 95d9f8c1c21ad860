"""The address guard against the whole corpus of URLs; `make proofs ARGS=ssrf` tries the same on real connections."""

from __future__ import annotations

import io
import ipaddress
import socket
from typing import Any

import pytest

from gateway.outbound import address, download
from tests.outbound import corpus

OTHER = (ipaddress.ip_network("172.20.0.0/16"), ipaddress.ip_network("fd12::/16"))


def test_the_corpus_has_six_hundred_urls():
    assert len({*corpus.REFUSED.values(), *corpus.TRIED}) == 625


@pytest.mark.parametrize("allowed", [(), OTHER], ids=["nothing opened", "another network opened"])
def test_no_url_of_the_corpus_passes_as_written(allowed):
    plain_http = {"http://media.example/", "http://media.example:443/", "HTTP://MEDIA.EXAMPLE/"}
    ports = {f"https://media.example:{port}/" for port in (22, 80, 8443)}
    for what, url in corpus.REFUSED.items():
        judged = address.check_url(url, allowed=allowed)
        if allowed and url in plain_http | ports:  # a name: it may lie in the opened network, and nowhere else
            assert isinstance(judged, address.Target) and judged.private_only, what
        else:
            assert isinstance(judged, address.Refused), what


@pytest.mark.parametrize("url", corpus.TRIED)
def test_what_may_be_tried_is_tried(url):
    judged = address.check_url(url, allowed=())
    assert isinstance(judged, address.Target)
    assert not judged.private_only


async def test_a_refused_url_is_not_even_begun():
    """`permanent`: judged by its text, so that not one packet leaves; no later try can succeed."""
    downloader = download.Downloader(allowed=())
    try:
        for what, url in corpus.REFUSED.items():
            failed = await downloader.fetch(url, sink=io.BytesIO())
            assert isinstance(failed, download.Failed), what
            assert (what, failed.reason, failed.permanent) == (what, download.Reason.ADDRESS, True)
            assert "/a.jpg" not in failed.detail
    finally:
        await downloader.aclose()


@pytest.mark.parametrize(("addresses", "is_reached"), corpus.ANSWERS.items(), ids=str)
async def test_a_name_is_reached_only_if_all_of_its_addresses_may_be(addresses, is_reached):
    def lookup(_host: str, port: int) -> list[tuple[Any, ...]]:
        families = [socket.AF_INET6 if ":" in each else socket.AF_INET for each in addresses]
        return [
            (family, socket.SOCK_STREAM, 6, "", (each, port, 0, 0) if family is socket.AF_INET6 else (each, port))
            for family, each in zip(families, addresses, strict=True)
        ]

    resolver = address.GuardedResolver(allowed=(), lookup=lookup)
    try:
        if is_reached:
            assert [each["host"] for each in await resolver.resolve("media.example", 443)] == list(addresses)
        else:
            with pytest.raises(address.AddressRefused):
                await resolver.resolve("media.example", 443)
    finally:
        await resolver.close()


async def test_a_name_that_changes_its_mind_is_judged_each_time():
    answers = iter(["8.8.8.8", "127.0.0.1", "8.8.8.8", "169.254.169.254"])

    def lookup(_host: str, port: int) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    resolver = address.GuardedResolver(allowed=(), lookup=lookup)
    try:
        for _ in range(2):
            assert [each["host"] for each in await resolver.resolve("media.example", 443)] == ["8.8.8.8"]
            with pytest.raises(address.AddressRefused):
                await resolver.resolve("media.example", 443)
    finally:
        await resolver.close()
