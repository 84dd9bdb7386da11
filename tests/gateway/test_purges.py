"""When something was purged last: the mark on the disk, read, written once, and tried until it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cache.stores.store import Found, StoreError
from degrade.calendar import Calendar
from gateway.purges import HURRY_SECONDS, Marks, Purges, purge_key

KEY = purge_key("routes/r")


class World:
    """The clocks and a store, which may refuse to be written to."""

    def __init__(self) -> None:
        self.monotonic, self.wall = 100.0, 1_000_000.0
        self.held: dict[bytes, bytes] = {}
        self.writes = 0
        self.refuses = False
        self.calendar = Calendar(lambda: self.monotonic, lambda: self.wall)

    def purges(self) -> Purges:
        return Purges(KEY, self, self.calendar)

    def marks(self) -> Marks:
        return Marks(self, self.calendar)

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        return [self.held.get(key) for key in keys]

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        assert ttl is None, "a purge is never forgotten"
        self.writes += 1
        if self.refuses:
            raise StoreError("refused")
        self.held |= dict(pairs)

    async def delete_many(self, keys: Sequence[bytes], seconds: float) -> None:
        raise AssertionError

    async def healthy(self, seconds: float) -> bool:
        return True

    async def close(self) -> None: ...


@pytest.fixture
def world() -> World:
    return World()


async def test_a_mark_is_written_once(world: World) -> None:
    purges = world.purges()
    for _ in range(3):
        await purges.round()
    assert (purges.at, world.writes) == (float("-inf"), 0)
    purges.purge()
    assert await purges.settled(0.0)
    for _ in range(3):
        await purges.round()
    assert (purges.at, world.writes) == (world.wall, 1)


async def test_a_clock_that_was_set_back_makes_nothing_look_older_than_the_purge(world: World) -> None:
    purges = world.purges()
    purges.purge()
    assert await purges.settled(0.0)
    at = world.wall
    world.wall -= 3600.0
    world.calendar = Calendar(lambda: world.monotonic, lambda: world.wall)
    later = world.purges()
    await later.round()
    assert later.at == at
    world.monotonic += 1.0
    world.wall += 1.0
    assert world.calendar.now() == at + 1.0


async def test_a_purge_while_another_is_being_written_is_not_lost(world: World) -> None:
    purges = world.purges()
    put = world.put_many

    async def slow(pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        await put(pairs, ttl, seconds)
        world.monotonic += 1.0
        world.wall += 1.0
        purges.purge()

    world.put_many = slow  # type: ignore[method-assign]
    purges.purge()
    await purges.round()
    world.put_many = put  # type: ignore[method-assign]
    written = dict(world.held)
    assert not purges._settled.is_set()
    assert await purges.settled(0.0)
    assert world.held != written
    other = world.purges()
    await other.round()
    assert other.at == purges.at


async def test_what_could_not_be_written_is_tried_again_soon_and_only_that(world: World) -> None:
    marks, slept = world.marks(), list[float]()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            world.refuses = True
            marks.purge("r")
        if len(slept) == 4:
            world.refuses = False
        if len(slept) == 6:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await marks.run(1.0, sleep)
    assert slept == [1.0, 1.0, HURRY_SECONDS, HURRY_SECONDS, 1.0, 1.0]


@pytest.mark.parametrize("mark", [b"", b"abc", bytes(9)])
async def test_a_mark_that_is_none_leaves_it_unknown(world: World, mark: bytes) -> None:
    world.held[KEY] = mark
    purges = world.purges()
    await purges.round()
    assert purges.at is None


async def read(world: World, source: str) -> float | None:
    """When a later process finds that it was purged."""
    purges = world.marks().of(source)
    assert purges.at is None
    await purges.round()
    assert purges.at is None, "nobody has looked yet whether everything was"
    marks = world.marks()
    purges = marks.of(source)
    await marks.round()
    return purges.at


async def test_a_purge_is_of_a_name_that_nothing_is_copied_of_today(world: World) -> None:
    marks = world.marks()
    marks.purge("r")
    assert await marks.settled(0.0)
    for source in ("routes/r", "endpoints/r"):
        assert await read(world, source) == world.wall
    assert await read(world, "routes/other") == float("-inf")


async def test_a_purge_of_everything_is_of_what_has_no_name_today(world: World) -> None:
    marks = world.marks()
    early = marks.of("routes/early")
    await marks.round()
    marks.purge(None)
    assert early.at == world.wall, "at once"
    assert await marks.settled(0.0)
    assert world.writes == 1
    for source in ("routes/early", "endpoints/r", "tables/t"):
        assert await read(world, source) == world.wall


async def test_the_later_one_of_a_name_and_of_everything_counts(world: World) -> None:
    for first, second in ((None, "r"), ("r", None)):
        for name in (first, second):
            world.monotonic += 1.0
            world.wall += 1.0
            marks = world.marks()
            marks.purge(name)
            assert await marks.settled(0.0)
        assert await read(world, "routes/r") == world.wall


async def test_a_mark_that_the_disk_has_not_taken_stays_whatever_is_copied(world: World) -> None:
    marks = world.marks()
    world.refuses = True
    marks.purge("r")
    assert not await marks.settled(0.0)
    marks.keep(())
    assert not await marks.settled(0.0)
    world.refuses = False
    await marks.round()
    assert await marks.settled(0.0)
    assert await read(world, "routes/r") == world.wall
    marks.keep(("routes/r",))
    assert (len(marks._of), marks.of("routes/r").at) == (1, world.wall)
