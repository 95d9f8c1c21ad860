"""Who may do what: every route, every principal, one table written by hand; on real sockets.

A principal is what a request brings along. All of them come from loopback; `remote` peers are tried on the ASGI app,
since no packet of a test may come from elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import http.client
import json
import pathlib
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from gateway import app, settings
from tests import process

FLASH = "gemini-2.5-flash-image-preview"
BODY = json.dumps({"model": FLASH, "prompt": "a fox", "seed": 7}).encode()
TOKEN = "scrape-0123456789"
UNKNOWN_TASK = "task-wg00000000000000000000000000"
UNKNOWN_FILE = "0" * 64 + ".jpg"

OK = (200, None)
WHO = (401, "invalid_api_key")
MAY = (403, "not_permitted")
NOT_YOURS = (404, "task_not_found")
LATE = (400, "task_not_cancellable")
NOTHING = (404, "not_found")
HEARD = (204, None)

Seen = tuple[int, str | None]
"""Status and error code."""

PRINCIPALS = (
    "nobody",  # a loopback peer without a key
    "forwarded",  # the same, with a header that a proxy adds
    "unknown",  # a key that no file lists
    "expired",
    "unable",  # a key of the team whose `can` lists everything but what the route needs
    "owner",
    "other",  # another team's key
    "disabled",  # the key of a disabled team
    "metrics",  # the metrics token
    "media",  # who knows a media URL, and sends its digest as a key
)

TEAMS_OWN: tuple[Seen, ...] = (WHO, WHO, WHO, WHO, MAY, OK, OK, WHO, WHO, WHO)
OPEN: tuple[Seen, ...] = (OK,) * 10
"""For anyone, whatever else is sent."""

GRANTS: Mapping[str, tuple[str, tuple[Seen, ...]]] = {
    # route: what a key needs, and what each principal gets
    "POST /v1/tasks": ("submit", TEAMS_OWN),
    "POST /v1/tasks/sync": ("submit", TEAMS_OWN),
    "GET /v1/tasks": ("read", TEAMS_OWN),
    "GET /v1/tasks/{task_id}": ("read", (WHO, WHO, WHO, WHO, MAY, OK, NOT_YOURS, WHO, WHO, WHO)),
    # The task has ended: the owner is allowed to ask, and told that it is too late.
    "POST /v1/tasks/{task_id}/cancel": ("cancel", (WHO, WHO, WHO, WHO, MAY, LATE, NOT_YOURS, WHO, WHO, WHO)),
    "GET /v1/models": ("read", TEAMS_OWN),
    "GET /v1/models/{model_id:path}": ("read", TEAMS_OWN),
    "GET /v1/dashboard/billing/balance": ("read", TEAMS_OWN),
    "GET /v1/dashboard/billing/usage": ("read", TEAMS_OWN),
    "GET /v1/dashboard/billing/subscription": ("read", TEAMS_OWN),
    "POST /callbacks/{token}": ("", (HEARD,) * 10),
    "GET /media/{name}": ("", OPEN),
    "GET /openapi.json": ("", OPEN),
    "GET /healthz": ("", OPEN),
    "GET /readyz": ("", OPEN),
    # Without a --metrics-token: loopback peers, whatever key they send, unless a proxy stands between.
    "GET /metrics": ("", (OK, WHO, OK, OK, OK, OK, OK, OK, OK, OK)),
}

WITH_TOKEN: Mapping[str, tuple[str, tuple[Seen, ...]]] = {
    **GRANTS,
    "GET /metrics": ("", (WHO, WHO, WHO, WHO, WHO, WHO, WHO, WHO, OK, WHO)),
}

INTERNAL = ("GET /healthz", "GET /readyz", "GET /metrics")
"""What --internal-listen serves; anything else is not there, for nobody."""

METHODS = {
    "/v1/tasks": "GET, HEAD, POST",
    "/v1/tasks/sync": "GET, HEAD, POST",  # GET: a task of this id
    "/v1/tasks/{task_id}": "GET, HEAD",
    "/v1/tasks/{task_id}/cancel": "POST",
    "/v1/models": "GET, HEAD",
    "/v1/models/{model_id:path}": "GET, HEAD",
    "/v1/dashboard/billing/balance": "GET, HEAD",
    "/v1/dashboard/billing/usage": "GET, HEAD",
    "/v1/dashboard/billing/subscription": "GET, HEAD",
    "/callbacks/{token}": "POST",
    "/media/{name}": "GET, HEAD",
    "/openapi.json": "GET, HEAD",
    "/healthz": "GET, HEAD",
    "/readyz": "GET, HEAD",
    "/metrics": "GET, HEAD",
}
"""The methods of each path; every other one is 405."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """An answer, whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def seen(self) -> Seen:
        if self.status < 400:
            return self.status, None
        return self.status, json.loads(self.body)["error"]["code"]

    def without_ids(self) -> tuple[int, dict[str, str], bytes]:
        """What is left when the id of the request is taken out."""
        request_id = self.headers["x-wave-request-id"]
        headers = {name: value for name, value in self.headers.items() if name != "x-wave-request-id"}
        return self.status, headers, self.body.replace(request_id.encode(), b"")


