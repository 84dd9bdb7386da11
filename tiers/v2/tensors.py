"""Tensors of a message, inputs or outputs, in JSON or as bytes after it.

Rule of this file: what is cheap to know (names, datatypes, shapes, byte counts) is known of all tensors
before the elements of any are looked at. Refused beyond what Triton refuses: duplicate names, numbers
outside their datatype, data nested unlike its shape, and bytes left over. FP16 and BF16 exist in binary
only, in both directions, as in Triton.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from tiers.datatype import BINARY_ONLY, Misfit, bytes_spans, from_json
from tiers.inference import DATATYPE_BYTES, SHARED_MEMORY_PARAMETER, Outline, Parameters, Tensor
from tiers.v2.members import OVERFLOW, WireParameters, counted, named, parameters_of, present, without
from tiers.v2.message import Limits, Malformed, check_count, shown

BINARY_SIZE: Final = "binary_data_size"


class TensorMember(msgspec.Struct):
    """A tensor as the JSON part has it: with data, or with parameters that say where its bytes are."""

    name: str
    datatype: str
    shape: list[int]
    parameters: WireParameters = msgspec.UNSET
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def members_of(tensor: TensorMember) -> int:
    """How many members a tensor has in the JSON, those of its parameters included."""
    return 3 + present(tensor.parameters, tensor.data) + counted(tensor.parameters)


def tensors_of(messages: list[TensorMember], tail: memoryview, kind: str, limits: Limits) -> tuple[Tensor, ...]:
    """Tensors in order; binary ones take their bytes from ``tail`` in that order, and must use it up.

    What is cheap to know is known of all of them before the elements of any are looked at.
    """
    outlines: list[_Outline] = []
    seen: set[str] = set()
    at = strings = 0
    for message in messages:
        outline = _outline(message, tail[at:], kind, limits)
        if message.name in seen:
            raise Malformed("duplicate", f"duplicate {kind} {shown(message.name)}")
        seen.add(message.name)
        if outline.data is not None:
            at += len(outline.data)
            strings += math.prod(outline.shape) if message.datatype == "BYTES" else 0
            check_count("BYTES elements", strings, limits.bytes_elements_max)
        outlines.append(outline)
    if at != len(tail):
        raise Malformed("byte-count", f"{len(tail) - at} bytes are left over after the last {kind}'s data")
    return tuple(_tensor(outline) for outline in outlines)


def outlines_of(tensors: Sequence[Tensor]) -> tuple[Outline, ...] | None:
    """The outlines of tensors that `tensors_of` gave, if all of them had their data behind the JSON."""
    if not all(isinstance(tensor.data, memoryview) for tensor in tensors):
        return None
    return tuple([Outline(each.name, each.datatype, each.shape, len(each.data), each.parameters) for each in tensors])


def tensors_like(outlines: tuple[Outline, ...], tail: bytes | memoryview, kind: str) -> tuple[Tensor, ...]:
    """What `tensors_of` gives for the messages whose outlines these are; ``tail`` has just as many bytes as they.

    Raises Malformed for BYTES elements that do not fit, which is all that the data can be guilty of.
    """
    tensors: list[Tensor] = []
    at = 0
    for outline in outlines:
        data = tail[at : at + outline.size]
        at += outline.size
        if outline.datatype == "BYTES":
            check_elements(memoryview(data), outline.shape, f"{kind} {shown(outline.name)}")
        tensors.append(Tensor(outline.name, outline.datatype, outline.shape, data, outline.parameters))
    return tuple(tensors)


class _Outline(NamedTuple):
    """A tensor of which all is known but whether its elements are what the outline says."""

    message: TensorMember
    label: str
    shape: tuple[int, ...]
    parameters: Parameters
    data: memoryview | None
    """Binary data; None for a tensor that has none."""


def _outline(message: TensorMember, tail: memoryview, kind: str, limits: Limits) -> _Outline:
    label = f"{kind} {shown(named(message.name, kind, limits))}"
    shape = shape_of(message.datatype, message.shape, label, limits)
    parameters = parameters_of(message.parameters, label, limits)
    has_data, shared = message.data is not msgspec.UNSET, SHARED_MEMORY_PARAMETER in parameters
    data: memoryview | None = None
    if BINARY_SIZE in parameters:
        size = _binary_size(message, parameters, label)
        if size > len(tail):
            raise Malformed(
                "byte-count", f"{label}: {BINARY_SIZE} is {size}, the body has only {len(tail)} bytes left"
            )
        data = tail[:size]
        check_size(data, message.datatype, shape, label)
    elif has_data and shared:
        raise Malformed("data", f"{label} has both data and {SHARED_MEMORY_PARAMETER}")
    elif has_data and message.datatype in BINARY_ONLY:
        raise Malformed(
            "datatype",
            f"receiving {message.datatype} data via JSON is not supported. "
            f"Please use the binary data format for {label}",
        )
    elif not has_data and not shared:
        raise Malformed("data", f"{label} has neither data nor {BINARY_SIZE}")
    return _Outline(message, label, shape, parameters, data)


def _tensor(outline: _Outline) -> Tensor:
    """The tensor of an outline, its elements looked at (BYTES) or read (JSON)."""
    message, shape = outline.message, outline.shape
    data: bytes | memoryview = b"" if outline.data is None else outline.data
    if outline.data is not None and message.datatype == "BYTES":
        check_elements(outline.data, shape, outline.label)
    elif message.data is not msgspec.UNSET:
        try:
            data = from_json(memoryview(message.data), message.datatype, shape)
        except Misfit as misfit:
            raise Malformed(misfit.reason, f"{outline.label}: {misfit}") from misfit
    return Tensor(message.name, message.datatype, shape, data, without(outline.parameters, BINARY_SIZE))


def shape_of(datatype: str, shape: Sequence[int], label: str, limits: Limits) -> tuple[int, ...]:
    """The shape of a tensor of a known datatype, within its bounds; raises Malformed."""
    if datatype not in DATATYPE_BYTES:
        raise Malformed("datatype", f"invalid datatype {shown(datatype)} for {label}")
    if len(shape) > limits.rank_max:
        raise Malformed("shape", f"{label}: shape has rank {len(shape)}, at most {limits.rank_max} is allowed")
    elements = 1
    for size in shape:
        if size < 0:
            raise Malformed("shape", f"{label}: shape {_shape_shown(shape)} has a negative dimension")
        if size >= OVERFLOW:
            raise Malformed("shape", f"{label}: a dimension of the shape overflows 64 bits")
        elements *= max(size, 1)  # a 0 must not hide the overflow of its neighbours
    if elements > limits.elements_max:
        raise Malformed(
            "shape",
            f"{label}: shape {_shape_shown(shape)} overflows; a tensor holds at most {limits.elements_max} elements",
        )
    return tuple(shape)


def _shape_shown(shape: Sequence[int]) -> str:
    return "[" + ", ".join(str(size) if abs(size) < 2 * OVERFLOW else "huge" for size in shape) + "]"


def _binary_size(message: TensorMember, parameters: Parameters, label: str) -> int:
    if message.data is not msgspec.UNSET:
        raise Malformed("data", f"{label} has both data and {BINARY_SIZE}")
    if SHARED_MEMORY_PARAMETER in parameters:
        raise Malformed("data", f"{label} has both {BINARY_SIZE} and {SHARED_MEMORY_PARAMETER}")
    size = parameters[BINARY_SIZE]
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise Malformed("byte-count", f"{label}: {BINARY_SIZE} must be a whole number, 0 or more")
    return size


def check_size(
    data: memoryview, datatype: str, shape: tuple[int, ...], label: str, told: str = f"{BINARY_SIZE} is"
) -> None:
    """Whether these can be the bytes of such a tensor, by their number; raises Malformed. ``told``: what says how many
    there are."""
    elements = math.prod(shape)
    if datatype == "BYTES":
        if len(data) < 4 * elements:
            raise Malformed(
                "byte-count",
                f"{label}: {elements} BYTES elements need at least {4 * elements} bytes, got {len(data)}",
            )
        return
    expected = elements * DATATYPE_BYTES[datatype]
    if len(data) != expected:
        raise Malformed(
            "byte-count",
            f"{label}: shape {_shape_shown(shape)} of {datatype} needs {expected} bytes, "
            f"{told} {len(data)}",
        )


def check_elements(data: memoryview, shape: tuple[int, ...], label: str) -> None:
    """Whether the BYTES elements are as many as the shape says, and none overruns; raises Malformed."""
    elements = math.prod(shape)
    try:
        # One more than the shape says is enough to know: the rest of a hostile tensor is not walked.
        count = sum(1 for _ in islice(bytes_spans(data), elements + 1))
    except Misfit as misfit:
        raise Malformed(misfit.reason, f"{label}: {misfit}") from misfit
    if count != elements:
        got = "more" if count > elements else str(count)
        raise Malformed("byte-count", f"{label}: shape {_shape_shown(shape)} needs {elements} elements, got {got}")


def binary_member(tensor: Tensor | Outline, size: int | None) -> dict[str, object]:
    """What the JSON says of a tensor whose ``size`` bytes come after it; None: shared memory holds them."""
    member: dict[str, object] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
    parameters = dict(tensor.parameters)
    if size is not None:
        parameters[BINARY_SIZE] = size
    member["parameters"] = parameters
    return member


def blobs_of(tensors: Sequence[Tensor]) -> list[bytes | memoryview]:
    """The bytes of tensors that the JSON has as `binary_member`."""
    return [tensor.data for tensor in tensors if len(tensor.data) and not tensor.in_shared_memory]
