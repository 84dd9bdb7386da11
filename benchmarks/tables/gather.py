"""Rows a second: the arena and others, asked for the same batches in turns.

Rule of this file: it measures and compares; in each round all rows of a batch are held against the right ones.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import uvloop
from msgspec import Struct
from numpy.typing import NDArray
from redis.asyncio import Redis

from benchmarks import facts, measure
from benchmarks.report import Spread, spread
from cache.arena import Arena, Room
from cache.table import Lives, NearTable, TableShape
from cache.words import hashing, words
from examples.redisserver import RedisMissing, RedisServer, find_program

Rows = NDArray[np.float32]
Ids = NDArray[np.int64]
Gather = Callable[[int], Rows]
"""The rows of one of the round's batches, by its number."""

WIDTH: Final = 128
BATCHES: Final = (64, 1_024, 16_384)
ALPHA: Final = 0.99
SEED: Final = b"a benchmark's: no secret"
LOAD_ROWS: Final = 10_000
KEYS_PER_RUN: Final = 262_144
"""Asked of each in a round, in batches: some tenths of a second."""
SLOWER: Final = {"redis": 8}
"""Asked so many times less."""
TITLES: Final = {
    "limit": "numpy.take on known slots: the limit",
    "arena": "the arena",
    "table": "the near cache: the arena, and what each row is worth now",
    "slots": "a dict of slots, then numpy.take",
    "dict": "a dict of arrays",
    "redis": "redis.asyncio, MGET",
}
OF_LIMIT_MIN: Final = 0.45
TIMES_REDIS_MIN: Final = 10.0
AIMED_FROM: Final = 1_024
"""Keys in a batch from which on both hold."""


class GatherFailed(RuntimeError):
    """Rows were not the right ones: what follows would mean nothing."""


class Rate(Struct, frozen=True):
    """``of_limit``: as a share of the limit's rate; ``arena_times``: the arena's rate as a multiple of this. Both round
    by round."""

    batch: int
    peer: str
    rows_per_second: Spread
    of_limit: Spread
    arena_times: Spread


class Peers:
    """Everybody who is asked, with the same rows: ``ids`` in any order, row n the vector of ``ids[n]``."""

    def __init__(self, ids: Ids, rows: Rows, server: RedisServer, runner: asyncio.Runner) -> None:
        self._ids, self._rows, self._runner = ids, rows, runner
        self._redis, self._server = Redis.from_url(server.url), server.child.pid
        self._row_bytes = rows.itemsize * WIDTH
        room = Room(0, self._row_bytes)
        self._arena = Arena(Room(math.ceil(len(ids) * room.bytes_per_row * 1.01), self._row_bytes), hashing(0, SEED))
        shape = TableShape(math.ceil(len(ids) * (room.bytes_per_row + 8) * 1.05), "float32", (WIDTH,))
        self._table = NearTable(shape, Lives(1e9, 1e9, 1e9), SEED)
        self._slots = dict(zip(ids.tolist(), range(len(ids)), strict=True))
        self._dict = dict(zip(ids.tolist(), rows, strict=True))
        self._batches: list[Ids] = []
        self._known: list[Ids] = []
        self.gathers: dict[str, Gather] = {
            "limit": self._limit, "arena": self._of_arena, "table": self._of_table,
            "slots": self._of_slots, "dict": self._of_dict, "redis": self._of_redis,
        }  # fmt: skip

    def fill(self) -> None:
        """Hand the rows to those who keep their own. Raises GatherFailed."""
        void = self._rows.view(np.dtype((np.void, self._row_bytes)))[:, 0]
        for start in range(0, len(self._ids), LOAD_ROWS):
            ids = self._ids[start : start + LOAD_ROWS]
            self._arena.put(words(ids, 0)[0], void[start : start + LOAD_ROWS])
            self._table.put(ids, self._rows[start : start + LOAD_ROWS], 0.0, self._table.ticket())
            values = [row.tobytes() for row in self._rows[start : start + LOAD_ROWS]]
            self._runner.run(self._redis.mset(dict(zip(_named(ids), values, strict=True))))
        if (self._arena.entries, self._table.entries) != (len(self._ids), len(self._ids)):
            raise GatherFailed(f"{self._arena.entries} and {self._table.entries} rows are held, not {len(self._ids)}")

    def close(self) -> None:
        self._runner.run(self._redis.aclose())

    def draw(self, known: Sequence[Ids]) -> None:
        """Ask for the rows of these numbers (slots of the limit) from now on."""
        self._known = list(known)
        self._batches = [self._ids.take(one) for one in known]

    def check(self) -> None:
        """Raises GatherFailed if anybody's first batch is wrong."""
        right = self._rows.take(self._known[0], axis=0)
        for name, gather in self.gathers.items():
            if not np.array_equal(gather(0), right):
                raise GatherFailed(f"{TITLES[name]}: not the rows that were put")

    def rate(self, name: str, count: int, batch: int) -> float:
        """Rows a second of processor time, by the median of ``count`` batches: what else the machine does counts as
        little as can be. Redis is charged for its server's time too, and not for the waiting."""
        gather, spent = self.gathers[name], []
        for number in range(count):
            start = self._nanoseconds(name)
            gather(number)
            spent.append(self._nanoseconds(name) - start)
        return batch * 1e9 / statistics.median(spent)

    def _nanoseconds(self, name: str) -> int:
        own = time.process_time_ns()
        return own + measure.nanoseconds(self._server) if name == "redis" else own

    def _limit(self, number: int) -> Rows:
        return self._rows.take(self._known[number], axis=0)

    def _of_arena(self, number: int) -> Rows:
        slots = self._arena.find(words(self._batches[number], 0)[0])
        return self._arena.rows(slots).view(np.float32).reshape(-1, WIDTH)

    def _of_table(self, number: int) -> Rows:
        found: Rows = self._table.find(self._batches[number], 1.0).rows.astype(np.float32, copy=False)
        return found

    def _of_slots(self, number: int) -> Rows:
        slots = list(map(self._slots.__getitem__, self._batches[number].tolist()))
        return self._rows.take(slots, axis=0)

    def _of_dict(self, number: int) -> Rows:
        held = list(map(self._dict.__getitem__, self._batches[number].tolist()))
        return np.concatenate(held).reshape(-1, WIDTH)

    def _of_redis(self, number: int) -> Rows:
        values = self._runner.run(self._redis.mget(_named(self._batches[number])))
        return np.frombuffer(b"".join(values), np.float32).reshape(-1, WIDTH)


