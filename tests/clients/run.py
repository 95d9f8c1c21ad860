"""Clients as they are, against a real gateway: only base URL and key are changed.

`python -m tests.clients.run FOLDER`, where FOLDER holds what `make clients` installed. Each client is a program of its
own beside this file; it submits, polls to the end, meets a refusal, and writes one line of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
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


def clients(folder: pathlib.Path) -> list[Client]:
    """The clients that are installed in a folder."""
    python, modules = str(folder / "venv" / "bin" / "python"), folder / "node" / "node_modules"
    found = [
        Client(name="OpenAI Python SDK", command=(python, str(HERE / "openai_python.py"))),
        Client(name="Python requests", command=(python, str(HERE / "requests_python.py"))),
    ]
    if shutil.which("curl"):
        found.append(Client(name="curl", command=(python, str(HERE / "curl_shell.py"))))
    else:
        sys.stdout.write("skip curl: it is not installed\n")
    if modules.is_dir():
        script = str(HERE / "openai_node.cjs")
        found.append(Client(name="OpenAI Node SDK", command=("node", script), environ={"NODE_PATH": str(modules)}))
    else:
        sys.stdout.write("skip OpenAI Node SDK: it is not installed; `make clean clients` tries again\n")
    return found


def run(client: Client, gateway: process.Gateway, vendor: process.Vendor, generation: str) -> str:
    """Play one client against one generation of the vendor; what it said about itself. Raises AssertionError."""
    vendor.script([{"on": "submit", "times": None, "do": {"generation": generation, "queue_s": 0.1, "work_s": 0.4}}])
    posted, denied = vendor.requests()["counts"].get("submit", 0), denials(gateway)
    keys = {"WAVE_KEY": process.KEYS["growth"], "WAVE_POOR_KEY": process.KEYS["research"]}
    environ = {"WAVE_BASE_URL": f"{gateway.url}/v1", "NO_PROXY": "127.0.0.1", **keys, **client.environ}
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
    # One POST for one submit, and one decision for each refusal: the SDKs, which repeat a 429, were told not to.
    assert vendor.requests()["counts"]["submit"] == posted + 1
    assert denials(gateway) == denied + 2
    return str(said["version"])


def denials(gateway: process.Gateway) -> int:
    """How many submits the policies have denied so far."""
    lines = process.fetch(gateway.url + "/metrics")[2].splitlines()
    counted = [line for line in lines if line.startswith(b"wave_gateway_policy_decisions_total{")]
    return int(sum(float(line.split()[-1]) for line in counted if b'decision="deny"' in line))


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
        bill = vendor.bill()
        tasks = len(found) * len(GENERATIONS)
        drift = gateway.settled_nanos() - bill["nanos"]
        # The early generation reports no cost: its tasks settle at list price, within one quota per image.
        is_right = bill["tasks"] == tasks and 0 <= drift < 2_000 * 2 * len(found)
        sys.stdout.write(f"{'ok  ' if is_right else 'FAIL'} {tasks} tasks, ledger - bill = {drift} nano-dollars\n")
    return 0 if went_well and is_right else 1


if __name__ == "__main__":
    sys.exit(main())
