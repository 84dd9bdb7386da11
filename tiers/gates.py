"""The ways to a backend's models: a gate for each, and how somebody waits at one.

Rule of this file: the asynchronous shell of ``degrade/gate.py``; it decides nothing. A model of a backend has one gate
for all its replicas, for it is there that requests queue in Triton (each model has its own instances and its own
queue), and who waits before the choice of a replica is not bound to a slow one. It must not know routes or replicas.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from msgspec import Struct

from cache.alarms import Timeouts
from degrade.brownout import SHED_LOWEST
from degrade.deadline import Deadline, Ticker
from degrade.gate import Claim, Gate, GateOptions, Permit, Priority, Shed
from degrade.ladder import Failure
from degrade.limiter import Limiter, LimiterOptions
from tiers.facts import Capacity
from tiers.inference import UpstreamError

GATES_MAX: Final = 256
"""Models of one backend that have a gate; the one that was longest not asked goes first, if nobody is in it: reloads
may bring ever new models."""

WAY_SMOOTHING: Final = 0.2
"""Weight of each look at how long the way to a model's instances takes: ours and the server's times are means of nearly
the same requests, but not quite."""

_SAID: Final = {
    "full": "more wait for it than can be answered in time",
    "displaced": "others who wait for it go before",
    "late": "it had no place within the time there was",
    "brownout": "requests of this priority are not served at present",
}


class GatesOptions(Struct, frozen=True):
    """Of each gate."""

    limiter: LimiterOptions = LimiterOptions()
    gate: GateOptions = GateOptions()


class Gates:
    """The gates of one backend. Belongs to one event loop."""

    def __init__(self, options: GatesOptions, now: Ticker, chance: random.Random) -> None:
        self._options = options
        self._now = now
        self._chance = chance
        self._gates: OrderedDict[str, Gate] = OrderedDict()
        self._ways: dict[str, _Way] = {}
        self.capacity: Callable[[str], Capacity | None] = _unknown
        """What a model's servers can do, the same object until that is another. Asked at every request."""
        self._least = Priority.LOW
        self._level = 0
        self._timeouts = Timeouts()

    def __iter__(self) -> Iterator[tuple[str, Gate]]:
        """Each model and its gate."""
        return iter(self._gates.items())

    @property
    def level(self) -> int:
        """The backend's brownout level; at the highest the lowest priority is not let in."""
        return self._level

    @level.setter
    def level(self, level: int) -> None:
        self._level = level
        self._least = Priority.NORMAL if level >= SHED_LOWEST else Priority.LOW
        for gate in self._gates.values():
            gate.least = self._least

    def of(self, key: str) -> Gate:
        """A model's gate."""
        gate = self._gates.get(key)
        if gate is None:
            gate = self._gates[key] = Gate(Limiter(self._options.limiter, self._chance), self._options.gate)
            gate.least = self._least
            self._ways[key] = _Way()
            self._forget()
        else:
            self._gates.move_to_end(key)
        way, capacity = self._ways[key], self.capacity(key)
        if way.capacity is not capacity:
            way.capacity = capacity
            gate.places = way.places(gate.latency)
        return gate

    async def enter(self, key: str, claim: Claim, deadline: Deadline) -> Permit:
        """A permit for a call to a model, waited for if need be. Raises UpstreamError (SHED) without one."""
        now, gate = self._now(), self.of(key)
        seconds = deadline.remaining(now)
        found = gate.admit(claim, seconds, now)
        if isinstance(found, Permit):
            return found
        if isinstance(found, Shed):
            raise shed_error(key, found)
        came: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        found.wake = partial(_wake, came)
        try:
            with self._timeouts.after(min(found.patience, seconds)):
                await came
        except TimeoutError:
            pass  # a permit may have come in the same turn
        except BaseException:
            found.leave(self._now())
            raise
        outcome = found.expire(self._now()) if found.outcome is None else found.outcome
        if isinstance(outcome, Shed):
            raise shed_error(key, outcome)
        return outcome

    def _forget(self) -> None:
        """Keep to ``GATES_MAX``, but for gates with somebody in them, whose number other limits bound."""
        if len(self._gates) <= GATES_MAX:
            return
        idle = next((key for key, gate in self._gates.items() if gate.is_idle), None)
        if idle is not None:
            del self._gates[idle], self._ways[idle]


class _Way:
    """Between us and a model's instances: requests that are on it are in flight, too, and keep no instance busy. So
    with k of those there are k x (1 + way / work) in flight when all are busy, by Little's law."""

    __slots__ = ("_seconds", "capacity")

    def __init__(self) -> None:
        self.capacity: Capacity | None = None
        self._seconds: float | None = None

    def places(self, latency: float) -> int:
        """How many may be in flight for that; 0: nobody knows. ``latency``: seconds that a call takes us lately."""
        told = self.capacity
        if told is None or latency <= 0.0:
            return 0
        seconds = max(0.0, latency - told.served)
        known = seconds if self._seconds is None else self._seconds
        self._seconds = known + WAY_SMOOTHING * (seconds - known)
        return int(told.places * (1.0 + self._seconds / told.computed))


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _unknown(key: str) -> Capacity | None:
    return None


def shed_error(key: str, shed: Shed) -> UpstreamError:
    """What a refusal at a gate is for those who ask."""
    said = _SAID[shed.reason]
    return UpstreamError(Failure.SHED, f"{key}: {said}", before_answer=True, retry_after=shed.retry_after)


DECENT_SHARE: Final = 0.5
"""Of a decent time: how much of it must have been the server's for a time-out to speak against it."""


class Admitted:
    """A call that has a permit, which ends with the block, once, by how the call went."""

    __slots__ = ("_began", "_decent", "_now", "_permit", "again")

    def __init__(self, permit: Permit, now: Ticker, decent: float) -> None:
        """``decent``: seconds of silence after which somebody who leaves had every reason to."""
        self._permit = permit
        self._now = now
        self._began = now()
        self._decent = decent
        self.again: UpstreamError | None = None
        """Why it was made twice: then its time says nothing, and this may."""

    def __enter__(self) -> Admitted:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        now, permit = self._now(), self._permit
        if error is None and self.again is None:
            permit.succeeded(now)
            return
        failed = error if isinstance(error, UpstreamError) else self.again
        if failed is not None:
            if failed.failure is Failure.TIMEOUT:
                permit.silent(now, DECENT_SHARE * self._decent)
            else:
                (permit.dropped if failed.failure is Failure.OVERLOADED else permit.ignored)(now)
        elif isinstance(error, asyncio.CancelledError) and now - self._began >= self._decent:
            permit.dropped(now)
        else:  # a refusal is quick whatever the load is
            permit.ignored(now)
