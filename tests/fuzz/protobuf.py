"""Messages of Triton's gRPC service as trees of fields, and hostile ones among them.

Rule of this file: it writes the wire format of protobuf by itself, so that what no library would write can be
written; what a message means is not known here, but where one is in another. A tree is a list of ``[number, value]``:
an int is a varint, a float eight bytes, bytes and text are themselves, and a list is a message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
ENTRY: Mapping[int, Any] = {2: {}}
TENSOR: Mapping[int, Any] = {4: ENTRY, 5: {}}
REQUEST: Mapping[int, Any] = {4: ENTRY, 5: TENSOR, 6: {2: ENTRY}}
"""Which fields are messages: of ModelInferRequest, and in those."""

TYPED = {
    "BOOL": ("bool_contents", [True, False]), "INT8": ("int_contents", [-128, 127]), "INT32": ("int_contents", [1, -1]),
    "INT64": ("int64_contents", [2**63 - 1, -1]), "UINT16": ("uint_contents", [65535, 0]),
    "UINT64": ("uint64_contents", [2**64 - 1, 0]), "FP32": ("fp32_contents", [1.5, float("nan")]),
    "FP64": ("fp64_contents", [1e300, -0.0]), "BYTES": ("bytes_contents", [b"", b"\xff" * 9]),
}  # fmt: skip


def requests() -> Iterator[pb.ModelInferRequest]:
    """Good messages: raw tensors, elements one by one, shared memory, sequences, parameters."""
    for datatype, (member, values) in TYPED.items():
        typed = pb.ModelInferRequest(model_name="m", id="1")
        getattr(typed.inputs.add(name="x", datatype=datatype, shape=[2]).contents, member).extend(values)
        yield typed
    raw = pb.ModelInferRequest(model_name="m", model_version="1", id="7")
    for name, datatype, shape, data in (
        ("x", "FP32", [1, 4], struct.pack("<4f", 1, 2, 3, 4)),
        ("words", "BYTES", [1, 2], b"\x01\0\0\0a\x02\0\0\0bc"),
        ("one", "FP16", [1], b"\0\x3c"),
    ):
        raw.inputs.add(name=name, datatype=datatype, shape=shape)
        raw.raw_input_contents.append(data)
    yield raw
    asked = pb.ModelInferRequest()
    asked.CopyFrom(raw)
    asked.outputs.add(name="y").parameters["classification"].int64_param = 3
    asked.parameters["timeout"].int64_param = 1000
    asked.parameters["note"].string_param = "é"
    asked.parameters["share"].double_param = 0.5
    asked.parameters["large"].uint64_param = 2**64 - 1
    yield asked
    sequence = pb.ModelInferRequest()
    sequence.CopyFrom(raw)
    sequence.parameters["sequence_id"].string_param = "s"
    sequence.parameters["sequence_start"].bool_param = True
    yield sequence
    region = pb.ModelInferRequest(model_name="m")
    region.inputs.add(name="x", datatype="FP32", shape=[4]).parameters["shared_memory_region"].string_param = "r"
    region.inputs[0].parameters["shared_memory_byte_size"].int64_param = 16
    yield region


def answers() -> Iterator[bytes]:
    """What a replica says: an answer, one in a stream, and an error in one."""
    answer = pb.ModelInferResponse(model_name="m", model_version="1", id="7")
    answer.outputs.add(name="y", datatype="FP32", shape=[1, 2])
    answer.raw_output_contents.append(bytes(8))
    answer.parameters["triton_final_response"].bool_param = True
    typed = pb.ModelInferResponse(model_name="m")
    typed.outputs.add(name="y", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"a")
    yield answer.SerializeToString()
    yield typed.SerializeToString()
    yield pb.ModelStreamInferResponse(infer_response=answer).SerializeToString()
    yield pb.ModelStreamInferResponse(error_message="no").SerializeToString()


def tree_of(data: bytes, nested: Mapping[int, Any] = REQUEST) -> list[Any]:
    """A good message as a tree."""
    fields: list[Any] = []
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            fields.append([number, value])
        elif kind == FIXED64:
            fields.append([number, struct.unpack_from("<d", data, at)[0]])
            at += 8
        else:
            assert kind == LENGTH, kind
            size, at = _varint(data, at)
            content = data[at : at + size]
            fields.append([number, tree_of(content, nested[number]) if number in nested else content])
            at += size
    return fields


def written(tree: Any) -> bytes:
    """A tree as bytes. Raises ValueError for what cannot be written."""
    parts = []
    for field in tree if isinstance(tree, list | tuple) else [tree]:
        if not (isinstance(field, list | tuple) and len(field) == 2 and isinstance(field[0], int)):
            raise ValueError("no field")
        number, value = field[0] % 2**29, field[1]
        if isinstance(value, int):
            parts.append(_tagged(number, VARINT) + _as_varint(value % 2**64))
        elif isinstance(value, float):
            parts.append(_tagged(number, FIXED64) + struct.pack("<d", value))
        else:
            content = value.encode() if isinstance(value, str) else value
            content = content if isinstance(content, bytes) else written(content)
            parts.append(_tagged(number, LENGTH) + _as_varint(len(content)) + content)
    return b"".join(parts)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at


def _as_varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _tagged(number: int, kind: int) -> bytes:
    return _as_varint(number << 3 | kind)


NUMBERS = st.integers(1, 8) | st.sampled_from([0, 9, 15, 16, 2**28])
LEAVES = st.integers(0, 2**64 - 1) | st.integers(0, 8) | st.floats() | st.binary(max_size=24) | st.text(max_size=6)
WORDS = st.sampled_from(["m", "x", "words", "FP32", "BYTES", "INT64", "BF16", "sequence_id", "timeout", "binary_data"])
FIELDS: st.SearchStrategy[Any] = st.recursive(
    st.tuples(NUMBERS, LEAVES | WORDS).map(list),
    lambda inner: st.tuples(NUMBERS, st.lists(inner, max_size=5)).map(list),
    max_leaves=20,
)


@st.composite
def tensors(draw: st.DrawFn) -> list[Any]:
    """An input's outline, mostly one that could be."""
    name, datatype = draw(WORDS), draw(st.sampled_from([*TYPED, "FP16", "BF16", "x"]))
    shape = draw(st.lists(st.integers(0, 3) | st.integers(0, 2**64 - 1), max_size=3))
    fields = [[1, name], [2, datatype], *[[3, size] for size in shape]]
    if draw(st.booleans()):
        fields.append([5, [[draw(st.integers(1, 8)), draw(LEAVES)] for _ in range(draw(st.integers(0, 3)))]])
    return [5, [*fields, *draw(st.lists(FIELDS, max_size=1))]]


MESSAGES = st.builds(
    lambda named, inputs, raws, other: written([*named, *inputs, *[[7, raw] for raw in raws], *other]),
    st.just([[1, "m"]]) | st.lists(st.tuples(st.integers(1, 3), WORDS).map(list), max_size=3),
    st.lists(tensors(), max_size=3),
    st.lists(st.binary(max_size=40), max_size=3),
    st.lists(FIELDS, max_size=2),
)
