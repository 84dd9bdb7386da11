"""A store behind a breaker and a bound in time: it may fail, but it may not cost more than that bound, and that once.

Rule of this file: what it raises is a `StoreError`. How calls are let through is ``cache/stores/turnstile.py``'s, which
a cluster uses for each of its nodes too; here are the breaker's numbers, and a whole store behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cache.stores.store import Found, Store
from cache.stores.turnstile import Later, Turnstile, TurnstileOptions
from degrade.breaker import Breaker, BreakerOptions
from degrade.deadline import Ticker

STORE_BREAKER: Final = BreakerOptions(
    consecutive_failures=1, failure_ratio=0.5, volume_min=10, window=10.0, open_seconds=0.25, open_seconds_max=5.0
)
"""For a store, or one node of one: opened by the first failure, because callers have something in its place (what they
hold, a default) and a look beside them closes it again."""


class Guarded:
    """A `Store` that fails quickly. Belongs to one event loop."""

    def __init__(
        self, store: Store, breaker: Breaker, now: Ticker, options: TurnstileOptions, later: Later | None = None
    ) -> None:
        """``later``: when it is looked at a store that is left alone (see `Turnstile`)."""
        self._store = store
        self._breaker = breaker
        self._turnstile = Turnstile(breaker, store.healthy, now, options, later)

    @property
    def state(self) -> str:
        """The breaker's."""
        return self._breaker.state

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        return await self._turnstile.call(lambda: self._store.get_many(keys, seconds), seconds)

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        await self._turnstile.call(lambda: self._store.put_many(pairs, ttl, seconds), seconds)

    async def delete_many(self, keys: Sequence[bytes], seconds: float) -> None:
        await self._turnstile.call(lambda: self._store.delete_many(keys, seconds), seconds)

    async def healthy(self, seconds: float) -> bool:
        """Asks the store; the breaker is not asked, and learns nothing."""
        return await self._store.healthy(seconds)

    async def close(self) -> None:
        await self._turnstile.close()
        await self._store.close()
