"""`tailrace snapshot`: a look at copies on the disk, and their way to another host and back.

Rule of this file: it prints and calls; it runs beside gateways that use the same directory, and takes its lock where it
writes. Files that may be damaged are looked through first, as a gateway does.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import itertools
import math
import os
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec
from blake3 import blake3

from cache.stores.files import FileStore
from cache.stores.lmdb import mapped
from cache.stores.store import StoreError
from degrade import portable
from degrade.directory import generations, number_of, path_of
from degrade.generation import Generation
from degrade.inspection import Inspected, InspectionOptions, Verdict, inspect, opened
from degrade.record import SKEW_SECONDS_MAX, Record, age, packed, seal, unpacked
from degrade.snapshot import QUARANTINE, Snapshot, SnapshotOptions, pruned
from gateway.config_snapshot import SnapshotConfig
from gateway.copies import SERVERS_BYTES
from gateway.purges import WORDS, mark_keys, purged_at
from gateway.units import Size

WELL: Final = 0
UNFIT: Final = 1
SECONDS_MAX: Final = 600.0
"""For looking through all files: nobody waits but who asked."""
BATCH_RECORDS: Final = 1024
WAIT_SECONDS: Final = 10.0
"""For whoever is writing: a gateway's commit takes a tenth of a second."""
TRY_SECONDS: Final = 0.1
STANDARD: Final = "-"
"""For standard output."""
MADE_BYTES: Final = 24
"""Of the word that stands for another host's: longer than what says of servers alone."""


