"""Whose word holds: several processes that watch one model through one store, in virtual time.

What must never be: a process that has the same word as another one whose model was different.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence

import msgspec
import pytest

from cache.stores.store import Found, StoreError
from gateway.witness import (
    BELIEVED_SECONDS,
    REST_SECONDS,
    ROUNDS_UNWATCHED_MAX,
    SKEW_SECONDS_MAX,
    WATCHED_SECONDS,
    Clocks,
    Witness,
)
from tiers.facts import Sight, changed

CONFIG = b"config"


class World:
    """One clock and one store; a store that is ``down`` answers nobody."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.held: dict[bytes, tuple[bytes, float]] = {}
        self.down = False
        self.words = itertools.count()
        self.writes = 0

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        self._answer()
        alive = [self.held.get(key, (b"", 0.0)) for key in keys]
        return [value if until > self.now else None for value, until in alive]

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        self._answer()
        assert ttl is not None
        self.writes += 1
        self.held |= {key: (value, self.now + ttl) for key, value in pairs}

    async def delete_many(self, keys: Sequence[bytes], seconds: float) -> None:
        raise AssertionError

    async def healthy(self, seconds: float) -> bool:
        return not self.down

    async def close(self) -> None: ...

    def _answer(self) -> None:
        if self.down:
            raise StoreError("timeout")

    def word(self) -> bytes:
        return b"w%d" % next(self.words)


class Replica:
    """A model on a server: what it says of itself."""

    def __init__(self) -> None:
        self.number = 0
        self.done = 0
        self.up = True

    def work(self, count: int = 1) -> None:
        self.done += count

    def load(self) -> None:
        """Another model in the same version, with the same configuration."""
        self.number += 1
        self.done = 0

    @property
    def sight(self) -> Sight:
        return Sight(frozenset("1"), CONFIG, {"1": (self.done, self.done, self.done, self.done)})


class Process:
    """A gateway: its last look at each replica, as its catalog keeps it."""

    def __init__(self, world: World, *replicas: Replica, skew: float = 0.0, rest: float = 0.0) -> None:
        self.world, self.replicas = world, replicas
        self.looks: dict[str, tuple[float, Sight]] = {}
        clocks = Clocks(lambda: world.now, lambda: world.now + skew, world.word)
        self.witness = Witness(b"s", world, clocks, 0.1, rest)
        self.witness.looks = lambda: self.looks or None

    def look(self) -> None:
        """One poll of every replica, and what a gateway does when it sees a change."""
        for number, replica in enumerate(self.replicas):
            name = f"r{number}"
            before = self.looks.get(name)
            if not replica.up:
                continue
            self.looks[name] = self.world.now, replica.sight
            if before is not None and changed(before[1], replica.sight):
                self.witness.end_turn()

    async def round(self, look: bool = True) -> bytes | None:
        """A second goes by."""
        self.world.now += 0.5
        if look:
            self.look()
        self.world.now += 0.5
        await self.witness.round()
        return self.witness.turn


@pytest.fixture
def world() -> World:
    return World()


async def settle(*processes: Process) -> set[bytes | None]:
    """Until all have a word, and every one the same."""
    for _ in range(12):
        turns = {await each.round() for each in processes}
    return turns


async def test_the_first_begins_and_the_next_joins_once_it_has_looked_itself(world: World) -> None:
    model = Replica()
    model.work(7)
    first, second = Process(world, model), Process(world, model)
    word = await first.round()
    assert word is not None
    second.look()  # from before it has read what the first saw: proves nothing
    assert await second.round(look=False) is None
    assert await second.round(look=False) is None
    assert second.witness.state == "considering"
    model.work()
    assert await second.round() == word
    assert await first.round() == word


async def test_while_models_rest_little_is_written_and_looks_are_never_gone(world: World) -> None:
    """By many processes no more than by one; and whoever comes next joins them."""
    model = Replica()
    model.work(7)
    first, second = Process(world, model, rest=REST_SECONDS), Process(world, model, rest=REST_SECONDS)
    await settle(first, second)
    before = world.writes
    for _ in range(150):
        assert await first.round() == await second.round() is not None
    assert world.writes - before == pytest.approx(300 / REST_SECONDS, abs=1)
    third = Process(world, model, rest=REST_SECONDS)
    assert await settle(third) == {await first.round()}


