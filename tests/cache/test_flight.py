"""Flights: who leaves, when, and who must not notice. No clock: every step waits for an event."""

import asyncio
import gc
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from cache.flight import Abandoned, Flights

Joined = tuple[str, bool]


class Fill:
    """A fill that a test steers: it counts its starts, waits to be released, and tells its end."""

    def __init__(self, answer: str = "answer", error: BaseException | None = None) -> None:
        self.answer = answer
        self.error = error
        self.starts = 0
        self.cancels = 0
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.unwind: asyncio.Event | None = None  # what a cancelled fill waits for before it ends

    async def __call__(self) -> str:
        self.starts += 1
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancels += 1
            if self.unwind is not None:
                await self.unwind.wait()
            raise
        if self.error is not None:
            raise self.error
        return self.answer


async def turns(count: int = 5) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
async def complaints() -> AsyncIterator[list[object]]:
    """What the loop has to complain of, such as an exception that was never retrieved."""
    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    yield heard
    await turns()
    gc.collect()
    assert heard == []


@pytest.fixture
def flights(complaints: list[object]) -> Flights[str, str]:
    assert complaints == []
    return Flights(flights_max=8)


def join(flights: Flights[str, str], fill: Callable[[], Awaitable[str]], key: str = "k") -> asyncio.Task[Joined]:
    return asyncio.create_task(flights.join(key, fill))


