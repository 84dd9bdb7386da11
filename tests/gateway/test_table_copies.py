"""Rows of a table on the disk: used when neither the store nor memory has them, and told."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cache.stores.files import FileStore
from cache.stores.store import Found, StoreError
from degrade.calendar import Calendar
from degrade.record import PAYLOAD_BYTES_MAX, Good, Record, Terms, V, name_of, packed, seal
from degrade.snapshot import Snapshot, SnapshotOptions
from gateway.config_snapshot import SnapshotConfig
from gateway.copies import TURN_BYTES, Pending
from gateway.purges import WORDS, Marks
from gateway.reads import LOOK_SECONDS_MAX, LookTime
from gateway.snapshots import Snapshots
from gateway.sources import load
from gateway.surroundings import Surroundings
from gateway.table_copies import BESIDE_BYTES, ROWS_AT_ONCE, RowCopies
from gateway.tables import COPIES_SECONDS
from gateway.units import Seconds, Size
from tests.gateway.here import Here
from tests.gateway.test_tables import Shelf, World, table_on
from tiers.inference import TableTold, UpstreamError

OPTIONS = SnapshotOptions(16 * 2**20, inspection_seconds_max=60.0)
WALL = 1_000_000.0


class Host:
    """A disk; each ``world()`` is a process with a table of its own on it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: Snapshot | None = None
        self.outcome = ""

    async def world(self, **changes: object) -> World:
        if self._open is not None:
            await self.closed()
        world = World(**changes)
        world.write(_1=1, _2=2, _3=3)
        self._open = Snapshot(self._folder, OPTIONS)
        self._open.open()
        calendar = Calendar(lambda: world.now, lambda: WALL + world.now)
        world.table.copies = RowCopies("user", world.table.config, Here(self._open), calendar, lambda: world.now)
        self.marks = Marks(FileStore(self._folder / WORDS, lambda: WALL + world.now), calendar)
        world.table.copies.watch(world.table.near, self.marks.everything)
        await self.marks.round()
        return world

    async def closed(self) -> None:
        """The last process has ended."""
        await self.marks._store.close()
        self.close()

    def write(self, world: World) -> int:
        """A pass; how many rows it had."""
        copies = world.table.copies
        assert isinstance(copies, RowCopies)
        assert self._open is not None
        pending = []
        while len(copies):
            pending += copies.take(32) or []
        pairs, ends = [
            [(each.name, seal(each.name, each.written)) for each in pending if each.is_end is is_end]
            for is_end in (False, True)
        ]
        self.outcome = self._open.write(pairs, WALL + world.now, ends)
        assert self.outcome in ("written", "idle")
        copies.written()
        return len(pending)

    @property
    def records(self) -> Snapshot:
        assert self._open is not None
        return self._open

    def fill(self, world: World, turn: int) -> bool:
        """A million bytes of something else; whether a new generation had to begin."""
        assert self._open is not None
        before, key = self._open.rotations, b"%d" % turn
        record = Record("answer", "routes/r", key, b"f", b"", WALL, WALL, random.Random(turn).randbytes(1_000_000))
        name = name_of(record.kind, record.source, key)
        assert self._open.write([(name, seal(name, packed(record)))], WALL + world.now) == "written"
        self._open.settle()
        return self._open.rotations > before

    def close(self) -> None:
        if self._open is not None:
            self._open.close()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    made = Host(tmp_path / "snapshot")
    yield made
    await made.closed()


Make = Callable[..., World]


async def test_rows_are_there_for_the_next_process_while_the_store_is_away(host: Host) -> None:
    world = await host.world()
    await world.look_up(1, 2, 3)
    assert host.write(world) == 3
    world = await host.world()
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


async def test_a_row_that_was_deleted_does_not_come_back_while_the_store_is_away(host: Host) -> None:
    """Neither here, before and after that is on the disk, nor in the next process."""
    world = await host.world(default=0.0)
    await world.look_up(1, 2)
    host.write(world)
    world.shelf.values.pop(b"u:1")
    world.now += 11  # neither is fresh any more
    assert (await world.look_up(1, 2))[1].absent == 1
    world.now += 6  # longer than that is believed in memory
    away = StoreError("unreachable")
    for written in (False, True):
        if written:
            world.shelf.failure = None
            host.write(world)
        world.shelf.failure = away
        assert await world.look_up(1) == ([0], TableTold("user", lost=1))
    later, world = world.now, await host.world(default=0.0)
    world.now = later
    world.shelf.failure = away
    numbers, told = await world.look_up(1, 2)
    assert (numbers, told.lost, told.snapshot) == ([0, 2], 1, 1)


