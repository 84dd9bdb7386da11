"""Whose turn it is to leave: S3-FIFO over slots, by whole batches.

Rule of this file: it knows slots and uses, not keys or rows, and never allocates after it was made. ``policy.py`` has
the same policy for values of any size, one after the other, and its paper. Here a queue is a ring of slot numbers; a
batch of uses is one store, and to make room is to look at the oldest of a ring together: asked one at a time it does
what S3-FIFO does, one step after the other.

A slot that is given up (its key was deleted) stays in its ring until its turn comes, or until so many have been given
up that walking over the rings once is worth it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from cache.index import Slots

SMALL_SHARE: Final = 0.1  # of the slots, as in policy.py
USES_MAX: Final = 3
USES_TO_STAY: Final = 2
GIVEN_UP: Final = 255
"""In place of uses."""
LOOK_MIN: Final = 16
"""Slots looked at together at least: a look costs about as much for sixteen as for one."""
GIVEN_UP_SHARE_MAX: Final = 32
"""One slot of so many may lie idle in a ring: 3 % of the memory."""


class Room(Struct, frozen=True, eq=False):
    """Slots that are free now. ``left`` had keys until now; those in ``early`` left without having been in main."""

    left: Slots
    early: Slots
    given_up: Slots


class _Ring:
    """Slot numbers, the oldest first."""

    def __init__(self, capacity: int) -> None:
        self._cells = np.zeros(capacity, np.int32)
        self._head = 0
        self.count = 0

    @property
    def bytes_reserved(self) -> int:
        return self._cells.nbytes

    def oldest(self, count: int) -> Slots:
        end = self._head + count
        if end <= len(self._cells):
            return self._cells[self._head : end].astype(np.int64)
        both = (self._cells[self._head :], self._cells[: end - len(self._cells)])
        return np.concatenate(both).astype(np.int64)

    def drop(self, count: int) -> None:
        self._head = (self._head + count) % len(self._cells)
        self.count -= count

    def push(self, slots: Slots) -> None:
        tail = (self._head + self.count) % len(self._cells)
        until_end = len(self._cells) - tail
        self._cells[tail : tail + len(slots)] = slots[:until_end]
        self._cells[: max(0, len(slots) - until_end)] = slots[until_end:]
        self.count += len(slots)

    def clear(self) -> None:
        self._head = self.count = 0


class Turns:
    """The order of slots. ``uses``: a byte for each of them, and one more that may be used and is no slot's."""

    def __init__(self, uses: NDArray[np.uint8]) -> None:
        capacity = len(uses) - 1
        self._capacity = capacity
        self._small_max = max(1, int(capacity * SMALL_SHARE))
        self._small = _Ring(capacity)
        self._main = _Ring(capacity)
        self._uses = uses
        self._given_up = 0

    @staticmethod
    def bytes_per_slot() -> int:
        """Memory for each slot, beside its byte of uses."""
        return 4 + 4

    @property
    def bytes_reserved(self) -> int:
        return self._small.bytes_reserved + self._main.bytes_reserved

    def use(self, slots: Slots) -> None:
        """These were asked for; more than once in one batch counts once."""
        uses = self._uses[slots]
        uses += 1
        self._uses[slots] = np.minimum(uses, USES_MAX)

    def uses(self, slots: slice) -> NDArray[np.uint8]:
        """How often these were asked for lately, at most USES_MAX; nothing is told of those that have no key."""
        return self._uses[slots]

    def admit(self, slots: Slots, to_main: NDArray[np.bool_]) -> None:
        """Newcomers, the oldest first: those who have been here before enter main."""
        self._uses[slots] = 0
        self._small.push(slots[~to_main])
        self._main.push(slots[to_main])

    def give_up(self, slots: Slots) -> None:
        """These have no key any more. They are free when ``make_room`` says so."""
        self._uses[slots] = GIVEN_UP
        self._given_up += len(slots)

    def make_room(self, needed: int, newcomers: int) -> Room:
        """At least ``needed`` free slots, for ``newcomers`` to small and others; the rings must have as many."""
        assert needed <= self._small.count + self._main.count
        if self._given_up * GIVEN_UP_SHARE_MAX > self._capacity:
            room = self._walk()
            needed -= len(room.given_up)
        else:
            room = Room(_NONE, _NONE, _NONE)
        left, early, given_up = [room.left], [room.early], [room.given_up]
        # Ends: every look takes slots out, moves some from small to main, or takes a use from each.
        while needed > 0:
            beyond = min(self._small.count, self._small.count + newcomers - self._small_max)
            is_small = beyond > 0 or not self._main.count
            ring = self._small if is_small else self._main
            seen = ring.oldest(min(ring.count, max(LOOK_MIN, needed), beyond if beyond > 0 else ring.count))
            uses = self._uses[seen]
            idle = uses == GIVEN_UP
            out = (uses < USES_TO_STAY if is_small else uses == 0) | idle
            where = np.flatnonzero(out)[:needed]
            if len(where) == needed:  # enough: what is behind the last of them was not looked at
                end = int(where[-1]) + 1
                seen, uses, idle, out = seen[:end], uses[:end], idle[:end], out[:end]
            ring.drop(len(seen))
            stay = seen[~out]
            self._uses[stay] = 0 if is_small else uses[~out] - 1
            self._main.push(stay)
            gone = seen[out & ~idle]
            left.append(gone)
            early.append(gone if is_small else _NONE)
            given_up.append(seen[idle])
            self._given_up -= int(idle.sum())
            needed -= len(where)
        return Room(np.concatenate(left), np.concatenate(early), np.concatenate(given_up))

    def clear(self) -> None:
        self._small.clear()
        self._main.clear()
        self._given_up = 0

    def _walk(self) -> Room:
        """Take all that was given up out of both rings."""
        given_up = []
        for ring in (self._small, self._main):
            all_slots = ring.oldest(ring.count)
            idle = self._uses[all_slots] == GIVEN_UP
            ring.clear()
            ring.push(all_slots[~idle])
            given_up.append(all_slots[idle])
        self._given_up = 0
        return Room(_NONE, _NONE, np.concatenate(given_up))


_NONE: Final[Slots] = np.zeros(0, np.int64)
