"""Rows of a route's answers: found one by one, asked for once, put together as if the whole batch had been asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
import pytest

from cache.flight import Abandoned
from degrade.ladder import Failure
from gateway.config import CacheConfig
from gateway.row import Asked, Assembled, Borrowed
from gateway.rows import Rows
from gateway.units import Seconds, Size
from tiers.cascade import CascadeAnswer, Share
from tiers.inference import InferRequest, InferResponse, Tensor, UpstreamError

SECONDS = 10.0


class World:
    """Rows and a model that doubles them: y = 2 x, and says which rows it was asked for."""

    def __init__(self, **settings: object) -> None:
        self.now = 0.0
        config = CacheConfig(ttl=Seconds(10), max_stale=Seconds(5), rows=True, **settings)  # type: ignore[arg-type]
        self.rows = Rows("r", config)
        self.asked: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: UpstreamError | None = None
        self.version = "1"
        self.first_version = ""
        self.extra: tuple[Tensor, ...] = ()
        self.escalates: Callable[[int], bool] = lambda _: False
        self.degraded = False

    def ticker(self) -> float:
        return self.now

    async def ask(self, request: InferRequest, rows: int) -> CascadeAnswer:
        values = np.frombuffer(request.inputs[0].data, "<i4").tolist()
        assert len(values) == rows
        self.asked.append(values)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        outputs = (Tensor("y", "INT32", (rows, 1), np.array([2 * v for v in values], "<i4").tobytes()), *self.extra)
        beyond = [place for place, value in enumerate(values) if self.escalates(value)]
        versions = (self.first_version or self.version, self.version)
        shares = [Share(0, "small", versions[0], [place for place in range(rows) if place not in beyond])]
        if beyond:
            shares.append(Share(1, "large", versions[1], beyond))
        response = InferResponse(shares[-1].tier, shares[-1].version, outputs)
        return CascadeAnswer(response, rows, tuple(shares), degraded=self.degraded)

    def batch(self, values: Sequence[int], epoch: int = 0, reuse: bool = True, keep: bool = True) -> Asked:
        data = np.array(values, "<i4").tobytes()
        request = InferRequest("r", (Tensor("x", "INT32", (len(values), 1), data),))
        return Asked(request, self.rows.keys("", request, len(values)), epoch, reuse, keep)

    async def answer(self, *values: int, epoch: int = 0, reuse: bool = True, keep: bool = True) -> Assembled:
        found = await self.rows.answer(self.batch(values, epoch, reuse, keep), self.ask, SECONDS, self.ticker)
        assert doubled(found) == [2 * value for value in values]
        return found


def doubled(found: Assembled) -> list[int]:
    told: list[int] = np.frombuffer(found.response.outputs[0].data, "<i4").tolist()
    assert found.response.outputs[0].shape == (len(told), 1)
    return told


@pytest.fixture
async def world() -> World:
    return World()


async def test_of_a_batch_only_what_is_not_known_is_asked_for(world: World) -> None:
    assert (await world.answer(1, 2, 3)).kept == 0
    assert (await world.answer(3, 4, 1, 5)).kept == 2
    assert (await world.answer(5, 4, 3, 2, 1)).kept == 5
    assert world.asked == [[1, 2, 3], [4, 5]]


async def test_rows_that_are_the_same_are_asked_for_once(world: World) -> None:
    assert (await world.answer(7, 7, 8, 7)).kept == 0
    assert (await world.answer(8, 9, 9, 8)).kept == 2
    assert world.asked == [[7, 8], [9]]


async def test_what_others_ask_for_is_waited_for(world: World) -> None:
    world.gate.clear()
    first = asyncio.create_task(world.answer(1, 2))
    await asyncio.sleep(0)
    second = asyncio.create_task(world.answer(2, 3))
    third = asyncio.create_task(world.answer(3, 1))
    await asyncio.sleep(0)
    world.gate.set()
    await asyncio.gather(first, second, third)
    assert sorted(world.asked) == [[1, 2], [3]]
    assert world.rows._under_way == {}


async def test_who_leaves_takes_nothing_from_those_who_wait(world: World) -> None:
    world.gate.clear()
    first = asyncio.create_task(world.answer(1, 2))
    await asyncio.sleep(0)
    second = asyncio.create_task(world.answer(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    world.gate.set()
    await second
    assert world.asked == [[1, 2]]
    assert world.rows._under_way == {}


async def test_a_fill_that_nobody_waits_for_is_given_up_and_forgotten(world: World) -> None:
    world.gate.clear()
    for turns in range(4):  # before its task has begun, and after
        task = asyncio.create_task(world.answer(1))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert world.rows._under_way == {}
    with pytest.raises(TimeoutError):
        await world.rows.answer(world.batch([1]), world.ask, 0.0, world.ticker)
    assert world.rows._under_way == {}
    world.gate.set()
    await world.answer(1)


async def test_rows_age_and_die_each_by_itself(world: World) -> None:
    await world.answer(1)
    world.now = 6.0
    found = await world.answer(1, 2)
    assert (found.kept, found.made_at) == (1, 0.0)
    world.now = 11.0
    found = await world.answer(1, 2)
    assert (found.kept, found.made_at) == (1, 6.0)
    assert world.asked == [[1], [2], [1]]


async def test_an_epoch_and_a_purge_end_what_is_kept_and_what_is_joined(world: World) -> None:
    await world.answer(1)
    await world.answer(1, epoch=1)
    world.gate.clear()
    for change in (lambda: None, world.rows.cache.purge):
        before = asyncio.create_task(world.answer(9, epoch=1))
        await asyncio.sleep(0)
        change()
    await asyncio.sleep(0)
    after = asyncio.create_task(world.answer(9, epoch=1))
    await asyncio.sleep(0)
    world.gate.set()
    await asyncio.gather(before, after)
    assert world.asked[2:] == [[9], [9]]
    assert (await world.answer(9, epoch=1)).kept == 1


async def test_who_wants_it_new_gets_it_new_and_leaves_it_to_others(world: World) -> None:
    await world.answer(1)
    assert (await world.answer(1, reuse=False)).kept == 0
    await world.answer(2, keep=False)
    assert (await world.answer(1, 2)).kept == 1
    assert world.asked == [[1], [1], [2], [2]]


async def test_a_degraded_answer_is_not_kept(world: World) -> None:
    world.degraded = True
    assert (await world.answer(1)).degraded
    world.degraded = False
    assert not (await world.answer(1)).degraded
    assert len(world.asked) == 2


async def test_rows_remember_whose_they_are(world: World) -> None:
    world.escalates = lambda value: value > 10
    found = await world.answer(1, 20)
    assert (found.tier, found.escalated, found.tier_rows) == ("large", 1, (("small", 1), ("large", 1)))
    found = await world.answer(1)
    assert (found.tier, found.escalated, found.tier_rows) == ("small", 0, ())
    found = await world.answer(20, 2)
    assert (found.tier, found.escalated, found.kept, found.tier_rows) == ("large", 1, 1, (("small", 1),))


async def test_rows_of_a_middle_tier_are_its_own(world: World) -> None:
    """They were told to be of the largest tier that their batch had met, in its version."""
    said = {"small": {"of": "small"}, "middle": {"of": "middle"}, "large": {"of": "large"}}

    async def ask(request: InferRequest, rows: int) -> CascadeAnswer:
        answer = await world.ask(request, rows)
        values = [value // 2 for value in np.frombuffer(answer.response.outputs[0].data, "<i4").tolist()]
        shares = []
        for position, (tier, version) in enumerate((("small", "1"), ("middle", "2"), ("large", "3"))):
            own = [place for place, value in enumerate(values) if min(value // 10, 2) == position]
            if own:
                shares.append(Share(position, tier, version, own, said[tier]))
        response = msgspec.structs.replace(answer.response, parameters=shares[-1].parameters)
        return msgspec.structs.replace(answer, response=response, shares=tuple(shares))

    async def answered(*values: int) -> tuple[object, ...]:
        found = await world.rows.answer(world.batch(values), ask, SECONDS, world.ticker)
        assert doubled(found) == [2 * value for value in values]
        told = found.response
        return found.tier, told.version, dict(told.parameters), found.escalated, found.escalated_now, found.kept

    assert await answered(1, 21, 11, 2) == ("large", "3", said["large"], 2, 2, 0)
    assert await answered(11) == ("middle", "2", said["middle"], 1, 0, 1)
    assert await answered(1, 11, 2) == ("middle", "2", said["middle"], 1, 0, 3)
    assert await answered(2, 1) == ("small", "1", said["small"], 0, 0, 2)
    assert await answered(21, 11) == ("large", "3", said["large"], 2, 0, 2)
    assert await answered(12, 21, 3) == ("large", "3", said["large"], 2, 1, 1)
    assert world.asked == [[1, 21, 11, 2], [12, 3]]


async def test_rows_that_went_straight_to_the_last_tier_are_all_its_own(world: World) -> None:
    """Such an answer (a classification) is one whole to the cascade."""

    async def ask(request: InferRequest, rows: int) -> CascadeAnswer:
        answer = await world.ask(request, rows)
        return CascadeAnswer(answer.response, 1, (Share(1, "large", "1", (0,)),), reason="classification")

    for _ in range(2):
        found = await world.rows.answer(world.batch([1, 2, 3]), ask, SECONDS, world.ticker)
        assert (doubled(found), found.tier, found.escalated) == ([2, 4, 6], "large", 3)
    assert len(world.asked) == 1


async def test_rows_of_two_shapes_of_answer_never_meet(world: World) -> None:
    await world.answer(1, 2)
    world.extra = (Tensor("z", "INT8", (1,), b"z"),)
    world.rows.cache.ticket()

    async def ask(request: InferRequest, rows: int) -> CascadeAnswer:
        world.extra = (Tensor("z", "INT8", (rows,), b"z" * rows),)
        return await world.ask(request, rows)

    found = await world.rows.answer(world.batch([1, 3]), ask, SECONDS, world.ticker)
    assert doubled(found) == [2, 6]
    assert [tensor.name for tensor in found.response.outputs] == ["y", "z"]
    assert world.asked == [[1, 2], [3], [1, 3]]


async def test_tiers_that_order_their_outputs_otherwise_are_asked_for_the_whole_batch_once(world: World) -> None:
    """It was refused as broken until the rows' time was over."""
    world.escalates = lambda value: value > 9

    async def ask(request: InferRequest, rows: int) -> CascadeAnswer:
        answer = await world.ask(request, rows)
        y, z = *answer.response.outputs, Tensor("z", "INT8", (rows, 1), b"z" * rows)
        outputs = (z, y) if answer.rows_escalated else (y, z)
        return msgspec.structs.replace(answer, response=msgspec.structs.replace(answer.response, outputs=outputs))

    await world.rows.answer(world.batch([1]), ask, SECONDS, world.ticker)
    found = await world.rows.answer(world.batch([1, 10]), ask, SECONDS, world.ticker)
    assert [tensor.name for tensor in found.response.outputs] == ["z", "y"]
    assert np.frombuffer(found.response.outputs[1].data, "<i4").tolist() == [2, 20]
    assert (found.tier, found.escalated, found.kept) == ("large", 1, 0)
    assert (await world.rows.answer(world.batch([10, 1]), ask, SECONDS, world.ticker)).kept == 2
    assert world.asked == [[1], [10], [1, 10]]