async def test_a_purge_of_everything_is_of_rows_too(host: Host) -> None:
    """In memory and on the disk, for this process and the next, and of what a pass has in its hands."""
    world = await host.world(default=0.0)
    await world.look_up(1, 2)
    host.write(world)
    await world.look_up(1)
    copies, away = world.table.copies, StoreError("unreachable")
    assert isinstance(copies, RowCopies)
    copies.sweep(2**20)
    taken = copies.take(32) or []
    world.now += 1
    world.table.purge()
    host.marks.purge(None)
    assert await host.marks.settled(60.0)
    assert host.records.write([(each.name, seal(each.name, each.written)) for each in taken], WALL + world.now)
    world.shelf.failure = away
    assert await world.look_up(1, 2) == ([0, 0], TableTold("user", lost=2))
    later, world = world.now, await host.world(default=0.0)
    world.now = later
    world.shelf.failure = away
    assert await world.look_up(1) == ([0], TableTold("user", lost=1))
    world.now += 1
    world.shelf.failure = None
    assert (await world.look_up(1))[1].fresh == 1
    assert host.write(world) == 1
    later, world = world.now, await host.world(default=0.0)
    world.now = later
    world.shelf.failure = away
    assert (await world.look_up(1))[1].snapshot == 1


async def test_no_row_is_taken_from_the_disk_before_it_is_known_what_was_purged(host: Host) -> None:
    world = await host.world(default=0.0)
    await world.look_up(1)
    host.write(world)
    world = await host.world(default=0.0)
    world.shelf.failure = StoreError("unreachable")
    copies = world.table.copies
    assert isinstance(copies, RowCopies)
    unread = Marks(host.marks._store, host.marks._calendar)
    copies.watch(world.table.near, unread.everything)
    assert (await world.look_up(1))[1].lost == 1
    await unread.round()
    assert (await world.look_up(1))[1].snapshot == 1


async def test_a_row_that_has_come_again_is_copied_again(host: Host) -> None:
    world = await host.world(default=0.0)
    await world.look_up(1)
    host.write(world)
    row = world.shelf.values.pop(b"u:1")
    world.now += 11
    await world.look_up(1)
    world.shelf.values[b"u:1"] = row
    world.now += 11
    assert (await world.look_up(1))[1].fresh == 1, "not on the disk yet"
    assert host.write(world) == 1
    later, world = world.now, await host.world(default=0.0)
    world.now = later
    world.shelf.failure = StoreError("unreachable")
    assert (await world.look_up(1))[1].snapshot == 1


async def test_what_a_server_lacks_that_may_be_the_wrong_one_is_not_gone(host: Host) -> None:
    """A master of whom nobody has told in time may be one that has come back empty."""
    world = await host.world(default=0.0)
    await world.look_up(1)
    host.write(world)
    later, world = world.now, await host.world(default=0.0)
    world.now = later
    world.shelf.values.clear()
    counts = itertools.count()
    source = world.table._source
    world.table._source = msgspec.structs.replace(source, untold=lambda: next(counts))
    assert (await world.look_up(1))[1].snapshot == 1
    host.write(world)
    world.table._source = source
    world.shelf.failure = StoreError("unreachable")
    assert (await world.look_up(1))[1].snapshot == 1


async def test_ids_that_never_had_a_row_leave_nothing_on_the_disk(host: Host) -> None:
    """However many are asked for; and an end that is there is not written again."""
    world = await host.world(default=0.0)
    await world.look_up(1)
    host.write(world)
    before = host.records.records
    outcomes = []
    for _ in range(2):
        world.shelf.values.pop(b"u:1", None)
        world.now += 100
        await world.look_up(1, *range(100, 200))
        host.write(world)
        outcomes.append(host.outcome)
        assert host.records.records == before
    assert outcomes == ["written", "idle"]


async def test_the_order_is_store_memory_snapshot_default(host: Host) -> None:
    world = await host.world(default=0.0)
    await world.look_up(1, 2)
    host.write(world)
    world = await host.world(default=0.0)
    await world.look_up(1)
    world.now += 20
    world.shelf.failure = StoreError("timeout")
    numbers, told = await world.look_up(1, 2, 9)
    assert numbers == [1, 2, 0]
    assert (told.stale, told.snapshot, told.lost) == (1, 1, 1)
    assert told.steps == ("user:stale", "user:snapshot", "user:default")
    assert told.age == pytest.approx(20.0)


async def test_a_row_is_no_older_than_it_may_be(host: Host) -> None:
    world = await host.world()
    await world.look_up(1)
    host.write(world)
    world = await host.world()
    world.shelf.failure = StoreError("timeout")
    config = world.table.config
    world.now += float(config.ttl) + float(config.max_stale) - 1
    assert (await world.look_up(1))[1].snapshot == 1
    world.now += 2
    with pytest.raises(UpstreamError):
        await world.look_up(1)


