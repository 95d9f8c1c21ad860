"""How RFC 9112 reads the bytes of a client and those of a server; strict, and written without the gateway's parser.

It is the oracle for how many requests there are: a gateway that answers more of them saw one where there is none.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Final, Literal

Ends = Literal["clean", "last", "fault", "incomplete"]

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_LINE: Final = re.compile(rb"(%s) +([!-\x7e\x80-\xff]+) HTTP/(1\.[01]|0\.9|2\.0)" % _TOKEN)
"""More than one blank: as RFC 9112 section 3 allows a reader, and httptools does."""
_HEADER: Final = re.compile(rb"(%s):[ \t]*([\t -\x7e\x80-\xff]*?)[ \t]*" % _TOKEN)
_STATUS: Final = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [\t -\x7e]*")
_CHUNK: Final = re.compile(rb"([0-9a-fA-F]{1,16})(?:;[\t -\x7e\x80-\xff]*)?")

Headers = tuple[tuple[bytes, bytes], ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One whole request; header names in lower case."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        return [value for each, value in self.headers if each == name]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One whole answer; header names in lower case, the last of two counts."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """The whole requests in what a client says, and what is behind them.

    `clean`: nothing; `last`: something that nobody reads; `fault`: no HTTP; `incomplete`: the beginning of a request.
    """

    requests: tuple[Request, ...]
    ends: Ends

    @property
    def most_answers(self) -> int:
        return len(self.requests) + (self.ends in ("fault", "incomplete"))


class _Fault(Exception):
    """This is not HTTP."""


class _Incomplete(Exception):
    """There is more to come."""


class Unreadable(Exception):
    """What a server said is not HTTP."""


def requests(data: bytes) -> Said:
    """Read all that a client says on one connection."""
    found: list[Request] = []
    at = 0
    try:
        while True:
            while data[at : at + 1] in (b"\r", b"\n"):  # empty lines in front, of any form (RFC 9112 section 2.2)
                at += 1
            if at == len(data):
                return Said(requests=tuple(found), ends="clean")
            request, at, is_last = _request(data, at)
            found.append(request)
            if is_last:
                return Said(requests=tuple(found), ends="last")
    except _Fault:
        return Said(requests=tuple(found), ends="fault")
    except _Incomplete:
        return Said(requests=tuple(found), ends="incomplete")


def _request(data: bytes, at: int) -> tuple[Request, int, bool]:
    first, headers, at = _head(data, at)
    line = _LINE.fullmatch(first)
    if line is None:
        raise _Fault
    body, at = _body(data, at, headers)
    options = b",".join(value for name, value in headers if name == b"connection").lower()
    is_last = b"close" in options or (line[3] != b"1.1" and b"keep-alive" not in options)
    return Request(method=line[1], target=line[2], headers=headers, body=body), at, is_last


def _head(data: bytes, at: int) -> tuple[bytes, Headers, int]:
    end = data.find(b"\r\n\r\n", at)
    if end < 0:
        for each in data[at:].split(b"\r\n")[:-1]:
            if b"\n" in each or b"\r" in each:
                raise _Fault
        raise _Incomplete
    first, *lines = data[at:end].split(b"\r\n")
    headers = []
    for each in lines:
        header = _HEADER.fullmatch(each)
        if header is None:
            raise _Fault
        headers.append((header[1].lower(), header[2]))
    return first, tuple(headers), end + 4


def _body(data: bytes, at: int, headers: Headers) -> tuple[bytes, int]:
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    lengths = [value for name, value in headers if name == b"content-length"]
    if codings and (lengths or [each.lower() for each in codings] != [b"chunked"]):
        raise _Fault
    if codings:
        return _chunks(data, at)
    if not lengths:
        return b"", at
    if len(lengths) > 1 or not re.fullmatch(rb"[0-9]{1,18}", lengths[0]):
        raise _Fault
    end = at + int(lengths[0])
    if end > len(data):
        raise _Incomplete
    return data[at:end], end


def _chunks(data: bytes, at: int) -> tuple[bytes, int]:
    body = b""
    while True:
        end = data.find(b"\r\n", at)
        found = _CHUNK.fullmatch(data[at : len(data) if end < 0 else end])
        if end < 0:
            raise _Incomplete
        if found is None:
            raise _Fault
        size, at = int(found[1], 16), end + 2
        if size == 0:
            if data.startswith(b"\r\n", at):
                return body, at + 2
            _head(b"x\r\n" + data[at:], 0)  # trailers have the form of headers
            return body, data.index(b"\r\n\r\n", at) + 4
        body += data[at : at + size]
        if len(data) < at + size + 2:
            raise _Incomplete
        if data[at + size : at + size + 2] != b"\r\n":
            raise _Fault
        at += size + 2


def responses(data: bytes, methods: Sequence[bytes], *, is_over: bool) -> list[Response]:
    """The whole answers in what a server said, to requests of these methods; raises Unreadable.

    `is_over`: the server has closed, so that nothing may be left over.
    """
    found: list[Response] = []
    at = 0
    while at < len(data):
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            break
        first, *lines = data[at:end].split(b"\r\n")
        status = _STATUS.fullmatch(first)
        headers = [_HEADER.fullmatch(each) for each in lines]
        if status is None or None in headers:
            raise Unreadable(data[at:end][:200])
        named = {each[1].decode().lower(): each[2].decode("latin-1") for each in headers if each is not None}
        code = int(status[1])
        if code == 100:
            at = end + 4
            continue
        has_body = code not in (204, 304) and methods[len(found) : len(found) + 1] != [b"HEAD"]
        if "transfer-encoding" in named or (has_body and not named.get("content-length", "").isdigit()):
            raise Unreadable(data[at:end][:200])
        if len(found) >= len(methods) and len(data) == end + 4:
            has_body = False  # to a HEAD that did not come whole
        elif "content-length" in named and len(data) == end + 4 + int(named["content-length"]) > end + 4:
            has_body = True  # to a HEAD that could not be read
        size = int(named["content-length"]) if has_body else 0
        if len(data) < end + 4 + size:
            break
        found.append(Response(status=code, headers=named, body=data[end + 4 : end + 4 + size]))
        at = end + 4 + size
    if is_over and at < len(data):
        raise Unreadable(f"{len(data) - at} bytes behind {len(found)} answers: {data[at : at + 100]!r}")
    return found
