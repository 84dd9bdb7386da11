"""SIGTERM under load at every door at once: nobody who asks again elsewhere sees a failure, and the process ends in
time."""

from __future__ import annotations

import asyncio
import random
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.doors.patient import PatientGrpc, PatientHttp, PatientRpc

DRAIN_SECONDS = 5.0
SLACK_SECONDS = 3.0
"""Beyond it, for two cores that run Triton, two gateways and their callers."""
CALLERS = 4
"""Of each kind."""
ENOUGH = 60
"""Answers of each kind before the signal, and again after the end."""
SECONDS = 60.0
WORK_MS = 10
MODELS = ("echo", "echo", "echo", "work", "echo_fp32")
"""Hits and misses; work that takes its time; and, where the door has it, what passes through."""
KINDS = ("edge", "aiohttp", "grpc", "rpc")


class Load:
    """Callers of all kinds who never stop asking; ``answered`` counts the right answers of each."""

    def __init__(self, gateways: list[Any]) -> None:
        self.gateways = gateways
        self.answered: Counter[str] = Counter()
        self.stopping = False
        self.moved: Counter[str] = Counter()

    def next(self, chance: random.Random, models: tuple[str, ...]) -> tuple[str, float]:
        """A model and a number; half of the numbers come again."""
        return chance.choice(models), float(chance.randrange(chance.choice([40, 10**6])))

    async def http(self, kind: str, chance: random.Random) -> None:
        caller = PatientHttp([each.http_address for each in self.gateways], in_chunks=kind == "aiohttp")
        await caller.connect()
        while not self.stopping:
            model, number = self.next(chance, MODELS)
            tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [number, 7.0]}
            document: dict[str, Any] = {"inputs": [tensor]}
            if model == "work":
                document["parameters"] = {"sleep_ms": WORK_MS}
            assert await caller.infer(model, document) == [number, 7.0]
            self.answered[kind] += 1
        self.moved[kind] += caller.moved
        caller.close()

    async def grpc(self, chance: random.Random) -> None:
        caller = PatientGrpc([each.grpc_address for each in self.gateways])
        while not self.stopping:
            model, number = self.next(chance, MODELS)
            message = pb.ModelInferRequest(model_name=model)
            message.inputs.add(name="x", shape=[1, 2], datatype="FP32")
            message.raw_input_contents.append(struct.pack("<2f", number, 7))
            if model == "work":
                message.parameters["sleep_ms"].int64_param = WORK_MS
            assert await caller.infer(message) == struct.pack("<2f", number, 7)
            self.answered["grpc"] += 1
        await caller.close()

    async def rpc(self, chance: random.Random) -> None:
        caller = PatientRpc([each.rpc_address for each in self.gateways])
        await caller.connect()
        while not self.stopping:
            numbers, calls = {}, {}
            for msgid in range(chance.randrange(1, 30)):
                model, number = self.next(chance, MODELS[:4])
                data = struct.pack("<2f", number, 7)
                tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": data}
                asked: dict[str, Any] = {"model": model, "inputs": [tensor]}
                if model == "work":
                    asked["parameters"] = {"sleep_ms": WORK_MS}
                numbers[msgid], calls[msgid] = data, ("infer", asked)
            results = await caller.all_of(calls)
            assert {msgid: each["outputs"][0]["data"] for msgid, each in results.items()} == numbers
            self.answered["rpc"] += len(results)
        self.moved["rpc"] += caller.moved
        caller.close()

    def begin(self) -> list[asyncio.Task[None]]:
        callers = []
        for number in range(CALLERS):
            callers += [self.http(kind, random.Random(f"{kind} {number}")) for kind in ("edge", "aiohttp")]
            callers += [self.grpc(random.Random(f"grpc {number}")), self.rpc(random.Random(f"rpc {number}"))]
        return [asyncio.create_task(caller) for caller in callers]


@pytest.mark.parametrize("notice_seconds", [0.0, 0.5], ids=["at once", "with notice"])
async def test_sigterm_under_load_fails_nobody_at_any_door(
    gateway_factory: Callable[..., Any], triton: Any, notice_seconds: float
) -> None:
    config = {
        "server": {"drain": f"{DRAIN_SECONDS:g}s", "drain_notice": f"{notice_seconds:g}s"},
        "backends": {"b": {"http": [triton.http_url], "grpc": [triton.grpc_address]}},
        "routes": {
            "echo": {"tiers": [{"backend": "b", "model": "echo_fp32"}], "cache": {"ttl": "1h"}},
            "work": {"tiers": [{"backend": "b", "model": "slow"}]},
        },
    }
    leaving, staying = [gateway_factory(config, ("--rpc", "127.0.0.1:0")) for _ in range(2)]
    load = Load([leaving, staying])
    callers = load.begin()

    async def more() -> None:
        before = dict(load.answered)
        async with asyncio.timeout(SECONDS):
            while any(load.answered[kind] - before.get(kind, 0) < ENOUGH for kind in KINDS):
                ended = [caller for caller in callers if caller.done()]
                assert not ended, [caller.exception() for caller in ended]
                await asyncio.sleep(0.02)

    await more()
    began = time.monotonic()
    leaving.process.signal(signal.SIGTERM)
    assert await asyncio.to_thread(leaving.process.wait, notice_seconds + DRAIN_SECONDS + 2 * SLACK_SECONDS)
    assert time.monotonic() - began < notice_seconds + DRAIN_SECONDS + SLACK_SECONDS
    assert leaving.process.returncode == 0
    await more()
    load.stopping = True
    await asyncio.gather(*callers)
    assert {kind: load.moved[kind] for kind in ("edge", "aiohttp", "rpc")} == dict.fromkeys(
        ("edge", "aiohttp", "rpc"), CALLERS
    ), "each connection ended once"
    assert "Traceback" not in leaving.log()
    assert staying.metric("tailrace_refusals_total") == 0
