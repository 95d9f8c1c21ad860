"""A guard behind the bounded protocol on real uvicorn, and a client that says what it is told to, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import select
import socket
import struct
import threading
import time
from typing import Any

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

    def __init__(self, loop: str, *, deadline_s: float = HEADER_DEADLINE_S) -> None:
        """`deadline_s`: for the head, and for the body."""
        self.refused: list[CallerError] = []
        self.left: list[str] = []
        ids = itertools.count(1)
        guarded = guard.Guard(
            self._echo,
            max_body_bytes=BODY_MAX_BYTES,
            new_request_id=lambda: f"req-{next(ids)}",
            clock=time.monotonic,
            observe=lambda *labels: None,
            body_deadline_s=deadline_s,
            linger_s=BODY_LINGER_S,
        )
        bounded = protocol.bounded_protocol(
            new_request_id=lambda: f"conn-{next(ids)}",
            refused=self.refused.append,
            header_deadline_s=deadline_s,
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

    def __enter__(self) -> Gateway:
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


class Connection:
    """A client that says what it is told to, byte for byte."""

    def __init__(self, gateway: Gateway) -> None:
        self._socket = socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S)
        self._buffer = b""
        self._opened_at = time.monotonic()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *raised: object) -> None:
        self._socket.close()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._opened_at

    def say(self, data: bytes) -> None:
        self._socket.sendall(data)

    def reset(self) -> None:
        """Leave without a goodbye."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def trickle(self, data: bytes, *, gap_s: float) -> None:
        with contextlib.suppress(OSError):
            for byte in data:
                self._socket.sendall(bytes([byte]))
                time.sleep(gap_s)

    def trickle_until_heard(self, data: bytes, *, gap_s: float) -> None:
        """Trickle, and stop at the first word of an answer: what is said behind the end would reset the connection."""
        for byte in data:
            self._socket.sendall(bytes([byte]))
            if select.select([self._socket], [], [], gap_s)[0]:
                return

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


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: gateway.test\r\n\r\n".encode()


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return b"POST /v1/tasks HTTP/1.1\r\n" + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body
