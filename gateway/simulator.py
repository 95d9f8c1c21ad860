"""The upstream's understudy: the Wave task API as documented, with faults on request and a bill of its own.

Rules: all state is in memory and bounded; task states follow from the clock that is handed in, so nothing runs in
the background but callbacks; money is whole quota (500,000 = 1 USD), never a float. The bill (``bill()``,
``GET /sim/bill``) is worked out from the tasks alone and is every test's oracle, so nothing of the gateway is
imported here. Not simulated: ``/v1/tasks/sync``, ``/v1/mcp``, the synchronous endpoints, rate limits unless scripted.

A fault script is a JSON list of rules::

    {"on": "submit|poll|cancel|media|balance|models|any", "model": "glob", "prompt": "substring",
     "skip": 0, "times": 1, "do": {...}}

The first matching live rule is applied and one of its ``times`` is used (``null``: for ever). Delays and hangs are real
seconds; everything else follows the clock. What ``do`` may hold (at most one of status, answer, drop, accept_and_drop,
accept_and_hang_s, truncate, media, redirect; whatever else makes sense together):

==================================== =========================================================================
any operation
``delay_s``                          goes with everything: wait first
``status`` 300-599                   an error, with ``code message param retry_after location window used cap
                                     reset_at`` and ``extra`` (an object); ``garbage`` replaces its body
``garbage`` true or "html"           200 and no JSON
``answer`` any JSON                  200 and this body
``drop``                             nothing is done, the connection is closed without an answer
submit, cancel
``accept``                           with ``status``, ``garbage`` or ``answer``: done all the same
``accept_and_drop``                  done (a task is created and billed), no answer
``accept_and_hang_s``                done, the answer comes late
submit, poll, cancel
``merge`` object, ``without`` names  fields put over or taken out of the true answer
cancel
``pretend``                          "cancelled" is answered, the task goes on
media
``truncate``                         half of the announced bytes, then closed
``media``                            html html_as_jpeg empty png cut (no trailer) wrong_type gzip_bomb endless
``redirect`` URL                     302
submit, for the task that it creates
``outcome``, ``error``               completed failed cancelled; the error object of a failed one
``deliver`` k, ``no_result``         k images delivered and billed; completed without an image
``cost`` quota                       billed instead of the list price, also when it failed
``fallback``                         the official channel was used and billed, if ``official_fallback`` allows it
``queue_s``, ``work_s``              instead of the simulator's
``statuses`` list                    poll i shows the i-th, the last repeats; the first end, or a cancel, is the truth
``generation``, ``id_at``            shapes of this task; the answer's id at task_id id data data.task_id data.id
``callback_times`` k                 the callback is sent k times
==================================== =========================================================================
"""

import asyncio
import fnmatch
import functools
import hashlib
import heapq
import hmac
import json
import math
import random
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import httpx
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway import simulator_pictures as pictures

QUOTA_PER_USD = 500_000
NANOS_PER_QUOTA = 2_000
IDEMPOTENCY_S = 24 * 3600
MAX_WAIT_S = 60
MAX_IMAGES = 16
MAX_TASKS = 500_000
MAX_RECORDS = 10_000
MAX_RECORDS_BYTES = 64 * 2**20
MAX_BODY_BYTES = 32 * 2**20
MAX_CALLBACKS = 10_000
CALLBACKS_AT_ONCE = 32
CALLBACK_TIMEOUT_S = 5
LOOK_EVERY_S = 0.05

Generation = Literal["early", "documented", "later"]
Rounding = Literal["down", "up"]
Status = Literal["queued", "processing", "completed", "failed", "cancelled"]
TERMINAL: tuple[Status, ...] = ("completed", "failed", "cancelled")
MEANINGS: dict[str, Status] = {
    **{status: status for status in get_args(Status)},
    **dict.fromkeys(("succeeded", "success", "done"), "completed"),
    **dict.fromkeys(("error", "timeout"), "failed"),
    "canceled": "cancelled",
}


class Ask(msgspec.Struct, kw_only=True, frozen=True):
    """A submit's body, as far as the upstream looks at it. Source: UPSTREAM.md, "Submit: request"."""

    model: str
    prompt: str
    action: str = "generate"
    n: int = 1
    seed: int = -1
    aspect_ratio: str = "1:1"
    resolution: str = "1K"
    image_urls: tuple[str, ...] = ()
    callback_url: str = ""
    callback_events: tuple[str, ...] = ()
    official_fallback: bool = False
    google_search: bool = False
    google_image_search: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitRecord:
    """What one submit sent, as received."""

    at: float
    idempotency_key: str | None
    authorization_sha256: str | None
    body: bytes
    headers: dict[str, str]
    """Every header but Authorization, names in lower case."""


