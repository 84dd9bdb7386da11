"""Who must leave a gate's last places to others; and what that gives those who ask little, beside a crowd."""

from __future__ import annotations

import random
import statistics

import pytest

from degrade.gate import Claim, Gate, GateOptions, Permit, Priority
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
        holder = shares.asked(priority, owner, now)
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
    assert kept(made, noisy, LATELY) == 3
    assert kept(made, quiet, LATELY) == 0
    made.asked(NORMAL, "noisy", LATELY + 0.1)
    assert kept(made, noisy, LATELY + 0.1) == 0


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
        made.asked(NORMAL, str(number), 0.0)
    assert len(made._classes[NORMAL].holders) == OWNERS_MAX
    made.asked(NORMAL, "new", LATELY + 1.0)
    assert list(made._classes[NORMAL].holders) == ["new"]


# -- the gate that asks them --------------------------------------------------------------------------


def gate(places: int, **options: int) -> Gate:
    limiter = LimiterOptions(**{"least": 1, "most": 64, "first": 16} | options)  # type: ignore[arg-type]
    made = Gate(Limiter(limiter.beginning_at(places), random.Random(0)), GateOptions())
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
    assert all(goodput(told, 40.0) >= 0.85 * CAPACITY for _, told in found)


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
    permits = [made.admit(claim, 10.0, 0.0, lambda: None) for _ in range(4)]
    assert all(isinstance(permit, Permit) for permit in permits)


@pytest.mark.parametrize(("places", "first"), [(0, 16), (1, 2), (8, 10), (12, 15), (100, 16)])
def test_where_a_limit_begins(places: int, first: int) -> None:
    assert LimiterOptions(least=2, most=64, first=16).beginning_at(places).first == first


def test_a_limit_that_an_operator_fixed_begins_there() -> None:
    options = LimiterOptions(least=2, most=64, first=16, adaptive=False)
    assert options.beginning_at(4) is options


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
