"""The protocol in MessagePack: round trips, every kind of data, and what is refused, within bounds."""

from __future__ import annotations

import contextlib
import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.digest import request_digest
from gateway.codec import http
from gateway.codec.http import BodyLimits
from gateway.codec.msgpack import decode, encode
from gateway.problem import Refused
from tiers.datatype import DTYPES, numbers
from tiers.inference import InferRequest, InferResponse, Tensor
from tiers.v2.message import Limits

LIMITS = BodyLimits(message=Limits(json_bytes_max=64 * 1024))
ROW = struct.pack("<4f", 1, 2, 3, 4)
X: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": ROW}
GOOD: dict[str, Any] = {"inputs": [X]}


def ndarray(array: np.ndarray, text: bool = False) -> dict[Any, Any]:
    """What msgpack-numpy's encode makes of an array."""
    found: dict[Any, Any] = {
        b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape, b"data": array.tobytes(),
    }  # fmt: skip
    return {key.decode(): value for key, value in found.items()} if text else found


def request(message: object, limits: BodyLimits = LIMITS) -> InferRequest:
    return decode(msgpack.packb(message), "m", "", limits)[0]


def one(**changes: Any) -> dict[str, Any]:
    """A request whose tensor is x with members changed; None takes one away."""
    return {"inputs": [{name: value for name, value in (X | changes).items() if value is not None}]}


def digest(of: InferRequest) -> bytes:
    return request_digest(
        route="r", tenant="", version="", inputs=of.inputs, parameters=of.parameters,
        outputs=[(each.name, each.parameters) for each in of.outputs],
    )  # fmt: skip


def test_a_tensors_bytes_are_where_they_came() -> None:
    body = msgpack.packb(GOOD)
    (tensor,) = decode(body, "m", "3", LIMITS)[0].inputs
    assert isinstance(tensor.data, memoryview)
    address = np.frombuffer(tensor.data, np.uint8).ctypes.data - np.frombuffer(body, np.uint8).ctypes.data
    assert body[address : address + 16] == ROW
    assert address == body.index(ROW)


SAME: list[tuple[str, dict[str, Any]]] = [
    ("bytes", GOOD),
    ("a flat array", one(data=[1, 2, 3, 4])),
    ("arrays in arrays", one(data=[[1.0, 2.0, 3.0, 4.0]])),
    ("numpy", one(data=ndarray(np.array([[1, 2, 3, 4]], "<f4")), shape=None, datatype=None)),
    ("numpy beside what it says", one(data=ndarray(np.array([[1, 2, 3, 4]], "<f4")))),
    ("numpy, the other byte order", one(data=ndarray(np.array([[1, 2, 3, 4]], ">f4")))),
    ("numpy with strings for keys", one(data=ndarray(np.array([[1, 2, 3, 4]], "<f4"), text=True))),
    ("numpy by name", {"inputs": {"x": ndarray(np.array([[1, 2, 3, 4]], "<f4"))}}),
    ("by name", {"inputs": {"x": {name: X[name] for name in ("shape", "datatype", "data")}}}),
    ("keys of bytes", {b"inputs": [{key.encode(): value for key, value in X.items()}]}),
    ("an unknown member", {**GOOD, "model_name": "m", "more": [{"deep": [1]}]}),
]


@pytest.mark.parametrize(("name", "message"), SAME, ids=[name for name, _ in SAME])
def test_equal_tensors_are_equal_requests_whatever_their_form(name: str, message: dict[str, Any]) -> None:
    header = {"inputs": [{**X, "data": [1, 2, 3, 4]}]}
    as_json, _ = http.decode(json.dumps(header).encode(), "m", "", None, LIMITS)
    member = {**X, "parameters": {"binary_data_size": 16}}
    del member["data"]
    front = json.dumps({"inputs": [member]}).encode()
    as_binary, _ = http.decode(front + ROW, "m", "", str(len(front)), LIMITS)
    assert digest(request(message)) == digest(as_json) == digest(as_binary)


STRINGS = [b"ab", "\u00e9".encode(), b"", b"\xff\x00"]
PACKED_STRINGS = b"".join(struct.pack("<I", len(each)) + each for each in STRINGS)


