"""grpc's asyncio server: its bounds, and what it serves on one address.

Rule of this file: it knows grpc's server and options and nothing of a message. What a caller can hold of us is bounded
here as far as grpc can: connections, calls, messages, metadata, pings.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc import aio
from grpc_reflection.v1alpha import reflection, reflection_pb2

from gateway.address import Address
from gateway.admission.auth import anonymous_name
from gateway.codec.grpc import address_of, details, status_of
from gateway.config_server import Server, Tls
from gateway.doors.certificates import Certificates
from gateway.doors.grpc import Context, GrpcDoor
from gateway.doors.grpc_health import NAME, Deliver, Health
from gateway.doors.grpc_sockets import Sockets
from gateway.doors.guests import Connections, Guests
from gateway.doors.listener import check_free
from gateway.doors.reception import Reception
from gateway.doors.rpcs import MESSAGE_BYTES_MAX, METHODS, Method
from gateway.problem import Refused
from tiers.backends.rpc import SERVICE

Behaviour = Callable[[object, Context], Awaitable[None]]

TURN_SECONDS: Final = 0.01
TURNING_SECONDS_MAX: Final = 1.0
"""How often connections that have nothing left to do are looked for, and for how long while streams are open, which
may not end by themselves: a caller whose connection is busy is turned away until then, and sent elsewhere after it."""

PAUSES: Final = 2
"""A pause is at least so many times as long as the look before it: the interpreter is the event loop's meanwhile."""

REFLECTION_SECONDS: Final = 60.0
CROWDED: Final = {
    "full": "as many calls are in work as server.grpc_calls_max allows",
    "address": "this address has as many calls in work as server.grpc_calls_per_address_max allows",
    "streams": "this address has as many streams open as server.grpc_open_streams_per_address_max allows",
}
"""What a caller is told for whom there is no place."""

PINGS_STRIKES_MAX: Final = 2
"""Pings that come too soon before a caller is cut, as many as Triton's default."""


class GrpcListener:
    """The server. Make it inside the event loop that it is to live in."""

    def __init__(self, server: Server, door: GrpcDoor, health: Health, reception: Reception, shared: bool) -> None:
        """``shared``: other workers listen on the same port."""
        self._health = health
        self._server = aio.server(options=_options(server, shared))
        self.service = _Service(server, door, health, reception)
        self._server.add_generic_rpc_handlers((self.service,))
        self._own: int | str | None = None  # where it listens: a port or a path; None: it never did

    async def start(self, address: Address, certificates: Certificates | None = None) -> str:
        """Listen, with TLS if there are certificates and it is a network; returns the address. Raises OSError."""
        host = f"[{address.host}]" if ":" in address.host else address.host
        target = f"unix:{address.path}" if address.path else f"{host}:{address.port}"
        if address.path:
            check_free(address.path)
        try:
            if certificates is None or address.path:
                port = self._server.add_insecure_port(target)
            else:
                port = self._server.add_secure_port(target, _credentials(certificates))
        except RuntimeError as error:  # grpc tells why on its own log only
            raise OSError("cannot be listened on, it may be in use") from error
        await self._server.start()
        self._own = address.path or port
        return target if address.path else f"{host}:{port}"

    async def stop(self, seconds: float) -> None:
        """Turn new calls away and end the connections that have nothing left to do; then send GOAWAY to the others,
        let their calls finish for so long, and end those that have not.

        In that order, for what grpc has received and not yet handed to us when it stops is CANCELLED, which no client
        tries again (see ``grpc_sockets.py``): it is stopped when nobody is there to whom that could happen, if that
        is soon.
        """
        self._health.close()
        loop, connections = asyncio.get_running_loop(), self.service.connections
        began = loop.time()
        connections.closing = True
        sockets, looked = Sockets(), began
        while self._own is not None:
            left = await asyncio.to_thread(sockets.end_idle, self._own, connections.busy())
            now = loop.time()
            if not left:
                break
            if now - began > min(seconds / 2, TURNING_SECONDS_MAX if self.service.streams.calls else seconds):
                break
            await asyncio.sleep(max(TURN_SECONDS, PAUSES * (now - looked)))
            looked = loop.time()
        await self._server.stop(max(0.0, seconds - (loop.time() - began)))


