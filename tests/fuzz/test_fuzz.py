"""Ten thousand hostile inputs, and that what judges them can say no; `make fuzz` plays a hundred thousand."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from tests.fuzz import described, grammar, parsers, reader, run, wire, world

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@pytest.mark.timeout(600)
def test_ten_thousand_connections_of_the_grammar_find_nothing(tmp_path):
    fresh = random.SystemRandom().randrange(10**6)
    with world.made(tmp_path) as at:
        tally, problems = run.raw(at, [1, fresh], 5_000)

    assert problems == [], f"seeds 1 and {fresh}"
    assert tally.connections == 10_000
    # The grammar still reaches what lies behind the parser: bought, free, refused by policy, refused by form.
    assert len(tally.upstream_ids) > 100
    for seen in ("200", "400 invalid_json", "400 invalid_request", "402 spend_cap_reached", "404 task_not_found"):
        assert tally.statuses[seen] > 10, seen
    assert tally.statuses["408 request_timeout"] >= 20


@pytest.mark.timeout(600)
def test_the_gateway_does_what_its_document_says(tmp_path):
    with world.made(tmp_path) as at:
        outcome = described.play(at, tmp_path / "reports", seed=1, examples=3, phases="examples,coverage")
        problems = at.check()

    assert outcome.failures == ""
    assert problems == []
    assert outcome.requests > 500


def test_what_reads_other_peoples_text_takes_it_or_refuses_it():
    fresh = random.SystemRandom().randrange(10**6)
    for seed in (1, fresh):
        counts, problems = parsers.play(seed, 4_000)
        assert problems == [], seed
        assert sum(counts.values()) == 4_000


# What judges


def test_a_script_is_the_same_for_the_same_seed_and_number():
    assert [grammar.script(3, number) for number in range(50)] == [grammar.script(3, number) for number in range(50)]
    assert grammar.script(3, 2) != grammar.script(4, 2)


@pytest.mark.parametrize(
    ("said", "count", "ends"),
    [
        (b"", 0, "clean"),
        (GET, 1, "clean"),
        (b"\r\n" + GET + GET, 2, "clean"),
        (GET + b"GET /b HTT", 1, "incomplete"),
        (GET + b"nonsense\r\n\r\n" + GET, 1, "fault"),
        (b"GET / HTTP/1.0\r\n\r\n" + GET, 1, "last"),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n" + GET, 1, "last"),
        (b"POST / HTTP/1.1\r\nContent-Length: 30\r\n\r\n" + GET + b"!!", 1, "clean"),
        (b"POST / HTTP/1.1\r\nContent-Length: 31\r\n\r\n" + GET, 0, "incomplete"),
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, "fault"),
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 0, "fault"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\nA: b\r\n\r\n" + GET, 2, "clean"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}!\r\n0\r\n\r\n", 0, "fault"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{", 0, "incomplete"),
        (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 0, "fault"),
        (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 0, "fault"),
        (b"GET / HTTP/1.1\nA: b\n\n\r\n\r\n", 0, "fault"),
    ],
)
def test_the_reader_counts_requests_as_the_standard_does(said, count, ends):
    read = reader.requests(said)
    assert (len(read.requests), read.ends) == (count, ends)


def test_a_body_is_read_to_its_last_byte():
    chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\n{\r\r\n1\r\n}\r\n0\r\n\r\n"
    [request] = reader.requests(chunked).requests
    assert request.body == b"{\r}"


@pytest.mark.parametrize(
    "heard",
    [
        ANSWER[:-1],
        ANSWER + b"{",
        b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\nb\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"Internal Server Error",
    ],
)
def test_what_is_no_answer_is_not_taken_for_one(heard):
    with pytest.raises(reader.Unreadable):
        reader.responses(heard, [b"GET"], is_over=True)


def answer(status: int, **error: object) -> bytes:
    body = json.dumps({"error": {"message": "m", "request_id": "r"} | error}).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nx-wave-request-id: r\r\n"
    head += f"cache-control: no-store\r\nx-content-type-options: nosniff\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


SCRIPT = next(number for number in range(2, 999) if grammar.script(1, number).data.startswith(b"GET /readyz HTTP/1.1"))


@pytest.mark.parametrize(
    ("heard", "why"),
    [
        (answer(500, code="internal_error"), "without a cause"),
        (answer(400, code="not_found"), "400 with code 'not_found'"),
        (answer(404, code="not_found", request_id="q"), "is not that of the answer"),
        (answer(404, code="task_not_found"), "answered 404, which is not described"),
        (answer(400, code="invalid_json"), "invalid_json"),
        (answer(400, code="invalid_request") * 9, "9 answers to"),
        (b"", "closed without an answer"),
        (b"oops", "no HTTP came back"),
    ],
)
async def test_an_answer_that_must_not_be_is_a_failure_with_its_reason(heard, why):
    async def serve(incoming: asyncio.StreamReader, outgoing: asyncio.StreamWriter) -> None:
        await incoming.readuntil(b"\r\n\r\n")
        outgoing.write(heard)
        outgoing.write_eof()
        await incoming.read()
        outgoing.close()

    tally = wire.Tally()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        await wire.one(server.sockets[0].getsockname()[1], 1, SCRIPT, tally)
    assert why in " ".join(tally.failures[f"1/{SCRIPT}"])
