"""The cascade: ask the cheap model first, and the next one only about rows it was unsure of.

Rule of this file: rows go down the tiers and never back up; the merged answer has the caller's rows
in the caller's order and the outputs the caller asked for. Escalating what a tier is unsure of is no degradation;
that a tier fails is one, and only a route that allows Step.TIER goes on then: to the next tier, and after the last
one to what earlier tiers said, labelled.
It must not know Triton, replicas, the cache or the route's public name.

The threshold is a number given to it; what that number promises is calibrated elsewhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine, Sequence
from itertools import zip_longest
from typing import Final, Literal, Protocol

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from degrade.deadline import Deadline, Ticker
from degrade.gate import NOBODY, Claim
from degrade.ladder import TABLE, Failure, Step
from tiers.datatype import FLOATS, numbers
from tiers.inference import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    Parameters,
    Passed,
    RequestedOutput,
    Tensor,
    UpstreamError,
)
from tiers.pool import DECENT_SECONDS, Answered
from tiers.rows import merge_rows, take_rows

_MARGIN_CLASSES_MIN: Final = 2

TIER_SHARE: Final = 0.85
"""What a tier may use of the time that is left while there is another behind it. A cheap model that needs more
than this of a whole deadline is not well; and a seventh of it must be enough for the next one's usual answer."""


NOT_ESCALATED: Final = Passed(Step.TIER, Failure.SHED, "brownout: no larger tier is asked")
"""What is told of rows that are left with the first tier."""


class Accept(Struct, frozen=True):
    """When a tier's row is good enough. ``margin``: largest minus second largest value of the output's
    last axis; ``max``: the largest. A row is accepted when that score is ``at_least`` or more."""

    output: str
    rule: Literal["margin", "max"]
    at_least: float


class Inferring(Protocol):
    """Whatever can answer a request; a Pool in life."""

    async def infer(
        self,
        request: InferRequest,
        deadline: Deadline,
        again: bool = True,
        decent: float = DECENT_SECONDS,
        claim: Claim = NOBODY,
    ) -> Answered[InferResponse]: ...


class Tier(Struct, frozen=True):
    """One step of a cascade. ``accept`` None: every row of this tier is accepted (the last tier's rule
    is never looked at). ``version`` empty: whatever Triton's version policy serves. ``decent``: seconds of
    silence that speak against the tier's model."""

    model: str
    version: str
    accept: Accept | None
    pool: Inferring
    decent: float = DECENT_SECONDS


class CascadeOptions(Struct, frozen=True):
    """``rows``: the request's rows if the model batches, None when its answer is one whole.
    ``order``: the route's ladder, as far as it may be gone down here; a second replica is asked only with
    Step.REPLICA in it, and another tier in place of a failing one only with Step.TIER. Nobody's ladder (the
    default) retries and degrades nothing. ``claim``: for whom it is asked.
    ``first_only``: what the first tier says will do, however unsure it is, for the others have too much to do."""

    rows: int | None = None
    order: tuple[Step, ...] = (Step.REPLICA,)
    claim: Claim = NOBODY
    first_only: bool = False


class Share(Struct, frozen=True):
    """What one tier gave of an answer: ``rows`` are those whose answer is its own, by their indices. ``position`` is
    the tier's in the cascade, 0 the first's; ``parameters`` are what it said beside its tensors."""

    position: int
    tier: str
    version: str
    rows: Sequence[int]
    parameters: Parameters = NO_PARAMETERS


class CascadeAnswer(Struct, frozen=True):
    """``shares``: of each tier that answered, in order, at least one; every row is in one of them. ``rows`` is 1 for an
    answer that is one whole. ``reason`` says why the first tier was not asked at all ("classification", "sequence",
    "shared-memory"), else it is empty.

    ``passed`` tells all that failed on the way. ``degraded`` is narrower: rows remain that no tier accepted,
    so the answer is not the one that health would give, and must not be kept. ``has_nan``: nor must this one, where
    that was looked for."""

    response: InferResponse
    rows: int
    shares: tuple[Share, ...]
    passed: tuple[Passed, ...] = ()
    degraded: bool = False
    reason: str = ""
    has_nan: bool = False

    @property
    def may_stay(self) -> bool:
        """Whether it may be kept."""
        return not (self.degraded or self.has_nan)

    @property
    def tier(self) -> str:
        """The largest tier used."""
        return self.shares[-1].tier

    @property
    def version(self) -> str:
        """Of the largest tier used."""
        return self.shares[-1].version

    @property
    def tier_rows(self) -> tuple[tuple[str, int], ...]:
        """Each model used, and how many rows' answers are its own."""
        return tuple([(share.tier, len(share.rows)) for share in self.shares])

    @property
    def rows_escalated(self) -> int:
        """How many rows' answers are not the first tier's."""
        return sum([len(share.rows) for share in self.shares if share.position > 0])

    @property
    def steps(self) -> tuple[str, ...]:
        """The ladder's steps taken, in order."""
        return tuple([each.step.value for each in self.passed])


