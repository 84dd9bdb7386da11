"""A route's own decisions: what is in its key, its quotas' names, its merged facts, its readiness."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec
import pytest

from degrade.deadline import Deadline
from degrade.ladder import Failure
from gateway.admission.auth import Caller
from gateway.config import Accept, CacheConfig, Limits, QuotaConfig, TierConfig
from gateway.config import Route as RouteConfig
from gateway.learning import Home, merged_facts
from gateway.route import Route
from gateway.service import Served, quota_of
from gateway.units import Seconds, Size
from tiers.backends.call import Call
from tiers.facts import ModelFacts, TensorFact
from tiers.inference import InferRequest, InferResponse, Rejected, RequestedOutput, Tensor, UpstreamError

LAST: Final = TierConfig("gpu", "large")
FAST: Final = TierConfig("gpu", "small", "2", Accept("p", 0.5))


class Fake:
    """A home's pool and catalog."""

    def __init__(self, status: int | None = 200) -> None:
        self.status = status
        self.asked: list[str] = []

    async def some(self, call: Call, deadline: Deadline, model: str, version: str = "") -> bool:
        self.asked.append(call.target)
        return self.status == 200


def route(name: str = "r", fakes: tuple[Fake, ...] = (), **changes: object) -> Route:
    fields: dict[str, object] = {"tiers": (LAST,), "cache": CacheConfig(ttl=Seconds(10))}
    config = RouteConfig(**(fields | changes))  # type: ignore[arg-type]  # as written in each test
    homes = [Home(fake, fake) for fake in fakes or (Fake(),) * len(config.tiers)]  # type: ignore[arg-type]
    return Route(name, config, homes, 1000)


BASE = InferRequest(
    "r",
    (Tensor("a", "FP32", (1, 4), b"0123456789abcdef"), Tensor("b", "INT32", (1,), b"1234")),
    (RequestedOutput("y"), RequestedOutput("z")),
    parameters={"k": 1},
)
ALICE, BOB = Caller("alice", "t1"), Caller("bob", "t2")


def with_input(**changes: object) -> InferRequest:
    first = msgspec.structs.replace(BASE.inputs[0], **changes)
    return msgspec.structs.replace(BASE, inputs=(first, BASE.inputs[1]))


def replaced(**changes: object) -> InferRequest:
    return msgspec.structs.replace(BASE, **changes)


DIFFERENT = {
    "input's name": with_input(name="c"),
    "datatype": with_input(datatype="INT32"),
    "shape": with_input(shape=(2, 2)),
    "rank": with_input(shape=(4,)),
    "bytes": with_input(data=b"0123456789abcdeF"),
    "input left out": replaced(inputs=BASE.inputs[:1]),
    "bytes of two inputs exchanged": replaced(
        inputs=(with_input(data=b"1234", shape=(1,)).inputs[0], Tensor("b", "INT32", (1, 4), b"0123456789abcdef"))
    ),
    "parameter's value": replaced(parameters={"k": 2}),
    "parameter's type": replaced(parameters={"k": True}),
    "parameter's name": replaced(parameters={"j": 1}),
    "one parameter more": replaced(parameters={"k": 1, "j": 1}),
    "output left out": replaced(outputs=BASE.outputs[:1]),
    "another output": replaced(outputs=(RequestedOutput("y"), RequestedOutput("w"))),
    "outputs' order": replaced(outputs=BASE.outputs[::-1]),
    "all outputs": replaced(outputs=()),
    "output's parameter": replaced(outputs=(RequestedOutput("y", {"classification": 3}), BASE.outputs[1])),
    "version": replaced(version="2"),
}
SAME = {
    "request id": replaced(id="42"),
    "priority": replaced(parameters={"k": 1, "priority": 3}),
    "timeout": replaced(parameters={"timeout": 5, "k": 1}),
    "inputs' order": replaced(inputs=BASE.inputs[::-1]),
    "a view of the bytes": with_input(data=memoryview(b"..0123456789abcdef")[2:]),
}


