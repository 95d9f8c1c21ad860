"""Canaries: secrets are put in everywhere, everything that the gateway writes or says is searched for them.

One gateway at `--log-level debug` lives through good and bad days (`_campaign`). What it then left is read place by
place (`Haul`). Keys and tokens may be in none; prompts, signed URLs and callback URLs only in the places of `KEPT`,
where they must be: so each search is known to find.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import http.client
import http.server
import json
import pathlib
import signal
import socket
import sqlite3
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click.testing
import pytest

from gateway import cli, simulator_pictures
from tests import process

FLASH = "gemini-2.5-flash-image-preview"

# One of each does not look like a key: what does is taken out of tracebacks, where it would never be found.
UPSTREAM = {"growth": "sk-Canary1UpstreamByEnv0001", "research": "Canary2UpstreamByFile0002"}
VIRTUAL = {"growth": "wgk_Canary3VirtualGrowth0003", "research": "Canary4VirtualResearch0004"}
METRICS_TOKEN = "Canary5MetricsToken0005"
WRONG_KEY = "Canary6WrongKey0006"
CALLBACK_TOKEN = "Canary7CallbackToken0007"
SIGNATURE = "Canary8Signature0008"
PROMPT = {"growth": "Canary9PromptOfGrowth0009", "research": "Canary10PromptOfResearch0010"}
CLEAR_KEY = "sk-Canary11KeyInYaml0011"
PROXY_USER, PROXY_PASSWORD = "Canary12ProxyUser0012", "Canary13ProxyPassword0013"
PROXY_WORDS = base64.b64encode(f"{PROXY_USER}:{PROXY_PASSWORD}".encode()).decode()

NOWHERE: Final = (
    *(*UPSTREAM.values(), METRICS_TOKEN, WRONG_KEY, CLEAR_KEY),
    *(PROXY_USER, PROXY_PASSWORD, PROXY_WORDS),
)
"""Keys and tokens."""

ECHOES: Final = "refusals of what the same client wrote"

PLACES: Final = frozenset(
    {
        *("log", "cmdline", "files' names", ECHOES),
        *("answers to growth", "answers to research", "answers to others", "answers to the metrics token"),
        *("database as rows", "database as bytes", "cache", "blobs", "last good policies", "rest of the data"),
        *("cli policy check", "cli policy explain", "cli policy explain json", "cli audit"),
        *("cli report", "cli report csv", "cli report json", "cli report focus"),
        *("cli tasks list", "cli tasks list json", "cli tasks show", "cli tasks show json"),
        *("cli reconcile", "cli reconcile json", "cli cache stats", "cli media gc"),
    }
)

DATABASE: Final = {"database as rows", "database as bytes"}
KEPT: Final[Mapping[str, set[str]]] = {
    # The request as it was sent; an operator who looks at one task sees how its prompt begins.
    PROMPT["growth"]: DATABASE | {"cli tasks show", "cli tasks show json"},
    PROMPT["research"]: DATABASE,
    # Whom to call back, for as long as the task is kept; `tasks show` names the host only.
    CALLBACK_TOKEN: DATABASE,
    # The result's address upstream; the team's own answer while its picture cannot be mirrored.
    SIGNATURE: DATABASE | {"answers to growth"},
    # A client that sends its key as a model or a media type reads it in the refusal; nobody else does.
    VIRTUAL["growth"]: {ECHOES},
    VIRTUAL["research"]: {ECHOES},
}


class Host(http.server.ThreadingHTTPServer):
    """A media host that keeps everything it is sent: the pictures, or a place where nobody should ever ask."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.heard: list[tuple[str, str]] = []
        """Path and all headers of each request."""
        self.picture = simulator_pictures.jpeg("a fox", 7, 0, (64, 64))

    @contextlib.contextmanager
    def serving(self) -> Iterator[Host]:
        thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Host)
        self.server.heard.append((self.path, str(self.headers)))
        is_good = self.path.startswith("/good/")
        self.send_response(200 if is_good else 404)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(self.server.picture) if is_good else 0))
        self.end_headers()
        if is_good:
            self.wfile.write(self.server.picture)

    do_POST = do_GET

    def do_CONNECT(self) -> None:
        assert isinstance(self.server, Host)
        self.server.heard.append((self.path, str(self.headers)))
        said = f"{self.headers['Proxy-Authorization']} of {PROXY_USER} is not accepted"
        self.send_response(407, said)
        self.send_header("X-Said", said)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@dataclasses.dataclass(slots=True)