def _named(ids: Ids) -> list[bytes]:
    return [b"item:%d" % number for number in ids.tolist()]


@contextmanager
def peers(rows: int) -> Iterator[Peers]:
    """All of them, filled with so many rows, and a Redis server of their own. Raises RedisMissing, RedisFailed."""
    chance = np.random.default_rng(1)
    with RedisServer() as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        made = Peers(chance.permutation(rows), chance.random((rows, WIDTH), np.float32), server, runner)
        try:
            made.fill()
            yield made
        finally:
            made.close()


def redis_version() -> str:
    """Of the server that is measured; "unknown" if there is none."""
    try:
        said = subprocess.run([find_program(), "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, RedisMissing, subprocess.TimeoutExpired):
        return facts.UNKNOWN
    return said.stdout.strip() or facts.UNKNOWN


def zipf(chance: np.random.Generator, population: int, count: int, alpha: float = ALPHA) -> Ids:
    """So many of the numbers below ``population``, the smallest most often."""
    sums = np.cumsum(1 / np.arange(1, population + 1) ** alpha)
    return np.searchsorted(sums / sums[-1], chance.random(count), side="right").clip(max=population - 1)


def rates(made: Peers, rows: int, rounds: int, keys: int = KEYS_PER_RUN) -> Iterator[Rate]:
    """Each batch size in turn: all are asked in each round, in another order each time."""
    chance = np.random.default_rng(2)
    names = list(made.gathers)
    for batch in BATCHES:
        count = max(2, keys // batch)
        seen: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds + 1):  # the first is warming
            made.draw(np.split(zipf(chance, rows, count * batch), count))
            made.check()
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                found = made.rate(name, max(1, count // SLOWER.get(name, 1)), batch)
                if number:
                    seen[name].append(found)
        for name in names:
            yield Rate(
                batch,
                name,
                spread(seen[name]),
                spread(mine / limit for mine, limit in zip(seen[name], seen["limit"], strict=True)),
                spread(arena / mine for mine, arena in zip(seen[name], seen["arena"], strict=True)),
            )


def missed(found: Sequence[Rate]) -> list[str]:
    """What was aimed for and is not so, in words."""
    wrong = []
    for rate in found:
        if rate.batch >= AIMED_FROM:
            if rate.peer == "arena" and rate.of_limit.median < OF_LIMIT_MIN:
                wrong.append(f"{rate.batch:,} keys: {rate.of_limit.median:.2f} of the limit, not {OF_LIMIT_MIN}")
            if rate.peer == "redis" and rate.arena_times.median < TIMES_REDIS_MIN:
                wrong.append(
                    f"{rate.batch:,} keys: {rate.arena_times.median:.1f} times Redis, not {TIMES_REDIS_MIN:.0f}"
                )
    return wrong
