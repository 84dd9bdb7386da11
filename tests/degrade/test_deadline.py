"""Deadlines in virtual time; the loop is asked to wait only where nothing can decide by timing."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degrade.deadline import Deadline, bounded

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


@pytest.mark.parametrize("seconds", [60.0, math.inf])
async def test_bounded_gives_the_result(seconds: float) -> None:
    async def answer() -> int:
        return 7

    assert await bounded(answer(), Deadline.after(5.0, seconds), 5.0) == 7


async def test_bounded_does_not_start_what_is_too_late() -> None:
    started = False

    async def answer() -> None:
        nonlocal started
        started = True

    with pytest.raises(TimeoutError):
        await bounded(answer(), Deadline(5.0), 5.0)
    assert not started
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with pytest.raises(TimeoutError):
        await bounded(future, Deadline(5.0), 6.0)
    assert future.cancelled()


async def test_bounded_cancels_what_hangs() -> None:
    cancelled = False

    async def hang() -> None:
        nonlocal cancelled
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled = True
            raise

    with pytest.raises(TimeoutError):
        await bounded(hang(), Deadline.after(0.0, 0.001), 0.0)
    assert cancelled
