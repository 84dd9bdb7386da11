"""A Redis that answers some of what it is asked in time: that much is given, and says that the server is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from cache.stores.node import Node, NodeOptions, Reply
from cache.stores.redis import WRITES_MAX, RedisStore
from cache.stores.servers import Asked
from cache.stores.store import Found, StoreError
from examples.redisserver import RedisServer
from tests.cache.conftest import StoreAt

SECONDS = 20.0
NEVER: StoreError = StoreError("timeout", "no answer")


@contextlib.asynccontextmanager
async def answering(replies: bytes) -> AsyncIterator[Node]:
    """A server that says this to whatever comes first, and then nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(replies)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        node = Node("127.0.0.1", port, NodeOptions(connect_seconds=SECONDS))
        try:
            yield node
        finally:
            node.close()


async def test_replies_that_came_are_given_and_the_others_are_late() -> None:
    async with answering(b":1\r\n+two\r\n") as node:
        first, second, third, fourth = await node.ask([("PING",)] * 4, 0.5)
        assert (first, second) == (1, b"two")
        for each in (third, fourth):
            assert isinstance(each, StoreError)
            assert (each.kind, "2 of 4 commands" in str(each)) == ("late", True)
        assert not node._idle  # what comes late would be taken for the answer to the next question


async def test_who_says_nothing_is_silent() -> None:
    async with answering(b"") as node:
        with pytest.raises(StoreError) as failed:
            await node.ask([("PING",)] * 4, 0.1)
        assert failed.value.kind == "timeout"


class Slow:
    """A store's servers, of which some commands are never answered."""

    def __init__(self, store: RedisStore, never: str) -> None:
        self._asks = store._servers.ask
        self._never = never
        self.asked = 0
        store._servers.ask = self.ask  # type: ignore[method-assign]

    async def ask(self, asked: Sequence[Asked], seconds: float) -> list[Reply]:
        self.asked += 1
        if asked[0][1][0] == self._never and (self._never == "EXISTS" or self.asked > 1):
            raise NEVER
        return await self._asks(asked, seconds)


def kinds(found: Sequence[Found]) -> list[object]:
    return [each.kind if isinstance(each, StoreError) else each for each in found]


async def test_what_was_found_is_given_though_nobody_can_tell_why_others_were_not(
    redis: RedisServer, store_at: StoreAt
) -> None:
    store = store_at(redis.url)
    await store.put_many([(b"a", b"1")], None, SECONDS)
    Slow(store, "EXISTS")
    assert kinds(await store.get_many([b"a", b"b"], SECONDS)) == [b"1", "late"]
    with pytest.raises(StoreError) as failed:
        await store.get_many([b"b", b"c"], SECONDS)
    assert failed.value.kind == "late"  # it has answered, if not enough


async def test_writes_of_which_some_were_taken_say_that_the_server_is_there(
    redis: RedisServer, store_at: StoreAt
) -> None:
    store = store_at(redis.url)
    Slow(store, "SET")
    pairs = [(b"%d" % each, b"x") for each in range(WRITES_MAX + 1)]
    with pytest.raises(StoreError) as failed:
        await store.put_many(pairs, None, SECONDS)
    assert failed.value.kind == "late"
    with pytest.raises(StoreError) as failed:
        await store.put_many(pairs[:1], None, SECONDS)
    assert failed.value.kind == "timeout"
