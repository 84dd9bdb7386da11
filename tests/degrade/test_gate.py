"""The gate: permits end once and are conserved, the queue is bounded, nobody starves, and owners have equal turns."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from degrade.gate import PASSED_MAX, Claim, Gate, GateOptions, Permit, Priority, Shed, Waiting
from degrade.limiter import Limiter, LimiterOptions
from degrade.line import Line

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


def gate(limit: int = 1, waiting_max: int = 100, wait_max: float | None = None, latency: float = 0.0) -> Gate:
    limiter = Limiter(LimiterOptions(least=1, most=limit, adaptive=False), random.Random(0))
    if latency:
        limiter.sample(latency, 1, 0.0)
    return Gate(limiter, GateOptions(waiting_max, wait_max))


class Crowd:
    """Asks of one gate, in order, and what became of it."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.now = 0.0
        self.woken: list[str] = []

    def ask(self, name: str, owner: str = "", priority: Priority = NORMAL, seconds: float = 10.0) -> object:
        claim = Claim(owner or name, priority)
        found = self.gate.admit(claim, seconds, self.now)
        if isinstance(found, Waiting):
            found.wake = lambda: self.woken.append(name)
        return found

    def permit(self, name: str = "first") -> Permit:
        found = self.ask(name)
        assert isinstance(found, Permit)
        return found

    def wait(self, name: str, owner: str = "", priority: Priority = NORMAL, seconds: float = 10.0) -> Waiting:
        found = self.ask(name, owner, priority, seconds)
        assert isinstance(found, Waiting), found
        return found

    def drain(self, first: Permit, waiting: list[Waiting]) -> list[str]:
        """End permits one after the other; who came in, in order."""
        permit: Permit | None = first
        seen = len(self.woken)
        while permit is not None:
            permit.succeeded(self.now)
            permit = None
            if len(self.woken) > seen:
                seen = len(self.woken)
                last = [each for each in waiting if isinstance(each.outcome, Permit)]
                for each in last:
                    waiting.remove(each)
                    assert isinstance(each.outcome, Permit)
                    permit = each.outcome
        return self.woken


def test_a_permit_is_there_at_once_up_to_the_limit() -> None:
    crowd = Crowd(gate(2))
    one, two = crowd.permit(), crowd.permit()
    third = crowd.wait("third")
    assert crowd.gate.in_flight == 2
    assert crowd.gate.waiting == 1
    one.succeeded(1.0)
    assert crowd.woken == ["third"]
    assert isinstance(third.outcome, Permit)
    third.outcome.ignored(2.0)
    two.dropped(2.0)
    assert crowd.gate.is_idle


@pytest.mark.parametrize("end", ["succeeded", "dropped", "ignored"])
@pytest.mark.parametrize("again", ["succeeded", "dropped", "ignored"])
def test_a_permit_ends_exactly_once(end: str, again: str) -> None:
    crowd = Crowd(gate())
    permit = crowd.permit()
    getattr(permit, end)(1.0)
    with pytest.raises(AssertionError, match="exactly once"):
        getattr(permit, again)(1.0)
    assert crowd.gate.in_flight == 0


def test_first_come_first_served_while_there_is_time() -> None:
    crowd = Crowd(gate())
    first = crowd.permit()
    waiting = [crowd.wait(name, owner="a") for name in ("1", "2", "3")]
    assert crowd.drain(first, waiting) == ["1", "2", "3"]


def test_last_come_first_served_once_the_oldest_has_used_up_half_its_time() -> None:
    crowd = Crowd(gate())
    first = crowd.permit()
    waiting = [crowd.wait(name, owner="a", seconds=10.0) for name in ("1", "2")]
    crowd.now = 5.1
    waiting.append(crowd.wait("3", owner="a"))
    assert crowd.drain(first, waiting) == ["3", "2", "1"]


def test_who_is_in_good_time_keeps_his_order_beside_one_who_is_late() -> None:
    crowd = Crowd(gate())
    first = crowd.permit()
    waiting = [crowd.wait(f"noisy{n}", owner="noisy") for n in range(3)]
    crowd.now = 6.0
    waiting += [crowd.wait(f"quiet{n}", owner="quiet") for n in range(2)]
    order = crowd.drain(first, waiting)
    assert [name for name in order if name.startswith("quiet")] == ["quiet0", "quiet1"]
    assert [name for name in order if name.startswith("noisy")] == ["noisy2", "noisy1", "noisy0"]


