"""A TCP link that can be broken in every way a network and what stands in it do, and mended again.

Rule of this file: it carries bytes between whoever connects and one server, and knows no protocol. What is switched on
holds for connections that are there and for new ones, until it is switched off; then whoever was lied to is cut (bytes
cut out of a stream cannot be put back), and what was only held up goes on. Chance is an argument. What was really done
to somebody is counted: a fault that met nobody is no test.

Answers alone are truncated and corrupted, and corrupted where they begin: neither the inference protocol nor Redis has
a checksum, so a number that was changed on its way to or from a model is a good number to everybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import socket
import struct
from collections import Counter
from types import TracebackType
from typing import Final, Self

from msgspec import Struct

HOST: Final = "127.0.0.1"
READ_BYTES: Final = 65_536
BACKLOG: Final = 256
CONNECTIONS_MAX: Final = 512
"""At once; more are cut. Many times what a gateway and its callers have here."""
GARBAGE: Final = b"\xff" * 8
"""No HTTP, no JSON, no frame of HTTP/2, no reply of Redis; and in whole floats NaN."""


class Fault(enum.Enum):
    """What a link can do. The value is the word in tables and plans."""

    LATENCY = "latency"
    """Every piece takes longer."""
    BLACKHOLE = "blackhole"
    """Connections are taken, and nothing comes through; all of it comes when the fault is over."""
    RESET = "reset"
    """RST to both sides, at once and for whoever connects."""
    TRUNCATE = "truncate"
    """The beginning of an answer, and then an orderly end."""
    DRIP = "drip"
    """A byte at a time."""
    CORRUPT = "corrupt"
    """An answer begins with garbage."""
    HALF_CLOSE = "half-close"
    """The server's side ends (FIN) in the place of an answer; what is sent to it is still taken."""
    REFUSE = "refuse"
    """Nobody listens, and who was connected is cut."""


LYING: Final = frozenset({Fault.TRUNCATE, Fault.CORRUPT, Fault.HALF_CLOSE})
"""Those after which a connection cannot go on."""


class Pace(Struct, frozen=True):
    """``latency_seconds``: of each piece, half to one and a half times that. ``drip_seconds``: between two bytes."""

    latency_seconds: float = 0.3
    drip_seconds: float = 0.05


class _Cut(Exception):
    """This connection ends here."""


