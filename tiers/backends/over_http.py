"""A replica that is configured with HTTP alone, asked by RPC: for what the gRPC door passes through.

Rule of this file: a table from RPCs to paths and back from documents to messages. What HTTP cannot say, streams of
several answers, is refused as UNIMPLEMENTED in words that say what would help.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Protocol
from urllib.parse import quote

import grpc
import msgspec
from google.protobuf import json_format
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2

from degrade.deadline import Deadline
from degrade.ladder import Failure
from tiers.backends.call import Call, Reply, json_length_of
from tiers.backends.rpc import HTTP_STATUSES, Conversation, Metadata, Rpc, RpcRefused, RpcReply
from tiers.inference import InferRequest, Rejected, UpstreamError
from tiers.v2.message import JSON_LENGTH_HEADER, Malformed
from tiers.v2.proto import RequestReader, Sketch, identified, parse
from tiers.v2.proto_response import encode_response, stream_error, streamed
from tiers.v2.request import encode_request
from tiers.v2.response import decode_response

_CODES: Final = {status: grpc.StatusCode[name] for name, status in reversed(list(HTTP_STATUSES.items()))} | {
    413: grpc.StatusCode.RESOURCE_EXHAUSTED
}
"""Of several codes with one status the first in that table."""
_NO_STREAM: Final = "; a stream of several answers needs this backend's gRPC address (backends.NAME.grpc)"
_PENDING_MAX: Final = 16
ASIDE_BYTES: Final = 256 * 1024
"""Larger messages are read on a thread, one at a time: elements one by one take a tenth of a second for some millions
of them, and many times their bytes in memory."""
_OF_MESSAGES: Final = ("content-", "inference-", "accept", "transfer-", "proxy-", "if-")
_OF_CONNECTIONS: Final = frozenset({"host", "connection", "keep-alive", "te", "trailer", "upgrade", "expect", "range"})
_DOORS: Final = ("HTTP end point", "ModelInfer RPC")
"""What Triton calls the door that a decoupled model was asked by."""


class Exchanging(Protocol):
    """A replica of HTTP."""

    @property
    def url(self) -> str: ...
    async def exchange(self, call: Call, deadline: Deadline, now: float) -> Reply: ...


class _Saying(msgspec.Struct, frozen=True):
    """How one RPC is said in HTTP: its call, and its answer's document as a message."""

    call: Callable[[Any], Call]
    told: Callable[[Reply], Message]


