from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from gateway import workers


async def none_due(_: int) -> list[str]:
    return []


async def no_step(_: str) -> None:
    return


def loop_of(
    due: Callable[[int], Awaitable[list[str]]] = none_due,
    step: Callable[[str], Awaitable[None]] = no_step,
    *,
    slots: int = 4,
    interval_s: float = 0.002,
) -> workers.Loop:
    return workers.Loop(name="poll", interval_s=interval_s, slots=slots, due=due, step=step)


@contextlib.asynccontextmanager
async def running(loop: workers.Loop) -> AsyncIterator[asyncio.Task[None]]:
    work = asyncio.create_task(workers.run(loop))
    try:
        yield work
    finally:
        work.cancel()
        await asyncio.wait([work])


async def until(is_so: Callable[[], bool]) -> None:
    """Let the loops run until a claim holds; fails after five seconds."""
    async with asyncio.timeout(5):
        while not is_so():  # noqa: ASYNC110 - it is the loops under test that change what is looked at
            await asyncio.sleep(0.001)


class Bench:
    """Work that stays under way until it is let go."""

    def __init__(self, *ids: str) -> None:
        self.waiting = list(ids)
        self.asked: list[int] = []
        self.started: list[str] = []
        self.under_way: set[str] = set()
        self.most_under_way = 0
        self.ends: dict[str, asyncio.Event] = {each: asyncio.Event() for each in ids}

    async def due(self, limit: int) -> list[str]:
        self.asked.append(limit)
        return self.waiting[:limit]

    async def step(self, task_id: str) -> None:
        assert task_id not in self.under_way
        self.started.append(task_id)
        self.under_way.add(task_id)
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        await self.ends[task_id].wait()
        self.under_way.remove(task_id)
        self.waiting.remove(task_id)

    def let_go(self) -> None:
        for each in self.ends.values():
            each.set()


async def test_a_task_that_stays_due_is_worked_on_by_one_step_at_a_time() -> None:
    bench = Bench("a")
    async with running(loop_of(bench.due, bench.step)):
        await until(lambda: len(bench.asked) >= 10)
        assert bench.started == ["a"]
        bench.let_go()
        await until(lambda: not bench.waiting)
    assert bench.started == ["a"]


async def test_a_task_that_is_due_again_is_worked_on_again() -> None:
    done: list[str] = []

    async def due(_: int) -> list[str]:
        return ["a"] if len(done) < 3 else []

    async def step(task_id: str) -> None:
        done.append(task_id)

    async with running(loop_of(due, step)):
        await until(lambda: len(done) == 3)
    assert done == ["a", "a", "a"]


async def test_slots_bound_how_many_steps_go_on_at_once() -> None:
    bench = Bench(*"abcdefgh")
    async with running(loop_of(bench.due, bench.step, slots=3)):
        await until(lambda: len(bench.under_way) == 3)
        await asyncio.sleep(0.02)  # many intervals
        assert sorted(bench.under_way) == ["a", "b", "c"]
        bench.let_go()
        await until(lambda: not bench.waiting)
    assert bench.most_under_way == 3
    assert sorted(bench.started) == list("abcdefgh")


async def test_no_more_than_the_slots_are_started_though_more_is_found() -> None:
    bench = Bench(*"abcdefgh")

    async def generous(_: int) -> list[str]:
        return list(bench.waiting)

    async with running(loop_of(generous, bench.step, slots=2)):
        await until(lambda: len(bench.under_way) == 2)
        await asyncio.sleep(0.01)
        assert bench.most_under_way == 2
        bench.let_go()


async def test_busy_tasks_do_not_hide_the_work_behind_them() -> None:
    bench = Bench("slow", "next", "last")
    bench.waiting = ["slow"]
    async with running(loop_of(bench.due, bench.step, slots=2)):
        await until(lambda: bench.under_way == {"slow"})
        bench.waiting = ["slow", "next", "last"]
        await until(lambda: bench.under_way == {"slow", "next"})
        assert set(bench.asked) == {2}
        bench.let_go()


async def test_with_every_slot_taken_it_does_not_look() -> None:
    bench = Bench("a", "b")
    async with running(loop_of(bench.due, bench.step, slots=1)):
        await until(lambda: bench.under_way == {"a"})
        looked = len(bench.asked)
        await asyncio.sleep(0.02)
        assert len(bench.asked) == looked
        bench.let_go()


