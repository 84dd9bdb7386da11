"""The connections to one replica: as many as are needed at once, kept while they are fresh.

Rule of this file: a connection has one holder or is idle, never both; whoever waits for one is served in
order of arrival, within its own deadline; the pool grows only when nothing is idle. The connection used last
is used next, so that a pool that has become too large shrinks by itself. It must not know requests or answers.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from typing import Final

from msgspec import Struct

from cache.alarms import Alarms
from tiers.backends.answer import AnswerHeads
from tiers.backends.arrival import Arrival, ConnectionFault, Fault
from tiers.backends.connection import Connection, ConnectionBounds

_SLOT: Final = None  # what a waiter gets when it is its turn to open a connection itself


class ConnectionsOptions(Struct, frozen=True):
    """Times in seconds. ``limit`` is what the operator calls ``connections_max``: told to who finds none left."""

    connections_max: int = 256
    waiting_max: int = 10_000
    """Callers who may wait for a connection: more than that will not be served in time anyway."""
    wait_seconds_max: float = math.inf
    """How long each of them may, within its own deadline."""
    limit: str = "connections_max"
    connect_timeout: float = 1.0
    keepalive_timeout: float = 60.0


class Address(Struct, frozen=True):
    """Where the replica listens. ``secure``: TLS, its certificate checked against the system's authorities."""

    host: str
    port: int
    secure: bool = False


