"""MessagePack and MessagePack-RPC before the real Triton: the answers are Triton's, workers share the door, and a
crowd costs little."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import struct
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
import tritonclient.http as triton_http

from benchmarks.crowd import allow, memory
from tests.doors.patient import PatientRpc

SECONDS = 30.0
IDLE = 2000
IDLE_BYTES_MAX = 16 * 1024
"""What an idle connection may cost, that has asked or not; the kernel's own memory is not in it."""
ROUTES = {
    "echo": {"tiers": [{"backend": "b", "model": "echo_fp32"}], "cache": {"ttl": "10m"}},
    "words": {"tiers": [{"backend": "b", "model": "echo_bytes"}], "cache": {"ttl": "10m"}},
}
RPC = ("--rpc", "127.0.0.1:0")
MEDIA = "application/msgpack"


def config(triton: Any) -> dict[str, Any]:
    return {"backends": {"b": {"http": [triton.http_url]}}, "routes": ROUTES, "server": {"drain": "5s"}}


@pytest.fixture
def gateway(gateway_factory: Callable[..., Any], triton: Any) -> Any:
    return gateway_factory(config(triton), RPC)


def post(url: str, body: bytes, media: str) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": media})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        found: bytes = answer.read()
        return found


def row(number: float) -> dict[str, Any]:
    data = struct.pack("<2f", number, 7)
    return {"model": "echo", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": data}]}


async def test_strings_say_what_triton_says(triton: Any, gateway: Any) -> None:
    words = np.array(["ab", "é", "", "日本"], dtype=object)
    given = triton_http.InferInput("text", [4], "BYTES")
    given.set_data_from_numpy(words)
    direct = triton_http.InferenceServerClient(triton.http_address).infer("echo_bytes", [given]).as_numpy("echoed")
    url = f"{gateway.http_url}/v1/predict/words"
    plain = {"inputs": {"text": words.tolist()}}
    assert json.loads(post(url, json.dumps(plain).encode(), "application/json"))["outputs"]["echoed"] == [
        each.decode() for each in direct
    ]
    assert msgpack.unpackb(post(url, msgpack.packb(plain), MEDIA))["outputs"]["echoed"] == list(direct)
    tensor = {"name": "text", "shape": [4], "datatype": "BYTES", "data": words.tolist()}
    answer = post(f"{gateway.http_url}/v2/models/words/infer", msgpack.packb({"inputs": [tensor]}), MEDIA)
    data = msgpack.unpackb(answer)["outputs"][0]["data"]
    assert data == b"".join(struct.pack("<I", len(each)) + each for each in direct)


async def test_workers_share_the_door(gateway_factory: Callable[..., Any], triton: Any) -> None:
    gateway = gateway_factory(config(triton), (*RPC, "--workers", "2"))
    for number in range(40):
        peer = PatientRpc([gateway.rpc_address])
        await peer.connect()
        results = await peer.all_of({7: ("infer", row(number % 4)), 8: ("health", {})})
        assert results[7]["outputs"][0]["data"] == struct.pack("<2f", number % 4, 7)
        assert results[8] == {"live": True, "ready": True}
        peer.close()
    assert gateway.metric("tailrace_rpc_connections") <= 40
    misses = gateway.metric("tailrace_answers_total", route="echo", cache="miss")
    assert 4 < misses <= 8, "each worker has its own cache"


async def test_two_thousand_idle_connections_cost_little_and_hold_up_neither_others_nor_the_end(
    gateway_factory: Callable[..., Any], triton: Any
) -> None:
    allow(IDLE)
    gateway = gateway_factory(config(triton), RPC)
    host, _, port = gateway.rpc_address.rpartition(":")
    pid = gateway.process.pid
    peer = PatientRpc([gateway.rpc_address])
    await peer.connect()
    await peer.all_of({1: ("infer", row(1))})
    before, idle = memory(pid).resident, []
    for number in range(IDLE):
        idle.append(await asyncio.open_connection(host, int(port)))
        if number % 2:  # some have asked, as long-lived clients have
            idle[-1][1].write(msgpack.packb([0, number, "infer", [row(1)]]))
            assert await idle[-1][0].read(2**16)
    assert gateway.metric("tailrace_rpc_connections") == IDLE + 1
    assert memory(pid).resident - before < IDLE_BYTES_MAX * IDLE
    results = await peer.all_of({number: ("infer", row(number % 100)) for number in range(2000)})
    assert all(results[number]["outputs"][0]["data"] == struct.pack("<2f", number % 100, 7) for number in results)
    for _ in range(500):  # opens and closes
        _, writer = await asyncio.open_connection(host, int(port))
        writer.transport.abort()
    assert len(await peer.all_of({number: ("infer", row(number)) for number in range(100)})) == 100
    began = time.monotonic()
    gateway.process.signal(signal.SIGTERM)
    assert await asyncio.to_thread(gateway.process.wait, 15.0)
    assert gateway.process.returncode == 0
    assert time.monotonic() - began < 10.0
    for reader, writer in idle:
        with contextlib.suppress(ConnectionError):
            assert await reader.read(1) == b""
        writer.close()
