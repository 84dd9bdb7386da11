"""Writing behind: what is to be written to a store waits in a bounded queue, and never its caller.

Rule of this file: whoever leaves something here goes on at once. What finds no room, or that the store does not take,
is lost and counted: it is a copy, and nothing is tried twice. A value's bytes are made here too, away from its caller.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from cache.stores.store import Store, StoreError

ASIDE_BYTES: Final = 64 * 1024
"""Values of so many bytes together are made on a thread: compressing takes a millisecond for less than that."""

Pairs = Sequence[tuple[bytes, bytes]]


class BehindOptions(Struct, frozen=True):
    """``entries_max`` and ``bytes_max`` bound what waits; ``batch_bytes_max`` what is written at once, which a server
    does while it does nothing else. ``seconds``: what one such write may take; nobody waits for it."""

    entries_max: int = 4096
    bytes_max: int = 32 * 1024 * 1024
    batch_entries_max: int = 128
    batch_bytes_max: int = 1024 * 1024
    seconds: float = 0.25


class Later(Struct, frozen=True):
    """Something to write: ``make`` gives keys and values, ``size`` is about how many bytes they are."""

    make: Callable[[], Pairs]
    size: int


class Behind:
    """One queue to one store, all with one ``ttl`` in seconds. Belongs to one event loop; `run` writes.

    ``outcomes`` counts what was left here: written, dropped (no room), failed (by the store)."""

    def __init__(self, store: Store, ttl: float, options: BehindOptions) -> None:
        self.outcomes: Counter[str] = Counter(written=0, dropped=0, failed=0)
        self._store = store
        self._ttl = ttl
        self._options = options
        self._waiting: deque[Later] = deque()
        self._bytes = 0
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def bytes(self) -> int:
        """About how many bytes those are that wait."""
        return self._bytes

    def put(self, later: Later) -> bool:
        """Leave something to be written; False if there is no room."""
        options = self._options
        if len(self._waiting) >= options.entries_max or self._bytes + later.size > options.bytes_max:
            self.outcomes["dropped"] += 1
            return False
        self._waiting.append(later)
        self._bytes += later.size
        self._some.set()
        self._none.clear()
        return True

    async def run(self) -> None:
        """Write for ever; cancel it to stop."""
        while True:
            await self._some.wait()
            batch = self._batch()
            try:
                await self._write(batch)
            finally:
                if not self._waiting:
                    self._none.set()
            await asyncio.sleep(0)  # a queue that is never empty must not keep the loop

    async def drain(self, seconds: float) -> None:
        """Wait until all is written, ``seconds`` at most."""
        try:
            async with asyncio.timeout(seconds):
                await self._none.wait()
        except TimeoutError:
            pass

    def _batch(self) -> list[Later]:
        """The next ones; there is at least one."""
        options, batch, size = self._options, list[Later](), 0
        while self._waiting and len(batch) < options.batch_entries_max:
            size += self._waiting[0].size
            if batch and size > options.batch_bytes_max:
                break
            later = self._waiting.popleft()
            self._bytes -= later.size
            batch.append(later)
        if not self._waiting:
            self._some.clear()
        return batch

    async def _write(self, batch: Sequence[Later]) -> None:
        pairs = await self._made(batch)
        try:
            await self._store.put_many(pairs, self._ttl, self._options.seconds)
        except StoreError:
            self.outcomes["failed"] += len(pairs)
        else:
            self.outcomes["written"] += len(pairs)

    async def _made(self, batch: Sequence[Later]) -> Pairs:
        if sum([later.size for later in batch]) < ASIDE_BYTES:
            return _pairs(batch)
        return await asyncio.to_thread(_pairs, batch)


def _pairs(batch: Sequence[Later]) -> Pairs:
    return [pair for later in batch for pair in later.make()]
