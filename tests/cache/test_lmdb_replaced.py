"""An LMDB file that another one is put in the place of, while it is read."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import lmdb
import pytest

from cache.stores.lmdb import LOOK_SECONDS, LmdbStore, record
from cache.stores.store import Found

SECONDS = 20.0
SPAWN = multiprocessing.get_context("spawn")


def fill(path: Path, value: bytes, commits: int = 1, keys: int = 1) -> None:
    """As `tailrace table load` would; nothing of it stays open here."""
    with lmdb.open(str(path), subdir=False, map_size=2**28) as environment:
        for number in range(commits):
            with environment.begin(write=True) as transaction:
                transaction.put(b"commits", record(b"%d" % (number + 1), 0.0))
                for key in range(keys):
                    transaction.put(b"k%d" % key, record(value, 0.0))


class World:
    """A file, and stores on it that look when they are told to."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.path = folder / "features"
        self.now = 100.0
        self._stack = stack

    def open(self, ticker: Callable[[], float] | None = None) -> LmdbStore:
        store = LmdbStore(str(self.path), writable=False, ticker=ticker or (lambda: self.now))
        self._stack.push_async_callback(store.close)
        return store

    def replace(self, value: bytes, commits: int = 1, keys: int = 1) -> None:
        """``mv features.new features``: the lock of the old file stays."""
        new = self.path.with_name("features.new")
        new.unlink(missing_ok=True)
        fill(new, value, commits, keys)
        new.rename(self.path)
        self.path.with_name("features.new-lock").unlink()

    def look(self, store: LmdbStore) -> None:
        self.now += LOOK_SECONDS
        store.look()

    @property
    def lock(self) -> int:
        return os.stat(f"{self.path}-lock").st_ino


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(tmp_path, stack)


async def read(store: LmdbStore, *keys: bytes) -> list[Found]:
    return await store.get_many(keys or (b"k0",), SECONDS)


async def closed(store: LmdbStore) -> None:
    """Until the file that another one replaced is closed: a look before that sees nothing new."""
    await store.get_many([b"k0"] * 1000, SECONDS)  # by the thread that closes, after that


@pytest.mark.parametrize("commits", [(1, 1), (4, 1), (1, 4), (2, 1), (1, 2)])
async def test_the_new_file_is_read_from_the_next_look_on(world: World, commits: tuple[int, int]) -> None:
    fill(world.path, b"old", commits[0])
    store = world.open()
    assert await read(store) == [b"old"]
    world.replace(b"new", commits[1])
    store.look()
    world.now += LOOK_SECONDS / 2
    store.look()
    assert (await read(store), store.generation) == ([b"old"], 0), "a look within the second is none"
    world.look(store)
    assert await read(store, b"k0", b"commits") == [b"new", b"%d" % commits[1]]
    assert (store.generation, store.fault) == (1, None)
    world.look(store)
    assert (store.generation, store.fault) == (1, None), "there is nothing new"
    await closed(store)
    world.replace(b"newest")
    world.look(store)
    assert (await read(store), store.generation) == ([b"newest"], 2)


async def test_the_old_file_is_given_back(world: World) -> None:
    fill(world.path, b"old")
    store = world.open()
    await read(store)
    old = world.path.stat().st_ino
    assert str(old) in maps()
    world.replace(b"new")
    world.look(store)
    await closed(store)
    assert str(old) not in maps()
    assert str(world.path.stat().st_ino) in maps()


def maps() -> set[str]:
    """The inodes of the files that this process has mapped."""
    return {line.split()[4] for line in Path("/proc/self/maps").read_text().splitlines()}


async def test_a_batch_under_way_is_of_one_file(world: World) -> None:
    fill(world.path, b"old", keys=2000)
    halfway, replaced = threading.Event(), threading.Event()
    steps = 0

    def ticker() -> float:
        """Read before each step: the thread that reads stands still before its second one."""
        nonlocal steps
        if threading.current_thread() is not threading.main_thread():
            steps += 1
            if steps == 2:
                halfway.set()
                assert replaced.wait(SECONDS)
        return world.now

    store = world.open(ticker=ticker)
    await read(store)
    reading = asyncio.create_task(store.get_many([b"k%d" % each for each in range(2000)], SECONDS))
    await asyncio.to_thread(halfway.wait, SECONDS)
    world.replace(b"new", keys=2000)
    world.look(store)
    assert await read(store) == [b"new"]
    replaced.set()
    assert set(await reading) == {b"old"}
    assert set(await store.get_many([b"k%d" % each for each in range(2000)], SECONDS)) == {b"new"}


