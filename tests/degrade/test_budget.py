"""The retry budget never grants more than its share, and always its floor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degrade.budget import EARNED_RETRIES_MAX, RetryBudget


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.01, 0.5, 3.0])), max_size=200))
def test_retries_stay_within_the_share_and_the_floor(events: list[tuple[bool, float]]) -> None:
    budget = RetryBudget(ratio=0.2, floor_per_second=2.0)
    now, requests, granted = 0.0, 0, 0
    for is_request, passed in events:
        now += passed
        if is_request:
            budget.request(now)
            requests += 1
        else:
            granted += budget.take(now)
        assert granted <= 0.2 * requests + 2.0 * now + 2.0 + 1e-6


def test_five_requests_earn_one_retry() -> None:
    budget = RetryBudget(ratio=0.2, floor_per_second=0.0)
    for _ in range(4):
        budget.request(0.0)
    assert not budget.take(0.0)
    budget.request(0.0)
    assert budget.take(0.0)
    assert not budget.take(1000.0)


def test_the_floor_comes_back_and_is_bounded() -> None:
    budget = RetryBudget(ratio=0.0, floor_per_second=10.0)
    assert [budget.take(0.0) for _ in range(11)] == [True] * 10 + [False]
    assert not budget.take(0.05)
    assert budget.take(0.1)
    assert sum(budget.take(1000.0) for _ in range(50)) == 10


def test_a_slow_floor_still_reaches_a_retry() -> None:
    budget = RetryBudget(ratio=0.0, floor_per_second=0.1)
    assert budget.take(0.0)
    assert not budget.take(9.0)
    assert budget.take(10.0)


def test_a_quiet_day_does_not_pay_for_a_storm() -> None:
    budget = RetryBudget(ratio=1.0, floor_per_second=0.0)
    for _ in range(10_000):
        budget.request(0.0)
    assert sum(budget.take(0.0) for _ in range(10_000)) == EARNED_RETRIES_MAX


def test_negative_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        RetryBudget(ratio=-0.1)
