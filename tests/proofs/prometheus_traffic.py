"""An hour of a busy organisation against a real gateway, in as much time as is given: clients, faults, a SIGKILL.

Clients behave as good ones do: an idempotency key on every submit, repeated until there is an answer. So whatever
happens in between, nothing may be bought twice and nothing may be forgotten.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import datetime
import json
import math
import pathlib
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import aiohttp

from tests import process
from tests.proofs import prometheus_organisation as organisation
from tests.proofs.prometheus_organisation import Then, Visit

ENDED: Final = ("completed", "failed", "cancelled", "success", "error", "canceled")
"""In the words of every generation of the vendor."""
GONE_AFTER_S: Final = 5
BROKEN: Final = "timezone: UTC\nspend: [{name: org-day, cap: 500}]\n"
"""An amount without quotes: refused."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long the traffic goes on, how many visits a second on average, and how much that varies over the time."""

    seconds: float
    per_s: float
    swing: float = 0.5
    poll_every_s: float = 0.8
    gone_s: float = 4
    """How long the killed gateway stays away."""
    task_within_s: float = 240
    open_max: int = 120
    """Visits under way; beyond it none begins, so that a slow machine gets less traffic instead of timeouts."""

    def rate(self, at: float) -> float:
        """Visits a second at a time, as over a day: few at first and in the end, the most in the middle."""
        return self.per_s * (1 - self.swing * math.cos(2 * math.pi * at / self.seconds))

    def visits(self) -> int:
        """About how many there will be."""
        return int(self.seconds * self.per_s)