class Connections:
    """Belongs to the running event loop."""

    def __init__(self, address: Address, options: ConnectionsOptions, bounds: ConnectionBounds) -> None:
        self._address = address
        self._options = options
        self._bounds = bounds
        self._patience: Alarms[Arrival] = Alarms(Arrival.expire)
        self._loop = asyncio.get_running_loop()
        self._heads = AnswerHeads(self._loop)
        self._tls = _tls() if address.secure else None
        self._idle: dict[Connection, float] = {}  # since when; in that order
        self._held: set[Connection] = set()
        self._opening = 0
        self._waiting: dict[asyncio.Future[Connection | None], None] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def open(self) -> int:
        """Connections there are or will be in a moment; never above ``connections_max``."""
        return len(self._idle) + len(self._held) + self._opening

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def take(self) -> Connection | None:
        """The idle connection that was used last; None if there is none, as there is not while anybody waits for one.
        Its holder must `release` it."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if not connection.closed:  # else it was a moment ago, and is about to say so
                self._held.add(connection)
                return connection
        return None

    async def acquire(self, until: float) -> Connection:
        """An idle connection, a new one, or the next one that is released, by the loop's time ``until``.

        Raises ConnectionFault. The holder must `release` what it gets.
        """
        connection = self.take()
        if connection is not None:
            return connection
        if self._closed:
            raise ConnectionFault(Fault.REFUSED, "the client is closed")
        if not self._waiting and self.open < self._options.connections_max:
            self._opening += 1
            return await self._open(until)
        connection = await self._turn(until)
        if connection is _SLOT:
            return await self._open(until)
        # It may have been closed between being released and now.
        return connection if connection.reusable else await self.renew(connection, until)

    def hang_up(self) -> None:
        """Close those that are idle: who asks next is to find out whether the other side accepts one."""
        idle, self._idle = self._idle, {}
        for connection in idle:
            connection.abort()

    async def renew(self, connection: Connection, until: float) -> Connection:
        """A new connection in the place of a held one, ahead of those who wait. Raises ConnectionFault, and
        then nothing is held any more."""
        self._held.remove(connection)
        connection.abort()
        self._opening += 1
        return await self._open(until)

    def release(self, connection: Connection) -> None:
        """Give back what is held; nothing happens if it is not. Closes it unless it may be used again."""
        held = self._held
        if connection not in held:
            return
        held.remove(connection)
        if not connection.reusable or self._closed:
            connection.abort()
        else:
            self._idle[connection] = self._loop.time()
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(self._options.keepalive_timeout, self._sweep)
        if self._waiting:
            self._pass_on()

    async def close(self) -> None:
        """Close every connection, held ones too; who waits for one is refused."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(ConnectionFault(Fault.REFUSED, "the client is closed"))
        self._waiting.clear()
        for connection in (*self._idle, *self._held):
            connection.abort()
        await asyncio.sleep(0)  # the turn of the loop in which the transports end

    # -- opening --------------------------------------------------------------------------------

    async def _open(self, until: float) -> Connection:
        """Open a connection in a slot that is already counted as opening."""
        connection = Connection(self._loop, self._heads, self._bounds, self._lost, self._patience)
        try:
            await self._connect(connection, until)
        except BaseException:
            connection.abort()
            raise
        else:
            self._held.add(connection)
        finally:
            self._opening -= 1
            self._pass_on()
        return connection

    async def _connect(self, connection: Connection, until: float) -> None:
        connect_until = self._loop.time() + self._options.connect_timeout
        timeout = asyncio.timeout_at(min(until, connect_until))
        host = self._address.host
        try:
            async with timeout:
                await self._loop.create_connection(
                    lambda: connection,
                    host,
                    self._address.port,
                    ssl=self._tls,
                    server_hostname=host if self._tls is not None else None,
                )
        except (OSError, UnicodeError) as error:  # a host that is no name in DNS is a UnicodeError
            if not timeout.expired():
                raise ConnectionFault(Fault.REFUSED, str(error)) from error
            if until <= connect_until:
                raise ConnectionFault(Fault.SILENT) from error
            detail = f"no answer within {self._options.connect_timeout:g} s"
            raise ConnectionFault(Fault.REFUSED, detail) from error
        if self._closed:
            raise ConnectionFault(Fault.REFUSED, "the client is closed")

    # -- waiting --------------------------------------------------------------------------------

    async def _turn(self, until: float) -> Connection | None:
        """Wait in line for a connection, or for the slot to open one (already counted as opening)."""
        if len(self._waiting) >= self._options.waiting_max:
            raise ConnectionFault(Fault.CROWDED, f"{len(self._waiting)} callers wait for one already")
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiting[waiter] = None
        until = min(until, self._loop.time() + self._options.wait_seconds_max)
        timer = self._loop.call_at(until, self._expire, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give_back(waiter.result())  # it was this one's turn in the very moment it left
            raise
        finally:
            timer.cancel()
            self._waiting.pop(waiter, None)

    def _expire(self, waiter: asyncio.Future[Connection | None]) -> None:
        self._waiting.pop(waiter, None)
        if not waiter.done():
            detail = f"all {self._options.connections_max} ({self._options.limit}) stayed in use"
            waiter.set_exception(ConnectionFault(Fault.CROWDED, detail))

    def _give_back(self, granted: Connection | None) -> None:
        if granted is _SLOT:
            self._opening -= 1
            self._pass_on()
        else:
            self.release(granted)

    def _pass_on(self) -> None:
        """Give what is free to those who wait, the first one first."""
        while self._waiting and (self._idle or self.open < self._options.connections_max):
            waiter = next(iter(self._waiting))
            del self._waiting[waiter]
            if waiter.done():  # cancelled, and not yet run
                continue
            connection = self.take()
            if connection is _SLOT:
                self._opening += 1
            waiter.set_result(connection)

    # -- idling ---------------------------------------------------------------------------------

    def _lost(self, connection: Connection) -> None:
        """A held one is its holder's to release."""
        if self._idle.pop(connection, None) is not None:
            self._pass_on()

    def _sweep(self) -> None:
        """Close what has been idle for too long, and come again when the next one will have been."""
        self._sweeper = None
        now = self._loop.time()
        while self._idle:
            connection, since = next(iter(self._idle.items()))
            over = since + self._options.keepalive_timeout
            if over > now:
                self._sweeper = self._loop.call_at(over, self._sweep)
                return
            del self._idle[connection]
            connection.abort()


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
