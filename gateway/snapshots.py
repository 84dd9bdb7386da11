"""Snapshots as a gateway makes and uses them: passes that copy what is new or used, and what a start takes from them.

A pass takes a few keys of each route and table at a time, for a millisecond of the event loop; what it has made goes to
a thread, which commits it. So nobody waits for the disk, and one that hangs stops snapshots and nothing else. One
worker of a host writes at a time; each copies what is in its own memory.

Rule of this file: who is copied, when, and how much at once. What a copy is says ``copies.py``, what a file is
``degrade/snapshot.py``. Nothing here raises: what does not work is a word, counted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from degrade.calendar import Calendar
from degrade.ladder import Step
from degrade.record import seal
from degrade.snapshot import SnapshotOptions
from gateway.background import Sleep, kept
from gateway.config import CacheConfig, Config
from gateway.config_snapshot import SnapshotConfig
from gateway.copied import AnswerRows, Answers, Pages, fingerprint_of, fingerprint_of_endpoint
from gateway.copies import Copied, Copies, CopyRules, Pending, Standing
from gateway.endpoint import NO_ENDPOINTS, Endpoint
from gateway.facts_copies import FactsCopies
from gateway.purges import Marks
from gateway.reads import Reads
from gateway.route import Route
from gateway.second import Shared, scope_of
from gateway.sharing import WORD_BYTES, servers_of, told_of
from gateway.surroundings import Surroundings
from gateway.witness import ROUND_SECONDS, Clocks

if TYPE_CHECKING:
    from gateway.operate.faults import Disk, Faults
    from gateway.tables import Table

RECORDS_MAX: Final = 8192
"""Of one pass; what is more waits for the next, which comes soon then."""
BYTES_MAX: Final = 8 * 1024 * 1024
"""Likewise: a commit of a tenth of a second on a common disk."""
BYTES_SHARE: Final = 8
"""And a generation has room for as many such passes."""
SWEPT_SHARE: Final = 2
"""Of a new generation, half at most is what was in the old ones: else it would be full of that, and the next begin."""
TURN_RECORDS: Final = 32
TURN_SECONDS: Final = 0.001
"""Of the event loop, before others have theirs."""
SEALED_HERE_MAX: Final = 4096
"""Bytes of a record above which it is sealed on the thread: that compresses it, and takes its time."""
SOON_SECONDS: Final = 0.5
"""Between passes while more is waiting than one may take."""
WRITE_SECONDS_MAX: Final = 10.0
"""For a commit; it goes on beyond that, and nothing is begun before it has ended."""
BUSY_TRIES: Final = 20
BUSY_SECONDS: Final = 0.05
OPEN_SECONDS_MAX: Final = 15.0
"""For looking through what is there, before the gateway serves without it."""
_log = structlog.get_logger("tailrace")


class Snapshots:
    """One process's. Made before the event loop has anything to do; belongs to it."""

    def __init__(self, config: SnapshotConfig, around: Surroundings, disk: Disk | None = None) -> None:
        """``disk``: what it meets on purpose."""
        ticker, wall = around.ticker, around.wall
        options = SnapshotOptions(int(config.bytes_max), config.generations)
        depot = around.depot(Path(config.path), options, wall)
        self.interval = float(config.interval)
        self.snapshot = depot.directory
        self.passes: Counter[str] = Counter()
        """By how they ended: "written", "idle" (nothing was new), "busy", "late", or one of `StoreError`'s kinds."""
        self.copied = 0
        """Records written, from the start."""
        self.turn_seconds_max = 0.0
        """The longest turn of the event loop that a pass took."""
        self._disk = disk
        self._ticker = ticker
        self._calendar = Calendar(ticker, wall)
        self._clocks = Clocks(ticker, wall, lambda: around.secret(WORD_BYTES).hex().encode())
        self._words = depot.words
        self.marks = Marks(depot.words, self._calendar)
        self._writer = depot.writer
        self._reads = Reads(depot.directory, depot.reader)
        self.facts = FactsCopies(self._reads, self._calendar)
        self._closed = False
        self._writing: asyncio.Future[str] | None = None
        self._pass_bytes_max = min(BYTES_MAX, self.snapshot.options.generation_bytes_max // BYTES_SHARE)
        self._copied: dict[str, Copied] = {}
        self._forgotten = 0  # of those that are copied no more
        self._tasks: list[asyncio.Task[None]] = []
        self._marking: asyncio.Task[None] | None = None
        self._keeping: dict[Standing, asyncio.Task[None]] = {}
        self._sources: list[str] = []
        self._rotations = 0
        self._in_hands: list[Pending] = []

    @property
    def age(self) -> float:
        """Seconds since something was written last, by any process, or nothing was new here; since ever if neither."""
        return self._calendar.now() - self.snapshot.written_at

    @property
    def waiting(self) -> int:
        """Keys that are to be copied; those that a pass has in its hands too."""
        return len(self._in_hands) + sum([len(each) for each in self._copied.values()])

    @property
    def forgotten(self) -> int:
        """Keys that found no room to wait in, from the start."""
        return self._forgotten + sum([each.forgotten for each in self._copied.values()])

    @property
    def late(self) -> int:
        """See ``Reads``."""
        return self._reads.late

    async def open(self) -> None:
        """Look at what is there. Before anything is shared."""
        loop = asyncio.get_running_loop()
        opening = loop.run_in_executor(self._writer, self.snapshot.open)
        done, _ = await asyncio.wait([opening], timeout=OPEN_SECONDS_MAX)
        if not done:
            self.snapshot.failures["timeout"] += 1
        self._calendar.reach(self.snapshot.written_at)
        for reason, count in self.snapshot.quarantined.items():
            _log.warning("snapshot put aside", reason=reason, generations=count, path=str(self.snapshot.folder))

    def share(
        self,
        config: Config,
        routes: Mapping[str, Route],
        tables: Mapping[str, Table],
        endpoints: Mapping[str, Endpoint] = NO_ENDPOINTS,
    ) -> None:
        """Copy these from now on, and no others; give them what was copied of them."""
        copied: dict[str, Copied] = {}
        for name, route in routes.items():
            if _is_copied(route.config.cache):
                if route.copies is None:
                    self._share_route(name, route, config)
                shelves = route.shelves
                assert shelves.copied is not None
                copied[f"routes/{name}"] = shelves.copied
                if shelves.copied_rows is not None:
                    copied[f"routes/{name}/rows"] = shelves.copied_rows
        for name, endpoint in endpoints.items():
            if _is_copied(endpoint.config.cache) and Step.SNAPSHOT in endpoint.steps:
                if endpoint.copies is None:
                    self._share_endpoint(name, endpoint)
                assert endpoint.copied is not None
                copied[f"endpoints/{name}"] = endpoint.copied
        for name, table in tables.items():
            if table.config.is_copied:
                from gateway.table_copies import RowCopies  # with the stores' clients, where there are tables

                held = table.copies
                if not isinstance(held, RowCopies):
                    held = table.copies = RowCopies(
                        name, table.config, self._reads, self._calendar, self._ticker
                    )
                    held.watch(table.near, self.marks.everything)
                copied[f"tables/{name}"] = held
        gone = [each for name, each in self._copied.items() if copied.get(name) is not each]
        self._forgotten += sum([each.forgotten for each in gone])
        self._copied = copied
        self.marks.keep(copied)

    def _share_route(self, name: str, route: Route, config: Config) -> None:
        cache = route.config.cache
        assert cache is not None
        scope = scope_of(Shared(name, told_of(route, config), 0.0, 0.0))
        fingerprint = fingerprint_of(name, route.config, config.tables)
        seconds_max, trusts = float(cache.ttl) + float(cache.max_stale), cache.snapshot == "fresh"
        servers = servers_of(route, config)
        rules = CopyRules(f"routes/{name}", fingerprint, scope, seconds_max, trusts, servers=servers)
        standing = self._standing(rules)
        rows = Copies(standing, self._reads, AnswerRows()) if route.shelves.finds_rows else None
        route.copy(Copies(standing, self._reads, Answers(name)), rows)

    def _share_endpoint(self, name: str, endpoint: Endpoint) -> None:
        cache = endpoint.config.cache
        assert cache is not None
        fingerprint, seconds_max = fingerprint_of_endpoint(name, endpoint.config), float(cache.ttl + cache.max_stale)
        rules = CopyRules(f"endpoints/{name}", fingerprint, b"", seconds_max, trusts=False, is_watched=False)
        standing = self._standing(rules)
        endpoint.copy(Copies(standing, self._reads, Pages()))

    def _standing(self, rules: CopyRules) -> Standing:
        """Of a route or endpoint that is new, or has another configuration: a purge that the disk has not taken yet is
        remembered all the same."""
        return Standing(rules, self._calendar, self._words, self._clocks, self.marks.of(rules.source))

    async def begin(self) -> None:
        """Read what was purged, so that copies can be found; and go on from there."""
        self.keep()
        await self.marks.round()
        if not self._tasks:
            self._tasks = [kept(self._run, self.interval)]

    def keep(self) -> None:
        """Watch the words of those that are copied, and no others; and when they were purged."""
        if self._marking is not None:
            self._marking.cancel()  # so that new ones are read at once
        self._marking = kept(self.marks.run, ROUND_SECONDS)
        wanted = dict.fromkeys(each.standing for each in self._copied.values() if isinstance(each, Copies))
        for gone in [standing for standing in self._keeping if standing not in wanted]:
            self._keeping.pop(gone).cancel()
        for standing in wanted:
            if standing.witness is not None and standing not in self._keeping:
                self._keeping[standing] = kept(standing.witness.run, ROUND_SECONDS)

    async def close(self, seconds: float) -> None:
        """Write what waits, for so many seconds at most, and end; a second time it is over already."""
        if self._closed:
            return
        self._closed = True
        for task in (*self._tasks, *self._keeping.values(), *([] if self._marking is None else [self._marking])):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        until = self._ticker() + seconds
        if self._writing is not None:  # of a pass that was cancelled
            await asyncio.wait([self._writing], timeout=seconds)
        for each in self._copied.values():
            each.again()
        self._in_hands = []
        while (waiting := self.waiting) and (left := until - self._ticker()) > 0.0:
            copied = self.copied
            if await self.copy(asyncio.sleep, left) != "written":
                break
            if (self.waiting, self.copied) == (waiting, copied):  # of a model that never said what it is
                break
        await self._words.close()
        self._writer.shutdown(wait=False, cancel_futures=True)
        if self._writing is None or self._writing.done():
            await self._reads.close()

    async def copy(self, sleep: Sleep, seconds: float = WRITE_SECONDS_MAX) -> str:
        """One pass; how it ended."""
        if self._writing is not None and not self._writing.done():
            outcome = "late"
        else:
            pending: list[Pending] = []
            self._in_hands = pending
            await self._make(pending, sleep)
            pending += self.facts.changed()  # those by which what was made is understood are with it
            outcome = await self._written(pending, sleep, seconds)
            is_done = outcome in ("written", "idle")
            self._in_hands = []
            for each in self._copied.values():
                each.written() if is_done else each.again()
            if is_done:
                self.copied += sum(not each.is_end for each in pending)
            else:
                self.facts.again()
            self._reads.settle()
            if self.snapshot.rotations != self._rotations:
                self._sweep()
        self.passes[outcome] += 1
        return outcome

    async def _run(self, interval: float, sleep: Sleep) -> None:
        failing = ""
        while True:
            outcome = await self.copy(sleep)
            is_well = outcome in ("written", "idle", "busy")
            if not is_well and outcome != failing:
                _log.warning("snapshot not written", reason=outcome, path=str(self.snapshot.folder))
            if outcome != "busy":
                failing = "" if is_well else outcome
            soon = is_well and self.waiting > RECORDS_MAX
            await sleep(min(interval, SOON_SECONDS) if soon else interval)

    async def _make(self, pending: list[Pending], sleep: Sleep) -> None:
        """Some of what waits: of each a little at a time, so that nobody holds up the others."""
        size = 0
        began, idle = self._ticker(), False
        while not idle:
            idle = True
            for copied in self._copied.values():
                taken = copied.take(TURN_RECORDS) if len(copied) else None
                idle = idle and taken is None
                for each in taken or ():
                    size += len(each.written)
                    pending.append(_sealed(each) if len(each.written) <= SEALED_HERE_MAX else each)
                if len(pending) >= RECORDS_MAX or size >= self._pass_bytes_max:
                    return
                if (spent := self._ticker() - began) >= TURN_SECONDS:
                    self.turn_seconds_max = max(self.turn_seconds_max, spent)
                    await sleep(0)
                    began = self._ticker()

    async def _written(self, pending: list[Pending], sleep: Sleep, seconds: float) -> str:
        until = self._ticker() + seconds
        now, rule = self._calendar.now(), None if self._disk is None else self._disk()
        if rule is not None:
            await sleep(min(rule.latency, seconds))
            if rule.latency >= seconds:
                return "late"
            if rule.error:
                self.snapshot.failures[rule.error] += 1
                return rule.error

        def write() -> str:
            pairs, ends = list[tuple[bytes, bytes]](), list[tuple[bytes, bytes]]()
            for each in {each.name: each for each in pending}.values():  # of one that came and went the last word
                written = _sealed(each).written
                pair = each.name, written if rule is None else rule.spoilt(written)
                (ends if each.is_end else pairs).append(pair)
            return self.snapshot.write(pairs, now, ends)

        for _ in range(BUSY_TRIES):
            self._writing = asyncio.get_running_loop().run_in_executor(self._writer, write)
            done, _ = await asyncio.wait([self._writing], timeout=max(0.0, until - self._ticker()))
            if not done:
                return "late"
            if (outcome := self._writing.result()) != "busy":
                return outcome
            await sleep(BUSY_SECONDS)
        return "busy"

    def _sweep(self) -> None:
        """A new generation has begun: what is used goes into it, before the old ones leave."""
        self._rotations = self.snapshot.rotations
        self.facts.again()
        for each in self._copied.values():
            each.sweep(self.snapshot.options.generation_bytes_max // SWEPT_SHARE // len(self._copied))


def snapshots_of(config: Config, around: Surroundings, faults: Faults | None) -> Snapshots | None:
    """What a configuration asks for, if it does."""
    if config.snapshot is None:
        return None
    return Snapshots(config.snapshot, around, None if faults is None else faults.disk())


def _is_copied(cache: CacheConfig | None) -> bool:
    return cache is not None and cache.snapshot != "off"


def _sealed(pending: Pending) -> Pending:
    if pending.is_sealed:
        return pending
    return Pending(pending.name, seal(pending.name, pending.written), True, pending.is_end)
