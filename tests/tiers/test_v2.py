"""The v2 codec: the same tensors in either form, Triton's own bytes, and Malformed for anything else."""

import contextlib
import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiers.datatype import DTYPES, bytes_elements, from_json, to_json
from tiers.inference import DATATYPE_BYTES, InferRequest, InferResponse, RequestedOutput, Tensor
from tiers.v2.message import Limits, Malformed
from tiers.v2.request import WireForm, decode_request, encode_request
from tiers.v2.response import decode_response, encode_response

JSON_DATATYPES = sorted(set(DATATYPE_BYTES) - {"FP16", "BF16"})


def pack(elements):
    return b"".join(struct.pack("<I", len(item)) + item for item in elements)


@st.composite
def tensors(draw, datatypes=tuple(DATATYPE_BYTES), finite=False):
    datatype = draw(st.sampled_from(datatypes))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    elements = math.prod(shape)
    if datatype == "BYTES":
        item = st.text(max_size=6).map(str.encode) if finite else st.binary(max_size=6)
        data = pack(draw(st.lists(item, min_size=elements, max_size=elements)))
    else:
        size = elements * DATATYPE_BYTES[datatype]
        data = draw(st.binary(min_size=size, max_size=size))
        if datatype == "BOOL":
            data = bytes(value & 1 for value in data)
        if finite and datatype in ("FP32", "FP64"):
            values = np.frombuffer(data, DTYPES[datatype])
            data = np.where(np.isfinite(values), values, 1.5).astype(DTYPES[datatype]).tobytes()
    return Tensor(draw(st.text(min_size=1, max_size=5)), datatype, shape, data)


many = st.lists(tensors(), max_size=4, unique_by=lambda tensor: tensor.name)


def same(left, right):
    return [(t.name, t.datatype, t.shape, bytes(t.data)) for t in left] == [
        (t.name, t.datatype, t.shape, bytes(t.data)) for t in right
    ]


@given(many, st.text(max_size=4))
def test_a_request_survives_the_binary_form(inputs, name):
    request = InferRequest(
        "m", tuple(inputs), (RequestedOutput("y", {"classification": 3}),), "1", name, {"a": 1}
    )
    parts, length = encode_request(request)
    decoded, form = decode_request(b"".join(parts), length, "m", "1", Limits())
    assert same(decoded.inputs, request.inputs)
    assert (decoded.id, decoded.outputs, dict(decoded.parameters)) == (name, request.outputs, {"a": 1})
    assert form.is_binary("y")


@given(st.lists(tensors(datatypes=JSON_DATATYPES, finite=True), max_size=4, unique_by=lambda t: t.name))
def test_json_and_binary_are_the_same_tensors(outputs):
    response = InferResponse("m", "1", tuple(outputs))
    parts, length = encode_response(response, WireForm(), "id")
    assert length is None
    assert same(decode_response(b"".join(parts), None).outputs, outputs)
    parts, length = encode_response(response, WireForm(binary_all=True), "id")
    assert same(decode_response(b"".join(parts), length).outputs, outputs)


@given(many)
def test_a_response_survives_the_binary_form(outputs):
    parts, length = encode_response(InferResponse("m", "1", tuple(outputs)), WireForm(binary_all=True), "")
    assert same(decode_response(b"".join(parts), length).outputs, outputs)


@given(tensors(datatypes=JSON_DATATYPES, finite=True))
def test_nested_data_equals_flat_data(tensor):
    flat = json.loads(to_json(tensor.data, tensor.datatype))
    if not tensor.shape:
        return
    nested = np.array(flat, dtype=object).reshape(tensor.shape).tolist()
    expected = from_json(json.dumps(flat).encode(), tensor.datatype, tensor.shape)
    if len(nested) and math.prod(tensor.shape):
        assert from_json(json.dumps(nested).encode(), tensor.datatype, tensor.shape) == expected


def good_bodies():
    x = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
    words = {"name": "w", "datatype": "BYTES", "shape": [2]}
    tail = struct.pack("<2f", 1, 2)
    said = pack([b"a", b"bcd"])
    both = {
        "id": "é",
        "parameters": {"binary_data_output": True, "k": 1.5},
        "inputs": [
            x | {"parameters": {"binary_data_size": 8}},
            words | {"parameters": {"binary_data_size": len(said)}},
        ],
    }
    yield (
        json.dumps({"inputs": [x | {"data": [[1, 2]]}, words | {"data": ["a", "é"]}], "z": 1}).encode(),
        None,
    )
    header = json.dumps(both).encode()
    yield header + tail + said, len(header)
    mixed = {"inputs": [x | {"data": [1, 2]}, words | {"parameters": {"binary_data_size": len(said)}}]}
    header = json.dumps(mixed).encode()
    yield header + said, len(header)


@pytest.mark.parametrize(("body", "length"), list(good_bodies()))
def test_every_truncation_and_any_trailing_byte_is_malformed(body, length):
    decode_request(body, length, "m", "")
    decode_request(memoryview(body), length, "m", "")
    for cut in range(len(body)):
        with pytest.raises(Malformed):
            decode_request(body[:cut], length, "m", "")
    with pytest.raises(Malformed):
        decode_request(body + b"x", length, "m", "")


