"""Alarms: what rings, when, and how few timers of the loop it takes. In virtual time."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine

import pytest

from cache.alarms import PAUSE_SECONDS_EACH, Alarms, Timeouts
from tests.sim.loop import SimLoop

Rung = list[tuple[str, float]]


def lived(life: Callable[[Alarms[str], Rung], Coroutine[object, object, None]]) -> tuple[Rung, int]:
    """What rang and when, since the loop began, and how many timers that took."""
    loop, rung, timers = SimLoop(now=0.0), Rung(), 0
    call_at = loop.call_at

    def counted(when: float, callback: Callable[[], None], *rest: object) -> asyncio.TimerHandle:
        nonlocal timers
        timers += 1
        return call_at(when, callback, *rest)

    async def living() -> None:
        alarms: Alarms[str] = Alarms(lambda key: rung.append((key, loop.time())))
        loop.call_at = counted  # type: ignore[assignment, method-assign]
        try:
            await life(alarms, rung)
        finally:
            loop.call_at = call_at  # type: ignore[method-assign]

    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(living())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    return rung, timers


async def until(at: float) -> None:
    """Wait by a timer that is not counted: a future of the loop's own."""
    loop = asyncio.get_running_loop()
    come = loop.create_future()
    type(loop).call_at(loop, at, come.set_result, None)
    await come


def test_each_rings_at_its_moment_and_once() -> None:
    async def life(alarms: Alarms[str], rung: Rung) -> None:
        for key, at in (("b", 2.0), ("a", 1.0), ("c", 3.0), ("a too", 1.0)):
            alarms.set(key, at)
        await until(10.0)
        assert len(alarms) == 0

    rung, _ = lived(life)
    assert rung == [("a", 1.0), ("a too", 1.0), ("b", 2.0), ("c", 3.0)]


def test_what_is_dropped_does_not_ring_and_the_others_do() -> None:
    async def life(alarms: Alarms[str], rung: Rung) -> None:
        for key, at in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
            alarms.set(key, at)
        alarms.drop("a")
        alarms.drop("c")
        alarms.drop("unknown")
        await until(10.0)

    assert lived(life)[0] == [("b", 2.0)]


def test_a_thousand_waits_that_are_called_off_take_one_timer() -> None:
    async def life(alarms: Alarms[str], rung: Rung) -> None:
        loop = asyncio.get_running_loop()
        for number in range(1000):
            alarms.set(str(number), loop.time() + 30.0)
            alarms.drop(str(number))
        await until(100.0)

    assert lived(life) == ([], 1)


def test_waits_of_many_seconds_take_a_timer_for_each_of_those_seconds_at_most() -> None:
    async def life(alarms: Alarms[str], rung: Rung) -> None:
        for number in range(1000):  # each is over when the next begins, and each would last 10 s
            alarms.set("it", number * 0.01 + 10.0)
            await until((number + 1) * 0.01)
            alarms.drop("it")
        await until(30.0)

    rung, timers = lived(life)
    assert rung == []
    assert timers <= 2


def test_a_sooner_moment_is_not_kept_waiting_for_a_later_one() -> None:
    async def life(alarms: Alarms[str], rung: Rung) -> None:
        alarms.set("late", 60.0)
        alarms.set("soon", 0.5)
        await until(1.0)
        assert rung == [("soon", 0.5)]
        alarms.set("sooner", 2.0)
        await until(100.0)

    assert lived(life)[0] == [("soon", 0.5), ("sooner", 2.0), ("late", 60.0)]


def test_short_times_beside_many_who_wait_long_cost_few_looks_and_are_hardly_late() -> None:
    many, pause = 10_000, 10_000 * PAUSE_SECONDS_EACH

    async def life(alarms: Alarms[str], rung: Rung) -> None:
        for number in range(many):
            alarms.set(f"long {number}", 1000.0)
        for number in range(1000):
            at = number * 0.0001
            await until(at)
            alarms.set(f"{at:.4f}", at)
        await until(10.0)
        for number in range(many):
            alarms.drop(f"long {number}")

    rung, timers = lived(life)
    assert len(rung) == 1000
    assert max(rang - float(key) for key, rang in rung) < 1.2 * pause
    assert timers < 2 * 0.1 / pause + 5


def test_a_moment_that_is_past_rings_in_a_later_turn() -> None:
    async def life(alarms: Alarms[str], rung: Rung) -> None:
        await until(5.0)
        alarms.set("past", 1.0)
        assert rung == []
        await until(5.0)
        await asyncio.sleep(0)

    assert lived(life)[0] == [("past", 5.0)]


def test_infinity_is_never() -> None:
    async def life(alarms: Alarms[str], rung: Rung) -> None:
        alarms.set("never", math.inf)
        assert len(alarms) == 1

    assert lived(life) == ([], 0)


