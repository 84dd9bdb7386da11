"""What an answer must be, by the models' facts and by what was asked."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.fitting import NAN_BYTES_MAX, SUMMED_BYTES_MAX, TEXTS_MAX, Expected, expected, has_nan
from gateway.service import Served
from tiers.facts import ModelFacts, TensorFact
from tiers.inference import InferRequest, InferResponse, RequestedOutput, Tensor
from tiers.rows import Plan, is_row, plan_of

SMALL = (TensorFact("p", "FP32", (-1, 3)), TensorFact("early", "INT8", (-1, 1)))
LARGE = (TensorFact("p", "FP32", (-1, 3)), TensorFact("words", "BYTES", (-1, -1)))
P = Tensor("p", "FP32", (2, 3), bytes(24))
WORDS = Tensor("words", "BYTES", (2, 1), b"\1\0\0\0a\0\0\0\0")
EARLY = Tensor("early", "INT8", (2, 1), b"ab")


def facts(name: str, outputs: tuple[TensorFact, ...]) -> ModelFacts:
    return ModelFacts(name, ("1",), (), outputs, 8, sequence=False, decoupled=False)


def due(*asked: RequestedOutput, version: str = "", rows: int | None = 2) -> Expected:
    request = InferRequest("r", (), asked, version)
    return expected(["small", "large"], [facts("small", SMALL), facts("large", LARGE)], request, rows)


def served(*outputs: Tensor, tier: str = "large", version: str = "1", batch: int | None = 2) -> Served[InferResponse]:
    return Served(InferResponse("r", version, outputs), tier, 2 if batch else 1, 1, batch)


@pytest.mark.parametrize(
    ("answer", "asked", "fits"),
    [
        (served(P), (), True),
        (served(P, WORDS), (), True),
        (served(P, EARLY, tier="small"), (), True),
        (served(EARLY), (RequestedOutput("p"),), False),
        (served(P, WORDS), (RequestedOutput("p"),), False),
        (served(P, WORDS), (RequestedOutput("words"), RequestedOutput("p")), True),
        (served(msgspec.structs.replace(WORDS, data=WORDS.data[:-1])), (), False),
        (served(msgspec.structs.replace(WORDS, data=WORDS.data[:-4])), (), False),
        (served(msgspec.structs.replace(WORDS, shape=(2, 1_000_000_000_000))), (), False),
        (served(msgspec.structs.replace(WORDS, shape=(2, 0), data=b"")), (), True),
        (served(msgspec.structs.replace(WORDS, name="p")), (RequestedOutput("p", {"classification": 1}),), True),
        (served(P), (RequestedOutput("p", {"classification": 1}),), False),
        (served(msgspec.structs.replace(P, data=memoryview(P.data))), (), True),
        (served(msgspec.structs.replace(P, shape=(3, 3), data=bytes(36))), (), False),
        (served(P, tier="other"), (), False),
        (served(P, batch=None), (), False),
    ],
)
def test_answers(answer: Served[InferResponse], asked: tuple[RequestedOutput, ...], fits: bool) -> None:
    assert due(*asked).fits(answer) == fits


def test_one_that_is_one_whole() -> None:
    whole = due(rows=None)
    assert whole.fits(served(P, batch=None))
    assert whole.fits(served(msgspec.structs.replace(P, shape=(7, 3), data=bytes(84)), batch=None))
    assert not whole.fits(served(P))
    straight = msgspec.structs.replace(served(P), rows=1)  # by the last tier alone: its rows are not counted
    assert due().fits(straight)


def test_no_more_texts_than_can_be_looked_at() -> None:
    for rows in (TEXTS_MAX, TEXTS_MAX + 1):
        many = Tensor("words", "BYTES", (rows, 1), bytes(4 * rows))
        answer = Served(InferResponse("r", "1", (many,)), "large", rows, 0, rows)
        assert due(rows=rows).fits(answer) == (rows == TEXTS_MAX)


def test_versions() -> None:
    assert due(version="1").fits(served(P))
    assert not due(version="2").fits(served(P))
    assert not due(version="2").fits_rows(plan_of([P]), 0, "small", "1")


def test_rows() -> None:
    plan = plan_of([P, WORDS])
    assert due().fits_rows(plan, 1, "large", "1")
    for position, tier in ((0, "large"), (1, "small"), (2, "large"), (-1, "large")):
        assert not due().fits_rows(plan, position, tier, "1")
    assert not due().fits_rows(Plan(plan.tensors, plan.parameters[:1]), 1, "large", "1")
    assert not due(RequestedOutput("p")).fits_rows(plan, 1, "large", "1")
    assert is_row(plan, bytes(12) + b"\2\0\0\0ab")
    for row in (b"", bytes(12), bytes(11) + b"\2\0\0\0ab", bytes(12) + b"\2\0\0\0a", bytes(12) + b"\2\0\0\0abc"):
        assert not is_row(plan, row)


FLOATS = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}


@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.5, 3e38, -3e38, 1e308, math.inf, -math.inf, math.nan]), max_size=80),
    datatype=st.sampled_from(sorted(FLOATS)),
    offset=st.integers(0, 3),
)
@example(values=[math.inf, -math.inf], datatype="FP32", offset=0)
@example(values=[1e308] * 32 + [math.nan], datatype="FP64", offset=1)
@example(values=[0.0] * (SUMMED_BYTES_MAX // 4) + [math.nan], datatype="FP32", offset=0)
def test_a_number_that_is_none_is_found_wherever_it_is_and_nothing_else(
    values: list[float], datatype: str, offset: int
) -> None:
    with np.errstate(over="ignore"):
        data = np.array(values, dtype=np.float64).astype(FLOATS[datatype])
    tensor = Tensor("p", datatype, (len(values),), memoryview(bytes(offset) + data.tobytes())[offset:])
    assert has_nan([tensor]) == bool(np.isnan(data).any())


def test_what_holds_no_numbers_or_no_whole_ones_has_none_that_is_none() -> None:
    nan = np.array([math.nan], dtype="<f4").tobytes()
    assert not has_nan([WORDS, EARLY, Tensor("p", "FP32", (1,), nan[:3]), Tensor("p", "FP32", (1,), b"")])
    assert has_nan([WORDS, Tensor("p", "FP32", (1,), nan[:3]), Tensor("p", "FP32", (1,), nan)])
    assert has_nan([Tensor("p", "BF16", (1,), b"\xc0\x7f")])
    assert not has_nan([Tensor("p", "BF16", (1,), b"\x80\x7f")])
    assert not has_nan([Tensor("p", "FP32", (1,), bytes(NAN_BYTES_MAX)), Tensor("p", "FP32", (1,), nan)])
