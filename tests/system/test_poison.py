"""What one caller sends must not take a real Triton, or one of its models, away from the others."""

import http.client
import json
from urllib.parse import urlsplit

import pytest

from examples.gatewayprocess import GatewayProcess

TIMES = 8
"""More than a breaker's consecutive_failures."""


@pytest.fixture
def gateway(triton):
    routes = {name: {"tiers": [{"backend": "gpu", "model": name}]} for name in ("echo_fp32", "either")}
    process = GatewayProcess({"backends": {"gpu": {"http": [triton.http_url]}}, "routes": routes})
    process.start()
    try:
        yield process
    finally:
        process.stop()


def call(gateway, method, path, document=None, headers=()):
    parts = urlsplit(gateway.http_url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    try:
        body = None if document is None else json.dumps(document)
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def row(name, values):
    return {"inputs": [{"name": name, "shape": [1, len(values)], "datatype": "FP32", "data": values}]}


def all_is_well(gateway):
    assert call(gateway, "GET", "/v2")[0] == 200
    assert call(gateway, "GET", "/v2/health/ready")[0] == 200
    assert call(gateway, "POST", "/v2/models/echo_fp32/infer", row("x", [1.0, 2.0]))[0] == 200


def test_a_head_that_triton_cannot_read_is_refused_with_its_limit(gateway):
    for _ in range(TIMES):
        status, _, text = call(gateway, "GET", "/v2", headers=[("X-Big", "a" * 20000)])
        assert status == 431
        assert "8000 bytes" in text
    assert call(gateway, "GET", "/v2", headers=[("X-Big", "a" * 7000)])[0] == 200
    all_is_well(gateway)


def test_a_method_that_triton_does_not_speak_harms_nobody_else(gateway):
    for _ in range(TIMES):
        assert call(gateway, "M-SEARCH", "/v2")[0] in (400, 405, 501, 502, 503)
    all_is_well(gateway)


def test_an_input_that_makes_a_model_raise_harms_nobody_else(gateway):
    for _ in range(TIMES):
        assert call(gateway, "POST", "/v2/models/either/infer", {"inputs": []})[0] >= 500
    assert call(gateway, "POST", "/v2/models/either/infer", row("a", [1.0]))[0] == 200
