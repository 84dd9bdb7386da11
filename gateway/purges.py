"""When what is copied of a service was purged last: a mark on the disk, so that no restart finds what was purged.

Rule of this file: one mark of one service, read and written until it is there. Which copies it ends is ``copies.py``'s.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Awaitable, Callable
from typing import Final

from blake3 import blake3

from cache.stores.store import OF_ONE_KEY, Found, Store, StoreError
from degrade.calendar import Calendar
from gateway.background import came

WORDS: Final = "words"
"""The folder beside the generations where words are, and when services were purged."""
WORDS_SECONDS: Final = 1.0
"""What reading or writing a word may take: a small file."""
HURRY_SECONDS: Final = 0.1
"""Until what could not be written is tried again: somebody who purges waits for it."""
_NAME_BYTES: Final = 16
_AT: Final = struct.Struct("<d")


def purge_key(source: str) -> bytes:
    """Under which it is said when a service was purged. By its name alone, as its records are: whatever else of it
    changes, what was purged stays so."""
    return b"tailrace:%b:purge" % blake3(source.encode()).hexdigest(_NAME_BYTES).encode()


def purged_at(found: Found) -> float:
    """When it was, in Unix seconds. Of a mark that is damaged nobody knows: everything was. Raises struct.error, and
    StoreError for one that could not be read."""
    if isinstance(found, StoreError):
        if found.kind not in OF_ONE_KEY:
            raise found
        return math.inf
    at: float = -math.inf if found is None else _AT.unpack(found)[0]
    return at


class Purges:
    """When the last purge was (Unix seconds), on the disk. Until that has been read, no copy may be used."""

    def __init__(self, key: bytes, store: Store, calendar: Calendar) -> None:
        self._key = key
        self._store = store
        self._calendar = calendar
        self._told = True
        self._settled = asyncio.Event()
        self._settled.set()
        self.at: float | None = None
        """None: not known yet."""

    @property
    def is_told(self) -> bool:
        """Whether the disk knows of every purge."""
        return self._told

    def purge(self) -> None:
        """Nothing that was made before now is to be found any more."""
        self.at, self._told = self._calendar.now(), False
        self._settled.clear()

    async def round(self) -> None:
        """Read when it was, or write what is not written yet."""
        try:
            (found,) = await self._store.get_many([self._key], WORDS_SECONDS)
            read = purged_at(found)
            if read == math.inf:
                self.purge()
                read = -math.inf
            self.at = at = max(read, -math.inf if self.at is None else self.at)
            if math.isfinite(at):
                self._calendar.reach(at)  # a clock that was set back
            if at > read:
                await self._store.put_many([(self._key, _AT.pack(at))], None, WORDS_SECONDS)
        except (StoreError, struct.error):
            return  # what could not be written is tried again
        if self.at == at:
            self._told = True
            self._settled.set()

    async def run(self, interval: float, sleep: Callable[[float], Awaitable[None]]) -> None:
        while True:
            await self.round()
            await sleep(interval if self._told else min(interval, HURRY_SECONDS))

    async def settled(self, seconds: float) -> bool:
        """Whether every purge is on the disk, waiting ``seconds`` for it at most."""
        if not self._told:
            await self.round()
        return await came(self._settled, seconds)
