"""What each attack of a hostile vendor comes to, over real sockets: outcome, reason and metric, written by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from pytest import MonkeyPatch, fixture, mark

from gateway import metrics
from gateway.outbound import upstream
from gateway.rules import task
from tests import hostile, hostile_documents, stage

KEY = "vendor-secret-growth"
SHORT_S = 1.0
"""How long a call may take where the attack outlasts any; else nothing depends on the clock."""

# No HTTP at all, or none that a parser takes.
NO_HTTP = [
    *("no-http", "http-0-9", "http-2", "http-2-preface", "http-9-9", "status-text", "status-of-5-digits"),
    *("204-with-body", "304-with-body", "header-of-9-kib", "5000-headers", "header-without-colon", "header-with-nul"),
    *("length-short", "length-negative", "length-signed", "length-hexadecimal", "length-of-400-digits"),
    *("length-twice", "length-and-chunks", "chunk-size-huge", "chunk-size-negative"),
    *("endless-status", "endless-header", "endless-headers", "endless-trailers"),
]
# HTTP, and more of it than any answer needs.
TOO_LARGE = [
    *("endless-100", "endless-103", "endless-body", "endless-gzip", "endless-chunks", "endless-small-chunks"),
    *("endless-chunk-extensions", "endless-chunk-extension", "one-byte-too-many"),
]
# The connection ended too early.
CUT = {
    "length-long": "ClientPayloadError",
    "length-2-to-63": "ClientPayloadError",
    "chunk-cut": "ClientPayloadError",
    "chunks-without-end": "ClientPayloadError",
    "hung-up": "ServerDisconnectedError",
    "reset": "ClientOSError",
    "reset-in-head": "ClientOSError",
    "reset-in-body": "ClientPayloadError",
}
SLOW = ["slow-head", "slow-headers", "slow-body", "slow-chunks", "slow-100", "silence", "half-a-mebibyte-then-silence"]
STATUSES = {
    **{"status-0": 0, "status-999": 999, "status-600": 600, "status-418": 418, "switching": 101},
    **{"redirect-301": 301, "redirect-302": 302, "redirect-303": 303, "redirect-307": 307, "redirect-308": 308},
    "redirect-metadata": 302,
}
# A success that says nothing.
NOTHING = [
    *("transfer-gzip", "bomb-gzip", "bomb-deflate", "bomb-br", "bomb-zstd", "bomb-gzip-gzip"),
    *("100000-keys", "100000-keys-and-one-twice", "numbers", "empty-objects", "empty-lists", "small-strings"),
    *("empty", "html", "list", "string", "number", "null", "twice", "cut"),
    *("10000-levels", "10000-levels-of-objects", "10000-levels-open", "33-levels", "5000-digits", "1e400"),
    *("nan", "infinity", "key-twice", "lone-surrogate", "nul-escaped", "nul", "not-utf-8", "bom", "utf-16"),
]
# Odd, and yet the vendor's word.
TAKEN = ["205-with-body", "206", "header-folded", "answered-twice", "answered-again-later", "one-mib-of-text"]

IN_DOUBT = {
    **{name: ("garbled", True, "garbled") for name in NO_HTTP},
    **{name: ("too_large", False, "garbled") for name in TOO_LARGE},
    **{name: (reason, True, "in_doubt") for name, reason in CUT.items()},
    **{name: (f"answer {status}", status >= 500, "garbled") for name, status in STATUSES.items()},
    **{name: ("answer 200 without a task id", False, "garbled") for name in NOTHING},
    "status-418": ("answer 418", False, "in_doubt"),
}
TROUBLE = {
    **{name: ("garbled", True, "garbled") for name in NO_HTTP},
    **{name: ("too_large", False, "too_large") for name in TOO_LARGE},
    **{name: (reason, True, "lost") for name, reason in CUT.items()},
    **{name: (str(status), status >= 500, "3xx") for name, status in STATUSES.items()},
    **{name: ("not_a_task", False, "not_a_task") for name in NOTHING},
    "status-0": ("0", False, "other"),
    "status-999": ("999", True, "other"),
    "status-600": ("600", True, "other"),
    "status-418": ("418", False, "4xx"),
    "switching": ("101", False, "other"),
    "205-with-body": ("205", False, "other"),
    "206": ("206", False, "other"),
}
LOST = {
    **{name: ("garbled", False, "garbled") for name in NO_HTTP},
    **{name: ("too_large", True, "garbled") for name in TOO_LARGE},
    **{name: (reason, False, "lost") for name, reason in CUT.items()},
    **{name: (f"answer {status}", True, "garbled") for name, status in STATUSES.items()},
    **{name: ("answer 200", True, "garbled") for name in NOTHING},
    "status-418": ("answer 418", True, "lost"),
}

IDS_TAKEN = ["id-slashes", "id-percent", "id-question", "id-of-200", "id-ours"]


@fixture
async def vendor() -> AsyncIterator[hostile.Vendor]:
    async with hostile.served() as running:
        yield running


@fixture
async def asked(vendor: hostile.Vendor) -> AsyncIterator[upstream.Upstream]:
    made = upstream.Upstream(vendor.url, verify=stage.NO_AUTHORITIES)
    yield made
    await made.aclose()


@fixture
async def impatient(vendor: hostile.Vendor, monkeypatch: MonkeyPatch) -> AsyncIterator[upstream.Upstream]:
    monkeypatch.setattr(upstream, "TOTAL_S", SHORT_S)
    made = upstream.Upstream(vendor.url, verify=stage.NO_AUTHORITIES)
    yield made
    await made.aclose()


def counted(operation: str, outcome: str) -> float:
    return metrics.UPSTREAM_REQUESTS.labels(operation, outcome)._value.get()  # noqa: SLF001


@mark.parametrize("table", [IN_DOUBT, TROUBLE, LOST])
def test_the_tables_name_every_attack(table):
    everything = {*hostile.transports(b"{}", ""), *hostile_documents.BODIES}
    assert {*table, *SLOW, *TAKEN} == everything


async def submitted(asked: upstream.Upstream, name: str) -> task.SubmitOutcome:
    body = b'{"model":"m","prompt":"submit %s"}' % name.encode()
    return await asked.submit(body, key=KEY, idempotency_key=name)


@mark.parametrize("name", IN_DOUBT)
async def test_a_submit_that_is_answered_so_is_in_doubt(vendor, asked, name):
    reason, is_down, label = IN_DOUBT[name]
    before = counted("submit", label)
    outcome = await submitted(asked, name)
    assert outcome == task.InDoubt(reason=reason, is_down=is_down, is_garbled=label == "garbled")
    assert counted("submit", label) == before + 1
    assert vendor.strayed == []


@mark.parametrize("name", TROUBLE)
async def test_a_poll_that_is_answered_so_says_nothing(vendor, asked, name):
    reason, is_down, label = TROUBLE[name]
    before = counted("poll", label)
    assert await asked.poll(f"poll.{name}.1", key=KEY) == upstream.Trouble(reason=reason, is_down=is_down)
    assert counted("poll", label) == before + 1
    assert vendor.strayed == []


@mark.parametrize("name", LOST)
async def test_a_cancel_that_is_answered_so_is_lost(vendor, asked, name):
    reason, is_answered, label = LOST[name]
    before = counted("cancel", label)
    outcome = await asked.cancel(f"cancel.{name}.1", key=KEY)
    assert outcome == task.Lost(reason=reason, is_answered=is_answered, is_garbled=label == "garbled")
    assert counted("cancel", label) == before + 1
    assert vendor.strayed == []


async def test_what_does_not_end_is_given_up_in_time(impatient):
    """All of them at once, for each operation."""
    submits = await asyncio.gather(*(submitted(impatient, name) for name in SLOW))
    polls = await asyncio.gather(*(impatient.poll(f"poll.{name}.1", key=KEY) for name in SLOW))
    cancels = await asyncio.gather(*(impatient.cancel(f"cancel.{name}.1", key=KEY) for name in SLOW))
    assert submits == [task.InDoubt(reason="timeout", is_down=True)] * 7
    assert polls == [upstream.Trouble(reason="timeout", is_down=True)] * 7
    assert cancels == [task.Lost(reason="timeout", is_answered=False)] * 7


@mark.parametrize("name", TAKEN)
async def test_a_submit_that_is_answered_oddly_is_accepted(asked, name):
    outcome = await submitted(asked, name)
    assert isinstance(outcome, task.Accepted) and outcome.upstream_task_id == f"submit.{name}.1"


@mark.parametrize("name", hostile_documents.IDS)
async def test_an_id_is_taken_only_where_it_can_be_asked_for(asked, name):
    outcome = await submitted(asked, name)
    if name in IDS_TAKEN:
        assert isinstance(outcome, task.Accepted) and outcome.upstream_task_id == hostile_documents.IDS[name]
    else:
        assert outcome == task.InDoubt(reason="answer 200 without a task id", is_garbled=True)


@mark.parametrize(
    ("name", "target"),
    [
        ("id-slashes", "..%2F..%2Fv1%2Fdashboard%2Fbilling%2Fbalance"),
        ("id-percent", "%252e%252e%252fadmin"),
        ("id-question", "x%3Fstream=true%23top"),
        ("id-ours", "task-wg00000000000000000000000001"),
    ],
)
async def test_an_id_never_leaves_its_place_in_the_path(asked, vendor, name, target):
    vendor.keeps_targets = True
    await asked.poll(str(hostile_documents.IDS[name]), key=KEY)
    await asked.cancel(str(hostile_documents.IDS[name]), key=KEY)
    assert vendor.targets == [f"GET /v1/tasks/{target}", f"POST /v1/tasks/{target}/cancel"]


async def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_one(asked):
    first = await submitted(asked, "answered-again-later")
    await asyncio.sleep(1.5)  # the second answer comes after 0.1 s, on a connection that is kept
    second = await submitted(asked, "206")
    assert isinstance(first, task.Accepted) and first.upstream_task_id == "submit.answered-again-later.1"
    assert isinstance(second, task.Accepted) and second.upstream_task_id == "submit.206.2"


@mark.parametrize(
    ("name", "reason"),
    [
        ("endless-body", "too_large"),
        ("endless-100", "too_large"),
        ("bomb-gzip", "not_a_balance"),
        ("redirect-307", "307"),
        ("html", "not_a_balance"),
        ("10000-levels", "not_a_balance"),
    ],
)
async def test_a_wallet_is_not_read_from_an_answer_like_this(asked, vendor, name, reason):
    trouble = await asked.balance(key=f"sk-balance-{name}")
    assert isinstance(trouble, upstream.Trouble) and trouble.reason == reason
    assert vendor.strayed == []


async def test_large_answers_take_turns_and_small_ones_pass_them(asked):
    """Two answers stop half-way; a third large one waits until one of them is over, and a small one does not."""

    def held(number: int) -> asyncio.Task[task.SubmitOutcome]:
        body = b'{"model":"m","prompt":"submit half-a-mebibyte-then-silence"}'
        return asyncio.create_task(asked.submit(body, key=KEY, idempotency_key=f"held {number}"))

    first, second = held(1), held(2)
    while not asked._large.locked():  # noqa: ASYNC110, SLF001 - nothing else tells how far they are
        await asyncio.sleep(0.01)
    third = asyncio.create_task(submitted(asked, "one-mib-of-text"))
    assert isinstance(await submitted(asked, "206"), task.Accepted)
    assert await asyncio.wait({third}, timeout=0.3) == (set(), {third})
    first.cancel()
    assert isinstance(await third, task.Accepted)
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
