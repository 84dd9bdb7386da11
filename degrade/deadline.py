"""The one moment by which a request must be over, on a monotonic clock that the caller reads.

Rule of this file: a deadline is a moment, never a duration, so it can be handed on without losing
time on the way. It must not read a clock, nor touch the event loop.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

Ticker = Callable[[], float]
"""A monotonic clock: seconds since a moment that means nothing."""


class Deadline(msgspec.Struct, frozen=True, gc=False):
    """``at`` is in a `Ticker`'s seconds; infinity means no deadline."""

    at: float

    @classmethod
    def after(cls, now: float, seconds: float) -> Deadline:
        """The deadline ``seconds`` from ``now``; seconds that are not positive make one already over."""
        return cls(now + seconds)

    def remaining(self, now: float) -> float:
        """Seconds left; never negative."""
        left = self.at - now
        return left if left > 0.0 else 0.0

    def expired(self, now: float) -> bool:
        """Whether no time is left: at the very moment it is over."""
        return now >= self.at

    def sooner(self, other: Deadline) -> Deadline:
        """The one of the two that is over first."""
        return self if self.at <= other.at else other
