"""Plays scripts of the grammar on real sockets, many at once, and judges each answer.

What must hold: each answer is well-formed HTTP in our form, with a code that belongs to its status and is described
for its route; there are never more of them than there were requests; a 5xx is one of those that need no fault; every
connection is answered or closed in time.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import json
import time
from collections.abc import Iterable
from typing import Final

from gateway import errors
from tests import openapi
from tests.fuzz import grammar, reader

AT_ONCE: Final = 32
ANSWERED_WITHIN_S: Final = 20.0
"""A whole request takes far less; a slow machine gets this long."""
STALLED_WITHIN_S: Final = {0: 10.0 + 15.0, 1: 30.0 + 15.0}
"""By the remainder of a script's number: the deadline of a head, that of a body, and a slow machine's margin."""
EXPLAINED: Final = frozenset({(504, "only_if_cached")})
"""The server errors that a healthy vendor and a healthy disk leave possible."""
SUBMITS: Final = ("/v1/tasks", "/v1/tasks/sync")


@dataclasses.dataclass(slots=True, kw_only=True)
class Tally:
    """What was seen; `submits` are those that a gateway may have sent on, as prompts."""

    connections: int = 0
    requests: int = 0
    statuses: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    endings: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    slowest_s: float = 0.0
    submits: int = 0
    prompts: set[str] = dataclasses.field(default_factory=set)
    upstream_ids: set[str] = dataclasses.field(default_factory=set)
    request_ids: set[str] = dataclasses.field(default_factory=set)
    failures: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Replay name -> what was wrong."""


