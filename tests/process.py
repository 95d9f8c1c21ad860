"""Real processes for the scenarios: the simulator, the gateway, and clients on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import aiohttp

PORTS = range(20_000, 32_000)
KEYS = {"growth": "wgk_growth", "research": "wgk_research"}
ENVIRON = {"KEY_GROWTH": "vendor-secret-growth", "KEY_RESEARCH": "vendor-secret-research"}

MODELS = pathlib.Path(__file__).parent.parent / "gateway" / "starter" / "models.yaml"
TEAM = """
team: {name}
upstream_key: env:KEY_{upper}
keys: [{{name: ci, sha256: "{digest}"}}]
"""

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    """A port on which nobody listens, below those that the system hands out: it stays free until it is used."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError(f"no free port among a hundred of {PORTS}")


def write_policies(directory: pathlib.Path, *, org: str = "timezone: UTC\n", **teams: str) -> pathlib.Path:
    (directory / "teams").mkdir(parents=True, exist_ok=True)
    (directory / "org.yaml").write_text(org)
    (directory / "models.yaml").write_bytes(MODELS.read_bytes())
    for name, key in KEYS.items():
        digest = hashlib.sha256(key.encode()).hexdigest()
        text = TEAM.format(name=name, upper=name.upper(), digest=digest) + teams.get(name, "")
        (directory / "teams" / f"{name}.yaml").write_text(text)
    return directory


def fetch(url: str, *, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
    """(status, headers, body) of one request, whatever the status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data=body, headers=named, method=method)
    try:
        with _OPENER.open(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


class Process:
    """One of our own processes; ended by pid."""

    def __init__(self, url: str, *arguments: str, environ: dict[str, str] | None = None) -> None:
        self.url = url
        self.arguments = arguments
        self.environ = environ or {}
        self.process: subprocess.Popen[bytes] | None = None
        self.launcher: tuple[str, ...] = ()
        """A command that starts it, such as the tracer."""

    def start(self, *, path: str = "/readyz") -> None:
        self.process = subprocess.Popen(
            [*self.launcher, sys.executable, "-m", "gateway", *self.arguments],
            env=os.environ | self.environ,
            stdin=subprocess.DEVNULL,
        )
        until = time.monotonic() + 30
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise AssertionError(f"{self.arguments[0]} ended with {self.process.returncode}")
            with contextlib.suppress(OSError):
                fetch(self.url + path)
                return
            time.sleep(0.05)
        raise AssertionError(f"{self.arguments[0]} did not come up")

    def end(self, number: signal.Signals = signal.SIGTERM, *, within_s: float = 30) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(within_s)
        self.process = None
        return code

    def is_running(self) -> bool:
        return self.process is not None


class Gateway(Process):
    """A gateway process and what a client does with it."""

    data: pathlib.Path
    policies: pathlib.Path

    def call(
        self, method: str, path: str, body: object = None, *, team: str = "growth", **headers: str
    ) -> tuple[int, Any, Any]:
        """(status, headers, parsed body)."""
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        named = {"Authorization": f"Bearer {KEYS[team]}", "Content-Type": "application/json"} | headers
        status, answered, text = fetch(self.url + path, method=method, body=sent, **named)
        return status, answered, json.loads(text) if text else None

    def submit(self, team: str = "growth", **fields: Any) -> tuple[int, Any, Any]:
        body = {"model": "gemini-2.5-flash-image-preview", "prompt": "a fox"} | fields
        return self.call("POST", "/v1/tasks", body, team=team)

    def complete(self, task_id: str, *, team: str = "growth", within_s: float = 30) -> Any:
        """Poll as a client does until the task has ended; its document."""
        until = time.monotonic() + within_s
        while True:
            status, _, document = self.call("GET", f"/v1/tasks/{task_id}", team=team)
            assert status == 200, document
            if document["status"] not in ("queued", "processing", "running"):
                return document
            assert time.monotonic() < until, f"{task_id} is still {document['status']}"
            time.sleep(0.1)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command beside the running gateway."""
        places = ["--data", str(self.data), "--policies", str(self.policies)]
        return run_cli(*arguments, *places)

    async def flood(self, bodies: list[dict[str, Any]], *, team: str = "growth") -> list[tuple[int, Any, Any]]:
        """All submits at once, each on a connection of its own."""
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"Authorization": f"Bearer {KEYS[team]}"}
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

            async def one(body: dict[str, Any]) -> tuple[int, Any, Any]:
                async with session.post(f"{self.url}/v1/tasks", json=body) as answer:
                    return answer.status, answer.headers, await answer.json()

            return list(await asyncio.gather(*(one(body) for body in bodies)))

    def settled_nanos(self) -> int:
        """The sum of the report, in nanos, by hand from its decimal strings."""
        done = self.cli("report", "--by", "team", "--format", "json")
        assert done.returncode == 0, done.stderr
        total = 0
        for line in json.loads(done.stdout):
            whole, _, decimals = line["cost_usd"].partition(".")
            total += int(whole) * 10**9 + int(decimals.ljust(9, "0") or 0)
        return total


class Vendor(Process):
    """A simulator process."""

    def bill(self) -> Any:
        return json.loads(fetch(self.url + "/sim/bill")[2])

    def requests(self) -> Any:
        return json.loads(fetch(self.url + "/sim/requests")[2])

    def script(self, rules: list[dict[str, Any]]) -> None:
        status, _, text = fetch(self.url + "/sim/script", method="POST", body=json.dumps(rules).encode())
        assert status == 200, text


def run_cli(
    *arguments: str, stdin: str = "", environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """One command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | (environ or {}),
        check=False,
    )


def gateway_before(
    vendor_url: str,
    directory: pathlib.Path,
    *options: str,
    org: str = "timezone: UTC\n",
    environ: Mapping[str, str] | None = None,
    **teams: str,
) -> Gateway:
    """A gateway in front of a simulator, not started yet; `environ`: more of it than the upstream keys."""
    port = free_port()
    policies = write_policies(directory / "policies", org=org, **teams)
    gateway = Gateway(
        f"http://127.0.0.1:{port}",
        *("serve", "--listen", f"127.0.0.1:{port}", "--upstream", vendor_url),
        *("--data", str(directory / "data"), "--policies", str(policies)),
        *("--allow-private", "127.0.0.0/8", "--min-free", "0B", "--log-level", "error", *options),
        environ=ENVIRON | dict(environ or {}),
    )
    gateway.data, gateway.policies = directory / "data", policies
    return gateway


@contextlib.contextmanager
def pair(
    directory: pathlib.Path,
    *options: str,
    org: str = "timezone: UTC\n",
    launcher: tuple[str, ...] = (),
    vendor_options: tuple[str, ...] = (),
    environ: Mapping[str, str] | None = None,
    **teams: str,
) -> Iterator[tuple[Gateway, Vendor]]:
    """A simulator and a gateway in front of it, both running.

    `launcher`: what starts the gateway; `vendor_options`: of `simulate`; `environ`: as in `gateway_before`.
    """
    vendor_port = free_port()
    vendor = Vendor(f"http://127.0.0.1:{vendor_port}", "simulate", "--port", str(vendor_port), *vendor_options)
    gateway = gateway_before(vendor.url, directory, *options, org=org, environ=environ, **teams)
    gateway.launcher = launcher
    try:
        vendor.start(path="/sim/bill")
        gateway.start()
        yield gateway, vendor
    finally:
        for each in (gateway, vendor):
            if each.is_running():
                each.end()
