"""What an outage repeats is told of at once, and then seldom, with how often it was."""

from __future__ import annotations

from gateway.operate.log import SELDOM_SECONDS, Seldom


def test_told_at_once_then_seldom_with_how_often_it_was() -> None:
    now = [100.0]
    seldom = Seldom(lambda: now[0])
    assert [seldom.times("a") for _ in range(5)] == [1, 0, 0, 0, 0]
    now[0] += SELDOM_SECONDS
    assert [seldom.times("a") for _ in range(2)] == [5, 0]
    now[0] += SELDOM_SECONDS
    assert seldom.times("a") == 2


def test_each_thing_is_told_of_by_itself() -> None:
    seldom = Seldom(lambda: 0.0)
    assert [seldom.times("a"), seldom.times("b"), seldom.times("a")] == [1, 1, 0]
