"""Sequences: what a stateful model answers through the gateway is what it answers itself, and its state is never
lost to another replica in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from examples.gatewayprocess import GatewayProcess
from examples.tritonserver import TritonEnvironment, TritonOptions, TritonServer
from tests.conftest import settled

MODELS = Path(__file__).parents[1] / "models"
SEQUENCES = 12
STEPS = 6


def step(client: Any, model: str, sequence: int | str, number: int, *, binary: bool = True) -> int:
    """One request of a sequence: its ``number``-th value, from 0 on."""
    x = triton_http.InferInput("x", [1, 1], "INT32")
    x.set_data_from_numpy(np.array([[number + 1]], np.int32), binary_data=binary)
    answer = client.infer(
        model, [x], sequence_id=sequence, sequence_start=number == 0, sequence_end=number == STEPS - 1
    )
    return int(answer.as_numpy("sum").flat[0])


def sums(address: str, model: str, sequence: int, binary: bool = True) -> list[int]:
    """What a whole sequence is told, each request on a connection of its own: nothing keeps it on a replica but us."""
    told = []
    for number in range(STEPS):
        client = triton_http.InferenceServerClient(address)
        try:
            told.append(step(client, model, sequence, number, binary=binary))
        finally:
            client.close()
    return told


EXPECTED = [sum(range(1, number + 2)) for number in range(STEPS)]


@pytest.fixture(scope="module")
def pair(triton_environment: TritonEnvironment) -> Iterator[tuple[TritonServer, TritonServer]]:
    """Two servers of the same stateful model."""
    with ExitStack() as stack:
        options = TritonOptions(repositories=(MODELS,), load_models=("summing",))
        first, second = (stack.enter_context(TritonServer(options, triton_environment)) for _ in range(2))
        yield first, second


@pytest.fixture(params=["bare", "routed", "bare on the aiohttp lane"])
def gateway(
    request: pytest.FixtureRequest, pair: tuple[TritonServer, TritonServer], gateway_factory: Callable[..., Any]
) -> GatewayProcess:
    urls = [each.http_url for each in pair]
    if request.param == "routed":
        route = {"tiers": [{"backend": "gpu", "model": "summing"}], "cache": {"ttl": "1h"}}
        return gateway_factory({"backends": {"gpu": {"http": urls}}, "routes": {"summing": route}})
    arguments = [part for url in urls for part in ("--upstream", url)]
    environ = {"TAILRACE_SERVER__EDGE": "false"} if "aiohttp" in request.param else {}
    return gateway_factory(None, arguments, environ)


def test_sequences_are_told_what_the_model_tells_and_stay_where_their_state_is(
    pair: tuple[TritonServer, TritonServer], gateway: GatewayProcess
) -> None:
    assert sums(pair[0].http_url.removeprefix("http://"), "summing", 1000) == EXPECTED
    before = [settled(each, "summing").requests for each in pair]
    with ThreadPoolExecutor(SEQUENCES) as pool:
        told = list(
            pool.map(
                lambda number: sums(gateway.http_address, "summing", number + 1, binary=bool(number % 2)),
                range(SEQUENCES),
            )
        )
    assert told == [EXPECTED] * SEQUENCES
    asked = [settled(each, "summing").requests - was for each, was in zip(pair, before, strict=True)]
    assert sum(asked) == SEQUENCES * STEPS, "no request of a sequence is answered twice, or from a cache"
    assert min(asked) > 0, "sequences are spread"
    assert all(number % STEPS == 0 for number in asked), "each as a whole"


def test_a_sequence_whose_replica_dies_gets_an_error_and_no_new_sequence(
    pair: tuple[TritonServer, TritonServer], gateway: GatewayProcess
) -> None:
    client, lost = triton_http.InferenceServerClient(gateway.http_address), pair[0]
    try:
        before = settled(lost, "summing").requests
        sequences = list(range(1, SEQUENCES + 1))
        for sequence in sequences:
            assert step(client, "summing", sequence, 0) == 1
        there = settled(lost, "summing").requests - before
        lost.kill()
        errors = 0
        for sequence in sequences:
            try:
                assert step(client, "summing", sequence, 1) == EXPECTED[1], "an answer is that of its own state"
            except InferenceServerException:
                errors += 1
        assert errors == there > 0
        fresh = step(client, "summing", 77, 0)
        assert fresh == 1, "new sequences begin where there is a server"
    finally:
        client.close()
        lost.start()
