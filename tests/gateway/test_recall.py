"""The whole decision table: what was found x what the caller says -> what is done."""

from __future__ import annotations

import math

import pytest

from cache.entry import Entry, Found, Freshness
from gateway.codec.http import CacheDirectives
from gateway.recall import Action, Recall, RecallRules, recall, tolerates

TTL, MAX_STALE, REFRESH, EPOCH = 10.0, 100.0, 20.0, 7

FOUND = {
    "nothing": None,
    "fresh": (4.0, EPOCH),
    "just-fresh": (10.0, EPOCH),
    "in-window": (25.0, EPOCH),
    "beyond-window": (60.0, EPOCH),
    "turned": (4.0, EPOCH - 1),
    "turned-and-old": (25.0, EPOCH - 1),
}
"""Name -> (age in seconds, epoch) of the entry."""

ASKED = {
    "plain": CacheDirectives(),
    "no-cache": CacheDirectives(no_cache=True),
    "no-store": CacheDirectives(no_store=True),
    "only": CacheDirectives(only_if_cached=True),
    "no-cache+only": CacheDirectives(no_cache=True, only_if_cached=True),
    "max-age=2": CacheDirectives(max_age=2.0),
    "max-age=30": CacheDirectives(max_age=30.0),
    "max-stale": CacheDirectives(max_stale=math.inf),
    "max-stale=20": CacheDirectives(max_stale=20.0),
    "max-stale+max-age=30": CacheDirectives(max_stale=math.inf, max_age=30.0),
    "max-stale+only": CacheDirectives(max_stale=math.inf, only_if_cached=True),
    "max-stale+no-store": CacheDirectives(max_stale=math.inf, no_store=True),
}

HIT = Recall(Action.SERVE, "hit", "fresh")
TOLERATED = Recall(Action.SERVE, "stale", "max-stale")
REVALIDATING = Recall(Action.REFRESH, "stale", "revalidating")
NOT_CACHED = Recall(Action.REFUSE, "miss", "only-if-cached")


def fetch(reason: str) -> Recall:
    return Recall(Action.FETCH, "miss", reason)


def alone(reason: str) -> Recall:
    return Recall(Action.FETCH_ALONE, "miss", reason)


OLD = ("in-window", "beyond-window")
TURNED = ("turned", "turned-and-old")
TABLE: dict[str, dict[str, Recall]] = {
    "plain": {
        "nothing": fetch("absent"),
        "fresh": HIT,
        "just-fresh": HIT,
        "in-window": REVALIDATING,
        "beyond-window": fetch("expired"),
        **dict.fromkeys(TURNED, fetch("epoch")),
    },
    "no-cache": dict.fromkeys(FOUND, alone("no-cache")),
    "no-store": {
        "nothing": alone("absent"),
        "fresh": HIT,
        "just-fresh": HIT,
        **dict.fromkeys(OLD, alone("expired")),
        **dict.fromkeys(TURNED, alone("epoch")),
    },
    "only": {"nothing": NOT_CACHED, "fresh": HIT, "just-fresh": HIT, **dict.fromkeys(OLD + TURNED, NOT_CACHED)},
    "no-cache+only": dict.fromkeys(FOUND, NOT_CACHED),
    "max-age=2": {
        "nothing": fetch("absent"),
        "fresh": fetch("max-age"),
        "just-fresh": fetch("max-age"),
        **dict.fromkeys(OLD, fetch("expired")),
        **dict.fromkeys(TURNED, fetch("epoch")),
    },
    "max-age=30": {
        "nothing": fetch("absent"),
        "fresh": HIT,
        "just-fresh": HIT,
        **dict.fromkeys(OLD, fetch("expired")),  # RFC 9111: max-age without max-stale wants nothing stale
        **dict.fromkeys(TURNED, fetch("epoch")),
    },
    "max-stale": {
        "nothing": fetch("absent"),
        "fresh": HIT,
        "just-fresh": HIT,
        **dict.fromkeys(OLD, TOLERATED),
        **dict.fromkeys(TURNED, fetch("epoch")),
    },
    "max-stale=20": {
        "nothing": fetch("absent"),
        "fresh": HIT,
        "just-fresh": HIT,
        "in-window": TOLERATED,
        "beyond-window": fetch("expired"),
        **dict.fromkeys(TURNED, fetch("epoch")),
    },
    "max-stale+max-age=30": {
        "nothing": fetch("absent"),
        "fresh": HIT,
        "just-fresh": HIT,
        "in-window": TOLERATED,
        "beyond-window": fetch("expired"),
        **dict.fromkeys(TURNED, fetch("epoch")),
    },
    "max-stale+only": {
        "nothing": NOT_CACHED,
        "fresh": HIT,
        "just-fresh": HIT,
        **dict.fromkeys(OLD, TOLERATED),
        **dict.fromkeys(TURNED, NOT_CACHED),
    },
    "max-stale+no-store": {
        "nothing": alone("absent"),
        "fresh": HIT,
        "just-fresh": HIT,
        **dict.fromkeys(OLD, TOLERATED),
        **dict.fromkeys(TURNED, alone("epoch")),
    },
}


def found(name: str) -> Found[str] | None:
    state = FOUND[name]
    if state is None:
        return None
    age, epoch = state
    entry = Entry("answer", 1, -age, TTL, MAX_STALE, epoch)
    return Found(entry, entry.freshness(0.0, EPOCH))


@pytest.mark.parametrize("entry", FOUND)
@pytest.mark.parametrize("asked", ASKED)
def test_the_table(asked: str, entry: str) -> None:
    assert recall(found(entry), ASKED[asked], RecallRules(REFRESH), EPOCH, 0.0) == TABLE[asked][entry]


@pytest.mark.parametrize("entry", OLD)
def test_without_a_window_nothing_is_revalidated(entry: str) -> None:
    assert recall(found(entry), ASKED["plain"], RecallRules(0.0), EPOCH, 0.0) == fetch("expired")


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("entry", FOUND)
def test_a_hit_is_fresh_and_of_this_epoch_and_nothing_else_is_called_one(asked: str, entry: str) -> None:
    decided, was = recall(found(entry), ASKED[asked], RecallRules(REFRESH), EPOCH, 0.0), found(entry)
    if decided.state == "hit":
        assert was is not None
        assert was.freshness is Freshness.FRESH
    if decided.action in (Action.SERVE, Action.REFRESH):
        assert was is not None
        assert was.entry.epoch == EPOCH
    if ASKED[asked].no_store:
        assert decided.action in (Action.SERVE, Action.FETCH_ALONE)


TOLERABLE: dict[str, tuple[str, ...]] = {
    "plain": ("fresh", "just-fresh", *OLD, *TURNED),
    "no-cache": (),
    "no-store": ("fresh", "just-fresh", *OLD, *TURNED),
    "max-age=2": (),
    "max-stale": ("fresh", "just-fresh", *OLD, *TURNED),
    "max-stale=20": ("fresh", "just-fresh", "in-window"),
}


@pytest.mark.parametrize("asked", TOLERABLE)
@pytest.mark.parametrize("entry", [name for name in FOUND if name != "nothing"])
def test_what_a_caller_would_have_of_the_ladder(asked: str, entry: str) -> None:
    was = found(entry)
    assert was is not None
    if entry in TURNED and asked == "max-stale=20":
        expected = -was.entry.ttl_left(0.0) <= 20.0
    else:
        expected = entry in TOLERABLE[asked]
    assert tolerates(was, ASKED[asked], 0.0) is expected