async def test_an_answer_is_of_one_version_of_each_tier(world: World) -> None:
    world.escalates = lambda value: value > 9
    world.first_version, world.version = "1", "7"
    await world.answer(1, 10)
    first = await world.answer(1)
    assert (first.tier, first.response.version, first.kept) == ("small", "1", 1)
    both = await world.answer(10, 1)
    assert (both.tier, both.response.version, both.kept) == ("large", "7", 2)
    world.first_version = world.version = "2"
    assert (await world.answer(2)).response.version == "2"
    assert world.rows.whole(world.batch([1, 2]), world.now) is None
    mixed = await world.answer(1, 2, 3)
    assert (mixed.response.version, mixed.kept) == ("2", 0)
    assert world.asked == [[1, 10], [2], [3], [1, 2, 3]]


async def test_an_answer_without_outputs_has_no_rows(world: World) -> None:
    async def ask(request: InferRequest, rows: int) -> CascadeAnswer:
        answer = await world.ask(request, rows)
        return msgspec.structs.replace(answer, response=msgspec.structs.replace(answer.response, outputs=()))

    with pytest.raises(UpstreamError, match="no output that all tiers have") as error:
        await world.rows.answer(world.batch([1, 3]), ask, SECONDS, world.ticker)
    assert error.value.failure is Failure.BROKEN


