from __future__ import annotations

import asyncio
import dataclasses
import pathlib
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.rules import money, policy, pricing, task
from gateway.rules.money import Nanos
from gateway.rules.task import State
from gateway.store import media, sqlite, tasks
from gateway.store.database import Tx
from tests.store import builders
from tests.store.builders import NOW, PRO, PRO_OFFICIAL, insert, rows, task_row

FINGERPRINT = "f" * 64
DIGEST = "d" * 64


@pytest.fixture
async def kept(tmp_path: pathlib.Path) -> AsyncIterator[sqlite.SqliteDatabase]:
    opened = builders.open_database(tmp_path)
    yield opened
    opened.close()


async def get(kept: sqlite.SqliteDatabase, task_id: str) -> tasks.Task:
    found = await kept.read(lambda tx: tasks.get(tx, task_id))
    assert found is not None
    return found


async def state_of(kept: sqlite.SqliteDatabase, task_id: str) -> State:
    return (await get(kept, task_id)).state


def file_of(task_id: str, position: int) -> task.Media:
    return task.Media(url=f"https://cdn.example.com/{task_id}/{position}.png", expires_at=NOW + 86_400)


async def add_media(kept: sqlite.SqliteDatabase, task_id: str, *, files: int, mirrored: int = 0) -> None:
    """Result files of a task, the first `mirrored` of them kept as blobs."""

    def fn(tx: Tx) -> None:
        tasks.add_media(tx, task_id, [file_of(task_id, position) for position in range(files)])
        for position in range(mirrored):
            blob = media.BlobRow(digest=f"{task_id}-{position}", size_bytes=5, mime="image/png", extension="png")
            media.keep(tx, blob, task_id=task_id, position=position, now=NOW)

    await kept.write(fn)


async def result(kept: sqlite.SqliteDatabase, *, since: float = NOW) -> str | None:
    found = await kept.read(lambda tx: tasks.get_result(tx, FINGERPRINT, since=since))
    return None if found is None else found.id


# Rows


async def test_a_task_comes_back_as_it_was_kept(kept: sqlite.SqliteDatabase) -> None:
    full = tasks.Task(
        id="full",
        team="growth",
        key_name="ci",
        request_id="request-9",
        idempotency_key="1",
        body_digest=b"\x00\xff" * 16,
        fingerprint=FINGERPRINT,
        inflight=FINGERPRINT,
        leader_id="paid",
        x_cache="COALESCED",
        changes="model=rewritten",
        model=PRO,
        action="edit",
        n=3,
        request=b'{"seed":9007199254740993}',
        callback_url="https://client.example.com/hook",
        callback_events="completed,failed",
        state=State.SUBMITTED,
        upstream_key_ref="file:/run/secrets/wave",
        upstream_key_digest=b"\x02" * 32,
        upstream_idempotency_key="ours",
        upstream_task_id="theirs",
        document=b'{"status":"processing"}',
        failure=b'{"error":{"code":"upstream_unavailable"}}',
        refusal_status=422,
        price_version="2026-04-01",
        tier="standard",
        standard_unit_nanos=42_500_000,
        official_unit_nanos=113_900_000,
        official=PRO_OFFICIAL,
        quote_nanos=341_700_000,
        cost_nanos=127_500_000,
        attempts=2,
        troubles=1,
        created_at=NOW + 0.25,
        first_attempt_at=NOW + 0.5,
        deadline_at=NOW + 120.0,
        submitted_at=NOW + 1.0,
        settled_at=NOW + 9.0,
        ended_at=NOW + 10.0,
        next_at=NOW + 3.0,
    )
    await insert(kept, full, task_row("small"))
    assert await get(kept, "full") == full
    assert isinstance((await get(kept, "full")).state, State)
    assert await get(kept, "small") == task_row("small")
    assert await kept.read(lambda tx: tasks.get(tx, "unknown")) is None


