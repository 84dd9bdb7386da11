"""A full cache is no work for the garbage collector, and gives its memory back all the same."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest

from cache.bounded import Bounded
from cache.digest import Key
from cache.entry import Entry
from cache.policy import POLICIES
from cache.response import ResponseCache

ENTRIES = 500


class Value:
    """Something that can be watched going."""


def filled(entries: Bounded[Entry[Value]]) -> tuple[ResponseCache[Value, bytes], list[weakref.ref[Value]]]:
    cache: ResponseCache[Value, bytes] = ResponseCache(entries)
    watched = []
    for number in range(ENTRIES):
        value, digest = Value(), b"%d" % number
        watched.append(weakref.ref(value))
        entry = Entry(value, 1, 0.0, 1.0, 1.0, 0)
        assert cache.store(Key(digest, 0), entry, cache.ticket())
        assert cache.attach(Key(digest, 0), entry, digest, b"wire", 1)
    return cache, watched


@pytest.mark.parametrize("name", POLICIES)
def test_entries_are_not_looked_at_by_the_collector(name: str) -> None:
    gc.collect()
    before = len(gc.get_objects())
    cache, watched = filled(Bounded(10**6, POLICIES[name](10**6)))
    gc.collect()
    grown = len(gc.get_objects()) - before - len(watched) * 2  # the values of this test, and what watches them
    assert grown < ENTRIES / 10
    assert cache.entries == ENTRIES


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("end", [lambda cache: cache.purge()], ids=["purged"])
def test_what_is_dropped_is_gone_without_a_collection(
    name: str, end: Callable[[ResponseCache[Value, bytes]], object]
) -> None:
    gc.disable()
    try:
        cache, watched = filled(Bounded(10**6, POLICIES[name](10**6)))
        end(cache)
        assert [each for each in watched if each() is not None] == []
        cache, watched = filled(Bounded(100, POLICIES[name](100)))  # the rest is evicted
        assert len([each for each in watched if each() is not None]) == cache.entries < ENTRIES
        cache.purge()
    finally:
        gc.enable()
