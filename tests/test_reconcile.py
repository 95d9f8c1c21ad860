"""`wave-gateway reconcile` beside a running gateway, with a real vendor process."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import pytest
from click import testing

from gateway import cli
from gateway.store import sqlite
from tests import process

SLOW = {"on": "submit", "prompt": "slow", "times": None, "do": {"work_s": 600}}


def words(gateway: process.Gateway, upstream: str, *options: str) -> list[str]:
    places = ["--data", str(gateway.data), "--policies", str(gateway.policies), "--upstream", upstream]
    return ["reconcile", *places, *options]


def reconcile(
    gateway: process.Gateway, upstream: str, *options: str, environ: Mapping[str, str] = process.ENVIRON
) -> testing.Result:
    """The command beside the running gateway, in this process: starting another one takes longer than its work."""
    return testing.CliRunner().invoke(cli.cli, words(gateway, upstream, *options), env=environ)


def bought_outside(vendor: process.Vendor) -> None:
    """With the team's own upstream key, behind the gateway's back."""
    body = json.dumps({"model": "gemini-3-pro-image-preview", "prompt": "outside"}).encode()
    headers = {"Authorization": "Bearer vendor-secret-growth", "Content-Type": "application/json"}
    assert process.fetch(vendor.url + "/v1/tasks", method="POST", body=body, **headers)[0] == 200
    until = time.monotonic() + 20
    while vendor.bill()["by_model"]["gemini-3-pro-image-preview"]["quota"] < 2 * 21_250:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_reconcile_agrees_finds_what_was_bought_outside_and_takes_an_opening(tmp_path):
    with process.pair(tmp_path) as (gateway, vendor):
        vendor.script([SLOW])
        one = gateway.submit(seed=7)[2]["task_id"]
        other = gateway.submit("research", model="gemini-3-pro-image-preview")[2]["task_id"]
        gateway.submit(prompt="slow")
        gateway.complete(one)
        gateway.complete(other, team="research")

        ran = process.run_cli(*words(gateway, vendor.url), environ=process.ENVIRON)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout == (
            "account of env:KEY_GROWTH, env:KEY_RESEARCH\n"
            "                               tasks           amount\n"
            "-----------------------------  -----  ---------------\n"
            "the vendor's wallet has used                 $0.06906\n"
            "the ledger has settled             2         $0.05578\n"
            "difference                                   $0.01328\n"
            "  open there: up to the quote      1  $0 to $0.013282\n"
            "unexplained                                        $0\n"
            "\n"
            "3 tasks compared one by one.\n"
            "The ledger and the vendor agree; every difference has its reason.\n"
        )
        bought_outside(vendor)
        done = reconcile(gateway, vendor.url)
        assert done.exit_code == 1
        # The open task may have cost nothing or its quote: what no outcome of it explains.
        assert "The vendor counts $0.042498 more than anything here explains." in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80
        done = reconcile(gateway, vendor.url, "--opening", "env:KEY_GROWTH=0.0425", "--format", "json")
        assert done.exit_code == 0, done.stdout
        found = json.loads(done.stdout)
        assert found["explained"] is True
        assert found["accounts"] == [
            {
                "keys": ["env:KEY_GROWTH", "env:KEY_RESEARCH"],
                "trouble": None,
                "used_usd": "0.11156",
                "settled_usd": "0.05578",
                "settles": 2,
                "earlier_key_usd": "0",
                "difference_usd": "0.05578",
                "explanations": [
                    {"reason": "opening", "tasks": 0, "least_usd": "0.0425", "most_usd": "0.0425"},
                    {"reason": "open", "tasks": 1, "least_usd": "0", "most_usd": "0.013282"},
                ],
                "unexplained_usd": "0",
            }
        ]

        vendor.script([{"on": "poll", "times": None, "do": {"merge": {"cost": 9_999}}}])
        done = reconcile(gateway, vendor.url, "--opening", "env:KEY_GROWTH=0.0425")
        assert done.exit_code == 1
        assert f"{other}: the vendor's cost differs\n  here completed, $0.0425 of $0.0425 quoted\n" in done.stdout
        assert "  there completed, $0.019998, as\n  task-" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80

        assert "vendor-secret" not in done.output + ran.stdout


def test_reconcile_says_no_where_the_vendor_or_a_key_is_not_there(tmp_path):
    with process.pair(tmp_path) as (gateway, vendor):
        gateway.complete(gateway.submit()[2]["task_id"])
        done = reconcile(gateway, vendor.url, environ={"KEY_GROWTH": "vendor-secret-growth", "KEY_RESEARCH": ""})
        assert done.exit_code == 1
        assert "account of env:KEY_RESEARCH\n" in done.stdout
        assert "This key cannot be read here, so its account is not known." in done.stdout
        assert done.stdout.endswith("\nNot reconciled: a wallet is not known.\n")

        done = reconcile(gateway, f"http://127.0.0.1:{process.free_port()}")
        assert done.exit_code == 1
        assert done.stdout == (
            "account of env:KEY_GROWTH\n"
            "                        tasks     amount\n"
            "----------------------  -----  ---------\n"
            "the ledger has settled      1   $0.01328\n"
            "unexplained                    not known\n"
            "The wallet cannot be read (connect), so this account is not known. Check\n"
            "--upstream and the network, and run this again.\n"
            "\n"
            "account of env:KEY_RESEARCH\n"
            "                        tasks     amount\n"
            "----------------------  -----  ---------\n"
            "the ledger has settled      0         $0\n"
            "unexplained                    not known\n"
            "The wallet cannot be read (connect), so this account is not known. Check\n"
            "--upstream and the network, and run this again.\n"
            "\n"
            "0 tasks compared one by one, 1 not asked about.\n"
            "Not reconciled: a wallet is not known.\n"
        )


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (["--opening", "env:KEY_GROWTH"], "write KEYREF=USD"),
        (["--opening", "=1"], "write KEYREF=USD"),
        (["--opening", "env:KEY_GROWTH=0.0000000001"], "is not an amount"),
        (["--opening", "env:KEY_GROWTH=--1"], "is not an amount"),
        (["--opening", "env:KEY_NOBODY=1"], "neither a policy nor the ledger has it"),
        (["--since", "yesterday"], "write an age"),
    ],
)
def test_reconcile_refuses_words_that_it_cannot_understand(tmp_path, wrong, why):
    policies = process.write_policies(tmp_path / "policies")
    sqlite.SqliteDatabase(tmp_path / "wave.db").close()
    places = ["--data", str(tmp_path), "--policies", str(policies), "--upstream", "http://127.0.0.1:9"]
    done = testing.CliRunner().invoke(cli.cli, ["reconcile", *places, *wrong])
    assert done.exit_code == 2
    assert why in " ".join(done.output.split())
