"""What an operator may declare as a route's answer for when nothing else is left.

Rule of this file: as ``gateway/config.py``, of which it is a part. What is made of it for a request is
``gateway/default.py``'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from gateway.schema import Fault

_LENGTH_BYTES: Final = 4
"""Before each element of BYTES."""

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "BF16", "FP32", "FP64", "BYTES",
]  # fmt: skip
Element = bool | int | float | str

ELEMENTS_MAX: Final = 2**18
"""Of one output's row: an answer that somebody has written down, and that is repeated for every row of a batch."""
ROW_BYTES_MAX: Final = 8 * ELEMENTS_MAX
"""Likewise: so many numbers have as much in the widest datatype. One long text for every element would else be
gigabytes before anybody has looked at it."""
DIMENSIONS_MAX: Final = 16
ANY: Final = -1
"""A size that a model leaves open: in front, the rows of a batch."""


class DefaultOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One output. ``shape``: as the model's metadata has it, -1 in front where the model takes batches; ``value``: of
    one row (or of the whole, where it does not), in row-major order, or one for all of it."""

    datatype: Datatype
    shape: tuple[int, ...]
    value: Element | tuple[Element, ...]

    @property
    def is_by_row(self) -> bool:
        """Whether it is repeated for each row of a batch."""
        return self.shape[:1] == (ANY,)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of what ``value`` is, without the batch."""
        return self.shape[1:] if self.is_by_row else self.shape

    def data(self) -> bytes:
        """What ``value`` is in the protocol's binary form. Raises Misfit."""
        from tiers.datatype import from_json  # with arrays, which a configuration without defaults needs none of

        if isinstance(self.value, tuple):
            return from_json(msgspec.json.encode(self.value), self.datatype, self.row_shape)
        one = from_json(msgspec.json.encode([self.value]), self.datatype, (1,))
        return one * math.prod(self.row_shape)

    def faults(self) -> Iterator[Fault]:
        if any(size < 1 for size in self.row_shape) or len(self.shape) > DIMENSIONS_MAX:
            yield "shape", "must be sizes of 1 or more, with -1 in front where the model takes batches, as in [-1, 10]"
            return
        if math.prod(self.row_shape) > ELEMENTS_MAX:
            yield "shape", f"is {math.prod(self.row_shape)} elements a row; at most {ELEMENTS_MAX} can be declared"
            return
        told = self.value if isinstance(self.value, tuple) else (self.value,)
        if any(isinstance(each, float) and not math.isfinite(each) for each in told):
            yield "value", "must be finite numbers"
            return
        texts = [len(each.encode()) + _LENGTH_BYTES for each in told if isinstance(each, str)]
        size = sum(texts) if isinstance(self.value, tuple) else sum(texts) * math.prod(self.row_shape)
        if size > ROW_BYTES_MAX:
            yield "value", f"has {size} bytes a row; at most {ROW_BYTES_MAX} can be declared"
            return
        fault = self._misfit()
        if fault:
            yield "value", fault

    def _misfit(self) -> str:
        from tiers.datatype import Misfit

        try:
            self.data()
        except Misfit as misfit:
            return str(misfit)
        return ""
