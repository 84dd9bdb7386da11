"""The edge lane: connections of our own, on which a hit is answered inside the read callback.

Rule of this file: it owns sockets, order and time; what a head means is ``head.py``'s, what an answer is
``exchange.py``'s. One request at a time is in work on a connection, and answers go out in the order of
their requests. What is neither a plain infer request of a route nor small and passed through (``relay.py``) is
handed to aiohttp through its protocol callbacks, byte for byte and never more than one request's bytes, so
that what follows is looked at here again. Where only a parser knows a request's end (chunked), or the caller waits
to be asked for its body, the connection stays with aiohttp until it rests between two requests.

It is long because it is one machine: all that a connection can be in the middle of, and every way from there.
What it shares with others, and what needs none of its state, is in the files it names.

How long a peer may take is bounded in every state (``lane.py`` has the table), and so is what it can make
us hold: a head by ``header_bytes_max``, a body by its route, all of them together by ``buffered.py``.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, cast

import msgspec
import structlog
from aiohttp.web_protocol import RequestHandler

from gateway.admission.auth import anonymous_name
from gateway.admission.forwarded import Origin
from gateway.codec.dialect import PROTOCOL
from gateway.doors.answers import LastHit
from gateway.doors.exchange import LOOKED_UP_BYTES, recalled, refusal
from gateway.doors.handover import OURS, THEIRS, LentTransport
from gateway.doors.head import HEAD_BYTES_REMEMBERED_MAX, Heads, Judgement, Lane
from gateway.doors.known import REQUEST_BYTES_MAX, Known
from gateway.doors.lane import EdgeLane, State
from gateway.doors.listener import resting
from gateway.doors.origin import origin_of
from gateway.doors.passthrough import Passage
from gateway.doors.posting import AnyQuestion, Posting
from gateway.doors.question import Reply
from gateway.doors.relay import Relay
from gateway.operate.telemetry import PASSTHROUGH
from gateway.pipeline import WireAnswer
from gateway.problem import Problem, Refused, head_over, internal, timed_out

# Looked up for every hit, where a member of an Enum is not cheap.
_IDLE, _BODY, _BUSY, _RELAYED = State.IDLE, State.BODY, State.BUSY, State.RELAYED

_LENT: Final = frozenset({State.THEIRS, State.STARTING, State.FOR_GOOD})
_ENDED: Final = frozenset({State.CLOSING, State.CLOSED})

_END: Final = b"\r\n\r\n"
_NEWLINE: Final = b"\n"
_REST_OF_BLANK: Final = re.compile(rb"\n\r\n|\r\n|\n")
_CARRIAGE_RETURN: Final = 13

COPIED_BYTES_MAX: Final = 64 * 1024
"""Bodies up to this go out in one write with their head: copying them is cheaper than a second call."""

LENT_PARTS_MAX: Final = 64
"""Into how many parts one piece is cut for aiohttp: nobody's requests are so many in one, and blank lines are cheap."""

_log = structlog.get_logger("tailrace")


class _Asked(msgspec.Struct, frozen=True):
    """A request's head as this connection's peer asks it: a question to a route, or a passage by all of them.
    ``size`` is that of the whole request in bytes; ``heads`` judged it, and are others' after a reload."""

    heads: Heads
    head: bytes
    judgement: Judgement
    question: AnyQuestion | None
    passage: Passage | None
    head_bytes: int
    size: int


