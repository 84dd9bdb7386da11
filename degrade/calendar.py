"""What time it is, for things that outlive a process: the wall clock, never before what has been written already.

Rule of this file: two clocks in, Unix seconds out. A wall clock may be set back, and a host may start with a wrong one.
What was written last says that it was at least so late then, and the monotonic clock how much has passed since.
"""

from __future__ import annotations

from degrade.deadline import Ticker


class Calendar:
    """``ticker``: monotonic seconds; ``wall``: Unix seconds."""

    def __init__(self, ticker: Ticker, wall: Ticker) -> None:
        self._ticker = ticker
        self._wall = wall
        self._floor, self._since = wall(), ticker()

    def now(self) -> float:
        """Unix seconds; never fewer than before."""
        self.reach(self._wall())
        return self._floor + (self._ticker() - self._since)

    def reach(self, at: float) -> None:
        """It is ``at`` least so late."""
        now = self._ticker()
        reached = self._floor + (now - self._since)
        if at > reached:
            self._floor, self._since = at, now

    def at(self, made_at: float) -> float:
        """When something was that ``made_at`` (monotonic seconds) says."""
        return self.now() - (self._ticker() - made_at)
