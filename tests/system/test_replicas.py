"""Two Tritons: what one of them cannot do, the other does, and callers see no error at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def two(breakable_factory: Callable[..., Any]) -> tuple[Any, Any]:
    return breakable_factory("stamped", "fast", "large"), breakable_factory("stamped", "fast", "large")


@pytest.fixture
def pair(two: tuple[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Both servers, well at the beginning of each test."""
    for each in two:
        each.restore()
    yield two
    for each in two:
        each.heal()


async def test_one_of_two_is_killed_and_comes_back(
    pair: tuple[Any, Any], gateway_factory: Any, configured: Any, loading: Any
) -> None:
    one, two = (each.server for each in pair)
    gateway = gateway_factory(configured(one.http_url, two.http_url))
    async with loading(gateway, "stamped") as load:
        await load.until(lambda: load.tally()["fresh"] >= 200)
        assert one.statistics("stamped").requests > 0
        assert two.statistics("stamped").requests > 0
        await asyncio.to_thread(one.kill)
        await load.until(lambda: load.steps()["replica"] >= 1)
        await load.until_more("fresh", 300)
        await asyncio.to_thread(one.start)
        await load.until(lambda: one.statistics("stamped").requests >= 50)
    load.judge()
    assert load.tally()["refused"] + load.tally()["stale"] == 0
    assert gateway.metric("tailrace_breaker_state", replica=one.http_url) == 0


async def test_one_of_two_freezes(pair: tuple[Any, Any], gateway_factory: Any, configured: Any, loading: Any) -> None:
    """A frozen replica costs those who wait for it their time; the probe takes it out of their way."""
    one, two = (each.server for each in pair)
    gateway = gateway_factory(configured(one.http_url, two.http_url))
    async with loading(gateway, "stamped") as load:
        await load.until(lambda: load.tally()["fresh"] >= 100)
        one.pause()
        await load.until(lambda: gateway.metric("tailrace_replica_ready", replica=one.http_url) == 0)
        await load.until_more("fresh", 300)
        one.resume()
        before = one.statistics("stamped").requests
        await load.until(lambda: one.statistics("stamped").requests >= before + 50)
    load.judge()


async def test_a_model_that_fails_on_one_replica_leaves_rotation_there_alone(
    pair: tuple[Any, Any], gateway_factory: Any, configured: Any, loading: Any
) -> None:
    one, two = (each.server for each in pair)
    gateway = gateway_factory(configured(one.http_url, two.http_url))
    async with loading(gateway, "stamped") as load, loading(gateway, "cascade") as other:
        await load.until(lambda: load.tally()["fresh"] >= 50 and other.tally()["fresh"] >= 50)
        pair[0].tell("stamped", "fail")
        await load.until(lambda: gateway.metric("tailrace_replica_models_open", replica=one.http_url) == 1)
        failed, fast = one.statistics("stamped").failed, one.statistics("fast").requests
        await load.until_more("fresh", 200)
        assert one.statistics("stamped").failed <= failed + 10  # the few trials of its breaker
        assert one.request("GET", "/v2/models/stamped/ready")[0] == 200
        await load.until(lambda: one.statistics("fast").requests >= fast + 50)
        pair[0].heal()
        well = one.statistics("stamped").requests
        await load.until(lambda: one.statistics("stamped").requests >= well + 20, seconds=40.0)
    for each in (load, other):
        each.judge()
        assert each.tally()["refused"] + each.tally()["stale"] + each.tally()["fast-only"] == 0
    assert other.steps()["replica"] == 0
    assert load.steps()["replica"] >= 1
