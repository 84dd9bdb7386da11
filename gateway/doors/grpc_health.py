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

from gateway.codec.grpc import details, status_of
from gateway.doors.reception import Reception
from gateway.doors.rpcs import MESSAGE_BYTES_MAX
from gateway.problem import Refused
from tiers.backends.rpc import SERVICE

NAME: Final = "grpc.health.v1.Health"
SERVICES: Final = ("", SERVICE, NAME)
WATCH_SECONDS: Final = 0.25
"""How late a watcher may learn of a change."""

Context = aio.ServicerContext[Any, Any]


class Health:
    """The service's two methods. ``close`` ends what is watched, after its last word."""

    def __init__(self, is_ready: Callable[[], bool], reception: Reception, patience: float) -> None:
        """``patience``: seconds in which a call's message must have come."""
        self._is_ready = is_ready
        self._reception = reception
        self._patience = patience
        self._closing = asyncio.Event()

    def close(self) -> None:
        self._closing.set()

    async def check(self, _: object, context: Context) -> None:
        """As a stream of one message, so that the wait for it can be bounded (see ``grpc.py``)."""
        status = self._status(await self._service(context))
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        await context.write(self._told(status))

    async def watch(self, _: object, context: Context) -> None:
        service = await self._service(context)
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

    async def _service(self, context: Context) -> str:
        """The service that is asked about."""
        try:
            message = await self._reception.first(context, self._patience) or b""
            if len(message) > MESSAGE_BYTES_MAX:
                return "?"  # no service has such a name, and reading it takes time
            return str(health_pb2.HealthCheckRequest.FromString(message).service)
        except Refused as refused:
            await context.abort(status_of(refused.problem), details(refused.problem))
            raise
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
