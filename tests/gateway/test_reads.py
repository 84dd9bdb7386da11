"""Looks on the disk: who looks waits for a moment at most, and nobody behind one that hangs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from degrade.generation import Generation
from degrade.record import Good, Record, Terms
from gateway import reads as module
from gateway.reads import LookTime, Reads
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
        assert key != b"bad", "a bug"
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


class Thread(ThreadPoolExecutor):
    """One that begins nothing while it is ``busy``, as where others have the interpreter."""

    def __init__(self) -> None:
        super().__init__(1)
        self.busy = False
        self.turns = 0
        self._held: list[tuple[Any, ...]] = []

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.turns += 1
        if not self.busy:
            return super().submit(work, *args, **kwargs)
        self._held.append((work, *args))
        return Future()

    def go_on(self) -> None:
        self.busy = False
        for held in self._held:
            super().submit(*held)


@pytest.fixture
def thread() -> Thread:
    return Thread()


@pytest.fixture
def reads(disk: Disk, thread: Thread) -> Reads:
    return Reads(disk, thread)  # type: ignore[arg-type]  # what it needs of one


async def ask(
    reads: Reads, *keys: bytes, seconds: float = LATE, running: float | None = None
) -> list[bytes | None]:
    span = LookTime(seconds, seconds if running is None else running)
    return [found and found.value for found in await reads.read("answer", "r", keys, TERMS, 1.0, span)]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look hangs after ten milliseconds."""
    monkeypatch.setattr(module, "LOOK_SECONDS_MAX", 0.01)


async def test_what_lies_there_is_read_in_order(disk: Disk, reads: Reads) -> None:
    assert await ask(reads, b"1", b"2", b"3") == [b"1", b"2", b"3"]
    assert await ask(reads) == []
    assert not disk.failures


@pytest.mark.usefixtures("soon")
async def test_a_look_that_hangs_is_waited_for_once_and_then_there_is_nothing(disk: Disk, reads: Reads) -> None:
    disk.well.clear()
    assert await ask(reads, b"1", b"2") == [None, None]
    assert reads.hangs
    for _ in range(3):
        assert await ask(reads, b"3") == [None]  # at once, or this would take LATE
    assert disk.asked == [b"1"]
    assert (disk.failures, reads.late) == ({"timeout": 4}, 0)
    reads.settle()
    await reads.close()
    assert disk.done == [], "somebody stands in it"


@pytest.mark.usefixtures("soon")
async def test_once_it_is_well_again_it_is_read_again(disk: Disk, reads: Reads) -> None:
    disk.well.clear()
    together = await asyncio.gather(*(ask(reads, b"%d" % number) for number in range(5)))
    assert together == [[None]] * 5
    assert disk.failures == {"timeout": 5}
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
    assert (disk.done, disk.asked, disk.failures, reads.late) == (["closed"], [], {}, 0)


async def test_who_has_no_more_time_gets_nothing_and_that_says_nothing_of_the_disk(disk: Disk, reads: Reads) -> None:
    disk.well.clear()
    other = asyncio.create_task(ask(reads, b"1"))
    await until(lambda: bool(disk.asked))
    assert await ask(reads, b"2", seconds=0.01) == [None]
    assert await ask(reads, b"3") == [None], "at once, or this would take LATE: it may be the same request"
    assert (reads.late, reads.hangs, disk.failures) == (2, False, {})
    disk.well.set()
    assert await other == [b"1"]
    assert await ask(reads, b"4") == [b"4"]
    assert disk.asked == [b"1", b"4"], "nobody waits for the others"
    assert (reads.late, reads.hangs, disk.failures) == (2, False, {})


async def test_who_has_no_more_time_while_the_thread_gets_on_keeps_nobody_from_waiting(
    disk: Disk, reads: Reads, thread: Thread
) -> None:
    disk.well.clear()
    first = asyncio.create_task(ask(reads, b"1"))
    await until(lambda: bool(disk.asked))
    leaving = asyncio.create_task(ask(reads, b"2", seconds=0.05, running=LATE))
    await asyncio.sleep(0)
    reads._over += 1  # as if another had come meanwhile
    assert await leaving == [None]
    last = asyncio.create_task(ask(reads, b"3"))
    await asyncio.sleep(0)
    disk.well.set()
    assert (await first, await last, reads.late) == ([b"1"], [b"3"], 1)


