"""What is remembered of JSON parts gives what reading and writing them anew gives, errors included."""

import json
import math
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiers.inference import COPIED_BYTES_MAX, DATATYPE_BYTES, InferRequest, InferResponse, RequestedOutput, Tensor
from tiers.rows import take_rows
from tiers.v2.forms import FORM_BYTES_MAX, FORMS_BYTES_MAX, FORMS_MAX, RequestForms, RequestWriter, ResponseForms
from tiers.v2.message import Limits, Malformed
from tiers.v2.request import WireForm, decode_request, encode_header, encode_members, encode_request
from tiers.v2.response import decode_response, encode_response

LIMITS = Limits(rank_max=3, inputs_max=3, bytes_elements_max=8)
NAMES = st.sampled_from(["x", "y", "ü", 'q"uote'])
VALUES = st.one_of(st.booleans(), st.integers(-2, 2), st.sampled_from([0.5, 1.0]), st.sampled_from(["", "a", "1"]))
PARAMETERS = st.dictionaries(st.sampled_from(["a", "b", "priority", "timeout", "sequence_id"]), VALUES, max_size=2)


WIRE_FORMS = st.builds(WireForm, st.booleans(), st.frozensets(NAMES, max_size=2), st.frozensets(NAMES, max_size=1))


@st.composite
def tensors(draw):
    datatype = draw(st.sampled_from(["FP32", "INT8", "BYTES", "BF16"]))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=4)))
    elements = math.prod(shape)
    if datatype == "BYTES":
        items = draw(st.lists(st.binary(max_size=3), min_size=elements, max_size=elements))
        data = b"".join(struct.pack("<I", len(item)) + item for item in items)
    else:
        size = elements * DATATYPE_BYTES[datatype]
        data = draw(st.binary(min_size=size, max_size=size))
    return Tensor(draw(NAMES), datatype, shape, data, draw(PARAMETERS))


@st.composite
def bodies(draw):
    """A binary request or something near one, several times over with other data: (body, json_length)."""
    outputs = draw(st.lists(st.builds(RequestedOutput, NAMES, PARAMETERS), max_size=2))
    inputs = draw(st.lists(tensors(), max_size=4))
    name = draw(st.sampled_from(["", "", "id"]))
    request = InferRequest("", tuple(inputs), tuple(outputs), "", name, draw(PARAMETERS))
    parts, length = encode_request(request)
    header, tail = bytearray(parts[0]), b"".join(parts[1:])
    if draw(st.integers(0, 4)) == 0:
        header[draw(st.integers(0, length - 1))] = draw(st.sampled_from(b'0x"{}[],:- \xff'))
    length += draw(st.sampled_from([0, 0, 0, 0, -1, 1, 10**6]))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        data = bytearray(tail)
        if data and draw(st.booleans()):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        grown = draw(st.sampled_from([b"", b"", b"", b"\0"]))
        cut = draw(st.sampled_from([0, 0, 0, 1]))
        found.append((bytes(header) + bytes(data)[cut:] + grown, draw(st.sampled_from([length, length, length, None]))))
    return found


def told(outcome):
    """All of a request or answer but its form, data as bytes; parameters in order, and 1 apart from True."""
    value, wire_form = outcome
    held = value.inputs if isinstance(value, InferRequest) else value.outputs
    each = [(t.name, t.datatype, t.shape, bytes(t.data), repr(dict(t.parameters))) for t in held]
    asked = [(o.name, repr(dict(o.parameters))) for o in value.outputs]
    return value.model, value.version, value.id, repr(dict(value.parameters)), each, asked, wire_form


def outcome_of(decode, *arguments):
    try:
        return told(decode(*arguments))
    except Malformed as fault:
        return fault.reason, str(fault), fault.status


def written(answer, wire_form, own):
    try:
        parts, length = encode_response(answer, wire_form, own)
    except Malformed as fault:
        return fault.reason, str(fault), fault.status
    return [bytes(part) for part in parts], length


def without_form(request):
    return msgspec.structs.replace(request, form=None)


@settings(max_examples=150)
@given(st.lists(bodies(), min_size=1, max_size=3))
def test_a_request_is_what_it_would_be_without_a_memory(sets):
    forms, writer = RequestForms(LIMITS), RequestWriter()
    for _ in range(3):
        for body, length in [each for found in sets for each in found]:
            expected = outcome_of(decode_request, body, length, "m", "1", LIMITS)
            assert outcome_of(forms.decode, body, length, "m", "1") == expected
            assert outcome_of(forms.decode, memoryview(body), length, "m", "1") == expected
            if len(expected) > 3:
                request, _ = forms.decode(body, length, "m", "1")
                for timeout in (None, 7, 123456):
                    parameters = dict(request.parameters) | ({} if timeout is None else {"timeout": timeout})
                    again = msgspec.structs.replace(without_form(request), parameters=parameters)
                    assert writer.encode(request, timeout) == encode_request(again)


