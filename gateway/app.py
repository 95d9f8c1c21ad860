"""Composition root: builds the parts from settings, lists routes and loops as values, starts and stops them.

The only reader of clock and randomness. It decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import fcntl
import functools
import gc
import logging
import os
import pathlib
import random
import secrets
import signal
import socket
import ssl
import sys
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from gateway import VERSION, errors, log_events, logs, metrics, policy_files, policy_yaml, tracing, workers
from gateway.edge import account, admin, auth, callbacks, control, guard, media, openapi, protocol, render, traced
from gateway.edge import tasks as tasks_edge
from gateway.flow import adopt, auditor, deliver, mirror, parts, poll, recover, resubmit, scrape, watch
from gateway.outbound import address, download, guarded, upstream, webhook
from gateway.rules import budget, callback, policy
from gateway.settings import LogFormat, Settings
from gateway.store import blobs_disk, cache, database, sqlite
from gateway.store import media as media_rows

DATABASE_NAME: Final = "wave.db"
TEMPORARY_KEPT_S: Final = 3600
POLICY_INTERVAL_S: Final = 2.0
BACKLOG: Final = 2048
PHASE_OF_DRAIN: Final = 0.4
"""A stop first finishes requests, then background steps, each within this part of --drain; the rest is for closing."""
INTERNAL_FINISH_S: Final = 1.0
"""How long a stop waits for a scrape that is under way on --internal-listen, out of that rest."""
COLLECT_AFTER: Final = (5_000, 10, 2)
"""Objects until new ones are looked at, a millisecond; such looks until older ones are, and those until all are.

Each call to the upstream leaves a cycle of some 40 objects behind (an httpx response and its stream), a failed one with
what was read: with 10,000, 20 and 10 there were 40 MB of them under attack, with 50 they waited for hours.
"""
SWITCH_AFTER_S: Final = 0.001
"""How long a thread keeps the interpreter while another waits. Python's own 5 ms are paid at each step of the loop."""
_BASE32: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

Due = Callable[[parts.Parts, int], Awaitable[Collection[str]]]
Step = Callable[[parts.Parts, str], Awaitable[None]]

ACCESS: Final = "access"
"""The logger with one line for each request."""
_QUIET_ROUTES: Final = ("/healthz", "/readyz", "/metrics")
"""Asked for all day long by machines: while that goes well, lines about it are for debugging."""

log = logging.getLogger("wave-gateway")


def serve(settings: Settings, environ: Mapping[str, str]) -> None:
    """Run the gateway until SIGTERM or SIGINT; raises StartError if it cannot start."""
    metrics.BUILD_INFO.labels(VERSION).set(1)
    for noisy in ("httpx", "httpcore", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    is_json, has_colours = settings.log_format is LogFormat.JSON, "NO_COLOR" not in environ
    with (
        logs.writing(is_json=is_json, level=settings.log_level, has_colours=has_colours),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_serve(settings, environ))


async def _serve(settings: Settings, environ: Mapping[str, str]) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(data_lock(settings.data))
        listener = stack.enter_context(_listen("--listen", settings.listen))
        internal_listener = None
        if settings.internal_listen is not None:
            internal_listener = stack.enter_context(_listen("--internal-listen", settings.internal_listen))
        async with running(settings, environ) as (app, with_parts):
            server = _Server(_uvicorn_config(app, finish_within_s=settings.drain_s * PHASE_OF_DRAIN))

            def stop() -> None:
                with_parts.watch.close()
                server.stop()

            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop)
            tune_interpreter()
            warn_of_callbacks(settings)
            logs.note(log, logging.INFO, _started(settings, internal_listener))
            async with _serving_internal(settings, with_parts, internal_listener):
                await server.serve(sockets=[listener])
    logs.note(log, logging.INFO, log_events.Stopped())


def _started(settings: Settings, internal: socket.socket | None) -> log_events.Started:
    at = None if internal is None else "{}:{}".format(*internal.getsockname()[:2])
    return log_events.Started(
        version=VERSION, public_url=settings.public_url, upstream=settings.upstream, internal_listen=at
    )


