"""Copies of a route's answers: what a process leaves, and what the next one may make of it, in virtual time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cache.digest import Key
from cache.entry import Entry
from cache.queue import Queue
from cache.response import PASSED_MAX
from cache.stores.store import Found, StoreError
from degrade.calendar import Calendar
from degrade.record import PAYLOAD_BYTES_MAX, seal
from degrade.snapshot import Snapshot, SnapshotOptions
from gateway import copies
from gateway import purges as module
from gateway.config import CacheConfig, Endpoint, TierConfig
from gateway.config import Route as RouteConfig
from gateway.copied import Answers, fingerprint_of, fingerprint_of_endpoint
from gateway.copies import READ_SECONDS, TURN_BYTES, Copies, Copy, CopyRules, Standing
from gateway.service import Served, cache_of
from gateway.units import Seconds
from gateway.witness import WATCHED_SECONDS, Clocks
from tests.gateway.here import Here
from tiers.facts import Sight
from tiers.inference import InferResponse, Tensor

OPTIONS = SnapshotOptions(16 * 2**20, inspection_seconds_max=60.0)
TTL, MAX_STALE = 100.0, 1000.0
CONFIG = CacheConfig(ttl=Seconds(TTL), max_stale=Seconds(MAX_STALE))
DIGEST = b"0123456789abcdef"


class Host:
    """What outlives a process: the clocks, the disk, and small files (here a map); and the models' server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.monotonic, self.wall = 100.0, 1_000_000.0
        self.files: dict[bytes, tuple[bytes, float]] = {}
        self.broken: set[bytes] = set()
        self.refuses = False
        self.words = itertools.count()
        self.loads = 0
        self.answers = True
        self.schema: bytes | None = b"schema"
        self.scope = b"scope"
        self.servers = b"servers!"

    def pass_by(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        found: list[Found] = []
        for key in keys:
            value, ends = self.files.get(key, (b"", 0.0))
            there = key in self.files and (not ends or ends > self.wall)
            found.append(StoreError("corrupt") if key in self.broken else value if there else None)
        return found

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        if self.refuses:
            raise StoreError("refused")
        for key, value in pairs:
            self.files[key] = value, 0.0 if ttl is None else self.wall + ttl
            self.broken.discard(key)

    async def delete_many(self, keys: Sequence[bytes], seconds: float) -> None:
        raise AssertionError

    async def healthy(self, seconds: float) -> bool:
        return True

    async def close(self) -> None: ...


class Life:
    """One process: its cache, and what it knows of the model."""

    def __init__(self, host: Host, trusts: bool = False, name: str = "r") -> None:
        self.host = host
        self.epoch = 0
        self.snapshot = Snapshot(host.folder, OPTIONS)
        self.snapshot.open()
        calendar = Calendar(lambda: host.monotonic, lambda: host.wall)
        calendar.reach(self.snapshot.written_at)
        clocks = Clocks(lambda: host.monotonic, lambda: host.wall, lambda: b"word%d" % next(host.words))
        self.calendar = calendar
        self.standing = Standing(rules(host, name, trusts), calendar, host, clocks)
        self.copies = Copies(self.standing, Here(self.snapshot), Answers(name))
        self.cache = cache_of(CONFIG)
        assert self.cache is not None
        self.standing.watch(lambda: self.epoch, self.looks, lambda: host.schema)
        self.copies.watch(self.cache)  # type: ignore[arg-type]

    def looks(self) -> dict[str, tuple[float, Sight]] | None:
        if not self.host.answers:
            return None
        sight = Sight(frozenset("1"), b"%d" % self.host.loads, {"1": (1, 1, 1, 1)})
        return {"http://h/m": (self.host.monotonic, sight)}

    async def live(self, seconds: int = 3) -> None:
        """Rounds of its watch, a second apart."""
        await self.standing.purges.round()
        for _ in range(seconds):
            await self.standing.witness.round()
            self.host.pass_by(1.0)

    def answer(
        self, value: float = 1.0, digest: bytes = DIGEST, output: Tensor | None = None, size: int = 300
    ) -> None:
        """An answer has been made, and is in memory."""
        tensor = output or Tensor("y", "FP32", (1,), np.float32(value).tobytes())
        served = Served(InferResponse("r", "1", (tensor,)), "m", 1, 0, 1)
        assert self.cache is not None
        entry = Entry(served, size, self.host.monotonic, TTL, MAX_STALE, self.epoch)
        assert self.cache.store(Key(digest, self.epoch), entry, self.cache.ticket())  # type: ignore[arg-type]

    def write(self) -> str:
        """A pass."""
        pending = []
        while len(self.copies) and (taken := self.copies.take(100)) is not None:
            pending += taken
        outcome = self.snapshot.write([(p.name, seal(p.name, p.written)) for p in pending], self.calendar.now())
        self.copies.written() if outcome == "written" else self.copies.again()
        return outcome

    async def find(self, digest: bytes = DIGEST) -> Copy | None:
        return await self.copies.find(digest, self.host.monotonic, math.inf)

    def end(self) -> None:
        self.snapshot.close()


def rules(host: Host, name: str = "r", trusts: bool = False) -> CopyRules:
    config = RouteConfig((TierConfig("b", "m"),), cache=CONFIG)
    fingerprint, servers = fingerprint_of(name, config), host.servers
    return CopyRules(f"routes/{name}", fingerprint, host.scope, TTL + MAX_STALE, trusts, servers=servers)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "snapshot")


