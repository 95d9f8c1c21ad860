"""In a network of its own, where every address is this machine, no URL of the corpus reaches a forbidden one.

Linux, as root or where users may make namespaces; needs `ip` (iproute2), `unshare` and `mount`. The namespace has a
loopback interface only, so that no packet can leave it; a route makes every address there is, public ones too, end at
canaries that keep what address was called. A name server in it gives names several addresses, or changes its mind
between two questions. A client without a guard is the control: what it reaches, the guard has something to refuse.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import ipaddress
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from gateway.outbound import address, download
from tests.outbound import corpus
from tests.proofs import run

PORTS: Final = (22, 80, 443, 6379, 8443)
REBIND: Final = ("8.8.8.8", "127.0.0.1", "8.8.8.8", "169.254.169.254", "10.0.0.5")
ROUNDS: Final = 10
WITHIN_S: Final = 120


def prove(directory: pathlib.Path) -> str:
    """Run the inside in a namespace; raises AssertionError with what it said where it does not hold."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = [
        "unshare",
        *user,
        "--net",
        "--mount",
        sys.executable,
        "-m",
        "tests.proofs.ssrf",
        "inside",
        str(directory),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    except FileNotFoundError:
        raise AssertionError("there is no unshare; this proof needs Linux") from None
    assert done.returncode == 0, done.stderr or done.stdout
    said = json.loads(done.stdout)
    return (
        "{refused} URLs and {names} names refused, {tried} tried, {reached} connections, all to permitted addresses; "
        "without the guard {control} of the URLs reach a forbidden one".format(**said)
    )


def inside(directory: pathlib.Path) -> dict[str, int]:
    """The proof itself, in the namespace."""
    names = {f"answer-{number}.example": answers for number, answers in enumerate(corpus.ANSWERS)}
    _make_a_world(directory)
    with contextlib.ExitStack() as stack:
        canaries = stack.enter_context(Canaries().listening())
        stack.enter_context(NameServer({**names, "media.example": ("8.8.8.8",)}).serving())
        control = _unguarded(canaries)
        assert control >= 100, f"only {control} URLs reach a canary without the guard: this shows nothing"
        before = _connects()
        reached = asyncio.run(_fetch_all(list(corpus.REFUSED.values())))
        assert (_connects() - before, canaries.called, reached) == (0, [], 0), canaries.called
        refused_names = asyncio.run(_names(names, canaries))
        tried = asyncio.run(_tried(canaries))
        asyncio.run(_rebinding(canaries))
        forbidden = [each for each in canaries.all_called if address.check(each, allowed=()) is not None]
        assert forbidden == [], forbidden
        assert _connects() - before == len(canaries.all_called), "a connection went where no canary sits"
        counts = {"refused": len(corpus.REFUSED), "names": refused_names, "tried": tried}
        return counts | {"reached": len(canaries.all_called), "control": control}


