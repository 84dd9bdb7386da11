"""A store behind a breaker: what it costs when it fails, in virtual time. tests/cache has it with real servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from cache.stores.store import KINDS, NOT_ASKED, Found, StoreError
from cache.stores.turnstile import STALLS_MAX, WELL, TurnstileOptions
from degrade.breaker import Breaker
from degrade.guard import STORE_BREAKER, Guarded

LONG = 60.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Shelf:
    """A store that does as it is told."""

    def __init__(self) -> None:
        self.asked = 0
        self.looks = 0
        self.well = True
        self.failure: BaseException | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.closed = False

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        self.asked += 1
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return [*keys]

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        await self.get_many([], seconds)

    async def delete_many(self, keys: Sequence[bytes], seconds: float) -> None:
        await self.get_many([], seconds)

    async def healthy(self, seconds: float) -> bool:
        self.looks += 1
        return self.well

    async def close(self) -> None:
        self.closed = True


class Pending:
    def __init__(self, seconds: float, work: Callable[[], None]) -> None:
        self.seconds, self.work, self.cancelled = seconds, work, False

    def cancel(self) -> None:
        self.cancelled = True


class Set:
    """A shelf, guarded. ``timers``: those that have not come yet."""

    def __init__(self, options: TurnstileOptions | None = None) -> None:
        self.shelf = Shelf()
        self.clock = Clock()
        self.timers: list[Pending] = []
        options = options or TurnstileOptions()
        self.store = Guarded(self.shelf, Breaker(STORE_BREAKER), self.clock, options, self._later)

    def _later(self, seconds: float, work: Callable[[], None]) -> Pending:
        self.timers.append(Pending(seconds, work))
        return self.timers[-1]

    async def timer(self) -> float:
        """Let the one timer come; how long it was waited for."""
        (due,) = self.timers
        self.timers.clear()
        self.clock.now += due.seconds
        due.work()
        await settle()
        return due.seconds

    async def kind(self, seconds: float = LONG) -> str:
        try:
            await self.store.get_many([b"k"], seconds)
        except StoreError as error:
            return error.kind
        return "well"


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - WELL - NOT_ASKED))
async def test_one_failure_is_enough_and_a_look_beside_the_calls_mends_it(kind: str) -> None:
    made = Set()
    made.shelf.failure, made.shelf.well = StoreError(kind), False
    assert await made.kind() == kind
    for _ in range(100):
        assert await made.kind() == "open"
    assert (made.shelf.asked, made.shelf.looks) == (1, 0)
    made.clock.now += STORE_BREAKER.open_seconds
    for _ in range(100):  # nobody waits for the look, and one is enough
        assert await made.kind() == "open"
    await settle()
    assert (made.shelf.asked, made.shelf.looks) == (1, 1)
    made.shelf.failure, made.shelf.well = None, True
    made.clock.now += STORE_BREAKER.open_seconds
    assert await made.kind() == "open"  # for twice as long
    await settle()
    assert made.shelf.looks == 1
    made.clock.now += STORE_BREAKER.open_seconds
    assert await made.kind() == "open"
    await settle()
    assert made.store.state == "closed"
    assert await made.kind() == "well"


@pytest.mark.parametrize("kind", sorted(WELL))
async def test_what_is_about_one_value_opens_nothing(kind: str) -> None:
    made = Set()
    made.shelf.failure = StoreError(kind)
    assert [await made.kind() for _ in range(20)] == [kind] * 20


@pytest.mark.parametrize("kind", sorted(NOT_ASKED))
async def test_what_was_not_asked_says_nothing(kind: str) -> None:
    made = Set()
    made.shelf.failure = StoreError(kind)
    assert await made.kind() == kind
    assert made.store.state == "closed"


async def test_a_store_that_forgets_its_bound_is_cut_off() -> None:
    made = Set()
    made.shelf.gate.clear()
    assert await made.kind(0.01) == "timeout"
    assert await made.kind() == "open"


async def test_who_had_no_time_proves_nothing() -> None:
    made = Set(TurnstileOptions(proof_seconds=0.05))
    made.shelf.gate.clear()
    assert await made.kind(0.01) == "timeout"
    assert made.store.state == "closed"
    assert await made.kind(0.06) == "timeout"
    assert made.store.state == "open"


async def test_a_wait_that_was_far_too_long_is_the_event_loops_fault_and_no_proof_a_few_times() -> None:
    made = Set()

    async def stand_still(keys: Sequence[bytes], seconds: float) -> list[Found]:
        made.clock.now += 2 * seconds
        raise StoreError("timeout")

    made.shelf.get_many = stand_still  # type: ignore[method-assign]
    for _ in range(STALLS_MAX):
        assert await made.kind(0.02) == "timeout"
        assert made.store.state == "closed"
    del made.shelf.get_many  # type: ignore[attr-defined]
    assert await made.kind(0.02) == "well"  # and they are counted anew
    made.shelf.get_many = stand_still  # type: ignore[method-assign]
    for _ in range(STALLS_MAX):
        assert await made.kind(0.02) == "timeout"
    assert made.store.state == "closed"
    assert await made.kind(0.02) == "timeout"
    assert made.store.state == "open"


async def test_one_silent_call_among_others_that_were_answered_proves_nothing() -> None:
    made = Set()
    made.shelf.gate.clear()
    silent = asyncio.create_task(made.kind(0.05))
    await settle()
    made.shelf.gate.set()
    made.clock.now += 0.01
    assert await made.kind() == "well"
    await silent
    made.shelf.gate.clear()
    waiting = asyncio.create_task(made.kind(0.05))
    await settle()
    made.clock.now += 0.01
    made.shelf.gate.set()
    assert await waiting == "well"
    assert made.store.state == "closed"


async def test_a_caller_who_leaves_and_our_own_bugs_say_nothing() -> None:
    made = Set()
    made.shelf.gate.clear()
    leaving = asyncio.create_task(made.kind())
    await settle()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    made.shelf.gate.set()
    made.shelf.failure = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await made.kind()
    assert made.store.state == "closed"


async def test_writing_and_removing_go_the_same_way() -> None:
    made = Set()
    made.shelf.failure = StoreError("refused")
    with pytest.raises(StoreError, match="refused"):
        await made.store.put_many([(b"k", b"v")], None, LONG)
    with pytest.raises(StoreError, match="open"):
        await made.store.delete_many([b"k"], LONG)
    assert await made.store.healthy(LONG)
    assert made.store.state == "open"  # asking is not mending


async def test_a_quiet_store_is_looked_at_without_anybody_calling() -> None:
    made = Set()
    made.shelf.failure, made.shelf.well = StoreError("unreachable"), False
    assert await made.kind() == "unreachable"
    waits = []
    for _ in range(7):
        waits.append(await made.timer())
    assert waits == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]  # for as long as it is away, and never more often
    assert (made.shelf.asked, made.shelf.looks, made.store.state) == (1, 7, "open")
    made.shelf.failure, made.shelf.well = None, True
    await made.timer()
    assert (made.store.state, made.timers) == ("closed", [])
    assert await made.kind() == "well"  # nobody has paid for the look


async def test_a_look_that_comes_too_early_is_tried_again_and_calls_make_no_more_of_them() -> None:
    made = Set()
    made.shelf.failure = StoreError("unreachable")
    assert await made.kind() == "unreachable"
    for _ in range(100):
        assert await made.kind() == "open"
    assert len(made.timers) == 1
    (early,) = made.timers
    made.timers.clear()
    made.clock.now += 0.2
    early.work()
    await settle()
    assert made.shelf.looks == 0
    (again,) = made.timers
    assert again.seconds == pytest.approx(0.05)
    await made.timer()
    assert (made.shelf.looks, made.store.state) == (1, "closed")


async def test_what_is_closed_is_looked_at_no_more() -> None:
    made = Set()
    made.shelf.failure, made.shelf.well = StoreError("unreachable"), False
    await made.kind()
    (timer,) = made.timers
    await made.store.close()
    assert made.shelf.closed
    assert timer.cancelled
    made.clock.now += LONG
    timer.work()
    assert await made.kind() == "open"
    await settle()
    assert (made.shelf.looks, len(made.timers)) == (0, 1)
