"""The commands about tasks, results and pictures, beside a running gateway and without one."""

from __future__ import annotations

import json
import os
import re
import time

import pytest

from tests import process

FLASH = "gemini-2.5-flash-image-preview"


def _fits(text: str) -> bool:
    return max(map(len, text.splitlines())) <= 80


class Spent:
    """A gateway, and what was done with it."""

    def __init__(self, gateway: process.Gateway, *, paid: str, hit: str, other: str, picture: str) -> None:
        self.cli = gateway.cli
        self.paid, self.hit, self.other, self.picture = paid, hit, other, picture


@pytest.fixture(scope="module")
def spent(tmp_path_factory):
    """A gateway that has completed one task with its hit, and one of another team."""
    lines = 'labels: {cost-centre: "17", region: eu}\n'
    with process.pair(tmp_path_factory.mktemp("spent"), growth=lines) as (gateway, _):
        body = {"model": FLASH, "prompt": "a \x1b[31mfox " + "and another " * 30, "seed": 7}
        paid = gateway.call("POST", "/v1/tasks", body, **{"Idempotency-Key": "order-1"})[2]["task_id"]
        document = gateway.complete(paid)
        hit = gateway.call("POST", "/v1/tasks", body)[2]["task_id"]
        other = gateway.submit("research", model="gemini-3-pro-image-preview")[2]["task_id"]
        gateway.complete(other, team="research")
        picture = document["result"]["images"][0]["url"][0]
        yield Spent(gateway, paid=paid, hit=hit, other=other, picture=picture)


def test_tasks_list_shows_the_newest_first_on_80_columns(spent):
    done = spent.cli("tasks", "list")
    assert done.returncode == 0, done.stderr
    head, _, *lines = done.stdout.splitlines()
    assert head.split() == ["id", "team", "model", "state", "cost", "age"]
    assert [line.split()[0] for line in lines] == [spent.other, spent.hit, spent.paid]
    assert [line.split()[3] for line in lines] == ["completed"] * 3
    assert [line.split()[4] for line in lines] == ["$0.0425", "$0", "$0.01328"]
    assert _fits(done.stdout)


def test_tasks_list_is_narrowed_by_team_state_and_limit(spent):
    rows = json.loads(spent.cli("tasks", "list", "--team", "growth", "--limit", "1", "--format", "json").stdout)
    assert [(row["id"], row["model"], row["cost_usd"]) for row in rows] == [(spent.hit, FLASH, "0")]
    done = spent.cli("tasks", "list", "--state", "in_doubt")
    assert (done.returncode, done.stdout) == (0, "There is no such task.\n")
    assert spent.cli("tasks", "list", "--state", "lost").returncode == 2


def test_tasks_show_tells_the_money_the_steps_and_the_pictures(spent):
    done = spent.cli("tasks", "show", "order-1")
    assert done.returncode == 0, done.stderr
    assert _fits(done.stdout)
    for line in (
        rf"task +{spent.paid}",
        r"state +completed \(its client sees: completed\)",
        r"team, key +growth, ci",
        rf"model +{FLASH}",
        r"cost +\$0\.01328",
        r"client's key +order-1",
        r"upstream id +task-\S+",
        r"upstream key +env:KEY_GROWTH",
        r"settled +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(\d+[sm] ago\)",
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +reserve +\$0\.013282 +gemini\S+",
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +settle +\$0\.01328 +gemini\S+",
        r"  0  [0-9a-f]{64}\.jpg",
        rf"{spent.hit}  growth .*",
    ):
        assert re.search(rf"^{line}$", done.stdout, re.MULTILINE), (line, done.stdout)
    assert "a \N{REPLACEMENT CHARACTER}[31mfox" in done.stdout and "\x1b" not in done.stdout
    assert done.stdout.count("another") < 15
    assert "vendor-secret" not in done.stdout


def test_tasks_show_finds_by_a_pictures_url_and_says_where_there_is_none(spent):
    found = json.loads(spent.cli("tasks", "show", spent.picture, "--format", "json").stdout)
    assert (found["id"], found["ledger"][1]["usd"], found["followers"][0]["id"]) == (spent.paid, "0.01328", spent.hit)
    hit = json.loads(spent.cli("tasks", "show", spent.hit, "--format", "json").stdout)
    assert (hit["leader_id"], hit["cost_usd"], hit["ledger"], len(hit["media"])) == (spent.paid, "0", [], 1)
    none = spent.cli("tasks", "show", "nothing")
    assert (none.returncode, none.stdout) == (1, "There is no such task.\n")


