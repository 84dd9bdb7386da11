"""Looks on the disk: who looks waits for a moment at most, and nobody behind one that hangs."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from degrade.generation import Generation
from degrade.record import Good, Record, Terms
from gateway.reads import Reads
from tests.doors.house import opened, until
from tests.doors.question import Ask
from tests.gateway.conftest import EchoTriton

TERMS = Terms(b"f", 1e9, lambda payload: payload)
LATE = 30.0


class Disk:
    """A directory in which every key lies; ``hang`` until ``thaw``."""

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()
        self.well = threading.Event()
        self.well.set()
        self.asked: list[bytes] = []
        self.done: list[str] = []

    def find(self, kind: str, source: str, key: bytes, terms: Terms[bytes], now: float) -> Good[bytes]:
        self.asked.append(key)
        assert self.well.wait(LATE)
        return Good(Record(kind, source, key, b"f", b"", now, now, key), key)

    def settle(self) -> None:
        self.done.append("settled")

    def close(self) -> None:
        self.done.append("closed")


@pytest.fixture
async def disk() -> AsyncIterator[Disk]:
    made = Disk()
    yield made
    made.well.set()


@pytest.fixture
def reads(disk: Disk) -> Reads:
    return Reads(disk, ThreadPoolExecutor(1))  # type: ignore[arg-type]  # what it needs of one


async def ask(reads: Reads, *keys: bytes, seconds: float = LATE) -> list[bytes | None]:
    return [found and found.value for found in await reads.read("answer", "r", keys, TERMS, 1.0, seconds)]


async def test_what_lies_there_is_read_in_order(disk: Disk, reads: Reads) -> None:
    assert await ask(reads, b"1", b"2", b"3") == [b"1", b"2", b"3"]
    assert await ask(reads) == []
    assert not disk.failures


async def test_a_look_that_hangs_is_waited_for_once_and_then_there_is_nothing(disk: Disk, reads: Reads) -> None:
    disk.well.clear()
    assert await ask(reads, b"1", b"2", seconds=0.01) == [None, None]
    assert reads.hangs
    for _ in range(3):
        assert await ask(reads, b"3") == [None]  # at once, or this would take LATE
    assert disk.asked == [b"1"]
    assert disk.failures == {"timeout": 4}
    reads.settle()
    await reads.close()
    assert disk.done == [], "somebody stands in it"


async def test_once_it_is_well_again_it_is_read_again(disk: Disk, reads: Reads) -> None:
    disk.well.clear()
    together = await asyncio.gather(*(ask(reads, b"%d" % number, seconds=0.01) for number in range(5)))
    assert together == [[None]] * 5
    disk.well.set()
    await until(lambda: not reads.hangs)
    assert await ask(reads, b"7") == [b"7"]
    reads.settle()
    await reads.close()
    assert disk.done == ["settled", "closed"]


async def test_once_it_is_closed_there_is_nothing(disk: Disk, reads: Reads) -> None:
    await reads.close()
    assert await ask(reads, b"1", b"2") == [None, None]
    reads.settle()
    assert (disk.done, disk.asked, disk.failures) == (["closed"], [], {})


async def test_who_leaves_does_not_end_the_look(disk: Disk, reads: Reads) -> None:
    disk.well.clear()
    leaving = asyncio.create_task(ask(reads, b"1"))
    await until(lambda: bool(disk.asked))
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    disk.well.set()
    assert await ask(reads, b"2") == [b"2"]


# -- a gateway ---------------------------------------------------------------------------------------------------------


async def test_a_disk_that_hangs_holds_up_who_looks_and_nobody_else(
    triton_echo: EchoTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file system that is frozen for a backup does: reading writes into LMDB's lock file, and waits there."""
    well = threading.Event()
    well.set()
    hung: list[str] = []

    def get(self: Generation, name: bytes, kept: Callable[..., bytes | None] = Generation.get) -> bytes | None:
        if not well.is_set():
            assert threading.current_thread() is not threading.main_thread(), "the event loop stands still"
            hung.append(threading.current_thread().name.rpartition("_")[0])
            assert well.wait(LATE)
        return kept(self, name)

    monkeypatch.setattr(Generation, "get", get)
    route = '{ tiers = [{ backend = "upstream", model = "k" }], cache = { ttl = "1h" } }'
    disk = {"SNAPSHOT__PATH": str(tmp_path / "snapshot"), "SNAPSHOT__INTERVAL": "100ms"}
    async with opened([triton_echo.url], True, ROUTES__R=route, **disk) as house:
        snapshots, caller = house.gateway.snapshots, house.caller("http-json")
        assert snapshots is not None
        assert (await caller.ask(Ask(((1.0, 2.0),)))).cache == "miss"
        await until(lambda: snapshots.copied > 1)
        well.clear()
        try:
            for number in range(20):
                asked = Ask(((number + 10.0, 2.0),))
                assert [(await caller.ask(asked)).cache for _ in range(2)] == ["miss", "hit"]
            assert hung.count("snapshot-reads") == 1, "one stands there, and nobody behind him"
            assert snapshots.snapshot.failures["timeout"] >= 20
        finally:
            well.set()
        await until(lambda: not snapshots._reads.hangs)