@pytest.mark.parametrize("early", [0.0, 0.0004])
def test_a_loop_that_calls_a_little_early_is_not_called_again_and_again(early: float) -> None:
    """uvloop rounds to milliseconds."""

    async def life(alarms: Alarms[str], rung: Rung) -> None:
        alarms.set("it", 1.0)
        loop = asyncio.get_running_loop()
        time = loop.time
        loop.time = lambda: time() - early  # type: ignore[method-assign]
        await until(1.0)
        await asyncio.sleep(0)

    rung, timers = lived(life)
    assert [key for key, _ in rung] == ["it"]
    assert timers == 1


def test_one_that_rings_may_call_off_another_of_the_same_moment_and_set_one_or_put_it_off() -> None:
    loop, rung = SimLoop(now=0.0), list[tuple[str, float]]()

    def ring(key: str) -> None:
        rung.append((key, loop.time()))
        if key == "a":
            alarms.drop("b")
            alarms.set("c", loop.time() + 1.0)
            alarms.set("d", loop.time() + 2.0)

    alarms = Alarms(ring)

    async def life() -> None:
        alarms.set("a", 1.0)
        alarms.set("b", 1.0)
        alarms.set("d", 1.0)
        await until(5.0)

    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(life())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    assert [key for key, _ in rung] == ["a", "c", "d"]
    assert [at for _, at in rung] == pytest.approx([1.0, 2.0, 3.0], abs=0.01)


# -- timeouts ---------------------------------------------------------------------------------------


def timed(life: Callable[[Timeouts], Coroutine[object, object, None]]) -> int:
    """How many timers of the loop some blocks have taken."""

    async def living(alarms: Alarms[str], rung: Rung) -> None:
        timeouts = Timeouts()
        await life(timeouts)
        assert len(timeouts) == 0

    return lived(living)[1]


def test_a_block_that_takes_too_long_is_a_timeout_at_its_moment() -> None:
    async def life(timeouts: Timeouts) -> None:
        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(TimeoutError), timeouts.after(2.0):
            await until(60.0)
        assert asyncio.get_running_loop().time() == 2.0
        assert task.cancelling() == 0
        await until(3.0)  # and nothing of it is left

    timed(life)


def test_blocks_in_time_raise_nothing_and_share_a_timer() -> None:
    async def life(timeouts: Timeouts) -> None:
        for number in range(100):
            with timeouts.after(10.0):
                await until(number * 0.01)
        with timeouts.after(math.inf):
            await until(1000.0)

    assert timed(life) == 1


def test_what_is_raised_in_a_block_is_raised() -> None:
    async def life(timeouts: Timeouts) -> None:
        with pytest.raises(ZeroDivisionError), timeouts.after(1.0):
            raise ZeroDivisionError

    timed(life)


def test_the_inner_of_two_blocks_ends_alone() -> None:
    async def life(timeouts: Timeouts) -> None:
        with timeouts.after(5.0):
            with pytest.raises(TimeoutError), timeouts.after(1.0):
                await until(60.0)
            await until(2.0)
        with pytest.raises(TimeoutError), timeouts.after(3.0), timeouts.after(5.0):
            await until(60.0)
        assert asyncio.get_running_loop().time() == 5.0  # the outer one's moment

    timed(life)


def test_a_block_without_any_time_ends_at_its_first_wait() -> None:
    async def life(timeouts: Timeouts) -> None:
        with pytest.raises(TimeoutError), timeouts.after(-1.0):
            await until(60.0)
        assert asyncio.get_running_loop().time() == 0.0

    timed(life)


@pytest.mark.parametrize("also_late", [False, True], ids=["in time", "in the turn in which its time is over"])
def test_who_is_cancelled_by_another_hears_of_that(also_late: bool) -> None:
    async def life(timeouts: Timeouts) -> None:
        heard: list[str] = []

        async def waits() -> None:
            try:
                with timeouts.after(2.0):
                    await until(60.0)
            except TimeoutError:
                heard.append("time")
            except asyncio.CancelledError:
                heard.append("cancelled")
                raise

        task = asyncio.ensure_future(waits())
        asyncio.get_running_loop().call_at(2.0 if also_late else 1.0, task.cancel)
        await asyncio.wait((task,))
        assert heard == ["cancelled"]
        assert task.cancelled()

    timed(life)


def test_a_time_that_is_over_in_a_block_that_ends_all_the_same_leaves_no_cancellation() -> None:
    async def life(timeouts: Timeouts) -> None:
        with timeouts.after(1.0), contextlib.suppress(asyncio.CancelledError):  # as nobody should
            await until(60.0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await until(5.0)

    timed(life)
