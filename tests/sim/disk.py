"""A host's disk in virtual time: copies in generations, and words beside them, which outlive the processes there.

Rule of this file: it stands where ``degrade/snapshot.py`` and ``cache/stores/files.py`` stand, and decides what they
decide of files: what is in which generation, which of them are put aside at a start, and which leave. Bytes are sealed
and judged by the real ``cache/sealed.py`` and ``degrade/record.py``. What is written is there once its time is over, as
a whole; of a process that is killed before nothing is.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeVar

from cache.sealed import sealed, unsealed
from cache.stores.store import Found, StoreError
from degrade.deadline import Ticker
from degrade.generation import Pairs
from degrade.record import Good, Terms, drifted, judged, name_of, unpacked
from degrade.snapshot import SnapshotOptions
from gateway.depot import Depot
from tests.sim import faults
from tests.sim.faults import Weather
from tests.sim.loop import THREAD_SECONDS, Inline, SimLoop

V = TypeVar("V")

SMALL_BYTES: Final = 24 * 1024
"""Of a generation, on disks that are soon full."""
BUSY_SHARE: Final = 0.1
"""Of the passes that find another process at it, where there is one."""
_ENDS: Final = struct.Struct("<d")
_WORDS: Final = {faults.DISK_FULL: "full", faults.DISK_REFUSES: "refused"}


class Generation:
    """One file. ``declared``: how many records its last commit told of."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.records: dict[bytes, bytes] = {}
        self.declared = 0
        self.written_at = 0.0

    @property
    def size(self) -> int:
        return sum(map(len, self.records.values()))


class Disk:
    """What lies there, whoever lives."""

    def __init__(self, loop: SimLoop, weather: Weather, chance: random.Random, name: str) -> None:
        self.loop = loop
        self.weather = weather
        self.chance = chance
        self.place = f"disk:{name}"
        self.generations: list[Generation] = []
        """The last one first."""
        self.words: dict[bytes, bytes] = {}
        self.users = 0
        """Processes that use it at a time."""
        self.is_small = chance.random() < 0.3
        self.numbers = 0

    def depot(self, folder: Path, options: SnapshotOptions, wall: Ticker) -> Depot:
        """As one life of a process uses it."""
        if self.is_small:
            options = SnapshotOptions(SMALL_BYTES * options.generations, options.generations)
        return Depot(Directory(self, folder, options), Words(self, wall), Thread(self), Thread(self))

    def refuses(self) -> str:
        """Why nothing can be written now, one of ``StoreError``'s kinds; "": nothing is wrong."""
        spell = self.weather.strikes(self.place, self.loop.now, *_WORDS)
        return "" if spell is None else _WORDS[spell.kind]

    def lag(self) -> float:
        """How long what is begun now takes."""
        spell = self.weather.strikes(self.place, self.loop.now, faults.DISK_HANGS)
        return THREAD_SECONDS if spell is None else THREAD_SECONDS + 4.0 * spell.seconds

    def rot(self, share: float) -> None:
        """One byte of some records and words is another now."""
        for held in (*(each.records for each in self.generations), self.words):
            for name, raw in list(held.items()):
                if self.chance.random() < share:
                    at = self.chance.randrange(len(raw))
                    held[name] = raw[:at] + bytes([raw[at] ^ (1 << self.chance.randrange(8))]) + raw[at + 1 :]

    def remove(self) -> None:
        """Somebody removes the directory."""
        self.generations.clear()
        self.words.clear()


class Thread(Inline):
    """Who waits for the disk."""

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self._disk = disk

    @property
    def seconds(self) -> float:
        return self._disk.lag()


class Directory:
    """As one life sees it; see ``gateway/depot.py``. It does not write to what is older than itself."""

    def __init__(self, disk: Disk, folder: Path, options: SnapshotOptions) -> None:
        self._disk = disk
        self.folder = folder
        self.options = options
        self.failures: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.quarantined: Counter[str] = Counter()
        self.records = self.bytes = self.aside = 0
        self.written_at = 0.0
        self.rotations = 0
        self._before = disk.numbers

    @property
    def generations(self) -> int:
        return len(self._disk.generations)

    def open(self) -> None:
        good = []
        for each in self._disk.generations:
            whole = sum(unpacked(name, held) is not None for name, held in each.records.items())
            if self._disk.users > 1 or not drifted(whole, each.declared, self.options.drift_max):
                good.append(each)  # what others have open stays where it is
            else:
                self.quarantined["drift"] += 1
        self._disk.generations = good
        self._count()

    def find(self, kind: str, source: str, key: bytes, terms: Terms[V], now: float) -> Good[V] | None:
        name = name_of(kind, source, key)
        for generation in self._disk.generations:
            held = generation.records.get(name)
            if held is None:
                continue
            found = judged(unpacked(name, held), terms, now)
            if not isinstance(found, str):
                return found
            self.rejected[found] += 1
        return None

    def write(self, pairs: Pairs, now: float, ends: Pairs = ()) -> str:
        disk = self._disk
        pairs = [*pairs, *(end for end in ends if self._has_payload(end[0]))]
        refused = disk.refuses()
        if refused:
            self.failures[refused] += 1
            return refused
        if disk.users > 1 and disk.chance.random() < BUSY_SHARE:
            return "busy"
        last = disk.generations[0] if disk.generations else None
        if last is None or last.number <= self._before or last.size > self.options.generation_bytes_max:
            disk.numbers += 1
            last = Generation(disk.numbers)
            disk.generations = [last, *disk.generations[: self.options.generations - 1]]
            self.rotations += 1
        elif not pairs:
            self.written_at = max(self.written_at, now)
            return "idle"
        last.records.update(pairs)
        last.declared, last.written_at = len(last.records), now
        self._count()
        return "written"

    def _has_payload(self, name: bytes) -> bool:
        held = (each.records[name] for each in self._disk.generations if name in each.records)
        records = [record for each in held if (record := unpacked(name, each)) is not None]
        return bool(records) and bool(records[0].payload)

    def settle(self) -> None:
        return None

    def close(self) -> None:
        return None

    def _count(self) -> None:
        generations = self._disk.generations
        self.bytes = sum(each.size for each in generations)
        self.records = generations[0].declared if generations else 0
        self.written_at = max([self.written_at, *(each.written_at for each in generations[:1])])


class Words:
    """Small files, as a ``Store``."""

    def __init__(self, disk: Disk, wall: Ticker) -> None:
        self._disk = disk
        self._wall = wall

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        await self._wait(seconds)
        return [self._read(key) for key in keys]

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        ends = 0.0 if ttl is None else self._wall() + ttl
        await self._wait(seconds)
        refused = self._disk.refuses()
        if refused:
            raise StoreError(refused)
        self._disk.words.update({key: sealed(key, _ENDS.pack(ends) + value) for key, value in pairs})

    async def delete_many(self, keys: Sequence[bytes], seconds: float) -> None:
        raise NotImplementedError

    async def healthy(self, seconds: float) -> bool:
        return True

    async def close(self) -> None:
        return None

    async def _wait(self, seconds: float) -> None:
        lag = self._disk.lag()
        await asyncio.sleep(min(lag, seconds))
        if lag > seconds:
            raise StoreError("timeout")

    def _read(self, key: bytes) -> Found:
        held = self._disk.words.get(key)
        if held is None:
            return None
        value = unsealed(key, held, len(held))
        if value is None:
            return StoreError("corrupt")
        (ends,) = _ENDS.unpack_from(value)
        return None if 0.0 < ends <= self._wall() else value[_ENDS.size :]
