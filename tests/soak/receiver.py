"""Where the soak's clients want to be told of ends: one receiver that takes every webhook, one that is slow, one that
fails a webhook's first attempt in many ways, and one that is gone."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from aiohttp import web

SLOW_S: Final = 0.2
ENDED: Final = ("completed", "failed", "cancelled")


@dataclasses.dataclass(slots=True)
class Heard:
    """What came in for one task."""

    ids: set[str] = dataclasses.field(default_factory=set)
    attempts: int = 0
    taken: int = 0
    """How often it was answered with a 2xx."""


class Receivers:
    """All four, on ports of their own."""

    def __init__(self, *, seed: int) -> None:
        self.urls: dict[str, str] = {}
        self.heard: collections.defaultdict[str, Heard] = collections.defaultdict(Heard)
        self.wrong: list[str] = []
        self._random = random.Random(seed)

    def answers(self) -> dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]:
        """By name, how each answers."""
        return {"good": self._take, "slow": self._take_slowly, "flaky": self._fail_first, "gone": self._be_gone}

    async def _note(self, request: web.Request) -> Heard:
        document = json.loads(await request.read())
        heard = self.heard[document["task_id"]]
        heard.ids.add(request.headers["webhook-id"])
        heard.attempts += 1
        if document["status"] not in ENDED:
            self.wrong.append(f"a webhook says that {document['task_id']} is {document['status']}")
        return heard

    async def _take(self, request: web.Request) -> web.StreamResponse:
        (await self._note(request)).taken += 1
        return web.Response()

    async def _take_slowly(self, request: web.Request) -> web.StreamResponse:
        heard = await self._note(request)
        await asyncio.sleep(SLOW_S)
        heard.taken += 1
        return web.Response(status=204)

    async def _fail_first(self, request: web.Request) -> web.StreamResponse:
        heard = await self._note(request)
        if heard.attempts > 1 or self._random.random() < 0.5:
            heard.taken += 1
            return web.Response(body=b"x" * self._random.choice((0, 100, 200_000)))
        match self._random.choice(("closes", "fails", "redirects")):
            case "closes":
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case "redirects":
                return web.Response(status=302, headers={"Location": "http://127.0.0.1:9/"})
            case _:
                return web.Response(status=500)

    async def _be_gone(self, request: web.Request) -> web.StreamResponse:
        await self._note(request)
        return web.Response(status=410)


@contextlib.asynccontextmanager
async def receiving(*, seed: int) -> AsyncIterator[Receivers]:
    """All receivers, until the block ends."""
    receivers = Receivers(seed=seed)
    async with contextlib.AsyncExitStack() as stack:
        for name, answer in receivers.answers().items():
            application = web.Application(client_max_size=4 * 2**20)
            application.router.add_post("/hook", answer)
            runner = web.AppRunner(application, access_log=None)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            receivers.urls[name] = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        yield receivers
