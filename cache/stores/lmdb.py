"""A file on this host as a store: the one that needs no server, shared by all workers.

Rule of this file: LMDB's own rules are kept (one environment for each file in a process, opened after a fork), its
exceptions end here, and neither reading nor writing holds the event loop up for longer than a few look-ups. Who writes
may be another process: a reader sees each commit whole, and never waits for a writer.

A value lies behind a header: version, CRC-32 of what follows, and when it ends (seconds of the wall clock, 0: never).
LMDB itself forgets nothing, so what has ended is only not seen any more; `tailrace table load` writes over it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import lmdb
from msgspec import Struct

from cache.stores.store import Found, StoreError

T = TypeVar("T")

VERSION: Final = 1
_HEADER: Final = struct.Struct("<BxxxId")
_CHECKED_FROM: Final = 8
"""The end is under the checksum too."""

DIRECT_KEYS_MAX: Final = 64
"""Read on the event loop: some 0.15 ms for rows of 512 bytes, of which the way to a thread and back is half."""
STEP_KEYS_MAX: Final = 1024
"""Read in one go of the thread, before it looks whether anybody still waits."""


READER_BYTES: Final = 128
"""Of one reader in the lock file, and of its head: LMDB has 64 for each, more on machines with larger lines."""


class LmdbOptions(Struct, frozen=True):
    """``bytes_max``: the file's largest size; it takes disk only as it fills. ``readers_max``: of all processes.
    ``alone``: nobody writes it any more, so it is read without a lock file."""

    bytes_max: int = 64 * 2**30
    readers_max: int = 1024
    alone: bool = False


class LmdbStore:
    """A `Store` in an LMDB file (a folder is made if ``path`` names one that ends in a slash, or exists).

    Opened when it is first used: a process that forks has to do so before. A file that is not there yet is
    "unreachable" to a reader and made by a writer.
    """

    def __init__(
        self, path: str, writable: bool, clock: Callable[[], float] = time.time, options: LmdbOptions | None = None
    ) -> None:
        """``clock``: the wall clock, which other processes share."""
        self._path = Path(path)
        self._writable = writable
        self._clock = clock
        self._options = options or LmdbOptions()
        self._environment: lmdb.Environment | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._opening = threading.Lock()
        self._closed = False

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        until = time.monotonic() + seconds
        if len(keys) <= DIRECT_KEYS_MAX:
            return self._read(keys, until)
        return await self._aside(lambda: self._read(keys, until), seconds)

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        """All of the pairs, or none."""
        ends = 0.0 if ttl is None else self._clock() + ttl
        records = [(key, record(value, ends)) for key, value in pairs]

        def write() -> None:
            with mapped(self._path), self._opened().begin(write=True) as transaction, transaction.cursor() as cursor:
                cursor.putmulti(records)

        await self._aside(write, seconds)

    async def delete_many(self, keys: Sequence[bytes], seconds: float) -> None:
        def delete() -> None:
            with mapped(self._path), self._opened().begin(write=True) as transaction:
                for key in keys:
                    transaction.delete(key)

        await self._aside(delete, seconds)

    async def healthy(self, seconds: float) -> bool:
        try:
            self._read([b"\0"], time.monotonic() + seconds)
        except StoreError:
            return False
        return True

    async def close(self) -> None:
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(None, thread.shutdown)
        environment, self._environment = self._environment, None
        if environment is not None:
            environment.close()

    def _read(self, keys: Sequence[bytes], until: float) -> list[Found]:
        now = self._clock()
        found: list[Found] = []
        with mapped(self._path):
            environment = self._opened()
            longest = environment.max_key_size()
            for start in range(0, len(keys), STEP_KEYS_MAX):
                if time.monotonic() > until:
                    raise StoreError("timeout", f"{self._path}: {start} of {len(keys)} keys were read in time")
                with environment.begin(buffers=True) as transaction:
                    get = transaction.get
                    for key in keys[start : start + STEP_KEYS_MAX]:
                        held = get(key) if 0 < len(key) <= longest else None
                        found.append(None if held is None else value_of(held, now))
        return found

    def _opened(self) -> lmdb.Environment:
        with self._opening:  # the thread and the event loop may both be the first
            return self._open()

    def _open(self) -> lmdb.Environment:
        if self._closed:
            raise StoreError("unreachable", f"{self._path}: closed")
        if self._environment is None:
            if not self._writable and not self._path.exists():
                raise StoreError("unreachable", f"{self._path}: there is no such file")
            self._environment = opened(self._path, self._writable, self._options)
        return self._environment

    async def _aside(self, work: Callable[[], T], seconds: float) -> T:
        """Beside the event loop, one at a time. What is late goes on to its own end; nobody waits for it."""
        if seconds <= 0.0:
            raise StoreError("timeout", f"{self._path}: no time was left to ask in")
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="lmdb")
        doing = asyncio.get_running_loop().run_in_executor(self._thread, work)
        done, _ = await asyncio.wait([doing], timeout=seconds)
        if not done:
            doing.add_done_callback(lambda late: late.cancelled() or late.exception())
            doing.cancel()  # if it has not begun
            raise StoreError("timeout", f"{self._path}: not done within {seconds:.3g} s")
        return doing.result()


def opened(path: Path, writable: bool, options: LmdbOptions) -> lmdb.Environment:
    """The file's environment: one for each file in a process. Raises lmdb.Error and OSError.

    The lock file is memory that processes share. It gets its disk before LMDB writes to that memory: where there is
    none left, the process would be ended by a bus error and not told.
    """
    is_folder = path.is_dir()
    if writable:
        lock = path / "lock.mdb" if is_folder else path.with_name(f"{path.name}-lock")
        with open(lock, "ab") as file:
            os.posix_fallocate(file.fileno(), 0, (options.readers_max + 2) * READER_BYTES)
    return lmdb.open(
        str(path),
        map_size=options.bytes_max,
        subdir=is_folder,
        readonly=not writable,
        create=writable,
        max_readers=options.readers_max,
        lock=not options.alone,
        readahead=False,  # keys of one request lie anywhere
        meminit=False,
    )


def record(value: bytes, ends: float) -> bytes:
    """A value behind its header. ``ends``: seconds of the wall clock, 0 for never."""
    checked = struct.pack("<d", ends) + value
    return struct.pack("<BxxxI", VERSION, zlib.crc32(checked)) + checked


def value_of(held: bytes | memoryview, now: float) -> Found:
    """What a record says now. It is copied: LMDB's memory is not ours for longer than a transaction."""
    if len(held) < _HEADER.size:
        return StoreError("corrupt", f"has {len(held)} bytes, and a header has {_HEADER.size}")
    version, checksum, ends = _HEADER.unpack_from(held)
    if version != VERSION:
        return StoreError("corrupt", f"is of version {version}, and this is version {VERSION}")
    if zlib.crc32(held[_CHECKED_FROM:]) != checksum:
        return StoreError("corrupt", "its checksum is another one")
    return None if 0.0 < ends <= now else bytes(held[_HEADER.size :])