class House:
    """A gateway with both addresses, three teams, and a completed task of two of them."""

    def __init__(self, gateway: process.Gateway, internal_port: int) -> None:
        self.gateway = gateway
        self.ports = {"--listen": int(gateway.url.rpartition(":")[2]), "--internal-listen": internal_port}
        self.task_id, self.media_path = "", ""
        self.token = ""
        self.task_id, self.media_path = self._completed("owner")
        self._completed("other")
        with contextlib.closing(sqlite3.connect(gateway.data / "wave.db", timeout=20)) as database:
            sql = "SELECT callback_token FROM tasks WHERE id = ?"
            [[self.token]] = database.execute(sql, [self.task_id]).fetchall()

    def ask(
        self, method: str, path: str, *, principal: str, needs: str = "", at: str = "--listen", **headers: str
    ) -> Answer:
        body = BODY if method == "POST" and not path.endswith("/cancel") else None
        return self.send(method, path, body, headers=self.brings(principal, needs) | headers, at=at)

    def send(
        self, method: str, path: str, body: bytes | None, *, headers: Mapping[str, str], at: str = "--listen"
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[at], timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, named, answer.read())

    def brings(self, principal: str, needs: str) -> dict[str, str]:
        """The headers of a principal."""
        if principal == "nobody":
            return {}
        if principal == "forwarded":
            return {"X-Forwarded-For": "127.0.0.1"}
        digest = self.media_path.rpartition("/")[2].partition(".")[0]
        tokens = {"metrics": TOKEN, "media": digest, "unable": f"wgk_unable_{needs or 'read'}"}
        return {"Authorization": f"Bearer {tokens.get(principal, f'wgk_{principal}')}"}

    def path(self, pattern: str) -> str:
        """A path for a route's pattern; what it names belongs to the owner."""
        known = {"{task_id}": self.task_id, "{model_id:path}": FLASH, "/media/{name}": self.media_path}
        known["{token}"] = self.token
        for name, value in known.items():
            pattern = pattern.replace(name, value)
        return pattern

    def _completed(self, principal: str) -> tuple[str, str]:
        document = json.loads(self.ask("POST", "/v1/tasks", principal=principal, Prefer="wait=20").body)
        assert document["status"] == "completed", document
        [url] = document["result"]["images"][0]["url"]
        return document["task_id"], url.removeprefix(self.gateway.url)


def _key(name: str, key: str, more: str = "") -> str:
    return f'  - {{name: {name}, sha256: "{hashlib.sha256(key.encode()).hexdigest()}"{more}}}\n'