@pytest.mark.parametrize(
    "data",
    [PACKED_STRINGS, STRINGS, [STRINGS[:2], STRINGS[2:]], [["ab", "\u00e9"], [b"", b"\xff\x00"]]],
    ids=["packed", "flat", "nested", "text and bytes"],
)
def test_strings_come_packed_or_in_arrays(data: object) -> None:
    (tensor,) = request({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [2, 2], "data": data}]}).inputs
    assert (tensor.shape, bytes(tensor.data)) == ((2, 2), PACKED_STRINGS)


def test_nan_and_infinities_are_floats_like_others() -> None:
    values = [math.nan, math.inf, -math.inf]
    for datatype in ("FP64", "FP32", "FP16", "BF16"):
        (tensor,) = request({"inputs": [{"name": "x", "datatype": datatype, "shape": [3], "data": values}]}).inputs
        raw = bytes(tensor.data)
        if datatype == "BF16":
            raw = b"".join(b"\0\0" + raw[at : at + 2] for at in range(0, 6, 2))
        np.testing.assert_array_equal(np.frombuffer(raw, DTYPES.get(datatype, "<f4")), values)


@pytest.mark.parametrize("datatype", ["FP64", "FP32", "FP16", "BF16"])
def test_a_signalling_nan_is_a_nan(datatype: str) -> None:
    body = msgpack.packb({"inputs": [{"name": "x", "datatype": datatype, "shape": [1], "data": [1.5]}]})
    signalling = b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x01"
    body = body.replace(b"\xcb" + struct.pack(">d", 1.5), signalling)
    (tensor,) = decode(body, "m", "", LIMITS)[0].inputs
    assert np.isnan(numbers(tensor.data, datatype)).all()


def test_what_else_a_request_says() -> None:
    message = {
        **GOOD, "id": "7", "parameters": {"k": 1, "timeout": 5, "binary_data_output": True},
        "outputs": [{"name": "y", "parameters": {"classification": 2, "binary_data": True}}, {"name": "z"}],
    }  # fmt: skip
    found, form = decode(msgpack.packb(message), "m", "2", LIMITS)
    assert (found.id, found.version, found.parameters) == ("7", "2", {"k": 1, "timeout": 5})
    assert [(each.name, each.parameters) for each in found.outputs] == [("y", {"classification": 2}), ("z", {})]
    assert form.is_binary("y")
    assert not form.is_binary("z")
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 16}
    assert request(one(data=None, parameters=region)).in_shared_memory


def raw(body: bytes) -> Callable[[], bytes]:
    return lambda: body


def numpy_case(**changes: Any) -> dict[str, Any]:
    made = {key.decode(): value for key, value in ndarray(np.array([[1, 2, 3, 4]], "<f4")).items()} | changes
    return one(data={name: value for name, value in made.items() if value is not None}, shape=None, datatype=None)


