"""Moments at which something ends unless it is called off first, as nearly all are.

Rule of this file: one timer of the loop for all of them. A timer made and cancelled for each wait costs more than most
waits' own work, and what is called off before its time needs none: the one timer stands for the earliest moment that it
was told of, and looks for the next when it goes off.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

PAUSE_SECONDS_EACH: Final = 0.000_000_5
"""After a look at all moments the next comes so much later, for each of them, or more. A look takes some 0.05 µs for
each: so callers with ever shorter times, beside many who wait long, cost a tenth of a core and no more,
and ten thousand who wait make an alarm 5 ms late at most."""


class Alarms(Generic[K]):
    """Calls ``ring`` with whatever's moment has come, once, and from the loop. Bounded by who sets them. Belongs to one
    event loop, which must be running when the first is set."""

    __slots__ = ("_at", "_moments", "_paused_until", "_ring", "_timer")

    def __init__(self, ring: Callable[[K], None]) -> None:
        self._ring = ring
        self._moments: dict[K, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._at = math.inf  # when the timer goes off
        self._paused_until = -math.inf

    def __len__(self) -> int:
        return len(self._moments)

    def set(self, key: K, at: float) -> None:
        """Ring at ``at``, in seconds of the loop's time; infinity: never. A key has one moment at a time."""
        self._moments[key] = at
        if at < self._at:
            self._stand_for(at)

    def drop(self, key: K) -> None:
        """Do not, if it has not rung yet."""
        self._moments.pop(key, None)

    def _stand_for(self, at: float) -> None:
        at = max(at, self._paused_until)
        if at >= self._at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        self._timer = asyncio.get_running_loop().call_at(at, self._look)

    def _look(self) -> None:
        # A loop may call somewhat early (its clock is coarse): what the timer stood for is over all the same.
        now = max(self._at, asyncio.get_running_loop().time())
        self._timer, self._at = None, math.inf
        self._paused_until = now + PAUSE_SECONDS_EACH * len(self._moments)
        for key in [key for key, at in self._moments.items() if at <= now]:
            if self._moments.get(key, math.inf) <= now:  # one that rings may call off another, or set it for later
                del self._moments[key]
                self._ring(key)
        self._stand_for(min(self._moments.values(), default=math.inf))
