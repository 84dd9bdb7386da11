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
    __slots__ = ("tag", "waiting")

    def __init__(self, tag: int) -> None:
        self.tag = tag
        self.waiting: OrderedDict[W, None] = OrderedDict()  # not a dict: those at the front leave all the time


class Line(Generic[W]):
    """Those who wait with one priority. Each waits once; all that is done costs O(log owners), ``longest``
    O(owners)."""

    def __init__(self) -> None:
        self._owners: dict[str, _Owner[W]] = {}
        self._all: OrderedDict[W, None] = OrderedDict()
        self._heap: list[tuple[int, int, str]] = []
        self._serial = 0
        self._turn = 0

    def __len__(self) -> int:
        return len(self._all)

    @property
    def owners(self) -> int:
        """How many have something here."""
        return len(self._owners)

    @property
    def oldest(self) -> W | None:
        """Who has waited longest of all."""
        return next(iter(self._all), None)

    def waiting_of(self, owner: str) -> int:
        """How many of an owner's wait."""
        held = self._owners.get(owner)
        return 0 if held is None else len(held.waiting)

    def push(self, waiting: W) -> None:
        """Wait."""
        assert waiting not in self._all, "waits already"
        self._all[waiting] = None
        owner = self._owners.get(waiting.owner)
        if owner is None:
            owner = self._owners[waiting.owner] = _Owner(self._turn)
            self._enter(waiting.owner, owner)
        owner.waiting[waiting] = None

    def pop(self, is_late: Callable[[W], bool], may: Callable[[W], bool] | None = None) -> W | None:
        """Who is next; of the owner whose turn it is the oldest, or the newest if that one is late. ``may``: whether
        an owner may go at all now, by his oldest; who may not keeps his turn. None if nobody waits who may."""
        kept: list[tuple[int, int, str]] = []
        found: W | None = None
        while self._heap and found is None:
            entry = heapq.heappop(self._heap)
            tag, _, name = entry
            owner = self._owners.get(name)
            if owner is None or owner.tag != tag:
                continue  # he has gone, and may have come again
            oldest = next(iter(owner.waiting))
            if may is not None and not may(oldest):
                kept.append(entry)
                continue
            found, _ = owner.waiting.popitem(last=is_late(oldest))
            del self._all[found]
            self._turn = max(self._turn, tag)  # those who were kept back are behind it
            owner.tag += 1
            if owner.waiting:
                self._enter(name, owner)
            else:
                del self._owners[name]
        for entry in kept:
            heapq.heappush(self._heap, entry)
        return found

    def remove(self, waiting: W) -> None:
        """Wait no more. KeyError for who does not."""
        del self._all[waiting]
        owner = self._owners[waiting.owner]
        del owner.waiting[waiting]
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

    def _enter(self, name: str, owner: _Owner[W]) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (owner.tag, self._serial, name))

    def _tidy(self) -> None:
        """An owner who went and came again has two entries; only so many are carried along."""
        if len(self._heap) <= 2 * len(self._owners) + _STALE_MAX:
            return
        seen: dict[str, tuple[int, int, str]] = {}
        for entry in self._heap:
            owner = self._owners.get(entry[2])
            if owner is not None and owner.tag == entry[0]:
                seen[entry[2]] = entry
        self._heap = list(seen.values())
        heapq.heapify(self._heap)
