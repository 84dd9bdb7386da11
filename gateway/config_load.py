"""What an operator may say of load: how much a backend is given at once, who goes first, and when to do less.

Rule of this file: values, and what may be wrong with one of them, as in ``gateway/config.py``, of which these are
sections.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, field

from degrade.brownout import BrownoutOptions
from degrade.gate import GateOptions, Priority
from degrade.limiter import LimiterOptions
from degrade.points import elasticity_of
from gateway.ranges import WAIT_MAX, WAIT_MIN, Positive, seconds, within
from gateway.schema import Fault
from gateway.units import Seconds
from tiers.gates import GatesOptions

U = TypeVar("U", Priority, None)

PriorityWord = Literal["high", "normal", "low"]

FIRST_PER_REPLICA: Final = 16
"""Where the limit begins, for each replica. It doubles while that brings more; a model that takes a tenth of a second,
one at a time, has sixteen answered in time where sixty-four would all be late."""

LEAST_PER_REPLICA: Final = 2
"""Of each replica's places: one at work, and one on its way to it."""

_Share = Annotated[float, Meta(gt=0, le=1)]


def _lags() -> tuple[Seconds, Seconds, Seconds, Seconds]:
    return Seconds.parse("250ms"), Seconds.parse("500ms"), Seconds.parse("1s"), Seconds.parse("2s")


def priority_of(word: PriorityWord | None, unsaid: U) -> Priority | U:
    """A configured priority; ``unsaid`` where nothing is said."""
    return unsaid if word is None else Priority[word.upper()]


def _counted(replicas: int) -> str:
    return f"{replicas} replica{'' if replicas == 1 else 's'}"


class Concurrency(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many requests a model of a backend gets at once, and how others wait. None: see the options that it makes."""

    adaptive: bool = True
    min: Positive | None = None
    max: Positive | None = None
    gain: Annotated[float, Meta(gt=0, lt=0.3)] = 0.07
    waiting_max: Positive = 4096
    wait_max: Seconds | None = None

    def faults(self) -> Iterator[Fault]:
        if self.min is not None and self.max is not None and self.min > self.max:
            yield "min", f"is above max ({self.min} > {self.max})"
        if self.min is not None and not self.adaptive:
            yield "min", "has no effect where adaptive is false, for the limit is max then; leave it out"
        if self.wait_max is not None:
            yield from within(WAIT_MIN, WAIT_MAX, wait_max=self.wait_max)

    def beyond(self, replicas: int, connections_max: int) -> Iterator[Fault]:
        """Bounds that so many connections to each of so many replicas can never come to. What is more than those would
        wait for a connection, where nobody has priority, and not before the gates."""
        places = replicas * connections_max
        for key, bound in (("min", self.min), ("max", self.max)):
            if bound is not None and bound > places:
                given = f"{_counted(replicas)} with connections_max = {connections_max} can be asked {places} at once"
                yield key, f"is {bound}, and {given}; lower it, or raise connections_max"

    def options(self, replicas: int, connections_max: int) -> GatesOptions:
        """For a backend of so many replicas, with so many connections to each. As much as those allow is given at most,
        and less if an operator knows better."""
        most = replicas * connections_max if self.max is None else self.max
        least = LEAST_PER_REPLICA * replicas if self.min is None else self.min
        first = min(max(FIRST_PER_REPLICA * replicas, least), most)
        worth = elasticity_of(self.gain)
        limiter = LimiterOptions(min(least, most), most, first, adaptive=self.adaptive, elasticity=worth)
        return GatesOptions(limiter, GateOptions(self.waiting_max, None if self.wait_max is None else
        float(self.wait_max)))


class Brownout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From which load on the gateway does less: for each signal four thresholds, one for each level."""

    enabled: bool = True
    queue: tuple[_Share, _Share, _Share, _Share] = (0.1, 0.3, 0.5, 0.75)
    shed: tuple[_Share, _Share, _Share, _Share] = (0.02, 0.1, 0.25, 0.5)
    lag: tuple[Seconds, Seconds, Seconds, Seconds] = field(default_factory=_lags)
    up: Seconds = seconds("200ms")
    down: Seconds = seconds("1s")

    def faults(self) -> Iterator[Fault]:
        for name, levels in (("queue", self.queue), ("shed", self.shed), ("lag", self.lag)):
            if any(above < below for below, above in pairwise(levels)):
                yield name, "must not fall from one level to the next"
        for index, lag in enumerate(self.lag):
            yield from ((f"lag[{index}]", said) for _, said in within(WAIT_MIN, WAIT_MAX, lag=lag))
        yield from within(WAIT_MIN, WAIT_MAX, up=self.up, down=self.down)

    @property
    def options(self) -> BrownoutOptions:
        """As the state machine knows them."""
        lag = tuple(float(each) for each in self.lag)
        return BrownoutOptions(self.queue, self.shed, lag, float(self.up), float(self.down))
