"""A directory that is read where one is: for tests of what is read, and not of who waits for it."""

from __future__ import annotations

from collections.abc import Sequence

from degrade.record import Good, Terms, V
from degrade.snapshot import Snapshot
from gateway.reads import LookTime


class Here:
    """``Records`` without a thread."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    async def read(
        self, kind: str, source: str, keys: Sequence[bytes], terms: Terms[V], now: float, time: LookTime
    ) -> list[Good[V] | None]:
        return [self._snapshot.find(kind, source, key, terms, now) for key in keys]