async def test_the_columns_of_the_row_are_those_of_the_table(kept: sqlite.SqliteDatabase) -> None:
    columns = [name for (name,) in await rows(kept, "SELECT name FROM pragma_table_info('tasks')")]
    assert sorted(columns) == sorted(field.name for field in dataclasses.fields(tasks.Task))


def test_the_quote_is_the_one_that_was_frozen() -> None:
    row = task_row(quote_nanos=113_900_000, official=PRO_OFFICIAL, official_unit_nanos=113_900_000)
    assert row.quote() == pricing.Quote(
        nanos=Nanos(113_900_000),
        standard_unit_nanos=Nanos(42_500_000),
        official_unit_nanos=Nanos(113_900_000),
        model=PRO,
        tier=policy.Tier.STANDARD,
        official=PRO_OFFICIAL,
        version="2026-04-01",
    )
    assert task_row().quote().official_unit_nanos is None
    assert task_row(standard_unit_nanos=0, quote_nanos=0).quote().nanos == money.ZERO


def test_a_task_with_a_leader_is_free() -> None:
    assert task_row(leader_id="paid").is_free()
    assert not task_row().is_free()


async def test_a_second_task_of_an_id_is_refused(kept: sqlite.SqliteDatabase) -> None:
    await insert(kept, task_row("a"))
    with pytest.raises(sqlite3.IntegrityError, match=r"UNIQUE constraint failed: tasks\.id"):
        await insert(kept, task_row("a"))


@pytest.mark.parametrize(
    ("said", "why"),
    [({"n": 0}, "n >= 1"), ({"quote_nanos": -1}, "quote_nanos >= 0"), ({"cost_nanos": -1}, "cost_nanos >= 0")],
)
async def test_a_task_that_makes_no_sense_is_refused(
    kept: sqlite.SqliteDatabase, said: dict[str, Any], why: str
) -> None:
    with pytest.raises(sqlite3.IntegrityError, match=f"CHECK constraint failed: {why}"):
        await insert(kept, task_row(**said))


# Idempotency and leaders


async def test_an_idempotency_key_is_one_task_of_its_team(kept: sqlite.SqliteDatabase) -> None:
    await insert(
        kept,
        task_row("ours", idempotency_key="1"),
        task_row("theirs", team="other", idempotency_key="1"),
        task_row("without"),
        task_row("without either"),
    )
    with pytest.raises(sqlite3.IntegrityError, match=r"UNIQUE constraint failed: tasks\.team, tasks\.idempotency_key"):
        await insert(kept, task_row("again", idempotency_key="1"))

    def found(tx: Tx) -> list[str | None]:
        pairs = (("growth", "1"), ("other", "1"), ("third", "1"), ("growth", "2"))
        each = [tasks.get_by_idempotency_key(tx, team, key) for team, key in pairs]
        return [None if row is None else row.id for row in each]

    assert await kept.read(found) == ["ours", "theirs", None, None]


async def test_of_racing_submits_under_one_idempotency_key_one_is_kept(kept: sqlite.SqliteDatabase) -> None:
    outcomes = await asyncio.gather(
        *(insert(kept, task_row(f"t{number}", idempotency_key="1")) for number in range(50)), return_exceptions=True
    )
    assert outcomes.count(None) == 1
    assert await rows(kept, "SELECT COUNT(*) FROM tasks") == [(1,)]


async def test_two_leaders_for_one_fingerprint_are_impossible(kept: sqlite.SqliteDatabase) -> None:
    await insert(kept, task_row("leader", inflight=FINGERPRINT))
    with pytest.raises(sqlite3.IntegrityError, match=r"UNIQUE constraint failed: tasks\.inflight"):
        await insert(kept, task_row("second", team="other", inflight=FINGERPRINT))
    await insert(kept, task_row("refresh", fingerprint=FINGERPRINT, inflight=None))
    found = await kept.read(lambda tx: tasks.get_leader(tx, FINGERPRINT))
    assert found is not None
    assert found.id == "leader"
    assert await kept.read(lambda tx: tasks.get_leader(tx, "e" * 64)) is None


