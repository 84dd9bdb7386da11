"""Work on a message that would keep the event loop from everybody else: one at a time, on a thread of its own.

Rule of this file: it knows no message. One thread, because what is done here holds Python's lock for much of
its time, and because what it takes in memory is then that of one message. Callers take turns, so that one who
has much to be read delays nobody but himself by more than one message. Who waits is bounded, in number and by
its own time; what nobody waits for any more is not begun.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}  # the caller whose turn it is comes first
        self._busy = False
        self.waiting = 0

    async def run(self, work: Callable[[], R], caller: str, seconds: float) -> R:
        """What ``work`` returns or raises, within ``seconds``.

        Raises Refused: 503 if too many wait, and if the time is over; work that has begun then goes on, for
        nothing, and the next waits for its end.
        """
        if self.waiting >= self._waiting_max:
            detail = f"{self.waiting} large or compressed messages wait to be read already; try again."
            raise Refused(unavailable(detail, RETRY_AFTER_SECONDS))
        self.waiting += 1
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._turn(caller)
                return await self._begun(work)
        except TimeoutError:
            detail = "The time for this request was over before its message was read."
            raise Refused(deadline_exceeded(detail, RETRY_AFTER_SECONDS)) from None
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _begun(self, work: Callable[[], R]) -> asyncio.Future[R]:
        loop = asyncio.get_running_loop()

        def ended(_: Future[R]) -> None:  # on the thread
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._pass_on)

        try:
            begun = self._thread.submit(work)
        except RuntimeError:  # closed meanwhile
            self._pass_on()
            raise Refused(unavailable("The gateway is stopping.", RETRY_AFTER_SECONDS)) from None
        begun.add_done_callback(ended)
        return asyncio.wrap_future(begun, loop=loop)

    async def _turn(self, caller: str) -> None:
        """Wait until the thread is ours."""
        if not self._busy:
            self._busy = True
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(caller, deque()).append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self._leave(caller, waiter)
            else:
                self._pass_on()  # it was our turn in the very moment we left
            raise

    def _leave(self, caller: str, waiter: asyncio.Future[None]) -> None:
        line = self._lines.get(caller)
        if line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                del self._lines[caller]

    def _pass_on(self) -> None:
        """Give the thread to the next caller's next message."""
        while self._lines:
            caller, line = next(iter(self._lines.items()))
            waiter = line.popleft()
            del self._lines[caller]
            if line:
                self._lines[caller] = line  # behind all others
            if not waiter.done():  # else it has been cancelled, and not yet run
                waiter.set_result(None)
                return
        self._busy = False