@pytest.fixture
def born(host: Host) -> Iterator[Callable[..., Life]]:
    lives: list[Life] = []

    def life(**how: bool) -> Life:
        if lives:
            lives[-1].end()
        lives.append(Life(host, **how))
        return lives[-1]

    yield life
    for each in lives:
        each.end()


Born = Callable[..., Life]


async def copied(born: Born) -> Life:
    """A process that has lived, been asked and written, and has ended now."""
    life = born()
    await life.live()
    life.answer()
    assert life.write() == "written"
    return life


def value(copy: Copy | None) -> float | None:
    return None if copy is None else float(np.frombuffer(copy.value.response.outputs[0].data, np.float32)[0])


async def test_of_the_same_models_it_is_what_it_would_be_in_memory(born: Born, host: Host) -> None:
    await copied(born)
    host.pass_by(20.0)
    life = born()
    assert await life.find() is None, "nobody knows yet what was purged"
    await life.standing.purges.round()
    copy = await life.find()
    assert copy is not None
    assert (value(copy), copy.is_same) == (1.0, False)
    assert not life.standing.trusts(copy.word)
    await life.live(3)
    copy = await life.find()
    assert copy is not None
    assert copy.is_same
    assert host.monotonic - copy.made_at == pytest.approx(23.0)
    assert copy.value == Served(InferResponse("r", "1", copy.value.response.outputs), "m", 1, 0, 1)
    assert life.standing.outcomes["fresh"] == 1


async def test_answers_that_find_no_room_to_wait_in_are_counted(born: Born, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "KEYS_MAX", 3)
    life = born()
    for key in range(10):
        life.answer(digest=b"%16d" % key)
    assert (len(life.copies), life.copies.forgotten) == (3, 7)


async def test_of_a_changed_model_it_is_an_old_one_for_ever(born: Born, host: Host) -> None:
    await copied(born)
    host.loads += 1
    life = born(trusts=True)
    await life.standing.purges.round()
    copy = await life.find()
    assert copy is not None
    assert life.standing.trusts(copy.word), "the operator has said so, and nobody could be asked"
    await life.live(3)
    copy = await life.find()
    assert copy is not None
    assert not copy.is_same
    assert not life.standing.trusts(copy.word), "now they could"
    host.loads -= 1
    await life.live(3)
    copy = await life.find()
    assert copy is not None
    assert not copy.is_same


async def test_while_models_cannot_be_asked_only_who_said_so_trusts(born: Born, host: Host) -> None:
    await copied(born)
    host.answers = False
    for trusts in (False, True):
        life = born(trusts=trusts)
        await life.live(5)
        copy = await life.find()
        assert copy is not None
        assert not copy.is_same
        assert life.standing.trusts(copy.word) is trusts
    host.answers = True
    await life.live(3)
    copy = await life.find()
    assert copy is not None
    assert copy.is_same, "they could be asked within the minute"


@pytest.mark.parametrize("has_word", [True, False])
async def test_what_other_servers_have_answered_is_an_old_answer_whoever_trusts(
    born: Born, host: Host, has_word: bool
) -> None:
    """Two gateways that share a directory, or one whose backend was another's server before."""
    if has_word:
        await copied(born)
    else:
        life = born()
        await life.standing.purges.round()
        life.answer()
        life.write()
    host.answers = False
    for servers, trusted in ((b"others", False), (host.servers, True)):
        host.servers, host.scope = servers, b"scope of " + servers
        life = born(trusts=True)
        await life.live(5)
        copy = await life.find()
        assert copy is not None
        assert (copy.is_same, life.standing.trusts(copy.word)) == (False, trusted)