@pytest.mark.parametrize(("body", "length"), list(good_bodies()))
def test_changed_bytes_never_raise_anything_but_malformed(body, length):
    for at in range(len(body)):
        for value in (0, 0x22, 0x2D, 0x5B, 0x5C, 0x7D, 0xFF, body[at] ^ 1):
            changed = body[:at] + bytes([value]) + body[at + 1 :]
            for decode in (
                lambda b: decode_request(b, length, "m", ""),
                lambda b: decode_response(b, length),
            ):
                with contextlib.suppress(Malformed):
                    decode(changed)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-5, 250)))
def test_random_bytes_are_malformed(body, length):
    with pytest.raises(Malformed):
        decode_request(body, length, "m", "")
    with pytest.raises(Malformed):
        decode_response(body, length)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["inputs", "name", "datatype", "shape", "data", "parameters", "outputs", "id"]),
            inner,
        ),
    ),
    max_leaves=20,
)


@given(json_values)
def test_any_json_is_a_request_or_malformed(value):
    body = json.dumps(value).encode()
    for decode in (lambda: decode_request(body, None, "m", ""), lambda: decode_response(body, None)):
        with contextlib.suppress(Malformed):
            decode()


def test_binary_inputs_are_slices_of_the_body():
    body, length = list(good_bodies())[1]
    request, _ = decode_request(body, length, "m", "")
    assert isinstance(request.inputs[0].data, memoryview)
    assert request.inputs[0].data.obj is body


def test_unknown_members_are_ignored_as_triton_does():
    x = b'{"name":"x","datatype":"INT8","shape":[1],"data":[1],"q":null}'
    body = b'{"zz":{"a":[1,{"b":":"}]},"inputs":[' + x + b"]}"
    assert decode_request(body, None, "m", "")[0].inputs[0].data == b"\1"


@pytest.mark.parametrize(
    ("top", "outputs", "binary"),
    [
        ({}, None, False),
        ({"binary_data_output": True}, None, True),
        ({"binary_data_output": True}, [], True),
        ({"binary_data_output": True}, [{"name": "y"}], False),
        ({}, [{"name": "y", "parameters": {"binary_data": True}}], True),
        ({"binary_data_output": True}, [{"name": "y", "parameters": {"binary_data": False}}], False),
    ],
)
def test_which_outputs_are_binary_as_in_triton(top, outputs, binary):
    message = {"inputs": [], "parameters": top} | ({} if outputs is None else {"outputs": outputs})
    request, form = decode_request(json.dumps(message).encode(), None, "m", "")
    assert form.is_binary("y") is binary
    assert not request.parameters
    assert all(not output.parameters for output in request.outputs)


def test_shared_memory_tensors_keep_their_parameters_and_carry_no_bytes():
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 4}
    request = InferRequest(
        "m", (Tensor("x", "FP32", (1,), b"", region),), (RequestedOutput("y", {"shared_memory_region": "r"}),)
    )
    parts, length = encode_request(request)
    decoded, form = decode_request(b"".join(parts), length, "m", "")
    assert decoded.in_shared_memory
    assert dict(decoded.inputs[0].parameters) == region
    assert not form.is_binary("y")


def test_an_output_that_went_to_shared_memory_is_answered_as_triton_does():
    header = b'{"model_name":"m","model_version":"1","outputs":[{"name":"y","datatype":"FP32","shape":[1,2]}]}'
    with pytest.raises(Malformed, match="neither data nor"):
        decode_response(header, None)
    response = decode_response(header, None, regions={"y": "r"})
    assert response.outputs[0].in_shared_memory
    assert encode_response(response, WireForm(), "") == ([header], None)


COUNTS = [0, 1, 2**63, 2**64 - 1]
NO_COUNTS = [1.0, -1, "x", "1", True]
RESERVED = [
    *((("parameters", name), COUNTS, NO_COUNTS) for name in ("priority", "timeout")),
    (("parameters", "sequence_id"), [*COUNTS, "x", "1"], [1.0, -1, True]),
    *((("parameters", name), [True, False], [0, 1, 1.0, "true"]) for name in ("sequence_start", "sequence_end")),
    (("outputs", "classification"), COUNTS, NO_COUNTS),
    *(
        ((place, name), COUNTS, NO_COUNTS)
        for place in ("inputs", "outputs")
        for name in ("shared_memory_offset", "shared_memory_byte_size")
    ),
    *(((place, "shared_memory_region"), ["r"], [5, True, 1.5]) for place in ("inputs", "outputs")),
]
"""What Triton 2.51 took and what it answered 500 to."""


