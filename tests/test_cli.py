"""The commands as a person meets them: what they print, and their exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from click import testing

from gateway import cli
from tests import process

REQUEST = '{"model":"gemini-2.5-flash-image-preview","prompt":"a fox","seed":7}'


def test_help_of_every_command_fits_80_columns_and_shows_an_example():
    groups = [[], ["keys"], ["policy"], ["tasks"], ["webhooks"], ["cache"], ["media"]]
    for group in groups:
        text = _help_of(*group)
        commands = re.findall(r"^  ([a-z]+) ", text.partition("Commands:")[2], re.MULTILINE)
        assert commands
        for command in commands:
            if [command] in groups:
                continue
            text = _help_of(*group, command)
            assert "Example:" in text, command
            assert max(map(len, text.splitlines())) <= 80, command


def _help_of(*command: str) -> str:
    """In this process: a process for each of them took as long as the rest of the tests."""
    done = testing.CliRunner().invoke(cli.cli, [*command, "--help"], prog_name="wave-gateway")
    assert done.exit_code == 0, done.output
    return done.stdout


def test_version_is_the_packages():
    assert process.run_cli("--version").stdout == "wave-gateway, version 0.1.0\n"


@pytest.mark.parametrize(
    "words", [["nonsense"], ["demo", "--port", "0"], ["report", "--by", "colour"], ["keys", "new", "--team", "Grow th"]]
)
def test_wrong_usage_exits_with_2(words):
    assert process.run_cli(*words).returncode == 2


def test_init_writes_policies_that_check_and_never_overwrites(tmp_path):
    directory = tmp_path / "policies"
    made = process.run_cli("init", str(directory))
    assert made.returncode == 0 and "Next:" in made.stdout
    checked = process.run_cli("policy", "check", str(directory))
    assert (checked.returncode, checked.stdout) == (0, f"{directory}: good. 18 models, 1 team, 4 caps.\n")
    again = process.run_cli("init", str(directory))
    assert again.returncode == 1 and "is there already" in again.stderr


def test_a_new_key_is_printed_once_with_the_line_that_admits_it():
    first, second = (process.run_cli("keys", "new", "--team", "growth", "--name", "ci").stdout for _ in range(2))
    key = re.search(r"^  (wgk_[0-9A-Za-z]{43})$", first, re.MULTILINE)
    assert key is not None
    digest = hashlib.sha256(key[1].encode()).hexdigest()
    assert f'- {{name: ci, sha256: "{digest}"}}' in first
    assert first != second


def test_policy_check_names_every_problem_by_file_and_line(tmp_path):
    policies = process.write_policies(tmp_path, growth="keyz: []\nmode: maybe\n")
    done = process.run_cli("policy", "check", str(policies))
    assert done.returncode == 1
    first, second, last = done.stdout.splitlines()
    assert first.startswith("teams/growth.yaml:5: ") and "keys" in first
    assert second.startswith("teams/growth.yaml:6: ")
    assert last == "2 problems."


def test_explain_shows_decision_quote_fingerprint_and_caps_without_any_secret_or_ledger(tmp_path):
    policies = process.write_policies(tmp_path / "p", growth='spend: [{name: daily, cap: "5", per: day}]\n')
    words = ["policy", "explain", "--team", "growth", "-", "--policies", str(policies), "--data", str(tmp_path / "d")]
    done = process.run_cli(*words, stdin=REQUEST)
    assert done.returncode == 0, done.stderr
    assert "decision      allow\n" in done.stdout
    assert "quote         $0.013282\n" in done.stdout
    assert re.search(r"^fingerprint   [0-9a-f]{64}$", done.stdout, re.MULTILINE)
    assert re.search(r"^team +daily +day +\$5 +\$0 +\$0 +\$5 +teams/growth.yaml:5$", done.stdout, re.MULTILINE)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not (tmp_path / "d").exists()


def test_explain_exits_with_1_where_the_answer_is_no_and_names_the_rule(tmp_path):
    policies = process.write_policies(tmp_path / "p", growth='models: {deny: ["gemini-*"]}\n')
    words = ["policy", "explain", "--team", "growth", "--policies", str(policies), "--data", str(tmp_path / "d")]
    done = process.run_cli(*words, "--key", "ci", "--format", "json", "-", stdin=REQUEST)
    found = json.loads(done.stdout)
    assert (done.returncode, found["decision"], found["code"]) == (1, "deny", "model_not_allowed")
    assert found["rule"] == "teams/growth.yaml:5"
    assert process.run_cli(*words, "-", stdin="[]").returncode == 1
    assert process.run_cli(*words[:3], "nobody", *words[4:], "-", stdin=REQUEST).returncode == 2
    assert process.run_cli(*words, "--key", "nobody", "-", stdin=REQUEST).returncode == 2


@pytest.fixture(scope="module")
def spent(tmp_path_factory):
    """A gateway that has completed one task, one hit of it, and nothing else."""
    with process.pair(tmp_path_factory.mktemp("spent"), growth='spend: [{cap: "5", per: day}]\n') as (gateway, _):
        gateway.complete(gateway.submit(seed=7, n=2)[2]["task_id"])
        gateway.submit(seed=7, n=2)
        yield gateway


def test_explain_counts_a_media_url_of_the_gateway_as_the_gateway_does(spent, tmp_path):
    _, _, page = spent.call("GET", "/v1/tasks")
    file = tmp_path / "edit.json"
    body = {"model": "gemini-2.5-flash-image-preview", "prompt": "a fox", "seed": 8, "action": "edit"}
    body["image_urls"] = [url for image in page["data"][0]["result"]["images"] for url in image["url"]]
    file.write_text(json.dumps(body))
    _, _, dry = spent.call("POST", "/v1/tasks", body, **{"X-Wave-Dry-Run": "true"})
    words = ["policy", "explain", "--team", "growth", "--format", "json", str(file), "--public-url"]
    here, elsewhere = (json.loads(spent.cli(*words, url).stdout) for url in (spent.url, "https://elsewhere.example"))
    assert (here["decision"], here["fingerprint"]) == ("allow", dry["fingerprint"])
    assert here["fingerprint"] != elsewhere["fingerprint"]


def test_audit_agrees_beside_the_running_gateway(spent):
    done = spent.cli("audit")
    assert done.returncode == 0
    assert re.fullmatch(r"The books agree to the nano, in \d+\.\d s\.\n", done.stdout)


def test_audit_names_a_lost_blob_and_exits_with_1(tmp_path):
    with process.pair(tmp_path) as (gateway, _):
        gateway.complete(gateway.submit()[2]["task_id"])
        [blob] = [each for each in (gateway.data / "media").rglob("*") if each.is_file()]
        blob.unlink()
        done = gateway.cli("audit")
        assert done.returncode == 1
        assert done.stdout.startswith(f"blob {blob.name} has a row and no file\n1 difference, in ")


def test_a_command_without_a_ledger_says_where_it_looked(tmp_path):
    done = process.run_cli("report", "--data", str(tmp_path), "--policies", str(process.write_policies(tmp_path / "p")))
    assert done.returncode == 1
    assert done.stderr == (
        f"wave-gateway: there is no ledger at {tmp_path}/wave.db; name the gateway's directory with --data\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--listen", "0.0.0.0:8080"], "--public-url"),
        (["--listen", "nonsense"], "--listen (WAVE_GATEWAY_LISTEN)"),
        (["--database", "postgresql://x"], "not available yet"),
        (["--policies", "/nowhere"], "/nowhere"),
        (["--metrics-token", ""], "--metrics-token"),
    ],
)
def test_serve_refuses_to_start_with_a_message_that_names_the_option(tmp_path, options, message):
    done = process.run_cli("serve", "--data", str(tmp_path / "d"), *options)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


def test_serve_refuses_a_port_that_is_taken(spent, tmp_path):
    address = spent.url.removeprefix("http://")
    policies = process.write_policies(tmp_path / "p")
    done = process.run_cli("serve", "--listen", address, "--data", str(tmp_path / "d"), "--policies", str(policies))
    assert done.returncode == 1 and f"--listen {address} cannot be used: Address already in use" in done.stderr


def test_a_script_that_is_not_one_is_refused_by_the_simulator(tmp_path):
    script = tmp_path / "script.json"
    script.write_text('[{"on": "submit", "do": {"explode": true}}]')
    done = process.run_cli("simulate", "--port", str(process.free_port()), "--script", str(script))
    assert done.returncode == 1 and "rule 0" in done.stderr


def test_the_demo_plays_the_main_job_once():
    done = process.run_cli("demo", "--once", "--port", str(process.free_port()))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line[:4] for line in done.stdout.splitlines() if re.match(r"(ok|FAIL)", line)] == ["ok  "] * 6
    assert "X-Cache: HIT, cost $0" in done.stdout
    assert "403 model_not_allowed" in done.stdout and "429 quota_window_exceeded" in done.stdout
    assert re.search(r"^growth +gemini-2.5-flash-image-preview +1 +1 +\$0.01328 +1 +\$0.01328$", done.stdout, re.M)
    assert max(len(line) for line in done.stdout.splitlines() if "://" not in line) <= 80


def test_the_demo_serves_until_it_is_interrupted_and_leaves_nothing(tmp_path):
    port = process.free_port()
    url = f"http://127.0.0.1:{port}"
    running = subprocess.Popen(
        [sys.executable, "-m", "gateway", "demo", "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    try:
        assert running.stdout is not None
        lines: list[str] = []
        while "Ctrl-C" not in (lines[-1] if lines else ""):
            lines.append(running.stdout.readline())
        text = "".join(lines)
        key = re.search(r"^  growth +(wgk_\S+)$", text, re.MULTILINE)
        assert key is not None and f"curl -s {url}/v1/tasks" in text
        body = b'{"model":"gemini-2.5-flash-image-preview","prompt":"a fox","seed":7}'
        status, _, _ = process.fetch(f"{url}/v1/tasks", method="POST", body=body, Authorization=f"Bearer {key[1]}")
        assert status == 200
    finally:
        running.send_signal(signal.SIGINT)
        rest = running.communicate(timeout=40)[0]
    assert running.returncode == 0
    assert "nothing is kept" in rest
    assert list(tmp_path.iterdir()) == []


def test_the_demo_refuses_a_port_that_is_taken(spent):
    port = spent.url.rpartition(":")[2]
    done = process.run_cli("demo", "--once", "--port", port)
    assert done.returncode == 1 and "choose another with --port" in done.stderr
