"""Real Redis servers for the stores' tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from cache.stores.address import parse_redis
from cache.stores.redis import Layout, RedisOptions, RedisStore, Strings
from degrade.breaker import Breaker
from degrade.guard import STORE_BREAKER

StoreAt = Callable[..., RedisStore]


@pytest.fixture
async def store_at() -> AsyncIterator[StoreAt]:
    """``store_at(url, layout, options)`` -> a store, closed at the test's end."""
    async with AsyncExitStack() as stack:

        def made(url: str, layout: Layout | None = None, options: RedisOptions | None = None) -> RedisStore:
            store = RedisStore(parse_redis(url), layout or Strings(), lambda: Breaker(STORE_BREAKER), options)
            stack.push_async_callback(store.close)
            return store

        yield made


async def until(true: Callable[[], bool | Awaitable[bool]], seconds: float = 20.0, what: str = "") -> None:
    """Wait for what another process does in its own time; fail if it does not come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        told = true()
        if await told if isinstance(told, Awaitable) else told:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"within {seconds:.0f} s there was not: {what or true}")