class _Service(grpc.GenericRpcHandler):
    """Every RPC by its path."""

    def __init__(self, server: Server, door: GrpcDoor, health: Health, reception: Reception) -> None:
        self.guests = Guests(server.grpc_calls_max, server.grpc_calls_per_address_max)
        self.streams = Guests(server.grpc_calls_max, server.grpc_open_streams_per_address_max)
        self.connections = Connections()
        self.refused: Counter[str] = Counter()
        """Calls for which there was no place, by the limit they were over."""
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            f"/{SERVICE}/{method.name}": self._bounded(_behaviour(door, method), streams=method.kind == "stream")
            for method in METHODS.values()
        }
        self._handlers[f"/{NAME}/Check"] = self._bounded(health.check, always=True)
        self._handlers[f"/{NAME}/Watch"] = self._bounded(health.watch, always=True)
        self._handlers[f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"] = self._bounded(
            _reflection(reception, door.deliver)
        )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)

    def _bounded(
        self, behaviour: Behaviour, always: bool = False, streams: bool = False
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """An RPC, of which one address may not have all places there are; ``always``: also while we are closing;
        ``streams``: it may be open for long, and takes a place among those too."""

        async def bounded(requests: object, context: Context) -> None:
            peer = context.peer()
            if self.connections.closing and not always:
                await self._refuse(context, grpc.StatusCode.UNAVAILABLE, "draining", "the gateway is draining")
            self.connections.began(peer)
            # The stubs take the callback's type for a protocol's that no function has.
            context.add_done_callback(lambda _: self.connections.ended(peer))  # type: ignore[arg-type]
            address = anonymous_name(address_of(peer) or "local")
            reason = self.guests.full(address)
            if streams and not reason and self.streams.full(address):
                reason = "streams"
            if reason:
                await self._refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, reason, CROWDED[reason])
            taken = (self.guests, self.streams) if streams else (self.guests,)
            for each in taken:
                each.enter(address)
            try:
                await behaviour(requests, context)
            finally:
                for each in taken:
                    each.leave(address)

        return grpc.stream_stream_rpc_method_handler(bounded)

    async def _refuse(self, context: Context, code: grpc.StatusCode, reason: str, words: str) -> NoReturn:
        self.refused[reason] += 1
        await context.abort(code, words)
        raise AssertionError("abort raises")


def _behaviour(door: GrpcDoor, method: Method) -> Behaviour:
    async def behaviour(_: object, context: Context) -> None:
        await door.handle(method, context)

    return behaviour


def _reflection(reception: Reception, deliver: Deliver) -> Behaviour:
    """The reflection service, for REFLECTION_SECONDS: who lists services is done in a moment."""
    servicer = reflection.aio.ReflectionServicer((SERVICE, NAME, reflection.SERVICE_NAME))

    async def questions(context: Context) -> AsyncIterator[Any]:
        while (message := await reception.later(context)) is not None:
            if len(message) > MESSAGE_BYTES_MAX:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the question is too large")
            yield reflection_pb2.ServerReflectionRequest.FromString(message)

    async def behaviour(_: object, context: Context) -> None:
        try:
            async with asyncio.timeout(REFLECTION_SECONDS):
                async for answer in servicer.ServerReflectionInfo(questions(context), context):
                    await deliver(context, answer.SerializeToString())
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"within {REFLECTION_SECONDS:g} s")
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no ServerReflectionRequest")
        except Refused as refused:
            await context.abort(status_of(refused.problem), details(refused.problem))

    return behaviour


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
    yield "grpc.max_receive_message_length", server.message_bytes_max
    yield "grpc.max_send_message_length", -1
    yield "grpc.max_metadata_size", int(server.header_bytes_max)
    yield "grpc.absolute_max_metadata_size", int(server.header_bytes_max)
    yield "grpc.max_concurrent_streams", server.grpc_streams_max
    yield "grpc.max_allowed_incoming_connections", server.connections_max
    yield "grpc.keepalive_time_ms", _milliseconds(server.grpc_keepalive)
    yield "grpc.keepalive_timeout_ms", _milliseconds(server.grpc_keepalive_timeout)
    # It is this one that ends who answers no ping; 60 s by grpc's default, whatever the one above says.
    yield "grpc.http2.ping_timeout_ms", _milliseconds(server.grpc_keepalive_timeout)
    # Of a connection without a call, one whose head never ends included: grpc has no other bound on that.
    yield "grpc.max_connection_idle_ms", _milliseconds(server.idle_timeout)
    yield "grpc.keepalive_permit_without_calls", 1
    yield "grpc.http2.min_ping_interval_without_data_ms", _milliseconds(server.grpc_ping_interval_min)
    yield "grpc.http2.max_ping_strikes", PINGS_STRIKES_MAX
    yield "grpc.server_handshake_timeout_ms", _milliseconds(server.head_timeout)


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
