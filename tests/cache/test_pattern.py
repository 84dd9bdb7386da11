"""Key patterns: what is made of an id is that id again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.stores.feast import FeastKeys
from cache.stores.pattern import Pattern

PARTS = st.text(st.characters(exclude_characters="{}", exclude_categories=("Cs",)), max_size=5)
Keyed = Pattern | FeastKeys


@given(st.builds(lambda a, b: Pattern(a + "{id}" + b), PARTS, PARTS), st.lists(st.binary(max_size=9), max_size=5))
def test_ids_as_bytes(pattern: Pattern, ids: list[bytes]) -> None:
    assert pattern.ids(pattern.keys(ids)) == ids


@pytest.mark.parametrize("keyed", [Pattern("user:{id}"), Pattern("{id}"), Pattern("{id}.1"), FeastKeys("shop", "user")])
@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5))
def test_ids_as_integers(keyed: Keyed, ids: list[int]) -> None:
    keys = keyed.keys(np.array(ids, np.int64))
    assert keyed.ids(keys) == [b"%d" % each for each in ids]
    assert all(key.startswith(keyed.prefix) for key in keys)


def test_others_keys_are_nobodys_ids() -> None:
    pattern = Pattern("user:{id}:v1")
    others = [b"user:1", b"item:1:v1", b"user:v1", b"user:1:v2", b""]
    assert pattern.ids([*others, b"user:1:v1"]) == [b"1"]


def test_keys_are_spelt_out() -> None:
    assert Pattern("user:{id}").keys(np.array([5, -1], np.int64)) == [b"user:5", b"user:-1"]
    assert Pattern("ü{id}!").keys([b"\xff"]) == ["ü".encode() + b"\xff!"]


@pytest.mark.parametrize("written", ["user", "", "{id}{id}", "{ID}", "{}"])
def test_a_pattern_has_one_hole(written: str) -> None:
    with pytest.raises(ValueError):
        Pattern(written)


def test_feasts_keys_of_others() -> None:
    keyed = FeastKeys("shop", "user")
    (own,) = keyed.keys([b"ann"])
    (other,) = FeastKeys("shop", "item").keys([b"ann"])
    assert keyed.ids([own, other, own[:-1], own + b"x", b""]) == [b"ann"]