async def test_of_models_that_are_known_to_be_others_nobody_trusts_a_copy(born: Born, host: Host) -> None:
    """Though the new word cannot be written, so that nobody can tell which one holds."""
    await copied(born)
    life = born(trusts=True)
    copy = await life.find()
    assert copy is None, "nobody knows yet what was purged"
    await life.live(0)
    copy = await life.find()
    assert copy is not None
    assert life.standing.trusts(copy.word)
    host.refuses = True
    life.standing.end_turn()
    await life.live(2)
    assert life.standing.is_unknown
    assert not life.standing.trusts(copy.word)
    assert not life.standing.trusts(b"")
    host.refuses = False
    await life.live(2)
    life.answer()
    assert life.write() == "written"
    host.pass_by(5.0)  # and now the disk cannot be read
    again = await life.find()
    assert again is not None
    assert not again.is_same
    life.standing.witness.state = "unreachable"
    assert life.standing.trusts(again.word), "that is the word that held last"
    assert not life.standing.trusts(copy.word)


async def test_nobody_watched_for_too_long(born: Born, host: Host) -> None:
    await copied(born)
    host.pass_by(WATCHED_SECONDS + 1)
    life = born()
    await life.live(5)
    copy = await life.find()
    assert copy is not None
    assert not copy.is_same


async def test_what_was_made_before_there_was_a_word_gets_it_with_a_later_pass(born: Born, host: Host) -> None:
    life = born()
    await life.standing.purges.round()
    life.answer()
    assert life.write() == "written"
    assert len(life.copies) == 0, "nothing is to be done as long as there is no word"
    copy = await life.find()
    assert copy is not None
    assert not copy.is_same, "no word is not the same as no word"
    await life.live(3)
    assert len(life.copies) == 1
    assert life.write() == "written"
    life = born()
    await life.live(3)
    copy = await life.find()
    assert copy is not None
    assert copy.is_same


async def test_an_answer_of_an_earlier_epoch_gets_no_word(born: Born, host: Host) -> None:
    life = born()
    await life.live()
    assert await life.find() is None, "somebody asks, and so it is made"
    life.answer()
    life.epoch += 1
    assert life.write() == "written"
    copy = await life.find()
    assert copy is not None
    assert not copy.is_same


async def test_a_change_that_is_seen_takes_the_word_from_all_that_is_there(born: Born, host: Host) -> None:
    life = await copied(born)
    copy = await life.find()
    assert copy is not None
    assert copy.is_same
    life.standing.witness.end_turn()
    for _ in range(3):
        copy = await life.find()
        assert copy is not None
        assert not copy.is_same
        await life.live(1)
    life = born()
    await life.live(3)
    copy = await life.find()
    assert copy is not None
    assert not copy.is_same


async def test_what_was_purged_is_found_by_nobody(born: Born, host: Host) -> None:
    life = await copied(born)
    life.standing.purges.purge()
    assert await life.find() is None
    assert await life.standing.purges.settled(1.0)
    host.pass_by(1.0)
    life.answer(2.0, b"another")
    life.write()
    life = born()
    await life.live()
    assert await life.find() is None
    assert value(await life.find(b"another")) == 2.0
    assert life.snapshot.rejected["purged"] >= 1


async def test_a_purge_stays_when_something_else_of_the_route_changes(born: Born, host: Host) -> None:
    """Another ttl or one replica more are another scope of words, and the same records."""
    life = await copied(born)
    life.standing.purges.purge()
    assert await life.standing.purges.settled(1.0)
    host.scope = b"another"
    life = born()
    await life.live()
    assert await life.find() is None
    assert life.snapshot.rejected["purged"] >= 1


async def test_a_purge_that_cannot_be_written_says_so_and_is_tried_again(born: Born, host: Host) -> None:
    life = await copied(born)
    host.refuses = True
    life.standing.purges.purge()
    assert not await life.standing.purges.settled(0.01)
    assert await life.find() is None
    host.refuses = False
    assert await life.standing.purges.settled(0.01)
    life = born()
    await life.live()
    assert await life.find() is None


