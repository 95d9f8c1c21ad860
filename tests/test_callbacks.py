"""The vendor's callbacks between real processes: what arrives, what comes of it, what a stranger gets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import json
import pathlib
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from gateway import app, settings
from tests import process, receiver

FLASH = "gemini-2.5-flash-image-preview"
FORGED = "x" * 43
NOT_FOUND = "There is nothing at this path; tasks are at /v1/tasks."


@dataclasses.dataclass(slots=True)
class House:
    """A gateway with callbacks on, its vendor, and where its log goes."""

    gateway: process.Gateway
    vendor: process.Vendor
    log: pathlib.Path

    def submit(self, prompt: str, **fields: Any) -> tuple[str, str]:
        """(task id, token) of a new task."""
        status, _, document = self.gateway.submit(prompt=prompt, **fields)
        assert status == 200, document
        [sent] = [each["body"] for each in self.vendor.requests()["submits"] if prompt in each["body"]]
        url = json.loads(sent)["callback_url"]
        assert url.startswith(f"{self.gateway.url}/callbacks/")
        return document["task_id"], url.rpartition("/")[2]

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body); a body that is an iterator goes out in chunks."""
        connection = http.client.HTTPConnection("127.0.0.1", int(self.gateway.url.rpartition(":")[2]), timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(connection):
            connection.request(method, path, body, named, encode_chunked=hasattr(body, "__next__"))
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def rows(self, sql: str, *values: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.gateway.data / "wave.db", timeout=20)) as database:
            return database.execute(sql, values).fetchall()

    def polls(self) -> int:
        return int(self.vendor.requests()["counts"].get("poll", 0))


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Iterator[House]:
    directory = tmp_path_factory.mktemp("callbacks")
    launcher = ("sh", "-c", 'exec "$@" 2>>"$0"', str(directory / "log"))
    options = ("--upstream-callbacks", "--log-level", "debug")
    with process.pair(directory, *options, launcher=launcher) as (gateway, vendor):
        yield House(gateway, vendor, directory / "log")


async def test_of_100_duplicates_and_50_forged_callbacks_at_once_come_one_end_one_webhook_and_few_polls(house):
    async with receiver.receiving(receiver.status(200)) as there:
        house.vendor.script([{"on": "submit", "do": {"queue_s": 0, "work_s": 2, "callback_times": 10}}])
        before, began_at = house.polls(), time.monotonic()
        task_id, token = await asyncio.to_thread(house.submit, "under fire", callback_url=f"{there.url}/hook")
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def call(each: str) -> int:
                async with session.post(f"{house.gateway.url}/callbacks/{each}", json={"status": "failed"}) as answer:
                    return answer.status

            tokens = [token] * 100 + [FORGED[:-2] + f"{number:02d}" for number in range(50)]
            assert await asyncio.gather(*map(call, tokens)) == [204] * 100 + [404] * 50
            async with asyncio.timeout(30):
                await there.has_request.wait()
            took_s = time.monotonic() - began_at
            polls = house.polls() - before
            assert await asyncio.gather(*map(call, [token] * 20)) == [204] * 20
        await asyncio.sleep(1.5)  # a second webhook would leave with the next look for one, each second
        [sent] = there.requests
        assert (sent.document()["task_id"], sent.document()["status"]) == (task_id, "completed")
        kinds = house.rows("SELECT kind, nanos FROM entries WHERE task_id = ? ORDER BY id", task_id)
        assert kinds == [("reserve", 13_282_000), ("settle", 13_280_000)]
        assert house.polls() - before == polls, "an ended task is not polled"
        # By schedule twice a second at first; the hints add one a second. Seen: 4 polls in 2.6 s.
        assert 1 <= polls <= 3 * took_s + 2, (polls, took_s)


def test_a_task_that_nobody_watches_ends_with_its_callback(house):
    house.vendor.script([{"on": "submit", "do": {"queue_s": 0, "work_s": 1}}])
    heard = house.vendor.requests()["counts"].get("callback", 0)
    task_id, _ = house.submit("by itself")
    until = time.monotonic() + 30
    while house.rows("SELECT state FROM tasks WHERE id = ?", task_id) != [("completed",)]:
        assert time.monotonic() < until
        time.sleep(0.05)
    while house.vendor.requests()["counts"].get("callback", 0) == heard:
        assert time.monotonic() < until
        time.sleep(0.05)
    metrics = process.fetch(f"{house.gateway.url}/metrics")[2].decode()
    assert 'wave_gateway_http_requests_total{method="POST",route="/callbacks/{token}",status="204"}' in metrics


