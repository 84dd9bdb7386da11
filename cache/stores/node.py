"""One Redis or Valkey server: commands in, replies out, several in one journey.

Rule of this file: the only one that knows redis-py's connections and exceptions; what leaves it is a reply or a
`StoreError`. Nothing is ever asked twice: the library's own default of ten retries, each with five seconds, would turn
one hung server into a minute for every caller. It must not know which server holds what.

A connection that was lent is given back only after every reply to what was sent over it has come; otherwise it is
closed, for what comes late would be taken for the answer to the next question.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, TypedDict

from msgspec import Struct
from redis import exceptions
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from cache.stores.address import Credentials
from cache.stores.store import StoreError

Command = tuple[bytes | str | int, ...]
Reply = bytes | int | list["Reply"] | StoreError | None
"""As the protocol has it; an error in the place of the reply to the one command that it is about."""

CONNECTIONS_IDLE_SECONDS: Final = 55.0
"""Balancers and firewalls forget connections after a minute and tell neither side: one that rested so long is not
used."""
READ_BYTES: Final = 262_144
"""Read at once: a batch of 1,024 vectors is half a megabyte, and the library's 64 KiB make eight turns of it."""


_ENDED: Final = "the handler is closed"
"""uvloop's word, in a RuntimeError, for what is written to a connection that has ended since it was looked at."""


class Tls(Struct, frozen=True):
    """How a server's certificate is judged, and what we show. Files in PEM form; "" is the system's authorities, and no
    certificate of ours."""

    ca: str = ""
    certificate: str = ""
    key: str = ""


class NodeOptions(Struct, frozen=True):
    """``connections_max`` at once: further calls wait for one. ``connect_seconds``: with TLS and the password's
    check."""

    credentials: Credentials = Credentials()
    db: int = 0
    tls: Tls | None = None
    connect_seconds: float = 0.25
    connections_max: int = 8


class _Common(TypedDict):
    host: str
    port: int
    db: int
    username: str | None
    password: str | None
    protocol: int
    socket_timeout: None
    socket_connect_timeout: float
    socket_read_size: int
    retry: Retry
    driver_info: None


class Redirect(StoreError):
    """A cluster's word that a slot is, or is about to be (``asking``), at another node."""

    def __init__(self, host: str, port: int, slot: int, asking: bool) -> None:
        super().__init__("unavailable", f"slot {slot} is at {host}:{port}")
        self.host, self.port, self.slot, self.asking = host, port, slot, asking


class Node:
    """One server. Belongs to one event loop."""

    def __init__(self, host: str, port: int, options: NodeOptions, must_be_master: bool = False) -> None:
        """``must_be_master``: each new connection asks for the server's role, and is of no use if that is another."""
        self.host, self.port = host, port
        self._options = options
        self._must_be_master = must_be_master
        self._idle: deque[tuple[Connection, float]] = deque()
        self._places = asyncio.Semaphore(options.connections_max)
        self._making: set[asyncio.Task[Connection]] = set()
        self._closed = False

    @property
    def name(self) -> str:
        """``HOST:PORT``."""
        return f"{self.host}:{self.port}"

    async def ask(self, commands: Sequence[Command], seconds: float) -> list[Reply]:
        """Send all, then read all; the replies in the commands' order, "late" in the place of those that had not come
        within ``seconds``. Raises StoreError if none had, or the connection broke: then, and where it was late, any of
        the commands may have been done."""
        if seconds <= 0.0:
            raise StoreError("timeout", f"{self.name}: no time was left to ask in")
        replies: list[Reply] = []
        try:
            async with asyncio.timeout(seconds), self._places:
                await self._ask(commands, replies)
        except TimeoutError:
            if not replies:
                self._forget_idle()
                raise StoreError("timeout", f"{self.name}: no answer within {seconds:.3g} s") from None
            told = f"{self.name}: {len(replies)} of {len(commands)} commands were answered within {seconds:.3g} s"
            replies += [StoreError("late", told)] * (len(commands) - len(replies))
        return replies

    async def connect(self) -> Connection:
        """A new connection, for whoever needs one of its own and closes it. Raises StoreError."""
        connection = self._make()
        with mapped(self.name):
            try:
                async with asyncio.timeout(self._options.connect_seconds):
                    await connection.connect()  # type: ignore[no-untyped-call]
                    if self._must_be_master:
                        await self._require_master(connection)
            except TimeoutError:
                discard(connection)
                raise StoreError(
                    "timeout", f"{self.name}: no connection within {self._options.connect_seconds:.3g} s"
                ) from None
            except BaseException:
                discard(connection)
                raise
        return connection

    def close(self) -> None:
        """Close what is idle, and what is in use as soon as it is not."""
        self._closed = True
        for making in self._making:
            making.cancel()
        self._forget_idle()

    def _forget_idle(self) -> None:
        """What ended one connection has most likely ended those that rest, and not every end can be seen on one that
        does (a reset, a host that is gone): one after the other, each would be another failure."""
        while self._idle:
            discard(self._idle.pop()[0])

    async def _ask(self, commands: Sequence[Command], replies: list[Reply]) -> None:
        connection = await self._connection()
        whole = False
        try:
            with mapped(self.name):
                packed = connection.pack_commands(commands)
                await connection.send_packed_command(packed, check_health=False)
                for _ in commands:
                    replies.append(await _reply(connection))  # what has come is kept if the rest is late
            whole = True
        except StoreError:
            self._forget_idle()
            raise
        finally:
            if whole and not self._closed:
                self._idle.append((connection, asyncio.get_running_loop().time()))
            else:
                discard(connection)

    async def _connection(self) -> Connection:
        """The one used last, if it is as it should be; or a new one."""
        if self._closed:
            raise StoreError("unreachable", f"{self.name}: closed")
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection, since = self._idle.pop()
            # What can be read before anything was asked is the server's end, or nothing that we would understand.
            if now - since <= CONNECTIONS_IDLE_SECONDS and connection.is_connected and not await _readable(connection):
                return connection
            discard(connection)
        return await self._patient()

    async def _patient(self) -> Connection:
        """A new connection. One whose caller has no time left is made all the same, for the next: with TLS it may take
        longer than any call, and then none would ever be made."""
        making = asyncio.get_running_loop().create_task(self.connect())
        self._making.add(making)
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            if len(self._making) > self._options.connections_max:
                making.cancel()
            making.add_done_callback(self._rest)
            raise
        finally:
            if making.done():
                self._making.discard(making)

    def _rest(self, made: asyncio.Task[Connection]) -> None:
        self._making.discard(made)
        if made.cancelled() or made.exception() is not None:
            return
        if self._closed:
            discard(made.result())
        else:
            self._idle.append((made.result(), asyncio.get_running_loop().time()))

    def _make(self) -> Connection:
        options = self._options
        tls = options.tls
        common: _Common = {
            "host": self.host,
            "port": self.port,
            "db": options.db,
            "username": options.credentials.user or None,
            "password": options.credentials.password or None,
            "protocol": 2,
            "socket_timeout": None,  # our own bounds are around every call
            "socket_connect_timeout": options.connect_seconds,
            "socket_read_size": READ_BYTES,
            "retry": Retry(NoBackoff(), 0),
            "driver_info": None,
        }
        if tls is None:
            return Connection(**common)
        return SSLConnection(
            **common,
            ssl_ca_certs=tls.ca or None,
            ssl_certfile=tls.certificate or None,
            ssl_keyfile=tls.key or None,
            ssl_min_version=ssl.TLSVersion.TLSv1_2,
        )

    async def _require_master(self, connection: Connection) -> None:
        await connection.send_command("ROLE", check_health=False)
        role = await _reply(connection)
        if isinstance(role, StoreError):
            raise role
        if not isinstance(role, list) or not role or role[0] != b"master":
            raise StoreError("unavailable", f"{self.name}: is not the master any more")


