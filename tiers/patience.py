"""Waiting for a replica to be back, where none can be reached.

Rule of this file: who waits is woken for a replica to ask, or because nobody will be asked in time whether it is
ready; never by each that is still away, of which there may be many, as there may be of those who wait. It asks nobody
itself: ``watch.py`` does, and tells.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from degrade.deadline import Ticker
from tiers.seat import Seat


class Patience:
    """Of all who wait for a pool's replicas. Belongs to one event loop."""

    def __init__(self, seats: Sequence[Seat], now: Ticker) -> None:
        self._seats = seats
        self._now = now
        self._hoped = asyncio.Event()
        self._until = -math.inf  # how long somebody waits

    @property
    def is_reached(self) -> bool:
        """Whether some replica may be asked now."""
        now = self._now()
        return any(seat.reach.allows(now) for seat in self._seats)

    async def found(self, seconds: float) -> bool:
        """Wait so long for a replica to be reached that could not be; whether one may be asked now. Nobody is waited
        for who will not be asked by then."""
        until = self._now() + seconds
        while self._asked_next <= until:
            self._until = max(self._until, until)
            try:
                async with asyncio.timeout(until - self._now()):
                    await self._hoped.wait()
            except TimeoutError:
                return False
            if self.is_reached:
                return True
        return False

    def told(self) -> None:
        """A replica has been asked, whatever came of it: wake who waits, if there is one to ask now, or none will be
        asked as long as they wait."""
        if self._until == -math.inf or (self._asked_next <= self._until and not self.is_reached):
            return
        self._until = -math.inf
        self._hoped.set()
        self._hoped = asyncio.Event()

    @property
    def _asked_next(self) -> float:
        """When the next replica is asked whether it is ready."""
        return min([seat.due for seat in self._seats])
