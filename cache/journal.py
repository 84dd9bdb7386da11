"""Which keys were written since somebody last looked: for copies that are made behind.

Rule of this file: keys alone, each once, the longest unlooked-at first. It is bounded: of too many the oldest are
forgotten, and counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Journal(Generic[K]):
    """At most ``keys_max`` keys. ``forgotten`` counts those that found no room."""

    def __init__(self, keys_max: int) -> None:
        assert keys_max > 0
        self.forgotten = 0
        self._keys_max = keys_max
        self._keys: OrderedDict[K, None] = OrderedDict()

    def note(self, key: K) -> None:
        """It was written just now."""
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._keys_max:
            self._keys.popitem(last=False)
            self.forgotten += 1

    def note_all(self, keys: Iterable[K]) -> None:
        for key in keys:
            self.note(key)

    def drop(self, keys: Iterable[K]) -> None:
        """These are of no interest any more."""
        for key in keys:
            self._keys.pop(key, None)

    def take(self, count: int) -> list[K]:
        """The first ``count``, which are noted no more."""
        return [self._keys.popitem(last=False)[0] for _ in range(min(count, len(self._keys)))]

    def __contains__(self, key: K) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)
