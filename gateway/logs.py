"""How log lines are written: one line each to standard error, JSON or for people, and never at anybody's expense.

The standard `logging` is the way in, for libraries and for us: `note` hands it an event instead of a text. A line is
rendered where it was noted and written by a thread of its own: whoever reads standard error may be slow, stop reading
or go away. Then lines are dropped and counted, and the count is the first thing written when there is room again.

Rules: a line is ASCII (JSON) or printable (console), has no line break inside it, and at most `LINE_MAX_BYTES`. In the
words of libraries and in tracebacks URLs are cut down to their host, and what looks like a key is taken out.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import logging
import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final

import msgspec

from gateway import log_events

LINE_MAX_BYTES: Final = 8 * 1024
QUEUE_MAX_BYTES: Final = 4 * 1024 * 1024
"""What may wait for the reader of standard error; what comes beyond it is dropped."""
GATHER_S: Final = 0.02
"""How long lines are gathered before they are written: a thread that wakes for each costs more than the line."""
FLUSH_S: Final = 1.0
"""How long a stop waits for the reader."""
WRITE_BYTES: Final = 64 * 1024
STDERR: Final = 2

_URL: Final = re.compile(r"\b([a-z][a-z0-9+.-]*://)(?:[^\s/@'\"<>]*@)?([^\s/?#'\"<>()]*)[^\s'\"<>()]*", re.IGNORECASE)
_KEY: Final = re.compile(r"\b(?:wgk_|sk-)[\w-]{4,}|\b(bearer)\s+[^\s'\",]+", re.IGNORECASE)
_BARE: Final = re.compile(r"[^\s\"=\\]+")
_COLOURS: Final = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "1;31"}
_MOST_TEXT: Final = 2_000
"""Characters of one text in a line that would be too long."""
_EXCEPTIONS: Final = logging.Formatter()
_ENCODER: Final = msgspec.json.Encoder()

Render = Callable[[logging.LogRecord], bytes]
"""A record as its line, with the line break at its end."""


def note(log: logging.Logger, level: int, event: log_events.Event) -> None:
    """Log an event; with the exception that is being handled, `log.exception(event)` does."""
    if log.isEnabledFor(level):
        # Not `log.log`: it looks for the caller's file and line, which no line shows, for longer than all the rest.
        log.handle(log.makeRecord(log.name, level, "", 0, event, (), None))


@contextlib.contextmanager
def writing(*, is_json: bool, level: str, has_colours: bool = True, fd: int = STDERR) -> Iterator[None]:
    """Write all that is logged to a file descriptor until the block ends, then flush it, for `FLUSH_S` at most.

    `has_colours`: colour lines for people, if `fd` is a terminal.
    """
    render = render_json if is_json else functools.partial(render_console, is_coloured=has_colours and os.isatty(fd))
    writer = Writer(fd, render)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # no line shows them
    logging.captureWarnings(True)
    sys.excepthook, threading.excepthook = _log_end, _log_end_of_thread
    logging.basicConfig(level=level.upper(), handlers=[writer], force=True)
    try:
        yield
    finally:
        writer.flush()


class Writer(logging.Handler):
    """Hands lines to a thread that writes them; nobody waits for that thread but `flush`.

    A critical record is flushed at once: the process is about to end.
    """

    def __init__(self, fd: int, render: Render) -> None:
        super().__init__()
        self._fd = fd
        self._render = render
        self._changed = threading.Condition()
        self._lines: list[bytes] = []
        self._waiting_bytes = 0
        self._dropped = 0
        self._is_idle = self._is_hurried = self._is_stuck = self._is_ended = False
        self._thread = threading.Thread(target=self._serve, name="log", daemon=True)  # it may hang in a write for ever
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line up, or count it as dropped."""
        try:
            line = self._render(record)
        except Exception:  # noqa: BLE001 - a line that cannot be made must not end what it tells of
            self.handleError(record)
            return
        with self._changed:
            if self._waiting_bytes + len(line) > QUEUE_MAX_BYTES:
                self._dropped += 1
                return
            self._lines.append(line)
            self._waiting_bytes += len(line)
            if self._is_idle:
                self._is_idle = False
                self._changed.notify_all()
        if record.levelno >= logging.CRITICAL:
            self.flush()

    def handleError(self, record: logging.LogRecord) -> None:
        """Count a line that could not be made."""
        with self._changed:
            self._dropped += 1

    def flush(self) -> None:
        """Return when all is written, or after `FLUSH_S`; at once where that did not help a moment ago."""
        with self._changed:
            self._is_hurried = True
            self._changed.notify_all()
            is_written = self._changed.wait_for(lambda: not self._waiting_bytes, 0 if self._is_stuck else FLUSH_S)
            self._is_hurried, self._is_stuck = False, not is_written

    def close(self) -> None:
        """End the thread, if it can end."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()
        super().close()

    def _serve(self) -> None:
        while (taken := self._take()) is not None:
            lines, dropped = taken
            told = [self._render(_dropped_record(dropped))] if dropped else []
            lost = _write(self._fd, b"".join([*lines, *told]))
            with self._changed:
                self._dropped += dropped + lost - 1 if lost and dropped else lost
                self._waiting_bytes -= sum(map(len, lines))
                self._is_stuck = False
                self._changed.notify_all()

    def _take(self) -> tuple[list[bytes], int] | None:
        """All lines that wait, and how many were dropped behind them; None at the end."""
        with self._changed:
            while not self._lines:
                if self._is_ended:
                    return None
                self._is_idle = True
                self._changed.wait()
            self._changed.wait_for(lambda: self._is_hurried or self._is_ended, GATHER_S)
            taken = self._lines, self._dropped
            self._lines, self._dropped = [], 0
            return taken


def render_json(record: logging.LogRecord) -> bytes:
    """One JSON object: `time`, `level`, `logger`, `event`, then the event's fields."""
    if isinstance(record.msg, log_events.Event) and not record.exc_info:
        with contextlib.suppress(UnicodeEncodeError):  # half of a surrogate pair
            line = _head(record) + _ENCODER.encode(record.msg)[1:] + b"\n"
            if len(line) <= LINE_MAX_BYTES and line.isascii():
                return line
    event, exception = _told(record)
    fields = json.loads(_head(record) + b'"event":0}') | {"event": log_events.name_of(event)}
    fields |= {name: _clean(value) for name, value in log_events.fields_of(event).items()}
    if exception is not None:
        fields["exception"] = _clean(exception)
    line = _dumped(fields)
    most = _MOST_TEXT
    while len(line) > LINE_MAX_BYTES:
        line = _dumped({name: _shortened(name, value, most) for name, value in fields.items()})
        most //= 2
    return line