MALFORMED: list[tuple[str, object, int, str]] = [
    ("nothing", raw(b""), 400, "empty"),
    ("no map", [1], 400, "must be a map"),
    ("nil", None, 400, "must be a map"),
    ("an opcode that is none", raw(b"\xc1"), 400, "must be a map"),
    ("an opcode that is none, inside", raw(b"\x81\xa6inputs\xc1"), 400, "not valid MessagePack"),
    ("a map that is cut", raw(b"\x81\xa6inp"), 400, "truncated"),
    ("a map's head that is cut", raw(b"\xdf\x00"), 400, "truncated"),
    ("a map that says it is huge", raw(b"\xdf\xff\xff\xff\xff"), 400, "at most"),
    ("an array that says it is huge", raw(b"\x81\xa6inputs\xdd\xff\xff\xff\xff"), 400, "truncated"),
    ("bytes that say they are huge", raw(b"\x81\xa6inputs\xc6\xff\xff\xff\xff"), 400, "truncated"),
    ("bytes after it", raw(msgpack.packb(GOOD) + b"\x00"), 400, "trailing"),
    ("a key twice", raw(b"\x82\xa6inputs\x90\xa6inputs\x90"), 400, "twice"),
    ("a tensor's key twice", raw(b"\x81\xa6inputs\x91\x82\xa4name\xa1x\xa4name\xa1x"), 400, "twice"),
    ("a parameter twice", raw(b"\x82\xa6inputs\x90\xaaparameters\x82\xa1a\x01\xa1a\x02"), 400, "twice"),
    ("a key that is no string", {1: 2}, 400, "keys of the request must be strings"),
    ("a key that is no UTF-8", raw(b"\x81\xa1\xff\xc0"), 400, "UTF-8"),
    ("nested without end", raw(b"\x81\xa6inputs" + b"\x91" * 100_000), 400, "deep"),
    ("nested maps without end", raw(b"\x81\xa1x" * 100_000), 400, "deep"),
    ("too many members", {str(index): index for index in range(2000)}, 400, "at most"),
    ("no inputs", {"id": "a"}, 400, "no 'inputs'"),
    ("inputs that are bytes", {"inputs": b"a"}, 400, "'inputs' must be an array"),
    ("too many inputs", {"inputs": [X] * 257}, 400, "at most 256"),
    ("an input that is no map", {"inputs": [1]}, 400, "an input must be a map"),
    ("an input without a name", {"inputs": [{}]}, 400, "no 'name'"),
    ("an empty name", one(name=""), 400, "empty name"),
    ("a name of bytes", one(name=b"x"), 400, "name"),
    ("a name twice", {"inputs": [X, X]}, 400, "duplicate"),
    ("a long name", one(name="x" * 2000), 400, "longer"),
    ("no datatype", one(datatype=None), 400, "no datatype"),
    ("no shape", one(shape=None), 400, "no shape"),
    ("no data", one(data=None), 400, "no data"),
    ("a datatype that is none", one(datatype="OBJECT"), 400, "invalid datatype"),
    ("a shape with a sign", one(shape=[-1, 4]), 400, "negative"),
    ("a shape of text", one(shape="4"), 400, "shape"),
    ("a shape of floats", one(shape=[4.0]), 400, "shape"),
    ("a shape of high rank", one(shape=[1] * 13), 400, "at most 12"),
    ("a shape without end", one(shape=[1] * 5000), 400, "at most 12"),
    ("a shape that overflows", one(shape=[2**40, 2**40]), 400, "overflows"),
    ("too few bytes", one(data=ROW[:-1]), 400, "needs 16 bytes, data has 15"),
    ("too many bytes", one(data=ROW + b"\0"), 400, "needs 16 bytes, data has 17"),
    ("data of text", one(data="1234567812345678"), 400, "must be bytes"),
    ("data that is a number", one(data=1), 400, "must be bytes"),
    ("data that is nil, not left out", {"inputs": [X | {"data": None}]}, 400, "must be bytes"),
    ("an ext for data", one(data=msgpack.ExtType(1, ROW)), 400, "must be bytes"),
    ("an ext for a shape", one(shape=msgpack.ExtType(1, b"")), 400, "shape"),
    ("an ext for a name", one(name=msgpack.ExtType(1, b"x")), 400, "name"),
    ("a timestamp for a parameter", {**GOOD, "parameters": {"a": msgpack.Timestamp(1, 0)}}, 400, "parameter"),
    ("a date among floats", one(data=[1, 2, 3, msgpack.Timestamp(1, 0)]), 400, "ext"),
    ("an element that is text", one(data=[1, 2, 3, "4"]), 400, "float"),
    ("a float for an integer", one(datatype="INT32", data=[1, 2, 3, 4.5]), 400, "int"),
    ("a truth for an integer", one(datatype="INT32", data=[1, 2, 3, True]), 400, "int"),
    ("a number for a truth", one(datatype="BOOL", data=[1, 0, 1, 0]), 400, "bool"),
    ("an integer out of range", one(datatype="INT8", data=[1, 2, 3, 128]), 400, "-128 to 127"),
    ("a float out of range", one(data=[1, 2, 3, 1e39]), 400, "beyond the range"),
    ("nested unlike its shape", one(data=[[1, 2], [3, 4]]), 400, "needs"),
    ("nested deeper than its shape", one(data=[[[1, 2, 3, 4]]]), 400, "rank"),
    ("nested without end, as data", raw(msgpack.packb(one())[:-18] + b"\x91" * 500 + b"\xc0"), 400, "deeper"),
    ("arrays beyond their bound", one(shape=[40_000], data=[1] * 40_000), 413, "send its data as bytes"),
    ("both data and a region", one(parameters={"shared_memory_region": "r"}), 400, "both data and"),
    ("a size as in JSON", one(parameters={"binary_data_size": 16}), 400, "JSON form"),
    ("a parameter that is a map", {**GOOD, "parameters": {"a": {}}}, 400, "parameter"),
    ("a parameter that is nil", {**GOOD, "parameters": {"a": None}}, 400, "null"),
    ("a parameter of Triton's that is wrong", {**GOOD, "parameters": {"priority": "x"}}, 400, "priority"),
    ("a parameter beyond 64 bits of JSON", {**GOOD, "parameters": {"sequence_id": -1}}, 400, "sequence_id"),
    ("outputs that are names", {**GOOD, "outputs": ["y"]}, 400, "an output must be a map"),
    ("an id of bytes", {**GOOD, "id": b"7"}, 400, "id"),
    ("a string element too long for its bytes", one(datatype="BYTES", shape=[1], data=b"\xff\0\0\0a"), 400, "only 1"),
    ("too few string elements", one(datatype="BYTES", shape=[2], data=b"\1\0\0\0aaaa"), 400, "element"),
    ("strings among which is a number", one(datatype="BYTES", shape=[2], data=["a", 1]), 400, "must be a string or"),
    ("strings in arrays unlike the shape", one(datatype="BYTES", shape=[2, 2], data=[["a"], ["b"]]), 400, "arrays"),
    ("fewer strings than the shape", one(datatype="BYTES", shape=[3], data=["a"]), 400, "arrays"),
    ("more strings than are allowed", one(datatype="BYTES", shape=[2**19], data=["a"]), 400, "at most"),
    ("objects", numpy_case(type="|O", kind=b"O"), 400, "objects"),
    ("objects that hide", numpy_case(type="|O"), 400, "numpy type '|O'"),
    ("structures", numpy_case(type=[["a", "<f4"]], kind=b"V"), 400, "structures"),
    ("structures that hide", numpy_case(type=[["a", "<f4"]]), 400, "structures"),
    ("text of numpy's", numpy_case(type="<U4"), 400, "numpy type"),
    ("complex numbers", numpy_case(type="<c8"), 400, "numpy type"),
    ("dates", numpy_case(type="<M8[ns]"), 400, "numpy type"),
    ("the machine's own byte order", numpy_case(type="=f4"), 400, "numpy type"),
    ("no byte order", numpy_case(type="|f4"), 400, "numpy type"),
    ("a float of 16 bytes", numpy_case(type="<f16"), 400, "numpy type"),
    ("a type that is a number", numpy_case(type=4), 400, "'type'"),
    ("a numpy array without a type", numpy_case(type=None), 400, "no 'type'"),
    ("a numpy array without a shape", numpy_case(shape=None), 400, "no 'shape'"),
    ("a numpy array without data", numpy_case(data=None), 400, "no 'data'"),
    ("a numpy array with fewer bytes", numpy_case(data=ROW[:8]), 400, "needs 16 bytes"),
    ("a numpy array with data of text", numpy_case(data="a"), 400, "'data'"),
    ("a numpy array that is none", numpy_case(nd=None), 400, "no 'nd'"),
    ("a numpy array of another shape", one(data=ndarray(np.zeros((4, 1), "<f4"))), 400, "said to be"),
    ("a numpy array of another type", one(data=ndarray(np.zeros((1, 4), "<f8"))), 400, "said to be"),
]  # fmt: skip