def warn_of_callbacks(settings: Settings) -> None:
    """Say so where the upstream is given URLs that it can hardly call."""
    reason = _unreachable(settings.public_url) if settings.upstream_callbacks else None
    if reason is not None:
        log.warning(
            "--upstream-callbacks: the upstream is told to call %s, which it can hardly reach: %s. Give a --public-url "
            "that it can; tasks are polled all the same",
            settings.public_url,
            reason,
        )


def _unreachable(public_url: str) -> str | None:
    """Why a URL is none for others, as far as it can be seen in it; no name is resolved."""
    host = urllib.parse.urlsplit(public_url).hostname or ""
    try:
        return address.check(host, allowed=())
    except ValueError:
        return None if "." in host and not host.endswith(".localhost") else f"{host} is a name of this network only"


def tune_interpreter() -> None:
    """Keep the event loop from waiting for the garbage collector, or long for a thread that makes an exposition."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    sys.setswitchinterval(SWITCH_AFTER_S)


@contextlib.asynccontextmanager
async def _serving_internal(
    settings: Settings, with_parts: parts.Parts, listener: socket.socket | None
) -> AsyncIterator[None]:
    """Serve --internal-listen, if there is one, until the block ends.

    Around the main address: health and metrics still answer while that one is drained, and not when the database is
    closed.
    """
    if listener is None:
        yield
        return
    app = _guarded(_app(internal_routes(settings, with_parts)), settings)
    server = _Server(_uvicorn_config(app, finish_within_s=INTERNAL_FINISH_S))
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve(sockets=[listener]))
        yield
        server.stop()


@contextlib.asynccontextmanager
async def running(settings: Settings, environ: Mapping[str, str]) -> AsyncIterator[tuple[ASGIApp, parts.Parts]]:
    """The gateway with its loops at work: its ASGI app and its parts.

    On leaving, what is in flight is finished or recorded.
    """
    source = policy_files.PolicySource(settings.policies, settings.data, environ, now=time.time)
    _start_policies(source)
    blobs = blobs_disk.DiskBlobs(settings.media)
    ledger_file = database_file(settings)
    _check_data(settings, ledger_file)
    kept = sqlite.SqliteDatabase(ledger_file)
    in_force = parts.InForce(source.policies)
    loops: dict[str, workers.Loop] = {}
    with_parts = _parts(settings, source, kept, blobs, in_force, loops)
    loops |= {loop.name: loop for loop in _loops(with_parts)}
    blobs.sweep(older_than_s=TEMPORARY_KEPT_S, now=datetime.datetime.now(datetime.UTC))
    await adopt.adopt(kept, in_force, source.policies, now=time.time())
    logs.note(log, logging.INFO, log_events.PolicyLoaded(teams=len(source.policies.teams)))
    readable: dict[str, bool] = {}
    _note_policies(source, readable)
    interrupted = await recover.recover(with_parts)
    if interrupted:
        logs.note(log, logging.WARNING, log_events.Recovered(tasks=interrupted))
    background = [asyncio.create_task(workers.run(loop), name=loop.name) for loop in loops.values()]
    background.append(
        asyncio.create_task(
            workers.repeat("policies", POLICY_INTERVAL_S, functools.partial(_refresh, source, with_parts, readable))
        )
    )
    background.append(
        asyncio.create_task(
            workers.repeat("audit", auditor.INTERVAL_S, functools.partial(auditor.step, with_parts)), name="audit"
        )
    )
    try:
        async with control.serving(settings.data, with_parts):
            yield _guarded(_traced(_app(routes(settings, with_parts)), with_parts), settings), with_parts
    finally:
        await _stop(settings, with_parts, background)
        kept.close()


def _parts(
    settings: Settings,
    source: policy_files.PolicySource,
    kept: database.Database,
    blobs: blobs_disk.DiskBlobs,
    in_force: parts.InForce,
    loops: Mapping[str, workers.Loop],
) -> parts.Parts:
    return parts.Parts(
        database=kept,
        upstream=reach_upstream(settings),
        downloader=download.Downloader(
            allowed=settings.allow_private, ca_bundle=settings.ca_bundle, proxy=settings.egress_proxy
        ),
        sender=webhook.Sender(
            allowed=settings.allow_private, tls=guarded.authorities(settings.ca_bundle), proxy=settings.egress_proxy
        ),
        blobs=blobs,
        cache=cache.ResultCache(cache_directory(settings)),
        in_force=in_force,
        upstream_key=source.secrets.get,
        webhook_secret=source.secrets.get,
        watch=watch.Watch(),
        clock=time.time,
        luck=random.random,
        new_task_id=lambda: new_task_id(time.time()),
        public_url=settings.public_url,
        new_callback_token=new_callback_token if settings.upstream_callbacks else None,
        media_public_url=settings.media_public_url,
        is_media_public_url_given=settings.is_media_public_url_given,
        allow_private=settings.allow_private,
        submit_deadline_s=settings.submit_deadline_s,
        mirror_patience_s=settings.mirror_patience_s,
        min_free_bytes=settings.min_free_bytes,
        is_upstream_idempotent=settings.upstream_idempotency,
        logs_content=settings.log_content,
        tracing=tracing.start() if settings.traces else tracing.OFF,
        wake_mirror=lambda: loops["mirror"].wake.set(),
        wake_poll=lambda: loops["poll"].wake.set(),
        wake_deliver=lambda: loops["webhooks"].wake.set(),
    )


def _loops(with_parts: parts.Parts) -> list[workers.Loop]:
    """The background steps: name, pause in seconds, how many at once."""

    def loop(name: str, interval_s: float, slots: int, due: Due, step: Step) -> workers.Loop:
        return workers.Loop(
            name=name,
            interval_s=interval_s,
            slots=slots,
            due=functools.partial(due, with_parts),
            step=functools.partial(step, with_parts),
        )

    return [
        loop("poll", 0.2, 64, poll.due, poll.step),
        loop("mirror", 0.2, 64, mirror.due, mirror.step),
        loop("mirror late", 2.0, 8, mirror.due_late, mirror.step),
        loop("resubmit", 0.2, 32, resubmit.due, resubmit.step),
        loop("webhooks", 1.0, 256, deliver.due, deliver.step),
    ]


def routes(settings: Settings, with_parts: parts.Parts) -> list[BaseRoute]:
    """All that --listen serves."""
    keys = auth.Keys(lambda: with_parts.in_force.policies, time.time)
    return [
        *tasks_edge.routes(with_parts, keys, max_wait_s=settings.max_wait_s),
        *account.routes(with_parts, keys),
        *callbacks.routes(with_parts),
        Route(media.PATH, media.endpoint(functools.partial(_find_blob, with_parts)), methods=["GET"]),
        *openapi.routes(public_url=settings.public_url, version=VERSION),
        *internal_routes(settings, with_parts),
    ]


def internal_routes(settings: Settings, with_parts: parts.Parts) -> list[Route]:
    """All that --internal-listen serves; --listen serves it too."""
    return admin.routes(
        scrape=functools.partial(_scrape, with_parts),
        is_ready=functools.partial(_is_ready, with_parts),
        metrics_token=settings.metrics_token,
    )


def _app(served: Sequence[BaseRoute]) -> Starlette:
    app = Starlette(routes=served, exception_handlers=render.exception_handlers())
    app.router.redirect_slashes = False
    return app


def _traced(app: ASGIApp, with_parts: parts.Parts) -> ASGIApp:
    return traced.Traced(app, with_parts.tracing) if with_parts.tracing.is_on else app


def _guarded(app: ASGIApp, settings: Settings) -> ASGIApp:
    access = logging.getLogger(ACCESS)

    def record(each: guard.AccessRecord) -> None:
        is_quiet = each.route in _QUIET_ROUTES and each.status < 400
        if access.isEnabledFor(logging.DEBUG if is_quiet else logging.INFO):
            logs.note(access, logging.DEBUG if is_quiet else logging.INFO, _line_of(each))

    def observe(route: str, method: str, status: int, seconds: float) -> None:
        metrics.HTTP_REQUESTS.labels(route, method, str(status)).inc()
        metrics.HTTP_DURATION.labels(route, method, str(status)).observe(seconds)

    return guard.Guard(
        app,
        max_body_bytes=settings.max_body_bytes,
        new_request_id=new_request_id,
        clock=time.monotonic,
        observe=observe,
        log=record,
    )


def _line_of(each: guard.AccessRecord) -> log_events.Request:
    noted = each.noted
    return log_events.Request(
        method=each.method,
        route=each.route,
        status=each.status,
        ms=round(each.seconds * 1000, 1),
        request_id=each.request_id,
        team=noted.team,
        key=noted.key,
        task_id=noted.task_id,
        cache=noted.cache,
        quote_usd=noted.quote_usd,
        cost_usd=noted.cost_usd,
        code=noted.code,
        bytes_in=each.request_bytes,
        bytes_out=each.response_bytes,
        peer=each.client,
    )


async def _find_blob(with_parts: parts.Parts, digest: str) -> blobs_disk.Blob | None:
    row = await with_parts.database.read(lambda tx: media_rows.get(tx, digest))
    path = None if row is None else with_parts.blobs.path(digest)
    if row is None or path is None:
        return None
    if row.first_read_at is None:
        now = time.time()
        with contextlib.suppress(errors.OurError):  # a picture is shown also while the ledger cannot be written
            await with_parts.database.write(lambda tx: media_rows.note_read(tx, digest, now=now))
    return blobs_disk.Blob(path=path, size_bytes=row.size_bytes, mime=row.mime, extension=row.extension)


async def _scrape(with_parts: parts.Parts, is_openmetrics: bool, is_gzip: bool) -> scrape.Exposition:
    async def make(form: scrape.Form) -> scrape.Exposition:
        policies, audit, now = with_parts.in_force.policies, with_parts.audited.latest, time.time()

        def render_it(tx: database.Tx) -> scrape.Exposition:
            metrics.DISK_FREE.set(with_parts.blobs.free_bytes())
            snapshot = scrape.snapshot(tx, policies, now=now, audit=audit)
            return metrics.render(snapshot, is_openmetrics=form[0], is_gzip=form[1])

        return await with_parts.database.scan(render_it)

    return await with_parts.scrapes.take((is_openmetrics, is_gzip), make)


async def _is_ready(with_parts: parts.Parts) -> str | None:
    if with_parts.watch.is_closed:
        return "The gateway is stopping; nothing new is accepted."
    try:
        await with_parts.database.read(lambda tx: tx.one("SELECT 1 AS one"))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return f"The database cannot be read: {error}"
    return None


def _start_policies(source: policy_files.PolicySource) -> None:
    started = source.start()
    if isinstance(started, policy_files.FellBack):
        _tell_broken(started.problems)


def _tell_broken(problems: Sequence[policy_yaml.Problem]) -> None:
    """Say what is wrong with the policy files; the last good set is, or stays, in force."""
    for problem in problems:
        logs.note(log, logging.ERROR, log_events.PolicyBroken(problem=str(problem)))


async def _refresh(source: policy_files.PolicySource, with_parts: parts.Parts, readable: dict[str, bool]) -> None:
    """Take up changed policy files, all together or not at all; `readable` remembers whose upstream key was."""
    changed = await asyncio.to_thread(source.refresh)
    if isinstance(changed, policy_files.Broken):
        _tell_broken(changed.problems)
    if isinstance(changed, policy_files.Changed) and changed.not_kept is not None:
        logs.note(log, logging.ERROR, log_events.PolicyNotKept(problem=str(changed.not_kept)))
    if source.policies is not with_parts.in_force.policies:
        await adopt.adopt(with_parts.database, with_parts.in_force, source.policies, now=time.time())
        logs.note(log, logging.INFO, log_events.PolicyLoaded(teams=len(source.policies.teams)))
    _note_policies(source, readable)


def _note_policies(source: policy_files.PolicySource, readable: dict[str, bool]) -> None:
    metrics.POLICY_RELOAD_OK.set(1 if source.ok else 0)
    metrics.POLICY_LOADED.set(source.loaded_at)
    timezone = budget.timezone_of(source.policies.organisation.timezone)
    now_readable = {
        team.name: team.mode is policy.Mode.DISABLED or source.secrets.get(team.upstream_key) is not None
        for team in source.policies.teams.values()
    }
    metrics.note_keys(now_readable, readable)
    readable.clear()
    readable.update(now_readable)
    metrics.note_expiries(
        {
            (team.name, key.name): budget.local_midnight(key.expires, timezone)
            for team in source.policies.teams.values()
            for key in team.keys
            if key.expires is not None
        }
    )


async def _stop(settings: Settings, with_parts: parts.Parts, background: list[asyncio.Task[None]]) -> None:
    """Start nothing new, finish or record what is under way, let go of everything."""
    for each in background:
        each.cancel()
    under_way = [*background, *with_parts.attempts.values()]
    _, late = await asyncio.wait(under_way, timeout=settings.drain_s * PHASE_OF_DRAIN)
    for each in late:
        each.cancel()
    if late:
        logs.note(log, logging.WARNING, log_events.CutOff(steps=len(late)))
        await asyncio.wait(late, timeout=2)
    await with_parts.upstream.aclose()
    await with_parts.downloader.aclose()
    await with_parts.sender.aclose()
    with_parts.cache.close()
    await with_parts.tracing.aclose(within_s=min(tracing.FLUSH_S, settings.drain_s * (1 - 2 * PHASE_OF_DRAIN)))


@contextlib.contextmanager
def data_lock(directory: pathlib.Path) -> Iterator[None]:
    """Hold the data directory for this process; raises StartError if another one does."""
    try:
        _make_durable(directory)
        directory.chmod(0o700)
        handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise errors.StartError(f"--data {directory} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise errors.StartError(
            f"another process uses --data {directory}; stop it first. Several processes need PostgreSQL, "
            "which is not available yet."
        ) from None
    try:
        yield
    finally:
        os.close(handle)


def _make_durable(directory: pathlib.Path) -> None:
    """Make a missing directory so that a power cut cannot take it away with the ledger in it."""
    if directory.is_dir():
        return
    _make_durable(directory.parent)
    directory.mkdir(exist_ok=True)
    handle = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def database_file(settings: Settings) -> pathlib.Path:
    """Where the embedded database lies."""
    return settings.data / DATABASE_NAME


def cache_directory(settings: Settings) -> pathlib.Path:
    """Where the result cache lies."""
    return settings.data / "cache"


def _check_data(settings: Settings, ledger_file: pathlib.Path) -> None:
    has_media = settings.media.is_dir() and any(each.is_dir() for each in settings.media.glob("[0-9a-f][0-9a-f]"))
    if has_media and (not ledger_file.exists() or ledger_file.stat().st_size == 0):
        raise errors.StartError(
            f"{ledger_file} is missing or empty beside kept media in {settings.media}. An empty ledger would forget "
            "what every team has spent: restore the database, or move the media away to begin anew."
        )


def reach_upstream(settings: Settings) -> upstream.Upstream:
    """The vendor, as the settings say that it is reached."""
    return upstream.Upstream(
        settings.upstream, verify=verify(settings), proxy=settings.egress_proxy, allowed=settings.allow_private
    )


def verify(settings: Settings) -> ssl.SSLContext:
    """How to check the upstream's certificate."""
    context = ssl.create_default_context()
    if settings.ca_bundle is not None:
        context.load_verify_locations(settings.ca_bundle)
    return context


