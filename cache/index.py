"""Which slot has a key's row: an exact map from words to slots, looked up by whole batches.

Rule of this file: it knows keys and slots, not rows, and never allocates after it was made. A hash says where to look;
that two keys are equal say their words alone.

A key may stand in either of two *buckets* of eight *places*, chosen by its hash, and nowhere else. So a look-up reads
at most sixteen places whatever has been put, nothing has to be probed beyond a key that left (there are no tombstones
and nothing to rebuild), and keys that meet can crowd out one another but make no look-up longer. Half of the places
are free when all slots are taken, so that both buckets of a newcomer are full about never; then it is refused, which
a cache may do. (Azar et al., "Balanced allocations", 1994: with two choices the fullest bucket is hardly fuller than
the mean.)

A bucket's eight *tags* (a byte of each key's hash, 0 for a free place) are one 64-bit word, compared at once: the
lowest byte of ``word ^ tag * 0x0101...`` that is zero names the place (Mycroft's trick; higher ones may be wrong and
are not used). So most keys are found in their first bucket; the rest are looked for in all places of both.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cache.words import WORD_BYTES, Hashes, Hashing, Words

Slots = NDArray[np.int64]

BUCKET: Final = 8
PLACES_PER_SLOT: Final = 2
CROWDED: Final = 6
"""Keys in its first bucket from which on a newcomer looks at the second: until then one look finds it."""
ROUNDS_MAX: Final = 32
"""Of placing newcomers, one for each place of a bucket in each: who has not got one by then never would."""

_HALF: Final = np.uint64(32)
_BUCKET_BITS: Final = 3
_COUNT_BITS: Final = np.uint8(3)
_HALF_LESS_BUCKET: Final = np.uint64(32 - _BUCKET_BITS)
_IN_BUCKET: Final = 7
_TAG: Final = np.uint64(0xFF)
_NONE: Final = np.uint64(0)
_ONES: Final = np.uint64(0x0101_0101_0101_0101)
_HIGHS: Final = np.uint64(0x8080_8080_8080_8080)
_LOWS: Final = np.uint64(0x7F7F_7F7F_7F7F_7F7F)
_EIGHTFOLD: Final = np.maximum(np.arange(256, dtype=np.uint64), 1) * _ONES
"""A tag in each byte, by its number: 0 is a free place's, and 1 stands for it."""


