"""One connection under TLS, between the loop's TLS and a protocol that knows nothing of it.

Rule of this file: a protocol to what is below, a transport to what is above; bytes pass, and are not looked at. It
is there because TLS takes whatever is written at once: all of a large answer would be sealed and lie in buffers of
which the protocol above is never told, and it would take a peer that does not read for one that is done. So what is
large goes down in pieces, as far as the socket takes them, and the rest waits here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, cast

PIECE_BYTES_MAX: Final = 64 * 1024
"""What is sealed at once; also what may lie sealed before writing is paused, as a plain socket's buffer may."""

Data = bytes | bytearray | memoryview


class Secured(asyncio.Transport, asyncio.Protocol):
    """A connection, from the end of its handshake. ``make`` is asked for the protocol above it then."""

    __slots__ = ("_closing", "_full", "_inner", "_make", "_queue", "_queued", "_told", "_transport")

    def __init__(self, make: Callable[[], asyncio.Protocol]) -> None:
        self._make = make
        self._inner: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self._queue: deque[memoryview] = deque()
        self._queued = 0  # bytes in it
        self._full = False  # below takes no more for now
        self._told = False  # above knows
        self._closing = False  # when the queue is written

    # -- to what is below -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=PIECE_BYTES_MAX)
        self._inner = self._make()
        self._inner.connection_made(self)

    def data_received(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return None if self._inner is None else self._inner.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        inner, self._inner = self._inner, None
        self._closing = True  # uvloop would log what is still written
        self._drop()
        if inner is not None:
            inner.connection_lost(error)

    def pause_writing(self) -> None:
        self._full = True
        if not self._told and self._inner is not None:
            self._told = True
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._full = False
        self._flow()
        if self._told and not self._full and self._inner is not None:
            self._told = False
            self._inner.resume_writing()

    # -- to what is above -------------------------------------------------------------------------

    def write(self, data: Data) -> None:
        transport = self._transport
        if transport is None or self._closing:
            return
        if len(data) <= PIECE_BYTES_MAX and not self._full:
            transport.write(data)
        elif data:
            self._queue.append(memoryview(data if isinstance(data, bytes) else bytes(data)))  # it may be used again
            self._queued += len(data)
            self._flow()

    def writelines(self, list_of_data: Iterable[Data]) -> None:
        for data in list_of_data:
            self.write(data)

    def close(self) -> None:
        """Close when all is written. The peer is told so, and what it still sends is dropped until it closes too:
        bytes on their way do not take the last answer away from it."""
        if not self._closing and self._transport is not None:
            self._closing = True
            if not self._queue:
                self._transport.close()

    def abort(self) -> None:
        self._drop()
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def is_closing(self) -> bool:
        return self._closing or self._transport is None or self._transport.is_closing()

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def is_reading(self) -> bool:
        return self._transport is not None and self._transport.is_reading()

    def get_write_buffer_size(self) -> int:
        return self._queued + (0 if self._transport is None else self._transport.get_write_buffer_size())

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default if self._transport is None else self._transport.get_extra_info(name, default)

    # -- what waits ---------------------------------------------------------------------------------

    def _flow(self) -> None:
        """Write of what waits as much as is taken."""
        while self._queue and not self._full and self._transport is not None:
            piece, rest = self._queue[0][:PIECE_BYTES_MAX], self._queue[0][PIECE_BYTES_MAX:]
            if rest:
                self._queue[0] = rest
            else:
                self._queue.popleft()
            self._queued -= len(piece)
            self._transport.write(piece)  # which may say that this was enough
        if self._closing and not self._queue and self._transport is not None:
            self._transport.close()

    def _drop(self) -> None:
        self._queue.clear()
        self._queued = 0