class Haul:
    """What was found where, and what came to others."""

    places: dict[str, bytes]
    media: Host
    elsewhere: Host
    proxy: Host
    """The organisation's, which lets nothing out."""
    vendor: Any
    """The simulator's own account of its requests."""
    exit_code: int

    def holding(self, secret: str) -> set[str]:
        """The places that hold a secret, in any of the forms that a program might write."""
        return {name for name, content in self.places.items() if any(form in content for form in _forms(secret))}


def _forms(secret: str) -> list[bytes]:
    raw = secret.encode()
    texts = [raw, raw.hex().encode(), urllib.parse.quote(secret, safe="").encode(), raw[::-1]]
    return texts + [base64.b64encode(each) for each in (raw, b"Bearer " + raw, raw + b":", b":" + raw)]


class Client:
    """Asks the gateway and keeps every answer, head and body, by who got it."""

    def __init__(self, gateway: process.Gateway) -> None:
        self.gateway = gateway
        self.heard: dict[str, bytearray] = {}

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        who: str = "growth",
        key: str | None = None,
        heard: str = "",
        **more: str,
    ) -> tuple[int, Any]:
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        token = key or VIRTUAL.get(who)
        headers = {name.replace("_", "-"): value for name, value in more.items()}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        connection = http.client.HTTPConnection("127.0.0.1", int(self.gateway.url.rpartition(":")[2]), timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, sent, headers)
            answer = connection.getresponse()
            text = answer.read()
        self.hear(heard or f"answers to {who}", str(answer.getheaders()).encode() + text)
        is_json = answer.headers.get_content_type() == "application/json" and text
        return answer.status, json.loads(text) if is_json else text

    def hear(self, place: str, content: bytes) -> None:
        self.heard.setdefault(place, bytearray()).extend(content)

    def submit(self, who: str = "growth", *, more: str = "", **fields: Any) -> tuple[int, Any]:
        headers = fields.pop("headers", {})
        body = {"model": FLASH, "prompt": f"{PROMPT[who]} {more}"} | fields
        return self.ask("POST", "/v1/tasks", body, who=who, **headers)

    def complete(self, task_id: str, *, who: str = "growth") -> Any:
        status, document = self.ask("GET", f"/v1/tasks/{task_id}", who=who, Prefer="wait=20")
        assert status == 200, document
        assert document["status"] in ("completed", "failed"), document
        return document


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write_policies(gateway: process.Gateway, directory: pathlib.Path, proxy: Host) -> None:
    (directory / "key").write_text(UPSTREAM["research"] + "\n")
    (directory / "token").write_text(METRICS_TOKEN + "\n")
    address = proxy.url.removeprefix("http://")
    (directory / "proxy").write_text(f"http://{PROXY_USER}:{PROXY_PASSWORD}@{address}\n")
    reference = {"growth": "env:KEY_GROWTH", "research": f"file:{directory / 'key'}"}
    for team, key in VIRTUAL.items():
        line = f'keys: [{{name: ci, sha256: "{_digest(key)}"}}]\n'
        text = f"team: {team}\nupstream_key: {reference[team]}\n{line}spend: [{{cap: '5.00', per: day}}]\n"
        (gateway.policies / "teams" / f"{team}.yaml").write_text(text)


def _result(url: str) -> dict[str, Any]:
    expires = int(time.time()) + 3600
    return {"result": {"images": [{"url": [f"{url}?X-Signature={SIGNATURE}"], "expires_at": expires}]}}


