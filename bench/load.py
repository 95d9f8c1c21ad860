"""The closed loop: wrk on the load's core, each response checked, one round at a time."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
import subprocess
from typing import Final

from bench import asks

LONGEST_OVERRUN_S: Final = 30
NONCES: Final = itertools.count(1)
"""One for each round, so that what must be new is new in each."""
NUMBERS_PER_ROUND: Final = 10_003_701
"""No multiple of the number of keys: each round begins at another one."""

_MEASURED: Final = re.compile(r"^MEASURED (.+)$", re.MULTILINE)
_SAMPLE: Final = re.compile(r"^SAMPLE (.*)$", re.MULTILINE)
_FAULTS: Final = ("wrong", "status", "connect", "read", "write", "timeout")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What the load saw in one round; every response was right."""

    requests: int
    seconds: float
    bytes: int
    p50_ms: float
    p99_ms: float


def closed(ask: asks.Ask, url: str, *, connections: int, seconds: int, core: int, folder: pathlib.Path) -> Round:
    """Keep so many connections busy for so long; raises WrongAnswerError."""
    script = folder / "wrk.lua"
    script.write_text(asks.lua(ask, nonce=next_nonce()))
    command = ["taskset", "-c", str(core), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script)]
    done = subprocess.run(
        [*command, "--timeout", "20s", "--latency", url],
        capture_output=True,
        text=True,
        timeout=seconds + LONGEST_OVERRUN_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"wrk ended with {done.returncode}: {done.stdout} {done.stderr}")
    return read(done.stdout, ask)


def next_nonce() -> int:
    """Where the numbers of the next round begin."""
    return next(NONCES) * NUMBERS_PER_ROUND


def read(text: str, ask: asks.Ask) -> Round:
    """What wrk's script wrote; raises WrongAnswerError where one response was not as it must be."""
    found = _MEASURED.search(text)
    if found is None:
        raise RuntimeError(f"wrk measured nothing: {text}")
    values = {name: int(value) for name, value in (each.split("=") for each in found[1].split())}
    faults = {name: values[name] for name in _FAULTS if values[name]}
    is_whole = values["bytes"] >= values["requests"] * ask.least_bytes
    if faults or not is_whole or not values["requests"]:
        sample = _SAMPLE.search(text)
        said = sample[1] if sample else ""
        raise asks.WrongAnswerError(f"{ask.method} {ask.path}: {faults or values}, the first wrong one: {said}")
    return Round(
        requests=values["requests"],
        seconds=values["duration_us"] / 1e6,
        bytes=values["bytes"],
        p50_ms=values["p50_us"] / 1000,
        p99_ms=values["p99_us"] / 1000,
    )