@pytest.mark.parametrize("spoil", ["bytes", "away"])
async def test_what_cannot_be_read_leaves_the_old_file_in_force(world: World, spoil: str) -> None:
    fill(world.path, b"old")
    store = world.open()
    await read(store)
    if spoil == "bytes":
        other = world.path.with_name("other")
        other.write_bytes(b"x" * 100_000)
        other.rename(world.path)
    else:
        world.path.rename(world.path.with_name("away"))
    for _ in range(2):
        world.look(store)
        assert store.fault is not None
        assert store.fault.kind == ("corrupt" if spoil == "bytes" else "unreachable")
        assert (await read(store), store.generation) == ([b"old"], 0)
        assert await store.healthy(SECONDS)
    world.replace(b"new")
    world.look(store)
    assert (await read(store), store.generation, store.fault) == ([b"new"], 1, None)


async def test_a_folder_whose_file_is_replaced(world: World) -> None:
    world.path.mkdir()
    fill(world.path / "data.mdb", b"old", commits=3)
    (world.path / "data.mdb-lock").unlink()
    store = world.open()
    assert await read(store) == [b"old"]
    fill(world.path / "new", b"new")
    (world.path / "new").rename(world.path / "data.mdb")
    world.look(store)
    assert (await read(store), store.generation) == ([b"new"], 1)


def _reader(path: str, told: Connection) -> None:
    """Another process: reads, and looks, whenever it is told to; says what it read and which file it is on."""

    async def serve() -> None:
        now = 100.0
        store = LmdbStore(path, writable=False, ticker=lambda: now)
        told.send(await store.get_many([b"k0"], SECONDS))
        while told.recv():
            now += LOOK_SECONDS
            store.look()
            told.send(await store.get_many([b"k0"], SECONDS))
        await store.close()

    asyncio.run(serve())


class Reader:
    def __init__(self, path: Path) -> None:
        self._end, other = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_reader, args=(str(path), other))
        self._process.start()
        self.first = self._heard()

    def look(self) -> list[Found]:
        """Look, and read."""
        self._end.send(True)
        return self._heard()

    def end(self) -> None:
        self._end.send(False)
        self._process.join(SECONDS)
        assert self._process.exitcode == 0

    def _heard(self) -> list[Found]:
        assert self._end.poll(SECONDS), "the reader says nothing"
        told: list[Found] = self._end.recv()
        return told


async def test_processes_that_share_a_file_come_to_share_the_new_one(world: World) -> None:
    fill(world.path, b"old", commits=4)
    other = Reader(world.path)
    assert other.first == [b"old"]
    store = world.open()
    assert await read(store) == [b"old"]
    was = world.lock
    world.replace(b"new")
    world.look(store)
    lock = world.lock
    assert lock != was, "the old file's lock"
    assert other.look() == await read(store) == [b"new"]
    assert world.lock == lock, "the new file's lock stays for all"
    world.look(store)
    assert store.generation == 1
    writer = SPAWN.Process(target=fill, args=(world.path, b"newer", 3))
    writer.start()
    writer.join(SECONDS)
    assert writer.exitcode == 0
    assert other.look() == await read(store) == [b"newer"]
    other.end()


async def test_who_comes_while_others_have_the_old_file_reads_the_new_one(world: World) -> None:
    fill(world.path, b"old", commits=4)
    other = Reader(world.path)
    world.replace(b"new")
    store = world.open()  # by the old file's lock every key would be absent
    assert await read(store) == [b"new"]
    assert other.look() == [b"new"]
    world.look(store)
    assert (store.generation, store.fault) == (0, None)
    other.end()
