"""Requests whose end two readers could see in two places, and whatever is too slow or too long; on plain sockets.

Behind each stands a second request. Either the first is refused and the connection ends, so that nobody ever reads
the second one as a request, or both are answered in their order.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.edge.raw import BODY_MAX_BYTES, HEADER_DEADLINE_S, Connection, Gateway, get

SMUGGLED = get("/smuggled")
CHUNKS = b"2\r\n{}\r\n0\r\n\r\n"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Gateway("uvloop", deadline_s=60) as gateway:  # which no slow machine reaches before the end of a request
        yield gateway


@pytest.fixture
def connection(gateway: Gateway) -> Iterator[Connection]:
    gateway.refused.clear()
    with Connection(gateway) as connection:
        yield connection


@pytest.fixture
def hasty() -> Iterator[Connection]:
    """A connection to a gateway whose deadlines are short."""
    with Gateway("uvloop") as gateway, Connection(gateway) as connection:
        yield connection


def posted(*headers: bytes, body: bytes = CHUNKS) -> bytes:
    lines = b"".join(header + b"\r\n" for header in (b"Host: gateway.test", *headers))
    return b"POST /v1/tasks HTTP/1.1\r\n" + lines + b"\r\n" + body


def got(*headers: bytes, line: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"".join(each + b"\r\n" for each in (line, *headers)) + b"\r\n"


REFUSED = {
    # both framings, or one of them in a form that not everybody reads
    "length, then chunked": posted(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "chunked, then length": posted(b"Transfer-Encoding: chunked", b"Content-Length: 12"),
    "chunked and a length of 0": posted(b"Content-Length: 0", b"Transfer-Encoding: chunked"),
    "two lengths": posted(b"Content-Length: 2", b"Content-Length: 3", body=b"{} "),
    "two equal lengths": posted(b"Content-Length: 2", b"Content-Length: 2", body=b"{}"),
    "a list of lengths": posted(b"Content-Length: 2, 2", body=b"{}"),
    "a length with a sign": posted(b"Content-Length: +2", body=b"{}"),
    "a negative length": posted(b"Content-Length: -2", body=b"{}"),
    "a hexadecimal length": posted(b"Content-Length: 0x2", body=b"{}"),
    "a length in two words": posted(b"Content-Length: 2 2", body=b"{}"),
    "a length with a tab behind it": posted(b"Content-Length: 2\t", body=b"{}"),
    "an empty length": posted(b"Content-Length:", body=b""),
    "a length of other digits": posted("Content-Length: ２".encode(), body=b"{}"),
    "a length past 64 bits": posted(b"Content-Length: 18446744073709551618", body=b"{}"),
    "a length on the next line": posted(b"Content-Length:\r\n 2", body=b"{}"),
    "a blank before the colon of the length": posted(b"Content-Length : 2", body=b"{}"),
    "chunked on the next line": posted(b"Transfer-Encoding:\r\n chunked"),
    "chunked on the next line, behind a tab": posted(b"Transfer-Encoding:\r\n\tchunked"),
    "a blank before the colon of chunked": posted(b"Transfer-Encoding : chunked"),
    "chunked twice": posted(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "chunked twice in one": posted(b"Transfer-Encoding: chunked, chunked"),
    "chunked, not at the end": posted(b"Transfer-Encoding: chunked, gzip"),
    "chunked behind another coding": posted(b"Transfer-Encoding: gzip, chunked"),
    "chunked and identity": posted(b"Transfer-Encoding: chunked, identity"),
    "identity": posted(b"Transfer-Encoding: identity"),
    "an unknown coding": posted(b"Transfer-Encoding: xchunked"),
    "chunked in quotes": posted(b'Transfer-Encoding: "chunked"'),
    "chunked behind a vertical tab": posted(b"Transfer-Encoding: \x0bchunked"),
    "an empty coding": posted(b"Transfer-Encoding:"),
    # chunks
    "a negative chunk": posted(b"Transfer-Encoding: chunked", body=b"-2\r\n{}\r\n0\r\n\r\n"),
    "a chunk with a prefix": posted(b"Transfer-Encoding: chunked", body=b"0x2\r\n{}\r\n0\r\n\r\n"),
    "a chunk with a blank": posted(b"Transfer-Encoding: chunked", body=b"2 \r\n{}\r\n0\r\n\r\n"),
    "a chunk past 64 bits": posted(b"Transfer-Encoding: chunked", body=b"10000000000000002\r\n{}\r\n0\r\n\r\n"),
    "chunks ended by LF": posted(b"Transfer-Encoding: chunked", body=b"2\n{}\n0\n\n"),
    "a chunk without its end": posted(b"Transfer-Encoding: chunked", body=b"2\r\n{}0\r\n\r\n"),
    "an empty chunk size": posted(b"Transfer-Encoding: chunked", body=b"\r\n{}\r\n0\r\n\r\n"),
    "an extension with a line end": posted(b"Transfer-Encoding: chunked", body=b"2;a\n\r\n{}\r\n0\r\n\r\n"),
    # header lines
    "a folded header": got(b"Host: a", b"A: b\r\n c"),
    "a header folded behind a tab": got(b"Host: a", b"A: b\r\n\tc"),
    "a fold before the first header": got(b" Host: a"),
    "a CR alone": got(b"Host: a", b"A: b\rX: c"),
    "a NUL": got(b"Host: a", b"A: b\0c"),
    "a control character": got(b"Host: a", b"A: \x01"),
    "a DEL": got(b"Host: a", b"A: \x7f"),
    "no colon": got(b"Host a"),
    "no name": got(b": a"),
    "a name with a parenthesis": got(b"Ho(st: a"),
    "a name outside ASCII": got(b"H\xf6st: a"),
    "LF line ends": b"GET / HTTP/1.1\nHost: a\n\n",
    # twice what may come once
    "two hosts": got(b"Host: a", b"Host: b"),
    "the same host twice": got(b"Host: a", b"host: a"),
    "two keys": got(b"Host: a", b"Authorization: Bearer a", b"Authorization: Bearer b"),
    "two idempotency keys": posted(b"Idempotency-Key: 1", b"Idempotency-Key: 2", b"Content-Length: 2", body=b"{}"),
    "two media types": posted(b"Content-Type: a/b", b"Content-Type: c/d", b"Content-Length: 2", body=b"{}"),
    "two bounds of the cost": posted(
        b"X-Wave-Max-Cost-Usd: 1", b"X-Wave-Max-Cost-Usd: 2", b"Content-Length: 0", body=b""
    ),
    # the request line
    "a tab in the request line": got(line=b"GET\t/ HTTP/1.1"),
    "a blank in the path": got(line=b"GET /a b HTTP/1.1"),
    "a NUL in the path": got(line=b"GET /a\0b HTTP/1.1"),
    "a path without a slash": got(line=b"GET a HTTP/1.1"),
    "no path": got(line=b"GET http://a HTTP/1.1"),
    "another version": got(line=b"GET / HTTP/1.2"),
    "a method in lower case": got(line=b"get / HTTP/1.1"),
}

TOO_LARGE = {
    "an endless header name": b"GET / HTTP/1.1\r\n" + b"a" * 3_000_000,
    "sixty thousand headers": b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 60_000 + b"\r\n",
    "a query of 40 kB": got(b"Host: a", line=b"GET /?" + b"a" * 40_000 + b" HTTP/1.1"),
    "an endless chunk extension": posted(b"Transfer-Encoding: chunked", body=b"2;" + b"a" * 3_000_000),
    "an endless chunk size": posted(b"Transfer-Encoding: chunked", body=b"0" * 3_000_000),
    "endless trailers": posted(b"Transfer-Encoding: chunked", body=b"0\r\n" + b"a: b\r\n" * 500_000),
}

BOTH_ANSWERED = {
    "a length with zeros in front": (posted(b"Content-Length: 0002", body=b"{}"), "/v1/tasks", 2),
    "chunked in upper case": (posted(b"Transfer-Encoding: CHUNKED"), "/v1/tasks", 2),
    "a chunk with an extension": (
        posted(b"Transfer-Encoding: chunked", body=b"2;a=b\r\n{}\r\n0\r\n\r\n"),
        "/v1/tasks",
        2,
    ),
    "a chunk with zeros in front": (
        posted(b"Transfer-Encoding: chunked", body=b"0002\r\n{}\r\n0\r\n\r\n"),
        "/v1/tasks",
        2,
    ),
    "a request within a body": (
        posted(b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED),
        "/v1/tasks",
        len(SMUGGLED),
    ),
    "an absolute target": (got(b"Host: a", line=b"GET http://b/x HTTP/1.1"), "/x", 0),
    "blank lines in front": (b"\r\n\r\n" + got(b"Host: a"), "/", 0),
}

LAST = {
    "the client closes": got(b"Host: a", b"Connection: close"),
    "HTTP/1.0": got(b"Host: a", line=b"GET / HTTP/1.0"),
    "HTTP/1.0, chunked": got(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0") + CHUNKS,
    "a body that nobody reads": got(b"Host: a", b"Content-Length: %d" % (len(SMUGGLED) + 1)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_unclear_request_is_refused_and_nothing_behind_it_is_read(connection, what):
    connection.say(REFUSED[what] + SMUGGLED)

    assert connection.hear_error() == (400, "invalid_request")


@pytest.mark.parametrize("what", TOO_LARGE)
def test_what_has_no_end_is_refused_before_it_has_one(connection, what):
    connection.say(TOO_LARGE[what] + SMUGGLED)

    assert connection.hear_error() == (431, "headers_too_large")


@pytest.mark.parametrize("what", ["an endless method", "an endless version"])
def test_an_endless_word_that_http_does_not_know_is_refused_at_its_first_letters(connection, what):
    connection.say({"an endless method": b"A", "an endless version": b"GET / HTTP/1."}[what] + b"1" * 3_000_000)

    assert connection.hear_error() == (400, "invalid_request")


@pytest.mark.parametrize("what", BOTH_ANSWERED)
def test_what_everybody_reads_in_one_way_is_answered_and_the_next_request_too(connection, what):
    request, path, size = BOTH_ANSWERED[what]
    connection.say(request + SMUGGLED)

    _, _, first = connection.hear()
    assert (first["path"], first["body"]) == (path, size)
    assert connection.hear()[2]["path"] == "/smuggled"


@pytest.mark.parametrize("what", LAST)
def test_behind_the_last_request_of_a_connection_nothing_is_answered(connection, what):
    connection.say(LAST[what] + SMUGGLED)

    assert connection.hear()[2]["path"] == "/"
    assert connection.hear_end() == b""


def test_a_thousand_requests_in_one_go_are_answered_in_their_order(gateway, connection):
    connection.say(b"".join(get(f"/{number}") for number in range(1000)))

    assert [connection.hear()[2]["path"] for _ in range(1000)] == [f"/{number}" for number in range(1000)]
    assert gateway.refused == []


def test_a_body_too_large_in_the_middle_of_a_pipeline_ends_it_there(connection):
    size = 40 * BODY_MAX_BYTES
    connection.say(get("/1") + posted(b"Content-Length: %d" % size, body=b"a" * size) + SMUGGLED)

    assert connection.hear()[2]["path"] == "/1"
    assert connection.hear_error() == (413, "body_too_large")


@pytest.mark.parametrize("framing", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
def test_a_body_that_trickles_past_its_deadline_is_refused_though_it_never_stops(hasty, framing):
    hasty.say(posted(framing, body=b""))
    hasty.trickle_until_heard(b"1\r\na\r\n" * 100, gap_s=HEADER_DEADLINE_S / 20)

    assert hasty.hear_error() == (408, "request_timeout")
    assert hasty.seconds >= HEADER_DEADLINE_S


def test_a_fault_in_a_body_takes_no_answer_from_the_requests_before_it(connection):
    connection.say(get("/slow") + get("/2") + posted(b"Transfer-Encoding: chunked", body=b"zz\r\n") + SMUGGLED)

    assert connection.hear()[2]["path"] == "/slow"
    assert connection.hear()[2]["path"] == "/2"
    assert connection.hear_error() == (400, "invalid_request")


def test_a_client_that_leaves_a_pipeline_behind_is_no_failure_of_ours(gateway, caplog):
    with Connection(gateway) as leaving:
        leaving.say(get("/slow") + get("/slow"))
        leaving.reset()
    with Connection(gateway) as other:  # is answered when the first of the two would have been
        other.say(get("/slow") + get("/slow"))
        assert other.hear()[0] == other.hear()[0] == 200
    assert caplog.records == []


@pytest.mark.parametrize("begun", [b"", b"2\r\n{}\r\n"])
def test_who_is_refused_is_not_told_to_go_on(connection, caplog, begun):
    expecting = posted(b"Expect: 100-continue", b"Transfer-Encoding: chunked", body=begun + b"zz\r\n")
    connection.say(expecting)

    assert connection.hear_error() == (400, "invalid_request")
    assert caplog.records == []
