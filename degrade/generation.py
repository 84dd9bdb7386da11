"""One generation of a snapshot: an LMDB file of sealed records, and how many of them there must be.

Rule of this file: bytes under names. It raises `StoreError` and nothing else, and never decides what a record is worth.
A generation is written by whoever has the directory's lock, in transactions: each is there as a whole or not at all,
whenever a process is killed. It does not grow beyond its bound: what finds no room is "full", and a new generation
begins.

LMDB believes what its file says, and a file may be damaged: whoever opens one that was not made during its own life has
it looked through first, by a process that may die of it (``inspection.py``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from cache.sealed import value_of
from cache.stores.lmdb import mapped
from cache.stores.lmdb_file import LmdbOptions, Place, environment_of
from cache.stores.store import StoreError
from degrade.directory import number_of
from degrade.record import Record, name_of, packed, seal, unpacked

READERS_MAX: Final = 512
"""Of all processes of a host: each has one thread that reads."""
MANIFEST: Final = name_of("manifest", "", b"")

Pairs = Sequence[tuple[bytes, bytes]]
"""Names and sealed records."""


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """What a generation says of itself, as of its last commit. ``records``: how many, without this one;
    ``written_at``: when that was, Unix seconds."""

    records: int
    written_at: float


class Generation:
    """An open generation. ``bytes_max``: its bound, the same in every process that opens it."""

    def __init__(self, path: Path, bytes_max: int, writable: bool = False, alone: bool = False) -> None:
        """``alone``: nobody writes it any more, so it needs no lock, and can be read from a disk that takes none."""
        self.path = path
        self.is_writable = writable
        with mapped(path):
            self._environment = environment_of(Place(path, writable, LmdbOptions(bytes_max, READERS_MAX, alone)))
            self._file = path.stat().st_ino
        self._pulse: int | None = None
        if not alone:
            with contextlib.suppress(OSError):  # of a disk that is read-only
                self._pulse = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def get(self, name: bytes) -> bytes | None:
        """What lies under a name. Where the file system is frozen this waits, and other threads go on."""
        with mapped(self.path):
            if self._pulse is not None:
                # LMDB notes in its lock file that somebody reads. Where that waits for the disk, py-lmdb waits with all
                # of the interpreter; so nothing is written first, in a call that waits likewise and lets others go on.
                os.pwrite(self._pulse, b"", 0)
            with self._environment.begin() as transaction:
                held: bytes | None = transaction.get(name)
                return held

    def put(self, pairs: Pairs, now: float) -> int:
        """Write all of them, or none; how many records there are then. ``now``: Unix seconds."""
        with mapped(self.path):
            self._environment.reader_check()  # places of readers that were killed
            with self._environment.begin(write=True) as transaction:
                with transaction.cursor() as cursor:
                    cursor.putmulti(pairs)
                known = transaction.get(MANIFEST) is not None
                records = int(transaction.stat(self._environment.open_db(None, transaction))["entries"]) - known
                transaction.put(MANIFEST, seal(MANIFEST, packed(_manifest(records, now))))
        return records

    def walk(self) -> Iterator[tuple[bytes, bytes]]:
        """Every name with what lies under it, but the manifest, in order. Raises StoreError("corrupt") where the
        order is broken, or a name does not lead where it stands."""
        with mapped(self.path), self._environment.begin() as transaction, transaction.cursor() as cursor:
            before = b""
            for name, held in cursor:
                if name <= before or transaction.get(name) != held:
                    raise StoreError("corrupt", f"{self.path}: its names are out of order")
                before = name
                if name != MANIFEST:
                    yield name, held

    @property
    def manifest(self) -> Manifest | None:
        """What it says of itself; None if nothing, or nothing that is whole. Raises StoreError."""
        held = self.get(MANIFEST)
        record = None if held is None else unpacked(MANIFEST, held)
        return None if record is None else value_of(Manifest, record.payload)

    @property
    def number(self) -> int:
        return number_of(self.path)

    @property
    def bytes(self) -> int:
        """On the disk; 0 if it is gone."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    @property
    def is_there(self) -> bool:
        """Whether its file is still the one that its path leads to."""
        try:
            return self.path.stat().st_ino == self._file
        except OSError:
            return False

    def close(self) -> None:
        self._environment.close()
        if self._pulse is not None:
            os.close(self._pulse)
            self._pulse = None


def _manifest(records: int, now: float) -> Record:
    return Record("manifest", "", b"", b"", b"", now, now, msgspec.msgpack.encode(Manifest(records, now)))
