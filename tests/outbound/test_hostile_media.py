"""What becomes of each thing that a result's URL may hold instead of a picture: kept, or why not, written by hand."""

from __future__ import annotations

import hashlib
import io
import ipaddress
from collections.abc import AsyncIterator

from pytest import fixture, mark

from gateway.outbound import download
from gateway.outbound.download import Failed, Fetched
from tests import hostile

KEPT = {
    "changes": "image/jpeg",
    "etag-lies": "image/jpeg",
    "type-lies": "image/jpeg",
    "gif-without-length": "image/gif",
    # Polyglots: kept by their first and last bytes, and harmless as they are served (tests/test_hostile.py).
    "jpeg-around-html": "image/jpeg",
    "jpeg-around-zip": "image/jpeg",
    "gif-around-script": "image/gif",
    # Bombs for who decodes them, which nobody here does.
    "png-of-65535-squared": "image/png",
    "gif-bomb": "image/gif",
}
NOT_KEPT = {
    **dict.fromkeys(["html", "html-after-space", "svg", "svg-with-bom", "pdf", "script", "json"], "not_media"),
    **dict.fromkeys(["executable", "zip", "nothing", "one-byte"], "not_media"),
    **dict.fromkeys(["only-the-head", "jpeg-cut", "png-cut", "webp-cut", "webp-too-long", "gif-cut"], "truncated"),
    # What follows the end of a picture is no part of it.
    **dict.fromkeys(["jpeg-then-zip", "jpeg-then-html", "mp4-without-length"], "truncated"),
    **dict.fromkeys(["64-mib-and-1", "64-mib", "64-mib-chunked"], "too_large"),
    **dict.fromkeys(["endless-jpeg", "endless-jpeg-chunks", "endless-jpeg-small-chunks"], "too_large"),
    "range-unasked": "status",
}
TRANSPORTS = {
    **dict.fromkeys(["no-http", "http-2", "http-9-9", "status-text", "204-with-body", "5000-headers"], "network"),
    **dict.fromkeys(["header-with-nul", "length-negative", "length-twice", "length-and-chunks"], "network"),
    **dict.fromkeys(["length-long", "chunk-cut", "chunks-without-end", "reset-in-body"], "truncated"),
    **dict.fromkeys(["redirect-301", "redirect-302", "redirect-303", "redirect-307", "redirect-308"], "redirect"),
    "redirect-metadata": "redirect",
    **dict.fromkeys(["bomb-gzip", "bomb-deflate", "bomb-br", "bomb-zstd", "bomb-gzip-gzip"], "encoding"),
    "endless-gzip": "encoding",
    **dict.fromkeys(["endless-status", "endless-header", "endless-headers", "reset", "hung-up"], "network"),
    **dict.fromkeys(["endless-100", "endless-103", "endless-chunk-extension"], "too_large"),
    **dict.fromkeys(["endless-body", "endless-chunks"], "not_media"),
    **dict.fromkeys(["status-0", "status-418", "status-600", "status-999", "206"], "status"),
}
LIMIT_BYTES = 4_000_000
"""Instead of 64 MiB: what is larger is larger than this too."""


@fixture
async def vendor() -> AsyncIterator[hostile.Vendor]:
    async with hostile.served() as running:
        yield running


@fixture
async def downloader() -> AsyncIterator[download.Downloader]:
    made = download.Downloader(allowed=(ipaddress.ip_network("127.0.0.0/8"),), size_max_bytes=LIMIT_BYTES)
    yield made
    await made.aclose()


def test_the_tables_name_every_file():
    assert {*KEPT, *NOT_KEPT} == set(hostile.media(b"", 0))


@mark.parametrize("name", KEPT)
async def test_this_is_kept_by_its_own_bytes(vendor, downloader, name):
    sink = io.BytesIO()
    fetched = await downloader.fetch(f"{vendor.url}/media/{name}/1", sink=sink)
    assert isinstance(fetched, Fetched), fetched
    assert fetched.mime == KEPT[name]
    assert fetched.digest == hashlib.sha256(sink.getvalue()).hexdigest()


@mark.parametrize(("name", "reason"), [*NOT_KEPT.items(), *TRANSPORTS.items()])
async def test_this_is_not_kept(vendor, downloader, name, reason):
    sink = io.BytesIO()
    failed = await downloader.fetch(f"{vendor.url}/media/{name}/1", sink=sink)
    assert isinstance(failed, Failed), failed
    assert failed.reason.value == reason
    assert len(sink.getvalue()) <= LIMIT_BYTES
    assert vendor.strayed == []


async def test_a_picture_of_64_mib_and_not_a_byte_more_is_kept(vendor):
    whole = download.Downloader(allowed=(ipaddress.ip_network("127.0.0.0/8"),))
    try:
        sink = io.BytesIO()
        kept = await whole.fetch(f"{vendor.url}/media/64-mib/1", sink=sink)
        over = await whole.fetch(f"{vendor.url}/media/64-mib-and-1/1", sink=io.BytesIO())
    finally:
        await whole.aclose()
    assert isinstance(kept, Fetched) and kept.size_bytes == 67_108_864
    assert isinstance(over, Failed) and over.reason is download.Reason.TOO_LARGE


async def test_bytes_that_change_are_two_pictures(vendor, downloader):
    """Whoever fetched first keeps what it got: a digest names bytes, not a URL."""
    digests = set()
    for _ in range(2):
        fetched = await downloader.fetch(f"{vendor.url}/media/changes/1", sink=io.BytesIO())
        assert isinstance(fetched, Fetched)
        digests.add(fetched.digest)
    assert len(digests) == 2
