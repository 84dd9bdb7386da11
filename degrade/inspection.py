"""Generations looked through by a process that may die of it, before any other opens them.

LMDB follows what its pages say. A damaged file can lead it out of its memory, and then the process is gone. So a child
opens each file first, reads every record from both sides (in order, and by its name), and says what it found; a file at
which it dies, or hangs, is a bad one. What reads them later does the same reads, and no writes: pages that are free are
lists of their own which nobody has looked through, so nobody writes to a file that is older than himself.

So that many short lives leave no crumbs, the child copies what is good of the last generation into a new one, if that
is less than half full: whoever started it goes on writing there.

Rule of this file: both sides of that. The child (`main`) says a line before and after each file; `inspect` reads them.
It moves and judges nothing else.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from cache.stores.lmdb import mapped
from cache.stores.store import StoreError
from degrade.directory import announce, generations, locked, number_of, path_of, remove
from degrade.generation import Generation
from degrade.record import drifted, unpacked

RENEWED_SHARE_MAX: Final = 0.5
"""Of a generation's bound: what is fuller is left as it is, and a new one begins empty."""
COPIED_AT_ONCE: Final = 1024

_COMMAND: Final = (sys.executable, "-P", "-m", "degrade.inspection")  # -P: the current directory is not ours to import


class Verdict(msgspec.Struct, frozen=True):
    """What came of one file. ``reason`` None: it has only begun; "": it is good. ``records``: good ones."""

    number: int
    reason: str | None = None
    records: int = 0


class Inspected(msgspec.Struct, frozen=True):
    """The files by their numbers. ``fault``: why the last one was not renewed, or files were not looked at: one of
    `StoreError`'s kinds; "" if nothing was wrong."""

    verdicts: dict[int, Verdict]
    fault: str = ""


class InspectionOptions(msgspec.Struct, frozen=True):
    """``bytes_max``: each file's bound. ``drift_max``: the share of records that may be missing or broken."""

    bytes_max: int
    drift_max: float
    seconds_max: float
    renews: bool = True


def inspect(folder: Path, options: InspectionOptions) -> Inspected:
    """Look through every generation. Blocks for ``seconds_max`` at most; raises nothing."""
    until = time.monotonic() + options.seconds_max
    verdicts: dict[int, Verdict] = {}
    try:
        files = generations(folder)
    except OSError:
        return Inspected(verdicts, "unreachable")
    fault = ""
    for _ in range(len(files) + 1):  # each run that dies has found one file that is bad
        if not files:
            break
        skipped = [str(number) for number, verdict in verdicts.items() if verdict.reason]
        code, lines = _run(folder, options, skipped, max(0.0, until - time.monotonic()))
        said = [_line(line) for line in lines]
        verdicts |= {each.number: each for each in said if isinstance(each, Verdict)}
        fault = next((each for each in said if isinstance(each, str) and each), "")
        begun = next((number for number, verdict in verdicts.items() if verdict.reason is None), None)
        if code == 0 or begun is None:
            fault = fault if code == 0 else "unavailable"
            break
        verdicts[begun] = Verdict(begun, "hung" if code is None else "crash")
        if code is None:
            fault = "timeout"
            break
    return Inspected(verdicts, fault)


def _run(
    folder: Path, options: InspectionOptions, skipped: Sequence[str], seconds: float
) -> tuple[int | None, list[bytes]]:
    """The child's exit code (None: its time was over) and lines."""
    renews = "renew" if options.renews else "leave"
    arguments = [str(folder), str(options.bytes_max), repr(options.drift_max), renews, *skipped]
    try:
        done = subprocess.run([*_COMMAND, *arguments], stdout=subprocess.PIPE, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as late:
        return None, (late.stdout or b"").splitlines()
    except OSError:
        return 1, []
    return done.returncode, done.stdout.splitlines()


def _line(line: bytes) -> Verdict | str:
    """A verdict, or a fault's kind; "" for what is neither."""
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.json.decode(line, type=Verdict)
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.json.decode(line, type=str)
    return ""


# -- the child -------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """``FOLDER BYTES_MAX DRIFT_MAX renew|leave [NUMBER TO SKIP ...]``; a line for each file, twice."""
    folder, bytes_max, drift_max, renews, *skipped = arguments
    numbers = [number_of(path) for path in generations(Path(folder)) if str(number_of(path)) not in skipped]
    good = []
    for number in numbers:
        _say(Verdict(number))
        verdict = _judged(Path(folder), number, number == numbers[-1], (int(bytes_max), float(drift_max)))
        if not verdict.reason:
            good.append(number)
        _say(verdict)
    if renews == "renew" and good and good[-1] == numbers[-1]:
        try:
            renew(Path(folder), good[-1], int(bytes_max))
        except StoreError as error:
            _say(error.kind)
        except OSError:
            _say("refused")
    return 0


def renew(folder: Path, number: int, bytes_max: int) -> bool:
    """Copy the good records of the last generation into a new one in its place; whether that was to be done. It is
    tidiness, and a gateway waits for it at its start: if somebody has the lock, it is left for another time. Raises
    StoreError and OSError."""
    old = path_of(folder, number)
    with locked(folder) as ours:
        if not ours:
            return False
        for left in folder.glob("*.new*"):
            left.unlink()
        if generations(folder)[-1] != old or old.stat().st_size > RENEWED_SHARE_MAX * bytes_max:
            return False
        growing = folder / f"{number + 1}.new"
        with (
            closing(opened(old, bytes_max, True)) as source,
            closing(Generation(growing, bytes_max, writable=True)) as target,
        ):
            _copy(source, target)
        os.replace(growing, path_of(folder, number + 1))
        announce(folder, number + 1)
        remove(old)
        for left in folder.glob("*.new*"):
            left.unlink()
    return True


def _copy(source: Generation, target: Generation) -> None:
    manifest = source.manifest
    written_at = 0.0 if manifest is None else manifest.written_at
    batch: list[tuple[bytes, bytes]] = []
    for name, held in source.walk():
        if unpacked(name, held) is not None:
            batch.append((name, held))
        if len(batch) >= COPIED_AT_ONCE:
            target.put(batch, written_at)
            batch = []
    target.put(batch, written_at)


def _judged(folder: Path, number: int, is_last: bool, bounds: tuple[int, float]) -> Verdict:
    """One file, read through. The last one may be written to by another process meanwhile."""
    bytes_max, drift_max = bounds
    good = bad = 0
    path = path_of(folder, number)
    try:
        with mapped(path):
            if path.stat().st_size == 0:
                return Verdict(number, "empty")
        with closing(opened(path, bytes_max, is_last)) as generation:
            manifest = generation.manifest
            for name, held in generation.walk():
                if unpacked(name, held) is None:
                    bad += 1
                else:
                    good += 1
    except StoreError as error:
        return Verdict(number, error.kind, good)
    declared = 0 if manifest is None else manifest.records
    if drifted(good, declared, drift_max):
        return Verdict(number, "checksum" if bad else "count", good)
    return Verdict(number, "", good)


def opened(path: Path, bytes_max: int, is_last: bool) -> Generation:
    """A generation to be read. What others may write to is read under LMDB's lock, if the disk has room for that.
    Raises StoreError."""
    if is_last:
        with contextlib.suppress(StoreError):
            return Generation(path, bytes_max)
    return Generation(path, bytes_max, alone=True)


def _say(said: Verdict | str) -> None:
    print(msgspec.json.encode(said).decode(), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
