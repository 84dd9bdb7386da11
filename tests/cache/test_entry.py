"""An entry's life in virtual time."""

import pytest

from cache.entry import Entry, Freshness

ENTRY = Entry(value="v", size=10, stored_at=100.0, ttl=10.0, max_stale=5.0, epoch=3)


@pytest.mark.parametrize(
    ("now", "epoch", "expected"),
    [
        (100.0, 3, Freshness.FRESH),
        (99.0, 3, Freshness.FRESH),  # a clock read before the store finished
        (110.0, 3, Freshness.FRESH),
        (110.001, 3, Freshness.STALE),
        (115.0, 3, Freshness.STALE),
        (115.001, 3, Freshness.DEAD),
        (100.0, 4, Freshness.STALE),  # the model's content changed
        (100.0, 2, Freshness.STALE),  # asked for by someone who has not heard of the change
        (115.0, 4, Freshness.STALE),
        (115.001, 4, Freshness.DEAD),
    ],
)
def test_freshness(now: float, epoch: int, expected: Freshness) -> None:
    assert ENTRY.freshness(now, epoch) is expected


def test_without_stale_time_an_entry_dies_when_it_is_no_longer_fresh() -> None:
    entry = Entry(value="v", size=1, stored_at=0.0, ttl=10.0, max_stale=0.0, epoch=1)
    assert entry.freshness(10.0, 1) is Freshness.FRESH
    assert entry.freshness(10.5, 1) is Freshness.DEAD


@pytest.mark.parametrize(("now", "age", "left"), [(99.0, 0.0, 10.0), (104.0, 4.0, 6.0), (112.0, 12.0, -2.0)])
def test_age_is_never_negative_and_time_left_may_be(now: float, age: float, left: float) -> None:
    assert ENTRY.age(now) == age
    assert ENTRY.ttl_left(now) == left


def test_entries_are_immutable() -> None:
    with pytest.raises(AttributeError):
        ENTRY.value = "w"  # type: ignore[misc]  # what is tested