def render_console(record: logging.LogRecord, *, is_coloured: bool = False) -> bytes:
    """One line for people: the time of day here, level, event, `key=value`; a traceback is set in below it."""
    at = datetime.datetime.fromtimestamp(record.created).astimezone()
    level = f"{record.levelname.lower():<7}"
    if is_coloured and record.levelno in _COLOURS:
        level = f"\x1b[{_COLOURS[record.levelno]}m{level}\x1b[0m"
    event, exception = _told(record)
    if isinstance(event, log_events.Message):
        said = f"{record.name}: {_printable(event.message)}"
    else:
        # What a person looks for first; ids are to be copied, from behind it.
        fields = sorted(log_events.fields_of(event).items(), key=lambda each: each[0].endswith("_id"))
        said = " ".join([log_events.name_of(event), *(f"{name}={_quoted(value)}" for name, value in fields)])
    line = f"{at:%H:%M:%S}.{at.microsecond // 1000:03d} {level} {said}"[: LINE_MAX_BYTES // 4]
    if exception is not None:
        below = "\n".join(f"    {_printable(each)}" for each in exception.splitlines())
        line += "\n" + below[-LINE_MAX_BYTES // 4 :]
    return line.encode("utf-8", "backslashreplace") + b"\n"


def masked(text: str) -> str:
    """A text of others without what must not be in a log: URLs are cut down to their host, keys are taken out."""
    return _KEY.sub("[key]", _URL.sub(r"\1\2", text))


def _log_end(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Instead of a traceback beside the log, in which nothing is masked."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    ends = log_events.Message(message="the process ends by a failure that nobody foresaw")
    logging.getLogger(__name__).critical(ends, exc_info=(kind, error, traceback))


def _log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is None:
        return
    ends = log_events.Message(message="a thread ended by a failure that nobody foresaw")
    exc_info = (ended.exc_type, ended.exc_value, ended.exc_traceback)
    logging.getLogger(__name__).error(ends, exc_info=exc_info)


def _told(record: logging.LogRecord) -> tuple[log_events.Event, str | None]:
    """What a record says, and the traceback that is with it."""
    exception = masked(_EXCEPTIONS.formatException(record.exc_info)) if record.exc_info else None
    if isinstance(record.msg, log_events.Event):
        return record.msg, exception
    task_id = record.__dict__.get("task_id")
    return log_events.Message(message=masked(record.getMessage()), task_id=task_id), exception


def _dropped_record(lines: int) -> logging.LogRecord:
    event = log_events.LogLinesDropped(lines=lines)
    return logging.LogRecord(__name__, logging.WARNING, "", 0, event, (), None)


def _head(record: logging.LogRecord) -> bytes:
    """The first three fields of a line, which every line has."""
    seconds = int(record.created)
    start = f'{{"time":"{_second(seconds)}.{int((record.created - seconds) * 1000):03d}Z",'
    return f'{start}"level":"{record.levelname.lower()}","logger":{_name(record.name)},'.encode()


@functools.lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


@functools.lru_cache(maxsize=256)
def _name(logger: str) -> str:
    return json.dumps(logger)


def _clean(value: object) -> object:
    """A value that is valid text, if it is a text."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _dumped(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _shortened(name: str, value: object, most: int) -> object:
    """A long text by its beginning; a traceback by its end, where it says what happened."""
    if not isinstance(value, str) or len(value) <= most:
        return value
    return f"…{value[-most:]}" if name == "exception" else f"{value[:most]}…"


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _quoted(value: object) -> str:
    text = str(value)
    if _BARE.fullmatch(text) and text.isprintable():
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _write(fd: int, data: bytes) -> int:
    """Write all, however long it takes; returns how many lines could not be written."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left[:WRITE_BYTES]) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except OSError:
            return bytes(left).count(b"\n")
    return 0
