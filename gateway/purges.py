"""When what is copied was purged last: marks on the disk, so that neither a restart nor a reload finds what was purged.

A mark is of one name, whether anything of that name is copied now or not: who switches copies off because something bad
was kept, purges, and switches them on again, finds none of it. One more is of everything there is: of what has no name
today, too.

Rule of this file: marks, each read, and written until it is there. Which copies they end is ``copies.py``'s.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Awaitable, Callable, Collection
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
EVERYTHING: Final = "*"
"""Whose mark is everybody's: no source is called so."""
_NAME_BYTES: Final = 16
_AT: Final = struct.Struct("<d")


def purge_key(source: str) -> bytes:
    """Under which it is said when a service was purged. By its name alone, as its records are: whatever else of it
    changes, what was purged stays so."""
    return b"tailrace:%b:purge" % blake3(source.encode()).hexdigest(_NAME_BYTES).encode()


def mark_keys(source: str) -> list[bytes]:
    """Of the marks that end what was copied of a source. What models say of themselves is no answer, and has none."""
    return [] if source.startswith("backends/") else [purge_key(source), purge_key(EVERYTHING)]


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
    """When the last purge of one source was (Unix seconds), on the disk."""

    def __init__(self, key: bytes, store: Store, calendar: Calendar, of_all: Purges | None = None) -> None:
        """``of_all``: those that are of this source too, and marked elsewhere."""
        self._key = key
        self._store = store
        self._calendar = calendar
        self._of_all = of_all
        self._at: float | None = None
        self._told = True
        self._settled = asyncio.Event()
        self._settled.set()

    @property
    def at(self) -> float | None:
        """When it was; None: nobody knows yet, and no copy may be used."""
        of_all = -math.inf if self._of_all is None else self._of_all.at
        return None if self._at is None or of_all is None else max(self._at, of_all)

    @property
    def is_told(self) -> bool:
        """Whether the disk knows of every purge."""
        return self._told

    def purge(self) -> None:
        """Nothing that was made before now is to be found any more."""
        self._at, self._told = self._calendar.now(), False
        self._settled.clear()

    async def round(self) -> None:
        """Read when it was, or write what is not written yet."""
        try:
            (found,) = await self._store.get_many([self._key], WORDS_SECONDS)
            read = purged_at(found)
            if read == math.inf:
                self.purge()
                read = -math.inf
            self._at = at = max(read, -math.inf if self._at is None else self._at)
            if math.isfinite(at):
                self._calendar.reach(at)  # a clock that was set back
            if at > read:
                await self._store.put_many([(self._key, _AT.pack(at))], None, WORDS_SECONDS)
        except (StoreError, struct.error):
            return  # what could not be written is tried again
        if self._at == at:
            self._told = True
            self._settled.set()

    async def settled(self, seconds: float) -> bool:
        """Whether every purge is on the disk, waiting ``seconds`` for it at most."""
        if not self._told:
            await self.round()
        return await came(self._settled, seconds)


class Marks:
    """All of a directory, by source. Belongs to an event loop."""

    def __init__(self, store: Store, calendar: Calendar) -> None:
        self._store = store
        self._calendar = calendar
        self._of: dict[str, Purges] = {}
        self.everything = Purges(purge_key(EVERYTHING), store, calendar)

    def of(self, source: str) -> Purges:
        """One source's: the same for all who ask."""
        if source not in self._of:
            self._of[source] = Purges(purge_key(source), self._store, self._calendar, self.everything)
        return self._of[source]

    def keep(self, sources: Collection[str]) -> None:
        """Watch these from now on, and of the others what the disk does not know of yet."""
        self._of = {source: each for source, each in self._of.items() if source in sources or not each.is_told}

    def purge(self, name: str | None) -> None:
        """Nothing that was copied of a route or endpoint of this name is to be found any more; None: nothing at all."""
        for purges in (self.everything,) if name is None else (self.of(f"routes/{name}"), self.of(f"endpoints/{name}")):
            purges.purge()

    async def settled(self, seconds: float) -> bool:
        """Whether every purge is on the disk, waiting ``seconds`` for it at most."""
        return all(await asyncio.gather(*(each.settled(seconds) for each in self._all())))

    async def round(self) -> None:
        """Read all of them, or write what is not written yet."""
        await asyncio.gather(*(each.round() for each in self._all()))

    async def run(self, interval: float, sleep: Callable[[float], Awaitable[None]]) -> None:
        while True:
            await self.round()
            is_told = all(each.is_told for each in self._all())
            await sleep(interval if is_told else min(interval, HURRY_SECONDS))

    def _all(self) -> list[Purges]:
        return [self.everything, *self._of.values()]
