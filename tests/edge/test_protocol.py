"""Against real uvicorn on loopback, spoken to through plain sockets: what it does by itself is the point."""

import time
from collections.abc import Iterator

import pytest

from tests.edge.raw import HEADER_DEADLINE_S, PATIENCE_S, Connection, Gateway, get, post


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    with Gateway(request.param) as gateway:
        yield gateway


@pytest.fixture
def connection(gateway: Gateway) -> Iterator[Connection]:
    gateway.refused.clear()
    with Connection(gateway) as connection:
        yield connection


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"BREW /pot HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT inside:443 HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nA: x\0y\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: x\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"),
        post(b"Content-Length: 2", b"Content-Length: 2", body=b"{}"),
        post(b"Content-Length: " + b"9" * 5000),
        post(b"Transfer-Encoding: gzip", body=b"{}"),
        post(b"Transfer-Encoding: chunked", body=b"2\r\n{}\r\nzz\r\n"),
    ],
)
def test_what_is_not_a_clear_request_gets_our_400_and_the_connection_ends(gateway, connection, request_bytes):
    connection.say(request_bytes)

    assert connection.hear_error() == (400, "invalid_request")
    assert connection.seconds < PATIENCE_S / 2  # the end was not held back while the server lingered
    assert [error.code for error in gateway.refused] == ["invalid_request"]


def test_a_fault_in_a_body_is_to_the_app_a_client_that_left(gateway, connection):
    connection.say(b"POST /torn HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
    time.sleep(0.05)
    connection.say(b"zz\r\n")

    assert connection.hear_error() == (400, "invalid_request")
    time.sleep(HEADER_DEADLINE_S)  # the connection is still open at our end: it is not our leaving that the app sees
    assert "/torn" in gateway.left


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nA: " + b"v" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: %s\r\n" % (i, b"v" * 990) for i in range(70)) + b"\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"v" * 3_000_000,  # and no end to it
        b"\r\n" * 300_000,  # no request at all
        post(b"Transfer-Encoding: chunked", body=b"0\r\nA: " + b"v" * 3_000_000),
    ],
    ids=["one header", "many headers", "path", "endless header", "blank lines", "endless trailer"],
)
def test_heads_of_more_than_32_kib_are_refused_also_while_they_come(gateway, connection, request_bytes):
    connection.say(request_bytes)

    assert connection.hear_error() == (431, "headers_too_large")
    assert [error.code for error in gateway.refused] == ["headers_too_large"]


def test_the_size_is_counted_for_each_request_of_a_connection(gateway, connection):
    for _ in range(10):
        connection.say(b"GET /again HTTP/1.1\r\nA: " + b"v" * 8000 + b"\r\n\r\n")
        assert connection.hear()[2]["path"] == "/again"

    assert gateway.refused == []


def test_one_header_of_more_than_8_kib_is_refused_by_the_guard_and_the_connection_stays(connection):
    connection.say(b"GET / HTTP/1.1\r\nA: " + b"v" * 9000 + b"\r\n\r\n" + get("/next"))

    status, headers, body = connection.hear()
    assert (status, body["error"]["code"]) == (431, "headers_too_large")
    assert "connection" not in headers
    assert connection.hear()[2]["path"] == "/next"


def test_a_head_that_trickles_in_is_refused_at_the_deadline(connection):
    connection.trickle(b"GET / HTTP/1.1\r\n", gap_s=HEADER_DEADLINE_S / 8)

    assert connection.hear_error() == (408, "request_timeout")
    assert connection.seconds >= HEADER_DEADLINE_S


def test_a_head_that_trickles_in_within_the_deadline_is_served(connection):
    connection.trickle(get("/trickled"), gap_s=HEADER_DEADLINE_S / 400)

    assert connection.hear()[2]["path"] == "/trickled"


def test_a_connection_that_says_nothing_is_closed_without_a_word(gateway, connection):
    assert connection.hear_end() == b""
    assert HEADER_DEADLINE_S <= connection.seconds + 0.02  # the server's clock began before ours
    assert gateway.refused == []


def test_the_deadline_does_not_run_between_requests(connection):
    connection.say(get("/1"))
    assert connection.hear()[2]["path"] == "/1"
    time.sleep(1.5 * HEADER_DEADLINE_S)
    connection.say(get("/2"))

    assert connection.hear()[2]["path"] == "/2"


@pytest.mark.parametrize("first_byte", [b"G", b"\r"])
def test_the_deadline_starts_again_with_the_first_byte_of_the_next_request(connection, first_byte):
    connection.say(get("/1"))
    assert connection.hear()[2]["path"] == "/1"
    time.sleep(0.5 * HEADER_DEADLINE_S)
    said_at = connection.seconds
    connection.say(first_byte)

    assert connection.hear_error() == (408, "request_timeout")
    assert HEADER_DEADLINE_S <= connection.seconds - said_at + 0.02


def test_an_idle_connection_ends_with_the_keep_alive_time(gateway, connection):
    connection.say(get("/1"))
    connection.hear()
    idle_since = connection.seconds

    assert connection.hear_end() == b""
    assert 0.9 <= connection.seconds - idle_since <= 3.0  # timeout_keep_alive is 1 s
    assert gateway.refused == []