class _Part(Struct, frozen=True):
    """What one tier said about some rows."""

    position: int
    response: InferResponse
    indices: tuple[int, ...]


def direct_reason(request: InferRequest) -> str:
    """Why a request must go straight to the last tier; empty if the cascade may take it.

    A classification answer has no scores to judge, a sequence must stay with one model,
    and tensors in shared memory are not ours to read.
    """
    if request.in_sequence:
        return "sequence"
    if request.in_shared_memory:
        return "shared-memory"
    if any("classification" in output.parameters for output in request.outputs):
        return "classification"
    return ""


def decide(rule: Accept, response: InferResponse, rows: int | None) -> NDArray[np.bool_]:
    """Which rows are accepted: bool [rows], or bool [1] for an answer that is one whole (``rows`` None).

    The output is [rows, ..., classes]; a row of several score vectors is as sure as its least sure one.
    Raises UpstreamError(BROKEN) when the output is missing, not floating point, of another shape, or NaN.
    """
    tensor = next((output for output in response.outputs if output.name == rule.output), None)
    if tensor is None:
        raise _broken(rule, response, "is missing")
    values = _floats(rule, response, tensor)
    leading = 1 if rows is None else rows
    if rows is not None and (not tensor.shape or tensor.shape[0] != rows):
        raise _broken(rule, response, f"has shape {list(tensor.shape)} where {rows} rows are due")
    if leading == 0:
        return np.zeros(0, dtype=np.bool_)
    batch_axes = 0 if rows is None else 1
    classes = tensor.shape[-1] if len(tensor.shape) > batch_axes else 1
    least = _MARGIN_CLASSES_MIN if rule.rule == "margin" else 1
    if classes < least or not values.size:
        raise _broken(rule, response, f"has shape {list(tensor.shape)}, too few for {rule.rule}")
    scores = values.reshape(leading, -1, classes)
    top = scores.max(axis=-1)
    if rule.rule == "margin":
        second = np.partition(scores, classes - 2, axis=-1)[..., classes - 2]
        with np.errstate(invalid="ignore"):
            top = top - second
    score = top.min(axis=-1)
    if np.isnan(score).any():
        raise _broken(rule, response, "holds NaN or infinities that cancel")
    return np.asarray(score >= rule.at_least, dtype=np.bool_)


def run(
    tiers: Sequence[Tier], request: InferRequest, deadline: Deadline, options: CascadeOptions, ticker: Ticker
) -> Coroutine[object, object, CascadeAnswer]:
    """Ask the tiers in order until every row is accepted; the answer's outputs are the caller's.

    A tier with another behind it has ``TIER_SHARE`` of the time that is left, so that one that hangs does not
    keep the next, which may be well, from answering. If that one fails too, the first whose time was cut short
    is asked once more, for all that is left: nobody else can answer now. Where a tier has no place for the request, an
    earlier one's answer will do, but no later one is asked in its place.

    What one replica was asked and closed the connection on goes to one other and no further, whatever tier that one
    is of: two may have died of it.

    An output that only some of the tiers have is in the answer only when those tiers gave all of it.
    Raises Rejected as a tier does, and UpstreamError when a tier fails and the route allows no other in its
    place, or none is left and no earlier one has answered.
    """
    assert tiers, "a cascade needs at least one tier"
    if len(tiers) == 1:
        return _alone(tiers[0], request, deadline, options)
    return _in_order(tiers, request, deadline, options, ticker)


async def _in_order(
    tiers: Sequence[Tier], request: InferRequest, deadline: Deadline, options: CascadeOptions, ticker: Ticker
) -> CascadeAnswer:
    """`run` of several tiers."""
    reason = direct_reason(request)
    rows = None if reason else options.rows
    last = len(tiers) - 1
    again = Step.REPLICA in options.order
    pending = tuple(range(1 if rows is None else rows))
    parts: list[_Part] = []
    passed: tuple[Passed, ...] = ()
    ahead = deque(range(last if reason else 0, len(tiers)))
    cut: int | None = None
    drops = 0
    while ahead:
        position = ahead.popleft()
        tier = tiers[position]
        rule = None if position == last else tier.accept
        asked = request if rows is None or len(pending) == rows else take_rows(request, pending)
        try:
            until = _share(deadline, ticker()) if ahead else deadline
            addressed, repeats = _addressed(asked, tier, rule), again and not drops
            answered = await tier.pool.infer(addressed, until, repeats, tier.decent, options.claim)
            sure = _judged(rule, answered.response, len(pending), rows)
        except UpstreamError as error:
            passed += error.passed
            error.passed = passed
            drops = drops + 1 if drops else error.drops
            if not (Step.TIER in options.order and Step.TIER in TABLE[error.failure]):
                raise
            if drops > 1 or error.failure is Failure.SHED:
                ahead.clear()
                cut = None
            if ahead:
                cut = position if cut is None and error.failure is Failure.TIMEOUT else cut
            elif not parts:
                if cut is None or deadline.expired(ticker()):
                    raise
                ahead.append(cut)
                cut = None
            passed = (*passed, Passed(Step.TIER, error.failure, str(error)))
            continue
        drops = 0
        passed += answered.passed
        parts.append(_Part(position, answered.response, pending))
        pending = tuple(index for index, accepted in zip(pending, sure, strict=True) if not accepted)
        if not pending or (options.first_only and not reason):
            break  # what the first that answers says will do; one that fails is replaced as ever
    if pending and options.first_only and not reason:
        passed = (*passed, NOT_ESCALATED)
    return CascadeAnswer(
        response=_merged(request, parts, rows),
        rows=1 if rows is None else rows,
        shares=_shares(tiers, parts),
        passed=passed,
        degraded=bool(pending),
        reason=reason,
    )


