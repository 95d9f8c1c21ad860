"""A vendor that means harm, at full strength: the gateway's memory is bounded and it answers its health check.

Every attack of `tests/hostile` on every operation, again and again, 64 clients at once, with pictures of 64 MiB and
bombs among them; before that as long a time of sane traffic by as many. The vendor and the clients are processes of
their own, of low priority. What is judged is the time that a health check took less the time in which the gateway's
event loop or the one who asks stood in the kernel's queue for a processor: on a busy machine that is most of it. Both
are printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import itertools
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Final

import aiohttp

from tests import hostile, hostile_documents, process
from tests.proofs import run

CLIENTS: Final = 64
SANE_S: Final = 45.0
ATTACK_S: Final = 150.0
PICTURE_BYTES: Final = 1_500_000
"""What a picture of one megapixel weighs."""
ASK_EVERY_S: Final = 0.020
RISE_MAX_MIB: Final = 16.0
P99_MAX_S: Final = 0.100
NICE: Final = 10

TRANSPORTS: Final = tuple(hostile.transports(b"{}", ""))
BODIES: Final = tuple(hostile_documents.BODIES)
ATTACKS: Final = (
    *(f"submit {name}" for name in (*TRANSPORTS, *BODIES, *hostile_documents.IDS)),
    *(f"poll {name}" for name in (*TRANSPORTS, *BODIES, *hostile_documents.OUTCOMES)),
    *(f"cancel {name}" for name in (*TRANSPORTS, *BODIES)),
    *(f"media {name}" for name in (*TRANSPORTS, *hostile.media(b"", 0))),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What was seen while one kind of traffic went on."""

    seconds: list[float]
    """How long each GET /healthz took, sorted."""
    own_seconds: list[float]
    """The same without the waits for a processor, sorted."""
    rss_mib: list[float]
    peak_mib: float

    def p99_ms(self) -> float:
        return _at(self.own_seconds, 0.99)

    def told(self) -> str:
        seen = ", ".join(f"{_at(each, 0.5):.0f}/{_at(each, 0.99):.0f}/{_at(each, 1.0):.0f}" for each in self._both())
        return (
            f"healthz p50/p99/max, own and as seen: {seen} ms of {len(self.seconds)}; RSS median "
            f"{statistics.median(self.rss_mib):.1f}, last {self.rss_mib[-1]:.1f}, peak {self.peak_mib:.1f} MiB"
        )

    def _both(self) -> tuple[list[float], list[float]]:
        return self.own_seconds, self.seconds


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000


def prove(directory: pathlib.Path, *, sane_s: float = SANE_S, attack_s: float = ATTACK_S) -> str:
    """Sane traffic, then attacks; what both did to the gateway."""
    with hostile.process(picture_bytes=PICTURE_BYTES, niceness=NICE) as vendor_url:
        limits = "limits: {open_tasks: 100000}\n"
        gateway = process.gateway_before(
            vendor_url, directory, "--mirror-patience", "5s", growth=limits, org="timezone: UTC\n"
        )
        gateway.start()
        try:
            assert gateway.process is not None
            number = gateway.process.pid
            hostile.control(vendor_url, "attack")
            sane = _phase(gateway.url, number, "sane", sane_s)
            sys.stdout.write(f"     sane:   {sane.told()}\n")
            attacked = _phase(gateway.url, number, "attacks", attack_s)
            sys.stdout.write(f"     attack: {attacked.told()}\n")
            counts = hostile.control(vendor_url, "calm")
            audit = gateway.cli("audit")
        finally:
            gateway.end(within_s=60)
    rise_mib = attacked.peak_mib - sane.peak_mib
    asked = sum(counts["asked"].values())
    unasked = [each for each in ATTACKS if each not in counts["asked"] and not each.startswith("submit id")]
    told = (
        f"{asked} hostile answers of {len(counts['asked'])} kinds; RSS rose by {rise_mib:.1f} MiB over the sane peak, "
        f"healthz p99 {attacked.p99_ms():.0f} ms"
    )
    assert counts["strayed"] == [], counts["strayed"][:5]
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert attack_s < ATTACK_S or len(unasked) < len(ATTACKS) // 20, f"never asked for: {unasked}"
    assert rise_mib < RISE_MAX_MIB, told
    assert attacked.p99_ms() < P99_MAX_S * 1000, told
    return told


