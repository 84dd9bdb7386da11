"""Where a store's servers are: when that is learnt again, and whom to ask.

Rule of this file: it does not know what is learnt. What was known before does as long as nobody can say better.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Final, TypeVar

from msgspec import Struct

from cache.stores.node import Node
from cache.stores.store import StoreError

T = TypeVar("T")
Ask = Callable[[Node], Coroutine[object, object, T | None]]
"""What one server tells; None if it does not know."""

RELEARN_SECONDS: Final = 0.1
"""Between two attempts to learn: whoever fails in between fails at once."""
HEAD_START_SECONDS: Final = 0.05
"""For the one that was quick last time, before the others are asked too; and for Sentinels that are slower than the
first, before it alone is believed."""
LEARN_SECONDS: Final = 1.0
"""For asking where the servers are; whoever waits for it has a bound of its own."""


class LearnOptions(Struct, frozen=True):
    """How old what is known of the servers may get: a failover that breaks no connection is noticed within
    ``refresh_seconds``, beside the calls. If it is older than ``believed_seconds``, calls wait for somebody to tell and
    fail if nobody does in time; but if nobody can, it is believed all the same."""

    refresh_seconds: float = 1.0
    believed_seconds: float = math.inf


class Learning:
    """When to learn where the servers are: waited for while nothing is known or what is known was wrong, and otherwise
    beside the calls."""

    def __init__(self, learn: Callable[[float], Awaitable[None]], options: LearnOptions) -> None:
        self._learn = learn
        self._options = options
        self._relearn_seconds = min(RELEARN_SECONDS, options.refresh_seconds)
        self._task: asyncio.Task[None] | None = None
        self._asked_at = -1e9  # by the last attempt that was told
        self._learnt_at = -1e9
        self._tried_at = -1e9
        self._doubtful = True
        self._failure: StoreError | None = None

    def doubt(self) -> None:
        """What was learnt may be wrong."""
        self._doubtful = True

    def age(self) -> float:
        """Seconds since they were asked who told what is known; 0 if the last attempt found nobody to ask."""
        return 0.0 if self._failure is not None else asyncio.get_running_loop().time() - self._asked_at

    async def ready(self, seconds: float) -> None:
        """Wait until it is known, no longer than ``seconds``. What was known before is good enough if asking fails;
        raises StoreError if nothing was, or if it is too old and asking takes too long."""
        loop = asyncio.get_running_loop()
        knows = self._learnt_at >= 0.0
        due = self._doubtful or loop.time() - self._learnt_at > self._options.refresh_seconds
        if due and self._task is None and loop.time() - self._tried_at >= self._relearn_seconds:
            self._tried_at = loop.time()
            most = min(LEARN_SECONDS, 0.5 * self._options.believed_seconds) if knows else LEARN_SECONDS
            self._task = loop.create_task(self._run(most))
        wanted = self._doubtful or self.age() > self._options.believed_seconds
        if wanted and self._task is not None:
            await asyncio.wait([self._task], timeout=max(0.0, 0.5 * seconds if knows else seconds))
        if knows and self.age() > self._options.believed_seconds:
            raise StoreError("timeout", "nobody has told in time whether the servers are the same")
        if self._learnt_at < 0.0:
            raise self._failure or StoreError("timeout", "the servers are not known yet")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, seconds: float) -> None:
        asked_at = asyncio.get_running_loop().time()
        try:
            await self._learn(seconds)
        except StoreError as error:
            self._failure = StoreError(error.kind, str(error).partition(": ")[2])
            self._doubtful = self._learnt_at < 0.0  # nobody knows better: what was known is tried again
        else:
            self._asked_at, self._learnt_at = asked_at, asyncio.get_running_loop().time()
            self._doubtful, self._failure = False, None
        finally:
            self._task = None


async def first_told(nodes: Sequence[Node], ask: Ask[T]) -> tuple[Node, T]:
    """Who tells it first, and what; the first node alone if it is quick, or else whichever answers. Raises
    StoreError."""
    tasks: dict[asyncio.Task[T | None], Node] = {}
    failure = StoreError("unavailable", "none of the servers that were asked knows")
    try:
        for head_start, some in ((HEAD_START_SECONDS, nodes[:1]), (None, nodes[1:])):
            tasks.update({asyncio.ensure_future(ask(node)): node for node in some})
            waiting = {task for task in tasks if not task.done()}
            while waiting:
                done, waiting = await asyncio.wait(waiting, timeout=head_start, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                for task in done:
                    try:
                        told = task.result()
                    except StoreError as error:
                        failure = error
                        continue
                    if told is not None:
                        return tasks[task], told
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    raise failure


async def all_told(nodes: Sequence[Node], ask: Ask[T]) -> list[T]:
    """What those tell that are hardly slower than the first. Raises StoreError if none does."""
    tasks = [asyncio.ensure_future(ask(node)) for node in nodes]
    failure = StoreError("unavailable", "none of the servers that were asked knows")
    told: list[T] = []
    waiting = set(tasks)
    try:
        while waiting:
            head_start = HEAD_START_SECONDS if told else None
            done, waiting = await asyncio.wait(waiting, timeout=head_start, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            for task in done:
                try:
                    answer = task.result()
                except StoreError as error:
                    failure = error
                    continue
                told += [] if answer is None else [answer]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not told:
        raise failure
    return told
