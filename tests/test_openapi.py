"""The description at `/openapi.json` is the program's: each route, code and header, and the form of real answers."""

from __future__ import annotations

import ast
import http.client
import json
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

import openapi_spec_validator
import pytest
from starlette.routing import Route

from gateway import app, errors, settings
from gateway.edge import openapi as described_by_us
from tests import openapi, process
from tests.openapi import DOCUMENT

ROOT = pathlib.Path(__file__).parent.parent
FLASH = "gemini-2.5-flash-image-preview"
UNKNOWN_TASK = "/v1/tasks/task-wg00000000000000000000000000"

POLICY = """
limits: {n: 4, requests_per_minute: 100000}
models: {actions: [generate, edit], deny: ["gpt-*"]}
spend: [{name: daily, cap: "5.00", per: day}]
"""
TIGHT = """
spend: [{name: ever, cap: "0.02", per: total}]
"""


# The document


def test_it_is_a_valid_openapi_3_1_document():
    openapi_spec_validator.validate(DOCUMENT)


def test_its_server_and_version_are_those_that_were_given():
    document = described_by_us.document(public_url="https://images.example.com", version="9.8.7")
    assert document["servers"] == [{"url": "https://images.example.com"}]
    assert document["info"]["version"] == "9.8.7"


def test_every_route_is_described_with_its_methods_and_nothing_else():
    exist = {
        (method, each.path.replace(":path}", "}"))
        for each in app.routes(settings.parse({}, {}), None)  # type: ignore[arg-type]  # nothing is called
        if isinstance(each, Route)
        for method in each.methods or set()
    }
    assert openapi.operations().keys() == exist


def test_every_error_code_is_described_under_its_status_and_no_other():
    described = {
        (int(status), code)
        for operation in openapi.operations().values()
        for status, response in operation["responses"].items()
        if status.isdigit()
        for code in openapi.codes_of(response)
    }
    # No described operation answers it: it is the answer to every other method.
    described |= {(405, code) for code in openapi.codes_of(DOCUMENT["components"]["responses"]["MethodNotAllowed"])}
    assert described == {(status, code) for code, status in errors.STATUS_OF_CODE.items()}


def test_every_operation_tells_of_what_can_happen_before_its_route_is_known():
    always = {(400, "invalid_request"), (408, "request_timeout"), (413, "body_too_large"), (431, "headers_too_large")}
    always |= {(500, "internal_error"), (503, "unavailable")}
    for (method, path), operation in openapi.operations().items():
        if method != "HEAD":
            responses = operation["responses"].items()
            told = {(int(status), code) for status, each in responses for code in openapi.codes_of(each)}
            assert always <= told, (method, path)


def names_read() -> set[str]:
    """Request headers that the edge asks for by name, in lower case."""
    found: set[str] = set()
    for path in (ROOT / "gateway/edge").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                owner, first = ast.unparse(node.func.value).lower(), node.args[0]
                if owner.endswith("headers") and node.func.attr in ("get", "getlist"):
                    assert isinstance(first, ast.Constant) and isinstance(first.value, str), ast.unparse(node)
                    found.add(first.value.lower())
    return found


def test_every_header_that_the_edge_reads_is_described_and_none_that_it_does_not():
    described = {
        openapi.resolved(each)["name"].lower()
        for operation in openapi.operations().values()
        for each in operation.get("parameters", [])
        if openapi.resolved(each)["in"] == "header"
    }
    by_other_means = {"authorization", "content-type"}  # a security scheme, and the media type of the body
    proxies = {"forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"}  # looked for in a loop
    ours = {"allow"}  # of an answer
    assert names_read() - ours | proxies == described | by_other_means


def test_every_component_is_used_but_the_answer_to_other_methods():
    text = json.dumps(DOCUMENT)
    for kind in ("schemas", "parameters", "headers", "responses"):
        for name in DOCUMENT["components"][kind]:
            used = f'"#/components/{kind}/{name}"' in text
            assert used != (name == "MethodNotAllowed"), (kind, name)


