"""A steady mixed load: every door, every kind of route, callers who stay, come anew, leave early, are wrong.

Rule of this file: it asks and compares; what is measured meanwhile is ``__main__.py``'s. Every answer is held against
what it must be; who asks what is drawn from one seed. The rate is kept by moments that are due, not by pauses, so that
a slow answer does not lower it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import aiohttp
import numpy as np
from msgspec import Struct

from examples.gatewayprocess import ConfigValue, GatewayProcess
from examples.redisserver import RedisServer
from examples.tritonserver import TritonServer
from tests.doors.callers import ALL
from tests.doors.question import Ask, Caller, Doors
from tests.soak.scorer import PATH, Scorer, answer

MODELS: Final = Path(__file__).resolve().parents[1] / "models"
MODEL: Final = "echo_fp32"
ROUTES: Final = ("kept", "asked", "rows", "shared", "limited", MODEL)
"""The last is no route, and passes through."""

INPUTS: Final = 4000
"""Different rows; the most asked-for of them (as 1 / rank) fill every cache within a minute."""
ROWS_MAX: Final = 8
USERS: Final = 500
CANDIDATES: Final = 20
LEAVES_SHARE: Final = 0.05
ANEW_SHARE: Final = 0.02
WRONG_SHARE: Final = 0.02
FEATURES_SHARE: Final = 0.1
ENDPOINT_SHARE: Final = 0.1
LEAVES_SECONDS: Final = 0.002
ANSWER_SECONDS_MAX: Final = 20.0
WRITES_A_SECOND: Final = 20
BEHIND_SECONDS_MAX: Final = 1.0
"""What was due longer ago is not made up for."""


def configuration(triton: TritonServer, redis: RedisServer, scorer: Scorer, folder: str) -> dict[str, ConfigValue]:
    """Every kind of route before one Triton, and an endpoint, with caches so small that they are full within a minute,
    and a snapshot in ``folder``, so small that its files are full in one and go in two."""
    tiers = [{"backend": "b", "model": MODEL}]
    cache = {"ttl": "20s", "max_stale": "20s", "refresh": "5s", "bytes_max": "1MiB"}
    # A second for the stores: what is looked for here is growth, and a busy machine must not be taken for a dead Redis.
    patient = {"timeout": "1s", "max_stale": "1h", "bytes_max": "1MiB"}
    table = {**patient, "key": "u:{id}", "shape": [2], "ids": "text", "ttl": "1m", "coherence": "tracking"}
    rank = {
        "tiers": [{"backend": "b", "model": "ranker"}],
        "features": {
            "entities": {"user": {"many": False, "datatype": "BYTES"}, "items": {"many": True}},
            "inputs": {"x": {"parts": [{"entity": "user", "table": "user"}, {"entity": "items", "table": "item"}]}},
        },
    }
    item = {**patient, "store": redis.url, "key": "i:{id}", "shape": [3], "ttl": "5s"}
    return {
        "server": {"rpc": "127.0.0.1:0"},
        "snapshot": {"path": folder, "interval": "1s", "bytes_max": "16MiB", "generations": 2},
        "backends": {
            "b": {"http": [triton.http_url], "grpc": [triton.grpc_address]},
            "scorer": {"http": [scorer.url]},
        },
        "endpoints": {"score": {"path": PATH, "backend": "scorer", "cache": {**cache, "bytes_max": "4MiB"}}},
        "tables": {"user": {"store": redis.url, **table}, "item": item},
        "routes": {
            "kept": {"tiers": tiers, "cache": cache},
            "asked": {"tiers": tiers},
            "rows": {"tiers": tiers, "cache": {**cache, "rows": True}},
            "shared": {"tiers": tiers, "cache": {**cache, "second": redis.url}},
            "limited": {"tiers": tiers, "quota": {"rate": 18000, "per": "1h", "burst": 20}},
            "rank": rank,
        },
    }


class Counts:
    """What came of all that was asked, in one word each, and the first answers that were wrong."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()
        self.wrong: list[str] = []

    def add(self, word: str) -> None:
        self.of[word] += 1

    def amiss(self, said: str) -> None:
        self.of["wrong"] += 1
        if len(self.wrong) < 10:
            self.wrong.append(said)


class Where(Struct, frozen=True):
    """What is asked, and by what chance."""

    gateway: GatewayProcess
    redis: RedisServer
    seed: int

    @property
    def doors(self) -> Doors:
        return Doors(self.gateway.http_address, self.gateway.grpc_address, self.gateway.rpc_address)


async def load(where: Where, rate: float, until: Callable[[], bool], counts: Counts) -> None:
    """``rate`` requests a second by every kind of caller, until that is so."""
    users = [float(user) for user in range(USERS)]
    _write(where.redis, users)
    names = list(ALL)
    each = rate * (1.0 - FEATURES_SHARE - ENDPOINT_SHARE) / len(names)
    async with asyncio.TaskGroup() as group:
        for place, name in enumerate(names):
            chance = random.Random(f"{where.seed}:{place}")
            group.create_task(_calling(where, name, each, until, (chance, counts)))
        chance = random.Random(f"{where.seed}:features")
        group.create_task(_ranking(where, rate * FEATURES_SHARE, until, (chance, counts)))
        chance = random.Random(f"{where.seed}:endpoint")
        group.create_task(_scoring(where, rate * ENDPOINT_SHARE, until, (chance, counts)))
        group.create_task(_writing(where, until))