async def test_a_first_look_that_comes_late_ends_the_word(world: World) -> None:
    near, far = Replica(), Replica()
    first = Process(world, near)
    await settle(first)
    word = first.witness.turn
    first.replicas = (near, far)
    first.looks["r1"] = world.now, far.sight
    first.witness.doubt()
    assert first.witness.turn is None
    assert word not in await settle(first)


async def test_a_first_look_of_a_process_that_has_kept_nothing_ends_nobodys_word(world: World) -> None:
    """Found by restarts under load, whose first requests come beside the first looks."""
    model = Replica()
    model.work()
    first, second = Process(world, model), Process(world, model)
    await settle(first)
    second.look()
    second.witness.doubt()
    assert await settle(first, second) == {first.witness.turn}
    assert second.witness.turn == first.witness.turn is not None


async def test_each_look_that_differs_is_left(world: World) -> None:
    """The less a model had done when it was looked at last, the sooner one that was loaded again looks the same."""
    model = Replica()
    first = Process(world, model, rest=REST_SECONDS)
    await settle(first)
    for _ in range(10):
        model.work()
        await first.round()
    model.load()
    model.work(9)
    second = Process(world, model, rest=REST_SECONDS)
    word = first.witness.turn
    assert word not in await settle(second)


async def test_nobody_knows_a_word_without_a_model(world: World) -> None:
    process = Process(world, Replica())
    assert await process.round(look=False) is None
    assert process.witness.state == "unknown-model"
    assert not world.held


async def test_a_model_loaded_again_while_nobody_watched_is_seen_by_who_comes(world: World) -> None:
    model = Replica()
    model.work(7)
    first = Process(world, model)
    word = await first.round()
    model.load()
    model.work(3)
    world.now += WATCHED_SECONDS / 2
    assert await settle(Process(world, model)) not in ({word}, {None})


async def test_a_restart_goes_on_with_the_word_and_a_long_absence_does_not(world: World) -> None:
    model = Replica()
    model.work(7)
    word = await Process(world, model).round()
    world.now += WATCHED_SECONDS / 2
    model.work(5)
    again = Process(world, model)
    assert await settle(again) == {word}
    world.now += WATCHED_SECONDS + 1
    model.load()
    model.work(100)  # more than before: nothing would show
    assert await settle(Process(world, model)) not in ({word}, {None})


async def test_who_sees_a_change_takes_the_word_from_all(world: World) -> None:
    model = Replica()
    model.work(7)
    processes = [Process(world, model) for _ in range(3)]
    (word,) = await settle(*processes)
    model.load()
    model.work(1)
    assert await processes[0].round() not in (word, None)
    assert await processes[1].round(look=False) is None  # it has read that the word is another, and has not looked
    assert await settle(*processes) not in ({word}, {None})


async def test_the_end_of_a_turn_is_at_once_here_and_comes_later_where_the_store_is_down(world: World) -> None:
    process, other = Process(world, model := Replica()), Process(world, model)
    (word,) = await settle(process, other)
    world.down = True
    process.witness.end_turn()
    assert process.witness.turn is None
    assert not await process.witness.settled(0.0)
    assert await process.round() is None
    world.now += BELIEVED_SECONDS
    assert await other.round() is None  # it cannot know any more
    world.down = False
    assert await process.round() not in (word, None)
    assert await process.witness.settled(0.0)
    assert await settle(process, other) not in ({word}, {None})


async def test_who_cannot_see_the_models_can_end_a_turn_all_the_same(world: World) -> None:
    model = Replica()
    process, blind = Process(world, model), Process(world, model)
    word = await process.round()
    blind.witness.end_turn()
    assert await blind.round(look=False) is None
    assert await blind.witness.settled(0.0)
    assert await process.round() is None
    assert await settle(process) not in ({word}, {None})


