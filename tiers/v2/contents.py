"""Tensor elements as protobuf has them one by one (``InferTensorContents``), to their binary form.

Rule of this file: one tensor at a time, and straight from the message's bytes: protobuf's own parser makes an object of
each element, and holds Python's lock for all of them. Numbers are read in pieces of bounded size, which let others run
in between. Wrong data is ``Misfit``, bytes that are no message ``Malformed``. FP16 and BF16 have no such form, as in
Triton.

What protobuf reads is read here: numbers packed together, or each as a field of its own, or both in turns (of which
there may be ``FIELDS_MAX``); a number that is too wide for its kind keeps its low bits; a field of another wire type
than its own is one that nobody knows, and is passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tiers.datatype import DTYPES, Misfit
from tiers.v2.message import Malformed, check_count
from tiers.v2.wire import FIELDS_MAX, LENGTH_DELIMITED, field, spans, varint

Numbers = npt.NDArray[Any]

_LENGTH: Final = struct.Struct("<I")

_PIECE_BYTES: Final = 128 * 1024
"""Of varints read at once: a millisecond, or two."""
_VARINT_BYTES_MAX: Final = 10
_CONTENTS: Final = 5
"""The number of ``contents`` in ModelInferRequest's inputs, and in ModelInferResponse's outputs."""
_TENSORS: Final = 5
"""The number of those inputs, and of those outputs."""

MEMBERS: Final = MappingProxyType(
    {
        "BOOL": "bool_contents",
        "INT8": "int_contents",
        "INT16": "int_contents",
        "INT32": "int_contents",
        "INT64": "int64_contents",
        "UINT8": "uint_contents",
        "UINT16": "uint_contents",
        "UINT32": "uint_contents",
        "UINT64": "uint64_contents",
        "FP32": "fp32_contents",
        "FP64": "fp64_contents",
        "BYTES": "bytes_contents",
    }
)
"""Where the elements of each datatype are."""

_NAMES: Final = (
    "", "bool_contents", "int_contents", "int64_contents", "uint_contents", "uint64_contents", "fp32_contents",
    "fp64_contents", "bytes_contents",
)  # fmt: skip
"""The members, by their numbers."""
_STRINGS: Final = _NAMES.index("bytes_contents")
_HOLDS: Final = ("", "?", "<i4", "<i8", "<u4", "<u8", "<f4", "<f8")
"""What the members that hold numbers hold,"""
_KINDS: Final = (-1, 0, 0, 0, 0, 0, 5, 1, LENGTH_DELIMITED)
"""and as which wire type, where each element is a field of its own."""


def without_contents(message: bytes) -> tuple[bytes, list[list[memoryview]]]:
    """A message less the contents of its tensors, and the contents of each of them, in pieces; raises Malformed."""
    view = memoryview(message)
    kept: list[bytes | memoryview] = []
    found: list[list[memoryview]] = []
    at = 0
    for number, begin, content, end in spans(message):
        if number != _TENSORS or content < 0:
            continue
        tensor = view[content:end]
        cuts = [span for span in spans(tensor) if span[0] == _CONTENTS and span[2] >= 0]
        found.append([tensor[inner:inner_end] for _, _, inner, inner_end in cuts])
        if cuts:
            rest: list[bytes | memoryview] = []
            seen = 0
            for _, inner_begin, _, inner_end in cuts:
                rest.append(tensor[seen:inner_begin])
                seen = inner_end
            rest.append(tensor[seen:])
            kept += [view[at:begin], *field(_TENSORS, b"".join(rest))]
            at = end
    return (b"".join((*kept, view[at:])) if kept else message), found


def from_contents(contents: Sequence[memoryview], datatype: str, elements: int) -> bytes | memoryview:
    """The binary form of a tensor's elements; raises Misfit if they are of another kind, or not as many."""
    member = MEMBERS.get(datatype)
    if member is None:
        raise Misfit("datatype", f"{datatype} has no contents of its own; send it in raw_input_contents")
    number = _NAMES.index(member)
    if datatype == "BYTES":
        strings = bytearray()  # grown, for to join so many parts is one long step
        count = sum(_append_strings(strings, piece, elements) for piece in contents)
        _check_shape(count, elements, member)
        return memoryview(strings)
    found = [numbers for piece in contents for numbers in _numbers(piece, number)]
    _check_shape(sum(len(numbers) for numbers in found), elements, member)
    if not elements:
        return b""
    narrowed = _narrowed(found[0] if len(found) == 1 else np.concatenate(found), datatype)
    return narrowed.data.cast("B")  # a view: to copy it is one long step


def _check_shape(count: int, elements: int, member: str) -> None:
    if count != elements:
        raise Misfit("shape", f"{member} has {count} elements, the shape needs {elements}")


def _narrowed(numbers: Numbers, datatype: str) -> Numbers:
    """Numbers as their datatype holds them; raises Misfit for one that it does not hold."""
    dtype = DTYPES[datatype]
    if dtype.itemsize == numbers.itemsize:
        return numbers
    bounds = np.iinfo(dtype.name)
    beyond = np.flatnonzero((numbers < bounds.min) | (numbers > bounds.max))
    if beyond.size:
        index = int(beyond[0])
        told = f"element {index} is {numbers[index]}, {datatype} holds {bounds.min} to {bounds.max}"
        raise Misfit("range", told)
    return numbers.astype(dtype)


