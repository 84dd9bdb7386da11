"""The protobuf codec: every datatype in both forms, what is refused and how it is named, and hostile bytes."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tiers.datatype import DTYPES
from tiers.inference import InferRequest, InferResponse, RequestedOutput, Tensor
from tiers.v2.contents import MEMBERS
from tiers.v2.message import DEFAULT_LIMITS, Limits, Malformed
from tiers.v2.proto import RequestReader, Sketch, decode_request, encode_request, identified, renamed
from tiers.v2.proto_response import ResponseReader, decode_response, encode_response

SAMPLES = {
    "BOOL": [True, False],
    "FP32": [0.5, -0.0, float("inf")],
    "FP64": [0.1, 5e-324],
    "BYTES": [b"", b"\x00\xff", "é".encode()],
    **{name: [0, int(np.iinfo(DTYPES[name]).min), int(np.iinfo(DTYPES[name]).max)] for name in DTYPES if "INT" in name},
}


def binary(datatype: str, values: list) -> bytes:
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    return np.array(values, DTYPES[datatype]).tobytes()


def message(datatype: str = "FP32", shape: tuple[int, ...] = (1, 2), raw: bytes | None = b"12345678"):
    found = pb.ModelInferRequest(model_name="m")
    found.inputs.add(name="x", datatype=datatype, shape=shape)
    if raw is not None:
        found.raw_input_contents.append(raw)
    return found


def decoded(found, limits: Limits = DEFAULT_LIMITS) -> InferRequest:
    return decode_request(found.SerializeToString(), limits)


@pytest.mark.parametrize("datatype", SAMPLES)
def test_elements_and_raw_bytes_are_the_same_tensor(datatype: str) -> None:
    values = SAMPLES[datatype]
    data = binary(datatype, values)
    raw = decoded(message(datatype, (len(values),), data))
    explicit = message(datatype, (len(values),), None)
    getattr(explicit.inputs[0].contents, MEMBERS[datatype]).extend(values)
    assert decoded(explicit).inputs == raw.inputs == (Tensor("x", datatype, (len(values),), data),)


def test_half_floats_are_raw_only() -> None:
    for datatype in ("FP16", "BF16"):
        assert decoded(message(datatype, (2,), b"1234")).inputs[0].data == b"1234"
        explicit = message(datatype, (1,), None)
        explicit.inputs[0].contents.fp32_contents.append(1.0)
        with pytest.raises(Malformed, match=f"input 'x': {datatype} has no contents of its own"):
            decoded(explicit)


def spoilt(change) -> bytes:
    found = message()
    change(found)
    return found.SerializeToString()


def _contents(found, member: str, values: list, datatype: str = "FP32", shape: tuple[int, ...] = (2,)) -> None:
    del found.raw_input_contents[:]
    del found.inputs[:]
    entry = found.inputs.add(name="x", datatype=datatype, shape=shape)
    getattr(entry.contents, member).extend(values)


FAULTS = {
    "no data": (lambda m: m.raw_input_contents.pop(), "input 'x': fp32_contents has 0 elements, the shape needs 2"),
    "too few bytes": (lambda m: m.raw_input_contents.__setitem__(0, b"1"), "input 'x': .* needs 8 bytes, .* have 1"),
    "left over": (lambda m: m.raw_input_contents.append(b""), "1 raw contents are left over"),
    "one too few": (lambda m: m.inputs.add(name="y", datatype="INT8", shape=[1]), "input 'y' has no raw contents"),
    "both": (lambda m: m.inputs[0].contents.fp32_contents.append(1), "input 'x' has both contents and raw"),
    "twice": (lambda m: m.inputs.add(name="x", datatype="INT8", shape=[1]), "duplicate input 'x'"),
    "datatype": (lambda m: setattr(m.inputs[0], "datatype", "FLOAT"), "invalid datatype 'FLOAT' for input 'x'"),
    "no name": (lambda m: setattr(m.inputs[0], "name", ""), "an input has an empty name"),
    "negative": (lambda m: m.inputs[0].shape.append(-1), "input 'x': .* negative dimension"),
    "rank": (lambda m: m.inputs[0].shape.extend([1] * 20), "input 'x': shape has rank 22"),
    "kind": (lambda m: _contents(m, "int_contents", [1, 2]), "elements belong in fp32_contents, not in int"),
    "count": (lambda m: _contents(m, "fp32_contents", [1.0]), "input 'x': fp32_contents has 1 elements"),
    "range": (lambda m: _contents(m, "int_contents", [1, 300], "INT8"), "input 'x': element 1 is 300, INT8 holds"),
    "strings": (lambda m: _bytes(m, b"\x09\0\0\0a"), "input 'x': element 0 says it has 9 bytes"),
    "no value": (lambda m: m.parameters["p"].Clear(), "parameter 'p' in the request has no value"),
    "timeout": (lambda m: setattr(m.parameters["timeout"], "string_param", "1"), "parameter 'timeout' in the request"),
    "class": (
        lambda m: setattr(m.outputs.add(name="y").parameters["classification"], "int64_param", -1),
        "parameter 'classification' in output 'y'",
    ),
    "region": (
        lambda m: setattr(m.inputs[0].parameters["shared_memory_region"], "int64_param", 1),
        "parameter 'shared_memory_region' in input 'x'",
    ),
}


def _bytes(found, raw: bytes) -> None:
    found.inputs[0].datatype = "BYTES"
    del found.inputs[0].shape[:]
    found.inputs[0].shape.append(1)
    found.raw_input_contents[0] = raw


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_malformed_is_named(name: str) -> None:
    change, words = FAULTS[name]
    with pytest.raises(Malformed, match=words) as caught:
        decode_request(spoilt(change))
    assert caught.value.status == 400


def test_limits_hold_before_anything_is_parsed() -> None:
    found = message("INT32", (5000,), None)
    found.inputs[0].contents.int_contents.extend(range(5000))
    with pytest.raises(Malformed, match="beside raw contents, at most 4096 are allowed") as caught:
        decoded(found, Limits(json_bytes_max=4096))
    assert caught.value.status == 413
    with pytest.raises(Malformed, match="BYTES elements, at most 3"):
        decoded(message("BYTES", (4,), bytes(16)), Limits(bytes_elements_max=3))
    with pytest.raises(Malformed, match="more than 2048 fields"):
        Sketch(b"\x1a\x00" * 3000)


def test_the_last_of_a_field_that_comes_twice_counts() -> None:
    twice = message().SerializeToString() + b"\x0a\x01n\x12\x012"
    sketch = Sketch(twice)
    parsed = pb.ModelInferRequest.FromString(twice)
    assert (sketch.model, sketch.version) == (parsed.model_name, parsed.model_version) == ("n", "2")
    again = pb.ModelInferRequest.FromString(renamed(twice, "other", "7"))
    assert (again.model_name, again.model_version) == ("other", "7")


@pytest.mark.parametrize(
    ("set_parameters", "sequence"),
    [({}, ""), ({"sequence_id": ("int64_param", 0)}, ""), ({"sequence_id": ("int64_param", 7)}, "7"),
     ({"a": ("bool_param", True), "sequence_id": ("string_param", "s")}, "s")],
)  # fmt: skip
def test_a_sequence_is_found_without_reading_tensors(set_parameters: dict, sequence: object) -> None:
    found = message()
    for name, (kind, value) in set_parameters.items():
        setattr(found.parameters[name], kind, value)
    assert Sketch(found.SerializeToString()).sequence() == sequence


def test_an_id_is_no_part_of_what_is_digested() -> None:
    plain, named = message(), message()
    named.id = "r-1"
    sketch = Sketch(named.SerializeToString())
    assert (sketch.id, sketch.anonymous()) == ("r-1", plain.SerializeToString())
    ready = pb.ModelInferResponse(model_name="m").SerializeToString()
    answer = pb.ModelInferResponse.FromString(identified(ready, "r"))
    assert (answer.model_name, answer.id) == ("m", "r")


def test_what_came_before_is_read_from_memory_and_gives_the_same() -> None:
    reader = RequestReader()
    first = reader.decode(Sketch(message().SerializeToString()))
    other = message(raw=b"abcdefgh")
    other.id = "7"
    again = reader.decode(Sketch(other.SerializeToString()))
    assert (first.form, again.form is None) == (None, False)
    assert again.inputs == decoded(other).inputs
    assert again.id == "7"
    short = message(raw=b"short")
    with pytest.raises(Malformed, match="needs 8 bytes"):
        reader.decode(Sketch(short.SerializeToString()))
    answers = ResponseReader()
    answer = InferResponse("m", "1", (Tensor("y", "FP32", (1,), b"1234"),))
    assert answers.decode(encode_response(answer)).form is None
    known = answers.decode(encode_response(answer))
    assert known.form is not None
    assert encode_response(known) == encode_response(answer)


NAMES = st.text(min_size=1, max_size=8)
VALUES = (
    st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
)
OWN = st.dictionaries(NAMES.filter(lambda name: "\0" not in name), VALUES, max_size=3)


@st.composite
def tensors(draw):
    datatype = draw(st.sampled_from([*DTYPES, "BF16", "BYTES"]))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    count = int(np.prod(shape))
    if datatype == "BYTES":
        data = binary("BYTES", [draw(st.binary(max_size=5)) for _ in range(count)])
    else:
        size = count * (2 if datatype == "BF16" else DTYPES[datatype].itemsize)
        data = draw(st.binary(min_size=size, max_size=size))
    return Tensor(draw(NAMES), datatype, shape, data, draw(OWN))


@given(
    model=NAMES, version=st.sampled_from(["", "3"]), identifier=st.text(max_size=5), parameters=OWN,
    inputs=st.lists(tensors(), max_size=3, unique_by=lambda each: each.name),
    outputs=st.lists(st.builds(RequestedOutput, NAMES, OWN), max_size=3),
)  # fmt: skip
def test_what_is_written_is_read_back(model, version, identifier, parameters, inputs, outputs) -> None:
    request = InferRequest(model, tuple(inputs), tuple(outputs), version, identifier, parameters)
    assert decode_request(encode_request(request)) == request
    response = InferResponse(model, version, tuple(inputs), "", parameters)
    assert decode_response(encode_response(response)) == response


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (decode_request, decode_response):
        with contextlib.suppress(Malformed):
            read(data)


@given(data=st.data())
def test_mutated_messages_are_read_or_refused_and_mean_what_protobuf_says(data) -> None:
    whole = bytearray(encode_request(InferRequest("m", (Tensor("x", "FP32", (2,), b"12345678"),), id="i")))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        request = decode_request(bytes(whole))
    except Malformed:
        return
    parsed = pb.ModelInferRequest.FromString(bytes(whole))
    assert (request.model, request.version, request.id) == (parsed.model_name, parsed.model_version, parsed.id)
    assert [bytes(tensor.data) for tensor in request.inputs if not tensor.in_shared_memory] == list(
        parsed.raw_input_contents
    ) or not parsed.raw_input_contents


def test_outputs_in_shared_memory_have_an_empty_place() -> None:
    answer = pb.ModelInferResponse(model_name="m", model_version="1")
    answer.outputs.add(name="y", datatype="FP32", shape=[2])
    answer.outputs.add(name="z", datatype="INT8", shape=[1])
    answer.raw_output_contents.extend([b"", b"1"])
    response = decode_response(answer.SerializeToString(), regions={"y": "r"})
    assert response.outputs[0].parameters == {"shared_memory_region": "r"}
    assert response.outputs[1].data == b"1"
    assert encode_response(response) == answer.SerializeToString()
    del answer.raw_output_contents[0]
    with pytest.raises(Malformed, match="2 outputs and 1 raw contents"):
        decode_response(answer.SerializeToString())


def test_inputs_in_shared_memory_take_no_raw_contents() -> None:
    found = message("INT8", (1,), b"1")
    shared = found.inputs.add(name="s", datatype="FP32", shape=[4])
    shared.parameters["shared_memory_region"].string_param = "r"
    shared.parameters["shared_memory_byte_size"].int64_param = 16
    request = decoded(found)
    assert [tensor.in_shared_memory for tensor in request.inputs] == [False, True]
    assert decode_request(encode_request(request)) == request
