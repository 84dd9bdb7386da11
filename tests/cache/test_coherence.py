"""The tracking connection against a real Redis: who writes is heard of; who is not heard of is not believed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from benchmarks.coherence import watch
from cache import coherence
from cache.coherence import Heard, Tracker, TrackerOptions, _Line
from cache.stores.node import Node, NodeOptions
from cache.stores.servers import Known
from cache.stores.store import StoreError
from examples.redisserver import RedisServer
from tests.cache.conftest import StoreAt, until

QUICK = TrackerOptions(ping_seconds=0.02, silence_seconds_max=0.4, backoff_seconds=0.01, backoff_seconds_max=0.05)


class Listening:
    """A tracker of ``user:`` that runs, and what it told."""

    def __init__(self, masters: object, options: TrackerOptions = QUICK) -> None:
        self.keys: list[bytes] = []
        self.distrusts = 0
        self.tracker = Tracker(masters, b"user:", Heard(self._take, self._distrust), time.monotonic, options)  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.tracker.run())

    def _take(self, keys: Sequence[bytes]) -> None:
        self.keys += keys

    def _distrust(self) -> None:
        self.distrusts += 1

    async def live(self) -> None:
        await until(self.tracker.live, what="a live tracker")

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@contextlib.asynccontextmanager
async def listening(masters: object, options: TrackerOptions = QUICK) -> AsyncIterator[Listening]:
    made = Listening(masters, options)
    try:
        yield made
    finally:
        await made.end()


async def test_every_change_of_a_key_is_heard(redis: RedisServer, store_at: StoreAt) -> None:
    store = store_at(redis.url)
    async with listening(store.masters) as heard:
        assert not heard.tracker.live()
        await heard.live()
        assert heard.distrusts == 1  # of what was there before anybody listened
        with redis.client() as client:
            client.set("user:1", "a")
            client.hset("user:2", "f", 1)
            client.delete("user:1")
            client.set("item:1", "a")
            client.set("user:3", "a", px=20)
            await until(lambda: heard.keys.count(b"user:3") == 2, what="the end of a key's life")
        await store.put_many([(b"user:4", b"x")], None, 10.0)  # our own are heard of too
        await until(lambda: b"user:4" in heard.keys, what="user:4")
        assert heard.keys == [b"user:1", b"user:2", b"user:1", b"user:3", b"user:3", b"user:4"]
        assert heard.distrusts == 1
        assert heard.tracker.delays()
    assert heard.distrusts > 1  # nobody listens any more


async def test_what_is_known_is_as_of_a_ping_that_was_answered(redis: RedisServer, store_at: StoreAt) -> None:
    async with listening(store_at(redis.url).masters) as heard:
        await heard.live()
        for _ in range(5):
            with redis.client() as client:
                client.set("user:1", "x")
            written = time.monotonic()
            await until(lambda at=written: heard.tracker.as_of > at, what="an answered ping")  # type: ignore[misc]
            assert heard.keys.pop() == b"user:1"  # whatever came before the ping has been told


async def test_a_late_answer_tells_of_the_time_before_its_ping() -> None:
    """A change after the ping, and before its answer, may not have been told yet."""
    now = 100.0
    options = TrackerOptions(ping_seconds=10.0, silence_seconds_max=1.0)
    node = Node("nowhere", 1, NodeOptions())

    async def masters(_seconds: float) -> Known:
        return Known((node,))

    tracker = Tracker(masters, b"user:", Heard(lambda _: None, lambda: None), lambda: now, options)
    line = _Line(lambda: now)
    tracker._lines = {node: line}
    line.sent.append(now)
    now = 100.8
    tracker._known_at = now
    assert not tracker.live()
    tracker._take([b"pong", b""], line)
    assert (tracker.as_of, tracker.delays()) == (100.0, [pytest.approx(0.8)])
    assert tracker.live()
    now = 101.1
    assert not tracker.live()


@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHDB"])
async def test_when_everything_goes_nothing_is_trusted(redis: RedisServer, store_at: StoreAt, command: str) -> None:
    async with listening(store_at(redis.url).masters) as heard:
        await heard.live()
        with redis.client() as client:
            client.execute_command(command)
        await until(lambda: heard.distrusts == 2, what="distrust")
        assert heard.tracker.live()


async def test_when_very_many_keys_change_at_once_nothing_is_trusted(
    redis: RedisServer, store_at: StoreAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them would have to be looked up, and nobody be answered meanwhile."""
    monkeypatch.setattr(coherence, "KEYS_TOLD_MAX", 100)
    async with listening(store_at(redis.url).masters) as heard:
        await heard.live()
        with redis.client() as client:
            client.mset({f"user:{each}": "x" for each in range(100)})
            await until(lambda: len(heard.keys) == 100, what="each key")
            assert heard.distrusts == 1
            client.mset({f"user:{each}": "x" for each in range(101)})
            await until(lambda: heard.distrusts == 2, what="distrust")
        assert len(heard.keys) == 100
        assert heard.tracker.live()


