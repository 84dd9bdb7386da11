"""Too much to do, before the real Triton: misses wait in the gateway, who goes first is the gateway's to say, and what
nobody could be answered in time is refused while there still is time."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from examples.gatewayprocess import GatewayProcess
from examples.tritonserver import TritonServer

MODEL = "slow"
SLEEP_MS = 100


def key(name: str) -> str:
    return f"key-of-{name}"


def caller(name: str, **more: str) -> dict[str, str]:
    return {"key_sha256": hashlib.sha256(key(name).encode()).hexdigest(), "tenant": name, **more}


@pytest.fixture
def gateway(gateway_factory: Callable[..., GatewayProcess], triton: TritonServer) -> GatewayProcess:
    return gateway_factory(
        {
            "callers": {"vip": caller("vip", priority="high"), "ann": caller("ann"), "bob": caller("bob")},
            "backends": {"b": {"http": [triton.http_url], "concurrency": {"adaptive": False, "max": 1}}},
            "routes": {
                MODEL: {"tiers": [{"backend": "b", "model": MODEL}], "timeout": "30s"},
                "hurried": {"tiers": [{"backend": "b", "model": MODEL}], "timeout": "1s"},
            },
        }
    )


async def ask(session: aiohttp.ClientSession, gateway: GatewayProcess, name: str, route: str = MODEL) -> int:
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    body = json.dumps({"inputs": [tensor], "parameters": {"sleep_ms": SLEEP_MS}})
    fields = {"Authorization": f"Bearer {key(name)}", "Content-Type": "application/json"}
    async with session.post(f"{gateway.http_url}/v2/models/{route}/infer", data=body, headers=fields) as answer:
        document: Any = await answer.json(content_type=None)
        if answer.status == 503:
            assert document["type"].endswith(":overloaded"), document
            assert int(answer.headers["Retry-After"]) >= 1
        else:
            assert document["outputs"][0]["data"] == [1.0]
        return answer.status


async def waits(gateway: GatewayProcess, number: int) -> None:
    async with asyncio.timeout(20):
        while gateway.metric("tailrace_concurrency_waiting", model=MODEL) < number:  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_a_model_tells_how_many_requests_it_works_on_at_once(
    gateway_factory: Callable[..., GatewayProcess], triton: TritonServer, protocol: str
) -> None:
    address = triton.http_url if protocol == "http" else triton.grpc_address
    made = gateway_factory(
        {"backends": {"b": {protocol: [address]}}, "routes": {MODEL: {"tiers": [{"backend": "b", "model": MODEL}]}}}
    )
    async with aiohttp.ClientSession() as session, asyncio.timeout(20):
        while not await asyncio.to_thread(made.metric, "tailrace_concurrency_places", model=MODEL):
            assert await ask(session, made, "anybody") == 200
    assert made.metric("tailrace_concurrency_limit", model=MODEL) < 16  # as where nobody knows


async def test_who_has_priority_goes_first_and_tenants_have_turns(gateway: GatewayProcess) -> None:
    order: list[str] = []

    async with aiohttp.ClientSession() as session:

        async def asks(name: str) -> None:
            assert await ask(session, gateway, name) == 200
            order.append(name)

        asked = [asyncio.create_task(asks("ann")) for _ in range(9)]
        await waits(gateway, 8)
        asked += [asyncio.create_task(asks("bob")) for _ in range(2)]
        await waits(gateway, 9)
        asked.append(asyncio.create_task(asks("vip")))
        await asyncio.gather(*asked)
    assert order.index("vip") <= 4
    assert [place for place, name in enumerate(order) if name == "bob"][-1] <= 8
    assert gateway.metric("tailrace_queued_total", model=MODEL, priority="high") == 1


async def test_what_cannot_be_answered_in_time_is_refused_and_the_rest_is_answered(gateway: GatewayProcess) -> None:
    async with aiohttp.ClientSession() as session:
        assert await ask(session, gateway, "ann") == 200  # so that how long it takes is known
        statuses = await asyncio.gather(*(ask(session, gateway, "ann", "hurried") for _ in range(100)))
        assert set(statuses) == {200, 503}
        assert gateway.metric("tailrace_shed_total", model=MODEL, reason="full") >= 50
        assert await ask(session, gateway, "ann") == 200
    assert gateway.metric("tailrace_concurrency_in_flight", model=MODEL) == 0
