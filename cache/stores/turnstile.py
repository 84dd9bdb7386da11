"""Calls to something that may be ill: a bound in time, and a breaker's word before each.

Rule of this file: the first callers of what hangs wait for their time at most; from then on the answer is "open" at
once, and one look beside the calls, never a caller's own, finds out when it is well again. What speaks against one
value speaks for the store: it answered. A wait that ended far too late says that our own event loop stood still: the
answer may have been there, and nobody looked. It does not know what is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from msgspec import Struct

from cache.stores.store import NOT_ASKED, OF_ONE_KEY, Gate, Permit, StoreError

T = TypeVar("T")
Ticker = Callable[[], float]

WELL: Final = OF_ONE_KEY | {"full"}
"""Kinds after which a store can be read all the same."""
GRACE_SECONDS: Final = 0.005
"""What is called ends by itself in time; it is only cut off if it does not."""
STALL_SHARE: Final = 0.5
"""By what share of its time a wait must have been too long for being no proof."""
STALLS_MAX: Final = 3
"""Such waits one after another: the next is a proof all the same, or a store that hangs would cost every caller of a
process that has too much to do its whole time."""


class TurnstileOptions(Struct, frozen=True):
    """``trial_seconds``: what a look may take that decides whether all is well. ``proof_seconds``: a call that had less
    time and heard nothing proves nothing."""

    trial_seconds: float = 0.25
    proof_seconds: float = 0.0


class Turnstile:
    """Lets calls through, or not. Belongs to one event loop."""

    def __init__(
        self, gate: Gate, healthy: Callable[[float], Awaitable[bool]], now: Ticker, options: TurnstileOptions
    ) -> None:
        self._gate = gate
        self._healthy = healthy
        self._now = now
        self._options = options
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
            self._settle(permit, "timeout", began, seconds)
            raise StoreError("timeout", f"no answer within {seconds:.3g} s") from None
        except BaseException:  # cancelled, or our own bug: says nothing of the other side
            permit.ignored(self._now())
            raise
        self._stalls = 0
        permit.succeeded(self._now())
        return done

    def look(self) -> None:
        """See whether what is left alone is well again, if it is time to."""
        if self._gate.state == "closed" or self._looking is not None or not self._gate.allows(self._now()):
            return
        permit = self._gate.acquire(self._now())
        if permit is not None:
            self._looking = asyncio.get_running_loop().create_task(self._trial(permit))

    async def close(self) -> None:
        looking = self._looking
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

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