@pytest.fixture(scope="module")
def haul(tmp_path_factory) -> Iterator[Haul]:
    directory = tmp_path_factory.mktemp("canaries")
    port = process.free_port()
    vendor = process.Vendor(f"http://127.0.0.1:{port}", "simulate", "--port", str(port))
    options = ["--metrics-token-file", str(directory / "token"), "--log-level", "debug", "--log-format", "json"]
    options += ["--egress-proxy-file", str(directory / "proxy")]
    options += ["--mirror-patience", "1s", "--drain", "2s", "--upstream-callbacks"]
    gateway = process.gateway_before(vendor.url, directory, *options, environ={"KEY_GROWTH": UPSTREAM["growth"]})
    gateway.launcher = ("sh", "-c", 'exec "$@" 2>>"$0"', str(directory / "log"))
    with contextlib.ExitStack() as stack:
        media, elsewhere, proxy = (stack.enter_context(Host().serving()) for _ in range(3))
        _write_policies(gateway, directory, proxy)
        try:
            vendor.start(path="/sim/bill")
            gateway.start()
            client = Client(gateway)
            _campaign(client, vendor, media, elsewhere)
            places = _commands(client, directory)
            assert gateway.process is not None
            places["cmdline"] = pathlib.Path(f"/proc/{gateway.process.pid}/cmdline").read_bytes()
            exit_code = _last_words(client, vendor)
            places |= _left_behind(gateway.data)
            places |= {place: bytes(heard) for place, heard in client.heard.items()}
            places["log"] = (directory / "log").read_bytes()
            yield Haul(places, media, elsewhere, proxy, vendor.requests(), exit_code)
        finally:
            for each in (gateway, vendor):
                if each.is_running():
                    each.end()


def _campaign(client: Client, vendor: process.Vendor, media: Host, elsewhere: Host) -> None:
    """Good days and bad ones; ends with a gateway that runs."""
    at_once = {"queue_s": 0, "work_s": 0}
    quick = {"on": "submit", "times": None, "do": at_once}
    signed = {"on": "poll", "times": None, "do": {"merge": _result(f"{media.url}/good/1.jpg")}}
    # A kept picture, a hit, a replay, a follower's list, a dry run, both teams.
    vendor.script([quick, signed])
    callback: dict[str, Any] = {
        "callback_url": f"{elsewhere.url}/hook?token={CALLBACK_TOKEN}",
        "callback_events": ["completed"],
    }
    status, first = client.submit(seed=7, headers={"Idempotency_Key": "first"}, **callback)
    assert status == 200, first
    done = client.complete(first["task_id"])
    assert done["status"] == "completed"
    [url] = done["result"]["images"][0]["url"]
    assert url.startswith(client.gateway.url + "/media/")
    for _ in range(2):
        client.submit(seed=7, headers={"Idempotency_Key": "first"}, **callback)
        client.submit(seed=7)
    client.submit(headers={"X_Wave_Dry_Run": "true"})
    client.complete(client.submit("research")[1]["task_id"], who="research")
    # Pictures that cannot be had: the team is shown where they lie upstream.
    vendor.script([quick, {**signed, "do": {"merge": _result(f"{media.url}/lost/2.jpg")}}])
    shown = client.complete(client.submit(more="lost")[1]["task_id"])
    assert SIGNATURE in json.dumps(shown)
    vendor.script([quick, {"on": "media", "times": None, "do": {"redirect": f"{elsewhere.url}/redirected"}}])
    client.complete(client.submit(more="redirected")[1]["task_id"])
    # A public address, to which only the proxy could show the way.
    vendor.script([quick, {**signed, "do": {"merge": _result("https://93.184.215.14/lost/3.jpg")}}])
    client.complete(client.submit(more="outside")[1]["task_id"])
    for token in _tokens(vendor.requests()):
        assert client.ask("POST", f"/callbacks/{token}?token={token}", {"token": token}, who="others")[0] == 204
        assert client.ask("GET", f"/callbacks/{token}", who="others")[0] == 405
        assert client.ask("POST", f"/callbacks/{token[::-1]}", {"token": token}, who="others")[0] == 404
    _vendor_fails(client, vendor, elsewhere, at_once)
    _clients_err(client, url)
    _our_failures(client, first["task_id"])


def _tokens(heard: Any) -> set[str]:
    """The tokens of the URLs that the vendor was told to call."""
    return {json.loads(each["body"])["callback_url"].rpartition("/")[2] for each in heard["submits"]}


