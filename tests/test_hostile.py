"""A vendor that means harm in front of a real gateway process: what clients see, what is charged, what is left.

Each attack once, all at the same time; `make proofs ARGS=hostile` does so again and again. The outcome of one call is
held in tests/outbound/test_hostile_upstream.py and test_hostile_media.py; here is what becomes of the task.
"""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import sqlite3
import time
from typing import Any

from gateway.rules import task
from tests import hostile, hostile_documents, process

BILLED = 13_282_000
"""The vendor's cost of 6641 quota."""
FROZEN = 13_281_250
"""The price of one picture at admission."""
AT_ONCE = [
    *("no-http", "redirect-307", "redirect-metadata", "bomb-gzip", "bomb-br", "5000-headers", "length-twice"),
    *("endless-100", "endless-headers", "endless-body", "endless-chunk-extension", "endless-small-chunks"),
    *("reset-in-body", "length-long", "hung-up", "html", "100000-keys", "numbers", "10000-levels", "key-twice"),
    *("lone-surrogate", "utf-16"),
]
IDS = ["id-of-100-kb", "id-dot-dot", "id-newline", "id-number"]
COSTS = {
    **dict.fromkeys(["cost-negative", "cost-float", "cost-text", "cost-true", "cost-2-to-63"], FROZEN),
    **dict.fromkeys(["cost-of-300-digits", "cost-list"], FROZEN),
    "cost-above-quote": 100_000_000,
    "cost-of-a-million-usd": 1_000_000_000_000_000,
    "cost-zero": 0,
}
CALM_S = 60.0


def tasks_of(gateway: process.Gateway) -> dict[str, tuple[str, int | None]]:
    """Prompt -> (state, cost in nanos)."""
    with contextlib.closing(sqlite3.connect(f"file:{gateway.data}/wave.db?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT json_extract(request, '$.prompt'), state, cost_nanos FROM tasks").fetchall()
    return {prompt: (state, cost) for prompt, state, cost in rows}


def until_all(gateway: process.Gateway, states: tuple[str, ...], within_s: float) -> dict[str, tuple[str, int | None]]:
    until = time.monotonic() + within_s
    while True:
        found = tasks_of(gateway)
        if all(state in states for state, _ in found.values()):
            return found
        assert time.monotonic() < until, {name: each for name, each in found.items() if each[0] not in states}
        time.sleep(0.2)


def memory_mib(gateway: process.Gateway, name: str) -> float:
    assert gateway.process is not None
    lines = pathlib.Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def counted(text: str, **labels: str) -> float:
    wanted = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if "_total{" in line and wanted in line)


def test_every_attack_at_once_ends_in_a_clear_state_and_clean_books(tmp_path):
    with hostile.process() as vendor_url:
        limits = "limits: {open_tasks: 9999}\n"
        gateway = process.gateway_before(vendor_url, tmp_path, "--mirror-patience", "2s", growth=limits)
        gateway.start()
        try:
            _play(gateway, vendor_url)
        finally:
            gateway.end()


def _play(gateway: process.Gateway, vendor_url: str) -> None:
    def flood(*prompts: str) -> dict[str, Any]:
        bodies = [{"model": "gemini-2.5-flash-image-preview", "prompt": prompt} for prompt in prompts]
        answers = asyncio.run(gateway.flood(bodies))
        assert [status for status, _, _ in answers] == [200] * len(bodies)
        return {prompt: shown for prompt, (_, _, shown) in zip(prompts, answers, strict=True)}

    # What is kept for good, and what is sane, before; then the memory under it counts.
    hostile.control(vendor_url, "attack")
    media = flood(*(f"media {name}" for name in hostile.media(b"", 0)), *(f"sane {number}" for number in range(16)))
    before_mib = memory_mib(gateway, "VmRSS")
    hostile.control(vendor_url, "quiet")
    polled = [f"poll {name}" for name in (*AT_ONCE, *hostile_documents.OUTCOMES)]
    shown = flood(*polled, *(f"cancel {name}" for name in AT_ONCE))
    submitted = flood(*(f"submit {name}" for name in (*AT_ONCE, *IDS)))
    assert {each["status"] for each in submitted.values()} == {"queued"}

    # A cancel whose answer says nothing is the client's 502 or 504, and the task goes on.
    cancels = {
        name: gateway.call("POST", f"/v1/tasks/{shown[f'cancel {name}']['task_id']}/cancel")[0] for name in AT_ONCE
    }
    assert {name for name, status in cancels.items() if status == 504} == {
        *("no-http", "5000-headers", "length-twice", "endless-headers", "reset-in-body", "length-long", "hung-up")
    }
    assert {status for name, status in cancels.items()} == {502, 504}

    # Every answer to a poll is heard, and none of the senseless ones ends a task.
    hostile.control(vendor_url, "attack")
    until = time.monotonic() + 30
    while not {*polled} <= {*hostile.control(vendor_url)["asked"]}:
        assert time.monotonic() < until
        time.sleep(0.1)
    for name in AT_ONCE:
        _, _, document = gateway.call("GET", f"/v1/tasks/{shown[f'poll {name}']['task_id']}")
        assert document["status"] in ("queued", "processing"), name
        assert tasks_of(gateway)[f"submit {name}"][0] in ("in_doubt", "waiting"), name

    # What is no picture is shown where the vendor has it.
    for name in ("html", "svg", "jpeg-then-html", "endless-jpeg", "64-mib-and-1"):
        document = gateway.complete(media[f"media {name}"]["task_id"])
        assert document["result"]["images"][0]["url"][0].startswith(f"{vendor_url}/media/{name}/"), name

    # Calm: all of it ends, each task billed once.
    asked = hostile.control(vendor_url, "calm")
    ended = until_all(gateway, tuple(task.ENDED), CALM_S)
    assert {state for state, _ in ended.values()} == {"completed"}
    charged = {name: cost for name, (_, cost) in ended.items()}
    assert charged == {name: BILLED for name in charged} | {f"poll {name}": cost for name, cost in COSTS.items()}
    assert asked["strayed"] == hostile.control(vendor_url)["strayed"] == []

    # What is a picture and something else is kept, and harmless as it is served.
    for name in ("jpeg-around-html", "jpeg-around-zip", "gif-around-script"):
        document = gateway.complete(media[f"media {name}"]["task_id"])
        url = document["result"]["images"][0]["url"][0]
        assert url.startswith(f"{gateway.url}/media/"), name
        status, headers, _ = process.fetch(url)
        assert status == 200
        assert headers["Content-Type"] == ("image/gif" if name.startswith("gif") else "image/jpeg")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"] == "sandbox; default-src 'none'"

    exposition = process.fetch(f"{gateway.url}/metrics")[2].decode()
    assert counted(exposition, operation="submit", outcome="garbled") >= 15
    for outcome in ("garbled", "too_large", "not_a_task", "3xx", "lost"):
        assert counted(exposition, operation="poll", outcome=outcome) >= 1, outcome
    assert counted(exposition, operation="cancel", outcome="garbled") >= 10
    for reason in ("not_media", "truncated", "too_large", "status", "address"):
        assert counted(exposition, reason=reason) >= 1, reason
    assert gateway.cli("audit").returncode == 0
    assert memory_mib(gateway, "VmHWM") - before_mib < 96