def _write_teams(directory: pathlib.Path) -> None:
    """Team growth with the keys `owner`, `expired` and `unable`, team research with `other`, and a disabled one."""
    yesterday = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1)
    growth = "team: growth\nupstream_key: env:KEY_GROWTH\nkeys:\n" + _key("owner", "wgk_owner")
    growth += _key("expired", "wgk_expired", f", expires: {yesterday}")
    growth += _key("no-submit", "wgk_unable_submit", ", can: [read, cancel]")
    growth += _key("no-read", "wgk_unable_read", ", can: [submit, cancel]")
    growth += _key("no-cancel", "wgk_unable_cancel", ", can: [submit, read]")
    (directory / "growth.yaml").write_text(growth)
    research = "team: research\nupstream_key: env:KEY_RESEARCH\nkeys:\n" + _key("ci", "wgk_other")
    (directory / "research.yaml").write_text(research)
    asleep = "team: asleep\nmode: disabled\nupstream_key: env:KEY_GROWTH\nkeys:\n" + _key("ci", "wgk_disabled")
    (directory / "asleep.yaml").write_text(asleep)


@contextlib.contextmanager
def _house(directory: pathlib.Path, vendor: process.Vendor, *options: str) -> Iterator[House]:
    internal = process.free_port()
    at = ("--internal-listen", f"127.0.0.1:{internal}")
    gateway = process.gateway_before(vendor.url, directory, *at, "--upstream-callbacks", *options)
    _write_teams(gateway.policies / "teams")
    gateway.start()
    try:
        yield House(gateway, internal)
    finally:
        gateway.end()


@pytest.fixture(scope="module")
def vendor() -> Iterator[process.Vendor]:
    port = process.free_port()
    vendor = process.Vendor(f"http://127.0.0.1:{port}", "simulate", "--port", str(port))
    vendor.start(path="/sim/bill")
    try:
        vendor.script([{"on": "submit", "times": None, "do": {"queue_s": 0, "work_s": 0}}])
        yield vendor
    finally:
        vendor.end()


@pytest.fixture(scope="module")
def house(tmp_path_factory, vendor) -> Iterator[House]:
    with _house(tmp_path_factory.mktemp("house"), vendor) as house:
        yield house


@pytest.fixture(scope="module")
def tokened(tmp_path_factory, vendor) -> Iterator[House]:
    directory = tmp_path_factory.mktemp("tokened")
    (directory / "token").write_text(TOKEN)
    with _house(directory, vendor, "--metrics-token-file", str(directory / "token")) as house:
        yield house


@pytest.fixture(params=["house", "tokened"])
def either(request: pytest.FixtureRequest) -> House:
    house: House = request.getfixturevalue(request.param)
    return house


def _served() -> list[Route]:
    served = app.routes(settings.parse({}, {}), None)  # type: ignore[arg-type]  # nothing is called
    return [each for each in served if isinstance(each, Route)]


# The table


def test_every_route_has_a_row_and_no_row_is_of_another():
    served = _served()
    listed = {f"{method} {each.path}" for each in served for method in (each.methods or set()) - {"HEAD"}}
    assert listed == set(GRANTS) == set(WITH_TOKEN)
    assert len(served) == len(app.routes(settings.parse({}, {}), None))  # type: ignore[arg-type]  # a mount is no row
    assert {each.path for each in served} == set(METHODS)


def test_the_internal_address_serves_these_three_and_no_more():
    served = app.internal_routes(settings.parse({}, {}), None)  # type: ignore[arg-type]  # nothing is called
    listed = {f"{method} {each.path}" for each in served for method in (each.methods or set()) - {"HEAD"}}
    assert listed == set(INTERNAL)


@pytest.mark.parametrize("route", GRANTS)
def test_without_a_metrics_token_each_principal_gets_what_its_row_says(house, route):
    assert _row(house, route) == dict(zip(PRINCIPALS, GRANTS[route][1], strict=True))


@pytest.mark.parametrize("route", WITH_TOKEN)
def test_with_a_metrics_token_each_principal_gets_what_its_row_says(tokened, route):
    assert _row(tokened, route) == dict(zip(PRINCIPALS, WITH_TOKEN[route][1], strict=True))


