"""No name that a client makes up becomes a series: the number of series stays what it was."""

from __future__ import annotations

import asyncio
import itertools
import json
import pathlib
import re
from collections.abc import AsyncIterator, Iterator

import pytest
from starlette.types import ASGIApp, Message

from gateway import app, metrics, settings
from gateway.flow import parts, scrape
from gateway.rules import task
from gateway.store import ledger
from gateway.store.database import Tx
from tests import process
from tests import stage as stages

MANY = 10_000
FEW = 500
GROWTH = b"Bearer wgk_growth"


class Client:
    """Asks the app itself, as the server would: sockets would take most of the time."""

    def __init__(self, asked: ASGIApp) -> None:
        self._app = asked

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: bytes) -> tuple[int, bytes]:
        """(status, body)."""
        named = {b"authorization": GROWTH, b"content-type": b"application/json", b"content-length": b"%d" % len(body)}
        named |= {name.replace("_", "-").encode(): value for name, value in headers.items()}
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": list(named.items()),
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 8080),
        }
        answer: list[Message] = []
        received: list[bytes] = []

        async def receive() -> Message:
            if received:
                await asyncio.Event().wait()  # the client stays
            received.append(body)
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            answer.append(message)

        await self._app(scope, receive, send)
        return int(answer[0]["status"]), b"".join(each.get("body", b"") for each in answer[1:])

    async def submit(self, **fields: object) -> int:
        """The status of a submit of the team `growth`."""
        body = {"model": "gemini-2.5-flash-image-preview", "prompt": "a fox"} | fields
        return (await self.ask("POST", "/v1/tasks", json.dumps(body).encode()))[0]

    async def series(self) -> set[str]:
        """Every series that a scrape shows."""
        status, text = await self.ask("GET", "/metrics")
        assert status == 200
        return _series(text)


def _series(text: bytes) -> set[str]:
    return {line.rsplit(" ", 1)[0] for line in text.decode().splitlines() if not line.startswith("#")}


@pytest.fixture
async def client(tmp_path: pathlib.Path) -> AsyncIterator[Client]:
    """A gateway whose upstream is not there; nothing that is made up comes so far."""
    policies = process.write_policies(tmp_path / "policies")
    (tmp_path / "data").mkdir()
    said = {"upstream": "http://127.0.0.1:9", "policies": policies, "data": tmp_path / "data", "min_free": "0B"}
    async with app.running(settings.parse(said, process.ENVIRON), process.ENVIRON) as (served, _):
        yield Client(served)


def _made_up(client: Client, number: int) -> Iterator[tuple[str, str, dict[str, bytes], set[int]]]:
    """(method, path, headers, statuses) of requests with names that nobody else has."""
    name = f"made-up-{number}"
    yield "GET", f"/{name}", {}, {404}
    yield "GET", f"/v1/{name}/{name}", {}, {404}
    yield "GET", f"/v1/tasks/task-wg{number:026d}", {}, {404}
    yield "POST", f"/v1/tasks/{name}/cancel", {}, {404}
    yield "GET", f"/v1/models/{name}", {}, {404}
    yield "GET", f"/v1/tasks?status={name}", {}, {400}
    yield "GET", f"/media/{number:064x}.png", {}, {404}
    yield f"X{number}", "/v1/tasks", {}, {405}
    yield f"X{number}", f"/{name}", {}, {404, 405}
    yield "GET", "/v1/models", {"host": name.encode(), "user_agent": name.encode(), "x_forwarded_for": b"::1"}, {200}
    yield "GET", "/metrics", {"x_real_ip": name.encode()}, {401}


async def test_ten_thousand_made_up_keys_and_models_and_500_of_the_rest_add_no_series(client: Client) -> None:
    async def key(number: int) -> int:
        return (await client.ask("GET", "/v1/models", authorization=f"Bearer wgk_{number}".encode()))[0]

    async def model(number: int) -> int:
        tags = f"made-up-{number}={number}".encode()
        body = json.dumps({"model": f"made-up-{number}", "prompt": "a fox", "action": f"made-up-{number}"}).encode()
        return (await client.ask("POST", "/v1/tasks", body, x_wave_tags=tags, idempotency_key=b"%d" % number))[0]

    async def rest(number: int) -> None:
        for method, path, headers, statuses in _made_up(client, number):
            assert (await client.ask(method, path, **headers))[0] in statuses, (method, path)
        # An action, a resolution and a shape that the model has not: refused before anything is kept.
        assert await client.submit(action=f"made-up-{number}") == 400
        assert await client.submit(resolution=f"made-up-{number}") == 400

    assert (await key(0), await model(0)) == (401, 403)
    await rest(0)
    # The first audit adds two; it offers no event.
    while not any("audit_timestamp" in each for each in await client.series()):  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    before = await client.series()  # which shows the scrape before
    assert {await key(number) for number in range(1, MANY)} == {401}
    assert {await model(number) for number in range(1, MANY)} == {403}
    for number in range(1, FEW):
        await rest(number)
    assert await client.series() == before
    assert len(before) < 1_000


