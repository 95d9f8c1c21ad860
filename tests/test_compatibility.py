"""What the vendor's clients rely on, for each generation of its answers: every model in every mode, and the clients.

One gateway and one simulator per generation, real processes on real sockets.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests import process

PRO, PRO_OFFICIAL = "gemini-3-pro-image-preview", "gemini-3-pro-image-preview-official"
FLASH_31, FLASH_31_OFFICIAL = "gemini-3.1-flash-image-preview", "gemini-3.1-flash-image-preview-official"
FLASH, FLASH_OFFICIAL = "gemini-2.5-flash-image-preview", "gemini-2.5-flash-image-preview-official"
EXACT_NANOS = {
    PRO_OFFICIAL: 113_900_000,
    PRO: 42_500_000,
    FLASH_31_OFFICIAL: 56_950_000,
    FLASH_31: 31_875_000,
    FLASH_OFFICIAL: 33_150_000,
    FLASH: 13_281_250,
}
"""The list price of one image. Source: UPSTREAM.md, "The Gemini image series"."""

MODES = ("generate", "image2image", "edit", "reference", "search_grounded")
IMPOSSIBLE = [(model, "search_grounded") for model in (PRO, PRO_OFFICIAL, FLASH, FLASH_OFFICIAL)]
POSSIBLE = [(model, mode) for model in EXACT_NANOS for mode in MODES if (model, mode) not in IMPOSSIBLE]

ONE_QUOTA_NANOS = 2_000
PLACES = ("task_id", "id", "data", "data.task_id", "data.id")
"""Where vendors' answers to a submit have been seen to carry the id."""


@pytest.fixture(scope="module", params=["early", "documented", "later"])
def running(request, tmp_path_factory) -> Iterator[tuple[process.Gateway, process.Vendor, str]]:
    with process.pair(tmp_path_factory.mktemp(request.param)) as (gateway, vendor):
        do = {"generation": request.param, "queue_s": 0.1, "work_s": 0.4}
        placed = [
            {"on": "submit", "times": None, "prompt": f"id at {place};", "do": {**do, "id_at": place}}
            for place in PLACES
        ]
        vendor.script([*placed, {"on": "submit", "times": None, "do": do}])
        yield gateway, vendor, request.param


# Models and modes


def asked(model: str, mode: str) -> dict[str, Any]:
    pictures = {"image2image": 1, "edit": 1, "reference": 4}.get(mode, 0)
    urls = [f"https://pictures.example.com/{number}.png" for number in range(pictures)]
    body = {"model": model, "action": mode, "prompt": f"一只狐狸, {mode}", "n": 2}
    return body | ({"image_urls": urls} if urls else {})


def nanos(usd: str) -> int:
    whole, _, decimals = usd.partition(".")
    return int(whole) * 10**9 + int(decimals.ljust(9, "0"))


def test_there_are_26_pairs_that_the_vendor_allows_and_4_that_it_does_not():
    assert (len(POSSIBLE), len(IMPOSSIBLE)) == (26, 4)


async def test_every_model_completes_in_every_mode_it_has_and_settles_to_the_vendors_bill(running):
    gateway, vendor, generation = running
    posted = vendor.requests()["counts"].get("submit", 0)
    answers = await gateway.flood([asked(model, mode) for model, mode in POSSIBLE], team="research")
    assert [status for status, _, _ in answers] == [200] * 26
    ends = [await asyncio.to_thread(gateway.complete, document["task_id"], team="research") for *_, document in answers]
    assert vendor.requests()["counts"]["submit"] == posted + 26
    bill, total_billed = vendor.bill()["by_task"], 0
    for (model, mode), document in zip(POSSIBLE, ends, strict=True):
        _, headers, _ = gateway.call("GET", f"/v1/tasks/{document['task_id']}", team="research")
        line = bill[headers["X-Wave-Upstream-Task-Id"]]
        assert (line["model"], line["delivered"], line["status"]) == (model, 2, "completed")
        assert (document["model"], document["action"]) == (model, mode)
        cost, billed = nanos(headers["X-Wave-Cost-Usd"]), line["quota"] * ONE_QUOTA_NANOS
        total_billed += billed
        if generation == "early":
            assert "cost" not in document
            assert cost == 2 * EXACT_NANOS[model] and 0 <= cost - billed < 2 * ONE_QUOTA_NANOS
        else:
            assert document["cost"] * ONE_QUOTA_NANOS == cost == billed
    report = json.loads(gateway.cli("report", "--by", "team", "--format", "json").stdout)
    [settled] = [nanos(line["cost_usd"]) for line in report if line["team"] == "research"]
    # 2 images each: four models in 4 modes (1,622,650,000 at list price), the 3.1 Flash pair in 5 (888,250,000)
    assert total_billed == 2_510_880_000
    assert settled == (2_510_900_000 if generation == "early" else 2_510_880_000)


