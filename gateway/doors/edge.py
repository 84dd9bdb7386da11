"""The edge lane: connections of our own, on which a hit is answered inside the read callback.

Rule of this file: it owns sockets, order and time; what a head means is ``head.py``'s, what an answer is
``exchange.py``'s. One request at a time is in work on a connection, and answers go out in the order of
their requests. All that is not a plain infer request of a route is handed to aiohttp through its protocol
callbacks, byte for byte and never more than one request's bytes, so that what follows is looked at here
again. Where only a parser knows a request's end (chunked, upgrades), the connection stays with aiohttp.

How long a peer may take is bounded in every state; a coarse sweep cuts those who exceed it, so that a
hit costs no timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, cast

import msgspec
import structlog
from aiohttp.web_protocol import RequestHandler

from degrade.deadline import Ticker
from gateway.admission.auth import anonymous_name
from gateway.codec.http import provenance_headers
from gateway.doors.exchange import Exchange, Fields, Question, Reply, quota_fields, recalled, refusal
from gateway.doors.head import Heads, Judgement, Lane
from gateway.operate.telemetry import Telemetry
from gateway.pipeline import WireAnswer
from gateway.problem import Refused, internal, timed_out

_END: Final = b"\r\n\r\n"
_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
COPIED_BYTES_MAX: Final = 64 * 1024
"""Bodies up to this go out in one write with their head: copying them is cheaper than a second call."""

STORIES_MAX: Final = 8192
"""Provenance texts remembered; each is about 250 bytes."""

Story = tuple[str, str, int, int, int, int]
"""All that a fresh hit's provenance tells: tier, version, rows, rows escalated, age and ttl left in seconds."""

_log = structlog.get_logger("tailrace")


class Times(msgspec.Struct, frozen=True):
    """Seconds a peer may take: for a head once begun, for a body, between requests, to read its answer."""

    head: float = 10.0
    body: float = 30.0
    idle: float = 75.0
    write: float = 30.0


class EdgeOptions(msgspec.Struct, frozen=True):
    """Bounds of the lane."""

    header_bytes_max: int
    connections_max: int
    connections_per_address_max: int
    times: Times = Times()
    pipelined_bytes_max: int = 256 * 1024
    """What may arrive behind a request in work before reading is paused."""


class _State(enum.Enum):
    IDLE = 0  # between requests, nothing read of the next
    HEAD = 1  # a head has begun
    BODY = 2  # a body of ours is being gathered
    BUSY = 3  # an answer is being made
    THEIRS = 4  # aiohttp has a request; the rest of its body goes there
    FOR_GOOD = 5  # everything goes to aiohttp
    CLOSED = 6


class Clocks(msgspec.Struct, frozen=True):
    """``ticker``: monotonic seconds; ``wall``: seconds of the civil clock, for Date."""

    ticker: Ticker
    wall: Ticker


