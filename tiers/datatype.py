"""JSON data, or lists, of each KServe datatype to its binary form, and back to the characters Triton prints.

Rule of this file: it knows one tensor's elements at a time, never a request. Wrong data is always
``Misfit``, with a one-word reason; no other exception leaves here. Large data goes through numpy.

How Triton 2.51 prints (measured on the real server, and mirrored here): floats as RapidJSON does,
decimal from 1e-6 up to (not including) 1e21 and always with a fraction (``1.0``), ``1e21`` and ``1e-7``
outside; FP32 as the double it widens to (``0.10000000149011612``); NaN and infinities as the bare
words ``NaN``, ``Infinity``, ``-Infinity``, which is not JSON but is what its clients parse; BYTES as
the raw bytes between quotes with RapidJSON's escapes, so bytes that are no UTF-8 make a body that is
none either.

Known limit: we print the shortest decimal *nearest* to the double; RapidJSON's Grisu2 prints one of the
same length that is not always the nearest, so for a quarter to a third of doubles of many digits the
last digit differs by one (20,000 random values against the real server). Both read back as the same
double. Integers, BOOL, BYTES, and floats of few digits (0.5, 0.1) are equal byte for byte.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import lru_cache
from itertools import chain
from types import MappingProxyType
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

DTYPES: Final = MappingProxyType(
    {
        "BOOL": np.dtype("?"),
        "UINT8": np.dtype("u1"),
        "UINT16": np.dtype("<u2"),
        "UINT32": np.dtype("<u4"),
        "UINT64": np.dtype("<u8"),
        "INT8": np.dtype("i1"),
        "INT16": np.dtype("<i2"),
        "INT32": np.dtype("<i4"),
        "INT64": np.dtype("<i8"),
        "FP16": np.dtype("<f2"),
        "FP32": np.dtype("<f4"),
        "FP64": np.dtype("<f8"),
    }
)
"""numpy's little-endian type of each datatype that numpy has (not BF16, not BYTES)."""

BINARY_ONLY: Final = frozenset({"FP16", "BF16"})
"""Datatypes that Triton neither reads nor writes as JSON."""

FLOATS: Final = frozenset({"FP16", "BF16", "FP32", "FP64"})
"""The floating point datatypes."""

_JSON_FLOATS: Final = FLOATS - BINARY_ONLY

_LENGTH: Final = struct.Struct("<I")
_OPENING: Final = re.compile(rb"(?:[ \t\r\n]*\[)+")
_ESCAPED: Final = re.compile(rb'[\x00-\x1f"\\]')
_ESCAPES: Final = MappingProxyType(
    {bytes([code]): b"\\u%04X" % code for code in range(32)}
    | {b'"': b'\\"', b"\\": b"\\\\"}
    | {b"\b": b"\\b", b"\f": b"\\f", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}
)

Element = bool | int | float | str
Numbers = npt.NDArray[np.floating | np.integer]


class Misfit(Exception):
    """The data is not what datatype and shape say; ``reason`` is one word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def from_json(raw: bytes | memoryview, datatype: str, shape: tuple[int, ...]) -> bytes:
    """The binary form of one JSON array, flat or nested exactly as ``shape``; raises Misfit.

    Integers must be in the datatype's range, FP32 must not overflow to infinity, only ``true`` and
    ``false`` are BOOL, only strings are BYTES (they become UTF-8).
    """
    return pack(flatten(_parse(raw, datatype), shape, _nesting(raw)), datatype)


def from_nested_json(raw: bytes | memoryview, datatype: str, rank: int) -> tuple[tuple[int, ...], bytes]:
    """Shape and binary form of JSON that is nested ``rank`` deep, a bare element for 0; raises Misfit.

    Floats of every datatype, FP16 and BF16 too: this is no form that Triton has.
    """
    if rank == 0:
        raw = b"[" + raw + b"]"
    nesting = _nesting(raw)
    if nesting != max(rank, 1):
        raise Misfit("shape", f"data is nested {0 if rank == 0 else nesting} deep, the model takes rank {rank}")
    data = _parse(raw, datatype)
    shape = nested_shape(data, nesting)
    packed = pack(flatten(data, shape, nesting), datatype)
    return (shape if rank else ()), packed


def nested_shape(data: list[object], nesting: int) -> tuple[int, ...]:
    """The shape of lists in lists by the first of each level; whether the others agree is `flatten`'s to say."""
    shape = []
    level: object = data
    for _ in range(nesting):
        assert isinstance(level, list)
        shape.append(len(level))
        level = level[0] if level else []
    return tuple(shape)