def test_owners_have_equal_turns_however_much_of_theirs_waits() -> None:
    crowd = Crowd(gate())
    first = crowd.permit()
    waiting = [crowd.wait(f"noisy{n}", owner="noisy") for n in range(6)]
    waiting += [crowd.wait(f"{owner}{n}", owner=owner) for owner in ("a", "b") for n in range(2)]
    order = crowd.drain(first, waiting)
    assert [name[:-1] for name in order[:6]] == ["noisy", "a", "b", "noisy", "a", "b"]
    assert order[6:] == ["noisy2", "noisy3", "noisy4", "noisy5"]


def test_who_comes_new_is_next() -> None:
    crowd = Crowd(gate())
    first = crowd.permit()
    waiting = [crowd.wait(f"noisy{n}", owner="noisy") for n in range(50)]
    first.succeeded(0.0)
    (second,) = [each.outcome for each in waiting if each.outcome]
    waiting = [each for each in waiting if each.outcome is None]
    waiting.append(crowd.wait("quiet"))
    assert isinstance(second, Permit)
    assert crowd.drain(second, waiting)[1:3] in (["quiet", "noisy1"], ["noisy1", "quiet"])


def test_a_lower_priority_has_one_turn_in_seventeen_and_no_more() -> None:
    crowd = Crowd(gate())
    first = crowd.permit()
    waiting = [crowd.wait(f"low{n}", "a", LOW) for n in range(4)]
    waiting += [crowd.wait(f"high{n}", "b", HIGH) for n in range(4 * PASSED_MAX)]
    order = crowd.drain(first, waiting)
    lows = [place for place, name in enumerate(order) if name.startswith("low")]
    assert lows == [PASSED_MAX + n * (PASSED_MAX + 1) for n in range(4)]


def test_who_waits_goes_before_who_comes_when_the_limit_has_grown() -> None:
    crowd = Crowd(gate())
    crowd.permit()
    waiting = crowd.wait("1")
    crowd.gate._limiter.settled = 2
    crowd.wait("2")
    assert isinstance(waiting.outcome, Permit)
    assert crowd.gate.in_flight == 2


def test_who_has_waited_is_counted_with_his_time() -> None:
    crowd = Crowd(gate())
    first = crowd.permit()
    one, two = crowd.wait("1"), crowd.wait("2", priority=LOW)
    crowd.wait("3").leave(1.0)
    first.succeeded(2.0)
    assert isinstance(one.outcome, Permit)
    one.outcome.succeeded(5.0)
    assert isinstance(two.outcome, Permit)
    assert crowd.gate.waited == {"high": 0.0, "normal": 1.0, "low": 1.0}
    assert crowd.gate.waited_seconds == {"high": 0.0, "normal": 2.0, "low": 5.0}


@pytest.mark.parametrize(("latency", "waiting", "seconds"), [(0.01, 3, 1.0), (2.0, 3, 6.0), (20.0, 3, 30.0)])
def test_when_to_come_back_is_when_those_who_wait_are_served_within_reason(
    latency: float, waiting: int, seconds: float
) -> None:
    crowd = Crowd(gate(waiting_max=waiting, latency=latency))
    crowd.permit()
    for number in range(waiting):
        crowd.wait(str(number), owner="a", seconds=1000.0)
    shed = crowd.ask("x", owner="a", seconds=1000.0)
    assert isinstance(shed, Shed)
    assert shed.retry_after == seconds


@pytest.mark.parametrize(
    ("latency", "decent", "after", "speaks"),
    [(0.1, 10.0, 0.25, False), (0.1, 10.0, 0.35, True), (1.0, 0.5, 0.4, False), (1.0, 0.5, 0.6, True)],
)
def test_silence_speaks_against_the_server_if_it_was_long_in_its_measure_or_in_who_askeds(
    latency: float, decent: float, after: float, speaks: bool
) -> None:
    told: list[tuple[float, float]] = []
    crowd = Crowd(gate(latency=latency))
    crowd.gate._limiter.dropped = lambda began, now: told.append((began, now))  # type: ignore[method-assign]
    crowd.now = 5.0
    crowd.permit().silent(5.0 + after, decent)
    assert told == ([(5.0, 5.0 + after)] if speaks else [])
    assert crowd.gate.is_idle