async def test_a_purge_whose_file_is_damaged_is_a_purge(born: Born, host: Host) -> None:
    life = await copied(born)
    life.standing.purges.purge()
    await life.standing.purges.settled(1.0)
    host.pass_by(1.0)
    life.answer(2.0)
    life.write()
    host.broken.update(key for key in host.files if key.endswith(b":purge"))
    life = born()
    await life.live()
    assert await life.find() is None
    assert not host.broken


async def test_a_purge_is_known_to_other_processes_of_the_host(born: Born, host: Host) -> None:
    life = await copied(born)
    at = host.wall
    host.files[life.standing.purges._key] = module._AT.pack(at), 0.0
    await life.standing.purges.round()
    assert await life.find() is None


@pytest.mark.parametrize("back", [0.0, 50.0, 86_400.0])
async def test_a_clock_that_is_set_back_makes_nothing_younger(born: Born, host: Host, back: float) -> None:
    life = born()
    await life.live()
    life.answer()
    host.pass_by(30.0)
    assert life.write() == "written"
    host.wall -= back
    life = born()
    await life.standing.purges.round()
    copy = await life.find()
    assert copy is not None
    assert host.monotonic - copy.made_at >= 30.0 - 1e-6
    host.pass_by(10.0)
    copy = await life.find()
    assert copy is not None
    assert host.monotonic - copy.made_at >= 40.0 - 1e-6


async def test_of_models_that_take_or_give_something_else_nothing_is_found(born: Born, host: Host) -> None:
    await copied(born)
    life = born()
    await life.standing.purges.round()
    for schema, is_found in ((b"schema", True), (b"another", False), (None, False), (b"schema", True)):
        host.schema = schema
        assert (await life.find() is not None) is is_found
    assert +life.snapshot.rejected == {"fingerprint": 1}


async def test_what_an_earlier_model_gave_is_not_copied_as_what_this_one_gives(born: Born, host: Host) -> None:
    """It stays in memory as an old answer, of the shape that the model had; its copy would say it has the new one."""
    life = born()
    await life.live()
    life.answer(1.0, b"written")
    assert life.write() == "written"
    life.answer(2.0, b"waiting")
    host.schema, life.epoch = b"another", life.epoch + 1
    life.standing.end_turn()
    life.answer(3.0, b"new")
    life.copies.sweep(2**20)
    life.write()
    life.epoch += 1  # the same model, loaded again
    life.standing.end_turn()
    life.copies.sweep(2**20)
    life.write()
    life = born()
    await life.live()
    assert [value(await life.find(digest)) for digest in (b"written", b"waiting", b"new")] == [None, None, 3.0]
    host.schema = b"schema"
    assert value(await life.find(b"written")) == 1.0


async def test_an_age_beyond_what_may_be_served_is_the_end(born: Born, host: Host) -> None:
    await copied(born)
    host.pass_by(TTL + MAX_STALE - 2.0)
    life = born()
    await life.standing.purges.round()
    assert await life.find() is not None
    host.pass_by(5.0)
    assert await life.find() is None
    assert life.snapshot.rejected["age"] == 1


async def test_another_configuration_finds_nothing(born: Born, host: Host) -> None:
    await copied(born)
    life = born()
    await life.live()
    changed = msgspec.structs.replace(life.standing.rules, fingerprint=b"another")
    clocks = Clocks(lambda: host.monotonic, lambda: host.wall, lambda: b"w")
    standing = Standing(changed, life.calendar, host, clocks)
    standing.schema = lambda: host.schema
    await standing.purges.round()
    other = Copies(standing, Here(life.snapshot), Answers("r"))
    assert await other.find(DIGEST, host.monotonic, math.inf) is None
    assert life.snapshot.rejected["fingerprint"] == 1


def test_a_fingerprint_is_of_what_decides_an_answer_and_of_nothing_else() -> None:
    base = RouteConfig((TierConfig("b", "m"),), cache=CONFIG)

    def of(**changes: object) -> bytes:
        return fingerprint_of("r", msgspec.structs.replace(base, **changes))

    same = [
        of(timeout=Seconds(1)),
        of(degrade=()),
        of(cache=msgspec.structs.replace(CONFIG, ttl=Seconds(5), snapshot="fresh", second="redis://h")),
    ]
    others = [
        of(tiers=(TierConfig("b", "n"),)),
        of(tiers=(TierConfig("c", "m"),)),
        of(tiers=(TierConfig("b", "m", "2"),)),
        of(cache=msgspec.structs.replace(CONFIG, shared=True)),
        fingerprint_of("s", base),
    ]
    assert set(same) == {of()}
    assert len({of(), *others}) == len(others) + 1


