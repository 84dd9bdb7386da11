"""What was found out once, remembered: a small map that forgets its oldest.

Rule of this file: a memo may lose anything at any time and nothing but time is lost, so a key must be all that
decides its value. Bounded in entries and in bytes, as the caller counts them. It knows no clock and no meaning.

The oldest goes, used or not: a flood of new keys ages out by itself, and a look-up is one dict look-up. It may be
put into by several threads: messages are read on the event loop and beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Memo(Generic[K, V]):
    """At most ``entries_max`` values, whose sizes together are at most ``bytes_max``; values that are put without a
    size are bounded in number alone."""

    __slots__ = ("_bytes_max", "_bytes_used", "_entries_max", "_held", "_lock", "_sizes", "get")

    def __init__(self, entries_max: int, bytes_max: int = 1) -> None:
        assert entries_max > 0
        assert bytes_max > 0
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._bytes_used = 0
        self._held: dict[K, V] = {}
        self._sizes: dict[K, int] = {}
        self._lock = Lock()
        self.get: Callable[[K], V | None] = self._held.get
        """The value, if it is remembered."""

    def put(self, key: K, value: V, size: int = 0) -> None:
        """Remember a value, in place of the key's old one; one that is larger than all may be is not kept."""
        assert size >= 0
        with self._lock:
            self._forget(key)
            if size > self._bytes_max:
                return
            while self._held and (len(self._held) >= self._entries_max or self._bytes_used + size > self._bytes_max):
                self._forget(next(iter(self._held)))
            self._held[key] = value
            self._sizes[key] = size
            self._bytes_used += size

    @property
    def bytes_used(self) -> int:
        return self._bytes_used

    def __len__(self) -> int:
        return len(self._held)

    def _forget(self, key: K) -> None:
        if key in self._held:
            del self._held[key]
            self._bytes_used -= self._sizes.pop(key)
