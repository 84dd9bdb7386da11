"""The replicas of one backend: one is asked, and once more another if that fails.

Rule of this file: a replica leaves rotation on what it *does* (connections refused, failing answers),
not only on what its health endpoint says: a Triton whose model process has died stays "ready". So each
replica has a breaker for being reached and one per model for its answers. Every permit ends exactly once.
Which one is asked is ``choice.py``'s to say. It must not know HTTP, routes, tiers or why a model is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import random as chance
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final, Generic, TypeVar

from msgspec import Struct

from degrade.breaker import Breaker, BreakerOptions, Change
from degrade.budget import RetryBudget
from degrade.deadline import Deadline, Ticker
from degrade.gate import NOBODY, Claim
from degrade.ladder import TABLE, Failure, Step
from tiers.backends.call import Call, Reply, Streamed
from tiers.backends.relaying import Listener
from tiers.choice import allowed, home, pick
from tiers.gates import Admitted, Gates, GatesOptions
from tiers.inference import InferRequest, InferResponse, Passed, UpstreamError
from tiers.patience import Patience
from tiers.seat import Carried, Judged, Leaves, Replica, ReplicaState, Seat, Seated, key_of
from tiers.watch import Probe, Sleep, Watch, WatchOptions

T = TypeVar("T")

OnChange = Callable[[str, str, Change], None]
"""Called with (replica URL, model or "" for the replica itself, what changed about its breaker)."""


DECENT_SECONDS: Final = 1.0
"""A silence of this speaks against a model; a shorter one of the caller, unless the caller's route says otherwise."""


class PoolOptions(Struct, frozen=True):
    """Times in seconds."""

    breaker: BreakerOptions = BreakerOptions()
    probe: Probe = Probe()
    retry_ratio: float = 0.2
    """Retries as a share of requests: more of them would double the load of a backend that is failing."""
    retry_floor_per_second: float = 10.0
    probe_timeout: float = 1.0
    models_max: int = 1024
    """Answer breakers kept per replica; the least recently used goes first."""
    gates: GatesOptions = GatesOptions()


class Answered(Struct, Generic[T], frozen=True):
    """``replica`` is the URL that answered; ``passed`` holds another one that had failed before."""

    response: T
    replica: str
    passed: tuple[Passed, ...] = ()


class Work(Struct, Generic[T], frozen=True):
    """Something to ask of one replica, and of another if that fails. ``key``: what its answers are judged by, a model.
    ``again``: it may be asked twice. ``decent``: seconds of silence that speak against what is asked. ``claim``: for
    whom. ``model``: whose gate it goes through, if that is not ``key``'s: a model's versions have one together."""

    key: str
    at: Callable[[Replica, float], Awaitable[T]]
    again: bool
    decent: float = DECENT_SECONDS
    sequence: str = ""
    claim: Claim = NOBODY
    model: str = ""


def try_again(error: UpstreamError, again: bool) -> bool:
    """Whether another replica may be asked: for failures after which the ladder's table has that make sense, and
    for what may run twice (``again``). The retry budget keeps it from adding to a load that is everywhere."""
    return again and Step.REPLICA in TABLE[error.failure]


