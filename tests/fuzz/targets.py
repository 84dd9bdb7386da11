"""What is fuzzed: for each codec its seeds, a strategy, and what must hold for any bytes whatever.

Rule of this file: a target takes bytes and returns a word for what came of them; anything but a good message or a clean
refusal is an exception, and so a finding. A new codec is a ``Target`` in ``TARGETS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import random
import runpy
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
from hypothesis import strategies as st
from msgspec.structs import replace
from tritonclient.grpc import service_pb2 as pb

from cache.digest import request_digest
from gateway.app import Gateway
from gateway.codec import dialect as dialects
from gateway.codec import grpc, http
from gateway.codec.dialect import Asked, Dialect, Told
from gateway.codec.http import BodyLimits
from gateway.codec.rpc import FrameFault, Frames, begun, call_of, error, with_members
from gateway.doors.methods import Methods, opened
from gateway.problem import Refused
from gateway.sources import load
from tests.fuzz import protobuf
from tiers.facts import ModelFacts, TensorFact
from tiers.inference import InferRequest, InferResponse, Parameters, Provenance, Tensor
from tiers.v2.forms import RequestForms
from tiers.v2.message import Limits, Malformed
from tiers.v2.proto import RequestReader, decode_request, encode_request, renamed
from tiers.v2.proto_response import ResponseReader, decode_response, renamed_in_stream, streamed
from tiers.v2.request import WireForm

ROOT = Path(__file__).resolve().parents[1]
CORPUS = Path(__file__).parent / "corpus"
DETAIL_MAX = 1100
MESSAGE = Limits(json_bytes_max=32 * 1024)
LIMITS = BodyLimits(bytes_max=64 * 1024, message=MESSAGE, forms=RequestForms(MESSAGE))
FACTS = ModelFacts(
    name="m",
    versions=("1",),
    inputs=(
        TensorFact("x", "FP32", (-1, 4)),
        TensorFact("ids", "INT64", (-1,)),
        TensorFact("words", "BYTES", (-1, -1)),
        TensorFact("one", "FP16", ()),
        TensorFact("brain", "BF16", (-1,)),
        TensorFact("flag", "BOOL", (-1,)),
    ),
    outputs=(TensorFact("y", "FP32", (-1, 4)),),
    max_batch=0,
    sequence=False,
    decoupled=False,
)


@dataclass(frozen=True)
class Target:
    """One codec. ``run`` gets bytes and chance, and returns a word. ``trees`` are messages as values, which ``write``
    makes bytes of."""

    seeds: Sequence[bytes]
    trees: Sequence[Any]
    write: Callable[[Any], bytes]
    strategy: st.SearchStrategy[bytes]
    run: Callable[[bytes, random.Random], str]


def corpus(codec: str) -> list[bytes]:
    """Inputs that were findings once."""
    folder = CORPUS / codec
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def _clean(refused: Refused) -> str:
    """A refusal must be one that can be sent in every form."""
    problem = refused.problem
    assert problem.status in (400, 401, 404, 406, 413, 415, 503), problem
    assert len(problem.document()["detail"]) <= DETAIL_MAX
    assert json.loads(problem.body())["error"]
    assert msgpack.unpackb(error(1, {**problem.document()}))[2]["error"]
    return f"refused {problem.extras.get('reason', problem.slug)}"


def _well(request: InferRequest, dialect: Dialect) -> None:
    """A request that was read is whole: it has a key, and an answer of its tensors can be written in every form."""
    key = request_digest(
        route="r", tenant="", version=request.version, inputs=request.inputs, parameters=request.parameters,
        outputs=[(each.name, each.parameters) for each in request.outputs],
    )  # fmt: skip
    assert len(key) == 16
    response = InferResponse("m", "1", tuple(each for each in request.inputs if not each.in_shared_memory))
    for form in (dialect, Dialect(answers="application/msgpack"), Dialect(plain=True, answers="application/msgpack")):
        told = Told(response, Provenance(), WireForm(binary_all=True), request.id)
        try:
            parts, _ = dialects.encode(form, told)
        except Refused as refused:
            _clean(refused)
            continue
        if form.answers and not form.plain:
            again, _ = dialects.decode(_as_inputs(b"".join(parts)), form_of(packed=True), Asked("m"), LIMITS)
            assert [(each.name, each.shape, bytes(each.data)) for each in again.inputs] == [
                (each.name, each.shape, bytes(each.data)) for each in response.outputs
            ]


def _as_inputs(answer: bytes) -> bytes:
    document = msgpack.unpackb(answer, strict_map_key=False)
    outputs = [{name: each[name] for name in ("name", "datatype", "shape", "data")} for each in document["outputs"]]
    body: bytes = msgpack.packb({"inputs": outputs})
    return body


def form_of(packed: bool, plain: bool = False, called: bool = False) -> Dialect:
    return Dialect(plain, packed, "application/msgpack" if packed else "", called=called)


def _decoded(data: bytes, dialect: Dialect, json_length: str | None = None) -> str:
    asked = Asked("m", "", json_length, FACTS)
    try:
        request, _ = dialects.decode(data, dialect, asked, LIMITS)
    except Refused as refused:
        return _clean(refused)
    if sum(len(each.data) for each in request.inputs) < LIMITS.bytes_max // 2:
        _well(request, dialect)
    return "well"


def _either(data: bytes, packed: bool, json_length: str | None = None) -> str:
    """The word of the shape that fits better."""
    words = [_decoded(data, form_of(packed, plain), json_length) for plain in (False, True)]
    return "well" if "well" in words else words[0]


# -- MessagePack ----------------------------------------------------------------------------------

ROW = struct.pack("<4f", 1, 2, 3, 4)
NUMPY = {b"nd": True, b"type": ">f4", b"kind": b"", b"shape": [1, 4], b"data": ROW}


def _packed_seeds() -> Iterator[bytes]:
    x = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROW}
    words = {"name": "words", "shape": [1, 2], "datatype": "BYTES", "data": [["a", b"bc"]]}
    half = {"name": "one", "shape": [1], "datatype": "FP16", "data": [1.5]}
    region = {"name": "x", "shape": [4], "datatype": "FP32", "parameters": {"shared_memory_region": "r"}}
    asked = {"id": "7", "parameters": {"a": 1, "b": True, "c": "d"}, "outputs": [{"name": "y"}]}
    for message in (
        {"inputs": [x]},
        {"inputs": [x, words, half], **asked},
        {"inputs": [region]},
        {"inputs": {"x": NUMPY}},
        {"inputs": [{"name": "x", "data": NUMPY}]},
        {"inputs": [{**x, "data": [[1, 2.5, -3, 400]]}]},
        {"inputs": {"x": [[1, 2, 3, 4.5]], "ids": [1, 2**40], "words": [["a", b"b"]], "one": 2, "flag": [True]}},
        {"inputs": {"x": {"data": [[1, 2, 3, 4]]}, "brain": {"data": b"\0\0", "shape": [1]}}, "outputs": ["y"]},
    ):
        yield msgpack.packb(message)


def run_msgpack(data: bytes, chance: random.Random) -> str:
    """A body in MessagePack, taken for either shape."""
    return _either(data, packed=True)


LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=64)
NAMES = st.sampled_from(["name", "shape", "datatype", "data", "parameters", "inputs", "outputs", "id", "nd", "type"])
TREES: st.SearchStrategy[Any] = st.recursive(
    LEAVES | st.text(max_size=8) | st.sampled_from(["x", "FP32", "BYTES", "<f4", "INT64", NUMPY]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=6),
    max_leaves=25,
)


# -- MessagePack-RPC ------------------------------------------------------------------------------


def _methods() -> Methods:
    async def made() -> Gateway:
        route = '{ tiers = [{ backend = "upstream", model = "m" }], cache = { ttl = "1h" } }'
        return Gateway(load(None, {"TAILRACE_ROUTES__R": route}, ["http://127.0.0.1:9"]))

    with asyncio.Runner() as runner:
        gateway = runner.run(made())
    return Methods(replace(gateway.doors.ports, ticker=lambda: 0.0))


METHODS = _methods()


def run_rpc(data: bytes, chance: random.Random) -> str:
    """A stream, whole and in pieces, and what its calls ask."""
    whole = Frames(LIMITS.bytes_max)
    messages = whole.feed(data)
    frames, again, at = Frames(LIMITS.bytes_max), [], 0
    while at < len(data):
        size = chance.choice((1, 2, 3, 17, 500, 4096))
        again += frames.feed(data[at : at + size], chance.choice((1, 7, 10**6)))
        while frames.unread:
            again += frames.feed(b"", chance.choice((1, 7)))
        at += size
        assert frames.held <= LIMITS.bytes_max
    again, messages = [each.taken() for each in again], [each.taken() for each in messages]
    assert again == messages
    assert (frames.fault, frames.held) == (whole.fault, whole.held)
    assert whole.fault is not None or sum(map(len, messages)) + whole.held == len(data)
    words = ["fault" if whole.fault is not None else "stream"]
    for message in messages:
        try:
            call = call_of(message)
        except FrameFault as fault:
            words.append(_clean(Refused(fault.fault.problem)))
            break
        shortened, params_at = begun(message)
        assert (shortened.msgid, shortened.method) == (call.msgid, call.method)
        assert message[params_at:] == bytes(memoryview(call.params))
        try:
            asked = METHODS.asked(opened(call), "addr:local")
        except Refused as refused:
            words.append(_clean(refused))
            continue
        words.append(call.method)
        if asked.question is not None:
            words.append(_decoded(bytes(asked.body), asked.question.dialect))
    with_members(msgpack.packb({"a": data[:64]}), {"provenance": {}})
    return words[-1]


def _stream_seeds() -> Iterator[bytes]:
    bodies = [msgpack.unpackb(seed) for seed in _packed_seeds()]
    calls = [[0, 1, "health", []], [0, 2**32 - 1, "metadata", [{"model": "r"}]], [2, "infer", [{"model": "r"}]]]
    for index, body in enumerate(bodies):
        calls.append([0, 200 * index, "infer", [{**body, "model": "r", "cache_control": "max-age=1"}]])
        calls.append([0, 70_000 * index, "predict", {**body, "model": "r", "auth": "k"}])
    yield from map(msgpack.packb, calls)
    yield b"".join(map(msgpack.packb, calls))
    yield msgpack.packb([0, 3, "predict", [{"inputs": {"x": [[1.5] * 300, [1] * 300, [True, 1.5, "a", 2**40] * 20]}}]])


STREAMS = st.lists(
    st.tuples(st.sampled_from([0, 1, 2]), st.integers(-1, 2**32), st.sampled_from(["infer", "predict", "x"]), TREES)
    | st.tuples(st.just(2), st.sampled_from(["infer", "health"]), TREES),
    max_size=4,
)


def _stream(calls: Any) -> bytes:
    return b"".join(msgpack.packb(call) for call in calls) if isinstance(calls, list | tuple) else msgpack.packb(calls)


# -- HTTP bodies ----------------------------------------------------------------------------------


CODINGS = (None, "gzip", "deflate", "br", "")


def run_http(data: bytes, chance: random.Random) -> str:
    """A body as the HTTP door takes it: JSON, JSON with bytes behind it, plain JSON, compressed."""
    coding = {b"\x1f": "gzip", b"x": "deflate"}.get(data[:1]) if chance.randrange(20) else chance.choice(CODINGS)
    try:
        body = http.inflate(data, coding, LIMITS.bytes_max)
    except Refused as refused:
        return _clean(refused)
    assert len(body) <= LIMITS.bytes_max
    end = bytes(body).rfind(b"}") + 1
    length = str(end) if end < len(body) else None
    if not chance.randrange(10):
        length = chance.choice((None, str(chance.randrange(len(body) + 2)), "x", "-1"))
    return _either(bytes(body), packed=False, json_length=length)


X = {"name": "x", "shape": [1, 4], "datatype": "FP32"}
DOCUMENTS = (
    {"id": "1", "inputs": [{**X, "data": [1, 2, 3, 4]}], "outputs": [{"name": "y"}], "parameters": {"a": 1}},
    {"inputs": {"x": [[1, 2, 3, 4]], "words": [["a"]], "one": 1, "ids": {"data": [1]}}, "outputs": ["y"]},
)


def _body_seeds() -> Iterator[bytes]:
    for case in runpy.run_path(str(ROOT / "cases" / "malformed.py"))["CASES"]:
        yield case["body"][:4096]
    with_bytes = json.dumps({"inputs": [{**X, "parameters": {"binary_data_size": 16}}]}).encode() + ROW
    whole, plain = (json.dumps(document).encode() for document in DOCUMENTS)
    yield from (with_bytes, plain, whole, gzip.compress(whole, mtime=0), zlib.compress(plain))


def _json_bytes(tree: Any) -> bytes:
    return json.dumps(_plain_tree(tree)).encode()


def _plain_tree(tree: Any) -> Any:
    """A tree as JSON can have it."""
    if isinstance(tree, bytes):
        return tree.decode("latin-1")
    if isinstance(tree, dict):
        return {str(key): _plain_tree(value) for key, value in tree.items()}
    return [_plain_tree(each) for each in tree] if isinstance(tree, list) else tree


# -- gRPC messages --------------------------------------------------------------------------------

READER, ANSWERS = RequestReader(MESSAGE), ResponseReader(MESSAGE)
"""With a memory of other messages, as the door has one."""


def run_grpc(data: bytes, chance: random.Random) -> str:
    """A message of a caller, and the same bytes taken for a replica's."""
    _replied(data)
    try:
        sketch = grpc.sketch(data)
    except Refused as refused:
        return _clean(refused)
    assert bool(grpc.sketch(sketch.anonymous()).id) is False
    other = grpc.sketch(renamed(data, "other", "2"))
    assert (other.model, other.version, other.id, other.raws) == ("other", "2", sketch.id, sketch.raws)
    with contextlib.suppress(Refused):
        grpc.sequence_of(sketch)
    words = []
    for reader in (RequestReader(MESSAGE), READER, READER):
        try:
            request = grpc.decode(sketch, reader)
        except Refused as refused:
            words.append(_clean(refused))
            continue
        words.append("well")
        _well_message(data, request)
    assert len(set(words)) == 1, words
    return words[0]


