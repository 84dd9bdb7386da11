"""A gateway with every door open, in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import aiohttp

from gateway.app import Gateway
from gateway.sources import load
from tests.doors.callers import ALL
from tests.doors.question import Caller, Doors

LISTENERS: Final = {f"TAILRACE_SERVER__{name}": '"127.0.0.1:0"' for name in ("HTTP", "GRPC", "RPC", "ADMIN")}
SECONDS: Final = 30.0


class House:
    """A running gateway; ``admin`` is its admin port's URL."""

    def __init__(self, gateway: Gateway, http: str, admin: str) -> None:
        self.gateway, self.admin = gateway, admin
        self.doors = Doors(http.rpartition("/")[2], gateway.doors.grpc_address, gateway.doors.rpc_address)
        self._stack = AsyncExitStack()
        self._stopped = False

    def caller(self, name: str) -> Caller:
        """A client of its own for a door, closed at the end."""
        made = ALL[name].make(self.doors)
        self._stack.push_async_callback(made.close)
        return made

    async def purge(self, route: str) -> None:
        async with aiohttp.ClientSession() as session, session.post(f"{self.admin}/purge?route={route}") as answer:
            assert answer.status == 200

    async def stop(self) -> None:
        """Once: later calls do nothing."""
        if not self._stopped:
            self._stopped = True
            await self.gateway.stop()

    async def end(self) -> None:
        await self._stack.aclose()
        await self.stop()


@asynccontextmanager
async def opened(upstreams: Sequence[str], edge: bool, **overrides: str) -> AsyncIterator[House]:
    """A gateway before these replicas; ``overrides`` are its environment without the prefix."""
    environ = LISTENERS | {"TAILRACE_SERVER__DRAIN": "2s", "TAILRACE_SERVER__EDGE": str(edge).lower()}
    environ |= {f"TAILRACE_{name}": value for name, value in overrides.items()}
    gateway = Gateway(load(None, environ, list(upstreams)))
    house = House(gateway, *await gateway.start())
    try:
        yield house
    finally:
        await house.end()


async def until(true: Callable[[], bool]) -> None:
    """Let everyone, who all live in this loop, go on until it is so."""
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)
