"""A wrong answer ends the run, whoever notices it."""

from __future__ import annotations

import asyncio
import pathlib

import pytest

from bench import asks, load, open_loop, side_by_side
from bench.servers import Server

HIT = asks.Ask(method="POST", path="/v1/tasks", body='{"n":{number}}', header=("X-Cache", "HIT"), contains="completed")
MEASURED = (
    "MEASURED requests=2000 duration_us=1000000 bytes=500000 p50_us=1500 p99_us=9000 wrong={wrong} status=0 connect=0 "
    "read={read} write=0 timeout=0\nSAMPLE 200 queued\n"
)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"HTTP/1.1 429 Too Many Requests\r\nX-Cache: HIT", b"completed"),
        (b"HTTP/1.1 200 OK\r\nX-Cache: MISS", b"completed"),
        (b"HTTP/1.1 200 OK\r\nX-Other: HIT", b"completed"),
        (b"HTTP/1.1 200 OK\r\nX-Cache: HIT", b"queued"),
    ],
)
def test_an_answer_with_another_status_cache_status_or_body_is_wrong(head, body):
    with pytest.raises(asks.WrongAnswerError):
        asks.check(HIT, head, body)


def test_the_right_answer_is_right_however_its_headers_are_spelt():
    asks.check(HIT, b"HTTP/1.1 200 OK\r\nx-cache: HIT\r\ncontent-length: 9", b"completed")


def test_a_round_in_which_one_answer_was_wrong_does_not_count():
    with pytest.raises(asks.WrongAnswerError, match="200 queued"):
        load.read(MEASURED.format(wrong=1, read=0), HIT)
    with pytest.raises(asks.WrongAnswerError):
        load.read(MEASURED.format(wrong=0, read=3), HIT)


def test_a_round_is_read_in_seconds_and_milliseconds():
    found = load.read(MEASURED.format(wrong=0, read=0), HIT)
    assert (found.requests, found.seconds, found.p50_ms, found.p99_ms) == (2_000, 1.0, 1.5, 9.0)


def test_answers_that_were_cut_short_do_not_count():
    cut = asks.Ask(path="/media/a.jpg", least_bytes=251)
    with pytest.raises(asks.WrongAnswerError):
        load.read(MEASURED.format(wrong=0, read=0), cut)


@pytest.mark.parametrize(("counted", "is_right"), [(999, False), (1_000, True), (1_032, True), (1_033, False)])
def test_the_servers_own_count_may_differ_by_what_was_under_way_only(counted, is_right):
    server = Server(name="gateway", url="", pid=0, ready_s=0.0)
    one = side_by_side.Contender(path="A", name="gateway", server=server, url="", ask=HIT, connections=32)
    if is_right:
        side_by_side.check_count(one, 1_000, counted)
        return
    with pytest.raises(asks.WrongAnswerError, match=str(counted)):
        side_by_side.check_count(one, 1_000, counted)


def test_numbers_go_round_the_keys_and_begin_where_the_round_begins():
    def bodies(ask: asks.Ask) -> list[bytes]:
        made = asks.requests(ask, "h", nonce=10_003_701)
        return [next(made).partition(b"\r\n\r\n")[2] for _ in range(3)]

    assert bodies(asks.Ask(method="POST", body="{number}", keys=2)) == [b"1", b"0", b"1"]
    assert bodies(asks.Ask(method="POST", body="{number}", keys=0)) == [b"10003701", b"10003702", b"10003703"]


async def offered(answer: bytes) -> open_loop.Point:
    """Twenty requests over a tenth of a second to a server that always gives this answer."""
    left: list[asyncio.Event] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left.append(asyncio.Event())
        here = left[-1]
        while head := await reader.read(65_536):
            writer.write(answer * head.count(b"\r\n\r\n"))
        writer.close()
        await writer.wait_closed()
        here.set()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        ask = asks.Ask(path="/a", header=("X-Cache", "HIT"), contains="completed")
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            return await open_loop.offer(ask, url, rate=200.0, connections=4, seconds=0.1, nonce=0)
        finally:
            await asyncio.gather(*(each.wait() for each in left))


async def test_the_open_loop_sends_what_it_was_told_and_times_each_answer():
    point = await offered(b"HTTP/1.1 200 OK\r\nX-Cache: HIT\r\nContent-Length: 9\r\n\r\ncompleted")
    assert point.sent == 20
    assert 0 < point.p50_ms <= point.p99_ms


async def test_the_open_loop_ends_at_a_wrong_answer():
    with pytest.raises(asks.WrongAnswerError, match="MISS"):
        await offered(b"HTTP/1.1 200 OK\r\nX-Cache: MISS\r\nContent-Length: 9\r\n\r\ncompleted")


def test_the_script_for_wrk_holds_each_answer_against_status_header_and_body():
    script = asks.lua(HIT, nonce=7)
    assert 'name, wanted, contains = "x-cache", "HIT", "completed"' in script
    assert "local right = status == 200" in script and "wrong = wrong + 1" in script


def test_a_big_picture_is_not_handed_to_lua_and_its_bytes_are_counted_instead():
    assert "function response" not in asks.lua(asks.Ask(path="/media/a.jpg", least_bytes=1_000_000), nonce=0)


def test_nothing_of_the_bench_is_in_the_wheel():
    project = (pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text()
    packages = project.partition("[tool.setuptools]")[2].partition("]")[0]
    assert "bench" not in packages
