"""What goes wrong around a gateway in a soak: the vendor's faults, policy files that change, commands beside it."""

from __future__ import annotations

import asyncio
import collections
import itertools
import random
import sys
from collections.abc import Sequence
from typing import Any, Final

import aiohttp

from tests import process
from tests.soak import organisation

Script = list[dict[str, Any]]

EVERY_S: Final = 5.0
PERIOD_S: Final = 120.0
"""After this long the same trouble comes again."""
OUTAGE_S: Final = (60.0, 66.0)
"""Within a period: the vendor drops every connection."""
UNAVAILABLE_S: Final = (90.0, 95.0)
"""It answers nothing but 503."""
KEY_REFUSED_S: Final = (20.0, 35.0)
RELOAD_EVERY_S: Final = 20.0
BROKEN_S: Final = (75.0, 82.0)
COMMAND_EVERY_S: Final = 45.0

BLOCKED: Final = {"message": "The picture was blocked.", "code": "content_policy_violation"}
REFUSED: Final = {"on": "submit", "prompt": "[refused]", "times": None, "do": {"status": 400, **BLOCKED}}
"""Before every fault: what is refused now may not be accepted in a lost answer."""
# No task of the early generation: it names no cost, so the ledger may be off the bill by less than a quota an image.
LASTING: Final[Script] = [
    {"on": "submit", "prompt": "[fails]", "times": None, "do": {"outcome": "failed", "error": BLOCKED}},
    {"on": "submit", "prompt": "[partial]", "times": None, "do": {"deliver": 1, "queue_s": 0.1, "work_s": 0.4}},
    {"on": "submit", "prompt": "[later]", "times": None, "do": {"generation": "later", "queue_s": 0.1, "work_s": 0.4}},
    {"on": "submit", "prompt": "[long]", "times": None, "do": {"queue_s": 2, "work_s": 3}},
    {"on": "submit", "times": None, "do": {"queue_s": 0.1, "work_s": 0.4}},
]
SPOILT: Final = ("html", "html_as_jpeg", "empty", "cut", "wrong_type", "png", "gzip_bomb")
TROUBLE: Final[Sequence[dict[str, Any]]] = (
    {"on": "submit", "do": {"accept_and_drop": True}},
    {"on": "submit", "do": {"drop": True}},
    {"on": "submit", "do": {"status": 429, "code": "rate_limited", "retry_after": 1}},
    {"on": "submit", "do": {"status": 500, "code": "internal"}},
    {"on": "submit", "do": {"accept_and_hang_s": 1.5}},
    {"on": "submit", "do": {"garbage": "html"}},
    {"on": "poll", "do": {"delay_s": 2}},
    {"on": "poll", "do": {"status": 502}},
    {"on": "poll", "do": {"garbage": True}},
    {"on": "poll", "do": {"drop": True}},
    {"on": "media", "do": {"truncate": True}},
    {"on": "media", "do": {"status": 500}},
    {"on": "media", "do": {"delay_s": 2}},
    {"on": "cancel", "do": {"status": 500}},
    *({"on": "media", "do": {"media": kind}} for kind in SPOILT),
)
"""One each, at a moment of its own, in every few seconds."""


def script(at_s: float, luck: random.Random) -> Script:
    """What the vendor does at a time since the beginning."""
    phase = at_s % PERIOD_S
    if OUTAGE_S[0] <= phase < OUTAGE_S[1]:
        return [{"on": "any", "times": None, "do": {"drop": True}}]
    if UNAVAILABLE_S[0] <= phase < UNAVAILABLE_S[1]:
        return [{"on": "any", "times": None, "do": {"status": 503, "message": "down"}}]
    trouble = [{**each, "skip": luck.randrange(30), "times": 1} for each in TROUBLE]
    refused = {"on": "submit", "prompt": "for patient", "times": None, "do": {"status": 401, "code": "invalid_api_key"}}
    key = [refused] if KEY_REFUSED_S[0] <= phase < KEY_REFUSED_S[1] else []
    return [REFUSED, *key, *trouble, *LASTING]


class Weather:
    """All trouble around one gateway."""

    def __init__(self, gateway: process.Gateway, vendor: process.Vendor, *, seed: int) -> None:
        self.gateway = gateway
        self.vendor = vendor
        self.wrong: list[str] = []
        self.done: collections.Counter[str] = collections.Counter()
        """What happened, and how often."""
        self._random = random.Random(seed)

    async def play(self, session: aiohttp.ClientSession) -> None:
        """Play it all, until cancelled."""
        await asyncio.gather(self._play_vendor(session), self._change_policies(), self._run_commands())

    async def clear(self, session: aiohttp.ClientSession) -> None:
        """The vendor works, and the policies are whole."""
        await self._say(session, [REFUSED, *LASTING])
        organisation.write(self.gateway.policies)

    async def _play_vendor(self, session: aiohttp.ClientSession) -> None:
        began = asyncio.get_running_loop().time()
        for number in itertools.count():
            await asyncio.sleep(began + number * EVERY_S - asyncio.get_running_loop().time())
            wanted = script(number * EVERY_S, self._random)
            self.done["an outage of the vendor, 5 s of it"] += wanted[0]["on"] == "any"
            self.done["a refused upstream key, 5 s of it"] += wanted[1:2] != [] and "for patient" in str(wanted[1])
            await self._say(session, wanted)

    async def _say(self, session: aiohttp.ClientSession, wanted: Script) -> None:
        async with session.post(f"{self.vendor.url}/sim/script", json=wanted) as answer:
            assert answer.status == 200, await answer.text()

    async def _change_policies(self) -> None:
        for number in itertools.count(1):
            await asyncio.sleep(RELOAD_EVERY_S)
            phase = number * RELOAD_EVERY_S % PERIOD_S
            if phase <= BROKEN_S[0] < phase + RELOAD_EVERY_S:
                (self.gateway.policies / "org.yaml").write_text(organisation.BROKEN)
                await asyncio.sleep(BROKEN_S[1] - BROKEN_S[0])
                (self.gateway.policies / "org.yaml").write_text(organisation.ORGANISATION)
                self.done["broken policies"] += 1
            organisation.write_team(self.gateway.policies, "research", change=number)
            self.done["a policy reload"] += 1

    async def _run_commands(self) -> None:
        commands = itertools.cycle((("report", "--by", "team,model", "--format", "json"), ("audit",)))
        while True:
            await self.command(*next(commands))
            await asyncio.sleep(COMMAND_EVERY_S)

    async def command(self, *arguments: str) -> str:
        """Run a command beside the gateway, which must exit with 0; what it printed."""
        places = ("--data", str(self.gateway.data), "--policies", str(self.gateway.policies))
        running = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", *arguments, *places),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            printed, complained = await running.communicate()
        except asyncio.CancelledError:
            running.kill()
            await running.wait()
            raise
        self.done[f"wave-gateway {arguments[0]}"] += 1
        if running.returncode != 0:
            self.wrong.append(f"{' '.join(arguments)} exits with {running.returncode}: {printed!r} {complained!r}")
        return printed.decode()
