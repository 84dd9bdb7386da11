"""Looks at what lies on the disk, beside the event loop: one that hangs holds up who looks, for a moment, and no other.

To read what LMDB has mapped takes some microseconds. But it writes into its lock file for that, and pages may have to
come from the disk first; where that hangs (a volume that has gone, a file system that is frozen for a backup), whoever
reads stands still, and no signal ends him. So a thread reads, for all who ask one after the other, and nobody waits for
it longer than he says. Where one look lasts ``LOOK_SECONDS_MAX`` there is nothing on the disk, at once, for everybody,
until it has come.

A thread needs the interpreter, as the event loop does, and has to wait for it while that is busy: that is our own
lateness, and not the disk's. So who waits for a look that has not begun waits on, and what passes while the loop is
late too is not counted as the disk's. Who has no more time all the same gets nothing, and so do others, at once, until
the thread has got on, if it has not in all of his time: one request looks several times. That says nothing of the disk.

Rule of this file: who reads, and how long anyone waits for it. What is looked for, and what it is good for, is
``copies.py``'s. It raises nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final

import msgspec

from degrade.record import Good, Terms, V
from gateway.depot import Directory

LOOK_SECONDS_MAX: Final = 0.5
"""Of one look on the disk: it takes a twentieth of a millisecond, and one that lasts so long hangs."""
CLOSE_SECONDS_MAX: Final = 1.0
STEPS: Final = 4
"""In which somebody's time for a running look passes."""
STEP_SECONDS_MIN: Final = 0.001
LATE_TIMES: Final = 2.0
"""An event loop that comes back from a step after so many times its length was busy, and so had the interpreter."""
TOLD_KEYS_MAX: Final = 64
"""Looked for before the first of several who wait are told: one wake-up of the event loop for all of them."""


class LookTime(msgspec.Struct, frozen=True):
    """Who looks has so many ``seconds`` in all, and no more than ``running`` of them for looks that are under way, his
    own or the one that is before his: that is how long a disk may hold him up."""

    seconds: float
    running: float


class _Look:
    """One caller's. ``come``: done when there is nothing to wait for any more."""

    def __init__(self, work: Callable[[], None], keys: int, come: asyncio.Future[None]) -> None:
        self.work = work
        self.keys = keys
        self.come = come
        self.is_wanted = True
        self.is_over = False
        self.fault: Exception | None = None


class Reads:
    """One directory's. Belongs to an event loop; ``thread`` is its alone."""

    def __init__(self, directory: Directory, thread: Executor) -> None:
        self._directory = directory
        self._thread = thread
        self._waiting: deque[_Look] = deque()
        self._at: _Look | None = None  # where the thread is
        self._over = 0  # how many it has been at
        self._stands = -1  # where somebody's time was over in which it had not got on
        self._watch: asyncio.TimerHandle | None = None  # of its turn; None: it has none
        self._closed = False
        self.hangs = False
        """Whether a look has lasted too long, and has not come since."""
        self.late = 0
        """Looks for which whoever asked had no more time, though nothing has hung."""

    async def read(
        self, kind: str, source: str, keys: Sequence[bytes], terms: Terms[V], now: float, time: LookTime
    ) -> list[Good[V] | None]:
        """What is kept under each key, if it is good, read; nothing where that is not known in ``time``. ``now``: Unix
        seconds."""
        found: list[list[Good[V] | None]] = []

        def look() -> None:
            found.append([self._directory.find(kind, source, key, terms, now) for key in keys])

        nothing: list[Good[V] | None] = [None] * len(keys)
        if self._closed:  # flights outlive their callers, and what closes them comes later
            return nothing
        if not self.hangs and self._stands != self._over:
            await self._wait(_Look(look, len(keys), asyncio.get_running_loop().create_future()), time)
        if found:
            return found[0]
        if self.hangs:
            self._directory.failures["timeout"] += 1
        else:
            self.late += 1
        return nothing

    def settle(self) -> None:
        """Close what is not read any more, after what is being read."""
        if not self.hangs and not self._closed:
            self._thread.submit(self._directory.settle)

    async def close(self) -> None:
        """Close all of it, if nobody stands in it; from then on nothing is there."""
        self._closed = True
        if not self.hangs:
            closing = asyncio.get_running_loop().run_in_executor(self._thread, self._directory.close)
            await asyncio.wait([closing], timeout=CLOSE_SECONDS_MAX)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _wait(self, look: _Look, time: LookTime) -> None:
        """Until the look is over, or there is no more time for it."""
        loop, over = asyncio.get_running_loop(), self._over
        self._waiting.append(look)
        self._begin(loop)  # first, so that a look is known to hang before he leaves who waits for all of it
        end, running, step = loop.time() + time.seconds, time.running, max(time.running / STEPS, STEP_SECONDS_MIN)
        try:
            while not (look.is_over or look.come.done()) and running > 0.0 and (left := end - loop.time()) > 0.0:
                at, began = self._at, loop.time()
                await asyncio.wait([look.come], timeout=min(step, left))
                if at is not None and at is self._at and loop.time() - began < LATE_TIMES * step:
                    running -= step
        finally:
            look.is_wanted = False
        if look.fault is not None:
            raise look.fault
        if not (look.is_over or look.come.done()) and (running <= 0.0 or over == self._over):
            self._stands = self._over

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the thread have a turn, unless it has one."""
        if self._watch is None:
            self._watch = loop.call_later(LOOK_SECONDS_MAX, self._judge, loop, self._over)
            self._thread.submit(self._turn, loop)

    def _judge(self, loop: asyncio.AbstractEventLoop, over: int) -> None:
        """Whether the thread is at the same look all the time."""
        if self._over != over:
            self._watch = loop.call_later(LOOK_SECONDS_MAX, self._judge, loop, self._over)
            return
        self.hangs = True
        self._give_up()

    def _give_up(self) -> None:
        """Nobody waits any more."""
        standing = [] if self._at is None else [self._at]
        while self._waiting:
            standing.append(self._waiting.popleft())
        for look in standing:
            if not look.come.done():
                look.come.set_result(None)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread's: one look after the other, until none waits."""
        over, keys = list[_Look](), 0
        with contextlib.suppress(IndexError):
            while True:
                look = self._at = self._waiting.popleft()
                if look.is_wanted:
                    try:
                        look.work()
                    except Exception as fault:  # a bug of ours, for whoever asked
                        look.fault = fault
                    look.is_over = True
                    over.append(look)
                    keys += look.keys
                self._at = None
                self._over += 1
                if keys >= TOLD_KEYS_MAX:
                    self._call(loop, self._tell, over)
                    over, keys = [], 0
        self._call(loop, self._end, loop, over)

    def _call(self, loop: asyncio.AbstractEventLoop, called: Callable[..., None], *told: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(called, *told)

    def _tell(self, over: Sequence[_Look]) -> None:
        for look in over:
            if not look.come.done():
                look.come.set_result(None)

    def _end(self, loop: asyncio.AbstractEventLoop, over: Sequence[_Look]) -> None:
        """The thread's turn has ended; who came meanwhile has the next."""
        self._tell(over)
        assert self._watch is not None
        self._watch.cancel()
        self._watch, self.hangs, self._stands = None, False, -1
        if self._waiting:
            self._begin(loop)