async def test_wake_makes_it_look_at_once() -> None:
    bench = Bench("a")
    bench.waiting = []
    loop = loop_of(bench.due, bench.step, interval_s=3600)
    async with running(loop):
        await until(lambda: len(bench.asked) == 1)
        bench.waiting = ["a"]
        loop.wake.set()
        await until(lambda: bench.started == ["a"])
        bench.let_go()


async def test_a_wake_during_a_look_is_not_lost() -> None:
    looks = 0

    async def due(_: int) -> list[str]:
        nonlocal looks
        looks += 1
        if looks == 1:
            loop.wake.set()
        return []

    loop = loop_of(due, interval_s=3600)
    async with running(loop):
        await until(lambda: looks == 2)


async def test_a_slot_that_becomes_free_is_used_without_waiting_for_the_interval() -> None:
    bench = Bench("a", "b", "c")
    async with running(loop_of(bench.due, bench.step, slots=1, interval_s=3600)):
        await until(lambda: bench.started == ["a"])
        bench.ends["a"].set()
        await until(lambda: bench.started == ["a", "b"])
        bench.ends["b"].set()
        await until(lambda: bench.started == ["a", "b", "c"])
        bench.let_go()


async def test_without_work_it_looks_once_an_interval() -> None:
    bench = Bench()
    async with running(loop_of(bench.due, interval_s=3600)):
        await asyncio.sleep(0.02)
    assert bench.asked == [4]


async def test_a_failing_step_is_logged_and_tried_again_while_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[str] = []

    async def due(_: int) -> list[str]:
        return ["bad", "good"]

    async def step(task_id: str) -> None:
        tried.append(task_id)
        if task_id == "bad" and tried.count("bad") == 1:
            raise ValueError("the upstream's answer made no sense")

    async with running(loop_of(due, step)):
        await until(lambda: tried.count("good") > 20)
        assert tried.count("bad") == 1  # it pauses, so that a step that always fails does not spin
        await until(lambda: tried.count("bad") > 1)
    assert [record.getMessage() for record in caplog.records] == ["poll: a step failed and will be tried again"]
    assert caplog.records[0].exc_info is not None
    assert str(caplog.records[0].exc_info[1]) == "the upstream's answer made no sense"


async def test_a_failing_look_is_logged_and_does_not_end_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench("a")
    looks = 0

    async def due(limit: int) -> list[str]:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise OSError("the disk is gone")
        return await bench.due(limit)

    async with running(loop_of(due, bench.step)) as work:
        await until(lambda: bench.started == ["a"])
        assert not work.done()
        bench.let_go()
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "poll: looking for work failed")
    ]


async def test_cancel_finishes_what_is_under_way_and_starts_nothing_new() -> None:
    bench = Bench("a", "b", "c")
    work = asyncio.create_task(workers.run(loop_of(bench.due, bench.step, slots=2)))
    await until(lambda: bench.under_way == {"a", "b"})
    work.cancel()
    await asyncio.sleep(0.01)
    assert not work.done()
    bench.let_go()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert bench.started == ["a", "b"]
    assert bench.waiting == ["c"]
    assert bench.under_way == set()


async def test_cancel_without_work_ends_at_once() -> None:
    work = asyncio.create_task(workers.run(loop_of(interval_s=3600)))
    await asyncio.sleep(0.01)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancel_that_meets_a_wake_is_not_lost(turns: int) -> None:
    """asyncio.wait_for of Python 3.11 swallows a cancel that comes when what it waits for is done already."""
    loop = loop_of(interval_s=3600)
    work = asyncio.create_task(workers.run(loop))
    await asyncio.sleep(0.01)
    loop.wake.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    work.cancel()
    await asyncio.wait([work], timeout=1)
    was_cancelled = work.done()
    work.cancel()
    await asyncio.wait([work])
    assert was_cancelled


async def test_a_cancel_that_meets_the_end_of_the_interval_is_not_lost() -> None:
    for _ in range(50):
        work = asyncio.create_task(workers.run(loop_of(interval_s=0.0005)))
        await asyncio.sleep(0.0005)
        work.cancel()
        done, _pending = await asyncio.wait([work], timeout=1)
        assert done


async def test_repeat_does_one_thing_again_and_again_though_it_fails(caplog: pytest.LogCaptureFixture) -> None:
    times = 0

    async def step() -> None:
        nonlocal times
        times += 1
        if times == 2:
            raise ValueError("a policy file is broken")

    work = asyncio.create_task(workers.repeat("policies", 0.001, step))
    await until(lambda: times >= 4)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert [record.getMessage() for record in caplog.records] == ["policies: a step failed and will be tried again"]
