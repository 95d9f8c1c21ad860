"""The control socket: commands on this machine reach the running gateway, which alone may write.

`data/control.sock`, mode 0600, in a directory of mode 0700: who can open it may read the database anyway. One request
a connection: a line of JSON in; lines of JSON out, any number of `Progress` and then one answer. Both ends are here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pathlib
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

import msgspec

from gateway import errors
from gateway.flow import advance, changes, keep, parts, resend, resolve
from gateway.rules.money import Nanos

NAME: Final = "control.sock"
MOST_BYTES: Final = 64 * 1024
"""The longest line."""
LONGEST_PATH: Final = 100
"""Bytes of a socket's path that every system takes; Linux has room for 107, macOS for 103."""
ASK_WITHIN_S: Final = 5.0
ANSWER_WITHIN_S: Final = 300.0
"""The longest silence before a command gives up; the gateway goes on with what it began."""

log = logging.getLogger(__name__)


class Purge(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Purge results; see `flow/keep.Which`."""

    team: str | None
    model: str | None
    fingerprint: str | None


class Collect(msgspec.Struct, tag=True, frozen=True):
    """Remove blobs that nobody points at."""


class CacheStats(msgspec.Struct, tag=True, frozen=True):
    """Ask how many results are kept in memory."""


class Resolve(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """End a hold by an operator's decision; see `flow/resolve.Decision`."""

    task_id: str
    charged_nanos: int | None
    why: str


class Resend(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Send webhooks once more; see `flow/resend.Which`."""

    task_id: str | None
    team: str | None


class Progress(msgspec.Struct, tag=True, frozen=True):
    """So much of so much is done."""

    done: int
    total: int


class Purged(msgspec.Struct, tag=True, frozen=True):
    """How many results are no hits any more."""

    results: int


class Collected(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """What was removed; see `flow/keep.Collected`."""

    blobs: int
    orphans: int
    size_bytes: int


class InMemory(msgspec.Struct, tag=True, frozen=True):
    """How many results are kept in memory."""

    results: int


class Resolved(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """How a hold was ended, and how many followers ended with it."""

    task_id: str
    quote_nanos: int
    cost_nanos: int
    followers: int


class Resent(msgspec.Struct, tag=True, frozen=True):
    """How many webhooks are to be sent once more."""

    webhooks: int


class Failed(msgspec.Struct, tag=True, frozen=True):
    """It could not be done."""

    message: str


Request = Purge | Collect | CacheStats | Resolve | Resend
Answer = Purged | Collected | InMemory | Resolved | Resent | Failed

_ENCODER: Final = msgspec.json.Encoder()
_REQUESTS: Final = msgspec.json.Decoder(Request)
_ANSWERS: Final[msgspec.json.Decoder[Answer | Progress]] = msgspec.json.Decoder(Answer | Progress)


@contextlib.asynccontextmanager
async def serving(data: pathlib.Path, with_parts: parts.Parts) -> AsyncIterator[None]:
    """Answer on the socket in a data directory; a stale one is replaced, and none is left behind.

    The caller holds the directory's lock, so a socket that is there belongs to nobody. Where none can be made, the
    gateway runs without, and says so.
    """
    try:
        listener = _listen(data)
    except OSError as error:
        log.warning("no control socket in %s (%s): stop the gateway to purge or collect", data, error.strerror or error)
        yield
        return
    server = await asyncio.start_unix_server(
        lambda reader, writer: _handle(with_parts, reader, writer), sock=listener, limit=MOST_BYTES
    )
    try:
        yield
    finally:
        server.close()
        (data / NAME).unlink(missing_ok=True)


def ask(data: pathlib.Path, request: Request, *, progress: Callable[[int, int], None]) -> Answer | None:
    """Ask the gateway that runs on a data directory; None if none answers there.

    Raises StartError if it stops answering.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ASK_WITHIN_S)
        try:
            with _short(data) as path:
                connection.connect(str(path))
        except OSError:
            return None
        try:
            connection.sendall(_ENCODER.encode(request) + b"\n")
            connection.settimeout(ANSWER_WITHIN_S)
            with connection.makefile("rb") as lines:
                while line := lines.readline(MOST_BYTES):
                    answer = _ANSWERS.decode(line)
                    if not isinstance(answer, Progress):
                        return answer
                    progress(answer.done, answer.total)
        except (OSError, msgspec.MsgspecError) as error:
            raise errors.StartError(f"the running gateway did not answer on {data / NAME}: {error}") from None
    raise errors.StartError(f"the running gateway stopped before it answered on {data / NAME}; ask again")


def _listen(data: pathlib.Path) -> socket.socket:
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.socket(socket.AF_UNIX))
        listener.setblocking(False)
        (data / NAME).unlink(missing_ok=True)
        with _short(data) as path:
            listener.bind(str(path))
        os.chmod(data / NAME, 0o600)  # nobody can connect before it listens
        listener.listen()
        opened.pop_all()
    return listener


