"""Clients that are slow in every way a door knows are cut at the limit that says so, and others never notice.

A lower bound is exact: nobody is cut before its time. The upper one is generous, for a machine that does other work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import hostile
from benchmarks.crowd import allow, await_gone, files_of, memory
from tests.doors.callers import ALL
from tests.doors.question import Ask, Doors

LIMITS = {
    "head_timeout": 2.0,
    "body_timeout": 3.0,
    "idle_timeout": 8.0,
    "write_timeout": 3.0,
    "grpc_keepalive": 2.0,
    "grpc_keepalive_timeout": 4.0,
}
EARLY = 0.85
"""grpc takes up to a tenth off its timers, so that callers who came together are not cut together. Its clock
stands still while it handles all that a poll has found: so an age counts from when the first of a crowd was opened."""
LATE_SECONDS = 30.0
BUFFERED = "8GiB"
"""More than all of them hold together: what they take is no reason to end anyone's message sooner."""
OPENING_MAX = 32
"""So many are opened at a time."""
IDLE = 2000
IDLE_BYTES_MAX = {"http": 16 * 1024, "grpc": 64 * 1024, "rpc": 16 * 1024}
"""What an idle connection may cost."""
EACH = 5
"""Clients of each manner, all at once."""


def config(triton: Any, **changes: str) -> dict[str, Any]:
    limits = {name: f"{seconds:g}s" for name, seconds in LIMITS.items()} | changes
    route = {"tiers": [{"backend": "b", "model": "echo_fp32"}], "cache": {"ttl": "1h"}}
    server: dict[str, Any] = {**limits, "grpc_ping_interval_min": "100ms", "buffered_bytes_max": BUFFERED}
    return {"server": server, "backends": {"b": {"http": [triton.http_url]}}, "routes": {"r": route}}


async def cut(address: str, manners: dict[str, hostile.Manner], each: int = EACH) -> list[str]:
    """All at once, ``each`` so many times; what was not cut when it should have been."""
    opening, began = asyncio.Semaphore(OPENING_MAX), time.monotonic()

    async def one(name: str, manner: hostile.Manner) -> str:
        limit = sum(LIMITS[key] for key in manner.limits)
        try:
            async with asyncio.timeout(limit + LATE_SECONDS):
                await hostile.until_cut(address, manner, opening)
        except TimeoutError:
            return f"{name}: not within {limit:g} s ({' + '.join(manner.limits)})"
        took = time.monotonic() - began
        return "" if took > limit * EARLY else f"{name}: after {took:.2f} s already, before {limit:g} s"

    found = await asyncio.gather(*(one(*item) for item in manners.items() for _ in range(each)))
    return [fault for fault in found if fault]


async def test_each_is_cut_at_its_limit_at_every_door_and_others_are_served(
    gateway_factory: Callable[..., Any], triton: Any
) -> None:
    gateway = gateway_factory(config(triton), ("--rpc", "127.0.0.1:0"))
    doors = Doors(gateway.http_address, gateway.grpc_address, gateway.rpc_address)
    slow = [
        asyncio.create_task(cut(doors.http, hostile.http("r"))),
        asyncio.create_task(cut(doors.grpc, hostile.grpc("r"))),
        asyncio.create_task(cut(doors.rpc, hostile.rpc("r"))),
    ]
    callers, answered = {name: door.make(doors) for name, door in ALL.items()}, 0
    while not all(each.done() for each in slow):
        for name, caller in callers.items():
            outcome = await caller.ask(Ask(((float(answered % 50), 1.0),)))
            assert (outcome.problem, outcome.values) == ("", (answered % 50, 1.0)), name
        answered += 1
    assert [await each for each in slow] == [[], [], []]
    assert answered > 5, "nobody waited for them to be cut"
    for caller in callers.values():
        await caller.close()
    assert "Traceback" not in gateway.log()


@pytest.mark.parametrize(("door", "manner"), [("http", "silent"), ("grpc", "answers no ping"), ("rpc", "silent")])
async def test_two_thousand_idle_connections_cost_little_are_cut_and_hold_up_nobody(
    gateway_factory: Callable[..., Any], triton: Any, door: str, manner: str
) -> None:
    allow(IDLE)
    gateway = gateway_factory(config(triton, head_timeout="1m"), ("--rpc", "127.0.0.1:0"))  # of another limit here
    doors = Doors(gateway.http_address, gateway.grpc_address, gateway.rpc_address)
    callers = [made.make(doors) for made in ALL.values()]
    for caller in callers:
        await caller.ask(Ask())  # what a first call takes is not the crowd's
    manners = {"http": hostile.http, "grpc": hostile.grpc, "rpc": hostile.rpc}[door]("r")
    pid = gateway.process.pid
    before, files, most, peak = memory(pid).resident, files_of(pid), 0, 0
    crowd = asyncio.create_task(cut(getattr(doors, door), {manner: manners[manner]}, IDLE))
    while not crowd.done():
        for caller in callers:
            assert (await caller.ask(Ask())).values == Ask().rows[0]
        most, peak = max(most, files_of(pid) - files), max(peak, memory(pid).resident - before)
    assert await crowd == []
    assert most >= IDLE / 4, "they were there together: all of them, but where the first are cut before the last come"
    assert peak < IDLE_BYTES_MAX[door] * most, f"{peak / most / 1024:.1f} KiB each"
    await_gone(pid, files)
    for caller in callers:
        await caller.close()


async def test_handshakes_that_do_not_end_are_cut(gateway_factory: Callable[..., Any], triton: Any, pem: Any) -> None:
    plain = config(triton)
    plain["server"]["tls"] = {"certificate": str(pem.certificate), "key": str(pem.key)}
    gateway = gateway_factory(plain)
    found = await asyncio.gather(
        *(cut(each, hostile.tls("r")) for each in (gateway.http_address, gateway.grpc_address))
    )
    assert found == [[], []]


@pytest.mark.parametrize("door", ["http", "grpc", "rpc"])
async def test_a_flood_of_opens_and_closes_stops_nobody(
    gateway_factory: Callable[..., Any], triton: Any, door: str
) -> None:
    gateway = gateway_factory(config(triton), ("--rpc", "127.0.0.1:0"))
    doors = Doors(gateway.http_address, gateway.grpc_address, gateway.rpc_address)
    host, _, port = getattr(doors, door).rpartition(":")
    flooding = True

    async def flood() -> int:
        opened = 0
        while flooding:
            _, writer = await asyncio.open_connection(host, int(port))
            writer.transport.abort()
            opened += 1
        return opened

    floods = [asyncio.create_task(flood()) for _ in range(8)]
    callers = [made.make(doors) for made in ALL.values()]
    for number in range(40):
        for caller in callers:
            assert (await caller.ask(Ask(((float(number), 1.0),)))).values == (number, 1.0)
    flooding = False
    assert sum(await asyncio.gather(*floods)) > 200
    for caller in callers:
        await caller.close()
