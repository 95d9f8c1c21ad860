"""What one client says on one connection, made from a seed and a number: the same two make the same bytes.

A connection carries one to four requests, each from a template that may be spoilt; the bytes are cut into pieces at
random places. Most clients then wait for every answer; some leave early, shut down their side, dribble or fall silent.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable
from typing import Final, Literal

from tests.fuzz import mutated_json

Ending = Literal["waits", "leaves", "half-closes", "stalls", "dribbles"]

SMUGGLED: Final = (
    b"POST /v1/tasks HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer wgk_growth\r\nContent-Length: 69\r\n\r\n"
    b'{"model":"gemini-2.5-flash-image-preview","prompt":"smuggled request"}'
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """The bytes of one connection, in the pieces in which they are sent, and how it ends."""

    pieces: tuple[bytes, ...]
    ending: Ending

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)


def script(seed: int, number: int) -> Script:
    """The `number`-th connection of a seed. Of 1,000, the first falls silent in a head, the second in a body."""
    luck = random.Random(f"{seed}/{number}")
    if number % 1000 in (0, 1):
        return _stalled(luck, seed, number)
    requests = [_request(luck, f"fuzz-{seed}-{number}-{at}") for at in range(_how_many(luck))]
    data = b"".join(requests)
    ending: Ending = luck.choices(("waits", "leaves", "half-closes", "dribbles"), (92, 5, 2, 1))[0]
    if ending in ("leaves", "half-closes") and data:
        data = data[: luck.randrange(len(data)) + 1]
    if ending == "dribbles":
        data = data[:400]
        return Script(pieces=tuple(data[at : at + 1] for at in range(len(data))), ending=ending)
    return Script(pieces=_cut(luck, data), ending=ending)


def _how_many(luck: random.Random) -> int:
    return luck.choices((1, 2, 3, 4), (60, 20, 12, 8))[0]


def _stalled(luck: random.Random, seed: int, number: int) -> Script:
    head, body = _submit(luck, f"fuzz-{seed}-{number}-0").split(b"\r\n\r\n", 1)
    whole = head + b"\r\n\r\n" + body
    most = len(head) if number % 1000 == 0 else len(whole) - 1
    least = 1 if number % 1000 == 0 else len(head) + 4
    return Script(pieces=_cut(luck, whole[: luck.randint(least, most)]), ending="stalls")


def _cut(luck: random.Random, data: bytes) -> tuple[bytes, ...]:
    places = sorted(luck.randrange(len(data) + 1) for _ in range(luck.choice((0, 0, 1, 1, 2, 5))))
    bounds = [0, *places, len(data)]
    return tuple(data[a:b] for a, b in itertools.pairwise(bounds) if a < b)


def _request(luck: random.Random, marker: str) -> bytes:
    made = luck.choices(_TEMPLATES, _WEIGHTS)[0](luck, marker)
    return _spoilt(luck, made) if luck.random() < 0.08 else made


def _joined(line: bytes, headers: list[bytes], body: bytes = b"") -> bytes:
    return b"\r\n".join([line, *headers]) + b"\r\n\r\n" + body


def _auth(luck: random.Random) -> bytes:
    return (
        b"Authorization: "
        + luck.choices(
            (
                b"Bearer wgk_growth",
                b"Bearer wgk_research",
                b"bearer  wgk_growth",
                b"Bearer",
                b"Basic YTpi",
                b"Bearer " + "ключ".encode(),
                b"Bearer wgk_growth,wgk_research",
                b"wgk_growth",
            ),
            (70, 20, 2, 2, 2, 2, 1, 1),
        )[0]
    )


def _key(luck: random.Random) -> bytes:
    return b"Authorization: Bearer " + (b"wgk_growth" if luck.random() < 0.75 else b"wgk_research")


def _framed(luck: random.Random, line: bytes, headers: list[bytes], body: bytes) -> bytes:
    """With a length, or in chunks that are well formed."""
    if luck.random() < 0.75:
        return _joined(line, [*headers, b"Content-Length: %d" % len(body)], body)
    return _joined(line, [*headers, b"Transfer-Encoding: chunked"], _chunks(luck, body))


def _chunks(luck: random.Random, body: bytes) -> bytes:
    made = b""
    while body:
        size = luck.randint(1, len(body))
        form = luck.choice((b"%x", b"%X", b"0%x", b"%x;a=b"))
        made, body = made + form % size + b"\r\n" + body[:size] + b"\r\n", body[size:]
    trailers = luck.choice(
        (b"", b"", b"X-Trailer: a\r\n", b"Authorization: Bearer wgk_growth\r\nContent-Length: 5\r\n")
    )
    return made + b"0\r\n" + trailers + b"\r\n"


def _submit(luck: random.Random, marker: str) -> bytes:
    path = luck.choice((b"/v1/tasks", b"/v1/tasks", b"/v1/tasks/sync"))
    headers = [b"Host: a", _key(luck), b"Content-Type: application/json"]
    if luck.random() < 0.3:
        headers.append(b"Idempotency-Key: " + luck.choice((b"%d" % luck.randrange(200), marker.encode())))
    if luck.random() < 0.2:
        headers.append(b"Prefer: wait=%d" % luck.randrange(2))
    return _framed(luck, b"POST %s HTTP/1.1" % path, headers, mutated_json.whole(luck, marker))


def _wished(luck: random.Random, marker: str) -> bytes:
    values = {
        b"X-Wave-Cache": (b"no-store", b"refresh", b"only-if-cached", b"ONLY-IF-CACHED ", b"x", b""),
        b"X-Wave-Max-Cost-Usd": (b"1", b"0", b"0.001", b"-1", b"1e9", b"NaN", b"1.0000000001", b"9" * 400, b"\xd9\xa1"),
        b"X-Wave-Tags": (b"a=b", b"a=b,c=d", b"a", b"=", b"a=b," * 9, b"a=" + b"x" * 200, b"a=\xff"),
        b"X-Wave-Dry-Run": (b"true", b"TRUE", b"false", b"1", b""),
        b"Idempotency-Key": (b"k", b"k" * 255, b"k" * 256, b"", b" ", b"\xc3\xa9", b"a\tb", b'"q"'),
        b"Prefer": (b"wait=0", b'wait="1"', b"wait=-1", b"wait=99999999", b"respond-async, wait=1", b"wait=1;x", b","),
        b"Content-Type": (
            b"text/plain",
            b"application/json; charset=utf-16",
            b"a/b+json",
            b"\xff",
            b"",
            b"multipart/form-data",
        ),
        b"Expect": (b"100-continue", b"200-ok"),
        b"traceparent": (b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"00-x", b"\xff"),
        b"X-Wave-Request-Id": (b"mine", b"a\tb"),
        b"Accept-Encoding": (b"gzip", b"*;q=0"),
    }
    chosen = luck.sample(sorted(values), luck.randint(1, 3))
    headers = [b"Host: a", _auth(luck), *(name + b": " + luck.choice(values[name]) for name in chosen)]
    body = luck.choice((mutated_json.whole, mutated_json.mutated))(luck, marker)
    return _framed(luck, b"POST /v1/tasks HTTP/1.1", headers, body)


def _odd_body(luck: random.Random, marker: str) -> bytes:
    path = luck.choice((b"/v1/tasks", b"/v1/tasks", b"/v1/tasks/sync"))
    return _framed(luck, b"POST %s HTTP/1.1" % path, [b"Host: a", _key(luck)], mutated_json.mutated(luck, marker))


def _page(luck: random.Random, _marker: str) -> bytes:
    odd = luck.choice(
        (
            b"",
            b"?limit=%d" % luck.randrange(-1, 103),
            b"?status=done&limit=1",
            b"?since=%ff&limit=2",
            b"?before=\x7f",
            b"?since=9999999999999&q=%00",
            b"?since=0001-01-01",
            b"?since=9999-12-31T23:59:59-23:59",
            b"?q=" + b"%25_" * 9,
            b"?limit=1&limit=2",
            b"?&&=",
            b"?limit=\xef\xbc\x91",
        )
    )
    path = luck.choice(
        (
            b"/v1/tasks" + odd,
            b"/v1/models",
            b"/v1/models/%s" % luck.choice((b"no", b"gemini-2.5-flash-image-preview", b"..%2f", b"%00", b"a/b/c")),
            b"/v1/dashboard/billing/" + luck.choice((b"balance", b"usage", b"subscription", b"x")),
            b"/v1/tasks/"
            + luck.choice((b"task-wg" + b"0" * 26, b"sync", b"%ff", b"a" * 3000, b"%2e%2e", b"task-wg%00")),
            b"/healthz",
            b"/readyz",
            b"/openapi.json",
            b"/metrics",
        )
    )
    if path == b"/metrics" and luck.random() < 0.9:
        path = b"/healthz"
    headers = [b"Host: a", _auth(luck)]
    headers += luck.sample(
        (
            b"Accept: application/openmetrics-text;q=0.5,*/*",
            b"If-None-Match: *",
            b'If-None-Match: W/"a", "b',
            b"Accept-Encoding: gzip",
            b"Prefer: wait=1",
            b"X-Forwarded-For: 127.0.0.1",
        ),
        luck.choice((0, 0, 1, 2)),
    )
    return _joined(luck.choice((b"GET ", b"GET ", b"HEAD ")) + path + b" HTTP/1.1", headers)


def _picture(luck: random.Random, _marker: str) -> bytes:
    name = luck.choice(
        (
            b"0" * 64 + b".jpg",
            b"../wave.db",
            b"%2e%2e%2fwave.db",
            b"0" * 64,
            b"0" * 64 + b".jpg%00",
            b"G" * 64 + b".jpg",
        )
    )
    ranged = luck.choice(
        (
            b"bytes=0-1",
            b"bytes=-0",
            b"bytes=9-1",
            b"bytes=" + b"0-1," * 500,
            b"bytes=" + b"9" * 5000 + b"-",
            b"lines=1-2",
        )
    )
    return _joined(
        luck.choice((b"GET", b"HEAD")) + b" /media/" + name + b" HTTP/1.1", [b"Host: a", b"Range: " + ranged]
    )


def _cancel(luck: random.Random, _marker: str) -> bytes:
    path = b"/v1/tasks/%s/cancel" % luck.choice((b"task-wg" + b"0" * 26, b"sync", b"%00", b"a%2fb", b""))
    return _framed(luck, b"POST %s HTTP/1.1" % path, [b"Host: a", _auth(luck)], luck.choice((b"", b"{}", SMUGGLED)))


def _odd_target(luck: random.Random, marker: str) -> bytes:
    target = luck.choice(
        (
            b"*",
            b"/",
            b"//",
            b"http://b/healthz",
            b"http://b",
            b"https://u:p@b/v1/tasks",
            b"b:443",
            b"/\0",
            b"/\xff\xfe",
            "/ｖ1".encode(),
            b"/%",
            b"/%zz",
            b"/%00",
            b"/%ff",
            b"/..%2f..",
            b"/healthz#x",
            b"/healthz?",
            b"/healthz;x",
            b"/healthz/",
            b"/HEALTHZ",
            b"/" + b"a/" * 5000,
            b"/?" + b"a=b&" * 4000,
            b"/healthz /x",
            b"",
            b"\\healthz",
            b"http://[::1",
            b"http://a:99999999/",
            b"/callbacks/x",
            b"/v1/mcp",
        )
    )
    method = luck.choice(
        (
            b"GET",
            b"GET",
            b"HEAD",
            b"POST",
            b"OPTIONS",
            b"CONNECT",
            b"TRACE",
            b"PUT",
            b"DELETE",
            b"PATCH",
            b"PURGE",
            b"M-SEARCH",
            b"SOURCE",
        )
    )
    return _joined(method + b" " + target + b" HTTP/1.1", [b"Host: a", _auth(luck)])


def _odd_line(luck: random.Random, _marker: str) -> bytes:
    line = luck.choice(
        (
            b"GET /healthz",
            b"GET  /healthz HTTP/1.1",
            b" GET /healthz HTTP/1.1",
            b"get /healthz HTTP/1.1",
            b"GET /healthz HTTP/1.0",
            b"GET /healthz HTTP/0.9",
            b"GET /healthz HTTP/2.0",
            b"GET /healthz HTTP/1.10",
            b"GET /healthz http/1.1",
            b"GET /healthz HTTP/1.1 ",
            b"GET /healthz RTSP/1.0",
            b"BREW /healthz HTTP/1.1",
            b"G\0T /healthz HTTP/1.1",
            b"PRI * HTTP/2.0",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET\t/healthz\tHTTP/1.1",
            b"\r\n\r\nGET /healthz HTTP/1.1",
            b"",
            b"\0",
            b"GET /healthz HTTP/1.1\rX: y",
            b"HTTP/1.1 200 OK",
            b"A" * 40000,
        )
    )
    return _joined(line, luck.choice(([b"Host: a"], [])))


def _odd_header(luck: random.Random, marker: str) -> bytes:
    header = luck.choice(
        (
            b"A: b\r\n c",
            b"A : b",
            b": b",
            b"A",
            b"A: \0",
            b"A: \x01\x7f",
            b"A: \xff\xfe",
            b"\xffA: b",
            b"A: b\nX: y",
            b"A: b\rX: y",
            b"A: " + b"b" * 9000,
            b"A" * 9000 + b": b",
            b"\r\n".join(b"A%d: b" % at for at in range(3000)),
            b"Host: b",
            b"Host:",
            b"Authorization: Bearer wgk_research",
            b"Idempotency-Key: 1\r\nIdempotency-Key: 2",
            b"Connection: close",
            b"Connection: keep-alive, upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13",
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
            b"Connection: authorization",
            b"TE: trailers",
            b"Content-Encoding: gzip",
            b"Cookie: " + b"a=b;" * 1500,
            b"X-Forwarded-Host: evil\r\nForwarded: for=1;host=evil",
            b"Proxy: http://evil",
            b"Keep-Alive: max=0",
            b"\tA: b",
            b"A: b\r",
            b"(A): b",
            b"A\0: b",
        )
    )
    headers = [b"Host: a", _key(luck)]
    headers.insert(luck.randrange(3), header)
    return _framed(luck, b"POST /v1/tasks HTTP/1.1", headers, mutated_json.whole(luck, marker))


def _odd_framing(luck: random.Random, marker: str) -> bytes:
    body = luck.choice((mutated_json.whole(luck, marker), SMUGGLED, b"0\r\n\r\n" + SMUGGLED, b""))
    size = len(body)
    framing = luck.choice(
        (
            [b"Content-Length: %d" % size, b"Transfer-Encoding: chunked"],
            [b"Transfer-Encoding: chunked", b"Content-Length: %d" % size],
            [b"Content-Length: %d" % size] * 2,
            [b"Content-Length: %d" % size, b"Content-Length: %d" % (size + 1)],
            [b"Content-Length: %d, %d" % (size, size)],
            [b"Content-Length: +%d" % size],
            [b"Content-Length: -1"],
            [b"Content-Length: 0x%x" % size],
            [b"Content-Length: %d " % size],
            [b"Content-Length: %d\t" % size],
            [b"Content-Length: 000%d" % size],
            [b"Content-Length: 99999999"],
            [b"Content-Length: 18446744073709551617"],
            [b"Content-Length:"],
            [b"Content-Length : %d" % size],
            [b"Content_Length: %d" % size],
            [b"Transfer-Encoding: gzip, chunked"],
            [b"Transfer-Encoding: chunked, gzip"],
            [b"Transfer-Encoding: identity"],
            [b"Transfer-Encoding: CHUNKED"],
            [b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"],
            [b"Transfer-Encoding:\x0bchunked"],
            [b"Transfer-Encoding: x\r\n chunked"],
            [b"Transfer-Encoding : chunked"],
            [b"Content-Length: %d" % max(0, size - 3)],
            [],
        )
    )
    line = luck.choice(
        (b"POST /v1/tasks HTTP/1.1", b"POST /v1/tasks HTTP/1.0", b"GET /healthz HTTP/1.1", b"HEAD /v1/models HTTP/1.1")
    )
    return _joined(line, [b"Host: a", _key(luck), *framing], body)


def _odd_chunks(luck: random.Random, marker: str) -> bytes:
    body = mutated_json.whole(luck, marker)
    size = b"%x" % len(body)
    chunks = luck.choice(
        (
            size + b"\n" + body + b"\n0\n\n",
            size + b"\r\n" + body + b"0\r\n\r\n",
            b"-" + size + b"\r\n" + body + b"\r\n0\r\n\r\n",
            b"0x" + size + b"\r\n" + body + b"\r\n0\r\n\r\n",
            size + b" \r\n" + body + b"\r\n0\r\n\r\n",
            b"ffffffffffffffff\r\n" + body,
            b"1" + b"0" * 17 + b"\r\n" + body,
            b"\r\n" + body + b"\r\n0\r\n\r\n",
            size + b";" + b"a" * 40000 + b"\r\n" + body + b"\r\n0\r\n\r\n",
            size + b';a="\r\n"\r\n' + body + b"\r\n0\r\n\r\n",
            size + b"\r\n" + body + b"\r\n0\r\nA: b\r\n" + b"B: c\r\n" * 7000 + b"\r\n",
            size + b"\r\n" + body + b"\r\n0\r\nbad trailer\r\n\r\n",
            size + b"\r\n" + body + b"\r\n00000\r\n\r\n",
            size + b"\r\n" + body + b"X\r\n0\r\n\r\n",
            b"g\r\n" + body + b"\r\n0\r\n\r\n",
            size + b"\r\n" + body + b"\r\n0\r\n\r\n" + SMUGGLED[:30] + b"\r\n\r\n",
        )
    )
    return _joined(b"POST /v1/tasks HTTP/1.1", [b"Host: a", _key(luck), b"Transfer-Encoding: chunked"], chunks)


def _noise(luck: random.Random, _marker: str) -> bytes:
    return luck.randbytes(luck.randint(1, 300))


def _large(luck: random.Random, _marker: str) -> bytes:
    size = luck.choice((2**20, 2**20 + 1, 3 * 2**20))
    return _framed(luck, b"POST /v1/tasks HTTP/1.1", [b"Host: a", _key(luck)], b'"' + b"a" * (size - 2) + b'"')


_TEMPLATES: Final[tuple[Callable[[random.Random, str], bytes], ...]] = (
    *(_submit, _wished, _odd_body, _page, _picture, _cancel),
    *(_odd_target, _odd_line, _odd_header, _odd_framing, _odd_chunks, _noise, _large),
)
_WEIGHTS: Final = (80, 110, 220, 130, 30, 30, 90, 60, 90, 90, 50, 18, 2)


def _spoilt(luck: random.Random, data: bytes) -> bytes:
    """A byte turned, taken out or put in, or a slice said twice."""
    at = luck.randrange(len(data))
    return luck.choice(
        (
            data[:at] + bytes([data[at] ^ (1 << luck.randrange(8))]) + data[at + 1 :],
            data[:at] + data[at + 1 :],
            data[:at] + luck.choice((b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b"\xff", b"0")) + data[at:],
            data[: at + 20] + data[at:],
        )
    )