async def test_a_cut_connection_is_distrusted_and_comes_back(redis: RedisServer, store_at: StoreAt) -> None:
    async with listening(store_at(redis.url).masters) as heard:
        await heard.live()
        with redis.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: heard.distrusts == 3, what="distrust when it broke, and when it was back")
        assert heard.tracker.breaks == 1
        await heard.live()
        with redis.client() as client:
            client.set("user:9", "a")
        await until(lambda: b"user:9" in heard.keys, what="user:9")


async def test_silence_is_not_believed(own_redis: RedisServer, store_at: StoreAt) -> None:
    """A server that hangs keeps its connections: only its silence tells."""
    async with listening(store_at(own_redis.url).masters) as heard:
        await heard.live()
        own_redis.pause()
        paused = time.monotonic()
        await until(lambda: not heard.tracker.live(), what="doubt")
        assert heard.tracker.as_of <= paused
        await until(lambda: heard.distrusts >= 2, what="distrust")
        own_redis.resume()
        await heard.live()


async def test_a_busy_event_loop_is_not_believed_either(redis: RedisServer, store_at: StoreAt) -> None:
    async with listening(store_at(redis.url).masters) as heard:
        await heard.live()
        time.sleep(QUICK.silence_seconds_max + 0.05)  # noqa: ASYNC251  # that is the point
        assert not heard.tracker.live()
        await heard.live()


async def test_a_user_with_few_rights(own_redis: RedisServer, store_at: StoreAt) -> None:
    """Those that docs/tables.md names."""
    rights = ["~user:*", "&__redis__:invalidate", "+@read", "+@connection", "+subscribe"]
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">pw", *rights)
        store = store_at(f"redis://reader:pw@{own_redis.address}/0")
        async with listening(store.masters) as heard:
            await heard.live()
            client.set("user:1", "a")
            await until(lambda: heard.keys == [b"user:1"], what="user:1")
        assert await store.get_many([b"user:1", b"user:2"], 10.0) == [b"a", None]


async def test_off_at_first(own_redis: RedisServer, store_at: StoreAt) -> None:
    own_redis.kill()
    async with listening(store_at(own_redis.url).masters) as heard:
        await asyncio.sleep(0.05)
        assert not heard.tracker.live()
        own_redis.start()
        await heard.live()


async def test_every_master_must_be_heard(own_redis: RedisServer, redis: RedisServer) -> None:
    """Of two, one is away; then the set changes."""
    servers = [Node(each.host, each.port, NodeOptions()) for each in (own_redis, redis)]
    known = list(servers)
    age = 0.0
    failing = False

    async def masters(_seconds: float) -> Known:
        if failing:
            raise StoreError("unavailable")
        return Known(tuple(known), age)

    async with listening(masters) as heard:
        await heard.live()
        own_redis.kill()
        await until(lambda: not heard.tracker.live(), what="doubt")
        with redis.client() as client:
            client.set("user:7", "a")
        await until(lambda: b"user:7" in heard.keys, what="the other one's word")
        before = heard.distrusts
        known.remove(servers[0])
        await heard.live()
        assert heard.distrusts > before
        age = 2 * QUICK.silence_seconds_max  # so long ago they were told of: they may have changed
        await until(lambda: not heard.tracker.live(), what="doubt")
        age = 0.0
        await heard.live()
        failing = True  # nobody tells who the masters are: those that were stay, and are as old as they are
        await until(lambda: not heard.tracker.live(), what="doubt")
        before = heard.distrusts
        with redis.client() as client:
            client.set("user:8", "a")
        await until(lambda: b"user:8" in heard.keys, what="user:8")
        assert not heard.tracker.live()
        failing = False
        await heard.live()
        assert heard.distrusts == before


async def test_nothing_older_than_the_bound_is_called_fresh(own_redis: RedisServer) -> None:
    """`make coherence` is the same for a minute, and prints how soon writes are seen."""
    seen = await watch(own_redis, 2.0, cut_seconds=0.7)
    assert seen.cuts
    assert seen.fresh > seen.held >= 1000
    assert seen.overdue == 0
    assert seen.delays