async def test_when_a_leader_is_through_another_may_lead(kept: sqlite.SqliteDatabase) -> None:
    first = task_row("first", inflight=FINGERPRINT, state=State.SUBMITTED)
    await insert(kept, first)
    await kept.write(lambda tx: tasks.move(tx, first, State.FAILED, inflight=None))
    assert await kept.read(lambda tx: tasks.get_leader(tx, FINGERPRINT)) is None
    await insert(kept, task_row("second", inflight=FINGERPRINT))
    found = await kept.read(lambda tx: tasks.get_leader(tx, FINGERPRINT))
    assert found is not None
    assert found.id == "second"


async def test_a_task_of_the_vendor_is_one_task_of_ours(kept: sqlite.SqliteDatabase) -> None:
    await insert(kept, task_row("a", upstream_task_id="theirs"), task_row("b"), task_row("c"))
    with pytest.raises(sqlite3.IntegrityError, match=r"UNIQUE constraint failed: tasks\.upstream_task_id"):
        await kept.write(lambda tx: tasks.move(tx, task_row("b"), State.SUBMITTED, upstream_task_id="theirs"))
    assert await get(kept, "b") == task_row("b")
    found = await kept.read(lambda tx: tasks.get_by_upstream_task_id(tx, "theirs"))
    assert found is not None
    assert found.id == "a"
    assert await kept.read(lambda tx: tasks.get_by_upstream_task_id(tx, "unknown")) is None


# Moving


async def test_move_returns_the_task_as_it_is_then(kept: sqlite.SqliteDatabase) -> None:
    before = task_row("a")
    await insert(kept, before)
    moved = await kept.write(lambda tx: tasks.move(tx, before, State.SUBMITTED, upstream_task_id="theirs", next_at=7.0))
    assert moved == dataclasses.replace(before, state=State.SUBMITTED, upstream_task_id="theirs", next_at=7.0)
    assert await get(kept, "a") == moved


async def test_a_late_writer_changes_nothing(kept: sqlite.SqliteDatabase) -> None:
    seen = task_row("a", state=State.SUBMITTED)
    await insert(kept, seen)
    await kept.write(lambda tx: tasks.move(tx, seen, State.DELIVERED, cost_nanos=42_500_000))
    after = await get(kept, "a")
    assert await kept.write(lambda tx: tasks.move(tx, seen, State.FAILED, cost_nanos=0)) is None
    assert await kept.write(lambda tx: tasks.note(tx, seen, next_at=1.0)) is False
    assert await get(kept, "a") == after


async def test_of_racing_moves_one_wins(kept: sqlite.SqliteDatabase) -> None:
    seen = task_row("a", state=State.SUBMITTED)
    await insert(kept, seen)
    ends = [State.DELIVERED, State.FAILED, State.CANCELLED] * 10
    outcomes = await asyncio.gather(
        *(kept.write(lambda tx, end=end: tasks.move(tx, seen, end)) for end in ends)  # type: ignore[misc]
    )
    assert [each.state for each in outcomes if each is not None] == [State.DELIVERED]


async def test_move_leaves_other_tasks_alone_and_an_unknown_one_unknown(kept: sqlite.SqliteDatabase) -> None:
    await insert(kept, task_row("a"), task_row("b"))
    await kept.write(lambda tx: tasks.move(tx, task_row("a"), State.WAITING))
    assert await kept.write(lambda tx: tasks.move(tx, task_row("c"), State.WAITING)) is None
    assert await state_of(kept, "b") is State.RESERVED


async def test_a_note_changes_columns_and_keeps_the_state(kept: sqlite.SqliteDatabase) -> None:
    await insert(kept, task_row("a"))
    assert await kept.write(lambda tx: tasks.note(tx, task_row("a"), troubles=3, next_at=9.5)) is True
    assert await get(kept, "a") == task_row("a", troubles=3, next_at=9.5)


