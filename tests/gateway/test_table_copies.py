"""Rows of a table on the disk: used when neither the store nor memory has them, and told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cache.stores.store import StoreError
from degrade.calendar import Calendar
from degrade.record import seal
from degrade.snapshot import Snapshot, SnapshotOptions
from gateway.table_copies import ROWS_AT_ONCE, RowCopies
from tests.gateway.here import Here
from tests.gateway.test_tables import World
from tiers.inference import TableTold, UpstreamError

OPTIONS = SnapshotOptions(16 * 2**20, inspection_seconds_max=60.0)
WALL = 1_000_000.0


class Host:
    """A disk; each ``world()`` is a process with a table of its own on it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: Snapshot | None = None

    def world(self, **changes: object) -> World:
        self.close()
        world = World(**changes)
        world.write(_1=1, _2=2, _3=3)
        self._open = Snapshot(self._folder, OPTIONS)
        self._open.open()
        calendar = Calendar(lambda: world.now, lambda: WALL + world.now)
        world.table.copies = RowCopies("user", world.table.config, Here(self._open), calendar, lambda: world.now)
        world.table.copies.watch(world.table.near)
        return world

    def write(self, world: World) -> int:
        """A pass; how many rows it had."""
        copies = world.table.copies
        assert isinstance(copies, RowCopies)
        assert self._open is not None
        pending = []
        while len(copies):
            pending += copies.take(32)
        pairs = [(each.name, seal(each.name, each.written)) for each in pending]
        assert self._open.write(pairs, WALL + world.now) == "written"
        copies.written()
        return len(pending)

    def close(self) -> None:
        if self._open is not None:
            self._open.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "snapshot")
    yield made
    made.close()


Make = Callable[..., World]


async def test_rows_are_there_for_the_next_process_while_the_store_is_away(host: Host) -> None:
    world = host.world()
    await world.look_up(1, 2, 3)
    assert host.write(world) == 3
    world = host.world()
    world.shelf.failure = StoreError("unreachable")
    world.now += 5
    numbers, told = await world.look_up(1, 3)
    assert (numbers, told.steps) == ([1, 3], ("user:snapshot",))
    assert (told.snapshot, told.fresh, told.stale, told.lost) == (2, 0, 0, 0)
    assert told.age == pytest.approx(5.0)
    assert world.table.rows_told["snapshot"] == 2
    with pytest.raises(UpstreamError):
        await world.look_up(1, 9)
    world.shelf.failure = None
    assert (await world.look_up(1))[1] == TableTold("user", fresh=1), "the store is asked first"


async def test_the_order_is_store_memory_snapshot_default(host: Host) -> None:
    world = host.world(default=0.0)
    await world.look_up(1, 2)
    host.write(world)
    world = host.world(default=0.0)
    await world.look_up(1)
    world.now += 20
    world.shelf.failure = StoreError("timeout")
    numbers, told = await world.look_up(1, 2, 9)
    assert numbers == [1, 2, 0]
    assert (told.stale, told.snapshot, told.lost) == (1, 1, 1)
    assert told.steps == ("user:stale", "user:snapshot", "user:default")
    assert told.age == pytest.approx(20.0)


async def test_a_row_is_no_older_than_it_may_be(host: Host) -> None:
    world = host.world()
    await world.look_up(1)
    host.write(world)
    world = host.world()
    world.shelf.failure = StoreError("timeout")
    config = world.table.config
    world.now += float(config.ttl) + float(config.max_stale) - 1
    assert (await world.look_up(1))[1].snapshot == 1
    world.now += 2
    with pytest.raises(UpstreamError):
        await world.look_up(1)


async def test_an_absent_row_is_not_looked_for(host: Host) -> None:
    world = host.world()
    await world.look_up(1)
    host.write(world)
    world = host.world(default=0.0)
    del world.shelf.values[b"u:1"]
    numbers, told = await world.look_up(1)
    assert (numbers, told.absent, told.snapshot) == ([0], 1, 0)


async def test_a_row_that_is_no_number_or_out_of_bounds_is_nothing(host: Host) -> None:
    world = host.world()
    await world.look_up(1, 2)
    near = world.table.near
    near.put(np.array([1], np.int64), np.full((1, *world.table.shape), np.nan, np.float32), world.now, near.ticket())
    assert host.write(world) == 2
    world = host.world()
    world.shelf.failure = StoreError("timeout")
    with pytest.raises(UpstreamError):
        await world.look_up(1)
    assert (await world.look_up(2))[1].snapshot == 1


async def test_many_rows_are_read_in_turns_of_the_event_loop(host: Host) -> None:
    ids = range(3 * ROWS_AT_ONCE)
    world = host.world()
    world.write(**{f"_{each}": each for each in ids})
    await world.look_up(*ids)
    assert host.write(world) == len(ids)
    world = host.world()
    world.shelf.failure = StoreError("timeout")
    numbers, told = await world.look_up(*ids)
    assert numbers == [*ids]
    assert told.snapshot == len(ids)
