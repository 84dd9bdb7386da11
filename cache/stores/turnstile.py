"""Calls to something that may be ill: a bound in time, and a breaker's word before each.

Rule of this file: the first callers of what hangs wait for their time at most; from then on the answer is "open" at
once, and one look beside the calls, never a caller's own, finds out when it is well again. What speaks against one
value, or against how much was asked, speaks for the store: it answered. A wait that ended far too late says that our
own event loop stood still: the answer may have been there, and nobody looked. It does not know what is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

from msgspec import Struct

from cache.stores.store import NOT_ASKED, OF_ONE_KEY, Gate, Permit, StoreError

T = TypeVar("T")
Ticker = Callable[[], float]


class Timer(Protocol):
    """Something that will be done (asyncio.TimerHandle)."""

    def cancel(self) -> None: ...


Later = Callable[[float, Callable[[], None]], Timer]
"""(seconds, what is done then)."""

WELL: Final = OF_ONE_KEY | {"full", "late"}
"""Kinds after which a store can be read all the same."""
GRACE_SECONDS: Final = 0.02
"""What is called ends by itself in time; it is only cut off if it does not. For so long the event loop may have been
busy without what was found being lost."""
STALL_SHARE: Final = 0.5
"""By what share of its time a wait must have been too long for being no proof."""
STALLS_MAX: Final = 3
"""Such waits one after another: the next is a proof all the same, or a store that hangs would cost every caller of a
process that has too much to do its whole time."""


LOOK_SECONDS_MIN: Final = 0.01
"""Until it is tried again to look at what may be looked at any moment."""


class TurnstileOptions(Struct, frozen=True):
    """``trial_seconds``: what a look may take that decides whether all is well. ``proof_seconds``: a call that had less
    time and heard nothing proves nothing."""

    trial_seconds: float = 0.25
    proof_seconds: float = 0.0


class Turnstile:
    """Lets calls through, or not; while not, it looks by itself, as often as ``gate`` allows: whoever comes first after
    a quiet time is not to pay for an outage that has long been over. Belongs to one event loop."""

    def __init__(
        self,
        gate: Gate,
        healthy: Callable[[float], Awaitable[bool]],
        now: Ticker,
        options: TurnstileOptions,
        later: Later | None = None,
    ) -> None:
        """``later``: by ``now``'s clock; the event loop's own if it is None."""
        self._gate = gate
        self._healthy = healthy
        self._now = now
        self._options = options
        self._later = later
        self._timer: Timer | None = None
        self._ended = False
        self._looking: asyncio.Task[None] | None = None
        self._stalls = 0

    async def call(self, work: Callable[[], Awaitable[T]], seconds: float) -> T:
        """What ``work`` gives, within ``seconds``. Raises StoreError, "open" if it was not called."""
        if self._gate.state != "closed":
            self.look()
            raise StoreError("open", "left alone for a while")
        permit = self._gate.acquire(self._now())
        if permit is None:
            raise StoreError("open", "left alone for a while")
        began = self._now()
        try:
            async with asyncio.timeout(seconds + GRACE_SECONDS):
                done = await work()
        except StoreError as error:
            self._settle(permit, error.kind, began, seconds)
            raise
        except TimeoutError:
            self._settle(permit, "timeout", began + GRACE_SECONDS, seconds)
            raise StoreError("timeout", f"no answer within {seconds:.3g} s") from None
        except BaseException:  # cancelled, or our own bug: says nothing of the other side
            permit.ignored(self._now())
            raise
        self._stalls = 0
        permit.succeeded(self._now())
        return done

    def look(self) -> None:
        """See whether what is left alone is well again, if it is time to."""
        if self._ended or self._gate.state == "closed" or self._looking is not None:
            return
        permit = self._gate.acquire(self._now())
        if permit is None:
            self._look_later()
        else:
            self._looking = asyncio.get_running_loop().create_task(self._trial(permit))

    def end(self) -> None:
        """Look no more."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()

    async def close(self) -> None:
        """The same, and wait until nobody looks."""
        self.end()
        if self._looking is not None:
            await asyncio.gather(self._looking, return_exceptions=True)

    def _look_later(self) -> None:
        if self._ended or self._timer is not None or self._gate.state == "closed":
            return
        later = self._later or asyncio.get_running_loop().call_later
        self._timer = later(max(self._gate.retry_after(self._now()), LOOK_SECONDS_MIN), self._look_now)

    def _look_now(self) -> None:
        self._timer = None
        self.look()

    def _settle(self, permit: Permit, kind: str, began: float, seconds: float) -> None:
        now = self._now()
        stalled = kind == "timeout" and now - began > seconds * (1.0 + STALL_SHARE)
        self._stalls = self._stalls + 1 if stalled else 0
        if kind in WELL:
            permit.succeeded(now)
        elif kind in NOT_ASKED:  # nodes of a cluster have breakers of their own
            permit.ignored(now)
        elif kind != "timeout":
            permit.failed(now, kind)
        elif seconds >= self._options.proof_seconds and not 0 < self._stalls <= STALLS_MAX:
            permit.silent(now, kind)
        else:
            permit.ignored(now)
        self._look_later()

    async def _trial(self, permit: Permit) -> None:
        well: bool | None = None
        try:
            async with asyncio.timeout(self._options.trial_seconds + GRACE_SECONDS):
                well = await self._healthy(self._options.trial_seconds)
        except TimeoutError:
            well = False
        finally:
            self._looking = None
            if well is None:
                permit.ignored(self._now())
            elif well:
                permit.succeeded(self._now())
            else:
                permit.failed(self._now(), "unhealthy")
            self._look_later()
