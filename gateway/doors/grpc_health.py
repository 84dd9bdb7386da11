"""``grpc.health.v1``: whether the gateway is ready, for those who ask by gRPC's own service.

Rule of this file: it tells what readiness says, now (Check) and whenever that changes (Watch).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc import aio
from grpc_health.v1 import health_pb2

from tiers.backends.rpc import SERVICE

NAME: Final = "grpc.health.v1.Health"
SERVICES: Final = ("", SERVICE, NAME)
WATCH_SECONDS: Final = 0.25
"""How late a watcher may learn of a change."""

Context = aio.ServicerContext[Any, Any]


class Health:
    """The service's two methods. ``close`` ends what is watched, after its last word."""

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        self._is_ready = is_ready
        self._closing = asyncio.Event()

    def close(self) -> None:
        self._closing.set()

    async def check(self, message: bytes, context: Context) -> bytes:
        status = self._status(self._service(message))
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return self._told(status)

    async def watch(self, message: bytes, context: Context) -> None:
        service = self._service(message)
        before: int | None = None
        while True:
            closing = self._closing.is_set()
            status = self._status(service)
            if status != before:
                before = status
                await context.write(self._told(status))
            if closing:
                return
            try:
                async with asyncio.timeout(WATCH_SECONDS):
                    await self._closing.wait()
            except TimeoutError:
                continue

    def _service(self, message: bytes) -> str:
        try:
            return str(health_pb2.HealthCheckRequest.FromString(message).service)
        except DecodeError:
            return "?"

    def _status(self, service: str) -> int:
        response: Any = health_pb2.HealthCheckResponse
        if service not in SERVICES:
            return int(response.SERVICE_UNKNOWN)
        return int(response.SERVING if self._is_ready() else response.NOT_SERVING)

    def _told(self, status: int) -> bytes:
        written: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
        return written
