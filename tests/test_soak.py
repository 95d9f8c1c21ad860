"""The soak program in a short form, and what it concludes from samples and books that are made up."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import pytest

from tests.soak import run, samples
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


def test_a_short_soak_ends_with_every_answer_allowed_every_task_ended_and_the_books_agreed(tmp_path: pathlib.Path):
    found = run.soak(
        tmp_path, run.Wanted(seconds=3, per_s=50, seed=3, warm_s=0, idle_s=0, every_s=1, fill=50, hooks=QUICK)
    )
    assert found.wrong == []
    assert found.requests > 100 and len(found.taken) >= 4 and len(found.scrapes) >= 3
    assert found.taken[-1].tasks > 0 and found.taken[-1].sockets > 0 and found.taken[-1].database > 0