def _phase(url: str, number: int, kind: str, seconds: float) -> Phase:
    """Let the clients loose for so long, and watch."""
    pathlib.Path(f"/proc/{number}/clear_refs").write_text("5")  # the peak begins anew
    command = ["nice", "-n", str(NICE), sys.executable, "-m", "tests.proofs.hostile", url, kind, str(seconds)]
    load = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        took, own, rss_mib = _watched(int(url.rpartition(":")[2]), number, seconds)
        assert load.wait(120) == 0, "the clients failed"
    finally:
        load.kill()
        load.wait()
    return Phase(seconds=sorted(took), own_seconds=sorted(own), rss_mib=rss_mib, peak_mib=_memory_mib(number, "VmHWM"))


def _watched(port: int, number: int, seconds: float) -> tuple[list[float], list[float], list[float]]:
    """How long each health check took, the same without waits for a processor, and the memory beside every fifth."""
    until = time.monotonic() + seconds
    took: list[float] = []
    own: list[float] = []
    rss_mib: list[float] = []
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        while time.monotonic() < until:
            begun, queued_s = time.perf_counter(), _queued_s(number)
            connection.request("GET", "/healthz")  # on the one connection, which is kept
            answered = connection.getresponse()
            answered.read()
            assert answered.status == 200
            took.append(time.perf_counter() - begun)
            own.append(max(0.0, took[-1] - (_queued_s(number) - queued_s)))
            if len(took) % 5 == 1:
                rss_mib.append(_memory_mib(number, "VmRSS"))
            time.sleep(max(0.0, ASK_EVERY_S - (time.perf_counter() - begun)))
    return took, own, rss_mib


def _queued_s(number: int) -> float:
    """How long the gateway's event loop, its first thread, and this one have been ready to run and did not."""
    places = (f"/proc/{number}/task/{number}/schedstat", "/proc/thread-self/schedstat")
    return sum(int(pathlib.Path(place).read_text().split()[1]) for place in places) / 1e9


def _memory_mib(number: int, name: str) -> float:
    lines = pathlib.Path(f"/proc/{number}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


# The clients, in a process of their own.


async def _clients(url: str, kind: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    turns = itertools.cycle(("sane",) if kind == "sane" else tuple(_shuffled()))
    headers = {"Authorization": f"Bearer {process.KEYS['growth']}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def client() -> None:
            while time.monotonic() < until:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    await _play(session, url, next(turns), until)

        await asyncio.gather(*(client() for _ in range(CLIENTS)))


def _shuffled() -> list[str]:
    """Each attack once, those of one kind far apart, the same in each run."""
    step = 173  # no divisor of their number
    return [ATTACKS[number * step % len(ATTACKS)] for number in range(len(ATTACKS))]


async def _play(session: aiohttp.ClientSession, url: str, prompt: str, until: float) -> None:
    """Submit and look at the task a few times, as a client does."""
    timeout = aiohttp.ClientTimeout(total=40)
    body = {"model": "gemini-2.5-flash-image-preview", "prompt": prompt}
    async with session.post(f"{url}/v1/tasks", json=body, timeout=timeout) as answered:
        shown = await answered.json()
        if answered.status != 200:
            await asyncio.sleep(0.2)
            return
    place = f"{url}/v1/tasks/{shown['task_id']}"
    if prompt.startswith("cancel "):
        async with session.post(f"{place}/cancel", timeout=timeout) as answered:
            await answered.read()
    for _ in range(8):
        if time.monotonic() > until:
            return
        await asyncio.sleep(0.3)
        async with session.get(place, timeout=timeout) as answered:
            if (await answered.json())["status"] in ("completed", "failed", "cancelled"):
                return


if __name__ == "__main__":
    if len(sys.argv) == 1:
        run.alone("hostile", prove)
    os.environ.pop("http_proxy", None)
    asyncio.run(_clients(sys.argv[1], sys.argv[2], float(sys.argv[3])))
