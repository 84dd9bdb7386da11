"""Too much to do, before the real Triton: misses wait in the gateway, who goes first is the gateway's to say, and what
nobody could be answered in time is refused while there still is time."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
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
            "callers": {name: caller(name) for name in ("first", "ann", "bob")}
            | {"vip": caller("vip", priority="high")},
            "backends": {"b": {"http": [triton.http_url], "concurrency": {"adaptive": False, "max": 1}}},
            "routes": {
                MODEL: {"tiers": [{"backend": "b", "model": MODEL}], "timeout": "30s"},
                "hurried": {"tiers": [{"backend": "b", "model": MODEL}], "timeout": "1s"},
            },
        }
    )


async def ask(
    session: aiohttp.ClientSession, gateway: GatewayProcess, name: str, route: str = MODEL, **until: str
) -> str:
    """What came of it: ``answered``, or the problem."""
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    body = json.dumps({"inputs": [tensor], "parameters": {"sleep_ms": SLEEP_MS} | until})
    fields = {"Authorization": f"Bearer {key(name)}", "Content-Type": "application/json"}
    async with session.post(f"{gateway.http_url}/v2/models/{route}/infer", data=body, headers=fields) as answer:
        document: Any = await answer.json(content_type=None)
        if answer.status == 200:
            assert document["outputs"][0]["data"] == [1.0]
            return "answered"
        problem = str(document["type"]).rpartition(":")[2]
        assert answer.status == 503, document
        assert problem != "overloaded" or int(answer.headers["Retry-After"]) >= 1
        return problem


async def comes(gateway: GatewayProcess, what: str, number: int) -> None:
    """Until so many requests are ``waiting`` or ``in_flight``."""
    async with asyncio.timeout(20):
        while await asyncio.to_thread(gateway.metric, f"tailrace_concurrency_{what}", model=MODEL) < number:  # noqa: ASYNC110 - no event says so
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
            assert await ask(session, made, "anybody") == "answered"
    assert made.metric("tailrace_concurrency_limit", model=MODEL) < 16  # as where nobody knows


async def test_who_has_priority_goes_first_and_tenants_have_turns(gateway: GatewayProcess, tmp_path: Path) -> None:
    """The model does not end its first request before all others wait."""
    order: list[str] = []

    async with aiohttp.ClientSession() as session:

        async def asks(name: str, **until: str) -> None:
            assert await ask(session, gateway, name, **until) == "answered"
            order.append(name)

        asked = [asyncio.create_task(asks("first", until=str(tmp_path / "all are there")))]
        await comes(gateway, "in_flight", 1)
        asked += [asyncio.create_task(asks("ann")) for _ in range(8)]
        await comes(gateway, "waiting", 8)
        asked += [asyncio.create_task(asks("bob")) for _ in range(2)]
        await comes(gateway, "waiting", 10)
        asked.append(asyncio.create_task(asks("vip")))
        await comes(gateway, "waiting", 11)
        (tmp_path / "all are there").touch()
        await asyncio.gather(*asked)
    assert order == ["first", "vip", "ann", "bob", "ann", "bob", *["ann"] * 6]
    assert gateway.metric("tailrace_queued_total", model=MODEL, priority="high") == 1


async def test_what_cannot_be_answered_in_time_is_refused_and_the_rest_is_answered(gateway: GatewayProcess) -> None:
    async with aiohttp.ClientSession() as session:
        assert await ask(session, gateway, "ann") == "answered"  # so that how long it takes is known
        came = Counter(await asyncio.gather(*(ask(session, gateway, "ann", "hurried") for _ in range(100))))
        late = {"deadline"}  # of those let in, on a machine on which the model takes longer than it did
        assert {"answered", "overloaded"} <= set(came) <= {"answered", "overloaded"} | late
        assert came["overloaded"] >= 50
        assert gateway.metric("tailrace_shed_total", model=MODEL, reason="full") >= 50
        assert await ask(session, gateway, "ann") == "answered"
    assert gateway.metric("tailrace_concurrency_in_flight", model=MODEL) == 0
