"""What one caller sends takes nothing away from the others: a real Triton, and requests that it fails on."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as tritonclient
import tritonclient.utils.shared_memory as regions

from examples.gatewayprocess import GatewayProcess
from examples.tritonserver import TritonServer

TIMES = 12
"""More than a breaker's consecutive failures and its smallest volume."""

BAD_PARAMETERS = [{"priority": -1}, {"sequence_id": 1.5}, {"sequence_start": "y"}, {"a\0b": 1}]

WORDS_OF_TRITON = [
    "model is not ready",
    "the stub process is unloading",
    "Stub process 'repeating_0' is not healthy.",
    "Request for unknown model: 'echo_fp32' is not found",
]


def ask(url: str, document: object = None, headers: dict[str, str] | None = None, method: str = "") -> tuple[int, Any]:
    """Status and document of one request; status 0 if there was no answer."""
    data = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, data=data, headers=headers or {}, method=method or None)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def row(value: float) -> list[dict[str, object]]:
    return [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, 7.0]}]


def text(said: str) -> list[dict[str, object]]:
    return [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [said]}]


@pytest.fixture(scope="module")
def gateway(triton: TritonServer) -> Iterator[GatewayProcess]:
    """One for all: what has shut a model or taken a replica away is noticed by whoever comes next, too."""
    models = ("echo_fp32", "either", "failing", "decoupled", "repeating")
    routes = {model.partition("_")[0]: {"tiers": [{"backend": "b", "model": model}]} for model in models}
    server = {"allow": ["shared_memory"], "passthrough": "b"}
    config = {"server": server, "backends": {"b": {"http": [triton.http_url]}}, "routes": routes}
    with GatewayProcess(config) as started:
        yield started


@pytest.mark.parametrize("parameters", BAD_PARAMETERS, ids=lambda each: next(iter(each)))
def test_parameters_that_triton_fails_on_are_the_senders_fault(
    parameters: dict[str, object], gateway: GatewayProcess, triton: TritonServer, counting: Callable[..., Any]
) -> None:
    url = f"{gateway.http_url}/v2/models/echo/infer"
    with counting(triton, "echo_fp32") as counted:
        for index in range(TIMES):
            status, body = ask(url, {"inputs": row(index), "parameters": parameters})
            assert status == 400, body
    assert (counted.requests, counted.failed) == (0, 0)
    assert ask(url, {"inputs": row(-1.0)})[0] == 200