def test_what_a_stranger_sends_is_refused_at_once_and_like_any_unknown_path(house):
    odd = ["a", "x" * 42, "x" * 44, "x" * 9000, "%00" * 43, "%2e%2e", "x%0d%0aSet-Cookie:a", "..%2fmetrics", "%C3%A9"]
    for path in [f"/callbacks/{token}" for token in (FORGED, *odd)] + ["/callbacks/", "/callbacks", "/callbacks/a/b"]:
        began_at = time.monotonic()
        status, headers, body = house.send("POST", path, b"{}")
        error = json.loads(body)["error"]
        assert (path, status, error["code"], error["message"]) == (path, 404, "not_found", NOT_FOUND)
        assert "set-cookie" not in headers
        assert time.monotonic() - began_at < 5
    assert house.send("POST", "/callbacks/" + "x" * 40_000, b"{}")[0] == 431
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        status, headers, _ = house.send(method, f"/callbacks/{FORGED}")
        assert (method, status, headers["allow"]) == (method, 405, "POST")


def test_the_answer_to_a_known_token_is_empty_and_the_same_whatever_the_task_is_and_whatever_the_body_says(house):
    house.vendor.script([{"on": "submit", "prompt": "open", "do": {"queue_s": 60}}])
    _, still_open = house.submit("still open")
    _, ended = house.submit("soon ended", seed=1)
    until = time.monotonic() + 30
    while house.rows("SELECT state FROM tasks WHERE callback_token = ?", ended) != [("completed",)]:
        assert time.monotonic() < until
        time.sleep(0.05)
    answers = set()
    for token in (still_open, ended):
        for body in (b"", b"{}", b"\xff\xfe", b"[" * 100_000, iter([b"a"] * 10)):
            status, headers, text = house.send("POST", f"/callbacks/{token}?x=1", body)
            headers.pop("x-wave-request-id")
            answers.add((status, tuple(sorted(headers.items())), text))
    assert answers == {(204, (("cache-control", "no-store"), ("x-content-type-options", "nosniff")), b"")}


def test_a_huge_body_is_refused_with_a_token_and_without(house):
    house.vendor.script([])
    _, token = house.submit("huge")
    for each in (token, FORGED):
        status, _, body = house.send("POST", f"/callbacks/{each}", b"", Content_Length="1048577")
        assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")
    assert house.send("POST", f"/callbacks/{token}", iter([b"x" * 65_536] * 20))[0] == 413


def test_the_log_names_the_route_never_a_token_and_warns_of_an_address_that_the_vendor_cannot_reach(house):
    tokens = [token for [token] in house.rows("SELECT callback_token FROM tasks")]
    assert len(tokens) >= 4
    house.send("POST", f"/callbacks/{FORGED}")
    text = house.log.read_text()
    assert "method=POST route=/callbacks/{token} status=204" in text
    assert "method=POST route=/callbacks/{token} status=404" in text
    assert [token for token in (*tokens, FORGED) if token in text] == []
    warning = f"--upstream-callbacks: the upstream is told to call {house.gateway.url}, which it can hardly reach"
    assert f"{warning}: 127.0.0.1 is loopback. Give a --public-url" in text


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"public_url": "https://wave.example.com"}, None),
        ({"public_url": "http://wave.example.com:8080"}, None),
        ({"public_url": "https://8.8.8.8"}, None),
        ({}, "127.0.0.1 is loopback"),
        ({"listen": "[::1]:8080"}, "::1 is loopback"),
        ({"public_url": "http://10.1.2.3:8080"}, "10.1.2.3 is private"),
        ({"public_url": "http://localhost:8080"}, "localhost is a name of this network only"),
        ({"public_url": "https://wave"}, "wave is a name of this network only"),
        ({"public_url": "https://wave.localhost"}, "wave.localhost is a name of this network only"),
    ],
)
def test_an_address_that_is_none_for_others_is_known_by_its_looks(caplog, said, reason):
    for value in (True, False):
        caplog.clear()
        app.warn_of_callbacks(settings.parse(said | {"upstream_callbacks": value}, {}))
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == (1 if value and reason else 0)
        assert all(f"hardly reach: {reason}." in line for line in lines)


def test_each_token_is_new():
    assert len({app.new_callback_token() for _ in range(1000)}) == 1000