def pack(flat: Sequence[object], datatype: str) -> bytes:
    """The binary form of elements: bool for BOOL, str or bytes for BYTES, float for floats, else int; raises Misfit.

    Integers must be in the datatype's range, finite floats must not overflow to infinity.
    """
    if datatype == "BYTES":
        return _pack_bytes(flat)
    if datatype == "BOOL":
        return np.array(flat, dtype=np.bool_).tobytes()
    if datatype in FLOATS:
        return _pack_floats(flat, datatype)
    return _pack_integers(flat, datatype)


def to_json(data: bytes | memoryview, datatype: str) -> bytes:
    """One flat JSON array of a tensor's elements, as Triton prints it; raises Misfit for FP16 and BF16."""
    if datatype in BINARY_ONLY:
        raise Misfit(
            "datatype",
            f"sending {datatype} data via JSON is not supported. "
            "Please use the binary data format for output",
        )
    if datatype == "BYTES":
        quoted = [b'"' + _ESCAPED.sub(_escape, item) + b'"' for item in bytes_elements(data)]
        return b"[" + b",".join(quoted) + b"]"
    if datatype == "BOOL":
        return msgspec.json.encode((np.frombuffer(data, dtype=np.uint8) != 0).tolist())
    values = np.frombuffer(data, dtype=DTYPES[datatype])
    if datatype in _JSON_FLOATS:
        with np.errstate(invalid="ignore"):  # a signalling NaN is still a NaN
            return _print_floats(values.astype(np.float64))
    return msgspec.json.encode(values.tolist())


