"""The arena against a dict: what it finds is what was put, whatever the hashes; and it keeps to its memory."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cache.arena import ROWS_MIN, Arena, Room
from cache.bounded import Bounded
from cache.index import NOBODY
from cache.policy import S3Fifo
from cache.words import Hashes, Hashing, Words, hashing, words

SEED = b"a test's"
ROW_BYTES = 8


def room(rows: int, row_bytes: int = ROW_BYTES, key_words: int = 1) -> Room:
    """For exactly so many rows."""
    return Room(math.ceil(rows * Room(0, row_bytes, key_words).bytes_per_row), row_bytes, key_words)


def one_hash(keys: Words) -> Hashes:
    return np.zeros(len(keys), np.uint64)


def few_hashes(keys: Words) -> Hashes:
    """All tags alike, and every bucket a bad one."""
    return (keys[:, -1] & np.uint64(3)) << np.uint64(62)


HASHINGS: dict[str, Callable[[int], Hashing]] = {
    "seeded": lambda width: hashing(width, SEED),
    "one": lambda _: one_hash,
    "few": lambda _: few_hashes,
}


def rows_of(values: list[int]) -> NDArray[np.void]:
    return np.array(values, np.int64).view(np.dtype((np.void, ROW_BYTES)))


numbers = st.lists(st.integers(0, 200), max_size=90)
operations = st.lists(
    st.tuples(st.sampled_from(["put", "put", "put", "find", "delete"]), numbers) | st.just(("clear", [])), max_size=25
)


@pytest.mark.parametrize("name", HASHINGS)
@pytest.mark.parametrize("width", [0, 1, 3])
@given(steps=operations)
def test_what_is_found_is_what_was_put(name: str, width: int, steps: list[tuple[str, list[int]]]) -> None:
    arena = Arena(room(ROWS_MIN, key_words=max(1, width)), HASHINGS[name](width))
    reserved = arena.bytes_reserved
    everything, _ = words(np.arange(201), width)
    model: dict[int, int] = {}
    value = 0
    for what, batch in steps:
        keys, _ = words(np.array(batch, np.int64), width)
        if what == "put":
            values = list(range(value, value + len(batch)))
            value += len(batch)
            slots = arena.put(keys, rows_of(values))
            model.update(zip(batch, values, strict=True))
            last = {number: slot for number, slot in zip(batch, slots.tolist(), strict=True) if slot != arena.spare}
            assert len(set(last.values())) == len(last)
        elif what == "find":
            arena.find(keys)
        elif what == "delete":
            before = arena.peek(keys)
            gone = arena.delete(keys)
            assert gone.tolist() == sorted(set(before.tolist()) - {arena.spare})
            for number in batch:
                model.pop(number, None)
        else:
            arena.clear()
            model.clear()
        slots = arena.peek(everything)
        assert [int(arena.peek(everything[n : n + 1])[0]) for n in range(0, 201, 5)] == slots[::5].tolist()
        found = arena.rows(slots).view(np.int64).tolist()
        here = [number for number in range(201) if slots[number] != arena.spare]
        assert {number: found[number] for number in here} == {number: model[number] for number in here}
        assert all(found[number] == 0 for number in set(range(201)) - set(here))
        assert len(here) == arena.entries <= arena.capacity
        assert len({int(slots[number]) for number in here}) == len(here)
        assert arena.bytes_reserved == reserved
        if name == "seeded" and arena.evictions == 0:
            assert set(here) == set(model)


# What outsiders might choose to make keys meet: neighbours, strides, single bits, differences that cancel out in a
# hash without a seed.
PATTERNS: dict[str, Callable[[int], NDArray[np.int64]]] = {
    "neighbours": np.arange,
    "strides": lambda count: np.arange(count) << 40,
    "upper": lambda count: (np.arange(count) << 47) | 7,
    "products": lambda count: (np.arange(count).astype(np.uint64) * np.uint64(0x9E37_79B9_7F4A_7C15)).view(np.int64),
    "random": lambda count: np.random.default_rng(1).integers(-(2**63), 2**63 - 1, count),
}


@pytest.mark.parametrize("seed", [b"1", b"2", b"3"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_full_means_full_whatever_the_keys(pattern: str, seed: bytes) -> None:
    arena = Arena(room(60_000), hashing(0, seed))
    keys, _ = words(PATTERNS[pattern](arena.capacity), 0)
    arena.put(keys, np.zeros(len(keys), "V8"))
    assert arena.entries >= arena.capacity - 1
    assert arena.evictions == 0


def test_wide_keys_whose_differences_cancel_out_do_not_meet() -> None:
    """One bit above and two below it: equal in x = (x ^ word) * odd; x ^= x >> 32, whatever the odd number."""
    arena = Arena(room(30_000, key_words=32), hashing(32, SEED))
    chosen = (np.arange(arena.capacity)[:, None] >> np.arange(16)) & 1
    keys = np.zeros((arena.capacity, 32), np.uint64)
    keys[:, 0::2] = chosen.astype(np.uint64) << np.uint64(63)
    keys[:, 1::2] = chosen.astype(np.uint64) * np.uint64(2**63 + 2**31)
    arena.put(keys, np.zeros(len(keys), "V8"))
    assert arena.entries >= arena.capacity - 1


def test_a_full_arena_takes_as_many_again_each_once() -> None:
    arena = Arena(room(1_000), hashing(0, SEED))
    for start in range(0, 10_000, 500):
        keys, _ = words(np.arange(start, start + 500), 0)
        slots = arena.put(keys, rows_of(list(range(start, start + 500))))
        assert (slots != arena.spare).all()
        assert arena.rows(arena.peek(keys)).view(np.int64).tolist() == list(range(start, start + 500))
    assert (arena.entries, arena.evictions) == (1_000, 9_000)


@pytest.mark.parametrize("width", [1, 3])
def test_the_key_of_free_places_is_never_held(width: int) -> None:
    arena = Arena(room(ROWS_MIN, key_words=width), hashing(width, SEED))
    keys = np.full((20, width), NOBODY, np.uint64)
    keys[1:, 0] += np.arange(1, 20, dtype=np.uint64)
    assert arena.put(keys, rows_of(list(range(20))))[0] == arena.spare
    assert arena.peek(keys[:1])[0] == arena.spare
    assert (arena.peek(keys) != arena.spare).tolist() == [False] + [True] * 19
    arena.delete(keys)
    assert (arena.peek(keys) == arena.spare).all()
    assert arena.entries == 0


def test_of_more_than_fit_the_last_stay() -> None:
    arena = Arena(room(100), hashing(0, SEED))
    keys, _ = words(np.arange(1_000), 0)
    slots = arena.put(keys, rows_of(list(range(1_000))))
    assert (slots != arena.spare).tolist() == [False] * 900 + [True] * 100


def test_room_that_deletes_leave_is_used_again() -> None:
    """Deleted rows lie idle until that is worth a walk: never more than one in 32."""
    arena = Arena(room(3_200), hashing(0, SEED))
    keys, _ = words(np.arange(100_000), 0)
    arena.put(keys[:3_200], np.zeros(3_200, "V8"))
    arena.delete(keys[1_000:2_000])
    arena.put(keys[10_000:11_000], np.zeros(1_000, "V8"))
    assert (arena.entries, arena.evictions) == (3_200, 0)
    for start in range(20_000, 40_000, 10):
        arena.delete(keys[start - 10 : start])
        arena.put(keys[start : start + 10], np.zeros(10, "V8"))
        assert arena.entries >= 3_100


REQUESTS = 4_000


def zipf(chance: np.random.Generator, population: int) -> NDArray[np.int64]:
    weights = 1 / np.arange(1, population + 1)
    return chance.choice(population, REQUESTS, p=weights / weights.sum()).astype(np.int64)


def with_wonders(chance: np.random.Generator) -> NDArray[np.int64]:
    trace = zipf(chance, 3_000)
    single = chance.random(REQUESTS) < 1 / 3
    trace[single] = 1_000_000 + np.arange(single.sum())
    return trace


def loop(_: np.random.Generator) -> NDArray[np.int64]:
    return np.arange(REQUESTS) % 250


TRACES = {"zipf": lambda chance: zipf(chance, 3_000), "wonders": with_wonders, "loop": loop}


@pytest.mark.parametrize("trace", TRACES)
def test_asked_one_by_one_it_hits_as_the_response_cache_does(trace: str) -> None:
    """The same policy, in arrays: to within 1 % of the requests as many hits as policy.py's, or more."""
    held = 200
    requests = TRACES[trace](np.random.default_rng(20231023))
    other: Bounded[int] = Bounded(held, S3Fifo(held))
    arena = Arena(room(held), hashing(0, SEED))
    hits = hits_other = 0
    for number in requests.tolist():
        keys, _ = words(np.array([number]), 0)
        if arena.find(keys)[0] == arena.spare:
            arena.put(keys, np.zeros(1, "V8"))
        else:
            hits += 1
        key = number.to_bytes(8, "little")
        node = other.node(key)
        if node is None:
            other.put(key, number, 1)
        else:
            other.use(node)
            hits_other += 1
    assert hits >= hits_other - REQUESTS // 100
    assert hits > REQUESTS // 10


