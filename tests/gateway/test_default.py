"""A route's declared default: when it is given, what it is for whom, and that nothing ever keeps it."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import msgspec
import pytest
from structlog.testing import capture_logs

from degrade.ladder import TABLE, Failure, Step
from gateway.call import Answer
from gateway.codec.http import CacheDirectives
from gateway.config import CacheConfig, Limits
from gateway.config_default import ELEMENTS_MAX, DefaultOutput
from gateway.default import ANSWER_BYTES_MAX, BLIND_BYTES_MAX, Default
from gateway.problem import Refused
from gateway.units import Seconds
from tests.gateway.test_pipeline import FACTS, NO_CACHE, SURE, House, Upstream
from tiers.facts import ModelFacts, TensorFact
from tiers.inference import InferRequest, InferResponse, Rejected, RequestedOutput, Tensor, UpstreamError

Y = DefaultOutput("FP32", (-1, 2), (0.25, 0.75))
LADDER = ("replica", "tier", "stale", "default")
PAIR = struct.pack("<2f", 0.25, 0.75)
TEXT = TensorFact("t", "BYTES", (-1, 1))


def house(*upstreams: Upstream, **route: object) -> House:
    return House(*upstreams, **({"default": {"y": Y}, "degrade": LADDER} | route))


def given(answer: Answer[InferResponse]) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    return [(each.name, each.datatype, each.shape, bytes(each.data)) for each in answer.response.outputs]


@pytest.mark.parametrize("failure", Failure)
async def test_it_is_given_after_every_failure_of_others_and_said_to_be_one(failure: Failure) -> None:
    made = house()
    made.fail(failure)
    if Step.DEFAULT not in TABLE[failure]:
        assert failure is Failure.OVERSIZED
        assert (await made.refusal()).problem.slug == "answer-too-large"
        return
    answer = await made.ask()
    assert given(answer) == [("y", "FP32", (1, 2), PAIR)]
    told = answer.provenance
    assert (told.cache, told.reason, told.steps, told.degraded) == ("miss", failure.value, ("default",), True)
    assert (told.tier, told.version, told.stored, answer.key, answer.entry) == ("", "", False, None, None)
    assert (answer.response.model, answer.response.version) == ("r", "")
    assert made.counter("tailrace_degraded_total", failure=failure.value, step="default") == 1
    assert made.counter("tailrace_answers_total", route="r", cache="miss", reason=failure.value) == 1


async def test_it_is_never_kept_and_comes_after_what_is() -> None:
    made = house()
    made.fail()
    for _ in range(2):
        assert (await made.ask()).provenance.steps == ("default",)
    assert made.route.cache is not None
    assert made.route.cache.entries == 0
    made.upstream.failure = None
    assert (await made.ask()).provenance.stored
    made.clock.now += 11
    made.fail()
    assert (await made.ask()).provenance.steps == ("stale",)
    assert (await made.ask(SURE, NO_CACHE)).provenance.steps == ("default",), "it is no cached answer"
    assert (await made.refusal(SURE, CacheDirectives(only_if_cached=True, no_cache=True))).problem.slug == "not-cached"


async def test_a_route_without_a_cache_has_it_too() -> None:
    made = house(cache=None)
    made.fail()
    told = (await made.ask()).provenance
    assert (told.cache, told.steps, told.degraded) == ("bypass", ("default",), True)


async def test_what_the_caller_did_wrong_stays_a_refusal() -> None:
    made = house()
    made.upstream.failure = Rejected(400, "no such thing")
    assert (await made.refusal()).problem.status == 400
    made.fail()
    assert (await made.refusal(b"\0" * 4 * 2 * 100, shape=(100, 2))).problem.slug == "invalid"


async def test_where_the_ladder_does_not_name_it_there_is_none() -> None:
    made = house(degrade=("replica", "tier", "stale"))
    made.fail()
    assert (await made.refusal()).problem.slug == "unavailable"


async def test_where_the_ladder_has_it_first_nobody_else_is_asked_in_place_of_who_fails() -> None:
    for order, tiers in ((("default", "tier"), 1), (("tier", "default"), 2)):
        made = house(Upstream(), Upstream(), degrade=order)
        made.fail()
        assert (await made.ask()).provenance.steps == ("default",)
        assert len(made.upstreams[0].requests) + len(made.upstreams[1].requests) == tiers


@pytest.mark.parametrize("rows", [1, 3, 8])
async def test_a_batch_has_it_for_each_row(rows: int) -> None:
    made = house()
    made.fail()
    answer = await made.ask(SURE * rows, shape=(rows, 2))
    assert given(answer) == [("y", "FP32", (rows, 2), PAIR * rows)]


async def test_a_model_that_takes_no_batches_has_it_whole() -> None:
    facts = ModelFacts("m", ("1",), FACTS.inputs, (TensorFact("y", "FP32", (3,)),), 0, False, False)
    made = house(Upstream(facts), default={"y": DefaultOutput("FP32", (3,), 1.0)})
    made.fail()
    assert given(await made.ask(SURE * 5, shape=(5, 2))) == [("y", "FP32", (3,), struct.pack("<3f", 1, 1, 1))]


MISFITS: Mapping[str, Mapping[str, DefaultOutput]] = {
    "routes.r.default.y.datatype is FP64": {"y": DefaultOutput("FP64", (-1, 2), 0.0)},
    "routes.r.default.y.shape is [-1, 2, 2]": {"y": DefaultOutput("FP32", (-1, 2, 2), 0.0)},
    "routes.r.default.y.shape is [2]": {"y": DefaultOutput("FP32", (2,), 0.0)},
    "routes.r.default.y is not declared": {"z": Y},
    "routes.r.default.z model r has no such output": {"y": Y, "z": Y},
}


@pytest.mark.parametrize("told", MISFITS)
async def test_what_can_be_no_answer_of_the_model_is_never_served_and_its_key_is_told(told: str) -> None:
    made = house(default=MISFITS[told])
    with capture_logs() as logs:
        await made.ask()
        made.fail()
        detail = (await made.refusal(b"\0" * 8)).problem.detail
    assert f"No default is given: {told}" in detail
    line, *_ = [each for each in logs if each["event"] == "default is not served"]
    assert line["log_level"] == "error"
    assert f"{line['key']} {line['reason']}".startswith(told)


async def test_as_long_as_nobody_knows_the_model_it_is_what_was_declared() -> None:
    made = house(limits=Limits(batch_max=4))
    made.upstream.facts_failure = UpstreamError(Failure.UNREACHABLE, "nobody there")
    made.fail()
    assert given(await made.ask(SURE * 3, shape=(3, 2))) == [("y", "FP32", (3, 2), PAIR * 3)]
    assert (await made.refusal(SURE * 5, shape=(5, 2))).problem.slug == "unavailable"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"outputs": (RequestedOutput("y", {"classification": 1}),)}, "has no classes"),
        ({"parameters": {"sequence_id": 1}}, "none of a sequence"),
    ],
)
async def test_whom_it_would_not_answer_it_is_not_given(more: dict[str, object], why: str) -> None:
    made = house()
    made.fail()
    assert why in (await made.refusal(**more)).problem.detail


async def test_of_several_outputs_those_that_are_asked_for() -> None:
    facts = ModelFacts("m", ("1",), FACTS.inputs, (*FACTS.outputs, TEXT), 8, False, False)
    made = house(Upstream(facts), default={"y": Y, "t": DefaultOutput("BYTES", (-1, 1), "no")})
    made.fail()
    texts = ("t", "BYTES", (2, 1), b"\x02\0\0\0no" * 2)
    assert given(await made.ask(SURE * 2, shape=(2, 2))) == [("y", "FP32", (2, 2), PAIR * 2), texts]
    assert given(await made.ask(SURE * 2, shape=(2, 2), outputs=(RequestedOutput("t"),))) == [texts]


def test_it_is_bounded_in_bytes() -> None:
    wide = Default("r", {"y": DefaultOutput("FP64", (-1, 1024), 1.0)})
    request = InferRequest("r", (Tensor("x", "FP32", (1, 1), b"\0\0\0\0"),))
    most = ANSWER_BYTES_MAX // 8192
    due = wide.due(request, most)
    assert callable(due)
    assert len(due().outputs[0].data) == ANSWER_BYTES_MAX
    assert "bytes" in str(wide.due(request, most + 1))


async def blind(shape: tuple[int, ...], size: int, default: DefaultOutput = Y, **route: object) -> int:
    """How many bytes are given to a request before anybody knows the model."""
    made = house(default={"y": default}, **route)
    made.upstream.facts_failure = UpstreamError(Failure.UNREACHABLE, "nobody there")
    made.fail()
    return len(given(await made.ask(b"\0" * size, shape=shape))[0][3])


async def test_before_the_model_is_known_a_few_bytes_are_no_large_answer() -> None:
    """Nobody but the caller says then how many rows there are."""
    kilobyte = DefaultOutput("FP32", (-1, 256), 1.0)
    most = BLIND_BYTES_MAX // 1024
    assert await blind((most, 1), 4 * most, kilobyte) == BLIND_BYTES_MAX
    with pytest.raises(Refused, match=f"{BLIND_BYTES_MAX} are made at most"):
        await blind((most + 1, 1), 4 * most + 4, kilobyte)
    with pytest.raises(Refused, match="no input without elements"):
        await blind((1000, 0), 0)
    assert await blind((1, 1), 4, DefaultOutput("FP64", (-1, ELEMENTS_MAX), 1.0)) > BLIND_BYTES_MAX
    with_bound = Limits(batch_max=most + 1)
    assert await blind((most + 1, 1), 4 * most + 4, kilobyte, limits=with_bound) > BLIND_BYTES_MAX
    whole = DefaultOutput("FP64", (ELEMENTS_MAX,), 1.0)
    assert await blind((most + 1, 0), 0, whole) == 8 * ELEMENTS_MAX, "it does not grow with the rows"


async def test_it_is_made_once_and_for_nobody_who_gets_something_else() -> None:
    made = house()
    assert (await made.ask()).provenance.stored
    default, answers = made.route.default, list[InferResponse]()
    assert default is not None
    answer = default._answer

    def counted(names: tuple[str, ...], rows: int) -> InferResponse:
        answers.append(answer(names, rows))
        return answers[-1]

    default._answer = counted  # type: ignore[method-assign]
    made.clock.now += 11
    made.fail()
    assert (await made.ask()).provenance.steps == ("stale",)
    assert not answers
    assert (await made.ask(SURE * 2, shape=(2, 2))).provenance.steps == ("default",)
    assert len(answers) == 1


@pytest.mark.parametrize("rows", [None, 0])
def test_without_rows_there_is_none(rows: int | None) -> None:
    request = InferRequest("r", (Tensor("x", "FP32", (0, 1), b""),))
    assert isinstance(Default("r", {"y": Y}).due(request, rows), str)


async def test_another_default_takes_over_what_is_kept() -> None:
    made = house(cache=CacheConfig(ttl=Seconds(10)))
    await made.ask()
    route = made.route
    zeros = msgspec.structs.replace(route.config, default={"y": DefaultOutput("FP32", (-1, 2), 0)})
    other = route.under(zeros, route._homes, 2**20)
    assert other is not route
    assert other.cache is route.cache
