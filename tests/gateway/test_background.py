"""What runs beside the requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.background import kept_up


async def test_a_background_loop_goes_on_after_a_bug() -> None:
    runs: list[float] = []
    waits: list[float] = []

    async def loop(interval: float, sleep: Callable[[float], Awaitable[None]]) -> None:
        runs.append(interval)
        if len(runs) < 3:
            raise AttributeError("a bug")
        raise asyncio.CancelledError

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    with pytest.raises(asyncio.CancelledError):
        await kept_up(loop, 0.5, sleep)
    assert runs == [0.5] * 3
    assert waits == [0.5] * 2