class _Server(uvicorn.Server):
    """uvicorn without its signal handling, which would end the process by the signal instead of with exit code 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def _uvicorn_config(app: ASGIApp, *, finish_within_s: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol.bounded_protocol(new_request_id=new_request_id, refused=_refused),
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, int(finish_within_s)),
    )


def _refused(error: errors.CallerError) -> None:
    """A request that never came whole; the guard did not see it."""
    metrics.HTTP_REQUESTS.labels("other", "other", str(error.status)).inc()
    refused = log_events.Request(method=guard.OTHER, route=guard.OTHER, status=error.status, code=error.code)
    logs.note(logging.getLogger(ACCESS), logging.INFO, refused)


@contextlib.contextmanager
def _listen(option: str, address: tuple[str, int]) -> Iterator[socket.socket]:
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise errors.StartError(f"{option} {host}:{port} cannot be used: {error.strerror}") from None
    with listener:
        yield listener


def new_task_id(now: float) -> str:
    """`task-wg` + 26 characters: 48 bits of unix milliseconds and 80 random bits, so ids sort by time."""
    number = (int(now * 1000) << 80) | secrets.randbits(80)
    return "task-wg" + "".join(_BASE32[(number >> shift) & 31] for shift in range(125, -1, -5))


def new_callback_token() -> str:
    """43 letters and digits: 256 random bits."""
    return callback.token_of(secrets.token_bytes(callback.RANDOM_BYTES))


def new_request_id() -> str:
    """`req-` + 24 hex digits."""
    return f"req-{secrets.token_hex(12)}"
