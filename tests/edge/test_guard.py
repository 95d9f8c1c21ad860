import asyncio
import contextlib
import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.edge import guard, render
from gateway.errors import CallerError

DISCONNECT: Message = {"type": "http.disconnect"}


class HandClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclasses.dataclass
class Seen:
    """What a guard reported, and what went out to the client."""

    observed: list[tuple[str, str, int, float]] = dataclasses.field(default_factory=list)
    records: list[guard.AccessRecord] = dataclasses.field(default_factory=list)
    sent: list[Message] = dataclasses.field(default_factory=list)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


class Client:
    """The server's side of ASGI: hands the parts of a body over one by one, then stays silent."""

    def __init__(self, seen: Seen, incoming: Sequence[bytes | Message]) -> None:
        self._seen = seen
        self._incoming = list(incoming)

    async def receive(self) -> Message:
        if not self._incoming:
            await asyncio.Event().wait()
        part = self._incoming.pop(0)
        if isinstance(part, bytes):
            return {"type": "http.request", "body": part, "more_body": bool(self._incoming)}
        return part

    async def send(self, message: Message) -> None:
        self._seen.sent.append(message)


def more(body: bytes) -> Message:
    """A part of a body behind which more is announced, whether it comes or not."""
    return {"type": "http.request", "body": body, "more_body": True}


async def ask(
    app: ASGIApp,
    *incoming: bytes | Message,
    method: str = "POST",
    path: str = "/v1/tasks",
    headers: Sequence[tuple[bytes, bytes]] = (),
    clock: HandClock | None = None,
    **limits: Any,
) -> Seen:
    seen = Seen()
    ids = (f"req-{number}" for number in itertools.count(1))
    guarded = guard.Guard(
        app,
        new_request_id=lambda: next(ids),
        clock=clock or HandClock(),
        observe=lambda *labels: seen.observed.append(labels),
        log=seen.records.append,
        **{"max_body_bytes": 100, **limits},
    )
    scope: Scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(headers),
        "client": ("198.51.100.7", 5000),
        "state": {},
    }
    client = Client(seen, incoming)
    await guarded(scope, client.receive, client.send)
    return seen


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body."""
    body = await Request(scope, receive).body()
    await Response(body, media_type="application/json")(scope, receive, send)


async def answer_unread(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without a look at the body."""
    await Response(b"{}", 401, media_type="application/json")(scope, receive, send)


async def never(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("the app was called")


def length(size: int) -> tuple[bytes, bytes]:
    return (b"content-length", str(size).encode())


CHUNKED = (b"transfer-encoding", b"chunked")


async def test_a_request_gets_an_id_inside_and_on_its_answer():
    async def show_id(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(scope["state"]["request_id"])(scope, receive, send)

    seen = await ask(show_id)

    assert seen.body == b"req-1"
    assert seen.headers["x-wave-request-id"] == "req-1"


async def test_answers_are_not_stored_nor_sniffed():
    seen = await ask(answer_unread)

    assert seen.headers["cache-control"] == "no-store"
    assert seen.headers["x-content-type-options"] == "nosniff"


async def test_a_cache_control_that_the_app_set_stays():
    async def media(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b"GIF", headers={"Cache-Control": "public, immutable"})(scope, receive, send)

    seen = await ask(media)

    assert seen.headers["cache-control"] == "public, immutable"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"x-a", b"v" * 8189)], 200),  # 3 + 8,189 = 8,192
        ([(b"x-a", b"v" * 8190)], 431),
        ([(b"n" * 8192, b"v")], 431),
        ([(b"x-a", b"v" * 7997)] * 4, 200),  # 4 * 8,000 = 32,000
        ([(b"x-a", b"v" * 7997)] * 5, 431),
        ([(b"x", b"")] * 32759, 200),  # with the path's 9 bytes: 32,768
        ([(b"x", b"")] * 32760, 431),
    ],
)
async def test_one_header_of_8_kib_and_all_of_32_kib_are_the_most(headers, status):
    seen = await ask(echo, b"{}", headers=headers)

    assert seen.status == status
    if status == 431:
        assert seen.error["code"] == "headers_too_large"


async def test_the_path_counts_as_headers_do():
    seen = await ask(never, path="/" + "a" * 32768)

    assert (seen.status, seen.error["code"]) == (431, "headers_too_large")


@pytest.mark.parametrize("headers", [[length(2), CHUNKED], [CHUNKED, length(2)], [(b"content-length", b"+2")]])
async def test_a_body_framed_twice_or_unclearly_is_refused_and_the_connection_closed(headers):
    seen = await ask(never, b"{}", headers=headers)

    assert (seen.status, seen.error["code"]) == (400, "invalid_request")
    assert seen.headers["connection"] == "close"