class Index:
    """At most ``capacity`` keys of ``width`` words, each with a slot below ``capacity`` that no other key has.
    ``capacity`` itself is the slot of what is not there."""

    def __init__(self, capacity: int, width: int, hashing: Hashing) -> None:
        assert 0 < capacity < 2**31
        self.capacity = capacity
        self.hashing = hashing
        self._width = width
        self._absent = np.int64(capacity)
        self._buckets = -(-capacity * PLACES_PER_SLOT // BUCKET)
        self._tags = np.zeros((self._buckets, BUCKET), np.uint8)
        self._tags_together = self._tags.view(np.uint64).reshape(-1)
        self._slots = np.zeros(self._buckets * BUCKET, np.int32)
        kind = np.dtype(np.uint64) if width == 1 else np.dtype((np.void, width * WORD_BYTES))
        self._keys = np.zeros(capacity + 1, kind)

    @staticmethod
    def bytes_per_slot(width: int) -> int:
        """Memory for each of ``capacity``."""
        return width * WORD_BYTES + PLACES_PER_SLOT * (1 + 4)

    @property
    def bytes_reserved(self) -> int:
        return self._tags.nbytes + self._slots.nbytes + self._keys.nbytes

    def keys(self, slots: Slots) -> Words:
        """The words of the keys in these slots, [n, width]."""
        return self._keys.take(slots).view(np.uint64).reshape(-1, self._width)

    def find(self, keys: Words, hashes: Hashes) -> Slots:
        """The keys' slots, ``capacity`` for a key that is not there."""
        high = hashes >> _HALF
        last = high * self._buckets
        last >>= _HALF_LESS_BUCKET
        last |= _IN_BUCKET  # the number of the first bucket's last place
        differing = self._tags_together.take((last >> _BUCKET_BITS).view(np.int64))
        high &= _TAG
        differing ^= _EIGHTFOLD.take(high.view(np.int64))
        below = differing - _ONES
        np.invert(differing, out=differing)
        below &= differing
        below &= _HIGHS  # its lowest bit set is in the lowest byte that is zero
        np.negative(below, out=differing)
        differing ^= below  # eight bits for each byte above that one
        after = np.bitwise_count(differing)
        after >>= _COUNT_BITS
        slots = self._slots.take(np.subtract(last.view(np.int64), after))
        found = self._equal(slots, keys)
        found &= below != _NONE
        result: Slots = np.where(found, slots, self._absent)
        if not found.all():
            self._find_rest(np.flatnonzero(~found), keys, hashes, result)
        return result

    def add(self, keys: Words, hashes: Hashes, slots: Slots) -> NDArray[np.bool_]:
        """Put keys that differ and are not there; which of them found a place."""
        self._keys[slots] = self._packed(keys)
        placed = np.zeros(len(slots), np.bool_)
        waiting = np.arange(len(slots))
        tags = _tags(hashes)
        firsts, seconds = self._first(hashes), self._second(hashes)
        for _ in range(ROUNDS_MAX):
            if not len(waiting):
                break
            first, second = firsts[waiting], seconds[waiting]
            free, free_second = self._free(first), self._free(second)
            count, count_second = np.bitwise_count(free), np.bitwise_count(free_second)
            elsewhere = (count_second > count) & (count <= BUCKET - CROWDED)
            free = np.where(elsewhere, free_second, free)
            some = free != 0
            place = np.where(elsewhere, second, first) * BUCKET + (np.bitwise_count(free ^ (free - 1)) >> 3) - 1
            waiting, place = waiting[some], place[some]
            mine = slots[waiting]
            self._slots[place] = mine
            won = self._slots.take(place) == mine  # of several with an eye on one place the last has it
            self._tags.reshape(-1)[place[won]] = tags[waiting[won]]
            placed[waiting[won]] = True
            waiting = waiting[~won]
        return placed

    def remove(self, slots: Slots) -> None:
        """Take out the keys in these slots; all must be there."""
        hashes = self.hashing(self.keys(slots))
        for bucket in (self._first(hashes), self._second(hashes)):
            places = bucket[:, None] * BUCKET + np.arange(BUCKET)
            here = (self._slots.take(places) == slots[:, None]) & (self._tags.take(bucket, axis=0) != 0)
            self._tags.reshape(-1)[places[here]] = 0

    def clear(self) -> None:
        self._tags.fill(0)

    def _find_rest(self, rest: Slots, keys: Words, hashes: Hashes, result: Slots) -> None:
        """All sixteen places of those in ``rest``: those whose tag fits are held against the key."""
        hashed = hashes.take(rest)
        buckets = np.concatenate((self._first(hashed), self._second(hashed)))
        tags = _tags(hashed)
        fitting = np.flatnonzero(self._tags.take(buckets, axis=0) == np.concatenate((tags, tags))[:, None])
        which = fitting >> _BUCKET_BITS
        slots = self._slots.take((buckets.take(which) << _BUCKET_BITS) + (fitting & _IN_BUCKET))
        asked = rest.take(which % len(rest))
        same = self._equal(slots, keys.take(asked, axis=0))
        result[asked[same]] = slots[same]

    def _equal(self, slots: NDArray[np.int32], keys: Words) -> NDArray[np.bool_]:
        held = self._keys.take(slots)
        same: NDArray[np.bool_]
        if self._width == 1:
            same = held == keys[:, 0]
        else:
            same = (held.view(np.uint64).reshape(-1, self._width) == keys).all(axis=1)
        return same

    def _packed(self, keys: Words) -> NDArray[np.generic]:
        return np.ascontiguousarray(keys).view(self._keys.dtype).reshape(-1)

    def _free(self, buckets: Slots) -> NDArray[np.uint64]:
        """The highest bit of each byte of a bucket's tags that is zero, exactly."""
        tags = self._tags_together.take(buckets)
        return ~(((tags & _LOWS) + _LOWS) | tags | _LOWS)

    def _first(self, hashes: Hashes) -> Slots:
        return ((hashes >> 32) * self._buckets >> 32).view(np.int64)

    def _second(self, hashes: Hashes) -> Slots:
        return ((hashes & 0xFFFF_FFFF) * self._buckets >> 32).view(np.int64)


def _tags(hashes: Hashes) -> NDArray[np.uint8]:
    """Eight bits that choose no bucket, and never 0: that is a free place."""
    return _EIGHTFOLD.take(((hashes >> 32) & 0xFF).view(np.int64)).astype(np.uint8)
