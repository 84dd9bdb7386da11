"""Workers that are killed by what they have in work: real processes, and a model server of the test's that knows which
of them asked it, and kills that one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import struct
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp

from examples.gatewayprocess import GatewayProcess
from tests.doors.callers import ALL
from tests.doors.house import until
from tests.doors.question import CLOSED, Ask, Doors, Outcome
from tests.gateway.conftest import EchoTriton

ROUTE = {"r": {"tiers": [{"backend": "b", "model": "m"}], "cache": {"ttl": "1h"}, "timeout": "60s"}}
DEADLY = struct.pack("<f", 666.0)
BESIDE = struct.pack("<f", 555.0)
CALLERS = 16
SECONDS = 60.0


def pids(gateway: GatewayProcess) -> list[int]:
    with urllib.request.urlopen(f"{gateway.admin_url}/status", timeout=10.0) as answer:
        return [each["pid"] for each in json.load(answer)["workers"] if each is not None]


def owner(port: int, candidates: Sequence[int]) -> int:
    """Which of these processes has the socket that is bound to this port of the loopback."""
    local = f"0100007F:{port:04X}"
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    sockets = {f"socket:[{fields[9]}]" for fields in lines if fields[1] == local}
    for pid in candidates:
        for each in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.readlink(each) in sockets:
                    return pid
            except FileNotFoundError:  # closed meanwhile
                continue
    raise AssertionError(f"nobody of {candidates} has port {port}")


@asynccontextmanager
async def two_workers(make: Callable[..., GatewayProcess], upstream: EchoTriton) -> AsyncIterator[GatewayProcess]:
    config = {"backends": {"b": {"http": [upstream.url]}}, "routes": ROUTE, "log": {"format": "json"}}
    yield await asyncio.to_thread(make, config, ("--workers", "2"))


async def ask(url: str, number: float) -> tuple[int, dict[str, object]]:
    """One request on a connection of its own: its status, or 0 if the connection was lost."""
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [number, 2]}]}
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/v2/models/r/infer", json=body) as answer,
        ):
            return answer.status, await answer.json(content_type=None)
    except aiohttp.ClientError:
        return 0, {}


async def insist(url: str, number: float) -> list[int]:
    """Ask until there is an answer, whatever it says: all statuses."""
    found = []
    async with asyncio.timeout(SECONDS):
        while not found or not found[-1]:
            found.append((await ask(url, number))[0])
            await asyncio.sleep(0.02)
    return found


async def test_the_third_of_a_deadly_request_is_refused_and_what_was_beside_it_is_not(
    gateway_factory: Callable[..., GatewayProcess], triton_echo: EchoTriton
) -> None:
    async with two_workers(gateway_factory, triton_echo) as gateway:
        running = pids(gateway)
        killed: list[int] = []
        free = asyncio.Event()

        async def before(body: bytes, port: int) -> None:
            if BESIDE in body:
                await free.wait()
            if DEADLY in body:
                victim = owner(port, running)
                killed.append(victim)
                os.kill(victim, signal.SIGKILL)

        triton_echo.before = before
        for death in (1, 2):
            free.clear()
            wanted = triton_echo.asked + 2  # one by each worker
            beside = [asyncio.create_task(insist(gateway.http_url, 555.0)) for _ in range(CALLERS)]
            await until(partial(has_been_asked, triton_echo, wanted))
            running[:] = await asyncio.to_thread(pids, gateway)
            while len(killed) < death:
                status, _ = await ask(gateway.http_url, 666.0)
                assert status == 0
            free.set()
            found = await asyncio.gather(*beside)
            assert {status for statuses in found for status in statuses} <= {0, 200}
            await two_run(gateway, killed)
            await asyncio.to_thread(purge, gateway)

        refused = [await ask(gateway.http_url, 666.0) for _ in range(CALLERS)]
        assert {status for status, _ in refused} == {422}
        digest = refused[0][1]["digest"]
        assert f'"digest": "{digest}"' in gateway.log()
        assert len(killed) == 2
        lost = [json.loads(line) for line in gateway.log().splitlines() if '"requests lost"' in line]
        assert len(lost) == 2
        assert all(each["requests"] > 1 for each in lost), "nothing was in work beside it"
        assert [(await ask(gateway.http_url, number))[0] for number in (555.0, 7.0)] == [200, 200]
        told = await asyncio.to_thread(gateway.metrics)
        assert told["tailrace_deadly_requests"] == 1
        assert told['tailrace_refusals_total{problem="deadly",route="r"}'] == CALLERS
        assert told["tailrace_worker_restarts_total"] == 2


def has_been_asked(upstream: EchoTriton, times: int) -> bool:
    return upstream.asked >= times


async def two_run(gateway: GatewayProcess, gone: Sequence[int]) -> None:
    async with asyncio.timeout(SECONDS):
        while len(now := await asyncio.to_thread(pids, gateway)) < 2 or set(gone) & set(now):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)


def purge(gateway: GatewayProcess) -> None:
    request = urllib.request.Request(f"{gateway.admin_url}/purge?all", method="POST")
    with urllib.request.urlopen(request, timeout=10.0) as answer:
        assert answer.status == 200


async def test_a_worker_that_hangs_is_ended_and_says_where(
    gateway_factory: Callable[..., GatewayProcess], triton_echo: EchoTriton
) -> None:
    """All of it stands still (it can say nothing), or its event loop does (it says where)."""
    config = {
        "backends": {"b": {"http": [triton_echo.url]}},
        "routes": ROUTE,
        "server": {"hang_timeout": "1s"},
        "log": {"format": "json"},
        "chaos": {"enabled": True},
    }
    gateway = await asyncio.to_thread(gateway_factory, config, ("--workers", "2"))
    stopped, stalled = await asyncio.to_thread(pids, gateway)
    os.kill(stopped, signal.SIGSTOP)
    fields = {"Content-Type": "application/json"}
    stall = urllib.request.Request(f"{gateway.admin_url}/chaos?worker=1", b'{"stall": 10}', fields, method="POST")
    with contextlib.suppress(TimeoutError, urllib.error.HTTPError):  # it may never answer
        await asyncio.to_thread(urllib.request.urlopen, stall, None, 3.0)
    await two_run(gateway, [stopped, stalled])
    log = gateway.log()
    hung = {json.loads(line)["pid"] for line in log.splitlines() if '"worker hangs"' in line}
    assert {stopped, stalled} <= hung  # and on a busy machine one that had no processor for a second
    assert "(most recent call first)" in log
    assert "Fatal Python error" not in log, "where cores are kept, an abort would leave all that callers sent"
    assert (await insist(gateway.http_url, 7.0))[-1] == 200


async def test_a_crash_costs_a_worker_what_it_had_in_work_and_nobody_else_anything(
    gateway_factory: Callable[..., GatewayProcess], triton_echo: EchoTriton
) -> None:
    """Callers without end, each trying again what a lost connection took from it; one worker is killed among them."""
    numbers: Iterator[int] = iter(range(10**9))
    seen: list[tuple[int, str]] = []
    over = asyncio.Event()

    async def call(door: str, doors: Doors) -> None:
        caller = ALL[door].make(doors)
        while not over.is_set():
            asked = Ask(rows=((float(next(numbers)), 1.0),))
            turns = 0
            outcome = Outcome(CLOSED)
            while outcome.problem == CLOSED:
                turns += 1
                outcome = await caller.ask(asked)
                if outcome.problem == CLOSED:
                    await caller.close()
                    await asyncio.sleep(0.01)
                    caller = ALL[door].make(doors)
            assert outcome.problem or outcome.values == (2 * asked.values[0], 2.0)
            seen.append((turns, outcome.problem))
        await caller.close()

    async with two_workers(gateway_factory, triton_echo) as gateway:
        doors = Doors(gateway.http_address, gateway.grpc_address, gateway.rpc_address)
        callers = [asyncio.create_task(call(door, doors)) for door in ("http-json", "grpc-raw") * (CALLERS // 2)]
        await until(lambda: len(seen) > 10 * CALLERS)
        victim = (await asyncio.to_thread(pids, gateway))[0]
        os.kill(victim, signal.SIGKILL)
        await two_run(gateway, [victim])
        count = len(seen)
        await until(lambda: len(seen) > count + 10 * CALLERS)
        over.set()
        await asyncio.gather(*callers)
    assert {problem for _, problem in seen} == {""}
    assert 0 < sum(turns > 1 for turns, _ in seen) <= CALLERS
