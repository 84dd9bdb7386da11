"""Features as a caller sees them: ids in, scores out, with a real Redis, a real file and a real Triton; and what is
said when a table's store is written to, hangs, dies, or was never there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc as grpcclient
from tritonclient import http as httpclient

from cache.stores.lmdb import LmdbStore
from examples.redisserver import RedisServer
from tests.system.ranking import ROUTE, item_row, predict, rows_of, score, until, user_row

ITEMS = 200
TIMEOUT = 1.0
"""Of the store: long enough that only one that hangs takes it, also where two cores do much else."""


class House:
    def __init__(self, gateway: Any, redis: RedisServer) -> None:
        self.gateway, self.redis = gateway, redis

    def write(self, **users: float) -> None:
        with self.redis.client() as client:
            for name, number in users.items():
                client.set(f"u:{name}", user_row(number))

    def predict(self, user: str, items: list[int]) -> tuple[int, dict[str, Any]]:
        return predict(self.gateway, user, items)

    def rank(self, user: str, items: list[int]) -> tuple[list[float], dict[str, Any]]:
        """Scores in the items' order, and what the answer says it is made of."""
        status, answer = self.predict(user, items)
        assert status == 200, answer
        return [row[0] for row in answer["outputs"]["score"]], answer["provenance"]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def opened(
    gateway_factory: Callable[..., Any], triton: Any, redis: RedisServer, tmp_path: Path
) -> Callable[..., House]:
    """``opened(user={...}, route={...})``: a gateway with users in Redis and items in a file."""
    file = tmp_path / "items.lmdb"

    async def fill() -> None:
        store = LmdbStore(str(file), True)
        await store.put_many([(b"i:%d" % number, item_row(number)) for number in range(ITEMS)], None, 10.0)
        await store.close()

    asyncio.run(fill())

    def start(user: dict[str, Any] | None = None, route: dict[str, Any] | None = None) -> House:
        users = {"store": redis.url, "key": "u:{id}", "shape": [2], "ids": "text", "ttl": "1h", "max_stale": "1h"}
        users |= {"timeout": f"{TIMEOUT}s"}
        items = {"store": f"lmdb:{file}", "key": "i:{id}", "shape": [3], "ttl": "1h", "timeout": f"{TIMEOUT}s"}
        config = {
            "backends": {"b": {"http": [triton.http_url]}},
            "tables": {"user": users | (user or {}), "item": items},
            "routes": {"rank": ROUTE | (route or {})},
        }
        return House(gateway_factory(config), redis)

    return start


def test_one_user_and_two_hundred_items(
    opened: Callable[..., House], triton: Any, counting: Callable[..., Any]
) -> None:
    house = opened()
    house.write(ann=1, bob=2)
    items = list(range(ITEMS))[::-1]
    with counting(triton, "ranker") as counted:
        scores, told = house.rank("bob", items)
    assert scores == [score(2, item) for item in items]
    assert (rows_of(told, "user"), rows_of(told, "item")) == ({"fresh": 1}, {"fresh": ITEMS})
    assert (counted.requests, counted.rows) == (1, ITEMS)
    assert house.rank("ann", [5, 5, 7])[0] == [score(1, 5), score(1, 5), score(1, 7)]
    status, problem = house.predict("nobody", [3])
    assert (status, problem["detail"]) == (400, "table user has no nobody")


@pytest.mark.parametrize("library", [httpclient, grpcclient])
def test_tritons_clients_send_ids_too(opened: Callable[..., House], library: Any) -> None:
    house = opened()
    house.write(bob=2)
    gateway = house.gateway
    client = library.InferenceServerClient(gateway.http_address if library is httpclient else gateway.grpc_address)
    named = library.InferInput("user", [1], "BYTES")
    named.set_data_from_numpy(np.array([b"bob"], object))
    many = library.InferInput("items", [2], "INT64")
    many.set_data_from_numpy(np.array([1, 2], np.int64))
    assert client.infer("rank", [named, many]).as_numpy("score").tolist() == [[score(2, 1)], [score(2, 2)]]
    metadata = client.get_model_metadata("rank")
    inputs = metadata["inputs"] if library is httpclient else [
        {"name": each.name, "datatype": each.datatype, "shape": list(each.shape)} for each in metadata.inputs
    ]  # fmt: skip
    assert [[each["name"], each["datatype"], [int(size) for size in each["shape"]]] for each in inputs] == [
        ["user", "BYTES", [1]], ["items", "INT64", [-1]],
    ]  # fmt: skip


