"""A cluster of three real nodes: a slot that moves, a node that hangs, one that is killed and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from redis.crc import key_slot

from cache.stores import servers
from cache.stores.address import parse_redis
from cache.stores.frame import framed
from cache.stores.learning import LearnOptions
from cache.stores.node import NodeOptions
from cache.stores.redis import Hashes, RedisOptions, RedisStore
from cache.stores.servers import SLOTS, Cluster
from cache.stores.store import StoreError
from cache.stores.turnstile import Turnstile, TurnstileOptions
from degrade.breaker import Breaker
from degrade.guard import STORE_BREAKER
from tests.cache.conftest import StoreAt, until
from tests.cache.test_coherence import listening
from tests.redises import Nodes, joining, migrating, text

SECONDS = 0.25
PATIENT_SECONDS = 5.0
"""For servers that answer, or refuse, at once: also on a busy machine."""
KEYS = [b"user:%d" % each for each in range(300)]


async def test_keys_of_all_nodes_in_one_call(nodes: Nodes, store_at: StoreAt) -> None:
    store = store_at(nodes.url)
    await store.put_many([(key, key[::-1]) for key in KEYS], 1000.0, 10.0)
    assert await store.get_many([*KEYS, b"nothing"], 10.0) == [*(key[::-1] for key in KEYS), None]
    assert len((await store.masters(10.0)).nodes) == 3
    assert await store.healthy(10.0)
    hashes = store_at(nodes.url, Hashes([b"a"]))
    (found,) = await hashes.get_many([KEYS[0]], 10.0)
    assert isinstance(found, StoreError)
    assert found.kind == "wrong-type"
    await hashes.put_many([(b"h:%d" % each, framed([b"%d" % each])) for each in range(20)], 1000.0, 10.0)
    assert (await hashes.get_many([b"h:7"], 10.0)) == [framed([b"7"])]
    await store.delete_many(KEYS, 10.0)
    assert await store.get_many(KEYS, 10.0) == [None] * len(KEYS)


async def test_nodes_that_do_not_name_their_hosts(nodes: Nodes, store_at: StoreAt) -> None:
    """As behind a load balancer for each port: the host that was asked is meant, in the map and in redirections."""
    for server in nodes.servers:
        with server.client() as client:
            client.config_set("cluster-preferred-endpoint-type", "unknown-endpoint")
    store = store_at(nodes.url)
    await store.put_many([(key, b"1") for key in KEYS], None, 10.0)
    assert await store.get_many(KEYS, 10.0) == [b"1"] * len(KEYS)
    slot = key_slot(b"empty")  # no key of ours has it
    target = nodes.servers[(nodes.owner(slot) + 1) % 3]
    with target.client() as there:
        target_id = text(there.execute_command("CLUSTER", "MYID"))
    for server in (target, nodes.servers[nodes.owner(slot)]):
        with server.client() as client:
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)
    assert await store.get_many([b"empty"], 10.0) == [None]  # MOVED


async def test_a_slot_that_moves_while_it_is_read(nodes: Nodes, store_at: StoreAt) -> None:
    """Before, within and after the move every key of it has its value; afterwards the new ones."""
    store = store_at(nodes.url)
    tagged = [b"{moving}:%d" % each for each in range(40)]
    slot = key_slot(b"moving")
    source = nodes.servers[nodes.owner(slot)]
    target = nodes.servers[(nodes.owner(slot) + 1) % 3]
    await store.put_many([(key, b"old") for key in [*tagged, *KEYS]], None, 10.0)
    with migrating(source, target, slot) as move:
        for done, key in enumerate(tagged):
            move([key])
            if done % 10 == 0:  # half here, half there: ASK
                assert await store.get_many([*tagged, *KEYS], 10.0) == [b"old"] * (len(tagged) + len(KEYS))
        await store.put_many([(key, b"asked") for key in tagged], None, 10.0)
        assert await store.get_many(tagged, 10.0) == [b"asked"] * len(tagged)
    with target.client() as there:
        for key in tagged:
            there.set(key, "new")
    assert await store.get_many([*tagged, *KEYS], 10.0) == [b"new"] * len(tagged) + [b"old"] * len(KEYS)


async def test_changes_on_every_node_are_heard_and_a_slot_that_moves_is_one(nodes: Nodes, store_at: StoreAt) -> None:
    store = store_at(nodes.url)
    async with listening(store.masters) as heard:
        await heard.live()
        await store.put_many([(key, b"1") for key in KEYS], None, 10.0)
        await until(lambda: set(heard.keys) >= set(KEYS), what="every key's change")
        key = KEYS[0]
        source, target = (nodes.servers[(nodes.owner(key_slot(key)) + each) % 3] for each in (0, 1))
        with migrating(source, target, key_slot(key)) as move:
            heard.keys.clear()
            move([key])
        await until(lambda: key in heard.keys, what="the move of a key")
        before = heard.distrusts
        nodes.servers[2].kill()
        await until(lambda: heard.distrusts > before, what="distrust")
        assert not heard.tracker.live()
        nodes.servers[2].start()
        await heard.live()


async def test_a_node_that_has_no_slot_yet_is_listened_to_once_something_was_read_there(
    nodes: Nodes, store_at: StoreAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usual way to add a node: the first slot is on its way to it, and some of its keys are there."""
    store = store_at(nodes.url)
    key = KEYS[0]
    source = nodes.servers[nodes.owner(key_slot(key))]
    await store.put_many([(key, b"1")], None, 10.0)
    with joining(nodes) as newcomer, newcomer.client() as client:
        async with listening(store.masters) as heard:
            await heard.live()
            before = heard.distrusts
            with migrating(source, newcomer, key_slot(key)) as move:
                move([key])
                assert await store.get_many([key], 10.0) == [b"1"]  # ASK
                places = {(each.host, each.port) for each in (await store.masters(10.0)).nodes}
                assert (newcomer.host, newcomer.port) in places
                await until(lambda: heard.distrusts > before, what="distrust of what was read before anybody listened")
                await heard.live()
                heard.keys.clear()
                with client.pipeline(transaction=False) as pipeline:
                    pipeline.execute_command("ASKING")
                    pipeline.set(key, b"2")
                    pipeline.execute()
                await until(lambda: key in heard.keys, what="the change")
                assert await store.get_many([key], 10.0) == [b"2"]
                other = KEYS[1]
            # Without a slot again it is a master no more, some time after it was last asked.
            with migrating(newcomer, source, key_slot(key)):
                pass
            await until(lambda: _has_moved_back(store, other), what="the old map")
            monkeypatch.setattr(servers, "REDIRECTED_SECONDS", 0.0)
            assert len((await store.masters(10.0)).nodes) == 3
            await heard.live()


