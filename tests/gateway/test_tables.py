"""A table's look-up: what the store says, what is held of it, what is put in its place, and how each is counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from structlog.testing import capture_logs

from cache.stores.lmdb import LmdbStore
from cache.stores.store import Found, StoreError
from degrade.deadline import Ticker
from degrade.ladder import Failure
from gateway.config_tables import TableConfig
from gateway.stores import Source, Sources, codec_of, keyed_of
from gateway.tables import Table, UnknownId
from gateway.units import Seconds, Size
from tiers.inference import TableTold, UpstreamError


class Shelf:
    """A store in memory that can be told to fail."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.asked: list[list[bytes]] = []
        self.failure: StoreError | None = None

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        self.asked.append(list(keys))
        if self.failure is not None:
            raise self.failure
        return [self.values.get(key) for key in keys]

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        self.values.update(pairs)

    async def delete_many(self, keys: Sequence[bytes], seconds: float) -> None:
        for key in keys:
            self.values.pop(key, None)

    async def healthy(self, seconds: float) -> bool:
        return self.failure is None

    async def close(self) -> None:
        pass


def table_on(shelf: Shelf, name: str, now: Ticker, **settings: object) -> Table:
    """A table whose rows are ``shape`` numbers and whose store is this one."""
    config = TableConfig(
        store="redis://nowhere", ttl=Seconds(10), max_stale=Seconds(50), negative_ttl=Seconds(5),
        **{"bytes_max": Size(2**20)} | settings,
    )  # type: ignore[arg-type]
    source = Source(shelf, keyed_of(config), codec_of(config), None, 0.5)  # type: ignore[arg-type]
    return Table(name, config, source, now, b"seed")


class Listening:
    """A tracker that hears, or does not."""

    def __init__(self) -> None:
        self.hears = True

    def live(self) -> bool:
        return self.hears


class World:
    def __init__(self, **settings: object) -> None:
        self.now = 100.0
        self.shelf = Shelf()
        self.table = table_on(self.shelf, "user", lambda: self.now, shape=(2,), key="u:{id}", **settings)

    def write(self, **rows: float) -> None:
        for name, number in rows.items():
            self.shelf.values[b"u:" + name.removeprefix("_").encode()] = np.array([number, -number], "<f4").tobytes()

    async def look_up(self, *ids: int) -> tuple[list[float], TableTold]:
        looked = await self.table.look_up(np.array(ids, np.int64), 1.0)
        assert looked.rows.dtype == np.float32
        assert looked.rows.shape == (len(ids), 2)
        assert (looked.rows[:, 0] == -looked.rows[:, 1]).all()
        return looked.rows[:, 0].tolist(), looked.told


@pytest.fixture
def world() -> World:
    made = World()
    made.write(_1=1, _2=2, _3=3)
    return made


async def test_what_is_held_is_not_asked_for(world: World) -> None:
    assert await world.look_up(1, 2) == ([1, 2], TableTold("user", fresh=2))
    world.now += 4
    assert await world.look_up(2, 3, 1, 2) == ([2, 3, 1, 2], TableTold("user", fresh=4, age=4.0))
    assert world.shelf.asked == [[b"u:1", b"u:2"], [b"u:3"]]
    world.now += 7
    world.write(_1=10)
    assert await world.look_up(1) == ([10], TableTold("user", fresh=1))


async def test_ids_may_be_strings() -> None:
    world = World(ids="text")
    world.write(ann=1, bob=2)
    looked = await world.table.look_up([b"bob", b"ann"], 1.0)
    assert looked.rows[:, 0].tolist() == [2, 1]
    with pytest.raises(UnknownId, match="table user has no eve"):
        await world.table.look_up([b"ann", b"eve"], 1.0)