async def _alone(tier: Tier, request: InferRequest, deadline: Deadline, options: CascadeOptions) -> CascadeAnswer:
    """`run` of one tier: nobody to share its time with, nothing to judge or to merge."""
    reason = direct_reason(request)
    again = Step.REPLICA in options.order
    answered = await tier.pool.infer(_addressed(request, tier, None), deadline, again, tier.decent, options.claim)
    response = _wanted(request, answered.response)
    rows = 1 if reason or options.rows is None else options.rows
    own = Share(0, tier.model, response.version, range(rows), response.parameters)
    return CascadeAnswer(response, rows, (own,), answered.passed, False, reason)


def _share(deadline: Deadline, now: float) -> Deadline:
    return Deadline.after(now, TIER_SHARE * deadline.remaining(now))


def _addressed(request: InferRequest, tier: Tier, rule: Accept | None) -> InferRequest:
    """The request as this tier gets it: its model, its version (or the caller's, if the tier takes any), and
    the rule's output asked for beside the caller's."""
    outputs, form = request.outputs, request.form
    if rule is not None and outputs and all(output.name != rule.output for output in outputs):
        outputs, form = (*outputs, RequestedOutput(rule.output)), None
    version = tier.version or request.version
    return InferRequest(tier.model, request.inputs, outputs, version, request.id, request.parameters, form)


def _judged(rule: Accept | None, response: InferResponse, count: int, rows: int | None) -> Sequence[bool]:
    if rule is None:
        return (True,) * count
    accepted: list[bool] = decide(rule, response, None if rows is None else count).tolist()
    return accepted


def _merged(request: InferRequest, parts: Sequence[_Part], rows: int | None) -> InferResponse:
    """One answer, with the rule's output stripped if the caller named outputs without it."""
    trimmed = [_wanted(request, part.response) for part in parts]
    if rows is None or len(parts[-1].indices) == rows:
        return trimmed[-1]
    return merge_rows(rows, [(answer, part.indices) for answer, part in zip(trimmed, parts, strict=True)])


def _wanted(request: InferRequest, response: InferResponse) -> InferResponse:
    """The answer with no outputs but those that the caller named, if any."""
    if not request.outputs:
        return response
    wanted = {output.name for output in request.outputs}
    outputs = tuple([output for output in response.outputs if output.name in wanted])
    if len(outputs) == len(response.outputs):
        return response
    return msgspec.structs.replace(response, outputs=outputs, form=None)


def _shares(tiers: Sequence[Tier], parts: Sequence[_Part]) -> tuple[Share, ...]:
    """Each part answers the rows that no later part answers again; a later one's rows are within the one's before."""
    shares = []
    for part, after in zip_longest(parts, parts[1:]):
        again = frozenset(() if after is None else after.indices)
        own = [index for index in part.indices if index not in again]
        model, said = tiers[part.position].model, part.response
        shares.append(Share(part.position, model, said.version, own, said.parameters))
    return tuple(shares)


def _floats(rule: Accept, response: InferResponse, tensor: Tensor) -> NDArray[np.float64]:
    """The tensor's values as float64, flat."""
    if tensor.datatype not in FLOATS:
        raise _broken(rule, response, f"is {tensor.datatype}, not floating point")
    try:
        values = numbers(tensor.data, tensor.datatype).astype(np.float64)
    except ValueError as error:
        raise _broken(rule, response, "has bytes that are not whole elements") from error
    if values.size != tensor.elements:
        raise _broken(rule, response, f"holds {values.size} values where its shape needs {tensor.elements}")
    return values


def _broken(rule: Accept, response: InferResponse, fault: str) -> UpstreamError:
    return UpstreamError(Failure.BROKEN, f"output {rule.output!r} of model {response.model!r} {fault}")
