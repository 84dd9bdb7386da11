"""Rows of one size in one block of memory, found by whole batches of keys.

Rule of this file: it joins the parts (``index.py`` which slot, ``turns.py`` who leaves, ``ghosts.py`` who left) around
the block, and knows neither time nor what a row means. Its owner may keep a mark and some words of each row, by slot.
Everything is allocated at the start; a batch costs memory of its own size and no more.

A look-up is one pass over the index, one ``take`` from the block. The slot ``spare`` is that of every key that is not
there, and its row is zeros: hits and misses need no masks. For one thread (an event loop's) at a time.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from cache.ghosts import Ghosts
from cache.index import Index, Slots
from cache.turns import Turns
from cache.words import WORD_BYTES, Hashing, Words

GHOST_SHARE: Final = 0.9  # of the rows, as S3-FIFO's authors have it
ROWS_MIN: Final = 64
"""Fewer would be no cache: their parts' rounding would be more than they are."""
FREE_BYTES: Final = 4  # of a slot's number in the list of free ones
BATCH_KEYS_MAX: Final = 65_536
"""Put together: what a batch needs of memory for a moment is a few words for each of so many keys."""


class Room(Struct, frozen=True):
    """``bytes_max`` holds all: rows of ``row_bytes``, keys of ``key_words``, what the arena needs to find and judge
    them, and ``beside_words`` of 8 bytes for each row that its owner keeps."""

    bytes_max: int
    row_bytes: int
    key_words: int = 1
    beside_words: int = 0

    @property
    def bytes_per_row(self) -> float:
        """With everything that belongs to it."""
        known = Index.bytes_per_slot(self.key_words) + Turns.bytes_per_slot() + GHOST_SHARE * Ghosts.bytes_per_slot()
        return self.row_bytes + known + FREE_BYTES + WORD_BYTES * (1 + self.beside_words)

    @property
    def rows(self) -> int:
        """How many rows that are."""
        return int(self.bytes_max / self.bytes_per_row)


class Arena:
    """Keys with rows of bytes. Raises ValueError if there is no room for ROWS_MIN rows."""

    def __init__(self, room: Room, hashing: Hashing) -> None:
        self.capacity = room.rows
        if self.capacity < ROWS_MIN:
            raise ValueError(f"{room.bytes_max} bytes hold {self.capacity} rows of {room.row_bytes}, not {ROWS_MIN}")
        assert room.row_bytes > 0
        self.spare: Final = self.capacity
        self.entries = 0
        """Keys that are here now."""
        self.evictions = 0
        """Keys that had to leave for others, from the start."""
        self._hashing = hashing
        self._index = Index(self.capacity, room.key_words, hashing, 1 + room.beside_words)
        record = self._index.records[:, room.key_words :]
        self.mark: NDArray[np.uint32] = self._index.records.view(np.uint32)[:, 2 * room.key_words + 1]
        """The owner's, by slot (and ``spare``): zeros at first, and then what they were for the slot's last key."""
        self.beside: NDArray[np.uint64] = record[:, 1:]
        """Likewise: [slots, beside_words]."""
        self._turns = Turns(record.view(np.uint8)[:, 0])
        self._ghosts = Ghosts(max(1, int(self.capacity * GHOST_SHARE)))
        self._free = np.arange(self.capacity, dtype=np.int32)[::-1].copy()
        self._free_count = self.capacity
        self._rows = np.empty(self.capacity + 1, np.dtype((np.void, room.row_bytes)))
        self._rows[self.spare] = bytes(room.row_bytes)

    @property
    def bytes_reserved(self) -> int:
        """Memory of everything; what no row has been put into yet counts too."""
        parts = self._index.bytes_reserved + self._turns.bytes_reserved + self._ghosts.bytes_reserved
        return parts + int(self._free.nbytes + self._rows.nbytes)

    def find(self, keys: Words) -> Slots:
        """The keys' slots; ``spare`` for what is not there. It counts as a use."""
        slots = self.peek(keys)
        self._turns.use(slots)
        return slots

    def peek(self, keys: Words) -> Slots:
        """``find``, not counted as a use."""
        return self._index.find(keys, self._hashing(keys))

    def used(self, slots: slice, times: int) -> Words:
        """Keys in these slots that were used so many times (USES_MAX: or more often); some may not be here any more."""
        where = np.flatnonzero(self._turns.uses(slots) == times)
        return self._index.keys(where + slots.start)

    def rows(self, slots: Slots) -> NDArray[np.void]:
        """A copy of the rows in these slots: void of ``row_bytes``, [n]. View them as what they are."""
        return self._rows.take(slots)

    def put(self, keys: Words, rows: NDArray[np.void]) -> Slots:
        """Hold these rows; of a key that comes twice, the later one. Returns the slots, ``spare`` for what is not held
        (it had to leave for another of the same batch, or there was no place: a cache may)."""
        assert len(keys) == len(rows)
        steps = range(0, max(1, len(keys)), BATCH_KEYS_MAX)
        for start in steps:
            self._admit(keys[start : start + BATCH_KEYS_MAX])
        slots = self.peek(keys)
        held = slots != self.spare
        where = slots[held]
        self._rows[where] = rows[held]  # of equal slots numpy leaves the last
        return slots

    def delete(self, keys: Words) -> Slots:
        """Take these keys out; the slots of those that were there, each once."""
        slots: Slots = np.unique(self.peek(keys))
        slots = slots[slots != self.spare]
        self._index.remove(slots)
        self._turns.give_up(slots)
        self.entries -= len(slots)
        return slots

    def clear(self) -> None:
        self._index.clear()
        self._turns.clear()
        self._ghosts.clear()
        self._free[:] = np.arange(self.capacity)[::-1]
        self._free_count = self.capacity
        self.entries = 0

    def _admit(self, keys: Words) -> None:
        """Give each key that has none a slot."""
        hashes = self._hashing(keys)
        absent = self._index.find(keys, hashes) == self.spare
        if not absent.any():
            return
        new = self._distinct(np.flatnonzero(absent), keys)[-self.capacity :]
        keys, hashes = keys[new], hashes[new]
        returned = self._ghosts.take(hashes)
        if len(new) > self._free_count:
            self._make_room(len(new), int(len(new) - returned.sum()))
        self._free_count -= len(new)
        slots = self._free[self._free_count : self._free_count + len(new)][::-1].astype(np.int64)
        placed = self._index.add(keys, hashes, slots)
        if not placed.all():
            self._release(slots[~placed])
            slots, returned = slots[placed], returned[placed]
        self._turns.admit(slots, returned)
        self.entries += len(slots)

    def _distinct(self, some: Slots, keys: Words) -> Slots:
        """Of equal keys the last, in the batch's order."""
        mine = np.ascontiguousarray(keys[some][::-1])
        width = mine.shape[1]
        kind = np.dtype(np.uint64) if width == 1 else np.dtype((np.void, width * WORD_BYTES))
        _, last = np.unique(mine.view(kind)[:, 0], return_index=True)
        found: Slots = np.sort(some[len(some) - 1 - last])
        return found

    def _make_room(self, count: int, newcomers: int) -> None:
        room = self._turns.make_room(count - self._free_count, newcomers)
        if len(room.early):
            self._ghosts.remember(self._hashing(self._index.keys(room.early)))
        self._index.remove(room.left)
        self.evictions += len(room.left)
        self.entries -= len(room.left)
        self._release(room.left)
        self._release(room.given_up)

    def _release(self, slots: Slots) -> None:
        self._free[self._free_count : self._free_count + len(slots)] = slots
        self._free_count += len(slots)
