"""The response cache of one route: answers, and the ready-made wire forms that are aliases of them.

Rule of this file: an answer is found by what was asked (``Key``), whatever form it was asked in; a wire
alias leads from the exact bytes of a request to the answer and its ready bytes. An alias belongs to one
entry object and dies with it: evicted, replaced, purged or dead. Nothing here knows a protocol or a
clock, and what an answer or a wire form is made of is the caller's business.

An entry is kept under its digest alone and remembers its epoch, so an answer of an earlier epoch is
still found, as STALE, until a newer one replaces it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Generic, TypeVar

from cache.alias import Alias
from cache.bounded import Bounded
from cache.digest import Key
from cache.entry import Entry, Found, Freshness
from cache.journal import Journal
from cache.queue import Node

V = TypeVar("V")
W = TypeVar("W")

PASSED_MAX: Final = 64
"""Some 5 us."""

_FRESH, _DEAD = Freshness.FRESH, Freshness.DEAD  # looked up for every hit: a member of an Enum is not cheap


class ResponseCache(Generic[V, W]):
    """Answers ``V`` and wire payloads ``W``, bounded in bytes: one cache per route.

    The map must be empty and belong to this cache alone. ``evictions`` counts entries pushed out by
    others, ``rejections`` entries that ``store`` refused.
    """

    def __init__(self, entries: Bounded[Entry[V]], wires_per_entry_max: int = 4) -> None:
        assert len(entries) == 0
        self._entries = entries
        self._wires: dict[bytes, Alias[V, W]] = {}
        self._wires_per_entry_max = wires_per_entry_max
        self._ticket = 0
        self._evictions = 0
        self._rejections = 0
        self.journal: Journal[bytes] | None = None
        """Digests of what is stored, for whoever copies it."""

    def peek(self, digest: bytes) -> Entry[V] | None:
        """The entry for a digest, not counted as a use, however old."""
        node = self._entries.node(digest)
        return None if node is None else node.value

    def used(self) -> Iterator[bytes | None]:
        """Digests of entries that have been used, those first that would stay longest (see ``Policy.walk``); and None
        after each PASSED_MAX that have not been, so that no step is long."""
        passed = 0
        for node in self._entries.walk():
            if node.uses:
                yield node.key
            elif (passed := passed + 1) >= PASSED_MAX:
                passed = 0
                yield None

    def find(self, key: Key, now: float) -> Found[V] | None:
        """The entry for a key, fresh or stale; a dead one is removed. Counts as a use."""
        node = self._entries.node(key.digest)
        if node is None:
            return None
        freshness = node.value.freshness(now, key.epoch)
        if freshness is _DEAD:
            self._drop(node)
            return None
        self._entries.use(node)
        return Found(node.value, freshness)

    def fresh(self, digests: Sequence[bytes], epoch: int, now: float) -> list[Entry[V] | None]:
        """The fresh entry for each digest, if there is one. Each counts as a use."""
        entries, found = self._entries, list[Entry[V] | None]()
        for digest in digests:
            node = entries.node(digest)
            if node is None or node.value.freshness(now, epoch) is not _FRESH:
                found.append(None)
                continue
            entries.use(node)
            found.append(node.value)
        return found

    def find_wire(self, wire: bytes, epoch: int, now: float) -> tuple[Entry[V], W] | None:
        """The entry and ready bytes for a wire digest, if fresh. Counts as a use only then."""
        alias = self._wires.get(wire)
        if alias is None:
            return None
        node = alias.node
        entry = node.value
        if now - entry.stored_at <= entry.ttl and epoch == entry.epoch:  # fresh, as `Entry.freshness` has it
            self._entries.use(node)
            return entry, alias.payload
        if entry.freshness(now, epoch) is _DEAD:
            self._drop(node)
        return None

    def ticket(self) -> int:
        """Taken when a fill begins and shown to ``store``: a purge in between voids it."""
        return self._ticket

    def store(self, key: Key, entry: Entry[V], ticket: int) -> bool:
        """Keep an entry, replacing the digest's old one with all its aliases.

        Refused (False, and an old entry stays) if the ticket is void, the entry is larger than the
        cache, or the old one is of a newer epoch: a fill that began before the turn must not undo it.
        """
        assert key.epoch == entry.epoch, "an entry is stored under the epoch it was made in"
        before = self._entries.node(key.digest)
        if (
            ticket != self._ticket
            or entry.size > self._entries.bytes_max
            or (before is not None and before.value.epoch > entry.epoch)
        ):
            self._rejections += 1
            return False
        if before is not None:
            self._cut(before)
        evicted = self._entries.put(key.digest, entry, entry.size)
        if evicted:
            self._evicted(evicted)
        if self.journal is not None:
            self.journal.note(key.digest)
        return True

    def attach(self, key: Key, entry: Entry[V], wire: bytes, payload: W, size: int) -> bool:
        """Let a wire digest lead to exactly this entry object; ``size`` bytes are charged to the entry.

        False if the entry is no longer the one held, or its aliases would make it larger than the
        cache. At ``wires_per_entry_max`` the entry's oldest alias makes way.
        """
        assert size >= 0
        node = self._entries.node(key.digest)
        if node is None or node.value is not entry or self._wires_per_entry_max < 1:
            return False
        kept = [other for other in self._wires_of(node) if other != wire][: self._wires_per_entry_max - 1]
        charged = entry.size + size + sum([self._wires[other].size for other in kept])
        if charged > self._entries.bytes_max:
            return False
        known = self._wires.get(wire)
        if known is not None and known.node is not node:
            self._detach(wire, known.node)
        self._chain(node, kept)
        self._wires[wire] = Alias(node, payload, size, node.tag)
        node.tag = wire
        self._evicted(self._entries.resize(node, charged))
        return True

    def purge(self) -> int:
        """Drop everything and void all tickets; returns how many entries were dropped."""
        entries = len(self._entries)
        self._entries.clear()
        self._wires.clear()
        self._ticket += 1
        return entries

    @property
    def entries(self) -> int:
        return len(self._entries)

    @property
    def wires(self) -> int:
        return len(self._wires)

    @property
    def bytes_used(self) -> int:
        return self._entries.bytes_used

    @property
    def bytes_max(self) -> int:
        return self._entries.bytes_max

    @property
    def evictions(self) -> int:
        return self._evictions

    @property
    def rejections(self) -> int:
        return self._rejections

    def _drop(self, node: Node[Entry[V]]) -> None:
        self._entries.pop(node.key)
        self._cut(node)

    def _evicted(self, evicted: list[Node[Entry[V]]]) -> None:
        self._evictions += len(evicted)
        for node in evicted:
            self._cut(node)

    def _cut(self, node: Node[Entry[V]]) -> None:
        self._chain(node, [])

    def _wires_of(self, node: Node[Entry[V]]) -> list[bytes]:
        """The wire digests that lead to an entry, the latest first."""
        found, wire = [], node.tag
        while wire is not None:
            found.append(wire)
            wire = self._wires[wire].older
        return found

    def _chain(self, node: Node[Entry[V]], kept: list[bytes]) -> None:
        """Forget those that lead to an entry but these, the latest first."""
        for wire in self._wires_of(node):
            if wire not in kept:
                del self._wires[wire]
        for wire, older in zip(kept, [*kept[1:], None], strict=True) if kept else ():
            self._wires[wire].older = older
        node.tag = kept[0] if kept else None

    def _detach(self, wire: bytes, node: Node[Entry[V]]) -> None:
        """Take one alias from the entry it leads to, which is charged that much less."""
        self._chain(node, [other for other in self._wires_of(node) if other != wire])
        charged = node.value.size + sum([self._wires[other].size for other in self._wires_of(node)])
        self._evicted(self._entries.resize(node, charged))
