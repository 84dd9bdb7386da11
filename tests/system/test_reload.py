"""A reload as an operator sees it: SIGHUP or the admin port, one process or several, and no caller notices."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

CALLERS = 8
ROUNDS = 6


def config(triton: Any, routes: dict[str, Any]) -> dict[str, Any]:
    return {"backends": {"b": {"http": [triton.http_url], "grpc": [triton.grpc_address]}}, "routes": routes}


def echo(**settings: Any) -> dict[str, Any]:
    return {"tiers": [{"backend": "b", "model": "echo_fp32"}], "cache": {"ttl": "10m"}, **settings}


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:.0f} s"
        time.sleep(0.02)


def ask(url: str, route: str) -> tuple[int, dict[str, Any]]:
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    request = urllib.request.Request(f"{url}/v2/models/{route}/infer", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=10.0) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def reload(gateway: Any) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{gateway.admin_url}/reload", b"", timeout=30.0) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture(params=[1, 2])
def gateway(request: pytest.FixtureRequest, gateway_factory: Callable[..., Any], triton: Any) -> Any:
    return gateway_factory(config(triton, {"one": echo()}), ("--workers", str(request.param)))


def test_sighup_takes_a_file_and_refuses_one_with_faults(
    gateway: Any, triton: Any, request: pytest.FixtureRequest
) -> None:
    assert ask(gateway.http_url, "one")[0] == 200
    gateway.rewrite(config(triton, {"one": echo(), "two": echo()}))
    gateway.process.signal(signal.SIGHUP)
    workers = request.node.callspec.params["gateway"]
    told = 1 if workers == 1 else workers + 1  # their supervisor too, when all of them have
    until(lambda: gateway.log().count("configuration taken") >= told)
    for _ in range(8):  # whichever worker it is
        assert ask(gateway.http_url, "two")[0] == 200
    gateway.rewrite(config(triton, {"one": echo(cache={"ttl": "0s"})}))
    gateway.process.signal(signal.SIGHUP)
    until(lambda: "configuration refused" in gateway.log())
    assert "routes.one.cache.ttl" in gateway.log()
    assert gateway.metric("tailrace_reloads_total", outcome="taken") == 1
    assert gateway.metric("tailrace_reloads_total", outcome="refused") == 1
    assert gateway.metric("tailrace_reload_failing") == 1
    for _ in range(8):
        assert ask(gateway.http_url, "two")[0] == 200
    gateway.rewrite("[routes")
    status, document = reload(gateway)
    assert (status, document["type"]) == (422, "urn:tailrace:problem:configuration-refused")
    assert "is not TOML" in document["faults"][0]
    gateway.rewrite(config(triton, {"two": echo()}))
    assert reload(gateway) == (
        200,
        {"changed": {"routes": {"added": [], "changed": [], "removed": ["one"]}}, "warnings": []},
    )
    assert gateway.metric("tailrace_reload_failing") == 0
    for _ in range(8):
        assert ask(gateway.http_url, "two")[0] == 200
        assert ask(gateway.http_url, "one")[0] == 404, "Triton has no such model: it passed through"


def test_no_caller_notices(gateway: Any, triton: Any) -> None:
    """Reloads that replace the backend, the route and its quota, under load on kept connections."""
    outcomes: Counter[int] = Counter()

    async def call(session: aiohttp.ClientSession, caller: int, stop: asyncio.Event) -> None:
        number = caller
        while not stop.is_set():
            number += CALLERS
            body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [number % 64, caller]}]}
            async with session.post(f"{gateway.http_url}/v2/models/one/infer", json=body) as answer:
                document = await answer.json(content_type=None)
                outcomes[answer.status] += 1
                assert answer.status == 200, document
                assert document["outputs"][0]["data"] == [number % 64, caller]

    async def main() -> None:
        stop = asyncio.Event()
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for caller in range(CALLERS):
                group.create_task(call(session, caller, stop))
            for number in range(ROUNDS):
                changed = config(triton, {"one": echo(timeout=f"{number + 5}s", quota={"rate": 10**6 + number})})
                changed["backends"]["b"]["connections_max"] = 32 + number
                gateway.rewrite(changed)
                before = sum(outcomes.values())
                status, document = await asyncio.to_thread(reload, gateway)
                assert (status, set(document.get("changed", ()))) == (200, {"backends", "routes"}), document
                while sum(outcomes.values()) < before + 50:  # noqa: ASYNC110 - callers count
                    await asyncio.sleep(0.01)
            stop.set()

    asyncio.run(main())
    assert set(outcomes) == {200}
