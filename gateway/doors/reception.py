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

One coarse sweep looks at all of them, so that a small message costs no timer.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable
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


class ReceptionPorts(msgspec.Struct, frozen=True):
    """What a reception is wired to. ``memory``: bytes that this process has taken, less what is counted elsewhere; None
    where that cannot be known."""

    buffered: Buffered
    memory: Callable[[], int | None]
    ticker: Ticker


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
        self._before: int | None = None
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
            self._before, self._pressed = None, False
            return
        asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        slow = []
        for each in self._arrivals:
            if each.problem is not None:
                continue
            if each.limit <= now:
                each.end(timed_out(f"The message did not arrive within {each.seconds:g} s."))
            elif not (each.young or self._is_waiting(each)):
                slow.append(each)
        for each in self._too_many(slow):
            self.cut += 1
            each.end(self._ports.buffered.refusal())
        for each in self._arrivals:
            each.young = False
        self._young = 0
        self._go_on()

    def _is_waiting(self, arrival: _Arrival) -> bool:
        return arrival.turn is not None and not arrival.turn.done()

    def _too_many(self, slow: list[_Arrival]) -> list[_Arrival]:
        """Those that must go now."""
        memory, safe = self._ports.memory(), self._safe()
        if memory is None:  # then only what each may become can be gone by, and streams are silent most of the time
            slow = [each for each in slow if each.seconds is not None]
            self._pressed = len(slow) > safe
        else:
            self._before = memory if self._before is None or not slow else min(self._before, memory)
            self._pressed = memory - self._before > self._ports.buffered.bytes_max // UNSEEN_PARTS
        if not self._pressed:
            return []
        over = _ranked(slow)[safe:]
        # Of streams half, and then another look: most of them hold nothing.
        return [each for each in over if each.seconds is not None] or over[len(over) // 2 :]


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
