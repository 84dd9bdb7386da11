"""Quotas through the door: what uses them up, what a refused caller is told, and that hits go on.

Periods are an hour long, so that nothing is earned back while a test runs.
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest

from examples.gatewayprocess import GatewayProcess
from examples.tritonserver import TritonServer
from tests.conftest import settled

NUMBERS = itertools.count(1)
Json = dict[str, object]


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_hit(self) -> bool:
        return "; hit" in self.headers.get("Cache-Status", "")


def body(number: int, identity: str = "") -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [number]}
    return json.dumps({"id": identity, "inputs": [tensor]}).encode()


def post(gateway: GatewayProcess, route: str, content: bytes, caller: str = "", **headers: str) -> Answer:
    connection = http.client.HTTPConnection(gateway.http_address, timeout=20)
    try:
        more = {"X-API-Key": caller} if caller else {}
        connection.request("POST", f"/v2/models/{route}/infer", content, more | headers)
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.headers.items()), answer.read())
    finally:
        connection.close()


def quota(rate: int, hits_count: bool = False) -> Json:
    return {"rate": rate, "per": "1h", "hits_count": hits_count}


@pytest.fixture(scope="module")
def gateway(triton: TritonServer) -> Iterator[GatewayProcess]:
    def route(**more: object) -> Json:
        return {"tiers": [{"backend": "gpu", "model": "echo_fp32"}], "cache": {"ttl": "1h"}} | more

    def caller(key: str, **more: object) -> Json:
        return {"key_sha256": hashlib.sha256(key.encode()).hexdigest()} | more

    config = {
        "backends": {"gpu": {"http": [triton.http_url]}},
        "callers": {
            "alice": caller("alice"),
            "bob": caller("bob"),
            "poor": caller("poor", quota=quota(2)),
            "counted": caller("counted", quota=quota(2, True)),
            # Called like a route that has a quota for each caller: the two must not meet.
            "each": caller("each", quota=quota(3, True)),
        },
        "routes": {
            "free": route(),
            "spare_json": route(quota=quota(2)),
            "spare_wire": route(quota=quota(2)),
            "count_json": route(quota=quota(3, True)),
            "count_wire": route(quota=quota(3, True)),
            "each": route(caller_quota=quota(3, True)),
            "uncached": route(quota=quota(1), cache={"ttl": "1h"}),
            "größe": route(quota=quota(1)),
        },
    }
    with GatewayProcess(config) as process:  # type: ignore[arg-type]  # plain JSON is TOML enough
        yield process


def assert_refused(answer: Answer, name: str, requests: int) -> None:
    assert answer.status == 429
    problem = json.loads(answer.body)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert problem["type"] == "urn:tailrace:problem:quota"
    assert name in problem["error"]
    assert 1 <= int(answer.headers["Retry-After"]) <= 3600
    assert problem["retry_after"] == int(answer.headers["Retry-After"])
    assert answer.headers["RateLimit-Policy"] == f'"{name}";q={requests};w=3600'
    told = re.fullmatch(rf'"{re.escape(name)}";r=0;t=(\d+)', answer.headers["RateLimit"])
    assert told is not None, answer.headers["RateLimit"]
    assert told[1] == answer.headers["Retry-After"]


def test_a_caller_called_like_a_route_is_charged_once_for_each_quota(gateway: GatewayProcess) -> None:
    assert [post(gateway, "each", body(1), "each").status for _ in range(4)] == [200, 200, 200, 429]


def test_a_refused_request_is_no_inference_and_is_counted(gateway: GatewayProcess, triton: TritonServer) -> None:
    assert post(gateway, "uncached", body(1)).status == 200
    before = settled(triton, "echo_fp32").requests
    for number in range(2, 12):
        assert post(gateway, "uncached", body(number)).status == 429
    assert settled(triton, "echo_fp32").requests == before
    assert gateway.metric("tailrace_refusals_total", route="uncached", problem="quota") == 10


def test_a_routes_name_of_any_kind_can_have_a_quota(gateway: GatewayProcess) -> None:
    assert post(gateway, "gr%C3%B6%C3%9Fe", body(1)).status == 200
    assert_refused(post(gateway, "gr%C3%B6%C3%9Fe", body(2)), "route:gr%C3%B6%C3%9Fe", 1)
