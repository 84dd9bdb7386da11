"""The LMDB store: a file that several processes share."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import lmdb
import pytest

from cache.stores.lmdb import DIRECT_KEYS_MAX, STEP_KEYS_MAX, LmdbOptions, LmdbStore, record, value_of
from cache.stores.store import StoreError

SECONDS = 20.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Files:
    """Makes stores on one file, and closes them."""

    def __init__(self, path: Path, stack: AsyncExitStack) -> None:
        self.path = path
        self.clock = Clock()
        self._stack = stack

    def open(self, writable: bool, options: LmdbOptions | None = None) -> LmdbStore:
        store = LmdbStore(str(self.path), writable, self.clock, options)
        self._stack.push_async_callback(store.close)
        return store


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[Files]:
    async with AsyncExitStack() as stack:
        yield Files(tmp_path / "features", stack)


async def test_what_is_put_is_found(files: Files) -> None:
    store = files.open(writable=True)
    await store.put_many([(b"a", b"1"), (b"b", b""), (b"c", b"\0" * 100_000)], None, SECONDS)
    assert await store.get_many([b"c", b"x", b"a", b"b", b"a"], SECONDS) == [b"\0" * 100_000, None, b"1", b"", b"1"]
    await store.delete_many([b"a", b"x"], SECONDS)
    assert await store.get_many([b"a"], SECONDS) == [None]
    assert await store.healthy(SECONDS)


@pytest.mark.parametrize("count", [DIRECT_KEYS_MAX, DIRECT_KEYS_MAX + 1, 2 * STEP_KEYS_MAX + 1])
async def test_large_batches(files: Files, count: int) -> None:
    store = files.open(writable=True)
    pairs = [(b"k%d" % each, b"%d" % each) for each in range(count)]
    await store.put_many(pairs, None, SECONDS)
    assert await store.get_many([key for key, _ in pairs], SECONDS) == [value for _, value in pairs]


async def test_a_large_batch_leaves_the_loop_free(files: Files) -> None:
    store = files.open(writable=True)
    await store.put_many([(b"k%d" % each, b"x" * 500) for each in range(5000)], None, SECONDS)
    reading = asyncio.create_task(store.get_many([b"k%d" % (each % 5000) for each in range(200_000)], SECONDS))
    turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    assert len(reading.result()) == 200_000
    assert turns > 10


async def test_a_ttl_is_kept(files: Files) -> None:
    store = files.open(writable=True)
    await store.put_many([(b"a", b"1")], 10.0, SECONDS)
    files.clock.now += 9.9
    assert await store.get_many([b"a"], SECONDS) == [b"1"]
    files.clock.now += 0.2
    assert await store.get_many([b"a"], SECONDS) == [None]


async def test_keys_that_lmdb_cannot_have(files: Files) -> None:
    store = files.open(writable=True)
    await store.put_many([(b"a", b"1")], None, SECONDS)
    assert await store.get_many([b"", b"a", b"x" * 512], SECONDS) == [None, b"1", None]
    for key in (b"", b"x" * 512):
        with pytest.raises(StoreError) as failed:
            await store.put_many([(b"b", b"2"), (key, b"1")], None, SECONDS)
        assert failed.value.kind == "refused"
    assert await store.get_many([b"b"], SECONDS) == [None]  # all of a call, or nothing


async def test_one_broken_record_costs_its_own_key(files: Files) -> None:
    store = files.open(writable=True)
    await store.put_many([(b"a", b"1"), (b"b", b"2")], None, SECONDS)
    await store.close()
    with lmdb.open(str(files.path), subdir=False) as environment, environment.begin(write=True) as transaction:
        held = bytearray(transaction.get(b"a"))
        held[-1] ^= 1
        transaction.put(b"a", bytes(held))
        transaction.put(b"c", b"short")
        transaction.put(b"d", b"\x09" + record(b"x", 0.0)[1:])
    broken, good, short, strange = await files.open(writable=False).get_many([b"a", b"b", b"c", b"d"], SECONDS)
    assert good == b"2"
    for each, words in ((broken, "checksum"), (short, "has 5 bytes"), (strange, "is of version 9")):
        assert isinstance(each, StoreError)
        assert each.kind == "corrupt"
        assert words in str(each)


def test_the_end_is_under_the_checksum() -> None:
    held = record(b"x", 500.0)
    assert value_of(held, 499.0) == b"x"
    assert value_of(held, 500.0) is None
    later = held[:8] + record(b"x", 600.0)[8:]
    assert isinstance(value_of(later, 0.0), StoreError)


async def test_a_file_that_is_not_there_yet(files: Files) -> None:
    reader = files.open(writable=False)
    assert not await reader.healthy(SECONDS)
    with pytest.raises(StoreError) as failed:
        await reader.get_many([b"a"], SECONDS)
    assert failed.value.kind == "unreachable"
    with pytest.raises(StoreError) as failed:
        await reader.put_many([(b"a", b"1")], None, SECONDS)
    writer = multiprocessing.get_context("spawn").Process(target=_write, args=(str(files.path), b"1"))
    writer.start()
    writer.join(SECONDS)
    assert writer.exitcode == 0
    assert await reader.get_many([b"a"], SECONDS) == [b"1"]


def _write(path: str, value: bytes) -> None:
    async def write() -> None:
        store = LmdbStore(path, writable=True)
        await store.put_many([(b"a", value)], None, SECONDS)
        await store.close()

    asyncio.run(write())


async def test_another_process_writes_and_is_seen_at_once(files: Files) -> None:
    store = files.open(writable=True)
    await store.put_many([(b"a", b"0")], None, SECONDS)
    for value in (b"1", b"2"):
        writer = multiprocessing.get_context("spawn").Process(target=_write, args=(str(files.path), value))
        writer.start()
        writer.join(SECONDS)
        assert writer.exitcode == 0
        assert await store.get_many([b"a"], SECONDS) == [value]


async def test_full(files: Files) -> None:
    store = files.open(writable=True, options=LmdbOptions(bytes_max=2**20))
    await store.put_many([(b"a", b"1")], None, SECONDS)
    with pytest.raises(StoreError) as failed:
        await store.put_many([(b"%d" % each, b"x" * 1000) for each in range(2000)], None, SECONDS)
    assert failed.value.kind == "full"
    assert await store.get_many([b"a", b"5"], SECONDS) == [b"1", None]


async def test_what_is_no_lmdb_file(files: Files) -> None:
    files.path.write_bytes(b"x" * 100_000)
    with pytest.raises(StoreError) as failed:
        await files.open(writable=False).get_many([b"a"], SECONDS)
    assert failed.value.kind == "corrupt"


async def test_no_time_and_closed(files: Files) -> None:
    store = files.open(writable=True)
    await store.put_many([(b"a", b"1")], None, SECONDS)
    for keys in ([b"a"], [b"a"] * (DIRECT_KEYS_MAX + 1)):
        with pytest.raises(StoreError) as failed:
            await store.get_many(keys, -1.0)
        assert failed.value.kind == "timeout"
    await store.close()
    with pytest.raises(StoreError) as failed:
        await store.get_many([b"a"], SECONDS)
    assert failed.value.kind == "unreachable"


async def test_what_was_read_in_time_is_given_though_the_rest_is_late(files: Files) -> None:
    store = files.open(writable=True)
    pairs = [(b"k%d" % each, b"%d" % each) for each in range(2 * STEP_KEYS_MAX)]
    await store.put_many(pairs, None, SECONDS)
    store._ticker = iter([0.0, 0.0, 0.0, 2 * SECONDS]).__next__  # the call, the thread, and each step
    found = await store.get_many([key for key, _ in pairs], SECONDS)
    assert found[:STEP_KEYS_MAX] == [value for _, value in pairs[:STEP_KEYS_MAX]]
    late = set(found[STEP_KEYS_MAX:])
    assert [each.kind for each in late if isinstance(each, StoreError)] == ["late"]
    assert f"{STEP_KEYS_MAX} of {2 * STEP_KEYS_MAX} keys" in str(late.pop())


async def test_whoever_waits_for_others_reads_says_nothing_of_the_file(files: Files) -> None:
    store = files.open(writable=True)
    await store.put_many([(b"a", b"1")], None, SECONDS)
    held = threading.Event()
    store._aside_thread().submit(held.wait)
    keys = [b"a"] * (DIRECT_KEYS_MAX + 1)
    with pytest.raises(StoreError) as failed:
        await store.get_many(keys, 0.02)
    assert failed.value.kind == "crowded"
    held.set()
    assert await store.get_many(keys, SECONDS) == [b"1"] * len(keys)


@pytest.mark.parametrize(("waited", "kind"), [(0.4, "timeout"), (0.6, "crowded")])
async def test_a_read_that_waited_for_half_of_its_time_is_no_proof(files: Files, waited: float, kind: str) -> None:
    store = files.open(writable=True)
    await store.put_many([(b"a", b"1")], None, SECONDS)
    seconds, held, began = 0.02, threading.Event(), threading.Event()
    times = iter([waited * seconds, seconds])

    def ticker() -> float:
        began.set()
        return next(times)

    store._ticker = ticker

    def hang() -> None:
        held.wait()

    with pytest.raises(StoreError) as failed:
        await store._aside(hang, seconds)
    held.set()
    assert began.is_set()
    assert failed.value.kind == kind