def _append_strings(whole: bytearray, piece: memoryview, elements: int) -> int:
    """Add each element behind its length; how many there were. Raises Malformed, and Misfit, also for more than there
    should be."""
    tag, at, end, count = _STRINGS << 3 | LENGTH_DELIMITED, 0, len(piece), 0
    while at < end:
        if piece[at] != tag:
            at = _passed_over(piece, at, _STRINGS)
            continue
        size, begin = varint(piece, at + 1)
        at = begin + size
        if at > end:
            raise Malformed("protobuf", f"{_NAMES[_STRINGS]} ends {at - end} bytes after the message")
        count += 1
        if count > elements:
            raise Misfit("shape", f"{_NAMES[_STRINGS]} has more than {elements} elements, which the shape needs")
        whole += _LENGTH.pack(size)
        whole += piece[begin:at]
    return count


def _numbers(piece: memoryview, number: int) -> Iterator[Numbers]:
    """The elements of the member of this number, some at a time; raises Misfit for another's, and Malformed."""
    alone, packed = number << 3 | _KINDS[number], number << 3 | LENGTH_DELIMITED
    at, end, fields = 0, len(piece), 0
    while at < end:
        fields += 1
        check_count("pieces of contents", fields, FIELDS_MAX)
        if piece[at] == packed:
            size, begin = varint(piece, at + 1)
            at = begin + size
            if at > end:
                raise Malformed("protobuf", f"{_NAMES[number]} ends {at - end} bytes after the message")
            yield from _packed(piece[begin:at], number)
        elif piece[at] == alone:
            numbers, at = _alone(piece, at, number)
            yield numbers
        else:
            at = _passed_over(piece, at, number)


def _passed_over(piece: memoryview, at: int, number: int) -> int:
    """Where a field ends that is not the member's own; raises Misfit if it holds elements of another."""
    other, _, content, size = next(spans(piece[at:]))
    kind = varint(piece, at)[0] & 7
    is_member = 0 < other < len(_NAMES) and other != number and kind in (_KINDS[other], LENGTH_DELIMITED)
    if is_member and (content != size or other == _STRINGS):  # nothing packed is no element, but an empty string is one
        raise Misfit("datatype", f"elements belong in {_NAMES[number]}, not in {_NAMES[other]}")
    return at + size


def _packed(data: memoryview, number: int) -> Iterator[Numbers]:
    """Elements one behind the other; raises Malformed."""
    if _KINDS[number]:
        if len(data) % np.dtype(_HOLDS[number]).itemsize:
            raise Malformed("protobuf", f"{_NAMES[number]} ends in the middle of an element")
        yield np.frombuffer(data, _HOLDS[number])
        return
    whole, at = np.frombuffer(data, np.uint8), 0
    while at < len(whole):
        window = whole[at : at + _PIECE_BYTES]
        values, seen = _varints(window)
        if not values.size or (at + len(window) == len(whole) and seen < len(window)):
            raise Malformed("protobuf", f"{_NAMES[number]} holds a number that does not end")
        yield _held(values, number)
        at += seen


def _alone(piece: memoryview, at: int, number: int) -> tuple[Numbers, int]:
    """The elements from ``at`` on that are fields of their own, as far as there are no others in between, and where
    they end; raises Malformed."""
    window = np.frombuffer(piece[at : at + _PIECE_BYTES], np.uint8)
    tag = window[0]
    if _KINDS[number]:
        width = 1 + np.dtype(_HOLDS[number]).itemsize
        rows = window[: len(window) // width * width].reshape(-1, width)
        rows = rows[: _first_other(rows[:, 0] == tag)]
        if not len(rows):
            raise Malformed("protobuf", f"{_NAMES[number]} ends in the middle of an element")
        return np.ascontiguousarray(rows[:, 1:]).view(_HOLDS[number]).reshape(-1), at + rows.size
    values, _ = _varints(window)
    pairs = values.size // 2
    ends = np.flatnonzero(window < 128)[: 2 * pairs]
    begins = np.concatenate(([0], ends[1:-1:2] + 1))[:pairs]  # of the tags
    count = _first_other((window[begins] == tag) & (ends[::2] == begins))
    if not count:
        raise Malformed("protobuf", f"{_NAMES[number]} holds a number that does not end")
    return _held(values[1 : 2 * count : 2], number), at + int(ends[2 * count - 1]) + 1


def _first_other(same: npt.NDArray[np.bool_]) -> int:
    """How many are true before the first that is not."""
    return len(same) if same.all() else int(np.argmin(same))


def _varints(window: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint64], int]:
    """The numbers that are whole in these bytes, and where the last of them ends; raises Malformed."""
    ends = np.flatnonzero(window < 128)
    if ends.size == window.size:
        return window.astype(np.uint64), window.size
    seen = int(ends[-1]) + 1 if ends.size else 0
    begins = np.concatenate(([0], ends[:-1] + 1))[: ends.size]
    widths = ends - begins + 1
    if int(widths.max(initial=0)) > _VARINT_BYTES_MAX or len(window) - seen >= _VARINT_BYTES_MAX:
        raise Malformed("protobuf", f"a number has more than {_VARINT_BYTES_MAX} bytes")
    values = (window[begins] & 127).astype(np.uint64)
    for byte in range(1, int(widths.max(initial=1))):
        longer = np.flatnonzero(widths > byte)
        values[longer] |= (window[begins[longer] + byte] & 127).astype(np.uint64) << np.uint64(7 * byte)
    return values, seen


def _held(values: npt.NDArray[np.uint64], number: int) -> Numbers:
    """Numbers as a member holds them: its low bits."""
    dtype = np.dtype(_HOLDS[number])
    narrow = values != 0 if dtype.kind == "b" else values.astype(f"<u{dtype.itemsize}")
    held: Numbers = narrow.view(dtype)
    return held