_KINDS: Final = (
    ((lmdb.MapFullError, lmdb.DiskError), "full"),
    ((lmdb.CorruptedError, lmdb.InvalidError, lmdb.PanicError, lmdb.PageNotFoundError), "corrupt"),
    ((lmdb.VersionMismatchError, lmdb.IncompatibleError), "corrupt"),
    ((lmdb.ReadonlyError, lmdb.LockError, lmdb.BadValsizeError, PermissionError), "refused"),
    ((lmdb.ReadersFullError, lmdb.MapResizedError, lmdb.TlsFullError), "unavailable"),
)
_CODES: Final = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EFBIG: "full",
    errno.EROFS: "refused",
    errno.EACCES: "refused",
}
_SAID: Final = {os.strerror(code): kind for code, kind in _CODES.items()}
"""What the system said, as LMDB passes it on: in words alone."""
ROOM_BYTES_MIN: Final = 64 * 1024
"""Less than this free, and a write that was cut short (EIO is all that LMDB says of it) is a full disk's."""


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[None]:
    """Foreign exceptions become ours here."""
    try:
        yield
    except (lmdb.Error, OSError) as error:
        raise StoreError(_kind(path, error), f"{path}: {error}") from None


def _kind(path: Path, error: Exception) -> str:
    for classes, kind in _KINDS:
        if isinstance(error, classes):
            return kind
    if isinstance(error, OSError):
        return _CODES.get(error.errno or 0, "unreachable")
    said = str(error).rpartition(": ")[2]
    if said == os.strerror(errno.EIO) and _free(path) < ROOM_BYTES_MIN:
        return "full"
    return _SAID.get(said, "unreachable")


def _free(path: Path) -> float:
    """Bytes left on its disk; as good as any number where nobody can tell."""
    try:
        there = os.statvfs(path.parent)
    except OSError:
        return math.inf
    return there.f_bavail * there.f_frsize
