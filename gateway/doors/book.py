"""The connections of a listener: who is there, how many of one address, who takes too long, and the way to an end.

Rule of this file: it knows when a connection's time is over and not what for; what a connection is in the middle of is
its own business. One coarse sweep cuts all who take too long, so that an answer costs no timer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Protocol

import msgspec


class Peer(Protocol):
    """A connection, as its book sees it. ``limit``: when its peer has taken too long, in ticker's seconds."""

    limit: float

    def expire(self) -> None:
        """Its limit is over."""

    def finish(self) -> None:
        """Begin nothing new, and end."""

    def abort(self) -> None:
        """End now."""


class BookOptions(msgspec.Struct, frozen=True):
    """How many connections there may be at once, of all and of one address."""

    connections_max: int
    connections_per_address_max: int


class Book:
    """Who is there."""

    def __init__(self, options: BookOptions) -> None:
        self._options = options
        self.connections: set[Peer] = set()
        self.cuts: Counter[str] = Counter()
        """Connections cut, by the reason: full, address, or the state in which the peer took too long."""
        self._addresses: Counter[str] = Counter()
        self._ended = asyncio.Event()

    @property
    def connections_max(self) -> int:
        """How many there may be."""
        return self._options.connections_max

    def admit(self, connection: Peer, address: str) -> bool:
        """Write a new connection into the book; whether it may stay. Either way it must be ``ended`` later."""
        self.connections.add(connection)
        self._addresses[address] += 1
        if len(self.connections) > self._options.connections_max:
            self.cuts["full"] += 1
            return False
        if self._addresses[address] > self._options.connections_per_address_max:
            self.cuts["address"] += 1
            return False
        return True

    def ended(self, connection: Peer, address: str) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        self._addresses[address] -= 1
        if self._addresses[address] <= 0:
            del self._addresses[address]
        self._ended.set()

    def sweep(self, now: float) -> None:
        """Cut every connection whose peer has taken longer than it may."""
        for connection in [each for each in self.connections if each.limit < now]:
            connection.expire()

    async def drain(self, seconds: float) -> None:
        """End idle connections now, busy ones with their answer, all of them after ``seconds``."""
        for connection in list(self.connections):
            connection.finish()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.connections:
                    self._ended.clear()
                    await self._ended.wait()
        for connection in list(self.connections):
            connection.abort()
