"""What the pipeline makes of load, in virtual time: for whom it asks, what a level leaves out, and who waits with
whom."""

from __future__ import annotations

import asyncio
import random
from typing import Final

import pytest

from degrade.gate import Claim, Priority
from degrade.ladder import Failure
from gateway.admission.auth import Caller
from gateway.call import claim_of
from gateway.codec.http import CacheDirectives
from gateway.config import CacheConfig
from gateway.config import Endpoint as EndpointConfig
from gateway.config_load import PriorityWord
from gateway.endpoint import Endpoint
from gateway.units import Seconds
from tests.gateway.test_pipeline import NO_CACHE, SURE, House, Upstream, until
from tests.gateway.test_pipeline import REFRESHING as REFRESHED
from tests.tiers.test_pool import Fake
from tiers.pool import Pool, PoolOptions

UNSURE: Final = b"\0\0\0\0\0\0\0\0"
OLD: Final = CacheConfig(ttl=Seconds(10), max_stale=Seconds(100))
ALONE, TENANT = Caller("ann", ""), Caller("bob", "acme")
HIGH = Caller("vip", "", priority=Priority.HIGH)


@pytest.mark.parametrize(
    ("caller", "route", "claim"),
    [
        (ALONE, None, Claim("ann", Priority.NORMAL)),
        (TENANT, None, Claim("tenant:acme", Priority.NORMAL)),
        (ALONE, "low", Claim("ann", Priority.LOW)),
        (ALONE, "normal", Claim("ann", Priority.NORMAL)),
        (ALONE, "high", Claim("ann", Priority.HIGH)),
        (HIGH, "low", Claim("vip", Priority.HIGH)),
        (Caller("x", "", priority=Priority.LOW), "high", Claim("x", Priority.LOW)),
    ],
)
@pytest.mark.parametrize("directives", [None, NO_CACHE])
async def test_for_whom_it_asks(
    caller: Caller, route: str | None, claim: Claim, directives: CacheDirectives | None
) -> None:
    house = House(priority=route)
    await house.ask(SURE, directives, caller=caller)
    assert house.upstream.claims == [claim]


@pytest.mark.parametrize("word", [None, "high", "normal", "low"])
def test_an_endpoints_callers_have_its_priority(word: PriorityWord | None) -> None:
    config = EndpointConfig("/p", "b", priority=word)
    made = Endpoint("e", config, Pool([Fake("u")], PoolOptions(), lambda: 0.0, random.Random(1)), 1024)
    assert claim_of(made, ALONE).priority is Priority[(word or "normal").upper()]


async def test_nobody_waits_in_a_lower_ones_turn() -> None:
    """Equal requests of one priority are one fill, and of two priorities two."""
    house = House()
    house.upstream.gate = asyncio.Event()
    low = Caller("low", "", priority=Priority.LOW)
    asked = [asyncio.create_task(house.ask(caller=caller)) for caller in (low, low, HIGH, HIGH)]
    await until(lambda: len(house.upstream.claims) == 2)
    house.upstream.gate.set()
    answers = await asyncio.gather(*asked)
    assert [claim.priority for claim in house.upstream.claims] == [Priority.LOW, Priority.HIGH]
    assert sum(answer.provenance.collapsed for answer in answers) == 2


@pytest.mark.parametrize(("level", "refreshes"), [(0, 1), (1, 0), (4, 0)])
async def test_in_a_brownout_nothing_is_refreshed_behind_a_callers_back(level: int, refreshes: int) -> None:
    house = House(cache=REFRESHED)
    await house.ask()
    house.clock.now += 11
    house.upstream.gates.level = level
    told = (await house.ask()).provenance
    assert (told.cache, told.reason, told.degraded, told.brownout) == ("stale", "revalidating", False, level)
    assert house.route.refreshes == refreshes
    await house.pipeline.close()


@pytest.mark.parametrize(("level", "reason"), [(2, "expired"), (3, "brownout"), (4, "brownout")])
async def test_an_old_answer_first(level: int, reason: str) -> None:
    house = House(cache=OLD, brownout=("stale",))
    await house.ask()
    house.clock.now += 11
    house.upstream.gates.level = level
    told = (await house.ask()).provenance
    assert (told.reason, told.brownout) == (reason, level)
    if reason == "brownout":
        assert (told.cache, told.steps, told.degraded) == ("stale", ("stale",), True)
        assert house.counter("tailrace_degraded_total", failure="shed", step="stale") == 1
        assert len(house.upstream.requests) == 1


@pytest.mark.parametrize(
    ("directives", "passed", "served"),
    [
        (CacheDirectives(max_stale=50.0), 11.0, True),
        (CacheDirectives(max_stale=0.5), 11.0, False),
        (CacheDirectives(max_age=5.0), 11.0, False),
        (CacheDirectives(no_store=True), 11.0, True),
        (NO_CACHE, 11.0, False),
        (None, 200.0, False),
    ],
)
async def test_but_none_that_the_caller_would_not_have(
    directives: CacheDirectives | None, passed: float, served: bool
) -> None:
    house = House(cache=OLD, brownout=("stale",))
    await house.ask()
    house.clock.now += passed
    house.upstream.gates.level = 3
    assert ((await house.ask(SURE, directives)).provenance.cache == "stale") is served


async def test_nor_one_of_a_model_that_is_gone() -> None:
    house = House(cache=OLD, brownout=("stale",))
    await house.ask()
    house.clock.now += 11
    house.route.turn()
    house.upstream.gates.level = 3
    assert (await house.ask()).provenance.cache == "miss"


@pytest.mark.parametrize(("level", "allowed", "asked"), [(1, ("fast",), 1), (2, (), 1), (2, ("fast",), 0)])
async def test_the_first_tiers_word_only_is_labelled_and_not_kept(
    level: int, allowed: tuple[str, ...], asked: int
) -> None:
    house = House(Upstream(), Upstream(), brownout=allowed)
    house.upstream.payload = UNSURE
    house.upstream.gates.level = level
    told = (await house.ask()).provenance
    assert len(house.upstreams[1].requests) == asked
    assert (told.degraded, told.stored, told.brownout) == (not asked, bool(asked), level)
    assert told.steps == (() if asked else ("tier",))


async def test_the_highest_level_of_its_backends_is_the_routes() -> None:
    house = House(Upstream(), Upstream())
    house.upstreams[1].gates.level = 3
    assert house.route.level == 3
    assert (await house.ask()).provenance.brownout == 3
    assert (await house.ask()).provenance.brownout == 0  # a hit is what it always is


async def test_who_is_refused_in_a_brownout_is_told() -> None:
    house = House()
    house.fail(Failure.SHED)
    house.upstream.gates.level = 4
    refused = await house.refusal()
    assert refused.problem.slug == "overloaded"
    assert refused.provenance is not None
    assert refused.provenance.brownout == 4