@pytest.mark.parametrize("change", DIFFERENT)
def test_what_changes_an_answer_changes_the_key(change: str) -> None:
    assert route().digest(ALICE, DIFFERENT[change]) != route().digest(ALICE, BASE)


@pytest.mark.parametrize("change", SAME)
def test_what_does_not_change_an_answer_does_not_change_the_key(change: str) -> None:
    assert route().digest(ALICE, SAME[change]) == route().digest(ALICE, BASE)


def test_all_changes_have_different_keys() -> None:
    digests = {route().digest(ALICE, request) for request in DIFFERENT.values()}
    assert len(digests) == len(DIFFERENT)


def test_routes_and_tenants_are_part_of_the_key_unless_the_route_shares() -> None:
    assert route("other").digest(ALICE, BASE) != route().digest(ALICE, BASE)
    assert route().digest(BOB, BASE) != route().digest(ALICE, BASE)
    assert route().digest(Caller("alice's other key", "t1"), BASE) == route().digest(ALICE, BASE)
    shared = route(cache=CacheConfig(ttl=Seconds(10), shared=True))
    assert shared.digest(BOB, BASE) == shared.digest(ALICE, BASE)


def test_an_entry_has_the_routes_life_and_costs_more_than_its_bytes() -> None:
    response = InferResponse("r", "1", (Tensor("y", "FP32", (1,), b"1234"),))
    made = route(cache=CacheConfig(ttl=Seconds(10), max_stale=Seconds(7)))
    entry = made.entry(Served(response, "large", 1, 0, 1), 3, 50.0)
    assert (entry.ttl, entry.max_stale, entry.epoch, entry.stored_at) == (10.0, 7.0, 3, 50.0)
    assert entry.size > response.size > 4
    saying = InferResponse("r", "1", response.outputs, parameters={"explained": "x" * 100_000})
    assert made.entry(Served(saying, "large", 1, 0, 1), 3, 50.0).size > 100_000 + entry.size


def test_an_entry_keeps_its_own_bytes_alive_and_not_the_body_that_they_came_in() -> None:
    body = b"h" * 200 + b"1234" + b"x" * 4_000_000
    view = memoryview(body)
    kept = InferResponse("r", "1", (Tensor("y", "FP32", (1,), view[200:204]),))
    entry = route().entry(Served(kept, "large", 1, 0, 1), 3, 50.0)
    (tensor,) = entry.value.response.outputs
    assert tensor.data == b"1234"
    assert not isinstance(tensor.data, memoryview)
    assert kept.size > len(body) > entry.size


def test_a_small_entry_has_bytes_of_its_own_even_if_they_are_all_of_a_body() -> None:
    response = InferResponse("r", "1", (Tensor("y", "FP32", (1,), memoryview(b"1234")),))
    (tensor,) = route().entry(Served(response, "large", 1, 0, 1), 3, 50.0).value.response.outputs
    assert tensor.data == b"1234"
    assert isinstance(tensor.data, bytes)  # a view takes ten times as much


def test_an_entry_of_nearly_all_of_a_body_keeps_it_and_is_charged_for_all_of_it() -> None:
    body = bytes(4_000_200)
    halves = memoryview(body)[200:2_000_200], memoryview(body)[2_000_200:]
    tensors = tuple(Tensor(name, "UINT8", (len(data),), data) for name, data in zip("ab", halves, strict=True))
    response = InferResponse("r", "1", tensors)
    entry = route().entry(Served(response, "large", 1, 0, 1), 3, 50.0)
    assert entry.value.response is response
    assert len(body) < entry.size < len(body) + 2000
    stripped = msgspec.structs.replace(response, outputs=tensors[:1])
    entry = route().entry(Served(stripped, "large", 1, 0, 1), 3, 50.0)
    assert not isinstance(entry.value.response.outputs[0].data, memoryview)
    assert entry.size < 2_002_000


