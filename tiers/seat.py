"""One replica of a backend, and how each call there speaks for it or against it.

Rule of this file: a call is in flight until it ends, and ends its permits exactly once, by how it went; what one
request can bring about speaks against nobody. It must not choose a replica, or ask another one.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol, Self

from msgspec import Struct

from degrade.breaker import Breaker, Leave, Permit
from degrade.deadline import Deadline, Ticker
from degrade.ladder import Failure
from tiers.backends.call import Call, Reply, Streamed
from tiers.backends.relaying import Listener, Place
from tiers.inference import NOT_ASKED, InferRequest, InferResponse, Rejected, UpstreamError

BEFORE_MAX: Final = 1024
"""Models, or versions of them, of which it stays known that a replica has answered for them before it was away."""


class Carried(Protocol):
    """A call on its way to a replica, whose answer goes to a listener; Relaying in life."""

    def resume(self) -> None: ...
    def abort(self) -> None: ...


class Replica(Protocol):
    """One server of a backend; TritonHttp in life. Raises only UpstreamError and Rejected."""

    @property
    def url(self) -> str: ...
    async def infer(self, request: InferRequest, deadline: Deadline, now: float) -> InferResponse: ...
    async def exchange(self, call: Call, deadline: Deadline, now: float) -> Reply: ...
    def stream(self, call: Call, deadline: Deadline, now: float) -> AbstractAsyncContextManager[Streamed]: ...
    def relay(self, call: Call, body: bytes, listener: Listener, place: Place, seconds: float) -> Carried: ...
    async def close(self) -> None: ...


class ReplicaState(Struct, frozen=True):
    """For metrics and readiness. ``breaker`` is closed, open or half_open; ``ready`` is what the last probe
    said, False before the first; ``models_open`` names models that fail there."""

    url: str
    breaker: str
    in_flight: int
    ready: bool
    models_open: tuple[str, ...] = ()


def key_of(model: str, version: str) -> str:
    """What a model's answers are judged by. A version is by itself: a wrong one must not speak against the others."""
    return f"{model}/{version}" if version else model


class Doubt(enum.Enum):
    """Why a replica may not be well."""

    NONE = "none"
    MODELS = "models"
    SERVER = "server"


class Seat:
    """A replica and what is known of it."""

    __slots__ = ("answers", "before", "due", "in_flight", "label", "probed", "reach", "ready", "replica")

    def __init__(self, replica: Replica, reach: Breaker, label: str = "") -> None:
        """``label``: what decides which sequences live here; the replica's URL, if it is empty."""
        self.replica = replica
        self.label = label or replica.url
        self.reach = reach
        self.answers: OrderedDict[str, Breaker] = OrderedDict()
        self.before: dict[str, None] = {}
        """What it may have answered for before it was away: that may be kept somewhere still."""
        self.in_flight = 0
        self.probed = False
        self.ready = True  # until a probe says otherwise: a pool must work before its first probe
        self.due = math.inf
        """When it will be asked next whether it is ready."""

    @property
    def doubt(self) -> Doubt:
        """What is known against it that its next probe may find to be over."""
        if self.reach.state != "closed" or not self.ready:
            return Doubt.SERVER
        return Doubt.MODELS if any(each.state != "closed" for each in self.answers.values()) else Doubt.NONE

    def state(self) -> ReplicaState:
        """The replica as it is seen from here."""
        failing = tuple(key for key, breaker in self.answers.items() if breaker.state != "closed")
        return ReplicaState(self.replica.url, self.reach.state, self.in_flight, self.ready and self.probed, failing)

    def may_have_answered(self, model: str) -> bool:
        """Whether it has answered for a model, in any version, or is being asked, as far as its breakers remember."""
        keys = _keys_of(model, self.answers)
        return any(_may_have(self.answers[key]) for key in keys) or bool(_keys_of(model, self.before))

    def forget(self, model: str) -> None:
        """What a model's answers have taught, in every version."""
        for key in _keys_of(model, self.answers):
            del self.answers[key]
        for key in _keys_of(model, self.before):
            del self.before[key]

    def renew(self) -> None:
        """It is back after it was away: what its answers have taught was about a server that is gone. Not so, that it
        has given some."""
        for key, breaker in self.answers.items():
            if _may_have(breaker):
                self.before[key] = None
        self.answers.clear()
        while len(self.before) > BEFORE_MAX:
            del self.before[next(iter(self.before))]

    def reached_in(self, now: float) -> float:
        """Seconds until it may be tried: by its breaker's leave, or by its next probe."""
        return min(self.reach.retry_after(now), max(0.0, self.due - now))


