"""One answer on its way in: what has come of it, and the one task that waits for it.

Rule of this file: the connection puts in, the caller takes out, and an arrival ends exactly once: complete
or with an error. It must not know bytes on a wire, a socket or a model.
"""

from __future__ import annotations

import asyncio
import enum
from typing import Protocol

from cache.alarms import Alarms
from tiers.backends.answer import AnswerHead


class Fault(enum.Enum):
    """How a connection fails the one who asked over it."""

    REFUSED = "refused"  # no connection was made
    CLOSED = "closed"  # before any byte of an answer
    NONSENSE = "nonsense"
    BROKEN_OFF = "broken off"
    OVERSIZED = "oversized"
    SILENT = "silent"  # no answer, or no more of it, in time
    CROWDED = "crowded"  # too many wait for a connection


class ConnectionFault(Exception):
    """``detail`` is for people."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(detail or fault.value)
        self.fault = fault
        self.detail = detail


class Receiver(Protocol):
    """Who takes an answer from a connection. ``whole``: all of the body or nothing; ``held`` counts the body's
    bytes that nobody has taken yet; ``started``: a byte of an answer has come."""

    whole: bool
    started: bool

    @property
    def held(self) -> int: ...
    def begin(self, head: AnswerHead, follows: bool) -> None:
        """The head is there; ``follows``: bytes of the body's framing, and most likely of the body, are too."""

    def feed(self, piece: bytes) -> None: ...
    def finish(self) -> None: ...
    def answer(self, head: AnswerHead, body: bytes) -> None:
        """All of the answer is there, and nothing of it was before: ``begin``, ``feed`` and ``finish`` in one."""

    def fail(self, error: BaseException) -> None: ...


class Arrival:
    """Made by the connection as it sends. ``whole``: the caller wants all of the body or nothing.

    ``held`` counts the body's bytes that were not taken yet; ``started``: a byte of an answer has come.
    """

    __slots__ = ("_loop", "_patience", "_pieces", "_waiter", "complete", "error", "head", "held", "started", "whole")

    def __init__(self, loop: asyncio.AbstractEventLoop, patience: Alarms[Arrival], whole: bool) -> None:
        """``patience`` rings `expire`."""
        self._loop = loop
        self._patience = patience
        self._pieces: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self.whole = whole
        self.head: AnswerHead | None = None
        self.held = 0
        self.started = False
        self.complete = False
        self.error: BaseException | None = None

    # -- the connection's side ------------------------------------------------------------------

    def begin(self, head: AnswerHead, follows: bool = False) -> None:
        self.head = head
        if not self.whole:
            self._wake()

    def feed(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self.held += len(piece)
        if not self.whole:
            self._wake()

    def finish(self) -> None:
        assert self.error is None, "an arrival ends once"
        self.complete = True
        self._wake()

    def answer(self, head: AnswerHead, body: bytes) -> None:
        self.head = head
        self._pieces.append(body)
        self.held = len(body)
        self.finish()

    def fail(self, error: BaseException) -> None:
        assert not self.complete, "an arrival ends once"
        self.error = error
        self._wake()

    # -- the caller's side ----------------------------------------------------------------------

    async def beginning(self, until: float) -> AnswerHead:
        """The head, by the loop's time ``until``. Raises ConnectionFault, or what the caller's body raised."""
        while self.head is None:
            if self.error is not None:
                raise self.error
            await self._wait(until)
        return self.head

    async def all(self, until: float) -> tuple[AnswerHead, bytes]:
        """Head and body of a ``whole`` arrival; raises as `beginning` does."""
        while not self.complete:
            if self.error is not None:
                raise self.error
            await self._wait(until)
        assert self.head is not None
        return self.head, self._take()

    async def more(self, silence: float) -> bytes:
        """All of the body that has come since, waiting ``silence`` seconds for it at most; empty at the end."""
        while not self.held:
            if self.error is not None:
                raise self.error
            if self.complete:
                return b""
            await self._wait(self._loop.time() + silence)
        return self._take()

    def _take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        self.held = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _wait(self, until: float) -> None:
        assert self._waiter is None, "one task waits for an answer"
        waiter = self._waiter = self._loop.create_future()
        self._patience.set(self, until)
        try:
            await waiter
        finally:
            self._patience.drop(self)
            self._waiter = None

    def expire(self) -> None:
        """Who waits has no more time."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionFault(Fault.SILENT))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
