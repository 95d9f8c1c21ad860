"""Clients as they are, against a real gateway: only base URL and key are changed.

`python -m tests.clients.run FOLDER`, where FOLDER holds what `make clients` installed. Each client is a program of its
own beside this file; it submits, polls to the end, meets a refusal, and writes one line of JSON. The SDKs, which repeat
a submit by themselves, also lose an answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tests import process

HERE = pathlib.Path(__file__).parent
GENERATIONS = ("early", "documented", "later")
WITHIN_S = 60


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One client: how it is called, and how it is started."""

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    is_retrying: bool = False
    """It repeats by itself a submit of which the answer was lost."""


def clients(folder: pathlib.Path) -> list[Client]:
    """The clients that are installed in a folder."""
    python, modules = str(folder / "venv" / "bin" / "python"), folder / "node" / "node_modules"
    found = [
        Client(name="OpenAI Python SDK", command=(python, str(HERE / "openai_python.py")), is_retrying=True),
        Client(name="Python requests", command=(python, str(HERE / "requests_python.py"))),
    ]
    if shutil.which("curl"):
        found.append(Client(name="curl", command=(python, str(HERE / "curl_shell.py"))))
    else:
        sys.stdout.write("skip curl: it is not installed\n")
    if modules.is_dir():
        script = str(HERE / "openai_node.cjs")
        environ = {"NODE_PATH": str(modules)}
        found.append(Client(name="OpenAI Node SDK", command=("node", script), environ=environ, is_retrying=True))
    else:
        sys.stdout.write("skip OpenAI Node SDK: it is not installed; `make clean clients` tries again\n")
    return found


def run(client: Client, gateway: process.Gateway, vendor: process.Vendor, generation: str) -> str:
    """Play one client against one generation of the vendor; what it said about itself. Raises AssertionError."""
    vendor.script([{"on": "submit", "times": None, "do": {"generation": generation, "queue_s": 0.1, "work_s": 0.4}}])
    posted, denied = vendor.requests()["counts"].get("submit", 0), denials(gateway)
    keys = {"WAVE_KEY": process.KEYS["growth"], "WAVE_POOR_KEY": process.KEYS["research"]}
    environ = {"WAVE_BASE_URL": f"{gateway.url}/v1", "NO_PROXY": "127.0.0.1", **keys, **client.environ}
    with losing_the_first_answer(gateway.url) as (lossy_url, lost):
        environ["WAVE_LOSSY_URL"] = f"{lossy_url}/v1"
        done = subprocess.run(
            client.command, env=os.environ | environ, capture_output=True, text=True, timeout=WITHIN_S, check=False
        )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["task_id"].startswith("task-wg")
    assert said["status"] == ("success" if generation == "early" else "completed")
    assert len(said["pictures"]) == 2
    for url in said["pictures"]:
        status, headers, _ = process.fetch(url)
        assert (status, headers["Content-Type"]) == (200, "image/jpeg"), url
    assert said["impossible"] == {"status": 400, "code": "capability_violation", "param": "action"}
    assert said["cap"] == {"status": 429, "code": "quota_window_exceeded"}
    # One POST for one submit, also where its answer was lost and the SDK repeated it; and one decision for each
    # refusal: the SDKs, which repeat a 429, were told not to.
    if client.is_retrying:
        [lost_id] = lost
        assert said["retried"] == lost_id
    assert vendor.requests()["counts"]["submit"] == posted + 1 + client.is_retrying
    assert denials(gateway) == denied + 2
    return str(said["version"])


@contextlib.contextmanager
def losing_the_first_answer(url: str) -> Iterator[tuple[str, list[str]]]:
    """A way to the gateway that breaks when the first answer comes; yields its URL, and the id of the task lost."""
    lost: list[str] = []
    host, _, port = url.removeprefix("http://").partition(":")

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, int(port)), timeout=WITHIN_S) as there:
                sending = threading.Thread(target=pump, args=(self.request, there), daemon=True)
                sending.start()
                if lost:
                    pump(there, self.request)
                    return
                answer = b""
                while not (found := re.search(rb"task-wg[0-9A-Z]{26}", answer)):
                    step = there.recv(65536)
                    if not step:
                        return
                    answer += step
                lost.append(found.group().decode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", lost
        server.shutdown()


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Pass on what comes until either end is closed."""
    with contextlib.suppress(OSError):
        while step := source.recv(65536):
            sink.sendall(step)


def denials(gateway: process.Gateway) -> int:
    """How many submits the policies have denied so far."""
    lines = process.fetch(gateway.url + "/metrics")[2].splitlines()
    counted = [line for line in lines if line.startswith(b"wave_gateway_policy_decisions_total{")]
    return int(sum(float(line.split()[-1]) for line in counted if b'decision="deny"' in line))


def settle(gateway: process.Gateway) -> None:
    """Let what nobody polled end too."""
    until = time.monotonic() + WITHIN_S
    while any(gateway.call("GET", f"/v1/tasks?status={each}")[2]["data"] for each in ("queued", "processing")):
        assert time.monotonic() < until
        time.sleep(0.2)


def main() -> int:
    """Play every client against every generation, one line each; 1 if any of them noticed."""
    found, went_well = clients(pathlib.Path(sys.argv[1]).absolute()), True
    poor = 'spend: [{name: daily, cap: "0.001", per: day}]\n'
    with (
        tempfile.TemporaryDirectory() as folder,
        process.pair(pathlib.Path(folder), research=poor) as (gateway, vendor),
    ):
        for client in found:
            for generation in GENERATIONS:
                started = time.monotonic()
                try:
                    what = f"{run(client, gateway, vendor, generation)} in {time.monotonic() - started:.1f} s"
                    mark = "ok  "
                except (AssertionError, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
                    went_well, mark, what = False, "FAIL", str(error)
                sys.stdout.write(f"{mark} {client.name:<18} {generation:<11} {what}\n")
                sys.stdout.flush()
        settle(gateway)
        bill = vendor.bill()
        tasks = sum(1 + client.is_retrying for client in found) * len(GENERATIONS)
        drift = gateway.settled_nanos() - bill["nanos"]
        # The early generation reports no cost: its tasks settle at list price, within one quota per image.
        is_right = bill["tasks"] == tasks and 0 <= drift < 2_000 * 2 * tasks
        sys.stdout.write(f"{'ok  ' if is_right else 'FAIL'} {tasks} tasks, ledger - bill = {drift} nano-dollars\n")
    return 0 if went_well and is_right else 1


if __name__ == "__main__":
    sys.exit(main())
