"""Costly messages wait for one thread, within a bound and their own time, and keep nobody else waiting."""

from __future__ import annotations

import asyncio
import threading

import pytest

from gateway.doors.aside import Aside
from gateway.problem import Refused

SECONDS = 20.0


async def test_work_is_done_one_at_a_time_and_what_it_raises_comes_back() -> None:
    aside = Aside()
    running, most = 0, 0

    def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        threading.Event().wait(0.01)  # long enough to be met by another, were there one
        running -= 1
        if number == 3:
            raise ValueError("three")
        return number

    done = await asyncio.gather(
        *(aside.run(lambda number=number: work(number), "a", SECONDS) for number in range(6)), return_exceptions=True
    )
    assert [str(each) for each in done] == ["0", "1", "2", "three", "4", "5"]
    assert most == 1
    assert aside.waiting == 0
    aside.close()


async def test_who_waits_is_bounded_in_number_and_by_its_time() -> None:
    aside = Aside(waiting_max=2)
    begun, ended = threading.Event(), threading.Event()
    done: list[int] = []

    def hold() -> None:
        begun.set()
        assert ended.wait(SECONDS)

    first = asyncio.create_task(aside.run(hold, "a", SECONDS))
    await asyncio.get_running_loop().run_in_executor(None, begun.wait, SECONDS)
    with pytest.raises(Refused) as late:
        await aside.run(lambda: done.append(1), "a", 0.0)
    assert late.value.problem.slug == "deadline"
    second = asyncio.create_task(aside.run(lambda: done.append(2), "a", SECONDS))
    await asyncio.sleep(0)
    with pytest.raises(Refused) as crowded:
        await aside.run(lambda: done.append(3), "a", SECONDS)
    assert crowded.value.problem.status == 503
    assert crowded.value.problem.retry_after == 1.0
    ended.set()
    await asyncio.gather(first, second)
    assert done == [2], "who left before its turn is not worked for"
    assert aside.waiting == 0
    aside.close()


async def test_callers_take_turns_and_who_has_left_is_passed_over() -> None:
    aside = Aside()
    begun, ended = threading.Event(), threading.Event()
    done: list[str] = []

    def hold() -> None:
        begun.set()
        assert ended.wait(SECONDS)

    holder = asyncio.create_task(aside.run(hold, "hog", SECONDS))
    await asyncio.get_running_loop().run_in_executor(None, begun.wait, SECONDS)
    asked = {}
    for name in ("hog 1", "hog 2", "hog 3", "one 1", "two 1", "one 2"):
        work = aside.run(lambda name=name: done.append(name), name.split()[0], SECONDS)
        asked[name] = asyncio.create_task(work)
        await asyncio.sleep(0)
    asked["hog 2"].cancel()
    holder.cancel()  # what it began goes on, and the others wait for its end
    await asyncio.sleep(0)
    assert done == []
    ended.set()
    await asyncio.gather(*asked.values(), return_exceptions=True)
    assert done == ["hog 1", "one 1", "two 1", "hog 3", "one 2"]
    assert aside.waiting == 0
    assert await aside.run(lambda: "again", "x", SECONDS) == "again"
    aside.close()


async def test_once_closed_nothing_is_begun_and_nobody_waits() -> None:
    aside = Aside()
    aside.close()
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            await aside.run(lambda: None, "a", SECONDS)
        assert refused.value.problem.status == 503
    assert aside.waiting == 0
