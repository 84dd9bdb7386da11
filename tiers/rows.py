"""A batch as rows: take some of them, merge answers for some rows into an answer for all, and single rows as bytes.

Rule of this file: a row is what one index of the first axis of every tensor holds. Fixed-size
datatypes are moved as opaque bytes (never interpreted: BF16 or NaN payloads survive), BYTES by
walking their lengths. It must not know models, tiers or why rows are taken.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import accumulate, islice, pairwise
from typing import Final, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from degrade.ladder import Failure
from tiers.datatype import Misfit, bytes_spans
from tiers.inference import (
    DATATYPE_BYTES,
    SHARED_MEMORY_PARAMETER,
    InferRequest,
    InferResponse,
    Parameters,
    Rejected,
    Tensor,
    UpstreamError,
)

_NO_ROWS: Final = b""
_LENGTH: Final = struct.Struct("<I")


class _Uneven(Exception):
    """A tensor whose bytes are not the rows that its shape promises."""


def batch_size(request: InferRequest) -> int | None:
    """How many rows a request holds: the first dimension that all of its inputs share.

    None when it has no rows: no inputs, an input without axes, inputs that differ in their first
    dimension, or tensors that live in shared memory. Whether the *model* batches is for the caller to know.
    """
    if not request.inputs or request.in_shared_memory:
        return None
    sizes = {tensor.shape[0] if tensor.shape else -1 for tensor in request.inputs}
    size = sizes.pop()
    return None if sizes or size < 0 else size


def take_rows(request: InferRequest, indices: Sequence[int]) -> InferRequest:
    """The same request for only these rows, in this order (an index may repeat).

    Raises Rejected(400) when a tensor's bytes do not hold the rows of its shape, which validation
    should have refused before, and IndexError for an index out of range.
    """
    try:
        inputs = tuple(_take(tensor, indices) for tensor in request.inputs)
    except _Uneven as error:
        raise Rejected(400, f"input {error}") from error
    return msgspec.structs.replace(request, inputs=inputs, form=None)


def merge_rows(rows: int, parts: Sequence[tuple[InferResponse, Sequence[int]]]) -> InferResponse:
    """One answer of ``rows`` rows out of answers for some rows each; ``indices[i]`` is where row i goes.

    A later part's row replaces an earlier part's. Only outputs that every part holds are merged, in
    the last part's order: an output one model lacks has no value for that model's rows. Model, version
    and parameters are the last part's. Every row must be covered (asserted: the caller's bug).
    Raises UpstreamError(BROKEN) when parts cannot be one batch: row counts, datatypes or row shapes differ.
    """
    assert parts, "merge_rows needs at least one part"
    covered: set[int] = set()
    for _, indices in parts:
        covered.update(indices)
    assert covered == set(range(rows)), "merge_rows was given rows that no part, or no batch, has"
    last = parts[-1][0]
    by_name = [{tensor.name: tensor for tensor in response.outputs} for response, _ in parts]
    names = [tensor.name for tensor in last.outputs if all(tensor.name in named for named in by_name)]
    try:
        outputs = tuple(
            _merge(rows, [(named[name], part[1]) for named, part in zip(by_name, parts, strict=True)]) for name in names
        )
    except _Uneven as error:
        raise UpstreamError(Failure.BROKEN, f"partial answers do not merge: output {error}") from error
    return msgspec.structs.replace(last, outputs=outputs, form=None)


class Plan(msgspec.Struct, frozen=True):
    """What rows of a batch have in common: a tensor each, its first axis left out."""

    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
    """Name, datatype, and the shape of one row."""
    parameters: tuple[Parameters, ...]

    @property
    def widths(self) -> tuple[int, ...] | None:
        """Bytes of a row in each tensor; None if it is not the same in every row (BYTES)."""
        widths = [DATATYPE_BYTES.get(datatype, 0) * math.prod(shape) for _, datatype, shape in self.tensors]
        return None if any(datatype == "BYTES" for _, datatype, _ in self.tensors) else tuple(widths)


def plan_of(tensors: Sequence[Tensor]) -> Plan:
    """What the rows of these tensors have in common, in the order of the tensors."""
    return Plan(
        tuple([(tensor.name, tensor.datatype, tensor.shape[1:]) for tensor in tensors]),
        tuple([tensor.parameters for tensor in tensors]),
    )


def split_rows(tensors: Sequence[Tensor], rows: int) -> list[bytes]:
    """Each row's bytes, those of the first tensor first. Rows of one plan are equal if their bytes are: a row's bytes
    in a tensor have a fixed length, or tell it (BYTES).

    Raises UpstreamError(BROKEN) when a tensor's bytes do not hold ``rows`` rows.
    """
    try:
        columns = [_column(tensor, rows) for tensor in tensors]
    except _Uneven as error:
        raise UpstreamError(Failure.BROKEN, f"no rows can be taken: {error}") from error
    return columns[0] if len(columns) == 1 else list(map(b"".join, zip(*columns, strict=True)))


def is_row(plan: Plan, row: bytes) -> bool:
    """Whether these bytes are a row of this plan, of datatypes that there are and sizes that are not below 0."""
    end, length_at = 0, _LENGTH.unpack_from
    try:
        for _, datatype, shape in plan.tensors:
            elements = math.prod(shape)
            if datatype != "BYTES":
                end += DATATYPE_BYTES[datatype] * elements
                continue
            for _ in range(elements):  # ends with the bytes, whatever the shape says
                end += 4 + length_at(row, end)[0]
    except struct.error:
        return False
    return end == len(row)


def join_rows(plan: Plan, rows: Sequence[bytes]) -> tuple[Tensor, ...]:
    """The tensors of which these are the rows, in this order. They must be rows of this plan (asserted)."""
    widths, data = plan.widths, b"".join(rows)
    if len(plan.tensors) == 1:
        columns = [data]
    elif widths is None:
        parts = [_parted(plan, row) for row in rows]
        columns = [b"".join([part[position] for part in parts]) for position in range(len(plan.tensors))]
    else:
        block = np.frombuffer(data, dtype=np.uint8).reshape(len(rows), sum(widths))
        ends = list(accumulate(widths))
        columns = [block[:, end - width : end].tobytes() for width, end in zip(widths, ends, strict=True)]
    return tuple(
        [
            Tensor(name, datatype, (len(rows), *shape), column, parameters)
            for (name, datatype, shape), column, parameters in zip(plan.tensors, columns, plan.parameters, strict=True)
        ]
    )


def _column(tensor: Tensor, rows: int) -> list[bytes]:
    """A tensor's rows, each with bytes of its own."""
    if not tensor.shape or tensor.shape[0] != rows:
        raise _Uneven(f"{tensor.name!r} has shape {list(tensor.shape)} where {rows} rows are due")
    if tensor.datatype == "BYTES":
        data = bytes(tensor.data)
        return [data[start:end] for start, end in _spans(tensor)]
    block = _block(tensor)
    if not block.shape[1]:
        return [_NO_ROWS] * rows
    return cast(list[bytes], block.view(np.dtype((np.void, block.shape[1]))).ravel().tolist())