def test_a_page_of_one_backend_is_none_of_another() -> None:
    base = Endpoint("/score", backend="staging", cache=CacheConfig(ttl=Seconds(10)))

    def of(**changes: object) -> bytes:
        return fingerprint_of_endpoint("e", msgspec.structs.replace(base, **changes))

    assert {of(timeout=Seconds(1)), of(cache=CacheConfig(ttl=Seconds(5)))} == {of()}
    assert len({of(), of(backend="production"), of(path="/other"), fingerprint_of_endpoint("f", base)}) == 4


@pytest.mark.parametrize(
    ("datatype", "numbers", "is_kept"),
    [
        ("FP32", np.float32([1, np.nan]), False),
        ("FP64", np.float64([np.inf, -np.inf]), False),
        ("FP16", np.float16([np.inf]), False),
        ("FP32", np.float32([3e38, 3e38]), True),
        ("INT32", np.int32([-1, 2143289344]), True),
        ("FP32", np.float32([]), True),
    ],
)
async def test_numbers_that_are_none_are_not_kept(
    born: Born, datatype: str, numbers: np.ndarray, is_kept: bool
) -> None:
    life = born()
    await life.live()
    life.answer(output=Tensor("y", datatype, numbers.shape, numbers.tobytes()))
    life.write()
    assert (await life.find() is not None) is is_kept