def examples(node: Any, at: str = "") -> Iterator[tuple[str, dict[str, Any], Any]]:
    """(place, schema, example) of every media type and parameter that has one."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return
    if "schema" in node and "example" in node:
        yield at, node["schema"], node["example"]
    if "schema" in node and "examples" in node:
        for name, each in node["examples"].items():
            yield f"{at}/{name}", node["schema"], each["value"]
    for name, below in node.items():
        yield from examples(below, f"{at}/{name}")


EXAMPLES = {at: (schema, example) for at, schema, example in examples(DOCUMENT)}


@pytest.mark.parametrize("at", EXAMPLES)
def test_every_example_is_what_its_schema_says(at):
    assert openapi.schema_problems(*EXAMPLES[at]) == []


# Real answers


class Client:
    """Asks, and holds every answer against the document."""

    def __init__(self, gateway: process.Gateway) -> None:
        self.port = int(gateway.url.rpartition(":")[2])
        self.seen: set[tuple[str, str, int]] = set()

    def ask(
        self, method: str, path: str, body: object = None, *, key: str | None = "wgk_growth", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            named["Authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, sent, named)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            status, text = answer.status, answer.read()
        finally:
            connection.close()
        assert openapi.problems(method, path, status, found, text) == []
        self.seen.add((method, openapi.path_of(method, path) or "", status))
        return status, found, text

    def submit(self, *, key: str = "wgk_growth", path: str = "/v1/tasks", **fields: Any) -> tuple[int, Any]:
        headers = {"Prefer": fields.pop("prefer", "wait=0")} | fields.pop("headers", {})
        status, _, text = self.ask("POST", path, {"model": FLASH, "prompt": "a fox"} | fields, key=key, **headers)
        return status, json.loads(text)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Iterator[tuple[process.Gateway, process.Vendor]]:
    directory = tmp_path_factory.mktemp("openapi")
    with process.pair(directory, "--max-wait", "5s", "--upstream-callbacks", growth=POLICY, research=TIGHT) as (
        gateway,
        vendor,
    ):
        vendor.script([{"on": "submit", "prompt": "", "times": None, "do": {"queue_s": 0, "work_s": 0}}])
        yield gateway, vendor


@pytest.fixture(scope="module")
def client(pair) -> Client:
    return Client(pair[0])


def test_it_is_served_to_anyone_with_the_public_url_an_etag_and_for_minutes(client, pair):
    status, headers, text = client.ask("GET", "/openapi.json", key=None)
    assert status == 200
    assert json.loads(text) == described_by_us.document(public_url=pair[0].url, version="0.1.0")
    assert headers["cache-control"] == "public, max-age=300"
    status, again, text = client.ask("GET", "/openapi.json", key=None, If_None_Match=headers["etag"])
    assert (status, again["etag"], text) == (304, headers["etag"], b"")
    status, again, text = client.ask("HEAD", "/openapi.json", key=None)
    assert (status, again["etag"], text) == (200, headers["etag"], b"")


def test_the_requests_that_it_shows_are_taken(client):
    media = openapi.operations()["POST", "/v1/tasks"]["requestBody"]["content"]["application/json"]
    for each in media["examples"].values():
        status, _, text = client.ask("POST", "/v1/tasks", each["value"])
        assert status == 200, text


def test_a_dry_run_by_the_old_form_of_submit_does_nothing(client, pair):
    before = pair[1].requests()["counts"]["submit"]
    status, decision = client.submit(path="/v1/tasks/sync", headers={"X_Wave_Dry_Run": "true"})
    assert (status, decision["decision"]) == (200, "allow")
    assert pair[1].requests()["counts"]["submit"] == before


def test_a_tour_of_all_routes_meets_nothing_that_is_not_described(client, pair):
    _gateway, vendor = pair
    ask, submit = client.ask, client.submit
    _, done = submit(prefer="wait=20", seed=7, headers={"Idempotency_Key": "tour"})
    assert done["status"] == "completed"
    assert submit(seed=7)[1]["status"] == "completed"
    assert submit(seed=7, headers={"Idempotency_Key": "tour"})[1]["task_id"] == done["task_id"]
    assert submit(seed=8, headers={"Idempotency_Key": "tour"})[0] == 422
    assert submit(seed=7, headers={"X_Wave_Dry_Run": "true"})[1]["cache"] == "hit"
    assert submit(headers={"X_Wave_Dry_Run": "true"}, n=5)[1]["code"] == "limit_exceeded"
    assert submit(path="/v1/tasks/sync", seed=9)[1]["status"] == "completed"
    for fields, expected in (
        ({"prompt": ""}, 400),
        ({"resolution": "9K"}, 400),
        ({"callback_url": "http://10.0.0.1/"}, 400),
        ({"model": "gpt-image-2"}, 403),
        ({"action": "reference", "image_urls": ["https://a.example/b.jpg"]}, 403),
        ({"n": 5}, 403),
        ({"official_fallback": True}, 403),
        ({"headers": {"X_Wave_Max_Cost_Usd": "0.001"}}, 403),
        ({"headers": {"X_Wave_Cache": "only-if-cached"}, "seed": 77}, 504),
        ({"key": "wgk_nobody"}, 401),
        ({"key": "wgk_research", "n": 2}, 402),
    ):
        for path in ("/v1/tasks", "/v1/tasks/sync"):
            assert submit(path=path, **fields)[0] == expected, (path, fields)
    assert ask("POST", "/v1/tasks", b"{")[0] == 400
    assert ask("POST", "/v1/tasks", b"{", Content_Type="text/plain")[0] == 415
    assert ask("POST", "/v1/tasks/sync", b"{", Content_Type="text/plain")[0] == 415
    assert ask("POST", "/v1/tasks", b" " * (2**20 + 1))[0] == 413
    assert ask("GET", "/v1/models", X_Long="a" * 9000)[0] == 431
    refused = {"status": 422, "code": "upstream_bad_request", "extra": {"hint": 1}}
    vendor.script([{"on": "submit", "prompt": "no", "do": refused}])
    assert submit(prompt="no")[0] == 422
    at = f"/v1/tasks/{done['task_id']}"
    _, headers, _ = ask("GET", at, Prefer="wait=1")
    assert ask("GET", at, If_None_Match=headers["etag"])[0] == 304
    assert ask("GET", UNKNOWN_TASK)[0] == 404
    assert ask("POST", f"{at}/cancel")[0] == 400
    assert ask("POST", f"{UNKNOWN_TASK}/cancel")[0] == 404
    vendor.script([{"on": "submit", "times": None, "do": {"queue_s": 60}}])
    for answer, expected in ({}, 200), ({"status": 500}, 502), ({"status": 429}, 503):
        _, queued = submit(prompt="slow")
        vendor.script([{"on": "submit", "times": None, "do": {"queue_s": 60}}, {"on": "cancel", "do": answer}])
        assert ask("POST", f"/v1/tasks/{queued['task_id']}/cancel")[0] == expected
    page = json.loads(ask("GET", "/v1/tasks?limit=2&status=completed&since=2026-01-01&q=fox")[2])
    assert (len(page["data"]), page["has_more"]) == (2, True)
    assert ask("GET", "/v1/tasks?limit=0")[0] == 400
    [first, *_] = json.loads(ask("GET", "/v1/models")[2])["data"]
    assert ask("GET", f"/v1/models/{first['id']}")[0] == 200
    assert ask("GET", "/v1/models/gpt-image-2")[0] == 404
    for page in ("balance", "usage", "subscription"):
        assert ask("GET", f"/v1/dashboard/billing/{page}")[0] == 200
        assert ask("GET", f"/v1/dashboard/billing/{page}", key=None)[0] == 401
    picture = done["result"]["images"][0]["url"][0].removeprefix(pair[0].url)
    _, headers, _ = ask("GET", picture, key=None)
    assert ask("GET", picture, key=None, Range="bytes=0-9")[0] == 206
    assert ask("GET", picture, key=None, Range="bytes=99999999-")[0] == 416
    assert ask("GET", picture, key=None, If_None_Match=headers["etag"])[0] == 304
    assert ask("GET", "/media/" + "0" * 64 + ".jpg", key=None)[0] == 404
    token = json.loads(vendor.requests()["submits"][0]["body"])["callback_url"].rpartition("/")[2]
    assert ask("POST", f"/callbacks/{token}", key=None)[0] == 204
    assert ask("POST", "/callbacks/" + "0" * 43, key=None)[0] == 404
    assert ask("GET", "/healthz", key=None)[0] == ask("GET", "/readyz", key=None)[0] == 200
    assert ask("GET", "/metrics", key=None, Accept="application/openmetrics-text")[0] == 200
    assert ask("GET", "/metrics", key=None, Accept_Encoding="gzip")[0] == 200
    assert ask("GET", "/metrics", key=None, Via="1.1 proxy")[0] == 401
    assert ask("GET", "/openapi.json", key=None)[0] == 200
    heads = {
        "{task_id}": done["task_id"],
        "{model_id}": FLASH,
        "/media/{name}": picture,
    }
    for method, path in openapi.operations():
        if method == "HEAD":
            for name, value in heads.items():
                path = path.replace(name, value)
            assert ask("HEAD", path)[0] == 200
    assert {(method, path) for method, path, _ in client.seen} == openapi.operations().keys()


def test_an_answer_that_lacks_a_required_field_or_header_does_not_pass(client):
    _, headers, text = client.ask("GET", "/v1/models")
    whole = json.loads(text)
    for name in ("id", "object", "tier", "price_usd", "actions", "resolutions", "aspect_ratios"):
        cut = {"object": "list", "data": [{key: value for key, value in whole["data"][0].items() if key != name}]}
        assert openapi.problems("GET", "/v1/models", 200, headers, json.dumps(cut).encode()) != []
    more = {"object": "list", "data": [whole["data"][0] | {"secret": 1}]}
    assert openapi.problems("GET", "/v1/models", 200, headers, json.dumps(more).encode()) != []
    fewer = {name: value for name, value in headers.items() if name != "x-wave-request-id"}
    assert openapi.problems("GET", "/v1/models", 200, fewer, text) != []
    assert openapi.problems("GET", "/v1/models", 200, headers | {"x-new": "1"}, text) != []
    assert openapi.problems("GET", "/v1/models", 418, headers, text) != []


def test_a_request_that_is_too_slow_is_answered_as_described(client):
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as raw:
        raw.sendall(b"GET /v1/models HTTP/1.1\r\n")
        answer = http.client.HTTPResponse(raw)
        answer.begin()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        assert answer.status == 408
        assert openapi.problems("GET", "/v1/models", answer.status, headers, answer.read()) == []