def _vendor_fails(client: Client, vendor: process.Vendor, elsewhere: Host, at_once: dict[str, Any]) -> None:
    """Complaints, some of which repeat the key; garbage; answers that never come; a redirect to another host.

    Each fault is for the one task whose prompt it names: retries of others are under way.
    """
    said = {who: f"Incorrect API key provided: {key}" for who, key in UPSTREAM.items()}
    refusal = {"status": 400, "code": "upstream_bad_request", "message": said["growth"]}
    vendor.script([{"on": "submit", "prompt": "refused", "do": refusal}])
    status, refused = client.submit(more="refused")
    assert (status, refused["error"]["message"]) == (400, "Incorrect API key provided: [upstream key]")
    for who in UPSTREAM:
        faults: list[dict[str, Any]] = [
            {"status": 401, "message": said[who]},
            {"status": 402, "message": said[who]},
            {"status": 429, "message": said[who], "retry_after": 0},
            {"status": 500, "message": said[who]},
            {"status": 503, "garbage": "html"},
            {"garbage": True},
            {"drop": True},
            {"accept_and_drop": True},
            {"status": 302, "location": f"{elsewhere.url}/v1/tasks"},
        ]
        rules = [{"on": "submit", "prompt": f"{PROMPT[who]} bad {n}.", "do": do} for n, do in enumerate(faults)]
        vendor.script([*rules, {"on": "submit", "times": None, "do": at_once}])
        for number in range(len(faults)):
            status, document = client.submit(who, more=f"bad {number}.")
            assert (status, document["status"]) == (200, "queued"), document
    polls: list[dict[str, Any]] = [
        {"status": 500, "message": said["growth"]},
        {"status": 302, "location": f"{elsewhere.url}/poll"},
        {"garbage": True},
        {"merge": {"note": said["growth"]}},
    ]
    rules = [{"on": "poll", "prompt": f"polled {n}.", "do": do} for n, do in enumerate(polls)]
    failed = {"outcome": "failed", "error": {"code": "task_failed", "message": said["growth"]}}
    rules.append({"on": "submit", "prompt": "failed", "do": at_once | failed})
    vendor.script([*rules, {"on": "submit", "times": None, "do": at_once}])
    asked = [client.submit(more=f"polled {number}.")[1]["task_id"] for number in range(len(polls))]
    assert client.complete(asked[3])["note"] == "Incorrect API key provided: [upstream key]"
    assert [client.complete(each)["status"] for each in asked[:3]] == ["completed"] * 3
    assert client.complete(client.submit(more="failed")[1]["task_id"])["status"] == "failed"
    refusal = {"status": 400, "code": "task_not_cancellable", "message": said["growth"]}
    no = {"on": "cancel", "prompt": "cancelled", "do": refusal}
    lost = {"on": "cancel", "prompt": "cancelled", "do": {"drop": True}}
    vendor.script([{"on": "submit", "prompt": "cancelled", "do": {"queue_s": 60}}, no, lost])
    open_task = client.submit(more="cancelled")[1]["task_id"]
    assert [client.ask("POST", f"/v1/tasks/{open_task}/cancel")[0] for _ in range(2)] == [400, 504]


def _clients_err(client: Client, media_url: str) -> None:
    """Keys where they do not belong, and everything that is no request."""
    for who in VIRTUAL:
        for path in (f"/v1/tasks?api_key={VIRTUAL[who]}", f"/v1/{VIRTUAL[who]}", f"/v1/tasks/{VIRTUAL[who]}"):
            client.ask("GET", path, who="others")
            client.ask("GET", path, who=who)
        client.ask("GET", f"/v1/models/{VIRTUAL[who]}", who=who)
        client.ask("POST", "/v1/tasks", {"model": VIRTUAL[who], "prompt": "x"}, who=who, heard=ECHOES)
        client.ask("TRACE", "/v1/tasks", who=who)
        client.ask("POST", "/v1/tasks", b'{"key": "' + VIRTUAL[who].encode(), who=who)
        client.ask("POST", "/v1/tasks", b"x", who=who, heard=ECHOES, Content_Type=f"text/{VIRTUAL[who]}")
    assert client.ask("GET", "/v1/tasks", who="others", key=WRONG_KEY)[0] == 401
    assert client.ask("GET", "/v1/models", who="others", key=METRICS_TOKEN)[0] == 401
    assert client.ask("GET", f"/metrics?token={METRICS_TOKEN}", who="others")[0] == 401
    host, _, port = client.gateway.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(f"GET / HTTP/1.1\r\nAuthorization : Bearer {VIRTUAL['growth']}\r\n\r\n".encode())
        with raw.makefile("rb") as stream:
            client.hear("answers to others", stream.read())
    assert client.ask("GET", media_url.removeprefix(client.gateway.url), who="others")[0] == 200
    for accept in ("text/plain", "application/openmetrics-text"):
        status, _ = client.ask("GET", "/metrics", who="the metrics token", key=METRICS_TOKEN, Accept=accept)
        assert status == 200


