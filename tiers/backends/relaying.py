"""One call passed through to a replica by callbacks: no task and no future, unless it must wait for a connection.

Rule of this file: it holds a connection from the first byte sent to the last received, and gives it back exactly
once, whatever happens; what comes goes straight to the listener. It ends exactly once: ``finish``, ``fail``, or
``abort`` by its owner, after which nothing is said any more. It must not know a pool of replicas, a caller's
socket or a time limit: its owner aborts it when it has taken too long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

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

    def fail(self, error: UpstreamError) -> None:
        """There is no answer, or no more of it."""


Explain = Callable[[ConnectionFault, AnswerHead | None], UpstreamError]
"""What a connection's fault means for a replica."""


class Relaying:
    """A call on its way. ``again``: it may be sent once more if a kept connection turns out to have died."""

    __slots__ = (
        "_again", "_connection", "_connections", "_explain", "_head", "_listener", "_outgoing", "_seconds", "_task",
        "started", "whole",
    )  # fmt: skip

    def __init__(
        self, connections: Connections, outgoing: Outgoing, again: bool, listener: Listener, explain: Explain
    ) -> None:
        assert outgoing.upload is None, "a body that is there as a whole"
        self._connections = connections
        self._outgoing = outgoing
        self._again = again
        self._listener = listener
        self._explain = explain
        self._connection: Connection | None = None
        self._head: AnswerHead | None = None
        self._task: asyncio.Task[None] | None = None
        self._seconds = 0.0
        self.started = False
        self.whole = False

    def start(self, seconds: float) -> None:
        """Send it, now if a connection is idle; else when there is one, within ``seconds``."""
        self._seconds = seconds
        connection = self._connections.take()
        if connection is not None:
            self._send(connection)
        else:
            self._wait()

    def resume(self) -> None:
        """The listener holds less than it did."""
        if self._connection is not None:
            self._connection.taken(self)

    def abort(self) -> None:
        """Nobody wants the answer any more: closing the connection cancels the work."""
        if self._task is not None:
            self._task.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
            self._connections.release(connection)

    # -- what the connection tells ----------------------------------------------------------------

    @property
    def held(self) -> int:
        return self._listener.held

    def begin(self, head: AnswerHead, follows: bool) -> None:
        self._head = head
        self._listener.begin(head, follows)

    def feed(self, piece: bytes) -> None:
        self._listener.feed(piece)

    def finish(self) -> None:
        self._release()
        self._listener.finish()

    def fail(self, error: BaseException) -> None:
        connection = self._connection
        if connection is None:
            return  # aborted
        assert isinstance(error, ConnectionFault), "nothing else ends an answer to a body that was whole"
        if self._again and died_of_age(connection, error):
            self._again = False
            self._wait()
            return
        self._release()
        self._listener.fail(self._explain(error, self._head))

    # -- a connection -------------------------------------------------------------------------------

    def _send(self, connection: Connection) -> None:
        self._connection = connection
        connection.send_to(self._outgoing, self)

    def _release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._connections.release(connection)

    def _wait(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._await_connection())

    async def _await_connection(self) -> None:
        dead, self._connection = self._connection, None
        until = asyncio.get_running_loop().time() + self._seconds
        try:
            if dead is not None:
                connection = await self._connections.renew(dead, until)
            else:
                connection = await self._connections.acquire(until)
        except ConnectionFault as fault:
            self._listener.fail(self._explain(fault, None))
            return
        finally:
            self._task = None
        self._send(connection)
