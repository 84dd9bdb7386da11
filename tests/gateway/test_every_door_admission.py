"""Every rule of admission, once, at every door: who may ask, how often, and what may be asked."""

from __future__ import annotations

import asyncio
import hashlib
import math
from typing import Any

import pytest
from msgspec.structs import replace

from tests.doors.house import until
from tests.doors.question import CLOSED, UPSTREAM, Ask, Caller, Outcome, doubled
from tests.gateway.conftest import Gate

TIER = 'tiers = [{ backend = "upstream", model = "m" }]'
KEPT = 'cache = { ttl = "1h" }'
ASK = Ask()


def route(*members: str) -> str:
    return f"{{ {', '.join((TIER, *members))} }}"


def key(name: str, more: str = "") -> str:
    return f'{{ key_sha256 = "{hashlib.sha256(name.encode()).hexdigest()}"{more} }}'


def number(value: float) -> Ask:
    """One like no other."""
    return replace(ASK, rows=((value, 1.0),))


async def told(caller: Caller, *asked: Ask) -> list[str]:
    """One after the other: the problem, or the cache's word."""
    found = []
    for each in asked:
        outcome = await caller.ask(each)
        found.append(outcome.problem or outcome.cache)
    return found


# -- who ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("anonymous", "expected"),
    [("true", ["miss", "unauthenticated", "miss"]), ("false", ["unauthenticated", "unauthenticated", "miss"])],
)
async def test_a_key_is_ours_or_refused_and_none_is_needed_where_the_file_says_so(
    gate: Gate, anonymous: str, expected: list[str]
) -> None:
    caller = await gate.caller(ROUTES__R=route(), CALLERS__A=key("a"), SERVER__ANONYMOUS=anonymous)
    found = [(await caller.ask(replace(ASK, key=each))) for each in ("", "nobody", "a")]
    words = [each.problem or each.cache for each in found]
    assert words == [word.replace("miss", "bypass") for word in expected]
    assert gate.upstream.asked == expected.count("miss")
    for each in found:
        if each.problem:
            assert (each.cache, each.reason, each.tier, each.retry_after) == ("none", "unauthenticated", "", None)


# -- how often -----------------------------------------------------------------------------------------------


def spent(outcome: Outcome, name: str) -> None:
    assert (outcome.problem, outcome.quota) == ("quota", f"{name} r=0")
    assert (outcome.cache, outcome.reason, outcome.tier, outcome.degraded) == ("none", "quota", "", False)
    assert 1 <= (outcome.retry_after or 0) <= 3600
    assert f"Quota {name} is spent" in outcome.detail


@pytest.mark.parametrize("path", ["decoded", "by its bytes"])
async def test_hits_go_on_when_a_quota_that_spares_them_is_spent(gate: Gate, path: str) -> None:
    caller = await gate.caller(ROUTES__R=route(KEPT, 'quota = { rate = 2, per = "1h" }'))
    first = await caller.ask(number(1))
    assert (first.cache, first.quota) == ("miss", "route:r r=1")
    again = number(1) if path == "by its bytes" else replace(number(1), outputs=("y",))
    if path == "decoded":
        assert (await caller.ask(again)).cache == "miss"  # another question, as it names what it wants
    else:
        assert (await caller.ask(number(2))).cache == "miss"
    for _ in range(4):
        hit = await caller.ask(again)
        assert (hit.problem, hit.cache, hit.quota) == ("", "hit", "")
    spent(await caller.ask(number(3)), "route:r")
    spent(await caller.ask(replace(number(1), cache_control="no-cache")), "route:r")
    assert (await caller.ask(again)).cache == "hit"
    assert gate.upstream.asked == 2


async def test_hits_use_up_a_quota_that_counts_them(gate: Gate) -> None:
    caller = await gate.caller(ROUTES__R=route(KEPT, 'quota = { rate = 4, per = "1h", hits_count = true }'))
    answered = [await caller.ask(number(1)) for _ in range(4)]
    assert [each.cache for each in answered] == ["miss", "hit", "hit", "hit"]
    assert [each.quota for each in answered] == [f"route:r r={left}" for left in (3, 2, 1, 0)]
    spent(await caller.ask(number(1)), "route:r")
    spent(await caller.ask(number(2)), "route:r")
    assert gate.upstream.asked == 1


