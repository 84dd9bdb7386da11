"""What to try next when something failed: a table, failure x what remains -> one step down the ladder.

Rule of this file: the decision is a pure look-up. It does nothing, waits for nothing, and counts
nothing; the caller tells what is still possible (`Remains`), takes the step it gets, marks that step
as used up, and asks again when it failed too. So every walk ends in `Step.REFUSE`, which is always
possible. It must not know replicas, tiers, entries or clocks.

Who can take a step consults the table for it: the pool before it asks another replica, the cascade before it puts
another tier in a failing one's place, the pipeline for all that comes after the tiers.

The table says which steps make *sense* after a failure; the route's order says which are *wanted* and
in what order; `Remains` says which are *possible*. A step is taken only when all three agree.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec


class Failure(enum.Enum):
    """How an attempt failed. The value is the metric label and the log field."""

    UNREACHABLE = "unreachable"
    """No connection could be made."""
    DROPPED = "dropped"
    """It took the request and closed the connection without a byte of an answer: its end, or the request's doing."""
    BROKEN = "broken"
    """A model that is not there or has died, or an answer that makes no sense."""
    RAISED = "raised"
    """The model is there and answered with an error (5xx): its own fault, or that of this input."""
    OVERSIZED = "oversized"
    """An answer beyond our own bounds: what this request asks for, and nobody's illness."""
    TIMEOUT = "timeout"
    """No answer within the time it was given."""
    OVERLOADED = "overloaded"
    """Upstream said 429 or 503, or no connection of ours was free."""
    SHED = "shed"
    """Our own gate gave it no place: nobody was asked, and it says nothing of them."""
    LATE = "late"
    """The request's time was over before anyone was asked: it says nothing of them."""


class Step(enum.Enum):
    """A step down the ladder. The value is the word in configuration, metrics and provenance."""

    REPLICA = "replica"
    TIER = "tier"
    STALE = "stale"
    SNAPSHOT = "snapshot"
    DEFAULT = "default"
    REFUSE = "refuse"


class Remains(msgspec.Struct, frozen=True):
    """What is still possible for this request. ``time`` is False once its deadline is over."""

    replica: bool
    tier: bool
    stale: bool
    snapshot: bool = False
    default: bool = False
    time: bool = True


_FROM_MEMORY: Final = frozenset({Step.STALE, Step.SNAPSHOT, Step.DEFAULT})

TABLE: Final[Mapping[Failure, frozenset[Step]]] = MappingProxyType(
    {
        Failure.UNREACHABLE: _FROM_MEMORY | {Step.REPLICA, Step.TIER},
        Failure.DROPPED: _FROM_MEMORY | {Step.REPLICA, Step.TIER},
        Failure.BROKEN: _FROM_MEMORY | {Step.REPLICA, Step.TIER},
        # Another replica's answer tells whose fault it was.
        Failure.RAISED: _FROM_MEMORY | {Step.REPLICA, Step.TIER},
        # The answer is as large elsewhere; a bound of ours is no reason to fetch it twice. Nor is anybody ill in whose
        # place a declared default stood: who asks for so much must learn of it.
        Failure.OVERSIZED: _FROM_MEMORY - {Step.DEFAULT},
        # The same work on a like machine would only double the wait (and the load); another tier is
        # other work, and it gets what is left of the deadline.
        Failure.TIMEOUT: _FROM_MEMORY | {Step.TIER},
        # One full replica says nothing of the next one; the retry budget keeps this from feeding an
        # overload that is everywhere.
        Failure.OVERLOADED: _FROM_MEMORY | {Step.REPLICA, Step.TIER},
        # An earlier tier's answer will do; the cascade asks no larger tier in place of one that is full, for that
        # would hand the load on to what can bear it least.
        Failure.SHED: _FROM_MEMORY | {Step.TIER},
        Failure.LATE: _FROM_MEMORY,
    }
)
"""Failure -> the steps that make sense after it. A failure that is not here is a bug (KeyError)."""


def next_step(failure: Failure, remains: Remains, order: Sequence[Step]) -> Step:
    """The first step of ``order`` that makes sense after ``failure`` and is still possible.

    `Step.REFUSE` when there is none, or where ``order`` itself names it. Raises KeyError for a
    failure or a step without a table entry: that is a bug of ours, never the world's.
    """
    sensible = TABLE[failure]
    possible = _possible(remains)
    for step in order:
        if step is Step.REFUSE:
            break
        if possible[step] and step in sensible:
            return step
    return Step.REFUSE


def _possible(remains: Remains) -> dict[Step, bool]:
    return {
        Step.REPLICA: remains.replica and remains.time,
        Step.TIER: remains.tier and remains.time,
        Step.STALE: remains.stale,
        Step.SNAPSHOT: remains.snapshot,
        Step.DEFAULT: remains.default,
    }