def _parted(plan: Plan, row: bytes) -> list[bytes]:
    """A row's bytes in each tensor."""
    parts, start = [], 0
    for _, datatype, shape in plan.tensors:
        elements, end = math.prod(shape), start
        if datatype == "BYTES":
            for _ in range(elements):
                end += 4 + int.from_bytes(row[end : end + 4], "little")
        else:
            end += DATATYPE_BYTES[datatype] * elements
        parts.append(row[start:end])
        start = end
    assert start == len(row), "a row of another plan"
    return parts


def _take(tensor: Tensor, indices: Sequence[int]) -> Tensor:
    rows = tensor.shape[0] if tensor.shape else 0
    if any(not 0 <= index < rows for index in indices):
        raise IndexError(f"row out of range for {tensor.name!r} of {rows} rows")
    shape = (len(indices), *tensor.shape[1:])
    if tensor.datatype == "BYTES":
        spans = _spans(tensor)
        data = b"".join(tensor.data[start:end] for start, end in (spans[index] for index in indices))
    else:
        data = _block(tensor)[np.asarray(indices, dtype=np.intp)].tobytes()
    return msgspec.structs.replace(tensor, shape=shape, data=data)


def _merge(rows: int, parts: Sequence[tuple[Tensor, Sequence[int]]]) -> Tensor:
    first = parts[0][0]
    for tensor, indices in parts:
        if not tensor.shape or tensor.shape[0] != len(indices):
            raise _Uneven(f"{tensor.name!r} has shape {list(tensor.shape)} where {len(indices)} rows are due")
        if tensor.shape[1:] != first.shape[1:] or tensor.datatype != first.datatype:
            raise _Uneven(
                f"{tensor.name!r} is {tensor.datatype} {list(tensor.shape[1:])} in one part "
                f"and {first.datatype} {list(first.shape[1:])} in another"
            )
    shape = (rows, *first.shape[1:])
    data: bytes | memoryview
    if first.datatype == "BYTES":
        pieces: list[bytes | memoryview] = [_NO_ROWS] * rows
        for tensor, indices in parts:
            for index, (start, end) in zip(indices, _spans(tensor), strict=True):
                pieces[index] = tensor.data[start:end]
        data = b"".join(pieces)
    else:
        block = np.empty((rows, _row_bytes(first)), dtype=np.uint8)
        for tensor, indices in parts:
            block[np.asarray(indices, dtype=np.intp)] = _block(tensor)
        data = block.tobytes()
    return Tensor(name=first.name, datatype=first.datatype, shape=shape, data=data, parameters=parts[-1][0].parameters)


