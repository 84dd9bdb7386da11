"""How a replica is watched: asked whether it is ready, now and then while it is well, often while it is in doubt.

Rule of this file: one question at a time at each replica, each bounded in time, so that asking harms nobody who is
ill. What is learnt opens and closes the breaker of being reached; what is known of a server's models goes with the
server. It must not choose a replica, nor know who asks one for what.
"""

from __future__ import annotations

import math
import random as chance
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from msgspec import Struct

from degrade.breaker import Breaker, Change
from degrade.deadline import Deadline, Ticker
from degrade.ladder import Failure
from tiers.backends.call import Call
from tiers.inference import UpstreamError
from tiers.seat import Doubt, Seat

Sleep = Callable[[float], Awaitable[None]]

READY_PATH: Final = "/v2/health/ready"
NOT_SPOKEN: Final = frozenset({301, 302, 303, 307, 308, 401, 403, 404, 405, 501})
"""What a server says to Triton's question whether it is ready that speaks something else: it lives. A Triton that is
not ready says 400."""

TURN_SECONDS: Final = 0.25
"""Between two questions at a replica in doubt at least, and how soon a doubt is seen: what callers can lose after it is
well again. A question is one small GET, which a Triton answers thousands of times a second."""
DOUBT_SHARE: Final = 0.02
"""The pause grows with the doubt: a replica that was away for a minute is found a fiftieth of that later at most, and
one that is away all night is asked as seldom as one that is well."""
SPREAD: Final = 0.25
"""By which share a pause is longer or shorter, so that many gateways do not ask in step."""

COUNTED_SHARE: Final = 0.9
"""Of the interval: so long after one failed question the next counts. Haste opens no breaker sooner."""


class Probe(Struct, frozen=True):
    """How a replica is asked whether it is ready: a GET of ``path``, to which 2xx says yes. ``foreign``: so does the
    answer of a server that does not know the question."""

    path: str = READY_PATH
    foreign: bool = False

    def is_ready(self, status: int) -> bool:
        return 200 <= status < 300 or (self.foreign and status in NOT_SPOKEN)


class WatchOptions(Struct, frozen=True):
    """``timeout``: seconds for one answer."""

    probe: Probe
    timeout: float


class Hears(Protocol):
    """Who owns the replica; a Pool in life."""

    def renewed(self, seat: Seat, change: Change) -> Breaker:
        """The replica is reached again: a breaker for it that knows nothing."""

    def told(self) -> None:
        """A replica has been asked, whatever came of it, and it is known when it is asked next."""


class Watch:
    """Asks one replica. Belongs to one event loop."""

    def __init__(
        self,
        seat: Seat,
        options: WatchOptions,
        now: Ticker,
        random: chance.Random,
        hears: Hears,
    ) -> None:
        self._seat = seat
        self._options = options
        self._now = now
        self._random = random
        self._hears = hears
        self._doubt = Doubt.NONE
        self._doubted_since = 0.0
        self._interval = 0.0
        self._failed_at = -math.inf

    async def run(self, interval: float, sleep: Sleep) -> None:
        """Ask for ever: ``interval`` seconds apart, and in doubt oftener; cancel it to stop."""
        self._interval = interval
        while True:
            await self.ask()
            await self._rest(interval, sleep)

    async def ask(self) -> None:
        """Ask once. Never raises for a replica."""
        seat, began = self._seat, self._now()
        seat.due = began
        call = Call("GET", self._options.probe.path, probe=True, anew=seat.reach.state != "closed")
        try:
            reply = await seat.replica.exchange(call, Deadline.after(began, self._options.timeout), began)
        except UpstreamError as error:
            if error.failure is Failure.OVERLOADED and error.before_answer:
                return  # it was not asked
            seat.probed, seat.ready = True, False
            self._fail(f"probe-{error.failure.value}")
            return
        was_ready, seat.probed, seat.ready = seat.ready, True, self._options.probe.is_ready(reply.status)
        was_reached = seat.reach.state == "closed"
        if not was_reached:
            # It answers, whatever it says: what was learnt is about a server that is gone.
            reason = "probe-ready" if seat.ready else "probe-answered"
            seat.reach = self._hears.renewed(seat, Change(seat.reach.state, "closed", reason, self._now()))
        if seat.ready and not (was_ready and was_reached):
            seat.renew()

    def _fail(self, reason: str) -> None:
        """Speak against it, no more often than by the interval."""
        now = self._now()
        if now - self._failed_at < COUNTED_SHARE * self._interval:
            return
        permit = self._seat.reach.acquire(now)
        if permit is not None:
            self._failed_at = now
            permit.failed(now, reason)

    async def _rest(self, interval: float, sleep: Sleep) -> None:
        """Until the next question: a doubt that comes meanwhile ends the rest."""
        began, spread = self._now(), 1.0 + SPREAD * (2.0 * self._random.random() - 1.0)
        self._put_off(interval, began, spread)
        self._hears.told()
        while (now := self._now()) < self._seat.due:
            await sleep(min(self._seat.due - now, TURN_SECONDS))
            self._put_off(interval, began, spread)

    def _put_off(self, interval: float, began: float, spread: float) -> None:
        """Say when the next question is due, as things stand."""
        pause = self._pause(interval, self._now())
        self._seat.due = began + (pause if pause >= interval else spread * pause)

    def _pause(self, interval: float, now: float) -> float:
        """Seconds, as things stand."""
        before, self._doubt = self._doubt, self._seat.doubt
        if self._doubt is Doubt.NONE:
            return interval
        if self._doubt is not before:
            self._doubted_since = now
        return min(interval, max(TURN_SECONDS, DOUBT_SHARE * (now - self._doubted_since)))
