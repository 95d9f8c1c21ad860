"""The document at `/openapi.json`, turned against the gateway by schemathesis: what it allows, and what it does not.

Two teams, one with room and one at its limits. Statuses, content types, headers and schemas must be the described ones;
what the document forbids must be refused.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

from tests.fuzz import world

HERE = pathlib.Path(__file__).parent
OF_TIGHT = 4
"""The team at its limits gets so many times fewer examples."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How many requests were made, and what schemathesis said where something did not hold."""

    requests: int
    failures: str


def play(at: world.World, directory: pathlib.Path, *, seed: int, examples: int, phases: str) -> Outcome:
    """Run it for both teams; `examples`: the most per operation and phase."""
    wide = _run(at, world.WIDE, directory / "wide", seed=seed, examples=examples, phases=phases)
    tight = _run(at, world.TIGHT, directory / "tight", seed=seed, examples=max(1, examples // OF_TIGHT), phases=phases)
    return Outcome(requests=wide.requests + tight.requests, failures=wide.failures + tight.failures)


def _run(at: world.World, key: str, directory: pathlib.Path, *, seed: int, examples: int, phases: str) -> Outcome:
    directory.mkdir(parents=True)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml")]
    command += ["run", f"{at.gateway.url}/openapi.json", "--header", f"Authorization: Bearer {key}"]
    command += ["--seed", str(seed), "--max-examples", str(examples), "--phases", phases, "--no-shrink"]
    command += [
        "--continue-on-failure",
        "--request-timeout",
        "20",
        "--suppress-health-check",
        "all",
        "--warnings",
        "off",
    ]
    root = HERE.parent.parent
    environ = os.environ | {"SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": str(root), "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, check=False)
    counted = re.search(r"^ *(\d+) generated", done.stdout, re.MULTILINE)
    said = "" if done.returncode == 0 else done.stdout[-20000:] + done.stderr[-5000:]
    return Outcome(requests=int(counted[1]) if counted else 0, failures=said)
