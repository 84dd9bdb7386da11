"""Redis and Valkey as a store: standalone, behind Sentinels, or a cluster.

Rule of this file: it knows which commands read, write and remove a value, and how replies are values. A value is a
string, or a hash of which some fields are wanted; in that case its bytes are those fields' in a frame
(``cache/stores/frame.py``).

Look-ups of one turn of the event loop are one batch (``cache/stores/merge.py``). Where one server has all keys it is
one pipeline of MGETs; a cluster takes no MGET across slots, so there it is one pipeline of GETs for each node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, Protocol

from msgspec import Struct

from cache.stores.address import RedisAddress
from cache.stores.frame import framed, unframed
from cache.stores.learning import LearnOptions
from cache.stores.merge import Merged, MergeOptions
from cache.stores.node import Command, Node, NodeOptions, Reply, Tls
from cache.stores.servers import Asked, Cluster, Known, One, Sentinels, Servers, pong
from cache.stores.store import Found, Gate, StoreError, raise_if_nothing
from cache.stores.turnstile import Turnstile, TurnstileOptions

KEYS_OF_A_COMMAND_MAX: Final = 512
"""Keys of one MGET: the server does nothing else meanwhile."""
WRITES_MAX: Final = 512
"""Writes sent before the replies are read."""


class RedisOptions(Struct, frozen=True):
    """``tls``: for an address with TLS. ``connect_seconds`` bounds a connection's making; a call's own time bounds it
    too. ``node``: how each node of a cluster is watched by its own breaker. ``learn``: how often it is asked where they
    are."""

    tls: Tls = Tls()
    connect_seconds: float = 0.25
    connections_max: int = 8
    merge: MergeOptions = MergeOptions()
    node: TurnstileOptions = TurnstileOptions()
    learn: LearnOptions = LearnOptions()


class Layout(Protocol):
    """How values lie in Redis."""

    def together(self, keys: Sequence[bytes]) -> Iterator[tuple[Asked, int]]:
        """Commands that read several keys each, and how many."""

    def one(self, key: bytes) -> Command: ...
    def found(self, reply: Reply) -> Found: ...
    def write(self, key: bytes, value: bytes, ttl: float | None) -> list[Command]: ...


class Strings:
    """A value is a string. ``asks_again``: a key of another type is told from one that is not there, which costs who
    finds nothing a second question."""

    def __init__(self, asks_again: bool = True) -> None:
        self.asks_again = asks_again

    def together(self, keys: Sequence[bytes]) -> Iterator[tuple[Asked, int]]:
        for start in range(0, len(keys), KEYS_OF_A_COMMAND_MAX):
            part = keys[start : start + KEYS_OF_A_COMMAND_MAX]
            yield (part[0], ("MGET", *part)), len(part)

    def one(self, key: bytes) -> Command:
        return ("GET", key)

    def found(self, reply: Reply) -> Found:
        return _bytes_of(reply)

    def write(self, key: bytes, value: bytes, ttl: float | None) -> list[Command]:
        return [("SET", key, value) if ttl is None else ("SET", key, value, "PX", _milliseconds(ttl))]


class Hashes:
    """A value is these fields of a hash, framed. A key without any of them is absent."""

    def __init__(self, fields: Sequence[bytes]) -> None:
        assert fields
        self._fields = tuple(fields)

    def together(self, keys: Sequence[bytes]) -> Iterator[tuple[Asked, int]]:
        for key in keys:
            yield (key, self.one(key)), 1

    def one(self, key: bytes) -> Command:
        return ("HMGET", key, *self._fields)

    def found(self, reply: Reply) -> Found:
        if isinstance(reply, StoreError):
            return reply
        if not isinstance(reply, list):
            return StoreError("corrupt", "a hash's fields are no list")
        fields = [each if isinstance(each, bytes) else None for each in reply]
        return None if all(each is None for each in fields) else framed(fields)

    def write(self, key: bytes, value: bytes, ttl: float | None) -> list[Command]:
        fields = unframed(value, len(self._fields))
        given = [
            part for name, each in zip(self._fields, fields, strict=True) if each is not None for part in (name, each)
        ]
        commands: list[Command] = [("HSET", key, *given)]
        return commands if ttl is None else [*commands, ("PEXPIRE", key, _milliseconds(ttl))]


class RedisStore:
    """A `Store` in Redis or Valkey. Belongs to one event loop; connects when it is first asked."""

    def __init__(
        self, address: RedisAddress, layout: Layout, gate: Callable[[], Gate], options: RedisOptions | None = None
    ) -> None:
        """``gate`` makes what says whether one node of a cluster is worth asking."""
        options = options or RedisOptions()
        node = NodeOptions(
            credentials=address.credentials,
            db=address.db,
            tls=options.tls if address.tls else None,
            connect_seconds=options.connect_seconds,
            connections_max=options.connections_max,
        )
        self._layout = layout
        self._servers = _servers(address, node, gate, options)
        self._merged = Merged(self._fetch, options.merge)

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        return await self._merged.get_many(keys, seconds)

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        await self._write(
            [(key, each) for key, value in pairs for each in self._layout.write(key, value, ttl)], seconds
        )

    async def delete_many(self, keys: Sequence[bytes], seconds: float) -> None:
        await self._write([(key, ("UNLINK", key)) for key in keys], seconds)

    async def healthy(self, seconds: float) -> bool:
        return await self._servers.healthy(seconds)

    async def masters(self, seconds: float) -> Known:
        """The servers that are asked, as far as is known now. Raises StoreError."""
        return await self._servers.masters(seconds)

    def untold(self) -> int:
        """How often values came from a server that may have been the wrong one (``Servers.untold``): if it is the same
        after a look-up as before, that one's did not."""
        return self._servers.untold

    async def close(self) -> None:
        await self._merged.close()
        await self._servers.close()

    async def _fetch(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        if not self._servers.keys_together:
            replies = await self._servers.ask([(key, self._layout.one(key)) for key in keys], seconds)
            found = [self._layout.found(reply) for reply in replies]
            raise_if_nothing(found)
            return found
        until = _now() + seconds
        asked = list(self._layout.together(keys))
        replies = await self._servers.ask([each for each, _ in asked], seconds)
        found = []
        for (_, several), reply in zip(asked, replies, strict=True):
            if several > 1 and isinstance(reply, list):
                found += [self._layout.found(each) for each in reply]
            elif isinstance(self._layout, Strings) and isinstance(reply, list):
                found += [self._layout.found(reply[0])]
            else:
                found += [self._layout.found(reply)] * several
        if isinstance(self._layout, Strings) and self._layout.asks_again:
            await self._tell_wrong_types(keys, found, until)
        raise_if_nothing(found)
        return found

    async def _tell_wrong_types(self, keys: Sequence[bytes], found: list[Found], until: float) -> None:
        """MGET says of a key that holds something else than a string that there is none. Usually nothing is there, and
        one number says so."""
        absent = [index for index, each in enumerate(found) if each is None]
        if not absent:
            return
        parts = [absent[at : at + KEYS_OF_A_COMMAND_MAX] for at in range(0, len(absent), KEYS_OF_A_COMMAND_MAX)]
        counts: list[Asked] = [(keys[part[0]], ("EXISTS", *(keys[index] for index in part))) for part in parts]
        singly = [(keys[index], self._layout.one(keys[index])) for index in absent]
        try:
            if all(count == 0 for count in await self._servers.ask(counts, until - _now())):
                return
            replies = await self._servers.ask(singly, until - _now())
        except StoreError as error:
            replies = [_later(error)] * len(absent)  # it has told of the others
        for index, reply in zip(absent, replies, strict=True):
            found[index] = self._layout.found(reply)

    async def _write(self, asked: Sequence[Asked], seconds: float) -> None:
        until = _now() + seconds
        for start in range(0, len(asked), WRITES_MAX):
            try:
                replies = await self._servers.ask(asked[start : start + WRITES_MAX], until - _now())
            except StoreError as error:
                raise _later(error) if start else error from None
            for reply in replies:
                if isinstance(reply, StoreError):
                    raise reply


def _servers(address: RedisAddress, node: NodeOptions, gate: Callable[[], Gate], options: RedisOptions) -> Servers:
    def turnstile(node: Node) -> Turnstile:
        return Turnstile(gate(), partial(pong, node), _now, options.node)

    match address.kind:
        case "one":
            return One(address, node)
        case "sentinel":
            return Sentinels(address, node, options.learn)
        case "cluster":
            return Cluster(address, node, options.learn, turnstile)


def _later(error: StoreError) -> StoreError:
    """What an error is after the server has answered something else within the same call."""
    return StoreError("late", str(error).partition(": ")[2]) if error.kind == "timeout" else error


def _now() -> float:
    return asyncio.get_running_loop().time()


def _bytes_of(reply: Reply) -> Found:
    if reply is None or isinstance(reply, bytes | StoreError):
        return reply
    return StoreError("corrupt", f"a value is {type(reply).__name__}")


def _milliseconds(ttl: float) -> int:
    return max(1, round(ttl * 1000))