class EdgeConnection(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_answered", "_asked", "_began", "_buffer", "_handler", "_held", "_lane", "_left", "_origin", "_parts",
        "_paused", "_peer", "_relay", "_size", "_state", "_stopped", "_tail", "_task", "_transport", "limit",
    )  # fmt: skip

    def __init__(self, lane: EdgeLane) -> None:
        self._lane = lane
        self._transport: asyncio.Transport | None = None
        self._peer = ""
        self._origin = Origin("")
        self._state = State.IDLE
        self._paused = False  # the peer does not read: nothing more is begun
        self._stopped = 0  # who has stopped our reading
        self._buffer = b""  # read, and not yet looked at
        self._parts: list[bytes] | None = None  # of the body that is being gathered
        self._left = 0  # bytes of a body still to come, ours or theirs
        self._size = 0  # bytes held of the body that is gathered or in work
        self._held = 0  # bytes that the lane counts as held here
        self._asked: _Asked | None = None  # the last question of ours
        self._began = 0.0  # when its head was whole, in ticker's seconds
        self._task: asyncio.Task[None] | None = None
        self._relay: Relay | None = None  # what is passed through
        self._handler: RequestHandler | None = None  # aiohttp's, once it was needed
        self._answered = False  # it has written its answer
        self._tail = b""  # the end of what it was given for good
        self.limit = math.inf

    # -- the transport's callbacks ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._origin = origin_of(transport)
        self._peer = anonymous_name(self._origin.address or "local")
        self._turn(State.IDLE)
        if not self._lane.admit(self, self._peer):
            self.abort()  # cheaper for both than an answer nobody reads

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state is _IDLE and not self._paused and not self._buffer:
            asked, lane = self._asked, self._lane
            if asked is not None and len(data) == asked.size and asked.heads is lane.heads:
                passage, known = asked.passage, None
                if passage is None and asked.size <= REQUEST_BYTES_MAX:
                    known = lane.requests.recall(data)
                if known is not None and known.judgement is asked.judgement:
                    self._ask_alike(asked, data, known)
                    return
                if data.startswith(asked.head):
                    if passage is None:
                        self._ask_alike(asked, data, None)
                    else:
                        now = self._began = lane.ticker()
                        self._pass_on(passage, data[asked.head_bytes :], now)
                    return
            seen = self._begin(data, 0)
            if seen != len(data):
                self._buffer = data[seen:]
                self._pump()
        elif state is _BODY:
            seen = self._gather(data, 0)
            if seen != len(data):
                self._buffer = data[seen:]
                self._pump()
        else:
            self._buffer = self._buffer + data if self._buffer else data
            self._pump()

    def eof_received(self) -> bool:
        return False  # a peer that sends no more is done: close, as aiohttp does

    def connection_lost(self, error: Exception | None) -> None:
        self._state = State.CLOSED
        self._lane.ended(self, self._peer)
        self._lane.lent.pop(self, None)
        if self._task is not None:
            self._task.cancel()  # the caller has left; others may still wait for the same flight
        if self._relay is not None:
            self._relay.abort()
        if self._handler is not None:
            self._handler.connection_lost(error)
        self._let_go()

    def pause_writing(self) -> None:
        self._paused = True
        self.limit = self._lane.ticker() + self._lane.options.times.write
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._paused = False
        if self._handler is not None:
            self._handler.resume_writing()
        if self._relay is not None:
            self._relay.resume()
        # A peer that was slow to read while its next head or body was on the way: that one's time starts again.
        self._turn(self._state)
        self._pump()

    # -- in order, one request at a time ----------------------------------------------------------

    def _turn(self, state: State) -> None:
        """Enter a state; a peer that does not read stays within the time that it has for that."""
        self._state = state
        if self._paused:
            return
        seconds = self._lane.waits[state]
        if state is _RELAYED and self._relay is not None and self._relay.begun:
            seconds = self._lane.options.times.silence  # its answer is on the way, and was not taken for a while
        if state is _BODY and self._asked is not None and self._asked.question is not None:
            seconds = min(seconds, self._asked.question.route.timeout)  # for the whole request
        self.limit = self._lane.ticker() + seconds

    def _pump(self) -> None:
        """Look at what is buffered, as far as the state allows."""
        data, seen = self._buffer, 0
        self._buffer = b""
        while seen < len(data):
            state = self._state
            if state is State.BODY:
                seen = self._gather(data, seen)
            elif state is State.THEIRS and self._left:
                seen = self._lend(data, seen)
            elif state in (State.STARTING, State.FOR_GOOD, State.RESTING):
                seen = self._lend_for_good(data, seen)
            elif state is State.IDLE and not self._paused:
                seen = self._begin(data, seen)
            elif state is State.HEAD and not self._paused:
                before, seen = seen, self._begin(data, seen)
                if seen == before:
                    break  # still no whole head
            elif state in (State.CLOSING, State.CLOSED):
                seen = len(data)
            else:
                break
        self._buffer = data[seen:] if seen else data
        self._recount()
        options = self._lane.options
        waits = self._state in (State.IDLE, State.HEAD, State.BODY) and not self._paused
        if waits or not self._buffer:
            self.resume(OURS)
        elif len(self._buffer) > options.pipelined_bytes_max or self._lane.buffered.full:
            self.pause(OURS)

    def _begin(self, data: bytes, start: int) -> int:
        """Begin the request at ``data[start:]``: up to where it is seen; ``start`` while its head is not whole."""
        lane = self._lane
        end = data.find(_END, start) + 4
        if end == 3:
            return self._await_head(data, start)
        head = data[start:end]
        judgement = lane.heads.recall(head)
        if judgement is None:
            if len(head) > lane.options.header_bytes_max:
                self._refuse(head_over(lane.options.header_bytes_max))
                return len(data)
            judgement = lane.heads.judge(head)
        if judgement.lane is not Lane.EDGE:
            return self._begin_foreign(judgement, data, start, end)
        asked = self._as_asked(judgement, head)
        now = self._began = lane.ticker()
        stop = end + judgement.length
        if stop <= len(data):
            self._forget_large()
            self._ask(asked, data[end:stop], now)
            return stop
        self._parts, self._left = [], judgement.length
        self._turn(_BODY)
        return self._gather(data, end)

    def _as_asked(self, judgement: Judgement, head: bytes) -> _Asked:
        """A head of ours as this connection's peer asks it."""
        asked = self._asked
        if asked is None or asked.judgement is not judgement:
            question, passage = judgement.question, judgement.passage
            if judgement.anonymous:
                name = self._peer
                if judgement.hops:
                    client = self._lane.proxies.client(self._origin.address, judgement.hops)
                    name = anonymous_name(client or "local")
                question = None if question is None else question.by(name)
                passage = None if passage is None else passage.by(name)
            if isinstance(question, Posting):
                question = question.told(self._lane.proxies, self._origin)
            if passage is not None:
                passage = passage.told(self._lane.proxies, self._origin)
            size = len(head) + judgement.length
            asked = self._asked = _Asked(self._lane.heads, head, judgement, question, passage, len(head), size)
        return asked

    def _forget_large(self) -> None:
        """An idle connection must not hold a large head, which nobody else would either."""
        if self._asked is not None and self._asked.head_bytes > HEAD_BYTES_REMEMBERED_MAX:
            self._asked = None

    def _await_head(self, data: bytes, start: int) -> int:
        """A head that is not whole: wait, unless it can be none, which the strict parser has words for."""
        newline = data.find(_NEWLINE, start)
        is_method = ord("A") <= data[start] <= ord("Z")
        if not is_method or (newline > start and data[newline - 1] != _CARRIAGE_RETURN):
            return self._lend_for_good(data, start)
        if len(data) - start > self._lane.options.header_bytes_max:
            self._refuse(head_over(self._lane.options.header_bytes_max))
            return len(data)
        if self._state is not State.HEAD:
            self._turn(State.HEAD)
        return start

    def _gather(self, data: bytes, start: int) -> int:
        """Take of the body what is there of it; ask, if that is all."""
        assert self._parts is not None
        assert self._asked is not None
        part = data[start : start + self._left]
        self._parts.append(part)
        self._left -= len(part)
        self._size += len(part)
        self._recount()
        if self._lane.buffered.refuses(self._size):
            self._refuse(self._lane.buffered.refusal(), self._asked.question)
            return len(data)
        if self._left == 0:
            parts, self._parts, asked = self._parts, None, self._asked
            self._forget_large()
            if asked.question is not None and self._size > LOOKED_UP_BYTES:
                self._begin_answer(asked.question, partial(self._gathered, asked.question, parts, self._began))
                return start + len(part)
            self._ask(asked, b"".join(parts), self._lane.ticker())
            if self._state not in (_BUSY, _RELAYED):
                self._size = 0
                self._recount()
        return start + len(part)

    def _ask_alike(self, asked: _Asked, request: bytes, known: Known | None) -> None:
        """A whole request, in one piece, with the very head of the last one here; ``known``: it was a hit before. The
        way of most hits, so it is short, and takes nothing to pieces that is known."""
        lane, question = self._lane, asked.question
        assert question is not None
        now = self._began = lane.ticker()
        digester = question.digester
        if digester is None:
            self._ask(asked, request[asked.head_bytes :], now)
            return
        wire = digester.key(request[asked.head_bytes :]) if known is None else known.wire
        try:
            hit = lane.exchange.recall_wire(question.route, question.hit_dues, wire, now)
        except Refused as refused:
            self._turn_away(refused, question)
            return
        if hit is None:
            self._work_on(question, request[asked.head_bytes :], wire)
        elif known is not None:
            self._write_hit(hit, question, now, known.last)
        else:
            if digester is asked.judgement.digester:  # a Posting's is made of who asks, too
                lane.requests.offer(request, asked.judgement, wire)
            self._write_hit(hit, question, now)

    def _ask(self, asked: _Asked, body: bytes, now: float) -> None:
        """A whole request of ours: answer it now if it is known by its bytes, else in a task; or pass it on."""
        question = asked.question
        if question is None:
            assert asked.passage is not None
            self._pass_on(asked.passage, body, now)
            return
        try:
            hit, wire = self._lane.exchange.recall(question, body, now)
        except Refused as refused:
            self._turn_away(refused, question)
            return
        if hit is not None:
            self._write_hit(hit, question, self._began)
        else:
            self._work_on(question, body, wire)

    def _work_on(self, question: AnyQuestion, body: bytes, wire: bytes | None) -> None:
        """What nobody knows the answer of: in a task."""
        lane = self._lane
        self._size = len(body)
        self._recount()
        if lane.buffered.refuses(self._size):
            self._turn_away(Refused(lane.buffered.refusal()), question)
        else:
            self._begin_answer(question, partial(lane.exchange.answer, question, body, wire, self._began))

    def _turn_away(self, refused: Refused, question: AnyQuestion) -> None:
        self._size = 0
        self._recount()
        self._lane.telemetry.refused(question.route.name, refused.problem.slug)
        self._write(refusal(refused, question.dialect), question.route.name, self._began)

    def _begin_answer(self, question: AnyQuestion, make: Callable[[], Awaitable[Reply]]) -> None:
        self._turn(_BUSY)
        self._task = self._lane.loop.create_task(self._answer(question, make, self._began))

    async def _gathered(self, question: AnyQuestion, parts: list[bytes], began: float) -> Reply:
        """What a large body asks: it is put together, and looked up by its bytes, where nobody else waits for that."""
        exchange, name = self._lane.exchange, question.caller.name
        seconds = began + question.route.timeout - self._lane.ticker()
        body = await exchange.aside(partial(b"".join, parts), name, seconds)
        parts.clear()
        hit, wire = await exchange.recall_aside(question, body, seconds)
        if hit is None:
            return await exchange.answer(question, body, wire, began)
        self._lane.telemetry.answered(question.route.name, hit.provenance)
        return recalled(hit)

    async def _answer(self, question: AnyQuestion, make: Callable[[], Awaitable[Reply]], began: float) -> None:
        try:
            reply = await make()
        except Refused as refused:
            self._lane.telemetry.refused(question.route.name, refused.problem.slug)
            reply = refusal(refused, question.dialect)
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("bug", route=question.route.name)
            reply = refusal(Refused(internal()), question.dialect)
        self._task = None
        if self._state is not _BUSY:
            return
        try:
            self._size = 0
            self._write(reply, question.route.name, began)
            self._pump()
        except Exception:  # nobody awaits this task, and a connection must not wait for ever
            _log.exception("bug", route=question.route.name)
            self.abort()

    # -- what passes through ------------------------------------------------------------------------

    def _pass_on(self, passage: Passage, body: bytes, now: float) -> None:
        """Pass a whole request on."""
        lane = self._lane
        self._state = _RELAYED
        if not self._paused:
            self.limit = now + lane.answer_seconds
        quota = None
        try:
            if body:
                self._size = len(body)
                self._recount()
                if lane.buffered.refuses(self._size):
                    raise Refused(lane.buffered.refusal())
            if passage.works and passage.caller.quota is not None:
                quota = lane.exchange.charge(None, passage.caller)
        except Refused as refused:
            self.relay_done(refused)
            return
        self._relay = Relay(self, lane, passage, self._began, quota)
        self._relay.start(lane.passthrough, body, lane.answer_seconds)

    def relay_write(self, data: bytes) -> int:
        """Write, and let the replica have its time for more; how many bytes wait because the peer does not read."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return 0
        transport.write(data)
        if self._paused:
            return transport.get_write_buffer_size()
        self.limit = self._lane.ticker() + self._lane.options.times.silence
        return 0

    def relay_answer(self, answer: bytes, now: float) -> None:
        """Write all of an answer, and be done."""
        lane, transport = self._lane, self._transport
        self._relay, self._size = None, 0
        if transport is not None and not transport.is_closing():
            transport.write(answer)
        if self._state is not _RELAYED:
            return
        self._state = _IDLE
        if not self._paused:
            self.limit = now + lane.idle_seconds
        if lane.draining:
            self.close()
        if self._buffer:
            self._go_on()
        elif self._held:
            lane.buffered.bytes -= self._held
            self._held = 0

    def relay_done(self, refused: Refused | None) -> None:
        """The answer is written; or there is none, but this refusal."""
        lane, self._relay, self._size = self._lane, None, 0
        if self._state is not _RELAYED:
            return
        if refused is not None:
            lane.telemetry.refused(PASSTHROUGH, refused.problem.slug)
            self._write(refusal(refused), PASSTHROUGH, self._began)
        else:
            self._turn(_IDLE)
            if lane.draining:
                self.close()
        self._go_on()

    def _go_on(self) -> None:
        """What was passed on has its answer: look at what has come behind it."""
        self._recount()
        if self._buffer and self._state is _IDLE:
            self._lane.loop.call_soon(self._pump)  # the replica's connection is in the middle of its turn

    # -- writing ----------------------------------------------------------------------------------

    def _write_hit(self, hit: WireAnswer, question: AnyQuestion, began: float, last: LastHit | None = None) -> None:
        lane = self._lane
        transport = self._transport
        if transport is None or lane.draining:
            lane.telemetry.answered(question.route.name, hit.provenance)
            self._write(recalled(hit), question.route.name, began)
            return
        begun, quota, ending = lane.answers.of_hit(hit, last)
        body = hit.wire.body
        if len(body) <= COPIED_BYTES_MAX:
            transport.write(b"".join((begun, quota, ending, body)))
        else:
            transport.writelines((b"".join((begun, quota, ending)), body))
        now = lane.ticker()
        self._state = _IDLE
        if not self._paused:
            self.limit = now + lane.idle_seconds
        lane.telemetry.recalled(question.route.name, now - began)

    def _write(self, reply: Reply, label: str, began: float) -> None:
        lane = self._lane
        transport = self._transport
        if transport is None or transport.is_closing():
            self._turn(State.CLOSING)
            return
        head = lane.answers.head(reply, closes=lane.draining)
        self._turn(State.IDLE)
        if len(reply.body) <= COPIED_BYTES_MAX:
            transport.write(head + reply.body)
        else:
            transport.writelines((head, reply.body))
        lane.telemetry.responded(label, reply.status, reply.state, lane.ticker() - began)
        if lane.draining:
            self.close()

    def _refuse(self, problem: Problem, question: AnyQuestion | None = None) -> None:
        """Answer what is not read to its end, and end: our side now, theirs when they have read that."""
        transport, telemetry = self._transport, self._lane.telemetry
        if transport is None or transport.is_closing():
            return
        label = PASSTHROUGH if question is None else question.route.name
        reply = refusal(Refused(problem), PROTOCOL if question is None else question.dialect)
        transport.write(self._lane.answers.head(reply, closes=True) + reply.body)
        telemetry.refused(label, problem.slug)
        telemetry.responded(label, reply.status, reply.state, 0.0)
        self.hang_up()

    # -- the other lane -----------------------------------------------------------------------------

    def _begin_foreign(self, judgement: Judgement, data: bytes, start: int, end: int) -> int:
        """Give aiohttp exactly one request's bytes, or everything if its end is not known here."""
        if judgement.lane is Lane.AIOHTTP_FOR_GOOD:
            return self._lend_for_good(data, start)
        self._answered = False
        self._left = end - start + judgement.length
        self._turn(State.THEIRS)
        return self._lend(data, start)

    def _lend(self, data: bytes, start: int) -> int:
        part = data[start : start + self._left]
        self._left -= len(part)
        self._foreign().data_received(part)
        if self._answered and self._left == 0 and self._state is State.THEIRS:
            self._foreign_ended()
        return start + len(part)

    def _lend_for_good(self, data: bytes, start: int) -> int:
        handler, state = self._foreign(), self._state
        answered_early = state is State.RESTING and not resting(handler)  # the rest of a body that was not waited for
        if state not in (State.FOR_GOOD, State.STARTING) and not answered_early:
            self._turn(State.STARTING)
        # Up to each blank line, one call each: where its parser refuses something, it forgets what else it has read in
        # that call. A blank line may have begun in the last piece.
        rest = _REST_OF_BLANK.match(data, start)
        cut = rest.end() if rest else 0
        for _ in range(LENT_PARTS_MAX):
            blank = data.find(_END, start)
            if not cut and blank < 0:
                break
            end = cut or blank + len(_END)
            handler.data_received(data[start:end])
            start, cut = end, 0
        self._tail = (self._tail + data)[-len(_END) :]
        if start < len(data):
            handler.data_received(data[start:])
        return len(data)

    def _foreign(self) -> RequestHandler:
        if self._handler is None:
            assert self._transport is not None
            self._handler = self._lane.foreign(self)
            self._handler.connection_made(LentTransport(self._transport, self))
        return self._handler

    @property
    def bounded(self) -> bool:
        return self._state is State.THEIRS

    def foreign_began(self) -> None:
        """aiohttp has a request's head: from here on the door bounds what happens."""
        if self._state in (State.STARTING, State.RESTING):
            self._turn(State.FOR_GOOD)

    def foreign_done(self) -> None:
        """aiohttp has written an answer's last byte."""
        if self._state in (State.CLOSING, State.CLOSED):
            return
        if self._lane.draining:
            self.close()
        elif self._state is not State.THEIRS:
            self._turn(State.RESTING)
            self._lane.lent[self] = None
        else:
            self._answered = True
            if self._left == 0:
                self._foreign_ended()

    def _foreign_ended(self) -> None:
        self._turn(State.IDLE)
        self._lane.lent[self] = None
        if self._buffer:
            self._lane.loop.call_soon(self._pump)  # aiohttp is still in the middle of its turn

    def rest(self) -> bool:
        """Between two requests aiohttp's side holds nothing that is needed, and may go; the next one gets another."""
        handler, state = self._handler, self._state
        if handler is None or state in _ENDED or state in _LENT:
            return True  # nothing is held, or an answer of theirs will come first
        half = state is State.RESTING and self._tail != _END
        if half or self._paused or not resting(handler):
            return False
        self._handler, self._tail = None, b""
        if state is State.RESTING:
            self._state = State.IDLE
        self.resume(THEIRS)
        lent = handler.transport
        assert isinstance(lent, LentTransport)
        lent.give_back()
        handler.connection_lost(None)
        return True

    # -- bounds -----------------------------------------------------------------------------------

    def expire(self) -> None:
        """The peer took too long: say so where a request had begun, and close."""
        lane, state = self._lane, self._state
        if state is _RELAYED and self._relay is not None and not self._relay.begun and not self._paused:
            self._relay.give_up(lane.options.times.answer)  # it is the replica that takes too long
            return
        lane.cuts["write" if self._paused else state.value] += 1
        if state in (State.HEAD, State.STARTING) and not self._paused:
            self._refuse(timed_out(f"The head did not arrive within {lane.options.times.head:g} s."))
        elif state is State.BODY and not self._paused:
            assert self._asked is not None
            question, seconds = self._asked.question, lane.options.times.body
            within = f"server.body_timeout ({seconds:g} s)"
            if question is not None:
                within = f"{min(seconds, question.route.timeout):g} s"
            self._refuse(timed_out(f"The body did not arrive within {within}."), question)
        else:
            self.abort()

    def finish(self) -> None:
        """Draining: nothing new is begun."""
        transport = self._transport
        if self._state not in (State.IDLE, State.HEAD, State.STARTING, State.RESTING) or transport is None:
            return
        all_sent = transport.get_write_buffer_size() == 0
        self.close()
        if self._origin.secure and all_sent:
            # It is told, and need not answer that, which a client's pool of idle connections never does.
            self._lane.loop.call_soon(transport.abort)

    def close(self) -> None:
        """Close when what is written has been sent, which may take as long as reading an answer."""
        self._turn(State.CLOSING)
        if self._transport is not None:
            self._transport.close()

    def hang_up(self) -> None:
        """Say that nothing more comes, and wait for them to close: to close at once, while bytes of theirs are
        unread, could take the last answer away from them (RFC 9112 section 9.6)."""
        transport = self._transport
        if self._state is State.CLOSED or transport is None or transport.is_closing():
            return
        self._turn(State.CLOSING)
        self._let_go()
        if not transport.can_write_eof():
            transport.close()  # under TLS that says it and waits (secured.py)
            return
        self.resume(self._stopped)
        transport.write_eof()

    def abort(self) -> None:
        """Close now."""
        self._state, self.limit = State.CLOSING, math.inf
        if self._transport is not None:
            self._transport.abort()

    def pause(self, who: int) -> None:
        """Read no more, for one of those who share the connection."""
        transport = self._transport
        if not self._stopped and transport is not None and not transport.is_closing():
            transport.pause_reading()
        self._stopped |= who

    def resume(self, who: int) -> None:
        """Read again, if nobody else has it stopped."""
        transport = self._transport
        if self._stopped == who and transport is not None and not transport.is_closing():
            transport.resume_reading()
        self._stopped &= ~who

    def _let_go(self) -> None:
        """Hold nothing more."""
        self._buffer, self._parts, self._size = b"", None, 0
        self._recount()

    def _recount(self) -> None:
        """Tell the lane how many bytes of requests are held here."""
        more = self._size + len(self._buffer) - self._held
        if more:
            self._held += more
            self._lane.buffered.bytes += more
