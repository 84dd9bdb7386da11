"""A file on this host as a store: the one that needs no server, shared by all workers.

Rule of this file: LMDB's own rules are kept (one environment for each file in a process, opened after a fork), its
exceptions end here, and neither reading nor writing holds the event loop up for longer than a few look-ups. Who writes
may be another process: a reader sees each commit whole, and never waits for a writer.

A name may come to mean another file (`lmdb_file.py`). Whoever holds values of the store's *looks*: those that were read
before its ``generation`` grew are of another file. The old one is read until the new one is open, and then by nobody.

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
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import lmdb

from cache.stores.lmdb_file import Busy, LmdbOptions, Opened, Place, opened
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
PROOF_SHARE: Final = 0.5
"""Of the time that a call had: one that had less, for the thread was another's, proves nothing."""
SILENCES: Final = frozenset({"timeout", "crowded"})
"""What a call is that was not done in time."""
LOOK_SECONDS: Final = 1.0
"""Between two looks at what lies under the file's name: each is four calls of stat(2), some ten microseconds."""


class LmdbStore:
    """A `Store` in an LMDB file (a folder is made if ``path`` names one that ends in a slash, or exists).

    Opened when it is first used: a process that forks has to do so before. A file that is not there yet is
    "unreachable" to a reader and made by a writer.
    """

    def __init__(
        self,
        path: str,
        writable: bool,
        clock: Callable[[], float] = time.time,
        options: LmdbOptions | None = None,
        ticker: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock``: the wall clock, which other processes share; ``ticker``: monotonic seconds."""
        self.generation = 0
        """How often another file has come in the place of the one that was read."""
        self.fault: StoreError | None = None
        """Why what lies there now is not what is read; None if it is."""
        self._path = Path(path)
        self._writable = writable
        self._clock = clock
        self._ticker = ticker
        self._options = options or LmdbOptions()
        self._open: Opened | None = None
        self._looked_at = 0.0
        self._thread: ThreadPoolExecutor | None = None
        self._closing: Future[None] | None = None
        self._opening = threading.Lock()
        self._closed = False

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        until = self._ticker() + seconds
        found: list[Found] = []
        if len(keys) <= DIRECT_KEYS_MAX:
            self._read(keys, until, found)
            return found
        try:
            await self._aside(lambda: self._read(keys, until, found), seconds)
        except StoreError as error:
            if error.kind not in SILENCES or not found:
                raise
        found = found[:]  # the thread may be at it still
        late = StoreError("late", f"{self._path}: {len(found)} of {len(keys)} keys were read within {seconds:.3g} s")
        return found + [late] * (len(keys) - len(found))

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        """All of the pairs, or none."""
        ends = 0.0 if ttl is None else self._clock() + ttl
        records = [(key, record(value, ends)) for key, value in pairs]

        def write() -> None:
            with mapped(self._path), self._environment().begin(write=True) as writing, writing.cursor() as cursor:
                cursor.putmulti(records)

        await self._aside(write, seconds)

    async def delete_many(self, keys: Sequence[bytes], seconds: float) -> None:
        def delete() -> None:
            with mapped(self._path), self._environment().begin(write=True) as transaction:
                for key in keys:
                    transaction.delete(key)

        await self._aside(delete, seconds)

    async def healthy(self, seconds: float) -> bool:
        try:
            self._read([b"\0"], self._ticker() + seconds, [])
        except StoreError:
            return False
        return True

    def look(self) -> None:
        """See whether another file lies there than the one that is read, if it is time to; read that from now on if it
        can be opened, and leave ``fault`` if it cannot. Belongs to the event loop, and waits for nothing."""
        held, now = self._open, self._ticker()
        if held is None or now - self._looked_at < LOOK_SECONDS:
            return
        if self._closing is not None and not self._closing.done():
            return  # a new lock may get the number of the one that is just going, and be taken for it
        self._looked_at = now
        place = self._place()
        try:
            with mapped(self._path):
                if place.seen() != held.seen:
                    self._open = opened(place, held)
            self.fault = None
        except StoreError as error:
            self.fault = error
        if self._open is not held:
            self.generation += 1
            # After those who read it there; here nobody does.
            self._closing = self._aside_thread().submit(held.environment.close)

    async def close(self) -> None:
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(None, thread.shutdown)
        held, self._open = self._open, None
        if held is not None:
            held.environment.close()

    def _read(self, keys: Sequence[bytes], until: float, found: list[Found]) -> None:
        """Put into ``found`` what is under the keys, one after the other, as far as time allows."""
        now = self._clock()
        with mapped(self._path):
            environment = self._environment()
            longest = environment.max_key_size()
            for start in range(0, len(keys), STEP_KEYS_MAX):
                if self._ticker() > until:
                    raise StoreError("timeout", f"{self._path}: {start} of {len(keys)} keys were read in time")
                with environment.begin(buffers=True) as transaction:
                    get = transaction.get
                    for key in keys[start : start + STEP_KEYS_MAX]:
                        held = get(key) if 0 < len(key) <= longest else None
                        found.append(None if held is None else value_of(held, now))

    def _environment(self) -> lmdb.Environment:
        with self._opening:  # the thread and the event loop may both be the first
            if self._closed:
                raise StoreError("unreachable", f"{self._path}: closed")
            if self._open is None:
                if not self._writable and not self._path.exists():
                    raise StoreError("unreachable", f"{self._path}: there is no such file")
                self._looked_at = self._ticker()
                self._open = opened(self._place())
            return self._open.environment

    def _place(self) -> Place:
        return Place(self._path, self._writable, self._options)

    def _aside_thread(self) -> ThreadPoolExecutor:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="lmdb")
        return self._thread

    async def _aside(self, work: Callable[[], T], seconds: float) -> T:
        """Beside the event loop, one at a time. What is late goes on to its own end; nobody waits for it."""
        if seconds <= 0.0:
            raise StoreError("timeout", f"{self._path}: no time was left to ask in")
        began: list[float] = []

        def begin() -> T:
            began.append(self._ticker())
            return work()

        doing = asyncio.get_running_loop().run_in_executor(self._aside_thread(), begin)
        doing.add_done_callback(lambda late: late.cancelled() or late.exception())
        try:
            done, _ = await asyncio.wait([doing], timeout=seconds)
        finally:
            doing.cancel()  # if it has not begun
        if not done:
            told = f"{self._path}: not done within {seconds:.3g} s"
            if not began or self._ticker() - began[0] < PROOF_SHARE * seconds:
                raise StoreError("crowded", f"{told}: others were before it")
            raise StoreError("timeout", told)
        return doing.result()


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
    except Busy as busy:
        raise StoreError("unavailable", f"{path}: {busy}") from None
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
