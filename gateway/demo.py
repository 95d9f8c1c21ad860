"""The demonstration: simulator, gateway and two teams on a temporary directory; no key, no network.

The two run as processes of their own, exactly as in earnest; the tour is a client like any other.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import http.client
import importlib.resources
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from gateway import errors

START_WITHIN_S: Final = 30.0
COMPLETE_WITHIN_S: Final = 30.0
STOP_WITHIN_S: Final = 20.0

_ORG: Final = """\
timezone: UTC
contact: "#genai-spend"
spend:
  - {name: org-day, cap: "50.00", per: day}
"""
_TEAM: Final = """\
team: {name}
upstream_key: env:WAVE_DEMO_UPSTREAM_KEY
contact: "#{name}"
keys:
  - {{name: demo, sha256: "{digest}"}}
models:
  allow: ["gemini-2.5-*", "gemini-3.1-*"]
  deny: ["*-official"]
limits: {{n: 4}}
spend:
  - {{name: daily, cap: "{cap}", per: day}}
"""
_CAPS: Final = {"growth": "5.00", "intern": "0.03"}

_MODEL: Final = "gemini-2.5-flash-image-preview"
_PROMPT: Final = "A lighthouse in a storm, oil on canvas"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """A running demonstration."""

    url: str
    keys: Mapping[str, str]
    """Team -> virtual key."""
    data: pathlib.Path
    policies: pathlib.Path
    processes: tuple[subprocess.Popen[bytes], ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer of the gateway; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; an empty object if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return {}


@contextlib.contextmanager
def running(port: int, new_key: Callable[[], str]) -> Iterator[Demo]:
    """Start both processes and wait until the gateway is ready; on leaving, end them and remove the directory."""
    with contextlib.ExitStack() as stack:
        home = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wave-demo-")))
        keys = {team: new_key() for team in _CAPS}
        _write_policies(home / "policies", keys)
        url = f"http://127.0.0.1:{port}"
        vendor_port = _free_port()
        _refuse_busy(port)
        vendor = _start(stack, "simulate", "--port", str(vendor_port))
        gateway = _start(
            stack,
            *("serve", "--listen", f"127.0.0.1:{port}", "--upstream", f"http://127.0.0.1:{vendor_port}"),
            *("--data", str(home / "data"), "--policies", str(home / "policies")),
            *("--allow-private", "127.0.0.0/8", "--log-level", "error", "--min-free", "0B"),
        )
        demo = Demo(url=url, keys=keys, data=home / "data", policies=home / "policies", processes=(vendor, gateway))
        _wait_until_ready(demo, vendor_port)
        yield demo


def tour(demo: Demo, say: Callable[[str, str, bool], None]) -> bool:
    """Play the main job; `say(step, what came of it, whether as it should)` for each step. True if all went well."""
    outcomes = []
    for step, what, went_well in _steps(demo):
        say(step, what, went_well)
        outcomes.append(went_well)
        if not went_well:
            break
    return all(outcomes)


def call(demo: Demo, method: str, path: str, *, team: str, body: object = None) -> Reply:
    """One request of a team; raises OSError if the gateway cannot be reached."""
    connection = http.client.HTTPConnection(demo.url.removeprefix("http://"), timeout=30)
    try:
        sent = None if body is None else json.dumps(body)
        headers = {"Authorization": f"Bearer {demo.keys[team]}", "Content-Type": "application/json"}
        connection.request(method, path, body=sent, headers=headers)
        answer = connection.getresponse()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(status=answer.status, headers=named, body=answer.read())
    finally:
        connection.close()


def _steps(demo: Demo) -> Iterator[tuple[str, str, bool]]:
    seeded = {"model": _MODEL, "prompt": _PROMPT, "seed": 7}
    first = call(demo, "POST", "/v1/tasks", team="growth", body=seeded)
    task_id = first.json().get("task_id", "")
    cost = first.headers.get("x-wave-cost-usd")
    went_well = first.status == 200
    yield "Submit", f"{first.status} {first.json().get('status')}, {task_id}, at most ${cost}", went_well

    done = _completed(demo, task_id)
    picture = _first_url(done)
    cost = done.headers.get("x-wave-cost-usd")
    yield (
        "Poll",
        f"{done.status} {done.json().get('status')}, cost ${cost}\n{picture}",
        done.json().get("status") == "completed" and picture.startswith(f"{demo.url}/media/"),
    )

    shown = call(demo, "GET", picture.removeprefix(demo.url) or "/", team="growth")
    is_jpeg = shown.body[:3] == b"\xff\xd8\xff" and shown.headers.get("content-type") == "image/jpeg"
    kind = shown.headers.get("content-type")
    yield "See the picture", f"{shown.status} {kind}, {len(shown.body):,} bytes", shown.status == 200 and is_jpeg

    again = call(demo, "POST", "/v1/tasks", team="growth", body=seeded)
    hit, cost = again.headers.get("x-cache"), again.headers.get("x-wave-cost-usd")
    same = _first_url(again) == picture
    yield (
        "Repeat it",
        f"{again.status} {again.json().get('status')}, X-Cache: {hit}, cost ${cost}, same picture",
        (again.status, hit, cost, same) == (200, "HIT", "0", True),
    )

    denied = call(
        demo, "POST", "/v1/tasks", team="growth", body={"model": "gemini-3-pro-image-preview", "prompt": _PROMPT}
    )
    yield "A model not allowed", *_denial(denied, 403, "model_not_allowed")

    replies = [
        call(demo, "POST", "/v1/tasks", team="intern", body={"model": _MODEL, "prompt": f"{_PROMPT}, {number}"})
        for number in range(3)
    ]
    statuses = [reply.status for reply in replies]
    what, went_well = _denial(replies[-1], 429, "quota_window_exceeded")
    cap = f"of 3 submits {statuses.count(200)} fit the cap of ${_CAPS['intern']}\n"
    yield "A cap that holds", cap + what, went_well and statuses == [200, 200, 429]
    for reply in replies[:2]:
        _completed(demo, reply.json()["task_id"], team="intern")


def _denial(reply: Reply, status: int, code: str) -> tuple[str, bool]:
    error = reply.json().get("error", {})
    return f"{reply.status} {error.get('code')}: {error.get('message')}", (reply.status, error.get("code")) == (
        status,
        code,
    )


def _completed(demo: Demo, task_id: str, *, team: str = "growth") -> Reply:
    until = time.monotonic() + COMPLETE_WITHIN_S
    while True:
        reply = call(demo, "GET", f"/v1/tasks/{task_id}", team=team)
        if reply.json().get("status") not in ("queued", "processing") or time.monotonic() > until:
            return reply
        time.sleep(0.2)


def _first_url(reply: Reply) -> str:
    images = reply.json().get("result", {}).get("images", [])
    urls = images[0].get("url", "") if images else ""
    return str(urls[0] if isinstance(urls, list) else urls)


def _write_policies(directory: pathlib.Path, keys: Mapping[str, str]) -> None:
    (directory / "teams").mkdir(parents=True)
    (directory / "org.yaml").write_text(_ORG, encoding="utf-8")
    models = importlib.resources.files("gateway") / "starter" / "models.yaml"
    (directory / "models.yaml").write_bytes(models.read_bytes())
    for team, key in keys.items():
        digest = hashlib.sha256(key.encode()).hexdigest()
        text = _TEAM.format(name=team, digest=digest, cap=_CAPS[team])
        (directory / "teams" / f"{team}.yaml").write_text(text, encoding="utf-8")


def _start(stack: contextlib.ExitStack, *arguments: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(  # our own program
        [sys.executable, "-m", "gateway", *arguments],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us: we end the two in order
    )
    stack.callback(_end, process)
    return process


def _environment() -> dict[str, str]:
    """The environment without settings meant for a gateway in earnest."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WAVE_GATEWAY_")}
    return kept | {"WAVE_DEMO_UPSTREAM_KEY": "simulated-upstream-key"}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_ready(demo: Demo, vendor_port: int) -> None:
    until = time.monotonic() + START_WITHIN_S
    waiting = collections.deque([demo.url.removeprefix("http://"), f"127.0.0.1:{vendor_port}"])
    while waiting:
        if any(process.poll() is not None for process in demo.processes):
            raise errors.StartError("the demonstration could not start; its message is above")
        if time.monotonic() > until:
            raise errors.StartError(f"the demonstration was not ready within {START_WITHIN_S:.0f} s")
        if _answers(waiting[0]):
            waiting.popleft()
        else:
            time.sleep(0.1)


def _answers(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=2)
    try:
        connection.request("GET", "/readyz")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def _refuse_busy(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise errors.StartError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
