"""A snapshot's directory: which files are generations, who may write, and which files that writer has made.

    lock                          who writes has it; in it, number and inode of each generation that a writer began
    0000000007.mdb                generations, by their numbers

A file that comes into the directory while gateways run may be anything: a backup put back, a copy that was cut short.
LMDB would follow what it says, and end the process. So whoever has the lock says what he has made, and nobody opens
another file that is younger than himself before a start has looked it through (``inspection.py``).

Rule of this file: names and files; it opens no generation.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

SUFFIX: Final = ".mdb"
LOCK: Final = "lock"
LOCKS_LEFT: Final = 16
"""Of generations that have gone, 33 KB each: whoever had one open has looked again since, and closed it."""
LOCK_TRY_SECONDS: Final = 0.05
"""Between tries for the lock: a commit has it for about so long."""
_ANNOUNCED: Final = re.compile(rb"(?m)^([0-9]{1,18}) ([0-9]{1,20})\n")


def number_of(path: Path) -> int:
    """The generation's, by its file's name."""
    return int(path.name.removesuffix(SUFFIX))


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{number:010d}{SUFFIX}"


def generations(folder: Path) -> list[Path]:
    """The files of all of them, the oldest first. Raises OSError."""
    named = [path for path in folder.iterdir() if path.suffix == SUFFIX and path.stem.isdecimal()]
    ours = [path for path in named if path == path_of(folder, number_of(path)) and path.is_file()]
    return sorted(ours, key=number_of)


@contextlib.contextmanager
def locked(folder: Path, seconds: float = 0.0) -> Iterator[bool]:
    """The directory's lock, which one process of a host has at a time. False if another has it, and has it still after
    so many ``seconds``, which this blocks for. Raises OSError."""
    until = time.monotonic() + seconds
    with open(folder / LOCK, "ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    yield False
                    return
                time.sleep(LOCK_TRY_SECONDS)
        yield True  # closing gives it back


def announce(folder: Path, number: int) -> None:
    """Say that this generation was made here, by who has the lock now. Raises OSError; then nobody else reads it
    before his own next start."""
    inodes = {**announced(folder), number: path_of(folder, number).stat().st_ino}
    there = {number_of(path) for path in generations(folder)}
    lines = [f"{each} {inode}\n" for each, inode in inodes.items() if each in there]
    (folder / LOCK).write_text("".join(lines))  # in its place: another file would be another lock


def announced(folder: Path) -> Mapping[int, int]:
    """The inodes of what writers have said to have made, by number. What somebody is writing there just now is not
    understood, and there the next time. Raises OSError."""
    try:
        text = (folder / LOCK).read_bytes()
    except FileNotFoundError:
        return {}
    return {int(number): int(inode) for number, inode in _ANNOUNCED.findall(text)}


def remove(path: Path) -> None:
    """Take a generation off the disk; who has it open goes on reading it. Raises OSError.

    Its lock stays for a while. Who reads it alone does not have that open, so the next lock would get its inode, by
    which py-lmdb knows what is open in a process: it would take the new generation for the one that has gone.
    """
    path.unlink(missing_ok=True)
    for lock in path.parent.glob(f"*{SUFFIX}-lock"):
        number, data = lock.name.removesuffix(f"{SUFFIX}-lock"), lock.with_name(lock.name.removesuffix("-lock"))
        if number.isdecimal() and int(number) <= number_of(path) - LOCKS_LEFT and not data.exists():
            lock.unlink(missing_ok=True)