async def test_an_absent_row_is_not_looked_for(host: Host) -> None:
    world = await host.world()
    await world.look_up(1)
    host.write(world)
    world = await host.world(default=0.0)
    del world.shelf.values[b"u:1"]
    numbers, told = await world.look_up(1)
    assert (numbers, told.absent, told.snapshot) == ([0], 1, 0)


async def test_a_row_that_is_no_number_or_out_of_bounds_is_nothing(host: Host) -> None:
    world = await host.world()
    await world.look_up(1, 2)
    near = world.table.near
    near.put(np.array([1], np.int64), np.full((1, *world.table.shape), np.nan, np.float32), world.now, near.ticket())
    assert host.write(world) == 2
    world = await host.world()
    world.shelf.failure = StoreError("timeout")
    with pytest.raises(UpstreamError):
        await world.look_up(1)
    assert (await world.look_up(2))[1].snapshot == 1


class Looks:
    """``Records`` where each look takes 0.4 s of the world's, and finds the first row or none."""

    def __init__(self, world: World, finds: bool = True) -> None:
        self.world = world
        self.finds = finds
        self.made: list[tuple[int, LookTime]] = []

    async def read(
        self, kind: str, source: str, keys: Sequence[bytes], terms: Terms[V], now: float, time: LookTime
    ) -> list[Good[V] | None]:
        self.made.append((len(keys), time))
        self.world.now += 0.4
        row = terms.read(np.ones(2, "<f4").tobytes()) if self.finds else None
        record = Record(kind, source, keys[0], b"", b"", now, now, b"")
        return [None if row is None else Good(record, row), *[None] * (len(keys) - 1)]


def copies_on(world: World, looks: Looks) -> RowCopies:
    calendar = Calendar(lambda: world.now, lambda: WALL + world.now)
    return RowCopies("user", world.table.config, looks, calendar, lambda: world.now)


async def test_after_its_time_no_more_rows_are_looked_for() -> None:
    world = World()
    looks = Looks(world)
    _, there, _ = await copies_on(world, looks).find(np.arange(10 * ROWS_AT_ONCE), 1.0, 0.005)
    assert np.flatnonzero(there).tolist() == [0, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE]
    counts, times = zip(*looks.made, strict=True)
    assert counts == (ROWS_AT_ONCE,) * 3
    assert [time.running for time in times] == [0.005] * 3
    assert [time.seconds for time in times] == pytest.approx([LOOK_SECONDS_MAX, LOOK_SECONDS_MAX, 0.2])


async def test_of_a_disk_that_hangs_a_look_up_of_many_rows_waits_for_one_look() -> None:
    world = World()
    looks = Looks(world, finds=False)
    _, there, _ = await copies_on(world, looks).find(np.arange(10 * ROWS_AT_ONCE), 9.0, 0.005)
    assert (len(looks.made), there.any()) == (1, False)


@pytest.mark.parametrize(
    ("left", "took", "seconds", "running"),
    [
        (1.5, 0.5, 0.25, COPIES_SECONDS),  # the store has taken all of its time: a quarter of the request's
        (1.5, 0.3, 0.3, 0.2),  # what it has left is the disk's
        (0.1, 0.1, COPIES_SECONDS, COPIES_SECONDS),  # what is there is the answer, however late
    ],
)
async def test_what_a_look_up_has_for_the_disk(left: float, took: float, seconds: float, running: float) -> None:
    world = World(default=0.0)
    looks = Looks(world)
    world.table.copies = copies_on(world, looks)

    async def failing(keys: Sequence[bytes], seconds: float) -> list[Found]:
        world.now += took
        raise StoreError("timeout")

    world.shelf.get_many = failing  # type: ignore[method-assign]
    await world.table.look_up(np.array([1]), left)
    ((_, time),) = looks.made
    assert (time.seconds, time.running) == pytest.approx((seconds, running))


async def test_many_rows_are_read_in_turns_of_the_event_loop(host: Host) -> None:
    ids = range(3 * ROWS_AT_ONCE)
    world = await host.world()
    world.write(**{f"_{each}": each for each in ids})
    await world.look_up(*ids)
    assert host.write(world) == len(ids)
    world = await host.world()
    world.shelf.failure = StoreError("timeout")
    numbers, told = await world.look_up(*ids)
    assert numbers == [*ids]
    assert told.snapshot == len(ids)


def keys(pending: Sequence[Pending]) -> list[bytes]:
    return [msgspec.msgpack.decode(each.written, type=Record).key for each in pending]