def _our_failures(client: Client, task_id: str) -> None:
    """A traceback, and policy files with keys in clear, which are not taken up."""
    gateway = client.gateway
    with contextlib.closing(sqlite3.connect(gateway.data / "wave.db", timeout=20)) as database:
        database.execute("ALTER TABLE task_media RENAME TO hidden")
        assert client.ask("GET", f"/v1/tasks/{task_id}")[0] == 500
        assert client.submit(more="in the dark", seed=7)[0] == 503
        database.execute("ALTER TABLE hidden RENAME TO task_media")
    assert client.ask("GET", f"/v1/tasks/{task_id}")[0] == 200
    broken = gateway.policies / "teams" / "leaky.yaml"
    broken.write_text(f"team: leaky\nupstream_key: {CLEAR_KEY}\nkeys: [{{name: ci, sha256: {CLEAR_KEY}}}]\n")
    until = time.monotonic() + 20
    while b"policy_reload_ok 0" not in bytes(_metrics(client)) and time.monotonic() < until:
        time.sleep(0.1)
    assert b"policy_reload_ok 0" in _metrics(client)


def _metrics(client: Client) -> bytes:
    text = client.ask("GET", "/metrics", who="the metrics token", key=METRICS_TOKEN)[1]
    assert isinstance(text, bytes)
    return text


def _commands(client: Client, directory: pathlib.Path) -> dict[str, bytes]:
    """What each command says beside the running gateway; the broken policy file is checked, then removed."""
    gateway = client.gateway
    request = directory / "request.json"
    request.write_text(json.dumps({"model": FLASH, "prompt": PROMPT["growth"], "seed": 7}))
    policies, data = ("--policies", str(gateway.policies)), ("--data", str(gateway.data))
    environ = {"KEY_GROWTH": UPSTREAM["growth"]}
    upstream = gateway.arguments[gateway.arguments.index("--upstream") + 1]
    found: dict[str, bytes] = {}

    def run(name: str, *arguments: str) -> None:
        done = click.testing.CliRunner().invoke(cli.cli, arguments, env=environ)  # a process each: a second each
        assert done.stdout and isinstance(done.exception, SystemExit | None), (name, done.output)
        found[f"cli {name}"] = done.output.encode()

    run("policy check", "policy", "check", str(gateway.policies))
    assert b"leaky.yaml:2" in found["cli policy check"]
    (gateway.policies / "teams" / "leaky.yaml").unlink()
    for form in ("text", "json"):
        end = "" if form == "text" else " json"
        explain = ("policy", "explain", "--team", "growth", "--format", form, str(request))
        run(f"policy explain{end}", *explain, *policies, *data)
        run(f"tasks list{end}", "tasks", "list", "--format", form, *policies, *data)
        run(f"tasks show{end}", "tasks", "show", "first", "--format", form, *policies, *data)
        run(f"reconcile{end}", "reconcile", "--upstream", upstream, "--format", form, *policies, *data)
    for form in ("table", "csv", "json", "focus"):
        end = "" if form == "table" else f" {form}"
        run(f"report{end}", "report", "--format", form, *policies, *data)
    run("audit", "audit", *policies, *data)
    run("cache stats", "cache", "stats", *policies, *data)
    run("media gc", "media", "gc", "--dry-run", *policies, *data)
    return found


def _last_words(client: Client, vendor: process.Vendor) -> int:
    """A stop with a POST under way; returns the exit code."""
    vendor.script([{"on": "submit", "do": {"accept_and_hang_s": 5}}])
    body = json.dumps({"model": FLASH, "prompt": PROMPT["growth"] + " at the end"}).encode()
    host, _, port = client.gateway.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        before = vendor.requests()["counts"]["submit"]
        head = f"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {VIRTUAL['growth']}\r\n"
        raw.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        while vendor.requests()["counts"]["submit"] == before:
            time.sleep(0.05)
        code = client.gateway.end(signal.SIGTERM)
        with raw.makefile("rb") as stream:
            client.hear("answers to growth", stream.read())
    return code


