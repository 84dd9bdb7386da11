"""Every door of a real gateway process before the real Triton: one answer, which is Triton's, and one entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton_http
from msgspec.structs import replace

from examples.gatewayprocess import GatewayProcess
from tests.doors.callers import ALL
from tests.doors.question import Ask, Doors


@pytest.fixture(scope="module", params=["http", "grpc", "both"])
def gateway(request: pytest.FixtureRequest, triton: Any) -> Iterator[GatewayProcess]:
    """By which protocols the gateway asks Triton."""
    spoken = {"http": [triton.http_url]}, {"grpc": [triton.grpc_address]}
    backend = {"http": spoken[0], "grpc": spoken[1], "both": spoken[0] | spoken[1]}[request.param]
    route = {"tiers": [{"backend": "gpu", "model": "echo_fp32"}], "cache": {"ttl": "1h"}}
    with GatewayProcess({"backends": {"gpu": backend}, "routes": {"r": route}}, ("--rpc", "127.0.0.1:0")) as process:
        yield process


async def test_a_miss_by_any_door_is_a_hit_by_every_other_and_the_answer_is_tritons(
    gateway: GatewayProcess, triton: Any, counting: Callable[..., Any]
) -> None:
    doors = Doors(gateway.http_address, gateway.grpc_address, gateway.rpc_address)
    callers = {name: door.make(doors) for name, door in ALL.items()}
    chance = np.random.default_rng(3)
    for first in ALL:
        values = chance.standard_normal((3, 5), np.float32)
        given = triton_http.InferInput("x", [3, 5], "FP32")
        given.set_data_from_numpy(values)
        direct = triton_http.InferenceServerClient(triton.http_address).infer("echo_fp32", [given]).as_numpy("y")
        asked = Ask(tuple(tuple(map(float, row)) for row in values))
        with counting(triton, "echo_fp32") as counted:
            found = [(await callers[first].ask(asked)), *[await callers[name].ask(asked) for name in ALL]]
            found.append(await callers[first].ask(replace(asked, cache_control="only-if-cached")))
        assert counted.requests == 1, first
        assert [each.cache for each in found] == ["miss", *["hit"] * (len(ALL) + 1)], first
        for each in found:
            np.testing.assert_array_equal(np.float32(each.values).reshape(3, 5), direct)
    for caller in callers.values():
        await caller.close()