class SpeaksHttp:
    """Asks one replica by HTTP what is asked by RPC."""

    def __init__(self, replica: Exchanging) -> None:
        self._replica = replica
        self._reader = RequestReader()
        self._aside = asyncio.Lock()
        self.url = replica.url

    async def unary(self, rpc: Rpc, deadline: Deadline, now: float) -> RpcReply:
        """Raises RpcRefused with what the server says, and UpstreamError."""
        try:
            if rpc.method == "ModelInfer":
                return RpcReply(await self._infer(rpc, deadline, now))
            saying = _SAYINGS[rpc.method]
            request = parse(getattr(service_pb2, f"{rpc.method}Request"), rpc.message)
            call = msgspec.structs.replace(saying.call(request), headers=_text(rpc.metadata))
            reply = await self._replica.exchange(call, deadline, now)
            if rpc.method in _STATES:
                return RpcReply(_state(rpc.method, reply.status == 200))
            return RpcReply(saying.told(_good(reply)).SerializeToString())
        except Malformed as fault:
            raise RpcRefused(grpc.StatusCode.INVALID_ARGUMENT, str(fault)) from fault
        except Rejected as rejected:
            code = _CODES.get(rejected.status, grpc.StatusCode.INVALID_ARGUMENT)
            raise RpcRefused(code, str(rejected)) from rejected
        except (json_format.ParseError, msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise UpstreamError(Failure.BROKEN, f"{self.url} answered with nonsense: {error}", 200) from error

    def converse(self, rpc: Rpc, deadline: Deadline, now: float) -> Conversation:
        """A stream, request by request, each with its one answer."""
        return _OneByOne(lambda message: self.unary(Rpc("ModelInfer", message, rpc.metadata), deadline, now))

    async def _infer(self, rpc: Rpc, deadline: Deadline, now: float) -> bytes:
        if len(rpc.message) <= ASIDE_BYTES:
            request, body, length = _translated(self._reader, rpc.message)
        else:
            async with self._aside:  # a reader of its own: ours may be in use meanwhile
                request, body, length = await asyncio.to_thread(_translated, RequestReader(), rpc.message)
        framing = (("Content-Type", "application/octet-stream"), (JSON_LENGTH_HEADER, str(length)))
        call = Call("POST", _path(request.model, request.version) + "/infer", (*_text(rpc.metadata), *framing), body)
        try:
            reply = _good(await self._replica.exchange(call, deadline, now))
        except RpcRefused as refused:
            raise RpcRefused(refused.code, refused.details.replace(*_DOORS)) from refused
        try:
            response = decode_response(reply.body, json_length_of(reply.headers), regions=request.regions)
        except (Malformed, ValueError) as fault:
            raise UpstreamError(Failure.BROKEN, f"{self.url} answered what is no inference: {fault}", 200) from fault
        return identified(encode_response(response), request.id)


def _translated(reader: RequestReader, message: bytes) -> tuple[InferRequest, bytes, int | None]:
    """A request, as a body of HTTP and the length of that one's JSON part. Raises Malformed."""
    request = reader.decode(Sketch(message))
    parts, length = encode_request(request)
    return request, b"".join(parts), length


class _OneByOne:
    """A stream whose requests are answered in their order, one at a time."""

    def __init__(self, ask: Callable[[bytes], Any]) -> None:
        self._ask = ask
        self._asked: asyncio.Queue[bytes | None] = asyncio.Queue(_PENDING_MAX)

    async def send(self, message: bytes) -> None:
        await self._asked.put(message)

    async def end(self) -> None:
        await self._asked.put(None)

    async def answers(self) -> AsyncIterator[bytes]:
        while (message := await self._asked.get()) is not None:
            identifier = Sketch(message).id
            try:
                reply: RpcReply = await self._ask(message)
            except RpcRefused as refused:
                if refused.code is grpc.StatusCode.UNIMPLEMENTED:
                    raise RpcRefused(refused.code, refused.details + _NO_STREAM) from refused
                yield stream_error(refused.details, identifier)
            else:
                yield streamed(reply.message, "")

    def cancel(self) -> None:
        """Whoever reads the answers is gone, and with it what was asked."""


def _good(reply: Reply) -> Reply:
    """The reply, if it is a good one. Raises RpcRefused with what it says otherwise."""
    if reply.status == 200:
        return reply
    try:
        said = msgspec.json.decode(reply.body, type=dict[str, Any]).get("error")
    except (msgspec.DecodeError, UnicodeDecodeError):
        said = None
    text = said if isinstance(said, str) else reply.body[:500].decode("utf-8", "replace") or f"status {reply.status}"
    raise RpcRefused(_CODES.get(reply.status, grpc.StatusCode.UNKNOWN), text)


def _text(metadata: Metadata) -> tuple[tuple[str, str], ...]:
    """Metadata as header fields; what is binary has no place there, and what would say how a body is to be read or
    answered in HTTP is not the caller's to say."""
    return tuple(
        (name, value)
        for name, value in metadata
        if isinstance(value, str) and not name.startswith(_OF_MESSAGES) and name not in _OF_CONNECTIONS
    )


def _path(model: str, version: str = "") -> str:
    """A model's path. Raises RpcRefused for names that are no segment of one: no model can have them."""
    if not all(map(_is_segment, (model, version or "1"))):
        known = f"'{model}'" + (f" version {version}" if version else "")
        raise RpcRefused(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: {known} is not found")
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _is_segment(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\\" not in name and "\0" not in name


def _of_model(ending: str) -> Callable[[Any], Call]:
    return lambda asked: Call("GET", _path(asked.name, asked.version) + ending)


def _json(asked: str, document: object) -> Call:
    return Call("POST", asked, (), msgspec.json.encode(document))


def _document(reply: Reply) -> dict[str, Any]:
    return msgspec.json.decode(reply.body, type=dict[str, Any])


def _message(kind: str) -> Callable[[Reply], Message]:
    """The document as the members of a message."""

    def told(reply: Reply) -> Message:
        found: Message = getattr(service_pb2, kind)()
        return json_format.ParseDict(_document(reply), found, ignore_unknown_fields=True)

    return told


def _config(reply: Reply) -> Message:
    found = service_pb2.ModelConfigResponse()
    json_format.ParseDict(_document(reply), found.config, ignore_unknown_fields=True)
    return found  # type: ignore[no-any-return]  # the stubs have no types


def _statistics(asked: Any) -> Call:
    return Call("GET", _path(asked.name, asked.version) + "/stats" if asked.name else "/v2/models/stats")


def _index(reply: Reply) -> Message:
    found: Message = service_pb2.RepositoryIndexResponse()
    return json_format.ParseDict({"models": msgspec.json.decode(reply.body)}, found, ignore_unknown_fields=True)


def _loading(verb: str) -> Callable[[Any], Call]:
    def call(asked: Any) -> Call:
        told: dict[str, object] = {}
        for name, entry in asked.parameters.items():
            value = getattr(entry, entry.WhichOneof("parameter_choice") or "string_param")
            told[name] = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        if not _is_segment(asked.model_name):
            said = f"failed to {verb} '{asked.model_name}', failed to poll from model repository"
            raise RpcRefused(grpc.StatusCode.INTERNAL, said)
        return _json(f"/v2/repository/models/{quote(asked.model_name, safe='')}/{verb}", {"parameters": told})

    return call


def _regions(kind: str) -> str:
    return f"/v2/{kind}sharedmemory"


def _of_region(kind: str, asked: Any, verb: str) -> str:
    if asked.name and not _is_segment(asked.name):
        raise RpcRefused(grpc.StatusCode.NOT_FOUND, f"Unable to find {kind} shared memory region: '{asked.name}'")
    return _regions(kind) + (f"/region/{quote(asked.name, safe='')}" if asked.name else "") + f"/{verb}"


def _status(kind: str) -> _Saying:
    def told(reply: Reply) -> Message:
        found: Any = getattr(service_pb2, f"{kind.capitalize()}SharedMemoryStatusResponse")()
        for region in msgspec.json.decode(reply.body, type=list[dict[str, Any]]):
            json_format.ParseDict(region, found.regions[region["name"]], ignore_unknown_fields=True)
        return found  # type: ignore[no-any-return]

    return _Saying(lambda asked: Call("GET", _of_region(kind, asked, "status")), told)


def _register(asked: Any) -> Call:
    document = {"key": asked.key, "offset": asked.offset, "byte_size": asked.byte_size}
    return _json(_of_region("system", asked, "register"), document)


def _register_cuda(asked: Any) -> Call:
    handle = {"b64": base64.b64encode(asked.raw_handle).decode()}
    document = {"raw_handle": handle, "device_id": asked.device_id, "byte_size": asked.byte_size}
    return _json(_of_region("cuda", asked, "register"), document)


def _trace(asked: Any) -> Call:
    path = (_path(asked.model_name) if asked.model_name else "/v2") + "/trace/setting"
    if not asked.settings:
        return Call("GET", path)
    values = {name: list(asked.settings[name].value) for name in asked.settings}
    return _json(path, {name: _setting(name, value) for name, value in values.items()})


def _setting(name: str, value: list[str]) -> object:
    return (value if name == "trace_level" else value[0]) if value else None


def _traced(reply: Reply) -> Message:
    found: Any = service_pb2.TraceSettingResponse()
    for name, value in _document(reply).items():
        found.settings[name].value.extend(value if isinstance(value, list) else [value])
    return found  # type: ignore[no-any-return]


def _log(asked: Any) -> Call:
    if not asked.settings:
        return Call("GET", "/v2/logging")
    chosen = {name: asked.settings[name].WhichOneof("parameter_choice") for name in asked.settings}
    return _json("/v2/logging", {name: getattr(asked.settings[name], kind) for name, kind in chosen.items() if kind})


def _logged(reply: Reply) -> Message:
    found: Any = service_pb2.LogSettingsResponse()
    for name, value in _document(reply).items():
        kind = {bool: "bool_param", int: "uint32_param"}.get(type(value), "string_param")
        setattr(found.settings[name], kind, value)
    return found  # type: ignore[no-any-return]


def _nothing(kind: str) -> Callable[[Reply], Message]:
    return lambda _: getattr(service_pb2, kind)()


_STATES: Final = {"ServerLive": "live", "ServerReady": "ready", "ModelReady": "ready"}
"""RPCs that HTTP answers with its status alone."""


def _state(method: str, good: bool) -> bytes:
    written: bytes = getattr(service_pb2, f"{method}Response")(**{_STATES[method]: good}).SerializeToString()
    return written


_SAYINGS: Final = {
    "ServerLive": _Saying(lambda _: Call("GET", "/v2/health/live"), _nothing("ServerLiveResponse")),
    "ServerReady": _Saying(lambda _: Call("GET", "/v2/health/ready"), _nothing("ServerReadyResponse")),
    "ModelReady": _Saying(_of_model("/ready"), _nothing("ModelReadyResponse")),
    "ServerMetadata": _Saying(lambda _: Call("GET", "/v2"), _message("ServerMetadataResponse")),
    "ModelMetadata": _Saying(_of_model(""), _message("ModelMetadataResponse")),
    "ModelConfig": _Saying(_of_model("/config"), _config),
    "ModelStatistics": _Saying(_statistics, _message("ModelStatisticsResponse")),
    "RepositoryIndex": _Saying(lambda asked: _json("/v2/repository/index", {"ready": asked.ready}), _index),
    "RepositoryModelLoad": _Saying(_loading("load"), _nothing("RepositoryModelLoadResponse")),
    "RepositoryModelUnload": _Saying(_loading("unload"), _nothing("RepositoryModelUnloadResponse")),
    "SystemSharedMemoryStatus": _status("system"),
    "SystemSharedMemoryRegister": _Saying(_register, _nothing("SystemSharedMemoryRegisterResponse")),
    "SystemSharedMemoryUnregister": _Saying(
        lambda asked: _json(_of_region("system", asked, "unregister"), {}),
        _nothing("SystemSharedMemoryUnregisterResponse"),
    ),
    "CudaSharedMemoryStatus": _status("cuda"),
    "CudaSharedMemoryRegister": _Saying(_register_cuda, _nothing("CudaSharedMemoryRegisterResponse")),
    "CudaSharedMemoryUnregister": _Saying(
        lambda asked: _json(_of_region("cuda", asked, "unregister"), {}),
        _nothing("CudaSharedMemoryUnregisterResponse"),
    ),
    "TraceSetting": _Saying(_trace, _traced),
    "LogSettings": _Saying(_log, _logged),
}