# A team that may ask for models outside the catalogue, and a catalogue that does not say what a model can do

UNLISTED = 'models: {unlisted: {usd: "0.2"}}\n'
UNCHECKED = 'models: {plain: {prices: [{from: 2026-04-01, usd: "0.01"}]}}\n'


async def _scraped(with_parts: parts.Parts, now: float) -> bytes:
    policies = with_parts.in_force.policies
    return await with_parts.database.scan(
        lambda tx: metrics.render(scrape.snapshot(tx, policies, now=now))[0],
    )


async def test_made_up_models_and_actions_of_a_team_that_may_use_them_are_other(tmp_path: pathlib.Path) -> None:
    async with stages.staged(tmp_path, models=UNCHECKED, growth=UNLISTED) as stage:
        for number in range(20):
            await stage.admitted(model=f"made-up-{number}", action=f"act-{number}", prompt=f"a fox {number}")
            await stage.admitted(model="plain", action=f"act-{number}", prompt=f"a fox {number}")
        await stage.admitted(model="plain", action="generate")
        await stage.finish()
        rows = await stage.parts.database.read(lambda tx: tx.all("SELECT DISTINCT model, state FROM tasks"))
        assert len(rows) == 21 and {row["state"] for row in rows} <= {each.value for each in task.ENDED}
        names = _series(await _scraped(stage.parts, stage.clock()))
    assert [each for each in names if "made-up" in each or "act-" in each] == []
    counted = {each for each in names if each.startswith("wave_gateway_tasks_total") and 'team="growth"' in each}
    labels = {
        (model, action)
        for each in counted
        for model, action in itertools.product(
            re.findall(r'model="(other|plain)"', each), re.findall(r'action="([^"]+)"', each)
        )
    }
    assert labels >= {("other", "other"), ("plain", "other"), ("plain", "generate")}


async def test_ten_thousand_models_in_the_ledger_are_one_other_for_each_team_and_tier(tmp_path: pathlib.Path) -> None:
    async with stages.staged(tmp_path) as stage:

        def note(tx: Tx) -> None:
            for number in range(MANY):
                ledger.avoid(tx, team="growth", model=f"made-up-{number}", tier="standard", cache_nanos=1)

        await stage.parts.database.write(note)
        text = await _scraped(stage.parts, stage.clock())
    avoided = [line for line in text.decode().splitlines() if line.startswith("wave_gateway_cost_avoided_usd_total{")]
    assert avoided == [
        'wave_gateway_cost_avoided_usd_total{model="other",reason="cache",team="growth"} 1e-05',
        'wave_gateway_cost_avoided_usd_total{model="other",reason="coalesced",team="growth"} 0.0',
    ]


@pytest.mark.parametrize("status", [302, 418, 451, 499, 507, 599])
async def test_a_status_that_the_vendor_makes_up_is_one_of_its_kind(tmp_path: pathlib.Path, status: int) -> None:
    async with stages.staged(tmp_path) as stage:
        before = _series(metrics.render(_nothing())[0])
        await stage.admitted()
        stage.vendor.set_script([{"on": "poll", "times": 1, "do": {"status": status}}])
        await stage.run(5)
        await stage.finish()
        new = _series(metrics.render(_nothing())[0]) - before
    assert not [each for each in new if f'"{status}"' in each]
    assert not [each for each in new if each.startswith("wave_gateway_upstream_requests_total")]


def _nothing() -> metrics.Snapshot:
    return metrics.Snapshot(
        spend=(),
        caps=(),
        open_tasks={},
        in_doubt=0,
        overdue=0,
        at_risk_urls=0,
        blobs=0,
        blob_bytes=0,
        webhooks_pending=0,
    )
