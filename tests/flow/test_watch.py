"""What is remembered of tasks that clients ask about: as long as it means something, and no longer."""

from __future__ import annotations

import asyncio
import gc
import types
from typing import Any

from gateway.flow import watch

NOON = 1_795_348_800.0


def entries(watched: watch.Watch) -> int:
    """How many things are kept in a watch, in all of its containers and theirs."""
    count, waiting, seen = 0, [watched], set()
    while waiting:
        each: Any = waiting.pop()
        if id(each) in seen or isinstance(each, type | types.ModuleType | asyncio.Event):
            continue
        seen.add(id(each))
        count += len(each) if isinstance(each, dict | set) and each is not vars(watched) else 0
        waiting += gc.get_referents(each)
    return count


def test_a_task_is_polled_for_its_clients_at_most_once_a_second():
    watched = watch.Watch()
    assert watched.ask("t", now=NOON)
    assert not watched.ask("t", now=NOON)
    watched.polled("t", now=NOON)
    assert not watched.ask("t", now=NOON + 0.9)
    assert watched.ask("t", now=NOON + 1.0)


def test_a_task_is_watched_for_ten_seconds_after_the_last_question():
    watched = watch.Watch()
    watched.ask("t", now=NOON)
    for number in range(9):
        watched.ask(f"other-{number}", now=NOON + 1 + number)
    assert watched.is_watched("t", now=NOON + 9.9)
    assert not watched.is_watched("t", now=NOON + 10)


def test_an_hour_of_questions_leaves_no_more_behind_than_ten_seconds_of_them():
    watched = watch.Watch()
    for second in range(3600):
        for number in range(3):
            watched.ask(f"task-{second}-{number}", now=NOON + second)
            watched.polled(f"task-{second}-{number}", now=NOON + second)
    # Three a second: those of the last 10 s asked about, those of the last 1 s polled, both ends included.
    assert entries(watched) == 3 * 11 + 3 * 2


def test_a_clock_that_is_set_back_forgets_nothing_and_keeps_no_more_than_the_bound():
    watched = watch.Watch()
    for number in range(25_000):
        watched.ask(f"task-{number}", now=NOON - number)
        watched.polled(f"task-{number}", now=NOON - number)
    assert entries(watched) == 2 * 20_000


async def test_everybody_who_waits_for_a_task_hears_of_its_change():
    watched = watch.Watch()
    waiting = [asyncio.create_task(watched.wait("t", timeout_s=60)) for _ in range(3)]
    await asyncio.sleep(0)
    watched.changed("t")
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert entries(watched) == 0


async def test_who_waits_in_vain_or_leaves_is_forgotten():
    watched = watch.Watch()
    await watched.wait("never changes", timeout_s=0.01)
    leaving = asyncio.create_task(watched.wait("t", timeout_s=60))
    staying = asyncio.create_task(watched.wait("t", timeout_s=60))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert entries(watched) == 2  # the task, and the one who stays
    watched.close()
    await asyncio.wait_for(staying, 10)
    assert entries(watched) == 0
