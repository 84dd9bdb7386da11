"""How long a worker that keeps ending is left alone."""

from __future__ import annotations

import pytest

from gateway.supervisor import BACKOFF_SECONDS, BACKOFF_SECONDS_MAX, backoff


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(0, 0.0), (1, BACKOFF_SECONDS), (2, 2 * BACKOFF_SECONDS), (4, 8 * BACKOFF_SECONDS), (10**6, BACKOFF_SECONDS_MAX)],
)
def test_each_short_life_doubles_the_pause_up_to_a_bound(failures: int, seconds: float) -> None:
    assert backoff(failures) == seconds
