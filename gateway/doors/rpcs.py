"""The RPCs of Triton's gRPC service, as data: which of them change a server, and where in a message a model is named.

Rule of this file: a table. An RPC that is not in it does not exist here, so that what a later Triton adds cannot
change a server before somebody has looked at it.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2

from gateway.config_server import Switch
from gateway.problem import Refused, malformed, too_large

MESSAGE_BYTES_MAX: Final = 64 * 1024
"""Of a message that is no inference and holds no files: reading a map takes 60 ms for each MiB of it, in which nobody
else is answered, and no question or setting needs more."""

Kind = Literal["live", "ready", "infer", "stream", "model-ready", "metadata", "of-tier", "through"]


class Method(msgspec.Struct, frozen=True):
    """One RPC. ``model`` and ``version`` are fields of its message. ``changes`` names what it changes of a server;
    with ``settings`` only if it has some, else it reads. ``loads``: it loads or unloads ``model``. ``carries``: its
    message may be of any size, for it may hold files."""

    name: str
    kind: Kind
    model: str = ""
    version: str = ""
    changes: Switch | None = None
    settings: bool = False
    loads: bool = False
    carries: bool = False

    def parse(self, message: bytes) -> Message:
        """The RPC's message. Raises Refused: 400, and 413 for one that is larger than any question needs to be."""
        if len(message) > MESSAGE_BYTES_MAX and not self.carries:
            detail = f"A {self.name}Request of {len(message)} bytes is larger than {MESSAGE_BYTES_MAX}."
            raise Refused(too_large(detail, MESSAGE_BYTES_MAX))
        try:
            request: Message = getattr(service_pb2, f"{self.name}Request").FromString(message)
        except DecodeError as error:
            raise Refused(malformed(f"The message is no {self.name}Request: {error}.", "protobuf")) from error
        return request

    def change(self, request: Message) -> Switch | None:
        """What this message would change."""
        return None if self.settings and not getattr(request, "settings", None) else self.changes


_ALL: Final = (
    Method("ServerLive", "live"),
    Method("ServerReady", "ready"),
    Method("ServerMetadata", "through"),
    Method("ModelReady", "model-ready", "name", "version"),
    Method("ModelMetadata", "metadata", "name", "version"),
    Method("ModelConfig", "of-tier", "name", "version"),
    Method("ModelStatistics", "of-tier", "name", "version"),
    Method("ModelInfer", "infer"),
    Method("ModelStreamInfer", "stream"),
    Method("RepositoryIndex", "through"),
    Method("RepositoryModelLoad", "through", "model_name", changes="repository", loads=True, carries=True),
    Method("RepositoryModelUnload", "through", "model_name", changes="repository", loads=True),
    Method("SystemSharedMemoryStatus", "through"),
    Method("SystemSharedMemoryRegister", "through", changes="shared_memory"),
    Method("SystemSharedMemoryUnregister", "through", changes="shared_memory"),
    Method("CudaSharedMemoryStatus", "through"),
    Method("CudaSharedMemoryRegister", "through", changes="shared_memory"),
    Method("CudaSharedMemoryUnregister", "through", changes="shared_memory"),
    Method("TraceSetting", "of-tier", "model_name", changes="trace", settings=True),
    Method("LogSettings", "through", changes="logging", settings=True),
)

METHODS: Final = {method.name: method for method in _ALL}