async def test_an_answer_that_is_no_batch_is_broken(world: World) -> None:
    world.extra = (Tensor("z", "INT8", (5,), b"zzzzz"),)
    with pytest.raises(UpstreamError) as error:
        await world.rows.answer(world.batch([1, 3]), world.ask, SECONDS, world.ticker)
    assert error.value.failure is Failure.BROKEN
    assert world.rows._under_way == {}


async def test_a_failure_reaches_all_who_wait_and_old_rows_are_there_for_it(world: World) -> None:
    await world.answer(1, 2)
    world.now = 12.0
    world.failure = UpstreamError(Failure.UNREACHABLE, "gone")
    asked = world.batch([1, 2])
    waiting = [asyncio.create_task(world.rows.answer(asked, world.ask, SECONDS, world.ticker)) for _ in range(3)]
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(each is world.failure for each in told)
    assert len(world.asked) == 2
    old = world.rows.whole(world.batch([2, 1]), world.now)
    assert old is not None
    assert (doubled(old), old.made_at) == ([4, 2], 0.0)
    assert world.rows.whole(world.batch([2, 3]), world.now) is None
    world.now = 15.1
    assert world.rows.whole(world.batch([2, 1]), world.now) is None


class Lending:
    """Rows that are lent, by their key."""

    def __init__(self, world: World) -> None:
        self.rows: dict[bytes, Borrowed] = {}
        self.world = world

    async def lend(self, value: int, epoch: int, word: bytes, stays: bool) -> None:
        """As another process's model has answered."""
        other = World()
        await other.answer(value)
        (key,) = self.world.batch([value]).keys
        held = other.rows.cache.peek(other.batch([value]).keys[0])
        assert held is not None
        self.rows[key] = Borrowed(held.value, -3.0, epoch, word, stays)

    def row(self, key: bytes) -> Borrowed | None:
        return self.rows.get(key)


