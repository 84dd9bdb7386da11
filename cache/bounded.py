"""A map from digest to value that is bounded in bytes, and says what had to leave.

Rule of this file: it is the storage, and knows when something must leave; what that is, its policy says
(``policy.py``). Every value handed to ``put`` ends exactly once: returned as evicted, replaced by a later ``put``,
taken by ``pop``, or dropped by ``clear``. A put or resize never evicts its own key, so what was put last is found at
once. Neither counts as a use, nor does looking: only ``use`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from cache.policy import Policy
from cache.queue import Node

V = TypeVar("V")


class Bounded(Generic[V]):
    """Holds values whose sizes (bytes, at least 1) are together at most ``bytes_max``; a larger one is its owner's to
    refuse. The policy must be empty and this map's alone."""

    __slots__ = ("_bytes_max", "_nodes", "_policy", "use")

    def __init__(self, bytes_max: int, policy: Policy[V]) -> None:
        assert bytes_max > 0
        assert policy.bytes_used == 0
        self._bytes_max = bytes_max
        self._policy = policy
        self._nodes: dict[bytes, Node[V]] = {}
        self.use: Callable[[Node[V]], None] = policy.use
        """Count a use of what a node holds. It must be held here."""

    @property
    def bytes_max(self) -> int:
        return self._bytes_max

    @property
    def bytes_used(self) -> int:
        """The sizes of all values held; never over ``bytes_max``."""
        return self._policy.bytes_used

    def node(self, key: bytes) -> Node[V] | None:
        """Where the value is, not counted as a use: the same place for as long as the key is held."""
        return self._nodes.get(key)

    def walk(self) -> Iterator[Node[V]]:
        """What is held, that first which would stay longest (see ``Policy.walk``)."""
        return self._policy.walk()

    def put(self, key: bytes, value: V, size: int) -> list[Node[V]]:
        """Hold the value, replacing the key's old one; returns what had to leave for it."""
        assert 0 < size <= self._bytes_max
        node = self._nodes.get(key)
        if node is not None:
            node.value = value
            return self.resize(node, size)
        evicted = self._make_room(size)
        self._nodes[key] = self._policy.admit(key, value, size)
        return evicted

    def resize(self, node: Node[V], size: int) -> list[Node[V]]:
        """Charge another size for what a node holds; returns what had to leave, as ``put`` does."""
        assert 0 < size <= self._bytes_max
        if size <= node.size:
            node.queue.charge(node, size)
            return []
        self._policy.leave(node)  # out of the way, so that it cannot be what leaves
        node.size = size
        evicted = self._make_room(size)
        node.queue.push(node)
        return evicted

    def pop(self, key: bytes) -> V | None:
        """Take the value out."""
        node = self._nodes.pop(key, None)
        if node is None:
            return None
        self._policy.leave(node)
        return node.value

    def clear(self) -> None:
        self._nodes.clear()
        self._policy.clear()

    def __len__(self) -> int:
        return len(self._nodes)

    def _make_room(self, size: int) -> list[Node[V]]:
        evicted: list[Node[V]] = []
        while self._policy.bytes_used + size > self._bytes_max:
            node = self._policy.evict()
            del self._nodes[node.key]
            evicted.append(node)
        return evicted
