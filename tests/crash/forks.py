"""Processes by fork: a parent that has imported everything once forks a gateway for each start, in milliseconds.

A lane is one such parent with a simulator of its own. It talks over a socket pair, a JSON object a line: what to start
goes in; the pid and then the exit status come out. When the other end goes away it kills what it started and ends.
Fork lanes before any thread or event loop exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import os
import pathlib
import random
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from gateway import app, failpoints, settings, simulator

PORTS: Final = range(20_000, 32_000)
"""Below the ports that a system gives to clients: a gateway that starts again finds its own free."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Where a gateway ends itself: at the `nth` time that it reaches a failpoint, counted from its start."""

    name: str
    nth: int = 1


class Lane:
    """One gateway at a time, and the vendor that it works against."""

    def __init__(self) -> None:
        """Fork the parent of the gateways, and the simulator."""
        self._kept = [_reserved_port(), _reserved_port()]
        self.port, self.vendor_port = (port for _, port in self._kept)
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            _child(lambda: _serve_lane(theirs, self.vendor_port), keep=theirs.fileno())
        theirs.close()
        ours.setblocking(False)
        self._socket = ours
        self._read = b""

    @property
    def url(self) -> str:
        """Where the gateway listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def vendor_url(self) -> str:
        """Where the simulator listens."""
        return f"http://127.0.0.1:{self.vendor_port}"

    async def start(
        self, options: Mapping[str, object], environ: Mapping[str, str], kill: Kill | None, log: pathlib.Path
    ) -> int:
        """Start a gateway that kills itself at a failpoint, or never; returns its pid."""
        wanted = None if kill is None else [kill.name, kill.nth]
        text = json.dumps({"options": options, "environ": environ, "kill": wanted, "log": str(log)})
        await asyncio.get_running_loop().sock_sendall(self._socket, text.encode() + b"\n")
        return await self._number()

    async def ended(self) -> int:
        """Wait until the gateway has ended; its exit code, negative for a signal."""
        return await self._number()

    def close(self) -> None:
        """End the lane and what it started."""
        self._socket.close()
        os.waitpid(self.pid, 0)
        for kept, _ in self._kept:
            kept.close()

    async def _number(self) -> int:
        while b"\n" not in self._read:
            more = await asyncio.get_running_loop().sock_recv(self._socket, 100)
            if not more:
                raise RuntimeError("a lane has ended")
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return int(line)


@contextlib.contextmanager
def lanes(count: int) -> Iterator[list[Lane]]:
    """So many lanes, ended on leaving."""
    gc.freeze()
    made = [Lane() for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            each.close()


def _reserved_port() -> tuple[socket.socket, int]:
    """A TCP port that is free; the UDP socket of its number keeps other runs of this proof away from it."""
    while True:
        port = random.choice(PORTS)
        kept = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            kept.bind(("127.0.0.1", port))
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            kept.close()
        else:
            return kept, port


def _child(run: Callable[[], object], *, keep: int = -1) -> None:
    """What a forked process does instead of going on as its parent; of the open files it has only `keep`."""
    code = 1
    try:
        for number in range(3, 256):
            if number != keep:
                with contextlib.suppress(OSError):
                    os.close(number)
        run()
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it must not go on as the parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _serve_lane(theirs: socket.socket, vendor_port: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other end; then this one follows
    vendor = os.fork()
    if vendor == 0:
        _child(lambda: simulator.run(host="127.0.0.1", port=vendor_port, script=None, queue_s=0, work_s=0))
    running = 0
    try:
        with theirs.makefile("rwb", buffering=0) as lines:
            while line := lines.readline():
                alive, held = os.pipe()  # the gateway holds one end, as long as it lives
                running = os.fork()
                if running == 0:
                    _child(lambda line=line: _serve_gateway(json.loads(line)), keep=held)  # type: ignore[misc]
                os.close(held)
                lines.write(b"%d\n" % running)
                code = _wait(running, alive, theirs)
                os.close(alive)
                if code is None:
                    break
                running = 0
                lines.write(b"%d\n" % code)
    finally:
        for pid in (running, vendor):
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _wait(pid: int, alive: int, theirs: socket.socket) -> int | None:
    """The exit code of a gateway, or None when the other end is gone: nothing else may come from it meanwhile."""
    waited: list[Any] = [alive, theirs]
    readable, _, _ = select.select(waited, [], [])
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if alive in readable else None


def _serve_gateway(wanted: dict[str, Any]) -> None:
    log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if wanted["kill"] is not None:
        name, nth = wanted["kill"]
        failpoints.arm(_killer(name, nth))
    environ: dict[str, str] = wanted["environ"]
    app.serve(settings.parse(wanted["options"], environ), environ)


def _killer(name: str, nth: int) -> Callable[[str], None]:
    left = [nth]

    def hook(reached: str) -> None:
        if reached == name:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook
