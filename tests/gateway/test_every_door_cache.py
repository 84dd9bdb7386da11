"""Every rule of the cache, once, at every door, and between every two of them."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from msgspec.structs import replace

from tests.doors.callers import ALL
from tests.doors.house import opened, until
from tests.doors.question import Ask, Outcome, doubled
from tests.gateway.conftest import EchoTriton, Gate

TIER = 'tiers = [{ backend = "upstream", model = "m" }]'
ROUTE = f'{{ {TIER}, cache = {{ ttl = "1h", max_stale = "1h" }} }}'
SHORT = f'{{ {TIER}, cache = {{ ttl = "1ms", max_stale = "1h" }} }}'
ASK = Ask()
MISS = ("", "miss", "absent", "m", 1, 0, (), False, False, True)
HIT = ("", "hit", "fresh", "m", 1, 0, (), False, True, False)


def expect(found: Outcome, told: tuple[object, ...], asked: Ask = ASK) -> None:
    """Of an answer: what it says it was made of, and that it is the right one."""
    assert found.told == told
    assert found.values == doubled(asked.rows)


async def old() -> None:
    """Until what was kept under SHORT is stale."""
    await asyncio.sleep(0.01)


# -- hits ------------------------------------------------------------------------------------------------


async def test_a_miss_is_kept_and_is_a_hit_then_also_by_its_bytes(gate: Gate) -> None:
    caller = await gate.caller(ROUTES__R=ROUTE)
    expect(await caller.ask(ASK), MISS)
    for _ in range(3):
        expect(await caller.ask(ASK), HIT)
    assert gate.upstream.asked == 1


@pytest.mark.parametrize("first", ALL)
async def test_a_miss_by_one_door_is_a_hit_by_every_other(triton_echo: EchoTriton, first: str) -> None:
    async with opened([triton_echo.url], edge=True, ROUTES__R=ROUTE) as house:
        callers = {name: house.caller(name) for name in ALL}
        for number, name in enumerate(ALL):
            asked = replace(ASK, rows=((float(number), 0.25),))
            expect(await callers[first].ask(asked), MISS, asked)
            for _ in range(3):  # decoded, decoded and kept by its bytes, known by them
                expect(await callers[name].ask(asked), HIT, asked)
            assert triton_echo.asked == number + 1


@pytest.mark.parametrize(
    "other",
    [
        replace(ASK, rows=((1.5, -2.5),)),
        replace(ASK, rows=((1.5, -2.0), (1.5, -2.0))),
        replace(ASK, route="twin"),
        replace(ASK, version="1"),
        replace(ASK, outputs=("y",)),
        replace(ASK, parameters={"scale": 2}),
        replace(ASK, parameters={"scale": True}),
        replace(ASK, parameters={"scale": "2"}),
    ],
    ids=["values", "shape", "route", "version", "outputs", "a parameter", "its type", "its other type"],
)  # fmt: skip
async def test_another_question_is_no_hit(gate: Gate, other: Ask) -> None:
    caller = await gate.caller(ROUTES__R=ROUTE, ROUTES__TWIN=ROUTE)
    for _ in range(2):
        assert (await caller.ask(ASK)).problem == ""
    expect(await caller.ask(other), MISS, other)
    expect(await caller.ask(other), HIT, other)
    assert gate.upstream.asked == 2


@pytest.mark.parametrize("shared", [False, True])
async def test_tenants_are_apart_unless_the_route_shares(gate: Gate, shared: bool) -> None:
    keys = {
        f"CALLERS__{name}": f'{{ key_sha256 = "{hashlib.sha256(name.encode()).hexdigest()}", tenant = "{tenant}" }}'
        for name, tenant in (("A", "a"), ("ANN", "a"), ("B", "b"))
    }
    house = await gate.house(ROUTES__R=ROUTE.replace("ttl", f"shared = {str(shared).lower()}, ttl"), **keys)
    caller = house.caller(gate.name)
    found = [(await caller.ask(replace(ASK, key=name))).cache for name in ("A", "ANN", "A", "B", "B", "", "", "A")]
    apart = ["miss", "hit", "hit", "miss", "hit", "miss", "hit", "hit"]
    assert found == (["miss", *["hit"] * 7] if shared else apart)


async def test_equal_questions_at_once_are_one_inference(gate: Gate) -> None:
    house = await gate.house(ROUTES__R=ROUTE)
    gate.upstream.gate.clear()
    asking = [asyncio.create_task(house.caller(gate.name).ask(ASK)) for _ in range(6)]
    await until(lambda: gate.upstream.asked == 1)
    await asyncio.sleep(0.05)
    gate.upstream.gate.set()
    for each in await asyncio.gather(*asking):
        assert (each.cache in ("miss", "hit"), each.values) == (True, doubled(ASK.rows))
    assert gate.upstream.asked == 1


async def test_an_answer_made_of_rows_that_were_kept_has_their_age(gate: Gate) -> None:
    caller = await gate.caller(ROUTES__R=ROUTE.replace('"m"', '"k"').replace("ttl", "rows = true, ttl"))
    one, both = replace(ASK, rows=((1.0, 2.0),)), replace(ASK, rows=((3.0, 4.0), (1.0, 2.0)))
    expect(await caller.ask(one), ("", "miss", "absent", "k", 1, 0, (), False, False, True), one)
    expect(await caller.ask(both), ("", "miss", "partial", "k", 2, 0, (), False, True, True), both)
    expect(await caller.ask(both), ("", "hit", "fresh", "k", 2, 0, (), False, True, False), both)
    assert gate.upstream.asked == 2


# -- what a caller may ask of the cache --------------------------------------------------------------------------


FETCHED = ("miss", "no-cache", True)
UNKNOWN = {"no-cache": FETCHED, "no-store": ("miss", "absent", False), "max-age=60": ("miss", "absent", True)}
KNOWN = {
    "no-cache": FETCHED,
    "max-age=0": ("miss", "max-age", True),
    **dict.fromkeys(("no-store", "max-age=60", "only-if-cached"), ("hit", "fresh", False)),
}


@pytest.mark.parametrize("directive", KNOWN)
async def test_what_a_caller_says_of_what_is_cached(gate: Gate, directive: str) -> None:
    caller = await gate.caller(ROUTES__R=ROUTE)
    await caller.ask(ASK)
    found = await caller.ask(replace(ASK, cache_control=directive))
    assert (found.problem, found.values) == ("", doubled(ASK.rows))
    assert (found.cache, found.reason, found.stored) == KNOWN[directive]
    assert gate.upstream.asked == (1 if found.cache == "hit" else 2)


@pytest.mark.parametrize("directive", UNKNOWN)
async def test_what_a_caller_says_of_what_is_not_cached(gate: Gate, directive: str) -> None:
    caller = await gate.caller(ROUTES__R=ROUTE)
    found = await caller.ask(replace(ASK, cache_control=directive))
    assert (found.problem, found.values) == ("", doubled(ASK.rows))
    assert (found.cache, found.reason, found.stored) == UNKNOWN[directive]
    assert (await caller.ask(ASK)).cache == ("hit" if found.stored else "miss")


async def test_who_wants_what_is_cached_or_nothing_puts_no_work_on_a_model(gate: Gate) -> None:
    caller = await gate.caller(ROUTES__R=ROUTE)
    await caller.ask(replace(ASK, rows=((1.0, 1.0),)))
    for directive in ("only-if-cached", "only-if-cached, no-cache"):
        found = await caller.ask(replace(ASK, cache_control=directive))
        assert found.told == ("not-cached", "miss", "only-if-cached", "", 0, 0, (), False, False, False)
    assert gate.upstream.asked == 1


async def test_max_stale_accepts_an_old_answer(gate: Gate) -> None:
    caller = await gate.caller(ROUTES__R=SHORT)
    await caller.ask(ASK)
    await old()
    stale = ("", "stale", "max-stale", "m", 1, 0, (), False, True, False)
    expect(await caller.ask(replace(ASK, cache_control="max-stale=60")), stale)
    expect(await caller.ask(ASK), ("", "miss", "expired", *MISS[3:]))


# -- how an answer ends ---------------------------------------------------------------------------------------------


async def test_a_purge_holds_from_the_next_request_on(gate: Gate) -> None:
    house = await gate.house(ROUTES__R=ROUTE)
    caller = house.caller(gate.name)
    for _ in range(3):
        await caller.ask(ASK)
    await house.purge("r")
    expect(await caller.ask(ASK), MISS)
    expect(await caller.ask(ASK), HIT)


async def test_a_turned_epoch_is_a_miss(gate: Gate) -> None:
    house = await gate.house(ROUTES__R=ROUTE)
    caller = house.caller(gate.name)
    for _ in range(3):
        await caller.ask(ASK)
    house.gateway.routes["r"].turn()
    expect(await caller.ask(ASK), ("", "miss", "epoch", *MISS[3:]))
    expect(await caller.ask(ASK), HIT)
    assert gate.upstream.asked == 2


async def test_an_old_answer_in_the_window_comes_at_once_and_is_fetched_anew(gate: Gate) -> None:
    caller = await gate.caller(ROUTES__R=SHORT.replace("max_stale", 'refresh = "1h", max_stale'))
    await caller.ask(ASK)
    await old()
    expect(await caller.ask(ASK), ("", "stale", "revalidating", "m", 1, 0, (), False, True, False))
    await until(lambda: gate.upstream.asked == 2)


# -- what is never kept ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "parameters", "reason"),
    [
        (ROUTE, {"sequence_id": 5, "sequence_start": True}, "sequence"),
        (f"{{ {TIER} }}", {}, "off"),
    ],
    ids=["a sequence", "a route without a cache"],
)
async def test_what_is_never_kept(gate: Gate, route: str, parameters: dict[str, object], reason: str) -> None:
    caller = await gate.caller(ROUTES__R=route)
    for _ in range(3):
        found = await caller.ask(replace(ASK, parameters=parameters))
        expect(found, ("", "bypass", reason, "m", 1, 0, (), False, False, False))
    assert gate.upstream.asked == 3
