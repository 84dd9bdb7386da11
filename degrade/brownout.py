"""How much less to do while there is too much to do: a level from 0 to 4, and why.

Rule of this file: a state machine of numbers and moments; it reads no clock and does nothing itself. What a level means
is for those to do who ask for it:

    0  everything
    1  nothing that no caller waits for: no audits, shadows, hedges, refreshes
    2  the fast tier's word only, where a route allows it
    3  an old answer first, where a route allows it and there is one
    4  the lowest priority is not served

Up fast: to whatever level the signals have asked for, for ``up`` seconds on end. Down slowly: one level at a time, each
after ``down`` seconds in which the signals asked for less *with a margin*: what a level takes off the load is what
makes the signals fall, so a level that ended with its cause would begin again at once.

After the "dimmer" of C. Klein et al., "Brownout: building more robust cloud applications", ICSE 2014.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

NO_REFRESHES: Final = 1
FIRST_TIER: Final = 2
STALE_FIRST: Final = 3
SHED_LOWEST: Final = 4

LEVELS: Final = 4

MARGIN: Final = 0.7
"""The share of a threshold below which a signal must be for the level to end."""


_SLACK: Final = 1e-9
"""Three tenths less a tenth are not two, whatever they should be."""


class Signals(msgspec.Struct, frozen=True):
    """``queue``: how much of its time the oldest that waits has used up (0 to 1); ``shed``: the share of requests that
    found no place lately (0 to 1); ``lag``: seconds by which the event loop is late."""

    queue: float = 0.0
    shed: float = 0.0
    lag: float = 0.0


class BrownoutOptions(msgspec.Struct, frozen=True):
    """From which value of each signal on there is which level, in seconds or shares; ``up`` and ``down`` in seconds."""

    queue: tuple[float, ...]
    shed: tuple[float, ...]
    lag: tuple[float, ...]
    up: float
    down: float

    def __post_init__(self) -> None:
        if not len(self.queue) == len(self.shed) == len(self.lag) == LEVELS:
            raise ValueError(f"a signal has a threshold for each of {LEVELS} levels")


class Turned(msgspec.Struct, frozen=True):
    """One change of level. ``reason`` is the signal that asked for it, or "calm"; ``value`` is what it was."""

    before: int
    after: int
    reason: str
    value: float
    at: float


class Brownout:
    """The level of one thing that may have too much to do. Feed it often: oftener than ``up``."""

    def __init__(self, options: BrownoutOptions) -> None:
        self._options = options
        self._above: float | None = None  # since when more is asked for
        self._asked = LEVELS  # the least that was asked for since then
        self._below: float | None = None  # since when less is
        self.level = 0

    def observe(self, signals: Signals, now: float) -> Turned | None:
        """What the signals are now; the change that this brings, if any."""
        wanted, reason, value = self._wanted(signals, 1.0)
        if wanted > self.level:
            self._below = None
            if self._above is None:
                self._above, self._asked = now, wanted
            self._asked = min(self._asked, wanted)
            if now - self._above >= self._options.up - _SLACK:
                return self._turn(self._asked, reason, value, now)
            return None
        self._above = None
        calm, _, _ = self._wanted(signals, MARGIN)
        if calm >= self.level:
            self._below = None
            return None
        if self._below is None:
            self._below = now
        if now - self._below >= self._options.down - _SLACK:
            return self._turn(self.level - 1, "calm", 0.0, now)
        return None

    def _wanted(self, signals: Signals, margin: float) -> tuple[int, str, float]:
        """The highest level that a signal asks for, which one, and its value."""
        options = self._options
        found = (0, "", 0.0)
        told = (("queue", signals.queue, options.queue), ("shed", signals.shed, options.shed))
        for name, value, thresholds in (*told, ("lag", signals.lag, options.lag)):
            level = 0 if math.isnan(value) else sum([value >= margin * each for each in thresholds])
            if level > found[0]:
                found = level, name, value
        return found

    def _turn(self, level: int, reason: str, value: float, now: float) -> Turned:
        before, self.level = self.level, level
        self._above, self._asked = None, LEVELS
        self._below = now if level < before else None
        return Turned(before, level, reason, value, now)
