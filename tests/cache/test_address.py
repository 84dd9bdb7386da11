"""Where a Redis is, in its three forms."""

from __future__ import annotations

import pytest

from cache.stores.address import Credentials, RedisAddress, parse_redis

GOOD = [
    ("redis://h", RedisAddress("one", (("h", 6379),))),
    ("redis://h:1/2", RedisAddress("one", (("h", 1),), 2)),
    ("redis://h:1/", RedisAddress("one", (("h", 1),))),
    ("redis://[::1]:7/0", RedisAddress("one", (("::1", 7),))),
    ("rediss://:p%40w@h", RedisAddress("one", (("h", 6379),), credentials=Credentials("", "p@w"), tls=True)),
    ("redis://u:a:b@h", RedisAddress("one", (("h", 6379),), credentials=Credentials("u:a", "b"))),
    ("redis+sentinel://a:1,b/s/3", RedisAddress("sentinel", (("a", 1), ("b", 26379)), 3, "s")),
    ("redis+sentinel://a/s", RedisAddress("sentinel", (("a", 26379),), 0, "s")),
    ("rediss+cluster://u:p@a:1,b:2", RedisAddress("cluster", (("a", 1), ("b", 2)), 0, "", Credentials("u", "p"), True)),
    ("redis+cluster://a/0", RedisAddress("cluster", (("a", 6379),))),
]


@pytest.mark.parametrize(("url", "address"), GOOD)
def test_addresses(url: str, address: RedisAddress) -> None:
    assert parse_redis(url) == address


BAD = [
    ("http://h", "is none of redis://HOST:PORT/DB"),
    ("redis://", "is none of"),
    ("redis://u:secret@", "is none of"),
    ("redis://u:secret@h:0", "is not HOST:PORT"),
    ("redis://u:secret@h:99999", "is not HOST:PORT"),
    ("redis://u:secret@h h", "is not HOST:PORT"),
    ("redis://u:secret@a,b", "names several servers"),
    ("redis://u:secret@h/x", "'x' is not the number of a database"),
    ("redis://u:secret@h/1/2", "is not the number of a database"),
    ("redis+sentinel://u:secret@h", "names no service"),
    ("redis+sentinel://u:secret@h/s/x", "is not the number of a database"),
    ("redis+cluster://u:secret@h/1", "names a database"),
    ("redis+other://u:secret@h", "is none of"),
    ("redis://u:secret@h?db=1", "is none of"),
    ("redis+cluster://u:secret@" + ",".join(["h"] * 65), "names 65 servers"),
]


@pytest.mark.parametrize(("url", "why"), BAD)
def test_what_is_no_address_is_told_without_its_secrets(url: str, why: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_redis(url)
    assert why in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(parse_redis("redis://u:secret@h"))
