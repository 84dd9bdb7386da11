"""Deadlines in virtual time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from degrade.deadline import Deadline

MOMENTS = st.floats(min_value=0, max_value=1e9)


@given(MOMENTS, MOMENTS)
def test_remaining_and_expired_agree(at: float, now: float) -> None:
    deadline = Deadline(at)
    assert deadline.remaining(now) >= 0
    assert deadline.expired(now) == (deadline.remaining(now) == 0)


def test_after_and_sooner() -> None:
    early, late = Deadline.after(10.0, 1.0), Deadline.after(10.0, 2.0)
    assert early.at == 11.0
    assert early.sooner(late) is early
    assert late.sooner(early) is early
    assert Deadline.after(10.0, -1.0).expired(10.0)