@pytest.mark.parametrize("bytes_max", [2**20, 10**7])
@pytest.mark.parametrize("row_bytes", [4, 256, 512, 3_001])
@pytest.mark.parametrize("key_words", [1, 4])
def test_memory_is_what_was_said(bytes_max: int, row_bytes: int, key_words: int) -> None:
    """Everything numpy allocates, index and queues included; and filling it over and over takes nothing more."""
    tracemalloc.start()
    try:
        arena = Arena(Room(bytes_max, row_bytes, key_words), hashing(key_words, SEED))
        made, _ = tracemalloc.get_traced_memory()
        assert 0.9 * bytes_max <= arena.bytes_reserved <= 1.02 * bytes_max
        assert 0.9 * bytes_max <= made <= 1.05 * bytes_max
        for start in range(0, arena.capacity * 2, 1_000):
            keys, _ = words(np.arange(start, start + 1_000), key_words if key_words > 1 else 0)
            arena.put(keys, np.zeros(1_000, f"V{row_bytes}"))
            arena.delete(keys[::7])
        del keys
        assert tracemalloc.get_traced_memory()[0] <= made + 100_000
    finally:
        tracemalloc.stop()


RESIDENT = """
import numpy as np
from cache.table import Lives, NearTable, TableShape
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096
NearTable(TableShape(2**20, "float32", (128,)), Lives(1, 1, 1), b"").find(np.arange(10), 0)  # what numpy takes once
before = resident()
table = NearTable(TableShape(64 * 2**20, "float32", (128,)), Lives(60, 60, 60), b"a test's")
rows = np.zeros((1_000, 128), np.float32)
for start in range(0, 3 * table.capacity, 1_000):
    keys = np.arange(start, start + 1_000)
    table.put(keys, rows, 0.0, table.ticket())
    table.find(keys, 0.0)
print(resident() - before, table.entries, table.capacity)
"""


def test_a_full_table_takes_the_memory_it_was_given() -> None:
    """Resident memory of a real process, to within 10 %."""
    root = Path(__file__).parent.parent.parent
    environ = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT], capture_output=True, text=True, timeout=110, check=True, env=environ
    )
    taken, entries, capacity = map(int, done.stdout.split())
    assert entries == capacity
    assert 0.9 <= taken / (64 * 2**20) <= 1.1


def test_too_little_room_is_refused() -> None:
    with pytest.raises(ValueError, match="100 bytes hold 0 rows of 512"):
        Arena(Room(100, 512), hashing(0, SEED))
