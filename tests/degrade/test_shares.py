"""Who must leave a gate's last places to others; and what that gives those who ask little, beside a crowd."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from degrade.gate import Claim, Gate, GateOptions, Permit, Priority, Waiting
from degrade.limiter import Limiter, LimiterOptions
from degrade.shares import LATELY, OWNERS_MAX, Holder, Shares
from tests.degrade.crowding import Stream, Told, World, goodput, p99

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW
PLACES, WORK, DEADLINE = 8, 0.32, 2.0
CAPACITY = PLACES / WORK


def shares(places: int = 8) -> Shares:
    made = Shares()
    made.places = places
    return made


def ask(shares: Shares, owner: str, present: int, times: int = 200, now: float = 0.0, priority: int = NORMAL) -> Holder:
    """An owner who has so many there whenever he asks."""
    for _ in range(times):
        holder = shares.asked(priority, owner, 10, now)
        holder.present = present
    return holder


def kept(shares: Shares, holder: Holder, now: float = 0.0, priority: int = NORMAL) -> int:
    """How many of the places above eight a limit of ten has are kept from somebody."""
    return 10 - shares.most(priority, holder, 10, now)


@pytest.mark.parametrize(
    ("places", "least", "most"), [(1, 1, 1), (2, 2, 2), (7, 7, 7), (8, 6, 7), (15, 13, 14), (16, 12, 14), (40, 30, 35)]
)
def test_a_crowd_has_all_places_but_an_eighth(places: int, least: int, most: int) -> None:
    made = shares(places)
    noisy, _ = ask(made, "noisy", 1000), ask(made, "quiet", 1)
    assert made.most(NORMAL, noisy, 64, 0.0) == most
    ask(made, "vip", 1, priority=HIGH)
    assert made.most(NORMAL, noisy, 64, 0.0) == made.least(64) == least
    assert made.most(NORMAL, noisy, least - 1, 0.0) == made.least(least - 1) == least - 1


def test_where_nobody_knows_the_places_nothing_is_kept() -> None:
    made = shares(0)
    noisy, _ = ask(made, "noisy", 1000), ask(made, "quiet", 1)
    assert (made.most(NORMAL, noisy, 10, 0.0), made.least(10)) == (10, 10)


def test_one_alone_leaves_nothing() -> None:
    made = shares()
    assert kept(made, ask(made, "a", 100)) == 0


def test_owners_who_ask_alike_leave_nothing_to_each_other() -> None:
    made = shares()
    assert [kept(made, ask(made, owner, 100)) for owner in "abcd"] == [0] * 4


def test_a_crowd_leaves_the_last_places_to_who_asks_little_and_for_as_long_as_he_is_there() -> None:
    made = shares()
    noisy, quiet = ask(made, "noisy", 60), ask(made, "quiet", 1)
    made.asked(NORMAL, "noisy", 10, LATELY)
    assert (kept(made, noisy, LATELY), kept(made, quiet, LATELY)) == (3, 0)
    made.asked(NORMAL, "noisy", 10, LATELY + 0.1)
    assert kept(made, noisy, LATELY + 0.1) == 0


def test_where_most_are_heavy_it_is_the_server_that_has_too_little() -> None:
    made = shares()
    holders = [ask(made, owner, 100) for owner in "abc"]
    ask(made, "d", 1, times=1)
    assert not any(made.is_crowd(NORMAL, holder) for holder in holders)
    ask(made, "e", 1, times=1)
    assert not any(made.is_crowd(NORMAL, holder) for holder in holders)
    ask(made, "f", 1, times=1)
    assert all(made.is_crowd(NORMAL, holder) for holder in holders)


def test_a_few_that_come_together_are_no_crowd() -> None:
    made = shares()
    ask(made, "other", 1)
    holder = ask(made, "bursts", 0)
    ask(made, "bursts", 6, times=5)
    assert kept(made, holder) == 0


def test_one_at_a_time_is_no_crowd_however_many_owners_there_are() -> None:
    made = shares()
    holders = [ask(made, str(number), 1, times=50) for number in range(100)]
    assert not any(kept(made, holder) for holder in holders)
    made = shares()
    for number in range(90):
        ask(made, f"seldom{number}", 0, times=1)
    holders = [ask(made, str(number), 1, times=50) for number in range(10)]
    assert not any(kept(made, holder) for holder in holders), "nor beside many who ask less"


def test_who_is_beside_a_crowd_keeps_his_places_while_the_crowds_are_measured() -> None:
    made = shares()
    noisy, quiet, _ = ask(made, "noisy", 60), ask(made, "quiet", 1), ask(made, "vip", 1, priority=HIGH)
    made.crowd = 0.75
    assert [made.most(NORMAL, holder, 10, 0.0) for holder in (noisy, quiet)] == [4, 7]
    assert made.least(10) == 4
    alone = ask(made, "low", 1, priority=LOW)
    assert made.most(LOW, alone, 10, 0.0) == 5, "a priority without a crowd is itself what is held"


def test_a_priority_leaves_them_to_a_higher_one_that_is_there() -> None:
    made = shares()
    low, high = ask(made, "a", 1, priority=LOW), ask(made, "a", 100, priority=HIGH)
    assert (kept(made, low, LATELY, LOW), kept(made, high, 0.0, HIGH)) == (3, 0)
    assert kept(made, low, LATELY + 0.1, LOW) == 0


def test_who_asks_little_has_a_place_before_a_crowd_also_when_a_higher_priority_is_there() -> None:
    made = shares()
    noisy, quiet, _ = ask(made, "noisy", 60), ask(made, "quiet", 1), ask(made, "vip", 1, priority=HIGH)
    assert (kept(made, noisy), kept(made, quiet)) == (4, 3)


def test_owners_who_are_gone_are_forgotten() -> None:
    made = shares()
    for number in range(3 * OWNERS_MAX):
        made.asked(NORMAL, str(number), 10, 0.0)
    assert len(made._classes[NORMAL].holders) == OWNERS_MAX
    noisy = ask(made, "noisy", 100)
    assert noisy.is_heavy
    made.asked(NORMAL, "new", 10, LATELY + 1.0)
    assert not noisy.is_heavy, "what he has in work is nobody's crowd"
    assert (list(made._classes[NORMAL].holders), made._classes[NORMAL].heavy) == (["new"], 0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 40), st.floats(0.0, 20.0)), max_size=60))
def test_the_heavy_are_counted_as_they_are(events: list[tuple[str, int, float]]) -> None:
    made, now = shares(), 0.0
    for owner, present, later in events:
        now += later
        made.asked(NORMAL, owner, 10, now).present = present
        there = made._classes[NORMAL]
        assert there.heavy == sum(holder.is_heavy for holder in there.holders.values())
        assert all(now - holder.asked_at <= LATELY for holder in there.holders.values())


# -- the gate that asks them --------------------------------------------------------------------------


def gate(places: int, **options: int | bool) -> Gate:
    limiter = LimiterOptions(**{"least": 1, "most": 64, "first": 16} | options)  # type: ignore[arg-type]
    made = Gate(Limiter(limiter, random.Random(0)), GateOptions())
    made.places = places
    return made


def spared(streams: list[Stream], crowd: list[Stream], places: int, seed: int) -> tuple[float, list[Told]]:
    """How many times their p99 alone the p99 of some streams is beside a crowd, whose beginning does not count; and all
    that became of them in 40 s."""
    alone = World(gate(places), PLACES, WORK, DEADLINE).run(streams, 40.0, seed)
    beside = World(gate(places), PLACES, WORK, DEADLINE).run([*streams, *crowd], 45.0, seed)
    beside = [each for each in beside if each.came >= 5.0]
    named = {stream.claim for stream in streams}
    return p99([each for each in beside if each.claim in named]) / p99(alone), beside


QUIET = [Stream(Claim(owner), 0.16 * CAPACITY) for owner in "abc"]
NOISY = [Stream(Claim("d"), 50 * CAPACITY / 4)]
SEEDS = range(3)


def test_a_noisy_tenant_at_fifty_times_its_share_leaves_the_others_p99_within_one_and_a_half() -> None:
    found = [spared(QUIET, NOISY, PLACES, seed) for seed in SEEDS]
    assert statistics.median(times for times, _ in found) <= 1.5
    assert all(goodput(told, 40.0) >= 0.9 * CAPACITY for _, told in found)


@pytest.mark.parametrize("owners", [100, 4000])
def test_what_a_gate_does_costs_the_same_however_many_owners_wait(owners: int) -> None:
    """Counted in comparisons of tags and not in time: nobody who waits is looked at in vain."""
    made = gate(16)
    looked = 0
    may = made._may

    def counted(*told: object) -> bool:
        nonlocal looked
        looked += 1
        return may(*told)  # type: ignore[arg-type]

    made._may = counted  # type: ignore[method-assign]
    permits: list[Permit] = []

    def ask(owner: str, priority: Priority) -> None:
        def woken() -> None:
            assert isinstance(waits[0].outcome, Permit)
            permits.append(waits[0].outcome)

        found = made.admit(Claim(owner, priority), 10.0, 0.0)
        waits = [found] if isinstance(found, Waiting) else []
        for each in waits:
            each.wake = woken
        permits.extend([found] if isinstance(found, Permit) else [])

    for number in range(owners):
        ask(f"{number}", NORMAL)
    for _ in range(20):
        ask("vip", HIGH)
    looked = 0
    for turn in range(200):
        permits.pop(0).ignored(0.0)
        ask(f"new{turn}", NORMAL)
        if not turn % 10:
            ask("vip", HIGH)
    assert made.waiting > owners / 2
    assert looked <= 4 * 200


@pytest.mark.parametrize("quiet", [1, 3])
def test_who_asks_little_does_not_make_a_crowd_of_all_others(quiet: int) -> None:
    """A health check beside ten tenants who all ask too much: that is strain, and they lose nothing for it."""
    tenants = [Stream(Claim(f"{n}"), 0.4 * CAPACITY) for n in range(10)]
    seldom = [Stream(Claim(f"seldom{n}"), 0.5) for n in range(quiet)]
    world = World(gate(PLACES), PLACES, WORK, DEADLINE)
    told = world.run([*tenants, *seldom], 60.0, 4)
    assert goodput(told, 60.0) >= 0.97 * CAPACITY
    assert world.gate.shed_apart < 0.1 * world.gate.shed.total()


@pytest.mark.parametrize("places", [PLACES, 0])
def test_a_noisy_tenant_is_no_sign_of_strain(places: int) -> None:
    """Nobody else is served less because most of what it asks finds no place; where all ask too much, all count."""
    world = World(gate(places), PLACES, WORK, DEADLINE)
    world.run([*QUIET, *NOISY], 20.0, 1)
    asked, shed = world.gate.asked - world.gate.asked_apart, world.gate.shed.total() - world.gate.shed_apart
    assert world.gate.shed.total() > 5000
    assert shed < 0.25 * asked  # the noisy tenant's first, before it is known for one
    all_alike = World(gate(places), PLACES, WORK, DEADLINE)
    all_alike.run([Stream(Claim(owner), 2 * CAPACITY) for owner in "abcd"], 20.0, 1)
    assert all_alike.gate.shed_apart < 0.01 * all_alike.gate.shed.total()


def test_what_waits_of_a_crowd_presses_nobody() -> None:
    made = gate(PLACES)
    quiet, noisy = Claim("quiet"), Claim("noisy")
    assert isinstance(made.admit(quiet, 10.0, 0.0), Permit)
    there = [made.admit(noisy, 10.0, 0.0) for _ in range(100)]
    for each in [each for each in there if isinstance(each, Waiting)]:
        each.leave(0.0)  # some of them came before anybody could know it for a crowd
    for _ in range(50):
        made.admit(noisy, 10.0, 1.0)
    assert (made.waiting, made.pressure(6.0)) == (50, 0.0)
    held = [made.admit(quiet, 10.0, 1.0) for _ in range(3)]
    assert isinstance(held[-1], Waiting)
    assert made.pressure(6.0) == 0.5


def test_and_so_it_is_beside_high_priority() -> None:
    high = Stream(Claim("vip", HIGH), 0.04 * CAPACITY)
    found = [spared(QUIET, [*NOISY, high], PLACES, seed)[0] for seed in SEEDS]
    assert statistics.median(found) <= 1.5


def test_which_it_does_not_where_nobody_knows_the_places() -> None:
    """The check above can fail: the limit alone lets the crowd queue in the server."""
    assert statistics.median(spared(QUIET, NOISY, 0, seed)[0] for seed in SEEDS) > 2.0


@pytest.mark.parametrize("times", [1, 2, 8])
def test_high_priority_stays_within_twice_its_p99_alone(times: int) -> None:
    high = [Stream(Claim("vip", HIGH), 0.2 * CAPACITY)]
    crowd = [Stream(Claim(owner), (times - 0.2) * CAPACITY / 4) for owner in "abcd"]
    found = [spared(high, crowd, PLACES, seed) for seed in SEEDS]
    assert statistics.median(ratio for ratio, _ in found) <= 1.5
    assert all(goodput(told, 40.0) >= 0.82 * CAPACITY for _, told in found)  # of 8 places one is kept


def test_equal_tenants_lose_nothing_by_it() -> None:
    crowd = [Stream(Claim(owner), CAPACITY) for owner in "abcd"]
    told = World(gate(PLACES), PLACES, WORK, DEADLINE).run(crowd, 60.0, 1)
    assert goodput(told, 60.0) >= 0.97 * CAPACITY


@pytest.mark.parametrize("priority", [NORMAL, LOW])
def test_who_leaves_the_last_places_is_served_all_the_same_now_and_then(priority: Priority) -> None:
    """Many who ask little, or those of high priority, fill the server: the crowd still has a turn in seventeen."""
    light = [Stream(Claim(f"{n}", HIGH if priority is LOW else NORMAL), 0.1 * CAPACITY) for n in range(9)]
    crowd = Claim("crowd", priority)
    told = World(gate(PLACES), PLACES, WORK, DEADLINE).run([*light, Stream(crowd, CAPACITY)], 60.0, 2)
    served = sum(each.claim == crowd and each.seconds < DEADLINE for each in told)
    assert served >= 60.0 * CAPACITY / 20


def test_a_fixed_limit_below_the_places_is_an_operators_word() -> None:
    made = gate(8, most=4, first=4)
    claim = Claim("a")
    permits = [made.admit(claim, 10.0, 0.0) for _ in range(4)]
    assert all(isinstance(permit, Permit) for permit in permits)


@pytest.mark.parametrize(("places", "first"), [(0, 16), (1, 2), (8, 10), (12, 15), (100, 16)])
def test_where_a_limit_begins(places: int, first: int) -> None:
    assert gate(places, least=2).limit == first


def test_a_limit_that_an_operator_fixed_begins_there() -> None:
    assert gate(4, most=16, adaptive=False).limit == 16


def test_a_limit_that_was_found_is_not_told_where_to_begin() -> None:
    made = gate(0)
    World(made, PLACES, WORK, DEADLINE).run([Stream(Claim("a"), 2 * CAPACITY)], 60.0, 1)
    found = made.limit
    made.places = 2
    assert made.limit == found > 4


@pytest.mark.parametrize("places", [4, 8])
def test_the_limit_stays_while_a_crowd_is_held_below_it(places: int) -> None:
    """What a crowd brings that is not let up to the limit says nothing of the limit; without one it is found again."""
    made = gate(8)
    World(made, 8, WORK, DEADLINE).run([*QUIET, *NOISY], 60.0, 3)
    assert 9 <= made.limit <= 12
    later = World(made, places, WORK, DEADLINE, now=60.0)
    made.places = places
    later.run([Stream(Claim("d"), 50.0)], 60.0 + LATELY + 60.0, 3)
    assert places <= made.limit <= 2 * places


@pytest.mark.parametrize("told", [16, 32])
def test_instances_that_share_cores_are_fewer_than_they_say(told: int) -> None:
    """A server that says it works on many at once and really does on four, with somebody of high priority there from
    the first moment on: the limit is found all the same."""
    high, crowd = Stream(Claim("vip", HIGH), 4.0), Stream(Claim("a"), 400.0)
    limits = []
    for seed in SEEDS:
        made = gate(told)
        seen = World(made, 4, 0.05, DEADLINE).run([high, crowd], 60.0, seed)
        limits.append(made.limit)
        late = [each for each in seen if each.claim == high.claim and each.came > 40.0]
        assert statistics.median(each.seconds for each in late) <= 0.15
    assert statistics.median(limits) <= 10