def discard(connection: Connection) -> None:
    """Close a connection at once, whatever is on its way."""
    transport_closer = asyncio.ensure_future(connection.disconnect(nowait=True))
    transport_closer.add_done_callback(_forget)


def _forget(closing: asyncio.Task[None]) -> None:
    if not closing.cancelled():
        closing.exception()  # that closing failed changes nothing


async def _readable(connection: Connection) -> bool:
    try:
        return await connection.can_read()
    except (OSError, exceptions.RedisError):
        return True


async def _reply(connection: Connection) -> Reply:
    try:
        reply: Reply = await connection.read_response()
    except exceptions.ConnectionError:
        raise
    except exceptions.ResponseError as error:
        return error_of(error)
    return reply


@contextlib.contextmanager
def mapped(name: str) -> Iterator[None]:
    """Foreign exceptions become ours here."""
    try:
        yield
    except (exceptions.RedisError, OSError) as error:  # ssl's are OSErrors
        ours = error_of(error)
        raise StoreError(ours.kind, f"{name}: {str(ours).partition(': ')[2]}") from None
    except RuntimeError as error:
        if _ENDED not in str(error):
            raise
        raise StoreError("unreachable", f"{name}: {_ENDED}") from None


_KINDS: Final = (
    (exceptions.AuthenticationError, "refused"),
    (exceptions.AuthorizationError, "refused"),
    (exceptions.NoPermissionError, "refused"),
    (exceptions.AuthenticationWrongNumberOfArgsError, "refused"),
    (exceptions.ReadOnlyError, "refused"),
    (exceptions.BusyLoadingError, "loading"),
    (exceptions.OutOfMemoryError, "full"),
    (exceptions.ClusterDownError, "unavailable"),  # and MasterDownError, which is one
    (exceptions.TryAgainError, "unavailable"),
    (exceptions.TimeoutError, "timeout"),
    (exceptions.ConnectionError, "unreachable"),
    (OSError, "unreachable"),
    (exceptions.InvalidResponse, "corrupt"),
)
_WORDS: Final = {
    "WRONGTYPE": "wrong-type",
    "NOREPLICAS": "unavailable",
    "MISCONF": "unavailable",
    "BUSY": "unavailable",
    "UNBLOCKED": "unavailable",
}


def error_of(error: Exception) -> StoreError:
    """What a library's exception means to us."""
    if isinstance(error, exceptions.AskError):
        asking = not isinstance(error, exceptions.MovedError)
        return Redirect(error.node_addr[0], error.node_addr[1], error.slot_id, asking)
    text = str(error)
    for kind, word in _KINDS:
        if isinstance(error, kind):
            return StoreError(word, text)
    return StoreError(_WORDS.get(text.partition(" ")[0], "refused"), text)