async def test_end_followers_ends_only_the_waiting_followers_of_that_leader(kept: sqlite.SqliteDatabase) -> None:
    following = {"state": State.FOLLOWING, "x_cache": "COALESCED", "quote_nanos": 0}
    await insert(
        kept,
        task_row("leader", state=State.SUBMITTED),
        task_row("one", leader_id="leader", next_at=5.0, **following),
        task_row("two", team="other", leader_id="leader", **following),
        task_row("detached", leader_id="leader", state=State.CANCELLED, ended_at=float(NOW)),
        task_row("elsewhere", leader_id="another", **following),
    )
    ended = await kept.write(lambda tx: tasks.end_followers(tx, "leader", State.COMPLETED, ended_at=NOW + 9.0))
    assert sorted((each.id, each.team) for each in ended) == [("one", "growth"), ("two", "other")]
    one = await get(kept, "one")
    assert (one.state, one.ended_at, one.cost_nanos, one.next_at) == (State.COMPLETED, NOW + 9.0, 0, None)
    assert await state_of(kept, "two") is State.COMPLETED
    assert await state_of(kept, "leader") is State.SUBMITTED
    assert await get(kept, "detached") == task_row(
        "detached", leader_id="leader", state=State.CANCELLED, ended_at=float(NOW)
    )
    assert await state_of(kept, "elsewhere") is State.FOLLOWING
    assert await kept.write(lambda tx: tasks.end_followers(tx, "leader", State.FAILED, ended_at=NOW + 10.0)) == []
    assert await state_of(kept, "one") is State.COMPLETED


# What is due


async def test_the_most_overdue_comes_first_and_no_more_than_asked(kept: sqlite.SqliteDatabase) -> None:
    await insert(
        kept,
        task_row("third", state=State.SUBMITTED, next_at=30.0),
        task_row("first", state=State.SUBMITTED, next_at=10.0),
        task_row("second", state=State.DELIVERED, next_at=20.0),
        task_row("now", state=State.SUBMITTED, next_at=40.0),
        task_row("not yet", state=State.SUBMITTED, next_at=40.001),
        task_row("never", state=State.SUBMITTED, next_at=None),
        task_row("other state", state=State.WAITING, next_at=1.0),
    )

    async def due(limit: int, *states: State) -> list[str]:
        return await kept.read(lambda tx: tasks.due(tx, states, now=40.0, limit=limit))

    assert await due(10, State.SUBMITTED, State.DELIVERED) == ["first", "second", "third", "now"]
    assert await due(2, State.SUBMITTED, State.DELIVERED) == ["first", "second"]
    assert await due(10, State.DELIVERED) == ["second"]
    assert await due(0, State.SUBMITTED) == []


async def test_tasks_in_doubt_are_due_at_once_but_for_the_operators(kept: sqlite.SqliteDatabase) -> None:
    await insert(
        kept,
        task_row("later", state=State.IN_DOUBT, next_at=900.0),
        task_row("overdue", state=State.IN_DOUBT, next_at=1.0),
        task_row("the operator's", state=State.IN_DOUBT, next_at=None),
        task_row("not in doubt", state=State.WAITING, next_at=900.0),
    )
    assert await kept.write(lambda tx: tasks.resume_in_doubt(tx, now=40.0)) == 2
    assert await rows(kept, "SELECT id, next_at FROM tasks ORDER BY id") == [
        ("later", 40.0),
        ("not in doubt", 900.0),
        ("overdue", 40.0),
        ("the operator's", None),
    ]


async def test_ids_in_a_state(kept: sqlite.SqliteDatabase) -> None:
    await insert(kept, task_row("a"), task_row("b"), task_row("c", state=State.IN_DOUBT))
    assert sorted(await kept.read(lambda tx: tasks.ids_in(tx, State.RESERVED))) == ["a", "b"]
    assert await kept.read(lambda tx: tasks.ids_in(tx, State.IN_DOUBT)) == ["c"]
    assert await kept.read(lambda tx: tasks.ids_in(tx, State.WAITING)) == []


# Results


