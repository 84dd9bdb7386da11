"""How soon a write by anyone is seen, and that nothing older than the stated bound is served as fresh.

A writer in a process of its own changes 1,000 keys a second in a real Redis; each value says which write it is. A
reader looks keys up at random in a table as routes have it (``gateway/tables.py``). For every value that the table
called fresh it is then checked that no write which Redis had acknowledged more than the bound before was missing in it.
Interruptions of the tracking connection are part of it: it is cut every ten seconds.

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

from cache.coherence import Heard, Tracker
from cache.stores.pattern import Pattern
from cache.table import FRESH
from examples.redisserver import RedisServer
from gateway.config_tables import TableConfig
from gateway.stores import Sources
from gateway.tables import Table
from gateway.units import Seconds, Size

KEYS: Final = 1000
WRITES_A_SECOND: Final = 1000
STEP_SECONDS: Final = 0.005
BATCH: Final = 64
PATTERN_TEXT: Final = "user:{id}"
PATTERN: Final = Pattern(PATTERN_TEXT)
CUT_SECONDS: Final = 10.0
READ_SECONDS: Final = 1.0
WITHIN_SECONDS: Final = 1.0
"""The stated bound: what `coherent_within` is if nobody says otherwise."""
FRESH_MIN: Final = 1000
ALL: Final = -1
"""In the place of a key: every key was distrusted."""


class Seen(Struct, frozen=True):
    """``delays``: seconds from before a write was sent to when the news of it was heard. ``overdue``: values that were
    called fresh and lacked a write older than the bound; ``oldest``: by how many seconds the worst was behind. Those
    that are ``held`` are the fresh ones that were not read for the look-up."""

    writes: int
    reads: int
    fresh: int
    held: int
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


async def watch(
    server: RedisServer, seconds: float, within: float = WITHIN_SECONDS, cut_seconds: float = CUT_SECONDS
) -> Seen:
    """Write and read for so long, and until some values were fresh and the connection was cut."""
    table = table_at(server.url, within)
    tracker = table.tracker
    assert tracker is not None
    with server.client() as client:
        client.mset({f"user:{key}": struct.pack("<2f", key, 0) for key in range(KEYS)})
    heard = noted(tracker)
    running = asyncio.create_task(table.run(0.0, asyncio.sleep))
    while not table.is_live:  # noqa: ASYNC110  # it is another process that makes it so
        await asyncio.sleep(0.01)
    spawn = multiprocessing.get_context("spawn")
    (ours, theirs), stop = spawn.Pipe(False), spawn.Event()
    writer = spawn.Process(target=write, args=(server.port, stop, theirs))
    writer.start()
    theirs.close()
    while len(heard) == 1:  # noqa: ASYNC110  # it has not begun to write
        await asyncio.sleep(0.01)
    chance = np.random.default_rng(5)
    taken: list[tuple[float, np.ndarray, np.ndarray]] = []
    reads = cuts = fresh = held = 0
    started = time.monotonic()
    cut_at = started + cut_seconds
    while time.monotonic() < started + seconds or held < FRESH_MIN or (cuts == 0 and cut_seconds < seconds):
        ids = chance.integers(0, KEYS, BATCH)
        now = time.monotonic()
        here = int((table.near.find(ids, now).state == FRESH).sum()) if table.is_live else 0
        looked = await table.look_up(ids, READ_SECONDS)
        reads += BATCH
        if looked.told.fresh == BATCH:  # or else nobody knows which were, and none is counted
            fresh += BATCH
            held += here
            taken.append((now, ids, looked.rows[:, 1].astype(np.int64)))
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
    await table.close()
    overdue, oldest = judge(log, taken, within)
    return Seen(len(log), reads, fresh, held, cuts, delays(log, heard), pings, overdue, oldest)


def table_at(url: str, within: float) -> Table:
    """A table as a gateway has it."""
    config = TableConfig(
        store=url,
        key=PATTERN_TEXT,
        shape=(2,),
        ttl=Seconds(3600),
        max_stale=Seconds(3600),
        negative_ttl=Seconds(3600),
        default="zeros",
        coherence="tracking",
        coherent_within=Seconds(within),
        bytes_max=Size(4 * 2**20),
        timeout=Seconds(READ_SECONDS),
    )
    return Table("user", config, Sources(time.monotonic).source(config), time.monotonic, b"seed")


def noted(tracker: Tracker) -> dict[int, list[float]]:
    """When news of each key is heard, and of all of them; the table hears of it first."""
    heard: dict[int, list[float]] = {ALL: []}
    told = tracker.heard

    def invalidate(keys: Sequence[bytes]) -> None:
        told.invalidate(keys)
        now = time.monotonic()
        for each in PATTERN.ids(keys):
            heard.setdefault(int(each), []).append(now)

    def distrust() -> None:
        told.distrust()
        heard[ALL].append(time.monotonic())

    tracker.heard = Heard(invalidate, distrust)
    return heard


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
    with RedisServer() as server:
        seen = asyncio.run(watch(server, chosen.seconds))
    p50, p99, worst = (1e3 * float(np.quantile(seen.delays, share)) for share in (0.5, 0.99, 1.0))
    print(f"writes {seen.writes}, values asked for {seen.reads}, of them called fresh {seen.fresh}")
    print(f"held in the near cache {seen.held}, read from Redis for the request {seen.fresh - seen.held}")
    print(f"the tracking connection was cut {seen.cuts} times")
    print(f"from SET to the news of it: p50 {p50:.2f} ms, p99 {p99:.2f} ms, longest {worst:.1f} ms")
    print(f"ping there and back: p50 {1e3 * float(np.median(seen.pings)):.2f} ms" if seen.pings else "no pings")
    bound, oldest = 1e3 * WITHIN_SECONDS, 1e3 * seen.oldest
    print(f"stated bound {bound:.0f} ms; the oldest fresh value was {oldest:.1f} ms behind")
    print(f"older than the bound and called fresh: {seen.overdue}")
    return 1 if seen.overdue else 0


if __name__ == "__main__":
    sys.exit(main())
