"""The limiter finds what a server can do, follows it, and never starves: against servers in virtual time, by seed."""

from __future__ import annotations

import random

import pytest

from degrade.limiter import (
    DROPS_SHRINK_MIN,
    QUICK_SAMPLES,
    SAMPLES_MAX,
    SAMPLES_MIN,
    Limiter,
    LimiterOptions,
)
from degrade.points import Point, elasticity, elasticity_of
from tests.degrade.queueing import Fixed, Outcome, Server, Service, run

SECONDS = 0.01
"""Of a request's work, in the mean."""


def even(now: float, chance: random.Random) -> float:
    return SECONDS


def exponential(now: float, chance: random.Random) -> float:
    return chance.expovariate(1.0 / SECONDS)


def heavy(now: float, chance: random.Random) -> float:
    """Log-normal: its deviation is 1.3 times its mean."""
    return SECONDS * chance.lognormvariate(-0.5, 1.0)


def limiter(seed: int = 0, **options: int | float | None) -> Limiter:
    return Limiter(LimiterOptions(**options), random.Random(seed))  # type: ignore[arg-type]


def best(server: Server) -> tuple[float, int]:
    """The highest throughput of any fixed limit, and the lowest limit that has 98 % of it."""
    found = {limit: run(Fixed(limit), server, 8.0).throughput(1.0, 8.0) for limit in (2, 4, 8, 16, 32, 64, 128)}
    most = max(found.values())
    return most, min(limit for limit, done in found.items() if done >= 0.98 * most)


@pytest.mark.parametrize("service", [even, exponential, heavy])
@pytest.mark.parametrize("places", [1, 2, 4, 8, 16, 40])
def test_throughput_is_within_a_fifth_of_the_best_fixed_limits(places: int, service: Service) -> None:
    server = Server(lambda now: places, service)
    most, _ = best(server)
    for seed in range(3):
        found = run(limiter(seed), server, 16.0, seed)
        assert found.throughput(4.0, 16.0) >= 0.8 * most, (places, seed)


@pytest.mark.parametrize("service", [even, exponential, heavy])
@pytest.mark.parametrize("places", [4, 8, 16])
def test_and_so_is_how_little_may_queue_in_the_server(places: int, service: Service) -> None:
    """From 64 at once: down to where less than one and a half as many wait in the server as it works on."""
    server = Server(lambda now: places, service)
    means = [run(limiter(seed), server, 20.0, seed).limit(10.0, 20.0) for seed in range(5)]
    assert places <= sorted(means)[2] <= 2.5 * places


@pytest.mark.parametrize(("cost", "each", "most"), [(0.005, 0.0001, 64), (0.005, 0.0005, 32), (0.02, 0.0002, 64)])
def test_a_server_that_batches_is_not_strangled(cost: float, each: float, most: int) -> None:
    """Its latency grows with what is in flight, and its throughput too: a gradient against its idle latency would keep
    it at a quarter of what it can do."""
    server = Server(lambda now: 1, lambda now, chance: cost, each, most)
    peak, _ = best(server)
    assert run(limiter(most=128), server, 16.0).throughput(4.0, 16.0) >= 0.8 * peak
    assert run(limiter(most=128, first=4), server, 16.0).throughput(8.0, 16.0) >= 0.8 * peak


@pytest.mark.parametrize(("before", "after"), [(8, 4), (4, 8), (16, 2), (2, 16)])
def test_it_follows_a_capacity_that_changes(before: int, after: int) -> None:
    server = Server(lambda now: before if now < 12.0 else after, exponential)
    for seed in range(3):
        found = run(limiter(seed), server, 26.0, seed)
        peak = after / SECONDS
        assert found.throughput(16.0, 26.0) >= 0.8 * peak, seed
        assert found.throughput(12.5, 16.0) >= 0.4 * peak, seed  # an eightfold jump takes two or three seconds


def test_a_slower_server_keeps_its_limit() -> None:
    """Four times as long for each, by as many at once: only the baseline has drifted."""
    server = Server(lambda now: 8, lambda now, chance: chance.expovariate(1.0 / (0.01 if now < 10.0 else 0.04)))
    found = run(limiter(), server, 40.0)
    assert found.throughput(12.0, 40.0) >= 0.8 * 8 / 0.04
    assert found.limit(20.0, 40.0) <= 2.5 * 8


def test_a_measurement_is_no_cliff() -> None:
    """Every tenth of a second, measurements included, has most of the peak's throughput."""
    server = Server(lambda now: 8, even)
    limits = limiter()
    found = run(limits, server, 30.0)
    assert limits.measurements >= 4
    tenths = [found.throughput(at / 10, at / 10 + 0.1) for at in range(100, 300)]
    assert min(tenths) >= 0.5 * 8 / SECONDS
    assert sum(1 for each in tenths if each < 0.8 * 8 / SECONDS) <= 0.15 * len(tenths)