class EdgeLane:
    """What the connections of a listener share. ``foreign`` makes aiohttp's protocol for one connection."""

    def __init__(
        self,
        heads: Heads,
        exchange: Exchange,
        telemetry: Telemetry,
        foreign: Callable[[EdgeConnection], RequestHandler],
        clocks: Clocks,
        options: EdgeOptions,
    ) -> None:
        self.heads = heads
        self.exchange = exchange
        self.telemetry = telemetry
        self.ticker = clocks.ticker
        self.wall = clocks.wall
        self.options = options
        self.connections: set[EdgeConnection] = set()
        self.draining = False
        self.foreign = foreign
        self.addresses: dict[str, int] = {}
        self.cut = 0
        self.stories: dict[Story, bytes] = {}
        self.ending = _ending(self.wall())
        self._ended = asyncio.Event()

    def __call__(self) -> EdgeConnection:
        return EdgeConnection(self)

    def tell(self, story: Story, hit: WireAnswer) -> bytes:
        """The header lines of a hit's provenance, remembered: most hits of a second tell the same."""
        if len(self.stories) >= STORIES_MAX:
            self.stories.clear()
        told = self.stories[story] = _lines(provenance_headers(hit.provenance))
        return told

    def ended(self, connection: EdgeConnection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        self._ended.set()

    def sweep(self, now: float) -> None:
        """Cut every connection whose peer has taken longer than it may, and set the date."""
        self.ending = _ending(self.wall())
        for connection in [each for each in self.connections if each.limit < now]:
            connection.expire()

    async def drain(self, seconds: float) -> None:
        """End idle connections now, busy ones with their answer, all of them after ``seconds``."""
        self.draining = True
        for connection in list(self.connections):
            connection.finish()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.connections:
                    self._ended.clear()
                    await self._ended.wait()
        for connection in list(self.connections):
            connection.abort()


class EdgeConnection(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_answered", "_asked", "_buffer", "_handler", "_lane", "_left", "_own", "_parts", "_paused", "_pausing",
        "_peer", "_state", "_task", "_transport", "limit",
    )  # fmt: skip

    def __init__(self, lane: EdgeLane) -> None:
        self._lane = lane
        self._answered = False
        self._own: tuple[Judgement, Question] | None = None  # the last question, asked by this peer
        self._transport: asyncio.Transport | None = None
        self._handler: RequestHandler | None = None
        self._task: asyncio.Task[None] | None = None
        self._state = _State.IDLE
        self._buffer = b""  # read, and not yet looked at
        self._parts: list[bytes] = []
        self._left = 0
        self._asked: Judgement | None = None
        self._paused = False  # the peer does not read: nothing more is begun
        self._pausing = False  # we do not read
        self._peer = ""
        self.limit = math.inf

    # -- the transport's callbacks ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        lane = self._lane
        self._transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")
        self._peer = anonymous_name(name[0] if isinstance(name, tuple) else "local")
        lane.connections.add(self)
        lane.addresses[self._peer] = lane.addresses.get(self._peer, 0) + 1
        self.limit = lane.ticker() + lane.options.times.idle
        over = len(lane.connections) > lane.options.connections_max
        if over or lane.addresses[self._peer] > lane.options.connections_per_address_max:
            lane.cut += 1
            self.abort()  # cheaper for both than an answer nobody reads

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state is _State.IDLE and not self._paused and not self._buffer:  # what waits there comes first
            self._advance(data)
            self._carry_on()
        elif state is _State.FOR_GOOD:
            self._handler_for_sure().data_received(data)
        elif state is _State.BODY and len(data) <= self._left:
            self._parts.append(data)
            self._left -= len(data)
            if self._left == 0:
                self._gathered()
        elif state is _State.THEIRS and self._left:
            self._to_theirs(data)
        else:
            self._buffer += data
            self._pump()
            if len(self._buffer) > self._lane.options.pipelined_bytes_max and self._state is not _State.BODY:
                self._pause_reading()

    def eof_received(self) -> bool:
        return False  # a peer that sends no more is done: close, as aiohttp does

    def connection_lost(self, error: Exception | None) -> None:
        lane = self._lane
        self._state = _State.CLOSED
        lane.ended(self)
        left = lane.addresses.get(self._peer, 1) - 1
        if left > 0:
            lane.addresses[self._peer] = left
        else:
            lane.addresses.pop(self._peer, None)
        if self._task is not None:
            self._task.cancel()  # the caller has left; others may still wait for the same flight
        if self._handler is not None:
            self._handler.connection_lost(error)
        self._buffer, self._parts = b"", []

    def pause_writing(self) -> None:
        self._paused = True
        self.limit = self._lane.ticker() + self._lane.options.times.write
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._paused = False
        if self._handler is not None:
            self._handler.resume_writing()
        self._restart_limit()
        self._pump()

    # -- in order, one request at a time ----------------------------------------------------------

    def _carry_on(self) -> None:
        """After a hit: the next request may have come with it."""
        if self._state is _State.IDLE and self._buffer:
            self._pump()

    def _pump(self) -> None:
        """Look at what is buffered, as far as the state allows."""
        while self._buffer and not self._paused:
            if self._state in (_State.IDLE, _State.HEAD):
                data, self._buffer = self._buffer, b""
                before = len(data)
                self._advance(data)
                if self._state is _State.HEAD and len(self._buffer) == before:
                    return  # still no whole head
            elif self._state is _State.BODY:
                data, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
                self._parts.append(data)
                self._left -= len(data)
                if self._left == 0:
                    self._gathered()
            elif self._state is _State.THEIRS and self._left:
                data, self._buffer = self._buffer, b""
                self._to_theirs(data)
            elif self._state is _State.FOR_GOOD:
                data, self._buffer = self._buffer, b""
                self._handler_for_sure().data_received(data)
            else:
                return
        if self._pausing and len(self._buffer) <= self._lane.options.pipelined_bytes_max:
            self._resume_reading()

    def _advance(self, data: bytes) -> None:
        """Begin a request: ``data`` starts at its first byte."""
        lane = self._lane
        end = data.find(_END) + 4
        if end == 3:
            if len(data) > 2 * lane.options.header_bytes_max or data[0] in b"\r\n":
                self._hand_over(data)  # too long, or not the start of a head: the strict parser's words
                return
            self._buffer = data
            if self._state is not _State.HEAD:
                self._state = _State.HEAD
                self.limit = lane.ticker() + lane.options.times.head
            return
        head = data[:end]
        judgement = lane.heads.recall(head) or lane.heads.judge(head)
        if judgement.lane is not Lane.EDGE:
            self._foreign(judgement, data, end)
            return
        length = judgement.length
        self._asked = judgement
        have = len(data) - end
        if have == length:
            self._ask(judgement, data[end:])
        elif have > length:
            self._buffer = data[end + length :] + self._buffer
            self._ask(judgement, data[end : end + length])
        else:
            self._state = _State.BODY
            self._parts = [data[end:]]
            self._left = length - have
            self.limit = lane.ticker() + self._body_seconds()

    def _gathered(self) -> None:
        body, self._parts = b"".join(self._parts), []
        judgement = self._asked
        assert judgement is not None
        self._ask(judgement, body)

    def _ask(self, judgement: Judgement, body: bytes) -> None:
        """A whole request of ours: answer it now if it is known by its bytes, else in a task."""
        lane = self._lane
        began = lane.ticker()
        question = judgement.question
        assert question is not None
        if judgement.anonymous:
            if self._own is None or self._own[0] is not judgement:
                caller = msgspec.structs.replace(question.caller, name=self._peer)
                self._own = judgement, msgspec.structs.replace(question, caller=caller)
            question = self._own[1]
        try:
            hit, wire = lane.exchange.recall(question, body)
        except Refused as refused:
            lane.telemetry.refused(question.route.name, refused.problem.slug)
            self._write(refusal(refused), question, began)
            return
        if hit is not None:
            self._write_hit(hit, question, began)
            return
        self._state = _State.BUSY
        self.limit = math.inf  # ours to bound: the route's deadline does
        self._task = asyncio.get_running_loop().create_task(self._answer(question, body, wire, began))

    async def _answer(self, question: Question, body: bytes, wire: bytes | None, began: float) -> None:
        try:
            reply = await self._lane.exchange.answer(question, body, wire, began)
        except Refused as refused:
            self._lane.telemetry.refused(question.route.name, refused.problem.slug)
            reply = refusal(refused)
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("bug", route=question.route.name)
            reply = refusal(Refused(internal()))
        self._task = None
        if self._state is _State.BUSY:
            self._write(reply, question, began)
            self._pump()

    # -- writing ----------------------------------------------------------------------------------

    def _write_hit(self, hit: WireAnswer, question: Question, began: float) -> None:
        lane = self._lane
        transport = self._transport
        if transport is None or lane.draining:
            self._write(recalled(hit), question, began)
            return
        entry, wire = hit.entry, hit.wire
        served = entry.value
        age = hit.now - entry.stored_at
        story = (
            served.tier,
            served.response.version,
            served.rows,
            served.rows_escalated,
            int(age),
            int(entry.ttl - age),
        )
        told = lane.stories.get(story) or lane.tell(story, hit)
        quota = _lines(quota_fields(hit.quota)) if hit.quota is not None else b""
        self._state = _State.IDLE
        now = lane.ticker()
        self.limit = now + lane.options.times.idle
        if len(wire.body) <= COPIED_BYTES_MAX:
            transport.write(b"".join((wire.head, told, quota, lane.ending, wire.body)))
        else:
            transport.writelines((b"".join((wire.head, told, quota, lane.ending)), wire.body))
        lane.telemetry.responded(question.route.name, 200, "hit", now - began)

    def _write(self, reply: Reply, question: Question, began: float) -> None:
        lane = self._lane
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        head = _head(reply, b"Connection: close\r\n" + lane.ending if lane.draining else lane.ending)
        self._state = _State.IDLE
        now = lane.ticker()
        self.limit = now + lane.options.times.idle
        if len(reply.body) <= COPIED_BYTES_MAX:
            transport.write(head + reply.body)
        else:
            transport.writelines((head, reply.body))
        lane.telemetry.responded(question.route.name, reply.status, reply.state, now - began)
        if lane.draining:
            transport.close()

    # -- the other lane -----------------------------------------------------------------------------

    def _foreign(self, judgement: Judgement, data: bytes, end: int) -> None:
        """Give aiohttp exactly one request's bytes, or everything if its end is not known here."""
        if judgement.lane is Lane.AIOHTTP_FOR_GOOD:
            self._hand_over(data)
            return
        whole = end + judgement.length
        self._state = _State.THEIRS
        self._answered = False
        self._left = whole - min(whole, len(data))
        self._buffer = data[whole:] + self._buffer
        self.limit = math.inf  # the door bounds the body and the answer
        self._handler_for_sure().data_received(data[:whole])

    def _to_theirs(self, data: bytes) -> None:
        taken, rest = data[: self._left], data[self._left :]
        self._left -= len(taken)
        self._buffer = rest + self._buffer
        self._handler_for_sure().data_received(taken)
        if self._answered and self._left == 0:
            self._theirs_done()

    def _hand_over(self, data: bytes) -> None:
        self._state = _State.FOR_GOOD
        data, self._buffer = data + self._buffer, b""
        self.limit = self._lane.ticker() + self._lane.options.times.head
        self._handler_for_sure().data_received(data)

    def _handler_for_sure(self) -> RequestHandler:
        if self._handler is None:
            assert self._transport is not None
            self._handler = self._lane.foreign(self)
            self._handler.connection_made(self._transport)
        return self._handler

    def foreign_began(self) -> None:
        """aiohttp has a request's head: from here on the door bounds what happens."""
        self.limit = math.inf

    def foreign_done(self) -> None:
        """aiohttp has written an answer's last byte."""
        if self._state is _State.CLOSED:
            return
        if self._lane.draining:
            self.close()
            return
        if self._state is _State.FOR_GOOD:
            self.limit = self._lane.ticker() + self._lane.options.times.idle
            return
        self._answered = True
        if self._state is _State.THEIRS and self._left == 0:
            self._theirs_done()

    def _theirs_done(self) -> None:
        self._state = _State.IDLE
        self.limit = self._lane.ticker() + self._lane.options.times.idle
        if self._buffer:
            asyncio.get_running_loop().call_soon(self._pump)  # aiohttp is still in the middle of its turn

    # -- bounds -----------------------------------------------------------------------------------

    def expire(self) -> None:
        """The peer took too long: say so where a request had begun, and close."""
        self._lane.cut += 1
        transport = self._transport
        if self._state in (_State.HEAD, _State.BODY) and transport is not None and not self._paused:
            told = f"The head did not arrive within {self._lane.options.times.head:g} s."
            if self._state is _State.BODY:
                told = f"The body did not arrive within {self._body_seconds():g} s."
            reply = refusal(Refused(timed_out(told)))
            transport.write(_head(reply, b"Connection: close\r\n\r\n") + reply.body)
            self.close()
            self.limit = self._lane.ticker() + self._lane.options.times.write
        else:
            self.abort()

    def _body_seconds(self) -> float:
        """A body's time is the route's for the whole request, within the lane's bound."""
        assert self._asked is not None
        assert self._asked.question is not None
        return min(self._lane.options.times.body, self._asked.question.route.timeout)

    def finish(self) -> None:
        """Draining: nothing new is begun."""
        if self._state in (_State.IDLE, _State.HEAD) or (self._state is _State.FOR_GOOD and self.limit != math.inf):
            self.close()

    def close(self) -> None:
        """Close when what is written has been sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        self.limit = math.inf
        if self._transport is not None:
            self._transport.abort()

    def _pause_reading(self) -> None:
        if not self._pausing and self._transport is not None:
            self._pausing = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        self._pausing = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _restart_limit(self) -> None:
        """After a peer has read its answer: the time for what comes next."""
        times = self._lane.options.times
        now = self._lane.ticker()
        # A peer that was slow to read while its next body was on the way: the body's time starts again.
        waits = {_State.IDLE: times.idle, _State.HEAD: times.head, _State.BODY: times.body}
        self.limit = now + waits[self._state] if self._state in waits else math.inf


def _head(reply: Reply, ending: bytes) -> bytes:
    return b"%b%bContent-Length: %d\r\n%b" % (
        _STATUS_LINES[reply.status],
        _lines(reply.fields),
        len(reply.body),
        ending,
    )


def _lines(fields: Fields) -> bytes:
    """Header lines; values are printable by construction, of the codec or of the problem."""
    return "".join([f"{name}: {value}\r\n" for name, value in fields]).encode("latin-1", "replace")


def _ending(seconds: float) -> bytes:
    """The last lines of every head (RFC 9110 section 6.6.1), for a time of the civil clock."""
    return f"Date: {formatdate(seconds, usegmt=True)}\r\nServer: tailrace\r\n\r\n".encode()
