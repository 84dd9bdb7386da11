"""A request's life in virtual time: the order of the stages, the ladder's end, flights, refreshes, quotas."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from degrade.deadline import Deadline
from degrade.gate import Claim
from degrade.ladder import Failure, Step
from gateway.admission.auth import Caller
from gateway.admission.quota import Quota
from gateway.admission.ratelimit import Limiter
from gateway.call import Answer, Call
from gateway.codec.http import CacheDirectives
from gateway.config import Accept, CacheConfig, InputRule, QuotaConfig, TierConfig
from gateway.config import Route as RouteConfig
from gateway.learning import Home
from gateway.operate.telemetry import Telemetry
from gateway.pipeline import FOUND_SECONDS_MAX, Pipeline
from gateway.problem import Refused
from gateway.route import Route
from gateway.service import Heading, Wire
from gateway.till import Till, dues
from gateway.units import Seconds
from tiers.facts import ModelFacts, TensorFact
from tiers.gates import Gates, GatesOptions
from tiers.inference import (
    InferRequest,
    InferResponse,
    Parameter,
    Passed,
    Rejected,
    RequestedOutput,
    Tensor,
    UpstreamError,
)
from tiers.pool import DECENT_SECONDS, Answered

FACTS = ModelFacts(
    "m", ("1",), (TensorFact("x", "FP32", (-1, -1)),), (TensorFact("y", "FP32", (-1, -1)),), 8, False, False
)
SURE = b"\0\0\x80\x3f\0\0\0\0"
"""FP32 [1, 2] with a margin of 1."""
NOBODY = Caller("addr:test", "")
ANY_CLAIM = Claim()
NO_CACHE = CacheDirectives(no_cache=True)
NO_STORE = CacheDirectives(no_store=True)
ONLY_IF_CACHED = CacheDirectives(only_if_cached=True)
CACHE = CacheConfig(ttl=Seconds(10), max_stale=Seconds(100))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Upstream:
    """A pool and a catalog in one: counts, fails when told to, waits when told to."""

    def __init__(self, facts: ModelFacts = FACTS) -> None:
        self.known = facts
        self.requests: list[InferRequest] = []
        self.claims: list[Claim] = []
        self.gates = Gates(GatesOptions(), lambda: 0.0, random.Random(0))
        self.cancelled = 0
        self.failure: Exception | None = None
        self.facts_failure: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.payload = SURE
        self.passed: tuple[Passed, ...] = ()
        self.waits: list[float] = []  # for who cannot be reached to be back
        self.is_back = False

    async def infer(
        self,
        request: InferRequest,
        deadline: Deadline,
        again: bool = True,
        decent: float = DECENT_SECONDS,
        claim: Claim = ANY_CLAIM,
    ) -> Answered:
        self.requests.append(request)
        self.claims.append(claim)
        payload, failure = self.payload, self.failure
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            failure = self.failure
        if failure is not None:
            raise failure
        outputs = (Tensor("y", "FP32", (1, 2), payload),)
        return Answered(InferResponse(request.model, "1", outputs), "http://u", self.passed)

    async def found(self, seconds: float) -> bool:
        self.waits.append(seconds)
        if self.is_back:
            self.failure = self.facts_failure = None
        return self.is_back

    def recall(self, model: str, version: str) -> ModelFacts | None:
        return self.known if self.facts_failure is None else None

    async def facts(self, model: str, version: str, deadline: Deadline) -> ModelFacts:
        if self.facts_failure is not None:
            raise self.facts_failure
        return self.known


class House:
    """A pipeline, one route, and its upstreams (one for each tier) in virtual time."""

    def __init__(self, *upstreams: Upstream, **route: object) -> None:
        self.clock = Clock()
        self.upstreams = upstreams or (Upstream(),)
        self.upstream = self.upstreams[0]
        tiers = tuple(
            TierConfig("gpu", f"m{index}", "", Accept("y", 0.5) if index < len(self.upstreams) - 1 else None)
            for index in range(len(self.upstreams))
        )
        config = RouteConfig(**({"tiers": tiers, "cache": CACHE} | route))  # type: ignore[arg-type]  # as written in each test
        homes = [Home(upstream, upstream) for upstream in self.upstreams]  # type: ignore[arg-type]  # both seams
        self.route = Route("r", config, homes, 2**20)
        self.telemetry = Telemetry(self.clock)
        self.pipeline = Pipeline(Till(Limiter(100), self.clock), self.telemetry, self.clock, random.Random(7))

    def call(
        self, data: bytes = SURE, directives: CacheDirectives | None = None, seconds: float = 5.0, **more: object
    ) -> Call:
        caller = more.pop("caller", NOBODY)
        assert isinstance(caller, Caller)
        shape = more.pop("shape", (1, len(data) // 4))
        request = InferRequest("r", (Tensor("x", "FP32", shape, data),), **more)  # type: ignore[arg-type]
        deadline = Deadline.after(self.clock.now, seconds)
        return Call(self.route, caller, request, directives or CacheDirectives(), deadline)

    async def ask(self, *args: object, **more: object) -> Answer:
        return await self.pipeline.answer(self.call(*args, **more))  # type: ignore[arg-type]  # those of call

    async def refusal(self, *args: object, **more: object) -> Refused:
        with pytest.raises(Refused) as caught:
            await self.ask(*args, **more)
        return caught.value

    def fail(self, failure: Failure = Failure.UNREACHABLE, retry_after: float = 0.0) -> None:
        for upstream in self.upstreams:
            upstream.failure = UpstreamError(failure, "told to", retry_after=retry_after)

    def counter(self, name: str, **labels: str) -> float:
        found = 0.0
        for metric in self.telemetry.collect():
            for sample in metric.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    found += sample.value
        return found


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds; bounded, so that a bug fails and does not hang."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to be")


def unreachable(before_answer: bool = True) -> UpstreamError:
    return UpstreamError(Failure.UNREACHABLE, "nobody there", before_answer=before_answer)


@pytest.mark.parametrize("is_back", [True, False])
async def test_who_has_nothing_else_left_waits_a_moment_for_a_server_to_be_back(is_back: bool) -> None:
    house = House()
    house.upstream.failure, house.upstream.is_back = unreachable(), is_back
    if is_back:
        assert (await house.ask()).provenance.cache == "miss"
    else:
        assert (await house.refusal()).problem.slug == "unavailable"
    assert house.upstream.waits == [FOUND_SECONDS_MAX]
    assert len(house.upstream.requests) == 1 + is_back


@pytest.mark.parametrize("is_back", [True, False])
async def test_so_does_who_is_the_first_to_ask_for_a_model(is_back: bool) -> None:
    """Nobody knows it yet, and nobody can be asked about it: a gateway that starts in an outage."""
    house = House()
    house.upstream.facts_failure = house.upstream.failure = unreachable()
    house.upstream.is_back = is_back
    if is_back:
        assert (await house.ask()).provenance.cache == "miss"
    else:
        assert (await house.refusal()).problem.slug == "unavailable"
    assert house.upstream.waits == [FOUND_SECONDS_MAX]


async def test_who_has_little_time_waits_for_no_more_than_a_share_of_it() -> None:
    house = House(timeout=Seconds(0.4))
    house.upstream.failure = unreachable()
    await house.refusal(seconds=0.4)
    assert house.upstream.waits == [pytest.approx(0.1, rel=0.1)]


async def test_nobody_waits_for_whom_there_is_an_old_answer() -> None:
    house = House()
    await house.ask()
    house.clock.now += 20
    house.upstream.failure, house.upstream.is_back = unreachable(), True
    assert (await house.ask()).provenance.cache == "stale"
    assert house.upstream.waits == []


@pytest.mark.parametrize("failure", [each for each in Failure if each is not Failure.UNREACHABLE])
async def test_nobody_waits_for_what_was_reached(failure: Failure) -> None:
    house = House()
    house.fail(failure)
    await house.refusal()
    assert house.upstream.waits == []


async def test_nobody_waits_where_the_ladder_has_no_second_try_or_something_was_sent() -> None:
    house = House(degrade=("stale",))
    house.upstream.failure = unreachable()
    await house.refusal()
    assert house.upstream.waits == []
    house = House()
    house.upstream.failure = unreachable(before_answer=False)
    await house.refusal()
    assert house.upstream.waits == []


async def test_a_miss_is_stored_and_then_hit_with_its_age() -> None:
    house = House()
    first = await house.ask()
    house.clock.now += 4
    second = await house.ask(id="other")
    assert (first.provenance.cache, first.provenance.reason, first.provenance.stored) == ("miss", "absent", True)
    assert (second.provenance.cache, second.provenance.reason) == ("hit", "fresh")
    assert (second.provenance.age, second.provenance.ttl_left) == (4.0, 6.0)
    assert second.response is first.response
    assert len(house.upstream.requests) == 1


async def test_an_answer_is_fresh_then_stale_only_in_need_then_gone() -> None:
    house = House()
    await house.ask()
    house.clock.now += 10.5
    refetched = await house.ask()
    assert (refetched.provenance.cache, refetched.provenance.reason) == ("miss", "expired")
    house.clock.now += 109
    house.fail()
    assert (await house.ask()).provenance.cache == "stale"
    house.clock.now += 2
    assert (await house.refusal()).problem.status == 503


@pytest.mark.parametrize("failure", Failure)
@pytest.mark.parametrize("source", ["infer", "facts"])
async def test_each_failure_ends_in_a_labelled_stale_answer_or_a_503(failure: Failure, source: str) -> None:
    house = House()
    await house.ask()
    house.clock.now += 11
    house.fail(failure, retry_after=8.0)
    if source == "facts":
        house.upstream.facts_failure = house.upstream.failure
    stale = (await house.ask()).provenance
    assert (stale.cache, stale.reason, stale.steps, stale.degraded) == ("stale", failure.value, ("stale",), True)
    assert stale.ttl_left is not None
    assert stale.ttl_left < 0
    refused = await house.refusal(b"\0" * 8)
    slugs = {
        Failure.TIMEOUT: "deadline",
        Failure.LATE: "deadline",
        Failure.SHED: "overloaded",
        Failure.RAISED: "model-failed",
        Failure.OVERSIZED: "answer-too-large",
    }
    assert (refused.problem.slug, refused.problem.status) == (slugs.get(failure, "unavailable"), 503)
    if failure in (Failure.RAISED, Failure.OVERSIZED):
        assert refused.problem.retry_after is None, "the same again would fail again"
    else:
        assert refused.problem.retry_after is not None
        assert 8.0 <= refused.problem.retry_after <= 16.0
    assert house.counter("tailrace_degraded_total", failure=failure.value, step="stale") == 1
    assert house.counter("tailrace_degraded_total", failure=failure.value, step="refuse") == 1


async def test_an_answer_counts_once_however_many_steps_it_took_and_a_refusal_does_not() -> None:
    house = House(Upstream(), Upstream())
    await house.ask()
    house.clock.now += 11
    house.fail()
    assert (await house.ask()).provenance.steps == ("stale",)
    await house.refusal(b"\0" * 8)
    assert house.counter("tailrace_degraded_total") > 2, "steps are counted, also where they did not help"
    assert house.counter("tailrace_stood_in_total") == house.counter("tailrace_stood_in_total", step="stale") == 1
    house.upstreams[1].failure = None
    told = [(await house.ask(bytes([number]) * 8)).provenance for number in range(1, 4)]
    assert {each.steps for each in told} == {("tier",)}
    assert house.counter("tailrace_stood_in_total", step="tier") == 3
    assert house.counter("tailrace_stood_in_total") == 4


async def test_time_that_was_over_before_a_tier_was_asked_is_not_the_tiers_fault() -> None:
    house = House()
    refused = await house.refusal(seconds=0.0)
    assert (refused.problem.slug, refused.problem.status) == ("deadline", 503)
    assert "before a tier was asked" in refused.problem.detail
    assert house.upstream.requests == []
    assert house.counter("tailrace_degraded_total", failure="timeout") == 0
    assert house.counter("tailrace_degraded_total", failure="late", step="refuse") == 1
    await house.ask()
    house.clock.now += 11
    late = (await house.ask(seconds=0.0)).provenance
    assert (late.cache, late.reason, late.steps) == ("stale", "late", ("stale",))


@pytest.mark.parametrize(
    ("directives", "status"),
    [
        (CacheDirectives(max_stale=5.0), "stale"),
        (CacheDirectives(max_stale=0.5), "503"),
        (CacheDirectives(max_stale=math.inf, max_age=5.0), "503"),
        (CacheDirectives(max_stale=5.0, max_age=30.0), "stale"),
        (CacheDirectives(max_age=30.0), "503"),
        (CacheDirectives(), "stale"),
    ],
)
async def test_the_ladder_gives_nothing_staler_than_the_caller_will_have(
    directives: CacheDirectives, status: str
) -> None:
    house = House(cache=CacheConfig(ttl=Seconds(10), max_stale=Seconds(100), refresh=Seconds(0)))
    await house.ask()
    house.clock.now += 11
    house.fail()
    if status == "stale":
        assert (await house.ask(SURE, directives)).provenance.cache == "stale"
    else:
        assert (await house.refusal(SURE, directives)).problem.status == 503


async def test_without_the_stale_step_an_old_answer_is_not_given() -> None:
    house = House(degrade=("replica", "tier"))
    await house.ask()
    house.clock.now += 11
    house.fail()
    assert (await house.refusal()).problem.slug == "unavailable"


async def test_no_cache_during_a_failure_is_a_503_whatever_is_kept() -> None:
    house = House()
    await house.ask()
    house.fail()
    assert (await house.refusal(SURE, NO_CACHE)).problem.status == 503
    assert (await house.ask()).provenance.cache == "hit"


async def test_an_answer_older_than_the_caller_will_have_is_not_given_though_it_is_fresh() -> None:
    house = House()
    await house.ask()
    house.clock.now += 5
    house.fail()
    assert (await house.refusal(SURE, CacheDirectives(max_age=2.0))).problem.status == 503
    assert (await house.ask(SURE, CacheDirectives(max_age=6.0))).provenance.cache == "hit"


async def test_an_entry_of_a_turned_epoch_is_never_a_hit_and_its_ttl_does_not_say_fresh() -> None:
    house = House()
    await house.ask()
    house.route.turn()
    fetched = (await house.ask(SURE)).provenance
    assert (fetched.cache, fetched.reason) == ("miss", "epoch")
    house.route.turn()
    house.fail()
    refused = await house.refusal(SURE, ONLY_IF_CACHED)
    assert refused.problem.status == 504
    told = (await house.ask(SURE, CacheDirectives(max_stale=math.inf))).provenance
    assert (told.cache, told.steps) == ("stale", ("stale",))
    assert told.ttl_left is not None
    assert told.ttl_left < 0


async def test_an_epoch_that_turns_while_the_tiers_fail_makes_the_old_answer_stale() -> None:
    house = House()
    house.upstream.gate = asyncio.Event()
    asked = asyncio.create_task(house.ask())
    await until(lambda: len(house.upstream.requests) == 1)
    gate, house.upstream.gate = house.upstream.gate, None
    assert (await house.ask(SURE, NO_CACHE)).provenance.stored  # in the old epoch
    house.route.turn()
    house.fail()
    gate.set()
    told = (await asked).provenance
    assert (told.cache, told.steps) == ("stale", ("stale",))


async def test_a_fill_that_came_through_meanwhile_is_a_hit_for_those_who_failed() -> None:
    house = House()
    house.upstream.gate = asyncio.Event()
    asked = asyncio.create_task(house.ask())
    await until(lambda: len(house.upstream.requests) == 1)
    gate, house.upstream.gate = house.upstream.gate, None
    await house.ask(SURE, NO_CACHE)
    house.fail()
    gate.set()
    told = (await asked).provenance
    assert (told.cache, told.reason, told.steps) == ("hit", "fresh", ())


async def test_a_fill_begun_before_an_epochs_turn_is_not_fresh_after_it() -> None:
    house = House()
    house.upstream.gate = asyncio.Event()
    asked = asyncio.create_task(house.ask())
    await until(lambda: len(house.upstream.requests) == 1)
    house.route.turn()
    house.upstream.gate.set()
    await asked
    assert (await house.ask()).provenance.reason == "epoch"


async def test_a_purge_voids_the_fill_under_way_and_nobody_joins_it_any_more() -> None:
    house = House()
    assert house.route.cache is not None
    house.upstream.gate = asyncio.Event()
    before = asyncio.create_task(house.ask())
    await until(lambda: len(house.upstream.requests) == 1)
    house.upstream.payload = SURE[::-1]
    house.route.cache.purge()
    after = asyncio.create_task(house.ask())
    await until(lambda: len(house.upstream.requests) == 2)
    house.upstream.gate.set()
    old, new = await before, await after
    assert (old.provenance.stored, new.provenance.stored) == (False, True)
    assert (await house.ask()).response.outputs[0].data == SURE[::-1]


# -- time -----------------------------------------------------------------------------------------


async def test_a_deadline_that_is_over_puts_no_work_on_a_model() -> None:
    house = House()
    refused = await house.refusal(SURE, None, 0.0)
    assert (refused.problem.slug, refused.problem.status) == ("deadline", 503)
    assert house.upstream.requests == []
    await house.ask()
    assert (await house.ask(SURE, None, 0.0)).provenance.cache == "hit"
    house.clock.now += 11
    assert (await house.ask(SURE, None, 0.0)).provenance.steps == ("stale",)
    assert len(house.upstream.requests) == 1


@pytest.mark.parametrize("kept", [False, True])
async def test_work_longer_than_the_deadline_is_cancelled_and_told(kept: bool) -> None:
    house = House()
    if kept:
        await house.ask()
        house.clock.now += 11
    house.upstream.gate = asyncio.Event()
    if kept:
        assert (await house.ask(SURE, None, 0.01)).provenance.reason == "timeout"
    else:
        assert (await house.refusal(SURE, None, 0.01)).problem.slug == "deadline"
    await until(lambda: house.upstream.cancelled == 1)
    assert len(house.route.flights) == 0
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


async def test_a_short_deadline_does_not_take_the_flight_from_those_with_time() -> None:
    house = House()
    house.upstream.gate = asyncio.Event()
    short = asyncio.create_task(house.refusal(SURE, None, 0.01))
    await until(lambda: len(house.upstream.requests) == 1)
    patient = asyncio.create_task(house.ask())
    assert (await short).problem.slug == "deadline"
    house.upstream.gate.set()
    assert (await patient).provenance.collapsed
    assert (len(house.upstream.requests), house.upstream.cancelled) == (1, 0)


async def test_a_flight_does_not_carry_the_scheduling_of_the_caller_who_began_it() -> None:
    house = House()
    parameters: Mapping[str, Parameter] = {"timeout": 1000, "priority": 1, "k": 2}
    await house.ask(parameters=parameters)
    assert dict(house.upstream.requests[0].parameters) == {"k": 2}
    await house.ask(SURE, NO_CACHE, parameters=parameters)
    assert dict(house.upstream.requests[1].parameters) == parameters


# -- flights --------------------------------------------------------------------------------------


async def test_callers_of_one_key_share_one_fill_also_when_the_first_leaves() -> None:
    house = House()
    house.upstream.gate = asyncio.Event()
    tasks = [asyncio.create_task(house.ask(id=str(index))) for index in range(200)]
    await until(lambda: house.route.flights.waiters == 200)
    tasks[0].cancel()
    await until(lambda: house.route.flights.waiters == 199)
    house.upstream.gate.set()
    answers = await asyncio.gather(*tasks[1:])
    assert len(house.upstream.requests) == 1
    assert all(answer.provenance.collapsed and answer.provenance.stored for answer in answers)
    assert house.counter("tailrace_collapsed_total") == 199
    assert house.counter("tailrace_fills_total") == 1


async def test_when_all_have_left_the_work_upstream_is_cancelled() -> None:
    house = House()
    house.upstream.gate = asyncio.Event()
    tasks = [asyncio.create_task(house.ask()) for _ in range(5)]
    await until(lambda: len(house.upstream.requests) == 1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: house.upstream.cancelled == 1)
    assert len(house.route.flights) == 0


@pytest.mark.parametrize("kept", [False, True])
async def test_flights_abandoned_at_the_gateways_end_descend_the_ladder(kept: bool) -> None:
    house = House()
    if kept:
        await house.ask()
        house.clock.now += 11
    count = len(house.upstream.requests)
    house.upstream.gate = asyncio.Event()
    work: Awaitable[object] = house.ask() if kept else house.refusal()
    asked = asyncio.ensure_future(work)
    await until(lambda: len(house.upstream.requests) == count + 1)
    await house.route.flights.close()
    ended = await asked
    if isinstance(ended, Refused):
        assert (ended.problem.status, ended.problem.slug) == (503, "unavailable")
    else:
        assert isinstance(ended, Answer)
        assert ended.provenance.reason == "overloaded"


@pytest.mark.parametrize("directives", [NO_CACHE, NO_STORE])
async def test_who_wants_no_others_answer_or_leaves_none_flies_alone(directives: CacheDirectives) -> None:
    house = House()
    house.upstream.gate = asyncio.Event()
    tasks = [asyncio.create_task(house.ask(SURE, directives)) for _ in range(3)]
    await until(lambda: len(house.upstream.requests) == 3)
    house.upstream.gate.set()
    answers = await asyncio.gather(*tasks)
    assert not any(answer.provenance.collapsed for answer in answers)
    stored = not directives.no_store
    assert all(answer.provenance.stored is stored for answer in answers)
    assert house.route.cache is not None
    assert house.route.cache.entries == int(stored)


# -- refreshes ------------------------------------------------------------------------------------

REFRESHING = CacheConfig(ttl=Seconds(10), max_stale=Seconds(100), refresh=Seconds(20), refreshes_max=2)


async def test_a_stale_answer_in_the_window_is_served_at_once_and_refreshed_once() -> None:
    house = House(cache=REFRESHING)
    await house.ask()
    house.clock.now += 11
    house.upstream.gate = asyncio.Event()
    house.upstream.payload = SURE[::-1]
    for _ in range(5):
        told = (await house.ask()).provenance
        assert (told.cache, told.reason, told.steps) == ("stale", "revalidating", ())
    await until(lambda: len(house.upstream.requests) == 2)
    assert house.route.flights.waiters == 1
    house.upstream.gate.set()
    await until(lambda: house.route.refreshes == 0)
    fresh = await house.ask()
    assert (fresh.provenance.cache, fresh.response.outputs[0].data) == ("hit", SURE[::-1])
    assert len(house.upstream.requests) == 2


async def test_refreshes_are_bounded_and_ended_at_close() -> None:
    house = House(cache=REFRESHING)
    keys = [bytes([index]) * 8 for index in range(5)]
    for key in keys:
        await house.ask(key)
    house.clock.now += 11
    house.upstream.gate = asyncio.Event()
    for key in keys:
        assert (await house.ask(key)).provenance.reason == "revalidating"
    await until(lambda: len(house.upstream.requests) == 7)
    assert house.route.refreshes == 2
    await house.pipeline.close()
    await until(lambda: house.upstream.cancelled == 2)
    assert house.route.refreshes == 0


async def test_a_refresh_that_fails_is_counted_and_the_answer_stays() -> None:
    house = House(cache=REFRESHING)
    await house.ask()
    house.clock.now += 11
    house.fail()
    await house.ask()
    await until(lambda: house.route.refreshes == 0 and house.counter("tailrace_refresh_failures_total") == 1)
    assert (await house.ask()).provenance.cache == "stale"


# -- what is never kept ---------------------------------------------------------------------------

REGION: Mapping[str, Parameter] = {"shared_memory_region": "r", "shared_memory_byte_size": 8}


@pytest.mark.parametrize(
    ("more", "facts", "reason"),
    [
        ({"parameters": {"sequence_id": 4}}, {}, "sequence"),
        ({"outputs": (RequestedOutput("y", REGION),)}, {}, "shared-memory"),
        ({}, {"sequence": True}, "sequence"),
        ({}, {"decoupled": True}, "decoupled"),
    ],
)
async def test_what_must_not_be_kept_is_not(more: dict[str, object], facts: dict[str, object], reason: str) -> None:
    house = House(Upstream(msgspec.structs.replace(FACTS, **facts)))
    for _ in range(2):
        told = (await house.ask(**more)).provenance
        assert (told.cache, told.reason, told.stored, told.collapsed) == ("bypass", reason, False, False)
    assert len(house.upstream.requests) == 2
    assert house.route.cache is not None
    assert house.route.cache.entries == 0
    assert (await house.refusal(SURE, ONLY_IF_CACHED, **more)).problem.status == 504
    assert len(house.upstream.requests) == 2


async def test_without_a_cache_everything_is_fetched_and_only_if_cached_is_refused() -> None:
    house = House(cache=None)
    for _ in range(2):
        assert (await house.ask()).provenance.reason == "off"
    assert (await house.refusal(SURE, ONLY_IF_CACHED)).problem.slug == "not-cached"
    assert len(house.upstream.requests) == 2


async def test_a_refusal_after_the_look_up_tells_what_was_charged_and_how_far_it_came() -> None:
    house = House(quota=QuotaConfig(rate=10, per=Seconds(1), hits_count=True))
    house.upstream.failure = Rejected(400, "the model dislikes it")
    of_model = await house.refusal()
    misfit = await house.refusal(b"123456789")
    not_there = await house.refusal(b"abcd", ONLY_IF_CACHED)
    for refused, status in ((of_model, 400), (misfit, 400), (not_there, 504)):
        assert refused.problem.status == status
        assert refused.verdict is not None
        assert refused.provenance is not None
        assert refused.provenance.cache == "miss"
    assert [each.verdict.remaining for each in (of_model, misfit, not_there) if each.verdict] == [9, 8, 7]


async def test_errors_are_told_to_all_who_waited_and_not_kept() -> None:
    house = House()
    house.upstream.failure = Rejected(400, "the model dislikes it")
    refusals = await asyncio.gather(*(house.refusal() for _ in range(3)))
    assert {(refused.problem.status, refused.problem.detail) for refused in refusals} == {
        (400, "the model dislikes it")
    }
    assert len(house.upstream.requests) == 1
    house.upstream.failure = None
    assert (await house.ask()).provenance.cache == "miss"


async def test_what_the_model_rejects_is_never_answered_from_the_ladder() -> None:
    house = House()
    await house.ask()
    house.clock.now += 11
    house.upstream.failure = Rejected(404, "no such version")
    assert (await house.refusal()).problem.status == 404


NAN = b"\0\0\xc0\x7f\0\0\0\0"
INFINITE = b"\0\0\x80\x7f\0\0\0\0"


async def test_an_answer_with_a_nan_is_given_and_not_kept() -> None:
    """A fault of a moment would be a fresh hit for as long as any answer is."""
    house = House()
    house.upstream.payload = NAN
    first = await house.ask()
    assert first.response.outputs[0].data == NAN
    assert (first.provenance.stored, first.provenance.degraded, first.provenance.steps) == (False, False, ())
    house.upstream.payload = SURE
    second = await house.ask()
    assert (second.provenance.cache, second.provenance.stored) == ("miss", True)
    assert house.counter("tailrace_nan_answers_total", route="r") == 1


@pytest.mark.parametrize(("payload", "cache"), [(INFINITE, CACHE), (NAN, msgspec.structs.replace(CACHE, nan=True))])
async def test_what_may_mean_something_is_kept(payload: bytes, cache: CacheConfig) -> None:
    house = House(cache=cache)
    house.upstream.payload = payload
    assert (await house.ask()).provenance.stored
    assert (await house.ask()).response.outputs[0].data == payload
    assert len(house.upstream.requests) == 1


async def test_degraded_answers_are_labelled_and_not_kept() -> None:
    unsure = Upstream()
    unsure.payload = b"\0" * 8
    house = House(unsure, Upstream(), degrade=("tier", "stale"))
    house.upstreams[1].failure = UpstreamError(Failure.BROKEN, "told to")
    for _ in range(2):
        told = (await house.ask()).provenance
        assert (told.cache, told.tier, told.steps, told.stored) == ("miss", "m0", ("tier",), False)
    house.upstreams[1].failure = None
    assert (await house.ask()).provenance.stored


async def test_an_old_answer_comes_before_a_lesser_tier_if_the_route_says_so() -> None:
    unsure = Upstream()
    unsure.payload = b"\0" * 8
    house = House(unsure, Upstream(), degrade=("stale", "tier"))
    await house.ask()
    house.clock.now += 11
    house.upstreams[1].failure = UpstreamError(Failure.BROKEN, "told to")
    assert (await house.ask()).provenance.steps == ("stale",)
    house.clock.now += 200
    assert (await house.ask()).provenance.steps == ("tier",)


@pytest.mark.parametrize(
    ("degrade", "old", "steps"),
    [
        (("stale", "tier"), True, ("stale",)),
        (("stale", "tier"), False, ("tier",)),
        (("tier", "stale"), True, ("tier",)),
        (("stale",), True, ("stale",)),
        (("stale",), False, None),
        (("replica",), True, None),
        ((), True, None),
    ],
)
async def test_a_failing_first_tier_is_replaced_where_the_order_has_it(
    degrade: tuple[str, ...], old: bool, steps: tuple[str, ...] | None
) -> None:
    house = House(Upstream(), Upstream(), degrade=degrade)
    if old:
        await house.ask()
        house.clock.now += 11
    house.upstream.failure = UpstreamError(Failure.BROKEN, "told to")
    if steps is None:
        assert (await house.refusal()).problem.slug == "unavailable"
    else:
        assert (await house.ask()).provenance.steps == steps
    assert len(house.upstreams[1].requests) == (steps == ("tier",))


async def test_a_version_that_is_asked_for_is_the_one_that_answers() -> None:
    house = House()
    await house.ask(version="3")
    assert house.upstream.requests[0].version == "3"
    assert (await house.ask()).provenance.cache == "miss"
    assert house.upstream.requests[1].version == ""


@pytest.mark.parametrize(("asked", "status"), [("", 200), ("2", 200), ("3", 404)])
async def test_a_tier_of_one_version_answers_for_no_other(asked: str, status: int) -> None:
    house = House(tiers=(TierConfig("gpu", "m", "2"),))
    if status == 200:
        await house.ask(version=asked)
        assert house.upstream.requests[0].version == "2"
    else:
        assert (await house.refusal(version=asked)).problem.status == status
        assert house.upstream.requests == []


async def test_a_refused_request_reaches_no_model_but_a_hit_needs_no_proof() -> None:
    house = House(inputs={"x": InputRule(max=2.0)})
    refused = await house.refusal(b"\0\0\x80\x7f" * 2)
    assert (refused.problem.status, refused.problem.extras["reason"]) == (400, "finite")
    assert house.upstream.requests == []


# -- quotas ---------------------------------------------------------------------------------------


def limited(hits_count: bool) -> QuotaConfig:
    return QuotaConfig(rate=2, per=Seconds(60), hits_count=hits_count)


@pytest.mark.parametrize("place", ["quota", "caller_quota", "caller"])
@pytest.mark.parametrize("path", ["decoded", "wire"])
@pytest.mark.parametrize("hits_count", [False, True])
async def test_hits_use_a_quota_up_exactly_if_it_says_so(place: str, path: str, hits_count: bool) -> None:
    own = Quota(2, 60, 2, "caller:a") if place == "caller" else None
    caller = Caller("a", "", own, hits_count)
    house = House(**({} if place == "caller" else {place: limited(hits_count)}))
    answer = await house.ask(caller=caller)
    house.pipeline.attach_wire(house.route, answer, b"wire", Wire(b"body", Heading(())))

    async def hit() -> str:
        if path == "decoded":
            return (await house.ask(caller=caller)).provenance.cache
        owed = dues(house.route.allowances, caller, works=False)
        found = house.pipeline.recall_wire(house.route, owed, b"wire", house.clock.now)
        assert found is not None
        return found.provenance.cache

    assert await hit() == "hit"
    if hits_count:
        with pytest.raises(Refused) as caught:
            await hit()
        assert caught.value.problem.status == 429
        assert caught.value.verdict is not None
        assert caught.value.problem.retry_after == pytest.approx(30.0)
    else:
        assert [await hit() for _ in range(5)] == ["hit"] * 5
        await house.ask(b"\0" * 8, caller=caller)
        assert (await house.refusal(b"\1" * 8, caller=caller)).problem.status == 429
        assert await hit() == "hit"
    house.clock.now += 5
    assert (await house.refusal(b"\2" * 8, caller=caller)).problem.retry_after == pytest.approx(25.0)
    house.clock.now += 25
    await house.ask(b"\3" * 8, caller=caller)


async def test_each_caller_has_a_quota_of_its_own_though_one_is_called_like_the_route() -> None:
    house = House(caller_quota=limited(True))
    own = Caller("r", "", Quota(2, 60, 2, "caller:r"), True)
    for caller in (own, NOBODY):
        for _ in range(2):
            await house.ask(caller=caller)
        assert (await house.refusal(caller=caller)).problem.status == 429


async def test_the_quota_told_of_is_the_one_with_less_left() -> None:
    house = House(quota=QuotaConfig(rate=9, per=Seconds(60)), caller_quota=limited(True))
    verdict = (await house.ask()).quota
    assert verdict is not None
    assert (verdict.quota.name, verdict.remaining) == ("route-caller:r", 1)


@pytest.mark.parametrize("hits_count", [False, True])
async def test_a_request_that_one_quota_refuses_uses_up_no_other(hits_count: bool) -> None:
    small = QuotaConfig(rate=1, per=Seconds(60), hits_count=not hits_count)
    house = House(quota=QuotaConfig(rate=10, per=Seconds(600), hits_count=hits_count), caller_quota=small)
    first, second = Caller("a", ""), Caller("b", "")
    await house.ask(b"\0" * 8, caller=first)
    for index in range(20):
        refused = await house.refusal(bytes([index + 1]) * 8, caller=first)
        assert refused.verdict is not None
        assert refused.verdict.quota.name == "route-caller:r"
    assert (await house.ask(b"\x50" * 8, caller=second)).provenance.cache == "miss"
    verdict = house.pipeline.till.charge_passing(house.route.allowances, Caller("c", ""))
    assert verdict is not None
    assert verdict.remaining == 0
    assert house.pipeline.till.charge_passing((), Caller("c", "")) is None
    with pytest.raises(Refused):
        house.pipeline.till.charge_passing(house.route.allowances, Caller("c", ""))


async def test_a_refused_quota_is_not_a_model_call() -> None:
    house = House(quota=limited(False))
    for index in range(2):
        await house.ask(bytes([index]) * 8)
    refused = await house.refusal(b"\7" * 8)
    assert (refused.problem.slug, refused.problem.status) == ("quota", 429)
    assert len(house.upstream.requests) == 2


# -- anything in any order ------------------------------------------------------------------------

DIRECTIVES = [
    CacheDirectives(),
    NO_CACHE,
    NO_STORE,
    ONLY_IF_CACHED,
    CacheDirectives(max_age=3.0),
    CacheDirectives(max_stale=30.0),
    CacheDirectives(max_stale=math.inf, max_age=60.0),
    CacheDirectives(no_cache=True, only_if_cached=True),
]


class Generations(Upstream):
    """Answers the request's own bytes and the number of the model's present generation."""

    def __init__(self) -> None:
        super().__init__()
        self.generation = 0

    async def infer(
        self,
        request: InferRequest,
        deadline: Deadline,
        again: bool = True,
        decent: float = DECENT_SECONDS,
        claim: Claim = ANY_CLAIM,
    ) -> Answered:
        self.payload = bytes(request.inputs[0].data) + bytes([self.generation] * 4)
        return await super().infer(request, deadline, again)


class Kept(msgspec.Struct):
    """The simple model's entry."""

    stored_at: float
    generation: int


