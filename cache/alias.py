"""What leads to a cached answer by the exact bytes of a request.

Rule of this file: values only, untracked by the garbage collector like the entries themselves.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from cache.entry import Entry
from cache.queue import Node

V = TypeVar("V")
W = TypeVar("W")


class Alias(msgspec.Struct, Generic[V, W], eq=False, gc=False):
    """One wire digest's way to an entry, and the ready bytes; ``size`` is what they are charged for. ``older``: the
    wire digest that leads to the same entry and was there before; the latest is the node's tag."""

    node: Node[Entry[V]]
    payload: W
    size: int
    older: bytes | None
