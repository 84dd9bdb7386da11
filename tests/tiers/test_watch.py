"""How a replica is watched: how often it is asked, and what of it is forgotten when. Virtual time throughout."""

from __future__ import annotations

import asyncio
import random

import pytest

from degrade.breaker import BreakerOptions, Change
from degrade.deadline import Deadline
from degrade.ladder import Failure
from tests.tiers.test_pool import Clock, Fake
from tiers.backends.call import Call, Reply
from tiers.inference import InferRequest, UpstreamError
from tiers.pool import Pool, PoolOptions
from tiers.watch import DOUBT_SHARE, SPREAD, TURN_SECONDS

INTERVAL = 1.0
FAR = Deadline(1e9)
REQUEST = InferRequest("m", ())
OPTIONS = PoolOptions(breaker=BreakerOptions(consecutive_failures=2, open_seconds=8.0, open_seconds_max=30.0))


class _Over(Exception):
    """The time that a test has is over."""


class World:
    """One replica, watched in a time that passes only while the watch rests. ``at``: what happens when."""

    def __init__(self, options: PoolOptions = OPTIONS) -> None:
        self.clock = Clock()
        self.began = self.clock.now
        self.asked: list[float] = []
        self.changes: list[tuple[float, str, str]] = []
        self.at: list[tuple[float, Failure | None]] = []
        world = self

        class Watched(Fake):
            async def exchange(self, call: Call, deadline: Deadline, now: float) -> Reply:
                world.asked.append(world.passed)
                return await super().exchange(call, deadline, now)

        def heard(url: str, model: str, change: Change) -> None:
            self.changes.append((self.passed, model, change.after))

        self.one = Watched("a")
        self.pool = Pool([self.one], options, self.clock, random.Random(3), heard)

    @property
    def passed(self) -> float:
        return self.clock.now - self.began

    async def run(self, seconds: float, interval: float = INTERVAL) -> None:
        until = self.passed + seconds

        async def sleep(pause: float) -> None:
            assert pause > 0.0
            self.clock.now += pause
            while self.at and self.passed >= self.at[0][0]:
                self.one.fails = self.at.pop(0)[1]
            if self.passed >= until:
                raise _Over

        with pytest.raises(ExceptionGroup):
            await self.pool.run(interval, sleep)

    async def fail(self, failure: Failure, model: str = "m") -> None:
        self.one.fails = failure
        for _ in range(2):
            with pytest.raises(UpstreamError):
                await self.pool.infer(InferRequest(model, ()), FAR)

    @property
    def state(self) -> tuple[str, tuple[str, ...]]:
        (state,) = self.pool.states()
        return state.breaker, state.models_open


async def test_who_is_well_is_asked_at_the_interval() -> None:
    world = World()
    await world.run(10.5)
    assert world.asked == pytest.approx([float(second) for second in range(11)])


async def test_who_is_back_is_in_use_within_a_turn_whatever_its_breaker_would_wait() -> None:
    """The breaker alone would wait for 8 s, and then for 16; who is asked at the interval is found a second late."""
    world = World()
    world.at = [(2.3, Failure.UNREACHABLE), (6.8, None)]
    await world.run(9.0)
    assert world.state == ("closed", ())
    (closed,) = [at for at, _, after in world.changes if after == "closed"]
    assert 6.8 <= closed <= 6.8 + TURN_SECONDS * (1.0 + SPREAD) + 1e-6


async def test_a_doubt_ends_the_rest_of_a_long_interval() -> None:
    world = World()
    await world.run(5.0, interval=3600.0)
    assert world.asked == [0.0]
    await world.fail(Failure.UNREACHABLE)
    assert world.state == ("open", ())
    world.at = [(world.passed + 3.0, None)]
    await world.run(5.0, interval=3600.0)
    assert world.state == ("closed", ())


