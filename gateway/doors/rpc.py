"""The MessagePack-RPC door: calls of one connection in work side by side, each answered when it is done, by its id.

Rule of this file: it owns sockets and time; what bytes are a call is ``codec/rpc.py``'s, what a call asks is
``methods.py``'s, what an answer is ``exchange.py``'s. A hit is answered in the read callback; everything else in a task
of its own. What is large is walked once for its end, as it comes and others in turn, and read aside. Who has as many
calls in work as one connection may have, or does not read, is not read from: what he sends waits in his own socket.

A stream that is no MessagePack-RPC ends its connection and no other: the call that it happened in is told why, if its
id is known, those in work are answered, and then our side is closed. So it is at a drain: a call that has been read is
answered, one that has not finds the connection closed, and its caller asks again elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Coroutine, Iterator
from typing import Final, cast

import msgspec
import structlog

from gateway.admission.auth import anonymous_name
from gateway.admission.quota import Verdict
from gateway.codec import rpc
from gateway.codec.rpc import Call, Fault, FrameFault, Frames, Message
from gateway.doors import methods
from gateway.doors.exchange import ASIDE_BYTES
from gateway.doors.methods import Asked, Opened
from gateway.doors.origin import origin_of
from gateway.doors.rpc_lane import RpcLane
from gateway.operate.telemetry import PASSTHROUGH
from gateway.pipeline import WireAnswer
from gateway.problem import Refused, internal, timed_out
from tiers.inference import Provenance

COPIED_BYTES_MAX: Final = 64 * 1024
"""Answers up to this go out in one write: copying them is cheaper than a second call."""

TURN_CALLS_MAX: Final = 64
"""Calls begun in one turn of the event loop: some milliseconds, after which it is others' turn."""

TURN_STEPS_MAX: Final = 1024
"""Steps in which one connection's bytes are looked at before others have a turn: less than a millisecond. Small values
in small messages cost much time for few bytes."""

SCAN_SECONDS_MAX: Final = 0.001
"""After how long a look at one connection's bytes others have a turn: the loop reads on while there are some, up to
32 times in one of its turns."""

LINGER_SECONDS_MAX: Final = 1.0
"""How long a peer may take to close its side after ours is closed."""

_OK: Final = 200
_log = structlog.get_logger("tailrace")


class Work(msgspec.Struct):
    """A call in work, and under which name it is counted, once that is known."""

    call: Call
    began: float
    label: str = ""


