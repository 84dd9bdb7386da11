"""A folder as a store: for few and small values that must outlive every process of a host, each a file of its own.

Rule of this file: a value is written beside its place and put there whole (rename), so whoever is killed leaves the old
one or the new one; what was damaged is "corrupt". Nothing is held in memory, nothing is mapped. All of it is a
thread's: a disk that hangs costs its callers their time-out, and after that nothing until it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from blake3 import blake3

from cache.sealed import sealed, unsealed
from cache.stores.lmdb import mapped
from cache.stores.store import Found, StoreError

T = TypeVar("T")

VALUE_BYTES_MAX: Final = 2 * 1024 * 1024
NAME_BYTES: Final = 16
FOLDER_MODE: Final = 0o700
"""Nobody else of the host looks into what we make: what lies there may be anybody's answers."""
_ENDS: Final = struct.Struct("<d")


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for our user alone; one that is there stays as it is. Raises
    OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(FOLDER_MODE, exist_ok=True)


class FileStore:
    """A `Store` in a folder, which is made when it is first written to. ``clock``: Unix seconds."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="words")
        self._late: Callable[[], bool] = lambda: True  # whether what nobody waited for has ended

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        def read() -> list[Found]:
            with mapped(self._folder):
                return [self._read(key) for key in keys]

        return await self._aside(read, seconds)

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        ends = 0.0 if ttl is None else self._clock() + ttl

        def write() -> None:
            with mapped(self._folder):
                make_folder(self._folder)
                for key, value in pairs:
                    beside = self._path(key).with_suffix(f".{os.getpid()}")
                    beside.write_bytes(sealed(key, _ENDS.pack(ends) + value))
                    os.replace(beside, self._path(key))

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

    def _read(self, key: bytes) -> Found:
        try:
            with open(self._path(key), "rb") as file:
                held = file.read(VALUE_BYTES_MAX)
        except FileNotFoundError:
            return None
        value = unsealed(key, held, VALUE_BYTES_MAX)
        if value is None or len(value) < _ENDS.size:
            return StoreError("corrupt", f"{self._path(key)}")
        (ends,) = _ENDS.unpack_from(value)
        return None if 0.0 < ends <= self._clock() else value[_ENDS.size :]

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{blake3(key).hexdigest(NAME_BYTES)}.word"

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
