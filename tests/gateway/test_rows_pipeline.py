"""A request's life where rows are kept: quotas, ages, labels and the ladder go by the rows."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np
import pytest

from degrade.deadline import Deadline, Ticker
from gateway.call import Answer
from gateway.codec.http import CacheDirectives
from gateway.config import CacheConfig, Limits, QuotaConfig
from gateway.operate.admin import purged
from gateway.row import Asked, Assembled
from gateway.rows import Ask
from gateway.units import Seconds, Size
from tests.gateway.test_pipeline import NO_CACHE, ONLY_IF_CACHED, House, Upstream, until
from tiers.inference import InferRequest, InferResponse, Tensor
from tiers.pool import Answered

CACHE = CacheConfig(ttl=Seconds(10), max_stale=Seconds(100), rows=True)


class Doubling(Upstream):
    """y = 2 x, row by row; ``asked`` holds each request's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[float]] = []
        self.noise: frozenset[float] = frozenset()

    async def infer(self, request: InferRequest, *args: object, **named: object) -> Answered:  # type: ignore[override]
        values = np.frombuffer(request.inputs[0].data, "<f4")
        self.asked.append(values.tolist())
        await super().infer(request, *args, **named)  # type: ignore[arg-type]
        doubled = np.where(np.isin(values, list(self.noise)), np.float32("nan"), values * 2)
        output = Tensor("y", "FP32", (len(values), 1), doubled.astype("<f4").tobytes())
        return Answered(InferResponse(request.model, "1", (output,)), "http://u")


class Batches(House):
    """A route that keeps rows, asked for batches of numbers."""

    def __init__(self, **route: object) -> None:
        self.doubling = Doubling()
        super().__init__(self.doubling, **({"cache": CACHE} | route))

    async def batch(self, *rows: float, **more: object) -> Answer:
        call = self.call(np.array(rows, "<f4").tobytes(), **more)  # type: ignore[arg-type]
        request = msgspec.structs.replace(
            call.request, inputs=(msgspec.structs.replace(call.request.inputs[0], shape=(len(rows), 1)),)
        )
        answer = await self.pipeline.answer(msgspec.structs.replace(call, request=request))
        told = np.frombuffer(answer.response.outputs[0].data, "<f4").tolist()
        np.testing.assert_equal(told, [np.nan if row in self.doubling.noise else 2 * row for row in rows])
        assert answer.response.model == "r"
        return answer


async def test_rows_that_came_with_a_nan_are_given_and_not_kept() -> None:
    house = Batches()
    await house.batch(1)
    house.doubling.noise = frozenset({3.0})
    told = (await house.batch(1, 2, 3)).provenance
    assert (told.rows_kept, told.stored, told.degraded) == (1, False, False)
    house.doubling.noise = frozenset()
    assert (await house.batch(1, 2, 3)).provenance.stored
    assert house.doubling.asked == [[1], [2, 3], [2, 3]]
    assert house.counter("tailrace_nan_answers_total", route="r") == 1


async def test_what_is_known_in_part_says_so_and_what_is_known_whole_is_a_hit() -> None:
    house = Batches()
    await house.batch(1, 2)
    house.clock.now += 4
    told = (await house.batch(2, 3)).provenance
    assert (told.cache, told.reason, told.rows, told.rows_kept, told.stored) == ("miss", "partial", 2, 1, True)
    assert (told.age, told.ttl_left) == (4.0, 6.0)
    house.clock.now += 1
    answer = await house.batch(3, 2, 1)
    told = answer.provenance
    assert (told.cache, told.reason, told.rows, told.age, told.ttl_left) == ("hit", "fresh", 3, 5.0, 5.0)
    assert answer.entry is not None
    assert (await house.batch(3, 2, 1)).response is answer.response
    assert house.doubling.asked == [[1, 2], [3]]
    assert house.counter("tailrace_rows_kept_total", route="r") == 1
    assert house.counter("tailrace_tier_rows_total", route="r") == 3


async def test_a_whole_answer_is_as_old_as_its_oldest_row() -> None:
    house = Batches()
    await house.batch(1)
    house.clock.now += 8
    await house.batch(1, 2)
    house.clock.now += 3
    told = (await house.batch(1, 2)).provenance
    assert (told.cache, told.reason, told.rows_kept) == ("miss", "partial", 1)
    assert house.doubling.asked == [[1], [2], [1]]


async def test_an_answer_that_is_not_kept_tells_the_age_of_its_oldest_row_too() -> None:
    house = Batches(cache=msgspec.structs.replace(CACHE, bytes_max=Size(1)))
    await house.batch(1)
    house.clock.now += 3
    await house.batch(2)
    house.clock.now += 4
    for rows, kept, age in (((1, 2, 3), 2, 7.0), ((2, 4), 1, 4.0), ((5, 6), 0, 0.0)):
        told = (await house.batch(*rows)).provenance
        assert (told.rows_kept, told.age, told.stored) == (kept, age, False)
        assert told.is_aged == (kept > 0)


async def test_a_batch_of_known_rows_uses_up_what_hits_do() -> None:
    house = Batches(quota=QuotaConfig(2, per=Seconds(1000)))
    await house.batch(1)
    await house.batch(2)
    await house.batch(2, 1)
    assert (await house.refusal()).problem.status == 429


