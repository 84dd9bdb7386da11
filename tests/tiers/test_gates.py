"""Waiting at a model's gate: who leaves, at whatever moment, leaves nothing behind; and what a pool makes of it."""

from __future__ import annotations

import asyncio
import random

import pytest

from degrade.deadline import Deadline
from degrade.gate import Claim, GateOptions, Permit, Priority
from degrade.ladder import Failure
from degrade.limiter import LimiterOptions
from tests.tiers.test_pool import FAR, REQUEST, SEQUENCE, Clock, Fake
from tiers.facts import Capacity
from tiers.gates import GATES_MAX, Admitted, Gates, GatesOptions
from tiers.inference import Rejected, UpstreamError
from tiers.pool import Pool, PoolOptions

ONE = GatesOptions(LimiterOptions(least=1, most=1, adaptive=False), GateOptions(waiting_max=3))


def gates(options: GatesOptions = ONE) -> tuple[Gates, Clock]:
    clock = Clock()
    return Gates(options, clock, random.Random(0)), clock


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_who_waits_comes_in_when_somebody_leaves() -> None:
    made, clock = gates()
    first = await made.enter("m", Claim(), FAR)
    second = asyncio.create_task(made.enter("m", Claim(), FAR))
    await turns()
    assert not second.done()
    first.succeeded(clock())
    permit = await second
    permit.succeeded(clock())
    assert made.of("m").is_idle


async def test_a_gate_is_told_how_many_the_servers_work_on_at_once() -> None:
    clock = Clock()
    made = Gates(GatesOptions(LimiterOptions(most=64, first=16)), clock, random.Random(0))
    told: dict[str, Capacity] = {}
    made.capacity = told.get
    for model in ("m", "other"):
        (await made.enter(model, Claim(), FAR)).succeeded(clock() + 0.1)
    told["m"] = Capacity(8, computed=0.09, served=0.11)
    assert {name: (made.of(name).limit, made.of(name).places) for name in ("m", "other")} == {
        "m": (10, 8),
        "other": (16, 0),
    }
    told["m"] = Capacity(4, computed=0.09, served=0.11)
    assert made.of("m").places == 4
    del told["m"]
    assert made.of("m").places == 0


async def test_what_is_on_its_way_to_a_model_keeps_none_of_its_instances_busy() -> None:
    """5 ms of work, 2 ms of queue, 100 ms in all as we see it: of 20 in flight one is in work."""
    clock = Clock()
    made = Gates(GatesOptions(LimiterOptions(most=64, first=16)), clock, random.Random(0))
    (await made.enter("m", Claim(), FAR)).succeeded(clock() + 0.102)
    told = Capacity(2, computed=0.005, served=0.007)
    made.capacity = lambda key: told
    assert made.of("m").places == 40
    assert made.of("m").limit == 16, "which is below"
    for _ in range(30):
        told = Capacity(2, computed=0.005, served=0.107)
        made.of("m")
    assert made.of("m").places == 2, "the way has become short"


async def test_models_have_gates_of_their_own() -> None:
    made, clock = gates()
    permits = [await made.enter(model, Claim(), FAR) for model in ("a", "b", "a/2")]
    assert [name for name, _ in made] == ["a", "b", "a/2"]
    for permit in permits:
        permit.ignored(clock())


async def test_without_a_place_it_is_shed_with_a_word_on_when_to_come_back() -> None:
    made, _ = gates()
    await made.enter("m", Claim(), FAR)
    waiting = [asyncio.create_task(made.enter("m", Claim(str(n)), FAR)) for n in range(3)]
    await turns()
    with pytest.raises(UpstreamError, match="more wait for it") as caught:
        await made.enter("m", Claim("x"), FAR)
    assert (caught.value.failure, caught.value.before_answer) == (Failure.SHED, True)
    assert caught.value.retry_after >= 1.0
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert made.of("m").waiting == 0


async def test_the_time_to_wait_is_bounded() -> None:
    made, clock = gates()
    await made.enter("m", Claim(), FAR)
    with pytest.raises(UpstreamError, match="no place within") as caught:
        await made.enter("m", Claim(), Deadline.after(clock(), 0.01))
    assert caught.value.failure is Failure.SHED
    assert made.of("m").waiting == 0


@pytest.mark.parametrize("after", range(6))
@pytest.mark.parametrize("freed", range(6))
async def test_cancelled_at_every_turn_nothing_is_lost(after: int, freed: int) -> None:
    """A permit is freed and who waits for it is cancelled, each at every turn of the loop."""
    made, clock = gates()
    first = await made.enter("m", Claim(), FAR)
    taken: list[Permit] = []

    async def asks() -> None:
        taken.append(await made.enter("m", Claim(), FAR))

    one, two = asyncio.create_task(asks()), asyncio.create_task(asks())
    for turn in range(7):
        if turn == freed:
            first.succeeded(clock())
        if turn == after:
            one.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([one], timeout=5)
    if len(taken) == 1 and not two.done():
        taken[0].ignored(clock())
    await asyncio.wait_for(two, 5)
    for permit in taken[-1:]:
        permit.ignored(clock())
    assert made.of("m").is_idle


