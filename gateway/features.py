"""A route that joins features: ids of entities in the request, rows of tables in their place, inputs of the model out.

Rule of this file: which table's rows of which entity make up which input, and nothing else. What a row is worth is
``tables.py``'s, which model is asked with it the route's.

One of a request's entities may be many (the candidates of a ranking): their number is that of the model's rows, and
what there is one of (the user, the caller's own context) is repeated for each.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from degrade.ladder import Failure
from gateway.config import FeatureInput
from gateway.config import Features as FeaturesConfig
from gateway.tables import Ids, Looked, Table, UnknownId
from tiers.datatype import DTYPES, bytes_spans
from tiers.facts import ModelFacts, TensorFact
from tiers.inference import DATATYPE_BYTES, InferRequest, Rejected, TableTold, Tensor, UpstreamError
from tiers.rows import take_rows

ROWS_MAX: Final = 65_536
"""Rows of one request where neither its model nor its route sets a lower bound. A table is asked for all of them at
once, and a store does not look up much more."""

Rows = NDArray[np.float32]


class Ceiling(msgspec.Struct, frozen=True):
    """What a route's request to its model may be: ``rows_max`` (None: what the model takes) and ``bytes_max``, which is
    set by the configuration's ``key``."""

    rows_max: int | None
    bytes_max: int
    key: str


class Features:
    """The features of one route."""

    def __init__(self, config: FeaturesConfig, tables: Mapping[str, Table], ceiling: Ceiling) -> None:
        self._config = config
        self._tables = tables
        self._ceiling = ceiling
        parts = [(part.entity, part.table) for wanted in config.inputs.values() for part in wanted.parts]
        self._pairs = tuple(dict.fromkeys(parts))
        self._entities = tuple(
            [
                TensorFact(name, entity.datatype, (-1,) if entity.many else (1,))
                for name, entity in config.entities.items()
            ]
        )

    def facts(self, facts: ModelFacts) -> ModelFacts:
        """What callers send: ids instead of the inputs that are made of them. The number of rows is not theirs to
        choose beside that of the ids."""
        others = [fact for fact in facts.inputs if fact.name not in self._config.inputs]
        return msgspec.structs.replace(facts, inputs=(*self._entities, *others), max_batch=0)

    def declared(self, request: InferRequest) -> tuple[InferRequest, ModelFacts]:
        """What of a request can be held against the configuration alone, while nobody knows the model: its entities,
        and what they must be."""
        entities = tuple([tensor for tensor in request.inputs if tensor.name in self._config.entities])
        held = msgspec.structs.replace(request, inputs=entities, outputs=(), form=None)
        return held, ModelFacts(request.model, (), self._entities, (), 0, False, False)

    def rows(self, request: InferRequest, max_batch: int = 0) -> int | None:
        """How many rows the model would be asked for, which takes ``max_batch`` (0: nobody has said); None if nobody
        can tell, or it takes fewer. By shapes alone: nobody may have looked at the ids yet."""
        counts = {tensor.elements for tensor in request.inputs if self._is_many(tensor.name)}
        rows = 0 if len(counts) > 1 else next(iter(counts), 1)
        return rows if 1 <= rows <= self._rows_max(max_batch) else None

    def _rows_max(self, max_batch: int) -> int:
        return min([limit for limit in (max_batch, self._ceiling.rows_max, ROWS_MAX) if limit])

    def _is_many(self, name: str) -> bool:
        entity = self._config.entities.get(name)
        return entity is not None and entity.many

    async def made(
        self, request: InferRequest, facts: ModelFacts, seconds: float
    ) -> tuple[InferRequest, int, tuple[TableTold, ...]]:
        """The request as the model takes it, its rows, and what the tables' rows were.

        Raises Rejected for what no table can make an input of, and UpstreamError for a table that cannot tell.
        """
        if request.in_shared_memory:
            raise Rejected(400, "a route that joins features takes nothing from shared memory and leaves nothing there")
        ids = {name: _ids(tensor) for tensor in request.inputs if (name := tensor.name) in self._config.entities}
        rows = self._rows(ids, facts)
        self._weigh(request, ids, rows, facts)
        looked = await self._look_up(ids, seconds)
        made = [self._input(name, wanted, looked, rows, facts) for name, wanted in self._config.inputs.items()]
        others = [_spread(tensor, rows) for tensor in request.inputs if tensor.name not in ids]
        request = msgspec.structs.replace(request, inputs=(*made, *others), form=None)
        return request, rows, tuple([each.told for each in looked.values()])

    def _rows(self, ids: Mapping[str, Ids], facts: ModelFacts) -> int:
        """How many rows the model is asked for."""
        counts = {name: len(ids[name]) for name, entity in self._config.entities.items() if entity.many}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise Rejected(400, f"entities that are many must be as many as each other, and these are: {told}")
        rows = next(iter(counts.values()), 1)
        most = self._rows_max(facts.max_batch)
        if not 1 <= rows <= most:
            named = ", ".join(counts)
            raise Rejected(400, f"{named}: {rows} ids; model {facts.name} takes 1 to {most} here")
        return rows

    def _weigh(self, request: InferRequest, ids: Mapping[str, Ids], rows: int, facts: ModelFacts) -> None:
        """Refuse a request that would be too large once it is made, before anything is repeated or looked up: a
        caller's few bytes for each row, or one user's long row, may be gigabytes."""
        sizes = {fact.name: DATATYPE_BYTES.get(fact.datatype, 0) for fact in facts.inputs}
        made = 0
        for name, wanted in self._config.inputs.items():
            numbers = sum([math.prod(self._tables[part.table].shape) for part in wanted.parts])
            made += rows * numbers * max(np.dtype(np.float32).itemsize, sizes.get(name, 0))
        for tensor in request.inputs:
            if tensor.name not in ids:
                made += len(tensor.data) * (rows if tensor.shape[:1] == (1,) else 1)
        if made > self._ceiling.bytes_max:
            told = f"{rows} rows make a request of {made} bytes to model {facts.name}; here are at most"
            raise Rejected(413, f"{told} {self._ceiling.bytes_max} ({self._ceiling.key})")

    async def _look_up(self, ids: Mapping[str, Ids], seconds: float) -> dict[tuple[str, str], Looked]:
        """All tables at once. The first that fails ends the others."""
        tables = self._tables
        asked = [asyncio.ensure_future(tables[table].look_up(ids[entity], seconds)) for entity, table in self._pairs]
        try:
            return dict(zip(self._pairs, await asyncio.gather(*asked), strict=True))
        except UnknownId as unknown:
            raise Rejected(400, str(unknown)) from unknown
        finally:
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    def _input(
        self,
        name: str,
        wanted: FeatureInput,
        looked: Mapping[tuple[str, str], Looked],
        rows: int,
        facts: ModelFacts,
    ) -> Tensor:
        """One input of the model, in the datatype and the shape that it takes."""
        fact = next((each for each in facts.inputs if each.name == name), None)
        if fact is None or fact.datatype not in DTYPES:
            message = f"features make input {name}, and model {facts.name} has none of numbers that is called so"
            raise UpstreamError(Failure.BROKEN, message)
        parts = [looked[part.entity, part.table].rows for part in wanted.parts]
        spread = [np.broadcast_to(part, (rows, *part.shape[1:])) for part in parts]
        if wanted.join == "stack":
            joined: Rows = np.stack(spread, axis=1)
        else:
            joined = np.concatenate([part.reshape(rows, -1) for part in spread], axis=1)
        shape = _fitted(joined.shape, fact, facts)
        return Tensor(name, fact.datatype, shape, _cast(joined, name, fact.datatype).tobytes())