@pytest.mark.parametrize(
    ("route", "bad", "good"),
    [
        ("either", [], [{"name": "a", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]),
        ("failing", row(-1.0), row(1.0)),
    ],
    ids=["raises", "answers an error"],
)
def test_an_input_that_a_model_fails_on_does_not_shut_the_model(
    route: str, bad: object, good: object, gateway: GatewayProcess
) -> None:
    url = f"{gateway.http_url}/v2/models/{route}/infer"
    for _ in range(TIMES):
        status, body = ask(url, {"inputs": bad})
        told = json.loads(body)
        assert (status, told["type"]) == (503, "urn:tailrace:problem:model-failed")
        assert "model.py" not in told["detail"]
    assert ask(url, {"inputs": good})[0] == 200
    assert gateway.metric("tailrace_replica_models_open") == 0


@pytest.mark.parametrize("mark", ["!", "?"], ids=["answers an error", "raises"])
@pytest.mark.parametrize("said", WORDS_OF_TRITON)
def test_words_of_triton_in_what_a_model_repeats_do_not_shut_it(mark: str, said: str, gateway: GatewayProcess) -> None:
    url = f"{gateway.http_url}/v2/models/repeating/infer"
    for _ in range(TIMES):
        status, body = ask(url, {"inputs": text(mark + said)})
        assert (status, json.loads(body)["type"]) == (503, "urn:tailrace:problem:model-failed")
    assert ask(url, {"inputs": text("well")})[0] == 200
    assert gateway.metric("tailrace_replica_models_open") == 0


@pytest.mark.parametrize("region", WORDS_OF_TRITON)
@pytest.mark.parametrize("into", [True, False], ids=["input", "output"])
def test_words_of_triton_as_a_regions_name_do_not_shut_a_model(
    into: bool, region: str, gateway: GatewayProcess
) -> None:
    url = f"{gateway.http_url}/v2/models/echo/infer"
    place = {"shared_memory_region": region, "shared_memory_byte_size": 8}
    x: dict[str, object] = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
    y = {"name": "y"} if into else {"name": "y", "parameters": place}
    x |= {"parameters": place} if into else {"data": [1.0, 2.0]}
    for _ in range(TIMES):
        status, body = ask(url, {"inputs": [x], "outputs": [y]})
        assert status in (400, 404), body
    assert ask(url, {"inputs": row(4.0)})[0] == 200
    assert gateway.metric("tailrace_replica_models_open") == 0


@pytest.mark.parametrize("bare", [False, True], ids=["routes", "bare upstream"])
def test_a_request_that_triton_cannot_read_does_not_take_the_replica_away(
    bare: bool, triton: TritonServer, gateway: GatewayProcess, gateway_factory: Callable[..., GatewayProcess]
) -> None:
    if bare:
        gateway = gateway_factory(None, ["--upstream", triton.http_url])
    for _ in range(TIMES):
        assert ask(f"{gateway.http_url}/v2", headers={"X-Fat": "x" * 9000})[0] == 431
        assert ask(f"{gateway.http_url}/v2/models/{'m' * 20_000}")[0] == 431
        assert ask(f"{gateway.http_url}/v2", method="M-SEARCH")[0] == 503
    assert ask(f"{gateway.http_url}/v2/health/ready")[0] == 200
    assert ask(f"{gateway.http_url}/v2")[0] == 200
    name = "echo_fp32" if bare else "echo"
    assert ask(f"{gateway.http_url}/v2/models/{name}/infer", {"inputs": row(3.0)})[0] == 200


def test_a_model_that_answers_in_pieces_says_so_and_stays_open(gateway: GatewayProcess) -> None:
    url = f"{gateway.http_url}/v2/models/decoupled"
    (fact,) = json.loads(ask(url)[1])["inputs"]
    value = {"name": fact["name"], "datatype": fact["datatype"], "shape": [1], "data": [1]}
    for _ in range(TIMES):
        status, body = ask(f"{url}/infer", {"inputs": [value]})
        assert status == 501, body


def test_a_classification_that_triton_dies_of_reaches_none(
    triton_factory: Callable[..., TritonServer],
    model_repository: Callable[..., Path],
    gateway_factory: Callable[..., GatewayProcess],
) -> None:
    repositories = (model_repository("echo_bytes", "two_outputs"),)
    servers = [triton_factory(repositories=repositories) for _ in range(2)]
    routes = {model: {"tiers": [{"backend": "b", "model": model}]} for model in ("echo_bytes", "two_outputs")}
    backends = {"b": {"http": [server.http_url for server in servers]}}
    gateway = gateway_factory({"backends": backends, "routes": routes})
    nothing = {"name": "x", "datatype": "FP32", "shape": [0, 1], "data": []}
    for model, fed, output in (("echo_bytes", text("a"), "echoed"), ("two_outputs", [nothing], "A")):
        asked = [{"name": output, "parameters": {"classification": 1}}]
        status, body = ask(f"{gateway.http_url}/v2/models/{model}/infer", {"inputs": fed, "outputs": asked})
        assert (status, json.loads(body)["reason"]) == (400, "classification")
    assert all(server.request("GET", "/v2/health/live")[0] == 200 for server in servers)


@pytest.mark.parametrize(("into", "out_of"), [(True, False), (False, True), (True, True)])
def test_tensors_in_shared_memory_on_a_route(into: bool, out_of: bool, gateway: GatewayProcess) -> None:
    client = tritonclient.InferenceServerClient(gateway.http_url.removeprefix("http://"))
    data, names = np.array([[3.0, 4.0]], np.float32), [f"{end}-{uuid.uuid4().hex[:8]}" for end in ("in", "out")]
    held = [regions.create_shared_memory_region(name, f"/{name}", data.nbytes) for name in names]
    try:
        for name in names:
            client.register_system_shared_memory(name, f"/{name}", data.nbytes)
        regions.set_shared_memory_region(held[0], [data])
        x, y = tritonclient.InferInput("x", [1, 2], "FP32"), tritonclient.InferRequestedOutput("y")
        if into:
            x.set_shared_memory(names[0], data.nbytes)
        else:
            x.set_data_from_numpy(data)
        if out_of:
            y.set_shared_memory(names[1], data.nbytes)
        answer = client.infer("echo", [x], outputs=[y])
        got = regions.get_contents_as_numpy(held[1], np.float32, [1, 2]) if out_of else answer.as_numpy("y")
        assert got.tolist() == data.tolist()
    finally:
        for name in names:
            client.unregister_system_shared_memory(name)
        for region in held:
            regions.destroy_shared_memory_region(region)
        client.close()
