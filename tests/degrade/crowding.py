"""A gate in virtual time before a server of equal places, and callers who come at random whether others are served or
not. Nothing waits; the same seed is the same run."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from degrade.gate import Claim, Gate, Permit, Shed, Waiting


@dataclass(frozen=True)
class Stream:
    """Requests of one claim, ``rate`` a second in the mean (Poisson)."""

    claim: Claim
    rate: float


@dataclass(frozen=True)
class Told:
    """When a request came, and how long it took until its answer; infinite without one."""

    claim: Claim
    came: float
    seconds: float


@dataclass
class World:
    """``places`` requests at once, ``work`` seconds each (give or take ``spread``), in the order in which they come;
    an answer is of use for ``deadline`` seconds."""

    gate: Gate
    places: int
    work: float
    deadline: float
    spread: float = 0.002
    now: float = 0.0
    told: list[Told] = field(default_factory=list)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _queue: deque[tuple[Claim, float, Permit]] = field(default_factory=deque)
    _busy: int = 0
    _serial: int = 0

    def run(self, streams: Sequence[Stream], seconds: float, seed: int) -> list[Told]:
        self._chance = random.Random(seed)
        for stream in streams:
            at = self._chance.expovariate(stream.rate)
            while at < seconds:
                self._at(at, lambda claim=stream.claim: self._ask(claim))
                at += self._chance.expovariate(stream.rate)
        while self._events:
            self.now, _, happens = heapq.heappop(self._events)
            happens()
        return self.told

    def _at(self, when: float, happens: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._events, (when, self._serial, happens))

    def _ask(self, claim: Claim) -> None:
        came = self.now
        waits: list[Waiting] = []

        def woken() -> None:
            outcome = waits[0].outcome
            if isinstance(outcome, Permit):
                self._send(claim, came, outcome)
            else:
                self.told.append(Told(claim, came, math.inf))

        found = self.gate.admit(claim, self.deadline, came)
        if isinstance(found, Permit):
            self._send(claim, came, found)
        elif isinstance(found, Shed):
            self.told.append(Told(claim, came, math.inf))
        else:
            found.wake = woken
            waits.append(found)
            self._at(came + found.patience, lambda: found.outcome is None and found.expire(self.now))

    def _send(self, claim: Claim, came: float, permit: Permit) -> None:
        self._queue.append((claim, came, permit))
        self._begin()

    def _begin(self) -> None:
        while self._busy < self.places and self._queue:
            claim, came, permit = self._queue.popleft()
            self._busy += 1
            took = self.work + self.spread * self._chance.random()
            self._at(self.now + took, lambda claim=claim, came=came, permit=permit: self._end(claim, came, permit))

    def _end(self, claim: Claim, came: float, permit: Permit) -> None:
        self._busy -= 1
        permit.succeeded(self.now)
        seconds = self.now - came
        self.told.append(Told(claim, came, seconds if seconds <= self.deadline else math.inf))
        self._begin()


def p99(told: Sequence[Told]) -> float:
    took = sorted(each.seconds for each in told)
    return took[math.ceil(0.99 * len(took)) - 1]


def goodput(told: Sequence[Told], seconds: float) -> float:
    """Answers in time, a second."""
    return sum(math.isfinite(each.seconds) for each in told) / seconds
