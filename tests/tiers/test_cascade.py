"""The cascade: who is asked about which rows, and what the caller gets when a tier fails."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest

from degrade.deadline import Deadline
from degrade.gate import NOBODY, Claim
from degrade.ladder import Failure, Step
from tiers.cascade import Accept, CascadeAnswer, CascadeOptions, Tier, decide, run
from tiers.inference import InferRequest, InferResponse, Passed, RequestedOutput, Tensor, UpstreamError
from tiers.pool import DECENT_SECONDS, Answered

DEADLINE = Deadline(100.0)
MARGIN = Accept("p", "margin", 0.5)
WHOLE_ORDER = (Step.REPLICA, Step.TIER, Step.STALE, Step.SNAPSHOT, Step.DEFAULT)


def tensor(name: str, values: object, datatype: str = "FP32") -> Tensor:
    array = np.asarray(values, dtype={"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT32": "<i4"}[datatype])
    return Tensor(name, datatype, array.shape, array.tobytes())


class Model:
    """Answers p = [x, 1 - x] and who = its own number, per row; remembers what it was asked."""

    def __init__(
        self, number: float, fails: Failure | None = None, passed: tuple[Passed, ...] = (), drops: int | None = None
    ) -> None:
        self.number, self.fails, self.passed, self.drops = number, fails, passed, drops
        self.asked: list[InferRequest] = []
        self.again: list[bool] = []
        self.deadlines: list[Deadline] = []

    async def infer(
        self,
        request: InferRequest,
        deadline: Deadline,
        again: bool = True,
        decent: float = DECENT_SECONDS,
        claim: Claim = NOBODY,
    ) -> Answered:
        self.deadlines.append(deadline)
        self.asked.append(request)
        self.again.append(again)
        if self.fails:
            error = UpstreamError(self.fails, "down")
            error.drops = error.drops if self.drops is None else self.drops
            raise error
        x = np.frombuffer(request.inputs[0].data, dtype="<f4").reshape(request.inputs[0].shape)
        outputs = (tensor("p", np.concatenate([x, 1 - x], axis=-1)), tensor("who", np.full_like(x, self.number)))
        wanted = {output.name for output in request.outputs}
        kept = tuple(output for output in outputs if not wanted or output.name in wanted)
        return Answered(InferResponse(request.model, "3", kept), "http://r", self.passed)


def cascade(*models: Model, accept: Accept | None = MARGIN) -> list[Tier]:
    return [Tier(f"m{index}", "", accept, model) for index, model in enumerate(models)]


async def go(
    tiers: Sequence[Tier], request: InferRequest, deadline: Deadline, options: CascadeOptions
) -> CascadeAnswer:
    return await run(tiers, request, deadline, options, lambda: 40.0)


def ask(rows: Sequence[float], *outputs: str) -> InferRequest:
    return InferRequest("route", (tensor("x", [[x] for x in rows]),), tuple(RequestedOutput(name) for name in outputs))


def who(answer: CascadeAnswer) -> list[float]:
    output = next(output for output in answer.response.outputs if output.name == "who")
    return np.frombuffer(output.data, dtype="<f4").tolist()


async def test_unsure_rows_go_on_as_one_smaller_batch_in_order() -> None:
    fast, large = Model(0), Model(1)
    answer = await go(cascade(fast, large), ask([1.0, 0.5, 0.0, 0.6]), DEADLINE, CascadeOptions(4))
    assert who(answer) == [0, 1, 0, 1]
    assert np.frombuffer(large.asked[0].inputs[0].data, dtype="<f4").tolist() == pytest.approx([0.5, 0.6])
    assert (answer.tier, answer.version, answer.rows, answer.rows_escalated) == ("m1", "3", 4, 2)
    assert answer.tier_rows == (("m0", 2), ("m1", 2))
    assert (answer.steps, answer.degraded, answer.reason) == ((), False, "")


async def test_any_number_of_tiers() -> None:
    models = [Model(0), Model(1), Model(2)]
    tiers = cascade(*models)
    tiers[1] = Tier("m1", "", Accept("p", "max", 0.6), models[1])
    answer = await go(tiers, ask([0.5, 1.0, 0.6]), DEADLINE, CascadeOptions(3))
    assert who(answer) == [2, 0, 1]
    assert answer.rows_escalated == 2
    assert answer.tier_rows == (("m0", 1), ("m1", 1), ("m2", 1))
    assert [(share.position, share.tier, list(share.rows)) for share in answer.shares] == [
        (0, "m0", [1]), (1, "m1", [2]), (2, "m2", [0]),
    ]  # fmt: skip


async def test_all_sure_asks_the_first_only() -> None:
    fast, large = Model(0), Model(1)
    answer = await go(cascade(fast, large), ask([1.0, 0.0]), DEADLINE, CascadeOptions(2))
    assert (answer.tier, answer.rows_escalated, large.asked) == ("m0", 0, [])


@pytest.mark.parametrize(("x", "tier", "escalated"), [(1.0, "m0", 0), (0.5, "m1", 1)])
async def test_a_model_without_batching_is_one_decision(x: float, tier: str, escalated: int) -> None:
    request = InferRequest("route", (tensor("x", [x]),))
    answer = await go(cascade(Model(0), Model(1)), request, DEADLINE, CascadeOptions(None))
    assert (answer.tier, answer.rows, answer.rows_escalated) == (tier, 1, escalated)


async def test_the_rules_output_is_asked_for_and_stripped() -> None:
    fast, large = Model(0), Model(1)
    answer = await go(cascade(fast, large), ask([1.0, 0.5], "who"), DEADLINE, CascadeOptions(2))
    assert [output.name for output in fast.asked[0].outputs] == ["who", "p"]
    assert [output.name for output in large.asked[0].outputs] == ["who"]
    assert [output.name for output in answer.response.outputs] == ["who"]
    assert who(answer) == [0, 1]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (InferRequest("r", (tensor("x", [[1.0]]),), (RequestedOutput("p", {"classification": 1}),)), "classification"),
        (InferRequest("r", (tensor("x", [[1.0]]),), parameters={"sequence_id": 4}), "sequence"),
        (
            InferRequest("r", (tensor("x", [[1.0]]),), (RequestedOutput("p", {"shared_memory_region": "s"}),)),
            "shared-memory",
        ),
    ],
)
async def test_what_cannot_be_judged_goes_straight_to_the_last(request_: InferRequest, reason: str) -> None:
    fast, large = Model(0), Model(1)
    answer = await go(cascade(fast, large), request_, DEADLINE, CascadeOptions(1))
    assert (answer.reason, answer.tier, fast.asked, answer.degraded) == (reason, "m1", [], False)


async def test_a_failing_fast_tier_hands_everything_on() -> None:
    large = Model(1)
    tiers = cascade(Model(0, fails=Failure.BROKEN), large)
    answer = await go(tiers, ask([1.0, 0.5]), DEADLINE, CascadeOptions(2, WHOLE_ORDER))
    assert who(answer) == [1, 1]
    assert (answer.steps, answer.degraded, answer.rows_escalated) == (("tier",), False, 2)


async def test_a_fast_tier_that_answers_nonsense_hands_everything_on() -> None:
    options = CascadeOptions(2, WHOLE_ORDER)
    answer = await go(cascade(Model(0), Model(1)), ask([1.0, math.nan]), DEADLINE, options)
    assert (who(answer), answer.steps) == ([1, 1], ("tier",))


@pytest.mark.parametrize("order", [(), (Step.STALE,), (Step.REPLICA, Step.STALE)])
@pytest.mark.parametrize("failure", [Failure.BROKEN, Failure.TIMEOUT, Failure.UNREACHABLE])
async def test_without_the_tier_step_a_failing_tier_is_not_replaced_and_unsure_rows_go_on(
    order: tuple[Step, ...], failure: Failure
) -> None:
    large = Model(1)
    with pytest.raises(UpstreamError) as caught:
        await go(cascade(Model(0, fails=failure), large), ask([1.0]), DEADLINE, CascadeOptions(1, order))
    assert (caught.value.failure, large.asked) == (failure, [])
    answer = await go(cascade(Model(0), large), ask([1.0, 0.5]), DEADLINE, CascadeOptions(2, order))
    assert (who(answer), answer.steps) == ([0, 1], ())


async def test_an_answer_beyond_our_bounds_is_not_fetched_from_another_tier() -> None:
    large = Model(1)
    tiers = cascade(Model(0, fails=Failure.OVERSIZED), large)
    with pytest.raises(UpstreamError) as caught:
        await go(tiers, ask([1.0]), DEADLINE, CascadeOptions(1, WHOLE_ORDER))
    assert (caught.value.failure, large.asked) == (Failure.OVERSIZED, [])


async def test_a_failing_large_tier_leaves_the_fast_answer_if_the_route_says_so() -> None:
    tiers = cascade(Model(0), Model(1, fails=Failure.TIMEOUT))
    answer = await go(tiers, ask([1.0, 0.5]), DEADLINE, CascadeOptions(2, (Step.TIER,)))
    assert (who(answer), answer.steps, answer.tier, answer.degraded) == ([0, 0], ("tier",), "m0", True)
    assert (answer.rows_escalated, answer.tier_rows) == (0, (("m0", 2),))
    with pytest.raises(UpstreamError) as caught:
        await go(tiers, ask([1.0, 0.5]), DEADLINE, CascadeOptions(2, (Step.STALE,)))
    assert caught.value.failure is Failure.TIMEOUT


async def test_what_every_row_was_accepted_from_is_not_degraded_whatever_failed_before() -> None:
    retried = Model(0, passed=(Passed(Step.REPLICA, Failure.BROKEN, "down"),))
    answer = await go(cascade(retried, Model(1)), ask([1.0, 0.0]), DEADLINE, CascadeOptions(2, WHOLE_ORDER))
    assert (answer.steps, answer.degraded) == (("replica",), False)
    models = [Model(0), Model(1, fails=Failure.BROKEN), Model(2)]
    answer = await go(cascade(*models), ask([1.0, 0.5]), DEADLINE, CascadeOptions(2, WHOLE_ORDER))
    assert (who(answer), answer.steps, answer.degraded) == ([0, 2], ("tier",), False)
    assert answer.passed == (Passed(Step.TIER, Failure.BROKEN, "down"),)
    assert answer.tier_rows == (("m0", 1), ("m2", 1))


@pytest.mark.parametrize(
    ("order", "again"),
    [(WHOLE_ORDER, True), ((Step.REPLICA,), True), ((Step.TIER, Step.STALE), False), ((), False)],
)
async def test_a_ladder_without_replica_never_retries(order: tuple[Step, ...], again: bool) -> None:
    fast, large = Model(0), Model(1)
    await go(cascade(fast, large), ask([0.5]), DEADLINE, CascadeOptions(1, order))
    assert (fast.again, large.again) == ([again], [again])


async def test_all_tiers_failing_raises_the_last_ones_error() -> None:
    tiers = cascade(Model(0, fails=Failure.BROKEN), Model(1, fails=Failure.UNREACHABLE))
    with pytest.raises(UpstreamError) as caught:
        await go(tiers, ask([1.0]), DEADLINE, CascadeOptions(1, (Step.TIER,)))
    assert caught.value.failure is Failure.UNREACHABLE


def response(output: Tensor) -> InferResponse:
    return InferResponse("m", "1", (output,))


def bf16(values: Sequence[float]) -> Tensor:
    raw = (np.asarray(values, dtype="<f4").view("<u4") >> 16).astype("<u2")
    return Tensor("p", "BF16", (1, len(values)), raw.tobytes())


@pytest.mark.parametrize(
    ("rule", "output", "rows", "accepted"),
    [
        ("margin", tensor("p", [[0.9, 0.1], [0.6, 0.4]]), 2, [True, False]),
        ("max", tensor("p", [[0.5, 0.1], [0.4, 0.6]], "FP64"), 2, [True, True]),
        ("max", tensor("p", [0.5, 0.4], "FP16"), 2, [True, False]),
        ("margin", tensor("p", [0.9, 0.1]), None, [True]),
        ("margin", tensor("p", [[[0.9, 0.1], [0.6, 0.4]]]), 1, [False]),
        ("max", tensor("p", 0.7), None, [True]),
        ("margin", bf16([1.0, 0.25]), 1, [True]),
        ("margin", tensor("p", np.zeros((0, 2))), 0, []),
    ],
)
def test_decide(rule: str, output: Tensor, rows: int | None, accepted: list[bool]) -> None:
    make: Callable[..., Accept] = Accept
    assert decide(make("p", rule, 0.5), response(output), rows).tolist() == accepted


@pytest.mark.parametrize(
    ("output", "rows"),
    [
        (tensor("q", [[1.0, 0.0]]), 1),
        (tensor("p", [[1.0, 0.0]]), 2),
        (tensor("p", [[1.0]]), 1),
        (tensor("p", [1.0]), 1),
        (tensor("p", [[math.nan, 0.0]]), 1),
        (tensor("p", [[math.inf, math.inf]]), 1),
        (tensor("p", [[1, 0]], "INT32"), 1),
        (Tensor("p", "FP32", (1, 2), b"123"), 1),
        (Tensor("p", "FP32", (1, 2), b"1234"), 1),
        (Tensor("p", "FP32", (1, 0, 2), b""), 1),
    ],
)
def test_what_cannot_be_decided_is_broken(output: Tensor, rows: int) -> None:
    with pytest.raises(UpstreamError) as caught:
        decide(MARGIN, response(output), rows)
    assert caught.value.failure is Failure.BROKEN


async def test_a_tier_leaves_time_for_the_next() -> None:
    models = Model(0, fails=Failure.TIMEOUT), Model(1, fails=Failure.TIMEOUT), Model(2)
    await go(cascade(*models), ask([1.0]), DEADLINE, CascadeOptions(1, WHOLE_ORDER))
    assert [model.deadlines for model in models] == [[Deadline(91.0)], [Deadline(91.0)], [DEADLINE]]


async def test_what_was_cut_short_has_the_rest_when_all_others_fail() -> None:
    class Once(Model):
        """Silent the first time."""

        async def infer(
            self,
            request: InferRequest,
            deadline: Deadline,
            again: bool = True,
            decent: float = DECENT_SECONDS,
            claim: Claim = NOBODY,
        ) -> Answered:
            self.fails = None if self.asked else Failure.TIMEOUT
            return await super().infer(request, deadline, again, decent)

    fast, large = Once(0), Model(1, fails=Failure.BROKEN)
    answer = await go(cascade(fast, large), ask([1.0, 0.5]), DEADLINE, CascadeOptions(2, WHOLE_ORDER))
    assert fast.deadlines == [Deadline(91.0), DEADLINE]
    assert (answer.tier, answer.steps, answer.degraded, who(answer)) == ("m0", ("tier", "tier"), True, [0.0, 0.0])
    fast, large = Once(0), Model(1, fails=Failure.BROKEN)
    with pytest.raises(UpstreamError) as caught:
        await go(cascade(fast, large), ask([1.0]), DEADLINE, CascadeOptions(1, (Step.STALE,)))
    assert (caught.value.failure, fast.deadlines) == (Failure.TIMEOUT, [Deadline(91.0)])
    fast = Model(0, fails=Failure.TIMEOUT)
    with pytest.raises(UpstreamError) as caught:
        await go(cascade(fast, large), ask([1.0]), DEADLINE, CascadeOptions(1, WHOLE_ORDER))
    assert (caught.value.failure, len(fast.asked)) == (Failure.TIMEOUT, 2)


@pytest.mark.parametrize(
    ("fails", "drops", "asked", "again"),
    [
        ((Failure.DROPPED, Failure.BROKEN), None, 2, [True, False]),
        ((Failure.DROPPED, Failure.TIMEOUT), None, 2, [True, False]),
        ((Failure.BROKEN, Failure.DROPPED), None, 3, [True, True, False]),
        ((Failure.DROPPED, None), 2, 1, [True]),
        ((Failure.UNREACHABLE, None), 2, 1, [True]),
        ((Failure.UNREACHABLE, None), None, 2, [True, True]),
    ],
)
async def test_what_one_replica_dropped_never_reaches_a_third(
    fails: tuple[Failure | None, ...], drops: int | None, asked: int, again: list[bool]
) -> None:
    models = [Model(index, failure) for index, failure in enumerate(fails)] + [Model(9, Failure.BROKEN)]
    models[0].drops = drops
    with contextlib.suppress(UpstreamError):
        await go(cascade(*models), ask([1.0]), DEADLINE, CascadeOptions(1, WHOLE_ORDER))
    assert sum(len(model.asked) for model in models) == asked
    assert [each for model in models for each in model.again] == again


async def test_a_tier_that_is_full_hands_its_load_to_no_larger_one() -> None:
    fast, large = Model(0, fails=Failure.SHED), Model(1)
    with pytest.raises(UpstreamError) as caught:
        await go(cascade(fast, large), ask([1.0]), DEADLINE, CascadeOptions(1, WHOLE_ORDER))
    assert (caught.value.failure, large.asked) == (Failure.SHED, [])


async def test_where_the_larger_one_is_full_the_first_ones_word_will_do() -> None:
    fast, large = Model(0), Model(1, fails=Failure.SHED)
    answer = await go(cascade(fast, large), ask([1.0, 0.5]), DEADLINE, CascadeOptions(2, WHOLE_ORDER))
    assert (who(answer), answer.degraded, answer.steps) == ([0.0, 0.0], True, ("tier",))
    with pytest.raises(UpstreamError):
        await go(cascade(fast, large), ask([1.0, 0.5]), DEADLINE, CascadeOptions(2, (Step.STALE,)))


@pytest.mark.parametrize(("rows", "degraded"), [([1.0, 0.0], False), ([1.0, 0.5], True)])
async def test_first_only_asks_no_other(rows: list[float], degraded: bool) -> None:
    fast, large = Model(0), Model(1)
    options = CascadeOptions(2, WHOLE_ORDER, first_only=True)
    answer = await go(cascade(fast, large), ask(rows), DEADLINE, options)
    assert (who(answer), answer.degraded, large.asked) == ([0.0, 0.0], degraded, [])
    assert answer.steps == (("tier",) if degraded else ())


async def test_first_only_is_the_first_that_answers() -> None:
    """A dead first tier overloads the next one: were that not asked then, less would be answered than without."""
    fast, large = Model(0, fails=Failure.UNREACHABLE), Model(1)
    options = CascadeOptions(1, WHOLE_ORDER, first_only=True)
    answer = await go(cascade(fast, large), ask([0.5]), DEADLINE, options)
    assert (answer.tier, answer.degraded, answer.steps) == ("m1", False, ("tier",))


async def test_first_only_leaves_what_only_the_last_can_answer_to_it() -> None:
    fast, large = Model(0), Model(1)
    request = msgspec.structs.replace(ask([1.0]), parameters={"sequence_id": 1})
    answer = await go(cascade(fast, large), request, DEADLINE, CascadeOptions(1, WHOLE_ORDER, first_only=True))
    assert (answer.tier, fast.asked) == ("m1", [])