def completed(task_id: str, **said: object) -> tasks.Task:
    row = {"state": State.COMPLETED, "fingerprint": FINGERPRINT, "ended_at": NOW + 10.0, "cost_nanos": 42_500_000}
    return task_row(task_id, **(row | said))


async def test_a_completed_task_whose_every_result_is_kept_is_a_result(kept: sqlite.SqliteDatabase) -> None:
    await insert(kept, completed("a", n=2))
    await add_media(kept, "a", files=2, mirrored=2)
    assert await result(kept) == "a"


@pytest.mark.parametrize(
    ("said", "files", "mirrored"),
    [
        ({}, 0, 0),
        ({}, 1, 0),
        ({"n": 2}, 2, 1),
        ({"n": 2}, 1, 1),
        ({"n": 1}, 2, 1),
        ({"fingerprint": None}, 1, 1),
        ({"fingerprint": "e" * 64}, 1, 1),
        ({"leader_id": "paid"}, 1, 1),
        ({"state": State.DELIVERED}, 1, 1),
        ({"state": State.FAILED}, 1, 1),
        ({"ended_at": float(NOW)}, 1, 1),
        ({"ended_at": None}, 1, 1),
    ],
    ids=[
        "no file",
        "not mirrored",
        "one of two mirrored",
        "one of two delivered",
        "a file beside the result not mirrored",
        "not cacheable",
        "another request",
        "a hit itself",
        "not yet completed",
        "failed",
        "too old by nothing",
        "without an end",
    ],
)
async def test_what_is_no_result(
    kept: sqlite.SqliteDatabase, said: dict[str, object], files: int, mirrored: int
) -> None:
    await insert(kept, completed("a", **said))
    await add_media(kept, "a", files=files, mirrored=mirrored)
    assert await result(kept, since=NOW) is None


async def test_the_newest_result_that_is_whole_is_taken(kept: sqlite.SqliteDatabase) -> None:
    await insert(
        kept,
        completed("old", ended_at=NOW + 1.0),
        completed("newer", ended_at=NOW + 3.0),
        completed("newest", ended_at=NOW + 5.0),
    )
    await add_media(kept, "old", files=1, mirrored=1)
    await add_media(kept, "newer", files=1, mirrored=1)
    await add_media(kept, "newest", files=1, mirrored=0)
    assert await result(kept) == "newer"
    assert await result(kept, since=NOW + 2.999) == "newer"
    assert await result(kept, since=NOW + 3.0) is None


async def test_media_come_in_their_order_with_what_mirrors_them(kept: sqlite.SqliteDatabase) -> None:
    await insert(kept, task_row("a"), task_row("b"))
    await add_media(kept, "a", files=3, mirrored=2)
    await add_media(kept, "b", files=1)
    assert await kept.read(lambda tx: tasks.media_of(tx, "a")) == [
        tasks.Medium(
            position=0,
            upstream_url="https://cdn.example.com/a/0.png",
            expires_at=1_781_611_200,
            digest="a-0",
            extension="png",
        ),
        tasks.Medium(
            position=1,
            upstream_url="https://cdn.example.com/a/1.png",
            expires_at=1_781_611_200,
            digest="a-1",
            extension="png",
        ),
        tasks.Medium(
            position=2,
            upstream_url="https://cdn.example.com/a/2.png",
            expires_at=1_781_611_200,
            digest=None,
            extension=None,
        ),
    ]
    assert await kept.read(lambda tx: tasks.media_of(tx, "c")) == []


async def test_media_are_noted_once(kept: sqlite.SqliteDatabase) -> None:
    await add_media(kept, "a", files=1)
    with pytest.raises(sqlite3.IntegrityError, match=r"UNIQUE constraint failed: task_media\.task_id"):
        await add_media(kept, "a", files=1)


