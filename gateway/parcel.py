"""An answer, or a row of one, as bytes that another process can read, and back.

Rule of this file: the two directions, in MessagePack. Bytes that are not what it writes are nothing, never an error; a
change of what it writes is a new `LAYOUT`. When an answer was made is in Unix seconds here, for no two hosts share a
monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from cache.sealed import value_of
from gateway.row import Made, Row
from gateway.service import Served
from tiers.inference import InferResponse, Parameter, Parameters, TableTold, Tensor
from tiers.rows import Plan

LAYOUT = 3
"""Part of every scope: what another layout has written is not found."""
OUTPUTS_MAX: Final = 256
PARAMETERS_MAX: Final = 16
"""Of an answer, and of what is said of each: a megabyte of the smallest ones would take the event loop fifty
milliseconds to read, and these some three. An answer of more is not left."""

_Said = Annotated[dict[str, Parameter], Meta(max_length=PARAMETERS_MAX)]


class _Output(msgspec.Struct, frozen=True, array_like=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes
    parameters: _Said


class _Answer(msgspec.Struct, frozen=True, array_like=True):
    made_at: float
    tier: str
    rows: int
    rows_escalated: int
    batch: int | None
    version: str
    parameters: _Said
    outputs: Annotated[tuple[_Output, ...], Meta(max_length=OUTPUTS_MAX)]
    tables: Annotated[tuple[TableTold, ...], Meta(max_length=OUTPUTS_MAX)]


class _Made(msgspec.Struct, frozen=True, array_like=True):
    tensors: Annotated[tuple[tuple[str, str, tuple[int, ...]], ...], Meta(max_length=OUTPUTS_MAX)]
    of_tensors: Annotated[tuple[_Said, ...], Meta(max_length=OUTPUTS_MAX)]
    parameters: _Said
    tier: str
    version: str
    position: int


class _Row(msgspec.Struct, frozen=True, array_like=True):
    made_at: float
    made: bytes
    data: bytes


class Unpacked(msgspec.Struct, frozen=True):
    """An answer of a route, and when it was made (Unix seconds)."""

    served: Served[InferResponse]
    made_at: float


def packed(served: Served[InferResponse], made_at: float) -> bytes | None:
    """An answer; None if it holds what MessagePack cannot, or more than is left."""
    response = served.response
    if _is_much([response.parameters, *[each.parameters for each in response.outputs]]):
        return None
    outputs = [
        _Output(each.name, each.datatype, each.shape, bytes(each.data), dict(each.parameters))
        for each in response.outputs
    ]
    return _encoded(
        _Answer(
            made_at,
            served.tier,
            served.rows,
            served.rows_escalated,
            served.batch,
            response.version,
            dict(response.parameters),
            tuple(outputs),
            served.tables,
        )
    )


def unpacked(route: str, data: bytes) -> Unpacked | None:
    """The answer, under the route's name."""
    told = value_of(_Answer, data)
    if told is None:
        return None
    outputs = [Tensor(each.name, each.datatype, each.shape, each.data, each.parameters) for each in told.outputs]
    response = InferResponse(route, told.version, tuple(outputs), parameters=told.parameters)
    served = Served(response, told.tier, told.rows, told.rows_escalated, told.batch, told.tables)
    return Unpacked(served, told.made_at)


def packed_row(row: Row, made: bytes, made_at: float) -> bytes | None:
    """A row; ``made``: see `packed_made`."""
    return _encoded(_Row(made_at, made, row.data))


def packed_made(made: Made) -> bytes | None:
    """What rows of an answer have in common; None as with `packed`."""
    if _is_much([made.parameters, *made.plan.parameters]):
        return None
    said = tuple([dict(each) for each in made.plan.parameters])
    return _encoded(_Made(made.plan.tensors, said, dict(made.parameters), made.tier, made.version, made.position))


class Rows:
    """Reads rows of one look-up: what several have in common is one object."""

    def __init__(self) -> None:
        self._made: dict[bytes, Made | None] = {}

    def unpacked(self, data: bytes) -> tuple[Row, float] | None:
        """A row, and when it was made (Unix seconds)."""
        told = value_of(_Row, data)
        if told is None:
            return None
        if told.made not in self._made:
            self._made[told.made] = _made(told.made)
        made = self._made[told.made]
        return None if made is None else (Row(told.data, made), told.made_at)


def _made(data: bytes) -> Made | None:
    told = value_of(_Made, data)
    if told is None:
        return None
    of_tensors: tuple[Parameters, ...] = told.of_tensors
    return Made(Plan(told.tensors, of_tensors), told.parameters, told.tier, told.version, told.position)


def _is_much(said: Sequence[Parameters]) -> bool:
    """``said``: of the whole, and then of each output."""
    return len(said) - 1 > OUTPUTS_MAX or max(map(len, said)) > PARAMETERS_MAX


def _encoded(told: msgspec.Struct) -> bytes | None:
    try:
        return msgspec.msgpack.encode(told)
    except (OverflowError, UnicodeEncodeError, ValueError):
        return None