@pytest.mark.usefixtures("soon")
async def test_a_thread_that_had_not_begun_is_waited_for_again_once_it_has(reads: Reads, thread: Thread) -> None:
    thread.busy = True
    assert await ask(reads, b"1", seconds=0.002) == [None]
    await until(lambda: reads.hangs)
    thread.go_on()
    await until(lambda: not reads.hangs)
    assert await ask(reads, b"2") == [b"2"]


async def test_a_look_that_has_not_begun_takes_no_time_of_the_disks(reads: Reads, thread: Thread) -> None:
    """The interpreter is others' as long as the thread has not begun."""
    thread.busy = True
    asking = asyncio.create_task(ask(reads, b"1", running=0.004))
    await asyncio.sleep(0.1)
    assert not asking.done()
    thread.go_on()
    assert await asking == [b"1"]
    assert reads.late == 0


async def test_what_passes_while_the_event_loop_is_late_takes_no_time_of_the_disks(disk: Disk, reads: Reads) -> None:
    disk.well.clear()
    asking = asyncio.create_task(ask(reads, b"1", running=0.02))
    for _ in range(20):
        time.sleep(0.02)  # noqa: ASYNC251 - that is what happens
        await asyncio.sleep(0)
    assert not asking.done()
    disk.well.set()
    assert await asking == [b"1"]


@pytest.mark.parametrize("first", [True, False])
async def test_a_look_that_lasts_holds_nobody_up_for_longer_than_he_says(
    disk: Disk, reads: Reads, first: bool
) -> None:
    """His own, or the one that is before his. Without that this would take LATE."""
    disk.well.clear()
    others = [] if first else [asyncio.create_task(ask(reads, b"0"))]
    await asyncio.sleep(0)
    assert await ask(reads, b"1", running=0.004) == [None]
    assert (reads.late, reads.hangs, disk.failures) == (1, False, {})
    disk.well.set()
    assert [await each for each in others] == [[b"0"]] * len(others)


@pytest.mark.usefixtures("soon")
async def test_a_thread_that_does_not_begin_hangs_too(disk: Disk, reads: Reads, thread: Thread) -> None:
    """It may stand in the closing of a file."""
    thread.busy = True
    assert await ask(reads, b"1") == [None]
    assert (reads.hangs, disk.failures) == (True, {"timeout": 1})
    thread.go_on()
    await until(lambda: not reads.hangs)
    assert await ask(reads, b"2") == [b"2"]
    assert disk.asked == [b"2"]


async def test_many_looks_in_one_turn_of_the_thread_are_none_that_hangs(disk: Disk, reads: Reads) -> None:
    assert await ask(reads, b"1") == [b"1"]
    loop = asyncio.get_running_loop()
    disk.well.clear()
    asking = asyncio.create_task(ask(reads, b"2"))
    await until(lambda: disk.asked == [b"1", b"2"])
    reads._judge(loop, reads._over - 1)  # as the turn had begun with the first
    assert not reads.hangs
    reads._judge(loop, reads._over)
    assert reads.hangs
    assert await asking == [None]


async def test_those_who_look_at_once_are_one_turn_of_the_thread(disk: Disk, reads: Reads, thread: Thread) -> None:
    thread.busy = True
    asking = [asyncio.create_task(ask(reads, b"%d" % number, b"x")) for number in range(100)]
    await asyncio.sleep(0)
    thread.go_on()
    assert [(await each)[0] for each in asking] == [b"%d" % number for number in range(100)]
    assert thread.turns == 1
    assert disk.asked[:4] == [b"0", b"x", b"1", b"x"], "in the order of their coming"


async def test_a_bug_in_one_look_is_for_who_asked(reads: Reads) -> None:
    bad, good = await asyncio.gather(ask(reads, b"bad"), ask(reads, b"1"), return_exceptions=True)
    assert isinstance(bad, AssertionError)
    assert good == [b"1"]
    assert await ask(reads, b"2") == [b"2"]


async def test_what_is_closed_lets_go_of_who_waits(disk: Disk, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS_MAX", 0.01)
    disk.well.clear()
    asking = [asyncio.create_task(ask(reads, b"%d" % number)) for number in range(2)]
    await until(lambda: bool(disk.asked))
    await reads.close()
    assert [await each for each in asking] == [[None]] * 2


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