def test_who_wants_more_for_more_has_less_waiting_in_the_server() -> None:
    server = Server(lambda now: 8, even)
    found = [run(limiter(first=16, elasticity=elasticity_of(gain)), server, 20.0) for gain in (0.07, 0.2)]
    usual, narrow = [each.limit(8.0, 20.0) for each in found]
    assert 8 <= narrow < usual
    assert found[1].throughput(8.0, 20.0) >= 0.95 * 8 / SECONDS


def test_the_first_crowd_before_a_slow_server_is_not_all_late() -> None:
    """A load that jumps from little to far too much: within its first second the limit is near what is of use."""
    server = Server(lambda now: 8, lambda now, chance: 0.16)
    limits = limiter()
    found = run(limits, server, 12.0, demand=lambda now: 2 if now < 5.0 else 1000, timeout=1.0)
    assert min(limit for at, limit in found.limits if 5.0 < at < 6.5) <= 24
    assert found.throughput(8.0, 12.0) >= 0.9 * 8 / 0.16


def test_a_server_that_is_not_full_moves_nothing() -> None:
    limits = limiter(first=16)
    run(limits, Server(lambda now: 64, exponential), 20.0, demand=lambda now: 5)
    assert limits.limit == 16


def test_a_load_that_grows_is_met_at_once() -> None:
    """Where the limit was never a hindrance there is nothing to learn first."""
    found = run(limiter(), Server(lambda now: 40, exponential), 6.0, demand=lambda now: 2 if now < 3.0 else 1000)
    assert found.throughput(3.2, 6.0) >= 0.8 * 40 / SECONDS


def test_one_that_begins_low_doubles() -> None:
    found = run(limiter(first=2), Server(lambda now: 32, even), 10.0)
    assert found.throughput(2.0, 10.0) >= 0.8 * 32 / SECONDS


def test_drops_shrink_by_their_share_and_the_limit_comes_back() -> None:
    def stalled(now: float, chance: random.Random) -> float:
        return 3.0 if 5.0 <= now < 6.0 else SECONDS

    limits = limiter()
    found = run(limits, Server(lambda now: 8, stalled), 40.0, timeout=1.0)
    assert found.dropped
    assert min(limit for at, limit in found.limits if at > 5.0) >= 2
    assert found.throughput(20.0, 40.0) >= 0.8 * 8 / SECONDS


def test_a_window_of_drops_takes_half_and_never_more_than_the_floor() -> None:
    limits = limiter()
    now, seen = 0.0, [limits.limit]
    for _ in range(100 * 12):
        now += 0.01
        limits.dropped(now, now)
        if limits.limit != seen[-1]:
            seen.append(limits.limit)
    assert seen[:3] == [64, 32, 16]
    assert seen[1] == 64 * DROPS_SHRINK_MIN
    assert seen[-1] == 2


def test_however_long_it_stood_at_a_bound_it_leaves_it_at_once() -> None:
    """Nothing winds up behind it: neither a minute of drops at the floor, nor one of good answers at the ceiling."""
    limits, now = limiter(most=16), 0.0

    def dropping(seconds: float) -> None:
        nonlocal now
        end = now + seconds
        while now < end:
            now += 0.01
            limits.dropped(now, now)

    def answering(seconds: float) -> None:
        """By a server that works on any number at once."""
        nonlocal now
        end = now + seconds
        while now < end:
            now += SECONDS / limits.limit
            limits.sample(SECONDS, limits.limit, now)

    dropping(60.0)
    assert limits.limit == 2
    answering(5.0)
    assert limits.settled == 16
    answering(60.0)
    dropping(2.5)
    assert limits.limit <= 8


def test_of_a_server_that_hangs_a_few_drops_a_second_are_enough() -> None:
    limits = limiter()
    for now in (0.0, 0.5, 0.9):
        limits.dropped(now, now)
    assert limits.limit == 64
    limits.dropped(1.0, 1.0)
    assert limits.limit == 32


def test_one_drop_in_a_thousand_is_no_reason() -> None:
    limits = limiter()
    for number in range(1000):
        limits.sample(SECONDS, 1, number * 0.01)
    limits.dropped(10.0, 10.0)
    for number in range(100):
        limits.sample(SECONDS, 1, 10.0 + number * 0.01)
    assert limits.limit >= 61