def _well_message(data: bytes, request: InferRequest) -> None:
    """What was read is what protobuf itself reads, and can be sent on and answered."""
    parsed = pb.ModelInferRequest.FromString(data)
    assert (parsed.model_name, parsed.model_version, parsed.id) == (request.model, request.version, request.id)
    assert [(each.name, tuple(each.shape)) for each in parsed.inputs] == [(e.name, e.shape) for e in request.inputs]
    if parsed.raw_input_contents:
        held = [bytes(each.data) for each in request.inputs if not each.in_shared_memory]
        assert held == list(parsed.raw_input_contents)
    _well(request, form_of(packed=False))
    again = decode_request(encode_request(request), MESSAGE)
    assert _told(again.inputs) == _told(request.inputs)
    assert _said(again.parameters) == _said(request.parameters)
    assert [(e.name, _said(e.parameters)) for e in again.outputs] == [
        (e.name, _said(e.parameters)) for e in request.outputs
    ]
    outputs = tuple(each for each in request.inputs if not each.in_shared_memory)
    ready = grpc.encode(InferResponse("m", "1", outputs))
    assert _told(decode_response(ready, MESSAGE).outputs) == _told(outputs)
    said = pb.ModelStreamInferResponse.FromString(streamed(ready, request.id)).infer_response
    assert (said.id, said.model_name) == (request.id, "m")


