"""`tasks list --in-doubt` and `tasks resolve`, beside a running gateway and without one."""

from __future__ import annotations

import json
import re

import pytest
from click import testing

from gateway import cli
from tests import process

WHY = ("--why", "line 17 of the invoice")
LOST = [{"on": "submit", "times": None, "do": {"status": 503}}]


def _fits(text: str) -> bool:
    return max(map(len, text.splitlines())) <= 80


def _run(gateway: process.Gateway, *arguments: str) -> str:
    """What a command that succeeds prints; in this process, because each of its own takes a second."""
    done = testing.CliRunner().invoke(cli.cli, [*arguments, "--data", str(gateway.data)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_what_is_in_doubt_is_listed_and_resolved_through_the_gateway_and_without_one(tmp_path):
    with process.pair(tmp_path, "--no-upstream-idempotency") as (gateway, vendor):
        vendor.script(LOST)
        charged, released, other = [gateway.submit(team)[2]["task_id"] for team in ("growth", "research", "growth")]
        listed = _run(gateway, "tasks", "list", "--in-doubt")
        head, _, *lines = listed.splitlines()
        assert head.split() == ["id", "team", "held", "for", "tries", "next"]
        assert re.fullmatch(rf"{charged}  growth    \$0\.013282   *\d+[sm]      1  resolve it", lines[0]), lines[0]
        assert [line.split()[0] for line in lines[:3]] == [charged, released, other]
        assert "  wave-gateway tasks resolve ID --as refused|charged=USD --why TEXT" in lines
        assert _fits(listed)
        [row] = json.loads(_run(gateway, "tasks", "list", "--in-doubt", "--limit", "1", "--format", "json"))
        assert (row["id"], row["is_yours"], row["next_at"], row["attempts"]) == (charged, True, None, 1)
        assert row["upstream_idempotency_key"] == vendor.requests()["submits"][0]["idempotency_key"]
        assert row["upstream_key"] == "env:KEY_GROWTH"
        assert row["request_id"].startswith("req-") and row["first_attempt_at"] >= row["created_at"]

        assert _run(gateway, "tasks", "resolve", charged, "--as", "charged=0.0425", *WHY) == (
            f"task          {charged}\n"
            "settled       $0.0425, $0.029218 of it overage\n"
            "ended         failed for its client\n"
        )
        status, _, shown = gateway.call("GET", f"/v1/tasks/{charged}")
        assert (status, shown["status"], shown["cost"]) == (200, "failed", 21_250)
        again = gateway.cli("tasks", "resolve", charged, "--as", "refused", *WHY)
        assert (again.returncode, again.stdout) == (1, "")
        assert again.stderr == (
            f"wave-gateway: task {charged} has ended already, nothing was changed: failed, at a cost of $0.0425 "
            "(operator: charged $0.0425: line 17 of the invoice)\n"
        )

        assert gateway.end() == 0
        assert _run(gateway, "tasks", "resolve", released, "--as", "refused", *WHY) == (
            f"task          {released}\nreleased      $0.013282\nended         failed for its client\n"
        )
        unknown = gateway.cli("tasks", "resolve", "task-unknown", "--as", "refused", *WHY)
        assert (unknown.returncode, unknown.stdout) == (1, "") and "there is no task task-unknown" in unknown.stderr
        assert _run(gateway, "tasks", "list", "--in-doubt", "--team", "research") == "No task is in doubt.\n"
        assert _run(gateway, "audit").startswith("The books agree to the nano")


def test_what_is_still_asked_about_shows_when_it_is_asked_again(tmp_path):
    with process.pair(tmp_path) as (gateway, vendor):
        vendor.script(LOST)
        task_id = gateway.submit()[2]["task_id"]
        listed = _run(gateway, "tasks", "list", "--in-doubt")
        assert re.search(rf"^{task_id}  growth .* again (now|in \d+[sm])$", listed, re.MULTILINE), listed
        assert "resolve" not in listed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list", "--in-doubt", "--state", "waiting"), "--in-doubt is a state already"),
        (("resolve", "task-1", "--as", "refused"), "Missing option '--why'"),
        (("resolve", "task-1", *WHY), "Missing option '--as'"),
        (("resolve", "--as", "refused", *WHY), "Missing argument 'ID'"),
        (("resolve", "task-1", "--as", "refused", "--why", " \t "), "--why: say in 1 to 500 characters"),
        (("resolve", "task-1", "--as", "refused", "--why", "x" * 501), "--why: say in 1 to 500 characters"),
        (("resolve", "task-1", "--as", "refused", "--why", "a\x1b[31mb"), "--why: say in 1 to 500 characters"),
        (("resolve", "task-1", "--as", "accepted", *WHY), "write refused, or charged=0.0425"),
        (("resolve", "task-1", "--as", "refused=1", *WHY), "write refused, or charged=0.0425"),
        (("resolve", "task-1", "--as", "charged", *WHY), "is not an amount"),
        (("resolve", "task-1", "--as", "charged=0", *WHY), "nothing was billed, so write refused"),
        (("resolve", "task-1", "--as", "charged=-1", *WHY), "is not an amount"),
        (("resolve", "task-1", "--as", "charged=1e3", *WHY), "is not an amount"),
        (("resolve", "task-1", "--as", "charged=0.0000000001", *WHY), "is not an amount"),
        (("resolve", "task-1", "--as", "charged=1000000000.5", *WHY), "is more than 1000000000 US dollars"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_right(tmp_path, arguments, said):
    done = testing.CliRunner().invoke(cli.cli, ["tasks", *arguments, "--data", str(tmp_path / "none")])
    assert (done.exit_code, said in done.output) == (2, True), done.output
    assert not (tmp_path / "none").exists()


def test_a_decision_where_no_ledger_is_creates_none(tmp_path):
    done = process.run_cli("tasks", "resolve", "task-1", "--as", "refused", *WHY, "--data", str(tmp_path / "d"))
    assert done.returncode == 1 and "there is no ledger at" in done.stderr
    assert not (tmp_path / "d").exists()
