"""GCRA beside an exact model, in virtual time; and the header values it is told in."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission.quota import (
    RETRY_AFTER_SECONDS_MAX,
    Quota,
    Verdict,
    ratelimit_lines,
    ratelimit_value,
    retry_after_value,
)
from gateway.admission.ratelimit import Limiter

QUOTAS = st.builds(
    Quota,
    rate=st.sampled_from([0.5, 1.0, 3.0, 7.0, 10.0, 1000.0]),
    per=st.sampled_from([0.1, 1.0, 60.0]),
    burst=st.integers(1, 5),
    name=st.just("q"),
)
MILLISECONDS = st.lists(st.integers(0, 3000), min_size=1, max_size=80)


def moments(gaps: list[int]) -> list[float]:
    total, times = 1000, []
    for gap in gaps:
        total += gap
        times.append(total / 1000)
    return times


@given(QUOTAS, MILLISECONDS)
def test_no_window_ever_holds_more_than_burst_and_rate(quota: Quota, gaps: list[int]) -> None:
    limiter = Limiter()
    passed = [now for now in moments(gaps) if limiter.check("k", quota, now).allowed]
    for first, start in enumerate(passed):
        for last, end in enumerate(passed[first:], first):
            most = quota.burst + Fraction(quota.rate) / Fraction(quota.per) * Fraction(end - start)
            assert last - first + 1 <= most + Fraction(1, 10**4)


@given(QUOTAS, st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 6)), min_size=1, max_size=80))
def test_equal_to_a_bucket_of_exact_fractions(quota: Quota, asks: list[tuple[int, int]]) -> None:
    limiter = Limiter()
    interval = quota.interval_ns
    level, at = Fraction(quota.burst), 0
    for now, (_, cost) in zip(moments([gap for gap, _ in asks]), asks, strict=True):
        now_ns = int(now * 1_000_000_000)
        level = min(Fraction(quota.burst), level + Fraction(now_ns - at, interval))
        at = now_ns
        verdict = limiter.check("k", quota, now, cost)
        assert verdict.allowed == (level >= cost)
        if verdict.allowed:
            level -= cost
        assert verdict.remaining == math.floor(level)
        assert verdict.reset == pytest.approx(float((quota.burst - level) * interval) / 1e9)


@given(QUOTAS, MILLISECONDS)
def test_waiting_as_told_is_enough(quota: Quota, gaps: list[int]) -> None:
    limiter = Limiter()
    for now in moments(gaps):
        verdict = limiter.check("k", quota, now)
        if not verdict.allowed:
            assert verdict.retry_after > 0
            # The wait is exact to the nanosecond; a float of seconds may lose one.
            assert limiter.peek("k", quota, now + verdict.retry_after + 1e-6).allowed
            assert not limiter.peek("k", quota, now + verdict.retry_after - 1e-6).allowed


def test_floats_neither_open_nor_close_a_quota() -> None:
    quota = Quota(rate=10.0, per=1.0, burst=3, name="q")
    limiter = Limiter()
    assert [limiter.check("k", quota, 1.1).allowed for _ in range(4)] == [True, True, True, False]
    assert Quota(rate=3.0, per=1.0, burst=1, name="q").interval_ns == 333_333_334
    assert Quota(rate=5.0, per=0.1, burst=1, name="q").interval_ns == 20_000_000


def test_peek_and_refusals_consume_nothing() -> None:
    quota = Quota(rate=1.0, per=1.0, burst=2, name="q")
    limiter = Limiter()
    assert limiter.peek("k", quota, 5.0) == Verdict(True, 2, 0.0, 0.0, quota)
    assert len(limiter) == 0
    limiter.check("k", quota, 5.0, 2)
    assert limiter.peek("k", quota, 5.0) == Verdict(False, 0, 2.0, 1.0, quota)
    for _ in range(10):
        assert limiter.check("k", quota, 5.0) == Verdict(False, 0, 2.0, 1.0, quota)
    assert limiter.check("k", quota, 6.0).allowed


def test_a_cost_above_the_burst_never_passes() -> None:
    quota = Quota(rate=1.0, per=1.0, burst=2, name="q")
    verdict = Limiter().check("k", quota, 5.0, 3)
    assert (verdict.allowed, verdict.remaining, verdict.retry_after) == (False, 2, math.inf)
    assert retry_after_value(verdict.retry_after) == str(RETRY_AFTER_SECONDS_MAX)
    with pytest.raises(ValueError, match="negative"):
        Limiter().check("k", quota, 5.0, -1)


def test_all_or_none() -> None:
    tight = Quota(rate=1.0, per=10.0, burst=1, name="tight")
    wide = Quota(rate=1.0, per=1.0, burst=5, name="wide")
    limiter = Limiter()
    first = limiter.check_all([("a", wide), ("a", tight)], 5.0)
    assert (first.allowed, first.quota, first.remaining) == (True, tight, 0)
    second = limiter.check_all([("a", wide), ("a", tight)], 5.0)
    assert (second.allowed, second.quota, second.retry_after) == (False, tight, 10.0)
    assert limiter.peek("a", wide, 5.0).remaining == 4
    assert limiter.check_all([("b", wide), ("b", wide)], 5.0).remaining == 3
    with pytest.raises(ValueError, match="at least one"):
        limiter.check_all([], 5.0)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1500)), min_size=1, max_size=150))
def test_forgetting_keys_never_opens_a_quota(asks: list[tuple[int, int]]) -> None:
    """With room for two keys and seven callers, each stays within what an unbounded limiter allows."""
    quota = Quota(rate=1.0, per=1.0, burst=2, name="q")
    limiter = Limiter(keys_max=2)
    passed: dict[int, list[float]] = {}
    for (key, _), now in zip(asks, moments([gap for _, gap in asks]), strict=True):
        if limiter.check(key, quota, now).allowed:
            passed.setdefault(key, []).append(now)
        assert len(limiter) <= 2
    for times in passed.values():
        for first, start in enumerate(times):
            for last, end in enumerate(times[first:], first):
                assert last - first + 1 <= 2 + (end - start) + 1e-6


def test_idle_keys_make_room_and_active_ones_stay() -> None:
    quota = Quota(rate=1.0, per=1.0, burst=2, name="q")
    limiter = Limiter(keys_max=2)
    for key in ("busy", "idle"):
        limiter.check(key, quota, 0.0)
    limiter.check("busy", quota, 0.5)
    limiter.check("new", quota, 1.2)
    assert len(limiter) == 2
    assert limiter.peek("busy", quota, 1.2).remaining == 1
    assert limiter.peek("new", quota, 1.2).remaining == 1
    for _ in range(2):
        limiter.check("stranger", quota, 1.2)
    assert not limiter.check("another stranger", quota, 1.2).allowed
    assert limiter.check("busy", quota, 1.2).allowed


def test_a_flood_of_keys_stays_bounded() -> None:
    quota = Quota(rate=1.0, per=60.0, burst=2, name="q")
    limiter = Limiter(keys_max=100)
    allowed = sum(limiter.check(key, quota, 1.0).allowed for key in range(5000))
    assert len(limiter) == 100
    assert allowed == 102


@pytest.mark.parametrize(
    ("seconds", "value"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.001, "2"), (59.5, "60"), (1e9, "86400")]
)
def test_retry_after_is_whole_rounded_up_and_at_least_one(seconds: float, value: str) -> None:
    assert retry_after_value(seconds) == value


@pytest.mark.parametrize(
    ("allowed", "remaining", "reset", "retry_after", "value"),
    [
        (True, 50, 30.0, 0.0, '"default";r=50;t=30'),
        (True, 4, 0.1, 0.0, '"default";r=4;t=1'),
        (True, 5, 0.0, 0.0, '"default";r=5;t=0'),
        (False, 0, 30.0, 2.5, '"default";r=0;t=3'),
        (False, 0, 0.2, 0.01, '"default";r=0;t=1'),
    ],
)
def test_ratelimit(allowed: bool, remaining: int, reset: float, retry_after: float, value: str) -> None:
    quota = Quota(rate=100.0, per=10.0, burst=50, name="default")
    assert ratelimit_value(Verdict(allowed, remaining, reset, retry_after, quota)) == value


@pytest.mark.parametrize("name", ["default", "100%", "%d", 'a"b'])
def test_lines_of_a_head_are_the_two_values(name: str) -> None:
    quota = Quota(rate=100.0, per=10.0, burst=50, name=name)
    verdict = Verdict(True, 4, 0.1, 0.0, quota)
    expected = f"RateLimit: {ratelimit_value(verdict)}\r\nRateLimit-Policy: {quota.policy}\r\n"
    assert ratelimit_lines(verdict) == expected.encode()


@pytest.mark.parametrize(
    ("rate", "per", "name", "value"),
    [
        (100.0, 10.0, "default", '"default";q=100;w=10'),
        (5.0, 0.1, "fast", '"fast";q=50;w=1'),
        (0.5, 1.0, "slow", '"slow";q=1;w=2'),
        (1.0, 1.5, "odd", '"odd";q=1;w=2'),
        (1.0, 1.0, 'a"b\\c', '"a\\"b\\\\c";q=1;w=1'),
    ],
)
def test_ratelimit_policy(rate: float, per: float, name: str, value: str) -> None:
    assert Quota(rate, per, 1, name).policy == value


@pytest.mark.parametrize(
    ("rate", "per", "burst", "name"),
    [
        (0.0, 1.0, 1, "q"),
        (1.0, 0.0, 1, "q"),
        (1.0, 1.0, 0, "q"),
        (math.nan, 1.0, 1, "q"),
        (1.0, 1.0, 1, ""),
        (1.0, math.inf, 1, "q"),
        (1.0, 1.0, 1, "é"),
        (1.0, 1.0, 1, "a\r\nb"),
    ],
)
def test_a_quota_that_makes_no_sense_is_refused(rate: float, per: float, burst: int, name: str) -> None:
    with pytest.raises(ValueError, match="quota"):
        Quota(rate, per, burst, name)