async def test_each_caller_of_a_route_has_a_quota_of_its_own(gate: Gate) -> None:
    caller = await gate.caller(
        ROUTES__R=route('caller_quota = { rate = 2, per = "1h" }'), CALLERS__A=key("a"), CALLERS__B=key("b")
    )
    for name in ("a", "b", ""):
        asked = replace(ASK, key=name)
        assert [(await caller.ask(asked)).quota for _ in range(2)] == ["route-caller:r r=1", "route-caller:r r=0"]
        spent(await caller.ask(asked), "route-caller:r")


@pytest.mark.parametrize("counts", [False, True])
async def test_a_callers_own_quota_holds_on_every_route(gate: Gate, counts: bool) -> None:
    quota = f', quota = {{ rate = 2, per = "1h", hits_count = {str(counts).lower()} }}'
    caller = await gate.caller(ROUTES__R=route(KEPT), ROUTES__Q=route(KEPT), CALLERS__A=key("a", quota))
    mine = replace(number(1), key="a")
    assert (await caller.ask(number(1))).cache == "miss"
    assert [(await caller.ask(mine)).quota for _ in range(2)] == (
        ["caller:a r=1", "caller:a r=0"] if counts else ["", ""]
    )
    if not counts:
        assert await told(caller, replace(mine, route="q"), replace(number(2), key="a")) == ["miss", "miss"]
    spent(await caller.ask(replace(number(3), key="a", route="q")), "caller:a")
    last = await caller.ask(mine)
    assert last.problem or last.cache == "hit"
    assert bool(last.problem) == counts
    assert (await caller.ask(number(3))).cache == "miss"


# -- what ----------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Ask, str, str]] = {
    "an input of another name": (
        replace(ASK, name="z"), "invalid", "unexpected input 'z' for model 'r'; it takes 'x'",
    ),
    "a missing input": (replace(ASK, rows=()), "invalid", "missing input 'x' for model 'r'"),
    "another datatype": (replace(ASK, datatype="FP64"), "invalid", "input 'x' must be FP32, got FP64"),
    "another shape": (
        replace(ASK, rows=((1.0, 2.0, 3.0),)), "invalid", "input 'x' must have shape [-1, 2], got [1, 3]",
    ),
    "an output that there is not": (
        replace(ASK, outputs=("q",)), "invalid", "unexpected inference output 'q' for model 'r'; it gives 'y'",
    ),
    "an output twice": (replace(ASK, outputs=("y", "y")), "invalid", "output 'y' is asked for twice"),
    "less than the least": (
        replace(ASK, rows=((-3.0, 0.0),)), "invalid", "input 'x' must be at least -2.5, element 0 is -3.0",
    ),
    "more than the most": (
        replace(ASK, rows=((0.0, 3.5),)), "invalid", "input 'x' must be at most 2.5, element 1 is 3.5",
    ),
    "a batch beyond the route's": (
        replace(ASK, rows=((1.0, 1.0),) * 4, route="k"), "invalid",
        "input 'x' has a batch of 4, at most 3 rows are allowed",
    ),
    "a version that is no number": (
        replace(ASK, version="x"), "not-found", "Route r has no version x: versions are numbers.",
    ),
    "a version that the route has not": (
        replace(ASK, version="2", route="one"), "not-found", "Route one serves version 1 only, not 2.",
    ),
    "a timeout that is none": (
        replace(ASK, parameters={"timeout": "soon"}), "malformed",
        "parameter 'timeout' in the request must be a whole number, 0 or more",
    ),
    "a body beyond the route's": (
        replace(ASK, parameters={"padding": "a" * 3000}, route="little"), "too-large",
        "The body is larger than routes.little.limits.body_bytes_max (2048 bytes).",
    ),
}  # fmt: skip
NOT_A_NUMBER = ((math.nan, 1.0), (math.inf, 1.0), (1.0, -math.inf))


