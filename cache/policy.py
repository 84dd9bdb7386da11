"""Which value leaves when a map bounded in bytes is full: S3-FIFO, SIEVE and LRU.

Rule of this file: a policy keeps nodes in queues and says which is the next to leave; ``bounded.py`` is the map, and
knows when one must. A use costs a store of a small int. Keys are digests, values are opaque; nothing here knows
time, freshness or what a value is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, Generic, Protocol, TypeVar

from cache.queue import Node, Queue

V = TypeVar("V")

SMALL_SHARE: Final = 0.1  # of the bytes: the paper's choice, flat between 5 % and 20 % there
USES_MAX: Final = 3  # two bits in the paper; more only delays the leaving of what has cooled down
USES_TO_STAY: Final = 2  # hits in the small queue that earn a place in main
GHOST_ENTRIES_MIN: Final = 64  # remembered keys when few and large values are held


class Policy(Protocol[V]):
    """Every node that ``admit`` makes is taken out exactly once, by ``leave`` or ``evict``, or ends with ``clear``;
    a node that has left may be put back into its queue. Sizes are bytes and at least 1."""

    @property
    def bytes_used(self) -> int:
        """The sizes of all nodes."""
        ...

    def admit(self, key: bytes, value: V, size: int) -> Node[V]:
        """A node for a newcomer, in its queue."""
        ...

    def use(self, node: Node[V]) -> None:
        """The node's value was asked for."""
        ...

    def leave(self, node: Node[V]) -> None:
        """Take the node out."""
        ...

    def evict(self) -> Node[V]:
        """Take out the one whose turn it is; there must be one."""
        ...

    def walk(self) -> Iterator[Node[V]]:
        """Nodes, those first that would stay longest. Nodes may come and go meanwhile: then it may leave some out, or
        give some twice, but it ends: no more come than are in each queue when its turn begins."""
        ...

    def clear(self) -> None: ...


class S3Fifo(Generic[V]):
    """S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023).

    Three FIFO queues: newcomers enter *small* (a tenth of the bytes) and, unless used twice there,
    leave soon, so that one-hit wonders never push out the popular; *main* gives what is used another
    round per use (counted to 3); *ghost* remembers the keys that left small, and lets one that comes
    back enter main directly. The paper counts objects; here small and main are measured in bytes, and
    ghost is bounded in keys: as many as there are values (and 64 at least).
    """

    __slots__ = ("_ghost", "_main", "_small", "_small_bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self._small_bytes_max = max(1, int(bytes_max * SMALL_SHARE))
        self._small: Queue[V] = Queue()
        self._main: Queue[V] = Queue()
        self._ghost: OrderedDict[bytes, None] = OrderedDict()

    @property
    def bytes_used(self) -> int:
        return self._small.bytes_used + self._main.bytes_used

    def admit(self, key: bytes, value: V, size: int) -> Node[V]:
        queue = self._small
        if key in self._ghost:
            del self._ghost[key]
            queue = self._main
        return queue.push(Node(key, value, size, queue))

    def use(self, node: Node[V]) -> None:
        if node.uses < USES_MAX:
            node.uses += 1

    def leave(self, node: Node[V]) -> None:
        node.queue.remove(node)

    def evict(self) -> Node[V]:
        # Ends: every step takes a node out, moves one from small to main, or takes a use from one.
        while True:
            small, main = self._small.oldest, self._main.oldest
            if small is not None and (main is None or self._small.bytes_used >= self._small_bytes_max):
                self._small.remove(small)
                if small.uses < USES_TO_STAY:
                    self._remember(small.key)
                    return small
                small.uses = 0
                self._main.push(small)
            else:
                assert main is not None, "bytes are used but no queue has a node"
                self._main.remove(main)
                if not main.uses:
                    return main
                main.uses -= 1
                self._main.push(main)

    def walk(self) -> Iterator[Node[V]]:
        yield from self._main.walk()
        yield from self._small.walk()

    def clear(self) -> None:
        self._small.clear()
        self._main.clear()
        self._ghost.clear()

    def _remember(self, key: bytes) -> None:
        self._ghost[key] = None
        ghost_entries_max = max(GHOST_ENTRIES_MIN, self._small.length + self._main.length)
        while len(self._ghost) > ghost_entries_max:
            self._ghost.popitem(last=False)


class Sieve(Generic[V]):
    """SIEVE (Zhang et al., "SIEVE is simpler than LRU", NSDI 2024).

    One queue in order of arrival. A hand walks from the oldest to the newest: what was used since it
    last came by stays where it is, the first that was not leaves. Newcomers enter behind the hand's
    next rounds, so the popular gather at the old end and the rest is sifted out quickly.
    """

    __slots__ = ("_hand", "_queue")

    def __init__(self, bytes_max: int) -> None:
        self._queue: Queue[V] = Queue()
        self._hand: Node[V] | None = None  # the next to judge; None: the oldest

    @property
    def bytes_used(self) -> int:
        return self._queue.bytes_used

    def admit(self, key: bytes, value: V, size: int) -> Node[V]:
        return self._queue.push(Node(key, value, size, self._queue))

    def use(self, node: Node[V]) -> None:
        node.uses = 1

    def leave(self, node: Node[V]) -> None:
        if self._hand is node:
            self._hand = node.newer
        self._queue.remove(node)

    def evict(self) -> Node[V]:
        # Ends: every step takes a node out or clears a mark.
        while True:
            node = self._hand or self._queue.oldest
            assert node is not None, "bytes are used but the queue is empty"
            self._hand = node
            if not node.uses:
                self.leave(node)
                return node
            node.uses = 0
            self._hand = node.newer

    def walk(self) -> Iterator[Node[V]]:
        return self._queue.walk()

    def clear(self) -> None:
        self._queue.clear()
        self._hand = None


class Lru(Generic[V]):
    """Least recently used leaves first: the yardstick, and the choice for traffic that is all recency."""

    __slots__ = ("_queue",)

    def __init__(self, bytes_max: int) -> None:
        self._queue: Queue[V] = Queue()

    @property
    def bytes_used(self) -> int:
        return self._queue.bytes_used

    def admit(self, key: bytes, value: V, size: int) -> Node[V]:
        return self._queue.push(Node(key, value, size, self._queue))

    def use(self, node: Node[V]) -> None:
        node.uses = 1  # for who walks
        self._queue.remove(node)
        self._queue.push(node)

    def leave(self, node: Node[V]) -> None:
        self._queue.remove(node)

    def evict(self) -> Node[V]:
        node = self._queue.oldest
        assert node is not None, "bytes are used but the queue is empty"
        self._queue.remove(node)
        return node

    def walk(self) -> Iterator[Node[V]]:
        return self._queue.walk()

    def clear(self) -> None:
        self._queue.clear()


class PolicyKind(Protocol):
    """A policy's class, as configuration names it: call it with the bound in bytes."""

    def __call__(self, bytes_max: int) -> Policy[V]: ...


POLICIES: Final[Mapping[str, PolicyKind]] = MappingProxyType({"s3fifo": S3Fifo, "sieve": Sieve, "lru": Lru})
