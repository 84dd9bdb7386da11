"""What several gateways share through Redis, before the real Triton: every answer bears the time at which it was
computed, so an old one cannot pass for a new one."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import pytest

from cache.sealed import unsealed
from examples.gatewayprocess import ConfigValue, GatewayProcess
from examples.redisserver import RedisServer
from gateway.witness import ROUND_SECONDS, Watch

ROW = [4.0, 13.0]
LATE = 30.0
WRITTEN_BY_ALL_SECONDS = 3 * ROUND_SECONDS


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server
        server.resume()


@pytest.fixture
def breakable(breakable_factory: Callable[..., Any]) -> Any:
    return breakable_factory("stamped")


@pytest.fixture
def start(gateway_factory: Callable[..., GatewayProcess], breakable: Any, redis: RedisServer) -> Callable[..., Any]:
    """``start()`` -> a gateway that uses its second level."""

    def started(*arguments: str, ready: bool = True, rows: bool = False) -> GatewayProcess:
        cache = {"ttl": "1h", "max_stale": "1h", "second": redis.url, "second_timeout": "1s", "rows": rows}
        route: Mapping[str, ConfigValue] = {"tiers": [{"backend": "b", "model": "stamped"}], "cache": cache}
        config = {"backends": {"b": {"http": [breakable.server.http_url]}}, "routes": {"stamped": route}}
        gateway = gateway_factory(config, arguments)
        if ready:
            until(lambda: used(gateway) == 1.0)
        return gateway

    return started


def used(gateway: GatewayProcess) -> float:
    return gateway.metric("tailrace_second_used", route="stamped")


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LATE
    while not true():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.05)


def ask(gateway: GatewayProcess, row: list[float] = ROW) -> tuple[str, float]:
    """What the gateway says of where the answer is from, and when it was computed (Unix seconds)."""
    asked = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": row}]}
    url = f"{gateway.http_url}/v2/models/stamped/infer"
    with urllib.request.urlopen(url, json.dumps(asked).encode(), timeout=LATE) as answer:
        document = json.load(answer)
        label = answer.headers["Tailrace-Provenance"]
    outputs = {output["name"]: output["data"] for output in document["outputs"]}
    assert outputs["y"] == row
    return ",".join(label.split(", ")[:2]), outputs["at"][0]


def left(gateway: GatewayProcess, number: int) -> None:
    """Wait until it has left so many answers for others."""
    until(lambda: gateway.metric("tailrace_second_total", route="stamped", outcome="write_written") >= number)


def seen(redis: RedisServer) -> None:
    """Wait until every gateway has looked at the model after its first work: before that a reload does not show."""
    since = time.monotonic()

    def steadily() -> bool:
        nonlocal since
        with redis.client() as client:
            (key,) = client.keys("tailrace:*:watch")
            held = client.get(key)
        value = unsealed(key, held, 1 << 20)
        assert value is not None
        sights = msgspec.msgpack.decode(value, type=Watch).sights.values()
        if not all(sight.executions("1") for sight in sights):
            since = time.monotonic()
        return time.monotonic() - since > WRITTEN_BY_ALL_SECONDS

    until(steadily)


HIT, SECOND, MISS = "cache=hit,reason=fresh", "cache=hit,reason=second", "cache=miss,reason=absent"


@pytest.mark.parametrize("rows", [False, True])
def test_two_share_and_a_reload_takes_it_from_both(
    breakable: Any, start: Callable[..., Any], redis: RedisServer, rows: bool
) -> None:
    one, other = start(rows=rows), start(rows=rows)
    told, at = ask(one)
    assert told == MISS
    left(one, 1)
    assert ask(other) == (SECOND, at)
    assert ask(other) == ask(one) == (HIT, at)
    seen(redis)
    epochs = [gateway.metric("tailrace_epoch", route="stamped") for gateway in (one, other)]
    breakable.reload("stamped")
    reloaded = time.time()
    for gateway, epoch in zip((one, other), epochs, strict=True):
        until(lambda gateway=gateway, epoch=epoch: gateway.metric("tailrace_epoch", route="stamped") > epoch)
        assert ask(gateway)[1] > reloaded
    third = start(rows=rows)
    for gateway in (one, other, third):
        assert ask(gateway)[1] > reloaded


def test_what_outlives_a_gateway_does_not_outlive_its_model(
    breakable: Any, start: Callable[..., Any], redis: RedisServer
) -> None:
    one = start()
    told, at = ask(one)
    assert told == MISS
    one.stop()
    one = start()
    assert ask(one) == (SECOND, at)
    seen(redis)
    one.stop()
    breakable.reload("stamped")  # nobody watches
    reloaded = time.time()
    one = start(ready=False)
    told, at = ask(one)
    assert told == MISS
    assert at > reloaded
    until(lambda: used(one) == 1.0)
    assert ask(start())[1] > reloaded


def test_workers_share(start: Callable[..., Any]) -> None:
    gateway = start("--workers", "2", ready=False)
    until(lambda: used(gateway) == 2.0)
    ats = set()
    for number in range(12):
        told, at = ask(gateway, [float(number), 1.0])
        assert told == MISS
        left(gateway, number + 1)
        ats |= {(number, at), *((number, ask(gateway, [float(number), 1.0])[1]) for _ in range(4))}
    assert len(ats) == 12
    assert gateway.metric("tailrace_second_total", route="stamped", outcome="hit") > 0


def test_a_hanging_redis_costs_its_time_once(start: Callable[..., Any], redis: RedisServer) -> None:
    gateway = start()
    ask(gateway)
    redis.pause()
    for number in range(60):
        assert ask(gateway, [float(number), 2.0])[0] == MISS
    failed = gateway.metric("tailrace_second_total", route="stamped", outcome="failed")
    opened = gateway.metric("tailrace_second_store_state", store=f"{redis.address}/0")
    assert opened > 0
    assert failed <= 60
    until(lambda: used(gateway) == 0.0)
    assert ask(gateway)[0] == HIT
    redis.resume()
    until(lambda: used(gateway) == 1.0)
