"""How something has fared lately: outcomes of real calls in a sliding window.

Rule of this file: it counts and says; it decides nothing and knows neither what was called nor why
it failed. Memory is fixed: a ring of buckets, however many outcomes come.
"""

from __future__ import annotations

import math
from typing import Final

BUCKETS: Final = 10
"""Default number of buckets of a window: it slides in steps of a tenth."""


class Outcomes:
    """Successes and failures of the last ``window`` seconds, in ``buckets`` steps of time.

    The window slides a bucket at a time, so an outcome is forgotten between ``window - window /
    buckets`` and ``window`` seconds after it came. A time earlier than the latest one seen counts
    as the latest: callers end out of order, and the past is not rewritten.
    """

    def __init__(self, window: float, buckets: int = BUCKETS) -> None:
        if window <= 0.0 or buckets < 1:
            raise ValueError("a window needs a length above 0 seconds and at least one bucket")
        self._width = window / buckets
        self._ok = [0] * buckets
        self._failed = [0] * buckets
        self._head: int | None = None  # the newest bucket, counted from the beginning of time
        self._index = 0  # where in the ring it is
        self._until = -math.inf  # when it ends
        self._consecutive_failures = 0

    @property
    def consecutive_failures(self) -> int:
        """Failures since the last success, however long ago they were."""
        return self._consecutive_failures

    def add(self, ok: bool, now: float) -> None:
        """Counts one outcome at ``now``."""
        if now >= self._until:
            self._advance(now)
        if ok:
            self._ok[self._index] += 1
            self._consecutive_failures = 0
        else:
            self._failed[self._index] += 1
            self._consecutive_failures += 1

    def counts(self, now: float) -> tuple[int, int]:
        """How many (succeeded, failed) in the window that ends at ``now``."""
        if now >= self._until:
            self._advance(now)
        return sum(self._ok), sum(self._failed)

    def _advance(self, now: float) -> None:
        """Begin the bucket that ``now`` falls into."""
        buckets = len(self._ok)
        tick = int(now // self._width)
        if self._head is None:
            self._head = tick
        for passed in range(min(tick - self._head, buckets)):
            index = (tick - passed) % buckets
            self._ok[index] = self._failed[index] = 0
        self._head = max(self._head, tick)
        self._index = self._head % buckets
        self._until = (self._head + 1) * self._width
