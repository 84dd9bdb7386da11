"""A request's life, in the order it is lived. Read this file first.

    bytes -> door -> codec -> [ cache -> quota? -> shape? -> cascade -> failure? ladder
          -> store -> count ] -> codec -> bytes

Rule of this file: it is the one place that knows the order between the brackets, for every door.
Each stage decides (a pure function that returns a value and a one-word reason) and this file does.
Stages never call each other. It knows no wire format and no socket, and whether a route's models are asked or an
endpoint's server is ``service.py``'s face for it.

Quotas come after the look-up, because what it finds decides which of them the request uses up: they
are charged together, all or none, before any work is done for it. So does validation: an entry is found
only by the digest of tensors that were valid when it was made, in the same epoch, so a hit has nothing
left to prove.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable
from typing import Final

import msgspec

from cache.alarms import Timeouts
from cache.digest import Key
from cache.entry import Entry
from cache.flight import Abandoned
from degrade.brownout import FIRST_TIER, NO_REFRESHES, STALE_FIRST
from degrade.deadline import Deadline, Ticker
from degrade.ladder import Failure, Step
from gateway.admission.quota import Verdict
from gateway.call import Answer, Call, claim_of, priority_of
from gateway.descent import descended, problem_of, tiers_steps
from gateway.operate.telemetry import Telemetry
from gateway.problem import Problem, Refused, invalid, not_cached
from gateway.provenance import at_level, of_entry, of_fill, of_hit, of_look, of_none
from gateway.recall import ABSENT, BROWNED, Action, Recall, recall, stale_first, unrefreshed
from gateway.refresh import Refreshes
from gateway.route import Route
from gateway.service import Admitted, Filled, Given, Q, R, Response, Served, Service, Terms, Watched, Wire
from gateway.till import Dues, Till
from tiers.cascade import CascadeOptions
from tiers.facts import ModelFacts
from tiers.inference import Provenance, Rejected, UpstreamError

FOUND_SHARE: Final = 0.25
FOUND_SECONDS_MAX: Final = 0.3
"""How long somebody for whom nothing else is left waits for a replica to be back, at most: until it has been asked
once more, if it is not away for long (``tiers/watch.py``). A refusal is that much later then, and no later."""

LADDER_SHARE: Final = 0.05
LADDER_SECONDS_MAX: Final = 0.1
"""What the tiers leave of a deadline, so that a hanging one is still judged as such, and the ladder goes
on (an earlier tier's answer, an old one) before the caller's own time is over: a share, and at most this."""

_FETCH, _FETCH_ALONE, _REFUSE = Action.FETCH, Action.FETCH_ALONE, Action.REFUSE  # a member of an Enum is not cheap
_OFF: Final = Recall(Action.FETCH_ALONE, "bypass", "off")

WIRE_OVERHEAD_BYTES: Final = 256
"""What a ready wire form costs beyond its body: its key and bookkeeping."""


class WireAnswer(msgspec.Struct, frozen=True, gc=False):
    """A fresh hit in the very bytes of the wire, found at ``now``."""

    wire: Wire
    entry: Entry[Served[Response]]
    now: float
    quota: Verdict | None

    @property
    def provenance(self) -> Provenance:
        return of_hit(self.entry, self.now)


class Pipeline:
    """The stages' shell. One for all routes and doors of a process; belongs to one event loop."""

    def __init__(self, till: Till, telemetry: Telemetry, ticker: Ticker, chance: random.Random) -> None:
        self.till = till
        self._telemetry = telemetry
        self._ticker = ticker
        self._chance = chance
        self._refreshes = Refreshes(telemetry)
        self._timeouts = Timeouts()

    async def answer(self, call: Call[Q, R]) -> Answer[R]:
        """Answer one request, whatever happens below. Raises Refused with the problem to send."""
        level = call.route.level
        try:
            answer = await self._answer(call, level)
        except Refused as refused:
            if level and refused.provenance is not None:
                refused.provenance = at_level(refused.provenance, level)
            raise
        if level:
            answer = msgspec.structs.replace(answer, provenance=at_level(answer.provenance, level))
        self._telemetry.answered(call.route.name, answer.provenance)
        return answer

    def recall_wire(self, route: Watched, hit_dues: Dues, wire: bytes, now: float) -> WireAnswer | None:
        """A fresh hit by the exact bytes of a request without Cache-Control, or None; ``hit_dues`` are the
        quotas that it uses up (see ``dues``).

        The shortest way through the house: same quotas and same freshness as ``answer``; who asks counts it.
        Raises Refused when a quota is spent.
        """
        cache = route.cache
        if cache is None:
            return None
        found = cache.find_wire(wire, route.epoch, now)
        if found is None:
            return None
        return WireAnswer(found[1], found[0], now, self.till.pay(hit_dues, now) if hit_dues else None)

    async def facts(self, route: Route, version: str, deadline: Deadline) -> ModelFacts:
        """What a route's models say of themselves, for a form of request that is not understood without. Raises
        Refused: 404 for a version that they do not have, 503 if none of them can be asked."""
        known = route.learning.known(version)
        if known is not None:
            return known
        seconds = deadline.remaining(self._ticker())
        try:
            async with asyncio.timeout(seconds):
                return await route.learning.facts(deadline, version)
        except Rejected as rejected:
            raise Refused(_of_model(rejected)) from rejected
        except UpstreamError as error:
            raise self._undescribed(route, error) from error
        except TimeoutError:
            late = UpstreamError(Failure.TIMEOUT, f"its models did not describe themselves within {seconds:.3g} s")
            raise self._undescribed(route, late) from None

    def attach_wire(
        self, route: Service[Q, R], answer: Answer[R], wire: bytes, ready: Wire, is_entrys: bool = False
    ) -> None:
        """Remember the wire form of an answer that is in the cache. ``is_entrys``: its bytes are the entry's own."""
        if route.cache is not None and answer.key is not None and answer.entry is not None:
            size = WIRE_OVERHEAD_BYTES + (0 if is_entrys else len(ready.body))
            route.cache.attach(answer.key, answer.entry, wire, ready, size)

    async def close(self) -> None:
        """Give up refreshes under way."""
        await self._refreshes.close()

    async def _answer(self, call: Call[Q, R], level: int) -> Answer[R]:
        route, now = call.route, self._ticker()
        key, choice = self._look_up(call)
        found = None
        if key is not None and route.cache is not None:
            found = await route.find(call.caller, call.request, key, now, call.deadline.at)
            key, now = Key(key.digest, route.epoch), self._ticker()  # it may have looked on the disk
            choice = recall(found, call.directives, route.recall_rules, route.epoch, now)
            if level >= NO_REFRESHES:
                choice = unrefreshed(choice)
            if level >= STALE_FIRST and "stale" in route.browned:
                choice = stale_first(choice, found, call.directives, now)
        elif call.directives.only_if_cached:
            choice = Recall(Action.REFUSE, "bypass", choice.reason)
        works = choice.action is _FETCH or choice.action is _FETCH_ALONE
        quota = self.till.charge(route.allowances, call.caller, works, now)
        if choice.action is _REFUSE:
            raise Refused(not_cached(), quota, of_look(choice))
        if found is not None and choice.action in (Action.SERVE, Action.REFRESH):
            if choice.action is Action.REFRESH and key is not None:
                self._refresh(call, key, found.entry.value.batch)
            steps = (Step.STALE.value,) if choice.reason == BROWNED else ()
            if steps:
                self._telemetry.degraded(route.name, Failure.SHED.value, steps[0], f"brownout level {level}")
            return self._cached(call, key, found.entry, choice, quota, steps)

        seconds = call.deadline.remaining(now)
        if seconds <= 0.0:  # what cannot be answered in time must not put work on a model
            late = UpstreamError(Failure.LATE, "its time was over before a tier was asked")
            return await self._descend(call, key, late, quota)
        try:
            admitted = await self._admitted(call, key, seconds)
            if admitted.stateful:
                key, choice = None, Recall(Action.FETCH_ALONE, "bypass", admitted.stateful)
            filled, led = await self._fetch(call, key, choice, admitted.rows)
        except Refused as refused:  # the model's facts or the route's rules are against it
            raise Refused(refused.problem, quota, of_look(choice)) from None
        except Rejected as rejected:
            raise Refused(_of_model(rejected), quota, of_look(choice)) from rejected
        except UpstreamError as error:
            return await self._descend(call, key, error, quota)
        except TimeoutError:
            late = UpstreamError(Failure.TIMEOUT, f"no answer within {seconds:.3g} s")
            return await self._descend(call, key, late, quota)
        except Abandoned:
            gone = UpstreamError(Failure.OVERLOADED, "the gateway is stopping")
            return await self._descend(call, key, gone, quota)
        return self._fetched(key, filled, led, choice, quota)

    # -- decide ---------------------------------------------------------------------------------

    def _look_up(self, call: Call[Q, R]) -> tuple[Key | None, Recall]:
        """The request's key, or None and why it is never cached."""
        route = call.route
        if route.cache is None:
            return None, _OFF
        reason = route.uncacheable(call.request)
        if reason:
            return None, Recall(Action.FETCH_ALONE, "bypass", reason)
        return Key(route.digest(call.caller, call.request), route.epoch), ABSENT

    # -- do -------------------------------------------------------------------------------------

    async def _fetch(
        self, call: Call[Q, R], key: Key | None, choice: Recall, rows: int | None
    ) -> tuple[Filled[R], bool]:
        """Ask the tiers, alone or in a flight. A flight outlives the caller who began it; what it brings may turn out
        to be for that one alone, and then the others ask for themselves."""
        alone = choice.action is _FETCH_ALONE or (call.route.in_parts and call.directives.max_age is not None)
        if key is not None and not alone:
            filled, led = await self._share(call, key, rows, call.deadline.remaining(self._ticker()))
            if led or _is_for(call, filled):
                return filled, led
        keep = key if not call.directives.no_store else None
        with self._timeouts.after(call.deadline.remaining(self._ticker())):
            return await self._fill(call, keep, call.deadline, rows, reuse=False), True

    def _share(
        self, call: Call[Q, R], key: Key, rows: int | None, seconds: float = math.inf
    ) -> Awaitable[tuple[Filled[R], bool]]:
        """Join or begin the key's flight, and wait for it ``seconds`` at most; it has the route's time, not that of
        the caller who began it.

        A purge ends what may be joined: who asks after it gets no answer that was begun before it.
        """
        route = call.route
        deadline = Deadline.after(self._ticker(), route.timeout)
        request = route.for_all(call.request)
        shared = call
        if request is not call.request:
            shared = Call(route, call.caller, request, call.directives, call.deadline)
        ticket = 0 if route.cache is None else route.cache.ticket()
        flight = (key, ticket, priority_of(route, call.caller))  # nobody waits in a lower one's turn
        return route.flights.join(flight, lambda: self._fill(shared, key, deadline, rows), seconds)

    async def _fill(
        self, call: Call[Q, R], key: Key | None, deadline: Deadline, rows: int | None, reuse: bool = True
    ) -> Filled[R]:
        """One run of the cascade, or one answer of a server; stored under ``key``, if it may stay.
        ``reuse``: parts of it that are known will do."""
        route, now = call.route, self._ticker()
        seconds = deadline.remaining(now)
        deadline = Deadline.after(now, seconds - min(LADDER_SECONDS_MAX, seconds * LADDER_SHARE))
        ticket = 0 if route.cache is None else route.cache.ticket()
        first_only = "fast" in route.browned and route.level >= FIRST_TIER
        options = CascadeOptions(rows, await tiers_steps(call, key, now), claim_of(route, call.caller), first_only)
        terms = Terms(call.caller, key, reuse, options)
        given = await self._asked(call, deadline, terms)
        if not given.second:
            self._telemetry.filled(route.name, given)
        settled = None if key is None else route.settled(call.caller, call.request, key, given)
        alike = settled is key
        if settled is None or route.cache is None or not given.may_stay:
            return Filled(
                given.served, given.steps, given.degraded, None, settled, alike, given.rows_kept, given.made_at
            )
        made_at = self._ticker() if given.made_at is None else given.made_at
        entry = route.entry(given.served, settled.epoch, made_at)
        stored = route.cache.store(settled, entry, ticket)
        again = entry if given.second else None
        kept = entry if stored else None
        return Filled(entry.value, given.steps, False, kept, settled, alike, given.rows_kept, given.made_at, again)

    async def _admitted(self, call: Call[Q, R], key: Key | None, seconds: float) -> Admitted:
        """See ``Service.admit``; likewise where nobody knows the models yet, and none of them could be reached."""
        try:
            return await call.route.admit(call.request, call.deadline, seconds)
        except UpstreamError as error:
            if not await self._is_back(call, key, error, call.deadline):
                raise
        return await call.route.admit(call.request, call.deadline, call.deadline.remaining(self._ticker()))

    async def _asked(self, call: Call[Q, R], deadline: Deadline, terms: Terms) -> Given[R]:
        """What those asked have given."""
        route = call.route
        try:
            return await route.ask(call.request, deadline, terms, self._ticker)
        except UpstreamError as error:
            self._telemetry.passed(route.name, error.passed)
            if not await self._is_back(call, terms.key, error, deadline):
                raise
        try:
            return await route.ask(call.request, deadline, terms, self._ticker)
        except UpstreamError as error:
            self._telemetry.passed(route.name, error.passed)
            raise

    async def _is_back(self, call: Call[Q, R], key: Key | None, error: UpstreamError, deadline: Deadline) -> bool:
        """Where none of those asked could be reached and the ladder has nothing, it is worth a moment to hear what a
        replica says next: it may be back before this caller would be."""
        route, now = call.route, self._ticker()
        if error.failure is not Failure.UNREACHABLE or not error.before_answer or Step.REPLICA not in route.steps:
            return False
        if (await descended(call, key, error.failure, now)).step is not Step.REFUSE:
            return False
        return await route.found(min(FOUND_SECONDS_MAX, FOUND_SHARE * deadline.remaining(now)))

    def _refresh(self, call: Call[Q, R], key: Key, rows: int | None) -> None:
        self._refreshes.begin(call, key, lambda: self._share(call, key, rows))

    async def _descend(
        self, call: Call[Q, R], key: Key | None, error: UpstreamError, quota: Verdict | None
    ) -> Answer[R]:
        """The ladder's lower half: the tiers have failed; an old answer, a declared one, or a 503 that says why."""
        route, now, failure = call.route, self._ticker(), error.failure.value
        if key is not None:
            key = Key(key.digest, route.epoch)  # the epoch may have turned while the tiers were asked
        left = await descended(call, key, error.failure, now)
        step, found = left.step, left.found
        beside = f"; {left.fault}" if step is Step.REFUSE and left.fault else ""
        self._telemetry.degraded(route.name, failure, step.value, f"{error}{beside}")
        if step is Step.STALE and found is not None:
            again = recall(found, call.directives, route.recall_rules, route.epoch, now)
            if again.state == "hit":  # another caller's fill came through meanwhile
                return self._cached(call, key, found.entry, again, quota)
        if found is not None:
            choice = Recall(Action.SERVE, "stale", failure)
            return self._cached(call, key, found.entry, choice, quota, (step.value,))
        state = "bypass" if key is None else "miss"
        if step is Step.DEFAULT and left.default is not None:
            return Answer(left.default(), of_none(error.failure, state, step), quota)
        assert step is Step.REFUSE, f"the pipeline has no step {step}"
        instead = route.instead(error)
        if instead is not None:
            return Answer(instead, of_none(error.failure, state), quota)
        raise Refused(problem_of(route.title, error, self._chance, left.fault), quota, of_none(error.failure, state))

    def _undescribed(self, route: Service[Q, R], error: UpstreamError) -> Refused:
        """Nothing could be looked up, for nobody said what the request is made of; the ladder ends there."""
        return Refused(problem_of(route.title, error, self._chance), provenance=of_none(error.failure, "none"))

    def _cached(
        self,
        call: Call[Q, R],
        key: Key | None,
        entry: Entry[Served[R]],
        choice: Recall,
        quota: Verdict | None,
        steps: tuple[str, ...] = (),
    ) -> Answer[R]:
        provenance = of_entry(entry, choice, self._ticker(), steps)
        return Answer(entry.value.response, provenance, quota, key, entry if choice.state == "hit" else None)

    def _fetched(
        self, key: Key | None, filled: Filled[R], led: bool, choice: Recall, quota: Verdict | None
    ) -> Answer[R]:
        provenance = of_fill(filled, led, choice, self._ticker())
        return Answer(filled.served.response, provenance, quota, key, filled.entry)


def _is_for(call: Call[Q, R], filled: Filled[R]) -> bool:
    """Whether what another caller's fill brought is this one's answer too."""
    if filled.key is None:
        return False
    return filled.alike or filled.key.digest == call.route.digest(call.caller, call.request)


def _of_model(rejected: Rejected) -> Problem:
    """The model itself refused the request: its words, its status."""
    return msgspec.structs.replace(invalid(str(rejected), "model"), status=rejected.status)