async def test_the_pause_grows_with_the_doubt_up_to_the_interval() -> None:
    """A fiftieth of the time that it is away, so that nobody who is away for long is asked for ever in haste."""
    world = World()
    world.one.fails = Failure.UNREACHABLE
    await world.run(600.0, interval=10.0)
    pauses = [after - before for before, after in zip(world.asked, world.asked[1:], strict=False)]
    assert pauses[0] == pytest.approx(TURN_SECONDS, rel=SPREAD + 0.01)
    for began, pause in zip(world.asked, pauses, strict=False):
        due = min(10.0, max(TURN_SECONDS, DOUBT_SHARE * began))
        assert pause == pytest.approx(due, rel=SPREAD + 2 * DOUBT_SHARE)
    assert pauses[-1] == pytest.approx(10.0)
    assert len(world.asked) < 300


async def test_a_doubt_of_another_kind_is_as_fresh_as_the_first() -> None:
    """Its model has failed for long, and now the server itself goes and comes."""
    world = World()
    await world.fail(Failure.BROKEN)
    world.one.fails = None
    await world.run(600.0, interval=10.0)
    await world.fail(Failure.UNREACHABLE, "other")
    world.at = [(605.1, None)]
    await world.run(10.0, interval=10.0)
    away = [at for at in world.asked if 600.5 < at < 605.0]
    assert len(away) > 10
    (closed,) = [at for at, model, after in world.changes if after == "closed"]
    assert closed <= 605.1 + TURN_SECONDS * (1.0 + SPREAD) + 1e-6


async def test_pauses_of_a_doubt_are_not_in_step() -> None:
    world = World()
    world.one.fails = Failure.UNREACHABLE
    await world.run(4.0)
    pauses = {round(after - before, 6) for before, after in zip(world.asked, world.asked[1:], strict=False)}
    assert len(pauses) > 10


async def test_haste_opens_no_breaker_sooner() -> None:
    """Questions that fail while callers are answered count as often as they would be asked otherwise."""
    world = World(PoolOptions(breaker=BreakerOptions(consecutive_failures=5)))
    world.one.fails = Failure.DROPPED
    await world.run(3.4)
    assert len(world.asked) > 10
    assert world.state == ("closed", ())
    await world.run(3.0)
    assert world.state == ("open", ())


async def test_an_interval_shorter_than_a_turn_stays_as_it_is() -> None:
    world = World()
    world.one.fails = Failure.UNREACHABLE
    await world.run(2.0, interval=0.1)
    assert len(world.asked) == pytest.approx(20, abs=2)


async def test_one_question_at_a_time_and_each_bounded() -> None:
    """A replica that hangs is not asked again before the last question is over."""
    world = World()
    waits: list[float] = []

    async def hangs(call: Call, deadline: Deadline, now: float) -> Reply:
        world.asked.append(world.passed)
        waits.append(deadline.remaining(now))
        world.clock.now += waits[-1]
        raise UpstreamError(Failure.TIMEOUT, "silent")

    world.one.exchange = hangs  # type: ignore[method-assign]
    await world.run(20.0)
    assert set(waits) == {OPTIONS.probe_timeout}
    pauses = [after - before for before, after in zip(world.asked, world.asked[1:], strict=False)]
    assert min(pauses) > OPTIONS.probe_timeout + (1.0 - SPREAD) * TURN_SECONDS - 1e-6


async def test_who_answers_is_reached_even_if_it_is_not_ready() -> None:
    """A strict Triton is not ready as long as one of its models is not: the others answer."""
    world = World()
    await world.fail(Failure.UNREACHABLE)
    assert world.state == ("open", ())
    world.one.fails, world.one.ready = None, 400
    await world.pool.probe_once()
    assert (world.state, world.pool.states()[0].ready) == (("closed", ()), False)
    assert (await world.pool.infer(REQUEST, FAR)).replica == "a"


async def test_models_of_a_server_that_was_replaced_between_two_probes_are_tried_at_once() -> None:
    """No probe has seen that it was away; callers have."""
    world = World()
    await world.pool.probe_once()
    await world.fail(Failure.BROKEN)
    assert world.state == ("closed", ("m",))
    await world.fail(Failure.UNREACHABLE, "other")
    assert world.state == ("open", ("m",))
    world.one.fails = None
    await world.pool.probe_once()
    assert world.state == ("closed", ())


