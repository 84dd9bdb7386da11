"""A master behind Sentinels that dies under load: real servers, real Sentinels."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from msgspec import structs

from cache.stores import learning
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


@pytest.mark.parametrize(
    ("kinds", "believed"), [(["timeout"], False), (["timeout"] * 2, True), (["unreachable"], True)]
)
async def test_who_ran_out_of_time_once_asks_again_before_it_believes_untold(kinds: list[str], believed: bool) -> None:
    """A gateway that stood still for as long as a question may take has heard no Sentinel either."""
    outcomes = iter(["", *kinds, ""])

    async def learn(seconds: float) -> None:
        await asyncio.sleep(0.001)
        if kind := next(outcomes):
            raise StoreError(kind, "no Sentinel")

    learning_it = learning.Learning(learn, LearnOptions(0.0, 1.0))
    for _ in range(1 + len(kinds)):
        await learning_it._run(1.0)
    assert (learning_it.age() == 0.0) is believed
    await learning_it._run(1.0)
    assert 0.0 < learning_it.age() < 1.0
