"""Copies of a table's rows in the snapshot: a record for each, so that one that is damaged costs itself alone.

Rule of this file: as ``copies.py``, for rows. A row needs no word: nobody can tell whether it has been written since,
so it is an old one whenever it is read of here, and it says its age. Of one that the store has no more its copy is no
more: a record without a payload lies in its place, for what was deleted must not come back when the store is away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from cache.journal import Journal
from cache.table import ABSENT, MISSING, NearTable
from degrade.calendar import Calendar
from degrade.deadline import Ticker
from degrade.record import Record, Terms, age, name_of, packed
from gateway.config_tables import TableConfig
from gateway.copies import FINGERPRINT_BYTES, KEYS_MAX, TURN_BYTES, Pending, Records
from gateway.purges import Purges
from gateway.reads import LOOK_SECONDS_MAX, LookTime
from gateway.stores import bounds_of

LAYOUT: Final = 2
DECIDING: Final = ("key", "ids", "shape", "dtype", "fields", "feast")
"""What of a table says which rows it has, and what their numbers mean; which server has it does not."""
ROWS_AT_ONCE: Final = 128
"""Read in one look: some 2 ms."""

BESIDE_BYTES: Final = 256
"""Of a record, with its place in a file, beside the row itself; more only of long ids."""

Ids = NDArray[np.int64] | Sequence[bytes]
Id = int | bytes
Rows = NDArray[np.float32]

_GONE: Final = np.empty(0, np.float32)
"""What a record without a payload says."""


class RowCopies:
    """One table's. Belongs to one event loop."""

    def __init__(self, name: str, config: TableConfig, records: Records, calendar: Calendar, ticker: Ticker) -> None:
        bounds = bounds_of(config)
        row_bytes = int(np.prod(config.shape, dtype=np.int64)) * 4

        def read(payload: bytes) -> Rows | None:
            if not payload:
                return _GONE
            if len(payload) != row_bytes:
                return None
            row = np.frombuffer(payload, "<f4")
            return None if bounds.broken(row[np.newaxis]).any() else row

        self._source = f"tables/{name}"
        self._shape = tuple(config.shape)
        self._row_bytes = row_bytes
        self._terms = Terms(_fingerprint(name, config), float(config.ttl) + float(config.max_stale), read)
        self._records = records
        self._calendar = calendar
        self._ticker = ticker
        self._near: NearTable | None = None
        self._purges: Purges | None = None
        self._journal: Journal[Id] = Journal(KEYS_MAX)
        self._sweep: Iterator[bytes | None] | None = None
        self._sweep_rows = 0
        self._taken: list[Id] = []
        self._gone: Journal[bytes] = Journal(KEYS_MAX)
        self._gone_taken: dict[bytes, None] = {}

    def watch(self, near: NearTable, purges: Purges | None = None) -> None:
        """``purges``: of every row there is; None: nobody purges."""
        self._near, self._purges = near, purges

    def note(self, ids: Ids) -> None:
        """These were read from the store just now."""
        self._journal.note_all(_each(ids))
        if len(self._gone) or self._gone_taken:
            keys = [_key(each) for each in _each(ids)]
            self._gone.drop(keys)
            for key in keys:
                self._gone_taken.pop(key, None)

    def note_gone(self, ids: Ids) -> None:
        """The store had none of these just now."""
        self._gone.note_all(map(_key, _each(ids)))

    async def find(
        self, ids: Ids, seconds: float, running: float
    ) -> tuple[Rows, NDArray[np.bool_], NDArray[np.float64]]:
        """Rows [n, *shape], which of them there are, and their ages in seconds. After ``seconds`` the others are not
        looked for, nor after ``running`` in which nothing was found: see ``LookTime``."""
        rows = np.zeros((len(ids), *self._shape), np.float32)
        there, ages = np.zeros(len(ids), np.bool_), np.zeros(len(ids), np.float64)
        until, now, terms = self._ticker() + seconds, self._calendar.now(), self._terms_now()
        if terms is None:
            return rows, there, ages
        keys = [_key(each) for each in _each(ids)]
        for begin in range(0, len(keys), ROWS_AT_ONCE):
            began = self._ticker()
            left = until - began
            if begin and (left <= 0.0 or running <= 0.0):
                break
            some = keys[begin : begin + ROWS_AT_ONCE]
            time = LookTime(min(LOOK_SECONDS_MAX, left), running)
            told = await self._records.read("feature", self._source, some, terms, now, time)
            if not any(told):  # of a disk that hangs one look is waited for, and not one for each so many rows
                running -= self._ticker() - began
            for place, found in enumerate(told, begin):
                if found is not None and len(found.value) and not self._is_gone(keys[place]):
                    rows[place] = found.value.reshape(self._shape)
                    there[place], ages[place] = True, age(found.record, now)
        return rows, there, ages

    def __len__(self) -> int:
        return len(self._journal) + len(self._gone) + (self._sweep is not None)

    @property
    def forgotten(self) -> int:
        return self._journal.forgotten  # ids that nobody has come in floods, and there is nothing to forget of most

    def take(self, count: int) -> list[Pending] | None:
        if self._near is None or not len(self):
            return None
        count = min(count, max(1, TURN_BYTES // self._row_bytes))
        gone = dict.fromkeys(self._gone.take(count - count // 2))  # ids that nobody has may come in floods
        self._gone_taken |= gone
        count -= len(gone)
        taken = self._journal.take(count)
        taken += self._swept(count - len(taken))
        self._taken += taken
        keys = [_key(each) for each in taken]
        gathered = self._near.peek(keys, self._ticker())
        rows, now = np.asarray(gathered.rows, "<f4"), self._calendar.now()
        made = [self._pending(key, b"", 0.0, now) for key in gone]
        for key, row, state, old in zip(keys, rows, gathered.state.tolist(), gathered.age.tolist(), strict=True):
            if state not in (MISSING, ABSENT):
                made.append(self._pending(key, row.tobytes(), max(0.0, old), now))
        return made

    def _swept(self, count: int) -> list[bytes]:
        """What so many steps of the sweep find."""
        if self._sweep is None or not count:
            return []
        steps = list(islice(self._sweep, min(count, self._sweep_rows)))
        found = [key for key in steps if key is not None]
        self._sweep_rows -= len(found)
        if not steps:
            self._sweep = None
        return found

    def again(self) -> None:
        taken, self._taken = self._taken, []
        self._journal.note_all(taken)
        gone, self._gone_taken = self._gone_taken, {}
        self._gone.note_all(gone)

    def written(self) -> None:
        self._taken = []
        self._gone_taken = {}

    def sweep(self, bytes_max: int) -> None:
        self._sweep = None if self._near is None else self._near.used()
        self._sweep_rows = bytes_max // (self._row_bytes + BESIDE_BYTES)

    def _pending(self, key: bytes, row: bytes, old: float, now: float) -> Pending:
        record = Record("feature", self._source, key, self._terms.fingerprint, b"", now - old, now, row)
        return Pending(name_of("feature", self._source, key), packed(record), is_end=not row)

    def _terms_now(self) -> Terms[Rows] | None:
        """What a copy must be now; None as long as nobody knows what was purged."""
        if self._purges is None:
            return self._terms
        at = self._purges.at
        return None if at is None else msgspec.structs.replace(self._terms, made_after=at)

    def _is_gone(self, key: bytes) -> bool:
        """Whether that is known, and not written yet."""
        return key in self._gone or key in self._gone_taken


def _fingerprint(name: str, config: TableConfig) -> bytes:
    told = msgspec.to_builtins(config, enc_hook=str)
    deciding = {key: told[key] for key in DECIDING}
    written = msgspec.msgpack.encode(("tailrace row", LAYOUT, name, deciding), order="sorted")
    return blake3(written).digest(FINGERPRINT_BYTES)


def _each(ids: Ids) -> Sequence[Id]:
    return ids.tolist() if isinstance(ids, np.ndarray) else ids


def _key(each: Id) -> bytes:
    """A number and its digits are one key, as in the near cache: callers may give either."""
    return b"%d" % each if isinstance(each, int) else each