class Load:
    """The clients of the organisation, and what they were answered."""

    def __init__(self, gateway: process.Gateway, vendor: process.Vendor, pace: Pace, *, seed: int = 1) -> None:
        self.gateway = gateway
        self.vendor = vendor
        self.pace = pace
        self.mixture = organisation.Mixture(seed)
        self.random = random.Random(seed + 1)
        self.open: set[asyncio.Task[None]] = set()
        self.statuses: collections.Counter[str] = collections.Counter()
        self.ends: collections.Counter[str] = collections.Counter()
        self.went_wrong: list[str] = []
        self.restarted_after_s: list[float] = []

    async def run(self) -> None:
        """Send it all, with the faults in between; returns when every task has ended."""
        timeout = aiohttp.ClientTimeout(total=90)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as self.session:
            faults = asyncio.create_task(self._play_faults())
            await self._send()
            await faults
            if self.open:
                await asyncio.wait(self.open, timeout=self.pace.task_within_s)
            assert not self.open, (
                f"{len(self.open)} clients still wait {self.pace.task_within_s:g} s after the last submit"
            )
            await self._drain()
        assert self.went_wrong == [], self.went_wrong[:5]

    async def _send(self) -> None:
        began = time.monotonic()
        next_s = 0.0
        while next_s < self.pace.seconds:
            await asyncio.sleep(began + next_s - time.monotonic())
            if len(self.open) >= self.pace.open_max:
                self.statuses["not sent"] += 1
            else:
                task = asyncio.create_task(self._visit(self.mixture.draw()))
                self.open.add(task)
                task.add_done_callback(self.open.discard)
            next_s += self.random.expovariate(self.pace.rate(next_s))

    async def _drain(self) -> None:
        until = time.monotonic() + self.pace.task_within_s
        while (still := await self._open_tasks()) > 0:
            assert time.monotonic() < until, (
                f"{still} tasks are open {self.pace.task_within_s:g} s after the last client left"
            )
            await asyncio.sleep(0.5)

    async def _open_tasks(self) -> int:
        async with self.session.get(f"{self.gateway.url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith("wave_gateway_tasks_open{"))

    async def _visit(self, visit: Visit) -> None:
        try:
            await asyncio.gather(*(self._client(visit) for _ in range(visit.copies)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the proof names it in the end
            self.went_wrong.append(f"{visit}: {error!r}")

    async def _client(self, visit: Visit) -> None:
        authorization = {"Authorization": f"Bearer {organisation.bearer(visit.team, visit.key)}"}
        if visit.path is not None:
            status, _ = await self._call("GET", visit.path, headers=authorization)
            self.statuses[f"look {status}"] += 1
            return
        once = {"Idempotency-Key": f"{self.random.getrandbits(128):032x}"}
        headers = {**authorization, **once, **visit.headers}
        status, document = await self._call("POST", "/v1/tasks", json=visit.body, headers=headers)
        self.statuses[f"{status} {document.get('error', {}).get('code', '')}".strip()] += 1
        task_id = document.get("task_id")
        if status != 200 or task_id is None or visit.then is Then.LEAVE:
            return
        if visit.then is Then.CANCEL:
            await asyncio.sleep(1)
            await self._call("POST", f"/v1/tasks/{task_id}/cancel", headers=authorization)
        ended = await self._ended(task_id, authorization, is_patient=visit.then is Then.WAIT)
        self.ends[ended["status"]] += 1
        if visit.then is Then.WAIT:
            await self._look_at_pictures(ended)

    async def _ended(self, task_id: str, authorization: dict[str, str], *, is_patient: bool) -> dict[str, Any]:
        headers = {**authorization, "Prefer": "wait=20"} if is_patient else authorization
        until = time.monotonic() + self.pace.task_within_s
        while True:
            status, document = await self._call("GET", f"/v1/tasks/{task_id}", headers=headers)
            assert status == 200, f"a client sees {status} for its own task: {document}"
            if document["status"] in ENDED:
                return document
            assert time.monotonic() < until, f"{task_id} is {document['status']} after {self.pace.task_within_s:g} s"
            await asyncio.sleep(self.pace.poll_every_s)

    async def _look_at_pictures(self, ended: dict[str, Any]) -> None:
        for image in ended.get("result", {}).get("images", []):
            url = image["url"][0] if isinstance(image["url"], list) else image["url"]
            if url.startswith(self.gateway.url):
                status, _ = await self._repeated("GET", url)
                assert status == 200, (status, url)

    async def _call(self, method: str, path: str, **request: Any) -> tuple[int, dict[str, Any]]:
        status, text = await self._repeated(method, self.gateway.url + path, **request)
        return status, json.loads(text)

    async def _repeated(self, method: str, url: str, **request: Any) -> tuple[int, bytes]:
        """One request, repeated while the gateway is not there."""
        until = time.monotonic() + self.pace.task_within_s
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError):
                async with self.session.request(method, url, **request) as answer:
                    return answer.status, await answer.read()
            assert time.monotonic() < until, f"the gateway is not there for {self.pace.task_within_s:g} s"
            await asyncio.sleep(0.3)

    # The faults. Times are shares of the whole.

    async def _play_faults(self) -> None:
        began = time.monotonic()
        for share, fault in self._faults():
            await asyncio.sleep(began + share * self.pace.seconds - time.monotonic())
            await fault()

    def _faults(self) -> Sequence[tuple[float, Callable[[], Awaitable[None]]]]:
        return [
            (0.00, self._says()),
            (0.08, self._says(*TRICKLE)),
            (0.12, self._breaks_policies),
            (0.18, self._mends_policies),
            (0.20, self._says({"on": "any", "times": None, "do": {"drop": True}})),
            (0.27, self._says(*TRICKLE)),
            (0.32, self._says(*MEDIA_DOWN)),
            (0.40, self._says(*TRICKLE)),
            (0.44, self._says(*LOST_ANSWERS)),
            (0.50, self._says(*KEY_REFUSED)),
            (0.56, self._says(*TRICKLE)),
            (0.60, self._kills),
            (0.66, self._says(*SLOW)),
            (0.73, self._says({"on": "any", "times": None, "do": {"status": 503, "message": "down"}})),
            (0.79, self._says(*TRICKLE)),
            (0.86, self._says(*LOST_ANSWERS)),
            (0.92, self._says()),
        ]

    def _says(self, *faults: dict[str, Any]) -> Callable[[], Awaitable[None]]:
        async def say() -> None:
            script = organisation.scripted(*faults, gone_at=int(time.time() + GONE_AFTER_S))
            async with self.session.post(f"{self.vendor.url}/sim/script", json=script) as done:
                assert done.status == 200, await done.text()

        return say

    async def _breaks_policies(self) -> None:
        self._whole = (self.gateway.policies / "org.yaml").read_text()
        (self.gateway.policies / "org.yaml").write_text(BROKEN)

    async def _mends_policies(self) -> None:
        (self.gateway.policies / "org.yaml").write_text(self._whole)

    async def _kills(self) -> None:
        """SIGKILL under load, a while without a gateway, then the same data again."""
        await asyncio.to_thread(self.gateway.end, signal.SIGKILL)
        gone_at = time.monotonic()
        await asyncio.sleep(self.pace.gone_s)
        await asyncio.to_thread(self.gateway.start)
        self.restarted_after_s.append(time.monotonic() - gone_at)


SPOILT: Final = ("html", "html_as_jpeg", "empty", "cut", "wrong_type")
TRICKLE: Final[organisation.Script] = [
    *({"on": "media", "prompt": "[spoilt]", "times": 2, "do": {"media": kind}} for kind in SPOILT),
    {"on": "media", "prompt": "[spoilt]", "times": 2, "do": {"truncate": True}},
    {"on": "media", "prompt": "[spoilt]", "times": 2, "do": {"status": 500}},
    {"on": "submit", "skip": 20, "times": 8, "do": {"status": 429, "code": "rate_limited", "retry_after": 1}},
    {"on": "submit", "skip": 40, "times": 2, "do": {"status": 500, "code": "internal"}},
    {"on": "poll", "skip": 60, "times": 3, "do": {"status": 502}},
    {"on": "poll", "skip": 20, "times": 3, "do": {"garbage": "html"}},
    {"on": "cancel", "skip": 1, "times": 2, "do": {"status": 500}},
]
"""Small trouble as of every day."""
MEDIA_DOWN: Final[organisation.Script] = [
    {"on": "media", "prompt": "[spoilt]", "times": None, "do": {"status": 503}},
    {"on": "media", "times": 30, "do": {"drop": True}},
]
"""Longer than the patience: tasks complete with the vendor's own URL and are mirrored late."""
LOST_ANSWERS: Final[organisation.Script] = [
    {"on": "submit", "skip": 3 * number, "times": 1, "do": {"accept_and_drop": True}} for number in range(8)
]
KEY_REFUSED: Final[organisation.Script] = [
    {"on": "submit", "prompt": "for partner", "times": None, "do": {"status": 401, "code": "invalid_api_key"}}
]
SLOW: Final[organisation.Script] = [
    {"on": "submit", "times": 120, "do": {"delay_s": 6}},
    {"on": "poll", "times": None, "do": {"delay_s": 1.5}},
    {"on": "cancel", "times": None, "do": {"delay_s": 6}},
]


def stopped(gateway: process.Gateway, vendor: process.Vendor) -> None:
    """End both, whichever still runs."""
    for each in (gateway, vendor):
        if each.is_running():
            each.end()


def pair(
    directory: pathlib.Path, pace: Pace, *options: str, today: datetime.date
) -> tuple[process.Gateway, process.Vendor]:
    """The organisation's gateway, which logs to a file in the directory, and its simulator; not started yet."""
    port, vendor_port = process.free_port(), process.free_port()
    vendor = process.Vendor(f"http://127.0.0.1:{vendor_port}", "simulate", "--port", str(vendor_port))
    policies = organisation.write(directory / "policies", visits=pace.visits(), today=today)
    gateway = process.Gateway(
        f"http://127.0.0.1:{port}",
        *("serve", "--listen", f"127.0.0.1:{port}", "--upstream", vendor.url),
        *("--data", str(directory / "data"), "--policies", str(policies)),
        *("--allow-private", "127.0.0.0/8", "--min-free", "0B", "--log-level", "warning", *options),
        environ=organisation.ENVIRON,
    )
    gateway.data, gateway.policies = directory / "data", policies
    gateway.launcher = ("sh", "-c", 'log=$1; shift; exec "$@" 2>>"$log"', "sh", str(directory / "gateway.log"))
    return gateway, vendor
