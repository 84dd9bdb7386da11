"""What is made of a configured table works together: ids to keys, keys to values, values to rows, changes to ids."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest

from cache.coherence import Heard, Tracker
from cache.stores.address import parse_redis
from cache.stores.redis import RedisStore, Strings
from cache.table import FRESH, Lives, NearTable, TableShape
from degrade.breaker import Breaker
from degrade.guard import STORE_BREAKER
from examples.redisserver import RedisServer
from gateway.config_tables import Feast, TableBounds, TableConfig
from gateway.stores import Source, Sources, keyed_of, tracker_of
from gateway.units import Seconds

SECONDS = 10.0
IDS = np.array([1, -2, 2**62], np.int64)


def table(store: str, **more: object) -> TableConfig:
    plain = TableConfig(store=store, shape=(2,), ttl=Seconds(60), key="user:{id}", timeout=Seconds(10))
    return msgspec.structs.replace(plain, **more)


@pytest.mark.parametrize("more", [{}, {"dtype": "float16"}, {"dtype": "int8"}, {"fields": ("a", "b")}])
async def test_rows_go_there_and_back(more: dict[str, object]) -> None:
    with RedisServer() as server:
        source = Sources(time.monotonic).source(table(server.url, bounds=TableBounds(-5.0, 5.0), **more))
        rows = np.array([[1.0, -5.0], [0.25, 0.5], [3.0, 4.0]], source.codec.dtype)
        keys = source.keyed.keys(IDS)
        await source.store.put_many(list(zip(keys, source.codec.encode(rows), strict=True)), None, SECONDS)
        found = source.codec.decode(await source.store.get_many([*keys, *source.keyed.keys([b"9"])], SECONDS))
        assert found.found.tolist() == [True, True, True, False]
        assert np.allclose(found.rows[:3], rows, atol=0.03)
        await source.store.put_many([(keys[0], source.codec.encode(rows + 1.5)[2])], None, SECONDS)
        assert source.codec.decode(await source.store.get_many(keys[:1], SECONDS)).faults[0].kind == "corrupt"
        await source.store.close()


async def test_tables_of_one_file_share_it(tmp_path: object) -> None:
    made = Sources(time.monotonic, writable=True)
    one, other = (made.source(table(f"lmdb:{tmp_path}/f", key=key)) for key in ("user:{id}", "item:{id}"))
    value = one.codec.encode(np.ones((1, 2), np.float32))[0]
    await one.store.put_many([(one.keyed.keys([b"1"])[0], value)], None, SECONDS)
    assert await one.store.get_many(one.keyed.keys([b"1"]), SECONDS) == [value]
    assert await other.store.get_many(other.keyed.keys([b"1"]), SECONDS) == [None]
    await one.store.close()
    await other.store.close()


def test_the_near_caches_keys() -> None:
    assert table("redis://h").near(2**20).key_width == 0
    widths = [table("redis://h", ids="text", id_bytes_max=size).near(2**20).key_width for size in (7, 8, 31, 32)]
    assert widths == [1, 2, 4, 5]
    feast = Feast("shop", "v", "user", ("f",))
    assert keyed_of(table("redis://h", key=None, feast=feast)).prefix.endswith(b"user")


async def test_a_change_by_anyone_reaches_the_near_cache() -> None:
    with RedisServer() as server:
        configured = table(server.url, coherence="tracking")
        source = Sources(time.monotonic).source(configured)
        near = NearTable(TableShape(2**20, "float32", (2,)), Lives(60.0, 60.0, 10.0), b"seed")

        def invalidate(keys: Sequence[bytes]) -> None:
            near.invalidate(source.keyed.ids(keys))

        tracker = tracker_of(configured, source, Heard(invalidate, near.distrust), time.monotonic)
        assert tracker is not None
        running = asyncio.create_task(tracker.run())
        await _until(tracker.live)
        await _fill(source, near, tracker)
        assert near.find(IDS, 0.0).state.tolist() == [FRESH] * 3
        other = RedisStore(parse_redis(server.url), Strings(), lambda: Breaker(STORE_BREAKER))
        await other.put_many([(b"user:-2", b"x")], None, SECONDS)
        await _until(lambda: near.find(IDS, 0.0).state.tolist() != [FRESH] * 3)
        assert (near.find(IDS, 0.0).state == FRESH).tolist() == [True, False, True]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await other.close()
        await source.store.close()
    assert tracker_of(table("redis://h"), source, Heard(invalidate, near.distrust), time.monotonic) is None


async def _fill(source: Source, near: NearTable, tracker: Tracker) -> None:
    rows = np.ones((3, 2), np.float32)
    await source.store.put_many(
        list(zip(source.keyed.keys(IDS), source.codec.encode(rows), strict=True)), None, SECONDS
    )
    written = time.monotonic()
    await _until(lambda: tracker.as_of > written)  # by then the news of it is over
    near.put(IDS, rows, 0.0, near.ticket())


async def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20.0
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