async def _has_moved_back(store: RedisStore, key: bytes) -> bool:
    """Whether no slot is the newcomer's, by the map as it is learnt again."""
    await store.get_many([key], 10.0)
    cluster = store._servers
    assert isinstance(cluster, Cluster)
    return len({node for node in cluster._slots if node is not None}) == 3


async def test_a_node_that_leaves_between_the_decision_to_ask_it_and_the_question(nodes: Nodes) -> None:
    breaking = Turnstile(Breaker(STORE_BREAKER), _never, time.monotonic, TurnstileOptions())
    cluster = Cluster(parse_redis(nodes.url), NodeOptions(), LearnOptions(), lambda _node: breaking)
    keys = [nodes.keys_of(index, KEYS)[0] for index in (0, 2)]
    asked = [(key, ("GET", key)) for key in keys]
    assert await cluster.ask(asked, 10.0) == [None, None]
    asking = asyncio.create_task(cluster.ask(asked, 10.0))
    await asyncio.sleep(0)  # it has decided
    first = (await cluster.masters(10.0)).nodes[0]
    cluster._use([first] * SLOTS)  # the third is gone, and no host of the address
    there, gone = await asking
    assert there is None
    assert isinstance(gone, StoreError)
    await cluster.close()


async def _never(_seconds: float) -> bool:
    return False


async def test_a_node_that_hangs_costs_its_own_keys_once(nodes: Nodes, store_at: StoreAt) -> None:
    seconds = 1.0  # for nodes that are well, enough on a busy machine too
    store = store_at(nodes.url, None, RedisOptions(connect_seconds=seconds))
    await store.put_many([(key, b"old") for key in KEYS], None, 10.0)
    lost = set(nodes.keys_of(1, KEYS))
    nodes.servers[1].pause()
    late = 0
    for _ in range(20):
        started = time.monotonic()
        try:
            found = await store.get_many(KEYS, seconds)
        except StoreError as error:  # on a busy machine the others' values may come too late as well, once
            late += 1 if error.kind == "timeout" else 100
            continue
        assert time.monotonic() - started < seconds + 20.0
        assert all((value == b"old") is (key not in lost) for key, value in zip(KEYS, found, strict=True))
        late += "timeout" in {each.kind for each in found if isinstance(each, StoreError)}
    assert late == 1
    with pytest.raises(StoreError):
        await store.get_many(sorted(lost), seconds)
    nodes.servers[1].resume()
    await until(lambda: _reads(store, [b"old"] * len(KEYS)), what="all keys again")


async def test_a_node_that_is_killed_and_comes_back(nodes: Nodes, store_at: StoreAt) -> None:
    store = store_at(nodes.url, None, RedisOptions(connect_seconds=PATIENT_SECONDS))
    await store.put_many([(key, b"old") for key in KEYS], None, 10.0)
    lost = set(nodes.keys_of(0, KEYS))
    nodes.servers[0].kill()
    over = asyncio.Event()

    async def load() -> None:
        while not over.is_set():
            found = await store.get_many(KEYS, PATIENT_SECONDS)  # never raises: two thirds can be read
            assert not [key for key, value in zip(KEYS, found, strict=True) if key not in lost and value is None]
            await asyncio.sleep(0.01)

    loading = [asyncio.create_task(load()) for _ in range(4)]
    found = await store.get_many(KEYS, PATIENT_SECONDS)
    assert all(isinstance(value, StoreError) is (key in lost) for key, value in zip(KEYS, found, strict=True))
    nodes.servers[0].start()  # empty: it kept nothing
    with nodes.servers[0].client() as client:

        def takes_writes() -> bool:
            with contextlib.suppress(Exception):
                for key in lost:
                    client.set(key, "new")
                return True
            return False

        await until(takes_writes, what="the node's own slots")
    wanted = [b"new" if key in lost else b"old" for key in KEYS]
    await until(lambda: _reads(store, wanted), what="the new values of the node that was killed")
    over.set()
    await asyncio.gather(*loading)
    await store.close()
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, what="an end of all that was begun")


async def _reads(store: RedisStore, wanted: list[bytes]) -> bool:
    with contextlib.suppress(StoreError):
        return await store.get_many(KEYS, SECONDS) == wanted
    return False
