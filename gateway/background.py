"""What runs beside the requests for as long as the gateway does, and goes on after a bug of ours.

Rule of this file: it keeps loops up and knows nothing of what they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from degrade.deadline import Ticker

Sleep = Callable[[float], Awaitable[None]]
Run = Callable[[float, Sleep], Awaitable[None]]

_log = structlog.get_logger("tailrace")


async def came(event: asyncio.Event, seconds: float) -> bool:
    """Whether something happens, waiting ``seconds`` for it at most."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


class Swept(Protocol):
    """What has peers who may take too long."""

    def sweep(self, now: float) -> None:
        """Cut those whose time is over. ``now``: monotonic seconds."""


def kept(run: Run, interval: float) -> asyncio.Task[None]:
    """A loop that turns every ``interval`` seconds, as a task that only cancelling ends."""
    task = asyncio.create_task(kept_up(run, interval, asyncio.sleep))
    task.add_done_callback(_complain)
    return task


async def kept_up(run: Run, interval: float, sleep: Sleep) -> None:
    """Run a background loop, and again ``interval`` seconds after a bug of ours has ended it.

    Without the catalog's polls an old model's answers would go on as fresh, so a bug there must not be its end.
    """
    while True:
        try:
            await run(interval, sleep)
        except Exception:
            _log.exception("background task failed")
        await sleep(interval)


async def sweep(swept: Swept, ticker: Ticker, interval: float, sleep: Sleep) -> None:
    """Look for slow peers for ever."""
    while True:
        await sleep(interval)
        swept.sweep(ticker())


def _complain(task: asyncio.Task[None]) -> None:
    """A background task ends only by being cancelled; anything else is our bug, and must be seen."""
    if not task.cancelled() and task.exception() is not None:
        _log.error("background task died", error=repr(task.exception()))
