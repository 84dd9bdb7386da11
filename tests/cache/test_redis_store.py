"""The Redis store against a real server: values, absence, batches, layouts, TLS, ACL."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cache.stores.frame import framed, unframed
from cache.stores.merge import MergeOptions
from cache.stores.node import Tls
from cache.stores.redis import KEYS_OF_A_COMMAND_MAX, Hashes, RedisOptions
from cache.stores.store import StoreError
from examples.ports import Held
from examples.redisserver import RedisServer
from tests.cache.conftest import StoreAt

SECONDS = 10.0


def commands(server: RedisServer) -> dict[str, int]:
    """How often each command was done."""
    with server.client() as client:
        stats = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): told["calls"] for name, told in stats.items()}


async def test_what_is_put_is_found_and_what_is_deleted_is_not(redis: RedisServer, store_at: StoreAt) -> None:
    store = store_at(redis.url)
    await store.put_many([(b"a", b"1"), (b"b", b""), (b"\x00\xff\r\n", b"\x00" * 70_000)], None, SECONDS)
    keys = [b"a", b"nothing", b"\x00\xff\r\n", b"b", b"a"]
    assert await store.get_many(keys, SECONDS) == [b"1", None, b"\x00" * 70_000, b"", b"1"]
    await store.delete_many([b"a", b"nothing"], SECONDS)
    assert await store.get_many([b"a", b"b"], SECONDS) == [None, b""]
    assert await store.get_many([], SECONDS) == []
    assert await store.healthy(SECONDS)


async def test_a_ttl_is_the_servers(redis: RedisServer, store_at: StoreAt) -> None:
    await store_at(redis.url).put_many([(b"a", b"1")], 90.5, SECONDS)
    await store_at(redis.url, Hashes([b"x"])).put_many([(b"h", framed([b"1"]))], 90.5, SECONDS)
    with redis.client() as client:
        assert 80_000 < client.pttl("a") <= 90_500
        assert 80_000 < client.pttl("h") <= 90_500


async def test_look_ups_of_one_turn_are_one_command(redis: RedisServer, store_at: StoreAt) -> None:
    store = store_at(redis.url)
    await store.put_many([(b"k%d" % each, b"%d" % each) for each in range(100)], None, SECONDS)
    before = commands(redis)
    found = await asyncio.gather(*(store.get_many([b"k%d" % (each % 100)], SECONDS) for each in range(300)))
    assert [value for (value,) in found] == [b"%d" % (each % 100) for each in range(300)]
    assert commands(redis)["mget"] - before.get("mget", 0) == 1


async def test_a_command_has_a_bound_on_keys(redis: RedisServer, store_at: StoreAt) -> None:
    store = store_at(redis.url, None, RedisOptions(merge=MergeOptions(keys_max=4 * KEYS_OF_A_COMMAND_MAX)))
    pairs = [(b"k%d" % each, b"%d" % each) for each in range(3 * KEYS_OF_A_COMMAND_MAX + 1)]
    await store.put_many(pairs, None, SECONDS)
    before = commands(redis).get("mget", 0)
    assert await store.get_many([key for key, _ in pairs], SECONDS) == [value for _, value in pairs]
    assert commands(redis)["mget"] - before == 4


async def test_another_type_is_told_from_nothing_and_costs_its_own_key(redis: RedisServer, store_at: StoreAt) -> None:
    with redis.client() as client:
        client.hset("h", "x", 1)
        client.set("s", "1")
    store = store_at(redis.url)
    of_hash, of_string, nothing = await store.get_many([b"h", b"s", b"n"], SECONDS)
    assert isinstance(of_hash, StoreError)
    assert (of_hash.kind, of_string, nothing) == ("wrong-type", b"1", None)
    (alone,) = await store.get_many([b"h"], SECONDS)
    assert isinstance(alone, StoreError)
    hashes = store_at(redis.url, Hashes([b"x"]))
    of_hash, of_string = await hashes.get_many([b"h", b"s"], SECONDS)
    assert of_hash == framed([b"1"])
    assert isinstance(of_string, StoreError)
    assert of_string.kind == "wrong-type"


async def test_one_of_another_type_among_many_that_are_not_there(redis: RedisServer, store_at: StoreAt) -> None:
    keys = [b"k%d" % each for each in range(2 * KEYS_OF_A_COMMAND_MAX)]
    with redis.client() as client:
        client.hset(keys[-1], "x", 1)
    store = store_at(redis.url, None, RedisOptions(merge=MergeOptions(keys_max=len(keys))))
    found = await store.get_many(keys, SECONDS)
    assert found[:-1] == [None] * (len(keys) - 1)
    assert isinstance(found[-1], StoreError)


async def test_fields_of_hashes(redis: RedisServer, store_at: StoreAt) -> None:
    store = store_at(redis.url, Hashes([b"a", b"b"]))
    with redis.client() as client:
        client.hset("whole", mapping={"a": "1.5", "b": "-2", "c": "?"})
        client.hset("half", mapping={"b": "3"})
        client.hset("other", mapping={"c": "3"})
    whole, half, other = await store.get_many([b"whole", b"half", b"other"], SECONDS)
    assert isinstance(whole, bytes)
    assert isinstance(half, bytes)
    assert unframed(whole, 2) == [b"1.5", b"-2"]
    assert unframed(half, 2) == [None, b"3"]
    assert other is None
    await store.put_many([(b"new", framed([b"7", None]))], None, SECONDS)
    with redis.client() as client:
        assert client.hgetall("new") == {b"a": b"7"}


async def test_a_user_and_a_database(own_redis: RedisServer, store_at: StoreAt) -> None:
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">p@ss/w?rd", "~user:*", "+@read", "+@connection")
        client.execute_command("SELECT", 3)
    at = f"{own_redis.address}/3"
    writer = store_at(f"redis://{at}")
    await writer.put_many([(b"user:1", b"x")], None, SECONDS)
    reader = store_at(f"redis://reader:p%40ss%2Fw%3Frd@{at}")
    assert await reader.get_many([b"user:1"], SECONDS) == [b"x"]
    with pytest.raises(StoreError) as refused:
        await reader.get_many([b"item:1"], SECONDS)
    assert refused.value.kind == "refused"
    with pytest.raises(StoreError) as refused:
        await reader.put_many([(b"user:1", b"y")], None, SECONDS)
    assert refused.value.kind == "refused"
    with pytest.raises(StoreError) as refused:
        await store_at(f"redis://reader:other@{at}").get_many([b"user:1"], SECONDS)
    assert refused.value.kind == "refused"
    assert "other" not in str(refused.value)


async def test_tls_with_certificates_on_both_sides(pem: object, store_at: StoreAt) -> None:
    files = pem  # tests/conftest.py: Pem
    ca, certificate, key = (Path(getattr(files, name)) for name in ("ca", "certificate", "key"))
    certified = [f"tls-cert-file {certificate}", f"tls-key-file {key}", f"tls-ca-cert-file {ca}"]
    with Held() as held, RedisServer([f"tls-port {held.numbers[0]}", *certified]):
        (tls_port,) = held.numbers
        url = f"rediss://127.0.0.1:{tls_port}/0"
        shown = RedisOptions(Tls(str(ca), str(certificate), str(key)), connect_seconds=SECONDS)
        store = store_at(url, None, shown)
        await store.put_many([(b"a", b"1")], None, SECONDS)
        assert await store.get_many([b"a"], SECONDS) == [b"1"]
        for tls in (Tls(), Tls(str(ca))):  # an authority that nobody knows; no certificate of ours
            with pytest.raises(StoreError) as failed:
                await store_at(url, None, RedisOptions(tls, connect_seconds=SECONDS)).get_many([b"a"], SECONDS)
            assert failed.value.kind == "unreachable"
