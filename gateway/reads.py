"""Looks at what lies on the disk, beside the event loop: one that hangs holds up who looks, for a moment, and no other.

To read what LMDB has mapped takes some microseconds. But it writes into its lock file for that, and pages may have to
come from the disk first; where that hangs (a volume that has gone, a file system that is frozen for a backup), whoever
reads stands still, and no signal ends him. So a thread reads, and nobody waits for it longer than he says. While a look
has not come back in time there is nothing on the disk, at once, for everybody.

Rule of this file: who reads, and how long anyone waits for it. What is looked for, and what it is good for, is
``copies.py``'s. It raises nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final, TypeVar

from degrade.record import Good, Terms, V
from gateway.depot import Directory

Out = TypeVar("Out")

CLOSE_SECONDS_MAX: Final = 1.0


class Reads:
    """One directory's. Belongs to an event loop; ``thread`` is its alone."""

    def __init__(self, directory: Directory, thread: Executor) -> None:
        self._directory = directory
        self._thread = thread
        self._has_come: Callable[[], bool] | None = None  # of the look that did not come back in time
        self._closed = False

    @property
    def hangs(self) -> bool:
        """Whether a look has not come back in time, and has not since."""
        return self._has_come is not None and not self._has_come()

    async def read(
        self, kind: str, source: str, keys: Sequence[bytes], terms: Terms[V], now: float, seconds: float
    ) -> list[Good[V] | None]:
        """What is kept under each key, if it is good, read; nothing where that is not known within ``seconds``.
        ``now``: Unix seconds."""

        def look() -> list[Good[V] | None]:
            return [self._directory.find(kind, source, key, terms, now) for key in keys]

        if self._closed:  # flights outlive their callers, and what closes them comes later
            return [None] * len(keys)
        found = None if self.hangs else await self._within(look, seconds)
        if found is None:
            self._directory.failures["timeout"] += 1
            return [None] * len(keys)
        return found

    def settle(self) -> None:
        """Close what is not read any more, after what is being read."""
        if not self.hangs and not self._closed:
            self._thread.submit(self._directory.settle)

    async def close(self) -> None:
        """Close all of it, if nobody stands in it; from then on nothing is there."""
        self._closed = True
        if not self.hangs:
            await self._within(self._directory.close, CLOSE_SECONDS_MAX)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _within(self, work: Callable[[], Out], seconds: float) -> Out | None:
        """What it returns, on the thread; None if that takes too long."""
        working = asyncio.get_running_loop().run_in_executor(self._thread, work)
        done, _ = await asyncio.wait([working], timeout=seconds)
        if done:
            return working.result()
        self._has_come = working.done
        return None
