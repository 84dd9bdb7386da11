"""Outcome windows beside a model that remembers everything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degrade.health import Outcomes

EVENTS = st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=60)


@given(EVENTS, st.integers(0, 40))
def test_counts_equal_a_model_that_remembers_everything(events: list[tuple[bool, int]], rest: int) -> None:
    outcomes = Outcomes(window=10.0, buckets=5)
    seen: list[tuple[bool, int]] = []
    now = 0
    for ok, passed in events:
        now += passed
        outcomes.add(ok, float(now))
        seen.append((ok, now))
    now += rest
    recent = [ok for ok, at in seen if at // 2 > now // 2 - 5]
    assert outcomes.counts(float(now)) == (recent.count(True), recent.count(False))
    trailing = [ok for ok, _ in seen][::-1]
    assert outcomes.consecutive_failures == (trailing.index(True) if True in trailing else len(trailing))


def test_an_earlier_time_counts_as_the_latest() -> None:
    outcomes = Outcomes(window=10.0)
    outcomes.add(True, 100.0)
    outcomes.add(False, 3.0)
    assert outcomes.counts(100.0) == (1, 1)
    assert outcomes.counts(3.0) == (1, 1)


def test_bounds_are_checked() -> None:
    with pytest.raises(ValueError, match="window"):
        Outcomes(window=0.0)