@pytest.mark.parametrize(("default", "number"), [("zeros", 0.0), (7.5, 7.5), ("mean", 2.0)])
async def test_what_the_store_does_not_have_gets_the_default(default: float | str, number: float) -> None:
    world = World(default=default)
    world.write(_1=1, _3=3)
    await world.look_up(1, 3)
    looked = await world.table.look_up(np.array([1, 9], np.int64), 1.0)
    expected = [number, -number] if default == "mean" else [number, number]
    assert looked.rows[1].tolist() == expected
    assert looked.told == TableTold("user", fresh=1, absent=1)
    assert not looked.told.steps
    await world.table.look_up(np.array([9], np.int64), 1.0)
    assert len(world.shelf.asked) == 2, "that there is none is known too"
    world.now += 6
    await world.table.look_up(np.array([9], np.int64), 1.0)
    assert len(world.shelf.asked) == 3


async def test_an_unknown_id_without_a_default_is_the_callers(world: World) -> None:
    with pytest.raises(UnknownId, match=r"table user has no 8, 9, 8$"):
        await world.look_up(8, 9, 1, 8)


async def test_old_rows_are_served_while_the_store_fails_and_say_so(world: World) -> None:
    await world.look_up(1, 2)
    world.now += 20
    world.shelf.failure = StoreError("timeout", "0.5 s")
    numbers, told = await world.look_up(1, 2)
    assert (numbers, told, told.steps) == ([1, 2], TableTold("user", stale=2, age=20.0), ("user:stale",))
    with pytest.raises(UpstreamError, match="table user: timeout") as error:
        await world.look_up(1, 3)
    assert error.value.failure is Failure.TIMEOUT
    world.now += 41
    with pytest.raises(UpstreamError):
        await world.look_up(1)
    assert world.table.failures == {"timeout": 3}
    world.shelf.failure = None
    assert (await world.look_up(1))[1] == TableTold("user", fresh=1)


async def test_what_the_store_cannot_tell_of_gets_the_default_and_is_degraded() -> None:
    world = World(default=0.0)
    world.shelf.failure = StoreError("unreachable")
    numbers, told = await world.look_up(5)
    assert (numbers, told, told.steps) == ([0.0], TableTold("user", lost=1), ("user:default",))
    assert world.table.rows_told == {"fresh": 0, "stale": 0, "snapshot": 0, "absent": 0, "lost": 1}


async def test_what_a_server_says_that_may_be_the_wrong_one_is_not_fresh() -> None:
    """Nobody has told in time whether it is the one to ask; in the next look-up somebody has."""
    world = World(default=0.0)
    world.write(_1=1)
    counts = iter([0, 1, 1, 1, 1, 1, 1, 2, 2])  # before each look-up, and twice after the store has answered
    world.table._source = structs.replace(world.table._source, untold=lambda: next(counts))
    numbers, told = await world.look_up(1, 9)
    assert (numbers, told) == ([1, 0], TableTold("user", stale=1, lost=1))
    assert told.steps == ("user:stale", "user:default")
    world.now += 11
    assert (await world.look_up(1, 9)) == ([1, 0], TableTold("user", fresh=1, absent=1))
    world.now += 11
    with pytest.raises(UpstreamError, match="nobody has told in time") as error:
        await without_default(world).look_up(8)
    assert error.value.failure is Failure.OVERLOADED


def without_default(world: World) -> World:
    """The same without a default."""
    world.table.config = structs.replace(world.table.config, default="error")
    return world


async def test_a_value_that_is_broken_costs_its_own_row(world: World) -> None:
    await world.look_up(1, 2)
    world.now += 11
    world.shelf.values[b"u:2"] = b"short"
    assert await world.look_up(1, 2) == ([1, 2], TableTold("user", fresh=1, stale=1, age=11.0))
    assert world.table.failures == {"corrupt": 1}
    world.shelf.values[b"u:7"] = np.array([np.nan, 1], "<f4").tobytes()
    with pytest.raises(UpstreamError) as error:
        await world.look_up(1, 7)
    assert error.value.failure is Failure.BROKEN


async def test_what_was_written_is_read_again(world: World) -> None:
    await world.look_up(1, 2)
    world.write(_1=11)
    world.table._written([b"u:1", b"x:2"])
    assert await world.look_up(1, 2) == ([11, 2], TableTold("user", fresh=2))
    assert world.shelf.asked[1:] == [[b"u:1"]]
    world.table.near.distrust()
    await world.look_up(1, 2)
    assert world.shelf.asked[2:] == [[b"u:1", b"u:2"]]