async def test_who_wants_it_young_gets_it_young() -> None:
    house = Batches()
    await house.batch(1, 2)
    house.clock.now += 5
    young = CacheDirectives(max_age=3)
    told = (await house.batch(2, 1, directives=young)).provenance
    assert (told.cache, told.rows_kept) == ("miss", 0)
    house.clock.now += 1
    assert (await house.batch(1, directives=young)).provenance.age == 1.0
    await house.batch(1, directives=NO_CACHE)
    assert house.doubling.asked == [[1, 2], [2, 1], [1]]


async def test_only_what_is_cached_may_be_made_of_rows() -> None:
    house = Batches()
    await house.batch(1)
    await house.batch(2)
    assert (await house.batch(2, 1, directives=ONLY_IF_CACHED)).provenance.cache == "hit"
    assert len(house.doubling.asked) == 2


async def test_old_rows_are_served_in_need_and_labelled() -> None:
    house = Batches()
    await house.batch(1)
    house.clock.now += 2
    await house.batch(2)
    house.clock.now += 20
    house.fail()
    told = (await house.batch(1, 2)).provenance
    assert (told.cache, told.reason, told.steps, told.degraded, told.age) == (
        "stale", "unreachable", ("stale",), True, 22.0,
    )  # fmt: skip
    assert told.ttl_left == -12.0
    refused = await house.refusal(np.array([1, 3], "<f4").tobytes())
    assert refused.problem.status == 503


async def test_rows_of_an_earlier_epoch_are_for_need_alone() -> None:
    house = Batches()
    await house.batch(1)
    house.route.turn()
    await house.batch(2)
    assert (await house.batch(1, 2)).provenance.reason == "partial"
    house.route.turn()
    house.fail()
    told = (await house.batch(2, 1)).provenance
    assert (told.cache, told.steps) == ("stale", ("stale",))
    assert house.doubling.asked[:3] == [[1], [2], [1]]


async def test_in_need_too_no_answer_is_made_of_rows_of_two_models() -> None:
    house = Batches()
    await house.batch(1)
    house.route.turn()
    await house.batch(2)
    house.fail()
    assert (await house.batch(1)).provenance.cache == "stale"
    assert (await house.batch(2)).provenance.cache == "hit"
    refused = await house.refusal(np.array([1, 2], "<f4").tobytes(), shape=(2, 1))
    assert refused.problem.status == 503


async def test_a_purge_drops_rows_too() -> None:
    house = Batches()
    await house.batch(1, 2)
    assert purged(house.route) == 3
    await house.batch(1, 2)
    assert len(house.doubling.asked) == 2


async def test_tenants_do_not_share_rows() -> None:
    house = Batches()
    caller = msgspec.structs.replace(house.call().caller, tenant="other")
    await house.batch(1)
    await house.batch(1, caller=caller)
    assert len(house.doubling.asked) == 2


async def test_a_batch_that_is_too_large_is_refused_though_its_rows_are_known() -> None:
    house = Batches(limits=Limits(batch_max=2))
    await house.batch(1, 2)
    await house.batch(3)
    with pytest.raises(Exception, match="at most 2"):
        await house.batch(1, 2, 3)


async def test_rows_that_two_batches_miss_are_asked_for_once() -> None:
    house = Batches()
    house.upstream.gate = asyncio.Event()
    first = asyncio.create_task(house.batch(1, 2))
    await until(lambda: len(house.doubling.asked) == 1)
    second = asyncio.create_task(house.batch(2, 3))
    await until(lambda: len(house.doubling.asked) == 2)
    house.upstream.gate.set()
    await asyncio.gather(first, second)
    assert house.doubling.asked == [[1, 2], [3]]
    assert house.counter("tailrace_tier_rows_total", route="r") == 3


async def test_a_model_that_does_not_batch_has_no_rows() -> None:
    house = Batches()
    house.upstream.known = msgspec.structs.replace(house.upstream.known, max_batch=0)
    await house.batch(1, 2)
    await house.batch(2, 1)
    assert len(house.doubling.asked) == 2
    assert house.route.row_cache is not None
    assert house.route.row_cache.entries == 0


async def test_rows_are_waited_for_longer_than_their_tiers_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as long a wait, what an earlier tier had answered was lost to a time-out at the very end."""
    house = Batches()
    rows = house.route.shelves.rows
    assert rows is not None
    waits: list[float] = []
    lefts: list[float] = []
    answer, infer = rows.answer, house.doubling.infer

    async def answer_spied(asked: Asked, ask: Ask, seconds: float, ticker: Ticker) -> Assembled:
        waits.append(seconds)
        return await answer(asked, ask, seconds, ticker)

    async def infer_spied(request: InferRequest, deadline: Deadline, *args: object) -> Answered:
        lefts.append(deadline.remaining(house.clock.now))
        return await infer(request, deadline, *args)

    monkeypatch.setattr(rows, "answer", answer_spied)
    monkeypatch.setattr(house.doubling, "infer", infer_spied)
    await house.batch(1, 2)
    assert 0 < lefts[0] < waits[0]