async def test_a_refusal_tells_when_the_next_probe_is_and_not_how_long_a_breaker_would_wait() -> None:
    world = World()
    await world.fail(Failure.UNREACHABLE)
    with pytest.raises(UpstreamError) as caught:
        await world.pool.infer(REQUEST, FAR)
    assert caught.value.retry_after == pytest.approx(8.0)  # nobody probes yet
    await world.run(3.0)
    with pytest.raises(UpstreamError) as caught:
        await world.pool.infer(REQUEST, FAR)
    assert caught.value.retry_after <= INTERVAL
    assert world.pool.retry_after("m") <= INTERVAL


class Rests:
    """A sleep that lasts until it is told to end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._resting: list[tuple[float, asyncio.Event]] = []

    async def __call__(self, seconds: float) -> None:
        over = asyncio.Event()
        self._resting.append((seconds, over))
        await over.wait()

    async def end(self) -> None:
        for seconds, over in self._resting:
            self._clock.now += seconds
            over.set()
        self._resting = []
        await _settle()


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_waits_for_a_replica_goes_on_with_its_next_word() -> None:
    world = World()
    await world.fail(Failure.UNREACHABLE)
    rests = Rests(world.clock)
    running = asyncio.create_task(world.pool.run(INTERVAL, rests))
    await _settle()
    waiting = [asyncio.create_task(world.pool.found(60.0)) for _ in range(3)]
    for _ in range(2):
        await rests.end()
    assert not any(each.done() for each in waiting)
    world.one.fails = None
    for _ in range(3):
        await rests.end()
    assert [each.result() for each in waiting] == [True] * 3
    assert world.state == ("closed", ())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


class Counted(Clock):
    """How often somebody has looked at it: who waits does whenever he is woken."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return super().__call__()


@pytest.mark.parametrize("waiters", [1, 100])
async def test_who_waits_is_woken_by_who_is_back_and_not_by_each_who_is_away(waiters: int) -> None:
    replicas, clock = [Fake(f"r{index}") for index in range(4)], Counted()
    pool = Pool(replicas, OPTIONS, clock, random.Random(3))
    for each in replicas:
        each.fails = Failure.UNREACHABLE
    for _ in range(2 * len(replicas)):
        with pytest.raises(UpstreamError):
            await pool.infer(REQUEST, FAR)
    assert {state.breaker for state in pool.states()} == {"open"}
    rests = Rests(clock)
    running = asyncio.create_task(pool.run(INTERVAL, rests))
    await _settle()
    waiting = [asyncio.create_task(pool.found(60.0)) for _ in range(waiters)]
    await _settle()
    looks = clock.looks
    for _ in range(4):
        await rests.end()
    assert clock.looks - looks < 4 * 4 * 20, "as many as replicas and questions, however many wait"
    replicas[2].fails = None
    for _ in range(3):
        await rests.end()
    assert [each.result() for each in waiting] == [True] * waiters
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_who_waits_leaves_when_nobody_is_asked_in_time_any_more() -> None:
    """The question that he waited for has been asked, in vain, and the next is later than he can wait."""
    world = World()
    await world.fail(Failure.UNREACHABLE)
    world.one.gate = asyncio.Event()
    rests = Rests(world.clock)
    running = asyncio.create_task(world.pool.run(INTERVAL, rests))
    await _settle()
    waiting = asyncio.create_task(world.pool.found(TURN_SECONDS / 2))
    await _settle()
    assert not waiting.done()
    world.one.gate.set()
    await _settle()
    assert waiting.done()
    assert not waiting.result()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_nobody_waits_who_would_hear_nothing() -> None:
    """Because nobody probes, or not within the time that there is."""
    world = World()
    await world.fail(Failure.UNREACHABLE)
    assert not await world.pool.found(60.0)
    rests = Rests(world.clock)
    running = asyncio.create_task(world.pool.run(INTERVAL, rests))
    await _settle()
    assert not await world.pool.found(TURN_SECONDS / 2)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_who_waits_in_vain_is_told_so_when_the_time_is_over() -> None:
    world = World()
    await world.fail(Failure.UNREACHABLE)
    world.one.gate = asyncio.Event()  # it hangs
    running = asyncio.create_task(world.pool.run(INTERVAL, Rests(world.clock)))
    await _settle()
    assert not await world.pool.found(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
