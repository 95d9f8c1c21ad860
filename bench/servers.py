"""The programs that are measured and what stands behind them, as processes on their core, ended by pid."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from bench import machine

START_WITHIN_S: Final = 300
END_WITHIN_S: Final = 30
LOOK_EVERY_S: Final = 0.005
NGINX: Final = shutil.which("nginx") or "/usr/sbin/nginx"
"""Debian keeps it where only root looks."""

_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running program."""

    name: str
    url: str
    pid: int
    ready_s: float
    """From its start to its first answer."""


def free_port() -> int:
    """A port of the loopback address that nobody has right now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return name.replace(",", "").replace(" ", "-")


def fetch(
    url: str, *, method: str = "GET", body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """(status, body) of one request, whatever the status."""
    request = urllib.request.Request(url, data=body, headers=dict(headers or {}), method=method)
    try:
        with _OPENER.open(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str],
    url: str,
    *,
    core: int,
    folder: pathlib.Path,
    ready_at: str,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """A program on a core, from its first answer on until the block ends; what it writes goes to a file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{slug(name)}.log").open("ab") as log:
        began_at = time.perf_counter()
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            cwd=folder,
            env=os.environ | dict(environ or {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        _wait(name, process, url + ready_at, folder)
        yield Server(name=name, url=url, pid=process.pid, ready_s=time.perf_counter() - began_at)
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to stop, then make it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(name: str, process: subprocess.Popen[bytes], url: str, folder: pathlib.Path) -> None:
    until = time.monotonic() + START_WITHIN_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.returncode}; its log is in {folder}")
        with contextlib.suppress(OSError):
            if fetch(url)[0] == 200:
                return
        time.sleep(LOOK_EVERY_S)
    raise RuntimeError(f"{name} did not come up; its log is in {folder}")


def nginx(
    name: str, config: str, *, port: int, core: int, folder: pathlib.Path
) -> contextlib.AbstractContextManager[Server]:
    """nginx with one worker and these servers, all its files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{slug(name)}.conf"
    file.write_text(
        _NGINX.format(user="user root;" if os.getuid() == 0 else "", folder=folder, name=file.stem, servers=config)
    )
    command = [NGINX, "-p", str(folder), "-c", str(file), "-g", "daemon off;"]
    return running(name, command, f"http://127.0.0.1:{port}", core=core, folder=folder, ready_at="/ready")


def gateway(
    name: str,
    *,
    upstream: str,
    policies: pathlib.Path,
    environ: Mapping[str, str],
    core: int,
    folder: pathlib.Path,
    port: int,
) -> contextlib.AbstractContextManager[Server]:
    """The gateway as it is deployed: every request logged, the ledger at FULL, policies with caps."""
    options = ["--listen", f"127.0.0.1:{port}", "--upstream", upstream, "--data", str(folder / "data")]
    options += [
        "--policies",
        str(policies),
        "--allow-private",
        "127.0.0.0/8",
        "--min-free",
        "0B",
        "--log-level",
        "info",
    ]
    return running(
        name,
        [sys.executable, "-m", "gateway", "serve", *options],
        f"http://127.0.0.1:{port}",
        core=core,
        folder=folder,
        ready_at="/readyz",
        environ={**environ, "PYTHONPATH": str(pathlib.Path(__file__).parent.parent)},
    )


def settled_rss_bytes(server: Server, *, rest_s: float = 1.0) -> int:
    """Resident memory after a rest."""
    time.sleep(rest_s)
    return machine.rss_bytes(server.pid)


_NGINX: Final = """
{user}
worker_processes 1;
pid {folder}/{name}.pid;
error_log {folder}/{name}-error.log;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
    access_log {folder}/{name}-access.log;
    keepalive_requests 100000000;
    client_body_buffer_size 64k;
    client_body_temp_path {folder}/{name}-body;
    proxy_temp_path {folder}/{name}-proxy;
    fastcgi_temp_path {folder}/{name}-fastcgi;
    uwsgi_temp_path {folder}/{name}-uwsgi;
    scgi_temp_path {folder}/{name}-scgi;
    sendfile on;
    tcp_nopush on;
    types {{ image/jpeg jpg; }}
    {servers}
}}
"""
