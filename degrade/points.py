"""What is measured of a server: how long it takes at how much at once, and what two such points say.

Rule of this file: pure numbers. ``degrade/limiter.py`` and ``degrade/hold.py`` decide by them.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

BELOW: Final = 0.75
"""Where the point below is measured, as a share of the limit."""

APART_MIN: Final = 1.15
APART_MAX: Final = 1.9
"""Two points must be so far apart (in concurrency) to tell something, and no further: elasticity is a local thing."""


class Point(msgspec.Struct, frozen=True):
    """Mean latency (seconds) at a mean concurrency, as of ``at``."""

    concurrency: float
    latency: float
    at: float


class Window:
    """Samples until there are enough. ``since``: when they began to be counted."""

    __slots__ = ("all_seconds", "began", "count", "drops", "seconds", "since")

    def __init__(self, began: float) -> None:
        self.began = self.since = began
        self.count = 0
        self.drops = 0
        self.seconds = 0.0
        self.all_seconds = 0.0

    def add(self, seconds: float, counts: bool = True) -> None:
        """``counts``: it began under this limit, and not under a higher one."""
        self.all_seconds += seconds
        if counts:
            self.count += 1
            self.seconds += seconds

    def concurrency(self, now: float) -> float:
        """Little's: what calls took together in this time. How many were in flight as one began would say less of a
        server that batches: it answers many in one instant, and the next ones begin one by one."""
        return self.all_seconds / max(now - self.since, 1e-9)

    def latency(self) -> float:
        return self.seconds / self.count


def elasticity(below: Point, point: Point) -> float:
    """How throughput grows with concurrency between two points: 1 in step with it, 0 not at all. 1 for points that
    nothing can be said of: 0 seconds, or one that is not below, as when the limit sank while it was measured."""
    if below.latency <= 0.0 or point.latency <= 0.0 or below.concurrency >= point.concurrency:
        return 1.0
    return 1.0 - math.log(point.latency / below.latency) / math.log(point.concurrency / below.concurrency)


def elasticity_of(gain: float) -> float:
    """The elasticity of a server that does so much more (0.07: 7 %) when it is given a third more at once."""
    return math.log(1.0 + gain) / math.log(1.0 / BELOW)