def _row(house: House, route: str, *, at: str = "--listen") -> dict[str, Seen]:
    method, pattern = route.split(" ")
    needs = GRANTS[route][0]
    path = house.path(pattern)
    return {each: house.ask(method, path, principal=each, needs=needs, at=at).seen for each in PRINCIPALS}


@pytest.mark.parametrize("route", GRANTS)
def test_on_the_internal_address_health_and_metrics_are_as_on_the_other_and_nothing_else_is_there(either, route):
    table = WITH_TOKEN if _is_tokened(either) else GRANTS
    expected = table[route][1] if route in INTERNAL else (NOTHING,) * 10
    assert _row(either, route, at="--internal-listen") == dict(zip(PRINCIPALS, expected, strict=True))


def _is_tokened(house: House) -> bool:
    return "--metrics-token-file" in house.gateway.arguments


@pytest.mark.parametrize("route", [route for route in GRANTS if route.startswith("GET ")])
def test_a_head_gets_the_status_of_the_get_and_no_body(tokened, route):
    needs, expected = WITH_TOKEN[route]
    path = tokened.path(route.split(" ")[1])
    answers = [tokened.ask("HEAD", path, principal=each, needs=needs) for each in PRINCIPALS]
    assert [each.status for each in answers] == [status for status, _ in expected]
    assert {each.body for each in answers} == {b""}


# Metrics and peers


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip", "Via"])
@pytest.mark.parametrize("at", ["--listen", "--internal-listen"])
def test_any_header_of_a_proxy_takes_loopback_its_right_to_the_metrics(house, header, at):
    for value in ("for=127.0.0.1", "127.0.0.1", ""):
        answer = house.send("GET", "/metrics", None, headers={header: value}, at=at)
        assert (value, answer.seen) == (value, WHO)


@pytest.mark.parametrize(
    "sent",
    [TOKEN, f"Basic {TOKEN}", f"bearer {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer ", "Bearer \xe9"],
)
def test_only_the_whole_token_opens_the_metrics(tokened, sent):
    assert tokened.send("GET", "/metrics", None, headers={"Authorization": sent}).seen == WHO


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (None, {"192.0.2.7": (401, 401), "2001:db8::7": (401, 401), "127.0.0.9": (200, 200), "::1": (200, 200)}),
        (TOKEN, {"192.0.2.7": (401, 200), "2001:db8::7": (401, 200), "127.0.0.9": (401, 200), "::1": (401, 200)}),
    ],
    ids=["no token", "token"],
)
async def test_a_peer_from_elsewhere_needs_the_token_for_the_metrics(tmp_path, token, expected):
    """Statuses without and with the token."""
    (tmp_path / "data").mkdir()
    said = {"policies": process.write_policies(tmp_path / "policies"), "data": tmp_path / "data"}
    parsed = settings.parse(said | {"upstream": "http://127.0.0.1:9", "metrics_token": token}, {})
    async with app.running(parsed, process.ENVIRON) as (served, _):
        for peer, statuses in expected.items():
            transport = httpx.ASGITransport(served, client=(peer, 50_000))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                without = await client.get("/metrics")
                having = await client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
                assert (peer, without.status_code, having.status_code) == (peer, *statuses)
                assert (await client.get("/healthz")).status_code == 200
                assert (await client.get("/v1/models")).status_code == 401


# Another team's task


@pytest.mark.parametrize(("method", "path"), [("GET", "{}"), ("HEAD", "{}"), ("POST", "{}/cancel")])
@pytest.mark.parametrize("more", [{}, {"Prefer": "wait=5"}, {"If-None-Match": "*"}])
def test_another_teams_task_is_byte_for_byte_an_unknown_one(house, method, path, more):
    def answered(task_id: str) -> Any:
        answer = house.ask(method, f"/v1/tasks/{path.format(task_id)}", principal="other", **more)
        return answer.without_ids()

    foreign = answered(house.task_id)
    assert foreign[0] == 404
    assert foreign == answered(UNKNOWN_TASK)


