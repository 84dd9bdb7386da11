"""Rows that an earlier process has left in the snapshot, for one look-up of a batch.

Rule of this file: how many are looked for, and what each is good for. Where they lie is ``copies.py``'s, what is made
of them ``rows.py``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from degrade.record import Good
from gateway.copies import Copies
from gateway.row import Borrowed, Row
from gateway.service import NO_EPOCH

ROWS_MAX: Final = 128
"""Looked for of one batch: each that is there takes some 15 us of a thread, and what it is made of some of the event
loop."""
TRIED_MAX: Final = 16
"""After so many of which none is there, the others are not looked for: a batch that is new costs every request."""


class Lent:
    """``is_old``: whatever its models are now, a row will do, and is of no epoch."""

    def __init__(self, copied: Copies[Row], now: float, until: float, is_old: bool = False) -> None:
        self._copied = copied
        self._now, self._until = now, until
        self._is_old = is_old
        self._there: dict[bytes, Good[Row]] = {}
        self._looked: set[bytes] = set()
        self.count = 0
        """How many were there, and were used."""
        self.is_unsure = False
        """Whether nobody can tell of one of them if its models are the same: what is made of it must not stay."""

    async def look(self, keys: Sequence[bytes]) -> None:
        """Read those that are there."""
        for some in (keys[:TRIED_MAX], keys[TRIED_MAX:ROWS_MAX]):
            if some and (self._there or not self._looked):
                self._looked.update(some)
                self._there |= await self._copied.read(some, self._now, self._until)

    def row(self, key: bytes) -> Borrowed | None:
        """A row, if it was there and may be used. One of which nobody knows under which word it was made is of one
        model with itself alone."""
        copy = self._copied.judged(self._there.get(key), self._now) if key in self._looked else None
        if copy is None:
            return None
        stays = copy.is_same and not self._is_old
        standing = self._copied.standing
        if not (stays or self._is_old or standing.trusts(copy.word)):
            return None
        self.count += 1
        self.is_unsure |= not stays
        epoch = NO_EPOCH if self._is_old else standing.epoch()  # as of now: it may have turned since somebody asked
        return Borrowed(copy.value, copy.made_at, epoch, copy.word if copy.turn else key, stays)
