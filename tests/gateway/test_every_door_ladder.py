"""Cascade and degradation, once, at every door: the same answer with the same provenance, or the same refusal."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.witness import Witness
from tests.doors.question import Ask, Outcome, doubled
from tests.gateway.conftest import EchoTriton, Gate

ONE = 'tiers = [{ backend = "upstream", model = "m" }]'
KEPT = 'cache = { ttl = "1h", max_stale = "1h" }'
SHORT = 'cache = { ttl = "1ms", max_stale = "1h" }'
TWO = (
    'tiers = [{ backend = "upstream", model = "k", accept = { output = "y", at_least = 1.0 } }, '
    '{ backend = "upstream", model = "l" }]'
)
BREAKER = {"BACKENDS__UPSTREAM__BREAKER__CONSECUTIVE_FAILURES": "1000"}
SURE, UNSURE = ((5.0, 0.0),), ((1.0, 1.0),)
ASK = Ask()


def route(*members: str) -> str:
    return f"{{ {', '.join(members)} }}"


def expect(found: Outcome, told: tuple[object, ...], rows: tuple[tuple[float, ...], ...]) -> None:
    assert found.told == told
    assert found.values == doubled(rows)


def refused(found: Outcome, problem: str, reason: str, cache: str = "miss", returns: bool = True) -> None:
    """No answer, of what kind and why, and whether it says when to come back."""
    assert found.told == (problem, cache, reason, "", 0, 0, (), True, False, False)
    assert (found.retry_after is not None) == returns
    assert found.retry_after is None or 1 <= found.retry_after <= 3600
    assert found.detail


# -- the cascade ----------------------------------------------------------------------------------------------------


async def test_the_fast_tier_answers_what_it_is_sure_of_and_the_large_one_the_rest(gate: Gate) -> None:
    caller = await gate.caller(ROUTES__R=route(TWO, KEPT))
    for rows, tier, escalated in ((SURE, "k", 0), (UNSURE, "l", 1), (SURE + UNSURE + SURE, "l", 1)):
        asked = replace(ASK, rows=rows)
        of = (tier, len(rows), escalated, (), False)
        expect(await caller.ask(asked), ("", "miss", "absent", *of, False, True), rows)
        for _ in range(3):
            expect(await caller.ask(asked), ("", "hit", "fresh", *of, True, False), rows)
    assert gate.upstream.asked == 1 + 2 + 2


# -- the ladder ------------------------------------------------------------------------------------------------------


async def test_another_replica_takes_the_place_of_one_that_fails(gate: Gate) -> None:
    other = EchoTriton()
    server = await asyncio.start_server(other.serve, "127.0.0.1", 0)
    house = await gate.house(
        f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", ROUTES__R=route(ONE, KEPT), **BREAKER
    )
    caller, seen = house.caller(gate.name), set()
    gate.upstream.failing.add("m")
    for number in range(100):
        rows = ((float(number), 1.0),)
        found = await caller.ask(replace(ASK, rows=rows))
        assert found.steps in ((), ("replica",))
        expect(found, ("", "miss", "absent", "m", 1, 0, found.steps, False, False, True), rows)
        seen.add(found.steps)
        if len(seen) == 2:
            break
    assert len(seen) == 2
    server.close()
    for task in other.serving:
        if task is not None:
            task.cancel()


async def test_the_large_tier_takes_the_place_of_a_fast_one_that_fails(gate: Gate) -> None:
    caller = await gate.caller(ROUTES__R=route(TWO, KEPT))
    gate.upstream.failing.add("k")
    found = await caller.ask(replace(ASK, rows=SURE))
    assert (found.tier, found.steps, found.values) == ("l", ("tier",), doubled(SURE))
    assert (found.problem, found.cache, found.degraded) == ("", "miss", False)


async def test_a_fast_answer_in_place_of_a_large_tier_that_fails_is_labelled_and_never_kept(gate: Gate) -> None:
    caller = await gate.caller(ROUTES__R=route(TWO, KEPT), **BREAKER)
    gate.upstream.failing.add("l")
    for _ in range(2):
        found = await caller.ask(replace(ASK, rows=UNSURE))
        expect(found, ("", "miss", "absent", "k", 1, 0, ("tier",), True, False, False), UNSURE)
    gate.upstream.failing.clear()
    found = await caller.ask(replace(ASK, rows=UNSURE))
    expect(found, ("", "miss", "absent", "l", 1, 1, (), False, False, True), UNSURE)
    assert (await caller.ask(replace(ASK, rows=UNSURE))).cache == "hit"


@pytest.mark.parametrize("status", [b"503 Unavailable", b"500 No"])
async def test_an_old_answer_is_labelled_and_what_has_none_is_refused(gate: Gate, status: bytes) -> None:
    caller = await gate.caller(ROUTES__R=route(ONE, SHORT))
    await caller.ask(ASK)
    await asyncio.sleep(0.01)
    gate.upstream.status = status
    word = "overloaded" if status.startswith(b"503") else "raised"
    expect(await caller.ask(ASK), ("", "stale", word, "m", 1, 0, ("stale",), True, True, False), ASK.rows)
    unknown = replace(ASK, rows=((7.0, 7.0),))
    problem = "unavailable" if word == "overloaded" else "model-failed"
    refused(await caller.ask(unknown), problem, word, returns=word == "overloaded")
    refused(await caller.ask(replace(ASK, cache_control="no-cache")), problem, word, returns=word == "overloaded")


async def nothing(_: Witness) -> None:
    """Nobody finds out whether the model is still the same."""


async def test_what_an_earlier_process_has_left_is_served_and_labelled(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Witness, "round", nothing)
    disk = {"SNAPSHOT__PATH": str(tmp_path / "snapshot")}
    house = await gate.house(ROUTES__R=route(ONE, KEPT), **disk)
    await house.caller(gate.name).ask(ASK)
    await house.stop()
    gate.upstream.status = b"503 Unavailable"
    house = await gate.house(ROUTES__R=route(ONE, KEPT), **disk)
    caller = house.caller(gate.name)
    told = ("", "stale", "overloaded", "m", 1, 0, ("snapshot",), True, True, False)
    for _ in range(2):
        expect(await caller.ask(ASK), told, ASK.rows)
    refused(await caller.ask(replace(ASK, rows=((7.0, 7.0),))), "unavailable", "overloaded")
    refused(await caller.ask(replace(ASK, cache_control="no-cache")), "unavailable", "overloaded")
    await house.stop()
    caller = await gate.caller(ROUTES__R=route(ONE, KEPT, 'degrade = ["replica", "stale"]'), **disk)
    refused(await caller.ask(ASK), "unavailable", "overloaded")


async def test_what_an_earlier_process_has_left_is_a_hit_where_the_route_says_so(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Witness, "round", nothing)
    disk = {"SNAPSHOT__PATH": str(tmp_path / "snapshot")}
    house = await gate.house(ROUTES__R=route(ONE, KEPT), **disk)
    await house.caller(gate.name).ask(ASK)
    await house.stop()
    gate.upstream.status = b"503 Unavailable"
    trusting = 'cache = { ttl = "1h", snapshot = "fresh" }'
    house = await gate.house(ROUTES__R=route(ONE, trusting), **disk)
    caller = house.caller(gate.name)
    for _ in range(2):
        expect(await caller.ask(ASK), ("", "hit", "snapshot", "m", 1, 0, (), False, True, False), ASK.rows)
    await house.purge("r")
    refused(await caller.ask(ASK), "unavailable", "overloaded")


async def test_without_the_steps_nothing_takes_their_place(gate: Gate) -> None:
    caller = await gate.caller(ROUTES__R=route(ONE, SHORT, "degrade = []"), ROUTES__T=route(TWO, "degrade = []"))
    await caller.ask(ASK)
    await asyncio.sleep(0.01)
    gate.upstream.failing.update("mk")
    refused(await caller.ask(ASK), "unavailable", "overloaded")
    refused(await caller.ask(replace(ASK, route="t", rows=SURE)), "unavailable", "overloaded", "bypass")


async def test_nobody_there_is_refused_and_says_when_to_come_back(gate: Gate) -> None:
    house = await gate.house(ROUTES__R=route('tiers = [{ backend = "gone", model = "m" }]'),
                             BACKENDS__GONE='{ http = ["http://127.0.0.1:1"] }')  # fmt: skip
    cache = "none" if gate.door.plain else "bypass"  # plain values mean nothing before a model has described itself
    refused(await house.caller(gate.name).ask(ASK), "unavailable", "unreachable", cache)


@pytest.mark.parametrize("whose", ["the route's", "the request's"])
async def test_a_deadline_ends_in_a_refusal_or_an_old_answer(gate: Gate, whose: str) -> None:
    timeout = "300ms" if whose == "the route's" else "20s"
    caller = await gate.caller(ROUTES__R=route(ONE, SHORT, f'timeout = "{timeout}"'))
    async with asyncio.timeout(ASK.seconds):
        while not (await caller.ask(ASK)).stored:  # noqa: ASYNC110 - a busy machine may not make it in that time at once
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.01)
    gate.upstream.gate.clear()
    own = {} if whose == "the route's" else {"timeout": 200_000}
    refused(await caller.ask(replace(ASK, rows=((7.0, 7.0),), parameters=own)), "deadline", "timeout")
    found = await caller.ask(replace(ASK, parameters=own))
    expect(found, ("", "stale", "timeout", "m", 1, 0, ("stale",), True, True, False), ASK.rows)


BY_ROW = 'default = { y = { datatype = "FP32", shape = [-1, 2], value = [0.5, -1.0] } }'


async def test_a_declared_default_is_labelled_has_the_batchs_rows_and_is_never_kept(gate: Gate) -> None:
    batching = 'tiers = [{ backend = "upstream", model = "k" }]'
    house = await gate.house(ROUTES__R=route(batching, KEPT, BY_ROW), **BREAKER)
    caller = house.caller(gate.name)
    assert (await caller.ask(ASK)).stored
    gate.upstream.status = b"500 No"
    for rows in (((7.0, 7.0),), ((7.0, 7.0), (8.0, 8.0), (9.0, 9.0))):
        found = await caller.ask(replace(ASK, rows=rows))
        assert found.told == ("", "miss", "raised", "", 0, 0, ("default",), True, False, False)
        assert found.values == (0.5, -1.0) * len(rows)
    assert (await caller.ask(ASK)).cache == "hit"
    gate.upstream.status = b"200 OK"
    rows = ((7.0, 7.0),)
    expect(await caller.ask(replace(ASK, rows=rows)), ("", "miss", "absent", "k", 1, 0, (), False, False, True), rows)
    gate.upstream.status = b"500 No"
    refused_by_the_model = await caller.ask(replace(ASK, rows=((1.0, 2.0, 3.0),)))
    assert refused_by_the_model.problem == "invalid"