def test_a_list_holds_nothing_of_another_team_whatever_is_asked_for(house):
    for query in ("", "?limit=100", f"?q={house.task_id}", f"?before={house.task_id}", "?status=completed", "?q=fox"):
        page = json.loads(house.ask("GET", f"/v1/tasks{query}", principal="other").body)
        assert house.task_id not in json.dumps(page), query


def test_a_picture_is_there_for_its_exact_name_only(house):
    stem, _, extension = house.media_path.rpartition(".")
    assert house.ask("GET", house.media_path, principal="nobody").seen == OK
    for path in (
        "/media/",
        f"/media/{UNKNOWN_FILE}",
        stem,
        stem[:-1] + "." + extension,
        stem.upper().replace("/MEDIA", "/media") + "." + extension,
        stem + ".png",
        house.media_path + "/",
        house.media_path + "%00",
        house.media_path.replace("/media/", "/media/../media/"),
        house.media_path.replace("/media/", "/media/%2e%2e/media/"),
    ):
        assert (path, house.ask("GET", path, principal="owner").seen) == (path, NOTHING)


# Methods and paths


@pytest.mark.parametrize("pattern", METHODS)
@pytest.mark.parametrize("principal", ["nobody", "owner"])
def test_any_other_method_is_405_names_those_there_are_and_does_nothing(house, pattern, principal):
    allowed = METHODS[pattern].split(", ")
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "LOCK", "PURGE"):
        if method in allowed:
            continue
        answer = house.send(method, house.path(pattern), BODY, headers=house.brings(principal, ""))
        assert (method, answer.status, answer.headers["allow"]) == (method, 405, METHODS[pattern])
        assert not any(name.startswith("access-control-") for name in answer.headers)
        if method == "HEAD":
            assert answer.body == b""
        else:
            assert answer.seen == (405, "method_not_allowed")
            assert b"wgk_" not in answer.body  # a TRACE would send the key back


@pytest.mark.parametrize("method", ["BREW", "get", "GET\t", "GETT"])
def test_a_method_that_http_does_not_know_is_400_and_the_connection_ends(house, method):
    with socket.create_connection(("127.0.0.1", house.ports["--listen"]), timeout=30) as raw:
        raw.sendall(f"{method} /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wgk_owner\r\n\r\n".encode())
        with raw.makefile("rb") as stream:
            answer = stream.read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"invalid_request"' in answer


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/metrics/", NOTHING),
        ("//metrics", NOTHING),
        ("/METRICS", NOTHING),
        ("/metrics%2f", NOTHING),
        ("/healthz/../metrics", NOTHING),
        ("/v1/../metrics", NOTHING),
        ("/metrics;.jpg", NOTHING),
        ("/metrics%00", NOTHING),
        ("/%6detrics", WHO),  # the same page by another spelling
        ("/metrics?x=/media/a.jpg", WHO),
        ("http://127.0.0.1/metrics", WHO),  # the absolute form: its host decides nothing
        ("/v1//tasks", NOTHING),
        ("/v1/tasks/", NOTHING),
        ("/v1/%74asks", WHO),
        ("/v1/models/../tasks", WHO),  # a model of that name
        ("/v1/tasks/..%2fmodels", NOTHING),
        ("/v1/dashboard/billing", NOTHING),
        ("/v1/chat/completions", NOTHING),
        ("/callbacks", NOTHING),
        ("/callbacks/", NOTHING),
        ("/admin", NOTHING),
        ("/control.sock", NOTHING),
        ("/", NOTHING),
    ],
)
def test_neither_a_spelling_of_the_path_nor_the_host_opens_a_route(house, path, expected):
    for host in ("127.0.0.1", "localhost", "metrics", "[::1]:9090"):
        answer = house.send("GET", path, None, headers={"Host": host, "X-Forwarded-For": "127.0.0.1"})
        assert (host, answer.seen) == (host, expected)
