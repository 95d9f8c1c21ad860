"""What a power cut or a broken disk can take away: real gateway processes, their system calls watched by a tracer.

The tracer keeps the database as it would be found after a power cut at each sync of its log, so a claim is read from
that database, not guessed from an order of calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import pathlib
import sqlite3
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest

from gateway.flow import audit
from gateway.store import blobs_disk, sqlite
from tests import process

TRACER = pathlib.Path(__file__).with_name("tracing.py")
FLASH = "gemini-2.5-flash-image-preview"

Call = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The calls of one gateway, in order, and where it kept its data."""

    folder: pathlib.Path
    data: pathlib.Path
    calls: list[Call]
    posts: list[int]
    """Where in `calls` each POST begins."""

    def where(self, **said: object) -> list[int]:
        """Positions of the calls with these values; paths as text."""
        wanted = {name: str(value) if isinstance(value, pathlib.Path) else value for name, value in said.items()}
        return [at for at, call in enumerate(self.calls) if wanted.items() <= call.items()]

    def durable(self, at: int, sql: str) -> list[tuple[Any, ...]]:
        """What the database would answer after a power cut just before this call."""
        [*_, image] = [call["durable"] for call in self.calls[:at] if "durable" in call]
        return _query(self.folder / image / "wave.db", sql)


def _query(database: pathlib.Path, sql: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(database, timeout=10)) as connection:
        return connection.execute(sql).fetchall()


def launcher(folder: pathlib.Path) -> tuple[str, ...]:
    folder.mkdir(exist_ok=True)
    return (sys.executable, str(TRACER), str(folder))


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """A first start, one submit whose first POST is lost and repeated, and its mirrored picture."""
    folder = tmp_path_factory.mktemp("traced")
    with process.pair(folder, launcher=launcher(folder / "trace")) as (gateway, vendor):
        vendor.script([{"on": "submit", "times": 1, "do": {"status": 500}}, {"on": "submit", "do": {"work_s": 0.1}}])
        status, _, document = gateway.submit()
        assert (status, gateway.complete(document["task_id"])["status"]) == (200, "completed")
        port = urllib.parse.urlsplit(vendor.url).port
    calls = [json.loads(line) for line in (folder / "trace" / "calls.jsonl").read_text().splitlines()]
    posts = [
        at for at, call in enumerate(calls) if call.get("port") == port and call.get("data", "").startswith("POST ")
    ]
    return Trace(folder=folder / "trace", data=folder / "data", calls=calls, posts=posts)


# The order


def test_not_one_byte_goes_upstream_before_the_reservation_is_durable(trace: Trace) -> None:
    first, _ = trace.posts
    port = trace.calls[first]["port"]
    sent = [at for at, call in enumerate(trace.calls) if call.get("port") == port and "data" in call]
    assert sent[0] == first
    assert trace.durable(first, "SELECT state, attempts, quote_nanos FROM tasks") == [("reserved", 1, 13_282_000)]
    assert trace.durable(first, "SELECT kind, nanos FROM entries") == [("reserve", 13_282_000)]


def test_not_one_byte_of_a_repeat_goes_upstream_before_its_attempt_is_durable(trace: Trace) -> None:
    _, second = trace.posts
    assert trace.durable(second, "SELECT state, attempts FROM tasks") == [("in_doubt", 2)]


def test_a_picture_its_name_and_every_folder_above_it_are_durable_before_its_row_is_written(trace: Trace) -> None:
    [rename] = [at for at, call in enumerate(trace.calls) if call["at"] == "enter" and "/media/" in call.get("to", "")]
    picture = pathlib.Path(trace.calls[rename]["to"])
    [renamed] = trace.where(call=trace.calls[rename]["call"], at="leave", to=picture, result=0)
    [bytes_durable] = trace.where(call="fsync", at="leave", file=trace.calls[rename]["file"], result=0)
    written = trace.where(call="write", at="leave", file=trace.calls[rename]["file"])
    assert written[-1] < bytes_durable < rename
    media = trace.data / "media"
    name_durable = max(
        next(at for at in trace.where(call="fsync", at="leave", file=each, result=0) if at > renamed)
        for each in (picture.parent, picture.parent.parent, media)
    )
    [made] = trace.where(call="mkdir", at="leave", file=media)
    assert any(made < at < rename for at in trace.where(call="fsync", at="leave", file=trace.data, result=0))
    assert name_durable < _first_write_of(trace, "SELECT digest FROM blobs", answer=[(picture.name,)])


def _first_write_of(trace: Trace, sql: str, *, answer: list[tuple[Any, ...]]) -> int:
    """Where the transaction after which a query has this answer begins to be written to the log."""
    syncs = [at for at, call in enumerate(trace.calls) if "durable" in call and at > trace.posts[0]]
    kept = next(at for at in syncs if _query(trace.folder / trace.calls[at]["durable"] / "wave.db", sql) == answer)
    before = max(at for at in syncs if at < kept)
    log = trace.data / "wave.db-wal"
    return next(at for at in trace.where(call="pwrite64", at="enter", file=log) if at > before)


def test_a_new_data_directory_is_durable_before_anything_is_sent(trace: Trace) -> None:
    [made] = trace.where(call="mkdir", at="leave", file=trace.data, result=0)
    synced = trace.where(call="fsync", at="leave", file=trace.data.parent, result=0)
    assert any(made < at < trace.posts[0] for at in synced)


