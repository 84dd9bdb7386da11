"""A server in virtual time: k places at once, a queue before them, and a limiter that says how many may be there.

Events are a heap; nothing waits. What a run comes to is counted per second of virtual time.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


class Limits(Protocol):
    @property
    def limit(self) -> int: ...
    def sample(self, seconds: float, in_flight: int, now: float) -> None: ...
    def pressed(self, now: float) -> None: ...
    def dropped(self, began: float, now: float) -> None: ...


@dataclass
class Fixed:
    """A limit that somebody knew."""

    limit: int

    def sample(self, seconds: float, in_flight: int, now: float) -> None: ...
    def pressed(self, now: float) -> None: ...
    def dropped(self, began: float, now: float) -> None: ...


Service = Callable[[float, random.Random], float]
"""Seconds of work of one request that is begun at this time."""


@dataclass
class Server:
    """``places``: how many it works on at once, by the time. ``batch_cost``: not None: one place works on
    all that wait (at most ``batch_max``) at once, for a service's seconds and this for each."""

    places: Callable[[float], int]
    service: Service
    batch_cost: float | None = None
    batch_max: int = 64


@dataclass
class Outcome:
    """``done``: end and latency of each; ``limits``: the limit at the end of each tenth of a second."""

    done: list[tuple[float, float]] = field(default_factory=list)
    limits: list[tuple[float, int]] = field(default_factory=list)
    dropped: int = 0

    def throughput(self, since: float, until: float) -> float:
        return sum(1 for at, _ in self.done if since <= at < until) / (until - since)

    def limit(self, since: float, until: float) -> float:
        found = [limit for at, limit in self.limits if since <= at < until]
        return sum(found) / len(found)


def run(
    limits: Limits,
    server: Server,
    seconds: float,
    seed: int = 0,
    demand: Callable[[float], float] | None = None,
    timeout: float = float("inf"),
) -> Outcome:
    """``demand``: requests that want in at once, by the time; None: always more than are let in. An in-flight request
    that takes longer than ``timeout`` is a drop (its work is done all the same, as a server does)."""
    chance = random.Random(seed)
    outcome = Outcome()
    events: list[tuple[float, int, list[tuple[float, int]]]] = []
    queue: deque[tuple[float, int]] = deque()  # began, in flight then
    now, busy, in_flight, serial, looked = 0.0, 0, 0, 0, 0.0
    while now < seconds:
        wanted = float("inf") if demand is None else demand(now)
        while True:  # one after the other, as messages come: the first of them begins a batch, the others wait for it
            if in_flight < limits.limit and in_flight < wanted:
                in_flight += 1
                queue.append((now, in_flight))
            elif not queue or busy >= server.places(now):
                if in_flight < wanted:
                    limits.pressed(now)
                break
            if busy >= server.places(now):
                continue
            taken = [queue.popleft()]
            work = server.service(now, chance)
            if server.batch_cost is not None:
                while queue and len(taken) < server.batch_max:
                    taken.append(queue.popleft())
                work += server.batch_cost * len(taken)
            busy += 1
            serial += 1
            heapq.heappush(events, (now + work, serial, taken))
        if not events:
            now += 0.01
            continue
        now, _, taken = heapq.heappop(events)
        busy -= 1
        for began, there in taken:
            in_flight -= 1
            if now - began > timeout:
                outcome.dropped += 1
                limits.dropped(began, now)
            else:
                outcome.done.append((now, now - began))
                limits.sample(now - began, there, now)
        if now - looked >= 0.1:
            looked = now
            outcome.limits.append((now, limits.limit))
    return outcome