async def test_renewed_media_keep_what_is_mirrored_already(kept: sqlite.SqliteDatabase) -> None:
    row = task_row("a", state=State.DELIVERED)
    await insert(kept, row, task_row("b", state=State.DELIVERED))
    await add_media(kept, "a", files=2, mirrored=1)
    await add_media(kept, "b", files=1)
    fresh = [
        task.Media(url="https://cdn.example.com/fresh-0.png", expires_at=NOW + 200_000),
        task.Media(url="https://cdn.example.com/fresh-1.png"),
    ]
    await kept.write(lambda tx: tasks.renew_media(tx, row, fresh, b'{"status":"completed","again":1}'))
    assert await rows(
        kept, "SELECT task_id, position, upstream_url, expires_at, digest FROM task_media ORDER BY task_id, position"
    ) == [
        ("a", 0, "https://cdn.example.com/fresh-0.png", NOW + 200_000, "a-0"),
        ("a", 1, "https://cdn.example.com/fresh-1.png", None, None),
        ("b", 0, "https://cdn.example.com/b/0.png", NOW + 86_400, None),
    ]
    assert (await get(kept, "a")).document == b'{"status":"completed","again":1}'
    assert (await get(kept, "b")).document is None


async def test_a_renewal_that_names_more_files_than_before_adds_none(kept: sqlite.SqliteDatabase) -> None:
    row = task_row("a", state=State.DELIVERED)
    await insert(kept, row)
    await add_media(kept, "a", files=1)
    fresh = [task.Media(url=f"https://cdn.example.com/fresh-{each}.png") for each in range(3)]
    await kept.write(lambda tx: tasks.renew_media(tx, row, fresh, b"{}"))
    assert await rows(kept, "SELECT position, upstream_url FROM task_media") == [
        (0, "https://cdn.example.com/fresh-0.png")
    ]


# Counts


EVERY_STATE = (
    State.RESERVED,
    State.WAITING,
    State.IN_DOUBT,
    State.SUBMITTED,
    State.DELIVERED,
    State.FOLLOWING,
    State.COMPLETED,
    State.FAILED,
    State.CANCELLED,
    State.REFUSED,
)


async def one_in_every_state(kept: sqlite.SqliteDatabase) -> None:
    assert set(EVERY_STATE) == set(State)
    for team in ("growth", "other"):
        await insert(kept, *(task_row(f"{team} {state}", team=team, state=state) for state in EVERY_STATE))
    await insert(kept, task_row("one more", state=State.WAITING))


async def test_tasks_that_hold_a_reservation_are_counted_by_team(kept: sqlite.SqliteDatabase) -> None:
    await one_in_every_state(kept)
    counted = [await kept.read(lambda tx, team=team: tasks.count_holding(tx, team)) for team in ("growth", "other", "")]  # type: ignore[misc]
    assert counted == [5, 4, 0]  # reserved, waiting (two of growth's), in doubt, submitted


async def test_followers_are_counted_by_team(kept: sqlite.SqliteDatabase) -> None:
    await one_in_every_state(kept)
    assert await kept.read(lambda tx: tasks.count_followers(tx, "growth")) == 1
    assert await kept.read(lambda tx: tasks.count_followers(tx, "nobody")) == 0


async def test_open_tasks_are_counted_by_team_and_state(kept: sqlite.SqliteDatabase) -> None:
    await one_in_every_state(kept)
    assert await kept.scan(tasks.count_open) == {
        ("growth", "reserved"): 1,
        ("growth", "waiting"): 2,
        ("growth", "in_doubt"): 1,
        ("growth", "submitted"): 1,
        ("growth", "delivered"): 1,
        ("growth", "following"): 1,
        ("other", "reserved"): 1,
        ("other", "waiting"): 1,
        ("other", "in_doubt"): 1,
        ("other", "submitted"): 1,
        ("other", "delivered"): 1,
        ("other", "following"): 1,
    }


async def test_open_tasks_older_than_an_instant_are_overdue(kept: sqlite.SqliteDatabase) -> None:
    await insert(
        kept,
        task_row("old", created_at=100.0, state=State.IN_DOUBT),
        task_row("old follower", created_at=50.0, state=State.FOLLOWING),
        task_row("old but ended", created_at=100.0, state=State.COMPLETED),
        task_row("at the instant", created_at=200.0),
        task_row("young", created_at=300.0),
    )
    assert await kept.scan(lambda tx: tasks.count_overdue(tx, before=200.0)) == 2
    assert await kept.scan(lambda tx: tasks.count_overdue(tx, before=200.001)) == 3