class RpcConnection(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_began", "_closing", "_desk", "_ending", "_frames", "_held", "_lane", "_options", "_patient", "_paused",
        "_peer", "_places", "_pumps", "_resting", "_stopped", "_tasks", "_transport", "_waiting", "_waiting_bytes",
        "_working_bytes", "limit",
    )  # fmt: skip

    def __init__(self, lane: RpcLane) -> None:
        self._lane = lane
        self._desk = lane.desk
        self._transport: asyncio.Transport | None = None
        self._peer = ""
        self._options = lane.options
        self._frames = Frames(lane.options.message_bytes_max, lane.options.plain_bytes_max)
        self._waiting: deque[tuple[Message, float]] = deque()  # whole messages, and when each began
        self._waiting_bytes = 0
        self._began = 0.0  # when the message under way began
        self._tasks: set[asyncio.Task[None]] = set()
        self._places: dict[tuple[str, int], asyncio.Semaphore] = {}
        self._working_bytes = 0
        self._held = 0  # bytes that the process counts as held here
        self._paused = False  # the peer does not read: nothing more is begun
        self._stopped = False  # we do not read
        self._resting = False  # nor shall we until others have had their turn
        self._ending = False  # nothing more is read; ends when all is answered
        self._closing = False  # our side is closed
        self._patient = False  # it was given time to read the last answers
        self._pumps = False  # another turn is due
        self.limit = math.inf

    # -- the transport's callbacks ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._peer = anonymous_name(origin_of(transport).address or "local")
        self._turn()
        if not self._lane.book.admit(self, self._peer):
            self.abort()

    def data_received(self, data: bytes) -> None:
        if not self._ending:
            self._look(data)

    def _look(self, data: bytes) -> None:
        """Find calls in what has come, and in what was left to be looked at."""
        if self._options is not self._lane.options and not self._frames.held:  # a reload: other bounds from here on
            self._options = self._lane.options
            self._frames = Frames(self._options.message_bytes_max, self._options.plain_bytes_max)
        frames, now = self._frames, self._desk.ticker()
        if not frames.held:
            self._began = now
        for message in frames.feed(data, TURN_STEPS_MAX):
            self._waiting.append((message, self._began))
            self._waiting_bytes += message.size
            self._began = now
        self._recount()
        if not self._resting and (frames.unread or self._desk.ticker() - now > SCAN_SECONDS_MAX):
            self._resting = True
            self._lane.loop.call_soon(self._rested)
        if not frames.unread and frames.fault is None and self._desk.buffered.refuses(frames.held):
            self._end_with(Fault(self._desk.buffered.refusal(), frames.known_id()), waits=True)
        self._pump()

    def _rested(self) -> None:
        self._resting = False
        if self._frames.unread:
            self._look(b"")
        else:
            self._pump()

    def eof_received(self) -> bool:
        return False  # a peer that sends no more is done: close, as the HTTP door does

    def connection_lost(self, error: Exception | None) -> None:
        self._ending = self._closing = True
        self._paused = False  # what was not taken is gone with the transport
        self._lane.book.ended(self, self._peer)
        for task in self._tasks:
            task.cancel()  # the caller has left; others may still wait for the same flights
        self._let_go()

    def pause_writing(self) -> None:
        self._paused = True
        self.limit = self._desk.ticker() + self._lane.options.times.write
        self._recount()

    def resume_writing(self) -> None:
        self._paused = False
        self._pump()

    # -- calls ------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Begin what may be begun, and end if nothing more will be."""
        if self._closing:
            return
        begun = 0
        while self._waiting and not self._paused and len(self._tasks) < self._lane.options.in_flight_max:
            if begun == TURN_CALLS_MAX:
                self._pump_soon()
                break
            begun += 1
            message, began = self._waiting.popleft()
            self._waiting_bytes -= message.size
            self._begin(message, began)
        fault = self._frames.fault
        if fault is not None and not self._waiting and not self._ending:
            self._end_with(fault)
        self._recount()
        self._read(not (self._waiting or self._paused or self._ending or self._resting))
        self._turn()
        if self._ending and not self._waiting and not self._tasks:
            self._hang_up()

    def _pump_soon(self) -> None:
        if not self._pumps:
            self._pumps = True
            self._lane.loop.call_soon(self._pump_again)

    def _pump_again(self) -> None:
        self._pumps = False
        self._pump()

    def _begin(self, message: Message, began: float) -> None:
        """One message: answered at once if that is known, else in a task."""
        desk, is_large = self._desk, message.size > ASIDE_BYTES
        opened = None
        try:
            call, at = rpc.begun(message.prefix) if is_large else (rpc.call_of(message.taken()), 0)
            work = Work(call, began)
            if is_large:
                if desk.buffered.refuses(message.size):
                    raise Refused(desk.buffered.refusal())
                self._start(self._answer_large(work, message, at), message.size)
                return
            opened = methods.opened(call)
            asked = desk.methods.asked(opened, self._peer)
            work.label, wire = asked.label, None
            if asked.question is not None:
                hit, wire = desk.exchange.recall(asked.question, asked.body, desk.ticker())
                if hit is not None:
                    self._write_hit(work, hit)
                    return
                if desk.buffered.refuses(message.size):
                    raise Refused(desk.buffered.refusal())
        except FrameFault as fault:
            self._waiting.clear()
            self._waiting_bytes = 0
            self._end_with(fault.fault)
            return
        except Refused as refused:
            work.label = work.label or desk.methods.label(opened)
            self._write_error(work, refused)
            return
        self._start(self._answer(work, asked, wire), message.size)

    def _start(self, answering: Coroutine[None, None, None], size: int) -> None:
        """Answer a call of ``size`` bytes in a task."""
        self._working_bytes += size
        self._lane.in_flight += 1
        task = self._lane.loop.create_task(answering)
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, size))

    async def _answer(self, work: Work, asked: Asked, wire: bytes | None) -> None:
        with self._telling(work):
            await self._make(work, asked, wire)

    async def _answer_large(self, work: Work, message: Message, at: int) -> None:
        """Read a large message aside, and answer it."""
        desk, seconds = self._desk, self._lane.options.times.body
        opened = None

        def read() -> Opened:
            call = msgspec.structs.replace(work.call, params=memoryview(message.taken())[at:])
            return methods.opened(call)

        with self._telling(work):
            opened = await desk.exchange.aside(read, self._peer, seconds)
            work.label = desk.methods.label(opened)
            asked = desk.methods.asked(opened, self._peer)
            wire = None
            if asked.question is not None:
                left = work.began + asked.question.route.timeout - desk.ticker()
                hit, wire = await desk.exchange.recall_aside(asked.question, asked.body, left)
                if hit is not None:
                    self._write_hit(work, hit)
                    return
            await self._make(work, asked, wire)

    async def _make(self, work: Work, asked: Asked, wire: bytes | None) -> None:
        """Answer what is not recalled. Raises Refused."""
        desk, call = self._desk, work.call
        if asked.question is None:
            document = msgspec.msgpack.encode(await desk.methods.tell(asked))
            self._write(call, rpc.answer(call.msgid or 0, [document]))
            desk.telemetry.responded(asked.label, _OK, "gateway", desk.ticker() - work.began)
            return
        async with self._place(asked.question.route.name):
            made = await desk.exchange.make(asked.question, asked.body, wire, work.began)
        answer = made.answer
        self._write_result(call, made.ready, answer.provenance, answer.quota)
        desk.telemetry.responded(asked.label, _OK, answer.provenance.cache, desk.ticker() - work.began)

    def _place(self, route: str) -> asyncio.Semaphore:
        """One connection takes as many calls to a route's replicas as they have places, and the others wait here: in
        the replicas' line they would be before whatever anyone else asks next."""
        options = self._lane.options
        places = options.places.get(route, options.in_flight_max)  # a reload may have taken a route away meanwhile
        return self._places.setdefault((route, places), asyncio.Semaphore(places))

    @contextlib.contextmanager
    def _telling(self, work: Work) -> Iterator[None]:
        """Whatever goes wrong with a call is told to its caller."""
        try:
            yield
        except Refused as refused:
            self._write_error(work, refused)
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("bug", route=work.label)
            self._write_error(work, Refused(internal()))

    def _ended(self, task: asyncio.Task[None], size: int) -> None:
        self._tasks.discard(task)
        self._working_bytes -= size
        self._lane.in_flight -= 1
        self._recount()
        self._pump()

    # -- writing ----------------------------------------------------------------------------------

    def _write_hit(self, work: Work, hit: WireAnswer) -> None:
        self._write_result(work.call, hit.wire.body, hit.provenance, hit.quota)
        self._desk.telemetry.recalled(work.label, self._desk.ticker() - work.began)

    def _write_result(self, call: Call, ready: bytes, provenance: Provenance, quota: Verdict | None) -> None:
        if call.msgid is not None:
            told: dict[str, object] = {"provenance": rpc.provenance_members(provenance)}
            self._write(call, rpc.answer(call.msgid, rpc.with_members(ready, told | rpc.quota_members(quota))))

    def _write_error(self, work: Work, refused: Refused) -> None:
        telemetry, problem, call, label = self._desk.telemetry, refused.problem, work.call, work.label or PASSTHROUGH
        telemetry.refused(label, problem.slug)
        telemetry.responded(label, problem.status, "problem", self._desk.ticker() - work.began)
        if call.msgid is None:
            return
        provenance = refused.provenance or Provenance(cache="none", reason=problem.slug)
        told: dict[str, object] = {"provenance": rpc.provenance_members(provenance)}
        document: dict[str, object] = {**problem.document(), **told, **rpc.quota_members(refused.verdict)}
        self._write(call, [rpc.error(call.msgid, document)])

    def _write(self, call: Call, parts: list[bytes | memoryview]) -> None:
        transport = self._transport
        if call.msgid is None or transport is None or transport.is_closing() or self._closing:
            return
        if sum(map(len, parts)) <= COPIED_BYTES_MAX:
            transport.write(b"".join(parts))
        else:
            transport.writelines(parts)

    # -- ends -------------------------------------------------------------------------------------

    def _end_with(self, fault: Fault, waits: bool = False) -> None:
        """Read nothing more, and say why to the call that it happened in; ``waits``: calls that came before it are
        begun all the same."""
        problem = fault.problem
        if fault.msgid is not None:
            self._write_error(Work(Call(fault.msgid, "", b""), self._began), Refused(problem))
        else:
            self._desk.telemetry.refused(PASSTHROUGH, problem.slug)
        if not waits:
            self._waiting.clear()
            self._waiting_bytes = 0
        self._ending = True
        self._frames.let_go()

    def expire(self) -> None:
        """The peer took too long."""
        lane = self._lane
        if self._closing and not self._patient and self._unwritten():
            self._patient = True
            self.limit = self._desk.ticker() + lane.options.times.write
        elif self._paused or self._closing:
            lane.book.cuts["write" if self._paused else "closing"] += 1
            self.abort()
        elif self._frames.held:
            state = "body" if self._frames.head_is_whole else "head"
            seconds = lane.options.times.body if state == "body" else lane.options.times.head
            lane.book.cuts[state] += 1
            problem = timed_out(f"The message did not arrive within server.{state}_timeout ({seconds:g} s).")
            self._end_with(Fault(problem, self._frames.known_id()), waits=True)
            self._pump()
        else:
            lane.book.cuts["idle"] += 1
            self.finish()

    def finish(self) -> None:
        """Begin nothing that has not been read, and end."""
        self._ending = True
        self._frames.let_go()
        self._pump()

    def abort(self) -> None:
        """End now."""
        self._ending = self._closing = True
        self.limit = math.inf
        if self._transport is not None:
            self._transport.abort()

    def _hang_up(self) -> None:
        """Say that nothing more comes, and wait for them to close: to close at once, while bytes of theirs are unread,
        could take the last answers away from them."""
        transport = self._transport
        if self._closing or transport is None or transport.is_closing():
            return
        self._closing = True
        self.limit = self._desk.ticker() + min(LINGER_SECONDS_MAX, self._lane.options.times.write)
        self._read(True)
        with contextlib.suppress(OSError):  # they are gone, and we have not been told yet
            transport.write_eof()

    def _unwritten(self) -> bool:
        return self._transport is not None and self._transport.get_write_buffer_size() > 0

    # -- bounds -----------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Set how long the peer may take now; one that does not read stays within the time that it has for that."""
        if self._paused or self._closing:
            return
        times = self._lane.options.times
        if self._frames.held:
            self.limit = self._began + (times.body if self._frames.head_is_whole else times.head)
        elif self._tasks or self._waiting:
            self.limit = math.inf
        else:
            self.limit = self._desk.ticker() + times.idle

    def _read(self, wanted: bool) -> None:
        transport = self._transport
        if wanted != self._stopped or transport is None or transport.is_closing():
            return
        self._stopped = not wanted
        if wanted:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def _let_go(self) -> None:
        self._frames.let_go()
        self._waiting.clear()
        self._waiting_bytes = 0
        self._recount()

    def _recount(self) -> None:
        """Tell the process how many bytes are held here: of requests, and of answers that the peer does not take."""
        held = self._frames.held + self._waiting_bytes + self._working_bytes
        if self._paused and self._transport is not None:
            held += self._transport.get_write_buffer_size()
        if held != self._held:
            self._desk.buffered.add(held - self._held)
            self._held = held
