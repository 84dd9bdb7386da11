"""Who left lately: hashes of keys, so that one that comes back soon is known to be worth more than a newcomer.

Rule of this file: hints only. It holds hashes, and two keys of one hash are one to it: that may decide in which queue a
key waits, never what is found under it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cache.index import Index, Slots
from cache.words import Hashes, Words


class Ghosts:
    """The last ``capacity`` hashes that were remembered and have not come back."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._index = Index(capacity, 1, _as_they_are)
        self._held = np.zeros(capacity + 1, np.bool_)
        self._next = 0

    @staticmethod
    def bytes_per_slot() -> int:
        """Memory for each of ``capacity``."""
        return Index.bytes_per_slot(1) + 1

    @property
    def bytes_reserved(self) -> int:
        return self._index.bytes_reserved + self._held.nbytes

    def remember(self, hashes: Hashes) -> None:
        """The oldest first; they forget those who have been here longest."""
        hashes = hashes[-self._capacity :]
        slots: Slots = (self._next + np.arange(len(hashes))) % self._capacity
        self._next = (self._next + len(hashes)) % self._capacity
        self._index.remove(slots[self._held[slots]])
        self._held[slots] = self._index.add(hashes.reshape(-1, 1), hashes, slots)

    def take(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Which of them are remembered; they are not any more then."""
        slots = self._index.find(hashes.reshape(-1, 1), hashes)
        known = self._held.take(slots)
        self._index.remove(slots[known])
        self._held[slots[known]] = False
        return known

    def clear(self) -> None:
        self._index.clear()
        self._held.fill(False)


def _as_they_are(words: Words) -> Hashes:
    return words[:, 0]
