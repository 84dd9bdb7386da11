"""A master behind Sentinels that dies under load: real servers, real Sentinels."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from msgspec import structs

from cache.stores import learning, servers
from cache.stores.learning import LearnOptions
from cache.stores.redis import RedisOptions
from cache.stores.store import StoreError
from cache.stores.turnstile import TurnstileOptions
from degrade.breaker import Breaker
from degrade.guard import STORE_BREAKER, Guarded
from tests.cache.conftest import StoreAt, until
from tests.cache.test_coherence import QUICK, Listening, listening
from tests.redises import SERVICE, Watched

SECONDS = 0.2


async def test_a_failover_under_load(watched: Watched, store_at: StoreAt) -> None:
    """Each read is answered or fails within its time, and in the end every value is one written to the new master."""
    inner = store_at(watched.url, None, RedisOptions(connect_seconds=SECONDS))
    store = Guarded(inner, Breaker(STORE_BREAKER), time.monotonic, TurnstileOptions(trial_seconds=SECONDS))
    keys = [b"user:%d" % each for each in range(50)]
    await store.put_many([(key, b"old") for key in keys], None, 10.0)
    assert await store.get_many(keys, 10.0) == [b"old"] * 50
    heard = Listening(inner.masters)
    await heard.live()
    over = asyncio.Event()
    slowest = 0.0
    outcomes: dict[str, int] = {}

    async def load() -> None:
        nonlocal slowest
        while not over.is_set():
            started = time.monotonic()
            try:
                await store.get_many(keys, SECONDS)
                kind = "well"
            except StoreError as error:
                kind = error.kind
            slowest = max(slowest, time.monotonic() - started)
            outcomes[kind] = outcomes.get(kind, 0) + 1
            await asyncio.sleep(0.005)

    callers = [asyncio.create_task(load()) for _ in range(8)]
    old = watched.master
    old.pause()  # hung: worse than dead, for its connections stay
    await until(lambda: watched.master is not old, what="another master")
    with watched.master.client() as client:
        client.mset(dict.fromkeys(keys, b"new"))

    async def renewed() -> bool:
        with contextlib.suppress(StoreError):
            return await store.get_many(keys, SECONDS) == [b"new"] * 50
        return False

    await until(renewed, what="the new master's values")
    await heard.live()  # of the new master
    assert heard.distrusts > 1
    with watched.master.client() as client:
        client.set("user:0", "new")
    await until(lambda: b"user:0" in heard.keys, what="the new master's word")
    old.resume()  # it believes to be the master, until a Sentinel tells it otherwise
    for _ in range(100):
        assert await renewed()
    over.set()
    await asyncio.gather(*callers)
    assert outcomes["well"] > 0
    assert outcomes["open"] > outcomes["timeout"], outcomes
    assert slowest < SECONDS + 2.0
    await heard.end()
    await store.close()
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, what="an end of all that was begun")


async def test_a_planned_failover_is_known_of_in_time(
    watched: Watched, store_at: StoreAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old master lives on, answers pings and hears nothing of what is written to the new one: by the time that the
    table is said to be coherent as of that write, it has been distrusted, or the write has been heard of. The one
    Sentinel that may know of it yet is waited for here, however busy the machine."""
    monkeypatch.setattr(learning, "HEAD_START_SECONDS", 60.0)
    options = structs.replace(QUICK, silence_seconds_max=4.0)
    store = store_at(watched.url, None, RedisOptions(learn=LearnOptions(0.1, options.silence_seconds_max)))
    async with listening(store.masters, options) as heard:
        await heard.live()
        old, before = watched.master, heard.distrusts
        with watched.sentinels[0].client() as client:
            client.execute_command("SENTINEL", "FAILOVER", SERVICE)
        await until(lambda: watched.master is not old, what="another master")
        with watched.master.client() as client:
            client.set("user:0", "new")
        written = time.monotonic()
        await until(lambda: heard.tracker.as_of > written, what="a table that is as of the write")
        assert heard.distrusts > before or b"user:0" in heard.keys
        assert await store.get_many([b"user:0"], 10.0) == [b"new"]


async def test_sentinels_that_are_off_or_hung_while_one_answers(watched: Watched, store_at: StoreAt) -> None:
    watched.sentinels[0].kill()
    watched.sentinels[1].pause()
    store = store_at(watched.url)
    assert await store.get_many([b"k"], 10.0) == [None]
    with pytest.raises(StoreError) as failed:
        await store_at(watched.url.replace(SERVICE, "other")).get_many([b"k"], 10.0)
    assert failed.value.kind in ("timeout", "unreachable", "unavailable")  # the last that was heard of
    watched.sentinels[2].kill()
    assert await store.get_many([b"k"], 10.0) == [None]  # what was known is good enough
    with pytest.raises(StoreError) as failed:
        await store_at(watched.url).get_many([b"k"], 10.0)
    assert failed.value.kind in ("timeout", "unreachable", "unavailable")
    master = next(iter(watched.servers.values()))
    master.pause()
    with pytest.raises(StoreError):
        await store.get_many([b"k"], SECONDS)
    master.resume()  # it was the right one; that no Sentinel can say so must not cost a call its time

    async def reads() -> bool:
        with contextlib.suppress(StoreError):
            return await store.get_many([b"k"], SECONDS) == [None]
        return False

    await until(reads, what="the master that was known")
    watched.sentinels[1].resume()


