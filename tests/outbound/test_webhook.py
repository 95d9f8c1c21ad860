import asyncio
import ipaddress
import socket
import time
from collections.abc import AsyncIterator

import pytest

from gateway.outbound import webhook
from gateway.outbound.webhook import Delivered, Failed
from tests import receiver, stage

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
BODY = b'{"task_id":"task-wg1"}'
HEADERS = {"webhook-id": "msg_wg1", "webhook-timestamp": "1614265330"}


@pytest.fixture
async def sender() -> AsyncIterator[webhook.Sender]:
    made = webhook.Sender(allowed=LOOPBACK, tls=stage.NO_AUTHORITIES)
    yield made
    await made.aclose()


async def test_a_webhook_is_a_post_of_the_body_with_its_headers_and_nothing_else_of_ours(sender) -> None:
    async with receiver.receiving(receiver.status(204)) as there:
        url = f"{there.url}/a%2Fb?token=t%3A1"
        assert await sender.send(url, BODY, HEADERS) == Delivered(status=204)
    [sent] = there.requests
    assert sent.line == "POST /a%2Fb?token=t%3A1 HTTP/1.1"
    assert sent.body == BODY
    assert sent.headers == HEADERS | {
        "host": there.url.removeprefix("http://"),
        "user-agent": "wave-gateway",
        "accept": "*/*",
        "accept-encoding": "identity",
        "connection": "close",
        "content-type": "application/json",
        "content-length": "22",
    }


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_is_delivered(sender, status) -> None:
    async with receiver.receiving(receiver.status(status)) as there:
        assert await sender.send(there.url, BODY, HEADERS) == Delivered(status=status)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_a_failure_and_never_followed(sender, status) -> None:
    async with receiver.receiving(receiver.status(200)) as elsewhere:
        async with receiver.receiving(receiver.status(status, f"Location: {elsewhere.url}/")) as there:
            detail = f"answered {status}: redirects are not followed"
            assert await sender.send(there.url, BODY, HEADERS) == Failed(detail=detail, status=status)
    assert elsewhere.requests == []


@pytest.mark.parametrize(("status", "is_gone"), [(400, False), (404, False), (410, True), (429, False), (500, False)])
async def test_any_other_status_is_a_failure_and_only_410_is_for_good(sender, status, is_gone) -> None:
    async with receiver.receiving(receiver.status(status)) as there:
        assert await sender.send(there.url, BODY, HEADERS) == Failed(
            detail=f"answered {status}", is_gone=is_gone, status=status
        )


@pytest.mark.parametrize(("status", "heard"), [(429, "7"), (503, "7"), (500, None), (302, None)])
async def test_a_wish_to_wait_is_heard_beside_an_overload(sender, status, heard) -> None:
    async with receiver.receiving(receiver.status(status, "Retry-After: 7")) as there:
        outcome = await sender.send(there.url, BODY, HEADERS)
    assert isinstance(outcome, Failed) and outcome.retry_after == heard


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://[::ffff:169.254.169.254]/",
        "https://[64:ff9b::7f00:1]/",
        "https://user:word@127.0.0.1/",
        "ftp://127.0.0.1/",
    ],
)
async def test_an_address_that_is_not_allowed_is_not_connected_to(sender, url) -> None:
    outcome = await sender.send(url + "secret?token=t", BODY, HEADERS)
    assert isinstance(outcome, Failed)
    assert outcome.detail.startswith("the address is not allowed: ")
    assert "secret" not in outcome.detail


async def test_a_name_is_judged_by_its_addresses_at_each_connect() -> None:
    strict = webhook.Sender(tls=stage.NO_AUTHORITIES)
    try:
        outcome = await strict.send("https://localhost/secret", BODY, HEADERS)
    finally:
        await strict.aclose()
    assert outcome in (
        Failed(detail="the address is not allowed: 127.0.0.1 is loopback"),
        Failed(detail="the address is not allowed: ::1 is loopback"),
    )


async def test_a_receiver_that_never_answers_is_given_up_at_the_deadline() -> None:
    async def silence(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    hasty = webhook.Sender(allowed=LOOPBACK, tls=stage.NO_AUTHORITIES, deadline_s=0.2)
    try:
        async with receiver.receiving(silence) as there:
            assert await hasty.send(there.url, BODY, HEADERS) == Failed(detail="no answer within 0.2 s")
    finally:
        await hasty.aclose()


async def test_a_receiver_has_15_seconds() -> None:
    assert webhook.DEADLINE_S == 15.0


async def test_an_answer_that_drips_ends_at_the_deadline_and_its_status_counts() -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    hasty = webhook.Sender(allowed=LOOPBACK, tls=stage.NO_AUTHORITIES, deadline_s=0.3)
    try:
        async with receiver.receiving(drip) as there:
            assert await hasty.send(there.url, BODY, HEADERS) == Delivered(status=200)
    finally:
        await hasty.aclose()


@pytest.mark.parametrize(
    ("status", "outcome"), [(200, Delivered(status=200)), (500, Failed(detail="answered 500", status=500))]
)
async def test_of_an_endless_answer_little_is_read(sender, status, outcome) -> None:
    poured = 0

    async def pour(writer: asyncio.StreamWriter) -> None:
        nonlocal poured
        writer.write(f"HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        while True:
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()
            poured += 65536

    began_at = time.monotonic()
    async with receiver.receiving(pour) as there:
        assert await sender.send(there.url, BODY, HEADERS) == outcome
    assert time.monotonic() - began_at < 10
    assert poured < 16 * 1024 * 1024  # what the sockets hold, far from endless


async def test_a_closed_port_and_an_answer_that_is_no_http_are_failures(sender) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    outcome = await sender.send(f"http://127.0.0.1:{port}/secret", BODY, HEADERS)
    assert isinstance(outcome, Failed)
    assert "secret" not in outcome.detail
    async with receiver.receiving(b"garbage\r\n\r\n") as there:
        assert isinstance(await sender.send(there.url, BODY, HEADERS), Failed)


async def test_each_webhook_has_a_connection_of_its_own(sender) -> None:
    async with receiver.receiving(receiver.status(200)) as there:
        for _ in range(3):
            assert await sender.send(there.url, BODY, HEADERS) == Delivered(status=200)
    assert len(there.requests) == 3


async def test_proxies_of_the_environment_are_not_asked(monkeypatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    made = webhook.Sender(allowed=LOOPBACK, tls=stage.NO_AUTHORITIES)
    try:
        async with receiver.receiving(receiver.status(200)) as there:
            assert await made.send(there.url, BODY, HEADERS) == Delivered(status=200)
    finally:
        await made.aclose()
