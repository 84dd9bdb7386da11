"""Who may go to a server now, who waits, and who is told to come back later.

Rule of this file: synchronous, and without a clock. It gives permits up to a limit that ``degrade/limiter.py`` finds,
and tells it how they ended; a permit ends exactly once: succeeded, ignored or dropped. It must not know what is asked,
nor how somebody waits: it calls ``wake``.

Who waits is bounded in number (``waiting_max``) and in time. Time is what decides: a request may wait as long as it can
still be answered after it, and no more of them may wait than twice as many as can be served within that time. Then

 - somebody of the owner who has most of them waiting must go, so a noisy tenant's crowd displaces itself and nobody
   else;
 - of that owner the one who came last, or, once the line is late (its oldest has used up half of its time), the one who
   came first: see ``degrade/line.py`` for why the order turns round then.

Priorities are strict, but for one turn in ``PASSED_MAX``: a lower class that is never served is not degraded but off.
A full queue takes the place of the lowest class that waits. Fairness is within a priority. Where it is known how many
requests the server works on at once, the last places are for those who must not wait behind a crowd that is in the
server already (``degrade/shares.py``).
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec

from degrade.limiter import Limiter
from degrade.line import Line
from degrade.shares import Holder, Shares

PASSED_MAX: Final = 16
"""Turns of higher classes in a row after which a lower one that waits has one."""

DOUBT: Final = 2.0
"""By how much more may wait than can be served in their time: an estimate of that is no better than this, and who is
refused for a wrong one would have been served."""

LATE: Final = 0.5
"""The share of its time after which the oldest says that its line is late."""

LEAST_SHARE: Final = 0.25
"""Of its time, that a request may wait in any case: how long its answer will take is an estimate, too."""

SILENT: Final = 3.0
"""Mean latencies without an answer that speak against the server."""

RETRY_SECONDS_MIN: Final = 1.0
RETRY_SECONDS_MAX: Final = 30.0
"""When to come back: when those who wait now are served, within reason."""


class Priority(enum.IntEnum):
    """Lower goes first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2

    @property
    def word(self) -> str:
        """As configuration and metrics have it."""
        return self.name.lower()


class Claim(msgspec.Struct, frozen=True):
    """For whom something is asked. ``owner``: a tenant, or a caller without one; all of an owner's share one turn."""

    owner: str = ""
    priority: Priority = Priority.NORMAL


NOBODY: Final = Claim()


class GateOptions(msgspec.Struct, frozen=True):
    """``waiting_max``: requests; ``wait_max``: seconds that one may wait; None: as long as it can still be answered."""

    waiting_max: int = 4096
    wait_max: float | None = None


class Shed(msgspec.Struct, frozen=True):
    """Refused: ``full`` (there is no place to wait), ``displaced`` (somebody came who goes before), ``late`` (it has
    waited as long as it can), ``brownout`` (its priority is not served now). ``retry_after``: seconds."""

    reason: str
    retry_after: float


class Permit:
    """Leave for one call. End it exactly once; ending it twice is a bug (AssertionError)."""

    __slots__ = ("_began", "_gate", "_holder", "_in_flight")

    def __init__(self, gate: Gate, holder: Holder, began: float, in_flight: int) -> None:
        self._gate: Gate | None = gate
        self._holder = holder
        self._began = began
        self._in_flight = in_flight

    def succeeded(self, now: float) -> None:
        """The call was answered, and how long that took says how the server is."""
        gate = self._end()
        gate._limiter.sample(max(0.0, now - self._began), self._in_flight, now)
        gate._freed(now)

    def silent(self, now: float, decent: float) -> None:
        """The server did not answer in time. That says something of it if the time was long, in its own measure or in
        that of who asked (``decent`` seconds); who has waited for a permit may have had little left."""
        gate = self._gate
        if gate is None or now - self._began >= min(decent, SILENT * gate.latency):
            self.dropped(now)
        else:
            self.ignored(now)

    def dropped(self, now: float) -> None:
        """The server said that it has too much to do, or was silent for long."""
        gate = self._end()
        gate._limiter.dropped(self._began, now)
        gate._freed(now)

    def ignored(self, now: float) -> None:
        """The call says nothing of the server's load."""
        self._end()._freed(now)

    def _end(self) -> Gate:
        gate, self._gate = self._gate, None
        if gate is None:
            raise AssertionError("a permit ends exactly once")
        self._holder.present -= 1
        return gate


