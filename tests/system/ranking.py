"""A gateway that ranks: users and items by id, their rows in stores, a model of Triton's that tells which rows it got.

Rule of this file: an answer is judged by what the caller itself wrote into the store and when. What the gateway says of
the rows is what is on trial.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import aiohttp
import numpy as np

from examples.gatewayprocess import GatewayProcess

ROUTE = {
    "tiers": [{"backend": "b", "model": "ranker"}],
    "features": {
        "entities": {"user": {"many": False, "datatype": "BYTES"}, "items": {"many": True}},
        "inputs": {"x": {"parts": [{"entity": "user", "table": "user"}, {"entity": "items", "table": "item"}]}},
    },
}
STATES = ("fresh", "stale", "absent", "lost")
USERS = [f"u{each}" for each in range(30)]
HOT_ITEMS = 40
ITEMS = 3_000
ASKED = 8
"""Items of one request: one that nobody has asked for, and others that all ask for."""
CALLERS = 8
PAUSE_SECONDS = 0.01


def user_row(number: float) -> bytes:
    return np.array([number, 0], "<f4").tobytes()


def item_row(number: int) -> bytes:
    return np.array([number, 0, 0], "<f4").tobytes()


def score(user: float, item: int) -> float:
    return user + 100 * item


def rows_of(told: dict[str, Any], table: str) -> dict[str, int]:
    """What a table's rows were, by their states."""
    found = next(each for each in told["tables"] if each["name"] == table)
    return {state: found[state] for state in STATES if found[state]}


