"""Versions of one model that differ in what they take, as Triton completes each configuration by itself."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable

from examples.gatewayprocess import GatewayProcess
from examples.tritonserver import TritonServer


def post(url: str, width: int) -> tuple[int, str]:
    """The status for a row of this width, and which version answered or why none did."""
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, width], "data": [1.0] * width}]}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)["model_version"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]


def test_a_route_bound_to_a_version_takes_what_that_version_takes(
    triton_factory: Callable[..., TritonServer], gateway_factory: Callable[..., GatewayProcess]
) -> None:
    triton = triton_factory("versioned")
    tiers = {"old": {"version": "1"}, "new": {"version": "2"}, "any": {}}
    routes = {name: {"tiers": [{"backend": "b", "model": "versioned"} | more]} for name, more in tiers.items()}
    gateway = gateway_factory({"backends": {"b": {"http": [triton.http_url]}}, "routes": routes})
    models = f"{gateway.http_url}/v2/models"
    assert post(f"{models}/old/infer", 3) == (200, "1")
    assert post(f"{models}/old/infer", 4) == (400, "input 'x' must have shape [-1, 3], got [1, 4]")
    assert post(f"{models}/new/infer", 4) == (200, "2")
    assert post(f"{models}/any/infer", 4) == (200, "2")
    assert post(f"{models}/any/infer", 3)[0] == 400
    assert post(f"{models}/any/versions/1/infer", 3) == (200, "1")
    assert post(f"{models}/any/versions/9/infer", 4)[0] == 404
    for version, width in (("1", 3), ("2", 4)):
        with urllib.request.urlopen(f"{models}/any/versions/{version}", timeout=20) as answer:
            assert json.load(answer)["inputs"][0]["shape"] == [-1, width]
