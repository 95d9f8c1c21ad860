"""What a hostile vendor puts into its answers: JSON, task ids, results, files. Each by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

MIB: Final = 1024 * 1024
LONG: Final = "task-" + "x" * 100_000


def _filled(begin: bytes, item: Callable[[int], bytes], size_bytes: int, end: bytes) -> Callable[[bytes], bytes]:
    """Items until so many bytes are full, inside the sane object's `extra` field."""

    def make(sane: bytes) -> bytes:
        first, width = item(0), len(item(100_000)) + 1
        items = b",".join([first, *(item(number) for number in range(1, size_bytes // width))])
        return sane[:-1] + b',"extra":' + begin + items + end + b"}"

    return make


def _with(field: bytes) -> Callable[[bytes], bytes]:
    return lambda sane: sane[:-1] + b"," + field + b"}"


ALMOST: Final = MIB - 16384
"""Room for what is around it below 1 MiB."""

BODIES: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    # Large, and right as far as it goes.
    "100000-keys": _filled(b"{", lambda number: b'"%05d":0' % number, ALMOST, b"}"),
    "100000-keys-and-one-twice": _filled(b'{"00000":0,', lambda number: b'"%05d":0' % number, ALMOST - 16, b"}"),
    "numbers": _filled(b"[", lambda number: b"0.%d" % (number % 10), ALMOST, b"]"),
    "empty-objects": _filled(b"[", lambda _: b"{}", ALMOST, b"]"),
    "empty-lists": _filled(b"[", lambda _: b"[]", ALMOST, b"]"),
    "small-strings": _filled(b"[", lambda _: b'"a"', ALMOST, b"]"),
    "one-mib-of-text": lambda sane: sane[:-1] + b',"text":"' + b"x, " * (ALMOST // 3) + b'"}',
    "one-byte-too-many": lambda sane: sane + b" " * (MIB + 1 - len(sane)),
    # Not the JSON that we accept.
    "empty": lambda _: b"",
    "html": lambda _: b"<html><body>Just a moment...</body></html>",
    "list": lambda sane: b"[" + sane + b"]",
    "string": lambda _: b'"completed"',
    "number": lambda _: b"1",
    "null": lambda _: b"null",
    "twice": lambda sane: sane + sane,
    "cut": lambda sane: sane[:-1],
    "10000-levels": lambda sane: sane[:-1] + b',"extra":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "10000-levels-of-objects": lambda sane: sane[:-1] + b',"x":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
    "10000-levels-open": lambda _: b"[" * 10_000,
    "33-levels": _with(b'"extra":' + b"[" * 32 + b"]" * 32),
    "5000-digits": _with(b'"extra":' + b"9" * 5000),
    "1e400": _with(b'"extra":1e400'),
    "nan": _with(b'"extra":NaN'),
    "infinity": _with(b'"extra":-Infinity'),
    "key-twice": _with(b'"status":"queued"'),
    "lone-surrogate": _with(b'"extra":"\\ud800"'),
    "nul-escaped": _with(b'"extra":"a\\u0000b"'),
    "nul": _with(b'"extra":"a\x00b"'),
    "not-utf-8": _with(b'"extra":"\xff\xfe"'),
    "bom": lambda sane: b"\xef\xbb\xbf" + sane,
    "utf-16": lambda sane: sane.decode().encode("utf-16"),
}


def body(name: str, sane: bytes) -> bytes:
    return BODIES[name](sane)


IDS: Final[Mapping[str, object]] = {
    # Sane enough to be asked for, whatever they look like.
    "id-slashes": "../../v1/dashboard/billing/balance",
    "id-dot-dot": "..",
    "id-dot": ".",
    "id-percent": "%2e%2e%2fadmin",
    "id-question": "x?stream=true#top",
    "id-of-200": "i" * 200,
    "id-ours": "task-wg00000000000000000000000001",
    # Not.
    "id-empty": "",
    "id-number": 12345,
    "id-float": 1.5,
    "id-true": True,
    "id-null": None,
    "id-list": ["task-1"],
    "id-space": "task 1",
    "id-newline": "task-1\r\nX-Evil: 1",
    "id-nul": "task-\x00",
    "id-unicode": "tâche-１",
    "id-of-201": "i" * 201,
    "id-of-100-kb": LONG,
}


def completed(vendor_id: str, *urls: str, **fields: Any) -> bytes:
    """A task that is done, with a picture at each URL."""
    images = [{"url": [url], "expires_at": 4102444800} for url in urls]
    document = {"task_id": vendor_id, "status": "completed", "cost": 6641, "result": {"images": images}} | fields
    return json.dumps(document, separators=(",", ":")).encode()


_STATUSES: Final[Mapping[str, object]] = {
    "status-unknown": "quantum",
    "status-number": 7,
    "status-null": None,
    "status-list": ["completed"],
    "status-empty": "",
    "status-of-100-kb": "x" * 100_000,
    "status-shouted": "COMPLETED",
}
_COSTS: Final[Mapping[str, object]] = {
    "cost-negative": -1,
    "cost-float": 6641.5,
    "cost-text": "a lot",
    "cost-true": True,
    "cost-2-to-63": 2**63,
    "cost-of-300-digits": 10**299,
    "cost-list": [6641],
    "cost-above-quote": 50_000,
    "cost-of-a-million-usd": 500_000_000_000,
    "cost-zero": 0,
    "cost-digits": "6641",
}
_URLS: Final[Mapping[str, list[object]]] = {
    "url-metadata": ["http://169.254.169.254/latest/meta-data/"],
    "url-private": ["https://10.0.0.1/a.jpg"],
    "url-loopback-v6": ["https://[::1]/a.jpg"],
    "url-mapped": ["https://[::ffff:10.0.0.1]/a.jpg"],
    "url-file": ["file:///etc/passwd"],
    "url-data": ["data:image/jpeg;base64,/9j/4AAQ"],
    "url-javascript": ["javascript:alert(1)"],
    "url-userinfo": ["https://user:password@example.com/a.jpg"],
    "url-newline": ["https://example.com/a.jpg\r\nX: 1"],
    "url-of-100-kb": ["https://10.0.0.1/" + "a" * 100_000],
    "url-broken": ["https://[/a.jpg"],
    "url-number": [7],
    "url-null": [None],
    "url-deep": [{"url": {"url": ["https://10.0.0.1/a.jpg"]}}],
    "no-images": [],
}
OUTCOMES: Final = (
    *_STATUSES,
    *_COSTS,
    *_URLS,
    *("other-id", "result-text", "result-list", "images-object", "10000-images", "same-url-twice", "three-for-one"),
)
"""Answers to a poll that are tasks, with a status, a cost or a result that makes no sense."""


def outcome(name: str, vendor_id: str, host: str) -> bytes:
    picture = f"{host}/media/picture/{vendor_id}"
    if name in _STATUSES:
        return completed(vendor_id, picture, status=_STATUSES[name])
    if name in _COSTS:
        return completed(vendor_id, picture, cost=_COSTS[name])
    if name in _URLS:
        return completed(vendor_id, result={"images": [{"url": [url]} for url in _URLS[name]]})
    return {
        "other-id": completed("poll.somebody-else.1", picture),
        "result-text": completed(vendor_id, result=picture),
        "result-list": completed(vendor_id, result=[picture]),
        "images-object": completed(vendor_id, result={"images": {"url": picture}}),
        "10000-images": completed(vendor_id, result={"images": [f"{picture}/{n}" for n in range(10_000)]}),
        "same-url-twice": completed(vendor_id, picture, picture),
        "three-for-one": completed(vendor_id, picture, f"{picture}/2", f"{picture}/3"),
    }[name]


_JPEG: Final = bytes.fromhex("ffd8ffe000104a46494600") + b"picture" * 20
_SCRIPT: Final = b"<html><script>alert(document.domain)</script></html>"
_PNG: Final = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + b"\0\0\xff\xff\0\0\xff\xff\x08\x06\0\0\0" + bytes(4)
MP4: Final = b"\0\0\0\x10ftypisom\0\0\2\0" + b"v" * 100
ZIP_END: Final = b"PK\x05\x06" + bytes(18)

FILES: Final[Mapping[str, tuple[str, bytes]]] = {
    "html": ("image/jpeg", _SCRIPT),
    "html-after-space": ("image/png", b"\n\n  " + _SCRIPT),
    "svg": ("image/svg+xml", b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'),
    "svg-with-bom": ("image/png", b"\xef\xbb\xbf<?xml version='1.0'?><svg onload='alert(1)'/>"),
    "pdf": ("image/jpeg", b"%PDF-1.7\n1 0 obj<</OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\n%%EOF"),
    "script": ("image/jpeg", b"alert(1)//" + b"x" * 100),
    "json": ("image/jpeg", b'{"error":{"message":"expired"}}'),
    "executable": ("image/jpeg", b"MZ" + bytes(200)),
    "zip": ("image/jpeg", b"PK\x03\x04" + bytes(60) + ZIP_END),
    "nothing": ("image/jpeg", b""),
    "one-byte": ("image/jpeg", b"\xff"),
    "only-the-head": ("image/jpeg", b"\xff\xd8\xff"),
    "jpeg-cut": ("image/jpeg", _JPEG),
    "png-cut": ("image/png", _PNG),
    "webp-cut": ("image/webp", b"RIFF\xff\0\0\0WEBPVP8 " + bytes(50)),
    "webp-too-long": ("image/webp", b"RIFF\x0c\0\0\0WEBPVP8 " + bytes(50)),
    "gif-cut": ("image/gif", b"GIF89a" + bytes(50)),
    "jpeg-then-zip": ("image/jpeg", _JPEG + b"\xff\xd9" + b"PK\x03\x04" + bytes(60) + ZIP_END),
    "jpeg-then-html": ("image/jpeg", _JPEG + b"\xff\xd9" + _SCRIPT),
    # Whole by their first and last bytes, and something else between: kept, and harmless as they are served.
    "jpeg-around-html": ("text/html", _JPEG + _SCRIPT + b"\xff\xd9"),
    "jpeg-around-zip": ("application/zip", _JPEG + b"PK\x03\x04" + bytes(60) + ZIP_END + b"\xff\xd9"),
    "gif-around-script": ("text/javascript", b"GIF89a=1;alert(document.domain);//" + bytes(50) + b";"),
    "png-of-65535-squared": ("image/png", _PNG + b"\0\0\0\0IEND\xae\x42\x60\x82"),
    "gif-bomb": ("image/gif", b"GIF89a\xff\xff\xff\xff\x80\0\0" + b"\0\0\0\xff\xff\xff" + b",\0\0\0\0" * 2000 + b";"),
}
