"""Rows: split and merge lose nothing, whatever the datatype."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degrade.ladder import Failure
from tiers.inference import DATATYPE_BYTES, InferRequest, InferResponse, Rejected, Tensor, UpstreamError
from tiers.rows import batch_size, join_rows, merge_rows, plan_of, split_rows, take_rows


@st.composite
def tensors(draw: st.DrawFn, rows: int, name: str) -> Tensor:
    datatype = draw(st.sampled_from(sorted(DATATYPE_BYTES)))
    shape = (rows, *draw(st.lists(st.integers(0, 3), max_size=2)))
    elements = math.prod(shape)
    if datatype == "BYTES":
        words = draw(st.lists(st.binary(max_size=6), min_size=elements, max_size=elements))
        data = b"".join(struct.pack("<I", len(word)) + word for word in words)
    else:
        size = elements * DATATYPE_BYTES[datatype]
        data = draw(st.binary(min_size=size, max_size=size))
    held = memoryview(data) if draw(st.booleans()) else data
    return Tensor(name, datatype, shape, held)


@st.composite
def batches(draw: st.DrawFn) -> tuple[InferRequest, list[int], int]:
    rows = draw(st.integers(0, 6))
    inputs = tuple(draw(tensors(rows, name)) for name in ("a", "b"))
    order = draw(st.permutations(range(rows)))
    return InferRequest("m", inputs), list(order), draw(st.integers(0, rows))


def answer(request: InferRequest) -> InferResponse:
    return InferResponse("m", "1", request.inputs)


@given(batches())
def test_split_and_merge_is_identity(batch: tuple[InferRequest, list[int], int]) -> None:
    request, order, cut = batch
    rows = len(order)
    assert batch_size(request) == rows
    parts = [(answer(take_rows(request, part)), part) for part in (order[:cut], order[cut:])]
    merged = merge_rows(rows, parts)
    assert [bytes(tensor.data) for tensor in merged.outputs] == [bytes(tensor.data) for tensor in request.inputs]
    assert [tensor.shape for tensor in merged.outputs] == [tensor.shape for tensor in request.inputs]


@given(batches())
def test_a_later_part_replaces_rows(batch: tuple[InferRequest, list[int], int]) -> None:
    request, order, _ = batch
    reversed_rows = take_rows(request, list(reversed(range(len(order)))))
    whole = (answer(reversed_rows), range(len(order)))
    part = (answer(take_rows(request, order)), order)
    merged = merge_rows(len(order), [whole, part])
    assert [bytes(tensor.data) for tensor in merged.outputs] == [bytes(tensor.data) for tensor in request.inputs]


def floats(name: str, rows: int, width: int = 1) -> Tensor:
    return Tensor(name, "FP32", (rows, width), b"\1" * (4 * rows * width))


@pytest.mark.parametrize(
    ("inputs", "size"),
    [
        ((), None),
        ((Tensor("a", "FP32", (), b"1234"),), None),
        ((floats("a", 2), floats("b", 3)), None),
        ((floats("a", 2), floats("b", 2, 5)), 2),
        ((Tensor("a", "FP32", (2, 1), b"", {"shared_memory_region": "r"}),), None),
    ],
)
def test_batch_size(inputs: tuple[Tensor, ...], size: int | None) -> None:
    assert batch_size(InferRequest("m", inputs)) == size


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("a", "FP32", (2, 1), b"1234567"),
        Tensor("a", "BYTES", (2,), b"\1\0\0\0x"),
        Tensor("a", "BYTES", (2,), b"\1\0\0\0x\5\0\0\0x"),
        Tensor("a", "BYTES", (1,), b"\1\0\0\0xy"),
        Tensor("a", "WHAT", (1,), b"xy"),
    ],
)
def test_bytes_that_are_not_rows_are_refused(tensor: Tensor) -> None:
    with pytest.raises(Rejected) as caught:
        take_rows(InferRequest("m", (tensor,)), [0])
    assert caught.value.status == 400
    assert "'a'" in str(caught.value)


def test_a_row_out_of_range() -> None:
    with pytest.raises(IndexError):
        take_rows(InferRequest("m", (floats("a", 2),)), [-1])


@pytest.mark.parametrize(
    "other",
    [floats("a", 2), floats("a", 1, 2), Tensor("a", "INT32", (1, 1), b"1234"), Tensor("a", "FP32", (), b"1234")],
)
def test_parts_that_do_not_fit_are_broken(other: Tensor) -> None:
    with pytest.raises(UpstreamError) as caught:
        merge_rows(2, [(InferResponse("f", "1", (floats("a", 2),)), [0, 1]), (InferResponse("l", "1", (other,)), [1])])
    assert caught.value.failure is Failure.BROKEN


def test_only_common_outputs_are_merged_and_the_last_part_names_the_model() -> None:
    fast = InferResponse("fast", "1", (floats("a", 2), floats("only-fast", 2)))
    large = InferResponse("large", "7", (floats("only-large", 1), floats("a", 1)))
    merged = merge_rows(2, [(fast, [0, 1]), (large, [1])])
    assert [tensor.name for tensor in merged.outputs] == ["a"]
    assert (merged.model, merged.version) == ("large", "7")


def test_an_uncovered_row_is_our_bug() -> None:
    with pytest.raises(AssertionError):
        merge_rows(2, [(InferResponse("f", "1", (floats("a", 1),)), [0])])


@given(batches())
def test_rows_as_bytes_make_the_same_tensors_again(batch: tuple[InferRequest, list[int], int]) -> None:
    request, order, _ = batch
    rows = split_rows(request.inputs, len(order))
    assert all(type(row) is bytes for row in rows)
    joined = join_rows(plan_of(request.inputs), [rows[index] for index in order])
    taken = take_rows(request, order).inputs
    assert [(t.name, t.datatype, t.shape, bytes(t.data)) for t in joined] == [
        (t.name, t.datatype, t.shape, bytes(t.data)) for t in taken
    ]


def words(*said: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(word)) + word for word in said)


def test_rows_are_equal_only_if_their_tensors_are() -> None:
    one = Tensor("a", "BYTES", (3, 1), words(b"x", b"xy", b""))
    other = Tensor("b", "BYTES", (3, 1), words(b"yz", b"z", b"xyz"))
    assert len(set(split_rows((one, other), 3))) == 3


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("y", "FP32", (3,), b"1234" * 2),
        Tensor("y", "FP32", (2, 2), b"1234" * 4),
        Tensor("y", "FP32", (), b"1234"),
        Tensor("y", "BYTES", (3,), words(b"a", b"b")),
        Tensor("y", "BYTES", (3,), words(b"a", b"b", b"c", b"d")),
        Tensor("y", "BYTES", (3,), words(b"a", b"b") + b"\xff\xff\xff\xff"),
    ],
)
def test_an_answer_of_other_rows_is_broken(tensor: Tensor) -> None:
    with pytest.raises(UpstreamError) as error:
        split_rows((Tensor("x", "INT8", (3,), b"abc"), tensor), 3)
    assert error.value.failure is Failure.BROKEN
