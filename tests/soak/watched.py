"""Starts a gateway and has its own event loop count, every few seconds, what only the process itself can see.

`python tests/soak/watched.py PYTHON -m gateway serve …`; lines of JSON go to the file that SOAK_INSIDE names. The
gateway needs no public surface for it: what is counted is the interpreter's, asyncio's and malloc's.
"""

from __future__ import annotations

import asyncio
import collections
import ctypes
import gc
import json
import os
import pathlib
import runpy
import signal
import sys
import time
from typing import Any, Final

import uvloop

EVERY_S: Final = float(os.environ.get("SOAK_EVERY_S", "5"))
TYPES: Final = int(os.environ.get("SOAK_TYPES", "0"))
"""How many of the commonest types are counted too, for whoever hunts a leak: each count stops the loop."""


_MALLINFO: Final = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
_Mallinfo: Final[Any] = type(
    "_Mallinfo", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in _MALLINFO]}
)
"""Of glibc's mallinfo2(3)."""


def malloc() -> dict[str, int]:
    """Bytes that malloc has given out and that it holds back; nothing where it is not glibc's."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return {}
    ask.restype = _Mallinfo
    said = ask()
    return {"heap": said.uordblks + said.hblkhd, "heap_free": said.fordblks}


def watch(loop: asyncio.AbstractEventLoop, file: pathlib.Path) -> None:
    """Write one line now and every few seconds from now on, and one after a full collection on SIGUSR2."""
    due_at, began_at, longest_s = loop.time(), 0.0, [0.0, 0.0, 0.0]

    def clock(phase: str, info: dict[str, int]) -> None:
        nonlocal began_at
        now = time.perf_counter()
        if phase == "start":
            began_at = now
        else:
            longest_s[info["generation"]] = max(longest_s[info["generation"]], now - began_at)

    gc.callbacks.append(clock)

    def look() -> None:
        nonlocal due_at
        look_now()
        due_at = loop.time() + EVERY_S
        loop.call_at(due_at, look)

    def look_now(**more: bool) -> None:
        said: dict[str, Any] = {
            **more,
            "at": time.time(),
            "late_s": max(0.0, loop.time() - due_at),
            "tasks": len(asyncio.all_tasks(loop)),
        }
        said |= {"blocks": sys.getallocatedblocks(), "gc_counts": gc.get_count(), "gc_longest_s": longest_s, **malloc()}
        if TYPES:
            kinds = collections.Counter(type(each).__qualname__ for each in gc.get_objects())
            said["types"] = dict(kinds.most_common(TYPES))
        with file.open("a") as opened:
            opened.write(json.dumps(said) + "\n")
        longest_s[:] = [0.0, 0.0, 0.0]

    def collect() -> None:
        gc.collect()
        look_now(collected=True)

    loop.call_soon(look)
    loop.call_soon(loop.add_signal_handler, signal.SIGUSR2, collect)


def main() -> None:
    """Run the module that the command line names, watched."""
    file = pathlib.Path(os.environ["SOAK_INSIDE"])
    new_event_loop = uvloop.new_event_loop

    def watched_event_loop() -> uvloop.Loop:
        loop = new_event_loop()
        watch(loop, file)
        return loop

    uvloop.new_event_loop = watched_event_loop
    sys.argv = ["wave-gateway", *sys.argv[4:]]
    sys.path.insert(0, os.getcwd())
    runpy.run_module("gateway", run_name="__main__")


if __name__ == "__main__":
    main()
