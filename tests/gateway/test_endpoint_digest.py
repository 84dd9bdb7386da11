"""An endpoint's key: what decides an answer changes it, in whatever way it is cut up, and nothing else does."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.digest import Key
from degrade.gate import Priority
from gateway.admission.auth import Caller
from gateway.config import CacheConfig
from gateway.config import Endpoint as EndpointConfig
from gateway.endpoint import DECIDING, Endpoint, Page, Post, raw
from gateway.service import Given, Served
from gateway.storing import Life
from gateway.units import Seconds
from tests.tiers.test_pool import Fake
from tiers.pool import Pool, PoolOptions

CALLER = Caller("c", "tenant", None, False)
NAMES = ["Accept", "accept", "Content-Type", "X-Forwarded-Host", "X-Learnt", "X-Other", "Via", "Traceparent"]
TEXTS = st.sampled_from(["", "a", "b", "a, b", "ab", "\udcff", "é"])
POSTS = st.builds(
    Post,
    st.sampled_from(["", "?", "?a", "?a=\udcc3"]),
    st.lists(st.tuples(st.sampled_from(NAMES), TEXTS), max_size=4).map(tuple),
    st.sampled_from([b"", b"a", b"ab", b"\0"]),
)


def endpoint(**values: object) -> Endpoint:
    config = EndpointConfig("/predict", "b", CacheConfig(Seconds(60)), **values)  # type: ignore[arg-type]
    return Endpoint("e", config, Pool([Fake("u")], PoolOptions(), lambda: 0.0, random.Random(1)), 1024)


def deciding(post: Post, more: frozenset[str] = frozenset()) -> object:
    """What must be equal in equal questions."""
    fields: dict[str, list[bytes]] = {}
    for name, value in post.fields:
        if name.lower() in DECIDING | more:
            fields.setdefault(name.lower(), []).append(raw(value))
    return raw(post.query), fields, post.body


def taught(made: Endpoint, post: Post, vary: str) -> Key | None:
    page = Page(200, (("Vary", vary),), b"", Life(0.0, 60.0, 0.0))
    return made.settled(CALLER, post, Key(made.digest(CALLER, post), 0), Given(Served(page)))


@given(POSTS, POSTS)
def test_digests_are_equal_exactly_when_all_that_decides_is(left: Post, right: Post) -> None:
    made = endpoint()
    equal = made.digest(CALLER, left) == made.digest(CALLER, right)
    assert equal is (deciding(left) == deciding(right))
    learnt = frozenset({"x-learnt"})
    key = taught(made, left, "X-Learnt")
    assert key == Key(made.digest(CALLER, left), 0)
    equal = key.digest == made.digest(CALLER, right)
    assert equal is (deciding(left, learnt) == deciding(right, learnt))


@given(POSTS)
def test_tenants_and_endpoints_never_meet(post: Post) -> None:
    made = endpoint()
    other = Caller("c", "other", None, False)
    assert made.digest(CALLER, post) != made.digest(other, post)
    shared = Endpoint("e", EndpointConfig("/p", "b", CacheConfig(Seconds(60), shared=True)), made._pool, 1)
    assert shared.digest(CALLER, post) == shared.digest(other, post)


def test_a_key_that_lacks_nothing_stays_itself() -> None:
    made, post = endpoint(vary=("X-Named",)), Post("", (("Accept", "a"),))
    key = Key(made.digest(CALLER, post), 3)
    page = Page(200, (("Vary", "Accept, x-named"),), b"", Life(0.0, 60.0, 0.0))
    assert made.settled(CALLER, post, key, Given(Served(page))) is key
    assert made.settled(CALLER, post, key, Given(Served(Page(200, (), b"")))) is None
    assert taught(made, post, "Via") is None


@pytest.mark.parametrize(("said", "meant"), [(None, "NORMAL"), ("high", "HIGH"), ("normal", "NORMAL"), ("low", "LOW")])
def test_its_priority_is_what_was_said(said: str | None, meant: str) -> None:
    assert endpoint(priority=said).priority is Priority[meant]