def predict(gateway: GatewayProcess, user: str, items: Sequence[int]) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"inputs": {"user": [user], "items": list(items)}}).encode()
    try:
        with urllib.request.urlopen(f"{gateway.http_url}/v1/predict/rank", body, timeout=10.0) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> float:
    """Wait for another process; how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds:.0f} s"
        time.sleep(0.005)
    return time.monotonic() - began


def pairs(version: int) -> dict[str, bytes]:
    """Every key of the store, and a row that tells this version (1 to 9)."""
    users = {f"u:{name}": user_row(version) for name in USERS}
    return users | {f"i:{number}": item_row(version) for number in range(ITEMS)}


@dataclass
class Ranks:
    """Callers that ask without end, and what was wrong with what they were told.

    ``within``: of a table, seconds after which a write is in every row that is called fresh. ``written``: each version,
    when it had been written, and the keys of it.
    """

    gateway: GatewayProcess
    within: dict[str, float]
    written: dict[int, tuple[float, Collection[str]]] = field(default_factory=dict)
    asked: int = 0
    faults: list[str] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    versions: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0
    _new: count[int] = field(default_factory=lambda: count(HOT_ITEMS))

    def wrote(self, version: int, keys: Collection[str] | None = None) -> None:
        """Just now, under these keys; under all if none are given."""
        self.written[version] = time.monotonic(), pairs(version).keys() if keys is None else frozenset(keys)

    def reset(self) -> None:
        """Count from here on."""
        self.states, self.versions = Counter(), Counter()

    async def until(self, enough: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not enough():
            if self.faults:
                self.judge()
            assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}; {self.states} {self.versions}"
            await asyncio.sleep(0.01)

    async def all_fresh(self, version: int) -> None:
        """Wait until callers are told nothing but this version, fresh, many times in a row."""

        def there() -> bool:
            if set(self.states) - {"user:fresh", "item:fresh"} or set(self.versions) - {version}:
                self.reset()
            return self.versions[version] > 100 * ASKED

        self.reset()
        await self.until(there, f"nothing but version {version}, fresh")

    async def ask(self, session: aiohttp.ClientSession, turn: int) -> None:
        user = USERS[turn % len(USERS)]
        items = [next(self._new) % ITEMS, *((turn * 3 + step) % HOT_ITEMS for step in range(ASKED - 1))]
        sent = time.monotonic()
        body = {"inputs": {"user": [user], "items": items}}
        async with session.post(f"{self.gateway.http_url}/v1/predict/rank", json=body) as answer:
            status, told = answer.status, await answer.json(content_type=None)
        self.slowest = max(self.slowest, time.monotonic() - sent)
        self.asked += 1
        if status != 200:
            self.faults.append(f"{status} {told}")
            return
        scores = [int(row[0]) for row in told["outputs"]["score"]]
        got = {"user": [scores[0] % 100], "item": [each // 100 for each in scores]}
        keys = {"user": [f"u:{user}"], "item": [f"i:{each}" for each in items]}
        steps = []
        for table in ("user", "item"):
            rows = rows_of(told["provenance"], table)
            steps += [f"{table}:{word}" for state, word in (("stale", "stale"), ("lost", "default")) if state in rows]
            self.states.update({f"{table}:{state}": number for state, number in rows.items()})
            self._judge(table, rows, [*zip(keys[table], got[table], strict=True)], sent)
        of_it = told["provenance"]
        if (of_it.get("steps", []), of_it.get("degraded", False)) != (steps, bool(steps)):
            self.faults.append(f"labels: {told['provenance']}")
        self.versions.update([*got["user"], *got["item"]])

    def _judge(self, table: str, rows: dict[str, int], got: list[tuple[str, int]], sent: float) -> None:
        """What is no row is a default, and what is an old row is called stale."""
        nothing = sum(version == 0 for _, version in got)
        if sum(rows.values()) != len(got) or nothing != rows.get("lost", 0) + rows.get("absent", 0):
            self.faults.append(f"{table}: {rows} of {got}")
        for version, (at, keys) in self.written.items():
            if sent - at > self.within[table]:
                old = [(key, each) for key, each in got if 0 < each < version and key in keys]
                if len(old) > rows.get("stale", 0):
                    self.faults.append(f"{table}: {rows}, {sent - at:.2f} s after version {version}: {old}")

    def judge(self) -> None:
        assert not self.faults, f"{len(self.faults)} of {self.asked}: " + "\n".join(self.faults[:5])
        assert self.gateway.metric("tailrace_responses_total", status="500") == 0
        assert "Traceback" not in self.gateway.log()


@contextlib.asynccontextmanager
async def ranking(ranks: Ranks) -> AsyncIterator[None]:
    """Callers ask until the block ends; then nothing may have been wrong."""
    turns = count()

    async def call(session: aiohttp.ClientSession) -> None:
        while True:
            try:
                await ranks.ask(session, next(turns))
            except Exception as error:
                ranks.faults.append(repr(error))
                raise
            await asyncio.sleep(PAUSE_SECONDS)

    async with aiohttp.ClientSession() as session:
        callers = [asyncio.create_task(call(session)) for _ in range(CALLERS)]
        try:
            yield
        finally:
            for caller in callers:
                caller.cancel()
            ended = await asyncio.gather(*callers, return_exceptions=True)
    assert not [each for each in ended if isinstance(each, Exception)], ended
    ranks.judge()


def house(triton_url: str, store: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """A configuration: users asked for at nearly every request, items held as long as nobody writes them; what is old
    is better than nothing, and for an item nothing is better than a failure. ``changes``: of a table, by its name."""
    shared = {"store": store, "max_stale": "1h", "timeout": "200ms", "connect_timeout": "200ms"}
    user = {"key": "u:{id}", "shape": [2], "ids": "text", "ttl": "50ms"}
    item = {"key": "i:{id}", "shape": [3], "ttl": "1h", "default": "zeros"}
    item |= {"coherence": "tracking", "coherent_within": "1s"}
    return {
        "backends": {"b": {"http": [triton_url]}},
        "tables": {"user": shared | user | changes.get("user", {}), "item": shared | item | changes.get("item", {})},
        "routes": {"rank": ROUTE},
    }


WITHIN = {"user": 0.05, "item": 1.0}
"""Seconds after which a write is in every row of `house` that is called fresh."""