async def _calling(
    where: Where, name: str, rate: float, until: Callable[[], bool], told: tuple[random.Random, Counts]
) -> None:
    """One caller of one door."""
    chance, counts = told
    door = ALL[name]
    routes = ROUTES if door.passes and door.triton else ROUTES[:-1]
    weights = [1.0 / (1 + rank) for rank in range(INPUTS)]
    ranks = range(INPUTS)
    caller: Caller = door.make(where.doors)
    async for _ in _due(rate, until):
        if chance.random() < ANEW_SHARE:
            await caller.close()
            caller = door.make(where.doors)
        rows = chance.choices(ranks, weights, k=chance.randint(1, ROWS_MAX))
        asked = Ask(tuple((float(row), float(row % 7)) for row in rows), chance.choice(routes))
        if chance.random() < WRONG_SHARE:
            asked = Ask(asked.rows, asked.route, name="absent")
        if chance.random() < LEAVES_SHARE:
            await _left(caller, asked, counts)
            caller = door.make(where.doors)
            continue
        await _compared(caller, asked, counts, name)
    await caller.close()


async def _left(caller: Caller, asked: Ask, counts: Counts) -> None:
    """Ask, and leave before the answer is there."""
    task = asyncio.ensure_future(caller.ask(asked))
    await asyncio.wait([task], timeout=LEAVES_SECONDS)
    counts.add("answered before it could leave" if task.done() else "left")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await caller.close()


async def _compared(caller: Caller, asked: Ask, counts: Counts, name: str) -> None:
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            outcome = await caller.ask(asked)
    except TimeoutError:
        counts.amiss(f"{name} {asked.route}: no answer within {ANSWER_SECONDS_MAX:.0f} s")
        await caller.close()
        return
    if asked.name == "absent":
        told = outcome.problem in ("invalid", "(upstream's own)")
        told = told or (asked.route == "limited" and outcome.problem == "quota")
    elif outcome.problem:
        told = asked.route == "limited" and outcome.problem == "quota"
    else:
        told = list(outcome.values) == asked.values
    if not told:
        counts.amiss(f"{name} {asked.route}: {outcome}")
    counts.add(outcome.problem or outcome.cache)


async def _ranking(
    where: Where, rate: float, until: Callable[[], bool], told: tuple[random.Random, Counts]
) -> None:
    """Ids in, scores out; a user's own number may be any that was ever written, for the writer goes on."""
    chance, counts = told
    url = f"{where.gateway.http_url}/v1/predict/rank"
    async with aiohttp.ClientSession() as session:
        async for _ in _due(rate, until):
            user, items = chance.randrange(USERS), chance.sample(range(USERS), CANDIDATES)
            async with session.post(url, json={"inputs": {"user": [str(user)], "items": items}}) as answer:
                said = await answer.json()
            if answer.status != 200:
                counts.amiss(f"rank: {answer.status} {said}")
                continue
            scores = [row[0] for row in said["outputs"]["score"]]
            own = {score - 100.0 * item for score, item in zip(scores, items, strict=True)}
            if len(own) != 1 or (own.pop() - user) % USERS:
                counts.amiss(f"rank: user {user}, items {items}: {scores}")
            counts.add("ranked")


async def _scoring(
    where: Where, rate: float, until: Callable[[], bool], told: tuple[random.Random, Counts]
) -> None:
    """What a server is asked that is no Triton."""
    chance, counts = told
    weights = list(itertools.accumulate(1.0 / (1 + rank) for rank in range(INPUTS)))
    url = f"{where.gateway.http_url}{PATH}"
    async with aiohttp.ClientSession() as session:
        async for _ in _due(rate, until):
            (number,) = chance.choices(range(INPUTS), cum_weights=weights)
            body = b"%d" % number
            async with session.post(url, data=body) as said:
                content = await said.read()
            if (said.status, content) != (200, answer(body)):
                counts.amiss(f"score of {number}: {said.status} {content[:100]!r}")
            counts.add("scored")


async def _writing(where: Where, until: Callable[[], bool]) -> None:
    """Users' rows change all the time: by ``USERS``, so that a row tells whose it is."""
    chance = random.Random(f"{where.seed}:writes")
    numbers = [float(user) for user in range(USERS)]
    with where.redis.client() as client:
        async for _ in _due(WRITES_A_SECOND, until):
            user = chance.randrange(USERS)
            numbers[user] = (numbers[user] + USERS) % (8 * USERS)
            client.set(f"u:{user}", np.array([numbers[user], 0], "<f4").tobytes())


def _write(redis: RedisServer, users: list[float]) -> None:
    with redis.client() as client:
        for number, value in enumerate(users):
            client.set(f"u:{number}", np.array([value, 0], "<f4").tobytes())
            client.set(f"i:{number}", np.array([number, 0, 0], "<f4").tobytes())


async def _due(rate: float, until: Callable[[], bool]) -> AsyncIterator[None]:
    """So many times a second, by moments that are due, until that is so."""
    loop = asyncio.get_running_loop()
    moment = loop.time()
    while not until():
        moment = max(moment + 1.0 / rate, loop.time() - BEHIND_SECONDS_MAX)
        await asyncio.sleep(max(0.0, moment - loop.time()))
        yield