async def test_unmirrored_results_of_completed_tasks_are_counted_while_they_are_tried(
    kept: sqlite.SqliteDatabase,
) -> None:
    late = NOW + 60.0
    await insert(
        kept,
        completed("whole"),
        completed("parts", n=3, next_at=late),
        completed("given up", next_at=None),
        task_row("going on", state=State.DELIVERED, next_at=late),
    )
    assert await kept.scan(tasks.count_unmirrored) == 0
    await add_media(kept, "whole", files=1, mirrored=1)
    await add_media(kept, "parts", files=3, mirrored=1)
    await add_media(kept, "given up", files=1)
    await add_media(kept, "going on", files=1)
    assert await kept.scan(tasks.count_unmirrored) == 2


# By its body


async def newest(kept: sqlite.SqliteDatabase, *, team: str = "growth", key: str = "ci", since: float) -> str | None:
    body = b"\x01" * 32
    found = await kept.read(lambda tx: tasks.get_newest_of_body(tx, team, key, body, since=since, now=since + 600))
    return None if found is None else found.id


async def test_the_newest_task_of_a_body_is_found_across_periods_for_its_own_key_only(
    kept: sqlite.SqliteDatabase,
) -> None:
    assert NOW % 600 == 0
    await insert(
        kept,
        task_row("old", created_at=NOW - 1.0),
        task_row("new", created_at=NOW + 1.0),
        task_row("newer of another key", created_at=NOW + 2.0, key_name="laptop"),
        task_row("of the period before", created_at=NOW - 1.0, key_name="phone"),
        task_row("newer of another team", created_at=NOW + 2.0, team="research"),
        task_row("newer with another body", created_at=NOW + 2.0, body_digest=b"\x02" * 32),
        task_row("newer with an idempotency key", created_at=NOW + 2.0, idempotency_key="k1"),
    )
    assert await newest(kept, since=NOW + 1) == "new"
    assert await newest(kept, since=NOW + 1.5) is None
    assert await newest(kept, since=NOW - 601) == "old"
    assert await newest(kept, key="phone", since=NOW - 1) == "of the period before"
    assert await newest(kept, key="phone", since=NOW - 0.5) is None
    assert await newest(kept, key="laptop", since=NOW - 1) == "newer of another key"
    assert await newest(kept, team="research", since=NOW - 1) == "newer of another team"


async def test_a_task_is_found_by_its_body_in_an_index_that_holds_their_order(kept: sqlite.SqliteDatabase) -> None:
    def read(tx: Tx) -> set[str]:
        explained = builders.Explained(tx)
        tasks.get_newest_of_body(explained, "growth", "ci", b"", since=0.0, now=600.0)
        return set(explained.plans)

    columns = "<expr>=? AND team=? AND key_name=? AND body_digest=? AND created_at>?"
    assert await kept.scan(read) == {f"SEARCH tasks USING INDEX tasks_of_body ({columns})"}


@pytest.mark.parametrize("count", [tasks.count_holding, tasks.count_followers])
def test_counting_a_teams_open_tasks_looks_at_open_ones_only(tmp_path, count):
    sqlite.SqliteDatabase(tmp_path / "ledger.db").close()
    asked = []

    class Asked:
        def one(self, sql, /, **parameters):
            asked.append((sql, parameters))

    count(Asked(), "growth")
    plan = sqlite.scan_file(
        tmp_path / "ledger.db", lambda tx: tx.all(f"EXPLAIN QUERY PLAN {asked[0][0]}", **asked[0][1])
    )
    assert [row["detail"] for row in plan] == ["SEARCH tasks USING COVERING INDEX tasks_open (team=? AND state=?)"]
