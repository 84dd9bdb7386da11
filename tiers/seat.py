"""One replica of a backend, and how each call there speaks for it or against it.

Rule of this file: a call is in flight until it ends, and ends its permits exactly once, by how it went; what one
request can bring about speaks against nobody. It must not choose a replica, or ask another one.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections import OrderedDict
from contextlib import AbstractAsyncContextManager
from typing import Protocol, Self

from msgspec import Struct

from degrade.breaker import Breaker, Permit
from degrade.deadline import Deadline, Ticker
from degrade.ladder import Failure
from tiers.backends.answer import AnswerHead
from tiers.backends.relaying import Listener
from tiers.backends.triton_http import Call, Reply, Streamed
from tiers.inference import NOT_ASKED, InferRequest, InferResponse, Rejected, UpstreamError


class Carried(Protocol):
    """A call on its way to a replica, whose answer goes to a listener; Relaying in life."""

    def start(self, seconds: float) -> None: ...
    def resume(self) -> None: ...
    def abort(self) -> None: ...


class Replica(Protocol):
    """One server of a backend; TritonHttp in life. Raises only UpstreamError and Rejected."""

    @property
    def url(self) -> str: ...
    async def infer(self, request: InferRequest, deadline: Deadline, now: float) -> InferResponse: ...
    async def exchange(self, call: Call, deadline: Deadline, now: float) -> Reply: ...
    def stream(self, call: Call, deadline: Deadline, now: float) -> AbstractAsyncContextManager[Streamed]: ...
    def relay(self, call: Call, listener: Listener) -> Carried: ...
    async def close(self) -> None: ...


class Doubt(enum.Enum):
    """Why a replica may not be well."""

    NONE = "none"
    MODELS = "models"
    SERVER = "server"


class Seat:
    """A replica and what is known of it."""

    __slots__ = ("answers", "due", "in_flight", "label", "probed", "reach", "ready", "replica")

    def __init__(self, replica: Replica, reach: Breaker, label: str = "") -> None:
        """``label``: what decides which sequences live here; the replica's URL, if it is empty."""
        self.replica = replica
        self.label = label or replica.url
        self.reach = reach
        self.answers: OrderedDict[str, Breaker] = OrderedDict()
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

    def reached_in(self, now: float) -> float:
        """Seconds until it may be tried: by its breaker's leave, or by its next probe."""
        return min(self.reach.retry_after(now), max(0.0, self.due - now))


class Permits(Struct, frozen=True):
    """What one call at one replica must end; ``answers`` None for a call that is about no model."""

    reach: Permit
    answers: Permit | None


class Judged:
    """One call at a replica: in flight until the block ends, and judged by how it ends."""

    __slots__ = ("_had_time", "_now", "_permits", "_proof", "_seat")

    def __init__(self, seat: Seat, permits: Permits, now: Ticker, proof: float, had_time: bool) -> None:
        """``proof``: from when on silence speaks against the model; ``had_time``: it was given until then."""
        self._seat = seat
        self._now = now
        self._permits = permits
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
        """End both permits. Unjudged (cancelled) says nothing; an overload is load, not illness.

        Nor does what one request can bring about, or anybody could take a model away from everybody: an error
        that a model raises, a connection that Triton closes on what it cannot read. Where another replica answers
        the same, the pool has a word to say.
        """
        now, permits = self._now(), self._permits
        if not judged or failure in (Failure.TIMEOUT, Failure.DROPPED):
            permits.reach.ignored(now)  # a silent replica is for the probe and the model's breaker to judge
        elif failure is Failure.UNREACHABLE:
            permits.reach.failed(now, failure.value)
        else:
            permits.reach.succeeded(now)
        if permits.answers is None:
            return
        if judged and failure is None:
            permits.answers.succeeded(now)
        elif judged and failure is Failure.BROKEN:
            permits.answers.failed(now, failure.value)
        elif judged and failure is Failure.TIMEOUT and self._had_time:
            permits.answers.silent(now, failure.value)
        else:
            permits.answers.ignored(now)

    def _was_silent(self, left: asyncio.CancelledError) -> bool:
        """Whether the replica had been asked, and has kept silent for a decent time."""
        asked = NOT_ASKED not in getattr(left, "__notes__", ())
        return asked and self._had_time and self._now() >= self._proof


class Seated:
    """A replica for one call that its caller makes: in flight until the block ends. Only whether it is reached
    counts: that is known with the answer's beginning (``reached``), or by how the block ends without one."""

    __slots__ = ("_now", "_permit", "_seat", "replica")

    def __init__(self, seat: Seat, permit: Permit, now: Ticker) -> None:
        self._seat = seat
        self._permit: Permit | None = permit
        self._now = now
        self.replica = seat.replica

    def reached(self) -> None:
        """It has answered, whatever it said."""
        permit, self._permit = self._permit, None
        if permit is not None:
            permit.succeeded(self._now())

    def left(self, error: UpstreamError | None = None) -> None:
        """There was no answer, for this reason or for none of the replica's."""
        permit, self._permit = self._permit, None
        if permit is None:
            return
        if error is not None and error.failure is Failure.UNREACHABLE:
            permit.failed(self._now(), error.failure.value)
        else:
            permit.ignored(self._now())

    def __enter__(self) -> Self:
        self._seat.in_flight += 1
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._seat.in_flight -= 1
        self.left(error if isinstance(error, UpstreamError) else None)


class Relayed:
    """A call that a pool passes through: its permit and its place end exactly once, with its answer's beginning
    and with its end."""

    __slots__ = ("_listener", "_now", "_permit", "_relaying", "_seat")

    def __init__(self, seat: Seat, permit: Permit, now: Ticker, listener: Listener) -> None:
        self._seat: Seat | None = seat
        self._permit: Permit | None = permit
        self._now = now
        self._listener = listener
        self._relaying: Carried | None = None
        seat.in_flight += 1

    def start(self, call: Call, seconds: float) -> None:
        assert self._seat is not None
        try:
            self._relaying = self._seat.replica.relay(call, self)
        except BaseException:
            self._end()
            raise
        self._relaying.start(seconds)

    def resume(self) -> None:
        """The listener holds less than it did."""
        if self._relaying is not None:
            self._relaying.resume()

    def abort(self) -> None:
        """Nobody wants the answer any more. Nothing is told after this."""
        if self._relaying is not None:
            self._relaying.abort()
        self._end()

    @property
    def held(self) -> int:
        return self._listener.held

    def begin(self, head: AnswerHead, follows: bool) -> None:
        permit, self._permit = self._permit, None
        if permit is not None:
            permit.succeeded(self._now())
        self._listener.begin(head, follows)

    def feed(self, piece: bytes) -> None:
        self._listener.feed(piece)

    def finish(self) -> None:
        self._end()
        self._listener.finish()

    def fail(self, error: UpstreamError) -> None:
        permit = self._permit
        if permit is not None and error.failure is Failure.UNREACHABLE:
            self._permit = None
            permit.failed(self._now(), error.failure.value)
        self._end()
        self._listener.fail(error)

    def _end(self) -> None:
        permit, self._permit = self._permit, None
        if permit is not None:
            permit.ignored(self._now())
        seat, self._seat = self._seat, None
        if seat is not None:
            seat.in_flight -= 1
