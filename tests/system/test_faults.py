"""Faults ordered by the admin port of a gateway that runs, before the real Triton and Redis: they come, they are
labelled as any, and they end; where they are not enabled there is nothing to order them by."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples.gatewayprocess import GatewayProcess
from examples.redisserver import RedisServer

LATE = 30.0
CHAOS = {"chaos": {"enabled": True}}
ECHO = {"tiers": [{"backend": "b", "model": "echo_fp32"}], "cache": {"ttl": "10ms", "max_stale": "1h"}}


@pytest.fixture
def start(gateway_factory: Callable[..., GatewayProcess], triton: Any) -> Callable[..., GatewayProcess]:
    def started(more: dict[str, Any], *arguments: str) -> GatewayProcess:
        backend = {"http": [triton.http_url], "breaker": {"open_max": "1s"}}
        return gateway_factory({"backends": {"b": backend}, "routes": {"echo": ECHO}} | more, arguments)

    return started


def asked(
    url: str, document: object = None, kind: str = "application/json", **fields: str
) -> tuple[int, dict[str, str], Any]:
    data = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, data, {"Content-Type": kind} | fields)
    try:
        with urllib.request.urlopen(request, timeout=LATE) as answer:
            return answer.status, dict(answer.headers), json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), json.load(error)


def infer(gateway: GatewayProcess, number: float) -> tuple[int, str, Any]:
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [number, 2]}]}
    status, headers, document = asked(f"{gateway.http_url}/v2/models/echo/infer", body)
    return status, headers.get("Tailrace-Provenance", ""), document


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LATE
    while not true():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)


def test_a_full_disk_and_a_wrong_clock_cost_nobody_an_answer(
    start: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    gateway = start(CHAOS | {"snapshot": {"path": str(tmp_path / "snapshot"), "interval": "100ms"}})
    chaos = f"{gateway.admin_url}/chaos"
    order = {"faults": {"snapshot": {"error": "full"}}, "clock": -600, "seconds": 600}
    status, _, told = asked(chaos, order)
    assert (status, told["targets"]) == (200, ["backends.b", "snapshot"]), told
    numbers = iter(range(10**6))
    until(lambda: infer(gateway, next(numbers))[0] == 200 and _failures(gateway) > 0)
    assert infer(gateway, 0.5)[0] == 200
    assert asked(chaos, {})[0] == 200
    failed = _failures(gateway)
    copied = _copied(gateway)
    until(lambda: infer(gateway, next(numbers))[0] == 200 and _copied(gateway) > copied)
    assert _failures(gateway) <= failed + 1


def _copied(gateway: GatewayProcess) -> float:
    return gateway.metrics()["tailrace_snapshot_copied_total"]


def _failures(gateway: GatewayProcess) -> float:
    return gateway.metrics().get('tailrace_snapshot_failures_total{kind="full"}', 0.0)


def test_a_backend_fails_until_the_order_ends(start: Callable[..., GatewayProcess]) -> None:
    gateway = start(CHAOS)
    chaos = f"{gateway.admin_url}/chaos"
    assert infer(gateway, 1)[0] == 200
    order = {"faults": {"backends.b": {"error": "unreachable"}}, "seed": 3, "seconds": 600}
    status, _, told = asked(chaos, order)
    assert (status, told["targets"]) == (200, ["backends.b"])
    assert infer(gateway, 2)[0] == 503
    until(lambda: "cache=stale" in infer(gateway, 1)[1])
    assert asked(chaos)[2]["met"]["backends.b error"] > 0
    assert asked(chaos, {})[2]["faults"] == {}
    until(lambda: infer(gateway, 2)[0] == 200)
    assert "Traceback" not in gateway.log()


def test_numbers_that_are_none_and_a_loop_that_stands_still(start: Callable[..., GatewayProcess]) -> None:
    gateway = start(CHAOS)
    chaos = f"{gateway.admin_url}/chaos"
    asked(chaos, {"faults": {"backends.b": {"corrupt": True}}})
    assert infer(gateway, 5)[2]["outputs"][0]["data"] != [5, 2]
    began = time.monotonic()
    asked(chaos, {"stall": 1.5})
    time.sleep(0.2)  # into the standstill, if this machine is quick
    assert infer(gateway, 6)[2]["outputs"][0]["data"] == [6, 2]
    asked(chaos)
    until(lambda: time.monotonic() - began > 1.5)
    assert infer(gateway, 7)[0] == 200


def test_a_second_level_fails_and_is_used_again(start: Callable[..., GatewayProcess]) -> None:
    with RedisServer() as redis:
        shared = ECHO | {"cache": {"ttl": "1h", "second": redis.url, "second_timeout": "1s"}}
        gateway = start(CHAOS | {"routes": {"echo": shared}})
        until(lambda: gateway.metric("tailrace_second_used", route="echo") == 1.0)
        asked(f"{gateway.admin_url}/chaos", {"faults": {"second": {"error": "full"}}})
        until(lambda: gateway.metric("tailrace_second_used", route="echo") == 0.0)
        assert infer(gateway, 1)[0] == 200
        asked(f"{gateway.admin_url}/chaos", {})
        until(lambda: gateway.metric("tailrace_second_used", route="echo") == 1.0)


def test_one_of_two_workers_is_killed_and_all_fail_alike(start: Callable[..., GatewayProcess]) -> None:
    gateway = start(CHAOS, "--workers", "2")
    chaos = f"{gateway.admin_url}/chaos"

    def pids() -> list[int]:
        return [each["pid"] for each in asked(f"{gateway.admin_url}/status")[2]["workers"] if each is not None]

    before = pids()
    assert asked(chaos, {"kill": True})[0] == 400
    for unclear in ("worker=2", "worker=0&worker=1", "worker=0&x=1", "worker="):
        assert asked(f"{chaos}?{unclear}", {"kill": True})[0] == 400
    assert asked(f"{chaos}?worker=1", {"kill": True}, Origin="http://evil.example")[0] == 403
    assert asked(f"{chaos}?worker=1", {"kill": True}, Host="evil.example")[0] == 403
    assert asked(f"{chaos}?worker=1", {"kill": True})[0] == 200
    until(lambda: len(now := pids()) == 2 and now[0] == before[0] and now[1] != before[1])
    assert asked(chaos, {"faults": {"backends.x": {}}})[0] == 400
    told = asked(chaos, {"faults": {"backends.b": {"error": "broken"}}})[2]["workers"]
    assert [list(each["faults"]) for each in told] == [["backends.b"], ["backends.b"]]
    assert {infer(gateway, number)[0] for number in range(8)} == {503}
    ran = pids()
    os.kill(ran[1], signal.SIGKILL)
    until(lambda: len(now := pids()) == 2 and now[0] == ran[0] and now[1] != ran[1])
    until(lambda: [each and list(each["faults"]) for each in asked(chaos)[2]["workers"]] == [["backends.b"]] * 2)
    assert {infer(gateway, number)[0] for number in range(8)} == {503}


def test_it_is_not_there_unless_it_is_enabled(start: Callable[..., GatewayProcess]) -> None:
    for arguments in ((), ("--workers", "2")):
        gateway = start({}, *arguments)
        assert asked(f"{gateway.admin_url}/chaos")[0] == 404
        assert asked(f"{gateway.admin_url}/chaos", {"kill": True})[0] == 404
        with urllib.request.urlopen(gateway.admin_url, timeout=LATE) as answer:
            assert b"chaos" not in answer.read()
    gateway = start(CHAOS)
    with urllib.request.urlopen(gateway.admin_url, timeout=LATE) as answer:
        assert b"POST /chaos" in answer.read()
    assert asked(f"{gateway.admin_url}/chaos", {"kill": True}, "text/plain")[0] == 415  # as a page in a browser may
    assert asked(f"{gateway.admin_url}/chaos", {"seconds": "x"})[0] == 400
    assert asked(f"{gateway.admin_url}/chaos?worker=1", {"kill": True})[0] == 400  # there is none
    assert "chaos.enabled: is true" in gateway.log()
