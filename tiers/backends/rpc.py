"""A call of Triton's gRPC service, as bytes: what is asked, what comes back, and what a status means.

Rule of this file: values, and one table. What is in a message is not known here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import MappingProxyType
from typing import Final, Protocol

import grpc
from msgspec import Struct

from degrade.deadline import Deadline

SERVICE: Final = "inference.GRPCInferenceService"

Pair = tuple[str, str | bytes]
Metadata = tuple[Pair, ...]


class Rpc(Struct, frozen=True):
    """One call: the method's name, its message (of a stream: none), and what goes with it."""

    method: str
    message: bytes = b""
    metadata: Metadata = ()

    @property
    def path(self) -> str:
        return f"/{SERVICE}/{self.method}"


class RpcReply(Struct, frozen=True):
    """A whole answer; ``metadata`` came before it, ``trailing`` after it."""

    message: bytes
    metadata: Metadata = ()
    trailing: Metadata = ()


class RpcRefused(Exception):
    """The server answered with another status than OK: its answer, in its words."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: Metadata = ()) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.trailing = trailing


class Conversation(Protocol):
    """A ModelStreamInfer under way. Raises RpcRefused and UpstreamError."""

    async def send(self, message: bytes) -> None: ...
    async def end(self) -> None: ...
    def answers(self) -> AsyncIterator[bytes]: ...
    def cancel(self) -> None: ...


class Speaker(Protocol):
    """A server that can be asked by RPC. Raises RpcRefused, and UpstreamError when it gives no answer."""

    @property
    def url(self) -> str: ...
    async def unary(self, rpc: Rpc, deadline: Deadline, now: float) -> RpcReply: ...
    def converse(self, rpc: Rpc, deadline: Deadline, now: float) -> Conversation: ...


HTTP_STATUSES: Final = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: 400,
        grpc.StatusCode.FAILED_PRECONDITION: 400,
        grpc.StatusCode.OUT_OF_RANGE: 400,
        grpc.StatusCode.UNAUTHENTICATED: 401,
        grpc.StatusCode.PERMISSION_DENIED: 403,
        grpc.StatusCode.NOT_FOUND: 404,
        grpc.StatusCode.ALREADY_EXISTS: 409,
        grpc.StatusCode.ABORTED: 409,
        grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
        grpc.StatusCode.CANCELLED: 499,
        grpc.StatusCode.INTERNAL: 500,
        grpc.StatusCode.UNKNOWN: 500,
        grpc.StatusCode.DATA_LOSS: 500,
        grpc.StatusCode.UNIMPLEMENTED: 501,
        grpc.StatusCode.UNAVAILABLE: 503,
        grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    }
)
"""The HTTP status that Triton's other door gives for what this one answers with a status of gRPC."""
