"""The soak program in a short form, and what it concludes from samples and books that are made up."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import sqlite3
from typing import Any

import pytest

from tests.soak import books, receiver, run, samples
from tests.soak.samples import MIB

QUICK = ("good", "slow", "gone")
"""Receivers that make nobody wait for a second attempt."""
SAMPLE = samples.Sample(
    at_s=0.0,
    cpu_s=0.0,
    requests=0,
    rss=80 * MIB,
    anonymous=60 * MIB,
    pss=70 * MIB,
    sockets=5,
    files=10,
    other_fds=5,
    threads=9,
    tasks=12,
    late_s=0.0,
    gc_young_s=0.0,
    gc_full_s=0.0,
    blocks=0,
    heap=0,
    heap_free=0,
    database=0,
    wal=0,
    cache=0,
)


def looked(*, bytes_each: float, noise: int = 0) -> run.Soaked:
    """Samples of ten minutes at 100 requests a second, growing by so much with each request; every 7th is a peak."""
    taken = [
        dataclasses.replace(
            SAMPLE,
            at_s=number * 15.0,
            requests=number * 1_500,
            rss=int(80 * MIB + number * 1_500 * bytes_each + (noise if number % 7 == 0 else 0)),
        )
        for number in range(40)
    ]
    wanted = run.Wanted(seconds=600, per_s=100, seed=1, warm_s=0)
    return run.Soaked(wanted=wanted, taken=taken, requests=60_000, took_s=600)


@pytest.mark.parametrize(("bytes_each", "holds"), [(0, True), (10, True), (11, False), (-5, True)])
def test_memory_may_grow_by_one_mebibyte_with_a_hundred_thousand_requests_and_no_more(bytes_each, holds):
    # 2^20 / 100,000 = 10.48576 bytes a request.
    assert run.verdict(looked(bytes_each=bytes_each))[0] is holds


def test_peaks_do_not_hide_a_leak_or_make_one():
    assert run.verdict(looked(bytes_each=0, noise=20 * MIB))[0]
    assert not run.verdict(looked(bytes_each=20, noise=20 * MIB))[0]


def test_a_slope_is_said_with_its_interval():
    found = samples.slope([(each.requests, each.rss) for each in looked(bytes_each=21).taken])
    assert found.bytes_each == found.least == found.most == 21.0
    assert found.mebibytes() == "+2.00 (+2.00 to +2.00)"


def test_the_table_fits_eighty_columns():
    found = looked(bytes_each=0)
    found.latencies = [(1.0, 0.004), (2.0, 1.5)]
    lines = run.table(found)
    assert len(lines) == 12 and all(len(line) <= 80 for line in lines), lines


def test_a_sample_is_of_the_process_that_is_asked_for(tmp_path):
    before = samples.held(os.getpid(), tmp_path, tmp_path / "inside", at_s=1.0, requests=2)
    with (tmp_path / "wave.db-wal").open("wb") as opened:
        opened.write(b"x" * 4096)
        opened.flush()
        kept = bytearray(b"x" * (64 * MIB))
        after = samples.held(os.getpid(), tmp_path, tmp_path / "inside", at_s=1.0, requests=2)
    assert (after.files - before.files, after.wal, before.wal) == (1, 4096, 0)
    assert after.rss - before.rss > 32 * MIB and after.anonymous - before.anonymous > 32 * MIB and len(kept) > 0
    assert after.threads >= 1


def test_what_is_open_more_than_before_the_load_is_named():
    found = looked(bytes_each=0)
    found.idle = [SAMPLE, dataclasses.replace(SAMPLE, sockets=6, threads=8)]
    assert run.left_open(found) == ["sockets: 5 before the load, 6 after it"]


@pytest.mark.timeout(300)  # of which 10 s on a quiet machine: seven processes start
def test_a_short_soak_ends_with_every_answer_allowed_every_task_ended_and_the_books_agreed(tmp_path: pathlib.Path):
    found = run.soak(
        tmp_path, run.Wanted(seconds=3, per_s=50, seed=3, warm_s=0, idle_s=0, every_s=1, fill=50, hooks=QUICK)
    )
    assert found.wrong == []
    assert found.requests > 0 and found.taken and found.scrapes
    assert found.taken[-1].tasks > 0 and found.taken[-1].sockets > 0 and found.taken[-1].database > 0


# The books at the end, made up.

BILL: dict[str, Any] = {"nanos": 4_000, "tasks": 1, "by_task": {"v1": {"quota": 2, "idempotency_key": "k1"}}}
HEARD = {"t1": receiver.Heard(ids={"msg_1"}, attempts=1, taken=1)}
MADE_UP = """
CREATE TABLE tasks (id, state, upstream_task_id, callback_url, attempts, leader_id);
CREATE TABLE entries (task_id, kind, nanos);
CREATE TABLE outbox (task_id, state);
CREATE TABLE balances (reserved_nanos);
INSERT INTO tasks VALUES ('t1', 'completed', 'v1', 'http://good/hook', 1, NULL),
    ('t2', 'refused', NULL, 'http://good/hook', 1, NULL);
