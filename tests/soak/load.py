"""The clients of the soak: requests of many kinds at a fixed rate, whether or not the answers come, each one judged.

What a request is about is drawn from what earlier ones left behind: tasks to poll, pictures to look at, submits to
repeat. Latencies count from the instant at which a request was to leave, so that a gateway that stalls is not spared.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import json
import random
import urllib.parse
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Final

import aiohttp

from tests.soak import organisation

FLASH: Final = "gemini-2.5-flash-image-preview"
GROUNDED: Final = "gemini-3.1-flash-image-preview"
OF_THE_VENDOR: Final = ("content_policy_violation", "task_not_cancellable")
"""Codes of its refusals, which come through as they are."""
ENDED: Final = ("completed", "failed", "cancelled")
MARKS: Final = ("", "", "", "", "", "", "", "", "[fails]", "[partial]", "[later]", "[later]", "[long]", "[refused]")
HOOKS: Final = ("good", "good", "slow", "flaky", "gone")
RIGHT_NOW: Final = 0.5
"""Seconds after which a client that hangs up has gone."""
WAITING: Final = ("submit", "submit seeded", "submit twins", "repeat", "long poll", "cancel", "hang up")
"""Kinds that wait for the vendor or for time to pass: how long they take says nothing about the gateway."""
MOST_OPEN: Final = 200
"""Visits under way: beyond it none begins, so that a machine that is too slow gets less load instead of timeouts."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def document(self) -> Any:
        """The body, which must be JSON."""
        return json.loads(self.body)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A submit that was admitted, so that it can be repeated, polled and cancelled."""

    team: str
    task_id: str
    key: str
    body: Mapping[str, Any]


class Unexpected(Exception):
    """An answer that this request may not get."""


Visit = Callable[[], Awaitable[None]]


class Load:
    """All clients; `answered` counts requests that had their answer, or whose client left."""

    def __init__(self, url: str, hooks: Sequence[str], *, seed: int) -> None:
        self.url = url
        self.answered = 0
        self.held_back = 0
        """Visits that did not begin, because too many were under way."""
        self.statuses: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.latencies: list[tuple[float, float]] = []
        """(when it was to leave, how long until its answer was whole), in seconds of the loop; without the waits."""
        self.promised: set[str] = set()
        """Tasks of which a client was told by an answer."""
        self._hooks = hooks
        self._random = random.Random(seed)
        self._under_way: set[asyncio.Task[None]] = set()
        self._open: collections.deque[Sent] = collections.deque(maxlen=300)
        self._ended: collections.deque[Sent] = collections.deque(maxlen=1_000)
        self._pictures: collections.deque[str] = collections.deque(maxlen=500)
        self._seeded: collections.deque[dict[str, Any]] = collections.deque(maxlen=60)
        self._number = 0
        self._kinds = self._table()

    async def fill(self, session: aiohttp.ClientSession, bodies: Sequence[Mapping[str, Any]], *, at_once: int) -> None:
        """Ask for kept results under keys of the result cache; none is, so nothing is stored."""
        self._session = session
        gate = asyncio.Semaphore(at_once)
        only = {"X-Wave-Cache": "only-if-cached"}

        async def one(body: Mapping[str, Any]) -> None:
            async with gate:
                await self._ask("fill", "POST", "/v1/tasks", expect=(504,), json=body, headers=only)

        await asyncio.gather(*(one(body) for body in bodies))

    def _table(self) -> Sequence[tuple[int, str, Visit]]:
        """How often of all, and what."""
        return (
            (9, "submit", self._submit),
            (9, "submit seeded", self._submit_seeded),
            (1, "submit twins", self._submit_twins),
            (4, "repeat", self._repeat),
            (1, "repeat otherwise", self._repeat_otherwise),
            (30, "poll", self._poll),
            (4, "long poll", self._poll_long),
            (3, "list", self._list),
            (9, "picture", self._look),
            (4, "part of a picture", self._look_at_part),
            (2, "cancel", self._cancel),
            (4, "dry run", self._dry_run),
            (6, "denied", self._deny),
            (4, "malformed", self._malformed),
            (3, "stranger", self._stranger),
            (4, "account", self._account),
            (3, "hang up", self._hang_up),
            (1, "health", self._health),
        )

    async def run(self, session: aiohttp.ClientSession, *, seconds: float, per_s: float) -> None:
        """Begin so many visits a second, then wait for those under way."""
        self._session = session
        loop = asyncio.get_running_loop()
        began = loop.time()
        weights = [weight for weight, _, _ in self._kinds]
        for number in range(int(seconds * per_s)):
            leaves_at = began + number / per_s
            if (early_s := leaves_at - loop.time()) > 0:
                await asyncio.sleep(early_s)
            if len(self._under_way) >= MOST_OPEN:
                self.held_back += 1
                await asyncio.sleep(0)
                continue
            _, name, visit = self._random.choices(self._kinds, weights)[0]
            task = asyncio.create_task(self._judged(name, visit, leaves_at))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            if number % 50 == 0:
                await asyncio.sleep(0)  # a load that is behind still lets the answers in
        while self._under_way:
            await asyncio.wait(self._under_way)

    async def _judged(self, name: str, visit: Visit, leaves_at: float) -> None:
        try:
            await visit()
        except Exception as error:  # noqa: BLE001 - whatever it is, the soak names it in the end
            self.wrong.append(f"{name}: {error!r}")
        if name not in WAITING:
            self.latencies.append((leaves_at, asyncio.get_running_loop().time() - leaves_at))

    async def _ask(
        self, kind: str, method: str, path: str, *, team: str = "growth", expect: Collection[int], **more: Any
    ) -> Answer:
        """One request; raises Unexpected for a status that it may not have."""
        headers = {"Authorization": f"Bearer {organisation.bearer(team)}", **more.pop("headers", {})}
        url = path if path.startswith("http") else self.url + path
        async with self._session.request(method, url, headers=headers, **more) as answer:
            answered = Answer(status=answer.status, headers=answer.headers, body=await answer.read())
        self.answered += 1
        code = ""
        if answered.status >= 400 and method != "HEAD":
            error = answered.document()["error"]
            code = f" {error['code']}"
            if not error["message"] or ("request_id" not in error and error["code"] not in OF_THE_VENDOR):
                raise Unexpected(f"an error without message or request id: {answered.body!r}")
        self.statuses[f"{kind}: {answered.status}{code}"] += 1
        if answered.status not in expect:
            raise Unexpected(f"{team} got {answered.status} for {method} {path}: {answered.body[:300]!r}")
        if not answered.headers.get("X-Wave-Request-Id", "").startswith("req-"):
            raise Unexpected(f"{method} {path}: no request id")
        return answered

    async def _task(self, kind: str, body: Mapping[str, Any], *, team: str, key: str) -> Answer:
        """One submit; what it leaves behind is remembered."""
        expect = [200, *([400] if "[refused]" in body["prompt"] else []), *([503] if team == "hasty" else [])]
        named = {"Idempotency-Key": key}
        answer = await self._ask(kind, "POST", "/v1/tasks", team=team, expect=expect, json=body, headers=named)
        if answer.status == 200:
            document = answer.document()
            sent = Sent(team=team, task_id=document["task_id"], key=key, body=body)
            self.promised.add(sent.task_id)
            self._see(sent, document)
        return answer

    def _see(self, sent: Sent, document: Any) -> None:
        """Learn from a task's document; raises Unexpected where it makes no sense."""
        if document["task_id"] != sent.task_id or document["model"] == "" or "progress" not in document:
            raise Unexpected(f"not the task that was asked for: {document}")
        if document["status"] not in ENDED:
            self._open.append(sent)
            return
        self._ended.append(sent)
        if document["status"] == "completed":
            for image in document["result"]["images"]:
                url = image["url"][0] if isinstance(image["url"], list) else image["url"]
                if url.startswith(self.url):  # else not mirrored within the patience
                    self._pictures.append(url)

    def _fresh(self, team: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        mark = self._random.choice(MARKS)
        body = {"model": FLASH, "prompt": f"a fox {self._number} {mark} for {team}", **fields}
        if mark == "[partial]":
            body["n"] = 2
        if self._random.random() < 0.5:
            body["callback_url"] = self._random.choice(self._hooks)
        return body

    def _new_key(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    # The kinds of requests.

    async def _submit(self) -> None:
        if self._random.random() < 0.1:
            body, tags = self._fresh("growth"), {"X-Wave-Tags": "app=soak,run=1"}
            await self._ask("submit without key", "POST", "/v1/tasks", expect=(200, 400), json=body, headers=tags)
            return
        team = self._random.choice(organisation.PAYING)
        await self._task("submit", self._fresh(team), team=team, key=self._new_key())

    async def _submit_seeded(self) -> None:
        """Mostly what was asked for before; a new picture is a paid one."""
        if not self._seeded or self._random.random() < 0.1:
            body = self._fresh("growth", seed=self._random.randrange(10**6))
            body["prompt"] = f"a seeded fox {self._number}"
            body.pop("n", None)
            self._seeded.append(body)
        await self._task("seeded", self._random.choice(self._seeded), team="growth", key=self._new_key())

    async def _submit_twins(self) -> None:
        """Two at once that share one upstream task, of two teams that share results."""
        self._number += 1
        body = {"model": FLASH, "prompt": f"twin foxes {self._number}", "seed": 7}
        await asyncio.gather(
            *(self._task("twins", body, team="research", key=self._new_key()) for _ in range(2)),
        )

    async def _repeat(self) -> None:
        sent = self._one_of(self._open, self._ended)
        if sent is not None:
            answer = await self._task("repeat", sent.body, team=sent.team, key=sent.key)
            if answer.status == 200 and answer.document()["task_id"] != sent.task_id:
                raise Unexpected(f"a repeat of {sent.task_id} is another task: {answer.body!r}")

    async def _repeat_otherwise(self) -> None:
        sent = self._one_of(self._open, self._ended)
        if sent is not None:
            body = {**sent.body, "prompt": "another fox"}
            await self._ask(
                "repeat otherwise",
                *("POST", "/v1/tasks"),
                team=sent.team,
                expect=(422,),
                json=body,
                headers={"Idempotency-Key": sent.key},
            )

    async def _poll(self) -> None:
        sent = self._one_of(self._open, self._ended)
        if sent is not None:
            answer = await self._ask("poll", "GET", f"/v1/tasks/{sent.task_id}", team=sent.team, expect=(200,))
            self._see(sent, answer.document())
            if self._random.random() < 0.2 and answer.document()["status"] in ENDED:
                tag = {"If-None-Match": answer.headers["ETag"]}
                path = f"/v1/tasks/{sent.task_id}"
                # A picture that is mirrored late changes the task once more.
                await self._ask("poll known", "GET", path, team=sent.team, expect=(200, 304), headers=tag)

    async def _poll_long(self) -> None:
        sent = self._one_of(self._open)
        if sent is not None:
            prefer = {"Prefer": f"wait={self._random.choice((1, 2, 5, 20))}"}
            path = f"/v1/tasks/{sent.task_id}"
            answer = await self._ask("long poll", "GET", path, team=sent.team, expect=(200,), headers=prefer)
            self._see(sent, answer.document())

    async def _list(self) -> None:
        path = f"/v1/tasks?limit={self._random.choice((1, 5, 20))}"
        page = (await self._ask("list", "GET", path, team="research", expect=(200,))).document()
        if page["has_more"]:
            more = f"/v1/tasks?limit=5&before={urllib.parse.quote(page['next_before'])}&status=completed"
            await self._ask("list", "GET", more, team="research", expect=(200,))

    async def _look(self) -> None:
        if self._pictures:
            url = self._random.choice(self._pictures)
            answer = await self._ask("picture", "GET", url, expect=(200,))
            if hashlib.sha256(answer.body).hexdigest() not in url:
                raise Unexpected(f"{url} is another picture")

    async def _look_at_part(self) -> None:
        if not self._pictures:
            return
        url = self._random.choice(self._pictures)
        match self._random.randrange(4):
            case 0:
                answer = await self._ask("part", "GET", url, expect=(206,), headers={"Range": "bytes=100-199"})
                if len(answer.body) != 100:
                    raise Unexpected(f"{url}: {len(answer.body)} bytes of 100")
            case 1:
                await self._ask("part", "GET", url, expect=(416,), headers={"Range": "bytes=99999999-"})
            case 2:
                answer = await self._ask("part", "HEAD", url, expect=(200,))
                known = {"If-None-Match": answer.headers["ETag"]}
                await self._ask("part", "GET", url, expect=(304,), headers=known)
            case _:
                await self._ask("part", "GET", f"{self.url}/media/{'0' * 64}.jpg", expect=(404,))

    async def _cancel(self) -> None:
        sent = self._one_of(self._open)
        if sent is not None:
            path = f"/v1/tasks/{sent.task_id}/cancel"
            await self._ask("cancel", "POST", path, team=sent.team, expect=(200, 400, 502, 503, 504))

    async def _dry_run(self) -> None:
        body = {"model": GROUNDED, "prompt": "a fox", "official_fallback": True, "seed": self._random.randrange(99)}
        dry = {"X-Wave-Dry-Run": "true"}
        answer = await self._ask("dry run", "POST", "/v1/tasks", expect=(200,), json=body, headers=dry)
        if answer.document()["decision"] != "allow":
            raise Unexpected(f"a dry run says {answer.body!r}")

    async def _deny(self) -> None:
        plain = {"model": FLASH, "prompt": "a fox"}
        one: Sequence[tuple[str, int, dict[str, Any], dict[str, str]]] = (
            ("growth", 403, {"model": "gemini-3-pro-image-preview-official"}, {}),
            ("growth", 403, {"official_fallback": True}, {}),
            ("growth", 403, {"n": 9}, {}),
            ("growth", 403, {"action": "reference", "image_urls": ["https://example.com/a.jpg"]}, {}),
            ("growth", 400, {"resolution": "4K"}, {}),
            ("growth", 400, {"callback_url": "http://169.254.169.254/latest"}, {}),
            ("growth", 403, {}, {"X-Wave-Max-Cost-Usd": "0.001"}),
            ("growth", 504, {"seed": 10**9 + self._random.randrange(10**6)}, {"X-Wave-Cache": "only-if-cached"}),
            ("growth", 403, {"model": f"model-{self._random.getrandbits(40)}"}, {}),
            ("spent", 402, {}, {}),
            ("full", 429, {}, {}),
        )
        team, status, fields, headers = self._random.choice(one)
        await self._ask(
            "denied", "POST", "/v1/tasks", team=team, expect=(status,), json={**plain, **fields}, headers=headers
        )
        await self._ask("hurried", "POST", "/v1/tasks", team="hurried", expect=(200, 429), json=plain)

    async def _malformed(self) -> None:
        bodies: Sequence[tuple[int, bytes, Mapping[str, str]]] = (
            (400, b'{"model": "m", "prompt":', {}),
            (400, b'{"model": "m", "prompt": "a", "prompt": "b"}', {}),
            (400, b'{"model": "m", "prompt": "a", "n": 1e400}', {}),
            (400, b'{"model": "m", "prompt": "a", "seed": 9223372036854775808}', {}),
            (400, b"[" * 10_000, {}),
            (400, b"\xff\xfe{\x00", {}),
            (415, b"model=m", {"Content-Type": "application/x-www-form-urlencoded"}),
            (400, b"", {}),
        )
        status, body, headers = self._random.choice(bodies)
        named = {"Content-Type": "application/json", **headers}
        await self._ask("malformed", "POST", "/v1/tasks", expect=(status,), data=body, headers=named)

    async def _stranger(self) -> None:
        asked: Sequence[tuple[int, str, str, Mapping[str, str]]] = (
            (401, "GET", "/v1/tasks/x", {"Authorization": f"Bearer wgk_{self._random.getrandbits(64)}"}),
            (401, "POST", "/v1/tasks", {"Authorization": f"Bearer {organisation.bearer('growth', 'old')}"}),
            (403, "POST", "/v1/tasks", {"Authorization": f"Bearer {organisation.bearer('growth', 'dashboard')}"}),
            (404, "GET", f"/v1/tasks/task-wg{self._random.getrandbits(64)}", {}),
            (404, "GET", f"/v1/chat/{self._random.getrandbits(64)}", {}),
            (405, "DELETE", "/v1/tasks", {}),
            (431, "GET", "/v1/models", {"X-Long": "x" * 10_000}),
        )
        status, method, path, headers = self._random.choice(asked)
        await self._ask("stranger", method, path, expect=(status,), headers=headers)
        sent = self._one_of(self._open, self._ended)
        if sent is not None and sent.team != "spent":
            await self._ask("stranger", "GET", f"/v1/tasks/{sent.task_id}", team="spent", expect=(404,))

    async def _account(self) -> None:
        path = self._random.choice(
            ("models", "models/" + FLASH, "dashboard/billing/balance", "dashboard/billing/usage")
        )
        await self._ask("account", "GET", f"/v1/{path}", team="research", expect=(200,))

    async def _health(self) -> None:
        await self._ask("health", "GET", self._random.choice(("/healthz", "/readyz")), expect=(200,))

    async def _hang_up(self) -> None:
        """Half a request, a whole one whose answer nobody reads, or a wait that is broken off."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        body = json.dumps(self._fresh("growth")).encode()
        head = f"Host: {host}\r\nAuthorization: Bearer {organisation.bearer('growth')}\r\n"
        post = f"POST /v1/tasks HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode()
        sent = self._one_of(self._open)
        asked = "x" if sent is None else sent.task_id
        wait = f"GET /v1/tasks/{asked} HTTP/1.1\r\n{head}Prefer: wait=30\r\n\r\n".encode()
        _, writer = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(ConnectionError):
            writer.write(self._random.choice((post[:40], post + body[:20], post + body, wait)))
            await writer.drain()
            await asyncio.sleep(self._random.choice((0, 0, RIGHT_NOW)))
            if self._random.random() < 0.3:
                writer.transport.abort()
            writer.close()
            await writer.wait_closed()
        self.answered += 1
        self.statuses["hang up"] += 1

    def _one_of(self, *known: collections.deque[Sent]) -> Sent | None:
        some = [each for each in known if each]
        return self._random.choice(self._random.choice(some)) if some else None
