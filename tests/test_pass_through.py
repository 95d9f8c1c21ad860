"""What the gateway does not know passes through it byte for byte, both ways, over real sockets."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from typing import cast

import pytest

from gateway import simulator_pictures
from tests import process

NUMBERS = b"[1.10, 9007199254740993, 1e2, 1E+2, -0.0, 0.30000000000000004, 123456789012345678901234567890, 1.0e-7]"
NESTED = '{"数量": 1.10 , "深": {"list":[ null,true ,{"a" : {"b":[[]], "c":{} }}], "价格":9007199254740993}}'.encode()
CHINESE = '"一只狐狸，雪地里。🦊"'.encode()
ESCAPED = rb'"\u6ce2 \/ \ud83e\udd8a \u0041\tz"'
FIELDS = {
    b"price": b"1.10",
    b"exact": b"9007199254740993",
    b"exponent": b"1e2",
    b"numbers": NUMBERS,
    b"extra": NESTED,
    "备注".encode(): CHINESE,
    b"escaped": ESCAPED,
    b"nothing": b"null",
}
"""Unknown fields, each with its value as written."""

UNKNOWN = b",".join(b'"%s":%s' % each for each in FIELDS.items())
ALWAYS = {"task_id", "model", "action", "status", "created_at", "progress"}
TASK = "task-wave1795365772e000001596853"


# Request


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[tuple[process.Gateway, process.Vendor]]:
    with process.pair(tmp_path_factory.mktemp("through")) as both:
        yield both


def sent_for(running: tuple[process.Gateway, process.Vendor], body: bytes) -> bytes:
    """The body that the vendor received for a submit."""
    gateway, vendor = running
    status, _, document = gateway.call("POST", "/v1/tasks", body)
    assert status == 200, document
    return vendor.requests()["submits"][-1]["body"].encode()


def test_a_request_reaches_the_vendor_byte_for_byte(running):
    known = b'"model":"gemini-2.5-flash-image-preview","prompt":' + CHINESE
    body = b"{" + known + b"," + UNKNOWN + b',"seed":7,"n":1}'
    assert sent_for(running, body) == body


def test_blanks_between_the_fields_of_a_request_are_all_that_changes(running):
    fields = b",\n  ".join(b'"%s" : %s' % each for each in FIELDS.items())
    body = b'{ "model" : "gemini-2.5-flash-image-preview",\n  "prompt" : ' + ESCAPED + b",\n  " + fields + b" }"
    sent = b'{"model":"gemini-2.5-flash-image-preview","prompt":' + ESCAPED + b"," + UNKNOWN + b"}"
    assert sent_for(running, body) == sent


def test_a_request_that_a_policy_changes_keeps_the_bytes_of_its_other_fields(tmp_path):
    policy = "models: {rewrite: {gemini-3-pro-image: gemini-3-pro-image-preview}}\n"
    with process.pair(tmp_path, growth=policy + "official_fallback: {default: strip}\n") as both:
        body = b'{"model":"gemini-3-pro-image",' + UNKNOWN + b',"official_fallback":true,"prompt":' + CHINESE + b"}"
        sent = b'{"model":"gemini-3-pro-image-preview",' + UNKNOWN + b',"official_fallback":false,"prompt":'
        assert sent_for(both, body) == sent + CHINESE + b"}"


# Answer


class FakeVendor(http.server.ThreadingHTTPServer):
    """Answers with the bytes that it was given: the simulator's own answers go through a JSON library."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.submitted = self.polled = b""
        self.picture = simulator_pictures.jpeg("a fox", 7, 0, (64, 64))

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class _Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def vendor(self) -> FakeVendor:
        return cast(FakeVendor, self.server)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(self.vendor.submitted)

    def do_GET(self) -> None:
        if self.path == "/files/1.jpg":
            self._answer(self.vendor.picture, "image/jpeg")
        else:
            self._answer(self.vendor.polled)

    def _answer(self, content: bytes, media_type: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


CORE = b'"task_id":"ID","model":"gemini-2.5-flash-image-preview","action":"generate"'
QUEUED = CORE + b',"status":"queued","created_at":1795365772610,"progress":0'
DONE = CORE + b',"status":"completed","created_at":1795365772610,"progress":100,"completed_at":1795365773910'
RESULT = b'"result":{"images":[{"url":["PICTURE"],' + UNKNOWN + b',"expires_at":WHEN}],"more":' + NESTED + b"}"
GENERATIONS = {
    "early": (
        b'{"code":"success","data":"ID",' + UNKNOWN + b"}",
        b'{"task_id":"ID","status":"success","created_at":1795365772,"progress":"100%",'
        b'"model":"gemini-2.5-flash-image-preview","action":"generate","completed_at":1795365773,'
        b'"result":{"images":[{"url":"PICTURE","expires_at":WHEN,' + UNKNOWN + b"}]}," + UNKNOWN + b"}",
    ),
    "documented": (
        b"{" + QUEUED + b"," + UNKNOWN + b"}",
        b"{" + UNKNOWN + b"," + DONE + b"," + RESULT + b',"cost":6640}',
    ),
    "later": (
        b'{"urls":{"get":"UP/v1/tasks/ID","cancel":"UP/v1/tasks/ID/cancel"},' + QUEUED + b"," + UNKNOWN + b"}",
        b"{" + DONE + b',"urls":{"get":"UP/v1/tasks/ID","cancel":"UP/v1/tasks/ID/cancel"},'
        b'"routing":{"channel":' + NESTED + b',"weight":1.10},' + UNKNOWN + b"," + RESULT + b',"cost":6640}',
    ),
    "wrapped": (
        b'{"code":"success","data":{' + QUEUED + b"," + UNKNOWN + b'},"exact":9007199254740993}',
        b'{"code":"success","data":{' + DONE + b"," + UNKNOWN + b"," + RESULT + b',"cost":6640},"weight":1e2}',
    ),
}
"""What the vendor answers to a submit and to a poll, with its own blanks inside of unknown values."""


def filled(answer: bytes, *, task_id: str, base: str, picture: str, expires_at: int) -> bytes:
    """An answer with its ids, URLs and their end put in."""
    values = {"ID": task_id, "UP": base, "PICTURE": picture, "WHEN": str(expires_at)}
    for name, value in values.items():
        answer = answer.replace(name.encode(), value.encode())
    return answer


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_answer_reaches_the_client_byte_for_byte_but_for_ids_and_urls(tmp_path, generation):
    submitted, polled = GENERATIONS[generation]
    vendor = FakeVendor()
    theirs = {"task_id": TASK, "base": "https://www.qingbo.dev", "picture": f"{vendor.url}/files/1.jpg"}
    vendor.submitted = filled(submitted, **theirs, expires_at=1895452172)
    vendor.polled = filled(polled, **theirs, expires_at=1895452172)
    with vendor.serving(), process.pair(tmp_path, "--upstream", vendor.url) as (gateway, _):
        key = "Bearer wgk_growth"
        body = b'{"model":"gemini-2.5-flash-image-preview","prompt":"a fox","seed":7}'
        url = f"{gateway.url}/v1/tasks"
        status, _, first = process.fetch(
            url, method="POST", body=body, Content_Type="application/json", Authorization=key
        )
        assert status == 200
        [task_id] = set(re.findall(r"task-wg\w{26}", first.decode()))
        gateway.complete(task_id)
        last = process.fetch(f"{url}/{task_id}", Authorization=key)[2]
        [picture] = set(re.findall(r"http://[\w.:]+/media/\w{64}\.jpg", last.decode()))
        assert process.fetch(picture)[2] == vendor.picture
        _, answered, hit = process.fetch(
            url, method="POST", body=body, Content_Type="application/json", Authorization=key
        )
        assert (answered["X-Cache"], hit.count(UNKNOWN)) == ("HIT", last.count(UNKNOWN))
    ours = {"task_id": task_id, "base": gateway.url, "picture": picture, "expires_at": 4102444800}
    for answer, written in ((first, submitted), (last, polled)):
        before_the_end = filled(written, **ours)[:-1]
        assert answer[: len(before_the_end)] == before_the_end
        added = set(json.loads(b"{" + answer[len(before_the_end) :].removeprefix(b",")))
        # What is always there is added only where the vendor's own answer does not have it.
        assert added == (ALWAYS if written.startswith(b'{"code":"success","data":') else set())
