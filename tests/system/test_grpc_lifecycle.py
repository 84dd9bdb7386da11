"""The gRPC door's end: under load no call fails whose client tries again elsewhere, and workers share one port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from grpc import aio
from tritonclient.grpc import service_pb2 as pb

ROOT = Path(__file__).parents[2]
SERVICE = "/inference.GRPCInferenceService"

DRAIN_SECONDS = 5.0
CALLERS = 64
CHANNELS = 8
AGAIN = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


def rows(number: int) -> list[triton_grpc.InferInput]:
    x = triton_grpc.InferInput("x", [1, 2], "FP32")
    x.set_data_from_numpy(np.array([[number, 1]], np.float32))
    return [x]


@pytest.mark.parametrize(("policy", "notice"), [("round_robin", "500ms"), ("round_robin", "0s"), ("pick_first", "0s")])
def test_sigterm_under_load_fails_no_call(
    gateway_factory: Callable[..., Any], triton: Any, policy: str, notice: str
) -> None:
    config = {
        "server": {"drain": f"{DRAIN_SECONDS:g}s", "drain_notice": notice},
        "backends": {"b": {"http": [triton.http_url], "grpc": [triton.grpc_address]}},
        "routes": {"echo": {"tiers": [{"backend": "b", "model": "echo_fp32"}], "cache": {"ttl": "1h"}}},
    }
    leaving, staying = gateway_factory(config), gateway_factory(config)
    target = f"ipv4:{leaving.grpc_address},{staying.grpc_address}"
    told = json.dumps({**AGAIN, "loadBalancingConfig": [{policy: {}}]})
    options = [("grpc.service_config", told), ("grpc.enable_retries", 1), ("grpc.use_local_subchannel_pool", 1)]
    stopping, failures, answered = threading.Event(), [], []
    clients = [triton_grpc.InferenceServerClient(target, channel_args=options) for _ in range(CHANNELS)]

    def call(caller: int) -> None:
        number, client = 0, clients[caller % CHANNELS]
        while not stopping.is_set():
            number += 1
            model = ("echo", "echo_fp32", "slow")[number % 3]  # hits and misses, and what passes through
            named = {"parameters": {"sleep_ms": 10}} if model == "slow" else {}
            try:
                answer = client.infer(model, rows(number % 50), client_timeout=30, **named).as_numpy("y")
                assert answer.tolist() == [[number % 50, 1]]
                answered.append(caller)
            except Exception as error:
                failures.append(f"{error!r} {error}")

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        end = time.monotonic() + 30.0
        while len(answered) < 10 * CALLERS and time.monotonic() < end:
            time.sleep(0.05)
        began = time.monotonic()
        leaving.process.signal(signal.SIGTERM)
        assert leaving.process.wait(DRAIN_SECONDS + 5.0)
        took = time.monotonic() - began
        before = len(answered)
        while len(answered) < before + 5 * CALLERS and time.monotonic() < end + 30.0:
            time.sleep(0.05)
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
    assert failures == []
    assert len(answered) >= before + 5 * CALLERS
    assert took < DRAIN_SECONDS + 3.0
    assert leaving.process.returncode == 0
    assert "Traceback" not in leaving.log()


def test_workers_share_the_port(gateway_factory: Callable[..., Any], triton: Any) -> None:
    config = {
        "backends": {"b": {"grpc": [triton.grpc_address]}},
        "routes": {"echo": {"tiers": [{"backend": "b", "model": "echo_fp32"}]}},
    }
    gateway = gateway_factory(config, ("--workers", "2"))
    for number in range(16):
        options = [("grpc.use_local_subchannel_pool", 1)]
        with triton_grpc.InferenceServerClient(gateway.grpc_address, channel_args=options) as client:
            assert client.infer("echo", rows(number)).as_numpy("y")[0, 0] == number
    assert gateway.metric("tailrace_answers_total", route="echo") == 16


def test_without_a_door_nobody_listens(gateway_factory: Callable[..., Any], triton: Any) -> None:
    gateway = gateway_factory(None, ["--upstream", triton.http_url, "--grpc", "off"])
    assert gateway.grpc_address == ""
    assert "grpc=" not in gateway.log()


def test_grpc_is_loaded_only_where_it_is_used() -> None:
    loaded = "import sys, gateway.cli, gateway.app; print('grpc' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, cwd=ROOT, check=True)
    assert said.stdout.split() == ["False"]


def test_a_port_that_is_taken_is_named(gateway_factory: Callable[..., Any], triton: Any) -> None:
    first = gateway_factory(None, ["--upstream", triton.http_url])
    try:
        gateway_factory(None, ["--upstream", triton.http_url, "--grpc", first.grpc_address])
    except RuntimeError as failed:
        assert f"cannot listen: server.grpc {first.grpc_address}" in str(failed)  # noqa: PT017
        assert "add_port.cc" not in str(failed), "grpc says it too"  # noqa: PT017
    else:
        raise AssertionError("two gateways on one port")


def test_callers_that_leave_at_any_moment_leave_nothing(gateway_factory: Callable[..., Any], triton: Any) -> None:
    config = {
        "backends": {"b": {"http": [triton.http_url], "grpc": [triton.grpc_address]}},
        "routes": {"echo": {"tiers": [{"backend": "b", "model": "echo_fp32"}], "cache": {"ttl": "10ms"}}},
    }
    gateway = gateway_factory(config)
    asyncio.run(leaving(gateway.grpc_address))
    end = time.monotonic() + 20.0
    kept = ("tailrace_replica_in_flight", "tailrace_buffered_bytes", "tailrace_flights", "tailrace_waiters")
    while any(gateway.metric(name) for name in kept):
        assert time.monotonic() < end, {name: gateway.metric(name) for name in kept}
        time.sleep(0.05)
    assert "Traceback" not in gateway.log(), gateway.log()  # a bug of ours would be there
    # Of what passes through, Triton itself answers some with INTERNAL when their callers leave.
    assert gateway.metric("tailrace_responses_total", route="echo", status="500") == 0


async def leaving(address: str) -> None:
    """Calls and streams, most of which are given up somewhere on the way."""
    chance = random.Random(7)

    async def one(channel: aio.Channel) -> None:
        message = pb.ModelInferRequest(model_name=chance.choice(["echo", "slow", "echo_fp32", "nobody"]))
        message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        message.raw_input_contents.append(chance.randbytes(8))
        message.parameters["sleep_ms"].int64_param = 20
        data, timeout = message.SerializeToString(), chance.choice([0.002, 0.01, 0.03, 5.0])
        with contextlib.suppress(aio.AioRpcError, asyncio.CancelledError, asyncio.InvalidStateError, aio.InternalError):
            if chance.random() < 0.5:
                call = channel.unary_unary(f"{SERVICE}/ModelInfer")(data, timeout=timeout)
            else:
                call = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(timeout=timeout)
                for _ in range(chance.randrange(4)):
                    await call.write(data)
            await asyncio.sleep(chance.random() * 0.03)
            call.cancel()

    async with aio.insecure_channel(address) as channel:
        for _ in range(30):
            await asyncio.gather(*(one(channel) for _ in range(16)))


def test_check_asks_replicas_over_grpc_too(tmp_path: Path, triton: Any) -> None:
    def check(*addresses: str) -> tuple[int, str]:
        path = tmp_path / "tailrace.toml"
        first = '{ backend = "b", model = "echo_fp32", accept = { output = "y", at_least = 1 } }'
        tiers = f'tiers = [{first}, {{ backend = "b", model = "two_outputs" }}]'
        path.write_text(f"[backends.b]\ngrpc = {json.dumps(addresses)}\n[routes.r]\n{tiers}\n")
        command = [sys.executable, "-m", "gateway.cli", "check", "--config", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
        return done.returncode, done.stdout + done.stderr

    code, said = check(triton.grpc_address)
    assert (code, "model two_outputs cannot stand in for echo_fp32" in said) == (1, True)
    code, said = check(triton.grpc_address, "127.0.0.1:1")
    assert code == 1
    assert "backends.b: grpc://127.0.0.1:1: does not accept connections" in said
