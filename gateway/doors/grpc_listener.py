"""grpc's asyncio server: its bounds, and what it serves on one address.

Rule of this file: it knows grpc's server and options and nothing of a message. What a caller can hold of us is bounded
here as far as grpc can: connections, calls, messages, metadata, pings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
from grpc import aio
from grpc_reflection.v1alpha import reflection

from gateway.config import Address, Server, Tls
from gateway.doors.certificates import Certificates
from gateway.doors.grpc import Context, GrpcDoor
from gateway.doors.grpc_health import NAME, Health
from gateway.doors.rpcs import METHODS, Method
from tiers.backends.rpc import SERVICE

PINGS_STRIKES_MAX: Final = 2
"""Pings that come too soon before a caller is cut, as many as Triton's default."""


class GrpcListener:
    """The server. Make it inside the event loop that it is to live in."""

    def __init__(self, server: Server, door: GrpcDoor, health: Health, shared: bool) -> None:
        """``shared``: other workers listen on the same port."""
        self.stopping = False
        self._health = health
        self._server = aio.server(options=_options(server, shared), maximum_concurrent_rpcs=server.grpc_calls_max)
        self._server.add_generic_rpc_handlers((_Service(door, health),))
        reflection.enable_server_reflection((SERVICE, NAME, reflection.SERVICE_NAME), self._server)

    async def start(self, address: Address, certificates: Certificates | None = None) -> str:
        """Listen, with TLS if there are certificates and it is a network; returns the address. Raises OSError."""
        host = f"[{address.host}]" if ":" in address.host else address.host
        target = f"unix:{address.path}" if address.path else f"{host}:{address.port}"
        try:
            if certificates is None or address.path:
                port = self._server.add_insecure_port(target)
            else:
                port = self._server.add_secure_port(target, _credentials(certificates))
        except RuntimeError as error:  # grpc tells why on its own log only
            raise OSError(f"{target}: cannot be listened on, it may be in use") from error
        await self._server.start()
        return target if address.path else f"{host}:{port}"

    async def stop(self, seconds: float) -> None:
        """Send GOAWAY, let calls in work finish for so long, and end the others."""
        self.stopping = True
        self._health.close()
        await self._server.stop(seconds)


class _Service(grpc.GenericRpcHandler):
    """Every RPC by its path."""

    def __init__(self, door: GrpcDoor, health: Health) -> None:
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            f"/{SERVICE}/{method.name}": _handler(door, method) for method in METHODS.values()
        }
        self._handlers[f"/{NAME}/Check"] = grpc.stream_stream_rpc_method_handler(health.check)
        self._handlers[f"/{NAME}/Watch"] = grpc.stream_stream_rpc_method_handler(health.watch)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)


def _handler(door: GrpcDoor, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
    async def behaviour(_: object, context: Context) -> None:
        await door.handle(method, context)

    return grpc.stream_stream_rpc_method_handler(behaviour)


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """What is shown in each handshake: the files that ``certificates`` has found good, read anew when it has taken up
    new ones. grpc asks on a thread of its own."""
    seen = certificates.renewals

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal seen
        if certificates.renewals == seen:
            return None
        seen = certificates.renewals
        return _shown(certificates.tls)

    must_show = certificates.tls.client_ca is not None
    # None means that nothing has changed, which the stubs do not know.
    return grpc.dynamic_ssl_server_credentials(_shown(certificates.tls), fetch, must_show)  # type: ignore[arg-type]


def _shown(tls: Tls) -> grpc.ServerCertificateConfiguration:
    key, chain = Path(tls.key).read_bytes(), Path(tls.certificate).read_bytes()
    authority = None if tls.client_ca is None else Path(tls.client_ca).read_bytes()
    return grpc.ssl_server_certificate_configuration([(key, chain)], authority)


def _options(server: Server, shared: bool) -> list[tuple[str, int]]:
    return list(_told(server, shared))


def _told(server: Server, shared: bool) -> Iterator[tuple[str, int]]:
    yield "grpc.so_reuseport", int(shared)
    yield "grpc.max_receive_message_length", int(server.grpc_message_bytes_max)
    yield "grpc.max_send_message_length", -1
    yield "grpc.max_metadata_size", int(server.header_bytes_max)
    yield "grpc.absolute_max_metadata_size", int(server.header_bytes_max)
    yield "grpc.max_concurrent_streams", server.grpc_streams_max
    yield "grpc.max_allowed_incoming_connections", server.connections_max
    yield "grpc.keepalive_time_ms", _milliseconds(server.grpc_keepalive)
    yield "grpc.keepalive_timeout_ms", _milliseconds(server.grpc_keepalive_timeout)
    yield "grpc.keepalive_permit_without_calls", 1
    yield "grpc.http2.min_ping_interval_without_data_ms", _milliseconds(server.grpc_ping_interval_min)
    yield "grpc.http2.max_ping_strikes", PINGS_STRIKES_MAX
    yield "grpc.server_handshake_timeout_ms", _milliseconds(server.head_timeout)


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
