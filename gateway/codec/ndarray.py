"""One tensor in MessagePack: raw bytes, the map that msgpack-numpy makes of an array, or arrays in arrays.

Rule of this file: it knows one tensor's data at a time. Bytes are in KServe's binary form and are not copied; of
numpy's types only those are read that KServe has too, whose names say their byte order. An array of objects, a
structured one, text, dates and complex numbers are refused: there is no pickle here, and nothing is ever unpickled.

    {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [2, 3], b"data": b"..."}      keys are bytes or strings

is what msgpack-numpy's ``encode`` makes (without ``shape`` and with ``nd`` false for a numpy scalar).
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import msgspec
import numpy as np

from gateway.codec import packed
from gateway.codec.packed import ARRAY, BYTES, TEXT, Packed
from tiers.datatype import DTYPES, FLOATS, Misfit, flatten, nested_shape, pack
from tiers.v2.message import Limits, Malformed, check_count, shown
from tiers.v2.tensors import check_elements, check_size, shape_of

Data = tuple[tuple[int, ...], str, bytes | memoryview]
"""Shape, datatype and binary form."""

_NUMPY: Final = MappingProxyType(
    {
        "b1": "BOOL",
        "u1": "UINT8",
        "u2": "UINT16",
        "u4": "UINT32",
        "u8": "UINT64",
        "i1": "INT8",
        "i2": "INT16",
        "i4": "INT32",
        "i8": "INT64",
        "f2": "FP16",
        "f4": "FP32",
        "f8": "FP64",
    }
)
"""numpy's kind and size to KServe's datatype: all that is read."""

_TYPE: Final = re.compile(r"([<>|])([a-z][0-9])")
_TYPE_CHARACTERS_MAX: Final = 64
_ARRAY_COST: Final = 2
"""An element of one byte becomes an object of some thirty: JSON has at least two bytes for each."""

_SHAPES: Final = msgspec.msgpack.Decoder(list[int])
_FLAGS: Final = msgspec.msgpack.Decoder(bool)


def plain_bytes_max(limits: Limits) -> int:
    """What a message may hold beside strings and bytes: as much as in JSON."""
    return limits.json_bytes_max // _ARRAY_COST


def shape_in(value: Packed, what: str, limits: Limits) -> list[int]:
    """A shape as a message has it. Raises Malformed."""
    if packed.kind(value) == ARRAY:
        check_count(f"dimensions in the shape of {what}", packed.length(value), limits.rank_max)
    return packed.read(_SHAPES, value, f"the shape of {what}")


def from_bytes(data: memoryview, datatype: str, shape: tuple[int, ...], label: str) -> memoryview:
    """Bytes that are a tensor's in KServe's binary form. Raises Malformed."""
    check_size(data, datatype, shape, label, "data has")
    if datatype == "BYTES":
        check_elements(data, shape, label)
    return data


def from_numpy(value: Packed, label: str, limits: Limits) -> Data:
    """What a map of msgpack-numpy's holds. Raises Malformed."""
    found = packed.members(value, f"the data of {label}")
    if "nd" not in found:
        raise Malformed("data", f"the data of {label} is a map, and not one of msgpack-numpy's: it has no 'nd'")
    if "kind" in found and len(_bytes_or_text(found["kind"], f"'kind' of {label}")):
        raise Malformed("datatype", f"{label} is an array of objects or of structures; only plain numbers are read")
    array = packed.read(_FLAGS, found["nd"], f"'nd' of {label}")
    missing = [name for name in ("type", "data", *(["shape"] if array else [])) if name not in found]
    if missing:
        raise Malformed("data", f"the numpy array of {label} has no {missing[0]!r}")
    order, datatype = _datatype(found["type"], label)
    shape = shape_of(datatype, shape_in(found["shape"], label, limits) if array else (), label, limits)
    data = packed.view(found["data"], f"'data' of {label}")
    check_size(data, datatype, shape, label, "data has")
    if order == ">":
        return shape, datatype, np.frombuffer(data, DTYPES[datatype]).byteswap().tobytes()
    return shape, datatype, data