@contextlib.contextmanager
def _short(data: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to the socket that fits into an address: a longer one is reached through a link, for that moment."""
    path = data.absolute() / NAME
    if len(os.fsencode(path)) <= LONGEST_PATH:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="wave-", dir="/tmp") as directory:  # TMPDIR may be as long
        link = pathlib.Path(directory) / "data"
        link.symlink_to(path.parent, target_is_directory=True)
        yield link / NAME


async def _handle(with_parts: parts.Parts, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection; a command that goes away does not end what it began."""

    def progress(done: int, total: int) -> None:
        if not writer.is_closing():
            writer.write(_ENCODER.encode(Progress(done, total)) + b"\n")

    try:
        answer = await _answer(with_parts, await asyncio.wait_for(reader.readline(), ASK_WITHIN_S), progress)
        writer.write(_ENCODER.encode(answer) + b"\n")
        await writer.drain()
    except (OSError, ValueError) as error:  # gone, silent, or a line without an end
        log.debug("control: %s", error)
    finally:
        writer.close()


async def _answer(with_parts: parts.Parts, line: bytes, progress: Callable[[int, int], None]) -> Answer:
    try:
        request = _REQUESTS.decode(line)
        return await _carry_out(with_parts, request, progress)
    except msgspec.MsgspecError as error:
        return Failed(f"the running gateway does not understand this command, it may be another version: {error}")
    except errors.GatewayError as error:
        return Failed(error.message)
    except OSError as error:
        return Failed(f"the files cannot be used: {error.strerror}")


async def _carry_out(with_parts: parts.Parts, request: Request, progress: Callable[[int, int], None]) -> Answer:
    match request:
        case Purge():
            which = keep.Which(team=request.team, model=request.model, fingerprint=request.fingerprint)
            log.info("control: purge of results, %s", which)
            return Purged(await keep.purge(with_parts.database, with_parts.cache, which, progress=progress))
        case Collect():
            removed = await keep.collect(
                with_parts.database, with_parts.blobs, now=with_parts.clock(), progress=progress
            )
            log.info("control: collected %s", removed)
            return Collected(blobs=removed.blobs, orphans=removed.orphans, size_bytes=removed.size_bytes)
        case CacheStats():
            return InMemory(with_parts.cache.in_memory())
        case Resolve():
            decision = decision_of(request)
            log.info("control: task %s, %s", decision.task_id, decision.words())
            done = await resolve.resolve(
                with_parts.database, decision, now=with_parts.clock(), repeating=with_parts.repeating
            )
            if isinstance(done, changes.Change):
                advance.announce(with_parts, done)
            return resolved(done)
        case Resend():
            log.info("control: webhooks to be sent once more, task %s, team %s", request.task_id, request.team)
            wanted = resend.Which(task_id=request.task_id, team=request.team)
            count = await resend.resend(with_parts.database, wanted, now=with_parts.clock())
            with_parts.wake_deliver()
            return Resent(count)


def decision_of(request: Resolve) -> resolve.Decision:
    """The decision that a request carries."""
    charged = None if request.charged_nanos is None else Nanos(request.charged_nanos)
    return resolve.Decision(task_id=request.task_id, charged_nanos=charged, why=request.why)


def resolved(done: changes.Change | resolve.Unresolved) -> Resolved | Failed:
    """What came of a decision, as it is told."""
    if isinstance(done, resolve.Unresolved):
        return Failed(done.message)
    row = done.row
    return Resolved(
        task_id=row.id, quote_nanos=row.quote_nanos, cost_nanos=row.cost_nanos or 0, followers=len(done.followers)
    )