def test_pipelined_requests_are_answered_in_their_order(gateway, connection):
    connection.say(get("/1") + post(b"Content-Length: 2", body=b"{}") + get("/3"))

    assert [connection.hear()[2]["path"] for _ in range(3)] == ["/1", "/v1/tasks", "/3"]
    assert gateway.refused == []


def test_garbage_behind_a_request_does_not_displace_its_answer(gateway, connection):
    connection.say(get("/slow") + b"GARBAGE\r\n\r\n")

    status, headers, body = connection.hear()
    assert (status, body["path"], headers["connection"]) == (200, "/slow", "close")
    assert connection.hear_end() == b""
    assert [error.code for error in gateway.refused] == ["invalid_request"]


@pytest.mark.parametrize(
    "said",
    [
        get("/1") + b"GARBAGE\r\n\r\n",
        b"GET /1 HTTP/1.0\r\n\r\n",
        b"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + get("/2"),
        b"GET /1 HTTP/1.1\r\nHost: a\r\nIdempotency-Key: 1\r\nIdempotency-Key: 2\r\n\r\n" + get("/2"),
    ],
    ids=["garbage", "HTTP/1.0", "closed", "refused by the guard"],
)
def test_what_goes_on_behind_the_last_request_resets_no_connection(connection, said):
    """A client whose connection is reset may throw the answer away unread."""
    connection.say(said)
    assert connection.hear()[1]["connection"] == "close"
    for _ in range(3):
        connection.say(b"x" * 10_000)
        time.sleep(0.1)

    assert connection.hear_end() == b""


def test_half_a_head_behind_a_slow_request_does_not_displace_its_answer(gateway, connection):
    connection.say(get("/slow") + b"GET /half")

    status, headers, body = connection.hear()
    assert (status, body["path"], headers["connection"]) == (200, "/slow", "close")
    assert connection.hear_end() == b""
    assert [error.code for error in gateway.refused] == ["request_timeout"]


def test_the_deadline_does_not_count_the_time_in_which_we_do_not_read(gateway, connection):
    """Two whole requests queued behind each other stop the reading, so the third's head cannot become whole."""
    connection.say(get("/slow") + get("/slow") + b"GET /th")
    time.sleep(0.5 * HEADER_DEADLINE_S)
    connection.say(b"ird HTTP/1.1\r\n\r\n")

    assert [connection.hear()[2]["path"] for _ in range(3)] == ["/slow", "/slow", "/third"]
    assert gateway.refused == []


def test_a_fault_in_a_queued_body_is_answered_behind_what_came_before(gateway, connection):
    connection.say(get("/slow") + post(b"Transfer-Encoding: chunked", body=b"zz\r\n"))

    assert connection.hear()[2]["path"] == "/slow"
    assert connection.hear_error() == (400, "invalid_request")


def test_trailers_do_not_become_headers(connection):
    connection.say(post(b"Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\nAuthorization: Bearer x\r\n\r\n"))

    assert connection.hear()[2] == {"path": "/v1/tasks", "body": 2, "headers": ["transfer-encoding"]}


@pytest.mark.parametrize(
    ("framing", "body", "size"),
    [(b"Content-Length: 28", get("/x")[:28], 28), (b"Transfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n", 2)],
)
@pytest.mark.parametrize("apart", [False, True])
def test_an_upgrade_is_ignored_and_the_body_read(connection, framing, body, size, apart):
    head = post(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", framing)
    connection.say(head if apart else head + body)
    if apart:
        time.sleep(0.05)
        connection.say(body)
    assert connection.hear()[2]["body"] == size
    connection.say(get("/next"))

    assert connection.hear()[2]["path"] == "/next"


def test_upgrades_in_a_pipeline_are_ignored_one_by_one(gateway, connection):
    ask = b"GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    connection.say(ask * 50)

    assert [connection.hear()[2]["path"] for _ in range(50)] == ["/ws"] * 50
    assert gateway.refused == []


def test_a_client_that_sends_far_too_much_still_reads_the_413(connection):
    size = 4_000_000
    connection.say(post(b"Content-Length: %d" % size, body=b"a" * size))

    assert connection.hear_error() == (413, "body_too_large")


def test_a_body_without_an_announced_size_is_refused_when_it_grows_too_large(connection):
    connection.say(post(b"Transfer-Encoding: chunked", body=b"186a1\r\n" + b"a" * 100_001))  # 0x186a1 = 100,001

    assert connection.hear_error() == (413, "body_too_large")


def test_a_body_that_stops_coming_is_refused_at_its_deadline(connection):
    connection.say(post(b"Content-Length: 2", body=b"{"))

    assert connection.hear_error() == (408, "request_timeout")


def test_a_client_waiting_for_100_continue_is_refused_without_it(connection):
    connection.say(post(b"Content-Length: 4000000", b"Expect: 100-continue"))

    assert connection.hear_error() == (413, "body_too_large")


def test_a_client_waiting_for_100_continue_gets_it_when_the_body_is_wanted(connection):
    connection.say(post(b"Content-Length: 2", b"Expect: 100-continue"))
    assert connection._socket.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"  # noqa: SLF001
    connection.say(b"{}")

    assert connection.hear()[2]["body"] == 2