def _left_behind(data: pathlib.Path) -> dict[str, bytes]:
    """Everything in the data directory of a gateway that has ended; nothing is left out."""
    files = {path: path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()}
    found = dict.fromkeys(("database as bytes", "cache", "blobs", "last good policies", "rest of the data"), b"")
    for path, content in files.items():
        top = path.relative_to(data).parts[0]
        known = {"cache": "cache", "media": "blobs", "policies.last-good.json": "last good policies"}
        name = "database as bytes" if top in ("wave.db", "wave.db-wal") else known.get(top, "rest of the data")
        found[name] += content
    found["files' names"] = "\n".join(str(path) for path in data.rglob("*")).encode()
    with contextlib.closing(sqlite3.connect(data / "wave.db")) as database:
        tables = [name for [name] in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        rows = [row for table in tables for row in database.execute(f'SELECT * FROM "{table}"')]  # noqa: S608
    found["database as rows"] = b"\n".join(
        each if isinstance(each, bytes) else str(each).encode() for row in rows for each in row
    )
    return found


def test_every_place_was_searched_and_none_is_empty(haul):
    assert haul.places.keys() == PLACES
    assert {name for name, content in haul.places.items() if not content} == set()
    assert sum(map(len, haul.places.values())) > 100_000


def test_the_bad_days_were_bad(haul):
    log = haul.places["log"]
    for words in (
        b"Traceback (most recent call last)",
        b"no such table: task_media",
        b'"event":"upstream_key_refused","team":"growth"',
        b'"event":"upstream_key_refused","team":"research"',
        b'"event":"mirror_failed"',
        b'"reason":"redirect"',
        b"93.184.215.14:443: the egress proxy answered 407",
        b"leaky.yaml:2",
        b'"operation":"cancel","outcome":"lost"',
        b'"event":"policy_denied"',
        b'"event":"webhook_attempt"',
        b'"event":"stopped"',
    ):
        assert words in log, words
    assert haul.exit_code == 0
    assert b"[upstream key]" in haul.places["answers to growth"]


@pytest.mark.parametrize("secret", NOWHERE)
def test_no_key_and_no_token_is_anywhere(haul, secret):
    assert haul.holding(secret) == set()


@pytest.mark.parametrize("secret", KEPT)
def test_prompts_and_addresses_are_only_where_they_are_kept(haul, secret):
    assert haul.holding(secret) == KEPT[secret]


def test_the_tokens_that_the_vendor_was_given_are_only_in_the_database(haul):
    tokens = _tokens(haul.vendor)
    assert len(tokens) > 20
    assert haul.vendor["counts"]["callback"] > 0
    for token in tokens:
        assert {"database as rows"} <= haul.holding(token) <= DATABASE


def test_each_upstream_key_went_to_the_upstream_and_only_for_its_own_team(haul):
    for team, prompt in PROMPT.items():
        sent = {each["authorization_sha256"] for each in haul.vendor["submits"] if prompt in each["body"]}
        assert sent == {_digest(f"Bearer {UPSTREAM[team]}")}
    assert {name for each in haul.vendor["submits"] for name in each["headers"] if "authorization" in name} == set()
    assert not any(CALLBACK_TOKEN in each["body"] for each in haul.vendor["submits"])


def test_a_media_host_gets_no_key_and_nobody_is_asked_behind_a_redirect(haul):
    assert {path.split("?")[0] for path, _ in haul.media.heard} == {"/good/1.jpg", "/lost/2.jpg"}
    for _, headers in haul.media.heard:
        names = {line.split(":")[0].lower() for line in headers.splitlines() if line}
        assert names <= {"host", "user-agent", "accept", "accept-encoding", "connection"}
        assert "Canary" not in headers
    assert haul.vendor["counts"]["media"] > 0
    assert haul.vendor["counts"].get("media_with_auth", 0) == 0
    # What it hears is webhooks, whose URL the client chose; never what a redirect pointed to.
    assert {path for path, _ in haul.elsewhere.heard} <= {f"/hook?token={CALLBACK_TOKEN}"}
    assert not any("Canary" in headers or "authorization" in headers.lower() for _, headers in haul.elsewhere.heard)


def test_the_proxys_credentials_go_to_the_proxy_with_nothing_else_of_ours(haul):
    assert {path for path, _ in haul.proxy.heard} == {"93.184.215.14:443"}
    expected = {"Host: 93.184.215.14:443", f"Proxy-Authorization: Basic {PROXY_WORDS}"}
    assert all({line for line in headers.splitlines() if line} == expected for _, headers in haul.proxy.heard)


def test_the_command_line_names_the_files_of_the_token_and_the_proxy(haul):
    """It is everybody's to read (`ps`); the environment is its owner's."""
    assert b"--metrics-token-file" in haul.places["cmdline"]
    assert b"--egress-proxy-file" in haul.places["cmdline"]
