"""A folder as a store: for few and small values that must outlive every process of a host, each a file of its own.

Rule of this file: a value is written beside its place and put there whole (rename), so whoever is killed leaves the old
one or the new one; what was damaged is "corrupt". Nothing is mapped; what was read is not read again until somebody has
put something into the folder, which shows in its time of change. All of it is a thread's, who reads at once for all who
ask in one turn: a disk that hangs costs its callers their time-out, and after that nothing until it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import struct
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from blake3 import blake3

from cache.sealed import sealed, unsealed
from cache.stores.lmdb import mapped
from cache.stores.store import Found, StoreError

T = TypeVar("T")
Aside = Callable[[Callable[[], list[Found]], float], Coroutine[object, object, list[Found]]]

LEFT_SECONDS: Final = 60.0
"""What was written beside its place and is older than this was left by somebody who was killed at it."""
VALUE_BYTES_MAX: Final = 2 * 1024 * 1024
NAME_BYTES: Final = 16
SUFFIX: Final = ".word"
FOLDER_MODE: Final = 0o700
"""Nobody else of the host looks into what we make: what lies there may be anybody's answers."""
RESTING_SECONDS: Final = 2.0
"""A folder that changed later than this before it was read may change again without showing it: some file systems count
times in seconds."""
_ENDS: Final = struct.Struct("<d")


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for our user alone; one that is there stays as it is. Raises
    OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(FOLDER_MODE, exist_ok=True)


class _Asking:
    """Keys that are asked for together, and their values once they have been read."""

    def __init__(self, read: Callable[[list[bytes]], list[Found]], aside: Aside, seconds: float) -> None:
        self.keys: list[bytes] = []
        self.reading = asyncio.ensure_future(aside(lambda: read(self.keys), seconds))  # begins in the loop's next turn


class FileStore:
    """A `Store` in a folder, which is made when it is first written to. ``clock``: Unix seconds."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="words")
        self._late: Callable[[], bool] = lambda: True  # whether what nobody waited for has ended
        self._asking: dict[float, _Asking] = {}  # in this turn of the loop, by how long they wait
        self._known: dict[bytes, tuple[float, bytes] | None] = {}  # the thread's: when each ends, and its value
        self._beside = f".{secrets.token_hex(8)}"  # nobody else's: processes of two containers may have one number
        self._is_swept = False
        self._rested: tuple[int, int] | None = None  # the folder as it was before any of that was read

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        asking = self._asking.get(seconds)
        if asking is None:
            asyncio.get_running_loop().call_soon(self._asking.pop, seconds, None)  # before it is begun
            asking = self._asking[seconds] = _Asking(self._read_all, self._aside, seconds)
            asking.reading.add_done_callback(_seen)
        at = len(asking.keys)
        asking.keys += keys
        return (await asyncio.shield(asking.reading))[at : at + len(keys)]

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        ends = 0.0 if ttl is None else self._clock() + ttl
        is_durable = ttl is None  # what is to be there for ever is on the disk then, and not only on its way

        def write() -> None:
            with mapped(self._folder):
                make_folder(self._folder)
                self._sweep()
                for key, value in pairs:
                    self._put(self._path(key), sealed(key, _ENDS.pack(ends) + value), is_durable)
                if is_durable:
                    _sync(self._folder)

        await self._aside(write, seconds)

    async def delete_many(self, keys: Sequence[bytes], seconds: float) -> None:
        def delete() -> None:
            with mapped(self._folder):
                for key in keys:
                    self._path(key).unlink(missing_ok=True)

        await self._aside(delete, seconds)

    async def healthy(self, seconds: float) -> bool:
        with contextlib.suppress(StoreError):
            await self.get_many([b"\0"], seconds)
            return True
        return False

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _sweep(self) -> None:
        """Once, remove what others have left beside its place."""
        if self._is_swept:
            return
        self._is_swept = True
        for left in self._folder.iterdir():
            with contextlib.suppress(OSError):  # others may be at it, or it is no file of ours: no reason not to write
                if left.suffix != SUFFIX and left.is_file() and time.time() - left.stat().st_mtime > LEFT_SECONDS:
                    left.unlink()

    def _put(self, path: Path, written: bytes, is_durable: bool) -> None:
        beside = path.with_suffix(self._beside)
        with open(beside, "wb") as file:
            file.write(written)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)

    def _read_all(self, keys: Sequence[bytes]) -> list[Found]:
        with mapped(self._folder):
            self._heed()
            return [self._found(key) for key in keys]

    def _heed(self) -> None:
        """Forget what was read, if the folder is another one since, or may have changed."""
        try:
            there = os.stat(self._folder)
        except FileNotFoundError:
            there = None
        now = None if there is None else (there.st_ino, there.st_mtime_ns)
        if now is None or now != self._rested:
            self._known.clear()
        rests = there is not None and time.time() - there.st_mtime > RESTING_SECONDS  # as file systems tell time
        self._rested = now if rests else None

    def _found(self, key: bytes) -> Found:
        if key in self._known and self._rested is not None:
            held = self._known[key]
        else:
            read = self._read(key)
            if isinstance(read, StoreError):
                return read
            held = self._known[key] = read
        return None if held is None or 0.0 < held[0] <= self._clock() else held[1]

    def _read(self, key: bytes) -> tuple[float, bytes] | StoreError | None:
        path, held = self._path(key), None
        try:
            with mapped(path), contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                held = file.read(VALUE_BYTES_MAX)
        except StoreError as error:  # of this one alone
            return error
        if held is None:
            return None
        value = unsealed(key, held, VALUE_BYTES_MAX)
        if value is None or len(value) < _ENDS.size:
            return StoreError("corrupt", f"{self._path(key)}")
        (ends,) = _ENDS.unpack_from(value)
        return ends, value[_ENDS.size :]

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{blake3(key).hexdigest(NAME_BYTES)}{SUFFIX}"

    async def _aside(self, work: Callable[[], T], seconds: float) -> T:
        if not self._late():
            raise StoreError("timeout", f"{self._folder}: the disk is still at an earlier call")
        try:
            begun = self._thread.submit(work)
        except RuntimeError:
            raise StoreError("unreachable", f"{self._folder}: closed") from None
        doing = asyncio.wrap_future(begun)
        done, _ = await asyncio.wait([doing], timeout=max(0.0, seconds))
        if not done:
            self._late = begun.done
            doing.add_done_callback(lambda late: late.cancelled() or late.exception())
            raise StoreError("timeout", f"{self._folder}: not done within {seconds:.3g} s")
        return doing.result()


def _sync(folder: Path) -> None:
    """That its names are on the disk."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _seen(reading: asyncio.Future[list[Found]]) -> None:
    """Whoever asked may have left."""
    if not reading.cancelled():
        reading.exception()