def _told(tensors: Sequence[Tensor]) -> list[tuple[object, ...]]:
    return [(each.name, each.datatype, each.shape, bytes(each.data), _said(each.parameters)) for each in tensors]


def _said(parameters: Parameters) -> list[str]:
    """Parameters, to be compared: protobuf gives a map in any order, and NaN is not equal to itself."""
    return sorted(f"{name}={value!r}" for name, value in parameters.items())


def _replied(data: bytes) -> None:
    try:
        answer = ANSWERS.decode(data)
    except Malformed:
        answer = None
    if answer is not None:
        grpc.encode(answer)
    renamed_in_stream(data, "r")


INPUTS = st.fixed_dictionaries({"inputs": st.lists(TREES, max_size=3) | TREES}) | TREES

TARGETS: Mapping[str, Target] = {
    "msgpack": Target(
        seeds=[*_packed_seeds(), *corpus("msgpack")],
        trees=[msgpack.unpackb(seed) for seed in _packed_seeds()],
        write=msgpack.packb,
        strategy=INPUTS.map(msgpack.packb),
        run=run_msgpack,
    ),
    "rpc": Target(
        seeds=[*_stream_seeds(), *corpus("rpc")],
        trees=[list(msgpack.Unpacker(io.BytesIO(seed))) for seed in _stream_seeds()],
        write=_stream,
        strategy=STREAMS.map(_stream),
        run=run_rpc,
    ),
    "http": Target(
        seeds=[*_body_seeds(), *corpus("http")],
        trees=[*DOCUMENTS, *[_plain_tree(msgpack.unpackb(seed)) for seed in _packed_seeds()]],
        write=_json_bytes,
        strategy=INPUTS.map(_json_bytes),
        run=run_http,
    ),
    "grpc": Target(
        seeds=[*[each.SerializeToString() for each in protobuf.requests()], *protobuf.answers(), *corpus("grpc")],
        trees=[protobuf.tree_of(each.SerializeToString()) for each in protobuf.requests()],
        write=protobuf.written,
        strategy=protobuf.MESSAGES,
        run=run_grpc,
    ),
}