@pytest.mark.parametrize(
    "name",
    [
        *(b"host", b"authorization", b"content-type", b"idempotency-key"),
        *(b"x-wave-cache", b"x-wave-dry-run", b"x-wave-max-cost-usd"),
    ],
)
@pytest.mark.parametrize("values", [(b"a", b"b"), (b"a", b"a"), (b"", b"a"), (b"a", b"b", b"c")])
async def test_a_header_of_one_value_that_comes_twice_is_refused_and_the_connection_closed(name, values):
    seen = await ask(never, b"{}", headers=[length(2), *((name, value) for value in values)])

    assert (seen.status, seen.error["code"]) == (400, "invalid_request")
    assert seen.error["message"] == f"The header {name.decode()} came twice; send it once."
    assert seen.headers["connection"] == "close"


@pytest.mark.parametrize("name", [b"accept", b"prefer", b"if-none-match", b"x-forwarded-for", b"via", b"cookie"])
async def test_a_header_that_is_a_list_may_come_in_pieces(name):
    assert (await ask(echo, b"{}", headers=[length(2), (name, b"a"), (name, b"b")])).status == 200


@pytest.mark.parametrize(
    "coding", [b"gzip, chunked", b"gzip,chunked", b"chunked, chunked", b"identity", b"deflate", b""]
)
async def test_a_transfer_coding_beside_chunked_is_refused_and_the_connection_closed(coding):
    seen = await ask(never, b"{}", headers=[(b"transfer-encoding", coding)])

    assert (seen.status, seen.error["code"]) == (400, "invalid_request")
    assert seen.headers["connection"] == "close"


@pytest.mark.parametrize("coding", [b"chunked", b"Chunked", b" chunked "])
async def test_chunked_is_taken_in_any_case(coding):
    assert (await ask(echo, b"{}", headers=[(b"transfer-encoding", coding)])).status == 200


@pytest.mark.parametrize("announced", [b"101", b"9" * 5000])
async def test_a_body_announced_too_large_is_refused_before_the_app(announced):
    seen = await ask(never, DISCONNECT, headers=[(b"content-length", announced), (b"expect", b"100-continue")])

    assert (seen.status, seen.error["code"]) == (413, "body_too_large")
    assert seen.headers["connection"] == "close"


async def test_a_body_that_grows_too_large_is_refused_while_it_comes():
    seen = await ask(echo, more(b"a" * 60), more(b"a" * 41), DISCONNECT, headers=[CHUNKED])

    assert (seen.status, seen.error["code"]) == (413, "body_too_large")
    assert seen.headers["connection"] == "close"


async def test_a_body_of_just_the_limit_is_taken():
    seen = await ask(echo, b"a" * 60, b"a" * 40, headers=[CHUNKED])

    assert (seen.status, seen.body) == (200, b"a" * 100)
    assert "connection" not in seen.headers


async def test_a_body_that_does_not_come_in_time_is_refused_and_the_connection_closed():
    seen = await ask(echo, more(b"{"), headers=[length(2)], body_deadline_s=0.02, linger_s=0.0)

    assert (seen.status, seen.error["code"]) == (408, "request_timeout")
    assert seen.error["message"] == "The body did not come whole within 0.02 s; send the request again."
    assert seen.headers["connection"] == "close"


async def test_a_body_that_came_in_time_may_be_read_after_the_deadline():
    clock = HandClock()

    async def read_late(scope: Scope, receive: Receive, send: Send) -> None:
        clock.now += 31.0
        await echo(scope, receive, send)

    seen = await ask(read_late, b"{}", headers=[length(2)], clock=clock)

    assert (seen.status, seen.body) == (200, b"{}")


async def test_waiting_for_the_client_to_leave_has_no_deadline():
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await receive()
        await Response(b"{}")(scope, receive, send)

    seen = await ask(stream, b"{}", headers=[length(2)], body_deadline_s=0.01)

    assert seen.status == 200


