"""One cached value and how true it still is.

Rule of this file: an entry never changes; its freshness is computed from the time and epoch handed
in. It knows no clock and does not know where it is kept.
"""

from __future__ import annotations

import enum
from typing import Generic, TypeVar

import msgspec

V_co = TypeVar("V_co", covariant=True)  # nothing can be put into an entry


class Freshness(enum.Enum):
    """FRESH may be served as is, STALE only with a label, DEAD never."""

    FRESH = "fresh"
    STALE = "stale"
    DEAD = "dead"


_FRESH = Freshness.FRESH  # looked up for every hit: a member of an Enum is not cheap


class Entry(msgspec.Struct, Generic[V_co], frozen=True, gc=False):
    """A value, its size in bytes, and its life in seconds of the monotonic clock.

    ``size`` is what the value is charged for, its share of bookkeeping included. Untracked by the
    garbage collector, for a cache of a million entries must not slow every full collection: the value
    must therefore not refer back to its entry (immutable values cannot).
    """

    value: V_co
    size: int
    stored_at: float
    ttl: float
    max_stale: float
    epoch: int

    def age(self, now: float) -> float:
        """Seconds since it was stored, never negative."""
        return max(0.0, now - self.stored_at)

    def ttl_left(self, now: float) -> float:
        """Seconds until it is stale; negative once it is. An epoch's turn does not show here."""
        return self.ttl - self.age(now)

    def freshness(self, now: float, epoch: int) -> Freshness:
        """Fresh up to ``ttl``, stale for ``max_stale`` more, then dead; any other epoch: stale at once."""
        age = now - self.stored_at
        if age <= self.ttl and epoch == self.epoch:
            return _FRESH
        return Freshness.STALE if age <= self.ttl + self.max_stale else Freshness.DEAD


class Found(msgspec.Struct, Generic[V_co], frozen=True, gc=False):
    """An entry that may be served, and how. ``is_copy``: it was not in memory, but among what is kept of earlier
    processes."""

    entry: Entry[V_co]
    freshness: Freshness
    is_copy: bool = False
