"""Which LMDB file is open, and whether it is still the one that lies there.

A file is known by its inode, and so is the lock beside it: a name that now means another file (``mv new features``) has
the old file's lock yet. LMDB takes from a lock what the newest transaction is; from one that belongs to another file it
takes another file's number, and finds a file as it was before, or empty (tried: an old file of four transactions, a new
one of one, and every key of the new one was absent). So the old lock goes away before the new file is opened, and each
process that has the old file open keeps the old lock with it. Who does that holds a lock on the folder (flock(2)), for
a lock that another has just made must not go.

Rule of this file: it opens, and decides by inodes and transactions whether what is open is what lies there. It reads no
value, and what LMDB raises goes through.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import lmdb
from msgspec import Struct

TRIES_MAX: Final = 3
"""Others may put files there while we open one."""

Inode = tuple[int, int]
"""Device and number. No other file has it for as long as this one is open."""


READER_BYTES: Final = 128
"""Of one reader in the lock file, and of its head: LMDB has 64 for each, more on machines with larger lines."""


class LmdbOptions(Struct, frozen=True):
    """``bytes_max``: the file's largest size; it takes disk only as it fills. ``readers_max``: of all processes.
    ``alone``: nobody writes it any more, so it is read without a lock file."""

    bytes_max: int = 64 * 2**30
    readers_max: int = 1024
    alone: bool = False


class Place(Struct, frozen=True):
    """Where a file lies; ``path`` may be a folder with the file in it."""

    path: Path
    writable: bool
    options: LmdbOptions

    @property
    def data(self) -> Path:
        return self.path / "data.mdb" if self.path.is_dir() else self.path

    @property
    def lock(self) -> Path:
        return self.path / "lock.mdb" if self.path.is_dir() else self.path.with_name(f"{self.path.name}-lock")

    def seen(self) -> Seen:
        """What lies there now. Raises OSError where there is no file, or none that we may see."""
        data = self.data.stat()
        try:
            lock: Inode | None = _inode(self.lock.stat())
        except FileNotFoundError:
            lock = None
        return Seen(_inode(data), lock)


class Seen(Struct, frozen=True):
    """``lock``: None if there is none."""

    data: Inode
    lock: Inode | None


class Opened(Struct, frozen=True, eq=False):
    """An environment, and which file and lock it is on."""

    environment: lmdb.Environment
    seen: Seen


class Busy(Exception):
    """Others open, or put away, what lies there: it may be tried again at once or a little later."""


def opened(place: Place, instead_of: Opened | None = None) -> Opened:
    """Open what lies there. ``instead_of``: what we have open under that name, and leave open.

    Raises OSError, lmdb.Error, and Busy.
    """
    if instead_of is None:
        made = _opened(place)
        if made is not None:
            return made
    with _alone(place):
        if instead_of is not None and instead_of.seen.lock is not None and place.seen().lock == instead_of.seen.lock:
            place.lock.unlink()
        made = _opened(place)
        if made is None:
            place.lock.unlink()
            made = _opened(place)
    if made is None:
        raise Busy("its lock is another file's again and again")
    return made


def environment_of(place: Place) -> lmdb.Environment:
    """The environment of a file under whose name no other is ever put. Raises lmdb.Error and OSError.

    The lock file is memory that processes share. It gets its disk before LMDB writes to that memory: where there is
    none left, the process would be ended by a bus error and not told.
    """
    options = place.options
    if place.writable:
        with open(place.lock, "ab") as file:
            os.posix_fallocate(file.fileno(), 0, (options.readers_max + 2) * READER_BYTES)
    return lmdb.open(
        str(place.path),
        map_size=options.bytes_max,
        subdir=place.path.is_dir(),
        readonly=not place.writable,
        create=place.writable,
        max_readers=options.readers_max,
        lock=not options.alone,
        readahead=False,  # keys of one request lie anywhere
        meminit=False,
    )


def _opened(place: Place) -> Opened | None:
    """What lies there; None if the lock is another file's."""
    for _ in range(TRIES_MAX):
        before = place.seen() if place.data.exists() else None
        with ExitStack() as stack:
            environment = stack.enter_context(environment_of(place))
            after = place.seen()
            if before is None or before in (after, Seen(after.data, None)):
                if not _agrees(environment):
                    return None
                stack.pop_all()  # it stays open
                return Opened(environment, after)
    raise Busy("other files are put there again and again")


def _agrees(environment: lmdb.Environment) -> bool:
    """Whether the lock's newest transaction is the file's own. One that is just ending is in the file a moment before
    it is in the lock; another file's number may be as near by chance, until whoever has that file open puts its lock
    away."""
    least = environment.info()["last_txnid"] - 1
    with environment.begin() as transaction:
        said: int = transaction.id()
    return bool(least <= said <= environment.info()["last_txnid"])


@contextmanager
def _alone(place: Place) -> Iterator[None]:
    """Nobody else of ours puts locks away meanwhile. Raises Busy if somebody does."""
    folder = os.open(place.data.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy("another process is opening it") from None
        yield
    finally:
        os.close(folder)


def _inode(told: os.stat_result) -> Inode:
    return told.st_dev, told.st_ino