def test_quota_names_can_be_told_to_anyone() -> None:
    assert quota_of("route:größe\n", QuotaConfig(rate=1)).name == "route:gr%C3%B6%C3%9Fe%0A"
    assert quota_of("route:digits v2", QuotaConfig(rate=1)).name == "route:digits v2"


def test_quotas_of_route_caller_and_callers_route_have_names_of_their_own() -> None:
    made = route("x", quota=QuotaConfig(rate=1), caller_quota=QuotaConfig(rate=2, hits_count=True))
    assert [(each.quota.name, each.per_caller, each.hits_count) for each in made.allowances] == [
        ("route:x", False, False),
        ("route-caller:x", True, True),
    ]


def test_the_body_bound_is_the_routes_or_the_servers() -> None:
    assert route().body_limits.bytes_max == 1000
    assert route(limits=Limits(body_bytes_max=Size(7))).body_limits.bytes_max == 7


def facts(**changes: object) -> ModelFacts:
    y, z = TensorFact("y", "FP32", (-1, 2)), TensorFact("z", "FP32", (-1, 2))
    base = ModelFacts("m", ("1",), (TensorFact("x", "FP32", (-1, 4)),), (y, z), 8, False, False)
    return msgspec.structs.replace(base, **changes)


class Versions:
    """A home's catalog; version 2 has wider inputs, version 3 cannot be asked about, others are not there."""

    def __init__(self, known: bool = True) -> None:
        self.known = known

    async def facts(self, model: str, version: str, deadline: Deadline) -> ModelFacts:
        if not self.known or version == "3":
            raise UpstreamError(Failure.UNREACHABLE, "told to")
        if version not in ("", "1", "2"):
            raise Rejected(404, "not found")
        return facts(inputs=(TensorFact("x", "FP32", (-1, 5 if version == "2" else 4)),))


@pytest.mark.parametrize(
    ("tiers", "asked", "width"),
    [
        ((LAST,), "", 4),
        ((LAST,), "1", 4),
        ((LAST,), "2", 5),
        ((FAST, LAST), "", 5),
        ((FAST, LAST), "2", 5),
    ],
)
async def test_a_version_that_is_asked_for_is_judged_by_its_own_facts(
    tiers: tuple[TierConfig, ...], asked: str, width: int
) -> None:
    made = route(fakes=(Versions(),) * len(tiers), tiers=tiers)  # type: ignore[arg-type]
    assert (await made.learning.facts(Deadline(9.0), asked)).inputs[0].shape == (-1, width)


async def test_a_version_that_is_not_there_is_the_callers_fault_and_a_model_that_is_not_is_the_operators() -> None:
    with pytest.raises(Rejected):
        await route(fakes=(Versions(),)).learning.facts(Deadline(9.0), "9")  # type: ignore[arg-type]
    with pytest.raises(UpstreamError):
        await route(fakes=(Versions(),), tiers=(TierConfig("gpu", "m", "9"),)).learning.facts(Deadline(9.0))  # type: ignore[arg-type]


async def test_a_tier_that_cannot_be_asked_about_a_version_leaves_it_to_the_others() -> None:
    made = route(fakes=(Versions(known=False), Versions()), tiers=(FAST, LAST))  # type: ignore[arg-type]
    assert (await made.learning.facts(Deadline(9.0), "2")).inputs[0].shape == (-1, 5)
    with pytest.raises(UpstreamError):
        await route(fakes=(Versions(),)).learning.facts(Deadline(9.0), "3")  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds; bounded, so that a bug fails and does not hang."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to be")


