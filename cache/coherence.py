"""Who else writes: a Redis server's word on every key of a table that changes, and what is held about it.

Rule of this file: it listens and tells, and holds no value itself. It must not know what a key means.

A connection to each master asks for ``CLIENT TRACKING ... BCAST`` with the table's prefix, redirected to itself, and so
hears of each change by anyone: a write, an end of life, an eviction. Only what was said over an unbroken connection to
every master is worth anything, so when one breaks, when a master changes, and when a server forgets everything, the
whole table is distrusted at once; and again when the connection is back, for what came in between was heard by nobody.

How old may something be that is served as fresh? A ping is sent over the same connection every ``ping_seconds``. What
is said comes in order; so when its answer has come, every change before the ping has been told. The time at which the
last answered ping was sent is therefore one up to which the table is known to be coherent: `Tracker.as_of`. While that
is less than ``silence_seconds_max`` ago the table may be believed (`Tracker.live`), and that is the stated bound: a
server that hangs, a network that swallows everything and an event loop that was busy are all the same to it. A master
that is one no more may answer pings and know nothing of what the new one is told; so who the masters are counts too, as
of when somebody was asked who knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from msgspec import Struct
from redis.asyncio.connection import Connection

from cache.stores.node import Node, discard, mapped
from cache.stores.servers import Known
from cache.stores.store import StoreError

CHANNEL: Final = b"__redis__:invalidate"
KEYS_TOLD_MAX: Final = 8192
"""In one message (an MSET): to look each of more up would hold up every caller, some 3 ms for a thousand. It costs less
to read the table anew."""
DELAYS_KEPT: Final = 1024
"""Of the last pings, for percentiles."""


class TrackerOptions(Struct, frozen=True):
    """``silence_seconds_max``: the stated bound. ``ping_seconds``: several pings within it, so that one late answer is
    none too many. After a failure the next attempt waits ``backoff_seconds``, doubled up to ``backoff_seconds_max``."""

    ping_seconds: float = 0.25
    silence_seconds_max: float = 1.0
    backoff_seconds: float = 0.05
    backoff_seconds_max: float = 2.0


class Masters(Protocol):
    """The servers that hold a table's keys, as far as is known now (RedisStore.masters). Raises StoreError."""

    def __call__(self, seconds: float, /) -> Awaitable[Known]: ...


class Heard(Struct, frozen=True):
    """What is done with what is heard; both are called in the event loop and must be quick."""

    invalidate: Callable[[Sequence[bytes]], None]
    """These keys of the store changed."""
    distrust: Callable[[], None]
    """Any key may have."""


