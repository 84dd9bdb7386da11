"""What the response cache keeps beside an entry: what leads to it.

Rule of this file: values only, untracked by the garbage collector like the entries themselves.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from cache.entry import Entry

V = TypeVar("V")
W = TypeVar("W")


class Held(msgspec.Struct, Generic[V], eq=False, gc=False):
    """What the policy keeps for a digest: the entry and the wire digests that lead to it, oldest first."""

    digest: bytes
    entry: Entry[V]
    wires: tuple[bytes, ...] = ()  # most entries never have one: a shared empty tuple


class Alias(msgspec.Struct, Generic[V, W], eq=False, gc=False):
    """One wire digest's way to an entry, and the ready bytes; ``size`` is what they are charged for."""

    held: Held[V]
    payload: W
    size: int