@pytest.mark.parametrize(("model", "mode"), IMPOSSIBLE)
def test_a_mode_that_the_model_does_not_have_is_refused_before_any_post(running, model, mode):
    gateway, vendor, _ = running
    posted = vendor.requests()["counts"].get("submit", 0)
    status, _, document = gateway.call("POST", "/v1/tasks", asked(model, mode))
    assert (status, document["error"]["code"], document["error"]["param"]) == (400, "capability_violation", "action")
    searching = asked(model, "generate") | {"google_search": True}
    status, _, document = gateway.call("POST", "/v1/tasks", searching)
    error = document["error"]
    assert (status, error["code"], error["param"]) == (400, "capability_violation", "google_search")
    assert vendor.requests()["counts"].get("submit", 0) == posted


def test_the_answers_keep_the_shapes_of_their_generation(running):
    gateway, _, generation = running
    _, _, first = gateway.submit(prompt="shapes")
    done = gateway.complete(first["task_id"])
    [image] = done["result"]["images"]
    assert image["expires_at"] == 4102444800
    match generation:
        case "early":
            assert (first["code"], first["data"]) == ("success", first["task_id"])
            assert (done["status"], done["progress"]) == ("success", "100%")
            assert 1_500_000_000 < done["created_at"] <= done["completed_at"] < 5_000_000_000
            assert image["url"].startswith(f"{gateway.url}/media/")
        case "documented":
            assert (done["status"], done["progress"]) == ("completed", 100)
            assert 1_500_000_000_000 < done["created_at"] <= done["completed_at"]
            assert [url.startswith(f"{gateway.url}/media/") for url in image["url"]] == [True]
        case _:
            assert (done["status"], done["progress"]) == ("completed", "100%")
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", done["completed_at"])
            assert done["billing_status"] == "settled"
            own = f"{gateway.url}/v1/tasks/{done['task_id']}"
            assert done["urls"] == {"get": own, "cancel": f"{own}/cancel"}


# Clients

ENDS = ("completed", "succeeded", "success", "done")
FAILURES = ("failed", "error", "cancelled", "canceled")


def test_a_body_that_waits_for_100_continue_as_curls_does(running):
    """curl asks first where a body is large; the program itself is among the clients of `make clients`."""
    gateway, _, _ = running
    body = json.dumps({"model": FLASH, "prompt": "一只狐狸在雪地里", "n": 1, "aspect_ratio": "16:9"}).encode()
    place = urlsplit(gateway.url)
    head = [
        "POST /v1/tasks HTTP/1.1",
        f"Host: {place.netloc}",
        "User-Agent: curl/7.88.1",
        "Accept: */*",
        "Authorization: Bearer wgk_growth",
        "Content-Type: application/json",
        "Expect: 100-continue",
        f"Content-Length: {len(body)}",
    ]
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        answer = connection.makefile("rb")
        assert [answer.readline(), answer.readline()] == [b"HTTP/1.1 100 Continue\r\n", b"\r\n"]
        connection.sendall(body)
        assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
        headers = http.client.parse_headers(answer)
        submitted = json.loads(answer.read(int(headers["Content-Length"])))
    task = gateway.complete(submitted["task_id"])
    assert [process.fetch(url)[0] for url in pictures_of(task)] == [200]