async def test_what_is_made_of_old_rows_is_of_one_epoch(world: World) -> None:
    await world.answer(1, 2)
    await world.answer(3, epoch=1)
    for epoch in (0, 1, 2):
        assert world.rows.whole(world.batch([2, 1], epoch), world.now) is not None
        assert world.rows.whole(world.batch([3, 3], epoch), world.now) is not None
        assert world.rows.whole(world.batch([1, 3], epoch), world.now) is None, "no model has ever said both"


async def test_what_is_made_of_lent_rows_is_of_one_epoch_or_of_one_word(world: World) -> None:
    await world.answer(1, epoch=4)
    await world.answer(2, epoch=3)
    lender = Lending(world)
    for value, word in ((10, b"w"), (11, b"w"), (12, b"v")):
        await lender.lend(value, 4, word, False)
    await lender.lend(20, 4, b"now", True)
    for values, is_one in (
        ((10, 11), True), ((10, 11, 10), True), ((12,), True), ((10, 12), False), ((1, 10), False), ((2, 10), False),
        ((1, 20), True), ((2, 20), False), ((20, 10), False), ((10, 13), False),
    ):  # fmt: skip
        made = world.rows.whole(world.batch(values, 4), world.now, lender)
        assert (made is not None) == is_one, values
        assert made is None or doubled(made) == [2 * value for value in values]
    for values, is_one in (((11, 10, 11), True), ((10, 12), False), ((10, 1), False), ((10, 13), False)):
        assert (world.rows.lent(world.batch(values, 4), lender) is not None) == is_one, values


async def test_what_is_lent_of_a_newer_epoch_is_not_kept_as_of_the_one_that_was_asked_in(world: World) -> None:
    lender = Lending(world)
    await lender.lend(1, 5, b"w", True)
    made = world.rows.whole(world.batch([1], 4), world.now, lender)
    assert made is not None
    assert made.epoch == 5
    held = world.rows.cache.peek(world.batch([1]).keys[0])
    assert held is not None
    assert held.epoch == 5


async def test_memory_is_bounded() -> None:
    world = World(rows_bytes_max=Size(2**20))
    for start in range(0, 10_000, 100):
        await world.answer(*range(start, start + 100))
    assert world.rows.cache.bytes_used <= 2**20
    assert world.rows.cache.evictions > 0
    counted = Counter(value for values in world.asked for value in values)
    assert set(counted.values()) == {1}


async def test_closing_gives_up_what_is_under_way(world: World) -> None:
    world.gate.clear()
    task = asyncio.create_task(world.rows.answer(world.batch([1]), world.ask, SECONDS, world.ticker))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await world.rows.close()
    with pytest.raises(Abandoned):
        await task


async def test_what_a_model_says_beside_its_rows_is_charged_to_them(world: World) -> None:
    async def ask(request: InferRequest, rows: int) -> CascadeAnswer:
        answer = await world.ask(request, rows)
        (share,) = answer.shares
        share = msgspec.structs.replace(share, parameters={"explained": "x" * 100_000})
        return msgspec.structs.replace(answer, shares=(share,))

    await world.rows.answer(world.batch([1, 2, 3, 4]), ask, SECONDS, world.ticker)
    assert 100_000 < world.rows.cache.bytes_used < 104_000


class Level:
    """A second level that has nothing; what is left there is kept."""

    turn = b"turn"

    def __init__(self) -> None:
        self.left: list[bytes] = []

    async def rows(self, turn: bytes, digests: Sequence[bytes], fits: object) -> dict[bytes, object]:
        return {}

    def keep_rows(self, turn: bytes, rows: Mapping[bytes, object]) -> None:
        self.left += rows


async def test_rows_of_a_degraded_answer_are_left_to_nobody(world: World) -> None:
    world.rows.second = level = Level()  # type: ignore[assignment]
    world.degraded = True
    await world.answer(1, 2)
    assert level.left == []
    world.degraded = False
    await world.answer(3, keep=False)
    assert level.left == []
    await world.answer(1)
    assert level.left == list(world.batch([1]).keys)