class AnyOrder(RuleBasedStateMachine):
    """A pipeline beside a dictionary that says what each request must get.

    The model behind changes only together with its epoch, so an answer's generation tells its epoch.
    """

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.source = Generations()
        self.house = House(self.source, cache=REFRESHING)
        self.kept: dict[int, Kept] = {}

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.run_until_complete(self.house.pipeline.close())
            self.loop.close()

    @rule(key=st.integers(0, 3), directives=st.sampled_from(DIRECTIVES), wired=st.booleans())
    def ask(self, key: int, directives: CacheDirectives, wired: bool) -> None:
        expected = self.expected(key, directives)
        refused = contextlib.ExitStack()
        if expected.isdigit():
            caught = refused.enter_context(pytest.raises(Refused))
        with refused:
            answer = self.loop.run_until_complete(self.house.ask(bytes([key] * 4), directives))
        if expected.isdigit():
            assert str(caught.value.problem.status) == expected
            return
        told = answer.provenance
        data = bytes(answer.response.outputs[0].data)
        assert data[:4] == bytes([key] * 4), "another request's answer"
        assert told.cache + (":degraded" if told.steps else "") == expected.removesuffix(":refresh")
        if told.cache == "miss":
            assert data[4] == self.source.generation
            if not directives.no_store:
                self.kept[key] = Kept(self.house.clock.now, self.source.generation)
        else:
            kept = self.kept[key]
            assert data[4] == kept.generation
            assert told.age == self.house.clock.now - kept.stored_at
            assert told.ttl_left is not None
            assert (told.ttl_left < 0) is (told.cache == "stale")
        if wired:
            ready = Wire(data, Heading(()))
            self.house.pipeline.attach_wire(self.house.route, answer, bytes([key]), ready)
        if expected.endswith(":refresh"):
            self.loop.run_until_complete(until(lambda: self.house.route.refreshes == 0))
            if self.source.failure is None:
                self.kept[key] = Kept(self.house.clock.now, self.source.generation)

    @rule(key=st.integers(0, 3))
    def ask_by_wire(self, key: int) -> None:
        found = self.house.pipeline.recall_wire(self.house.route, (), bytes([key]), self.house.clock.now)
        if found is not None:
            assert found.wire.body == bytes([key] * 4) + bytes([self.source.generation] * 4)
            assert self.expected(key, DIRECTIVES[0]) == "hit"

    @rule(seconds=st.sampled_from([1.0, 3.0, 8.0, 25.0, 90.0]))
    def time_passes(self, seconds: float) -> None:
        self.house.clock.now += seconds

    @rule()
    def another_model(self) -> None:
        self.source.generation += 1
        self.house.route.turn()

    @rule()
    def purge(self) -> None:
        assert self.house.route.cache is not None
        self.house.route.cache.purge()
        self.kept.clear()

    @rule(failure=st.sampled_from([None, None, *Failure]))
    def upstream_changes(self, failure: Failure | None) -> None:
        self.source.failure = None if failure is None else UpstreamError(failure, "told to")

    def expected(self, key: int, directives: CacheDirectives) -> str:
        """What a request must get, in the simplest words."""
        kept, now = self.kept.get(key), self.house.clock.now
        if kept is not None and now - kept.stored_at > 110:
            kept = None
        if kept is not None and not directives.no_cache and kept.generation == self.source.generation:
            age = now - kept.stored_at
            young = directives.max_age is None or age <= directives.max_age
            if age <= 10 and young:
                return "hit"
            if age > 10 and young and directives.max_stale is not None and age - 10 <= directives.max_stale:
                return "stale"
            if 10 < age <= 30 and directives == DIRECTIVES[0]:
                return "stale:refresh"
        if directives.only_if_cached:
            return "504"
        if self.source.failure is None:
            return "miss"
        if kept is None or directives.no_cache:
            return "503"
        age = now - kept.stored_at
        fresh = age <= 10 and kept.generation == self.source.generation
        if directives.max_stale is not None:
            tolerated = age - 10 <= directives.max_stale
        else:
            tolerated = fresh or directives.max_age is None
        young = directives.max_age is None or age <= directives.max_age
        return "stale:degraded" if young and tolerated else "503"


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)


async def test_what_was_passed_over_is_counted_by_its_failure_though_all_failed_in_the_end() -> None:
    house = House(Upstream(), Upstream(), degrade=("replica", "tier"))
    house.upstream.failure = UpstreamError(Failure.TIMEOUT, "too slow")
    last = UpstreamError(Failure.OVERLOADED, "full too")
    last.passed = (Passed(Step.REPLICA, Failure.RAISED, "told to"),)
    house.upstreams[1].failure = last
    await house.refusal()
    for failure, step in (("timeout", "tier"), ("raised", "replica")):
        assert house.counter("tailrace_degraded_total", failure=failure, step=step) >= 1
    assert house.counter("tailrace_degraded_total", step="refuse") == 1