INSERT INTO entries VALUES ('t1', 'reserve', 9000), ('t1', 'settle', 4000);
INSERT INTO outbox VALUES ('t1', 'delivered');
INSERT INTO balances VALUES (0);
"""


def judged(directory: pathlib.Path, *, sql: str = "", bill: Any = BILL, heard: Any = HEARD) -> list[str]:
    """The findings of books that agree, but for a change."""
    file = directory / "wave.db"
    with contextlib.closing(sqlite3.connect(file)) as made:
        made.executescript(MADE_UP + sql)
    return books.findings(file, bill, heard, ["t1", "t2"], gone_url="http://gone/hook")[0]


def test_books_that_agree_have_no_findings(tmp_path):
    assert judged(tmp_path) == []


def test_a_503_that_was_the_answer_to_a_submit_needs_no_webhook_and_a_later_end_does(tmp_path):
    never_taken = "UPDATE tasks SET state = 'failed', attempts = {} WHERE id = 't2';"
    (tmp_path / "later").mkdir()
    assert judged(tmp_path, sql=never_taken.format(1)) == []
    assert judged(tmp_path / "later", sql=never_taken.format(2)) != []


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"sql": "UPDATE tasks SET state = 'submitted' WHERE id = 't2'"}, "t2 is submitted"),
        ({"sql": "UPDATE balances SET reserved_nanos = 9000"}, "9000 nanos are still reserved"),
        ({"sql": "DELETE FROM tasks WHERE id = 't2'"}, "t2 was promised and is not there"),
        ({"bill": {**BILL, "nanos": 6_000}}, "billed 6000, settled 4000 nanos"),
        (
            {"sql": "UPDATE entries SET nanos = 3998 WHERE kind = 'settle'"},
            "vendor task v1: billed 4000, settled 3998 nanos",
        ),
        (
            {"bill": {**BILL, "by_task": {**BILL["by_task"], "v2": {"quota": 0, "idempotency_key": "k1"}}}},
            "2 vendor tasks under one idempotency key",
        ),
        ({"heard": {**HEARD, "t2": receiver.Heard(ids={"msg_2"})}}, "a webhook told of t2, and nobody asked"),
        ({"heard": {}}, "webhook of t1: delivered, Heard(ids=set(), attempts=0, taken=0)"),
        (
            {"sql": "UPDATE tasks SET state = 'failed', leader_id = 't1' WHERE id = 't2'"},
            "webhook of t2: None, Heard(ids=set(), attempts=0, taken=0)",
        ),
        ({"sql": "DELETE FROM outbox"}, "webhook of t1: None, Heard(ids={'msg_1'}, attempts=1, taken=1)"),
    ],
)
def test_books_that_do_not_agree_are_named(tmp_path, change, finding):
    assert finding in judged(tmp_path, **change)
