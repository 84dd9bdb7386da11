"""A feature table at run time: rows by their ids, from the near cache first and from the store for the rest.

Rule of this file: it knows one table. What is held and how far it may be trusted is ``cache/table.py``'s, where the
truth is ``cache/stores/``'s, what a store's failure costs ``degrade/guard.py``'s; here is what a look-up comes to, row
by row, and every row that is not what a store said lately is counted: old, or a declared default. It knows no request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from cache.coherence import Heard
from cache.stores.store import OF_ONE_KEY, Found, StoreError
from cache.table import ABSENT, FRESH, MISSING, STALE, Lives, NearTable
from degrade.deadline import Ticker
from degrade.ladder import Failure
from gateway.background import Sleep
from gateway.config_tables import TableConfig
from gateway.stores import Source, tracker_of
from tiers.inference import TableTold, UpstreamError

Ids = NDArray[np.int64] | Sequence[bytes]
Rows = NDArray[np.float32]

FAILURES: Final = {
    "unreachable": Failure.UNREACHABLE,
    "timeout": Failure.TIMEOUT,
    "unavailable": Failure.OVERLOADED,
    "open": Failure.UNREACHABLE,
    "crowded": Failure.OVERLOADED,
    "late": Failure.TIMEOUT,
}
"""What a store's failure is to the ladder; all others are BROKEN."""

SOURCES: Final = ("memory", "store")
"""Where a look-up found its rows: all of them here, or some of them in the store (or not even there)."""

COPIED: Final = 4
"""Beside ``cache/table.py``'s states: neither the store nor this process has it, and the snapshot does."""

COPIES_SECONDS: Final = 0.005
"""How long the snapshot's disk may hold up a look-up where the store has taken all the time."""
COPIES_SHARE: Final = 0.25
"""Of the time that a request has left, for all of its rows there, however busy this process is: as for answers."""

SHOWN_MAX: Final = 5
"""Ids named in a message."""
SHOWN_CHARACTERS_MAX: Final = 64
"""Of each of them: a caller may send an id of megabytes, and need not get them back."""

_log = structlog.get_logger("tailrace")


class Looked(msgspec.Struct, frozen=True, eq=False):
    """``rows``: float32 [n, *shape]."""

    rows: Rows
    told: TableTold


class UnknownId(Exception):
    """The store does not have an id, and the table has no default for it: the caller's fault."""

    def __init__(self, table: str, ids: Sequence[str]) -> None:
        named = ", ".join(ids[:SHOWN_MAX]) + (" ..." if len(ids) > SHOWN_MAX else "")
        super().__init__(f"table {table} has no {named}")


