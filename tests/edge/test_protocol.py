"""Against real uvicorn on loopback, spoken to through plain sockets: what it does by itself is the point."""

import asyncio
import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from gateway.edge import guard, protocol
from gateway.errors import CallerError

HEADER_DEADLINE_S = 0.3
BODY_LINGER_S = 0.2
BODY_MAX_BYTES = 100_000
PATIENCE_S = 10.0


class Gateway:
    """The guard behind the protocol, on a loop of its own in a thread."""

    def __init__(self, loop: str) -> None:
        self.refused: list[CallerError] = []
        self.left: list[str] = []
        ids = itertools.count(1)
        guarded = guard.Guard(
            self._echo,
            max_body_bytes=BODY_MAX_BYTES,
            new_request_id=lambda: f"req-{next(ids)}",
            clock=time.monotonic,
            observe=lambda *labels: None,
            body_deadline_s=HEADER_DEADLINE_S,
            linger_s=BODY_LINGER_S,
        )
        bounded = protocol.bounded_protocol(
            new_request_id=lambda: f"conn-{next(ids)}",
            refused=self.refused.append,
            header_deadline_s=HEADER_DEADLINE_S,
            linger_s=PATIENCE_S,
        )
        config = uvicorn.Config(
            guarded,
            http=bounded,
            ws="none",
            loop=loop,
            port=0,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    @property
    def port(self) -> int:
        port: int = self._server.servers[0].sockets[0].getsockname()[1]
        return port

    def __enter__(self) -> "Gateway":
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    async def _echo(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Say what came in; `/slow` takes twice the header deadline.

        A GET does not ask for a body: that would make uvicorn read on.
        """
        body = b""
        more_body = scope["method"] != "GET"
        while more_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left.append(scope["path"])
                return
            body += message["body"]
            more_body = message["more_body"]
        if scope["path"] == "/slow":
            await asyncio.sleep(2 * HEADER_DEADLINE_S)
        names = [name.decode() for name, _ in scope["headers"]]
        answer = json.dumps({"path": scope["path"], "body": len(body), "headers": names}).encode()
        headers = [(b"content-length", str(len(answer)).encode()), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    with Gateway(request.param) as gateway:
        yield gateway


class Connection:
    """A client that says what it is told to, byte for byte."""

    def __init__(self, gateway: Gateway) -> None:
        self._socket = socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S)
        self._buffer = b""
        self._opened_at = time.monotonic()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *raised: object) -> None:
        self._socket.close()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._opened_at

    def say(self, data: bytes) -> None:
        self._socket.sendall(data)

    def trickle(self, data: bytes, *, gap_s: float) -> None:
        with contextlib.suppress(OSError):
            for byte in data:
                self._socket.sendall(bytes([byte]))
                time.sleep(gap_s)

    def hear(self) -> tuple[int, dict[str, str], dict[str, Any]]:
        """One answer: status, headers, body."""
        while b"\r\n\r\n" not in self._buffer:
            self._read()
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        status_line, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        size = int(headers["content-length"])
        while len(self._buffer) < size:
            self._read()
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return int(status_line.split()[1]), headers, json.loads(body)

    def hear_error(self) -> tuple[int, str]:
        """One error: status and code. It must be in our form, and the last one on this connection."""
        status, headers, body = self.hear()
        assert headers["content-type"] == "application/json"
        assert headers["connection"] == "close"
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-wave-request-id"] == body["error"]["request_id"]
        assert self.hear_end() == b""
        return status, body["error"]["code"]

    def hear_end(self) -> bytes:
        """Everything up to the end of the connection."""
        with contextlib.suppress(EOFError):
            while True:
                self._read()
        rest, self._buffer = self._buffer, b""
        return rest

    def _read(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise EOFError(f"the server closed after {self._buffer!r}")
        self._buffer += data


@pytest.fixture
def connection(gateway: Gateway) -> Iterator[Connection]:
    gateway.refused.clear()
    with Connection(gateway) as connection:
        yield connection


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: gateway.test\r\n\r\n".encode()


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return b"POST /v1/tasks HTTP/1.1\r\n" + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


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


def test_a_fault_in_a_queued_body_ends_the_connection(gateway, connection):
    connection.say(get("/slow") + post(b"Transfer-Encoding: chunked", body=b"zz\r\n"))

    assert connection.hear_end() == b""
    assert [error.code for error in gateway.refused] == ["invalid_request"]


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
