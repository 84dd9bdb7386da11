"""Features whose master changes, whose slot moves and whose node dies, while callers ask: real Redis, Sentinels and
cluster behind a real gateway before a real Triton. Nobody is refused, what is old says so, and the new values come."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import RedisError, ResponseError

from examples.redisserver import RedisServer
from tests.redises import SERVICE, Nodes, Watched, migrating
from tests.system.ranking import HOT_ITEMS, ITEMS, USERS, WITHIN, Ranks, house, pairs, predict, ranking, rows_of, until

CLOSE_WAIT = "08"
"""In /proc/net/tcp."""


def fill(server: RedisServer, version: int) -> None:
    with server.client() as client:
        client.mset(pairs(version))


def replicated(server: RedisServer) -> None:
    """Whoever is to follow it has all that was written."""
    with server.client() as client:
        assert client.wait(1, 20_000) == 1


def follow(old: RedisServer, new: RedisServer) -> None:
    """What a Sentinel says to it 8 s later. Until then it has nothing of what is written to the new one, and a failover
    back to it, which Sentinels take no exception to, would lose all of that."""
    with old.client() as client:
        client.execute_command("REPLICAOF", new.host, new.port)


async def failed_over(watched: Watched, old: RedisServer) -> RedisServer:
    """The new master, as soon as one Sentinel calls it so."""
    for _ in range(4000):
        new = watched.master
        if new is not old:
            return new
        await asyncio.sleep(0.005)
    raise AssertionError("no other master")


def live(gateway: Any) -> bool:
    return bool(gateway.metric("tailrace_table_live", table="item") == 1)


@pytest.mark.parametrize("how", ["hung", "killed"])
async def test_a_master_that_is_lost_under_load(
    gateway_factory: Callable[..., Any], triton: Any, watched: Watched, how: str
) -> None:
    old = watched.master
    fill(old, 1)
    replicated(old)
    gateway = gateway_factory(house(triton.http_url, watched.url))
    until(lambda: live(gateway))
    ranks = Ranks(gateway, WITHIN)
    async with ranking(ranks):
        await ranks.all_fresh(1)
        (old.pause if how == "hung" else old.kill)()
        await ranks.until(lambda: ranks.states["user:stale"] > 0 and ranks.states["item:lost"] > 0, "labels")
        fill(await failed_over(watched, old), 2)
        ranks.wrote(2)
        await ranks.all_fresh(2)
        old.resume() if how == "hung" else old.start()  # it takes itself for the master until a Sentinel tells it
        fill(watched.master, 3)
        ranks.wrote(3)
        await ranks.all_fresh(3)
    assert live(gateway)
    print(f"\nmaster {how}: {ranks.asked} requests, the slowest {ranks.slowest:.2f} s")


async def test_planned_failovers_under_load(
    gateway_factory: Callable[..., Any], triton: Any, watched: Watched
) -> None:
    """Again and again: what is tracked is never old and fresh, and nothing is left behind of those that were asked. No
    write is lost on the way: what a new master does not have nobody can know of."""
    fill(watched.master, 1)
    gateway = gateway_factory(house(triton.http_url, watched.url))
    until(lambda: live(gateway))
    ranks = Ranks(gateway, WITHIN | {"user": math.inf})  # of a `ttl` table: a second later, which nobody promises
    async with ranking(ranks):
        await ranks.all_fresh(1)
        for version in (2, 3):  # there and back
            old = watched.master
            await asyncio.to_thread(replicated, old)
            until(lambda: planned(watched))
            new = await failed_over(watched, old)
            # One Sentinel has decided it. Were it silent from now on, the others alone would be believed.
            await ranks.until(lambda new=new: watched.all_call(new), "Sentinels that agree")  # type: ignore[misc]
            fill(new, version)
            ranks.wrote(version)
            await ranks.all_fresh(version)
            await ranks.until(lambda: left_behind(gateway, watched) == [], "nobody but the master is connected to")
            follow(old, new)
        print(f"\nplanned: {ranks.asked} requests, the slowest {ranks.slowest:.2f} s")


async def test_slots_that_move_under_load(gateway_factory: Callable[..., Any], triton: Any, nodes: Nodes) -> None:
    """Those of what all callers ask for, and it is written while they are half here and half there."""
    nodes.write(pairs(1))
    gateway = gateway_factory(house(triton.http_url, nodes.url))
    until(lambda: live(gateway))
    ranks = Ranks(gateway, WITHIN)
    source, target = nodes.servers[0], nodes.servers[1]
    hot = [f"i:{each}" for each in range(HOT_ITEMS)] + [f"u:{each}" for each in USERS]
    moving = {key: value for key, value in pairs(2).items() if key in set(nodes.keys_of(0, hot))}
    async with ranking(ranks):
        await ranks.all_fresh(1)
        with contextlib.ExitStack() as stack:
            for key in moving:
                move = stack.enter_context(migrating(source, target, key_slot(key.encode())))
                move([key.encode()])
                await asyncio.sleep(0)
            asked = ranks.asked
            await ranks.until(lambda: ranks.asked > asked + 100, "answers while slots are on their way")
            nodes.moved |= {key_slot(key.encode()): 1 for key in moving}
            nodes.write(moving)
            ranks.wrote(2, moving)
            ranks.reset()
            await ranks.until(lambda: ranks.versions[2] > 100, "what was written on the way")
        nodes.write(pairs(3))
        ranks.wrote(3)
        await ranks.all_fresh(3)
    print(f"\n{len(moving)} slots moved: {ranks.asked} requests, the slowest {ranks.slowest:.2f} s")


async def test_a_node_that_is_killed_under_load(
    gateway_factory: Callable[..., Any], triton: Any, nodes: Nodes
) -> None:
    """Its keys are old or defaults, those of the others are as fresh as ever."""
    nodes.write(pairs(1))
    gateway = gateway_factory(
        house(triton.http_url, nodes.url, user={"default": "zeros", "negative_ttl": "50ms"})
    )
    until(lambda: live(gateway))
    ranks = Ranks(gateway, WITHIN)
    users = [f"u:{each}" for each in USERS]
    lost_user, kept_user = (nodes.keys_of(index, users)[0][2:] for index in (0, 1))
    lost_hot, kept_hot = (nodes.keys_of(index, [f"i:{each}" for each in range(HOT_ITEMS)])[0][2:] for index in (0, 1))
    lost_new, kept_new = (nodes.keys_of(index, [f"i:{each}" for each in range(ITEMS)])[-1][2:] for index in (0, 1))
    items = [int(each) for each in (lost_hot, kept_hot, lost_new, kept_new)]

    def told(user: str) -> tuple[dict[str, int], dict[str, int]]:
        status, answer = predict(gateway, user, items)
        assert status == 200, answer
        return rows_of(answer["provenance"], "user"), rows_of(answer["provenance"], "item")

    async with ranking(ranks):
        await ranks.all_fresh(1)
        nodes.servers[0].kill()
        await ranks.until(lambda: ranks.states["user:stale"] > 0 and ranks.states["item:lost"] > 0, "labels")
    until(lambda: told(lost_user) == ({"stale": 1}, {"fresh": 2, "stale": 1, "lost": 1}))
    until(lambda: told(kept_user) == ({"fresh": 1}, {"fresh": 2, "stale": 1, "lost": 1}))
    tried = gateway.metric("tailrace_table_failures_total", kind="unreachable")
    for _ in range(20):
        told(lost_user)
    assert gateway.metric("tailrace_table_failures_total", kind="unreachable") == tried, "the node's breaker is open"
    async with ranking(ranks):
        nodes.servers[0].start()  # it has kept nothing
        await ranks.until(lambda: written(nodes, 2), "a cluster that takes writes")
        ranks.wrote(2)
        await ranks.all_fresh(2)
    assert live(gateway)
    print(f"\na node killed: {ranks.asked} requests, the slowest {ranks.slowest:.2f} s")


def written(nodes: Nodes, version: int) -> bool:
    with contextlib.suppress(RedisError):
        nodes.write(pairs(version))
        return True
    return False


def planned(watched: Watched) -> bool:
    """Whether a failover has begun; there is none while the last one is not over."""
    with watched.sentinels[0].client() as client, contextlib.suppress(ResponseError):
        client.execute_command("SENTINEL", "FAILOVER", SERVICE)
        return True
    return False


def left_behind(gateway: Any, watched: Watched) -> list[str]:
    """The gateway's connections to a server that is no master any more, and those whose other end is gone."""
    folder = f"/proc/{gateway.process.pid}/fd"
    own = set()
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):  # closed since
            own.add(os.readlink(f"{folder}/{name}"))
    others = {port for port in watched.servers if port != watched.master.port}
    found = []
    for line in Path(f"/proc/{gateway.process.pid}/net/tcp").read_text().splitlines()[1:]:
        _, _, remote, state, *_, inode = line.split()[:10]
        port = int(remote.partition(":")[2], 16)
        if f"socket:[{inode}]" in own and (port in others or state == CLOSE_WAIT):
            found.append(f"{port} {state}")
    return found
