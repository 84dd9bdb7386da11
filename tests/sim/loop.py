"""An event loop in virtual time: what is due runs in one order, and where nothing is due time jumps to what is next.

Rule of this file: no real IO, no thread, no clock. A callback takes no time at all, but what a stall says it takes.
What would go to a thread is run where it stands. The order of everything follows from the order of the calls: tasks
and futures hash by their number, for asyncio keeps them in sets, and addresses differ from run to run.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from asyncio import base_events, events
from collections.abc import Callable
from concurrent.futures import Executor, Future
from itertools import count
from typing import Any, Final

STEPS_MAX: Final = 2_000_000
"""Callbacks of one run: a loop that is never done is a finding, and not an evening."""
THREAD_SECONDS: Final = 0.001
"""What is called on a thread is ready a moment later, as it would be."""
LIFE: Final[contextvars.ContextVar[int]] = contextvars.ContextVar("life", default=0)
"""Of which process's life a callback is; 0: of the world's own. Processes end as a whole (``SimLoop.end``)."""


class Endless(Exception):
    """More callbacks than any run has: something spins."""


class Idle(Exception):
    """Nothing is due and nothing ever will be, and the run is not over: somebody waits for ever."""


class SimTask(asyncio.Task):  # type: ignore[type-arg]
    """Hashes by a number of its own, given in the order of asking."""

    number: int

    def __hash__(self) -> int:
        try:
            return self.number
        except AttributeError:
            self.number = next(_numbers)
            return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimFuture(asyncio.Future):  # type: ignore[type-arg]
    """As SimTask."""

    number: int
    __hash__ = SimTask.__hash__
    __eq__ = SimTask.__eq__


_numbers = count(1)


class SimLoop(base_events.BaseEventLoop):
    """Virtual time from ``now`` on. ``steps`` counts callbacks."""

    def __init__(self, now: float = 1000.0) -> None:
        global _numbers  # noqa: PLW0603 - of the run that begins: two of one seed are alike
        _numbers = count(1)
        super().__init__()
        self.now = now
        self.steps = 0
        self.tasks = 0
        self.network: Any = None  # create_connection and the servers are its own
        self.wrong: list[str] = []
        self.set_exception_handler(self._complain)
        self._ended: set[int] = set()
        self._unheard: list[events.Handle] = []
        self._of_life: dict[int, dict[SimTask, None]] = {}
        self._due: list[tuple[float, int, events.TimerHandle]] = []  # compared as numbers, which is quick
        self._order = count()

    def time(self) -> float:
        return self.now

    def stall(self, seconds: float) -> None:
        """Time passes and nothing runs, as where a callback computes for so long."""
        self.now += seconds

    def create_future(self) -> asyncio.Future[Any]:
        return SimFuture(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> asyncio.Task[Any]:
        self._check_closed()
        self.tasks += 1
        task = SimTask(coro, loop=self, name=name or "", context=context)
        life = LIFE.get() if context is None else context.get(LIFE, 0)
        self._of_life.setdefault(life, {})[task] = None
        task.add_done_callback(lambda task: self._done(task, life))
        return task

    def _done(self, task: asyncio.Task[Any], life: int) -> None:
        self.tasks -= life not in self._ended
        self._of_life[life].pop(task, None)  # type: ignore[call-overload]

    def end(self, life: int) -> None:
        """A process is killed: nothing of it is ever called again, whatever it waits for."""
        self._ended.add(life)
        self.tasks -= len(self._of_life.get(life, ()))

    def has_ended(self, task: asyncio.Task[Any]) -> bool:
        """Whether it is a killed process's."""
        return any(task in self._of_life.get(life, ()) for life in self._ended)

    def bury(self) -> None:
        """The run is over: those who were killed may come to their ends, so that nothing of them is heard of later."""
        self._ended.clear()
        self._ready.extend(self._unheard)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> events.TimerHandle:
        timer = events.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._due, (when, next(self._order), timer))
        return timer

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> events.Handle:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()

        def work() -> None:
            if future.done():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:
                future.set_exception(error)

        self.call_later(executor.seconds if isinstance(executor, Inline) else THREAD_SECONDS, work)
        return future

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return await self.network.connect(factory, f"{host}:{port}")

    async def create_unix_server(self, factory: Any, path: Any = None, **_: Any) -> Any:
        return self.network.listen(factory, path)

    def run_until_complete(self, future: Any) -> Any:
        main = asyncio.ensure_future(future, loop=self)
        self._thread_id = 1
        events._set_running_loop(self)
        try:
            while not main.done():
                self._run_once()
            for _ in range(3):  # what the last step has called
                self._run_ready()
        finally:
            self._thread_id = None
            events._set_running_loop(None)
        return main.result()

    def is_running(self) -> bool:
        return self._thread_id is not None

    def _run_once(self) -> None:
        due = self._due
        while due and due[0][2]._cancelled:
            heapq.heappop(due)
        if not self._ready:
            if not due:
                raise Idle
            self.now = max(self.now, due[0][0])
        while due and due[0][0] <= self.now:
            self._ready.append(heapq.heappop(due)[2])
        self._run_ready()

    def _run_ready(self) -> None:
        ready = self._ready
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                if self._ended and handle._context.get(LIFE, 0) in self._ended:  # type: ignore[attr-defined]
                    self._unheard.append(handle)
                    continue
                self.steps += 1
                handle._run()
        if self.steps > STEPS_MAX:
            raise Endless

    def _complain(self, _: Any, context: dict[str, Any]) -> None:
        """An exception that nobody hears is a bug, of the product's or of the world's."""
        self.wrong.append(f"{context.get('message')}: {context.get('exception')!r}")


class Inline(Executor):
    """Stands where a thread would: what is submitted is done a moment later, where it stands."""

    def __init__(self, *_: object) -> None:
        self._closed = False

    @property
    def seconds(self) -> float:
        """How long what is submitted now takes."""
        return THREAD_SECONDS

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self._closed:
            raise RuntimeError("closed")
        done: Future[Any] = Future()

        def do() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(work(*args, **kwargs))
            except Exception as error:
                done.set_exception(error)

        asyncio.get_running_loop().call_later(self.seconds, do)
        return done

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._closed = True