def test_a_write_is_seen_and_a_silent_server_is_no_longer_believed(opened: Callable[..., House]) -> None:
    house = opened(user={"coherence": "tracking", "coherent_within": "2s"})
    house.write(bob=1)
    until(lambda: house.gateway.metric("tailrace_table_live", table="user") == 1)
    scores, told = house.rank("bob", [0])
    assert (scores, rows_of(told, "user")) == ([1], {"fresh": 1})
    house.write(bob=2)
    assert until(lambda: house.rank("bob", [0])[0] == [2]) < 2.0
    house.redis.pause()
    try:
        until(lambda: rows_of(house.rank("bob", [0])[1], "user") == {"stale": 1})
        scores, told = house.rank("bob", [0])
        assert (scores, told["steps"], told["degraded"]) == ([2], ["user:stale"], True)
    finally:
        house.redis.resume()
    house.write(bob=3)
    until(lambda: house.rank("bob", [0])[0] == [3])
    until(lambda: rows_of(house.rank("bob", [0])[1], "user") == {"fresh": 1})


def test_a_store_that_hangs_costs_its_timeout_once_and_old_rows_say_so(opened: Callable[..., House]) -> None:
    house = opened(user={"ttl": "1ms"})
    house.write(bob=1, ann=2)
    assert house.rank("bob", [0])[0] == [1]
    house.redis.pause()
    took = []
    try:
        for _ in range(20):
            began = time.monotonic()
            scores, told = house.rank("bob", [0])
            took.append(time.monotonic() - began)
            assert (scores, rows_of(told, "user")) == ([1], {"stale": 1})
    finally:
        house.redis.resume()
    print("seconds of 20 requests before a store that hangs:", [round(seconds, 3) for seconds in took])
    failures = house.gateway.metric("tailrace_table_failures_total", table="user", kind="timeout")
    assert failures <= 2, "the breaker opens at the first silence"
    until(lambda: rows_of(house.rank("bob", [0])[1], "user") == {"fresh": 1})


def test_a_store_that_dies_is_asked_again_when_it_is_back(opened: Callable[..., House]) -> None:
    house = opened()
    house.write(bob=1)
    house.rank("bob", [0])
    house.redis.kill()
    status, problem = house.predict("ann", [0])
    assert (status, problem["detail"].startswith("Route rank has no answer")) == (503, True)
    assert house.rank("bob", [0])[0] == [1]
    house.redis.start()
    house.write(ann=5)
    until(lambda: house.predict("ann", [0])[0] == 200)
    assert house.rank("ann", [0])[0] == [5]


def test_a_gateway_starts_without_its_store_and_gives_defaults(opened: Callable[..., House]) -> None:
    with RedisServer() as gone:
        url = gone.url
    house = opened(user={"store": url, "default": "zeros"})
    scores, told = house.rank("bob", [7])
    assert (scores, rows_of(told, "user")) == ([score(0, 7)], {"lost": 1})
    assert (told["steps"], told["degraded"]) == (["user:default"], True)
    assert house.gateway.metric("tailrace_table_rows_total", table="user", state="lost") == 1


def test_answers_and_rows_of_features_are_cached(
    opened: Callable[..., House], triton: Any, counting: Callable[..., Any]
) -> None:
    house = opened(route={"cache": {"ttl": "1h", "rows": True}})
    house.write(bob=1)
    house.rank("bob", [1, 2, 3])
    with counting(triton, "ranker") as counted:
        assert house.rank("bob", [1, 2, 3])[1]["cache"] == "hit"
        told = house.rank("bob", [3, 4])[1]
    assert (counted.requests, counted.rows) == (1, 1)
    assert (told["reason"], told["rows"], told["kept"]) == ("partial", 2, 1)
