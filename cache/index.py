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
BUCKET_WORDS: Final = 1 + BUCKET // 2
"""Of 64 bits: the tags, and a slot of 32 bits for each. Together, because what is near comes along."""
PLACES_PER_SLOT: Final = 2
CROWDED: Final = 6
"""Keys in its first bucket from which on a newcomer looks at the second: until then one look finds it."""
FEW: Final = 12
"""Keys up to which it is quicker to look for one after the other than to call numpy dozens of times."""
ROUNDS_MAX: Final = 32
"""Of placing newcomers, one for each place of a bucket in each: who has not got one by then never would."""

NOBODY: Final = 0x8000_0000_0000_0001
"""In every word of the key that no slot has, which free places lead to: it is never put. No byte string is like this,
nor anybody's number, nor a row of numbers."""

_HALF: Final = np.uint64(32)
_BUCKET_BITS: Final = 3
_BOTH_BITS: Final = 4
_COUNT_BITS: Final = np.uint8(3)
_IN_BUCKET: Final = 7
_TAG: Final = np.uint64(0xFF)
_ONES: Final = np.uint64(0x0101_0101_0101_0101)
_HIGHS: Final = np.uint64(0x8080_8080_8080_8080)
_LOWS: Final = np.uint64(0x7F7F_7F7F_7F7F_7F7F)
_EIGHTFOLD: Final = np.maximum(np.arange(256, dtype=np.uint64), 1) * _ONES
"""A tag in each byte, by its number: 0 is a free place's, and 1 stands for it."""
_BYTES: Final = _EIGHTFOLD.astype(np.uint8)


