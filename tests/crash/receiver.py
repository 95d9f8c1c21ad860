"""Where the clients of a life want to be told of an end: it takes each webhook and keeps what it was told."""

from __future__ import annotations

import collections
import contextlib
import json
from collections.abc import AsyncIterator, Iterable

from aiohttp import web

from gateway.rules import task
from gateway.store import tasks
from gateway.store.database import Tx
from tests.crash import clients


class Receiver:
    """One receiver, on a port of its own."""

    def __init__(self) -> None:
        self.url = ""
        self.heard: dict[str, set[str]] = collections.defaultdict(set)
        """Task id -> the `webhook-id`s that it came under."""
        self.findings: list[str] = []

    async def take(self, request: web.Request) -> web.Response:
        document = json.loads(await request.read())
        self.heard[document["task_id"]].add(request.headers["webhook-id"])
        if document["status"] not in clients.ENDED:
            self.findings.append(f"task {document['task_id']}: a webhook says {document['status']}")
        return web.Response()

    def compare(self, tx: Tx, told: Iterable[clients.Told]) -> list[str]:
        """Ends that a client was promised to hear of and did not, or under two ids."""
        findings = [f"task {task_id}: webhooks {ids}" for task_id, ids in self.heard.items() if len(ids) > 1]
        for task_id in {each.task_id for each in told if each.task_id is not None}:
            row = tasks.get(tx, task_id)
            if row is not None and row.state in task.ENDED and task_id not in self.heard:
                findings.append(f"task {task_id} is {row.state}, and no webhook told of it")
        return findings + self.findings


@contextlib.asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver that listens until the block ends."""
    receiver = Receiver()
    application = web.Application()
    application.router.add_post("/hook", receiver.take)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()