@pytest.mark.parametrize(
    ("error", "passed", "shrinks"),
    [
        (UpstreamError(Failure.TIMEOUT, "late"), 10.0, True),
        (UpstreamError(Failure.TIMEOUT, "late"), 0.1, False),  # it had no time to answer in
        (UpstreamError(Failure.OVERLOADED, "full"), 0.1, True),
        (UpstreamError(Failure.BROKEN, "gone"), 10.0, False),
        (UpstreamError(Failure.UNREACHABLE, "gone"), 10.0, False),
        (Rejected(400, "no"), 10.0, False),
        (asyncio.CancelledError(), 10.0, True),
        (asyncio.CancelledError(), 0.1, False),
        (RuntimeError("a bug"), 10.0, False),
    ],
)
async def test_how_a_call_ends_says_so_much_of_the_load(error: BaseException, passed: float, shrinks: bool) -> None:
    made, clock = gates(GatesOptions(LimiterOptions(least=1, most=64)))
    warm = await made.enter("m", Claim(), FAR)
    clock.now += 0.1
    warm.succeeded(clock())
    for _ in range(300):
        admitted = Admitted(await made.enter("m", Claim(), FAR), clock, 5.0)
        clock.now += passed
        admitted.__exit__(type(error), error, None)
    assert made.of("m").is_idle
    assert (made.of("m").limit < 64) is shrinks


async def test_the_gates_kept_are_bounded() -> None:
    made, clock = gates()
    held = await made.enter("held", Claim(), FAR)
    for number in range(2 * GATES_MAX):
        (await made.enter(str(number), Claim(), FAR)).ignored(clock())
    assert len(list(made)) == GATES_MAX
    assert "held" in dict(made)
    held.ignored(clock())


async def test_the_highest_level_sheds_the_lowest_priority_also_at_gates_to_come() -> None:
    made, clock = gates()
    made.of("old")
    made.level = 4
    for model in ("old", "new"):
        with pytest.raises(UpstreamError, match="priority"):
            await made.enter(model, Claim("", Priority.LOW), FAR)
    made.level = 3
    (await made.enter("old", Claim("", Priority.LOW), FAR)).ignored(clock())


def pool(*replicas: Fake, clock: Clock) -> Pool:
    return Pool(replicas, PoolOptions(gates=ONE), clock, random.Random(0))


async def test_what_waits_at_the_gate_is_at_no_replica() -> None:
    one, clock = Fake("a"), Clock()
    made = pool(one, clock=clock)
    one.gate = asyncio.Event()
    asked = [asyncio.create_task(made.infer(REQUEST, FAR)) for _ in range(3)]
    await one.waiting.wait()
    await turns()
    assert (one.calls, made.gates.of("m").waiting) == (1, 2)
    one.gate.set()
    await asyncio.gather(*asked)
    assert (one.calls, made.gates.of("m").is_idle) == (3, True)


async def test_a_sequence_waits_like_others() -> None:
    """Anybody may call a request one: it must be no way past those who wait."""
    one, clock = Fake("a"), Clock()
    made = pool(one, clock=clock)
    one.gate = asyncio.Event()
    asked = [asyncio.create_task(made.infer(REQUEST, FAR)), asyncio.create_task(made.infer(SEQUENCE, FAR))]
    await turns()
    assert (one.calls, made.gates.of("m").in_flight, made.gates.of("m").waiting) == (1, 1, 1)
    one.gate.set()
    await asyncio.gather(*asked)
    assert made.gates.of("m").is_idle


async def test_a_shed_request_asks_no_other_replica_and_speaks_against_none() -> None:
    one, two, clock = Fake("a"), Fake("b"), Clock()
    made = pool(one, two, clock=clock)
    one.gate = two.gate = asyncio.Event()
    asked = [asyncio.create_task(made.infer(REQUEST, FAR, claim=Claim(str(n)))) for n in range(4)]
    await turns()
    with pytest.raises(UpstreamError) as caught:
        await made.infer(REQUEST, FAR)
    assert caught.value.failure is Failure.SHED
    assert one.calls + two.calls == 1
    one.gate.set()
    await asyncio.gather(*asked)
    assert [state.breaker for state in made.states()] == ["closed", "closed"]


async def test_a_retry_is_within_the_same_permit() -> None:
    one, two, clock = Fake("a"), Fake("b"), Clock()
    made = pool(one, two, clock=clock)
    one.fails = Failure.OVERLOADED
    for _ in range(4):
        await made.infer(REQUEST, FAR)
    assert made.gates.of("m").is_idle