async def play(port: int, seed: int, numbers: Iterable[int], tally: Tally) -> None:
    """Play the scripts of a seed, those that fall silent beside the others."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def busy(number: int) -> None:
        async with gate:
            await one(port, seed, number, tally)

    stalled = [asyncio.create_task(one(port, seed, each, tally)) for each in numbers if each % 1000 in (0, 1)]
    waiting: set[asyncio.Task[None]] = set()
    for number in numbers:
        if number % 1000 not in (0, 1):
            waiting.add(asyncio.create_task(busy(number)))
        if len(waiting) >= 2 * AT_ONCE:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
    await asyncio.gather(*waiting, *stalled)


async def one(port: int, seed: int, number: int, tally: Tally) -> None:
    """Play one script and note what came of it."""
    script = grammar.script(seed, number)
    said = reader.requests(script.data)
    tally.connections += 1
    tally.requests += len(said.requests)
    tally.endings[f"{script.ending}, {said.ends}"] += 1
    _note_submits(said, tally)
    limit_s = STALLED_WITHIN_S[number % 1000] if script.ending == "stalls" else ANSWERED_WITHIN_S
    heard = _Heard()
    found: list[str] = []
    try:
        async with asyncio.timeout(limit_s):
            await _converse(port, script, said, heard)
    except TimeoutError:
        found.append(f"neither answered nor closed within {limit_s:g} s; {len(heard.data)} bytes came")
    methods = [each.method for each in said.requests]
    try:
        answers = reader.responses(bytes(heard.data), methods, is_over=heard.is_over and script.ending != "leaves")
    except reader.Unreadable as fault:
        answers = []
        found.append(f"no HTTP came back: {fault}")
    if len(answers) > said.most_answers:
        found.append(f"{len(answers)} answers to {said.most_answers} requests")
    # Behind its last request a client may send nothing (RFC 9112 section 9.6): much of it may cost the answer.
    # So may what is no HTTP: the gateway closes behind the answer without reading on.
    is_whole = said.ends == "clean" or (said.ends == "fault" and not said.requests)
    is_owed = script.ending in ("waits", "dribbles") and said.most_answers and is_whole
    if is_owed and not answers:
        found.append("closed without an answer")
    may_be_wrong = b"chunked" in script.data  # httptools refuses some trailers before they end
    if script.ending == "stalls" and [each.status for each in answers] not in ([408], [400] * may_be_wrong):
        found.append(f"silence was answered with {[each.status for each in answers]}")
    for at, answer in enumerate(answers):
        found += _judged(answer, said.requests[at] if at < len(said.requests) else None, tally)
    if script.ending != "stalls":
        tally.slowest_s = max(tally.slowest_s, heard.seconds)
    if found:
        tally.failures[f"{seed}/{number}"] = found


@dataclasses.dataclass(slots=True)
class _Heard:
    data: bytearray = dataclasses.field(default_factory=bytearray)
    is_over: bool = False
    seconds: float = 0.0


async def _converse(port: int, script: grammar.Script, said: reader.Said, heard: _Heard) -> None:
    started = time.monotonic()
    incoming, outgoing = await asyncio.open_connection("127.0.0.1", port)
    sending = asyncio.create_task(_send(outgoing, script))
    methods = [each.method for each in said.requests]
    try:
        if script.ending == "leaves":
            await sending
            return
        may_stop = script.ending in ("waits", "dribbles") and said.ends != "fault"
        while True:
            if may_stop and sending.done() and _count(heard.data, methods) >= len(methods):
                if said.ends != "incomplete":
                    return
                may_stop = False
                with contextlib.suppress(OSError):
                    outgoing.write_eof()
            if may_stop and not sending.done() and _count(heard.data, methods) >= len(methods):
                await sending
                continue
            try:
                is_hoping = said.ends == "fault" and sending.done() and _count(heard.data, methods) >= len(methods)
                async with asyncio.timeout(1.0 if is_hoping else None):
                    data = await incoming.read(65536)
            except TimeoutError:  # the gateway hopes for the rest of what is no HTTP
                with contextlib.suppress(OSError):
                    outgoing.write_eof()
                continue
            except OSError:
                data = b""
            if not data:
                heard.is_over = True
                return
            heard.data += data
            heard.seconds = time.monotonic() - started
    finally:
        sending.cancel()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await sending
        outgoing.close()
        with contextlib.suppress(OSError):
            await outgoing.wait_closed()


def _count(data: bytearray, methods: list[bytes]) -> int:
    with contextlib.suppress(reader.Unreadable):
        return len(reader.responses(bytes(data), methods, is_over=False))
    return 0


async def _send(outgoing: asyncio.StreamWriter, script: grammar.Script) -> None:
    with contextlib.suppress(OSError):
        for each in script.pieces:
            outgoing.write(each)
            await outgoing.drain()
            await asyncio.sleep(0.001 if script.ending == "dribbles" else 0)
        if script.ending == "half-closes":
            outgoing.write_eof()


def _note_submits(said: reader.Said, tally: Tally) -> None:
    for each in said.requests:
        if each.method == b"POST" and b"v1" in each.target and b"asks" in each.target:
            tally.submits += 1
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                prompt = json.loads(each.body.decode())["prompt"]
                if isinstance(prompt, str):
                    tally.prompts.add(prompt)


def _judged(answer: reader.Response, request: reader.Request | None, tally: Tally) -> list[str]:
    found: list[str] = []
    code = ""
    request_id = answer.headers.get("x-wave-request-id", "")
    if not request_id or request_id in tally.request_ids:
        found.append(f"the request id {request_id!r} is missing, or not this answer's own")
    tally.request_ids.add(request_id)
    if answer.status >= 400 and answer.body:
        code, why = _code_of(answer, request)
        found += why
    tally.statuses[f"{answer.status} {code}".strip()] += 1
    if answer.status >= 500 and (answer.status, code) not in EXPLAINED and answer.body:
        found.append(f"{answer.status} {code} without a cause: {answer.body[:300]!r}")
    if upstream_id := answer.headers.get("x-wave-upstream-task-id"):
        tally.upstream_ids.add(upstream_id)
    if request is not None and request.target.startswith(b"/") and request.target.isascii():
        method, path = request.method.decode(), request.target.decode().partition("#")[0]
        if openapi.path_of(method, path) is not None:
            found += openapi.problems(method, path, answer.status, answer.headers, answer.body)
    return found


def _code_of(answer: reader.Response, request: reader.Request | None) -> tuple[str, list[str]]:
    try:
        error = json.loads(answer.body)["error"]
        code, message = error["code"], error["message"]
    except (ValueError, KeyError, TypeError):
        return "?", [f"not our form: {answer.status} {answer.body[:300]!r}"]
    is_theirs = "request_id" not in error and request is not None and request.target.startswith(b"/v1/tasks")
    if is_theirs:
        return f"{code} (the vendor's)", []
    if errors.STATUS_OF_CODE.get(code) != answer.status or not message:
        return code, [f"{answer.status} with code {code!r}"]
    if error.get("request_id") != answer.headers.get("x-wave-request-id"):
        return code, ["the request id of the error is not that of the answer"]
    return code, []
