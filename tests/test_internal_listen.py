"""`--internal-listen`: health and metrics on an address of their own, and nothing else there."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import process


class Internal:
    """A gateway with an internal address, and that address."""

    def __init__(self, gateway: process.Gateway, port: int) -> None:
        self.gateway = gateway
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def fetch(self, path: str, **more: Any) -> tuple[int, Any, bytes]:
        return process.fetch(self.url + path, **more)


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Internal]:
    port = process.free_port()
    with process.pair(tmp_path_factory.mktemp("internal"), "--internal-listen", f"127.0.0.1:{port}") as (
        gateway,
        _,
    ):
        yield Internal(gateway, port)


def _until(met: Callable[[], bool]) -> bool:
    until = time.monotonic() + 20
    while not met() and time.monotonic() < until:
        time.sleep(0.02)
    return met()


def test_health_and_metrics_answer_on_both_addresses(running):
    for url in (running.gateway.url, running.url):
        assert json.loads(process.fetch(f"{url}/healthz")[2]) == {"status": "ok"}
        assert json.loads(process.fetch(f"{url}/readyz")[2]) == {"status": "ready"}
        status, headers, text = process.fetch(f"{url}/metrics")
        assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/plain")
        assert b"\nwave_gateway_build_info{" in text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/tasks"),
        ("GET", "/v1/tasks"),
        ("GET", "/v1/models"),
        ("GET", "/v1/dashboard/billing/balance"),
        ("GET", f"/media/{'0' * 64}.jpg"),
        ("GET", "/metrics/"),
        ("GET", "/"),
    ],
)
def test_anything_else_is_not_found_in_our_error_form(running, method, path):
    key = f"Bearer {process.KEYS['growth']}"
    status, headers, text = running.fetch(path, method=method, Authorization=key)
    error = json.loads(text)["error"]
    assert (status, error["code"]) == (404, "not_found")
    assert error["request_id"] == headers["X-Wave-Request-Id"]


def test_the_clients_address_still_serves_clients(running):
    assert running.gateway.submit()[0] == 200


def test_requests_there_are_counted_under_their_route_or_as_other(running):
    running.fetch("/readyz")
    running.fetch("/made-up/by-a-client")
    exposition = running.fetch("/metrics")[2].decode()
    assert '\nwave_gateway_http_requests_total{method="GET",route="/readyz",status="200"} ' in exposition
    assert '\nwave_gateway_http_requests_total{method="GET",route="other",status="404"} ' in exposition
    assert "made-up" not in exposition


def test_who_comes_through_a_proxy_may_not_scrape_there_either(running):
    status, _, text = running.fetch("/metrics", X_Forwarded_For="127.0.0.1")
    assert (status, json.loads(text)["error"]["code"]) == (401, "invalid_api_key")


def test_the_bounds_of_the_clients_address_hold_there(running):
    assert running.fetch("/healthz", X_Long="x" * 9000)[0] == 431
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as raw:
        raw.sendall(b"NOT HTTP\r\n\r\n")
        with raw.makefile("rb") as stream:
            answer = stream.read()
    assert answer.startswith(b"HTTP/1.1 400 ") and b'"code":"invalid_request"' in answer.replace(b": ", b":")


def test_with_a_token_both_addresses_want_it_also_while_the_clients_one_is_drained(tmp_path):
    port = process.free_port()
    (tmp_path / "token").write_text("scrape-me\n")
    options = ("--internal-listen", f"127.0.0.1:{port}", "--metrics-token-file", str(tmp_path / "token"))
    with process.pair(tmp_path, *options) as (gateway, _), contextlib.ExitStack() as stack:
        for url in (gateway.url, f"http://127.0.0.1:{port}"):
            assert process.fetch(f"{url}/metrics")[0] == 401
            assert process.fetch(f"{url}/metrics", Authorization="Bearer scrape-me")[0] == 200

        client = stack.enter_context(_half_sent(gateway))
        assert gateway.process is not None
        gateway.process.send_signal(signal.SIGTERM)
        scraper = stack.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)))

        def ask(path: str, token: str = "scrape-me") -> tuple[int, bytes]:
            scraper.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            answer = scraper.getresponse()
            return answer.status, answer.read()

        assert _until(lambda: ask("/readyz")[0] == 503)
        assert b"The gateway is stopping" in ask("/readyz")[1]
        assert ask("/healthz")[0] == 200
        assert ask("/metrics", token="another")[0] == 401
        assert b"\nwave_gateway_build_info{" in ask("/metrics")[1]

        client.sendall(b"}")
        assert client.recv(12) == b"HTTP/1.1 400"
        assert gateway.process.wait(30) == 0
        gateway.process = None


@contextlib.contextmanager
def _half_sent(gateway: process.Gateway) -> Iterator[socket.socket]:
    """A client whose request the gateway has begun to read."""
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        key = process.KEYS["growth"]
        head = f"POST /v1/tasks HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        client.sendall(f"{head}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n".encode())
        with client.makefile("rb") as stream:
            assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
            assert stream.readline() == b"\r\n"
        client.sendall(b"{")
        yield client


def test_an_address_that_is_taken_refuses_the_start_and_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        policies = process.write_policies(tmp_path / "policies")
        done = process.run_cli(
            *("serve", "--listen", f"127.0.0.1:{process.free_port()}", "--internal-listen", address),
            *("--data", str(tmp_path / "data"), "--policies", str(policies)),
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"wave-gateway: --internal-listen {address} cannot be used: Address already in use")
