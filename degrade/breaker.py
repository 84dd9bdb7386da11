"""A circuit breaker: stop asking what keeps failing, and find out cheaply when it is well again.

Rule of this file: three states, objects with the same methods; an event gives `None` (nothing
changes) or (new state, reason). Whoever may call gets a `Permit` and ends it exactly once; or, where to make
one would be much of what the call costs, no more than `Leave`, and sees to that itself. Either
speaks only to the state that gave it: an answer to a call made before the breaker opened says
nothing of the trial that runs now. It must not know what is called, nor read a clock.

    closed --(consecutive-failures | failure-ratio)--> open --(trial)--> half_open
    half_open --(trials-succeeded)--> closed          half_open --(trial-failed)--> open, for longer

States after failsafe-go; permits after Netflix' concurrency-limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import msgspec

from degrade.health import Outcomes


class BreakerOptions(msgspec.Struct, frozen=True):
    """When to open, for how long, and how to try again.

    Opens after ``consecutive_failures`` in a row, or when at least ``failure_ratio`` of the (at
    least ``volume_min``) outcomes of the last ``window`` seconds failed. Stays open ``open_seconds``,
    doubled with every failed trial up to ``open_seconds_max``. Half open, ``trials`` calls run at
    once, and that many must succeed.
    """

    consecutive_failures: int = 5
    failure_ratio: float = 0.5
    volume_min: int = 10
    window: float = 10.0
    open_seconds: float = 1.0
    open_seconds_max: float = 30.0
    trials: int = 1

    def __post_init__(self) -> None:
        if min(self.consecutive_failures, self.volume_min, self.trials) < 1:
            raise ValueError("consecutive_failures, volume_min and trials are at least 1")
        if not 0.0 < self.failure_ratio <= 1.0:
            raise ValueError("failure_ratio is above 0 and at most 1")
        if self.window <= 0.0 or not 0.0 < self.open_seconds <= self.open_seconds_max:
            raise ValueError("window and open_seconds are above 0, open_seconds_max at least open_seconds")


class Change(msgspec.Struct, frozen=True):
    """One change of state. ``cause`` is what the last failure said ("" when it was no failure)."""

    before: str
    after: str
    reason: str
    at: float
    cause: str = ""


_Turn = tuple["_State", str]


class _State(Protocol):
    """What each state answers; `begin` and `end` may turn it into another."""

    @property
    def name(self) -> str: ...
    def allows(self, now: float) -> bool: ...
    def begin(self, now: float) -> _Turn | None: ...
    def end(self, ok: bool | None, now: float) -> _Turn | None: ...
    def retry_after(self, now: float) -> float: ...


Leave = _State
"""Leave to make one call: the state that gave it."""


class _Closed:
    name = "closed"

    def __init__(self, options: BreakerOptions) -> None:
        self._options = options
        self._outcomes = Outcomes(options.window)

    def allows(self, now: float) -> bool:
        return True

    def begin(self, now: float) -> _Turn | None:
        return None

    def end(self, ok: bool | None, now: float) -> _Turn | None:
        if ok is None:
            return None
        self._outcomes.add(ok, now)
        if ok:
            return None
        options = self._options
        if self._outcomes.consecutive_failures >= options.consecutive_failures:
            return _Open(options, now, 0), "consecutive-failures"
        succeeded, failed = self._outcomes.counts(now)
        total = succeeded + failed
        if total >= options.volume_min and failed >= options.failure_ratio * total:
            return _Open(options, now, 0), "failure-ratio"
        return None

    def retry_after(self, now: float) -> float:
        return 0.0


class _Open:
    name = "open"

    def __init__(self, options: BreakerOptions, now: float, trials_failed: int) -> None:
        self._options = options
        self._trials_failed = trials_failed
        # The exponent is bounded so that a night of failed trials does not overflow a float.
        self._until = now + min(
            options.open_seconds * 2.0 ** min(trials_failed, 64), options.open_seconds_max
        )

    def allows(self, now: float) -> bool:
        return now >= self._until

    def begin(self, now: float) -> _Turn | None:
        return _HalfOpen(self._options, self._trials_failed), "trial"

    def end(self, ok: bool | None, now: float) -> _Turn | None:
        raise AssertionError("an open breaker gives no permits, so none can end")

    def retry_after(self, now: float) -> float:
        return max(0.0, self._until - now)


class _HalfOpen:
    name = "half_open"

    def __init__(self, options: BreakerOptions, trials_failed: int) -> None:
        self._options = options
        self._trials_failed = trials_failed
        self._running = 0
        self._succeeded = 0

    def allows(self, now: float) -> bool:
        # Successes hold their place: never more calls than could still be needed to close.
        return self._running + self._succeeded < self._options.trials

    def begin(self, now: float) -> _Turn | None:
        self._running += 1
        return None

    def end(self, ok: bool | None, now: float) -> _Turn | None:
        self._running -= 1
        if ok is None:
            return None
        if not ok:
            return _Open(self._options, now, self._trials_failed + 1), "trial-failed"
        self._succeeded += 1
        if self._succeeded >= self._options.trials:
            return _Closed(self._options), "trials-succeeded"
        return None

    def retry_after(self, now: float) -> float:
        # How long the running trial takes is unknown; one open time is a fair guess.
        return 0.0 if self.allows(now) else self._options.open_seconds


class Permit:
    """Leave to make one call. End it exactly once; ending it twice is a bug (AssertionError)."""

    __slots__ = ("_began", "_breaker", "_ended", "_state")

    def __init__(self, breaker: Breaker, state: _State, began: float) -> None:
        self._breaker = breaker
        self._state = state
        self._began = began
        self._ended = False
        breaker.under_way += 1

    def succeeded(self, now: float) -> None:
        """The call was answered, and the answer was good."""
        self._end(True, now, "")

    def failed(self, now: float, reason: str) -> None:
        """The call failed in a way that speaks against what was called; ``reason`` is one word."""
        self._end(False, now, reason)

    def silent(self, now: float, reason: str) -> None:
        """No answer came in time. A failure, unless another call was answered since this one began: then it was
        this call, or its connection, and not what was called. Many calls that fell silent together are no proof."""
        answered = self._breaker.answered_since(self._began)
        self._end(None if answered else False, now, "" if answered else reason)

    def ignored(self, now: float) -> None:
        """The call says nothing: cancelled by its caller, or refused as the caller's own fault."""
        self._end(None, now, "")

    def _end(self, ok: bool | None, now: float, cause: str) -> None:
        if self._ended:
            raise AssertionError("a permit ends exactly once")
        self._ended = True
        self._breaker.under_way -= 1
        self._breaker.end(self._state, ok, now, cause)


