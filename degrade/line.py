"""Who is next among those who wait: owners in turn, and within an owner the first come, or the last.

Rule of this file: start-time fair queueing with requests of one size (P. Goyal, H. Vin, H. Cheng, "Start-time Fair
Queueing", SIGCOMM 1996): every owner who waits has a tag, the owner with the lowest is next and his tag grows by one.
So who waits with a thousand requests gets no more turns than who waits with one, and who comes new is next but for
those who came new before. It knows neither limits nor time: what waits is whatever has an owner.

Two orders within an owner. While there is time for all, first come, first served: nobody is passed by. Once those at
the head have used up half of their time (``degrade/gate.py`` says when), last come, first served: the head will most
likely not be answered in time any more whatever is done, and the last one still will; serving the head first then means
that everybody is answered too late, and goodput is nothing (B. Maurer, "Fail at scale", ACM Queue 13(8), 2015).
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Owned(Protocol):
    """What may wait."""

    @property
    def owner(self) -> str: ...


W = TypeVar("W", bound=Owned)

_STALE_MAX = 64
"""Entries of owners who are gone that may lie in the heap beside as many as there are owners."""


class _Owner(Generic[W]):
    __slots__ = ("is_spared", "tag", "waiting")

    def __init__(self, tag: int) -> None:
        self.tag = tag
        self.is_spared = False
        self.waiting: OrderedDict[W, None] = OrderedDict()  # not a dict: those at the front leave all the time


class Line(Generic[W]):
    """Those who wait with one priority. Each waits once; all that is done costs O(log owners), ``longest``
    O(owners)."""

    def __init__(self) -> None:
        self._owners: dict[str, _Owner[W]] = {}
        self._count = 0
        self._heap: list[tuple[int, int, str]] = []
        self._spared: list[tuple[int, int, str]] = []
        self._serial = 0
        self._turn = 0

    def __len__(self) -> int:
        return self._count

    @property
    def owners(self) -> int:
        """How many have something here."""
        return len(self._owners)

    def oldest_of_each(self) -> list[W]:
        """Of each owner, who has waited longest."""
        return [next(iter(owner.waiting)) for owner in self._owners.values()]

    def waiting_of(self, owner: str) -> int:
        """How many of an owner's wait."""
        held = self._owners.get(owner)
        return 0 if held is None else len(held.waiting)

    def push(self, waiting: W, is_spared: bool = False) -> None:
        """Wait. ``is_spared``: it may go where others may not, see ``pop_spared``."""
        owner = self._owners.get(waiting.owner)
        if owner is None:
            owner = self._owners[waiting.owner] = _Owner(self._turn)
            self._enter(waiting.owner, owner)
        assert waiting not in owner.waiting, "waits already"
        owner.waiting[waiting] = None
        self._count += 1
        if is_spared and not owner.is_spared:
            owner.is_spared = True
            self._enter_spared(waiting.owner, owner)

    def pop(self, is_late: Callable[[W], bool]) -> W | None:
        """Who is next; of the owner whose turn it is the oldest, or the newest if that one is late. None if nobody
        waits."""
        while self._heap:
            entry = heapq.heappop(self._heap)
            if self._stands(entry):
                return self._take(entry[2], is_late)
        return None

    def pop_spared(self, is_late: Callable[[W], bool], may: Callable[[W], bool]) -> W | None:
        """Who is next of the owners who are spared; None if there is none. ``may``: whether one of an owner's may go:
        if not, he is spared no more."""
        while self._spared:
            entry = heapq.heappop(self._spared)
            name = entry[2]
            if not self._stands(entry) or not self._owners[name].is_spared:
                continue
            owner = self._owners[name]
            if may(next(iter(owner.waiting))):
                return self._take(name, is_late)
            owner.is_spared = False
        return None

    def remove(self, waiting: W) -> None:
        """Wait no more. KeyError for who does not."""
        owner = self._owners[waiting.owner]
        del owner.waiting[waiting]
        self._count -= 1
        if not owner.waiting:
            del self._owners[waiting.owner]
            self._tidy()

    def longest(self) -> str:
        """The owner of whom most wait. ValueError if nobody does."""
        return max(self._owners, key=lambda name: len(self._owners[name].waiting))

    def end_of(self, owner: str, newest: bool) -> W:
        """The ``newest`` or the oldest that waits of an owner. KeyError for one who has none here."""
        waiting = self._owners[owner].waiting
        return next(reversed(waiting)) if newest else next(iter(waiting))

    def _take(self, name: str, is_late: Callable[[W], bool]) -> W:
        """Take one of an owner's out; his next turn is one later."""
        owner = self._owners[name]
        waiting, _ = owner.waiting.popitem(last=is_late(next(iter(owner.waiting))))
        self._count -= 1
        self._turn = max(self._turn, owner.tag)  # those who are not spared are behind it
        owner.tag += 1
        if owner.waiting:
            self._enter(name, owner)
            if owner.is_spared:
                self._enter_spared(name, owner)
        else:
            del self._owners[name]
        self._tidy()
        return waiting

    def _stands(self, entry: tuple[int, int, str]) -> bool:
        """Whether an owner has still the turn of an entry: he may have had it, or have gone and come again."""
        owner = self._owners.get(entry[2])
        return owner is not None and owner.tag == entry[0]

    def _enter(self, name: str, owner: _Owner[W]) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (owner.tag, self._serial, name))

    def _enter_spared(self, name: str, owner: _Owner[W]) -> None:
        self._serial += 1
        heapq.heappush(self._spared, (owner.tag, self._serial, name))

    def _tidy(self) -> None:
        """Owners who went, came again, or had their turn by the other heap, leave entries; only so many are carried
        along."""
        most = 2 * len(self._owners) + _STALE_MAX
        if len(self._heap) > most:
            self._heap = self._standing(self._heap)
        if len(self._spared) > most:
            self._spared = [entry for entry in self._standing(self._spared) if self._owners[entry[2]].is_spared]

    def _standing(self, heap: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
        """A heap of one entry for each owner who has one that stands."""
        found = list({entry[2]: entry for entry in heap if self._stands(entry)}.values())
        heapq.heapify(found)
        return found