def _cast(rows: Rows, name: str, datatype: str) -> NDArray[np.generic]:
    """Features as the model takes them. Raises UpstreamError(BROKEN) if they would not be the same numbers: beyond what
    the datatype holds, or, for whole numbers, not whole. Floats may lose digits, as they do everywhere."""
    dtype = np.dtype(DTYPES[datatype])
    with np.errstate(over="ignore", invalid="ignore"):
        cast = rows.astype(dtype)
    same = np.isfinite(cast) | ~np.isfinite(rows) if dtype.kind == "f" else cast.astype(rows.dtype) == rows
    if not same.all():
        raise UpstreamError(Failure.BROKEN, f"feature {rows[~same][0]} of input {name} is no {datatype}")
    return cast


def _ids(tensor: Tensor) -> Ids:
    """An entity's ids, in their order."""
    if tensor.datatype == "BYTES":
        data = bytes(tensor.data)
        return [data[start:end] for start, end in bytes_spans(data)]
    return np.frombuffer(tensor.data, "<i8")


def _spread(tensor: Tensor, rows: int) -> Tensor:
    """A tensor of the caller's own with a row for each of the model's: what there is one of is repeated."""
    first = tensor.shape[0] if tensor.shape else 0
    if first == rows:
        return tensor
    if first != 1:
        raise Rejected(400, f"input {tensor.name} has {first} rows, and the ids make {rows}; give it 1 or {rows}")
    return take_rows(InferRequest("", (tensor,)), [0] * rows).inputs[0]


def _fitted(shape: Sequence[int], fact: TensorFact, facts: ModelFacts) -> tuple[int, ...]:
    """The shape that the model takes, of as many numbers. Raises UpstreamError(BROKEN) if there is none."""
    rows, wanted = shape[0], fact.shape
    if len(wanted) == len(shape) and all(size in (-1, own) for size, own in zip(wanted, shape, strict=True)):
        return tuple(shape)
    tail = wanted[1:]
    if wanted and wanted[0] in (-1, rows) and -1 not in tail and math.prod(tail) == math.prod(shape[1:]):
        return (rows, *tail)
    made, takes = list(shape), list(wanted)
    raise UpstreamError(Failure.BROKEN, f"features make {fact.name} {made}, and model {facts.name} takes {takes}")