@dataclass(slots=True)
class Requests:
    """What the simulator was asked: counts per operation, and the last submits."""

    counts: Counter[str] = field(default_factory=Counter)
    """submit poll cancel media balance usage subscription models, media_with_auth, callback, callback_failed."""
    submits: deque[SubmitRecord] = field(default_factory=deque)
    submits_bytes: int = 0

    def add(self, record: SubmitRecord) -> None:
        """Keep one submit, forgetting the oldest past the bounds."""
        self.submits.append(record)
        self.submits_bytes += len(record.body)
        while len(self.submits) > MAX_RECORDS or self.submits_bytes > MAX_RECORDS_BYTES:
            self.submits_bytes -= len(self.submits.popleft().body)


Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=7 * 86400)]
Spoilt = Literal["html", "html_as_jpeg", "empty", "png", "cut", "wrong_type", "gzip_bomb", "endless"]


class Do(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a rule does; the module's docstring says what each field means."""

    delay_s: Seconds = 0
    status: Annotated[int, msgspec.Meta(ge=300, le=599)] | None = None
    code: str = "scripted"
    message: str = "scripted"
    param: Any = msgspec.UNSET
    retry_after: Count | None = None
    location: str | None = None
    window: Any = msgspec.UNSET
    used: Any = msgspec.UNSET
    cap: Any = msgspec.UNSET
    reset_at: Any = msgspec.UNSET
    extra: dict[str, Any] = {}
    garbage: Literal["html"] | bool = False
    answer: Any = msgspec.UNSET
    drop: bool = False
    accept: bool = False
    accept_and_drop: bool = False
    accept_and_hang_s: Seconds = 0
    merge: dict[str, Any] = {}
    without: frozenset[str] = frozenset()
    pretend: bool = False
    truncate: bool = False
    media: Spoilt | None = None
    redirect: str | None = None
    outcome: Literal["completed", "failed", "cancelled"] = "completed"
    error: dict[str, Any] | None = None
    deliver: Count | None = None
    no_result: bool = False
    cost: Count | None = None
    fallback: bool = False
    queue_s: Seconds | None = None
    work_s: Seconds | None = None
    statuses: tuple[str, ...] = ()
    generation: Generation | None = None
    id_at: Literal["task_id", "id", "data", "data.task_id", "data.id"] = "task_id"
    callback_times: Annotated[int, msgspec.Meta(ge=0, le=10)] = 1


class Rule(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One rule of a fault script; ``skip`` and ``times`` count down."""

    on: Literal["submit", "poll", "cancel", "media", "balance", "models", "any"]
    model: str = "*"
    prompt: str = ""
    skip: Count = 0
    times: Count | None = 1
    do: Do

    def takes(self, on: str, model: str, prompt: str) -> bool:
        """Whether this rule applies now; uses up one of its counts."""
        if self.on not in (on, "any") or self.times == 0 or self.prompt not in prompt:
            return False
        if not fnmatch.fnmatchcase(model, self.model):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass(slots=True)
class _Task:
    id: str
    ask: Ask
    base_url: str
    idempotency_key: str | None
    generation: Generation
    seed: int
    created_at: float
    work_at: float
    end_at: float
    each: int
    """Quota billed per image delivered; the official channel's after a fallback."""
    held: int
    """Quota taken from the wallet until the end."""
    outcome: Status
    deliver: int
    do: Do
    polls: int = 0
    settled: bool = False

    @property
    def pixels(self) -> tuple[int, int]:
        """Width and height of its images."""
        return pictures.size(self.ask.aspect_ratio, self.ask.resolution)

    def status(self, now: float) -> Status:
        """The true state at a time."""
        if now >= self.end_at:
            return self.outcome
        return "processing" if now >= self.work_at else "queued"

    def delivered(self, status: Status) -> int:
        """How many images a state has."""
        return self.deliver if status == "completed" and not self.do.no_result else 0

    def quota(self, status: Status) -> int:
        """What a state costs: delivered images only, unless the script set a price; a cancelled task costs nothing."""
        if self.do.cost is not None and status in ("completed", "failed"):
            return self.do.cost
        return self.delivered(status) * self.each


class Simulator:
    """The upstream, in memory. One wallet and one set of tasks for all its keys."""

    def __init__(
        self,
        *,
        base_url: str = "",
        keys: Collection[str] | None = None,
        clock: Callable[[], float] = time.time,
        generation: Generation = "documented",
        rounding: Rounding = "down",
        queue_s: float = 0.3,
        work_s: float = 1.0,
        url_ttl_s: float = 86400,
        idempotency: bool = True,
        wallet_usd: str = "1000",
        seed: int = 1,
        callback_transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """``keys`` None accepts any; ``base_url`` "" takes the request's; ``clock`` gives Unix seconds."""
        self._base_url = base_url.rstrip("/")
        self._keys = None if keys is None else frozenset(keys)
        self._clock = clock
        self._generation: Generation = generation
        self._rounding: Rounding = rounding
        self._queue_s, self._work_s, self._url_ttl_s = queue_s, work_s, url_ttl_s
        self._idempotency = idempotency
        self._granted = math.floor(Fraction(wallet_usd) * QUOTA_PER_USD)
        self._seed = seed
        self._callback_transport = callback_transport
        self._pump: asyncio.Task[None] | None = None
        self.app: Starlette = _App(routes=self._routes())
        self.reset()

    def reset(self) -> None:
        """Forget everything: tasks, bill, records and script."""
        self._random = random.Random(self._seed)
        self._tasks: dict[str, _Task] = {}
        self._keyed: dict[tuple[str, str], _Task] = {}
        self._rules: list[Rule] = []
        self._callbacks: dict[str, _Task] = {}
        self._unsettled: list[tuple[float, str]] = []
        self._held = self._used = 0
        self.requests = Requests()

    def set_script(self, script: object) -> None:
        """Replace the fault script. Raises ValueError, naming the rule's index; the old script then stays."""
        self._rules = parse_script(script)

    def bill(self) -> dict[str, Any]:
        """What was billed up to now, in quota and nano-USD, whole and per task and model; open tasks cost nothing."""
        now = self._clock()
        by_task: dict[str, dict[str, Any]] = {}
        by_model: dict[str, dict[str, int]] = {}
        for task in self._tasks.values():
            status = task.status(now)
            line = {"model": task.ask.model, "n": task.ask.n, "delivered": task.delivered(status), "status": status}
            line |= {"quota": task.quota(status), "prompt": task.ask.prompt, "idempotency_key": task.idempotency_key}
            by_task[task.id] = line
            model = by_model.setdefault(task.ask.model, {"tasks": 0, "images": 0, "quota": 0})
            model["tasks"] += 1
            model["images"] += task.delivered(status)
            model["quota"] += task.quota(status)
        quota = sum(line["quota"] for line in by_task.values())
        still_open = sum(line["status"] not in TERMINAL for line in by_task.values())
        totals = {"quota": quota, "nanos": quota * NANOS_PER_QUOTA, "tasks": len(by_task), "open": still_open}
        return {**totals, "by_task": by_task, "by_model": by_model}

    async def send_callbacks(self) -> int:
        """Send the callbacks that are due, and return how many; a running event loop does so by itself as well."""
        now = self._clock()
        due = [task for task in self._callbacks.values() if task.status(now) in TERMINAL]
        for task in due:
            del self._callbacks[task.id]
        if due:
            gate = asyncio.Semaphore(CALLBACKS_AT_ONCE)
            transport, limit = self._callback_transport, CALLBACK_TIMEOUT_S
            async with httpx.AsyncClient(transport=transport, timeout=limit, trust_env=False) as client:
                await asyncio.gather(*(self._call_back(client, gate, task) for task in due))
        return len(due)

    async def aclose(self) -> None:
        """Send no callbacks any more."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)

    def _routes(self) -> list[Route]:
        billing = "/v1/dashboard/billing"
        return [
            Route("/v1/tasks", self._submit, methods=["POST"]),
            Route("/v1/tasks/{task_id}", self._poll),
            Route("/v1/tasks/{task_id}/cancel", self._cancel, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{model_id}", self._models),
            Route(f"{billing}/{{page:str}}", self._billing),
            Route("/files/{task_id}/{index:int}.jpg", self._media),
            Route("/sim/bill", self._sim_bill),
            Route("/sim/requests", self._sim_requests),
            Route("/sim/script", self._sim_script, methods=["POST"]),
            Route("/sim/reset", self._sim_reset, methods=["POST"]),
        ]

    async def _submit(self, request: Request) -> Response:
        self.requests.counts["submit"] += 1
        now = self._clock()
        body = await _body(request)
        if body is None:
            return _refusal(413, "request_too_large", f"the body is larger than {MAX_BODY_BYTES} bytes")
        self.requests.add(_record(request, body, now))
        key = self._key(request)
        if key is None:
            return _bad_key()
        fields = _fields(body)
        do = self._script("submit", str((fields or {}).get("model", "")), str((fields or {}).get("prompt", "")))
        if (fault := await _before(do, request)) is not None:
            return fault
        if fields is None:
            return _refusal(400, "invalid_json", "the body is not a JSON object")
        task = self._replayed(key, request) or self._created(fields, do, key, request)
        if isinstance(task, Response):
            return task
        if (fault := await _after(do, request)) is not None:
            return fault
        await self._hold(task, request)
        return _json(_altered(_identified(self._submit_answer(task), task.id, do.id_at), do))

    async def _poll(self, request: Request) -> Response:
        found = await self._ask_about_task("poll", request)
        if isinstance(found, Response):
            return found
        task, do = found
        await self._hold(task, request)
        now = self._clock()
        if not task.do.statuses:
            return _json(_altered(self._render(task, task.status(now)), do))
        word = task.do.statuses[min(task.polls, len(task.do.statuses) - 1)]
        task.polls += 1
        shown = MEANINGS.get(word, "processing")
        if shown in TERMINAL and shown == task.outcome:
            self._end(task, shown, now)
        return _json(_altered({**self._render(task, shown), "status": word}, do))

    async def _cancel(self, request: Request) -> Response:
        found = await self._ask_about_task("cancel", request)
        if isinstance(found, Response):
            return found
        task, do = found
        now = self._clock()
        if task.status(now) != "queued":
            return _refusal(400, "task_not_cancellable", f"the task is {task.status(now)}")
        if not do.pretend:
            self._end(task, "cancelled", now)
            task.do = msgspec.structs.replace(task.do, statuses=())  # what it shows is what it bills
        if (fault := await _after(do, request)) is not None:
            return fault
        refund = {"refunded": True, "refunded_quota": task.held}
        return _json(_altered({"task_id": task.id, "status": "cancelled", **refund}, do))

    async def _ask_about_task(self, on: str, request: Request) -> tuple[_Task, Do] | Response:
        self.requests.counts[on] += 1
        if self._key(request) is None:
            return _bad_key()
        task = self._tasks.get(request.path_params["task_id"])
        do = self._script(on, task.ask.model if task else "", task.ask.prompt if task else "")
        if (fault := await _before(do, request)) is not None:
            return fault
        return (task, do) if task else _refusal(404, "task_not_found", "no such task")

    async def _models(self, request: Request) -> Response:
        self.requests.counts["models"] += 1
        if self._key(request) is None:
            return _bad_key()
        wanted = request.path_params.get("model_id")
        if (fault := await _before(self._script("models", wanted or "", ""), request)) is not None:
            return fault
        if wanted is None:
            return _json({"object": "list", "data": [self._catalogue_entry(model) for model in CATALOGUE]})
        if wanted not in CATALOGUE:
            return _refusal(404, "model_not_found", "no such model", "model")
        return _json(self._catalogue_entry(wanted))

    async def _billing(self, request: Request) -> Response:
        page = request.path_params["page"]
        if page not in ("balance", "usage", "subscription"):
            return _refusal(404, "not_found", "no such page")
        self.requests.counts[page] += 1
        if self._key(request) is None:
            return _bad_key()
        if (fault := await _before(self._script("balance", "", ""), request)) is not None:
            return fault
        self._settle()
        used = self._used + self._held
        if page == "usage":
            return _json({"object": "list", "total_usage": _usd(used) * 100})
        if page == "subscription":
            return _json({"object": "billing_subscription", "hard_limit_usd": _usd(self._granted)})
        totals = {"total_granted_usd": _usd(self._granted), "total_used_usd": _usd(used)}
        totals["total_available_usd"] = _usd(self._granted - used)
        return _json({"object": "credit_summary", "currency": "USD", **totals, "as_of": _iso(self._clock())})

    async def _media(self, request: Request) -> Response:
        self.requests.counts["media"] += 1
        self.requests.counts["media_with_auth"] += "authorization" in request.headers
        task = self._tasks.get(request.path_params["task_id"])
        do = self._script("media", task.ask.model if task else "", task.ask.prompt if task else "")
        if (fault := await _before(do, request)) is not None:
            return fault
        if do.redirect is not None:
            return Response(status_code=302, headers={"location": do.redirect})
        index, now = request.path_params["index"], self._clock()
        expires, signature = request.query_params.get("expires", ""), request.query_params.get("sig", "")
        if task is None or not hmac.compare_digest(self._signature(task.id, index, expires), signature.encode()):
            return _refusal(403, "signature_mismatch", "the signature does not match")
        if now >= int(expires):
            return _refusal(403, "url_expired", "the URL has expired")
        picture = functools.partial(pictures.jpeg, task.ask.prompt, task.seed, index, task.pixels)
        if do.media == "endless":
            return StreamingResponse(pictures.endless(), media_type="image/jpeg")
        if do.media == "gzip_bomb":
            bomb = await asyncio.to_thread(pictures.gzip_bomb)
            return Response(bomb, media_type="image/jpeg", headers={"content-encoding": "gzip"})
        jpeg = await asyncio.to_thread(picture)
        if do.media is not None:
            content, media_type = pictures.spoilt(do.media, jpeg)
            return Response(content, media_type=media_type)
        if do.truncate:
            return _Closed(
                head={"content-type": "image/jpeg", "content-length": str(len(jpeg))}, part=jpeg[: len(jpeg) // 2]
            )
        return Response(jpeg, media_type="image/jpeg")

    async def _sim_bill(self, request: Request) -> Response:
        return _json(self.bill())

    async def _sim_requests(self, request: Request) -> Response:
        submits = [{**asdict(one), "body": one.body.decode("utf-8", "replace")} for one in self.requests.submits]
        return _json({"counts": self.requests.counts, "submits": submits})

    async def _sim_script(self, request: Request) -> Response:
        try:
            self.set_script(json.loads(await request.body()))
        except ValueError as why:
            return _refusal(400, "bad_script", str(why))
        return _json({"rules": len(self._rules)})

    async def _sim_reset(self, request: Request) -> Response:
        self.reset()
        return _json({"reset": True})

    def _key(self, request: Request) -> str | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token or (self._keys is not None and token not in self._keys):
            return None
        return token

    def _script(self, on: str, model: str, prompt: str) -> Do:
        return next((rule.do for rule in self._rules if rule.takes(on, model, prompt)), Do())

    def _replayed(self, key: str, request: Request) -> _Task | None:
        oldest_kept = self._clock() - IDEMPOTENCY_S
        while self._keyed and (first := next(iter(self._keyed.items())))[1].created_at <= oldest_kept:
            del self._keyed[first[0]]
        return self._keyed.get((key, request.headers.get("idempotency-key", "")))

    def _created(self, fields: dict[str, Any], do: Do, key: str, request: Request) -> _Task | Response:
        generation = do.generation or self._generation
        ask = _ask(fields, generation)
        if isinstance(ask, Response):
            return ask
        self._settle()
        listed = quota_per_image(ask.model, ask.resolution, self._rounding)
        if self._granted - self._used - self._held < listed * ask.n:
            return _refusal(402, "insufficient_balance", "the balance is used up")
        if len(self._tasks) >= MAX_TASKS:
            return _refusal(503, "simulator_full", f"{MAX_TASKS} tasks are kept; reset the simulator")
        task = self._task(ask, do, generation, listed, request)
        self._tasks[task.id] = task
        self._held += task.held
        heapq.heappush(self._unsettled, (task.end_at, task.id))
        if task.idempotency_key and self._idempotency:
            self._keyed[key, task.idempotency_key] = task
        self._plan_callback(task)
        return task

    def _task(self, ask: Ask, do: Do, generation: Generation, listed: int, request: Request) -> _Task:
        now = self._clock()
        work_at = now + (self._queue_s if do.queue_s is None else do.queue_s)
        official = f"{ask.model}-official"
        switched = ask.official_fallback and do.fallback and official in CATALOGUE
        shown_ends = [MEANINGS[word] for word in do.statuses if MEANINGS.get(word) in TERMINAL]
        return _Task(
            id=self._new_id(generation, now),
            ask=ask,
            base_url=self._base_url or str(request.base_url).rstrip("/"),
            idempotency_key=request.headers.get("idempotency-key"),
            generation=generation,
            seed=ask.seed if ask.seed >= 0 else self._random.getrandbits(31),
            created_at=now,
            work_at=work_at,
            end_at=work_at + (self._work_s if do.work_s is None else do.work_s),
            each=quota_per_image(official, ask.resolution, self._rounding) if switched else listed,
            held=listed * ask.n,
            outcome=shown_ends[0] if shown_ends else do.outcome,
            deliver=ask.n if do.deliver is None else do.deliver,
            do=do,
        )

    def _new_id(self, generation: Generation, now: float) -> str:
        if generation == "later":
            return "task_" + _ulid(int(now * 1000) << 80 | self._random.getrandbits(80))
        letter = self._random.choice("abcdefghijklmnopqrstuvwxyz")
        return f"task-wave{int(now)}{letter}{len(self._tasks) + 1:06}{self._random.randrange(10**6):06}"

    def _end(self, task: _Task, outcome: Status, now: float) -> None:
        """End a task earlier than planned; an ended one stays as it is."""
        if now < task.end_at:
            task.outcome, task.end_at = outcome, now
            heapq.heappush(self._unsettled, (now, task.id))

    def _settle(self) -> None:
        """Move what ended by now from held to used; a heap, so that a submit looks only at what is due."""
        now = self._clock()
        while self._unsettled and self._unsettled[0][0] <= now:
            task = self._tasks[heapq.heappop(self._unsettled)[1]]
            if not task.settled:
                task.settled = True
                self._held -= task.held
                self._used += task.quota(task.outcome)

    async def _hold(self, task: _Task, request: Request) -> None:
        """Obey ``Prefer: wait=N``: by the clock, and in real seconds too, so that a hand clock cannot hang a client."""
        asked = re.search(r"\bwait=(\d+)", request.headers.get("prefer", ""))
        wait_s = min(int(asked[1]), MAX_WAIT_S) if asked else 0
        until = self._clock() + wait_s
        for _ in range(math.ceil(wait_s / LOOK_EVERY_S)):
            now = self._clock()
            if task.status(now) in TERMINAL or now >= until or await _client_left(request.receive, LOOK_EVERY_S):
                break

    def _submit_answer(self, task: _Task) -> dict[str, Any]:
        if task.generation == "early":
            return {"code": "success", "data": task.id}
        return self._render(task, task.status(self._clock()))

    def _render(self, task: _Task, status: Status) -> dict[str, Any]:
        """The task object in its generation's shapes. Source: UPSTREAM.md, "Shapes seen"."""
        ended = status in TERMINAL
        words = EARLY_WORDS if task.generation == "early" else {}
        stamp = STAMPS[task.generation]
        ask = {"task_id": task.id, "model": task.ask.model, "action": task.ask.action}
        times = {"created_at": stamp(task.created_at), "progress": self._progress(task, status)}
        answer: dict[str, Any] = {**ask, "status": words.get(status, status), **times}
        if ended:
            answer["completed_at"] = stamp(min(task.end_at, self._clock()))
        if status == "completed":
            answer["result"] = {"images": [self._image(task, index) for index in range(task.delivered(status))]}
        if status == "failed":
            answer["error"] = task.do.error or UNAVAILABLE
        if ended and task.generation != "early":
            answer["cost"] = task.quota(status)
        if task.generation == "later":
            self_url = f"{task.base_url}/v1/tasks/{task.id}"
            answer["pre_consumed_cost"] = task.held
            answer["urls"] = {"get": self_url, "cancel": f"{self_url}/cancel"}
            answer["billing_status"] = "settled" if ended else "pre_consumed"
            answer["routing"] = msgspec.Raw(b'{"channel":{"name":"east-2","weight":1.10},"notes":[null,"\\u6ce2"]}')
        return answer

    def _progress(self, task: _Task, status: Status) -> int | str:
        if status == "processing":
            done = (self._clock() - task.work_at) / max(task.end_at - task.work_at, 0.001)
            percent = max(1, min(99, int(done * 100)))
        else:
            percent = 100 if status in TERMINAL else 0
        if task.generation == "documented":
            return percent
        return "" if status == "queued" and task.generation == "early" else f"{percent}%"

    def _image(self, task: _Task, index: int) -> dict[str, Any]:
        expires = int(task.end_at + self._url_ttl_s)
        signature = self._signature(task.id, index, str(expires)).decode()
        url = f"{task.base_url}/files/{task.id}/{index}.jpg?expires={expires}&sig={signature}"
        return {"url": url if task.generation == "early" else [url], "expires_at": expires}

    def _signature(self, task_id: str, index: int, expires: str) -> bytes:
        text = f"{task_id}/{index}/{expires}".encode()
        return hmac.new(b"simulator %d" % self._seed, text, hashlib.sha256).hexdigest()[:32].encode()

    def _catalogue_entry(self, model_id: str) -> dict[str, Any]:
        model = CATALOGUE[model_id]
        entry: dict[str, Any] = {"id": model_id, "object": "model", "owned_by": "wave", "actions": model.actions}
        entry |= {"resolutions": model.resolutions, "aspect_ratios": model.ratios}
        if self._generation != "early":
            prices = {resolution: Decimal(price) for resolution, price in model.prices.items()}
            entry["price_config"] = {"currency": "USD", "image_prices": prices}
        return entry

    def _plan_callback(self, task: _Task) -> None:
        if not task.ask.callback_url or len(self._callbacks) >= MAX_CALLBACKS:
            return
        self._callbacks[task.id] = task
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._pump_callbacks())

    async def _pump_callbacks(self) -> None:
        while self._callbacks:
            await self.send_callbacks()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _call_back(self, client: httpx.AsyncClient, gate: asyncio.Semaphore, task: _Task) -> None:
        status = task.status(self._clock())
        wanted = {MEANINGS.get(event.removeprefix("task."), event) for event in task.ask.callback_events}
        if wanted and status not in wanted:
            return
        body = ENCODER.encode({"event": f"task.{status}", "data": self._render(task, status)})
        for _ in range(task.do.callback_times):
            try:
                async with gate:
                    await client.post(task.ask.callback_url, content=body, headers={"content-type": "application/json"})
            except (httpx.HTTPError, httpx.InvalidURL):
                self.requests.counts["callback_failed"] += 1
            else:
                self.requests.counts["callback"] += 1


def run(*, host: str, port: int, script: Path | None, **simulator_options: Any) -> None:
    """Serve a simulator until a signal. Raises ValueError for a bad script and OSError for one that cannot be read."""
    simulator = Simulator(**simulator_options)
    if script is not None:
        simulator.set_script(json.loads(script.read_text(encoding="utf-8")))
    uvicorn.run(simulator.app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=2)


def parse_script(script: object) -> list[Rule]:
    """The rules of a fault script. Raises ValueError, naming the index of the rule that is wrong and why."""
    if not isinstance(script, list):
        raise ValueError("the script must be a JSON list of rules")
    rules = []
    for index, raw in enumerate(script):
        try:
            rules.append(msgspec.convert(raw, Rule))
        except msgspec.ValidationError as why:
            raise ValueError(f"rule {index}: {why}") from None
        if misplaced := _misplaced(rules[-1].on, raw["do"].keys()):
            raise ValueError(f"rule {index}: {misplaced}")
    return rules


@functools.cache
def quota_per_image(model: str, resolution: str, rounding: Rounding) -> int:
    """What the vendor bills for one image, in whole quota."""
    prices = CATALOGUE[model].prices
    exact = Fraction(prices.get(resolution, prices["default"])) * QUOTA_PER_USD
    return math.floor(exact) if rounding == "down" else math.ceil(exact)


ERROR_FIELDS = ("param", "window", "used", "cap", "reset_at")
EVERYWHERE = {"delay_s", "status", "code", "message", "retry_after", "location", *ERROR_FIELDS}
EVERYWHERE |= {"extra", "garbage", "answer", "drop"}
DOING = {"accept", "accept_and_drop", "accept_and_hang_s"}
SHAPING = {"merge", "without"}
FIELDS_OF: dict[str, set[str]] = {
    "submit": set(Do.__struct_fields__) - {"pretend", "truncate", "media", "redirect"},
    "poll": EVERYWHERE | SHAPING,
    "cancel": EVERYWHERE | SHAPING | DOING | {"pretend"},
    "media": EVERYWHERE | {"truncate", "media", "redirect"},
    "balance": EVERYWHERE,
    "models": EVERYWHERE,
    "any": EVERYWHERE,
}
NEEDS = {
    **{name: {"status"} for name in ("code", "message", "retry_after", "location", "extra", *ERROR_FIELDS)},
    "accept": {"status", "garbage", "answer"},
    "error": {"outcome", "statuses"},
}
EXCLUSIVE = {"status", "answer", "drop", "accept_and_drop", "accept_and_hang_s", "truncate", "media", "redirect"}


def _misplaced(on: str, given: Set[str]) -> str:
    """What is wrong with a rule's fields taken together, or "" when nothing is."""
    if stray := sorted(given - FIELDS_OF[on]):
        return f"'{stray[0]}' means nothing on {on}"
    for name in sorted(given & NEEDS.keys()):
        if not given & NEEDS[name]:
            return f"'{name}' needs {' or '.join(sorted(NEEDS[name]))}"
    clash = sorted(given & EXCLUSIVE)
    return f"{' and '.join(clash)} cannot go together" if len(clash) > 1 else ""


# What the upstream sells. Source: UPSTREAM.md, "The Gemini image series".

COMMON_RATIOS = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
FLASH_31_RATIOS = (*COMMON_RATIOS, "1:4", "4:1", "1:8", "8:1")
GEMINI_ACTIONS = ("generate", "image2image", "edit", "reference")
IMAGES_NEEDED = ("image2image", "edit", "reference")
SEARCH = "search_grounded"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    prices: Mapping[str, str]
    """USD per image by resolution, and ``default`` for every other."""
    resolutions: tuple[str, ...] = ("0.5K", "1K", "2K", "4K")
    ratios: tuple[str, ...] = FLASH_31_RATIOS
    actions: tuple[str, ...] = GEMINI_ACTIONS


def _gemini(usd: str, *resolutions: str) -> _Model:
    return _Model(prices={"default": usd}, resolutions=resolutions, ratios=COMMON_RATIOS)


def _flash_31(usd: str) -> _Model:
    return _Model(prices={"default": usd}, actions=(*GEMINI_ACTIONS, SEARCH))


OTHER_MODELS = {
    "gpt-image-2": "0.006375",
    "gpt-image-1.5-official": "0.09044",
    "gpt-image-1-official": "0.11356",
    "imagen-4.0": "0.0425",
    "doubao-seedream-5.0-lite": "0.02975",
    "doubao-seedream-4.5": "0.02975",
    "doubao-seedream-4.0": "0.0238",
    "wan2.7-image": "0.02295",
    "z-image-turbo": "0.010625",
    "qwen-image-2.0-pro": "0.053125",
    "qwen-image-2.0": "0.02125",
}
CATALOGUE: dict[str, _Model] = {
    "gemini-3-pro-image-preview-official": _gemini("0.1139", "1K", "2K", "4K"),
    "gemini-3-pro-image-preview": _gemini("0.0425", "1K", "2K", "4K"),
    "gemini-3.1-flash-image-preview-official": _flash_31("0.05695"),
    "gemini-3.1-flash-image-preview": _flash_31("0.031875"),
    "gemini-2.5-flash-image-preview-official": _gemini("0.03315", "1K"),
    "gemini-2.5-flash-image-preview": _gemini("0.01328125", "1K"),
    "gemini-3-pro-image-rev": _Model(
        prices={"default": "0.03375", "1K": "0.03375", "2K": "0.03375", "4K": "0.045"},
        resolutions=("1K", "2K", "4K"),
        ratios=COMMON_RATIOS,
    ),
    **{model: _Model(prices={"default": usd}) for model, usd in OTHER_MODELS.items()},
}


def _ask(fields: dict[str, Any], generation: Generation) -> Ask | Response:
    try:
        ask = msgspec.convert({key: value for key, value in fields.items() if value is not None}, Ask)
    except msgspec.ValidationError as why:
        named = re.search(r"\$\.(\w+)|`(\w+)`$", str(why))
        return _refusal(400, "invalid_request", str(why), named[named.lastindex or 0] if named else "")
    model = CATALOGUE.get(ask.model)
    if model is None:
        return _refusal(500, "price_not_configured", f"no price is configured for {ask.model}")
    ask = msgspec.structs.replace(ask, resolution=ask.resolution.upper())
    ratios = (*model.ratios, "auto") if generation == "later" else model.ratios
    searches = ask.google_search or ask.google_image_search
    rules = {
        "prompt": bool(ask.prompt.strip()),
        "n": 1 <= ask.n <= MAX_IMAGES,
        "action": ask.action in model.actions,
        "aspect_ratio": ask.aspect_ratio in ratios,
        "resolution": ask.resolution in model.resolutions,
        "image_urls": bool(ask.image_urls) or ask.action not in IMAGES_NEEDED,
        "google_search": not searches or SEARCH in model.actions,
    }
    wrong = next((param for param, kept in rules.items() if not kept), None)
    if wrong == "prompt":
        return _refusal(400, "invalid_request", "prompt must not be empty", "prompt")
    return _refusal(400, "capability_violation", f"{ask.model} cannot do this {wrong}", wrong) if wrong else ask


# Shapes and answers.

EARLY_WORDS: dict[Status, str] = {
    "processing": "running",
    "completed": "success",
    "failed": "error",
    "cancelled": "canceled",
}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


STAMPS: dict[Generation, Callable[[float], int | str]] = {
    "early": int,
    "documented": lambda at: round(at * 1000),
    "later": _iso,
}
UNAVAILABLE = {"message": "no channel is available", "code": "upstream_unavailable"}
ENCODER = msgspec.json.Encoder(decimal_format="number")


class _App(Starlette):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Remember the server's own ``send``: it is the way to the connection, which Starlette wraps away."""
        scope["simulator.send"] = send
        await super().__call__(scope, receive, send)


class _Closed(Response):
    """No answer, or the beginning of one: the connection is closed.

    uvicorn's ``send`` is a method of the object that holds the transport. Under any other server, and in process,
    the client sees the exception that httpx raises for a closed connection.
    """

    def __init__(self, *, head: Mapping[str, str] | None = None, part: bytes = b"") -> None:
        super().__init__(part)
        self._head = head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the part, if any, and close."""
        if self._head is not None:
            headers = [(name.encode(), value.encode()) for name, value in self._head.items()]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": self.body, "more_body": True})
        transport = getattr(getattr(scope["simulator.send"], "__self__", None), "transport", None)
        if transport is None:
            raise httpx.RemoteProtocolError("the fault script closed the connection")
        transport.close()
        await _client_left(receive, 5)


async def _before(do: Do, request: Request) -> Response | None:
    """The faults that come instead of doing what was asked."""
    await _client_left(request.receive, do.delay_s)
    if do.drop:
        return _Closed()
    return None if do.accept else _scripted(do)


async def _after(do: Do, request: Request) -> Response | None:
    """The faults that come once it was done."""
    if do.accept_and_drop:
        return _Closed()
    await _client_left(request.receive, do.accept_and_hang_s)
    return _scripted(do) if do.accept else None


def _scripted(do: Do) -> Response | None:
    headers = {} if do.retry_after is None else {"retry-after": str(do.retry_after)}
    if do.location is not None:
        headers["location"] = do.location
    if do.garbage:
        text, kind = (
            (pictures.HTML, "text/html") if do.garbage == "html" else (b'{"task_id": "task-wa', "application/json")
        )
        return Response(text, do.status or 200, headers, media_type=kind)
    if do.answer is not msgspec.UNSET:
        return _json(do.answer)
    if do.status is None:
        return None
    more = {name: value for name in ERROR_FIELDS if (value := getattr(do, name)) is not msgspec.UNSET}
    return _json({"error": {"message": do.message, "code": do.code, **more, **do.extra}}, do.status, headers)


async def _client_left(receive: Receive, within_s: float) -> bool:
    """Wait until the client leaves, at most ``within_s`` real seconds. Returns whether it left."""
    if within_s <= 0:
        return False
    try:
        async with asyncio.timeout(within_s):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True


async def _body(request: Request) -> bytes | None:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _fields(body: bytes) -> dict[str, Any] | None:
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return fields if isinstance(fields, dict) else None


def _record(request: Request, body: bytes, now: float) -> SubmitRecord:
    headers = dict(request.headers)
    authorization = headers.pop("authorization", None)
    return SubmitRecord(
        at=now,
        idempotency_key=headers.get("idempotency-key"),
        authorization_sha256=hashlib.sha256(authorization.encode()).hexdigest() if authorization else None,
        body=body,
        headers=headers,
    )


def _altered(answer: dict[str, Any], do: Do) -> dict[str, Any]:
    return {key: value for key, value in (answer | do.merge).items() if key not in do.without}


def _identified(answer: dict[str, Any], task_id: str, place: str) -> dict[str, Any]:
    """A submit's answer with the id at one of the places seen in the wild."""
    if place == "task_id":
        return answer
    if place == "data":
        return {"code": "success", "data": task_id}
    rest = {key: value for key, value in answer.items() if key != "task_id"}
    if place == "id":
        return {"id": task_id, **rest}
    return {"code": "success", "data": {place.removeprefix("data."): task_id, **rest}}


def _json(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(ENCODER.encode(content), status, headers, media_type="application/json")


def _refusal(status: int, code: str, message: str, param: str = "") -> Response:
    return _json({"error": {"message": message, "code": code, **({"param": param} if param else {})}}, status)


def _bad_key() -> Response:
    return _refusal(401, "invalid_api_key", "the API key is missing or unknown")


def _usd(quota: int) -> Decimal:
    return Decimal(quota) / QUOTA_PER_USD


def _ulid(number: int) -> str:
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    return "".join(alphabet[number >> shift & 31] for shift in range(125, -1, -5))
