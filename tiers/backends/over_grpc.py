"""What is asked in the words of Triton's HTTP service, asked over gRPC: for backends that are configured with nothing
else.

Rule of this file: a table from paths to RPCs and back from messages to documents; it sends nothing itself. What has
no counterpart (``generate``) is Rejected in words that say what would help.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

import msgspec
from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2

from degrade.ladder import Failure
from tiers.backends.answer import AnswerHead
from tiers.backends.call import Call, Reply
from tiers.backends.fields import Headers
from tiers.backends.plain import plain
from tiers.backends.relaying import Listener, Place
from tiers.backends.rpc import HTTP_STATUSES, Rpc, RpcRefused, RpcReply
from tiers.inference import InferRequest, Rejected, UpstreamError
from tiers.v2.coding import inflate
from tiers.v2.message import JSON_LENGTH_HEADER, Malformed
from tiers.v2.proto import encode_request
from tiers.v2.proto_response import decode_response
from tiers.v2.request import WireForm, decode_request
from tiers.v2.response import encode_response

Ask = Callable[[Rpc], Awaitable[RpcReply]]
_JSON: Final[Headers] = (("Content-Type", "application/json"),)
_MODEL: Final = r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?"
_INFER: Final = re.compile(_MODEL + "/infer")
_REGIONS: Final = r"/v2/(?P<kind>system|cuda)sharedmemory(?:/region/(?P<region>[^/]+))?"
_READS: Final = ("GET", "HEAD")
ASIDE_BYTES: Final = 256 * 1024
"""Larger messages, and compressed ones, are read and written on a thread: JSON of this size takes some 20 ms."""
INFLATED_BYTES_MAX: Final = 256 * 1024 * 1024
"""What a compressed body may come to: as much as a replica's answer may have."""

_Document = Mapping[str, Any]  # JSON


class _Asked(msgspec.Struct, frozen=True):
    """One path's RPC: which, its message, and how its answer is told."""

    rpc: str
    message: Message
    told: Callable[[Any], object]
    """The answer's message to a document; a bool is told as a status, None as an empty body."""


async def asked_over_grpc(call: Call, ask: Ask) -> Reply:
    """The answer to a call in HTTP's words. Raises UpstreamError, and Rejected for what has no counterpart."""
    path = unquote(call.target.partition("?")[0])
    body = call.body if isinstance(call.body, bytes) else b""
    try:
        found = _INFER.fullmatch(path)
        if found is not None and call.method == "POST":
            return await _infer(found["model"], found["version"] or "", call, body, ask)
        asked = _asked(call.method, path, body)
        reply = await ask(Rpc(asked.rpc, asked.message.SerializeToString()))
        answer: Any = getattr(service_pb2, f"{asked.rpc}Response").FromString(reply.message)
        told = asked.told(answer)
    except RpcRefused as refused:
        return _error(HTTP_STATUSES.get(refused.code.name, 500), refused.details)
    except Malformed as fault:
        return _error(fault.status, str(fault))
    except DecodeError as error:
        raise UpstreamError(Failure.BROKEN, f"the answer is no message: {error}", 200) from error
    if isinstance(told, bool):
        return Reply(200, (), b"") if told else _error(400, "Model version not ready")
    return Reply(200, _JSON if told is not None else (), b"" if told is None else msgspec.json.encode(told))


async def whole(body: bytes | AsyncIterable[bytes] | None, bytes_max: int) -> bytes | None:
    """A body as a whole. Raises Rejected for one of more than ``bytes_max`` bytes."""
    if body is None or isinstance(body, bytes):
        return body
    parts: list[bytes] = []
    size = 0
    async for part in body:
        size += len(part)
        if size > bytes_max:
            raise Rejected(413, f"it has more than the {bytes_max} bytes that a message of gRPC may have here")
        parts.append(part)
    return b"".join(parts)


