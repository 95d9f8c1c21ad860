"""`webhooks list` and `webhooks resend`, beside a running gateway and without one; and a webhook of a real process."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from click import testing

from gateway import cli
from tests import process


class Receiver(http.server.ThreadingHTTPServer):
    """Answers every POST with `status`, and keeps the ids and task ids that it was told."""

    def __init__(self) -> None:
        self.status = 410
        self.heard: list[tuple[str | None, str]] = []
        super().__init__(("127.0.0.1", 0), _Told)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class _Told(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        receiver = self.server
        assert isinstance(receiver, Receiver)
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        receiver.heard.append((self.headers["webhook-id"], document["task_id"]))
        self.send_response(receiver.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


def _run(gateway: process.Gateway, *arguments: str) -> str:
    """What a command that succeeds prints; in this process, because each of its own takes a second."""
    done = testing.CliRunner().invoke(cli.cli, [*arguments, "--data", str(gateway.data)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def _until(is_so: Callable[[], object], within_s: float = 30) -> None:
    until = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_what_is_given_up_is_listed_and_sent_again_through_the_gateway_and_without_one(tmp_path, receiver):
    with contextlib.ExitStack() as stack:
        gateway, _ = stack.enter_context(process.pair(tmp_path))
        assert _run(gateway, "webhooks", "list") == "No webhook is given up.\n"
        task_id = gateway.submit(callback_url=receiver.url)[2]["task_id"]
        gateway.complete(task_id)
        _until(lambda: "answered 410" in _run(gateway, "webhooks", "list"))
        port = receiver.server_port
        listed = _run(gateway, "webhooks", "list", "--team", "growth").splitlines()
        assert listed[0] == f"{task_id}  completed  growth"
        assert re.fullmatch(rf"  127\.0\.0\.1:{port}, 1 try, \d+s ago: answered 410", listed[1]), listed[1]
        assert listed[-1] == "  wave-gateway webhooks resend ID|--all"
        assert _run(gateway, "webhooks", "list", "--team", "research") == "No webhook is given up.\n"
        shown = _run(gateway, "tasks", "show", task_id)
        assert "127.0.0.1: completed, given up after 1 attempt, " in shown
        assert re.search(r"^webhook said +answered 410$", shown, re.MULTILINE)
        [row] = json.loads(_run(gateway, "webhooks", "list", "--format", "json"))
        webhook_id = task_id.replace("task-", "msg_")
        assert (row["webhook_id"], row["task_id"], row["state"], row["attempts"]) == (
            *(webhook_id, task_id, "given_up"),
            1,
        )

        receiver.status = 204
        assert _run(gateway, "webhooks", "resend", task_id) == "1 webhook to be sent once more.\n"
        _until(lambda: len(receiver.heard) == 2)
        assert receiver.heard == [(webhook_id, task_id)] * 2
        _until(lambda: '"delivered"} 1.0' in process.fetch(gateway.url + "/metrics")[2].decode())
        assert _run(gateway, "webhooks", "list") == "No webhook is given up.\n"
        assert _run(gateway, "webhooks", "resend", "--all") == "0 webhooks to be sent once more.\n"
        unknown = gateway.cli("webhooks", "resend", "task-unknown")
        assert (unknown.returncode, unknown.stdout) == (1, "") and "task-unknown has no webhook" in unknown.stderr

        assert gateway.end() == 0
        assert _run(gateway, "webhooks", "resend", task_id) == "1 webhook to be sent once more.\n"
        gateway.start()
        _until(lambda: len(receiver.heard) == 3)
        assert receiver.heard[2] == (webhook_id, task_id)


@pytest.mark.parametrize(
    "arguments", [(), ("task-1", "--all"), ("--team", "growth"), ("task-1", "--team", "growth"), ("a", "b")]
)
def test_what_is_to_be_sent_again_is_one_task_or_all(tmp_path, arguments):
    done = testing.CliRunner().invoke(cli.cli, ["webhooks", "resend", *arguments, "--data", str(tmp_path)])
    assert done.exit_code == 2