@pytest.mark.parametrize(("where", "taken", "refused"), RESERVED, ids=[" ".join(each[0]) for each in RESERVED])
def test_parameters_of_tritons_own_are_what_triton_takes(where, taken, refused):
    place, name = where

    def decoded(value):
        message = {"inputs": [], "outputs": [{"name": "y"}]}
        if place == "parameters":
            message["parameters"] = {name: value}
        elif place == "outputs":
            message["outputs"][0]["parameters"] = {name: value}
        else:
            here = {"parameters": {"shared_memory_region": "r", name: value}}
            message["inputs"] = [{"name": "x", "datatype": "FP32", "shape": [1]} | here]
        return decode_request(json.dumps(message).encode(), None, "m", "")

    for value in taken:
        decoded(value)
    for value in [*refused, None]:
        with pytest.raises(Malformed, match=name):
            decoded(value)


def fp32(*values):
    return struct.pack(f"<{len(values)}f", *values)


def fp64(*values):
    return struct.pack(f"<{len(values)}d", *values)


# What Triton 2.51 itself printed for these bytes, through an echo model.
PRINTED = [
    ("FP32", fp32(1, 0.1, 16777217, 1e10), b"[1.0,0.10000000149011612,16777216.0,10000000000.0]"),
    ("FP32", fp32(1e20), b"[100000002004087730000.0]"),
    ("FP32", fp32(1e-4, 1e-5), b"[0.00009999999747378752,0.000009999999747378752]"),
    ("FP32", fp32(1e-7, 1e-45), b"[1.0000000116860974e-7,1.401298464324817e-45]"),
    ("FP32", fp32(-0.0, 123456.789), b"[-0.0,123456.7890625]"),
    ("FP32", fp32(math.nan, -math.inf, math.inf), b"[NaN,-Infinity,Infinity]"),
    ("FP64", fp64(0.1, 1e15, 1e16), b"[0.1,1000000000000000.0,10000000000000000.0]"),
    ("FP64", fp64(1e20, 1e21, 1e22), b"[100000000000000000000.0,1e21,1e22]"),
    ("FP64", fp64(1e-4, 1e-5, 1e-6, 1e-7), b"[0.0001,0.00001,0.000001,1e-7]"),
    ("FP64", fp64(1.7e308, 5e-324, 2e-10, 1.5e300), b"[1.7e308,5e-324,2e-10,1.5e300]"),
    ("BOOL", b"\1\0", b"[true,false]"),
    ("INT64", struct.pack("<q", -(2**63)), b"[-9223372036854775808]"),
    ("UINT64", struct.pack("<Q", 2**64 - 1), b"[18446744073709551615]"),
    ("BYTES", pack(['é"\\/\1\n\t\x7f😀'.encode(), b""]), '["é\\"\\\\/\\u0001\\n\\t\x7f😀",""]'.encode()),
    ("BYTES", pack([b"a\0b", b"\x1f", b"\xff\xfe"]), b'["a\\u0000b","\\u001F","\xff\xfe"]'),
]


@pytest.mark.parametrize(("datatype", "data", "printed"), PRINTED)
def test_numbers_print_as_triton_prints_them(datatype, data, printed):
    assert to_json(data, datatype) == printed


def test_the_layout_is_tritons():
    y = Tensor("y", "FP32", (2,), fp32(math.nan, -math.inf))
    response = InferResponse("e_fp32", "1", (y,))
    parts, length = encode_response(response, WireForm(), "7")
    assert (b"".join(parts), length) == (
        b'{"id":"7","model_name":"e_fp32","model_version":"1",'
        b'"outputs":[{"name":"y","datatype":"FP32","shape":[2],"data":[NaN,-Infinity]}]}',
        None,
    )
    parts, length = encode_response(response, WireForm(binary_all=True), "7")
    assert length == 143
    assert b"".join(parts) == (
        b'{"id":"7","model_name":"e_fp32","model_version":"1","outputs":[{"name":"y","datatype":"FP32",'
        b'"shape":[2],"parameters":{"binary_data_size":8}}]}\x00\x00\xc0\x7f\x00\x00\x80\xff'
    )


def test_a_binary_answer_without_bytes_has_no_header_length_as_in_triton():
    response = InferResponse("m", "1", (Tensor("y", "FP32", (0,), b""),))
    parts, length = encode_response(response, WireForm(binary_all=True), "")
    assert length is None
    assert same(decode_response(b"".join(parts), None).outputs, response.outputs)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_are_binary_only(datatype):
    with pytest.raises(Malformed, match=f"sending {datatype} data via JSON is not supported.*y"):
        encode_response(InferResponse("m", "1", (Tensor("y", datatype, (1,), b"\0\0"),)), WireForm(), "")


def test_a_scan_of_hostile_bytes_is_linear():
    body = b'{"' + b'\\"' * 2_000_000
    with pytest.raises(Malformed):
        decode_request(b"[" * 20 + body, None, "m", "")


def test_limits_hold():
    with pytest.raises(Malformed) as fault:
        decode_request(b" " * 100, None, "m", "", Limits(json_bytes_max=99))
    assert fault.value.status == 413


def test_bytes_elements():
    assert bytes_elements(memoryview(pack([b"", b"a", b"bc"]))) == [b"", b"a", b"bc"]
