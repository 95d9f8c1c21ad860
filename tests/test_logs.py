"""How lines look and how they are written: exact bytes, hostile text, readers that are slow, gone or dead."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gateway import log_events, logs

AT = 1795396774.0385
"""2026-11-23T01:19:34.038Z."""
HOSTILE = 'a"b\nc\r\x00\x1b[31m\x85\u2028\u202e\ud800é狐 = \\ 😀'
SCRIPT = """
import logging, sys, warnings
from gateway import log_events, logs
with logs.writing(is_json=True, level="info"):
    logging.getLogger("uvicorn.error").warning("Invalid %s", "request")
    logging.getLogger("asyncio").info("POST https://user:pw@host.example:8443/hook?token=secret took long")
    logging.getLogger("gateway.flow.poll").debug("too fine")
    warnings.warn("old", DeprecationWarning)
    logs.note(logging.getLogger("wave-gateway"), logging.INFO, log_events.Stopped())
"""


def record(message: object, *values: object, level: int = logging.INFO, error: Exception | None = None):
    made = logging.LogRecord("gateway.flow.poll", level, "poll.py", 1, message, values, None)
    made.created = AT
    if error is not None:
        made.exc_info = (type(error), error, error.__traceback__)
    return made


def call(**fields: Any) -> log_events.UpstreamCall:
    return log_events.UpstreamCall(operation="poll", outcome="ok", ms=4.1, **fields)


def raised(text: str) -> Exception:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


# How a line looks


def test_a_json_line_is_one_object_with_its_fixed_fields_first_and_what_is_not_known_left_out():
    assert logs.render_json(record(call(status=200, task_id="task-wg1"))) == (
        b'{"time":"2026-11-23T01:19:34.038Z","level":"info","logger":"gateway.flow.poll","event":"upstream_call",'
        b'"operation":"poll","outcome":"ok","status":200,"ms":4.1,"task_id":"task-wg1"}\n'
    )


def test_the_fields_of_a_change_are_named_as_people_say_them():
    changed = log_events.TaskChanged(
        task_id="t", request_id="r", team="growth", key="ci", before="reserved", after="submitted", model="m", tier="s"
    )
    said = json.loads(logs.render_json(record(changed)))
    assert (said["from"], said["to"]) == ("reserved", "submitted")


def test_words_of_a_library_are_the_event_message():
    assert logs.render_json(record("took %d ms", 7, level=logging.WARNING)) == (
        b'{"time":"2026-11-23T01:19:34.038Z","level":"warning","logger":"gateway.flow.poll","event":"message",'
        b'"message":"took 7 ms"}\n'
    )


@pytest.fixture
def utc(monkeypatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("utc")
def test_a_console_line_has_the_time_of_day_the_level_and_the_ids_behind_the_rest():
    made = record(call(status=503, reason="no answer", task_id="task-wg1"), level=logging.WARNING)
    assert logs.render_console(made) == (
        b"01:19:34.038 warning upstream_call operation=poll outcome=ok status=503 "
        b'reason="no answer" ms=4.1 task_id=task-wg1\n'
    )
    assert logs.render_console(record("took %d ms", 7)) == b"01:19:34.038 info    gateway.flow.poll: took 7 ms\n"


@pytest.mark.parametrize(
    "text",
    [HOSTILE, HOSTILE.replace("\ud800", ""), "a\u2028b", "a\nb", "狐"],
    ids=["all", "valid", "separator", "newline", "letter"],
)
@pytest.mark.parametrize(
    "form",
    [record, lambda text: record("%s", text), lambda text: record(call(reason=text))],
    ids=["format", "value", "field"],
)
def test_text_of_others_breaks_no_line_and_moves_no_cursor(text, form):
    made = form(text)
    as_json, console = logs.render_json(made), logs.render_console(made)
    assert as_json.isascii() and as_json.count(b"\n") == 1
    said = json.loads(as_json)
    assert said.get("message", said.get("reason")) == text.replace("\ud800", "\\ud800")
    shown = console.decode()
    assert shown.endswith("\n") and shown[:-1].isprintable() and len(shown.splitlines()) == 1


def test_a_line_is_at_most_8_kib_and_stays_json():
    for made in (record("é" * 100_000), record(call(reason="x" * 9_000, task_id="😀" * 9_000))):
        line = logs.render_json(made)
        assert len(line) <= 8192 and json.loads(line)["event"] in ("message", "upstream_call")
        assert len(logs.render_console(made)) <= 8192
    assert json.loads(logs.render_json(record("é" * 100_000)))["message"].endswith("é…")


def test_a_traceback_is_one_string_whose_end_is_kept():
    line = logs.render_json(record("failed", error=raised("x" * 9_000 + " at the end")))
    assert len(line) <= 8192 and line.count(b"\n") == 1
    assert json.loads(line)["exception"].endswith("x at the end")
    short = json.loads(logs.render_json(record("failed", error=raised("why"))))["exception"]
    assert short.startswith("Traceback (most recent call last):\n") and short.endswith("\nValueError: why")


def test_a_traceback_cannot_forge_a_line_on_the_console():
    forged = "why\n01:19:34.038 info    stopped"
    lines = logs.render_console(record("failed", error=raised(forged))).decode().splitlines()
    assert lines[0].endswith("gateway.flow.poll: failed")
    assert all(each.startswith("    ") for each in lines[1:]) and lines[-1] == "    01:19:34.038 info    stopped"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("GET https://a.example/x/1.jpg?X-Signature=s failed", "GET https://a.example failed"),
        ("see 'http://user:pass@b.example:81/p#f', then", "see 'http://b.example:81', then"),
        ("postgresql://me:pw@db/wave", "postgresql://db"),
        ("the key wgk_0123456789abcdef is odd", "the key [key] is odd"),
        ("Authorization: Bearer abc.def-9", "Authorization: [key]"),
        ("nothing of that kind: a/b?c=d", "nothing of that kind: a/b?c=d"),
    ],
)
def test_addresses_and_keys_in_words_and_tracebacks_are_masked(text, left):
    assert json.loads(logs.render_json(record(text)))["message"] == left
    assert json.loads(logs.render_json(record("x", error=raised(text))))["exception"].endswith(f"ValueError: {left}")


def test_colours_are_for_terminals_only():
    leader, follower = pty.openpty()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, leader)
        code = "import logging; from gateway import logs\nwith logs.writing(is_json=False, level='info'): "
        code += "logging.getLogger('x').error('bad')"
        subprocess.run([sys.executable, "-c", code], stderr=follower, check=True, timeout=30)
        os.close(follower)
        assert b"\x1b[31merror  \x1b[0m x: bad" in os.read(leader, 4096)
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=30)
    assert piped.stderr.endswith(b" error   x: bad\n")


def test_libraries_and_warnings_come_in_the_same_form_and_all_is_written_at_the_end():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True, timeout=30)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(each["logger"], each["event"]) for each in lines] == [
        ("uvicorn.error", "message"),
        ("asyncio", "message"),
        ("py.warnings", "message"),
        ("wave-gateway", "stopped"),
    ]
    assert lines[1]["message"] == "POST https://host.example:8443 took long"
    assert "DeprecationWarning: old" in lines[2]["message"]


ENDS = """
import logging, threading
from gateway import logs
def fail(): raise ValueError("at https://host.example/path?token=secret")
with logs.writing(is_json=True, level="info"):
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    fail()
"""


def test_the_failure_that_ends_a_thread_or_the_process_is_a_line_like_any_other():
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, check=False, timeout=30)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(each["level"], each["event"]) for each in lines] == [("error", "message"), ("critical", "message")]
    assert all(each["exception"].endswith("ValueError: at https://host.example") for each in lines)
    assert done.returncode == 1


# How lines are written


class Pipe:
    """A log that is written into a pipe, and the pipe's other end."""

    def __init__(self) -> None:
        self.reader, self.fd = os.pipe()
        self.writer = logs.Writer(self.fd, logs.render_json)
        self.log = logging.Logger("wave-gateway", logging.INFO)
        self.log.addHandler(self.writer)

    def note(self, number: int) -> None:
        logs.note(self.log, logging.INFO, log_events.PolicyLoaded(teams=number))

    def read_until(self, event: str) -> list[dict]:
        """Every line up to the first of an event."""
        lines: list[dict] = []
        with open(self.reader, "rb", closefd=False) as stream:
            for line in stream:
                lines.append(json.loads(line))
                if lines[-1]["event"] == event:
                    return lines
        raise AssertionError(f"the log ended without {event}")


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.writer.close()
    with contextlib.suppress(OSError):
        os.close(made.reader)  # a write that hangs fails then
    os.close(made.fd)


