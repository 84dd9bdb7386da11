"""What the connections of the MessagePack-RPC door share: who answers, within which bounds, and who is connected.

Rule of this file: it knows no bytes and no call; what one connection is in the middle of is ``rpc.py``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cached_property
from typing import Final

import msgspec

from degrade.deadline import Ticker
from gateway.doors.book import Book, BookOptions
from gateway.doors.buffered import Buffered
from gateway.doors.exchange import Exchange
from gateway.doors.lane import Times
from gateway.doors.methods import Methods
from gateway.operate.telemetry import Telemetry

ENVELOPE_BYTES_MAX: Final = 16 * 1024
"""What a message may hold beyond the largest body that a route takes: its id and its method."""


class RpcOptions(msgspec.Struct, frozen=True):
    """Bounds of the door. ``in_flight_max`` is one connection's, the next two are one message's: all of it, and what it
    holds beside strings and bytes."""

    in_flight_max: int
    message_bytes_max: int
    plain_bytes_max: int
    places: Mapping[str, int]
    """Of each route: how many calls its replicas take at once."""
    book: BookOptions
    times: Times = Times()


class RpcDesk(msgspec.Struct, frozen=True):
    """Who answers what arrives."""

    methods: Methods
    exchange: Exchange
    telemetry: Telemetry
    buffered: Buffered
    ticker: Ticker


class RpcLane:
    """What the connections of the door share."""

    def __init__(self, desk: RpcDesk, options: RpcOptions) -> None:
        self.desk = desk
        self.options = options
        self.book = Book(options.book)
        self.in_flight = 0

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop of its connections: to ask for the running one is a system call each time."""
        return asyncio.get_running_loop()

    def sweep(self, now: float) -> None:
        """Cut every connection whose peer has taken longer than it may."""
        self.book.sweep(now)

    async def drain(self, seconds: float) -> None:
        """Answer what has been read, and end every connection, within ``seconds``."""
        await self.book.drain(seconds)
