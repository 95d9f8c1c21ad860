"""Runs one proof in a directory of its own and says in one line what it showed."""

from __future__ import annotations

import logging
import pathlib
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

Proof = Callable[[pathlib.Path], str]
"""Does a proof at full length in a directory; returns what it showed, raises AssertionError where it does not hold."""


def one(name: str, proof: Proof) -> bool:
    """Whether the proof holds; its line goes to standard output."""
    logging.disable(logging.CRITICAL)  # an outage of a minute is thousands of warnings
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"proof-{name}-") as directory:
        try:
            said, holds = proof(pathlib.Path(directory)), True
        except Exception:  # noqa: BLE001 - whatever ends a proof, it does not hold
            traceback.print_exc()
            said, holds = "does not hold, see above", False
    verdict = "ok  " if holds else "FAIL"
    sys.stdout.write(f"{verdict} {name}: {said} ({time.monotonic() - started:.0f} s)\n")
    sys.stdout.flush()
    return holds


def alone(name: str, proof: Proof) -> None:
    """Run one proof as a program: exit code 0 if it holds, else 1."""
    sys.exit(0 if one(name, proof) else 1)
