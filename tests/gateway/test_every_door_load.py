"""Too much to do, once, at every door: who finds no place is told so, an old answer goes before that, and what was made
in a brownout says so."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from degrade.gate import NOBODY, Permit
from tests.doors.house import House, until
from tests.doors.question import Ask, doubled
from tests.gateway.conftest import Gate
from tiers.gates import Gates

ONE = 'tiers = [{ backend = "upstream", model = "m" }]'
TWO = (
    'tiers = [{ backend = "upstream", model = "k", accept = { output = "y", at_least = 1.0 } }, '
    '{ backend = "upstream", model = "l" }]'
)
KEPT = 'cache = { ttl = "1h", max_stale = "1h" }'
SHORT = 'cache = { ttl = "1ms", max_stale = "1h" }'
NARROW = {"BACKENDS__UPSTREAM__CONCURRENCY": '{ adaptive = false, max = 1, wait_max = "10ms" }'}
STILL = {"BROWNOUT__ENABLED": "false"}
"""Nobody changes a level but the test."""
UNSURE = ((1.0, 1.0),)
ASK = Ask()


def route(*members: str) -> str:
    return f"{{ {', '.join(members)} }}"


def gates(house: House) -> Gates:
    return house.gateway.homes["upstream"].pool.gates


def taken(house: House) -> Permit:
    """A place at the model's gate that somebody has."""
    found = gates(house).of("m").admit(NOBODY, 60.0, 0.0)
    assert isinstance(found, Permit)
    return found


async def test_without_a_place_it_is_a_503_that_says_when_to_come_back_and_nobody_is_asked(gate: Gate) -> None:
    house = await gate.house(ROUTES__R=route(ONE), **NARROW)
    caller = house.caller(gate.name)
    permit = taken(house)
    found = await caller.ask(ASK)
    assert found.told == ("overloaded", "bypass", "shed", "", 0, 0, (), True, False, False)
    assert found.retry_after is not None
    assert 1 <= found.retry_after <= 60
    assert gate.upstream.asked == 0
    permit.ignored(0.0)
    assert (await caller.ask(ASK)).problem == ""
    assert gates(house).of("m").is_idle


async def test_a_hit_never_waits(gate: Gate) -> None:
    house = await gate.house(ROUTES__R=route(ONE, KEPT), **NARROW)
    caller = house.caller(gate.name)
    await caller.ask(ASK)
    taken(house)
    for _ in range(3):
        assert (await caller.ask(ASK)).cache == "hit"


async def test_an_old_answer_goes_before_a_refusal(gate: Gate) -> None:
    house = await gate.house(ROUTES__R=route(ONE, SHORT), **NARROW)
    caller = house.caller(gate.name)
    await caller.ask(ASK)
    await asyncio.sleep(0.01)
    taken(house)
    found = await caller.ask(ASK)
    assert found.told == ("", "stale", "shed", "m", 1, 0, ("stale",), True, True, False)
    assert found.values == doubled(ASK.rows)


async def test_who_waits_is_answered_when_there_is_a_place(gate: Gate) -> None:
    house = await gate.house(
        ROUTES__R=route(ONE), BACKENDS__UPSTREAM__CONCURRENCY="{ adaptive = false, max = 1 }"
    )
    permit = taken(house)
    asked = asyncio.create_task(house.caller(gate.name).ask(ASK))
    await until(lambda: gates(house).of("m").waiting == 1)
    assert gate.upstream.asked == 0
    permit.ignored(0.0)
    assert (await asked).values == doubled(ASK.rows)


async def test_a_brownout_is_told_with_what_was_made_in_it(gate: Gate) -> None:
    house = await gate.house(
        ROUTES__R=route(TWO, SHORT, 'brownout = ["fast", "stale"]'), ROUTES__S=route(TWO, SHORT), **STILL
    )
    caller = house.caller(gate.name)
    asked = replace(ASK, rows=UNSURE)
    gates(house).level = 2
    found = await caller.ask(asked)
    assert found.told == ("", "miss", "absent", "k", 1, 0, ("tier",), True, False, False)
    assert found.brownout == 2
    gates(house).level = 0
    found = await caller.ask(asked)
    assert (found.tier, found.degraded, found.brownout) == ("l", False, 0)
    await asyncio.sleep(0.01)
    gates(house).level = 3
    found = await caller.ask(asked)
    assert found.told == ("", "stale", "brownout", "l", 1, 1, ("stale",), True, True, False)
    assert found.brownout == 3
    fresh = await caller.ask(replace(asked, cache_control="no-cache"))
    assert (fresh.cache, fresh.tier, fresh.brownout) == ("miss", "k", 3)
    gates(house).level = 4
    gate.upstream.failing.update("kl")
    refused = await caller.ask(replace(ASK, rows=((7.0, 7.0),)))
    assert (refused.problem, refused.brownout) == ("unavailable", 4)


async def test_what_a_route_does_not_allow_is_not_done(gate: Gate) -> None:
    house = await gate.house(ROUTES__R=route(TWO, SHORT), **STILL)
    caller = house.caller(gate.name)
    asked = replace(ASK, rows=UNSURE)
    gates(house).level = 4
    for _ in range(2):
        found = await caller.ask(asked)
        assert (found.cache, found.tier, found.degraded, found.brownout) == ("miss", "l", False, 4)
        await asyncio.sleep(0.01)


async def test_at_the_highest_level_the_lowest_priority_is_not_served(gate: Gate) -> None:
    house = await gate.house(ROUTES__R=route(ONE, KEPT, 'priority = "low"'), ROUTES__T=route(ONE), **STILL)
    caller = house.caller(gate.name)
    await caller.ask(ASK)
    gates(house).level = 4
    assert (await caller.ask(ASK)).cache == "hit"
    found = await caller.ask(replace(ASK, rows=UNSURE))
    assert (found.problem, found.reason, found.brownout) == ("overloaded", "shed", 4)
    assert (await caller.ask(replace(ASK, route="t", rows=UNSURE))).problem == ""