class Breaker:
    """One breaker, for one thing that can fail. ``on_change`` hears every change of state, at once."""

    def __init__(self, options: BreakerOptions, on_change: Callable[[Change], None] | None = None) -> None:
        self._on_change = on_change
        self._state: _State = _Closed(options)
        self._answered_at = -math.inf
        self.under_way = 0
        """Permits that have not ended."""

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half_open``. An open one turns half open with its first trial."""
        return self._state.name

    def answered_since(self, then: float) -> bool:
        """Whether a call was answered well after ``then``."""
        return self._answered_at > then

    def allows(self, now: float) -> bool:
        """Whether `acquire` would give a permit now. Changes nothing."""
        return self._state.allows(now)

    def acquire(self, now: float) -> Permit | None:
        """A permit for one call, or None when the breaker says no."""
        leave = self.begin(now)
        return None if leave is None else Permit(self, leave, now)

    def begin(self, now: float) -> Leave | None:
        """The same without a permit: who gets leave must `end` it, exactly once."""
        state = self._state
        if type(state) is _Closed:
            return state  # it lets everybody, and counts them at their end
        if not state.allows(now):
            return None
        turn = state.begin(now)
        if turn is None:
            return state
        self._turn(turn, now, "")
        # The new state counts this call too; a state that lets calls begin never turns twice.
        self._state.begin(now)
        return self._state

    def end(self, leave: Leave, ok: bool | None, now: float, cause: str = "") -> None:
        """End a call: well, badly and why, or (None) so that it says nothing."""
        if ok:
            self._answered_at = now
        if leave is not self._state:
            return
        turn = leave.end(ok, now)
        if turn is not None:
            self._turn(turn, now, cause)

    def retry_after(self, now: float) -> float:
        """Seconds until a call may be allowed again; 0 when one is allowed now."""
        return self._state.retry_after(now)

    def _turn(self, turn: _Turn, now: float, cause: str) -> None:
        before = self._state.name
        self._state, reason = turn
        if self._on_change is not None:
            self._on_change(Change(before, self._state.name, reason, now, cause))
