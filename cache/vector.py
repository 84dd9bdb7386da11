"""Rows as a store holds them, and rows as we do: bytes of values to one numpy block, and back.

    float32, float16    the numbers, little-endian, as numpy's ``tobytes`` gives them
    int8                a float32 scale, then one byte for each number: a number is its byte times the scale
    fields              the fields of a hash (`cache/stores/frame.py`), each a number in decimal text

Rule of this file: a whole batch at a time, no loop over numbers; a value that is wrong costs its own key alone. Bounds
and finiteness are judged here, where values enter: what has passed needs no second look. It knows no store and no
table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from cache.stores.frame import framed, unframed
from cache.stores.store import Found, StoreError

Dtype = Literal["float32", "float16", "int8"]
Rows = NDArray[np.float32] | NDArray[np.float16]

_SCALE_BYTES: Final = 4
_INT8_MAX: Final = 127
_SHOWN_CHARACTERS_MAX: Final = 40


class Bounds(Struct, frozen=True):
    """What a number may be; NaN and infinities never."""

    low: float = -math.inf
    high: float = math.inf

    def broken(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows ([n, ...]) have a number that is not finite or not within: [n]."""
        flat = rows.reshape(len(rows), math.prod(rows.shape[1:]))  # -1 means nothing for no rows
        # One pass for both: whatever is beyond the bounds or no number fails the comparison.
        low, high = max(self.low, float(np.finfo(flat.dtype).min)), min(self.high, float(np.finfo(flat.dtype).max))
        kept: NDArray[np.bool_] = np.logical_and.reduce((flat >= low) & (flat <= high), axis=1)
        return ~kept


class Decoded(Struct, frozen=True):
    """A batch of values. ``rows`` [n, *shape] holds zeros where there is no row; ``found`` [n] says where there is one;
    ``faults`` says why not, where that is not simply because nothing is there."""

    rows: Rows
    found: NDArray[np.bool_]
    faults: dict[int, StoreError]


class Codec(Protocol):
    """Values to rows and back. ``dtype`` is the rows', [*shape] the shape of one."""

    @property
    def dtype(self) -> np.dtype[np.floating]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...

    def decode(self, values: Sequence[Found]) -> Decoded:
        """Never raises for what a value holds."""

    def encode(self, rows: Rows) -> list[bytes]:
        """One value for each row of [n, *shape]. Raises NotImplementedError for what we only read."""


class Vectors:
    """Raw vectors of a fixed shape; those of int8 become float32."""

    def __init__(self, dtype: Dtype, shape: tuple[int, ...], bounds: Bounds) -> None:
        self.dtype: np.dtype[np.floating] = np.dtype("<f2" if dtype == "float16" else "<f4")
        self.shape = shape
        self._scaled = dtype == "int8"
        self._bounds = bounds
        self._numbers = math.prod(shape)
        self._bytes = _SCALE_BYTES + self._numbers if self._scaled else self._numbers * self.dtype.itemsize

    def decode(self, values: Sequence[Found]) -> Decoded:
        faults: dict[int, StoreError] = {}
        size, good = self._bytes, []
        for index, value in enumerate(values):
            if isinstance(value, bytes) and len(value) == size:
                good.append(index)
            elif isinstance(value, bytes):
                faults[index] = StoreError("corrupt", f"has {len(value)} bytes, and a row has {size}")
            elif value is not None:
                faults[index] = value
        joined = b"".join([values[index] for index in good])  # type: ignore[misc]  # bytes, each
        whole = len(good) == len(values)
        flat = self._numbers_of(joined, len(good))
        # Every row was found, as it should be: nothing needs to be moved.
        rows = flat if whole else np.zeros((len(values), self._numbers), flat.dtype)
        found = np.zeros(len(values), np.bool_)
        where = np.array(good, np.intp)
        if not whole:
            rows[where] = flat
        found[where] = True
        _judge(rows, found, faults, self._bounds)
        return Decoded(rows.reshape(len(values), *self.shape), found, faults)

    def encode(self, rows: Rows) -> list[bytes]:
        flat = np.ascontiguousarray(rows).reshape(len(rows), self._numbers)
        if not self._scaled:
            return [row.tobytes() for row in flat.astype(self.dtype, copy=False)]
        scales = (np.abs(flat).max(axis=1, initial=0.0) / _INT8_MAX).astype("<f4")
        steps = np.where(scales > 0, scales, 1)[:, None]
        quantised = np.rint(flat / steps).clip(-_INT8_MAX, _INT8_MAX).astype(np.int8)
        return [scale.tobytes() + row.tobytes() for scale, row in zip(scales, quantised, strict=True)]

    def _numbers_of(self, joined: bytes, count: int) -> Rows:
        """[count, numbers], of values that have the right length; ours to write to."""
        if not self._scaled:
            plain: Rows = np.frombuffer(joined, self.dtype).reshape(count, self._numbers).copy()
            return plain
        raw = np.frombuffer(joined, np.uint8).reshape(count, self._bytes)
        scales = raw[:, :_SCALE_BYTES].copy().view("<f4")
        with np.errstate(invalid="ignore", over="ignore"):  # a broken scale is judged afterwards
            scaled: Rows = raw[:, _SCALE_BYTES:].view(np.int8) * scales
        return scaled