async def test_a_body_still_coming_behind_a_begun_answer_has_no_deadline(caplog):
    clock = HandClock()

    async def answer_early(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        clock.now += 31.0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await receive()
        await send({"type": "http.response.body"})

    seen = await ask(answer_early, more(b"{"), headers=[length(3)], clock=clock, linger_s=0.0)

    assert (seen.status, seen.headers["connection"]) == (200, "close")
    assert caplog.text == ""


async def test_the_body_is_not_read_from_two_sides_while_the_app_waits_for_the_client_to_leave():
    receiving = 0

    async def receive() -> Message:
        nonlocal receiving
        receiving += 1
        assert receiving == 1
        await asyncio.Event().wait()
        raise AssertionError("never")

    async def watch_while_answering(scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        await answer_unread(scope, receive, send)
        watch.cancel()

    seen = Seen()
    guarded = guard.Guard(
        watch_while_answering,
        max_body_bytes=100,
        new_request_id=lambda: "r",
        clock=HandClock(),
        observe=lambda *labels: seen.observed.append(labels),
    )
    await guarded({"type": "http", "method": "POST", "headers": [length(2)]}, receive, Client(seen, []).send)

    assert receiving == 1
    assert (seen.status, seen.headers["connection"]) == (401, "close")


async def test_an_unread_body_that_has_come_leaves_the_connection_open():
    seen = await ask(answer_unread, b"{", b"}", headers=[length(2)])

    assert seen.status == 401
    assert "connection" not in seen.headers
    assert seen.records[0].request_bytes == 2


async def test_an_unread_body_still_coming_is_dropped_behind_the_answer_and_the_connection_closed():
    arrived = asyncio.Event()

    async def answer_and_let_it_come(scope: Scope, receive: Receive, send: Send) -> None:
        asyncio.get_running_loop().call_later(0.01, arrived.set)
        await answer_unread(scope, receive, send)

    seen = Seen()
    parts = [more(b"a" * 500), {"type": "http.request", "body": b"a" * 500, "more_body": False}]

    async def receive() -> Message:
        await arrived.wait()
        return parts.pop(0)

    async def send(message: Message) -> None:
        seen.sent.append({**message, "left": len(parts)})

    guarded = guard.Guard(
        answer_and_let_it_come,
        max_body_bytes=2000,
        new_request_id=lambda: "r",
        clock=HandClock(),
        observe=lambda *labels: None,
        log=seen.records.append,
    )
    await guarded({"type": "http", "method": "POST", "headers": [length(1000)]}, receive, send)

    assert seen.headers["connection"] == "close"
    assert [(message.get("body"), message.get("more_body"), message["left"]) for message in seen.sent] == [
        (None, None, 2),
        (b"{}", True, 2),
        (b"", False, 0),
    ]
    assert seen.records[0].request_bytes == 1000


async def test_a_gateway_error_is_rendered_with_its_details_and_headers():
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        raise CallerError("rate_limited", "Slow down.", details={"rule": "rpm"}, headers={"Retry-After": "3"})

    seen = await ask(refuse)

    assert seen.status == 429
    assert seen.error == {"message": "Slow down.", "code": "rate_limited", "rule": "rpm", "request_id": "req-1"}
    assert seen.headers["retry-after"] == "3"
    assert seen.headers["cache-control"] == "no-store"


async def test_an_unforeseen_exception_is_logged_and_not_shown(caplog):
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("canary")

    seen = await ask(fail)

    assert (seen.status, seen.error["code"]) == (500, "internal_error")
    assert b"canary" not in seen.body
    assert "request_failed request_id=req-1 route=other" in caplog.text
    assert "ValueError: canary" in caplog.text


async def test_an_error_whose_details_cannot_be_rendered_is_an_internal_error(caplog):
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        raise CallerError("invalid_request", "No.", details={"param": object()})

    seen = await ask(refuse)

    assert (seen.status, seen.error["code"]) == (500, "internal_error")


@pytest.mark.parametrize("error", [ValueError("late"), CallerError("not_found", "late")])
async def test_a_failure_behind_a_begun_answer_is_logged_and_sends_nothing_more(caplog, error):
    async def fail_late(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise error

    seen = await ask(fail_late)

    assert [message["type"] for message in seen.sent] == ["http.response.start"]
    assert "late" in caplog.text


async def test_an_app_that_does_not_answer_is_an_internal_error(caplog):
    async def say_nothing(scope: Scope, receive: Receive, send: Send) -> None:
        return

    seen = await ask(say_nothing)

    assert (seen.status, seen.error["code"]) == (500, "internal_error")
    assert "the app returned without an answer" in caplog.text


async def test_a_client_that_leaves_is_reported_as_499_and_is_not_an_error(caplog):
    seen = await ask(echo, more(b"{"), DISCONNECT, headers=[length(2)])

    assert seen.sent == []
    assert seen.observed == [("other", "POST", 499, 0.0)]
    assert seen.records[0].status == 499
    assert caplog.text == ""


async def test_a_client_that_leaves_while_starlette_reads_is_reported_as_499(caplog):
    async def read(request: Request) -> Response:
        return Response(await request.body())

    app = Starlette(routes=[Route("/v1/tasks", read, methods=["POST"])], exception_handlers=render.exception_handlers())

    seen = await ask(app, more(b"{"), DISCONNECT, headers=[length(2)])

    assert seen.sent == []
    assert seen.observed == [("/v1/tasks", "POST", 499, 0.0)]
    assert caplog.text == ""


async def test_a_client_that_leaves_in_the_middle_of_an_answer_keeps_its_status(caplog):
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 206, "headers": []})
        await send({"type": "http.response.body", "body": b"1234", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        raise ClientDisconnect

    seen = await ask(stream, DISCONNECT)

    assert (seen.records[0].status, seen.records[0].response_bytes) == (206, 4)
    assert caplog.text == ""


async def test_a_body_too_large_for_starlette_is_our_413(caplog):
    async def read(request: Request) -> Response:
        return Response(await request.body())

    app = Starlette(routes=[Route("/v1/tasks", read, methods=["POST"])], exception_handlers=render.exception_handlers())

    seen = await ask(app, more(b"a" * 101), DISCONNECT, headers=[CHUNKED])

    assert (seen.status, seen.error["code"], seen.error["request_id"]) == (413, "body_too_large", "req-1")
    assert caplog.text == ""


async def test_an_exception_in_a_starlette_route_is_answered_once_and_logged(caplog):
    async def fail(request: Request) -> Response:
        raise ValueError("canary")

    app = Starlette(routes=[Route("/v1/tasks", fail, methods=["POST"])], exception_handlers=render.exception_handlers())

    seen = await ask(app)

    assert [message["type"] for message in seen.sent] == ["http.response.start", "http.response.body"]
    assert (seen.status, seen.error["code"], seen.error["request_id"]) == (500, "internal_error", "req-1")
    assert "ValueError: canary" in caplog.text


async def test_a_request_cancelled_by_the_server_is_told_to_come_again():
    seen = Seen()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    guarded = guard.Guard(
        wait,
        max_body_bytes=100,
        new_request_id=lambda: "r",
        clock=HandClock(),
        observe=lambda *labels: seen.observed.append(labels),
    )
    client = Client(seen, [])
    task = asyncio.create_task(guarded({"type": "http", "method": "GET", "headers": []}, client.receive, client.send))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task

    assert task.cancelled()
    assert (seen.status, seen.error["code"]) == (503, "unavailable")
    assert seen.observed == [("other", "GET", 503, 0.0)]


async def test_the_access_record_has_sizes_time_and_route_but_not_the_path():
    clock = HandClock()

    async def work(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["route"] = "/callbacks/{token}"
        clock.now += 0.25
        await echo(scope, receive, send)

    seen = await ask(work, b'{"n":1}', path="/callbacks/canary", headers=[length(7)], clock=clock)

    assert seen.records == [
        guard.AccessRecord(
            request_id="req-1",
            method="POST",
            route="/callbacks/{token}",
            status=200,
            seconds=0.25,
            request_bytes=7,
            response_bytes=7,
            client="198.51.100.7",
        )
    ]
    assert seen.observed == [("/callbacks/{token}", "POST", 200, 0.25)]


@pytest.mark.parametrize(
    ("method", "path", "labels"),
    [
        ("GET", "/v1/tasks/task-1", ("/v1/tasks/{id}", "GET", 200)),
        ("PUT", "/v1/tasks/task-1", ("/v1/tasks/{id}", "PUT", 405)),
        ("GET", "/v1/nothing", ("other", "GET", 404)),
        ("PROPFIND", "/v1/nothing", ("other", "other", 404)),
    ],
)
async def test_metrics_are_labelled_by_route_and_known_method_only(method, path, labels):
    async def answer(request: Request) -> Response:
        return Response(b"{}")

    app = Starlette(routes=[Route("/v1/tasks/{id}", answer)], exception_handlers=render.exception_handlers())

    seen = await ask(app, method=method, path=path)

    assert seen.observed == [(*labels, 0.0)]


async def test_lifespan_passes_untouched():
    called = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        called.append(scope["type"])

    guarded = guard.Guard(
        app, max_body_bytes=1, new_request_id=lambda: "r", clock=HandClock(), observe=lambda *labels: None
    )
    client = Client(Seen(), [])
    await guarded({"type": "lifespan"}, client.receive, client.send)

    assert called == ["lifespan"]
