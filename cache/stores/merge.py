"""Look-ups that come in the same turn of the event loop, as one call to the store.

Rule of this file: a key is asked once in a batch, however many ask for it; whoever waits has a bound of its own and can
leave; a batch that nobody waits for any more is not asked. While `flights_max` batches are under way, what comes
gathers in the next: a slow store makes batches larger and not more of them. It does not know what is asked, or of whom.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from msgspec import Struct

from cache.stores.store import Found, StoreError, raise_if_nothing

Fetch = Callable[[Sequence[bytes], float], Awaitable[list[Found]]]
"""(keys that all differ, seconds) -> what is under each; raises StoreError if that is one reason for all."""


LANDING_SHARE: Final = 0.1
LANDING_SECONDS_MAX: Final = 0.02
"""Of the time that a batch has, kept back: what was found until then must still reach those who wait, for one node of a
cluster may have been late and the others not."""


PLACING_SHARE: Final = 0.25
"""Of a call's time, for its keys to be put into batches: whoever asks for so many that it takes longer gets the first
of them now, and the rest the next time."""
PROOF_SHARE: Final = 0.5
"""Of the time that a batch was given: one that had less, for others were before it, proves nothing by its silence."""


class MergeOptions(Struct, frozen=True):
    """``keys_max`` in one batch: while it is on its way, what the store does for others waits. ``flights_max`` batches
    at once: each has a connection. ``waiting_keys_max`` not yet asked: beyond it, asking later is of no use."""

    keys_max: int = 1024
    flights_max: int = 4
    waiting_keys_max: int = 262_144


class _Batch:
    __slots__ = ("began", "keys", "landed", "sent", "until", "waiters")

    def __init__(self, landed: asyncio.Future[list[Found] | StoreError], now: float) -> None:
        self.keys: dict[bytes, int] = {}
        self.began = now
        self.sent = math.inf
        self.until = 0.0  # of the one that waits longest
        self.landed = landed
        self.waiters = 0

    def silence(self, until: float, seconds: float, told: str) -> StoreError:
        """What it is that nothing is heard of it by ``until``, for somebody who had so many seconds."""
        if until - self.sent >= PROOF_SHARE * seconds:
            return StoreError("timeout", told)
        return StoreError("crowded", f"{told}: others' keys were before these")


class Merged:
    """Makes one fetch of many look-ups. Belongs to one event loop."""

    def __init__(self, fetch: Fetch, options: MergeOptions) -> None:
        self._fetch = fetch
        self._options = options
        self._queue: deque[_Batch] = deque()  # the last of them still takes keys
        self._waiting_keys = 0
        self._flying: set[asyncio.Task[None]] = set()
        self._due = False
        self._closed = False

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        """As `Store.get_many`."""
        if not keys:
            return []
        if self._closed:
            raise StoreError("unreachable", "closed")
        if seconds <= 0.0:
            raise StoreError("timeout", "no time was left to ask in")
        if self._waiting_keys + len(keys) > self._options.waiting_keys_max:
            raise StoreError("crowded", f"more than {self._options.waiting_keys_max} keys would wait to be asked")
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        places = self._places(keys, until - (1.0 - PLACING_SHARE) * seconds)
        batches = list(dict.fromkeys(batch for batch, _ in places))
        for batch in batches:
            batch.waiters += 1
            batch.until = max(batch.until, until)
        self._start_soon()
        try:
            await asyncio.wait([batch.landed for batch in batches], timeout=until - loop.time())
        finally:
            for batch in batches:
                batch.waiters -= 1
        became = _told(batches, seconds, loop.time())
        found = [_at(became[batch], position) for batch, position in places]
        if len(found) < len(keys):
            told = f"only {len(found)} of {len(keys)} keys could be asked for within {seconds:.3g} s"
            rest = StoreError("late", told)
            found += [rest] * (len(keys) - len(found))
        raise_if_nothing(found)
        return found

    async def close(self) -> None:
        """End what is under way; whoever waits is told."""
        self._closed = True
        flying = tuple(self._flying)
        for task in flying:
            task.cancel()
        await asyncio.gather(*flying, return_exceptions=True)
        self._start()

    def _places(self, keys: Sequence[bytes], until: float) -> list[tuple[_Batch, int]]:
        """Where these keys are asked for, or as many of them as there is time for."""
        loop, most = asyncio.get_running_loop(), self._options.keys_max
        places: list[tuple[_Batch, int]] = []
        for start in range(0, len(keys), most):
            if start and loop.time() > until:
                break
            places += [self._place(key, loop) for key in keys[start : start + most]]
        return places

    def _place(self, key: bytes, loop: asyncio.AbstractEventLoop) -> tuple[_Batch, int]:
        batch = self._queue[-1] if self._queue else None
        if batch is not None:
            known = batch.keys.get(key)
            if known is not None:
                return batch, known
        if batch is None or len(batch.keys) >= self._options.keys_max:
            batch = _Batch(loop.create_future(), loop.time())
            self._queue.append(batch)
        position = batch.keys[key] = len(batch.keys)
        self._waiting_keys += 1
        return batch, position

    def _start_soon(self) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        """Ask for what has gathered, as far as there is room: one batch in each turn of the loop, for writing a batch's
        commands takes milliseconds, and the answers to the one before are to be looked for meanwhile."""
        self._due = False
        while self._queue and not self._due and (self._closed or len(self._flying) < self._options.flights_max):
            batch = self._queue.popleft()
            self._waiting_keys -= len(batch.keys)
            if self._closed:
                _land(batch, StoreError("unreachable", "closed"))
            elif batch.waiters:
                task = asyncio.get_running_loop().create_task(self._fly(batch))
                self._flying.add(task)
                task.add_done_callback(partial(self._down, batch))
                self._start_soon()

    async def _fly(self, batch: _Batch) -> None:
        told: list[Found] | StoreError = StoreError("unreachable", "closed")
        try:
            batch.sent = asyncio.get_running_loop().time()
            left = batch.until - batch.sent
            told = await self._fetch(tuple(batch.keys), left - min(LANDING_SHARE * left, LANDING_SECONDS_MAX))
            assert len(told) == len(batch.keys)
        except StoreError as error:
            told = error
            if error.kind == "timeout":
                told = batch.silence(batch.until, batch.until - batch.began, str(error).partition(": ")[2])
        finally:
            _land(batch, told)

    def _down(self, batch: _Batch, task: asyncio.Task[None]) -> None:
        self._flying.discard(task)
        _land(batch, StoreError("unreachable", "closed"))  # of a task that was cancelled before its first step
        self._start()  # whatever became of this one
        if not task.cancelled():
            task.result()  # a bug of ours must be seen


def _land(batch: _Batch, told: list[Found] | StoreError) -> None:
    if not batch.landed.done():
        batch.landed.set_result(told)


def _told(batches: Sequence[_Batch], seconds: float, now: float) -> dict[_Batch, list[Found] | StoreError]:
    """What became of these by now. If any of them was answered the store is not silent, and the others are late."""
    landed = {batch: batch.landed.result() for batch in batches if batch.landed.done()}
    told = f"no answer within {seconds:.3g} s"
    if any(isinstance(each, list) for each in landed.values()):
        late = StoreError("late", f"{len(batches) - len(landed)} of {len(batches)} batches: {told}")
        return {batch: landed.get(batch, late) for batch in batches}
    return {batch: landed[batch] if batch in landed else batch.silence(now, seconds, told) for batch in batches}


def _at(told: list[Found] | StoreError, position: int) -> Found:
    return told if isinstance(told, StoreError) else told[position]
