"""One caller for each door: the same question asked of any of them.

Rule of this file: a caller knows its wire and nothing of what is right. A new door is one more caller in ``ALL``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import grpc
import msgpack
from grpc import aio
from msgspec import Struct
from tritonclient.grpc import service_pb2 as pb

from tests.doors.question import (
    CLOSED,
    NUMBERS,
    SECONDS,
    UPSTREAM,
    Ask,
    Caller,
    Doors,
    Outcome,
    of_fields,
    quota,
    unpacked,
)

SERVICE: Final = "/inference.GRPCInferenceService"
MEDIA: Final = "application/msgpack"


# -- HTTP ------------------------------------------------------------------------------------------------


class Wire(Struct, frozen=True):
    """A question on the HTTP wire."""

    path: str
    body: bytes
    fields: tuple[str, ...] = ()


def _tensor(asked: Ask, data: object) -> dict[str, Any]:
    return {"name": asked.name, "shape": asked.shape, "datatype": asked.datatype, "data": data}


def _protocol(asked: Ask, *tensors: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {"inputs": list(tensors) if asked.rows else []}
    if asked.outputs:
        document["outputs"] = [{"name": name} for name in asked.outputs]
    if asked.parameters:
        document["parameters"] = dict(asked.parameters)
    return document


def _infer_path(asked: Ask) -> str:
    version = f"/versions/{asked.version}" if asked.version else ""
    return f"/v2/models/{asked.route}{version}/infer"


def as_json(asked: Ask) -> Wire:
    document = _protocol(asked, _tensor(asked, asked.values)) if asked.rows else _protocol(asked)
    return Wire(_infer_path(asked), json.dumps(document).encode())


def as_binary(asked: Ask) -> Wire:
    document = _protocol(asked)
    if asked.rows:
        tensor = _tensor(asked, None)
        del tensor["data"]
        document = _protocol(asked, {**tensor, "parameters": {"binary_data_size": len(asked.data)}})
    head = json.dumps(document).encode()
    field = f"Inference-Header-Content-Length: {len(head)}"
    return Wire(_infer_path(asked), head + (asked.data if asked.rows else b""), (field,))


def as_packed(asked: Ask) -> Wire:
    document = _protocol(asked, _tensor(asked, asked.data)) if asked.rows else _protocol(asked)
    return Wire(_infer_path(asked), msgpack.packb(document), (f"Content-Type: {MEDIA}",))


def _plain(asked: Ask) -> dict[str, Any]:
    tensor: object = asked.nested
    if asked.datatype != "FP32":
        tensor = {"datatype": asked.datatype, "data": asked.nested}
    document: dict[str, Any] = {"inputs": {asked.name: tensor} if asked.rows else {}}
    if asked.outputs:
        document["outputs"] = list(asked.outputs)
    if asked.parameters:
        document["parameters"] = dict(asked.parameters)
    return document


def as_plain(asked: Ask) -> Wire:
    version = f"/versions/{asked.version}" if asked.version else ""
    return Wire(f"/v1/predict/{asked.route}{version}", json.dumps(_plain(asked)).encode())


class HttpCaller:
    """A connection that is kept as long as the gateway keeps it. ``in_chunks``: which only the aiohttp lane reads."""

    def __init__(self, doors: Doors, form: Callable[[Ask], Wire], in_chunks: bool = False) -> None:
        self._address = doors.http.rsplit(":", 1)
        self._form, self._in_chunks = form, in_chunks
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, asked: Ask) -> Outcome:
        wire = self._form(asked)
        fields = [*wire.fields]
        if asked.key:
            fields.append(f"X-API-Key: {asked.key}")
        if asked.cache_control:
            fields.append(f"Cache-Control: {asked.cache_control}")
        try:
            async with asyncio.timeout(asked.seconds):
                status, told, body = await self._said("POST", wire.path, tuple(fields), wire.body)
        except (ConnectionError, asyncio.IncompleteReadError):
            await self.close()
            return Outcome(CLOSED)
        return _of_http(status, told, body)

    async def ready(self) -> bool:
        async with asyncio.timeout(SECONDS):
            status, _, _ = await self._said("GET", "/v2/health/ready", (), b"")
        return status == 200

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _said(
        self, method: str, path: str, fields: tuple[str, ...], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if self._reader is None or self._writer is None:
            host, port = self._address
            self._reader, self._writer = await asyncio.open_connection(host, int(port), limit=2**24)
        lines = [f"{method} {path} HTTP/1.1", "Host: h", *fields]
        if self._in_chunks and body:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            lines.append("Transfer-Encoding: chunked")
        else:
            lines.append(f"Content-Length: {len(body)}")
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        raw = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        told = dict(line.split(": ", 1) for line in raw.split("\r\n")[1:-2])
        told = {name.lower(): value for name, value in told.items()}
        document = await self._reader.readexactly(int(told["content-length"]))
        if told.get("connection") == "close":
            await self.close()
        return int(raw.split()[1]), told, document


def _of_http(status: int, told: Mapping[str, str], body: bytes) -> Outcome:
    packed = "msgpack" in told.get("content-type", "")
    length = told.get("inference-header-content-length")
    text = body if length is None else body[: int(length)]
    document = msgpack.unpackb(body) if packed else json.loads(text)
    if status != 200:
        slug = str(document.get("type", UPSTREAM)).rpartition(":")[2]
        assert slug == UPSTREAM or (status, document["status"]) == (NUMBERS[slug][0], status)
        return of_fields(told, problem=slug, detail=document["error"])
    outputs = document.get("outputs", {})
    if isinstance(outputs, dict):
        values = tuple(value for row in outputs["y"] for value in row)
    elif isinstance(data := outputs[0].get("data"), list):
        values = tuple(data)
    else:
        values = unpacked(data if data is not None else body[int(length or 0) :])
    return of_fields(told, values=values)


# -- gRPC ------------------------------------------------------------------------------------------------


class GrpcCaller:
    """A channel of its own. ``raw``: tensors as bytes; else as typed contents."""

    def __init__(self, doors: Doors, raw: bool) -> None:
        self._raw = raw
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_metadata_size", 2**16)]
        self._channel = aio.insecure_channel(doors.grpc, options=options)

    async def ask(self, asked: Ask) -> Outcome:
        metadata = []
        if asked.key:
            metadata.append(("x-api-key", asked.key))
        if asked.cache_control:
            metadata.append(("cache-control", asked.cache_control))
        call = self._channel.unary_unary(f"{SERVICE}/ModelInfer")(
            self._message(asked), timeout=asked.seconds, metadata=metadata
        )
        try:
            answer = pb.ModelInferResponse.FromString(await call)
        except aio.AioRpcError as error:
            return _of_status(error)
        values = unpacked(answer.raw_output_contents[0]) if answer.outputs else ()
        return of_fields(dict(await call.trailing_metadata()), values=values)

    async def ready(self) -> bool:
        call = self._channel.unary_unary(f"{SERVICE}/ServerReady")(b"", timeout=SECONDS)
        return bool(pb.ServerReadyResponse.FromString(await call).ready)

    async def close(self) -> None:
        await self._channel.close()

    def _message(self, asked: Ask) -> bytes:
        message = pb.ModelInferRequest(model_name=asked.route, model_version=asked.version)
        if asked.rows:
            tensor = message.inputs.add(name=asked.name, datatype=asked.datatype, shape=asked.shape)
            if self._raw:
                message.raw_input_contents.append(asked.data)
            else:
                contents = {"FP32": "fp32_contents", "FP64": "fp64_contents", "INT32": "int_contents"}
                getattr(tensor.contents, contents[asked.datatype]).extend(asked.values)
        for name in asked.outputs:
            message.outputs.add(name=name)
        for name, value in asked.parameters.items():
            kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
            setattr(message.parameters[name], kind, value)
        data: bytes = message.SerializeToString()
        return data


def _of_status(error: aio.AioRpcError) -> Outcome:
    told = dict(error.trailing_metadata())
    slug = told.get("tailrace-problem", UPSTREAM)
    if slug == UPSTREAM and error.code() is grpc.StatusCode.UNAVAILABLE:
        return Outcome(CLOSED)
    assert slug == UPSTREAM or error.code().name == NUMBERS[slug][1]
    return of_fields(told, problem=slug, detail=error.details())


# -- MessagePack-RPC ----------------------------------------------------------------------------------------


class RpcCaller:
    """A connection that is kept as long as the gateway keeps it. ``plain``: the method ``predict``."""

    def __init__(self, doors: Doors, plain: bool) -> None:
        self._where, self._plain = doors.rpc, plain
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, asked: Ask) -> Outcome:
        if self._plain:
            argument = _plain(asked)
        else:
            argument = _protocol(asked, _tensor(asked, asked.data)) if asked.rows else _protocol(asked)
        argument["model"] = asked.route
        for name, value in (("version", asked.version), ("auth", asked.key), ("cache_control", asked.cache_control)):
            if value:
                argument[name] = value
        try:
            async with asyncio.timeout(asked.seconds):
                error, result = await self._said("predict" if self._plain else "infer", argument)
        except ConnectionError:
            await self.close()
            return Outcome(CLOSED)
        return _of_map(error, result)

    async def ready(self) -> bool:
        async with asyncio.timeout(SECONDS):
            _, result = await self._said("health", {})
        return bool(result["ready"])

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _said(self, method: str, argument: dict[str, Any]) -> tuple[Any, Any]:
        if self._reader is None or self._writer is None:
            host, _, port = self._where.rpartition(":")
            self._reader, self._writer = await asyncio.open_connection(host, int(port))
        self._writer.write(msgpack.packb([0, 7, method, [argument]]))
        unpacker = msgpack.Unpacker()
        while data := await self._reader.read(2**16):
            unpacker.feed(data)
            for kind, msgid, error, result in unpacker:
                assert (kind, msgid) == (1, 7)
                return error, result
        raise ConnectionResetError


def _of_map(error: Any, result: Any) -> Outcome:
    document = error or result
    assert error is None or error["status"] == NUMBERS[error["type"].rpartition(":")[2]][0]
    told = document["provenance"]
    values: tuple[float, ...] = ()
    if error is None:
        outputs = document["outputs"]
        if isinstance(outputs, dict):
            values = tuple(value for row in outputs["y"] for value in row)
        else:
            values = unpacked(outputs[0]["data"])
    return Outcome(
        problem=error["type"].rpartition(":")[2] if error else "",
        values=values,
        cache=told["cache"],
        reason=told.get("reason", ""),
        tier=told.get("tier", ""),
        rows=told.get("rows", 0),
        escalated=told.get("escalated", 0),
        steps=tuple(told.get("steps", ())),
        degraded=told.get("degraded", False),
        aged="age" in told,
        stored=told.get("stored", False),
        brownout=told.get("brownout", 0),
        retry_after=document.get("retry_after"),
        quota=quota(document.get("ratelimit", ""), document.get("ratelimit_policy", "")),
        detail=error["error"] if error else "",
    )


# -- all of them --------------------------------------------------------------------------------------------


class Door(Struct, frozen=True):
    """A door. ``edge``: what ``server.edge`` is where it is the only one; ``passes``: whether what has no route goes
    to Triton, ``triton``: whether Triton understands it then; ``says_nan``: whether its wire has a way to say that a
    value is no number; ``plain``: whether values come without datatypes.
    """

    make: Callable[[Doors], Caller]
    edge: bool = True
    passes: bool = True
    triton: bool = True
    says_nan: bool = True
    plain: bool = False


ALL: Final[Mapping[str, Door]] = MappingProxyType(
    {
        "http-json": Door(lambda doors: HttpCaller(doors, as_json), says_nan=False),
        "http-binary": Door(lambda doors: HttpCaller(doors, as_binary)),
        "http-aiohttp": Door(lambda doors: HttpCaller(doors, as_binary, in_chunks=True), edge=False),
        "http-msgpack": Door(lambda doors: HttpCaller(doors, as_packed), triton=False),
        "predict-json": Door(lambda doors: HttpCaller(doors, as_plain), passes=False, says_nan=False, plain=True),
        "grpc-raw": Door(lambda doors: GrpcCaller(doors, raw=True)),
        "grpc-contents": Door(lambda doors: GrpcCaller(doors, raw=False)),
        "rpc-infer": Door(lambda doors: RpcCaller(doors, plain=False), passes=False),
        "rpc-predict": Door(lambda doors: RpcCaller(doors, plain=True), passes=False, plain=True),
    }
)