async def strict(gate: Gate) -> Caller:
    bounds = "inputs = { x = { min = -2.5, max = 2.5 } }"
    batched = '{ tiers = [{ backend = "upstream", model = "k" }], limits = { batch_max = 3 } }'
    return await gate.caller(
        ROUTES__R=route(KEPT, bounds),
        ROUTES__K=batched,
        ROUTES__ONE='{ tiers = [{ backend = "upstream", model = "m", version = "1" }] }',
        ROUTES__LITTLE=route('limits = { body_bytes_max = "2KiB" }'),
        SERVER__ANONYMOUS="true",
    )


@pytest.mark.parametrize("wrong", WRONG)
async def test_what_is_wrong_is_refused_in_words_and_reaches_no_model(gate: Gate, wrong: str) -> None:
    asked, problem, words = WRONG[wrong]
    caller = await strict(gate)
    for _ in range(2):
        found = await caller.ask(asked)
        assert (found.problem, found.detail) == (problem, words)
        assert (found.retry_after, found.tier, found.steps, found.degraded) == (None, "", (), False)
    assert gate.upstream.asked == 0
    assert (await caller.ask(ASK)).values == doubled(ASK.rows), "and the door goes on"


@pytest.mark.parametrize("row", NOT_A_NUMBER, ids=str)
async def test_what_is_no_number_is_refused(gate: Gate, row: Any) -> None:
    caller = await strict(gate)
    asked = replace(ASK, rows=(row,))
    if not gate.door.says_nan:  # JSON has no word for it; python's own is no JSON
        assert (await caller.ask(asked)).problem == "malformed"
    else:
        found = await caller.ask(asked)
        assert (found.problem, found.tier) == ("invalid", "")
        assert "input 'x'" in found.detail
    assert gate.upstream.asked == 0


async def test_a_model_without_a_route_is_tritons_to_answer_or_not_there(gate: Gate) -> None:
    caller = await gate.caller(ROUTES__R=route(KEPT))
    found = await caller.ask(replace(ASK, route="nobody"))
    if gate.door.passes:
        assert (found.problem, found.cache) == (UPSTREAM, "bypass")
        assert "unknown model" in found.detail
        through = await caller.ask(replace(ASK, route="m"))
        expected = "" if gate.door.triton else UPSTREAM
        assert (through.problem, through.cache, through.reason) == (expected, "bypass", "passthrough")
    else:
        assert (found.problem, found.cache) == ("not-found", "none")
        assert "no route 'nobody'" in found.detail
    assert gate.upstream.asked == gate.door.passes  # "nobody" is no model of it


# -- the end ---------------------------------------------------------------------------------------------------


async def test_a_gateway_that_ends_says_so_answers_what_it_has_read_and_then_nobody(gate: Gate) -> None:
    house = await gate.house(ROUTES__R=route(KEPT), SERVER__DRAIN="20s", SERVER__DRAIN_NOTICE="200ms")
    noticed = asyncio.Event()
    house.gateway._sleep = lambda _: noticed.wait()  # the notice lasts until it has been seen
    caller, other = house.caller(gate.name), house.caller(gate.name)
    assert await other.ready()
    gate.upstream.gate.clear()
    asking = asyncio.create_task(caller.ask(ASK))
    await until(lambda: gate.upstream.asked == 1)
    stopping = asyncio.create_task(house.stop())
    await asyncio.sleep(0)
    assert not await other.ready()
    noticed.set()
    late = house.caller(gate.name)
    await until(lambda: not house.gateway.doors.is_open)
    assert (await late.ask(replace(number(2), seconds=5.0))).problem == CLOSED
    assert not asking.done()
    gate.upstream.gate.set()
    answer = await asking
    assert (answer.problem, answer.cache, answer.values) == ("", "miss", doubled(ASK.rows))
    await caller.close()
    await other.close()
    await stopping
    assert gate.upstream.asked == 1
