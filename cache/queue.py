"""The queues that eviction policies are made of: values in order of arrival, with their bytes.

Rule of this file: it keeps the order and the sum, and decides nothing. Doubly linked through the nodes
(so that removing from the middle is O(1) and a hand can walk) rather than a dict, whose oldest key is
found only by stepping over every one removed before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

V = TypeVar("V")


class Node(msgspec.Struct, Generic[V], eq=False, gc=False):
    """A key's value, its size in bytes, how often it was used lately, and its neighbours in a queue. ``tag`` is the
    holder's own: a key by which it finds what else belongs to the value.

    Untracked by the garbage collector, which would else look at every entry of a cache of millions in each full
    collection, and stop everybody for seconds. So a queue that is no longer needed must be cleared: only that cuts
    the circle of neighbours.
    """

    key: bytes
    value: V
    size: int
    queue: Queue[V]
    uses: int = 0
    older: Node[V] | None = None
    newer: Node[V] | None = None
    tag: bytes | None = None


class Queue(Generic[V]):
    """Nodes from oldest to newest, how many they are, and the sum of their sizes."""

    __slots__ = ("bytes_used", "length", "newest", "oldest")

    def __init__(self) -> None:
        self.oldest: Node[V] | None = None
        self.newest: Node[V] | None = None
        self.bytes_used = 0
        self.length = 0

    def push(self, node: Node[V]) -> Node[V]:
        """Make it the newest."""
        node.queue = self
        node.older = self.newest
        if self.newest is None:
            self.oldest = node
        else:
            self.newest.newer = node
        self.newest = node
        self.length += 1
        self.bytes_used += node.size
        return node

    def remove(self, node: Node[V]) -> None:
        if node.older is None:
            self.oldest = node.newer
        else:
            node.older.newer = node.newer
        if node.newer is None:
            self.newest = node.older
        else:
            node.newer.older = node.older
        node.older = node.newer = None
        self.length -= 1
        self.bytes_used -= node.size

    def walk(self) -> Iterator[Node[V]]:
        """From the newest to the oldest, or until one that has left meanwhile. From one that has become the newest it
        begins again, but no more come than there are at the start."""
        node = self.newest
        for _ in range(self.length):
            if node is None or node.queue is not self:
                return
            yield node
            node = node.older

    def charge(self, node: Node[V], size: int) -> None:
        """Another size for a node of this queue, which keeps its place."""
        self.bytes_used += size - node.size
        node.size = size

    def clear(self) -> None:
        # Cut every link: the values' memory comes back now, not at some later cycle collection.
        node = self.oldest
        while node is not None:
            following = node.newer
            node.older = node.newer = None
            node = following
        self.oldest = self.newest = None
        self.bytes_used = self.length = 0
