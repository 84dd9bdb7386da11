"""Moments at which something ends unless it is called off first, as nearly all are.

Rule of this file: one timer of the loop for all of them. A timer made and cancelled for each wait costs more than most
waits' own work, and what is called off before its time needs none: the one timer stands for the earliest moment that it
was told of, and looks for the next when it goes off.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

PAUSE_SECONDS_EACH: Final = 0.000_000_5
"""After a look at all moments the next comes so much later, for each of them, or more. A look takes some 0.05 µs for
each: so callers with ever shorter times, beside many who wait long, cost a tenth of a core and no more,
and ten thousand who wait make an alarm 5 ms late at most."""


class Alarms(Generic[K]):
    """Calls ``ring`` with whatever's moment has come, once, and from the loop. Bounded by who sets them. Belongs to one
    event loop, which must be running when the first is set."""

    __slots__ = ("_at", "_moments", "_paused_until", "_ring", "_timer")

    def __init__(self, ring: Callable[[K], None]) -> None:
        self._ring = ring
        self._moments: dict[K, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._at = math.inf  # when the timer goes off
        self._paused_until = -math.inf

    def __len__(self) -> int:
        return len(self._moments)

    def set(self, key: K, at: float) -> None:
        """Ring at ``at``, in seconds of the loop's time; infinity: never. A key has one moment at a time."""
        self._moments[key] = at
        if at < self._at:
            self._stand_for(at)

    def drop(self, key: K) -> None:
        """Do not, if it has not rung yet."""
        self._moments.pop(key, None)

    def _stand_for(self, at: float) -> None:
        at = max(at, self._paused_until)
        if at >= self._at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        self._timer = asyncio.get_running_loop().call_at(at, self._look)

    def _look(self) -> None:
        # A loop may call somewhat early (its clock is coarse): what the timer stood for is over all the same.
        now = max(self._at, asyncio.get_running_loop().time())
        self._timer, self._at = None, math.inf
        self._paused_until = now + PAUSE_SECONDS_EACH * len(self._moments)
        for key in [key for key, at in self._moments.items() if at <= now]:
            if self._moments.get(key, math.inf) <= now:  # one that rings may call off another, or set it for later
                del self._moments[key]
                self._ring(key)
        self._stand_for(min(self._moments.values(), default=math.inf))


class Timeouts:
    """Blocks that end in time, as those of ``asyncio.timeout`` do: by a cancellation that is a TimeoutError outside of
    them. Belongs to one event loop, which must be running when the first block begins."""

    __slots__ = ("_alarms", "_loop")

    def __init__(self) -> None:
        self._alarms: Alarms[Timeout] = Alarms(Timeout.expire)
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        """Blocks that have begun and not ended."""
        return len(self._alarms)

    def after(self, seconds: float) -> Timeout:
        """A block that a task may be in for so long, from now on; infinity: without an end. It raises TimeoutError."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        return Timeout(self._alarms, loop, loop.time() + seconds)


class Timeout:
    """One block of `Timeouts`, which is entered once."""

    __slots__ = ("_alarms", "_at", "_cancelling", "_is_over", "_loop", "_task")

    def __init__(self, alarms: Alarms[Timeout], loop: asyncio.AbstractEventLoop, at: float) -> None:
        self._alarms = alarms
        self._loop = loop
        self._at = at
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._is_over = False

    def __enter__(self) -> None:
        task = self._task = asyncio.current_task(self._loop)
        assert task is not None, "only a task can be cancelled"
        self._cancelling = task.cancelling()
        self._alarms.set(self, self._at)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._alarms.drop(self)
        if not self._is_over:
            return
        assert self._task is not None
        # Where somebody else has cancelled it too, that is what it is told.
        if self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error

    def expire(self) -> None:
        """Its time is over."""
        assert self._task is not None
        self._is_over = True
        self._task.cancel()