async def test_who_is_no_master_any_more_is_not_read_from(watched: Watched, store_at: StoreAt) -> None:
    """A Sentinel that is behind names a server that has become a replica: its values may be old ones."""
    store = store_at(watched.url)
    await store.put_many([(b"k", b"1")], None, 10.0)
    for each in watched.sentinels:
        each.pause()
    old = next(iter(watched.servers.values()))
    with old.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", 1)
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await asyncio.sleep(0)

    async def refuses() -> bool:
        try:
            await store.get_many([b"k"], 10.0)
        except StoreError as error:
            return error.kind == "unavailable"
        return False

    await until(refuses, what="a refusal to read from a replica")
    for each in watched.sentinels:
        each.resume()


@pytest.mark.parametrize("kind", ["timeout", "unreachable"])
async def test_what_was_told_is_as_old_as_it_is(kind: str) -> None:
    """Whether a gateway stood still, or nobody can be asked: another server may be the master meanwhile."""
    outcomes = iter(["", kind, kind, ""])
    asked: list[float] = []
    loop = asyncio.get_running_loop()

    async def learn(seconds: float) -> None:
        asked.append(loop.time())
        if kind := next(outcomes):
            raise StoreError(kind, "no Sentinel")

    known = learning.Learning(learn, LearnOptions(0.0, 3600.0))
    for _ in range(3):
        await known._run(1.0)
        now = loop.time()  # before it tells its age, or that would be less by what passes meanwhile
        assert known.age() >= now - asked[0] >= 0.0
        await asyncio.sleep(0.001)
    assert known.is_believed
    known._options = LearnOptions(0.0, 0.0)
    assert not known.is_believed
    began = loop.time()
    await known.ready(3600.0)  # one attempt has failed: nobody waits for the next
    assert loop.time() - began < 1800.0
    await known._run(1.0)
    assert known.age() < loop.time() - asked[2]


@contextlib.asynccontextmanager
async def sentinel(epoch: int, port: int, ask: Callable[[], Awaitable[None]]) -> AsyncIterator[str]:
    """Its address; it calls ``port`` the master as of a failover, after ``ask``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while some := await reader.read(65536):
                if b"SENTINEL" in some:  # both questions come at once
                    await ask()
                    facts = b"*2\r\n$12\r\nconfig-epoch\r\n$1\r\n%d\r\n" % epoch
                    writer.write(b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(port)), port) + facts)
                else:
                    writer.write(b"+OK\r\n" * some.count(b"*"))
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    listening.close()


async def test_a_sentinel_that_is_far_away_is_heard_and_one_that_hangs_is_left_alone(
    store_at: StoreAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It alone has decided a failover, and another one answers at once."""
    monkeypatch.setattr(learning, "HEAD_START_SECONDS", 0.01)
    monkeypatch.setattr(learning, "LEARN_SECONDS", 2.0)
    hangs = True

    async def near() -> None: ...

    async def far() -> None:
        await asyncio.sleep(3600.0 if hangs else 0.1)

    async with AsyncExitStack() as stack:
        both = sentinel(1, 1001, near), sentinel(2, 1002, far)
        addresses = [await stack.enter_async_context(each) for each in both]
        url = f"redis+sentinel://{','.join(addresses)}/{SERVICE}/0"
        store = store_at(url, None, RedisOptions(connect_seconds=10.0, learn=LearnOptions(0.0)))

        async def master() -> int:
            return (await store.masters(10.0)).nodes[0].port

        assert await master() == 1001  # at first who waits is told what is told at once
        hangs = False

        async def heard() -> bool:
            return await master() == 1002

        await until(heard, what="the word of the one that is far away")
        hangs = True

        async def left_alone() -> bool:
            return bool((await store.masters(10.0)) and store._servers._left_alone)  # type: ignore[attr-defined]

        await until(left_alone, what="a Sentinel that is left alone")
        old = await store.masters(10.0)
        for _ in range(5):
            await store._servers._learning._run(1.0)  # type: ignore[attr-defined]
        still = await store.masters(10.0)
        assert still.nodes == old.nodes, "who has not heard of the latest failover is not believed"
        assert still.age > old.age
        monkeypatch.setattr(servers, "SILENT_SECONDS", 0.0)

        async def given_up() -> bool:
            return await master() == 1001

        await until(given_up, what="the word of the one that answers")
