"""A snapshot: validated copies on disk of what was last known good, in several generations within a bound of bytes.

    PATH/lock                     who writes has it, for as long as he writes
    PATH/0000000007.mdb           generations: the last one grows, the others are only read
    PATH/quarantine/0000000005.checksum.mdb

A record is looked for in the last generation first. One that is not whole, or not what its reader can use, is not
there, and the generation before may have a better one. When the last generation is full, or older than this process,
a new one begins, and the oldest ones go where the bound wants it.

Rule of this file: it knows bytes, names and files, and no model. Nothing here raises: what cannot be read is not there,
what cannot be written is a word, and both are counted. `open` and `write` block on the disk, so they are a thread's;
`find` and `settle` are the event loop's.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from cache.stores.files import make_folder
from cache.stores.lmdb import mapped
from cache.stores.store import StoreError
from degrade.directory import SUFFIX, announce, announced, generations, locked, number_of, path_of, remove
from degrade.generation import Generation, Pairs
from degrade.inspection import InspectionOptions, inspect, opened
from degrade.record import REASONS, Good, Terms, V, judged, name_of, unpacked

QUARANTINE: Final = "quarantine"
GENERATIONS_MAX: Final = 16
"""Files that a look-up may have to ask: each costs some microseconds."""


class SnapshotOptions(msgspec.Struct, frozen=True):
    """``bytes_max``: on the disk, of all files. ``generations``: how many full ones that are. ``drift_max``: the share
    of a generation's records that may be broken before none of them is believed. ``inspection_seconds_max``: what
    looking through it may take at the start; what has not been looked at is not used."""

    bytes_max: int
    generations: int = 3
    drift_max: float = 0.01
    inspection_seconds_max: float = 10.0

    @property
    def generation_bytes_max(self) -> int:
        return self.bytes_max // self.generations


class Snapshot:
    """One directory, as one process uses it."""

    def __init__(self, folder: Path, options: SnapshotOptions) -> None:
        self.folder = folder
        self.options = options
        self.failures: Counter[str] = Counter()
        """What the disk did not do, by `StoreError`'s kinds."""
        self.rejected: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        """Records that were not used, by reason."""
        self.quarantined: Counter[str] = Counter()
        """Generations that this process has put aside, by reason."""
        self.aside = 0
        """Files that lie there, whoever put them there, as of the last look."""
        self.records = 0
        """Of the last generation."""
        self.written_at = 0.0
        """When the last commit was, of any process, or when there was nothing to commit; Unix seconds."""
        self.bytes = 0
        """On the disk, as of the last look."""
        self.rotations = 0
        self._generations: tuple[Generation, ...] = ()  # the last one first
        self._left: list[Generation] = []
        self._given_up: set[int] = set()
        self._before = 0  # numbers up to this are older than we are
        self._last = 0  # the highest number seen: none comes again, whatever happens to the directory

    @property
    def generations(self) -> int:
        """How many are read."""
        return len(self._generations)

    def open(self) -> None:
        """Look through what is there, and open what is good; the rest is put aside with a reason."""
        options = self.options
        try:
            with mapped(self.folder):
                make_folder(self.folder)
                files = generations(self.folder)
            self._before = self._last = max(map(number_of, files), default=0)
            good: set[int] = set()
            if files:
                bounds = InspectionOptions(
                    options.generation_bytes_max, options.drift_max, options.inspection_seconds_max
                )
                inspected = inspect(self.folder, bounds)
                if inspected.fault:
                    self.failures[inspected.fault] += 1
                for verdict in inspected.verdicts.values():
                    if verdict.reason:
                        self._put_aside(verdict.number, verdict.reason)
                good = {number for number, verdict in inspected.verdicts.items() if verdict.reason == ""}
            with mapped(self.folder):
                self._take(good)
        except StoreError as error:
            self.failures[error.kind] += 1

    def find(self, kind: str, source: str, key: bytes, terms: Terms[V], now: float) -> Good[V] | None:
        """What is kept under a key, if it is good, read. ``now``: Unix seconds."""
        name = name_of(kind, source, key)
        for generation in self._generations:
            try:
                held = generation.get(name)
            except StoreError as error:
                self.failures[error.kind] += 1
                continue
            if held is None:
                continue
            found = judged(unpacked(name, held), terms, now)
            if not isinstance(found, str):
                return found
            self.rejected[found] += 1
        return None

    def write(self, pairs: Pairs, now: float, ends: Pairs = ()) -> str:
        """Write sealed records under their names, all or none: "written"; "idle" if there are none, and a generation to
        write to is there; "busy" if another process is at it; or why not, one of `StoreError`'s kinds. ``now``: Unix
        seconds. ``ends``: records without a payload, written only where there is one that they put an end to."""
        try:
            with mapped(self.folder):
                make_folder(self.folder)
                with locked(self.folder) as ours:
                    if not ours:
                        return "busy"
                    outcome = self._write(pairs, now, ends)
        except StoreError as error:
            self.failures[error.kind] += 1
            return error.kind
        self.written_at = max(self.written_at, now)
        return outcome

    def settle(self) -> None:
        """Close what is not read any more. Not while somebody reads."""
        left, self._left = self._left, []
        for generation in left:
            generation.close()

    def close(self) -> None:
        self._left += self._generations
        self._generations = ()
        self.settle()

    def look(self) -> None:
        """See what other processes have done to the directory."""
        try:
            with mapped(self.folder):
                self._take(frozenset())
        except StoreError as error:
            self.failures[error.kind] += 1

    def _write(self, pairs: Pairs, now: float, ends: Pairs) -> str:
        self._take(frozenset())
        if ends:
            pairs = [*pairs, *(end for end in ends if self._has_payload(end[0]))]
        last = self._generations[0] if self._generations else None
        if last is not None and last.is_writable:
            if not pairs:
                return "idle"  # a commit waits for the disk, even one of nothing
            try:
                self._put(last, pairs, now)
                return "written"
            except StoreError as error:
                if error.kind == "corrupt":  # LMDB gives up a file whose last page it could not write
                    self._give_up(last)
                elif error.kind != "full" or last.bytes < self.options.generation_bytes_max // 2:
                    raise  # the disk's fault, and not the generation's bound
        fresh = self._begin()
        try:
            self._put(fresh, pairs, now)
            with mapped(self.folder):
                announce(self.folder, fresh.number)
        except StoreError:
            self._left.append(fresh)
            with contextlib.suppress(OSError):
                remove(fresh.path)  # an empty one would be in the place of one that is not
            raise
        self._generations = (fresh, *self._generations)
        self.rotations += 1
        self._count()
        return "written"

    def _has_payload(self, name: bytes) -> bool:
        """Whether the last record under a name has one, whatever it is worth."""
        for generation in self._generations:
            try:
                held = generation.get(name)
            except StoreError:
                return True  # nobody can tell, and an end too many costs little
            record = None if held is None else unpacked(name, held)
            if record is not None:
                return bool(record.payload)
        return False

    def _give_up(self, generation: Generation) -> None:
        """Not to be opened again in this process; the next one looks through it."""
        self._given_up.add(generation.number)
        self._generations = tuple([each for each in self._generations if each is not generation])
        self._left.append(generation)

    def _put(self, generation: Generation, pairs: Pairs, now: float) -> None:
        self.records = generation.put(pairs, now)

    def _begin(self) -> Generation:
        """A new generation, and room for it."""
        bound = self.options.generation_bytes_max
        self._make_room(self.options.bytes_max - bound)
        self._last += 1
        return Generation(path_of(self.folder, self._last), bound, writable=True)

    def _make_room(self, bytes_max: int) -> None:
        """Remove what was put aside, and then the oldest generations, until the others have ``bytes_max`` at most."""
        files = [*_aside(self.folder), *generations(self.folder)]
        sizes = {path: path.stat().st_size for path in files}
        while files and (sum(sizes[path] for path in files) > bytes_max or len(files) >= GENERATIONS_MAX):
            remove(files.pop(0))
        kept = set(files)
        self._left += [each for each in self._generations if each.path not in kept]
        self._generations = tuple([each for each in self._generations if each.path in kept])

    def _take(self, good: set[int] | frozenset[int]) -> None:
        """Read what is there: generations that are open already, those of ``good``, and those that others like us have
        made since we are here. What else has come is looked through at the next start."""
        held = {each.number: each for each in self._generations if each.is_there}
        files = generations(self.folder)
        made = announced(self.folder) if files and number_of(files[-1]) > self._before else {}
        numbers = [number_of(path) for path in files]
        self._last = max([self._last, *numbers])
        found: list[Generation] = []
        for path, number in zip(files, numbers, strict=True):
            is_new = number > self._before and number in made and made[number] == _inode(path)
            if number in held:
                found.append(held.pop(number))
            elif (number in good or is_new) and number not in self._given_up:
                try:
                    found.append(self._opened(path, is_new, number == numbers[-1]))
                except FileNotFoundError:
                    continue
                except StoreError as error:  # the others are there all the same, and what has gone is closed
                    self.failures[error.kind] += 1
        kept = set(map(id, found))
        self._left += [each for each in self._generations if id(each) not in kept]
        self._generations = tuple(reversed(found))
        self._count()

    def _opened(self, path: Path, is_new: bool, is_last: bool) -> Generation:
        bound = self.options.generation_bytes_max
        if is_new:
            with contextlib.suppress(StoreError):
                return Generation(path, bound, writable=True)
        return opened(path, bound, is_last)

    def _count(self) -> None:
        """Look at the last generation's manifest, at sizes, and at what lies aside. Raises OSError."""
        self.aside = len(_aside(self.folder))
        self.bytes = sum(each.bytes for each in self._generations)
        manifest = self._generations[0].manifest if self._generations else None
        self.records = 0 if manifest is None else manifest.records
        if manifest is not None:
            self.written_at = max(self.written_at, manifest.written_at)

    def _put_aside(self, number: int, reason: str) -> None:
        """Where it is not in anybody's way, and can be looked at."""
        self.quarantined[reason] += 1
        path, aside = path_of(self.folder, number), self.folder / QUARANTINE
        with contextlib.suppress(OSError):  # then it stays, and is not opened
            aside.mkdir(exist_ok=True)
            os.replace(path, aside / f"{number:010d}.{reason}.mdb")
            remove(path)


def _aside(folder: Path) -> list[Path]:
    """What was put aside, the oldest first. Raises OSError."""
    return sorted((folder / QUARANTINE).glob(f"*{SUFFIX}"))


def _inode(path: Path) -> int | None:
    """None: the file has gone."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def pruned(folder: Path, kept: int, seconds: float) -> Sequence[Path]:
    """Remove what was put aside, and all but the last ``kept`` generations; what was removed. Raises OSError, and
    StoreError("timeout") if another process has been writing for so many ``seconds``."""
    with locked(folder, seconds) as ours:
        if not ours:
            told = f"{folder}: another process has been writing for {seconds:g} s; nothing was removed"
            raise StoreError("timeout", told)
        files = generations(folder)
        gone = [*_aside(folder), *files[: max(0, len(files) - kept)]]
        for path in gone:
            remove(path)
    return gone
