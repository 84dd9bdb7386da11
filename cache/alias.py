"""What the response cache keeps beside an entry: what leads to it.

Rule of this file: values only, untracked by the garbage collector like the entries themselves.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from cache.entry import Entry
from cache.queue import Node

V = TypeVar("V")
W = TypeVar("W")


class Held(msgspec.Struct, Generic[V], eq=False, gc=False):
    """What is kept for a digest: the entry, and the wire digests that lead to it, oldest first."""

    entry: Entry[V]
    wires: tuple[bytes, ...] = ()  # most entries never have one: a shared empty tuple


class Alias(msgspec.Struct, Generic[V, W], eq=False, gc=False):
    """One wire digest's way to an entry (and to where that is held), and the ready bytes; ``size`` is what they are
    charged for."""

    node: Node[Held[V]]
    entry: Entry[V]
    payload: W
    size: int