def test_a_path_that_lies_across_two_pages_of_memory_is_recorded_whole(tmp_path: pathlib.Path) -> None:
    made = tmp_path / "made"
    across = f"""
import ctypes, mmap
pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
start = mmap.PAGESIZE - 4
pages[start:] = {str(made)!r}.encode().ljust(len(pages) - start, b"\\0")
path = ctypes.c_char.from_buffer(pages, start)
assert ctypes.CDLL(None).mkdir(ctypes.byref(path), 0o700) == 0
"""
    subprocess.run([*launcher(tmp_path / "trace"), sys.executable, "-c", across], check=True, timeout=60)
    calls = [json.loads(line) for line in (tmp_path / "trace" / "calls.jsonl").read_text().splitlines()]
    here = [call["file"] for call in calls if call["call"].startswith("mkdir") and str(tmp_path) in call["file"]]
    assert here == [str(made), str(made)]


# A full disk


@contextlib.contextmanager
def failing(folder: pathlib.Path, *calls: str, file: str, number: int) -> Iterator[None]:
    """These calls on files whose path holds this text return the error meanwhile."""
    rule, draft = folder / "fail.json", folder / "draft.json"
    draft.write_text(json.dumps({"calls": calls, "file": file, "errno": number}))
    draft.rename(rule)
    yield
    rule.unlink()


def _until(is_so: Callable[[], object], within_s: float = 20) -> None:
    until = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_full_disk_refuses_submits_shows_no_partial_file_and_goes_on_by_itself(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "trace"
    with process.pair(tmp_path, launcher=launcher(folder)) as (gateway, vendor):
        vendor.script([{"on": "submit", "do": {"work_s": 0.1}}])
        with failing(folder, "write", file="/media/.tmp/", number=errno.ENOSPC):
            under_way = gateway.submit()[2]["task_id"]
            none = 'wave_gateway_mirror_failures_total{reason="disk"} 0.0\n'
            _until(lambda: none not in _metrics(gateway))
        with failing(folder, "write", "pwrite64", "mkdir", file=str(gateway.data), number=errno.ENOSPC):
            before = vendor.requests()["counts"]["submit"]
            status, headers, refused = gateway.submit()
            assert (status, refused["error"]["code"], headers["Retry-After"]) == (503, "unavailable", "2")
            assert gateway.call("GET", f"/v1/tasks/{under_way}")[0] == 200
            assert vendor.requests()["counts"]["submit"] == before == 1
            assert [each for each in (gateway.data / "media").glob("??/??/*")] == []
            assert list((gateway.data / "media" / ".tmp").iterdir()) == []
        assert gateway.complete(under_way)["status"] == "completed"
        assert gateway.complete(gateway.submit()[2]["task_id"])["status"] == "completed"
        assert _books(gateway) == ([], 26_560_000)
        assert vendor.bill()["tasks"] == 2


def _books(gateway: process.Gateway) -> tuple[list[str], int]:
    """What the audit finds, and the nanos settled."""
    blobs = blobs_disk.DiskBlobs(gateway.data / "media")
    [[settled]] = _query(gateway.data / "wave.db", "SELECT SUM(nanos) FROM entries WHERE kind = 'settle'")
    return sqlite.scan_file(gateway.data / "wave.db", lambda tx: audit.audit(tx, blobs)), settled


def _metrics(gateway: process.Gateway) -> str:
    return process.fetch(gateway.url + "/metrics")[2].decode()


# A broken disk


@pytest.mark.parametrize("call", ["pwrite64", "fdatasync"])
async def test_an_io_error_answers_none_of_fifty_submits_and_all_succeed_when_repeated(
    tmp_path: pathlib.Path, call: str
) -> None:
    """Nobody knows what a failed COMMIT left on the disk: the process ends, and the next one reads it.

    Where the write failed nothing is there; where the sync failed everything may be, and goes on under its key.
    """
    folder = tmp_path / "trace"
    with process.pair(tmp_path, launcher=launcher(folder)) as (gateway, vendor):
        vendor.script([{"on": "submit", "do": {"work_s": 0.1}}])
        with failing(folder, call, file="wave.db-wal", number=errno.EIO):
            outcomes = await _fifty(gateway)
            assert gateway.process is not None
            assert await asyncio.to_thread(gateway.process.wait, 20) == 70
        assert outcomes == [None] * 50
        assert vendor.requests()["counts"].get("submit", 0) == 0
        gateway.launcher = ()
        await asyncio.to_thread(gateway.start)
        assert await _fifty(gateway) == [200] * 50
        found = _query(gateway.data / "wave.db", "SELECT COUNT(*), COUNT(DISTINCT idempotency_key) FROM tasks")
        assert found == [(50, 50)]
        completed = "SELECT COUNT(*) FROM tasks WHERE state = 'completed'"
        await asyncio.to_thread(_until, lambda: _query(gateway.data / "wave.db", completed) == [(50,)])
        assert vendor.bill()["tasks"] == 50
        assert _books(gateway) == ([], 664_000_000)


async def _fifty(gateway: process.Gateway) -> list[int | None]:
    """Fifty submits at once, each with its own key; the status of each, None where no answer came."""
    headers = {"Authorization": f"Bearer {process.KEYS['growth']}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:

        async def one(number: int) -> int | None:
            body = {"model": FLASH, "prompt": f"fox {number}"}
            named = {"Idempotency-Key": f"key-{number}"}
            try:
                async with session.post(f"{gateway.url}/v1/tasks", json=body, headers=named) as answer:
                    return answer.status
            except aiohttp.ClientError:
                return None

        return list(await asyncio.gather(*(one(number) for number in range(50))))