def test_the_limiter_is_told_that_somebody_has_to_wait() -> None:
    told: list[float] = []
    crowd = Crowd(gate())
    crowd.gate._limiter.pressed = told.append  # type: ignore[method-assign]
    crowd.permit()
    assert told == []
    crowd.now = 3.0
    crowd.wait("x")
    assert told == [3.0]


def test_a_higher_priority_goes_first_but_not_for_ever() -> None:
    crowd = Crowd(gate())
    first = crowd.permit()
    waiting = [crowd.wait("low", priority=LOW)]
    waiting += [crowd.wait(f"normal{n}") for n in range(PASSED_MAX)]
    waiting += [crowd.wait(f"high{n}", priority=HIGH) for n in range(PASSED_MAX)]
    order = crowd.drain(first, waiting)
    assert all(name.startswith("high") for name in order[: PASSED_MAX - 1])
    assert {"low", "normal0"} <= set(order[: 2 * PASSED_MAX + 2])


@pytest.mark.parametrize("newcomer", ["a", "b"])
def test_a_full_queue_takes_the_place_of_who_has_most(newcomer: str) -> None:
    crowd = Crowd(gate(waiting_max=4))
    crowd.permit()
    waiting = [crowd.wait(str(n), owner="a") for n in range(4)]
    found = crowd.ask("new", owner=newcomer)
    assert crowd.gate.waiting == 4
    if newcomer == "a":
        assert isinstance(found, Shed)
        assert found.reason == "full"
    else:
        assert isinstance(found, Waiting)
        assert isinstance(waiting[3].outcome, Shed)
        assert waiting[3].outcome.reason == "displaced"
        assert crowd.woken == ["3"]


def test_owners_with_one_each_do_not_chase_each_other_out() -> None:
    crowd = Crowd(gate(waiting_max=3))
    crowd.permit()
    for name in "abc":
        crowd.wait(name)
    assert isinstance(crowd.ask("d"), Shed)
    assert crowd.woken == []


def test_a_late_line_gives_the_place_of_its_oldest() -> None:
    crowd = Crowd(gate(waiting_max=3))
    crowd.permit()
    waiting = [crowd.wait(str(n), owner="a") for n in range(3)]
    crowd.now = 6.0
    new = crowd.wait("new", owner="a")
    assert [each.outcome is None for each in (*waiting, new)] == [False, True, True, True]


def test_a_full_queue_takes_the_place_of_a_lower_priority() -> None:
    crowd = Crowd(gate(waiting_max=2))
    crowd.permit()
    low = [crowd.wait(f"low{n}", priority=LOW) for n in range(2)]
    crowd.wait("high", priority=HIGH)
    crowd.wait("normal")
    assert all(isinstance(each.outcome, Shed) for each in low)
    assert isinstance(crowd.ask("another", priority=LOW), Shed)
    assert crowd.gate.shed == {("displaced", "low"): 2, ("full", "low"): 1}


def test_no_more_wait_than_can_be_served_in_their_time() -> None:
    """2 at once, 0.1 s each: in 1 s (less 0.1 for the answer) 18 can be served, and twice as many may wait."""
    crowd = Crowd(gate(2, latency=0.1))
    crowd.permit(), crowd.permit()
    found = [crowd.ask(str(n), owner="a", seconds=1.0) for n in range(50)]
    assert sum(isinstance(each, Waiting) for each in found) == 36
    high = [crowd.ask(f"high{n}", owner="a", priority=HIGH, seconds=1.0) for n in range(50)]
    assert sum(isinstance(each, Waiting) for each in high) == 36  # lower ones do not stand before them
    assert isinstance(crowd.ask("patient", owner="a", seconds=100.0), Waiting)