@settings(max_examples=80)
@given(
    st.lists(st.lists(tensors(), max_size=3), min_size=1, max_size=3),
    PARAMETERS,
    st.sampled_from(["", "id"]),
    st.lists(WIRE_FORMS, max_size=2),
)
def test_an_answer_is_what_it_would_be_without_a_memory(sets, parameters, name, wire_forms):
    forms = ResponseForms(LIMITS)
    for outputs in (*sets, *sets, *sets):
        response = InferResponse("m", "1", tuple(outputs), "", parameters)
        parts, length = encode_response(response, WireForm(binary_all=True), name)
        body = b"".join(parts)
        for shown in (body, body + b"\0", body[:-1]):
            expected = outcome_of(lambda *a: (decode_response(*a, LIMITS), None), shown, length)
            assert outcome_of(lambda *a: (forms.decode(*a), None), shown, length) == expected
            if len(expected) > 3:
                answer = forms.decode(shown, length)
                for wanted in wire_forms:
                    for own in ("", "caller"):
                        assert written(answer, wanted, own) == written(without_form(answer), wanted, own)


def binary(values=2, **members):
    inputs = [{"name": "x", "datatype": "FP32", "shape": [values], "parameters": {"binary_data_size": 4 * values}}]
    header = json.dumps({"inputs": inputs} | members).encode()
    return header + bytes(4 * values), len(header)


def test_what_comes_twice_has_one_form_whatever_its_data():
    forms = RequestForms()
    body, length = binary()
    first, second, third = (forms.decode(body[:-1] + bytes([last]), length, "m", "")[0] for last in range(3))
    assert first.form is None
    assert second.form is third.form is not None
    assert [tensor.size for tensor in second.form.tensors] == [8]


@pytest.mark.parametrize(
    "members",
    [
        {"id": "1"},
        {"parameters": {"sequence_id": 1}},
        {"parameters": {"sequence_start": False}},
        {"outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"shared_memory_region": "r"}}]},
    ],
)
def test_what_more_than_the_json_part_decides_has_no_form(members):
    forms = RequestForms()
    body, length = binary(**members)
    body = body[:length] if "inputs" in members else body
    assert [forms.decode(body, length, "m", "")[0].form for _ in range(3)] == [None] * 3


def test_a_request_for_some_rows_is_of_no_form_that_came_before():
    forms = RequestForms()
    body, length = binary()
    request, _ = [forms.decode(body, length, "m", "") for _ in range(2)][1]
    assert take_rows(request, [1]).form is None


@pytest.mark.parametrize("values", [1, 100, 2000])
def test_a_small_answer_has_bytes_of_its_own_and_a_large_one_is_a_view_of_its_body(values):
    forms = ResponseForms()
    said = {"model_name": "m", "model_version": "1"}
    outputs = [
        {"name": name, "datatype": "FP32", "shape": [values], "parameters": {"binary_data_size": 4 * values}}
        for name in "yz"
    ]
    header = json.dumps({**said, "outputs": outputs}).encode()
    ones, twos = struct.pack(f"<{values}f", *[1.0] * values), struct.pack(f"<{values}f", *[2.0] * values)
    body = header + ones + twos
    first, second = (forms.decode(body, len(header)) for _ in range(2))
    assert first.form is None
    assert second.form is not None
    assert [bytes(tensor.data) for tensor in second.outputs] == [ones, twos]
    small = len(body) <= COPIED_BYTES_MAX
    assert [isinstance(tensor.data, bytes) for tensor in second.outputs] == [small, small]
    assert (second.compact() is second) is (small or values > 1000)  # nothing is left to copy
    assert second.size == first.compact().size


def test_only_so_many_are_remembered_and_only_short_ones():
    forms = RequestForms()
    for values in range(FORMS_MAX + 10):
        forms.decode(*binary(values), "m", "")
    assert len(forms) == FORMS_MAX
    assert forms.decode(*binary(0), "m", "")[0].form is None
    assert forms.decode(*binary(FORMS_MAX), "m", "")[0].form is not None

    forms = RequestForms()
    long = {"parameters": {str(key): "v" * 1000 for key in range(FORM_BYTES_MAX // 1000)}}
    for _ in range(2):
        assert forms.decode(*binary(2, **long), "m", "")[0].form is None
    assert len(forms) == 0

    rather_long = {str(key): "v" * 1000 for key in range(FORM_BYTES_MAX // 1000 - 1)}
    for values in range(FORMS_MAX):
        forms.decode(*binary(values, parameters=rather_long), "m", "")
    assert 0 < len(forms) < FORMS_MAX
    assert forms.bytes_used <= FORMS_BYTES_MAX


@given(
    timeout=st.one_of(st.integers(-(2**70), 2**70), st.booleans(), st.just("1")),
    others=st.dictionaries(st.sampled_from(["priority", "a"]), st.integers(0, 5), max_size=2),
    request_id=st.sampled_from(["", "i"]),
    named=st.booleans(),
)
def test_the_json_part_of_a_request_with_a_timeout_is_what_any_others_is(timeout, others, request_id, named):
    outputs = (RequestedOutput("y"),) if named else ()
    request = InferRequest("m", (Tensor("x", "FP32", (1,), b"1234"),), outputs, "", request_id)
    parameters = {"timeout": timeout, **others}
    if not named:
        parameters["binary_data_output"] = True
    front = {"id": request_id, "parameters": parameters} if request_id else {"parameters": parameters}
    members = encode_members(request)
    written = encode_header(request, {"timeout": timeout, **others}, members)
    assert written == msgspec.json.encode(front)[:-1] + b"," + members