class Mean:
    """The mean of all rows that were read, as the default that says least."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._sum = np.zeros(shape, np.float64)
        self._count = 0

    def add(self, rows: Rows) -> None:
        self._sum += rows.sum(axis=0, dtype=np.float64)
        self._count += len(rows)

    @property
    def row(self) -> Rows:
        """float32 [*shape]; zeros before any row was seen."""
        return (self._sum / max(1, self._count)).astype(np.float32)


class Copies(Protocol):
    """Rows on the disk (``table_copies.py``)."""

    def note(self, ids: Ids) -> None:
        """These were read from the store just now."""

    def note_gone(self, ids: Ids) -> None:
        """The store had none of these just now."""

    async def find(
        self, ids: Ids, seconds: float, running: float
    ) -> tuple[Rows, NDArray[np.bool_], NDArray[np.float64]]:
        """Rows [n, *shape], which of them there are, and their ages in seconds. ``seconds``: in all; ``running``: of
        it, for what the disk itself takes."""


class Table:
    """One table. Belongs to one event loop."""

    def __init__(self, name: str, config: TableConfig, source: Source, ticker: Ticker, seed: bytes) -> None:
        """``seed``: a secret (see ``NearTable``)."""
        self.name = name
        self.config = config
        self.shape = tuple(config.shape)
        self._source = source
        self._ticker = ticker
        lives = Lives(float(config.ttl), float(config.max_stale), float(config.negative_ttl))
        shape = config.near(int(config.bytes_max))
        self.near = NearTable(shape, lives, seed)
        self.tracker = tracker_of(config, source, Heard(self._written, self.near.distrust), ticker)
        self._mean = Mean(self.shape)
        self.copies: Copies | None = None
        """Where earlier processes have left rows, and this one leaves its own."""
        self.rows_told: dict[str, int] = dict.fromkeys(("fresh", "stale", "snapshot", "absent", "lost"), 0)
        self._generation = 0
        self._told_fault = ""
        self.failures: dict[str, int] = {}
        self.lookups: dict[str, int] = dict.fromkeys(SOURCES, 0)
        self.lookup_seconds: dict[str, float] = dict.fromkeys(SOURCES, 0.0)

    @property
    def state(self) -> str:
        """The store's breaker's."""
        return self._source.store.state

    @property
    def is_live(self) -> bool:
        """Whether what is held may be called fresh: where writes are listened to, as long as they would be heard."""
        return self.tracker is None or self.tracker.live()

    async def run(self, interval: float, sleep: Sleep) -> None:
        """Listen for writes, if the configuration has it so; cancel it to stop."""
        if self.tracker is not None:
            await self.tracker.run()

    def purge(self) -> None:
        """No row that was read before now is used any more."""
        self.near.purge(self._ticker())

    def _written(self, keys: Sequence[bytes]) -> None:
        """These keys of the store were written by someone."""
        self.near.invalidate(self._source.keyed.ids(keys))

    def _heed(self) -> None:
        """Where the store is a file: whether another one has come in its place. Nothing that is held is fresh then."""
        file = self._source.file
        if file is None:
            return
        file.look()
        if file.generation != self._generation:
            self._generation = file.generation
            self.near.distrust()
            _log.info("table file replaced", table=self.name, path=self.config.lmdb)
        fault = "" if file.fault is None else file.fault.kind
        if fault != self._told_fault:
            self._told_fault = fault
            if file.fault is not None:
                self.failures[fault] = self.failures.get(fault, 0) + 1
                _log.warning("table file not taken: the one before is read", table=self.name, error=str(file.fault))

    async def look_up(self, ids: Ids, seconds: float) -> Looked:
        """The rows of these ids, in order, within ``seconds`` and the table's own timeout.

        Raises UnknownId, and UpstreamError where the store could not tell and there is neither an old row nor a
        default.
        """
        self._heed()
        now = self._ticker()
        gathered = self.near.find(ids, now)
        state = gathered.state
        if not self.is_live:
            state = np.where(state == FRESH, STALE, np.where(state == ABSENT, MISSING, state))
        fits = self._fits(ids, gathered.fits)
        if not fits.all():
            state = np.where(fits, state, ABSENT)
        wanted = np.flatnonzero((state == MISSING) | (state == STALE))
        if not len(wanted):
            self._took("memory", now)
            return self._looked(ids, np.asarray(gathered.rows, np.float32), state, gathered.age)
        rows = np.array(gathered.rows, np.float32)
        age, state = gathered.age.copy(), state.copy()
        asked = _taken(ids, wanted)
        untold = self._source.untold()
        failure: StoreError | None = None
        try:
            found = await self._read(asked, min(seconds, self._source.timeout), untold)
        except StoreError as error:
            failure = error
            self.failures[error.kind] = self.failures.get(error.kind, 0) + 1
        else:
            read, present, absent, failure = found
            rows[wanted[present]], state[wanted[present]], age[wanted[present]] = read[present], FRESH, 0.0
            state[wanted[absent]] = ABSENT
            if self._source.untold() != untold:  # of a server that may be the wrong one
                state[wanted[present]], state[wanted[absent]] = STALE, MISSING
                failure = failure or StoreError("unavailable", "nobody has told in time which server is to be asked")
        if failure is not None and self.copies is not None:
            lost = np.flatnonzero(state == MISSING)
            spent = self._ticker() - now
            running = max(min(seconds, self._source.timeout) - spent, COPIES_SECONDS)
            in_all = max(running, COPIES_SHARE * (seconds - spent))
            copied, there, ages = await self.copies.find(_taken(ids, lost), in_all, running)
            places = lost[there]
            rows[places], state[places], age[places] = copied[there], COPIED, ages[there]
        self._took("store", now)
        return self._looked(ids, rows, state, age, failure)

    def _fits(self, ids: Ids, fits: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of these can be ids of this table; the store is not asked for the others, whatever lies there under
        such a key. ``fits``: which the near cache could hold, and that is a few bytes more."""
        if isinstance(ids, np.ndarray) or self.config.ids == "integer":
            return fits
        return np.fromiter(map(len, ids), np.int64, len(ids)) <= self.config.id_bytes_max

    def _took(self, source: str, began: float) -> None:
        """Count a look-up, and how long it kept its request waiting."""
        self.lookups[source] += 1
        self.lookup_seconds[source] += self._ticker() - began

    async def close(self) -> None:
        """Give back the store; a file is shared with other tables, and stays open (see ``Sources``)."""
        if not self.config.lmdb:
            await self._source.store.close()

    async def _read(
        self, ids: Ids, seconds: float, untold: int
    ) -> tuple[Rows, NDArray[np.bool_], NDArray[np.bool_], StoreError | None]:
        """Ask the store, and hold what it says: rows, which are there, which it does not have, and why not others. Of a
        server that may be the wrong one (``Source.untold`` has grown beyond ``untold``) no copies are made, and nobody
        believes that it does not have something."""
        source = self._source
        began, ticket = self._ticker(), self.near.ticket()
        values: list[Found] = await source.store.get_many(source.keyed.keys(ids), seconds)
        decoded = source.codec.decode(values)
        rows = decoded.rows.astype(np.float32, copy=False)
        present = decoded.found
        absent = np.array([value is None for value in values], np.bool_)
        is_told = source.untold() == untold
        if present.any():
            there = np.flatnonzero(present)
            self._mean.add(rows[there])
            self.near.put(_taken(ids, there), rows[there], began, ticket)
            if self.copies is not None and is_told:
                self.copies.note(_taken(ids, there))
        if absent.any() and is_told:
            gone = _taken(ids, np.flatnonzero(absent))
            self.near.put_absent(gone, began, ticket)
            if self.copies is not None:
                self.copies.note_gone(gone)
        kinds = Counter([fault.kind for fault in decoded.faults.values()])
        for kind, count in kinds.items():
            self.failures[kind] = self.failures.get(kind, 0) + (count if kind in OF_ONE_KEY else 1)
        return rows, present, absent, next(iter(decoded.faults.values()), None)

    def _looked(
        self,
        ids: Ids,
        rows: Rows,
        state: NDArray[np.uint8],
        age: NDArray[np.float64],
        failure: StoreError | None = None,
    ) -> Looked:
        """Put defaults where there is nothing, and count."""
        without = (state == ABSENT) | (state == MISSING)
        if without.any():
            default = self._default()
            if default is None:
                self._refuse(ids, state, failure)
            else:
                rows = rows if rows.flags.writeable else rows.copy()
                rows[without] = default
        counts = np.bincount(state, minlength=COPIED + 1)
        here = ~without
        told = TableTold(
            self.name,
            fresh=int(counts[FRESH]),
            stale=int(counts[STALE]),
            absent=int(counts[ABSENT]),
            lost=int(counts[MISSING]),
            age=float(age[here].max()) if here.any() else 0.0,
            snapshot=int(counts[COPIED]),
        )
        for word in self.rows_told:
            self.rows_told[word] += getattr(told, word)
        return Looked(rows, told)

    def _default(self) -> Rows | None:
        """What stands for a row that is not there: float32 [*shape], if anything does."""
        match self.config.default:
            case "error":
                return None
            case "zeros":
                return np.zeros(self.shape, np.float32)
            case "mean":
                return self._mean.row
            case number:
                return np.full(self.shape, number, np.float32)

    def _refuse(self, ids: Ids, state: NDArray[np.uint8], failure: StoreError | None) -> None:
        """Raise for the rows that are not here: the store's failure before the caller's."""
        if (state == MISSING).any():
            assert failure is not None, "what is missing was asked for"
            kind = FAILURES.get(failure.kind, Failure.BROKEN)
            raise UpstreamError(kind, f"table {self.name}: {failure}", before_answer=True)
        unknown = _taken(ids, np.flatnonzero(state == ABSENT))
        raise UnknownId(self.name, [_shown(each) for each in unknown])


def _shown(each: bytes | np.int64) -> str:
    if not isinstance(each, bytes):
        return str(each)
    shown = each[: 4 * SHOWN_CHARACTERS_MAX].decode(errors="replace")  # four bytes of a character at most
    return shown if len(shown) <= SHOWN_CHARACTERS_MAX else f"{shown[:SHOWN_CHARACTERS_MAX]}..."


def _taken(ids: Ids, places: NDArray[np.intp]) -> Ids:
    if isinstance(ids, np.ndarray):
        return ids[places]
    return [ids[place] for place in places.tolist()]
