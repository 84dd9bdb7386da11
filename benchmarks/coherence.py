"""How soon a write by anyone is seen, and that nothing older than the stated bound is served as fresh.

A writer in a process of its own changes 1,000 keys a second in a real Redis; each value says which write it is. A
reader asks the near cache for keys at random, as a route would: what is fresh there it takes, the rest it fetches and
puts. For every value that was fresh it is then checked that no write which Redis had acknowledged more than the bound
before was missing in it. Interruptions of the tracking connection are part of it: it is cut every ten seconds.

    make coherence                      60 seconds
    python -m benchmarks.coherence --seconds 10
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import struct
import sys
import time
from bisect import bisect_right
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Final

import numpy as np
from msgspec import Struct

from cache.coherence import Heard, Tracker, TrackerOptions
from cache.stores.address import parse_redis
from cache.stores.pattern import Pattern
from cache.stores.redis import RedisStore, Strings
from cache.stores.store import StoreError
from cache.table import FRESH, Lives, NearTable, TableShape
from cache.vector import Bounds, Vectors
from degrade.breaker import Breaker
from degrade.guard import STORE_BREAKER
from examples.redisserver import RedisServer

KEYS: Final = 1000
WRITES_A_SECOND: Final = 1000
STEP_SECONDS: Final = 0.005
BATCH: Final = 64
PATTERN: Final = Pattern("user:{id}")
CUT_SECONDS: Final = 10.0
READ_SECONDS: Final = 1.0
FRESH_MIN: Final = 1000
ALL: Final = -1
"""In the place of a key: every key was distrusted."""


class Seen(Struct, frozen=True):
    """``delays``: seconds from before a write was sent to when the news of it was heard. ``overdue``: values that were
    called fresh and lacked a write older than the bound; ``oldest``: by how many seconds the worst was behind."""

    writes: int
    reads: int
    fresh: int
    cuts: int
    delays: list[float]
    pings: list[float]
    overdue: int
    oldest: float


def write(port: int, stop: Event, told: Connection) -> None:
    """The writer: tells (key, number of the write, when it was sent, when it was acknowledged) of each, at the end."""
    from redis import Redis

    client = Redis(host="127.0.0.1", port=port, protocol=2)
    chance = random.Random(7)
    log: list[tuple[int, int, float, float]] = []
    numbers = [0] * KEYS
    due = time.monotonic()
    while not stop.is_set():
        time.sleep(max(0.0, due - time.monotonic()))
        chosen = [chance.randrange(KEYS) for _ in range(round(WRITES_A_SECOND * STEP_SECONDS))]
        for key in chosen:
            numbers[key] += 1
            sent = time.monotonic()
            client.set(f"user:{key}", struct.pack("<2f", key, numbers[key]))
            log.append((key, numbers[key], sent, time.monotonic()))
        due += STEP_SECONDS
    told.send(log)
    told.close()


async def watch(server: RedisServer, seconds: float, options: TrackerOptions, cut_seconds: float = CUT_SECONDS) -> Seen:
    """Write and read for so long, and until some values were fresh and the connection was cut."""
    codec = Vectors("float32", (2,), Bounds())
    store = RedisStore(parse_redis(server.url), Strings(), lambda: Breaker(STORE_BREAKER))
    near = NearTable(TableShape(4 * 2**20, "float32", (2,)), Lives(3600.0, 3600.0, 3600.0), b"seed")
    heard: dict[int, list[float]] = {ALL: []}

    def invalidate(keys: Sequence[bytes]) -> None:
        now = time.monotonic()
        ids = PATTERN.ids(keys)
        near.invalidate(ids)
        for each in ids:
            heard.setdefault(int(each), []).append(now)

    def distrust() -> None:
        near.distrust()
        heard[ALL].append(time.monotonic())

    tracker = Tracker(store.masters, PATTERN.prefix, Heard(invalidate, distrust), time.monotonic, options)
    running = asyncio.create_task(tracker.run())
    while not tracker.live():  # noqa: ASYNC110  # it is another process that makes it so
        await asyncio.sleep(0.01)
    spawn = multiprocessing.get_context("spawn")
    (ours, theirs), stop = spawn.Pipe(False), spawn.Event()
    writer = spawn.Process(target=write, args=(server.port, stop, theirs))
    writer.start()
    theirs.close()
    chance = np.random.default_rng(5)
    taken: list[tuple[float, np.ndarray, np.ndarray]] = []
    reads = cuts = taken_fresh = 0
    started = time.monotonic()
    cut_at = started + cut_seconds
    while time.monotonic() < started + seconds or taken_fresh < FRESH_MIN or (cuts == 0 and cut_seconds < seconds):
        ids = chance.integers(0, KEYS, BATCH)
        now = time.monotonic()
        found = near.find(ids, now)
        fresh = (found.state == FRESH) if tracker.live() else np.zeros(BATCH, np.bool_)
        reads += BATCH
        taken_fresh += int(fresh.sum())
        taken.append((now, ids[fresh], found.rows[fresh, 1].astype(np.int64)))
        await fetch(store, codec, near, ids[~fresh])
        if time.monotonic() > cut_at:
            cuts += 1
            cut_at += cut_seconds
            with server.client() as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await asyncio.sleep(0.002)
    stop.set()
    log, pings = ours.recv(), tracker.delays()
    writer.join()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await store.close()
    overdue, oldest = judge(log, taken, options.silence_seconds_max)
    return Seen(len(log), reads, taken_fresh, cuts, delays(log, heard), pings, overdue, oldest)


async def fetch(store: RedisStore, codec: Vectors, near: NearTable, ids: np.ndarray) -> None:
    """What a table does about what it does not have: read it, and put it with the ticket from before."""
    if not len(ids):
        return
    ticket, now = near.ticket(), time.monotonic()
    try:
        decoded = codec.decode(await store.get_many(PATTERN.keys(ids), READ_SECONDS))
    except StoreError:
        return
    near.put(ids[decoded.found], decoded.rows[decoded.found], now, ticket)
    near.put_absent(ids[~decoded.found], now, ticket)


def judge(
    log: list[tuple[int, int, float, float]], taken: list[tuple[float, np.ndarray, np.ndarray]], bound: float
) -> tuple[int, float]:
    """(how many values lacked a write that was acknowledged more than ``bound`` before; by how much the oldest)."""
    acknowledged: dict[int, list[float]] = {}
    for key, _, _, at in log:
        acknowledged.setdefault(key, []).append(at)
    overdue, oldest = 0, 0.0
    for now, ids, numbers in taken:
        for key, number in zip(ids.tolist(), numbers.tolist(), strict=True):
            times = acknowledged.get(key, [])
            if number < len(times) and times[number] < now:  # the first write that this value lacks
                oldest = max(oldest, now - times[number])
                overdue += bisect_right(times, now - bound) > number
    return overdue, oldest


def delays(log: list[tuple[int, int, float, float]], heard: dict[int, list[float]]) -> list[float]:
    """From before each write to the first news after that of its key, or of all keys."""
    found = []
    for key, _, sent, _ in log:
        after = [
            times[place]
            for times in (heard.get(key, []), heard[ALL])
            if (place := bisect_right(times, sent)) < len(times)
        ]
        found += [min(after) - sent] if after else []
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coherence")
    parser.add_argument("--seconds", type=float, default=60.0)
    chosen = parser.parse_args()
    options = TrackerOptions()
    with RedisServer() as server:
        seen = asyncio.run(watch(server, chosen.seconds, options))
    p50, p99, worst = (1e3 * float(np.quantile(seen.delays, share)) for share in (0.5, 0.99, 1.0))
    print(f"writes {seen.writes}, values asked for {seen.reads}, of them fresh in the near cache {seen.fresh}")
    print(f"the tracking connection was cut {seen.cuts} times")
    print(f"from SET to the news of it: p50 {p50:.2f} ms, p99 {p99:.2f} ms, longest {worst:.1f} ms")
    print(f"ping there and back: p50 {1e3 * float(np.median(seen.pings)):.2f} ms" if seen.pings else "no pings")
    bound, oldest = 1e3 * options.silence_seconds_max, 1e3 * seen.oldest
    print(f"stated bound {bound:.0f} ms; the oldest fresh value was {oldest:.1f} ms behind")
    print(f"older than the bound and called fresh: {seen.overdue}")
    return 1 if seen.overdue else 0


if __name__ == "__main__":
    sys.exit(main())