class Tracker:
    """Listens for one table until `run` is cancelled. Belongs to one event loop."""

    def __init__(
        self, masters: Masters, prefix: bytes, heard: Heard, now: Callable[[], float], options: TrackerOptions
    ) -> None:
        self._masters = masters
        self._prefix = prefix
        self.heard = heard
        self._now = now
        self._options = options
        self._lines: dict[Node, _Line] = {}
        self._known_at = -math.inf
        self.breaks = 0
        """How often a connection broke, or a master changed."""

    @property
    def as_of(self) -> float:
        """Up to when every change has been heard of; minus infinity while some master is not listened to."""
        return min([self._known_at, *(line.as_of for line in self._lines.values())])

    def live(self) -> bool:
        """Whether what is held may be called fresh. While not, it is stale at best, whatever was put there when."""
        return self._now() - self.as_of <= self._options.silence_seconds_max

    def delays(self) -> list[float]:
        """Seconds that the last pings took, from here to a server and back."""
        return [delay for line in self._lines.values() for delay in line.delays]

    async def run(self) -> None:
        """Keep a line to each master. Ends only by being cancelled, and leaves the table distrusted."""
        try:
            while True:
                await self._follow()
                await asyncio.sleep(self._options.ping_seconds)
        finally:
            lines, self._lines = tuple(self._lines.values()), {}
            self.heard.distrust()
            for line in lines:
                line.task.cancel()
            await asyncio.gather(*(line.task for line in lines), return_exceptions=True)

    async def _follow(self) -> None:
        """The lines that there should be. If nobody tells who the masters are, those that were stay, and are believed
        no longer than before."""
        began = self._now()
        try:
            known = await self._masters(self._options.silence_seconds_max)
        except StoreError:
            return
        masters = set(known.nodes)
        for node, line in tuple(self._lines.items()):
            if line.task.done():
                line.task.result()  # a bug of ours must be seen
            if node not in masters:
                self._lines.pop(node).task.cancel()
                self._broke()
        for node in masters - self._lines.keys():
            line = self._lines[node] = _Line(self._now)
            line.task = asyncio.get_running_loop().create_task(self._keep(node, line))
        self._known_at = began - known.age if masters else -math.inf

    async def _keep(self, node: Node, line: _Line) -> None:
        """Listen to one master, again and again."""
        backoff = self._options.backoff_seconds
        while True:
            heard_from_it = False
            with contextlib.suppress(StoreError):
                connection = await node.connect()
                try:
                    with mapped(node.name):
                        await self._subscribe(connection)
                        self.heard.distrust()  # what came before was told to nobody
                        await self._listen(connection, line)
                finally:
                    heard_from_it = line.as_of > -math.inf
                    line.as_of = -math.inf
                    line.sent.clear()
                    discard(connection)
                    if heard_from_it:
                        self._broke()
            backoff = self._options.backoff_seconds if heard_from_it else backoff
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, self._options.backoff_seconds_max)

    async def _subscribe(self, connection: Connection) -> None:
        async with asyncio.timeout(self._options.silence_seconds_max):
            await connection.send_command("CLIENT", "ID", check_health=False)
            own = await connection.read_response()
            prefix = ("PREFIX", self._prefix) if self._prefix else ()
            await connection.send_command(
                "CLIENT", "TRACKING", "ON", "REDIRECT", own, "BCAST", *prefix, check_health=False
            )
            await connection.read_response()
            await connection.send_command("SUBSCRIBE", CHANNEL, check_health=False)
            await connection.read_response()

    async def _listen(self, connection: Connection, line: _Line) -> None:
        """Until it breaks, or has been silent for too long."""
        pinging = asyncio.get_running_loop().create_task(self._ping(connection, line))
        try:
            while True:
                async with asyncio.timeout(self._options.silence_seconds_max):
                    message = await connection.read_response()
                self._take(message, line)
        finally:
            pinging.cancel()
            await asyncio.gather(pinging, return_exceptions=True)

    async def _ping(self, connection: Connection, line: _Line) -> None:
        while True:
            line.sent.append(self._now())
            await connection.send_command("PING", check_health=False)
            await asyncio.sleep(self._options.ping_seconds)

    def _take(self, message: object, line: _Line) -> None:
        match message:
            case [b"pong", *_]:
                line.answered()
            case [b"message", _, None]:  # FLUSHALL, FLUSHDB
                self.heard.distrust()
            case [b"message", _, [*keys]] if len(keys) > KEYS_TOLD_MAX:
                self.heard.distrust()
            case [b"message", _, [*keys]]:
                self.heard.invalidate([key for key in keys if isinstance(key, bytes)])
            case _:
                raise StoreError("corrupt", "this is no word on a key")

    def _broke(self) -> None:
        self.breaks += 1
        self.heard.distrust()


class _Line:
    """One master, listened to."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.task: asyncio.Task[None]
        self.as_of = -math.inf
        self.sent: deque[float] = deque()
        self.delays: deque[float] = deque(maxlen=DELAYS_KEPT)
        self._now = now

    def answered(self) -> None:
        """The oldest ping was."""
        self.as_of = self.sent.popleft()
        self.delays.append(self._now() - self.as_of)