class Pool:
    """The replicas of one backend. Belongs to one event loop; closes its replicas."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        options: PoolOptions,
        now: Ticker,
        random: chance.Random,
        on_change: OnChange | None = None,
        labels: Sequence[str] = (),
    ) -> None:
        """``labels``: one for each replica, by which sequences find it in any pool of the same servers."""
        assert replicas, "a pool needs a replica"
        self._options = options
        self._now = now
        self._random = random
        self._on_change = on_change
        self._budget = RetryBudget(options.retry_ratio, options.retry_floor_per_second)
        self.gates = Gates(options.gates, now, random)
        named = zip(replicas, labels or [""] * len(replicas), strict=True)
        self._seats = [Seat(replica, self._breaker(replica.url, ""), label) for replica, label in named]
        self._only = self._seats[0] if len(self._seats) == 1 else None
        self.replicas = tuple(replicas)
        watched = WatchOptions(options.probe, options.probe_timeout)
        self._watches = [Watch(seat, watched, now, random, self) for seat in self._seats]
        self._patience = Patience(self._seats, now)

    async def close(self) -> None:
        for seat in self._seats:
            await seat.replica.close()

    def infer(
        self,
        request: InferRequest,
        deadline: Deadline,
        again: bool = True,
        decent: float = DECENT_SECONDS,
        claim: Claim = NOBODY,
    ) -> Coroutine[object, object, Answered[InferResponse]]:
        """Ask one replica, and one more if ``try_again``, the budget and ``again`` allow it.

        Requests of one sequence go to one replica, for only there is its state; a sequence that begins while that
        one is out of rotation begins at another. ``decent``: seconds of silence that speak against the model
        there.

        Raises as ``ask`` does.
        """
        sequence = request.parameters.get("sequence_id")
        again = again and not (request.in_sequence or request.in_shared_memory)
        named = "" if sequence is None else str(sequence)

        def at(replica: Replica, now: float) -> Awaitable[InferResponse]:
            return replica.infer(request, deadline, now)

        key = key_of(request.model, request.version)
        return self.ask(Work(key, at, again, decent, named, claim, request.model), deadline)

    async def ask(self, work: Work[T], deadline: Deadline) -> Answered[T]:
        """Ask one replica, and one more if ``try_again`` and the budget allow it; before that, wait for a place at the
        model's gate. So does what belongs to a sequence: anybody may say that of a request, and who is refused can ask
        the same again, for the model has not seen it.

        Raises UpstreamError (SHED) if there is no place, Rejected, or the UpstreamError of the last replica asked;
        UNREACHABLE or BROKEN, with the seconds until one is tried again in its message, when every breaker is open (see
        ``retry_after``).
        """
        gates, model = self.gates, work.model or work.key
        permit = await gates.enter(model, work.claim, deadline)
        with Admitted(permit, self._now, work.decent) as admitted:
            return await self._ask(work, deadline, admitted)

    async def _ask(self, work: Work[T], deadline: Deadline, admitted: Admitted) -> Answered[T]:
        key, began = work.key, self._now()
        self._budget.request(began)
        seats = self._seats
        seat = home(seats, work.sequence, key, began) if work.sequence else pick(seats, key, began, self._random)
        if seat is None:
            raise self._none_left(key)
        try:
            return Answered(await self._ask_at(seat, work, deadline), seat.replica.url)
        except UpstreamError as error:
            now = self._now()
            if not try_again(error, work.again) or deadline.expired(now):
                raise
            other = pick([each for each in seats if each is not seat], key, now, self._random)
            if other is None or not self._budget.take(now):
                raise
            first = admitted.again = error
        passed = (Passed(Step.REPLICA, first.failure, str(first)),)
        try:
            response = await self._ask_at(other, work, deadline)
        except UpstreamError as error:
            error.passed = passed
            if first.drops:
                error.drops = first.drops + 1
            raise
        if first.failure in (Failure.RAISED, Failure.DROPPED):
            self._blame(seat, key, began, first.failure)
        return Answered(response, other.replica.url, passed)

    async def exchange(self, call: Call, deadline: Deadline) -> Reply:
        """A small call at one replica, for example a model's metadata. Raises UpstreamError."""
        seat = self._seat_for_call()
        now = self._now()
        with Judged(seat, self._acquire(seat, "", now), self._now, now, True):
            return await seat.replica.exchange(call, deadline, now)

    async def some(self, call: Call, deadline: Deadline, model: str, version: str = "") -> bool:
        """Whether some replica whose breakers allow the model answers a small call with 200. All are asked at once,
        and the first that does is enough; what the others say speaks against nobody."""
        now = self._now()
        asked = [
            asyncio.ensure_future(seat.replica.exchange(call, deadline, now))
            for seat in allowed(self._seats, key_of(model, version), now)
        ]
        try:
            for answer in asyncio.as_completed(asked):
                with contextlib.suppress(UpstreamError):
                    if (await answer).status == HTTPStatus.OK:
                        return True
            return False
        finally:
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def each(self, call: Call, deadline: Deadline) -> tuple[tuple[str, Reply | UpstreamError], ...]:
        """The same call at every replica at once, whatever its breaker says: loading a model must not
        leave one replica out in silence. Each URL with its reply or its error, in configured order."""

        async def one(seat: Seat) -> tuple[str, Reply | UpstreamError]:
            seat.in_flight += 1
            try:
                return seat.replica.url, await seat.replica.exchange(call, deadline, self._now())
            except UpstreamError as error:
                return seat.replica.url, error
            finally:
                seat.in_flight -= 1

        return tuple(await asyncio.gather(*(one(seat) for seat in self._seats)))

    @asynccontextmanager
    async def forward(self, call: Call, deadline: Deadline, sequence: str = "") -> AsyncIterator[Streamed]:
        """Pass a call through to one replica: that of its ``sequence``, if it belongs to one. Only whether it is
        reached counts."""
        with self.seated(sequence) as seated:
            async with seated.replica.stream(call, deadline, self._now()) as streamed:
                seated.reached()
                yield streamed

    def seated(self, sequence: str = "") -> Seated:
        """A place at one replica, for a call that is made in the block; ``sequence`` is as in ``forward``. Only whether
        that one is reached counts.

        Raises UpstreamError if there is none to ask.
        """
        # Of one replica there is no choice, and its breaker is asked for leave anyway.
        seat = self._only or self._seat_for_call(sequence)
        leave = seat.reach.begin(self._now())
        if leave is None:
            raise self._none_reached()
        seat.in_flight += 1
        return Seated(seat, leave, self._now)

    def home_of(self, sequence: str) -> str | None:
        """The URL of the replica where a sequence lives; None if there is none to ask."""
        seat = home(self._seats, sequence, "", self._now())
        return None if seat is None else seat.replica.url

    def relay(self, call: Call, body: bytes, listener: Listener, seconds: float, sequence: str = "") -> Carried:
        """Pass a call with this body through to one replica, by callbacks; ``seconds`` bound the wait for a
        connection, ``sequence`` is as in ``forward``. Only whether the replica is reached counts.

        Raises UpstreamError if there is none to ask, and Rejected for what cannot be written as a request.
        """
        seated = self.seated(sequence)
        try:
            return seated.seat.replica.relay(call, body, listener, seated, seconds)
        except BaseException:
            seated.left()
            raise

    async def probe_once(self) -> None:
        """Ask every replica at once whether it is ready. Never raises for a replica."""
        await asyncio.gather(*(watch.ask() for watch in self._watches))

    async def run(self, interval: float, sleep: Sleep) -> None:
        """Probe for ever, each replica by itself: ``interval`` seconds apart, and oftener while it is in doubt; cancel
        it to stop."""
        async with asyncio.TaskGroup() as group:
            for watch in self._watches:
                group.create_task(watch.run(interval, sleep))

    async def found(self, seconds: float) -> bool:
        """See ``Patience``."""
        return await self._patience.found(seconds)

    def told(self) -> None:
        """See ``Hears``."""
        self._patience.told()

    def renewed(self, seat: Seat, change: Change) -> Breaker:
        """See ``Hears``."""
        if self._on_change is not None:
            self._on_change(seat.replica.url, "", change)
        return self._breaker(seat.replica.url, "")

    def forget(self, model: str) -> None:
        """The model is another one now: what its answers taught was about the one that is gone."""
        for seat in self._seats:
            seat.forget(model)

    def may_have_answered(self, url: str, model: str) -> bool:
        """Whether a replica has answered for a model, in any version, or is being asked: the model may have worked
        already, and the answer be on its way. As far as its breakers remember."""
        return any(seat.may_have_answered(model) for seat in self._seats if seat.replica.url == url)

    def states(self) -> tuple[ReplicaState, ...]:
        return tuple(seat.state() for seat in self._seats)

    def retry_after(self, key: str) -> float:
        """Seconds until some replica may be tried for this model; 0 if one may be now."""
        now = self._now()
        waits = []
        for seat in self._seats:
            breaker = seat.answers.get(key)
            waits.append(max(seat.reached_in(now), breaker.retry_after(now) if breaker else 0.0))
        return min(waits)

    def _seat_for_call(self, sequence: str = "") -> Seat:
        seats, now = self._seats, self._now()
        seat = home(seats, sequence, "", now) if sequence else pick(seats, "", now, self._random)
        if seat is None:
            raise self._none_reached()
        return seat

    async def _ask_at(self, seat: Seat, work: Work[T], deadline: Deadline) -> T:
        now = self._now()
        had_time = deadline.remaining(now) >= work.decent
        with Judged(seat, self._acquire(seat, work.key, now), self._now, now + work.decent, had_time):
            return await work.at(seat.replica, now)

    def _acquire(self, seat: Seat, key: str, now: float) -> Leaves:
        """Leave of both; they were allowed in this same turn of the loop, so they are there."""
        reach = seat.reach.begin(now)
        assert reach is not None, "picked a replica whose breaker refuses"
        if not key:
            return Leaves(reach, None)
        answers = self._answers(seat, key).acquire(now)
        assert answers is not None, "picked a replica whose model's breaker refuses"
        return Leaves(reach, answers)

    def _blame(self, seat: Seat, key: str, began: float, failure: Failure) -> None:
        """Another replica answered what the model raised an error on here, or what was dropped: it was not the input's
        fault. Nor was it the model's, if it has answered others here since: a bad input fails all whom Triton batches
        with it, and a connection may break."""
        now, breaker = self._now(), self._answers(seat, key)
        if breaker.answered_since(began):
            return
        permit = breaker.acquire(now)
        if permit is not None:
            permit.failed(now, failure.value)

    def _answers(self, seat: Seat, key: str) -> Breaker:
        breaker = seat.answers.get(key)
        if breaker is None:
            breaker = seat.answers[key] = self._breaker(seat.replica.url, key)
            if len(seat.answers) > self._options.models_max:
                seat.answers.popitem(last=False)
        else:
            seat.answers.move_to_end(key)
        return breaker

    def _breaker(self, url: str, key: str) -> Breaker:
        # A breaker knows no names: tell the listener which one changed.
        def changed(change: Change) -> None:
            if self._on_change is not None:
                self._on_change(url, key, change)

        return Breaker(self._options.breaker, changed)

    def _none_left(self, key: str) -> UpstreamError:
        wait = self.retry_after(key)
        if not self._patience.is_reached:
            return self._none_reached()
        return UpstreamError(
            Failure.BROKEN,
            f"{key!r} fails on every replica that can be reached; next try in {wait:.1f} s",
            before_answer=True,
            retry_after=wait,
        )

    def _none_reached(self) -> UpstreamError:
        wait = min(seat.reached_in(self._now()) for seat in self._seats)
        urls = ", ".join(seat.replica.url for seat in self._seats)
        return UpstreamError(
            Failure.UNREACHABLE,
            f"no replica can be reached ({urls}); next try in {wait:.1f} s",
            before_answer=True,
            retry_after=wait,
        )