def _may_have(breaker: Breaker) -> bool:
    """Whether something has been answered, or may be now."""
    return breaker.under_way > 0 or breaker.answered_since(-math.inf)


def _keys_of(model: str, keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key == model or key.startswith(f"{model}/")]


class Leaves(Struct, frozen=True, gc=False):
    """What one call at one replica must end; ``answers`` None for a call that is about no model."""

    reach: Leave
    answers: Permit | None


class Judged:
    """One call at a replica: in flight until the block ends, and judged by how it ends."""

    __slots__ = ("_had_time", "_leaves", "_now", "_proof", "_seat")

    def __init__(self, seat: Seat, leaves: Leaves, now: Ticker, proof: float, had_time: bool) -> None:
        """``proof``: from when on silence speaks against the model; ``had_time``: it was given until then."""
        self._seat = seat
        self._now = now
        self._leaves: Leaves | None = leaves
        self._proof = proof
        self._had_time = had_time
        seat.in_flight += 1

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._seat.in_flight -= 1
        failure: Failure | None = None
        judged = True
        if isinstance(error, UpstreamError):
            failure = error.failure
            # No connection of ours was free, so the replica was not asked at all.
            judged = not (failure is Failure.OVERLOADED and error.before_answer)
        elif isinstance(error, asyncio.CancelledError) and self._was_silent(error):
            failure = Failure.TIMEOUT  # whoever waited has left, and had every reason to
        elif error is not None:  # cancelled, or our own bug: says nothing of the replica
            judged = isinstance(error, Rejected)  # the model answered: it is well
        self._settle(failure, judged)

    def _settle(self, failure: Failure | None, judged: bool) -> None:
        """End both. Unjudged (cancelled) says nothing; an overload is load, not illness.

        Nor does what one request can bring about, or anybody could take a model away from everybody: an error
        that a model raises, a connection that Triton closes on what it cannot read. Where another replica answers
        the same, the pool has a word to say.
        """
        # A breaker that has come in the place of the one that gave leave does not know its state, and counts nothing.
        now, leaves, reach = self._now(), self._leaves, self._seat.reach
        assert leaves is not None, "a call ends exactly once"
        self._leaves = None
        if not judged or failure in (Failure.TIMEOUT, Failure.DROPPED):
            reach.end(leaves.reach, None, now)  # a silent replica is for the probe and the model's breaker to judge
        elif failure is Failure.UNREACHABLE:
            reach.end(leaves.reach, False, now, failure.value)
        else:
            reach.end(leaves.reach, True, now)
        answers = leaves.answers
        if answers is None:
            return
        if judged and failure is None:
            answers.succeeded(now)
        elif judged and failure is Failure.BROKEN:
            answers.failed(now, failure.value)
        elif judged and failure is Failure.TIMEOUT and self._had_time:
            answers.silent(now, failure.value)
        else:
            answers.ignored(now)

    def _was_silent(self, left: asyncio.CancelledError) -> bool:
        """Whether the replica had been asked, and has kept silent for a decent time."""
        asked = NOT_ASKED not in getattr(left, "__notes__", ())
        return asked and self._had_time and self._now() >= self._proof


class Seated(Struct, eq=False, gc=False):
    """A place for one call that its caller makes, in flight until its block ends, or it is ``left`` or ``answered``.
    Only whether the replica is reached counts: that is known with the answer's beginning (``reached``), or by how it
    ends without one."""

    seat: Seat
    leave: Leave | None
    now: Ticker
    in_flight: bool = True

    @property
    def replica(self) -> Replica:
        return self.seat.replica

    def reached(self) -> None:
        """It has answered, whatever it said."""
        leave, self.leave = self.leave, None
        if leave is not None:
            self.seat.reach.end(leave, True, self.now())

    def left(self, error: UpstreamError | None = None) -> None:
        """That is all. Without an answer, it was for this reason or for none of the replica's."""
        leave, self.leave = self.leave, None
        if leave is not None:
            if error is not None and error.failure is Failure.UNREACHABLE:
                self.seat.reach.end(leave, False, self.now(), error.failure.value)
            else:
                self.seat.reach.end(leave, None, self.now())
        if self.in_flight:
            self.in_flight = False
            self.seat.in_flight -= 1

    def answered(self) -> None:
        """It has answered, and that was all: both at once, so nothing was said of it before."""
        seat, leave, self.leave = self.seat, self.leave, None
        assert leave is not None, "a call ends once"
        self.in_flight = False
        seat.in_flight -= 1
        seat.reach.end(leave, True, self.now())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.left(error if isinstance(error, UpstreamError) else None)