def bytes_spans(data: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """Where each element of a BYTES tensor begins and ends in ``data``; raises Misfit on an overrun.

    One at a time: a list of them would cost a hostile tensor of empty elements forty times its bytes.
    """
    at, end, index = 0, len(data), 0
    while at < end:
        if end - at < 4:
            raise Misfit("byte-count", f"element {index} has {end - at} of the 4 bytes of its length")
        start = at + 4
        at = start + _LENGTH.unpack_from(data, at)[0]
        if at > end:
            raise Misfit("byte-count", f"element {index} says it has {at - start} bytes, only {end - start} are left")
        yield start, at
        index += 1


def numbers(data: bytes | memoryview, datatype: str) -> Numbers:
    """A tensor's elements as numpy numbers, flat; BF16 is widened to FP32, whose upper half it is.

    A view where the datatype is numpy's own. Raises ValueError for bytes that are no whole elements, and
    KeyError for BYTES, which are no numbers.
    """
    if datatype == "BF16":
        halves = np.frombuffer(data, dtype="<u2").astype(np.uint32)
        return (halves << np.uint32(16)).view(np.float32)
    return np.frombuffer(data, dtype=DTYPES[datatype])


def bytes_elements(data: bytes | memoryview) -> list[bytes]:
    """The elements of a BYTES tensor; raises Misfit on an overrun."""
    view = memoryview(data)
    return [bytes(view[start:end]) for start, end in bytes_spans(data)]


@lru_cache(maxsize=256)
def _decoder(datatype: str, nesting: int) -> msgspec.json.Decoder[list[object]]:
    """One decoder per element kind and depth, built on first use (depth is bounded by the caller)."""
    if datatype == "BYTES":
        element: object = str
    elif datatype == "BOOL":
        element = bool
    elif datatype in FLOATS:
        element = float
    else:
        element = int
    for _ in range(nesting):
        element = list[element]  # type: ignore[valid-type]  # a type made at run time, for msgspec
    return msgspec.json.Decoder(element)


def _nesting(raw: bytes | memoryview) -> int:
    opening = _OPENING.match(raw)
    return opening.group().count(b"[") if opening else 0


def _parse(raw: bytes | memoryview, datatype: str) -> list[object]:
    nesting = _nesting(raw)
    if nesting == 0:
        raise Misfit("data", "data must be an array")
    try:
        return _decoder(datatype, nesting).decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
        reason = "range" if "out of range" in str(error) else "data"
        raise Misfit(reason, f"data is not {datatype}: {error}".replace("`", "'")) from error


def flatten(data: list[object], shape: tuple[int, ...], nesting: int) -> list[object]:
    """One flat list. Nested data must have the shape's own form, level by level; raises Misfit."""
    if nesting == 1 and len(shape) != 1:
        expected = 1
        for size in shape:
            expected *= size
        if len(data) != expected:
            raise Misfit("shape", f"data has {len(data)} elements, shape {list(shape)} needs {expected}")
        return data
    if nesting != len(shape):
        raise Misfit("shape", f"data is nested {nesting} deep, shape {list(shape)} has rank {len(shape)}")
    level: list[list[object]] = [data]
    for depth, size in enumerate(shape):
        for row in level:
            if len(row) != size:
                raise Misfit(
                    "shape",
                    f"data has {len(row)} elements in dimension {depth}, shape {list(shape)} needs {size}",
                )
        if depth < len(shape) - 1:
            level = list(chain.from_iterable(level))  # type: ignore[arg-type]  # lists, by nesting == rank
    return list(chain.from_iterable(level))


def _pack_bytes(items: Sequence[object]) -> bytes:
    parts: list[bytes] = []
    for index, item in enumerate(items):
        try:
            encoded = item if isinstance(item, bytes) else str(item).encode()
        except UnicodeEncodeError as error:
            raise Misfit("utf8", f"element {index} is not valid Unicode") from error
        parts += (_LENGTH.pack(len(encoded)), encoded)
    return b"".join(parts)


def _pack_floats(items: Sequence[object], datatype: str) -> bytes:
    wide: npt.NDArray[np.float64] = np.array(items, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # a signalling NaN is still a NaN
        values = _upper_halves(wide.astype("<f4")) if datatype == "BF16" else wide.astype(DTYPES[datatype])
    beyond = np.flatnonzero(~np.isfinite(values) & np.isfinite(wide))
    if beyond.size:
        index = int(beyond[0])
        raise Misfit("range", f"element {index} is {items[index]!r}, beyond the range of {datatype}")
    if datatype == "BF16":
        return (values.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()
    return values.tobytes()


def _upper_halves(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The nearest FP32 whose lower half is zero, ties to even: what BF16 holds."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(values), np.float32("nan"), rounded.view(np.float32)).astype(np.float32)


def _pack_integers(items: Sequence[object], datatype: str) -> bytes:
    dtype = DTYPES[datatype]
    bits = 8 * dtype.itemsize
    lowest, highest = (0, 2**bits - 1) if dtype.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    try:
        return np.array(items, dtype=dtype).tobytes()  # numpy 2 refuses what does not fit
    except (OverflowError, ValueError):
        for index, item in enumerate(items):
            if isinstance(item, int) and not lowest <= item <= highest:
                shown = str(item) if item.bit_length() < 128 else "a huge number"
                raise Misfit(
                    "range", f"element {index} is {shown}, {datatype} holds {lowest} to {highest}"
                ) from None
        raise Misfit("range", f"data does not fit {datatype}") from None


def _escape(match: re.Match[bytes]) -> bytes:
    return _ESCAPES[match.group()]


def _print_floats(values: npt.NDArray[np.float64]) -> bytes:
    """msgspec's printer is right except where RapidJSON keeps decimals longer, and for non-numbers."""
    size = np.abs(values)
    finite = np.isfinite(values)
    other = ~finite | ((size >= 1e16) & (size < 1e21)) | ((size >= 1e-6) & (size < 1e-5))
    if not other.any():
        return msgspec.json.encode(values.tolist())
    words = msgspec.json.encode(np.where(finite, values, 0.0).tolist())[1:-1].split(b",")
    for index in np.flatnonzero(other):
        words[index] = _print_float(float(values[index]))
    return b"[" + b",".join(words) + b"]"


def _print_float(value: float) -> bytes:
    if math.isnan(value):
        return b"NaN"
    if math.isinf(value):
        return b"Infinity" if value > 0 else b"-Infinity"
    plain = format(Decimal(repr(value)), "f")
    return (plain if "." in plain else plain + ".0").encode()
