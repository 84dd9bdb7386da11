"""What is kept beyond a process in a world where what is wrong is given: the snapshot's records, and a second level.

Rule of this file: as ``world.py``, of which it is a part: it stands where the disk and the shared store stand, and the
real parts that read them decide. What is assumed to be there was left while all was well.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from cache.behind import BehindOptions
from cache.stores.store import Found, StoreError
from cache.stores.turnstile import TurnstileOptions
from degrade.breaker import Breaker
from degrade.calendar import Calendar
from degrade.guard import STORE_BREAKER, Guarded
from degrade.record import Good, Record, Terms, V, judged, name_of
from gateway.config import Config
from gateway.copied import AnswerRows, Answers
from gateway.copies import Copies, CopyRules, Standing
from gateway.explain.world import QUIET_TURNS, World
from gateway.reads import LookTime
from gateway.route import Route
from gateway.second import SecondLevel, Shared
from gateway.tables import Ids, Rows
from gateway.witness import ROUND_SECONDS, Clocks, Witness

TAKEN_MAX: Final = 64
"""Records of what one request has left."""
KINDS: Final = {"down": "unreachable", "slow": "timeout"}
"""How the shared store fails."""


class Disk:
    """Where a snapshot's records lie."""

    def __init__(self) -> None:
        self._records: dict[bytes, Record] = {}

    def keep(self, records: Sequence[Record]) -> None:
        """Under their names."""
        self._records |= {name_of(each.kind, each.source, each.key): each for each in records}

    async def read(
        self, kind: str, source: str, keys: Sequence[bytes], terms: Terms[V], now: float, time: LookTime
    ) -> list[Good[V] | None]:
        """As the real one reads it."""
        held = [self._records.get(name_of(kind, source, key)) for key in keys]
        found = ["" if each is None else judged(each, terms, now) for each in held]
        return [None if isinstance(each, str) else each for each in found]


class Words:
    """A store in memory: of small files, or of a second level, which may be ill."""

    def __init__(self, world: World, is_second: bool = False) -> None:
        self._world = world
        self._is_second = is_second
        self._held: dict[bytes, bytes] = {}

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        """What was put there."""
        await self._fail(seconds)
        return [self._held.get(key) for key in keys]

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        """For good: nothing here lives long."""
        await self._fail(seconds)
        self._held |= dict(pairs)

    async def delete_many(self, keys: Sequence[bytes], seconds: float) -> None:
        """Nothing is removed here."""
        raise NotImplementedError

    async def healthy(self, seconds: float) -> bool:
        """Whether nothing is wrong with it."""
        return self._state not in KINDS

    async def close(self) -> None:
        """There is nothing to close."""

    @property
    def _state(self) -> str:
        return self._world.state("second", "second") if self._is_second else ""

    async def _fail(self, seconds: float) -> None:
        kind = KINDS.get(self._state)
        if kind == "timeout":
            await self._world.wait(self._world.now + seconds)
        if kind is not None:
            raise StoreError(kind)


class CopiedRows:
    """Rows of a table on the disk: all there are, so old."""

    def __init__(self, shape: tuple[int, ...], age: float) -> None:
        self._shape = shape
        self._age = age

    def note(self, ids: Ids) -> None:
        """Nothing is written here."""

    def note_gone(self, ids: Ids) -> None:
        """Nor this."""

    async def find(
        self, ids: Ids, seconds: float, running: float
    ) -> tuple[Rows, NDArray[np.bool_], NDArray[np.float64]]:
        """A row for each."""
        rows = np.zeros((len(ids), *self._shape), np.float32)
        return rows, np.ones(len(ids), np.bool_), np.full(len(ids), self._age)


class Keeping:
    """What a route leaves beyond its process, and what is assumed to be left of it."""

    def __init__(self, world: World, config: Config, route: Route) -> None:
        self._world = world
        self._route = route
        self._disk = Disk()
        self._words = Words(world)
        self._numbers = itertools.count()
        self._calendar = Calendar(world.ticker, world.ticker)
        self._tasks: list[asyncio.Task[None]] = []
        cache = route.config.cache
        self._copies = config.snapshot is not None and cache is not None and cache.snapshot != "off"
        wanted = cache is not None and cache.second is not None and world.held("second") != "empty"
        self._second = self._shared() if wanted else None

    async def begin(self) -> None:
        """While all is well: leave what is answered from now on, where it is to be found later."""
        if self._copies and self._world.held("snapshot") != "none":
            standing = await self._share_copies()
            assert standing.witness is not None
            await standing.witness.round()
        if self._second is not None:
            self._route.share(self._second)
            await self._second.witness.round()
            self._tasks.append(asyncio.ensure_future(self._second.behind.run()))
            self._keep(self._second.witness)

    async def left(self, age: float) -> None:
        """All that was answered lies there now, on the disk as old as that."""
        for _ in range(QUIET_TURNS):  # until what waits to be left is
            await asyncio.sleep(0)
        copied = self._route.shelves.copied
        if copied is None:
            return
        made_at = self._calendar.now() - age
        for each in (copied, self._route.shelves.copied_rows):
            taken = None if each is None else each.take(TAKEN_MAX)
            records = [msgspec.msgpack.decode(pending.written, type=Record) for pending in taken or ()]
            self._disk.keep([msgspec.structs.replace(each, made_at=made_at, written_at=made_at) for each in records])
        witness = copied.standing.witness
        if self._world.held("snapshot") == "fresh" and witness is not None:
            self._keep(witness)
        else:  # another process, which has not found out about its models
            await self._share_copies()

    def _keep(self, witness: Witness) -> None:
        """Watch as long as requests are asked."""

        async def rounds() -> None:
            while True:
                await self._world.wait(self._world.now + ROUND_SECONDS)
                await witness.round()

        self._tasks.append(asyncio.ensure_future(rounds()))

    async def close(self) -> None:
        """End what goes on beside requests."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _shared(self) -> SecondLevel:
        cache = self._route.config.cache
        assert cache is not None
        options = TurnstileOptions(proof_seconds=0.0)
        store = Guarded(Words(self._world, is_second=True), Breaker(STORE_BREAKER), self._world.ticker, options)
        shared = Shared(self._route.name, b"", float(cache.ttl), float(cache.second_timeout))
        return SecondLevel(shared, store, self._clocks(), BehindOptions())

    async def _share_copies(self) -> Standing:
        cache = self._route.config.cache
        assert cache is not None
        seconds_max, trusts = float(cache.ttl) + float(cache.max_stale), cache.snapshot == "fresh"
        rules = CopyRules(f"routes/{self._route.name}", b"", b"", seconds_max, trusts)
        standing = Standing(rules, self._calendar, self._words, self._clocks())
        rows = Copies(standing, self._disk, AnswerRows()) if self._route.shelves.finds_rows else None
        self._route.copy(Copies(standing, self._disk, Answers(self._route.name)), rows)
        await standing.purges.round()
        return standing

    def _clocks(self) -> Clocks:
        return Clocks(self._world.ticker, self._world.ticker, lambda: b"word%d" % next(self._numbers))
