"""Who asks for more than his share of a gate's places, and has to leave the last of them to others.

Rule of this file: it counts and says; it gives no permits (``degrade/gate.py`` does). Time is an argument, memory is
bounded.

A limit is somewhat above what a server works on at once (``degrade/limiter.py``), so a crowd that fills it waits in
the server, where nobody can be passed any more, and whoever comes then waits behind it however little he asks. Where
it is known how many requests the server works on at once (its places), the last of them are therefore left to those who
must not wait: a priority leaves them to the higher ones that are there, and within one the few who ask for far more
than their shares to the many who do not. Owners who ask alike fill the whole limit, and so does one alone.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

LATELY: Final = 30.0
"""Seconds after his last request for which an owner, or a priority, is there: places are kept for who asks seldom,
too."""

KEPT: Final = 1 / 8
"""Of the server's places, the share that is left idle for others, once for higher priorities and once more for owners
within their shares: what that costs at most. Of less than eight none is left idle, and a crowd only does not queue."""

SMOOTHING: Final = 0.05
"""Weight of each request in what is usual for its owner: some twenty tell a crowd from a few that came together."""

HEAVY: Final = 2.0
"""Shares that are more than one's share: with what comes by chance nearly everybody has one and a half now and then."""

OWNERS_MAX: Final = 1024
"""Owners of one priority that are remembered; who asked longest ago is forgotten first."""


class Holder:
    """An owner with his requests of one priority. ``present``: how many wait or are in flight; ``usual``: how many
    there are in the mean; ``is_heavy``: whether that is far more than his share, as of his last request."""

    __slots__ = ("asked_at", "is_heavy", "present", "usual")

    def __init__(self) -> None:
        self.asked_at = -math.inf
        self.is_heavy = False
        self.present = 0
        self.usual = 0.0


class _Class:
    """Those of one priority who are there, who asked last at the end, and how many of them are heavy."""

    __slots__ = ("heavy", "holders")

    def __init__(self) -> None:
        self.holders: OrderedDict[str, Holder] = OrderedDict()
        self.heavy = 0

    @property
    def has_crowd(self) -> bool:
        """Whether some are heavy beside at least as many who are not: where most are, it is the server that has too
        little."""
        return 0 < 2 * self.heavy <= len(self.holders)


class Shares:
    """Of one gate; all that is asked of it costs O(1). Priorities are numbers, the lowest goes first. ``places``: of
    its server; 0: nobody knows."""

    def __init__(self) -> None:
        self.places = 0
        self.crowd = 1.0
        """The share of the other places that those may have from whom some are kept."""
        self._classes: dict[int, _Class] = {}

    def least(self, limit: int) -> int:
        """Up to so many in flight whoever comes has a place."""
        return min(limit, self._held(2, self.crowd)) if self.places else limit

    def most(self, priority: int, holder: Holder, limit: int, now: float) -> int:
        """Up to so many in flight there is a place for somebody who has asked."""
        if not self.places:
            return limit
        is_crowd = self.is_crowd(priority, holder)
        times = is_crowd + self._is_passed(priority, now)
        if not times:
            return limit
        is_beside = self._classes[priority].has_crowd and not is_crowd
        return min(limit, self._held(times, 1.0 if is_beside else self.crowd))

    def most_of_all(self, priority: int, limit: int, now: float) -> int:
        """Up to so many in flight there is a place for somebody of a priority, whoever he is."""
        return min(limit, self._held(1, 1.0)) if self.places and self._is_passed(priority, now) else limit

    def is_crowd(self, priority: int, holder: Holder) -> bool:
        """Whether somebody who has asked is one of a crowd. Where nobody knows the places his share is one of the
        limit."""
        return holder.is_heavy and self._classes[priority].has_crowd

    def asked(self, priority: int, owner: str, limit: int, now: float) -> Holder:
        """Somebody asks. What he has then is to be counted in what this returns."""
        there = self._classes.get(priority)
        if there is None:
            there = self._classes[priority] = _Class()
        holder = there.holders.get(owner)
        if holder is None:
            holder = there.holders[owner] = Holder()
        else:
            there.holders.move_to_end(owner)
        holder.asked_at = now
        if len(there.holders) > 1:
            self._forget(there, now)
        holder.usual += SMOOTHING * (holder.present - holder.usual)
        places = self.places or limit
        is_heavy = holder.usual > 1.0 and holder.usual * len(there.holders) > HEAVY * places
        there.heavy += is_heavy - holder.is_heavy
        holder.is_heavy = is_heavy
        return holder

    def _held(self, times: int, share: float) -> int:
        """The places without those that are kept, so many times, or a share of them."""
        return max(1, int((self.places - times * int(self.places * KEPT)) * share))

    def _is_passed(self, priority: int, now: float) -> bool:
        """Whether somebody with a higher priority is there."""
        for each, there in self._classes.items():
            if each < priority and there.holders:
                last = next(reversed(there.holders.values()))
                if now - last.asked_at <= LATELY:
                    return True
        return False

    def _forget(self, there: _Class, now: float) -> None:
        """Those who are not there any more; at least who has just come stays."""
        while len(there.holders) > 1:
            owner, oldest = next(iter(there.holders.items()))
            if len(there.holders) <= OWNERS_MAX and now - oldest.asked_at <= LATELY:
                return
            there.heavy -= oldest.is_heavy
            oldest.is_heavy = False
            del there.holders[owner]
