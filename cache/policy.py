"""Which value leaves when a map bounded in bytes is full: S3-FIFO, SIEVE and LRU.

Rule of this file: a policy is the storage too, so a hit is one dict look-up and a store of a small
int. Keys are digests, values are opaque; nothing here knows time, freshness or what a value is.

Every value handed to ``put`` ends exactly once: returned as evicted, replaced by a later ``put``,
taken by ``pop``, or dropped by ``clear``. A put or resize that fits in ``bytes_max`` never evicts its
own key, so what was put last is found at once. Neither counts as a use: only ``get`` does.
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
    """A map from digest to value, bounded in bytes. Sizes are bytes and at least 1."""

    @property
    def bytes_max(self) -> int: ...

    @property
    def bytes_used(self) -> int:
        """The sizes of all values held; never over ``bytes_max``."""
        ...

    def get(self, key: bytes) -> V | None:
        """The value, counted as a use."""
        ...

    def peek(self, key: bytes) -> V | None:
        """The value, not counted as a use."""
        ...

    def put(self, key: bytes, value: V, size: int) -> list[tuple[bytes, V]]:
        """Hold the value, replacing the key's old one; returns what had to leave for it.

        A value larger than ``bytes_max`` is not held, and is itself what is returned.
        """
        ...

    def resize(self, key: bytes, size: int) -> list[tuple[bytes, V]]:
        """Charge another size for a value; returns what had to leave, as ``put`` does.

        Raises KeyError if the key is not held.
        """
        ...

    def pop(self, key: bytes) -> V | None:
        """Take the value out."""
        ...

    def clear(self) -> None: ...
    def __len__(self) -> int: ...
    def __contains__(self, key: bytes) -> bool: ...
    def __iter__(self) -> Iterator[bytes]: ...


class S3Fifo(Generic[V]):
    """S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023).

    Three FIFO queues: newcomers enter *small* (a tenth of the bytes) and, unless used twice there,
    leave soon, so that one-hit wonders never push out the popular; *main* gives what is used another
    round per use (counted to 3); *ghost* remembers the keys that left small, and lets one that comes
    back enter main directly. The paper counts objects; here small and main are measured in bytes, and
    ghost is bounded in keys: as many as there are values (and 64 at least).
    """

    __slots__ = ("_bytes_max", "_ghost", "_main", "_nodes", "_small", "_small_bytes_max")

    def __init__(self, bytes_max: int) -> None:
        assert bytes_max > 0
        self._bytes_max = bytes_max
        self._small_bytes_max = max(1, int(bytes_max * SMALL_SHARE))
        self._nodes: dict[bytes, Node[V]] = {}
        self._small: Queue[V] = Queue()
        self._main: Queue[V] = Queue()
        self._ghost: OrderedDict[bytes, None] = OrderedDict()

    @property
    def bytes_max(self) -> int:
        return self._bytes_max

    @property
    def bytes_used(self) -> int:
        return self._small.bytes_used + self._main.bytes_used

    def get(self, key: bytes) -> V | None:
        node = self._nodes.get(key)
        if node is None:
            return None
        if node.uses < USES_MAX:
            node.uses += 1
        return node.value

    def peek(self, key: bytes) -> V | None:
        node = self._nodes.get(key)
        return None if node is None else node.value

    def put(self, key: bytes, value: V, size: int) -> list[tuple[bytes, V]]:
        assert size > 0
        if size > self._bytes_max:
            self.pop(key)
            return [(key, value)]
        node = self._nodes.get(key)
        if node is not None:
            node.value = value
            return self.resize(key, size)
        evicted = self._make_room(size)
        if key in self._ghost:
            del self._ghost[key]
            queue = self._main
        else:
            queue = self._small
        node = Node(key, value, size, queue)
        self._nodes[key] = node
        queue.push(node)
        return evicted

    def resize(self, key: bytes, size: int) -> list[tuple[bytes, V]]:
        assert size > 0
        node = self._nodes[key]
        queue = node.queue
        if size > self._bytes_max:
            del self._nodes[key]
            queue.remove(node)
            return [(key, node.value)]
        if size <= node.size:
            queue.charge(node, size)
            return []
        queue.remove(node)  # out of the way, so that it cannot be what leaves
        node.size = size
        evicted = self._make_room(size)
        queue.push(node)
        return evicted

    def pop(self, key: bytes) -> V | None:
        node = self._nodes.pop(key, None)
        if node is None:
            return None
        node.queue.remove(node)
        return node.value

    def clear(self) -> None:
        self._nodes.clear()
        self._small.clear()
        self._main.clear()
        self._ghost.clear()

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, key: bytes) -> bool:
        return key in self._nodes

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._nodes)

    def _make_room(self, size: int) -> list[tuple[bytes, V]]:
        # Ends: every step takes a node out, moves one from small to main, or takes a use from one.
        evicted: list[tuple[bytes, V]] = []
        while self.bytes_used + size > self._bytes_max:
            small, main = self._small.oldest, self._main.oldest
            if small is not None and (main is None or self._small.bytes_used >= self._small_bytes_max):
                self._small.remove(small)
                if small.uses >= USES_TO_STAY:
                    small.uses = 0
                    self._main.push(small)
                    continue
                del self._nodes[small.key]
                self._remember(small.key)
                evicted.append((small.key, small.value))
            else:
                assert main is not None, "bytes are used but no queue has a node"
                self._main.remove(main)
                if main.uses:
                    main.uses -= 1
                    self._main.push(main)
                    continue
                del self._nodes[main.key]
                evicted.append((main.key, main.value))
        return evicted

    def _remember(self, key: bytes) -> None:
        self._ghost[key] = None
        ghost_entries_max = max(GHOST_ENTRIES_MIN, len(self._nodes))
        while len(self._ghost) > ghost_entries_max:
            self._ghost.popitem(last=False)


class Sieve(Generic[V]):
    """SIEVE (Zhang et al., "SIEVE is simpler than LRU", NSDI 2024).

    One queue in order of arrival. A hand walks from the oldest to the newest: what was used since it
    last came by stays where it is, the first that was not leaves. Newcomers enter behind the hand's
    next rounds, so the popular gather at the old end and the rest is sifted out quickly.
    """

    __slots__ = ("_bytes_max", "_hand", "_nodes", "_queue")

    def __init__(self, bytes_max: int) -> None:
        assert bytes_max > 0
        self._bytes_max = bytes_max
        self._nodes: dict[bytes, Node[V]] = {}
        self._queue: Queue[V] = Queue()
        self._hand: Node[V] | None = None  # the next to judge; None: the oldest

    @property
    def bytes_max(self) -> int:
        return self._bytes_max

    @property
    def bytes_used(self) -> int:
        return self._queue.bytes_used

    def get(self, key: bytes) -> V | None:
        node = self._nodes.get(key)
        if node is None:
            return None
        node.uses = 1
        return node.value

    def peek(self, key: bytes) -> V | None:
        node = self._nodes.get(key)
        return None if node is None else node.value

    def put(self, key: bytes, value: V, size: int) -> list[tuple[bytes, V]]:
        assert size > 0
        if size > self._bytes_max:
            self.pop(key)
            return [(key, value)]
        node = self._nodes.get(key)
        if node is not None:
            node.value = value
            return self.resize(key, size)
        evicted = self._make_room(size)
        node = Node(key, value, size, self._queue)
        self._nodes[key] = node
        self._queue.push(node)
        return evicted

    def resize(self, key: bytes, size: int) -> list[tuple[bytes, V]]:
        assert size > 0
        node = self._nodes[key]
        if size > self._bytes_max:
            self.pop(key)
            return [(key, node.value)]
        if size <= node.size:
            self._queue.charge(node, size)
            return []
        self._remove(node)  # out of the way, so that it cannot be what leaves
        node.size = size
        evicted = self._make_room(size)
        self._queue.push(node)
        return evicted

    def pop(self, key: bytes) -> V | None:
        node = self._nodes.pop(key, None)
        if node is None:
            return None
        self._remove(node)
        return node.value

    def clear(self) -> None:
        self._nodes.clear()
        self._queue.clear()
        self._hand = None

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, key: bytes) -> bool:
        return key in self._nodes

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._nodes)

    def _remove(self, node: Node[V]) -> None:
        if self._hand is node:
            self._hand = node.newer
        self._queue.remove(node)

    def _make_room(self, size: int) -> list[tuple[bytes, V]]:
        # Ends: every step takes a node out or clears a mark.
        evicted: list[tuple[bytes, V]] = []
        while self._queue.bytes_used + size > self._bytes_max:
            node = self._hand or self._queue.oldest
            assert node is not None, "bytes are used but the queue is empty"
            if node.uses:
                node.uses = 0
                self._hand = node.newer
                continue
            self._hand = node
            self._remove(node)
            del self._nodes[node.key]
            evicted.append((node.key, node.value))
        return evicted


class Lru(Generic[V]):
    """Least recently used leaves first: the yardstick, and the choice for traffic that is all recency."""

    __slots__ = ("_bytes_max", "_bytes_used", "_held")

    def __init__(self, bytes_max: int) -> None:
        assert bytes_max > 0
        self._bytes_max = bytes_max
        self._bytes_used = 0
        self._held: OrderedDict[bytes, tuple[V, int]] = OrderedDict()

    @property
    def bytes_max(self) -> int:
        return self._bytes_max

    @property
    def bytes_used(self) -> int:
        return self._bytes_used

    def get(self, key: bytes) -> V | None:
        held = self._held.get(key)
        if held is None:
            return None
        self._held.move_to_end(key)
        return held[0]

    def peek(self, key: bytes) -> V | None:
        held = self._held.get(key)
        return None if held is None else held[0]

    def put(self, key: bytes, value: V, size: int) -> list[tuple[bytes, V]]:
        assert size > 0
        before = self._held.get(key)
        if before is not None and size <= before[1]:
            self._held[key] = (value, size)  # in its place
            self._bytes_used += size - before[1]
            return []
        self.pop(key)
        if size > self._bytes_max:
            return [(key, value)]
        evicted: list[tuple[bytes, V]] = []
        while self._bytes_used + size > self._bytes_max:
            oldest, (left, freed) = self._held.popitem(last=False)
            self._bytes_used -= freed
            evicted.append((oldest, left))
        self._held[key] = (value, size)
        self._bytes_used += size
        return evicted

    def resize(self, key: bytes, size: int) -> list[tuple[bytes, V]]:
        return self.put(key, self._held[key][0], size)

    def pop(self, key: bytes) -> V | None:
        held = self._held.pop(key, None)
        if held is None:
            return None
        self._bytes_used -= held[1]
        return held[0]

    def clear(self) -> None:
        self._held.clear()
        self._bytes_used = 0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: bytes) -> bool:
        return key in self._held

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._held)


class PolicyKind(Protocol):
    """A policy's class, as configuration names it: call it with the bound in bytes."""

    def __call__(self, bytes_max: int) -> Policy[V]: ...


POLICIES: Final[Mapping[str, PolicyKind]] = MappingProxyType({"s3fifo": S3Fifo, "sieve": Sieve, "lru": Lru})