@pytest.mark.parametrize("news", ["of a key", "of all keys", "that nobody listens"])
@pytest.mark.parametrize("written", ["before the read", "after the read"])
async def test_what_was_written_while_the_store_was_asked_is_not_held_as_fresh(news: str, written: str) -> None:
    """The read and the news of a write pass each other on the way: nobody knows which value was read."""
    world = World()
    world.write(_1=1)
    listening = Listening()
    world.table.tracker = listening  # type: ignore[assignment]
    asked = world.shelf.get_many

    def write() -> None:
        world.write(_1=5, _9=9)
        if news == "of a key":
            world.table._written([b"u:1", b"u:9"])
        elif news == "of all keys":
            world.table.near.distrust()
        else:
            listening.hears = False

    async def crossing(keys: Sequence[bytes], seconds: float) -> list[Found]:
        if written == "before the read":
            write()
        found = await asked(keys, seconds)
        if written == "after the read":
            write()
        return found

    world.shelf.get_many = crossing  # type: ignore[method-assign]
    world.table.config = structs.replace(world.table.config, default=0.0)
    await world.look_up(1, 9)
    world.shelf.get_many = asked  # type: ignore[method-assign]
    assert await world.look_up(1, 9) == ([5, 9], TableTold("user", fresh=2))
    assert world.shelf.asked[1:] == [[b"u:1", b"u:9"]]


async def test_nothing_is_fresh_while_nobody_listens_for_writes(world: World) -> None:
    listening = Listening()
    world.table.tracker = listening  # type: ignore[assignment]
    await world.look_up(1)
    await world.look_up(1)
    assert len(world.shelf.asked) == 1
    listening.hears = False
    world.write(_1=5)
    assert (await world.look_up(1))[0] == [5]
    world.shelf.failure = StoreError("unreachable")
    assert await world.look_up(1) == ([5], TableTold("user", stale=1))


async def test_how_long_look_ups_keep_requests_waiting_is_counted_by_where_the_rows_were(world: World) -> None:
    asked = world.shelf.get_many

    async def slow(keys: Sequence[bytes], seconds: float) -> list[Found]:
        world.now += 0.25
        return await asked(keys, seconds)

    world.shelf.get_many = slow  # type: ignore[method-assign]
    await world.look_up(1, 2)
    await world.look_up(2, 1)
    await world.look_up(1, 3)
    world.shelf.failure = StoreError("unreachable", "gone")
    with pytest.raises(UpstreamError):
        await world.look_up(4)
    assert world.table.lookups == {"memory": 1, "store": 3}
    assert world.table.lookup_seconds == {"memory": 0.0, "store": 0.75}


@pytest.mark.parametrize(("kind", "known", "impossible"), [
    ("text", b"ann", [b"x" * 6, b"x" * 16_000_000]),
    ("integer", b"7", [b"abc", b"07", b"9" * 19, b"", b"7" * 16_000_000]),
])  # fmt: skip
async def test_what_can_be_no_id_of_the_table_is_absent_and_not_asked_for(
    kind: str, known: bytes, impossible: list[bytes]
) -> None:
    world = World(ids=kind, id_bytes_max=5, default=0.0)
    world.write(**{f"_{known.decode()}": 1})
    world.shelf.values.update((b"u:" + each, b"\0" * 8) for each in impossible)
    ids = [known, *impossible, known]
    for _ in range(2):
        looked = await world.table.look_up(ids, 1.0)
        assert looked.rows[:, 0].tolist() == [1, *[0] * len(impossible), 1]
        assert looked.told == TableTold("user", fresh=2, absent=len(impossible))
    assert world.shelf.asked == [[b"u:" + known] * 2]
    assert world.table.rows_told["absent"] == 2 * len(impossible)
    world.table.tracker = Listening()  # type: ignore[assignment]
    world.table.tracker.hears = False  # type: ignore[attr-defined]
    world.shelf.failure = StoreError("unreachable")
    assert (await world.table.look_up(ids[1:-1], 1.0)).told == TableTold("user", absent=len(impossible))


