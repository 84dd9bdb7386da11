"""Others who write to the tables, and remove rows from them; and who asks for those rows then.

Rule of this file: it does, and says so to the ledger. What may be told of a row afterwards is the invariants' to say.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Final
from zlib import crc32

import numpy as np

from tests.sim.client import Question
from tests.sim.scene import ACTIVE_SECONDS, TABLES

if TYPE_CHECKING:
    from tests.sim.world import World

USERS: Final = 3
LATER_SECONDS: Final = 1.5
"""When somebody asks again for what was written, or removed: beyond the time for which a near cache says "absent"."""


async def writer(world: World) -> None:
    """Others write to the tables."""
    chance = random.Random(f"writer {world.scene.seed}")
    versions: Counter[tuple[str, int]] = Counter()
    asked: list[asyncio.Task[None]] = []

    def write(table: str, key: int) -> None:
        versions[table, key] += 1
        _write(world, table, key, versions[table, key])

    keys = [("user", key) for key in range(1, USERS + 1)]
    keys += [("item", key) for key in range(1, world.scene.rows)]  # the last one is nowhere
    for each in keys:
        write(*each)
    while world.loop.now < world.scene.ends:
        await asyncio.sleep(chance.expovariate(1.5))
        if chance.random() < 0.5:
            write(*chance.choice(keys))
            continue
        key = chance.randrange(1, USERS + 1)
        write("user", key)
        asked.append(world.own(world.now_and_later(_about(key), LATER_SECONDS)))
        await asyncio.sleep(chance.uniform(0.0, 0.001 + 4 * world.scene.far))
        write("user", key)  # once more, while somebody may be reading
        if world.stores[TABLES].held == {}:
            await asyncio.sleep(0.3)
    for each in keys:
        write(*each)
    await asyncio.gather(*asked)


async def remover(world: World) -> None:
    """Somebody removes rows that have been asked for, and are asked for again, now and when that should be known."""
    chance = random.Random(f"remover {world.scene.seed}")
    asked: list[asyncio.Task[None]] = []
    await asyncio.sleep(chance.uniform(0.2, ACTIVE_SECONDS / 4))
    while world.loop.now < world.scene.ends - LATER_SECONDS:
        user, item = chance.randrange(1, USERS + 1), chance.randrange(1, world.scene.rows)
        question = _about(user, item)
        await world.now_and_later(question, 0.0)
        await asyncio.sleep(chance.uniform(0.0, 0.5))  # it is copied meanwhile, or is not
        for table, key in (("user", user), ("item", item)) if chance.random() < 0.5 else (("user", user),):
            world.ledger.write(table, key, 0, world.loop.now)
            world.stores[TABLES].put(_named(table, key), None)
            world.met["operator remove"] += 1
        asked.append(world.own(world.now_and_later(question, LATER_SECONDS)))
        await asyncio.sleep(chance.uniform(0.1, 1.0))
    await asyncio.gather(*asked)


def check(key: int, version: int) -> int:
    """What makes a row of a table tell that it is whole."""
    return crc32(f"{key}.{version}".encode()) % 1000


def _about(user: int, item: int = 1) -> Question:
    return Question("ranked", "ada", (item,), user=user, directives="no-cache")


def _write(world: World, table: str, key: int, version: int) -> None:
    row = np.array([key, version, check(key, version)], "<f4").tobytes()
    world.ledger.write(table, key, version, world.loop.now)
    world.stores[TABLES].put(_named(table, key), row)


def _named(table: str, key: int) -> bytes:
    return f"{table}:{key}".encode()
