import dataclasses
import functools
import pathlib
import sqlite3
from collections.abc import AsyncIterator

import pytest

from gateway.store import outbox, sqlite
from tests.store import builders
from tests.store.builders import NOW


@pytest.fixture
async def kept(tmp_path: pathlib.Path) -> AsyncIterator[sqlite.SqliteDatabase]:
    opened = builders.open_database(tmp_path)
    yield opened
    opened.close()


def delivery(task_id: str = "a", receiver: str = "hooks.example.com:443", due_at: float = NOW) -> outbox.Delivery:
    return outbox.Delivery(
        task_id=task_id, team="growth", receiver=receiver, event="completed", created_at=NOW, due_at=due_at
    )


async def add(kept: sqlite.SqliteDatabase, *new: outbox.Delivery) -> None:
    for each in new:
        await kept.write(functools.partial(outbox.add, row=each))


async def due(kept: sqlite.SqliteDatabase, now: float = NOW, *, each: int = 2, limit: int = 10) -> list[str]:
    return await kept.read(lambda tx: outbox.due(tx, now=now, each=each, limit=limit))


async def test_a_webhook_is_kept_as_it_was_added(kept: sqlite.SqliteDatabase) -> None:
    await add(kept, delivery())
    assert await kept.read(lambda tx: outbox.get(tx, "a")) == delivery()
    assert await kept.read(lambda tx: outbox.get(tx, "b")) is None


async def test_a_task_has_one_webhook(kept: sqlite.SqliteDatabase) -> None:
    await add(kept, delivery())
    with pytest.raises(sqlite3.IntegrityError):
        await add(kept, delivery())


async def test_the_most_overdue_come_first_and_none_before_its_time(kept: sqlite.SqliteDatabase) -> None:
    await add(kept, delivery("late", due_at=NOW), delivery("first", due_at=NOW - 5), delivery("next", due_at=NOW + 1))
    assert await due(kept) == ["first", "late"]
    assert await due(kept, limit=1) == ["first"]
    assert await due(kept, NOW + 1, each=3) == ["first", "late", "next"]


async def test_a_long_queue_for_one_receiver_leaves_room_for_the_others(kept: sqlite.SqliteDatabase) -> None:
    queue = [delivery(f"a{number}", "a.example:443", NOW - 100 + number) for number in range(5)]
    await add(kept, *queue, delivery("b", "b.example:443"), delivery("c", "a.example:8443", NOW - 1))
    assert await due(kept) == ["a0", "a1", "c", "b"]


async def test_an_attempt_that_failed_is_put_off(kept: sqlite.SqliteDatabase) -> None:
    await add(kept, delivery())
    assert await kept.write(lambda tx: outbox.put_off(tx, delivery(), due_at=NOW + 5, problem="answered 500"))
    row = await kept.read(lambda tx: outbox.get(tx, "a"))
    assert row is not None
    assert (row.state, row.attempts, row.due_at, row.problem) == ("pending", 1, NOW + 5, "answered 500")


async def test_what_is_delivered_or_given_up_is_not_due(kept: sqlite.SqliteDatabase) -> None:
    await add(kept, delivery("a"), delivery("b"))
    assert await kept.read(outbox.count_pending) == 2
    assert await kept.write(lambda tx: outbox.delivered(tx, delivery("a"), now=NOW + 1))
    assert await kept.write(lambda tx: outbox.give_up(tx, delivery("b"), now=NOW + 2, problem="answered 410"))
    assert await due(kept, NOW + 1000) == []
    assert await kept.read(outbox.count_pending) == 0
    [row] = await kept.read(lambda tx: outbox.given_up(tx, limit=10))
    assert (row.task_id, row.state, row.attempts, row.ended_at, row.problem) == (
        "b",
        "given_up",
        1,
        NOW + 2,
        "answered 410",
    )


async def test_the_latest_that_was_given_up_comes_first(kept: sqlite.SqliteDatabase) -> None:
    await add(kept, delivery("a"), delivery("b"), delivery("c"))
    for task_id, now in (("b", NOW), ("a", NOW + 2), ("c", NOW + 1)):
        give_up = functools.partial(outbox.give_up, row=delivery(task_id), now=now, problem="answered 500")
        await kept.write(give_up)
    assert [row.task_id for row in await kept.read(lambda tx: outbox.given_up(tx, limit=2))] == ["a", "c"]
    assert await kept.read(lambda tx: outbox.given_up(tx, team="research", limit=2)) == []


async def test_what_is_sent_again_begins_anew_and_a_late_outcome_does_not_end_it(kept: sqlite.SqliteDatabase) -> None:
    await add(kept, delivery())
    await kept.write(lambda tx: outbox.give_up(tx, delivery(), now=NOW + 1, problem="answered 500"))
    assert await kept.write(lambda tx: outbox.resend(tx, "a", now=NOW + 2))
    assert await due(kept, NOW + 2) == ["a"]
    row = await kept.read(lambda tx: outbox.get(tx, "a"))
    assert row is not None
    assert (row.state, row.attempts, row.ended_at, row.problem) == ("pending", 0, None, "answered 500")
    assert not await kept.write(lambda tx: outbox.give_up(tx, delivery(), now=NOW + 3, problem="answered 500"))
    assert not await kept.write(lambda tx: outbox.put_off(tx, delivery(), due_at=NOW + 9, problem="answered 500"))
    assert await due(kept, NOW + 3) == ["a"]


async def test_only_a_webhook_that_exists_is_sent_again(kept: sqlite.SqliteDatabase) -> None:
    assert not await kept.write(lambda tx: outbox.resend(tx, "a", now=NOW))


async def test_all_that_were_given_up_are_sent_again_or_those_of_one_team(kept: sqlite.SqliteDatabase) -> None:
    other = dataclasses.replace(delivery("b"), team="research")
    await add(kept, delivery("a"), other, delivery("c"), delivery("d", due_at=NOW + 100))
    for row in (delivery("a"), other):
        await kept.write(functools.partial(outbox.give_up, row=row, now=NOW, problem="answered 500"))
    await kept.write(lambda tx: outbox.delivered(tx, delivery("c"), now=NOW))
    assert await kept.write(lambda tx: outbox.resend_given_up(tx, team="research", now=NOW + 1)) == 1
    assert await due(kept, NOW + 1) == ["b"]
    assert await kept.write(lambda tx: outbox.resend_given_up(tx, now=NOW + 2)) == 1
    assert await due(kept, NOW + 2) == ["b", "a"]