class Index:
    """At most ``capacity`` keys of ``width`` words, each with a slot below ``capacity`` that no other key has.
    ``capacity`` itself is the slot of what is not there. ``beside``: words that the owner keeps of each slot, next to
    its key, because what has just been compared is at hand."""

    def __init__(self, capacity: int, width: int, hashing: Hashing, beside: int = 0) -> None:
        assert 0 < capacity < 2**31
        self.capacity = capacity
        self.hashing = hashing
        self._width = width
        self._buckets = -(-capacity * PLACES_PER_SLOT // BUCKET)
        self._buckets_wide = np.uint64(self._buckets)
        together = np.empty((self._buckets, BUCKET_WORDS), np.uint64)
        self._tags_together = together[:, 0]
        self._tags = together.view(np.uint8)[:, :BUCKET]
        self._all_slots = together.view(np.int32).reshape(-1)
        self._slots = together.view(np.int32)[:, 2:]
        self.clear()
        self.records: NDArray[np.uint64] = np.empty((capacity + 1, width + beside), np.uint64)
        """By slot: the key, then what is beside it, zeros at first."""
        self.records.fill(0)  # not numpy.zeros, which asks for no huge pages
        self.records[capacity, :width] = NOBODY
        self._record_bytes = self.records.itemsize * (width + beside)
        self._tag_at, self._slot_at = together.data.cast("B"), self._all_slots.data
        self._record_at = self.records.data.cast("B")
        self._keys = self.records[:, :width]
        self._key = self.records[:, 0]

    @staticmethod
    def bytes_per_slot(width: int) -> int:
        """Memory for each of ``capacity``."""
        return width * WORD_BYTES + PLACES_PER_SLOT * (1 + 4)  # and WORD_BYTES for each word beside

    @property
    def bytes_reserved(self) -> int:
        return self._all_slots.nbytes + self.records.nbytes

    def keys(self, slots: Slots) -> Words:
        """The words of the keys in these slots, [n, width]."""
        return self._keys[slots]

    def find(self, keys: Words, hashes: Hashes) -> Slots:
        """The keys' slots, ``capacity`` for a key that is not there."""
        if len(keys) <= FEW:
            every = [self._find_one(key.tobytes(), hashed) for key, hashed in zip(keys, hashes.tolist(), strict=True)]
            return np.array(every, np.int64)
        high = hashes >> _HALF
        buckets = high * self._buckets_wide
        buckets >>= _HALF
        place = buckets.view(np.int64)
        differing = self._tags_together[place]
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
        place *= BUCKET_WORDS * 2
        place += BUCKET + 1  # the last of the first bucket
        place -= after
        slots: Slots = self._all_slots.take(place).astype(np.int64)
        missed = self._differ(slots, keys)  # where no tag fits, this is of a free place or of somebody's: right too
        rest = missed.nonzero()[0]
        if len(rest) > FEW:
            slots[rest] = self.capacity
            self._find_rest(rest, keys, hashes, slots)
        elif len(rest):
            for one, hashed in zip(rest.tolist(), hashes[rest].tolist(), strict=True):
                slots[one] = self._find_one(keys[one].tobytes(), hashed)
        return slots

    def add(self, keys: Words, hashes: Hashes, slots: Slots) -> NDArray[np.bool_]:
        """Put keys that differ and are not there; which of them found a place (NOBODY never does)."""
        self._keys[slots] = keys
        placed = np.zeros(len(slots), np.bool_)
        waiting = (keys != NOBODY).any(axis=1).nonzero()[0]
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
            waiting, bucket = waiting[some], np.where(elsewhere, second, first)[some]
            place = (np.bitwise_count(free ^ (free - 1)) >> 3)[some] - 1
            mine = slots[waiting]
            self._slots[bucket, place] = mine
            won = self._slots[bucket, place] == mine  # of several with an eye on one place the last has it
            self._tags[bucket[won], place[won]] = tags[waiting[won]]
            placed[waiting[won]] = True
            waiting = waiting[~won]
        return placed

    def remove(self, slots: Slots) -> None:
        """Take out the keys in these slots; all must be there."""
        hashes = self.hashing(self.keys(slots))
        for bucket in (self._first(hashes), self._second(hashes)):
            row, place = (self._slots[bucket] == slots[:, None]).nonzero()
            self._tags[bucket[row], place] = 0
            self._slots[bucket[row], place] = self.capacity

    def clear(self) -> None:
        self._tags.fill(0)
        self._slots.fill(self.capacity)

    def _find_one(self, key: bytes, hashed: int) -> int:
        """One key's slot: what ``find`` does, one step after the other."""
        high, low = hashed >> 32, hashed & 0xFFFF_FFFF
        tag = high & 0xFF or 1
        for half in (high, low):
            bucket = half * self._buckets >> 32
            first = bucket * BUCKET_WORDS * WORD_BYTES
            for place in range(BUCKET):
                if self._tag_at[first + place] == tag:
                    slot = self._slot_at[bucket * BUCKET_WORDS * 2 + 2 + place]
                    begin = slot * self._record_bytes
                    if self._record_at[begin : begin + len(key)] == key:
                        return slot
        return self.capacity

    def _find_rest(self, rest: Slots, keys: Words, hashes: Hashes, result: Slots) -> None:
        """All sixteen places of those in ``rest``: those whose tag fits are held against the key."""
        hashed = hashes.take(rest)
        buckets = hashed.view(np.uint32) * self._buckets_wide  # second, first, second, first ...
        buckets >>= _HALF
        numbers = buckets.view(np.int64)
        tags = self._tags[numbers].reshape(-1, 2 * BUCKET)
        fitting = (tags == _tags(hashed)[:, None]).ravel().nonzero()[0]
        slots = self._slots[numbers.take(fitting >> _BUCKET_BITS), fitting & _IN_BUCKET].astype(np.int64)
        asked = rest.take(fitting >> _BOTH_BITS)
        same = ~self._differ(slots, keys.take(asked, axis=0))
        result[asked[same]] = slots[same]

    def _differ(self, slots: Slots, keys: Words) -> NDArray[np.bool_]:
        """Where the key in a slot is another."""
        other: NDArray[np.bool_]
        if self._width == 1:
            other = self._key[slots] != keys[:, 0]
        else:
            other = (self._keys[slots] != keys).any(axis=1)
        return other

    def _free(self, buckets: Slots) -> NDArray[np.uint64]:
        """The highest bit of each byte of a bucket's tags that is zero, exactly."""
        tags = self._tags_together[buckets]
        return ~(((tags & _LOWS) + _LOWS) | tags | _LOWS)

    def _first(self, hashes: Hashes) -> Slots:
        return ((hashes >> 32) * self._buckets >> 32).view(np.int64)

    def _second(self, hashes: Hashes) -> Slots:
        return ((hashes & 0xFFFF_FFFF) * self._buckets >> 32).view(np.int64)


def _tags(hashes: Hashes) -> NDArray[np.uint8]:
    """Eight bits that choose no bucket, and never 0: that is a free place."""
    return _BYTES.take(hashes.view(np.uint8)[4::8])