def test_requests_as_in_the_vendors_examples(running):
    """The headers and the one kept-alive connection of a `requests.Session`."""
    gateway, _, _ = running
    common = {"User-Agent": "python-requests/2.34.2", "Accept-Encoding": "gzip, deflate, br, zstd", "Accept": "*/*"}
    common |= {"Connection": "keep-alive", "Authorization": "Bearer wgk_growth"}
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=30)

    def call(method: str, path: str, body: object = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        headers = common | ({} if content is None else {"Content-Type": "application/json"})
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        text = answer.read()
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json"), text
        return json.loads(text)

    try:
        task = call("POST", "/v1/tasks", {"model": FLASH, "prompt": "a fox in the snow", "n": 2})
        socket_used = connection.sock
        until = time.monotonic() + 20
        while task["status"] not in ENDS:
            assert task["status"] not in FAILURES and time.monotonic() < until
            time.sleep(0.2)
            task = call("GET", f"/v1/tasks/{task['task_id']}")
        assert connection.sock is socket_used
    finally:
        connection.close()
    assert [process.fetch(url)[0] for url in pictures_of(task)] == [200, 200]


def test_a_client_that_looks_for_ids_and_urls_wherever_they_have_been_seen(running):
    """The Spring client of UPSTREAM.md, "Real clients to stay compatible with"."""
    gateway, _, generation = running
    with concurrent.futures.ThreadPoolExecutor(len(PLACES)) as pool:
        for done in [pool.submit(be_that_client, gateway, generation, place) for place in PLACES]:
            done.result()


def be_that_client(gateway: process.Gateway, generation: str, place: str) -> None:
    status, _, document = gateway.submit(prompt=f"id at {place}; a fox")
    assert status == 200
    task_id = id_found(document)
    assert task_id.startswith("task-wg")
    until = time.monotonic() + 20
    while (task := gateway.call("GET", f"/v1/tasks/{task_id}")[2])["status"] not in ENDS:
        assert task["status"] not in FAILURES and time.monotonic() < until
        time.sleep(0.2)
    collected = urls_found(task)
    pictures = [url for url in collected if "/v1/tasks/" not in url]
    own = f"{gateway.url}/v1/tasks/{task_id}"
    # `urls` of the later generation is such a key too; those links are ours, and like the vendor's they want the key.
    links = [own, f"{own}/cancel"] if generation == "later" else []
    assert [url for url in collected if url not in pictures] == links
    assert len(pictures) == 1
    for url in pictures:
        status, headers, content = process.fetch(url)
        assert (status, headers["Content-Type"], content[:3]) == (200, "image/jpeg", b"\xff\xd8\xff")


def pictures_of(task: dict[str, Any]) -> list[str]:
    """The result's URLs, in either shape."""
    shapes = [image["url"] for image in task["result"]["images"]]
    return [url for shape in shapes for url in ([shape] if isinstance(shape, str) else shape)]


def id_found(document: dict[str, Any]) -> str:
    inner = document.get("data")
    nested = inner if isinstance(inner, dict) else {}
    found = (document.get("task_id"), document.get("id"), nested.get("task_id"), nested.get("id"))
    return next(str(each) for each in found if each)


def urls_found(value: object, *, wanted: bool = False) -> list[str]:
    """Every http(s) string under a key that contains `url` or is one of the names such clients look at."""
    if isinstance(value, dict):
        names = ("image", "images", "file", "output", "result", "data")
        lists = [
            urls_found(each, wanted=wanted or "url" in key.lower() or key.lower() in names)
            for key, each in value.items()
        ]
    elif isinstance(value, list):
        lists = [urls_found(each, wanted=wanted) for each in value]
    else:
        return [value] if wanted and isinstance(value, str) and value.startswith(("http://", "https://")) else []
    return [url for each in lists for url in each]