def test_report_by_label_has_a_total_that_counts_each_task_once(spent):
    done = spent.cli("report", "--by", "label,action")
    assert done.stdout == (
        "label           action    tasks  images      cost  free   avoided   average\n"
        "--------------  --------  -----  ------  --------  ----  --------  --------\n"
        "                generate      1       1   $0.0425     0        $0   $0.0425\n"
        "cost-centre=17  generate      1       1  $0.01328     1  $0.01328  $0.01328\n"
        "region=eu       generate      1       1  $0.01328     1  $0.01328  $0.01328\n"
        "--------------  --------  -----  ------  --------  ----  --------  --------\n"
        "total                         2       2  $0.05578     1  $0.01328  $0.02789\n"
    )


def test_report_takes_every_group_at_once_and_fits_80_columns(spent):
    groups = "team,key,model,tier,action,tag,label,day,week,month"
    done = spent.cli("report", "--by", groups, "--format", "csv")
    assert done.stdout.startswith(f"{groups},tasks,images,cost_usd,free,avoided_usd,average_usd,")
    week = time.strftime("%G-W%V", time.gmtime())
    assert {line.split(",")[8] for line in done.stdout.splitlines()[1:]} == {week}
    assert _fits(spent.cli("report", "--by", "team,key,model,day").stdout)


def test_cache_stats_counts_memory_disk_and_task_rows(spent):
    found = json.loads(spent.cli("cache", "stats", "--format", "json").stdout)
    assert (found["in_memory"], found["on_disk"]) == (1, 1)
    assert found["on_task_rows"] == [{"team": "growth", "model": FLASH, "results": 1}]
    done = spent.cli("cache", "stats")
    assert re.search(r"^in memory +1$", done.stdout, re.MULTILINE) and _fits(done.stdout)


def test_a_purge_and_a_collection_go_through_the_running_gateway(tmp_path):
    with process.pair(tmp_path) as (gateway, vendor):
        gateway.complete(gateway.submit(seed=7)[2]["task_id"])
        assert gateway.submit(seed=7)[1]["X-Cache"] == "HIT"
        socket = gateway.data / "control.sock"
        assert socket.stat().st_mode & 0o777 == 0o600
        assert gateway.cli("cache", "purge", "--team", "research").stdout == "0 results purged.\n"
        assert gateway.cli("cache", "purge", "--model", "gemini-*").stdout == "1 result purged.\n"
        assert gateway.submit(seed=7)[1]["X-Cache"] == "MISS"
        orphan = gateway.data / "media" / "ab" / "cd" / ("abcd" * 16)
        orphan.parent.mkdir(parents=True, exist_ok=True)
        orphan.write_bytes(b"picture")
        assert gateway.cli("media", "gc").stdout == "Removed 0 blobs, 0 orphan files, 0 bytes.\n"
        os.utime(orphan, (1, 1))
        dry = gateway.cli("media", "gc", "--dry-run")
        assert dry.stdout == "Would remove 0 blobs, 1 orphan file, 7 bytes.\n" and orphan.exists()
        assert gateway.cli("media", "gc").stdout == "Removed 0 blobs, 1 orphan file, 7 bytes.\n"
        assert not orphan.exists()
        assert gateway.end() == 0
        assert not socket.exists()
        assert vendor.bill()


def test_without_a_gateway_the_command_does_it_itself_also_where_one_was_killed(tmp_path):
    with process.pair(tmp_path) as (gateway, _):
        gateway.complete(gateway.submit(seed=7)[2]["task_id"])
        assert gateway.process is not None
        gateway.process.kill()
        gateway.process.wait(10)
        gateway.process = None
        assert (gateway.data / "control.sock").exists()
        assert "the gateway does not run" in gateway.cli("cache", "stats").stdout
        assert gateway.cli("cache", "purge").stdout == "1 result purged.\n"
        assert gateway.cli("media", "gc").stdout == "Removed 0 blobs, 0 orphan files, 0 bytes.\n"
        gateway.start()
        assert gateway.submit(seed=7)[1]["X-Cache"] == "MISS"
        assert gateway.cli("cache", "purge").returncode == 0
        assert gateway.cli("audit").returncode == 0


def test_a_purge_where_no_ledger_is_creates_none(tmp_path):
    done = process.run_cli("cache", "purge", "--data", str(tmp_path / "d"))
    assert done.returncode == 1 and "there is no ledger at" in done.stderr
    assert not (tmp_path / "d").exists()