class Scalars:
    """Fields of a hash, one number each: a row has shape [fields]."""

    def __init__(self, fields: int, dtype: Literal["float32", "float16"], bounds: Bounds) -> None:
        self.dtype: np.dtype[np.floating] = np.dtype("<f2" if dtype == "float16" else "<f4")
        self.shape = (fields,)
        self._bounds = bounds

    def decode(self, values: Sequence[Found]) -> Decoded:
        return decode_each(values, self.shape, self.dtype, self._bounds, self._row)

    def encode(self, rows: Rows) -> list[bytes]:
        return [framed([repr(float(each)).encode() for each in row]) for row in rows.tolist()]

    def _row(self, value: bytes) -> list[float]:
        return [_number(field, place) for place, field in enumerate(unframed(value, self.shape[0]))]


class RowOf(Protocol):
    """A value's numbers, in a row's order. Raises StoreError."""

    def __call__(self, value: bytes, /) -> Sequence[float]: ...


def decode_each(
    values: Sequence[Found], shape: tuple[int, ...], dtype: np.dtype[np.floating], bounds: Bounds, row_of: RowOf
) -> Decoded:
    """A batch whose values must be read one by one."""
    faults: dict[int, StoreError] = {}
    numbers = math.prod(shape)
    rows: Rows = np.zeros((len(values), numbers), dtype)
    found = np.zeros(len(values), np.bool_)
    for index, value in enumerate(values):
        if isinstance(value, StoreError):
            faults[index] = value
        elif value is not None:
            try:
                row = row_of(value)
                if len(row) != numbers:
                    raise StoreError("corrupt", f"has {len(row)} numbers, and a row has {numbers}")
                with np.errstate(over="ignore"):  # what is too large for the dtype is infinite, and judged
                    rows[index] = row
                found[index] = True
            except StoreError as fault:
                faults[index] = fault
    _judge(rows, found, faults, bounds)
    return Decoded(rows.reshape(len(values), *shape), found, faults)


def _judge(rows: Rows, found: NDArray[np.bool_], faults: dict[int, StoreError], bounds: Bounds) -> None:
    """Take away what is not finite or out of bounds."""
    broken = bounds.broken(rows) & found
    if not broken.any():
        return
    for index in np.flatnonzero(broken).tolist():
        numbers = rows[index][~np.isfinite(rows[index])]
        why = f"has {numbers[0]}" if len(numbers) else f"has a number beyond {bounds.low:g} to {bounds.high:g}"
        faults[index] = StoreError("corrupt", why)
    rows[broken] = 0
    found[broken] = False


def _number(field: bytes | None, place: int) -> float:
    if field is None:
        raise StoreError("corrupt", f"has no field number {place + 1}")
    try:
        return float(field)
    except ValueError:
        raise StoreError("corrupt", f"field number {place + 1} is {field[:_SHOWN_CHARACTERS_MAX]!r}") from None