def _unheard() -> None:
    """What wakes somebody who has not said how."""


class Waiting:
    """One who waits, until ``outcome`` is there; ``wake`` is called then, once: whoever asked says in the same turn
    what that is."""

    __slots__ = ("_gate", "began", "claim", "holder", "is_apart", "outcome", "patience", "wake")

    def __init__(self, gate: Gate, claim: Claim, holder: Holder, patience: float) -> None:
        self._gate = gate
        self.claim = claim
        self.holder = holder
        self.is_apart = False
        self.began = holder.asked_at
        self.patience = patience
        self.wake: Callable[[], None] = _unheard
        self.outcome: Permit | Shed | None = None

    @property
    def owner(self) -> str:
        return self.claim.owner

    def leave(self, now: float) -> None:
        """Whoever asked has gone: wait no more, and give back a permit that came at the last moment."""
        if self.outcome is None:
            self._gate._left(self, now)
        elif isinstance(self.outcome, Permit):
            self.outcome.ignored(now)

    def expire(self, now: float) -> Permit | Shed:
        """Its time to wait is over; the permit, if there is one after all."""
        if self.outcome is None:
            self._gate._expired(self, now)
        assert self.outcome is not None
        return self.outcome


class Gate:
    """The way to one server, or to several that are alike. ``least``: the lowest priority that is served now."""

    def __init__(self, limiter: Limiter, options: GateOptions) -> None:
        self._limiter = limiter
        self._options = options
        self._lines = {priority: Line[Waiting]() for priority in Priority}
        self._shares = Shares()
        self._passed = 0
        self._waiting = 0
        self.in_flight = 0
        self.least = Priority.LOW
        self.shed: Counter[tuple[str, str]] = Counter()
        """By reason and priority."""
        self.waited: dict[str, float] = {priority.word: 0.0 for priority in Priority}
        """Requests that got a permit after they had waited, by priority."""
        self.waited_seconds: dict[str, float] = {priority.word: 0.0 for priority in Priority}
        self.asked = 0
        """Permits asked for, in all."""
        self.asked_apart = 0
        """Of them, those that are no sign of strain: they are not to be served at any price."""
        self.shed_apart = 0
        """Of them, those that found no place."""

    @property
    def places(self) -> int:
        """Requests in flight that keep the server busy; 0: nobody knows, or it depends on how they come."""
        return self._shares.places

    @places.setter
    def places(self, places: int) -> None:
        if places and not self._shares.places:
            self._limiter.hint(places)
        self._shares.places = places

    @property
    def limit(self) -> int:
        return self._limiter.limit

    @property
    def settled(self) -> int:
        """The limit, but for measurements."""
        return self._limiter.settled

    @property
    def latency(self) -> float:
        """Seconds that a call takes lately, in the mean; 0 if none has been made."""
        return self._limiter.latency

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def is_idle(self) -> bool:
        """Whether nobody is in it."""
        return not self._waiting and not self.in_flight

    def pressure(self, now: float) -> float:
        """How much of its time somebody who waits has used up, but for those who are no sign of strain: 0 to 1."""
        lines = [self._lines[each] for each in Priority if each is not Priority.LOW]
        oldest = [waiting for line in lines for waiting in line.oldest_of_each() if not waiting.is_apart]
        return max([self._lateness(waiting, now) for waiting in oldest], default=0.0)

    def admit(self, claim: Claim, seconds: float, now: float) -> Permit | Waiting | Shed:
        """Ask for a permit for a call that must be answered within ``seconds``: it is there, or to be waited for, or
        refused."""
        self.asked += 1
        self._limiter.tick(now)
        holder = self._shares.asked(claim.priority, claim.owner, self.settled, now)
        is_apart = self._is_apart(claim.priority, holder)
        self.asked_apart += is_apart
        if claim.priority > self.least:
            return self._refused(claim, "brownout", is_apart)
        if self._waiting:
            self._grant(now)  # the limit may have grown: who may go has gone
        if self._has_place(claim.priority, holder, now):
            holder.present += 1
            return self._permit(holder, now)
        self._limiter.pressed(now)
        patience = self._patience(seconds)
        line = self._lines[claim.priority]
        if self._waiting >= self._options.waiting_max:
            lowest = max(priority for priority in Priority if self._lines[priority])
            if lowest > claim.priority:
                self._displace(lowest, self._lines[lowest].longest(), now)
            elif not self._makes_room(claim, line, now):
                return self._refused(claim, "full", is_apart)
        elif self._ahead(claim.priority) >= self._servable(patience) and not self._makes_room(claim, line, now):
            return self._refused(claim, "full", is_apart)
        waiting = Waiting(self, claim, holder, patience)
        waiting.is_apart = is_apart
        line.push(waiting, is_spared=not self._shares.is_crowd(claim.priority, holder))
        self._waiting += 1
        holder.present += 1
        return waiting

    # -- decide -----------------------------------------------------------------------------------

    def _is_apart(self, priority: Priority, holder: Holder) -> bool:
        """Whether a request is no sign of strain: of the lowest priority, or of a crowd beside others who are within
        their shares. It has what is left, and if that is little nobody else is to be served less for it."""
        return priority is Priority.LOW or self._shares.is_crowd(priority, holder)

    def _has_place(self, priority: Priority, holder: Holder, now: float) -> bool:
        """Whether there is a place for somebody, when all who wait and may go have gone."""
        if self.in_flight >= self.limit:
            return False
        if not self._shares.places:
            return True
        self._shares.crowd = self._limiter.crowd
        if not self._may(priority, holder, now):
            self._limiter.held(now)
            return False
        self._passed += bool(self._waiting)
        return True

    def _may(self, priority: Priority, holder: Holder, now: float) -> bool:
        """Whether none of the places is kept from somebody that there are."""
        return self.in_flight < self._shares.most(priority, holder, self.limit, now)

    def _patience(self, seconds: float) -> float:
        """How long a request may wait that has ``seconds`` for all."""
        patience = max(seconds - self.latency, LEAST_SHARE * seconds)
        return patience if self._options.wait_max is None else min(patience, self._options.wait_max)

    def _ahead(self, priority: Priority) -> int:
        """How many wait that are served before one who comes now."""
        return sum([len(self._lines[each]) for each in Priority if each <= priority])

    def _servable(self, seconds: float) -> float:
        """How many may wait so long; no bound while nothing is known."""
        latency = self.latency
        return DOUBT * seconds * self.settled / latency if latency > 0.0 else float("inf")

    def _lateness(self, waiting: Waiting, now: float) -> float:
        """How much of its time somebody has used up: 0 to 1."""
        return min(1.0, (now - waiting.began) / max(waiting.patience, 1e-9))

    def _is_late(self, waiting: Waiting, now: float) -> bool:
        return self._lateness(waiting, now) > LATE

    def _retry_after(self) -> float:
        seconds = self._waiting * self.latency / max(self.settled, 1)
        return min(max(seconds, RETRY_SECONDS_MIN), RETRY_SECONDS_MAX)

    def _next_line(self) -> Line[Waiting]:
        """Whose turn it is: the highest class that waits, or a lower one that was passed by for long. Somebody
        waits."""
        there = [line for line in self._lines.values() if line]
        if len(there) == 1:
            self._passed = 0
            return there[0]
        self._passed += 1
        if self._passed <= PASSED_MAX:
            return there[0]
        self._passed = 0
        return there[1 + self.asked % (len(there) - 1)]  # with two lower ones: now this one, now that

    # -- do ---------------------------------------------------------------------------------------

    def _permit(self, holder: Holder, now: float) -> Permit:
        self.in_flight += 1
        return Permit(self, holder, now, self.in_flight)

    def _refused(self, claim: Claim, reason: str, is_apart: bool) -> Shed:
        self.shed[reason, claim.priority.word] += 1
        self.shed_apart += is_apart
        return Shed(reason, self._retry_after())

    def _makes_room(self, claim: Claim, line: Line[Waiting], now: float) -> bool:
        """Take the place of somebody of the same class, if there is one who must go before who comes."""
        if not line:
            return False
        owner, held, share = claim.owner, line.waiting_of(claim.owner), len(line) / line.owners
        if held >= share:
            if not self._is_late(line.end_of(owner, newest=False), now):
                return False
        else:
            owner = line.longest()
            if held + 1 >= share and not self._is_late(line.end_of(owner, newest=False), now):
                return False  # one who has one more at most, and is in good time
        self._displace(claim.priority, owner, now)
        return True

    def _displace(self, priority: Priority, owner: str, now: float) -> None:
        line = self._lines[priority]
        oldest = line.end_of(owner, newest=False)
        waiting = oldest if self._is_late(oldest, now) else line.end_of(owner, newest=True)
        self._remove(waiting)
        self._settle(waiting, self._refused(waiting.claim, "displaced", waiting.is_apart))

    def _remove(self, waiting: Waiting) -> None:
        self._lines[waiting.claim.priority].remove(waiting)
        self._waiting -= 1
        waiting.holder.present -= 1

    def _settle(self, waiting: Waiting, outcome: Permit | Shed) -> None:
        waiting.outcome = outcome
        waiting.wake()

    def _left(self, waiting: Waiting, now: float) -> None:
        self._remove(waiting)
        self._grant(now)

    def _expired(self, waiting: Waiting, now: float) -> None:
        self._remove(waiting)
        self._settle(waiting, self._refused(waiting.claim, "late", waiting.is_apart))

    def _freed(self, now: float) -> None:
        self.in_flight -= 1
        self._grant(now)

    def _grant(self, now: float) -> None:
        """Let in who may."""
        if not self._waiting:
            return
        self._shares.crowd = self._limiter.crowd
        while self._waiting and self.in_flight < self.limit:
            is_roomy = self.in_flight < self._shares.least(self.limit)
            waiting = self._next(now) if is_roomy else self._next_spared(now)
            if waiting is None:
                self._limiter.held(now)
                return
            self._waiting -= 1
            word = waiting.claim.priority.word
            self.waited[word] += 1
            self.waited_seconds[word] += now - waiting.began
            self._settle(waiting, self._permit(waiting.holder, now))

    def _next(self, now: float) -> Waiting | None:
        """Take out who is next. Somebody waits."""
        return self._next_line().pop(lambda oldest: self._is_late(oldest, now))

    def _next_spared(self, now: float) -> Waiting | None:
        """Take out who is next of those for whom the last places are, or one of the others if those were passed by for
        long; None if there is nobody. Somebody waits."""
        there = [priority for priority in Priority if self._lines[priority]]
        priority = there[0]
        if self._passed >= PASSED_MAX:  # those who are not spared have their turns too, the priorities one by one
            self._passed = 0
            return self._lines[there[self.asked % len(there)]].pop(lambda oldest: self._is_late(oldest, now))
        if self.in_flight >= self._shares.most_of_all(priority, self.limit, now):
            return None
        found = self._lines[priority].pop_spared(
            lambda oldest: self._is_late(oldest, now), lambda waiting: self._may(priority, waiting.holder, now)
        )
        self._passed += found is not None
        return found
