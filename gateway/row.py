"""What a row of a route's answer is, and what is asked and told of several: the values of ``rows.py``, and its seams.

Rule of this file: it decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from cache.entry import Entry
from gateway.fitting import Expected
from gateway.service import Served
from tiers.inference import InferRequest, InferResponse, Parameters, Passed, TableTold
from tiers.rows import Plan


class Made(msgspec.Struct, frozen=True):
    """What the rows of one answer that are one tier's have in common. ``position``: the tier's in the cascade, 0 the
    first's."""

    plan: Plan
    parameters: Parameters
    tier: str
    version: str
    position: int


class Row(msgspec.Struct, frozen=True, gc=False):
    """One row of an answer."""

    data: bytes
    made: Made


class Asked(msgspec.Struct, frozen=True):
    """A batch. ``keys``: a row's each, in order. ``reuse``: whether kept rows will do, and others' fills; ``keep``:
    whether its own rows may be kept; ``outputs``: those that every tier has, None for all that come; ``expected``: what
    others' rows must be, None if that is not known: then they are not asked for."""

    request: InferRequest
    keys: Sequence[bytes]
    epoch: int
    reuse: bool = True
    keep: bool = True
    outputs: frozenset[str] | None = None
    expected: Expected | None = None


class Elsewhere(Protocol):
    """Where other processes leave rows, and find them (SecondLevel in life). Raises nothing."""

    @property
    def turn(self) -> bytes | None:
        """What is taken along while the models are asked; None: nothing is to be looked for or left."""

    async def rows(
        self, turn: bytes, digests: Sequence[bytes], fits: Callable[[Row], bool]
    ) -> Mapping[bytes, tuple[Row, float]]:
        """Those of these rows that are there and fit, and when each was made (monotonic seconds)."""

    def keep_rows(self, turn: bytes, rows: Mapping[bytes, Entry[Row]]) -> None:
        """Leave rows for others."""


class Assembled(msgspec.Struct, frozen=True):
    """An answer made of rows. ``kept``: how many of them were there already, ``elsewhere`` those of them that were not
    here; ``made_at`` and ``epoch``: when the oldest was made, and in which epoch. ``escalated`` and ``tier`` are of all
    rows, ``escalated_now`` and ``tier_rows`` of those alone that were asked for this answer."""

    response: InferResponse
    tier: str
    escalated: int
    kept: int
    made_at: float
    epoch: int
    escalated_now: int = 0
    tier_rows: tuple[tuple[str, int], ...] = ()
    passed: tuple[Passed, ...] = ()
    degraded: bool = False
    elsewhere: int = 0
    has_nan: bool = False

    def served(self, tables: tuple[TableTold, ...] = ()) -> Served[InferResponse]:
        """As the cache keeps it. ``tables``: what its request was made of."""
        rows = self.response.outputs[0].shape[0]
        return Served(self.response, self.tier, rows, self.escalated, rows, tables)


class Filling(msgspec.Struct, frozen=True):
    """What a fill brings: rows by their keys, and what the tiers said around them. ``elsewhere``: keys of those that
    they were not asked for. ``has_nan``: see ``CascadeAnswer``."""

    rows: Mapping[bytes, Entry[Row]]
    escalated: int = 0
    tier_rows: tuple[tuple[str, int], ...] = ()
    passed: tuple[Passed, ...] = ()
    degraded: bool = False
    elsewhere: frozenset[bytes] = frozenset()
    has_nan: bool = False


class Borrowed(msgspec.Struct, frozen=True):
    """A row that is not in memory. ``made_at``: monotonic seconds; ``epoch``: in which it is true; ``word``: what it
    has in common with those alone that are of one and the same model; ``stays``: whether it may be kept here."""

    row: Row
    made_at: float
    epoch: int
    word: bytes
    stays: bool


class Lender(Protocol):
    """Where rows are that an earlier process has left (``lent.py``). For one look-up."""

    def row(self, key: bytes) -> Borrowed | None: ...