def _row_bytes(tensor: Tensor) -> int:
    width = DATATYPE_BYTES.get(tensor.datatype, 0)
    if not width:
        raise _Uneven(f"{tensor.name!r} has datatype {tensor.datatype!r}, whose rows have no fixed size")
    return width * math.prod(tensor.shape[1:])


def _block(tensor: Tensor) -> NDArray[np.uint8]:
    """The tensor's bytes as uint8 [rows, bytes per row]; a view, nothing is copied."""
    if SHARED_MEMORY_PARAMETER in tensor.parameters:
        raise _Uneven(f"{tensor.name!r} lives in shared memory")
    rows, row_bytes = tensor.shape[0], _row_bytes(tensor)
    if len(tensor.data) != rows * row_bytes:
        raise _Uneven(f"{tensor.name!r} holds {len(tensor.data)} bytes, its shape needs {rows * row_bytes}")
    return np.frombuffer(tensor.data, dtype=np.uint8).reshape(rows, row_bytes)


def _spans(tensor: Tensor) -> list[tuple[int, int]]:
    """Where each row of a BYTES tensor begins (with its first element's length) and ends."""
    rows, per_row = tensor.shape[0], math.prod(tensor.shape[1:])
    try:
        # One more than the shape says is enough to know; the rest of a hostile tensor is not walked.
        ends = [end for _, end in islice(bytes_spans(tensor.data), rows * per_row + 1)]
    except Misfit as misfit:
        raise _Uneven(f"{tensor.name!r}: {misfit}") from misfit
    if len(ends) != rows * per_row:
        got = "more" if len(ends) > rows * per_row else str(len(ends))
        raise _Uneven(f"{tensor.name!r} holds {got} elements where its shape needs {rows * per_row}")
    if not per_row:
        return [(0, 0)] * rows
    bounds = [0, *ends[per_row - 1 :: per_row]]
    return list(pairwise(bounds))