def test_nobody_waits_for_a_reader_that_stopped_reading_and_what_is_lost_is_counted(pipe):
    """The pipe holds 64 KiB, the queue 4 MiB: some 35,000 of these lines."""
    noted = threading.Thread(target=lambda: [pipe.note(number) for number in range(50_000)], daemon=True)
    noted.start()
    noted.join(30)
    assert not noted.is_alive()
    lines = pipe.read_until("log_lines_dropped")
    assert lines[-1]["level"] == "warning"
    there = [each["teams"] for each in lines[:-1]]
    assert there == list(range(len(there)))  # the last ones are missing, none in between
    assert 10_000 < len(there) == 50_000 - lines[-1]["lines"]
    pipe.note(7)
    assert pipe.read_until("policy_loaded")[-1]["teams"] == 7


def test_a_flush_gives_a_dead_reader_one_second_and_only_once(pipe):
    for number in range(2_000):
        pipe.note(number)
    began = time.monotonic()
    pipe.writer.flush()
    assert 0.9 < time.monotonic() - began < 10
    began = time.monotonic()
    for _ in range(20):
        pipe.writer.flush()
    assert time.monotonic() - began < 10  # not 20 s


def test_a_reader_that_went_away_stops_nothing_and_is_told_of_what_it_missed(pipe):
    os.close(pipe.reader)
    pipe.note(1)
    pipe.writer.flush()
    pipe.reader, replacement = os.pipe()
    os.dup2(replacement, pipe.fd)
    os.close(replacement)
    pipe.note(2)
    lines = pipe.read_until("log_lines_dropped")
    assert [(each["event"], each.get("teams"), each.get("lines")) for each in lines] == [
        ("policy_loaded", 2, None),
        ("log_lines_dropped", None, 1),
    ]


def test_a_pipe_that_does_not_block_is_waited_for(pipe):
    """Standard error is shared: whoever started us may have made it so."""
    os.set_blocking(pipe.fd, False)
    for number in range(3_000):
        pipe.note(number)
    pipe.log.info("last")
    assert [each["teams"] for each in pipe.read_until("message")[:-1]] == list(range(3_000))


def test_a_critical_line_is_out_before_the_process_can_end(pipe):
    pipe.log.critical("COMMIT failed, ending the process")
    os.set_blocking(pipe.reader, False)
    assert b"COMMIT failed" in os.read(pipe.reader, 4096)


def test_a_line_that_cannot_be_made_is_counted(pipe):
    pipe.log.info("%d of them", "three")
    pipe.note(1)
    assert [each["event"] for each in pipe.read_until("log_lines_dropped")] == ["policy_loaded", "log_lines_dropped"]
