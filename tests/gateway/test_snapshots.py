"""Passes: how much of the event loop and of the disk they take, and what becomes of them when the disk does not."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from degrade.record import PAYLOAD_BYTES_MAX, Record, Terms, name_of, packed
from gateway import snapshots as module
from gateway.config import Backend, CacheConfig, Config, TierConfig
from gateway.config import Route as RouteConfig
from gateway.config_snapshot import SnapshotConfig
from gateway.copies import Pending
from gateway.facts_copies import FACTS_AGAIN_SECONDS
from gateway.learning import Home
from gateway.operate.faults import Rule
from gateway.route import Route
from gateway.snapshots import Snapshots
from gateway.sources import load
from gateway.surroundings import Surroundings
from gateway.units import Seconds, Size
from tiers.facts import ModelFacts


def facts(instances: int) -> ModelFacts:
    return ModelFacts("m", ("1",), (), (), 0, False, False, instances)


TERMS = Terms(b"f", 1e9, lambda payload: payload)


def pending(key: int, payload: bytes) -> Pending:
    """Of a record; of an end, where there is no payload."""
    record = Record("answer", "s", b"%d" % key, b"f", b"", 1.0, 1.0, payload)
    return Pending(name_of(record.kind, record.source, record.key), packed(record), is_end=not payload)


class Source:
    """Something that is copied: records of ``size`` bytes, all of which are used."""

    def __init__(self, count: int, size: int = 100) -> None:
        self.waiting = list(range(count))
        self.size = size
        self.taken: list[int] = []
        self.turns: list[int] = []
        self.swept = 0
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self.waiting)

    def take(self, count: int) -> list[Pending]:
        keys, self.waiting = self.waiting[:count], self.waiting[count:]
        self.taken += keys
        self.turns.append(len(keys))
        return [self._pending(key) for key in keys]

    def _pending(self, key: int) -> Pending:
        return pending(key, os.urandom(self.size))

    def again(self) -> None:
        self.waiting, self.taken = self.taken + self.waiting, []

    def written(self) -> None:
        self.taken = []

    def sweep(self, bytes_max: int) -> None:
        self.swept += 1


class World:
    def __init__(self, folder: Path, wall: float = 1_000_000.0) -> None:
        self.now = 1000.0
        self.pauses = 0
        config = SnapshotConfig(str(folder), Seconds(10), Size(16 * 2**20))
        around = Surroundings(lambda: self.now, lambda: wall + self.now, random.Random(1), os.urandom)
        self.snapshots = Snapshots(config, around)

    async def sleep(self, seconds: float) -> None:
        self.pauses += 1
        await asyncio.sleep(0)

    def copy(self, *sources: Source) -> None:
        self.snapshots._copied = {f"routes/{place}": source for place, source in enumerate(sources)}

    async def passed(self, seconds: float = 30.0) -> str:
        return await self.snapshots.copy(self.sleep, seconds)

    def there(self, key: int) -> bool:
        return self.snapshots.snapshot.find("answer", "s", b"%d" % key, TERMS, 2.0) is not None


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "snapshot")
    await made.snapshots.open()
    yield made
    made.copy()
    await made.snapshots.close(0.0)


async def test_passes_are_an_interval_apart_and_less_while_more_waits_than_one_takes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, slept = Source(5), list[float]()
    monkeypatch.setattr(module, "RECORDS_MAX", 64)
    world.copy(source)

    async def copy(sleep: object) -> str:
        source.waiting = source.waiting[64:]
        return "written"

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            source.waiting = list(range(64 * 4))
        if len(slept) == 7:
            raise asyncio.CancelledError

    monkeypatch.setattr(world.snapshots, "copy", copy)
    with pytest.raises(asyncio.CancelledError):
        await world.snapshots._run(10.0, sleep)
    assert slept == [10.0, 10.0, module.SOON_SECONDS, module.SOON_SECONDS, 10.0, 10.0, 10.0]


async def test_a_pass_takes_all_there_is_in_turn(world: World) -> None:
    one, other = Source(100), Source(100)
    world.copy(one, other)
    assert await world.passed() == "written"
    assert (len(one), len(other), world.snapshots.copied) == (0, 0, 200)
    assert one.turns == other.turns
    assert all(world.there(key) for key in range(100))
    assert world.snapshots.passes == {"written": 1}


@pytest.mark.parametrize("payloads", [(b"a", b""), (b"", b"a"), (b"a", b"", b"b"), (b"", b"a", b"")])
async def test_of_what_comes_and_goes_within_a_pass_the_last_word_is_kept(
    world: World, payloads: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(1)
    world.copy(source)
    await world.passed()
    monkeypatch.setattr(source, "take", lambda _: [pending(0, each) for each in payloads if source.waiting.pop() == 0])
    source.waiting = [0] * len(payloads)
    await world.passed()
    found = world.snapshots.snapshot.find("answer", "s", b"0", TERMS, 2.0)
    assert found is not None
    assert found.value == payloads[-1]


async def test_an_idle_pass_says_that_all_is_well(world: World) -> None:
    world.copy(Source(0))
    assert await world.passed() == "written"  # a generation to write to
    world.now += 7.0
    assert world.snapshots.age == 7.0
    assert await world.passed() == "idle"
    assert world.snapshots.age == 0.0


async def test_an_idle_pass_writes_nothing(world: World, tmp_path: Path) -> None:
    catalog = SimpleNamespace(recall=lambda model, version: facts(instances))
    config = load(None, {"TAILRACE_ROUTES__R__TIERS": "[{ backend = 'upstream', model = 'm' }]"}, ["http://a:1"])
    world.snapshots.facts.seed(config, {"upstream": SimpleNamespace(catalog=catalog)}, {})  # type: ignore[dict-item]
    instances, seen = 1, []
    # Each look at a model makes its facts anew. A new generation gets all that there is once more.
    for outcome in ("written", "written", "idle", "idle"):
        assert await world.passed() == outcome
        seen.append([path.read_bytes() for path in sorted((tmp_path / "snapshot").glob("*.mdb"))])
    assert seen[0] != seen[1] == seen[2] == seen[3]
    assert world.snapshots.copied == 2
    instances = 2
    assert await world.passed() == "written"
    world.now += FACTS_AGAIN_SECONDS
    assert await world.passed() == "written"
    assert (await world.passed(), world.snapshots.copied) == ("idle", 4)


async def test_what_all_models_are_is_known_of_the_same_servers_alone(world: World) -> None:
    """Then a gateway is ready before any of them has answered."""
    catalog = SimpleNamespace(recall=lambda model, version: facts(1))
    tiers = {"TAILRACE_ROUTES__R__TIERS": "[{ backend = 'upstream', model = 'm' }]"}
    more = tiers | {"TAILRACE_ROUTES__S__TIERS": "[{ backend = 'upstream', model = 'n' }]"}
    copies = world.snapshots.facts
    config = load(None, tiers, ["http://a:1"])
    assert (await copies.remembered(config), copies.are_whole) == ({}, False)
    copies.seed(config, {"upstream": SimpleNamespace(catalog=catalog)}, {})  # type: ignore[dict-item]
    await world.passed()
    await world.passed()
    for changed, known in ((config, True), (load(None, tiers, ["http://b:1"]), False)):
        assert await copies.remembered(changed) == {("upstream", "m"): facts(1)}
        assert copies.are_whole is known
    await copies.remembered(load(None, more, ["http://a:1"]))
    assert not copies.are_whole
    await copies.remembered(load(None, {}, ["http://a:1"]))
    assert not copies.are_whole


async def test_an_idle_pass_makes_the_directory_anew_that_was_removed(world: World, tmp_path: Path) -> None:
    source = Source(3)
    world.copy(source)
    assert await world.passed() == "written"
    shutil.rmtree(tmp_path / "snapshot")
    assert await world.passed() == "written"
    assert (await world.passed(), source.swept) == ("idle", 2)


async def test_a_pass_is_bounded_in_records(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECORDS_MAX", 64)
    source = Source(1000)
    world.copy(source)
    for left in (936, 872):
        assert await world.passed() == "written"
        assert len(source) == left
    assert world.snapshots.waiting == 872


async def test_what_found_no_room_to_wait_in_is_counted_though_a_reload_takes_it_away(world: World) -> None:
    source = Source(0)
    world.copy(source)
    source.forgotten = 7
    assert world.snapshots.forgotten == 7
    for _ in range(2):
        world.snapshots.share(Config(), {}, {})
        assert world.snapshots.forgotten == 7


async def test_a_pass_is_bounded_in_bytes(world: World) -> None:
    source = Source(50, PAYLOAD_BYTES_MAX // 4)
    monkeypatch_turn = 4
    world.copy(source)
    source.take = lambda count, take=source.take: take(min(count, monkeypatch_turn))  # type: ignore[method-assign]
    assert await world.passed() == "written"
    assert 0 < 50 - len(source) <= world.snapshots._pass_bytes_max / source.size + monkeypatch_turn
    while len(source):
        assert await world.passed() == "written"
    assert world.there(49)


async def test_others_have_their_turn_after_a_millisecond(world: World) -> None:
    source = Source(320)

    def slow(count: int, take: Callable[[int], Any] = source.take) -> Any:
        world.now += 0.0006
        return take(count)

    source.take = slow  # type: ignore[method-assign]
    world.copy(source)
    await world.passed()
    assert world.pauses >= 5
    assert 0.001 <= world.snapshots.turn_seconds_max < 0.0013


async def test_a_turn_that_makes_nothing_is_not_the_last_one(world: World) -> None:
    """Keys may have left memory, and a sweep steps over what was not used."""
    source = Source(100)
    turns = iter(range(100))
    source.take = lambda count, take=source.take: take(count) if next(turns) % 2 else []  # type: ignore[method-assign]
    world.copy(source)
    assert await world.passed() == "written"
    assert (len(source), world.there(99)) == (0, True)


@pytest.mark.parametrize("outcome", ["full", "refused", "unreachable"])
async def test_what_the_disk_did_not_take_waits(world: World, monkeypatch: pytest.MonkeyPatch, outcome: str) -> None:
    source = Source(10)
    world.copy(source)
    monkeypatch.setattr(world.snapshots.snapshot, "write", lambda *_: outcome)
    assert await world.passed() == outcome
    assert (len(source), world.snapshots.copied) == (10, 0)
    monkeypatch.undo()
    assert await world.passed() == "written"
    assert world.there(9)
    assert world.snapshots.passes == {outcome: 1, "written": 1}


async def test_another_process_is_waited_for_a_little(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(10)
    world.copy(source)
    told = iter(["busy"] * 3 + ["written"])
    monkeypatch.setattr(world.snapshots.snapshot, "write", lambda *_: next(told))
    assert await world.passed() == "written"
    monkeypatch.setattr(world.snapshots.snapshot, "write", lambda *_: "busy")
    source.waiting = [1]
    assert await world.passed() == "busy"
    assert len(source) == 1


async def test_a_disk_that_hangs_holds_up_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    write = world.snapshots.snapshot.write

    def hanging(pairs: Any, now: float, ends: object) -> str:
        gate.wait()
        return write(pairs, now)

    source = Source(10)
    world.copy(source)
    monkeypatch.setattr(world.snapshots.snapshot, "write", hanging)
    assert await world.passed(seconds=0.01) == "late"
    assert len(source) == 10
    assert await world.passed(seconds=0.01) == "late", "the one before has not ended, and no other is begun"
    assert len(source) == 10
    assert not world.there(1)
    gate.set()
    assert world.snapshots._writing is not None
    await world.snapshots._writing
    assert await world.passed() == "written"
    assert world.there(9)


async def test_keys_in_the_hands_of_a_disk_that_hangs_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, begun = threading.Event(), threading.Event()

    def hanging(pairs: Any, now: float, ends: object) -> str:
        begun.set()
        gate.wait()
        return "written"

    monkeypatch.setattr(world.snapshots.snapshot, "write", hanging)
    world.copy(Source(10))
    passing = asyncio.create_task(world.passed())
    await asyncio.get_running_loop().run_in_executor(None, begun.wait)
    assert world.snapshots.waiting == 10
    gate.set()
    assert (await passing, world.snapshots.waiting) == ("written", 0)


async def test_a_disk_that_is_slow_on_purpose_is_late_and_ends_no_later(world: World) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    source = Source(10)
    world.copy(source)
    world.snapshots._disk = lambda: Rule(latency=600.0)
    assert await world.snapshots.copy(sleep, 30.0) == "late"
    assert (sum(slept), world.snapshots.waiting) == (30.0, 10)
    world.snapshots._disk = lambda: Rule(latency=20.0)
    assert await world.snapshots.copy(sleep, 30.0) == "written"
    assert (sum(slept), world.snapshots.waiting) == (50.0, 0)
    source.waiting = [11]
    world.snapshots._disk = lambda: Rule(latency=600.0)
    async with asyncio.timeout(60.0):
        await world.snapshots.close(0.01)


async def test_a_new_generation_takes_what_is_used(world: World) -> None:
    source = Source(10)
    world.copy(source)
    await world.passed()
    assert source.swept == 1, "the first one is new too"
    await world.passed()
    assert source.swept == 1
    for turn in range(10):
        source.waiting = list(range(40 * turn, 40 * turn + 40))
        source.size = 20_000
        await world.passed()
    assert source.swept == 2


async def test_closing_writes_what_waits(tmp_path: Path) -> None:
    world = World(tmp_path / "snapshot")
    await world.snapshots.open()
    source = Source(50)
    world.copy(source)
    await world.snapshots.close(60.0)
    assert len(source) == 0
    source.waiting = [50]
    await world.snapshots.close(60.0)  # who stops twice is not told of a fault
    assert len(source) == 1
    again = World(tmp_path / "snapshot")
    await again.snapshots.open()
    assert again.there(49)
    await again.snapshots.close(0.0)


async def test_closing_does_not_wait_for_what_cannot_be_written(tmp_path: Path) -> None:
    """An answer of a model that was never there to say what it is: the clock of this world stands still."""
    world = World(tmp_path / "snapshot")
    await world.snapshots.open()
    source, stuck = Source(5_000), Source(1)
    stuck.take = lambda count: None  # type: ignore[method-assign]
    world.copy(source, stuck)
    async with asyncio.timeout(60.0):
        await world.snapshots.close(10.0)
    assert (len(source), len(stuck)) == (0, 1)


async def test_it_is_never_before_the_last_commit(tmp_path: Path) -> None:
    """The wall clock was set back between two lives."""
    world = World(tmp_path / "snapshot")
    await world.snapshots.open()
    world.copy(Source(1))
    assert await world.passed() == "written"
    await world.snapshots.close(0.0)
    later = World(tmp_path / "snapshot", wall=1_000_000.0 - 86_400.0)
    await later.snapshots.open()
    assert later.snapshots.age == 0.0
    later.now += 7.0
    assert later.snapshots.age == 7.0
    await later.snapshots.close(0.0)


async def test_closing_takes_anew_what_the_last_pass_had_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / "snapshot")
    await world.snapshots.open()
    source = Source(10)
    world.copy(source)
    begun, gate, write = threading.Event(), threading.Event(), world.snapshots.snapshot.write

    def failing(pairs: Any, now: float, ends: object) -> str:
        begun.set()
        gate.wait()
        monkeypatch.setattr(world.snapshots.snapshot, "write", write)
        return "full"

    monkeypatch.setattr(world.snapshots.snapshot, "write", failing)
    await world.snapshots.begin()
    await asyncio.get_running_loop().run_in_executor(None, begun.wait)
    closing = asyncio.create_task(world.snapshots.close(60.0))
    await asyncio.wait(world.snapshots._tasks)
    gate.set()
    async with asyncio.timeout(60.0):
        await closing
    assert world.snapshots.copied == 10
    again = World(tmp_path / "snapshot")
    await again.snapshots.open()
    assert all(again.there(key) for key in range(10))
    await again.snapshots.close(0.0)


@pytest.mark.parametrize("told", [True, False])
async def test_a_purge_outlives_a_reload_though_the_disk_has_not_taken_it(tmp_path: Path, told: bool) -> None:
    """A route under another configuration is another one, and nobody but its name may find what was purged."""
    (tmp_path / "snapshot").touch()  # no directory: nothing can be read or written
    world = World(tmp_path / "snapshot")
    backends = {"b": Backend(http=("http://127.0.0.1:1",))}

    def reloaded(ttl: str) -> Route:
        route = RouteConfig(tiers=(TierConfig("b", "m"),), cache=CacheConfig(Seconds.parse(ttl)))
        made = Route("r", route, [Home(None, None)], 2**20)  # type: ignore[arg-type]  # nobody is asked
        world.snapshots.share(Config(backends=backends, routes={"r": route}), {"r": made}, {})
        return made

    before = reloaded("1m").copies
    assert before is not None
    before.purges.purge()
    assert not await before.purges.settled(0.0)
    if told:
        (tmp_path / "snapshot").unlink()
        await before.purges.round()
    world.snapshots.share(Config(backends=backends), {}, {})  # a while without it
    after = reloaded("2m").copies
    assert after is not None
    assert after is not before
    assert after.purges.at == (None if told else before.purges.at)  # what is on the disk is read there
    await world.snapshots.close(0.0)


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("name", ["r", None])
@pytest.mark.parametrize("meanwhile", ["not copied", "not configured"])
async def test_a_purge_holds_for_what_is_not_copied_at_that_moment(
    tmp_path: Path, restarts: bool, name: str | None, meanwhile: str
) -> None:
    """Something bad was cached: copies are switched off, it is purged, and they are switched on again."""
    world = World(tmp_path / "snapshot")
    await world.snapshots.open()

    def taken(snapshot: str) -> Route:
        route = RouteConfig(tiers=(TierConfig("b", "m"),), cache=CacheConfig(Seconds(60), snapshot=snapshot))  # type: ignore[arg-type]
        made = Route("r", route, [Home(None, None)], 2**20)  # type: ignore[arg-type]  # nobody is asked
        routes = {"r": route} if snapshot != "gone" else {}
        config = Config(backends={"b": Backend(http=("http://127.0.0.1:1",))}, routes=routes)
        world.snapshots.share(config, {"r": made} if routes else {}, {})
        world.snapshots.keep()
        return made

    assert taken("stale").copies is not None
    await world.snapshots.begin()
    assert taken("off" if meanwhile == "not copied" else "gone").copies is None
    world.now += 1.0
    at = world.snapshots._calendar.now()
    world.snapshots.marks.purge(name)
    assert await world.snapshots.marks.settled(60.0)
    if restarts:
        await world.snapshots.close(0.0)
        world = World(tmp_path / "snapshot")
        await world.snapshots.open()
    after = taken("stale").copies
    assert after is not None
    await world.snapshots.marks.round()
    assert after.purges.at == at
    await world.snapshots.close(0.0)