async def cancelled(task: asyncio.Task[Joined]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_many_callers_one_fill(flights: Flights[str, str]) -> None:
    fill = Fill()
    tasks = [join(flights, fill) for _ in range(200)]
    await fill.started.wait()
    fill.release.set()
    answers = await asyncio.gather(*tasks)
    assert fill.starts == 1
    assert [led for _, led in answers] == [True] + [False] * 199
    assert {answer for answer, _ in answers} == {"answer"}
    assert len(flights) == 0


async def test_keys_do_not_mix(flights: Flights[str, str]) -> None:
    one, two = Fill("one"), Fill("two")
    tasks = [join(flights, one, "1"), join(flights, two, "2")]
    await two.started.wait()
    assert len(flights) == 2
    two.release.set()
    assert await tasks[1] == ("two", True)
    one.release.set()
    assert await tasks[0] == ("one", True)


async def test_a_finished_key_is_forgotten_at_once(flights: Flights[str, str]) -> None:
    fill = Fill()
    fill.release.set()
    for starts in (1, 2, 3):
        assert await flights.join("k", fill) == ("answer", True)
        assert fill.starts == starts
        assert len(flights) == 0


async def test_a_caller_in_the_turn_of_the_landing_starts_anew(flights: Flights[str, str]) -> None:
    tasks: list[asyncio.Task[Joined]] = []
    second = Fill("second")
    second.release.set()

    async def fill() -> str:
        # Runs on after the fill is done and before its callbacks are.
        asyncio.get_running_loop().call_soon(lambda: tasks.append(join(flights, second)))
        return "first"

    assert await flights.join("k", fill) == ("first", True)
    await turns()
    assert await tasks[0] == ("second", True)


@pytest.mark.parametrize("leaves", range(4))
async def test_whoever_leaves_the_others_get_their_answer(flights: Flights[str, str], leaves: int) -> None:
    fill = Fill()
    tasks = [join(flights, fill) for _ in range(4)]
    await fill.started.wait()
    await cancelled(tasks.pop(leaves))
    fill.release.set()
    assert {answer for answer, _ in await asyncio.gather(*tasks)} == {"answer"}
    assert (fill.starts, fill.cancels) == (1, 0)


async def test_the_leader_leaving_before_the_fill_began_harms_nobody(flights: Flights[str, str]) -> None:
    fill = Fill()
    fill.release.set()
    leader, follower = join(flights, fill), join(flights, fill)
    await asyncio.sleep(0)  # both have joined; the fill's task has not run yet
    assert fill.starts == 0
    await cancelled(leader)
    assert await follower == ("answer", False)
    assert fill.starts == 1


async def test_the_last_to_leave_cancels_the_fill(flights: Flights[str, str]) -> None:
    fill = Fill()
    tasks = [join(flights, fill) for _ in range(3)]
    await fill.started.wait()
    for task in tasks:
        assert fill.cancels == 0
        await cancelled(task)
    assert len(flights) == 0
    await turns()
    assert (fill.starts, fill.cancels) == (1, 1)


async def test_everyone_leaves_before_the_fill_began(flights: Flights[str, str]) -> None:
    fill = Fill()
    tasks = [join(flights, fill) for _ in range(3)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    await turns()
    assert fill.starts == fill.cancels <= 1  # its first turn comes before they hear of theirs
    assert len(flights) == 0


async def test_a_fill_closed_before_it_began_never_begins(flights: Flights[str, str]) -> None:
    fill = Fill()
    task = join(flights, fill)
    await asyncio.sleep(0)
    await flights.close()
    with pytest.raises(Abandoned):
        await task
    assert fill.starts == 0


async def test_after_a_cancelled_fill_the_next_caller_starts_anew(flights: Flights[str, str]) -> None:
    slow, fresh = Fill("slow"), Fill("fresh")
    slow.unwind = asyncio.Event()
    leaver = join(flights, slow)
    await slow.started.wait()
    await cancelled(leaver)
    joiner = join(flights, fresh)  # while the cancelled fill still unwinds
    await fresh.started.wait()
    assert slow.cancels == 1
    slow.unwind.set()
    await turns()
    assert len(flights) == 1  # the old one's end did not take the new one's key
    follower = join(flights, slow)
    await turns()
    fresh.release.set()
    assert await joiner == ("fresh", True)
    assert await follower == ("fresh", False)


async def test_joining_in_the_turn_the_last_waiter_is_told_to_leave(flights: Flights[str, str]) -> None:
    fill = Fill()
    leaver = join(flights, fill)
    await fill.started.wait()
    joiner = join(flights, fill)  # runs before the leaver hears of its cancellation
    await asyncio.sleep(0)
    leaver.cancel()
    await turns()
    assert leaver.cancelled()
    fill.release.set()
    assert await joiner == ("answer", False)
    assert fill.cancels == 0


async def test_a_waiter_cancelled_in_the_turn_of_the_landing_is_cancelled(flights: Flights[str, str]) -> None:
    fill = Fill()
    leaver, stayer = join(flights, fill), join(flights, fill)
    await fill.started.wait()
    fill.release.set()
    await asyncio.sleep(0)
    await cancelled(leaver)
    assert await stayer == ("answer", False)


@pytest.mark.parametrize("error", [ValueError("no"), KeyError("k"), TimeoutError(), StopAsyncIteration()])
async def test_an_exception_reaches_every_waiter(flights: Flights[str, str], error: Exception) -> None:
    fill = Fill(error=error)
    tasks = [join(flights, fill) for _ in range(50)]
    await fill.started.wait()
    fill.release.set()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(end is error for end in ends)
    assert fill.starts == 1
    # The traceback is the last waiter's alone, not the sum of all of theirs.
    assert len(traceback.extract_tb(error.__traceback__)) < 8
    assert len(flights) == 0


async def test_a_failed_key_is_tried_again(flights: Flights[str, str]) -> None:
    bad, good = Fill(error=ValueError("no")), Fill()
    bad.release.set()
    good.release.set()
    with pytest.raises(ValueError, match="no"):
        await flights.join("k", bad)
    assert await flights.join("k", good) == ("answer", True)


async def test_a_fill_that_fails_before_its_first_await(flights: Flights[str, str]) -> None:
    def fill() -> Awaitable[str]:
        raise ValueError("at once")

    ends = await asyncio.gather(join(flights, fill), join(flights, fill), return_exceptions=True)
    assert [str(end) for end in ends] == ["at once", "at once"]


async def test_nobody_is_left_to_hear_the_exception(flights: Flights[str, str], complaints: list[object]) -> None:
    started = asyncio.Event()

    async def fill() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise OSError("while hanging up") from None
        return "never"

    task = join(flights, fill)
    await started.wait()
    await cancelled(task)
    del task
    await turns()
    gc.collect()
    assert complaints == []


async def test_a_fill_that_is_cancelled_from_within_is_no_cancellation_of_its_waiters(
    flights: Flights[str, str],
) -> None:
    fill = Fill(error=asyncio.CancelledError())
    tasks = [join(flights, fill) for _ in range(3)]
    await fill.started.wait()
    fill.release.set()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [Abandoned] * 3


async def test_over_the_limit_callers_fill_for_themselves(complaints: list[object]) -> None:
    flights: Flights[str, str] = Flights(flights_max=1)
    one, two = Fill("one"), Fill("two")
    first = join(flights, one, "1")
    await one.started.wait()
    others = [join(flights, two, "2") for _ in range(3)]
    same = join(flights, two, "1")  # a flight under way takes any number
    await turns()
    assert (two.starts, len(flights)) == (3, 1)
    await cancelled(others.pop())
    assert two.cancels == 1
    one.release.set()
    two.release.set()
    assert [await task for task in [first, same, *others]] == [
        ("one", True),
        ("one", False),
        ("two", True),
        ("two", True),
    ]
    assert complaints == []


async def test_a_fill_that_still_unwinds_counts_for_the_limit(complaints: list[object]) -> None:
    flights: Flights[str, str] = Flights(flights_max=1)
    slow, other = Fill(), Fill("other")
    slow.unwind = asyncio.Event()
    leaver = join(flights, slow)
    await slow.started.wait()
    await cancelled(leaver)
    other.release.set()
    assert len(flights) == 0
    assert await flights.join("k", other) == ("other", True)
    tasks = [join(flights, other) for _ in range(2)]
    assert await asyncio.gather(*tasks) == [("other", True)] * 2  # uncollapsed
    slow.unwind.set()
    await turns()
    tasks = [join(flights, other) for _ in range(2)]
    assert await asyncio.gather(*tasks) == [("other", True), ("other", False)]
    assert complaints == []


async def test_close_ends_every_fill_before_it_returns(flights: Flights[str, str]) -> None:
    fills = [Fill(), Fill(), Fill()]
    tasks = [join(flights, fill, str(number)) for number, fill in enumerate(fills)]
    slow = fills[0]
    slow.unwind = asyncio.Event()
    await fills[-1].started.wait()
    closing = asyncio.create_task(flights.close())
    await turns()
    assert not closing.done()
    slow.unwind.set()
    await closing
    assert [fill.cancels for fill in fills] == [1, 1, 1]
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [Abandoned] * 3
    assert len(flights) == 0
    with pytest.raises(Abandoned):
        await flights.join("k", Fill())
    await flights.close()


@pytest.mark.parametrize("step", range(12))
@pytest.mark.parametrize("who", ["leader", "follower", "both"])
async def test_cancel_everywhere(flights: Flights[str, str], who: str, step: int) -> None:
    """Cancel after any number of turns: the others are served, nothing is left, nothing complains."""
    starts = ends = 0

    async def fill() -> str:
        nonlocal starts, ends
        starts += 1
        try:
            await turns(6)
            return "answer"
        finally:
            ends += 1

    leader, follower = join(flights, fill), join(flights, fill)
    await turns(step)
    leaving = {"leader": [leader], "follower": [follower], "both": [leader, follower]}[who]
    for task in leaving:
        task.cancel()
    results = await asyncio.gather(leader, follower, return_exceptions=True)
    for task, result in zip((leader, follower), results, strict=True):
        if task not in leaving:
            assert isinstance(result, tuple)
            assert result[0] == "answer"
        else:
            assert isinstance(result, asyncio.CancelledError | tuple)
    await turns(10)
    assert starts == ends <= 1
    assert len(flights) == 0


async def test_a_waiter_waits_only_so_long_and_the_others_stay(flights: Flights[str, str]) -> None:
    fill = Fill()
    stayer = join(flights, fill)
    await fill.started.wait()
    with pytest.raises(TimeoutError):
        await flights.join("k", fill, 0.001)
    assert (flights.waiters, fill.cancels) == (1, 0)
    fill.release.set()
    assert await stayer == ("answer", True)


async def test_a_fill_whose_only_waiter_had_no_more_time_is_cancelled(flights: Flights[str, str]) -> None:
    fill = Fill()
    with pytest.raises(TimeoutError):
        await flights.join("k", fill, 0.001)
    await turns()
    assert (fill.starts, fill.cancels, len(flights)) == (1, 1, 0)


async def test_who_has_no_time_starts_nothing(flights: Flights[str, str]) -> None:
    fill = Fill()
    with pytest.raises(TimeoutError):
        await flights.join("k", fill, 0.0)
    await turns()
    assert (fill.starts, len(flights)) == (0, 0)


async def test_a_fill_of_ones_own_takes_only_so_long_too(complaints: list[object]) -> None:
    flights: Flights[str, str] = Flights(flights_max=1)
    one, two = Fill("one"), Fill("two")
    first = join(flights, one, "1")
    await one.started.wait()
    with pytest.raises(TimeoutError):
        await flights.join("2", two, 0.001)
    assert two.cancels == 1
    one.release.set()
    assert await first == ("one", True)
    assert complaints == []
