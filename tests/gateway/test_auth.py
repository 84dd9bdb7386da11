"""Callers by key: each way to present one, and each way to be refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission.auth import KEY_BYTES_MAX, Caller, Directory, Unauthenticated, anonymous_name, key_digest

ALICE = Caller("alice", "red")
BOB = Caller("bob", "blue")
KEYS = {key_digest("alice-key"): ALICE, key_digest("bob-key").upper(): BOB}
LONGEST = "k" * KEY_BYTES_MAX


@pytest.mark.parametrize("anonymous", [False, True])
@pytest.mark.parametrize(
    ("authorization", "api_key", "caller"),
    [
        ("Bearer alice-key", None, ALICE),
        ("bearer   bob-key ", None, BOB),
        (None, "alice-key", ALICE),
        (None, " bob-key\t", BOB),
        ("Bearer alice-key", "alice-key", ALICE),
    ],
)
def test_a_right_key_names_its_caller(
    anonymous: bool, authorization: str | None, api_key: str | None, caller: Caller
) -> None:
    assert Directory(KEYS, anonymous).identify(authorization, api_key, "10.0.0.1") is caller


@pytest.mark.parametrize("anonymous", [False, True])
@pytest.mark.parametrize(
    ("authorization", "api_key", "reason"),
    [
        ("Bearer wrong", None, "unknown"),
        (None, "wrong", "unknown"),
        (None, LONGEST, "unknown"),
        (None, key_digest("alice-key"), "unknown"),
        ("Bearer alice-key", "bob-key", "conflict"),
        ("Bearer wrong", "alice-key", "conflict"),
        ("Basic alice-key", None, "scheme"),
        ("alice-key", None, "scheme"),
        ("", None, "scheme"),
        ("Basic x", "alice-key", "scheme"),
        ("Bearer", None, "malformed"),
        ("Bearer  ", None, "malformed"),
        ("Bearer alice-key bob-key", None, "malformed"),
        (None, "", "malformed"),
        (None, LONGEST + "k", "malformed"),
        ("Bearer " + LONGEST + "k", None, "malformed"),
        ("Bearer " + "k" * 1_000_000, None, "malformed"),
        (None, "k\x00", "malformed"),
        (None, "schlüssel", "malformed"),
        (None, "\ud800", "malformed"),
    ],
)
def test_a_wrong_key_is_refused_also_where_anonymous_callers_are_not(
    anonymous: bool, authorization: str | None, api_key: str | None, reason: str
) -> None:
    with pytest.raises(Unauthenticated) as refused:
        Directory(KEYS, anonymous).identify(authorization, api_key, "10.0.0.1")
    assert refused.value.reason == reason
    assert "alice-key" not in str(refused.value)


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        ("10.0.0.1", "addr:10.0.0.1"),
        ("::ffff:10.0.0.1", "addr:10.0.0.1"),
        ("::FFFF:a00:1", "addr:10.0.0.1"),
        ("2001:db8:0:7::1", "addr:2001:db8:0:7::/64"),
        ("2001:db8:0:7:ffff:ffff:ffff:ffff", "addr:2001:db8:0:7::/64"),
        ("2001:db8:0:8::1", "addr:2001:db8:0:8::/64"),
        ("fe80::1%eth0", "addr:fe80::/64"),
        ("::1", "addr:::/64"),
        ("local", "addr:local"),
        ("", "addr:"),
        ("a:b", "addr:a:b"),
    ],
)
def test_anonymous_callers_are_told_apart_by_what_they_cannot_choose(peer: str, name: str) -> None:
    assert anonymous_name(peer) == name
    assert Directory(KEYS, True).identify(None, None, peer) == Directory({}, True).identify("x", None, peer)
    assert Directory(KEYS, True).identify(None, None, peer).name == name


def test_no_key_at_all() -> None:
    assert Directory(KEYS, True).identify(None, None, "10.0.0.1") == Caller("addr:10.0.0.1", "")
    with pytest.raises(Unauthenticated) as refused:
        Directory(KEYS, False).identify(None, None, "10.0.0.1")
    assert refused.value.reason == "missing"


@given(st.none() | st.text(max_size=600), st.none() | st.text(max_size=600))
def test_whatever_comes_is_a_caller_or_a_refusal(authorization: str | None, api_key: str | None) -> None:
    try:
        caller = Directory(KEYS, True).identify(authorization, api_key, "p")
    except Unauthenticated:
        return
    assert (authorization is None and api_key is None) == (caller.name == "addr:p")


@pytest.mark.parametrize("digest", ["", "alice-key", "0" * 63, "g" * 64, "0" * 64 + "\n"])
def test_what_is_no_digest_is_refused(digest: str) -> None:
    with pytest.raises(ValueError, match="64 hex digits"):
        Directory({digest: ALICE}, False)


def test_one_key_for_two_callers_is_refused() -> None:
    digest = key_digest("key")
    with pytest.raises(ValueError, match="has the key of"):
        Directory({digest: ALICE, digest.upper(): BOB}, False)
