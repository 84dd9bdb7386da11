"""Where a store's servers are: when that is learnt again, and whom to ask.

Rule of this file: it does not know what is learnt. What was known before does as long as nobody can say better.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Final, Generic, TypeVar

from msgspec import Struct

from cache.stores.node import Node
from cache.stores.store import StoreError

T = TypeVar("T")
Ask = Callable[[Node], Coroutine[object, object, T | None]]
"""What one server tells; None if it does not know."""

RELEARN_SECONDS: Final = 0.1
"""Between two attempts to learn: whoever fails in between fails at once."""
HEAD_START_SECONDS: Final = 0.05
"""For the one that was quick last time, before the others are asked too; and for whoever is slower than the first where
all are asked, and is not waited for."""
LEARN_SECONDS: Final = 1.0
"""For asking where the servers are; whoever waits for it has a bound of its own."""


class LearnOptions(Struct, frozen=True):
    """How old what is known of the servers may get: a failover that breaks no connection is noticed within
    ``refresh_seconds``, beside the calls. If it is older than ``believed_seconds``, calls wait for somebody to tell,
    and no longer once an attempt has failed: what was known is used all the same, and is no more than that."""

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
        """Seconds since they were asked who told what is known."""
        return asyncio.get_running_loop().time() - self._asked_at

    @property
    def is_believed(self) -> bool:
        """Whether somebody has told it in time. Nobody can be asked, or nobody answered in time (it may have been this
        process that stood still): then other servers may be the right ones by now."""
        return self.age() <= self._options.believed_seconds

    async def ready(self, seconds: float) -> None:
        """Wait until it is known, no longer than ``seconds``. What was known before is good enough to be used if asking
        fails; raises StoreError if nothing was."""
        loop = asyncio.get_running_loop()
        knows = self._learnt_at >= 0.0
        due = self._doubtful or loop.time() - self._learnt_at > self._options.refresh_seconds
        if due and self._task is None and loop.time() - self._tried_at >= self._relearn_seconds:
            self._tried_at = loop.time()
            most = min(LEARN_SECONDS, 0.5 * self._options.believed_seconds) if knows else LEARN_SECONDS
            self._task = loop.create_task(self._run(most))
        wanted = self._doubtful or (self._failure is None and not self.is_believed)
        if wanted and self._task is not None:
            await asyncio.wait([self._task], timeout=max(0.0, 0.5 * seconds if knows else seconds))
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


class _Asked(Generic[T]):
    """Servers that are asked at once. ``failure``: what the last of them said that failed."""

    def __init__(self, ask: Ask[T]) -> None:
        self._ask = ask
        self._tasks: dict[asyncio.Task[T | None], Node] = {}
        self._waiting: set[asyncio.Task[T | None]] = set()
        self.failure = StoreError("unavailable", "none of the servers that were asked knows")

    async def __aenter__(self) -> _Asked[T]:
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def add(self, nodes: Sequence[Node]) -> None:
        """Ask these, too."""
        tasks = {asyncio.ensure_future(self._ask(node)): node for node in nodes}
        self._tasks.update(tasks)
        self._waiting.update(tasks)

    @property
    def silent(self) -> set[Node]:
        """Who has not answered."""
        return {self._tasks[task] for task in self._waiting}

    async def told(self, seconds: float | None) -> list[tuple[Node, T]]:
        """Who tells it next, and what; nothing if all have answered, or none does for ``seconds``."""
        while self._waiting:
            done, self._waiting = await asyncio.wait(
                self._waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            told = [(self._tasks[task], answer) for task in done if (answer := self._answer(task)) is not None]
            if told:
                return told
        return []

    def _answer(self, task: asyncio.Task[T | None]) -> T | None:
        try:
            return task.result()
        except StoreError as error:
            self.failure = error
            return None


async def first_told(nodes: Sequence[Node], ask: Ask[T]) -> tuple[Node, T]:
    """Who tells it first, and what; the first node alone if it is quick, or else whichever answers. Raises
    StoreError."""
    async with _Asked(ask) as asked:
        for seconds, some in ((HEAD_START_SECONDS, nodes[:1]), (None, nodes[1:])):
            asked.add(some)
            for found in await asked.told(seconds):
                return found
        raise asked.failure


async def all_told(
    nodes: Sequence[Node], ask: Ask[T], awaited: Collection[Node], seconds: float
) -> tuple[list[T], set[Node]]:
    """What those tell that are hardly slower than the first, or, where they are ``awaited``, slower by no more than
    ``seconds``; and who had not answered by then. Raises StoreError if nobody tells."""
    loop = asyncio.get_running_loop()
    async with _Asked(ask) as asked:
        asked.add(nodes)
        answers = [answer for _, answer in await asked.told(None)]
        until = loop.time() + seconds
        while asked.silent:
            left = until - loop.time() if asked.silent.intersection(awaited) else 0.0
            told = await asked.told(max(left, HEAD_START_SECONDS))
            if not told:
                break
            answers += [answer for _, answer in told]
        if not answers:
            raise asked.failure
        return answers, asked.silent