class Carrier:
    """A call whose answer goes to a listener, as ``relaying.py`` has it for HTTP."""

    def __init__(self, ask: Callable[[], Awaitable[Reply]], listener: Listener, place: Place) -> None:
        self._ask = ask
        self._listener = listener
        self._place = place
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._carry())

    def resume(self) -> None:
        """The answer is a whole already."""

    def abort(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._place.left()

    async def _carry(self) -> None:
        try:
            reply = await self._ask()
        except UpstreamError as error:
            self._place.left(error)
            self._listener.fail(error)
            return
        except Rejected as rejected:
            reply = _error(rejected.status, str(rejected))
        except Exception:  # a bug of ours, which the event loop tells: neither place nor caller may wait for its end
            self._place.left()
            self._listener.fail(UpstreamError(Failure.BROKEN, "its answer could not be read: a bug of the gateway's"))
            raise
        lines = f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Unknown')}\r\n"
        lines += "".join([f"{name}: {value}\r\n" for name, value in reply.headers])
        head = AnswerHead(reply.status, reply.headers, len(reply.body), False, True, lines.encode("ascii"))
        self._place.answered()
        self._listener.answer(head, reply.body)


async def _infer(model: str, version: str, call: Call, body: bytes, ask: Ask) -> Reply:
    named = {name.lower(): value for name, value in call.headers}
    coding, length = named.get("content-encoding"), named.get(JSON_LENGTH_HEADER.lower())
    if length is not None and not re.fullmatch(r"[0-9]{1,19}", length):
        raise Malformed("header-length", f"{JSON_LENGTH_HEADER} must be a number of bytes")

    def read() -> tuple[InferRequest, WireForm, bytes]:
        plainly = inflate(body, coding, INFLATED_BYTES_MAX)
        request, form = decode_request(plainly, None if length is None else int(length), model, version)
        return request, form, encode_request(request)

    def write() -> Reply:
        parts, json_length = encode_response(response, form, request.id)
        headers: Headers = _JSON
        if json_length is not None:
            headers = (("Content-Type", "application/octet-stream"), (JSON_LENGTH_HEADER, str(json_length)))
        return Reply(200, headers, b"".join(parts))

    is_small = len(body) <= ASIDE_BYTES and coding is None
    request, form, message = read() if is_small else await asyncio.to_thread(read)
    reply = await ask(Rpc("ModelInfer", message))
    try:
        response = decode_response(reply.message, regions=request.regions)
    except Malformed as fault:
        raise UpstreamError(Failure.BROKEN, f"the answer is no inference: {fault}", 200) from fault
    return write() if len(reply.message) <= ASIDE_BYTES else await asyncio.to_thread(write)


def _asked(method: str, path: str, body: bytes) -> _Asked:
    """The RPC of a path. Raises Rejected, and Malformed for a body that is no JSON object."""
    reads = method in _READS
    if reads and path in ("/v2/health/live", "/v2/health/ready"):
        name = "ServerLive" if path.endswith("live") else "ServerReady"
        return _Asked(name, getattr(service_pb2, f"{name}Request")(), lambda answer: bool(answer.live)
                      if name == "ServerLive" else bool(answer.ready))  # fmt: skip
    if reads and path in ("/v2", "/v2/"):
        return _Asked("ServerMetadata", service_pb2.ServerMetadataRequest(), plain)
    if reads and path == "/v2/models/stats":
        return _Asked("ModelStatistics", service_pb2.ModelStatisticsRequest(), plain)
    for pattern, make in _PATHS:
        found = pattern.fullmatch(path)
        if found is not None:
            asked = make(found.groupdict(), None if reads else _document(body))
            if asked is not None:
                return asked
    what = f"{method} {path} has no counterpart in gRPC, which is all that this backend is configured with"
    raise Rejected(501, what)


def _about(rpc: str, told: Callable[[Any], object]) -> Callable[[_Document, _Document | None], _Asked | None]:
    def make(found: _Document, document: _Document | None) -> _Asked | None:
        if document is not None:
            return None
        request = getattr(service_pb2, f"{rpc}Request")
        return _Asked(rpc, request(name=found["model"], version=found["version"] or ""), told)

    return make


def _index(found: _Document, document: _Document | None) -> _Asked | None:
    if document is None:
        return None
    request = service_pb2.RepositoryIndexRequest(ready=bool(document.get("ready", False)))

    def told(answer: Any) -> object:
        return [{name: value for name, value in plain(model).items() if value} for model in answer.models]

    return _Asked("RepositoryIndex", request, told)


def _loading(found: _Document, document: _Document | None) -> _Asked | None:
    if document is None:
        return None
    rpc = "RepositoryModelLoad" if found["verb"] == "load" else "RepositoryModelUnload"
    request = getattr(service_pb2, f"{rpc}Request")(model_name=found["model"])
    for name, value in (document.get("parameters") or {}).items():
        entry = request.parameters[name]
        if isinstance(value, bool):
            entry.bool_param = value
        elif isinstance(value, int):
            entry.int64_param = value
        elif name.startswith("file:"):
            entry.bytes_param = _base64(value, name)
        else:
            entry.string_param = str(value)
    return _Asked(rpc, request, lambda _: None)


def _region(found: _Document, document: _Document | None) -> _Asked | None:
    kind, verb, region = found["kind"].capitalize(), found["verb"], found["region"] or ""
    rpc = f"{kind}SharedMemory{verb.capitalize()}"
    request = getattr(service_pb2, f"{rpc}Request")(name=region)
    if verb == "status":
        if document is not None:
            return None
        return _Asked(rpc, request, lambda answer: [plain(answer.regions[name]) for name in answer.regions])
    if document is None:
        return None
    if verb == "register":
        try:
            request.byte_size = document["byte_size"]
            if kind == "System":
                request.key, request.offset = document["key"], document.get("offset", 0)
            else:
                request.raw_handle = _base64(document["raw_handle"]["b64"], "raw_handle")
                request.device_id = document["device_id"]
        except (KeyError, TypeError, ValueError) as error:
            raise Malformed("member", f"the registration of a region lacks or spoils {error}") from error
    return _Asked(rpc, request, lambda _: None)


def _tracing(found: _Document, document: _Document | None) -> _Asked | None:
    request = service_pb2.TraceSettingRequest(model_name=found.get("model") or "")
    for name, value in (document or {}).items():
        entry = request.settings[name]  # there without a value: back to what is set for all
        if value is not None:
            entry.value.extend([str(each) for each in value] if isinstance(value, list) else [str(value)])

    def told(answer: Any) -> object:
        values = {name: list(answer.settings[name].value) for name in answer.settings}
        return {name: value if name == "trace_level" else value[0] for name, value in values.items() if value}

    return _Asked("TraceSetting", request, told)


def _logging(found: _Document, document: _Document | None) -> _Asked | None:
    request = service_pb2.LogSettingsRequest()
    for name, value in (document or {}).items():
        entry = request.settings[name]
        if isinstance(value, bool):
            entry.bool_param = value
        elif isinstance(value, int) and 0 <= value < 2**32:
            entry.uint32_param = value
        else:
            entry.string_param = str(value)

    def told(answer: Any) -> object:
        chosen = {name: answer.settings[name].WhichOneof("parameter_choice") for name in answer.settings}
        return {name: getattr(answer.settings[name], kind) for name, kind in chosen.items() if kind}

    return _Asked("LogSettings", request, told)


_PATHS: Final = (
    (re.compile(_MODEL), _about("ModelMetadata", plain)),
    (re.compile(_MODEL + "/ready"), _about("ModelReady", lambda answer: bool(answer.ready))),
    (re.compile(_MODEL + "/config"), _about("ModelConfig", lambda answer: plain(answer.config))),
    (re.compile(_MODEL + "/stats"), _about("ModelStatistics", plain)),
    (re.compile(r"/v2/repository/index"), _index),
    (re.compile(r"/v2/repository/models/(?P<model>[^/]+)/(?P<verb>load|unload)"), _loading),
    (re.compile(_REGIONS + "/(?P<verb>status|register|unregister)"), _region),
    (re.compile(r"/v2(?:/models/(?P<model>[^/]+))?/trace/setting"), _tracing),
    (re.compile(r"/v2/logging"), _logging),
)

_REASONS: Final = {200: "OK", 400: "Bad Request", 404: "Not Found", 409: "Conflict", 413: "Content Too Large",
                   415: "Unsupported Media Type", 429: "Too Many Requests", 500: "Internal Server Error",
                   501: "Not Implemented", 503: "Service Unavailable", 504: "Gateway Timeout"}  # fmt: skip


def _document(body: bytes) -> _Document:
    if not body.strip():
        return {}
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed("json", f"the body is no JSON object: {error}") from error


def _base64(value: object, name: str) -> bytes:
    try:
        return base64.b64decode(str(value), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Malformed("base64", f"{name} is not base64: {error}") from error


def _error(status: int, said: str) -> Reply:
    return Reply(status, _JSON, msgspec.json.encode({"error": said}))