class Tool:
    """The commands, on one configured directory."""

    def __init__(self, config: SnapshotConfig) -> None:
        self._folder = Path(config.path)
        self._purges: dict[str, float] = {}
        self._options = SnapshotOptions(
            int(config.bytes_max), config.generations, inspection_seconds_max=SECONDS_MAX
        )

    def run(self, chosen: argparse.Namespace) -> int:
        """One command; its exit code."""
        match chosen.verb:
            case "ls":
                return self.ls(chosen.json)
            case "verify":
                return self.verify()
            case "export":
                return self.export(chosen.file)
            case "import":
                return self.bring(Path(chosen.file))
            case _:
                return self.prune(chosen.keep)

    def ls(self, as_json: bool) -> int:
        """Every source, with how many records, how many bytes and how old."""
        counts, sizes = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        ages: dict[tuple[str, str], tuple[float, float]] = {}
        now = time.time()
        inspected = self._inspected()
        for _, held, record in self._records(_good(inspected)):
            what, old = (record.source, record.kind), age(record, now)
            counts[what] += 1
            sizes[what] += len(held)
            youngest, oldest = ages.get(what, (old, old))
            ages[what] = min(youngest, old), max(oldest, old)
        rows = [
            {"source": source, "kind": kind, "records": counts[source, kind], "bytes": sizes[source, kind],
             "youngest_seconds": round(ages[source, kind][0], 1), "oldest_seconds": round(ages[source, kind][1], 1)}
            for source, kind in sorted(counts)
        ]  # fmt: skip
        if as_json:
            print(msgspec.json.encode(rows).decode())
            return self._complain(inspected)
        print(f"{'source':<32} {'kind':<10} {'records':>9} {'bytes':>12}  age (youngest to oldest)")
        for row in rows:
            ages_told = f"{row['youngest_seconds']} s to {row['oldest_seconds']} s"
            print(f"{row['source']:<32} {row['kind']:<10} {row['records']:>9} {row['bytes']:>12}  {ages_told}")
        return self._complain(inspected)

    def verify(self) -> int:
        """Look through every file, and say what is wrong."""
        inspected = self._inspected()
        verdicts = sorted(inspected.verdicts.values(), key=lambda verdict: verdict.number)
        if inspected.fault:
            print(f"{self._folder}: {inspected.fault}")
        for verdict in verdicts:
            told = f"good, {verdict.records} records" if verdict.reason == "" else _reason(verdict)
            print(f"{verdict.number:010d}.mdb  {told}")
        aside = self._folder / QUARANTINE
        for path in sorted(aside.glob("*.mdb")) if aside.is_dir() else ():
            print(f"{QUARANTINE}/{path.name}  put aside earlier")
        return WELL if not inspected.fault and all(verdict.reason == "" for verdict in verdicts) else UNFIT

    def export(self, target: str) -> int:
        """Every record that is good and was not purged, the last one of each name, as one file; "-": to standard
        output. Without any record nothing is written, for an earlier export is better than none."""
        inspected = self._inspected()
        code = self._complain(inspected)
        records = (
            (name, held)
            for name, held, record in self._records(_good(inspected))
            if record.made_at > self._purged_at(record.source)
        )
        first = next(records, None)
        if first is None:
            print(f"tailrace: {self._folder}: there is nothing to export; {target} was not written", file=sys.stderr)
            return UNFIT
        count, size = self._write(target, itertools.chain([first], records))
        print(f"{count} records in {target} ({size} bytes)", file=sys.stderr if target == STANDARD else sys.stdout)
        return code

    def _write(self, target: str, records: Iterator[tuple[bytes, bytes]]) -> tuple[int, int]:
        """How many records, and bytes. Raises OSError with the target's own name."""
        if target == STANDARD:
            with tempfile.TemporaryFile() as file:  # a reader gets all of it, or nothing
                count = portable.write(file, records)
                size = file.tell()
                file.seek(0)
                shutil.copyfileobj(file, sys.stdout.buffer)
                sys.stdout.buffer.flush()
            return count, size
        path = Path(target)
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "is no regular file, and is not replaced (standard output is -)", target)
        path = path.resolve()  # what a link leads to, and not the link
        try:
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                try:
                    count = portable.write(file, records)
                    size = file.tell()
                    file.flush()
                    os.fsync(file.fileno())
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, target) from error  # not a name that nobody has written
        return count, size

    def bring(self, source: Path) -> int:
        """The records of an export that are not here yet, or are younger than those that are."""
        with open(source, "rb") as file:
            try:
                count = portable.check(file)
            except portable.Damaged as damaged:
                print(f"tailrace: {source}: {damaged}; nothing was taken", file=sys.stderr)
                return UNFIT
            size, room = source.stat().st_size, self._options.bytes_max - self._options.generation_bytes_max
            if size > room:
                told = f"has {size} bytes, and snapshot.bytes_max ({Size(self._options.bytes_max)}) has room for {room}"
                print(f"tailrace: {source}: {told} of an import; raise it; nothing was taken", file=sys.stderr)
                return UNFIT
            file.seek(0)
            here = self._records(_good(self._inspected())) if self._folder.is_dir() else iter(())
            known = {name: record.made_at for name, _, record in here}
            snapshot = Snapshot(self._folder, self._options)
            snapshot.open()
            own = set(generations(self._folder)) if self._folder.is_dir() else set()
            with closing(snapshot):
                taken, kept, early = self._bring(snapshot, portable.read(file), known)
        gone = len(own - set(generations(self._folder))) if own else 0
        if gone:
            told = f"{gone} of the {len(own)} files that were here left for it; raise snapshot.bytes_max to keep more"
            print(f"tailrace: {self._folder}: {told}", file=sys.stderr)
        if early:
            told = f"{early} records were made in the future, by this host's clock, and would be of no use; left out"
            print(f"tailrace: {source}: {told}", file=sys.stderr)
        beside = f", {kept} not: this host has them as young" if kept else ""
        print(f"{taken} of {count} records taken{beside}; running gateways see them with their next pass")
        return WELL if taken + kept == count else UNFIT

    def prune(self, kept: int) -> int:
        """Remove what was put aside, and all but the last generations."""
        for path in pruned(self._folder, kept, WAIT_SECONDS):
            print(f"removed {path.name}")
        return WELL

    def _bring(
        self, snapshot: Snapshot, records: Iterator[tuple[bytes, bytes]], known: Mapping[bytes, float]
    ) -> tuple[int, int, int]:
        """How many were taken; how many were not because what is ``known`` was made no earlier, or because they were
        made later than now: none of those is ever used, and they would stand before good ones."""
        taken, kept, early, batch, size = 0, 0, 0, list[tuple[bytes, bytes]](), 0
        now = time.time()
        for name, held in itertools.chain(records, [(b"", b"")]):
            record = unpacked(name, held) if name else None
            if record is not None and record.made_at > now + SKEW_SECONDS_MAX:
                early += 1
            elif record is not None and record.made_at <= known.get(name, -math.inf):
                kept += 1
            elif record is not None:
                batch.append((name, _of_elsewhere(name, held, record)))
                size += len(held)
            is_full = len(batch) >= BATCH_RECORDS or size > self._options.generation_bytes_max // 16
            if batch and (is_full or not name):
                outcome = self._patiently(snapshot, batch, now)
                if outcome != "written":
                    print(f"tailrace: {self._folder}: {outcome}", file=sys.stderr)
                    break
                taken, batch, size = taken + len(batch), [], 0
        return taken, kept, early

    def _patiently(self, snapshot: Snapshot, batch: Sequence[tuple[bytes, bytes]], now: float) -> str:
        """Write, after whoever is writing now."""
        for _ in range(round(WAIT_SECONDS / TRY_SECONDS)):
            outcome = snapshot.write(batch, now)
            if outcome != "busy":
                return outcome
            time.sleep(TRY_SECONDS)
        return "busy"

    def _purged_at(self, source: str) -> float:
        """When what is copied of a source, or everything, was purged last, in Unix seconds."""
        if source not in self._purges:
            self._purges[source] = asyncio.run(self._purge_read(source))
        return self._purges[source]

    async def _purge_read(self, source: str) -> float:
        words = FileStore(self._folder / WORDS, time.time)
        try:
            found = await words.get_many(mark_keys(source), SECONDS_MAX)
            return max(map(purged_at, found), default=-math.inf)
        except struct.error:
            return math.inf
        finally:
            await words.close()

    def _inspected(self) -> Inspected:
        options = self._options
        bounds = InspectionOptions(options.generation_bytes_max, options.drift_max, SECONDS_MAX, renews=False)
        return inspect(self._folder, bounds)

    def _complain(self, inspected: Inspected) -> int:
        """Tell what could not be read; the exit code."""
        bad = [each for each in sorted(inspected.verdicts.values(), key=lambda each: each.number) if each.reason != ""]
        for verdict in bad:
            print(f"tailrace: {path_of(self._folder, verdict.number)}: {_reason(verdict)}; left out", file=sys.stderr)
        if inspected.fault:
            print(f"tailrace: {self._folder}: {inspected.fault}", file=sys.stderr)
        return UNFIT if bad or inspected.fault else WELL

    def _records(self, good: Sequence[int]) -> Iterator[tuple[bytes, bytes, Record]]:
        """Each record once, as the last generation that has it has it."""
        seen: set[bytes] = set()
        with mapped(self._folder):
            paths = [path for path in reversed(generations(self._folder)) if number_of(path) in good]
        for place, path in enumerate(paths):
            with closing(self._read(path, place == 0)) as generation:
                for name, held in generation.walk():
                    record = None if name in seen else unpacked(name, held)
                    if record is not None:
                        seen.add(name)
                        yield name, held, record

    def _read(self, path: Path, is_last: bool) -> Generation:
        return opened(path, self._options.generation_bytes_max, is_last)


def _of_elsewhere(name: bytes, held: bytes, record: Record) -> bytes:
    """The record without a word of the servers that were asked where it was made: the same addresses may be other
    servers here. What it says of their models is another word, that never holds here, and is one for those alone that
    had one: rows of one answer are of one and the same model, wherever it was."""
    if not record.word:
        return held
    word = blake3(record.word).digest(MADE_BYTES) if len(record.word) > SERVERS_BYTES else b""
    return seal(name, packed(msgspec.structs.replace(record, word=word)))


def _good(inspected: Inspected) -> list[int]:
    return [verdict.number for verdict in inspected.verdicts.values() if verdict.reason == ""]


def _reason(verdict: Verdict) -> str:
    return f"bad: {verdict.reason or 'it was not looked at to its end'}"


def run(config: SnapshotConfig, chosen: argparse.Namespace) -> int:
    """`tailrace snapshot VERB`; the exit code. Raises OSError."""
    try:
        return Tool(config).run(chosen)
    except StoreError as error:
        print(f"tailrace: {error}", file=sys.stderr)
        return UNFIT
