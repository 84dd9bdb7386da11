"""Who leads and who waits: callers that want the same thing at the same time share one fill.

Rule of this file: the fill runs in a task of its own, so nobody's leaving harms those who stay. A
flight is known by its key only while its fill runs and somebody waits: when the last waiter leaves the
fill is cancelled and the key forgotten in the same step, and whoever comes next starts anew. It does not
know what is fetched; how long each caller waits is the caller's to say, and how long a fill may take the fill's.

An exception reaches every waiter as the same object: exceptions cannot be copied in general, and
callers tell them apart by class and attributes. ``Task.result`` restores the traceback for each waiter,
so it does not grow with their number; callers must not change such an exception, only raise from it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Hashable
from functools import cached_property
from typing import Generic, TypeVar

from cache.alarms import Alarms

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Fill = Callable[[], Coroutine[object, object, V]]


class Abandoned(Exception):
    """The fill was cancelled, but not by those who wait for it: it cancelled itself, or we closed.

    An ordinary exception, for a waiter that nobody cancelled must not see a CancelledError.
    """


class _Flight(Generic[V]):
    __slots__ = ("begun", "task", "waiters")

    def __init__(self) -> None:
        self.task: asyncio.Task[V]
        self.begun = False  # a task that is cancelled before its first step never runs a line of ours
        self.waiters: set[asyncio.Future[None]] = set()


class Flights(Generic[K, V]):
    """Fills under way, at most ``flights_max`` tasks at once, cancelled ones that still unwind included.

    Belongs to one event loop.
    """

    def __init__(self, flights_max: int) -> None:
        assert flights_max > 0
        self._flights_max = flights_max
        self._flights: dict[K, _Flight[V]] = {}
        self._tasks: set[asyncio.Task[V]] = set()  # also holds them: the loop alone would not
        self._patience: Alarms[asyncio.Future[None]] = Alarms(_expire)
        self._closed = False

    def __len__(self) -> int:
        """Fills that somebody waits for."""
        return len(self._flights)

    def __contains__(self, key: K) -> bool:
        """Whether somebody waits for this key's fill."""
        return key in self._flights

    @property
    def waiters(self) -> int:
        """Callers who wait for them, those who began one included."""
        return sum(len(flight.waiters) for flight in self._flights.values())

    async def join(self, key: K, fill: Fill[V], seconds: float = math.inf) -> tuple[V, bool]:
        """Wait for the key's fill, starting it if none is under way: (its value, whether we started it).

        Raises what the fill raised, Abandoned, or TimeoutError after ``seconds``; with none nothing is started.
        With ``flights_max`` tasks under way the caller runs a fill of its own, uncollapsed: slower is better than
        refused.
        """
        if self._closed:
            raise Abandoned("flights are closed")
        if seconds <= 0.0:
            raise TimeoutError
        flight = self._flights.get(key)
        led = flight is None
        if flight is None:
            if len(self._tasks) >= self._flights_max:
                async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                    return await fill(), True
            flight = self._start(key, fill)
        # A future of our own, not the task: that one must not be cancelled with us, nor its end taken for ours.
        waiter: asyncio.Future[None] = self._loop.create_future()
        flight.waiters.add(waiter)
        self._patience.set(waiter, self._loop.time() + seconds)
        try:
            await waiter
        finally:
            self._patience.drop(waiter)
            flight.waiters.discard(waiter)
            if not flight.waiters:
                self._leave(key, flight)
        if flight.task.cancelled():
            raise Abandoned("the fill was cancelled")
        return flight.task.result(), led

    async def close(self) -> None:
        """Cancel every fill and wait until all have unwound; waiters get Abandoned, as do later callers.

        A fill that resists cancellation holds this up: bound it with a deadline.
        """
        self._closed = True
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        for key, flight in list(self._flights.items()):
            if not flight.begun:
                self._land(key, flight)
        if tasks:
            await asyncio.wait(tasks)

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()  # to ask is a system call each time

    def _start(self, key: K, fill: Fill[V]) -> _Flight[V]:
        flight: _Flight[V] = _Flight()
        flight.task = self._loop.create_task(self._fly(key, flight, fill))
        self._tasks.add(flight.task)
        self._flights[key] = flight
        return flight

    async def _fly(self, key: K, flight: _Flight[V], fill: Fill[V]) -> V:
        """The fill, and its landing in the very step that ends it: a callback of the task would come a turn later."""
        flight.begun = True
        try:
            return await fill()
        except Exception:
            if flight.waiters:
                raise
            raise asyncio.CancelledError from None  # given up, and nobody is left to hear it
        finally:
            self._land(key, flight)

    def _land(self, key: K, flight: _Flight[V]) -> None:
        """Forget a flight that has come to its end, and wake who waits for it."""
        self._tasks.discard(flight.task)
        self._forget(key, flight)
        for waiter in flight.waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _leave(self, key: K, flight: _Flight[V]) -> None:
        """Its last waiter has left: one that has not landed is given up. It has begun: its first step was due before
        anything that could wake a waiter."""
        if not flight.task.done():
            self._forget(key, flight)
            flight.task.cancel()
        elif not flight.task.cancelled():
            flight.task.exception()  # observed: who was woken may have been cancelled in that turn

    def _forget(self, key: K, flight: _Flight[V]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
