"""Messages on their way in at the gRPC door: how long each may take, and how many bytes grpc may hold of all of them.

Rule of this file: it waits for messages and knows nothing of what is in them. grpc holds what has come of a message
until it is whole, and tells nobody how much that is, nor how long the message will be; it takes in no more than a
window (64 KiB) of one that nobody waits for, and forgets one whose call ends. So this is bounded from outside, and not
sharply. A message that is whole within a moment has cost no more than the network could bring in it, whatever the
number of callers. Of those that take longer, as many may be under way as would fit in half of
``server.buffered_bytes_max`` if each became as large as it may. More are let be, for most are slow and not large, as
long as the memory taken since is a small part of that. From there on (*pressed*) those must go that are one too many of
their address, and the youngest; and as many new ones as would fit in the other half are waited for at once, others
after them. Not later, for a large message holds up the event loop when it is whole (grpc copies it there), and what is
waited for meanwhile grows unseen.

Memory also grows for reasons that are no messages. So what counts is growth within a window of time, less what caches
have grown by; and a stream, which may wait for its next message for ever, goes only if its connection has been seen to
receive meanwhile. That is looked at beside the event loop, once memory grows.

One coarse sweep looks at all of them, so that a small message costs no timer.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Set
from typing import Any, Final

import msgspec
from grpc import aio

from degrade.deadline import Ticker
from gateway.admission.auth import anonymous_name
from gateway.codec.grpc import address_of
from gateway.doors.buffered import Buffered
from gateway.problem import Problem, Refused, timed_out

Context = aio.ServicerContext[Any, Any]

SWEEP_SECONDS: Final = 0.05
"""How often messages on their way are looked at, and so how long one may take before it is counted: at 10 Gbit/s some
60 MB come in it."""


LATE_SECONDS: Final = 3 * SWEEP_SECONDS
"""A sweep that is so late was held up, and much may have come meanwhile."""

UNSEEN_PARTS: Final = 8
"""The part of what may be held that memory may grow by before anyone must go or wait."""

WINDOW_SECONDS: Final = 30.0
"""Growth is forgotten after once to twice this: the time that a first message may take (``server.body_timeout``)."""


QUIET_BYTES_A_SECOND: Final = 100_000
"""A stream is silent while no more comes by its connection: pings, and small calls."""


class ReceptionPorts(msgspec.Struct, frozen=True):
    """What a reception is wired to. ``memory``: bytes that this process has taken; None where that cannot be known.
    ``kept``: bytes of that which it knows of, in its caches and in ``buffered``. ``received``: how many bytes have come
    from each of these gRPC peers whose connection is known, now and a moment later; called on a thread of its own."""

    buffered: Buffered
    memory: Callable[[], int | None]
    kept: Callable[[], int]
    received: Callable[[Set[str]], tuple[Mapping[str, int], Mapping[str, int]]]
    ticker: Ticker


class Growth:
    """How far memory is above the least it was in the last WINDOW_SECONDS, up to twice that.

    What is known to be kept is no growth. Nor is it when much of that is let go at once (more than ``emptied_bytes``):
    it is counted otherwise than the process's memory, which is slow to be given back.
    """

    def __init__(self, emptied_bytes: int) -> None:
        self._emptied_bytes = emptied_bytes
        self.forget()

    def forget(self) -> None:
        self._with = self._without = (math.inf, math.inf)
        self._turn = -math.inf
        self._kept = 0

    def of(self, now: float, memory: int, kept: int) -> float:
        if now >= self._turn:
            self._turn = now + WINDOW_SECONDS
            self._with, self._without = (math.inf, self._with[0]), (math.inf, self._without[0])
        emptied = self._kept - kept if self._kept - kept > self._emptied_bytes else 0
        self._kept = kept
        self._with = (min(self._with[0], memory), self._with[1])
        newer, older = self._without
        self._without = (min(newer + emptied, memory - kept), older + emptied)
        return memory - max(min(self._with), kept + min(self._without))


class _Arrival:
    """One message that is waited for, no longer than ``seconds`` (None: it may be long in coming). ``young``: it began
    after the last sweep; ``turn``: it has not begun at all."""

    def __init__(self, context: Context, began: float, seconds: float | None) -> None:
        self.context = context
        self.began = began
        self.seconds = seconds
        self.limit = math.inf if seconds is None else began + seconds
        self.young = False
        self.turn: asyncio.Future[None] | None = None
        self.problem: Problem | None = None
        self.patience = asyncio.timeout(None)

    def end(self, problem: Problem) -> None:
        self.problem = problem
        self.patience.reschedule(0.0)


class Reception:
    """Waits for the messages of all calls."""

    def __init__(self, ports: ReceptionPorts, message_bytes_max: int) -> None:
        self._ports = ports
        self._message_bytes_max = message_bytes_max
        self._arrivals: dict[_Arrival, None] = {}
        self._turns: deque[_Arrival] = deque()
        self._young = 0
        self._sweeping = False
        self._swept = 0.0
        self._pressed = False
        self._growth = Growth(ports.buffered.bytes_max // UNSEEN_PARTS**2)
        self._looking: asyncio.Task[None] | None = None
        self._look_after = -math.inf
        self._seen: dict[_Arrival, tuple[float, int]] = {}
        self._receiving: set[_Arrival] = set()
        self.cut = 0

    async def first(self, context: Context, seconds: float) -> bytes | None:
        """A call's first message, which may take no longer than that; None if it has none. Raises Refused: 408, and
        503 when no more can be taken in."""
        return await self._wait(_Arrival(context, self._ports.ticker(), seconds))

    async def later(self, context: Context) -> bytes | None:
        """A later message of a stream, which may be long in coming; None at its end. Raises Refused (503)."""
        return await self._wait(_Arrival(context, self._ports.ticker(), None))

    async def _wait(self, arrival: _Arrival) -> bytes | None:
        self._arrivals[arrival] = None
        if not self._sweeping:
            self._sweeping, self._swept = True, arrival.began
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        try:
            async with arrival.patience:
                if arrival.seconds is not None:
                    await self._begin(arrival)
                message = await arrival.context.read()
        except TimeoutError:
            assert arrival.problem is not None, "nobody else ends it"
            raise Refused(arrival.problem) from None
        finally:
            del self._arrivals[arrival]
            if arrival.young:
                self._young -= 1
                if self._turns:
                    self._go_on()
        return message if isinstance(message, bytes) else None

    async def _begin(self, arrival: _Arrival) -> None:
        """At once, or while too much is coming in already, in its turn."""
        held_up = self._pressed or arrival.began > self._swept + LATE_SECONDS
        if held_up and self._young >= self._safe():
            arrival.turn = asyncio.get_running_loop().create_future()
            self._turns.append(arrival)
            await arrival.turn
        else:
            arrival.young = True
            self._young += 1

    def _go_on(self) -> None:
        """Let those begin for whom there is room."""
        safe = self._safe()
        while self._turns and (not self._pressed or self._young < safe):
            arrival = self._turns.popleft()
            if arrival in self._arrivals and arrival.turn is not None and not arrival.turn.done():
                arrival.young = True
                arrival.began = self._ports.ticker()
                self._young += 1
                arrival.turn.set_result(None)

    def _safe(self) -> int:
        """How many messages fit in half of what may still be held, however large they become."""
        buffered = self._ports.buffered
        return max(1, (buffered.bytes_max - buffered.bytes) // (2 * self._message_bytes_max))

    # -- the sweep --------------------------------------------------------------------------------

    def _sweep(self) -> None:
        self._sweeping = bool(self._arrivals)
        now = self._swept = self._ports.ticker()
        if not self._sweeping:
            self._pressed = False
            self._growth.forget()
            return
        asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        slow = []
        for each in self._arrivals:
            if each.problem is not None:
                continue
            if each.limit <= now:
                each.end(timed_out(f"The message did not arrive within {each.seconds:g} s."))
            elif self._is_slow(each):
                slow.append(each)
        self._cut(self._too_many(slow))
        for each in self._arrivals:
            each.young = False
        self._young = 0
        self._go_on()

    def _is_slow(self, arrival: _Arrival) -> bool:
        """Whether it is under way since before the last sweep, and may go on."""
        waiting = arrival.turn is not None and not arrival.turn.done()
        return not (arrival.young or waiting or arrival.problem is not None)

    def _too_many(self, slow: list[_Arrival]) -> list[_Arrival]:
        """Those that must go now."""
        memory, safe = self._ports.memory(), self._safe()
        if memory is None:  # then only what each may become can be gone by, and streams are silent most of the time
            first = [each for each in slow if each.seconds is not None]
            self._pressed = len(first) > safe
            return _ranked(first)[safe:]
        if not slow:
            self._growth.forget()
        grown = self._growth.of(self._swept, memory, self._ports.kept())
        unseen = self._ports.buffered.bytes_max // UNSEEN_PARTS
        if grown <= unseen // 2:
            self._seen, self._receiving = {}, set()
        else:
            self._look([each for each in slow if each.seconds is None])
        under_way = [each for each in slow if each.seconds is not None or each in self._receiving]
        self._pressed = grown > unseen and bool(under_way)
        return _ranked(under_way)[safe:] if self._pressed else []

    def _cut(self, arrivals: list[_Arrival]) -> None:
        for each in arrivals:
            self.cut += 1
            each.end(self._ports.buffered.refusal())

    # -- who is receiving -------------------------------------------------------------------------

    def _look(self, streams: list[_Arrival]) -> None:
        """See which of them are receiving: one look at a time, and as long a pause as the last one took."""
        if self._looking is None and streams and self._swept >= self._look_after:
            self._looking = asyncio.create_task(self._looked(streams))

    async def _looked(self, streams: list[_Arrival]) -> None:
        """Go by what is seen at once: the next sweep may be held up by a large message that is whole."""
        began = self._ports.ticker()
        try:
            told = await asyncio.to_thread(self._ports.received, {each.context.peer() for each in streams})
        finally:
            self._looking = None
        now = self._ports.ticker()
        self._look_after = now + (now - began)
        # One that was read meanwhile is no longer the same arrival: it was whole, and fills nothing.
        waiting = [each for each in streams if each in self._arrivals]
        for when, counts in zip((began, now), told, strict=True):
            self._compare(when, counts, waiting)
        self._receiving.intersection_update(self._arrivals)
        self._cut(self._too_many([each for each in self._arrivals if self._is_slow(each)]))

    def _compare(self, now: float, counts: Mapping[str, int], waiting: list[_Arrival]) -> None:
        """Whose connections have received since they were last seen. grpc takes from few of them at a time: who was
        seen receiving once is so for as long as the message is not whole, and memory is up."""
        before, self._seen = self._seen, {}
        for each in waiting:
            count = counts.get(each.context.peer())
            if count is not None:
                self._seen[each] = now, count
                then, known = before.get(each, (now, count))
                if count - known > QUIET_BYTES_A_SECOND * (now - then):
                    self._receiving.add(each)


def _ranked(arrivals: list[_Arrival]) -> list[_Arrival]:
    """The first of each address before the second of any, and of those the oldest first."""
    seen: Counter[str] = Counter()
    ranks = []
    for each in sorted(arrivals, key=lambda arrival: arrival.began):
        address = anonymous_name(address_of(each.context.peer()))
        ranks.append((seen[address], each.began, each))
        seen[address] += 1
    ranks.sort(key=lambda ranked: ranked[:2])
    return [each for _, _, each in ranks]