async def test_an_id_of_megabytes_is_not_told_back() -> None:
    world = World(ids="text")
    euros = ("\u20ac" * 80).encode()
    for each, shown in ((b"x" * 10**7, "x" * 64), (b"\xff" * 80, "\ufffd" * 64), (euros, "\u20ac" * 64)):
        with pytest.raises(UnknownId) as unknown:
            await world.table.look_up([each, b"y" * 64], 1.0)
        assert str(unknown.value) == f"table user has no {shown}..., {'y' * 64}"


async def test_what_was_read_in_time_is_kept_though_the_rest_was_late() -> None:
    world = World(default=0.0)
    world.write(_1=1, _2=2, _3=3, _4=4)
    asked = world.shelf.get_many
    room = 2

    async def some(keys: Sequence[bytes], seconds: float) -> list[Found]:
        found = await asked(keys, seconds)
        return found[:room] + [StoreError("late", "20 ms")] * (len(found) - room)

    world.shelf.get_many = some  # type: ignore[method-assign]
    assert await world.look_up(1, 2, 3, 4) == ([1, 2, 0, 0], TableTold("user", fresh=2, lost=2))
    assert await world.look_up(1, 2, 3, 4) == ([1, 2, 3, 4], TableTold("user", fresh=4))
    assert world.shelf.asked[1:] == [[b"u:3", b"u:4"]]
    assert world.table.failures == {"late": 1}  # for the look-up: it speaks of no row
    room = 0
    world.table.config = structs.replace(world.table.config, default="error")
    with pytest.raises(UpstreamError, match="table user: late") as error:
        await world.look_up(1, 9)
    assert error.value.failure is Failure.TIMEOUT


async def test_no_ids_at_all(world: World) -> None:
    assert await world.look_up() == ([], TableTold("user"))


async def test_nothing_is_fresh_of_a_file_that_another_was_put_in_the_place_of(tmp_path: Path) -> None:
    async def write(name: str, number: float) -> Path:
        store = LmdbStore(str(tmp_path / name), writable=True)
        await store.put_many([(b"u:1", np.array([number, -number], "<f4").tobytes())], None, 5.0)
        await store.close()
        return tmp_path / name

    await write("users", 1)
    now = 100.0
    config = TableConfig(store=f"lmdb:{tmp_path}/users", ttl=Seconds(3600), shape=(2,), key="u:{id}")
    config = structs.replace(config, bytes_max=Size(2**20))
    sources = Sources(lambda: now)
    one, other = (Table(name, config, sources.source(config), lambda: now, b"seed") for name in ("one", "other"))

    async def looked() -> list[float]:
        return [float((await each.look_up(np.array([1], np.int64), 1.0)).rows[0, 0]) for each in (one, other)]

    with capture_logs() as log:
        assert await looked() == [1, 1]
        (await write("new", 2)).rename(tmp_path / "users")
        assert await looked() == [1, 1]
        now += 1
        assert await looked() == [2, 2]
        assert one.lookups == other.lookups == {"memory": 1, "store": 2}
        (tmp_path / "bad").write_bytes(b"x" * 10_000)
        (tmp_path / "bad").rename(tmp_path / "users")
        end = time.monotonic() + 30.0
        while len(log) < 4 and time.monotonic() < end:  # the file before is closed beside the event loop
            now += 1
            assert await looked() == [2, 2]
            await asyncio.sleep(0.002)
        for _ in range(3):
            now += 1
            assert await looked() == [2, 2]
    assert sorted((each["event"].partition(":")[0], each["table"]) for each in log) == [
        ("table file not taken", "one"),
        ("table file not taken", "other"),
        ("table file replaced", "one"),
        ("table file replaced", "other"),
    ]
    assert one.failures == other.failures == {"corrupt": 1}
    await sources.close()
