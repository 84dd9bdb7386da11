"""What Redis does on its bad days, each with a real server: the call ends in its time, says why in one word, and
afterwards the values are the new ones."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable

import pytest
import uvloop
from redis.asyncio.connection import Connection

from cache.stores import node
from cache.stores.node import Node, NodeOptions
from cache.stores.redis import Hashes, RedisOptions, RedisStore
from cache.stores.store import StoreError
from cache.stores.turnstile import TurnstileOptions
from degrade.breaker import Breaker
from degrade.guard import STORE_BREAKER, Guarded
from examples.redisserver import RedisServer
from tests.cache.conftest import StoreAt, until
from tests.redises import loading, slow

SECONDS = 0.1
"""What a call may take here."""
PATIENT_SECONDS = 10.0
"""The same where an answer of whatever kind comes at once: on a busy machine, too, that answer is what is told of."""
LATE = 20.0
"""By how much a busy machine may be late; what it is compared with never ends by itself."""
ENDLESS = 600.0


async def fails(store: Guarded, kind: str) -> None:
    """One read that fails in time, for this reason."""
    seconds = SECONDS if kind == "timeout" else PATIENT_SECONDS
    started = time.monotonic()
    with pytest.raises(StoreError) as failed:
        await store.get_many([b"k"], seconds)
    assert failed.value.kind == kind
    assert time.monotonic() - started < seconds + LATE


async def read(store: Guarded, value: bytes) -> bool:
    with contextlib.suppress(StoreError):
        return await store.get_many([b"k"], PATIENT_SECONDS) == [value]
    return False


def guarded(store_at: StoreAt, url: str, seconds: float = PATIENT_SECONDS) -> Guarded:
    options = RedisOptions(connect_seconds=seconds)
    breaker = Breaker(STORE_BREAKER)
    return Guarded(store_at(url, None, options), breaker, time.monotonic, TurnstileOptions(trial_seconds=seconds))


async def recovers(store: Guarded, kind: str, server: RedisServer, mend: Callable[[], None]) -> None:
    """The first call fails for this reason; those after it cost nothing; what is mended is found again, by itself."""
    await fails(store, kind)
    for _ in range(50):
        with pytest.raises(StoreError) as failed:
            await store.get_many([b"k"], SECONDS)
        assert failed.value.kind == "open"
    mend()
    server.await_answer()
    with server.client() as client:
        client.set("k", "new")
    await until(lambda: read(store, b"new"), what="the new value")
    assert store.state == "closed"
    await store.close()


async def test_off_at_boot(own_redis: RedisServer, store_at: StoreAt) -> None:
    own_redis.kill()
    store = guarded(store_at, own_redis.url)
    assert not await store.healthy(SECONDS)
    await recovers(store, "unreachable", own_redis, own_redis.start)


async def test_gone_between_two_calls(own_redis: RedisServer, store_at: StoreAt) -> None:
    store = guarded(store_at, own_redis.url)
    await store.put_many([(b"k", b"old")], None, 10.0)
    assert await store.get_many([b"k"], 10.0) == [b"old"]
    own_redis.kill()
    await recovers(store, "unreachable", own_redis, own_redis.start)


async def test_started_again_between_two_calls(own_redis: RedisServer, store_at: StoreAt) -> None:
    """The old connection is seen to be over before it is used: not one call fails."""
    store = guarded(store_at, own_redis.url)
    assert await store.get_many([b"k"], 10.0) == [None]
    own_redis.kill()
    own_redis.start()
    await asyncio.sleep(0)
    assert await store.get_many([b"k"], 10.0) == [None]
    await store.close()


async def test_back_after_an_outage_while_nobody_called(own_redis: RedisServer, store_at: StoreAt) -> None:
    store = guarded(store_at, own_redis.url)
    own_redis.kill()
    await fails(store, "unreachable")
    own_redis.start()
    await until(lambda: store.state == "closed", what="a look")
    assert await store.get_many([b"k"], 10.0) == [None]  # the first who comes
    await store.close()


async def test_hung(own_redis: RedisServer, store_at: StoreAt) -> None:
    store = guarded(store_at, own_redis.url, SECONDS)
    assert await store.get_many([b"k"], 10.0) == [None]
    own_redis.pause()
    await recovers(store, "timeout", own_redis, own_redis.resume)


async def test_hung_before_the_first_call(own_redis: RedisServer, store_at: StoreAt) -> None:
    own_redis.pause()
    await recovers(guarded(store_at, own_redis.url, SECONDS), "timeout", own_redis, own_redis.resume)


async def test_busy_for_two_seconds(own_redis: RedisServer, store_at: StoreAt) -> None:
    store = guarded(store_at, own_redis.url, SECONDS)
    assert await store.get_many([b"k"], 10.0) == [None]
    _, writer = await asyncio.open_connection(own_redis.host, own_redis.port)
    writer.write(b"DEBUG SLEEP 2\r\n")
    await writer.drain()
    await until(lambda: not_answering(store), what="a server that sleeps")
    await recovers_later(store, own_redis)
    writer.close()


async def not_answering(store: Guarded) -> bool:
    with contextlib.suppress(StoreError):
        await store.get_many([b"k"], SECONDS)
    return store.state != "closed"  # the first wait that fails may be our own fault, on a busy machine


async def recovers_later(store: Guarded, server: RedisServer) -> None:
    with pytest.raises(StoreError) as failed:
        await store.get_many([b"k"], SECONDS)
    assert failed.value.kind == "open"
    server.await_answer()
    with server.client() as client:
        client.set("k", "new")
    await until(lambda: read(store, b"new"), what="the new value")
    await store.close()


async def test_no_answer_comes_in_time(own_redis: RedisServer, store_at: StoreAt) -> None:
    quick = asyncio.Event()
    async with slow(own_redis, quick, ENDLESS) as way:
        store = guarded(store_at, way.url, SECONDS)
        await recovers(store, "timeout", own_redis, quick.set)


async def test_many_callers_of_a_slow_server_each_keep_their_time(own_redis: RedisServer, store_at: StoreAt) -> None:
    """Without a breaker too: a thousand wait, none for longer than it said, and no more connections than allowed."""
    async with slow(own_redis, asyncio.Event(), ENDLESS) as way:
        store = store_at(way.url, None, RedisOptions(connect_seconds=SECONDS))
        started = time.monotonic()
        calls = (store.get_many([b"k%d" % each], SECONDS) for each in range(1000))
        told = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - started < SECONDS + LATE
        # "crowded": the machine was so busy with the callers that half of their time was over before they were asked
        assert all(isinstance(each, StoreError) and each.kind in ("timeout", "crowded") for each in told)
        assert len(told) == 1000
        with own_redis.client() as client:
            assert client.info("clients")["connected_clients"] <= 1 + RedisOptions().connections_max


async def test_what_comes_late_answers_no_other_question(own_redis: RedisServer, store_at: StoreAt) -> None:
    quick = asyncio.Event()
    async with slow(own_redis, quick) as way:
        store = store_at(way.url, None, RedisOptions(connect_seconds=10.0))
        with own_redis.client() as client:
            client.mset({"a": "1", "b": "2"})
        with pytest.raises(StoreError):
            await store.get_many([b"a"], SECONDS)
        quick.set()
        assert await store.get_many([b"b"], 10.0) == [b"2"]


async def test_a_connection_that_takes_longer_than_a_call_is_made_all_the_same(
    own_redis: RedisServer, store_at: StoreAt
) -> None:
    """As with TLS: its first answer takes three times as long as any call may."""
    async with slow(own_redis, asyncio.Event(), 3 * SECONDS, answers_max=1) as way:
        store = store_at(f"redis://127.0.0.1:{way.port}/1", None, RedisOptions(connect_seconds=20.0))
        with pytest.raises(StoreError) as failed:
            await store.get_many([b"k"], SECONDS)  # SELECT has not been answered
        assert failed.value.kind == "timeout"
        await until(lambda: reads_nothing(store), what="an answer")


async def reads_nothing(store: RedisStore) -> bool:
    with contextlib.suppress(StoreError):
        return await store.get_many([b"k"], SECONDS) == [None]
    return False


async def test_wrong_password(store_at: StoreAt) -> None:
    with RedisServer(password="right") as server:
        store = guarded(store_at, f"redis://:wrong@{server.address}/0")

        def let_in() -> None:
            with server.client() as client:
                client.execute_command("ACL", "SETUSER", "default", ">wrong")

        await recovers(store, "refused", server, let_in)
        with pytest.raises(StoreError) as failed:
            await store_at(server.url).get_many([b"k"], 10.0)  # without any
        assert failed.value.kind == "refused"


async def test_loading(store_at: StoreAt) -> None:
    """A server that reads a large append-only file answers LOADING to everything until it is through."""
    with loading({"k": b"old"}) as server:
        server.kill()
        server.start(ready=False)
        store = guarded(store_at, server.url)
        await until(lambda: tells(store, "loading"), what="LOADING")

        def go_on() -> None:
            with server.client() as client:
                client.execute_command("CONFIG", "SET", "key-load-delay", "0")

        await recovers(store, "loading", server, go_on)


async def tells(store: Guarded, kind: str) -> bool:
    try:
        await store._store.get_many([b"k"], 5.0)
    except StoreError as error:
        return error.kind == kind
    return False


async def test_another_type_opens_nothing(redis: RedisServer, store_at: StoreAt) -> None:
    hashes = store_at(redis.url, Hashes([b"x"]))
    store = Guarded(hashes, Breaker(STORE_BREAKER), time.monotonic, TurnstileOptions())
    with redis.client() as client:
        client.set("k", "1")
    for _ in range(20):
        (found,) = await store.get_many([b"k"], 10.0)
        assert isinstance(found, StoreError)
        assert found.kind == "wrong-type"
    assert store.state == "closed"
    await store.close()


async def test_full_and_read_only(own_redis: RedisServer, store_at: StoreAt) -> None:
    store = guarded(store_at, own_redis.url)
    await store.put_many([(b"k", b"1")], None, 10.0)
    with own_redis.client() as client:
        client.config_set("maxmemory", 1)
    with pytest.raises(StoreError) as failed:
        await store.put_many([(b"k", b"2")], None, 10.0)
    assert failed.value.kind == "full"
    assert await store.get_many([b"k"], 10.0) == [b"1"]  # who has no room for more can be read
    with own_redis.client() as client:
        client.config_set("maxmemory", 0)
        client.execute_command("REPLICAOF", "127.0.0.1", 1)
    with pytest.raises(StoreError) as failed:
        await store.put_many([(b"k", b"2")], None, 10.0)
    assert failed.value.kind == "refused"
    await store.close()


async def test_no_master_behind_a_replica(own_redis: RedisServer, store_at: StoreAt) -> None:
    with own_redis.client() as client:
        client.config_set("replica-serve-stale-data", "no")
        client.execute_command("REPLICAOF", "127.0.0.1", 1)
    with pytest.raises(StoreError) as failed:
        await store_at(own_redis.url).get_many([b"k"], 10.0)
    assert failed.value.kind == "unavailable"


async def test_no_time_is_a_timeout_and_a_closed_store_is_unreachable(redis: RedisServer, store_at: StoreAt) -> None:
    store = store_at(redis.url)
    with pytest.raises(StoreError) as failed:
        await store.get_many([b"k"], 0.0)
    assert failed.value.kind == "timeout"
    await store.close()
    with pytest.raises(StoreError) as failed:
        await store.get_many([b"k"], 10.0)
    assert failed.value.kind == "unreachable"


def test_a_connection_that_ends_between_a_look_and_the_question(
    shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the loop that serves, which then raises an error of its own kind."""

    async def never(_: Connection) -> bool:
        return False  # it has ended, and nobody has read that yet

    async def main() -> None:
        own = Node(shared_redis.host, shared_redis.port, NodeOptions())
        try:
            assert await own.ask([("PING",)], 10.0) == [b"PONG"]
            ((connection, _),) = own._idle
            assert connection._writer is not None
            connection._writer.transport.abort()
            await asyncio.sleep(0.01)
            monkeypatch.setattr(node, "_readable", never)
            with pytest.raises(StoreError) as failed:
                await own.ask([("PING",)], 10.0)
            assert failed.value.kind == "unreachable"
            assert await own.ask([("PING",)], 10.0) == [b"PONG"]
        finally:
            own.close()

    uvloop.run(main())


async def test_connections_that_were_reset_while_they_rested_cost_one_call_and_not_one_each() -> None:
    """A reset cannot be seen on a connection that rests: it has neither bytes nor an end."""
    there: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"PING\r\n"):
                await asyncio.sleep(0.01)  # so that who comes now needs a connection of its own
                writer.write(b"+PONG\r\n")

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    node = Node("127.0.0.1", listening.sockets[0].getsockname()[1], NodeOptions())
    assert await asyncio.gather(*(node.ask([("PING",)], LATE) for _ in range(4))) == [[b"PONG"]] * 4
    assert len(there) == 4
    for writer in there:
        own = writer.transport.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset
        writer.transport.abort()
    await asyncio.sleep(0.05)  # a reset is on its way for less, and where it is not, nothing here fails
    with contextlib.suppress(StoreError):
        await node.ask([("PING",)], LATE)
    assert await node.ask([("PING",)], LATE) == [b"PONG"]
    node.close()
    listening.close()
