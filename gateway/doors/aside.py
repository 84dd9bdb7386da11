"""Work on a message that would keep the event loop from everybody else: one at a time, on a thread of its own.

Rule of this file: it knows no message. One thread, because what is done here holds Python's lock for much of
its time, and because what it takes in memory is then that of one message. Who waits is bounded, in number and
by its own deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from gateway.problem import Refused, deadline_exceeded, unavailable

R = TypeVar("R")

WAITING_MAX: Final = 256
"""Messages that may wait for the thread: each is held in memory, and a second of work for each is too many."""

RETRY_AFTER_SECONDS: Final = 1.0


class Aside:
    """The thread, and who waits for it. Belongs to one event loop."""

    def __init__(self, waiting_max: int = WAITING_MAX) -> None:
        self._waiting_max = waiting_max
        self._thread = ThreadPoolExecutor(1, "tailrace-aside")
        self.waiting = 0

    async def run(self, work: Callable[[], R], seconds: float) -> R:
        """What ``work`` returns or raises, within ``seconds``.

        Raises Refused: 503 if too many wait, and if the time is over; then the work goes on, for nothing,
        unless it had not begun.
        """
        if self.waiting >= self._waiting_max:
            detail = f"{self.waiting} large or compressed messages wait to be read already; try again."
            raise Refused(unavailable(detail, RETRY_AFTER_SECONDS))
        self.waiting += 1
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except TimeoutError:
            detail = "The time for this request was over before its message was read."
            raise Refused(deadline_exceeded(detail, RETRY_AFTER_SECONDS)) from None
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