class Canaries:
    """Listeners for every address: which one was called is seen from the connection."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.all_called: list[str] = []
        """Of the guarded client; what the control reached is dropped."""

    @contextlib.contextmanager
    def listening(self) -> Iterator[Canaries]:
        listeners = [socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) for port in PORTS]
        for each in listeners:
            threading.Thread(target=self._accept, args=(each,), daemon=True).start()
        yield self

    def take(self) -> list[str]:
        """The addresses that were called since the last time."""
        found, self.called = self.called, []
        return found

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                called = ipaddress.IPv6Address(connection.getsockname()[0].partition("%")[0])
                self.called.append(str(called.ipv4_mapped or called))


class NameServer:
    """Answers A and AAAA questions; `rebind.example` says another address each time, with nothing to keep it."""

    def __init__(self, names: Mapping[str, Sequence[str]]) -> None:
        self._names = names
        self._rebound = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))

    @contextlib.contextmanager
    def serving(self) -> Iterator[NameServer]:
        threading.Thread(target=self._serve, daemon=True).start()
        yield self

    def _serve(self) -> None:
        while True:
            question, peer = self._socket.recvfrom(2048)
            self._socket.sendto(self._answer(question), peer)

    def _answer(self, question: bytes) -> bytes:
        """Source: RFC 1035 section 4.1; one question, no compression but the pointer to it."""
        labels, at = [], 12
        while size := question[at]:
            labels.append(question[at + 1 : at + 1 + size].decode().lower())
            at += 1 + size
        [kind] = struct.unpack(">H", question[at + 1 : at + 3])
        version = {1: 4, 28: 6}.get(kind)
        addresses = [ipaddress.ip_address(each) for each in self._addresses(".".join(labels), version)]
        found = [each for each in addresses if each.version == version]
        records = [struct.pack(">HHHIH", 0xC00C, kind, 1, 0, len(each.packed)) + each.packed for each in found]
        flags = 0x8180 if addresses else 0x8183
        return (
            question[:2] + struct.pack(">HHHHH", flags, 1, len(found), 0, 0) + question[12 : at + 5] + b"".join(records)
        )

    def _addresses(self, name: str, version: int | None) -> Sequence[str]:
        if name != "rebind.example":
            return self._names.get(name, ())
        if version == 4:
            self._rebound += 1
        return (REBIND[(self._rebound - 1) % len(REBIND)],)


def _make_a_world(directory: pathlib.Path) -> None:
    """Loopback only, every address on it, and our own name server."""
    (directory / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    (directory / "nsswitch.conf").write_text("hosts: files dns\n")
    (directory / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    for command in (
        "ip link set lo up",
        "ip route add local 0.0.0.0/0 dev lo",
        "ip -6 route add local ::/0 dev lo",
        *(f"mount --bind {directory / name} {path}" for name, path in _files()),
    ):
        done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"


def _files() -> Iterator[tuple[str, pathlib.Path]]:
    for name in ("resolv.conf", "nsswitch.conf", "hosts"):
        path = (pathlib.Path("/etc") / name).resolve()
        if path.exists():
            yield name, path


def _connects() -> int:
    """How many TCP connections this network has seen begun, to any address and port: the kernel's own count."""
    names, values = [line.split() for line in pathlib.Path("/proc/net/snmp").read_text().splitlines() if "Tcp:" in line]
    return int(values[names.index("ActiveOpens")])


def _unguarded(canaries: Canaries) -> int:
    """How many URLs of the corpus reach a forbidden address by way of a plain client."""
    reached = 0
    for url in corpus.REFUSED.values():
        with contextlib.suppress(OSError, ValueError):
            split = urllib.parse.urlsplit(url)
            host = urllib.parse.unquote(split.hostname or "")
            with socket.create_connection((host, split.port or 443), timeout=2) as connection:
                connection.recv(1)
                called = str(connection.getpeername()[0]).partition("%")[0]
                reached += address.check(called, allowed=()) is not None
    canaries.take()
    return reached


async def _fetch_all(urls: Sequence[str]) -> int:
    """How many of these were fetched."""
    fetched = 0
    for allowed in ((), (ipaddress.ip_network("172.20.0.0/16"),)):
        downloader = download.Downloader(allowed=allowed)
        try:
            for url in urls:
                outcome = await downloader.fetch(url, sink=io.BytesIO(), deadline_s=10)
                fetched += isinstance(outcome, download.Fetched)
        finally:
            await downloader.aclose()
    return fetched


async def _names(names: Mapping[str, Sequence[str]], canaries: Canaries) -> int:
    """Each name is reached at one of its addresses if all are permitted, else nowhere; returns how many were not."""
    refused = 0
    for name, addresses in names.items():
        await _fetch_all([f"https://{name}/a.jpg"])
        called = set(_kept(canaries))
        plain = {str(_plain(each)) for each in addresses}
        if corpus.ANSWERS[tuple(addresses)]:
            assert called and called <= plain, (name, addresses, called)
        else:
            refused += 1
            assert called == set(), (name, addresses, called)
    return refused


def _plain(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(text)
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


async def _tried(canaries: Canaries) -> int:
    await _fetch_all(corpus.TRIED)
    assert "8.8.8.8" in _kept(canaries)
    return len(corpus.TRIED)


async def _rebinding(canaries: Canaries) -> None:
    """A name whose address changes with every question is reached at the permitted one only."""
    for _ in range(ROUNDS):
        await _fetch_all(["https://rebind.example/a.jpg"])
    called = _kept(canaries)
    assert set(called) == {"8.8.8.8"}, called
    assert 0 < len(called) < 2 * ROUNDS, called


def _kept(canaries: Canaries) -> list[str]:
    found = canaries.take()
    canaries.all_called += found
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        sys.stdout.write(json.dumps(inside(pathlib.Path(sys.argv[2]))))
    else:
        with tempfile.TemporaryDirectory() as place:
            run.alone("ssrf", lambda _: prove(pathlib.Path(place)))