def test_a_fixed_one_stays() -> None:
    limits = limiter(most=7, adaptive=False)
    found = run(limits, Server(lambda now: 2, even), 5.0)
    assert {limit for _, limit in found.limits} == {7}
    limits.dropped(6.0, 6.0)
    assert limits.limit == 7
    assert limits.latency > SECONDS


def test_a_measurement_that_nobody_comes_to_ends() -> None:
    limits, now = limiter(), 0.0
    while not limits.is_measuring:
        now += SECONDS / 64
        limits.sample(SECONDS, 64, now)
    assert limits.limit == 48
    limits.tick(now + 0.5)
    assert limits.is_measuring
    limits.tick(now + 1.5)
    assert not limits.is_measuring
    assert limits.limit == 64


def test_a_slow_servers_measurement_has_ten_of_its_answers_time() -> None:
    limits, now = limiter(), 0.0
    while not limits.is_measuring:
        now += 1.0 / 64
        limits.sample(1.0, 64, now)
    limits.tick(now + 9.5)
    assert limits.is_measuring
    limits.tick(now + 10.5)
    assert not limits.is_measuring


def test_a_window_of_a_high_limit_has_no_more_than_a_hundred_samples() -> None:
    limits = limiter(most=200)
    for number in range(1, SAMPLES_MAX + 1):
        assert not limits.is_measuring
        limits.sample(0.4, 200, number * 0.002)
    assert limits.is_measuring


def test_who_is_held_below_the_limit_ends_a_measurement() -> None:
    """It would measure where the crowd stands."""
    limits, now = limiter(), 0.0
    while not limits.is_measuring:
        now += SECONDS / 64
        limits.sample(SECONDS, 64, now)
    limits.held(now)
    assert (limits.is_measuring, limits.limit) == (False, 64)


def test_it_is_measured_anew_every_few_seconds_and_not_by_all_processes_at_once() -> None:
    server = Server(lambda now: 16, even)
    pair = limiter(1), limiter(2)
    one, other = [run(limits, server, 62.0, 0) for limits in pair]
    assert min(limits.measurements for limits in pair) >= 15  # 60 s / 4 s, give or take
    assert one.limits != other.limits


def test_a_first_answer_that_was_slow_is_not_the_shortest_known() -> None:
    """A model that warms up: the guess of what is enough is by what it takes later."""
    limits, now = limiter(), 0.0
    for seconds in [1.0] * QUICK_SAMPLES + [SECONDS] * 2 * QUICK_SAMPLES:
        now += seconds
        limits.sample(seconds, 1, now)
    limits.pressed(now)
    for _ in range(SAMPLES_MIN + 2):
        now += SECONDS / 8  # eight at once
        limits.sample(8 * SECONDS, 64, now)
    assert limits.limit <= 3 * 8 + 1


@pytest.mark.parametrize("seed", range(20))
def test_the_bounds_hold_whatever_is_told(seed: int) -> None:
    chance = random.Random(seed)
    limits, now = limiter(seed, least=3, most=50), 0.0
    for _ in range(5000):
        now += chance.choice((0.0, 0.001, 0.05, 20.0))
        if chance.random() < 0.1:
            limits.dropped(now, now)
        elif chance.random() < 0.1:
            limits.tick(now)
        else:
            limits.sample(chance.choice((0.0, 1e-9, 0.01, 100.0)), chance.randint(1, 60), now)
        assert 3 <= limits.limit <= limits.settled <= 50


def test_elasticity_is_how_throughput_grows() -> None:
    assert elasticity(Point(4, 0.01, 0.0), Point(8, 0.01, 0.0)) == pytest.approx(1.0)
    assert elasticity(Point(4, 0.01, 0.0), Point(8, 0.02, 0.0)) == pytest.approx(0.0)
    assert elasticity(Point(4, 0.01, 0.0), Point(8, 0.04, 0.0)) == pytest.approx(-1.0)
    assert elasticity(Point(4, 0.0, 0.0), Point(8, 0.04, 0.0)) == 1.0
    assert elasticity(Point(1, 0.02, 0.0), Point(1, 0.04, 0.0)) == 1.0
    assert elasticity(Point(2, 0.02, 0.0), Point(1, 0.04, 0.0)) == 1.0


def test_the_same_seed_is_the_same_run() -> None:
    def once() -> Outcome:
        return run(limiter(3), Server(lambda now: 4, exponential), 5.0, 3)

    assert once().limits == once().limits


def test_options_are_checked() -> None:
    for least, most in ((0, 4), (5, 4)):
        with pytest.raises(ValueError, match="least"):
            LimiterOptions(least=least, most=most)
    with pytest.raises(ValueError, match="remeasure"):
        LimiterOptions(remeasure=0.0)
    assert SAMPLES_MIN > 1