def test_how_long_one_may_wait() -> None:
    for latency, wait_max, seconds, patience in (
        (0.0, None, 10.0, 10.0),
        (2.0, None, 10.0, 8.0),
        (20.0, None, 10.0, 2.5),  # the estimate may be wrong
        (2.0, 0.5, 10.0, 0.5),
    ):
        crowd = Crowd(gate(latency=latency, wait_max=wait_max))
        crowd.permit()
        assert crowd.wait("x", seconds=seconds).patience == patience


def test_whose_time_is_over_is_told_so() -> None:
    crowd = Crowd(gate())
    crowd.permit()
    waiting = crowd.wait("x")
    shed = waiting.expire(10.0)
    assert isinstance(shed, Shed)
    assert (shed.reason, shed.retry_after >= 1.0) == ("late", True)
    assert crowd.gate.waiting == 0
    assert waiting.expire(11.0) is shed


def test_a_permit_that_comes_with_the_last_moment_is_not_lost() -> None:
    crowd = Crowd(gate())
    first = crowd.permit()
    one, two = crowd.wait("1"), crowd.wait("2")
    first.succeeded(1.0)
    permit = one.expire(10.0)
    assert isinstance(permit, Permit)
    assert permit is one.outcome
    two.leave(10.0)
    permit.ignored(10.0)
    assert crowd.gate.is_idle


def test_who_leaves_with_a_permit_gives_it_to_the_next() -> None:
    crowd = Crowd(gate())
    first = crowd.permit()
    one, two = crowd.wait("1"), crowd.wait("2")
    first.succeeded(1.0)
    one.leave(1.0)
    assert isinstance(two.outcome, Permit)
    assert crowd.gate.in_flight == 1


def test_in_a_brownout_the_lowest_is_not_served() -> None:
    crowd = Crowd(gate())
    crowd.gate.least = NORMAL
    shed = crowd.ask("x", priority=LOW)
    assert isinstance(shed, Shed)
    assert shed.reason == "brownout"
    crowd.permit()
    crowd.gate.least = LOW
    crowd.wait("x", priority=LOW)


def test_pressure_is_the_share_of_its_time_that_the_oldest_has_waited() -> None:
    crowd = Crowd(gate())
    assert crowd.gate.pressure(0.0) == 0.0
    crowd.permit()
    crowd.wait("low", priority=LOW)
    assert crowd.gate.pressure(9.0) == 0.0
    crowd.wait("x")
    crowd.wait("y")
    assert crowd.gate.pressure(4.0) == 0.4
    assert crowd.gate.pressure(400.0) == 1.0


def test_a_lower_limit_lets_nobody_in_until_enough_have_left() -> None:
    limiter = Limiter(LimiterOptions(least=1, most=8), random.Random(0))
    crowd = Crowd(Gate(limiter, GateOptions()))
    permits = [crowd.permit() for _ in range(8)]
    waiting = [crowd.wait(str(n), owner="a") for n in range(100)]
    now = 0.0
    while permits:
        now += 0.05
        permits.pop().dropped(now)
        permits += [each.outcome for each in waiting if isinstance(each.outcome, Permit)]
        waiting = [each for each in waiting if each.outcome is None]
        assert crowd.gate.in_flight == len(permits)
        if len(waiting) < 20:
            break
    assert crowd.gate.limit == 1
    assert len(permits) <= 2