async def test_rows_that_are_used_stay_when_others_fill_the_disk(host: Host) -> None:
    """Which are not read anew: their ttl is hours, or the store is down."""
    world = await host.world()
    await world.look_up(1, 2, 3)
    await world.look_up(1, 2)
    assert host.write(world) == 3
    copies = world.table.copies
    assert isinstance(copies, RowCopies)
    rotations = 0
    for turn in range(40):
        world.now += 0.5
        if host.fill(world, turn):
            rotations += 1
            copies.sweep(2**20)
            assert host.write(world) == 2
    assert rotations > OPTIONS.generations
    world = await host.world()
    world.now += 20.0
    world.shelf.failure = StoreError("unreachable")
    numbers, told = await world.look_up(1, 2)
    assert (numbers, told.snapshot, told.age) == ([1, 2], 2, pytest.approx(20.0))
    with pytest.raises(UpstreamError):
        await world.look_up(3)


@pytest.mark.parametrize("ids", ["integer", "text"])
async def test_a_sweep_takes_the_most_used_and_no_more_than_it_may(host: Host, ids: str) -> None:
    world = await host.world(ids=ids)
    copies = world.table.copies
    assert isinstance(copies, RowCopies)
    world.write(**{f"_{each}": each for each in range(100)})
    await world.look_up(*range(100))
    host.write(world)
    for _ in range(3):
        await world.look_up(40, 50)
    await world.look_up(99)
    size = 8 + BESIDE_BYTES
    for rows, swept in ((3, [b"40", b"50", b"99"]), (2, [b"40", b"50"]), (0, [])):
        copies.sweep(rows * size)
        made: list[bytes] = []
        while (some := copies.take(32)) is not None:
            assert len(some) <= 32
            made += keys(some)
        assert (made, len(copies)) == (swept, 0)
        copies.written()


async def test_a_sweep_that_was_not_written_is_taken_again(host: Host) -> None:
    world = await host.world()
    await world.look_up(1)
    await world.look_up(1)
    host.write(world)
    copies = world.table.copies
    assert isinstance(copies, RowCopies)
    copies.sweep(2**20)
    while copies.take(32) is not None:
        pass
    copies.again()
    assert host.write(world) == 1


async def test_a_number_and_its_digits_are_one_row(host: Host) -> None:
    """Two routes may ask one table, the one with BYTES and the other with INT64."""
    for ids in ("integer", "text"):
        world = await host.world(ids=ids)
        await world.table.look_up([b"1", b"2"], 1.0)
        await world.look_up(3, 2)
        assert host.write(world) == 3
        world = await host.world(ids=ids)
        world.shelf.failure = StoreError("unreachable")
        assert (await world.look_up(1, 2, 3))[1].snapshot == 3
        assert (await world.table.look_up([b"3", b"1"], 1.0)).told.snapshot == 2


async def test_long_rows_are_made_a_few_at_a_time(host: Host) -> None:
    world, length = await host.world(), TURN_BYTES // 4 // 20
    table = table_on(Shelf(), "long", lambda: world.now, shape=(length,), key="u:{id}")
    near, calendar = table.near, Calendar(lambda: world.now, lambda: WALL)
    copies = RowCopies("long", table.config, host.records, calendar, lambda: world.now)
    copies.watch(near)
    near.put(np.arange(30), np.ones((30, length), np.float32), world.now, near.ticket())
    copies.note(np.arange(30))
    assert len(copies.take(32) or ()) == 20


@pytest.mark.parametrize("more", [0, 1])
async def test_a_row_that_is_more_than_a_record_is_not_copied(host: Host, tmp_path: Path, more: int) -> None:
    """A longer one still would be damage to whoever reads it (checksum), and an alert."""
    length = PAYLOAD_BYTES_MAX // 4 + more
    world = await host.world()
    table = table_on(Shelf(), "long", lambda: world.now, shape=(length,), key="u:{id}", bytes_max=Size(128 * 2**20))
    around = Surroundings(lambda: world.now, lambda: WALL + world.now, random.Random(1), random.randbytes)
    snapshots = Snapshots(SnapshotConfig(str(tmp_path / "another"), Seconds(10), Size(64 * 2**20)), around)
    await snapshots.open()
    await snapshots.marks.round()
    snapshots.share(load(None, {}, ["http://a:1"]), {}, {"long": table})
    table.near.put(np.arange(1), np.ones((1, length), np.float32), world.now, table.near.ticket())
    if table.copies is not None:
        table.copies.note(np.arange(1))
    await snapshots.copy(asyncio.sleep)
    assert snapshots.copied == 1 - more
    if table.copies is not None:
        assert (await table.copies.find(np.arange(1), 10.0, 10.0))[1].tolist() == [True]
    assert snapshots.snapshot.rejected.total() == 0
    await snapshots.close(1.0)