async def test_what_was_not_written_is_taken_again(born: Born, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    life = born()
    await life.live()
    life.answer()
    monkeypatch.setattr(life.snapshot, "write", lambda pairs, now: "full")
    assert life.write() == "full"
    monkeypatch.undo()
    assert len(life.copies) == 1
    assert life.write() == "written"
    assert value(await life.find()) == 1.0


async def test_what_was_written_is_not_taken_again_with_what_was_not(
    born: Born, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = born()
    await life.live()
    life.answer(1.0, b"written")
    assert life.write() == "written"
    life.answer(2.0, b"waiting")
    monkeypatch.setattr(life.snapshot, "write", lambda pairs, now: "full")
    for _ in range(3):
        assert life.write() == "full"
        assert len(life.copies) == 1
    assert not life.copies._taken, "it does not grow with every pass that fails"


async def test_a_turn_takes_some_bytes_and_no_large_ones(
    born: Born, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the event loop: what is larger than a record may be is not so much as packed."""
    life = born()
    await life.live()
    packed: list[int] = []
    real = Answers.packed

    def counted(self: Answers, value: Served, made_at: float) -> bytes | None:
        packed.append(value.response.outputs[0].shape[0])
        return real(self, value, made_at)

    monkeypatch.setattr(Answers, "packed", counted)
    for place in range(10):
        life.answer(float(place), b"%016d" % place, size=TURN_BYTES // 3)
    assert [len(life.copies.take(100) or ()) for _ in range(4)] == [4, 4, 2, 0]
    packed.clear()
    life.answer(1.0, b"large", size=PAYLOAD_BYTES_MAX + 1)
    assert (life.copies.take(100) or [], packed) == ([], [])
    life.answer(1.0, b"just so", size=PAYLOAD_BYTES_MAX)
    assert (len(life.copies.take(100) or ()), packed) == (1, [1])
    more = PAYLOAD_BYTES_MAX + 1
    life.answer(1.0, b"larger than it said", Tensor("y", "UINT8", (more,), bytes(more)))
    assert (life.copies.take(100) or [], packed) == ([], [1, more])
    assert life.standing.large == 2


async def test_a_large_answer_is_counted_once_and_takes_no_room_in_a_sweep(
    born: Born, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a pass is tried, before there is a word and after, and whatever is taken into a new generation."""
    life = born()
    await life.standing.purges.round()
    life.answer(1.0, b"large", size=PAYLOAD_BYTES_MAX + 1)
    life.answer(2.0, b"small")
    monkeypatch.setattr(life.snapshot, "write", lambda pairs, now: "full")
    assert life.write() == "full"
    monkeypatch.undo()
    await life.live()
    assert [life.write(), life.write()] == ["written", "idle"]
    assert life.standing.large == 1
    assert life.cache is not None
    for digest in (b"large", b"small"):
        assert life.cache.find(Key(digest, 0), host.monotonic) is not None
    life.copies.sweep(300)
    assert [len(life.copies.take(100) or ()), life.copies.take(100)] == [1, None]
    assert life.standing.large == 1


async def test_who_is_watched_twice_forgets_nothing(born: Born) -> None:
    """As after a reload that keeps the cache."""
    life = born()
    await life.live()
    life.answer()
    life.copies.watch(life.cache)  # type: ignore[arg-type]
    assert len(life.copies) == 1


async def test_what_was_looked_for_is_counted_by_what_it_was(born: Born, host: Host) -> None:
    life = await copied(born)
    assert life.standing.outcomes == {"fresh": 0, "stale": 0, "unknown": 0, "absent": 0}
    await life.find()
    await life.find(b"another")
    life.standing.witness.end_turn()
    await life.find()
    assert life.standing.outcomes == {"fresh": 1, "stale": 1, "unknown": 0, "absent": 1}
    host.answers = False
    life = born()
    await life.live(1)
    await life.find()
    await life.find()
    assert life.standing.outcomes == {"fresh": 0, "stale": 0, "unknown": 2, "absent": 0}


async def test_what_is_alike_is_known_at_once_when_a_model_changes(born: Born, host: Host) -> None:
    """Not only when somebody asks next: that may be two models later."""
    life = born()
    await life.live()
    life.answer(1.0, b"old")
    life.write()
    host.schema, life.epoch = b"another", 1
    life.standing.end_turn()
    life.answer(2.0, b"first")
    life.epoch = 2  # the same model, loaded again
    life.standing.end_turn()
    life.answer(3.0, b"second")
    life.write()
    assert [value(await life.find(digest)) for digest in (b"old", b"first", b"second")] == [None, 2.0, 3.0]


async def test_a_sweep_takes_what_was_used_and_no_more_than_it_may(born: Born, host: Host) -> None:
    life = born()
    await life.live()
    for place in range(10):
        life.answer(float(place), b"%016d" % place)
    life.write()
    assert life.cache is not None
    for place in range(0, 10, 2):
        assert life.cache.find(Key(b"%016d" % place, 0), host.monotonic) is not None
    life.copies.sweep(10_000)
    assert len(life.copies.take(100)) == 5
    life.copies.sweep(600)
    assert len(life.copies.take(100)) == 2
    assert life.copies.take(100) is None
    assert len(life.copies) == 0


async def test_a_sweep_steps_over_what_was_not_used_a_little_at_a_time(
    born: Born, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache of a million answers that were asked for once is an ordinary one, and walking over it takes long."""
    life = born()
    await life.live()
    assert life.cache is not None
    count, taken = 5000, 32
    for place in range(count):
        life.answer(float(place), b"%016d" % place)
    assert life.write() == "written"
    for place in (0, 2000):
        assert life.cache.find(Key(b"%016d" % place, 0), host.monotonic) is not None
    looked = 0

    walk = Queue.walk

    def counted(queue: Queue[object]) -> Iterator[object]:
        nonlocal looked
        for node in walk(queue):
            looked += 1
            yield node

    monkeypatch.setattr(Queue, "walk", counted)
    life.copies.sweep(10_000)
    steps, made = [], []
    while (some := life.copies.take(taken)) is not None:
        steps.append(looked)
        made += some
        life.answer(0.0, b"another")  # the cache is used meanwhile
        made += life.copies.take(1) or []
    assert len(made) == 2 + len(steps)
    assert looked >= count
    assert max(after - before for before, after in itertools.pairwise([0, *steps])) <= (taken + 1) * PASSED_MAX


async def test_a_copy_is_read_once_a_second_and_judged_each_time(
    born: Born, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request asks for its copy several times, and each reading is a way to another thread and back."""
    await copied(born)
    life = born()
    await life.live()
    read: list[bytes] = []
    monkeypatch.setattr(Answers, "read", lambda _, payload, kept=Answers.read: read.append(payload) or kept(_, payload))
    life.copies._terms = None
    for _ in range(5):
        assert value(await life.find()) == 1.0
    assert len(read) == 1
    host.pass_by(READ_SECONDS + 0.1)
    await life.find()
    assert len(read) == 2
    host.pass_by(0.1)
    life.standing.purges.purge()
    assert await life.find() is None
    assert len(read) == 2
