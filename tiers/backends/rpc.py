"""A call of Triton's gRPC service, as bytes: what is asked, what comes back, and what a status means.

Rule of this file: values, and one table. What is in a message is not known here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from degrade.deadline import Deadline

if TYPE_CHECKING:
    import grpc

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
        "INVALID_ARGUMENT": 400,
        "FAILED_PRECONDITION": 400,
        "OUT_OF_RANGE": 400,
        "UNAUTHENTICATED": 401,
        "PERMISSION_DENIED": 403,
        "NOT_FOUND": 404,
        "ALREADY_EXISTS": 409,
        "ABORTED": 409,
        "RESOURCE_EXHAUSTED": 429,
        "CANCELLED": 499,
        "INTERNAL": 500,
        "UNKNOWN": 500,
        "DATA_LOSS": 500,
        "UNIMPLEMENTED": 501,
        "UNAVAILABLE": 503,
        "DEADLINE_EXCEEDED": 504,
    }
)
"""The HTTP status that Triton's other door gives for what this one answers with a status of gRPC, by that one's name:
grpc is not loaded for a table."""