def body_of(message: object) -> bytes:
    if callable(message):
        return message()
    return msgpack.packb(message)


@pytest.mark.parametrize(("name", "message", "status", "word"), MALFORMED, ids=[case[0] for case in MALFORMED])
def test_what_is_malformed_is_refused_with_a_word_that_names_it(
    name: str, message: object, status: int, word: str
) -> None:
    with pytest.raises(Refused) as refused:
        decode(body_of(message), "m", "", LIMITS)
    assert refused.value.problem.status == status
    assert word in refused.value.problem.detail
    assert len(refused.value.problem.detail) < 512


@pytest.mark.parametrize("case", [*MALFORMED, *[(*each, 0, "") for each in SAME]], ids=lambda case: case[0])
def test_bytes_that_are_changed_or_cut_are_a_request_or_refused(case: tuple[str, object, int, str]) -> None:
    chance, body = random.Random(case[0]), body_of(case[1])[:4096]
    for _ in range(40):
        changed = bytearray(body)
        for _ in range(chance.randrange(1, 4)):
            if changed:
                changed[chance.randrange(len(changed))] = chance.randrange(256)
        with contextlib.suppress(Refused):
            decode(bytes(changed), "m", "", LIMITS)
    for cut in range(0 if case[2] else len(body)):
        with pytest.raises(Refused):
            decode(body[:cut], "m", "", LIMITS)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(body: bytes) -> None:
    with contextlib.suppress(Refused):
        decode(body, "m", "", LIMITS)


