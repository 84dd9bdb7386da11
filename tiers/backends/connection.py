"""One raw HTTP/1.1 connection to a replica: one request at a time, and never in doubt whose an answer is.

Rule of this file: a connection may be used again only if the answer was whole, came after all of the request
had been sent, and was followed by nothing. Any doubt closes it: bytes nobody asked for, an answer that began
too early, a status 101, a head out of bounds. Heads are read by `AnswerHeads`, unless an answer has the last
one's, byte for byte, and bodies without a length by its parser. It must not know a model, a pool or why it is
asked. RFC 9112 sections 6.3, 9.3 and 9.5.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import Final, cast

from msgspec import Struct

from cache.alarms import Alarms
from tiers.backends.answer import HEAD_END, AnswerHead, AnswerHeads, FramedBody, Nonsense, may_begin
from tiers.backends.arrival import Arrival, ConnectionFault, Fault, Receiver
from tiers.backends.fields import JOINED_BYTES_MAX, IllFormed, Outgoing

_ALIKE_BYTES_MAX: Final = 64 * 1024
_ALIKE_HEAD_BYTES_MAX: Final = 4096
"""Of an answer that is known again by its size and its head, and of the head, which a connection keeps: a larger one
comes in pieces, and its head is not what it costs."""
_INTERIM_MAX: Final = 8  # answers 1xx (RFC 9110 section 15.2) before the one: more is a server that only talks


class ConnectionBounds(Struct, frozen=True):
    """``header_bytes_max`` bounds an answer's head, ``answer_bytes_max`` the body of a whole answer;
    reading stops while a streamed answer holds ``stream_bytes_max`` that nobody has taken."""

    header_bytes_max: int = 64 * 1024
    answer_bytes_max: int = 256 * 1024 * 1024
    stream_bytes_max: int = 256 * 1024


class Connection(asyncio.Protocol):
    """``on_lost`` is called once, when the connection is gone. ``requests`` counts those sent over it."""

    __slots__ = (
        "_arrival", "_bounds", "_drained", "_early", "_framed", "_has_body", "_heads", "_interim", "_keep",
        "_last", "_last_bytes", "_left", "_loop", "_on_lost", "_partial", "_patience", "_reading_paused",
        "_transport", "_unsent", "_writing_paused", "closed", "requests",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        heads: AnswerHeads,
        bounds: ConnectionBounds,
        on_lost: Callable[[Connection], None],
        patience: Alarms[Arrival],
    ) -> None:
        """``patience``: of who waits for answers; it rings `Arrival.expire`."""
        self._loop = loop
        self._patience = patience
        self._heads = heads
        self._bounds = bounds
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._drained: asyncio.Future[None] | None = None
        self._writing_paused = False
        self._reading_paused = False
        self._arrival: Receiver | None = None  # the answer that is due
        self._has_body = True  # whether that answer may have a body at all
        self._unsent = False  # an iterable body is still going up
        self._early = False  # a piece of the answer's head came before all of the request was sent
        self._interim = 0
        self._last: AnswerHead | None = None  # of an answer that came whole, and left no doubt
        self._last_bytes = 0  # how large that answer was
        self._partial = bytearray()
        self._left = 0  # bytes to come of a body with a length
        self._framed: FramedBody | None = None
        self._keep = True
        self.closed = False
        self.requests = 0

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent: nothing is due, and nothing was in doubt."""
        return self._arrival is None and self._keep and not self.closed

    # -- the caller's side ----------------------------------------------------------------------

    def send(self, outgoing: Outgoing, *, whole: bool) -> Arrival:
        """Write a request; its answer arrives in what is returned. An iterable body goes up by `upload`."""
        arrival = Arrival(self._loop, self._patience, whole)
        self.send_to(outgoing, arrival)
        return arrival

    def send_to(self, outgoing: Outgoing, arrival: Receiver) -> None:
        """Write a request; whatever comes of its answer is told to ``arrival``, perhaps at once."""
        assert self._arrival is None, "one request at a time"
        self.requests += 1
        if self.closed or self._transport is None:
            arrival.fail(ConnectionFault(Fault.CLOSED))
            return
        self._arrival = arrival
        self._has_body = outgoing.answer_has_body
        self._keep = False
        self._unsent = outgoing.upload is not None
        if not outgoing.parts:
            self._transport.write(outgoing.head)
            return
        written = (outgoing.head, *outgoing.parts)
        if sum(map(len, written)) <= JOINED_BYTES_MAX:
            self._transport.write(b"".join(written))
        else:
            self._transport.writelines(written)

    async def upload(self, body: AsyncIterable[bytes], length: int | None, arrival: Arrival) -> None:
        """Send an iterable body, as fast as the replica takes it. What it raises ends ``arrival`` as it is.

        Stops without a word once the answer has ended: what is left of the body is of no use then.
        """
        iterator = aiter(body)
        try:
            await self._send_pieces(iterator, length, arrival)
        except BaseException as error:
            if self._arrival is arrival:
                self.abort(error)
            if not isinstance(error, Exception):
                raise
        finally:
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()

    async def more(self, arrival: Arrival, silence: float) -> bytes:
        """All of a streamed answer's body that has come since; empty at its end. ``silence`` is how many seconds
        to wait for it. Raises ConnectionFault, or what the caller's body raised."""
        piece = await arrival.more(silence)
        self.taken(arrival)
        return piece

    def taken(self, arrival: Receiver) -> None:
        """What ``arrival`` held has been taken: read on, if that had been stopped for its sake."""
        if self._reading_paused and self._arrival is arrival:
            self._resume_reading()

    def abort(self, error: BaseException | None = None) -> None:
        """Close at once. An answer that is due ends with ``error``."""
        arrival, self._arrival = self._arrival, None
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        if arrival is not None:
            arrival.fail(error or ConnectionFault(Fault.BROKEN_OFF, "it was given up"))

    # -- the transport's side -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        endpoint = transport.get_extra_info("socket")
        if endpoint is not None and endpoint.family in (socket.AF_INET, socket.AF_INET6):
            endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.closed:  # given up while it was being made
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        arrival, last = self._arrival, self._last
        if arrival is None:  # an answer to nothing
            self.abort()
        elif (
            len(data) == self._last_bytes
            and last is not None
            and data.startswith(last.raw)
            and self._has_body
            and not (arrival.started or self._unsent)
            and self._transport is not None
            and not self._transport.get_write_buffer_size()
        ):
            # A whole answer with the last one's head: nothing of that need be read again.
            self._arrival, self._keep = None, True
            arrival.answer(last, data[len(last.raw) :])
        elif self._left:
            self._read_measured(arrival, data)
        elif self._framed is not None:
            self._read_framed(arrival, data, self._framed)
        else:
            self._read_head(arrival, data)

    def eof_received(self) -> bool:
        self._ended(True)
        self.abort()  # also what is still to be written: nobody will answer it
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._ended(exc is None)
        self.resume_writing()
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # -- sending --------------------------------------------------------------------------------

    async def _send_pieces(self, iterator: AsyncIterator[bytes], length: int | None, arrival: Arrival) -> None:
        sent = 0
        async for piece in iterator:
            transport = self._transport
            if self._arrival is not arrival or transport is None:
                return
            if not piece:
                continue
            sent += len(piece)
            if length is None:
                transport.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))
            elif sent <= length:
                transport.write(piece)
            else:
                raise IllFormed(f"the body is longer than its Content-Length of {length} bytes")
            while self._writing_paused and self._arrival is arrival:
                await self._drain()
        if self._arrival is not arrival or self._transport is None:
            return
        if length is None:
            self._transport.write(b"0\r\n\r\n")
        elif sent < length:
            raise IllFormed(f"the body ended after {sent} bytes of {length}")
        self._unsent = False

    async def _drain(self) -> None:
        self._drained = self._loop.create_future()
        try:
            await self._drained
        finally:
            self._drained = None

    # -- receiving ------------------------------------------------------------------------------

    def _read_head(self, arrival: Receiver, data: bytes) -> None:
        assert self._transport is not None
        arrival.started = True
        while True:
            self._early = self._early or self._unsent or self._transport.get_write_buffer_size() > 0
            seen = len(self._partial)
            if seen:
                self._partial += data
                end = self._partial.find(HEAD_END, max(0, seen - 3))
            else:
                end = data.find(HEAD_END)
            cut = end + 4 if end >= 0 else seen + len(data)
            if cut > self._bounds.header_bytes_max:
                return self._fail(Fault.NONSENSE, f"a head of more than {self._bounds.header_bytes_max} bytes")
            if end < 0:
                return self._wait_for_head(data, seen)
            if seen:
                data, self._partial = bytes(self._partial), bytearray()
            try:
                head = self._heads.read(data[:cut])
            except Nonsense as error:
                return self._fail(Fault.NONSENSE, str(error))
            if head.status >= 200:
                return self._begin(arrival, head, data, cut)
            self._interim += 1
            if self._interim > _INTERIM_MAX:
                return self._fail(Fault.NONSENSE, f"more than {_INTERIM_MAX} answers before the one")
            data, self._early = data[cut:], False
            if not data:
                return None

    def _wait_for_head(self, data: bytes, seen: int) -> None:
        if not seen:
            self._partial += data
        if not may_begin(self._partial, seen):
            self._fail(Fault.NONSENSE, "bytes that are not HTTP/1.1")

    def _begin(self, arrival: Receiver, head: AnswerHead, data: bytes, cut: int) -> None:
        """The head is read; ``data`` from ``cut`` on is the body's beginning."""
        self._keep = head.keep_alive and not self._early
        self._early, self._interim = False, 0  # for the next answer
        has_body = self._has_body and head.has_body
        arrival.begin(head, has_body and len(data) > cut and head.length != 0)
        if not has_body:
            if head.status == 204 and (head.length or head.chunked):
                self._keep = False  # says it has no body, and that it has one
            length = 0
        elif head.length is not None:
            length = head.length
        else:
            self._framed = FramedBody(self._loop, data[:cut], head.chunked)
            if len(data) > cut:
                self._read_framed(arrival, data[cut:], self._framed)
            return
        if arrival.whole and length > self._bounds.answer_bytes_max:
            self._fail(Fault.OVERSIZED)
            return
        rest = len(data) - cut
        if rest < length:
            self._left = length
            if rest:
                self._read_measured(arrival, data[cut:])
            return
        if rest > length:
            self._keep = False
        if length:
            arrival.feed(data[cut : cut + length])
            self._remember(head)
        self._finish(arrival)

    def _remember(self, head: AnswerHead) -> None:
        """An answer came whole: the next one may be like it."""
        assert head.length is not None
        size = len(head.raw) + head.length
        small = size <= min(_ALIKE_BYTES_MAX, self._bounds.answer_bytes_max) and len(head.raw) <= _ALIKE_HEAD_BYTES_MAX
        if small and self._keep:
            self._last, self._last_bytes = head, size

    def _read_measured(self, arrival: Receiver, data: bytes) -> None:
        if len(data) > self._left:
            self._keep = False
            data = data[: self._left]
        self._left -= len(data)
        arrival.feed(data)
        if self._left:
            self._pause_reading(arrival)
        else:
            self._finish(arrival)

    def _read_framed(self, arrival: Receiver, data: bytes, framed: FramedBody) -> None:
        try:
            piece = framed.feed(data)
        except Nonsense as error:
            self._fail(Fault.NONSENSE, str(error))
            return
        if piece:
            arrival.feed(piece)
            if arrival.whole and arrival.held > self._bounds.answer_bytes_max:
                self._fail(Fault.OVERSIZED)
                return
        if framed.ended:
            self._keep = self._keep and framed.clean
            self._finish(arrival)
        else:
            self._pause_reading(arrival)

    def _finish(self, arrival: Receiver) -> None:
        self._arrival = self._framed = None
        self._resume_reading()
        if not self._keep:
            self.abort()
        arrival.finish()

    def _fail(self, fault: Fault, detail: str = "") -> None:
        self.abort(ConnectionFault(fault, detail))

    def _ended(self, cleanly: bool) -> None:
        """The replica will send no more."""
        arrival = self._arrival
        if arrival is None:
            return
        self._keep = False
        if cleanly and self._framed is not None and self._framed.close():
            self._finish(arrival)
        else:
            self._fail(Fault.BROKEN_OFF if arrival.started else Fault.CLOSED)

    def _pause_reading(self, arrival: Receiver) -> None:
        paused = self._reading_paused or arrival.whole or arrival.held <= self._bounds.stream_bytes_max
        if not paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()


def died_of_age(connection: Connection, fault: ConnectionFault) -> bool:
    """Whether a kept connection was closed before any byte of an answer: that is how old ones end."""
    return fault.fault is Fault.CLOSED and connection.requests > 1
