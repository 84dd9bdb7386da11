"""What the connections of the HTTP listener share: who answers, the bounds, and how long each state may last.

Rule of this file: it knows how long each state of a connection may last; what a connection does in a state is
``edge.py``'s, and who is there is in ``book.py``.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import islice
from typing import Final, Protocol

import msgspec
from aiohttp.web_protocol import RequestHandler

from degrade.deadline import Ticker
from gateway.admission.forwarded import Proxies
from gateway.doors.answers import Answers
from gateway.doors.book import Book, BookOptions
from gateway.doors.buffered import Buffered
from gateway.doors.exchange import Exchange
from gateway.doors.handover import Owner
from gateway.doors.head import Heads
from gateway.doors.known import Requests
from gateway.operate.telemetry import Telemetry
from tiers.pool import Pool

RESTED_MAX: Final = 500
"""Connections that let go of aiohttp's side in one sweep: some 20 microseconds each."""


class State(enum.Enum):
    """What a connection is in the middle of."""

    IDLE = "idle"  # between requests, nothing read of the next
    HEAD = "head"  # a head has begun
    BODY = "body"  # a body of ours is being gathered
    BUSY = "busy"  # an answer of ours is being made
    RELAYED = "relayed"  # a request has been passed on, and its answer is on its way
    THEIRS = "theirs"  # aiohttp has one request; the rest of its body goes there
    STARTING = "starting"  # aiohttp has the connection for good, and a head has begun
    FOR_GOOD = "for-good"  # the same, and a request is in work
    RESTING = "resting"  # the same, and the next request has not begun
    CLOSING = "closing"  # the last answer is written; what comes is dropped
    CLOSED = "closed"

    __hash__ = object.__hash__  # an Enum's own is a call into Python, and each turn of a connection looks one up


class Times(msgspec.Struct, frozen=True):
    """Seconds a peer may take: for a head once begun, for a body, between requests, to read its answer; and a
    replica, for what is passed on to it: until its answer begins, and between two pieces of it."""

    head: float = 10.0
    body: float = 30.0
    idle: float = 75.0
    write: float = 30.0
    answer: float = 300.0
    silence: float = 300.0

    def waits(self) -> Mapping[State, float]:
        """How long each state may last; for ever where a deadline of the door's own bounds it."""
        return {
            State.IDLE: self.idle,
            State.HEAD: self.head,
            State.BODY: self.body,
            State.BUSY: math.inf,
            State.RELAYED: self.answer,
            State.THEIRS: math.inf,
            State.STARTING: self.head,
            State.FOR_GOOD: math.inf,
            State.RESTING: self.idle,
            State.CLOSING: self.write,
            State.CLOSED: math.inf,
        }


class EdgeOptions(msgspec.Struct, frozen=True):
    """Bounds of the lane."""

    header_bytes_max: int
    connections_max: int
    connections_per_address_max: int
    times: Times = Times()
    pipelined_bytes_max: int = 256 * 1024
    """What may arrive behind a request in work before reading is paused."""


class Clocks(msgspec.Struct, frozen=True):
    """``ticker``: monotonic seconds; ``wall``: seconds of the civil clock, for Date."""

    ticker: Ticker
    wall: Ticker


class Lent(Protocol):
    """A connection that aiohttp has answered on."""

    def rest(self) -> bool:
        """Let go of what only aiohttp needs, if it needs nothing of this connection now; False: ask again later."""


class Desk(msgspec.Struct, frozen=True):
    """Who answers what arrives on a lane. ``foreign`` makes aiohttp's protocol for one connection;
    ``passthrough`` is where that goes which no route answers, ``proxies`` whose word on callers is believed."""

    heads: Heads
    exchange: Exchange
    telemetry: Telemetry
    buffered: Buffered
    foreign: Callable[[Owner], RequestHandler]
    passthrough: Pool
    proxies: Proxies


class EdgeLane:
    """What the connections of a listener share."""

    def __init__(self, desk: Desk, clocks: Clocks, options: EdgeOptions) -> None:
        self._judging: Heads | None = None
        self._judged_before = 0
        self.take(desk)
        self.ticker = clocks.ticker
        self.options = options
        self.waits = options.times.waits()
        self.idle_seconds, self.answer_seconds = options.times.idle, options.times.answer
        self.answers = Answers(clocks.wall())
        self._book = Book(BookOptions(options.connections_max, options.connections_per_address_max))
        self.connections, self.cuts = self._book.connections, self._book.cuts
        self.admit, self.ended = self._book.admit, self._book.ended
        self.lent: dict[Lent, None] = {}
        """Connections that aiohttp has answered since the last sweep: what it holds for one is several times what we
        do, and who rests needs none of it."""
        self.draining = False
        self._wall = clocks.wall

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop of its connections: to ask for the running one is a system call each time."""
        return asyncio.get_running_loop()

    @property
    def heads_judged(self) -> int:
        """How many heads were parsed, by all desks."""
        return self._judged_before + self.heads.judged

    def take(self, desk: Desk) -> None:
        """Let this desk answer from now on; what is in work is answered by the one that it was begun at."""
        self._judged_before += 0 if self._judging is None else self._judging.judged
        self.heads = self._judging = desk.heads
        self.exchange = desk.exchange
        self.telemetry = desk.telemetry
        self.buffered = desk.buffered
        self.foreign = desk.foreign
        self.passthrough = desk.passthrough
        self.proxies = desk.proxies
        self.requests = Requests()

    def sweep(self, now: float) -> None:
        """Cut every connection whose peer has taken longer than it may, let others rest, and set the date."""
        self.answers.set_date(self._wall())
        for each in list(islice(self.lent, RESTED_MAX)):
            del self.lent[each]
            if not each.rest():
                self.lent[each] = None  # behind the others
        self._book.sweep(now)

    async def drain(self, seconds: float) -> None:
        """End idle connections now, busy ones with their answer, all of them after ``seconds``."""
        self.draining = True
        await self._book.drain(seconds)
