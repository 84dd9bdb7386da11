"""How many retries may be made: a share of the requests, so that retrying never multiplies an outage.

Rule of this file: two purses of tokens. Every request earns ``ratio`` of a retry (kept up to a
bound, so that a quiet day does not pay for a storm), and a floor refills with time, so that a
service with little traffic may still retry. Over any span of t seconds with n requests at most
``ratio * n + floor_per_second * t`` retries are granted beyond what both purses held at its start.
After Finagle's RetryBudget. It must not know what is retried.
"""

from __future__ import annotations

from typing import Final

EARNED_RETRIES_MAX: Final = 100.0
"""Most retries that requests can save up: the largest burst of retries beyond the floor."""

_WHOLE: Final = 1.0 - 1e-9  # five times 0.2 must make one retry, whatever floats say


class RetryBudget:
    """Retries bounded to a share of requests. It starts with a full floor and nothing earned."""

    def __init__(self, ratio: float = 0.2, floor_per_second: float = 10.0) -> None:
        if ratio < 0.0 or floor_per_second < 0.0:
            raise ValueError("a retry budget has no negative parts")
        self._ratio = ratio
        self._floor_per_second = floor_per_second
        # One second's worth; a floor slower than one a second must still reach a whole retry.
        self._floor_max = max(1.0, floor_per_second) if floor_per_second > 0.0 else 0.0
        self._floor = self._floor_max
        self._floor_at: float | None = None
        self._earned = 0.0

    def request(self, now: float) -> None:
        """Counts one first attempt (never a retry)."""
        self._refill(now)
        self._earned = min(EARNED_RETRIES_MAX, self._earned + self._ratio)

    def take(self, now: float) -> bool:
        """Takes one retry, if there is one: earned ones first, they are the ones that would be lost."""
        self._refill(now)
        if self._earned >= _WHOLE:
            self._earned = max(0.0, self._earned - 1.0)
            return True
        if self._floor >= _WHOLE:
            self._floor = max(0.0, self._floor - 1.0)
            return True
        return False

    def _refill(self, now: float) -> None:
        if self._floor_at is None:
            self._floor_at = now
        if now > self._floor_at:
            gained = (now - self._floor_at) * self._floor_per_second
            self._floor = min(self._floor_max, self._floor + gained)
            self._floor_at = now