def from_arrays(value: Packed, datatype: str, shape: tuple[int, ...] | None, label: str, limits: Limits) -> Data:
    """Arrays in arrays of elements: as ``shape`` says, or flat; None for the shape: as they are nested.

    BYTES are of strings or bytes. Integers for floats are floats. Raises Malformed.
    """
    size = memoryview(value).nbytes
    most = plain_bytes_max(limits)
    if size > most:
        told = f"the arrays of {label} have {size} bytes, at most {most} are allowed; send its data as bytes"
        raise Malformed("too-large", told, 413)
    nesting = nesting_of(value, limits)
    try:
        if datatype == "BYTES":
            return _strings(value, nesting, shape, label, limits)
        data = packed.read(_decoder(datatype, nesting), value, f"the data of {label}")
        whole = nested_shape(data, nesting) if shape is None else shape
        return whole, datatype, pack(flatten(data, whole, nesting), datatype)
    except Misfit as misfit:
        raise Malformed(misfit.reason, f"{label}: {misfit}") from misfit


def nesting_of(value: Packed, limits: Limits) -> int:
    """How deep arrays lie in each other, by the first of each; raises Malformed beyond the rank that is allowed."""
    view, nesting = memoryview(value), 0
    while view and packed.kind(view) == ARRAY:
        nesting += 1
        if nesting > limits.rank_max:
            raise Malformed("shape", f"data is nested deeper than rank {limits.rank_max}")
        empty = packed.length(view) == 0
        view = view[packed.head_bytes(view) :]
        if empty:
            break
    return nesting


def _strings(value: Packed, nesting: int, shape: tuple[int, ...] | None, label: str, limits: Limits) -> Data:
    """BYTES, level by level: what a level says of its length is held against the shape before it is read, for its
    elements take far more memory than they have bytes."""
    whole = _outline(value, nesting) if shape is None else shape
    count = math.prod(whole)
    check_count("BYTES elements", count, limits.bytes_elements_max)
    sizes = (count,) if nesting == 1 else whole
    if nesting != len(sizes):
        raise Misfit("shape", f"data is nested {nesting} deep, shape {list(whole)} has rank {len(whole)}")
    level: list[Packed] = [value]
    for size in sizes:
        inner: list[Packed] = []
        for each in level:
            if packed.kind(each) != ARRAY or packed.length(each) != size:
                raise Misfit("shape", f"the arrays of data are not all as shape {list(whole)} says")
            inner += packed.elements(each, f"elements of {label}", size)
        level = inner
    texts: list[object] = [bytes(_bytes_or_text(each, f"an element of {label}")) for each in level]
    return whole, "BYTES", pack(texts, "BYTES")


def _outline(value: Packed, nesting: int) -> tuple[int, ...]:
    """The lengths of the first array of each level."""
    view, shape = memoryview(value), []
    for _ in range(nesting):
        shape.append(packed.length(view))
        view = view[packed.head_bytes(view) :]
    return tuple(shape)


def _bytes_or_text(value: Packed, what: str) -> bytes | memoryview:
    kind = packed.kind(value)
    if kind == BYTES:
        return packed.view(value, what)
    if kind == TEXT:
        return packed.text(value, what).encode()
    raise Malformed("member", f"{what} must be {TEXT} or {BYTES}, got {kind}")


def _datatype(value: Packed, label: str) -> tuple[str, str]:
    """Byte order and KServe's datatype of a numpy type string."""
    if packed.kind(value) == ARRAY:
        raise Malformed("datatype", f"{label} is an array of structures; only plain numbers are read")
    written = bytes(_bytes_or_text(value, f"'type' of {label}")[:_TYPE_CHARACTERS_MAX]).decode("ascii", "replace")
    found = _TYPE.fullmatch(written)
    datatype = None if found is None else _NUMPY.get(found[2])
    if found is None or datatype is None or (found[1] == "|" and not found[2].endswith("1")):
        known = ", ".join(_NUMPY)
        raise Malformed("datatype", f"{label} is of numpy type {shown(written)}; read are < or > with {known}")
    return found[1], datatype


@lru_cache(maxsize=256)
def _decoder(datatype: str, nesting: int) -> msgspec.msgpack.Decoder[list[object]]:
    """One decoder per element kind and depth, which is bounded by the rank that is allowed."""
    element: object = bool if datatype == "BOOL" else float if datatype in FLOATS else int
    for _ in range(nesting):
        element = list[element]  # type: ignore[valid-type]  # a type made at run time, for msgspec
    return msgspec.msgpack.Decoder(element)