class Machine(RuleBasedStateMachine):
    """Any order of asking, ending, leaving, expiring and time."""

    def __init__(self) -> None:
        super().__init__()
        limiter = Limiter(LimiterOptions(least=1, most=6), random.Random(1))
        self.gate = Gate(limiter, GateOptions(waiting_max=5))
        self.now = 0.0
        self.places_then = 0
        self.permits: list[Permit] = []
        self.waiting: list[Waiting] = []
        self.asked = self.ended = self.refused = self.left = 0

    def settle(self) -> None:
        for each in [each for each in self.waiting if each.outcome is not None]:
            self.waiting.remove(each)
            self.take(each.outcome)

    def take(self, outcome: Permit | Shed | Waiting | None) -> None:
        if isinstance(outcome, Permit):
            self.permits.append(outcome)
        elif isinstance(outcome, Waiting):
            self.waiting.append(outcome)
        else:
            self.refused += 1

    @rule(owner=st.sampled_from("abc"), priority=st.sampled_from(Priority), seconds=st.sampled_from([0.0, 0.1, 10.0]))
    def ask(self, owner: str, priority: Priority, seconds: float) -> None:
        self.asked += 1
        self.take(self.gate.admit(Claim(owner, priority), seconds, self.now))
        self.settle()

    @precondition(lambda self: self.permits)
    @rule(data=st.data(), how=st.sampled_from(["succeeded", "dropped", "ignored"]))
    def end(self, data: st.DataObject, how: str) -> None:
        permit = self.permits.pop(data.draw(st.integers(0, len(self.permits) - 1)))
        getattr(permit, how)(self.now)
        self.ended += 1
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), expires=st.booleans())
    def give_up(self, data: st.DataObject, expires: bool) -> None:
        waiting = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        if expires:
            self.take(waiting.expire(self.now))
        else:
            waiting.leave(self.now)
            self.left += 1
        self.settle()

    @rule(seconds=st.sampled_from([0.01, 1.0, 6.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(places=st.sampled_from([0, 1, 3, 8]))
    def learn(self, places: int) -> None:
        self.gate.places = places
        self.places_then = min(self.places_then or places, places) if places else self.places_then

    @rule(least=st.sampled_from(Priority))
    def brown(self, least: Priority) -> None:
        self.gate.least = least

    @invariant()
    def conserved(self) -> None:
        assert self.gate.in_flight == len(self.permits)
        assert self.gate.waiting == len(self.waiting) <= 5
        assert self.asked == self.ended + self.refused + self.left + len(self.permits) + len(self.waiting)
        assert sum(self.gate.shed.values()) == self.refused

    @invariant()
    def each_owner_has_what_he_has(self) -> None:
        """Who is counted with more than that is one of a crowd for ever."""
        there = Counter([id(each._holder) for each in self.permits] + [id(each.holder) for each in self.waiting])
        classes = self.gate._shares._classes.values()
        known = [holder for each in classes for holder in each.holders.values()]
        known += [each._holder for each in self.permits] + [each.holder for each in self.waiting]
        assert all(holder.present == there[id(holder)] for holder in known)

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """But who leaves the last places to others may, until somebody ends or asks."""
        places = self.gate.places
        room = min(self.gate.limit, self.places_then or self.gate.limit, places or self.gate.limit)
        assert not self.waiting or self.gate.in_flight >= room

    def teardown(self) -> None:
        """Whoever waits is served once those before have left."""
        while self.permits:
            self.permits.pop().succeeded(self.now)
            self.settle()
        assert self.gate.is_idle
        assert not self.waiting


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=60), st.booleans())
def test_no_owner_waits_longer_than_a_turn_of_all(owners: list[str], newest: bool) -> None:
    """Between two turns of one who waits nobody has more than two."""
    crowd = Crowd(gate(waiting_max=100))
    permit: Permit | None = crowd.permit()
    waiting = [crowd.wait(f"{n}", owner=owner) for n, owner in enumerate(owners)]
    crowd.now = 6.0 if newest else 0.0
    left = Counter(owners)
    turns: list[str] = []
    while permit is not None:
        permit.ignored(crowd.now)
        permit = None
        for each in [each for each in waiting if isinstance(each.outcome, Permit)]:
            waiting.remove(each)
            turns.append(each.owner)
            assert isinstance(each.outcome, Permit)
            permit = each.outcome
    assert Counter(turns) == left
    for owner in left:
        there = [turn for turn, name in enumerate(turns) if name == owner]
        for before, after in zip([-1, *there], there, strict=False):
            between = Counter(turns[before + 1 : after])
            assert all(count <= 2 for count in between.values())


class Named:
    def __init__(self, owner: str) -> None:
        self.owner = owner


def test_a_line_forgets_owners_who_come_and_go() -> None:
    line: Line[Named] = Line()
    stays = Named("stays")
    line.push(stays)
    for number in range(5000):
        passing = Named(str(number))
        line.push(passing)
        line.remove(passing)
    assert len(line) == line.owners == 1
    assert len(line._heap) <= 100
    assert line.pop(lambda oldest: False) is stays
    assert line.pop(lambda oldest: False) is None
    with pytest.raises(KeyError):
        line.remove(stays)
