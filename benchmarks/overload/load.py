"""Callers who do not wait for each other: requests at moments drawn beforehand, each with a deadline of its own.

Rule of this file: an open loop. A server that is slow gets no fewer requests for it, and an answer after the deadline
is none: the caller has left. It knows HTTP and how to tell a right answer; what the numbers mean is ``report.py``'s.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from time import perf_counter
from typing import Final

import aiohttp
from msgspec import Struct

WIDTH: Final = 4


class Stream(Struct, frozen=True):
    """Requests of one caller, ``rate`` a second in the mean (Poisson). ``key``: its API key; "" for none."""

    name: str
    rate: float
    key: str = ""


class Asked(Struct, frozen=True):
    """One request: when it was due (seconds from the start of the run), how long its answer took, and what it was:
    "ok",
    "late" (the caller left at the deadline), "shed" (a 503 or 429), or "wrong"."""

    stream: str
    at: float
    seconds: float
    outcome: str


class Target(Struct, frozen=True):
    """Where to ask, and until when an answer is of use (seconds)."""

    url: str
    model: str
    deadline: float


def moments(stream: Stream, seconds: float, chance: random.Random) -> list[float]:
    """When a stream asks."""
    found, now = [], chance.expovariate(stream.rate)
    while now < seconds:
        found.append(now)
        now += chance.expovariate(stream.rate)
    return found


async def run(target: Target, streams: Sequence[Stream], seconds: float, seed: int) -> list[Asked]:
    """Ask for so many seconds, and wait until the last one is over."""
    chance = random.Random(seed)
    due = sorted((at, number) for number, each in enumerate(streams) for at in moments(each, seconds, chance))
    told: list[Asked] = []
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=target.deadline)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = perf_counter()
        asking: set[asyncio.Task[None]] = set()
        for at, number in due:
            wait = at - (perf_counter() - began)
            if wait > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(_ask(session, target, streams[number], at, told))
            asking.add(task)
            task.add_done_callback(asking.discard)
        await asyncio.gather(*asking)
    return told


async def _ask(
    session: aiohttp.ClientSession, target: Target, stream: Stream, at: float, told: list[Asked]
) -> None:
    values = [round(at, 3)] * WIDTH
    tensor = {"name": "x", "shape": [WIDTH], "datatype": "FP32", "data": values}
    fields = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {stream.key}"} if stream.key else {})
    began = perf_counter()
    outcome = "late"
    try:
        path = f"{target.url}/v2/models/{target.model}/infer"
        async with session.post(path, data=json.dumps({"inputs": [tensor]}), headers=fields) as answer:
            body = await answer.json(content_type=None)
        if answer.status == 200:
            same = all(abs(a - b) < 1e-2 for a, b in zip(body["outputs"][0]["data"], values, strict=True))
            outcome = "ok" if same else "wrong"
        else:
            outcome = "shed" if answer.status in (429, 503) else "wrong"
    except TimeoutError:
        pass
    except aiohttp.ClientError:
        outcome = "late"  # cut off
    seconds = perf_counter() - began
    if outcome == "ok" and seconds > target.deadline:
        outcome = "late"
    told.append(Asked(stream.name, at, seconds, outcome))