class _Pair:
    """Two sockets of one connection, and what was done to it."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far = near, far
        self.asked = False  # something has gone to the server since it last began to answer
        self.lied_to = False
        self.deaf = False  # the caller was told that the server has ended
        self.hard = False  # to be ended with RST
        self.carrying: list[asyncio.Task[None]] = []

    def cut(self, hard: bool) -> None:
        """Let it end: sockets are closed once nobody waits for them any more."""
        self.hard = self.hard or hard
        for task in self.carrying:
            task.cancel()

    def close(self) -> None:
        for each in (self.near, self.far):
            if self.hard:
                with contextlib.suppress(OSError):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.close()


class Proxy:
    """One link to ``host:port``, as an asynchronous context manager. Its own port stays the same for its life."""

    def __init__(self, host: str, port: int, chance: random.Random, pace: Pace = Pace()) -> None:  # noqa: B008 - frozen
        self.done: Counter[str] = Counter()
        """Connections or answers that each fault has met."""
        self.port = 0
        self._target = (host, port)
        self._chance = chance
        self._pace = pace
        self._fault: Fault | None = None
        self._mended = asyncio.Event()
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._holder: socket.socket | None = None
        self._listening: socket.socket | None = None

    @property
    def address(self) -> str:
        """``HOST:PORT``."""
        return f"{HOST}:{self.port}"

    @property
    def fault(self) -> Fault | None:
        return self._fault

    async def __aenter__(self) -> Self:
        self._holder = self._bound(0)  # never listens: it keeps the number while nobody does
        self.port = self._holder.getsockname()[1]
        self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deafen()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._holder is not None:
            self._holder.close()

    def switch(self, fault: Fault | None) -> None:
        """Begin this fault, or with None end what there is."""
        before, self._fault = self._fault, fault
        self._mended.set()
        self._mended = asyncio.Event()
        if fault in (Fault.RESET, Fault.REFUSE):
            if fault is Fault.REFUSE:
                self._deafen()
            for pair in tuple(self._pairs):
                self.done[fault.value] += 1
                pair.cut(hard=True)
        elif before is not None:
            for pair in tuple(self._pairs):
                if pair.lied_to:
                    pair.cut(hard=False)
        if before is Fault.REFUSE and fault is not Fault.REFUSE:
            self._listen()

    # -- connections ---------------------------------------------------------------------------------------------

    def _bound(self, port: int) -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.setblocking(False)
        made.bind((HOST, port))
        return made

    def _listen(self) -> None:
        self._listening = self._bound(self.port)
        self._listening.listen(BACKLOG)
        asyncio.get_running_loop().add_reader(self._listening, self._accept, self._listening)

    def _deafen(self) -> None:
        listening, self._listening = self._listening, None
        if listening is not None:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()

    def _accept(self, listening: socket.socket) -> None:
        try:
            near, _ = listening.accept()
        except OSError:
            return  # who knocked has left
        if len(self._pairs) >= CONNECTIONS_MAX:
            near.close()
            return
        task = asyncio.create_task(self._serve(near))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, near: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        near.setblocking(False)
        far = socket.socket()
        far.setblocking(False)
        pair = _Pair(near, far)
        self._pairs.add(pair)
        try:
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._held_up()
            if self._fault is Fault.RESET:
                self.done[Fault.RESET.value] += 1
                pair.hard = True
            if pair.hard:
                return
            await loop.sock_connect(far, self._target)
            pair.carrying = [asyncio.create_task(self._carry(pair, *way)) for way in ((near, far), (far, near))]
            await asyncio.wait(pair.carrying, return_when=asyncio.FIRST_EXCEPTION)
        except OSError:
            pair.hard = True  # the server's end, however it came, is the caller's
        finally:
            pair.cut(hard=False)
            for how in await asyncio.gather(*pair.carrying, return_exceptions=True):
                pair.hard = pair.hard or isinstance(how, OSError)
            self._pairs.discard(pair)
            pair.close()

    async def _carry(self, pair: _Pair, source: socket.socket, sink: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        answers = source is pair.far
        while data := await loop.sock_recv(source, READ_BYTES):
            begins = answers and pair.asked
            pair.asked = not answers
            data = await self._damaged(pair, data, answers, begins)
            if data and not (answers and pair.deaf):
                await loop.sock_sendall(sink, data)
        await self._held_up()
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    # -- faults --------------------------------------------------------------------------------------------------

    async def _held_up(self) -> None:
        while self._fault is Fault.BLACKHOLE:
            self.done[Fault.BLACKHOLE.value] += 1
            await self._mended.wait()

    async def _damaged(self, pair: _Pair, data: bytes, answers: bool, begins: bool) -> bytes:
        """What goes on of a piece of a stream, when it is time. Raises _Cut."""
        await self._held_up()
        fault = self._fault
        if fault is Fault.LATENCY:
            self.done[fault.value] += 1
            await self._pause(self._pace.latency_seconds * (0.5 + self._chance.random()))
        elif fault is Fault.DRIP:
            self.done[fault.value] += 1
            return await self._dripped(data, pair.near if answers else pair.far)
        elif answers and fault in LYING:
            self.done[fault.value] += 1
            return self._lied(pair, data, fault, begins)
        return data

    async def _pause(self, seconds: float) -> None:
        """Shorter, if the fault ends before."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._mended.wait(), seconds)

    async def _dripped(self, data: bytes, sink: socket.socket) -> bytes:
        """What is left when the fault has ended; nothing, if it all went by drops."""
        loop, place = asyncio.get_running_loop(), 0
        while place < len(data) and self._fault is Fault.DRIP:
            await loop.sock_sendall(sink, data[place : place + 1])
            place += 1
            await self._pause(self._pace.drip_seconds)
        return data[place:]

    def _lied(self, pair: _Pair, data: bytes, fault: Fault, begins: bool) -> bytes:
        pair.lied_to = True
        if fault is Fault.TRUNCATE:
            part = data[: self._chance.randrange(len(data))]
            with contextlib.suppress(OSError):
                pair.near.send(part)  # a few bytes: the buffer has room, or they are lost as well
            raise _Cut
        if fault is Fault.HALF_CLOSE:
            if not pair.deaf:
                pair.deaf = True
                with contextlib.suppress(OSError):
                    pair.near.shutdown(socket.SHUT_WR)
            return b""
        return GARBAGE[: len(data)] + data[len(GARBAGE) :] if begins else data
