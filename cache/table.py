"""The near cache of one table: vectors of one shape by key, each with how old it is and whether it may be trusted.

Rule of this file: it holds what was read from a store and when, and decides by arithmetic what that is worth now; it
never reads a store. Rows live in an arena (``arena.py``), what is known of each beside it by slot.

A fill races with writes: a value read before a write may arrive after the news of it. So whoever reads takes a
*ticket* before, and hands it in with the rows. Each invalidation and each distrust turns a counter; a row whose key
was invalidated (or that was read before a distrust) after its ticket was drawn is dropped. What was invalidated when is
kept for keys that are not here too, in *fences*: one turn for all keys of one hash modulo their number. Two keys with
one fence may cost a fill for nothing, never a wrong value. An invalidated row stays, but is never fresh again: an old
value that says its age is what degradation may need when the store is gone.

What is known to be absent takes a row's place too: S3-FIFO lets a flood of ids that nobody has pass through a tenth of
the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import DTypeLike, NDArray

from cache.arena import ROWS_MIN, Arena, Room
from cache.index import Slots
from cache.turns import USES_MAX
from cache.words import Keys, Words, hashing, keys_of, words

Rows = NDArray[np.generic]
Told = tuple[float, int, int]
"""When rows were read, the ticket of that, and whether they are absent (1) or here (0)."""

MISSING: Final = 0
"""Not here, or older than ``max_stale`` allows."""
FRESH: Final = 1
STALE: Final = 2
"""Here, but older than ``ttl``, or invalidated, or distrusted."""
ABSENT: Final = 3
"""Known to be in no store, lately enough."""

FENCES_MAX: Final = 65_536
"""512 KB: with a thousand writes a second and reads of ten milliseconds one fill in 6,500 is dropped for nothing."""

SLOTS_AT_ONCE: Final = 512
"""Some 10 us, and 0.1 ms if all of them were used."""


class Lives(Struct, frozen=True):
    """Seconds: how long a value is fresh, how long after that it may still be served as stale, and how long the store's
    word that there is none is believed."""

    ttl: float
    max_stale: float
    negative_ttl: float


class TableShape(Struct, frozen=True):
    """What the rows are, and how much memory they may have together with all that belongs to them.

    ``key_width`` is ``words.py``'s: 0 for whole numbers, or 8 bytes for each, one of them not the key's.
    """

    bytes_max: int
    dtype: str
    shape: tuple[int, ...]
    key_width: int = 0

    @property
    def row_bytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))

    @property
    def fences(self) -> int:
        """How many there are."""
        return min(FENCES_MAX, max(1, self.bytes_max // 1024))

    @property
    def room(self) -> Room:
        """What is left for rows, and all that each needs."""
        return Room(self.bytes_max - 8 * self.fences, self.row_bytes, max(1, self.key_width), beside_words=1)

    @property
    def bytes_min(self) -> int:
        """The least ``bytes_max`` for rows of this shape; a near cache of less is none."""
        rows = math.ceil(ROWS_MIN * self.room.bytes_per_row) + 1
        return rows + math.ceil(rows / 127) + 8  # fences are a 128th of all, and one


class Gathered(Struct, frozen=True, eq=False):
    """``rows``: [n, *shape], zeros where the state is MISSING or ABSENT. ``state``: uint8 [n]. ``age``: float64 [n],
    seconds, infinite where the state is MISSING. ``fits``: bool [n], whether it can be a key of this table at all."""

    rows: Rows
    state: NDArray[np.uint8]
    age: NDArray[np.float64]
    fits: NDArray[np.bool_]


class NearTable:
    """For one thread (an event loop's) at a time. ``seed`` is a secret from which nobody outside can tell which keys
    meet. Raises ValueError if ``bytes_max`` is too little."""

    def __init__(self, shape: TableShape, lives: Lives, seed: bytes) -> None:
        self._kind = np.dtype(shape.dtype)
        self._shape = shape.shape
        self._void: DTypeLike = np.dtype((np.void, shape.row_bytes))
        self._width = shape.key_width
        self._lives = lives
        self._hashing = hashing(shape.key_width, seed)
        self._arena = Arena(shape.room, self._hashing)
        self._stored_at = self._arena.beside[:, 0].view(np.float64)
        self._stored_at[self._arena.spare] = -np.inf
        self._trust = self._arena.mark  # _trusted, + 1 for what is absent; 0: for nothing
        self._trusted = 2  # steps of two: the lowest bit says absent
        self._turn = 0
        self._distrusted_turn = 0
        self._purged_at = -math.inf
        self._fences = np.zeros(shape.fences, np.int64)

    @property
    def entries(self) -> int:
        return self._arena.entries

    @property
    def capacity(self) -> int:
        """Rows at most."""
        return self._arena.capacity

    @property
    def evictions(self) -> int:
        """Rows that had to leave for others, from the start."""
        return self._arena.evictions

    @property
    def bytes_reserved(self) -> int:
        """Memory of everything; what no row has been put into yet counts too."""
        return self._arena.bytes_reserved + self._fences.nbytes

    def find(self, keys: Keys, now: float) -> Gathered:
        """What is known of these keys at ``now`` (seconds, of the same clock as in ``put``)."""
        asked, fits = words(keys, self._width)
        return self._gathered(self._arena.find(asked), fits, now)

    def _gathered(self, slots: Slots, fits: NDArray[np.bool_], now: float) -> Gathered:
        if not fits.all():
            slots[~fits] = self._arena.spare
        age = now - self._stored_at[slots]
        trust = self._trust[slots]
        is_fresh = trust == self._trusted
        is_fresh &= age < self._lives.ttl
        state = is_fresh.astype(np.uint8)  # FRESH or MISSING
        if not is_fresh.all():
            self._judge(trust, age, state, now - self._purged_at)
            nothing = state == MISSING
            age[nothing] = np.inf
            slots[nothing] = self._arena.spare
        return Gathered(self._read(slots), state, age, fits)

    def peek(self, keys: Keys, now: float) -> Gathered:
        """As ``find``, and not counted as a use."""
        asked, fits = words(keys, self._width)
        return self._gathered(self._arena.peek(asked), fits, now)

    def used(self) -> Iterator[bytes | None]:
        """Keys of rows that were found here, those first that were used most; and None after each SLOTS_AT_ONCE
        rows that were looked at, so that no step is long. Rows may come and go meanwhile: some may be left out, come
        twice, or not be here any more."""
        for times in range(USES_MAX, 0, -1):
            for start in range(0, self.capacity, SLOTS_AT_ONCE):
                found = self._arena.used(slice(start, min(start + SLOTS_AT_ONCE, self.capacity)), times)
                yield from keys_of(found, self._width)
                yield None

    def ticket(self) -> int:
        """To be taken before the store is read, for what that gives."""
        return self._turn

    def put(self, keys: Keys, rows: Rows, now: float, ticket: int) -> None:
        """Hold rows [n, *shape] that were read from the store after ``ticket`` was taken; of a key that comes twice the
        later one. ``now`` is from when their age counts: the time of the ticket, to be strict."""
        assert rows.shape == (len(keys), *self._shape)
        assert rows.dtype == self._kind
        asked, fits = words(keys, self._width)
        self._hold(asked, fits, np.ascontiguousarray(rows).reshape(-1).view(self._void), (now, ticket, 0))

    def put_absent(self, keys: Keys, now: float, ticket: int) -> None:
        """Know that the store has none of these. Where that has raced with a write nobody knows what it has now; but
        what was read of it before is gone all the same."""
        asked, fits = words(keys, self._width)
        slots = self._arena.peek(asked[fits])
        self._trust[slots[(self._stored_at[slots] < now) & (slots != self._arena.spare)]] = 1
        self._hold(asked, fits, np.broadcast_to(np.zeros((), self._void), len(keys)), (now, ticket, 1))

    def invalidate(self, keys: Keys) -> None:
        """These were written by someone: nothing that was read before now is fresh."""
        asked, fits = words(keys, self._width)
        asked = asked[fits]
        self._turn += 1
        self._fences[self._fence(asked)] = self._turn
        self._trust[self._arena.peek(asked)] &= 1

    def distrust(self) -> None:
        """Nothing that was read before now is fresh."""
        self._turn += 1
        self._distrusted_turn = self._turn
        self._trusted += 2

    def purge(self, now: float) -> None:
        """Nothing that was read before now is here any more."""
        self.distrust()
        self._purged_at = now

    def _judge(
        self, trust: NDArray[np.uint32], age: NDArray[np.float64], state: NDArray[np.uint8], unpurged: float
    ) -> None:
        """Say what those are that are not FRESH. ``unpurged``: seconds since a purge."""
        is_absent = (trust & 1).astype(np.bool_)
        seconds_max = min(self._lives.ttl + self._lives.max_stale, unpurged)
        state[(state != FRESH) & ~is_absent & (age < seconds_max)] = STALE
        state[is_absent & (trust > self._trusted) & (age < self._lives.negative_ttl)] = ABSENT

    def _hold(self, asked: Words, fits: NDArray[np.bool_], rows: NDArray[np.void], told: Told) -> None:
        now, ticket, absent = told
        if ticket < self._distrusted_turn:
            return
        good = fits & (self._fences.take(self._fence(asked)) <= ticket)
        if not good.all():
            asked, rows = asked[good], rows[good]
        slots = self._arena.put(asked, rows)
        slots = slots[slots != self._arena.spare]
        self._stored_at[slots] = now
        self._trust[slots] = self._trusted + absent

    def _fence(self, keys: Words) -> Slots:
        return (self._hashing(keys) % len(self._fences)).view(np.int64)

    def _read(self, slots: Slots) -> Rows:
        return self._arena.rows(slots).view(self._kind).reshape(len(slots), *self._shape)