class Slow:
    """A home's catalog that tells nothing until it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.asking = 0
        self.asked = 0

    async def facts(self, model: str, version: str, deadline: Deadline) -> ModelFacts:
        self.asked += 1
        self.asking += 1
        try:
            await self.may.wait()
        finally:
            self.asking -= 1
        return facts(inputs=(TensorFact("x", "FP32", (-1, 7)),))


@pytest.mark.parametrize("hung", [0, 1])
@pytest.mark.parametrize("version", ["", "2"])
async def test_a_tier_that_was_never_seen_and_hangs_keeps_nobody_waiting(hung: int, version: str) -> None:
    slow = Slow()
    fakes = [Versions(), Versions()]
    fakes[hung] = slow  # type: ignore[call-overload]
    made = route(fakes=tuple(fakes), tiers=(msgspec.structs.replace(FAST, version=""), LAST))  # type: ignore[arg-type]
    async with asyncio.timeout(30):
        for _ in range(50):
            assert (await made.learning.facts(Deadline(9.0), version)).inputs[0].shape == (-1, 5 if version else 4)
        assert slow.asking == 1, "it goes on being learnt, once"
        slow.may.set()
        await until(lambda: not slow.asking)
        assert (await made.learning.facts(Deadline(9.0))).inputs[0].shape == (-1, 4 if hung else 7)
    await made.close()


async def test_who_came_while_a_tier_is_being_learnt_waits_no_grace_and_closing_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = Slow()
    made = route(fakes=(Versions(), slow), tiers=(FAST, LAST))  # type: ignore[arg-type]
    assert (await made.learning.facts(Deadline(9.0))).name == "r"
    monkeypatch.setattr("gateway.learning.LEARNING_GRACE_SECONDS", 1e6)
    async with asyncio.timeout(30):
        assert (await made.learning.facts(Deadline(9.0))).name == "r"
    await made.close()
    assert slow.asking == 0


async def test_tiers_that_answer_within_the_grace_are_all_heard() -> None:
    slow = Slow()
    made = route(fakes=(slow, Versions()), tiers=(FAST, LAST))  # type: ignore[arg-type]
    asking = asyncio.create_task(made.learning.facts(Deadline(9.0)))
    await until(lambda: slow.asking > 0)
    slow.may.set()
    assert (await asking).inputs[0].shape == (-1, 7)


async def test_who_leaves_while_tiers_are_asked_leaves_nothing_behind() -> None:
    slow, other = Slow(), Slow()
    made = route(fakes=(slow, other), tiers=(FAST, LAST))  # type: ignore[arg-type]
    asking = asyncio.create_task(made.learning.facts(Deadline(9.0)))
    await until(lambda: slow.asking > 0 and other.asking > 0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (slow.asking, other.asking) == (0, 0)


def test_a_routes_facts_are_what_all_tiers_can_do() -> None:
    first, last = facts(), facts(max_batch=4, versions=("3",), decoupled=True, outputs=facts().outputs[1:])
    merged = merged_facts("r", [first, last])
    assert (merged.name, merged.versions, merged.max_batch) == ("r", ("3",), 4)
    assert [output.name for output in merged.outputs] == ["z"]
    assert (merged.sequence, merged.decoupled) == (False, True)


@pytest.mark.parametrize(
    ("fakes", "ready"),
    [
        ((Fake(200), Fake(200)), True),
        ((Fake(400), Fake(200)), True),
        ((Fake(None), Fake(200)), True),
        ((Fake(200), Fake(None)), True),
        ((Fake(400), Fake(None)), False),
    ],
)
async def test_a_route_is_ready_with_one_tier_whose_answers_do_not_say_otherwise(
    fakes: tuple[Fake, ...], ready: bool
) -> None:
    made = route(fakes=fakes, tiers=(FAST, LAST))
    assert await made.ready(Deadline(9.0)) is ready
    assert fakes[0].asked[-1] == "/v2/models/small/versions/2/ready"


def test_a_route_knows_the_models_behind_it_and_turns() -> None:
    made = route(tiers=(FAST, LAST))
    assert made.serves("gpu", "small")
    assert made.serves("gpu", "large")
    assert not made.serves("cpu", "small")
    made.turn()
    assert (made.epoch, made.refreshes) == (1, 0)
