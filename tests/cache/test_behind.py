"""Writing behind: nobody waits for a store, and what waits for it is bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from cache.behind import ASIDE_BYTES, Behind, BehindOptions, Later
from cache.stores.redis import RedisStore
from cache.stores.store import Found, StoreError
from examples.redisserver import RedisServer
from tests.cache.conftest import StoreAt

OPTIONS = BehindOptions(entries_max=4, bytes_max=100, batch_entries_max=2, batch_bytes_max=50, seconds=10.0)


class Gated:
    """A store that takes what it is given once it is let."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.open = asyncio.Event()
        self.error: StoreError | None = None

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        await self.open.wait()
        if self.error is not None:
            raise self.error
        self.batches.append([key for key, _ in pairs])

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        raise AssertionError

    async def delete_many(self, keys: Sequence[bytes], seconds: float) -> None:
        raise AssertionError

    async def healthy(self, seconds: float) -> bool:
        return True

    async def close(self) -> None: ...


@contextlib.asynccontextmanager
async def running(behind: Behind) -> AsyncIterator[None]:
    task = asyncio.create_task(behind.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def later(name: bytes, size: int = 10) -> Later:
    return Later(lambda: [(name, b"v")], size)


async def test_what_finds_no_room_is_dropped_and_counted() -> None:
    behind = Behind(Gated(), 1.0, OPTIONS)
    assert [behind.put(later(b"%d" % n)) for n in range(6)] == [True] * 4 + [False] * 2
    assert (len(behind), behind.bytes, behind.outcomes["dropped"]) == (4, 40, 2)
    full = Behind(Gated(), 1.0, OPTIONS)
    assert [full.put(later(b"a", 60)), full.put(later(b"b", 60)), full.put(later(b"c", 40))] == [True, False, True]


async def test_batches_are_bounded_in_entries_and_bytes() -> None:
    store = Gated()
    behind = Behind(store, 1.0, OPTIONS)
    for name, size in ((b"a", 10), (b"b", 10), (b"c", 60), (b"d", 10)):
        behind.put(later(name, size))
    store.open.set()
    async with running(behind):
        await behind.drain(10.0)
    assert store.batches == [[b"a", b"b"], [b"c"], [b"d"]]
    assert behind.outcomes == {"written": 4, "dropped": 0, "failed": 0}
    assert (len(behind), behind.bytes) == (0, 0)


async def test_what_the_store_does_not_take_is_lost_and_the_next_is_tried() -> None:
    store = Gated()
    store.open.set()
    store.error = StoreError("open")
    behind = Behind(store, 1.0, OPTIONS)
    async with running(behind):
        behind.put(later(b"a"))
        await behind.drain(10.0)
        assert behind.outcomes == {"written": 0, "dropped": 0, "failed": 1}
        store.error = None
        behind.put(later(b"b"))
        await behind.drain(10.0)
    assert store.batches == [[b"b"]]


async def test_draining_has_its_time() -> None:
    behind = Behind(Gated(), 1.0, OPTIONS)
    behind.put(later(b"a"))
    async with running(behind):
        await behind.drain(0.02)
    assert behind.outcomes["written"] == 0


@pytest.fixture
def store(redis: RedisServer, store_at: StoreAt) -> RedisStore:
    return store_at(redis.url)


async def test_a_real_store_holds_them_for_their_time(redis: RedisServer, store: RedisStore) -> None:
    behind = Behind(store, 1000.0, BehindOptions(seconds=10.0))
    big = bytes(ASIDE_BYTES)
    async with running(behind):
        for n in range(300):
            assert behind.put(Later(lambda n=n: [(b"k%d" % n, b"v%d" % n)], 10))  # type: ignore[misc]
        assert behind.put(Later(lambda: [(b"big", big)], len(big)))
        await behind.drain(30.0)
    assert behind.outcomes["written"] == 301
    with redis.client() as client:
        assert client.mget("k0", "k299", "big") == [b"v0", b"v299", big]
        assert 0 < client.pttl("k7") <= 1_000_000
