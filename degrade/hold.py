"""A crowd that is held below a limit, so that the last places are free for others: is even that too much?

Rule of this file: pure numbers in, a factor out. Where a crowd is held a limit is never full, and what happens there
cannot say that it is too low. It can say that it is far too high, and must: how many requests a server works on at
once is its own word (instances), and where those share cores or a GPU it can do fewer. So the crowd is held lower for
some answers now and then; if that brings hardly less, the limit goes down, until it is below where the crowd is held
and finds its way by itself again. The others do not feel that: they have their places all the while.
"""

from __future__ import annotations

import math
from typing import Final

from degrade.points import APART_MAX, APART_MIN, Point, Window, elasticity

DIP_SECONDS: Final = 60.0
"""From one dip that says nothing against the limit to the next; from one that does, the next follows at once."""

SHRINK: Final = 0.8
"""What one dip that says so makes of the limit."""


class Hold:
    """Of one limiter. Seconds of its clock."""

    def __init__(self) -> None:
        self._at = -math.inf
        self._dip: Window | None = None
        self._below: Point | None = None
        self._due = -math.inf

    @property
    def dips(self) -> bool:
        """Whether the crowd is held lower now, to see what that brings."""
        return self._dip is not None

    def is_on(self, now: float, patience: float) -> bool:
        """Whether a crowd was held lately: ``patience`` seconds ago at most."""
        return now - self._at <= patience

    def begin(self, now: float, patience: float) -> None:
        """Somebody is held back."""
        if not self.is_on(now, patience):
            self._below, self._due = None, now
        self._at = now

    def is_over(self, now: float, patience: float) -> bool:
        """Time has passed: whether a dip ends to which nobody comes any more."""
        if self._dip is None or now - self._dip.began <= patience:
            return False
        self._dip = None
        return True

    def sample(self, seconds: float, now: float, enough: int) -> bool:
        """An answer; whether it was one of a dip, and says nothing of what is otherwise."""
        dip = self._dip
        if dip is None:
            return False
        if now - seconds < dip.began:
            return True  # it began before
        if dip.since == dip.began:
            dip.since = now  # the first to end: from here on they do so evenly
            return True
        dip.add(seconds)
        if dip.count >= enough:
            self._below, self._dip = Point(dip.concurrency(now), dip.latency(), now), None
        return True

    def judge(self, point: Point, wanted: float) -> float:
        """What the limit is to be multiplied with, 1 at most, by what a crowd brings where it is held; ``wanted``: the
        elasticity below which more at once is not worth it. Begins a dip when one is due."""
        now, below = point.at, self._below
        if below is None:
            if now >= self._due:
                self._dip, self._due = Window(now), now + DIP_SECONDS
            return 1.0
        self._below = None
        apart = point.concurrency / below.concurrency if below.concurrency > 0.0 else 0.0
        if APART_MIN <= apart <= APART_MAX and elasticity(below, point) < wanted:
            self._due = now
            return SHRINK
        return 1.0
