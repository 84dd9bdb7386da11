"""One call passed through to a replica by callbacks: no task and no future, unless it must wait for a connection.

Rule of this file: it holds a connection from the first byte sent to the last received, and gives it back exactly
once, whatever happens, and so its place; what comes goes straight to the listener. It ends exactly once: ``finish``,
``answer``, ``fail``, or ``abort`` by its owner, after which nothing is said any more. It must not know a pool of
replicas, a caller's socket or a time limit: its owner aborts it when it has taken too long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from tiers.backends.answer import AnswerHead
from tiers.backends.arrival import ConnectionFault
from tiers.backends.connection import Connection, died_of_age
from tiers.backends.connections import Connections
from tiers.backends.fields import Outgoing
from tiers.inference import UpstreamError


class Listener(Protocol):
    """Who takes the answer. ``held``: bytes of it that wait there; reading stops while they are too many."""

    @property
    def held(self) -> int: ...

    def begin(self, head: AnswerHead, follows: bool) -> None:
        """The answer's head is there; ``follows``: a piece of its body, or its end, is likely to come in the same
        breath, so that both can be written at once."""

    def feed(self, piece: bytes) -> None:
        """More of its body is."""

    def finish(self) -> None:
        """That was all."""

    def answer(self, head: AnswerHead, body: bytes) -> None:
        """All of the answer came at once: as ``begin``, ``feed`` and ``finish``."""

    def fail(self, error: UpstreamError) -> None:
        """There is no answer, or no more of it."""


class Place(Protocol):
    """Where a call is counted while it is under way."""

    def reached(self) -> None:
        """The answer has begun."""

    def left(self, error: UpstreamError | None = None) -> None:
        """It is over: for this reason, or for none of the replica's."""

    def answered(self) -> None:
        """Both at once."""


class Line(Struct, frozen=True):
    """How one replica is asked. ``explain``: what a connection's fault means for it."""

    connections: Connections
    explain: Callable[[ConnectionFault, AnswerHead | None], UpstreamError]


class Relaying(Struct, eq=False):
    """A call on its way. ``again``: it may be sent once more if a kept connection turns out to have died; ``seconds``
    bound each wait for one."""

    line: Line
    outgoing: Outgoing
    again: bool
    listener: Listener
    place: Place
    seconds: float
    connection: Connection | None = None
    head: AnswerHead | None = None
    task: asyncio.Task[None] | None = None
    started: bool = False
    whole: bool = False

    def start(self) -> None:
        """Send it, now if a connection is idle; else when there is one."""
        connection = self.line.connections.take()
        if connection is not None:
            self.connection = connection
            connection.send_to(self.outgoing, self)
        else:
            self._wait()

    def resume(self) -> None:
        """The listener holds less than it did."""
        if self.connection is not None:
            self.connection.taken(self)

    def abort(self) -> None:
        """Nobody wants the answer any more: closing the connection cancels the work."""
        if self.task is not None:
            self.task.cancel()
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()
            self.line.connections.release(connection)
        self.place.left()

    # -- what the connection tells ----------------------------------------------------------------

    @property
    def held(self) -> int:
        return self.listener.held

    def begin(self, head: AnswerHead, follows: bool) -> None:
        self.head = head
        self.place.reached()
        self.listener.begin(head, follows)

    def feed(self, piece: bytes) -> None:
        self.listener.feed(piece)

    def finish(self) -> None:
        self._release()
        self.place.left()
        self.listener.finish()

    def answer(self, head: AnswerHead, body: bytes) -> None:
        connection, self.connection = self.connection, None
        assert connection is not None, "it is from there"
        self.line.connections.release(connection)
        self.place.answered()
        self.listener.answer(head, body)

    def fail(self, error: BaseException) -> None:
        connection = self.connection
        if connection is None:
            return  # aborted
        assert isinstance(error, ConnectionFault), "nothing else ends an answer to a body that was whole"
        if self.again and died_of_age(connection, error):
            self.again = False
            self._wait()
            return
        self._release()
        self._fail(error)

    def _fail(self, fault: ConnectionFault) -> None:
        error = self.line.explain(fault, self.head)
        self.place.left(error)
        self.listener.fail(error)

    # -- a connection -------------------------------------------------------------------------------

    def _release(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            self.line.connections.release(connection)

    def _wait(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self._await_connection())

    async def _await_connection(self) -> None:
        connections, dead = self.line.connections, self.connection
        self.connection = None
        until = asyncio.get_running_loop().time() + self.seconds
        try:
            connection = await (connections.acquire(until) if dead is None else connections.renew(dead, until))
        except ConnectionFault as fault:
            self._fail(fault)
            return
        finally:
            self.task = None
        self.connection = connection
        connection.send_to(self.outgoing, self)
