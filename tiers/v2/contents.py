"""Tensor elements as protobuf has them one by one (``InferTensorContents``), to their binary form.

Rule of this file: one tensor at a time; wrong data is ``Misfit``. FP16 and BF16 have no such form, as in Triton.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from google.protobuf.message import Message

from tiers.datatype import DTYPES, Misfit

_LENGTH: Final = struct.Struct("<I")

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


def from_contents(contents: Message, datatype: str, elements: int) -> bytes:
    """The binary form of a tensor's elements; raises Misfit if they are of another kind, or not as many."""
    given = [descriptor.name for descriptor, _ in contents.ListFields()]
    member = MEMBERS.get(datatype)
    if member is None:
        raise Misfit("datatype", f"{datatype} has no contents of its own; send it in raw_input_contents")
    other = next((name for name in given if name != member), None)
    if other is not None:
        raise Misfit("datatype", f"{datatype} elements belong in {member}, not in {other}")
    values: Sequence[Any] = getattr(contents, member)
    if len(values) != elements:
        raise Misfit("shape", f"{member} has {len(values)} elements, the shape needs {elements}")
    if datatype == "BYTES":
        return b"".join([part for value in values for part in (_LENGTH.pack(len(value)), value)])
    try:
        return np.array(list(values), dtype=DTYPES[datatype]).tobytes()  # numpy 2 refuses what does not fit
    except (OverflowError, ValueError):
        raise _out_of_range(values, datatype) from None


def _out_of_range(values: Sequence[int], datatype: str) -> Misfit:
    bits = 8 * DTYPES[datatype].itemsize
    lowest, highest = (0, 2**bits - 1) if datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for index, value in enumerate(values):
        if not lowest <= value <= highest:
            return Misfit("range", f"element {index} is {value}, {datatype} holds {lowest} to {highest}")
    return Misfit("range", f"the elements do not fit {datatype}")
