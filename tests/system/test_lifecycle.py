"""A gateway's own beginning and end: it starts without a Triton, tells the truth, and leaves in good order."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest

BODY = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [2, 7]}]}


@pytest.fixture(scope="module")
def one(breakable_factory: Callable[..., Any]) -> Any:
    return breakable_factory("stamped")


@pytest.fixture
def broken(one: Any) -> Iterator[Any]:
    """The module's Triton, well at the beginning of each test."""
    one.restore()
    yield one
    one.heal()


def health(url: str, which: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"{url}/v2/health/{which}", timeout=5.0) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


async def test_a_gateway_boots_without_triton_and_says_so(broken: Any, gateway_factory: Any, configured: Any) -> None:
    server = broken.server
    server.kill()
    gateway = gateway_factory(configured(server.http_url))
    status, said = health(gateway.http_url, "ready")
    assert (status, said["ready"]) == (503, False)
    assert "no ready replica" in said["error"]
    assert health(gateway.http_url, "live") == (200, {"live": True})
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{gateway.http_url}/v2/models/stamped/infer", json=BODY) as answer:
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) >= 1
        await asyncio.to_thread(server.start)
        end = time.monotonic() + 20.0
        while health(gateway.http_url, "ready")[0] != 200:
            assert time.monotonic() < end, "not ready 20 s after its Triton was"
            await asyncio.sleep(0.05)
        async with session.post(f"{gateway.http_url}/v2/models/stamped/infer", json=BODY) as answer:
            assert answer.status == 200
        server.kill()
        end = time.monotonic() + 20.0
        while gateway.metric("tailrace_replica_ready") != 0:
            assert time.monotonic() < end, "its Triton is ready 20 s after it died"
            await asyncio.sleep(0.05)
        assert health(gateway.http_url, "ready")[0] == 200, "it was ready, and may have answers to give"
        assert health(gateway.http_url, "live")[0] == 200


async def ask(session: aiohttp.ClientSession, url: str, number: int) -> tuple[int, list[float]]:
    """Status and echoed row; (0, []) when the connection was refused or closed before any answer."""
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [number, 7]}]}
    try:
        async with session.post(f"{url}/v2/models/stamped/infer", json=body) as answer:
            document = await answer.json(content_type=None)
    except aiohttp.ClientError:
        return 0, []
    return answer.status, document["outputs"][0]["data"] if answer.status == 200 else []


async def test_sigterm_lets_requests_in_flight_finish(broken: Any, gateway_factory: Any, configured: Any) -> None:
    gateway = gateway_factory(configured(broken.server.http_url, drain="60s", timeout="60s"))
    process = gateway.process
    async with aiohttp.ClientSession() as session:
        assert (await ask(session, gateway.http_url, 1))[0] == 200
        broken.tell("stamped", "hang")
        under_way = [asyncio.create_task(ask(session, gateway.http_url, number)) for number in range(100, 116)]
        end = time.monotonic() + 10.0
        while gateway.metric("tailrace_flights", route="stamped") < len(under_way):
            assert time.monotonic() < end, "the requests did not arrive"
            await asyncio.sleep(0.02)
        process.signal(signal.SIGTERM)
        end = time.monotonic() + 10.0
        while gateway.metric("tailrace_draining") == 0.0:
            assert time.monotonic() < end, "it does not drain"
            await asyncio.sleep(0.02)
        assert process.running
        status, _ = await ask(session, gateway.http_url, 200)
        assert status in (0, 503)
        broken.heal()
        answers = await asyncio.gather(*under_way)
    assert answers == [(200, [float(number), 7.0]) for number in range(100, 116)]
    assert process.wait(15.0), "the gateway did not end"
    assert process.returncode == 0


async def test_sigterm_while_triton_hangs_ends_within_the_limit(
    broken: Any, gateway_factory: Any, configured: Any
) -> None:
    gateway = gateway_factory(configured(broken.server.http_url, drain="1s", timeout="60s"))
    process = gateway.process
    async with aiohttp.ClientSession() as session:
        assert (await ask(session, gateway.http_url, 1))[0] == 200
        broken.server.pause()
        under_way = [asyncio.create_task(ask(session, gateway.http_url, number)) for number in range(100, 116)]
        end = time.monotonic() + 10.0
        while gateway.metric("tailrace_flights", route="stamped") < len(under_way):
            assert time.monotonic() < end, "the requests did not arrive"
            await asyncio.sleep(0.02)
        process.signal(signal.SIGTERM)
        answers = await asyncio.gather(*under_way)
    assert {status for status, _ in answers} <= {503, 0}
    assert process.wait(10.0), "the gateway did not end"
    assert process.returncode == 0