NAMES = st.text(min_size=1, max_size=8)
SHAPES = st.lists(st.integers(0, 3), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    name, shape = draw(NAMES), draw(SHAPES)
    datatype = draw(st.sampled_from([*DTYPES, "BYTES", "BF16"]))
    count = math.prod(shape)
    if datatype == "BYTES":
        items = draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count))
        return Tensor(name, datatype, shape, b"".join(struct.pack("<I", len(item)) + item for item in items))
    size = count * (2 if datatype == "BF16" else DTYPES[datatype].itemsize)
    return Tensor(name, datatype, shape, draw(st.binary(min_size=size, max_size=size)))


@settings(max_examples=150, deadline=None)
@given(st.lists(tensors(), max_size=3, unique_by=lambda each: each.name))
def test_what_an_answer_says_can_be_asked(outputs: list[Tensor]) -> None:
    answer = InferResponse("m", "1", tuple(outputs))
    document = msgpack.unpackb(encode(answer, "7", {"provenance": {}}))
    assert (document["model_name"], document["model_version"], document["id"]) == ("m", "1", "7")
    assert list(document)[-1] == "provenance"
    assert request({"inputs": document["outputs"]}).inputs == tuple(
        Tensor(each.name, each.datatype, each.shape, memoryview(each.data)) for each in outputs
    )


@settings(max_examples=100, deadline=None)
@given(SHAPES, st.sampled_from([*DTYPES]), st.sampled_from("<>"), st.booleans())
def test_every_numpy_array_that_is_read_is_the_same_array(
    shape: tuple[int, ...], datatype: str, order: str, text: bool
) -> None:
    chance = np.random.default_rng(math.prod(shape) + len(shape))
    array = chance.integers(0, 2, shape).astype(DTYPES[datatype].newbyteorder(order))
    (tensor,) = request({"inputs": {"x": ndarray(np.asarray(array), text)}}).inputs
    assert (tensor.datatype, tensor.shape) == (datatype, shape)
    assert bytes(tensor.data) == np.asarray(array).astype(DTYPES[datatype]).tobytes()


def test_a_numpy_scalar_has_no_shape() -> None:
    scalar = np.float32(2.5)
    packed = {b"nd": False, b"type": scalar.dtype.str, b"data": scalar.tobytes()}
    (tensor,) = request({"inputs": {"x": packed}}).inputs
    assert (tensor.shape, bytes(tensor.data)) == ((), scalar.tobytes())


def test_a_map_of_many_bytes_costs_little_more_than_them() -> None:
    import tracemalloc

    body = b"\x81\xa6inputs\x91\x84\xa4name\xa1x\xa8datatype\xa4INT8\xa5shape\x91\xce\x00\x80\x00\x00\xa4data\xc6"
    body += struct.pack(">I", 2**23) + bytes(2**23)
    hostile = [
        body,
        b"\x81\xa6inputs\xdd\x00\x80\x00\x00" + b"\x80" * 2**23,
        b"\x81\xa6inputs\x91\x84\xa4name\xa1x\xa8datatype\xa5BYTES\xa5shape\x91\x01\xa4data\xdd\x00\x80\x00\x00"
        + b"\xa0" * 2**23,
        b"\xdf\x00\x80\x00\x00" + b"\xa1a\xc0" * 2**23,
        b"\x81\xa6inputs\x91\x81\xa5shape\xdd\x00\x80\x00\x00" + b"\x01" * 2**23,
    ]  # fmt: skip
    for each in hostile:
        tracemalloc.start()
        with contextlib.suppress(Refused):
            decode(each, "m", "", BodyLimits())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 * 2**20