async def test_an_end_while_a_word_is_being_written_is_not_lost(world: World) -> None:
    process = Process(world, Replica())
    word = await process.round()
    put = world.put_many

    async def ended(pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        await put(pairs, ttl, seconds)
        process.witness.end_turn()

    world.put_many = ended  # type: ignore[method-assign]
    assert await process.round() is None
    assert await process.round() is None
    world.put_many = put  # type: ignore[method-assign]
    assert not await process.witness.settled(0.0)
    assert await process.round() not in (word, None)


async def test_a_word_that_comes_back_from_the_past_is_not_believed(world: World) -> None:
    process = Process(world, Replica())
    word = await process.round()
    past = dict(world.held)
    process.witness.end_turn()
    now = await process.round()
    world.held = past  # a failover that lost the last writes
    assert await process.round() not in (word, now, None)


@pytest.mark.parametrize("key", [b"tailrace:s:turn", b"tailrace:s:watch"])
async def test_a_store_that_forgets_makes_nobody_believe(world: World, key: bytes) -> None:
    model = Replica()
    process = Process(world, model)
    word = await process.round()
    del world.held[key]
    assert await settle(Process(world, model)) not in ({word}, {None})


@pytest.mark.parametrize("broken", [b"", b"TR", b"nonsense" * 9])
async def test_broken_looks_make_nobody_believe(world: World, broken: bytes) -> None:
    model = Replica()
    word = await Process(world, model).round()
    world.held[b"tailrace:s:watch"] = broken, world.now + 99
    assert await settle(Process(world, model)) not in ({word}, {None})


async def test_a_word_that_its_writer_died_at_is_replaced(world: World) -> None:
    model = Replica()
    await Process(world, model).round()
    world.held[b"tailrace:s:turn"] = b"other", world.now + 99
    late = Process(world, model)
    turns = [await late.round() for _ in range(ROUNDS_UNWATCHED_MAX)]
    assert turns[:-1] == [None] * (ROUNDS_UNWATCHED_MAX - 1)
    assert turns[-1] not in (b"other", None)


async def test_a_replica_that_is_away_is_held_against_what_others_saw_of_it(world: World) -> None:
    well, away = Replica(), Replica()
    well.work(7)
    away.work(9)
    word = await Process(world, well, away).round()
    away.up = False
    late, later = Process(world, well, away), Process(world, well, away)
    assert await settle(late) == {word}
    assert await settle(later) == {word}  # what the first saw of it goes from hand to hand
    away.load()
    away.work(3)
    away.up = True
    assert await later.round() not in (word, None)


@pytest.mark.parametrize("is_another", [False, True])
async def test_what_was_taken_under_a_word_before_all_was_looked_at_may_be_another_models(
    world: World, is_another: bool
) -> None:
    """Two take what there is under a word while a replica is away, and it comes back as another model. No look of
    theirs shows a change: one is told by what the others had seen, and one by the word, which is another then."""
    well, away = Replica(), Replica()
    well.work(7)
    away.work(9)
    word = await Process(world, well, away).round()
    away.up = False
    both, ended = [Process(world, well, away) for _ in range(2)], list[Process]()
    for process in both:
        assert await settle(process) == {word}

        def end(process: Process = process) -> None:
            ended.append(process)
            process.witness.end_turn()

        process.witness.on_change = end
    if is_another:
        away.load()
    away.work(3)
    away.up = True
    for _ in range(5):
        world.now += 1.0
        for process in both:
            await process.round()
    assert ended == (both if is_another else [])
    assert both[0].witness.turn == both[1].witness.turn is not None
    assert (both[0].witness.turn == word) is not is_another


async def test_a_clock_far_ahead_keeps_others_from_believing(world: World) -> None:
    model = Replica()
    ahead = Process(world, model, skew=2 * SKEW_SECONDS_MAX)
    word = await ahead.round()
    process = Process(world, model)
    for _ in range(12):
        assert await ahead.round() == word
        assert await process.round() is None
        assert process.witness.state == "clock"
    assert await settle(process) == {word}  # nobody ahead any more, and what was seen by it is no less true


async def test_a_replica_that_is_lost_says_nothing_until_it_is_back(world: World) -> None:
    """Its last sight is from before it was lost: neither a change, nor a proof that there was none."""
    well, away = Replica(), Replica()
    well.work(7)
    away.work(9)
    word = await Process(world, well, away).round()
    late = Process(world, well, away)
    late.looks["r1"] = world.now, msgspec.structs.replace(away.sight, work={"1": (0, 0, 0, 0)}, lost=True)
    away.up = False
    for _ in range(2):
        late.looks["r1"] = world.now + 0.5, late.looks["r1"][1]
        turn = await late.round()
    assert turn == word
    away.load()
    away.work(3)
    away.up = True
    assert await late.round() not in (word, None)


async def test_a_word_that_was_begun_stays_for_as_long_as_its_model(world: World) -> None:
    model = Replica()
    model.work(7)
    word = await Process(world, model).round()
    model.load()
    late = Process(world, model)
    turns = [await late.round() for _ in range(int(2 * WATCHED_SECONDS))]
    assert len(set(turns) - {None}) == 1
    assert turns[-1] not in (word, None)
    assert set(turns[turns.index(turns[-1]) :]) == {turns[-1]}


async def test_a_word_whose_looks_are_others_now_and_then_is_not_replaced(world: World) -> None:
    """Looks and word are two values: who reads between two writes sees one of each, and that is no dead writer."""
    model = Replica()
    model.work(7)
    first = Process(world, model)
    word = await first.round()
    assert word is not None
    watched = world.held[b"tailrace:s:watch"]
    late = Process(world, model)
    late.look()  # from before it reads a word: it never believes one here
    for _ in range(3):
        for _ in range(ROUNDS_UNWATCHED_MAX - 1):
            world.held[b"tailrace:s:turn"] = b"other", world.now + 99
            assert await late.round(look=False) is None
        world.held[b"tailrace:s:turn"] = word, world.now + 99
        world.held[b"tailrace:s:watch"] = watched
        assert await late.round(look=False) is None
        assert late.witness.state == "considering"
    assert world.held[b"tailrace:s:turn"][0] == word


async def test_an_end_by_who_sees_no_model_is_not_lost_while_another_is_written(world: World) -> None:
    blind = Process(world, Replica())
    put = world.put_many

    async def ended(pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        await put(pairs, ttl, seconds)
        blind.witness.end_turn()

    world.put_many = ended  # type: ignore[method-assign]
    blind.witness.end_turn()
    await blind.round(look=False)
    world.put_many = put  # type: ignore[method-assign]
    assert not await blind.witness.settled(0.0)
    before = world.held[b"tailrace:s:turn"]
    await blind.round(look=False)
    assert await blind.witness.settled(0.0)
    assert world.held[b"tailrace:s:turn"] != before


async def test_an_end_is_seen_to_at_once_but_a_store_that_is_down_is_asked_at_intervals(world: World) -> None:
    process = Process(world, Replica())
    process.look()
    rounds = 0
    round_ = process.witness.round

    async def counted() -> None:
        nonlocal rounds
        rounds += 1
        if world.down:
            process.witness.end_turn()  # while the store is being asked
        await round_()

    process.witness.round = counted  # type: ignore[method-assign]
    rests: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def sleep(seconds: float) -> None:
        assert seconds == 7.0
        rests.put_nowait(over := asyncio.Event())
        await over.wait()

    async with asyncio.timeout(30.0):
        running = asyncio.create_task(process.witness.run(7.0, sleep))
        await rests.get()
        word = process.witness.turn
        process.witness.end_turn()
        resting = await rests.get()  # nobody has waited for the interval
        assert (rounds, process.witness.turn != word) == (2, True)
        world.down = True
        resting.set()
        resting = await rests.get()
        for _ in range(20):
            await asyncio.sleep(0)
        assert rounds == 3
        world.down = False
        resting.set()
        await rests.get()
        assert await process.witness.settled(0.0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert rounds == 4, "what was hurried for is done"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("seed", range(200))
async def test_no_two_processes_ever_share_a_word_over_different_models(world: World, seed: int) -> None:
    """Random lives: processes come and go, models are loaded again, the store fails and forgets. Who has looked after a
    change, which shows, has no word that anybody has had an answer of another model under."""
    chance = random.Random(seed)
    model = Replica()
    model.work(10**6)
    processes = [Process(world, model) for _ in range(3)]
    under: dict[bytes, int] = {}  # which model answers were left of
    for _ in range(150):
        match chance.randrange(12):
            case 0:
                model.load()
                model.work(10**6 - 1000 * model.number)
            case 1:
                processes[chance.randrange(3)] = Process(world, model)
            case 2:
                world.down = not world.down
            case 3:
                world.held.pop(chance.choice([b"tailrace:s:turn", b"tailrace:s:watch"]), None)
            case 4:
                world.now += chance.choice([1.0, WATCHED_SECONDS])
        turn = await chance.choice(processes).round()
        if turn is not None:
            model.work()
            assert under.setdefault(turn, model.number) == model.number
    assert under
