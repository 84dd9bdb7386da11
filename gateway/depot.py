"""Where lies what outlives a process: a seam, for a gateway in virtual time has no disk and no threads.

Rule of this file: what of the disk `Snapshots` uses, and this machine's own. Nothing is decided here.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import msgspec

from cache.stores.files import FileStore
from cache.stores.store import Store
from degrade.deadline import Ticker
from degrade.generation import Pairs
from degrade.record import Good, Terms, V
from degrade.snapshot import Snapshot, SnapshotOptions
from gateway.purges import WORDS

Key = bytes
"""So called where ``bytes`` is a number."""


class Directory(Protocol):
    """Records in generations, and what has come of them; a Snapshot in life, which says what each of these is."""

    folder: Path
    options: SnapshotOptions
    failures: Counter[str]
    rejected: Counter[str]
    quarantined: Counter[str]
    aside: int
    records: int
    bytes: int
    written_at: float
    rotations: int

    @property
    def generations(self) -> int: ...
    def open(self) -> None: ...
    def find(self, kind: str, source: str, key: Key, terms: Terms[V], now: float) -> Good[V] | None: ...
    def write(self, pairs: Pairs, now: float, ends: Pairs = ()) -> str: ...
    def settle(self) -> None: ...
    def close(self) -> None: ...


class Depot(msgspec.Struct, frozen=True):
    """``directory``: records; ``words``: small values beside them; ``writer`` and ``reader`` wait for the disk."""

    directory: Directory
    words: Store
    writer: Executor
    reader: Executor


def depot(folder: Path, options: SnapshotOptions, wall: Ticker) -> Depot:
    """A folder of this host's. ``wall``: Unix seconds."""
    words = FileStore(folder / WORDS, wall)
    writer, reader = (ThreadPoolExecutor(1, thread_name_prefix=f"snapshot-{what}") for what in ("writes", "reads"))
    return Depot(Snapshot(folder, options), words, writer, reader)
