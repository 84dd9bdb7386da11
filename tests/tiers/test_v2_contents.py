"""Elements one by one, in any form that protobuf has for them: what its own parser reads of the same bytes."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tiers.datatype import DTYPES, Misfit
from tiers.v2.contents import MEMBERS, from_contents, without_contents
from tiers.v2.message import Malformed
from tiers.v2.wire import FIELDS_MAX
from tiers.v2.wire import packed as varint

WIDE = {"BOOL": 1, "INT32": 2, "INT64": 3, "UINT32": 4, "UINT64": 5, "FP32": 6, "FP64": 7, "BYTES": 8}
FIXED = {"FP32": (5, "<f"), "FP64": (1, "<d")}


def wire(value: int, width: int) -> bytes:
    """A number as a varint of ``width`` bytes, or as many as it needs."""
    written = bytearray(varint(value % 2**64))
    while len(written) < width:
        written[-1] |= 128
        written.append(0)
    return bytes(written)


@st.composite
def fields(draw: st.DrawFn, datatype: str) -> bytes:
    """One field, or one run of fields, of elements of a datatype."""
    number = WIDE[datatype]
    if datatype == "BYTES":
        return b"".join(
            varint(number << 3 | 2) + wire(len(each), draw(st.integers(1, 3))) + each
            for each in draw(st.lists(st.binary(max_size=200), max_size=5))
        )
    if datatype in FIXED:
        kind, form = FIXED[datatype]
        elements = [struct.pack(form, each) for each in draw(st.lists(st.floats(width=32), max_size=40))]
    else:
        kind = 0
        some = st.integers(0, 127) | st.integers(-(2**63), 2**64 - 1) | st.integers(-(2**31), 2**32)
        values = draw(st.lists(some, max_size=40) | st.lists(st.integers(0, 127), max_size=300))
        elements = [wire(each, draw(st.sampled_from([1, 1, 1, 5, 10]))) for each in values]
    if draw(st.booleans()):
        return b"".join(varint(number << 3 | kind) + each for each in elements)
    content = b"".join(elements)
    return varint(number << 3 | 2) + varint(len(content)) + content


@st.composite
def contents(draw: st.DrawFn, others: bool) -> tuple[str, bytes]:
    datatype = draw(st.sampled_from([*WIDE]))
    kinds = fields(datatype)
    if others:
        kinds = kinds | st.sampled_from([*WIDE]).flatmap(fields) | st.sampled_from(
            [b"\x48\x01", b"\x52\x01a", b"\x0d1234", b"\x30\x01", b"\x41" + bytes(8), b"\x7d1234", b"\x32\x00"]
        )  # what nobody knows: other numbers, and other wire types of the members
    return datatype, b"".join(draw(st.lists(kinds, max_size=6)))


def theirs(data: bytes, datatype: str) -> tuple[list[Any], list[str]]:
    """What protobuf reads: the elements of the datatype's member, and which other members have any."""
    parsed = pb.InferTensorContents.FromString(data)
    names = [descriptor.name for descriptor, _ in parsed.ListFields()]
    return list(getattr(parsed, MEMBERS[datatype])), [name for name in names if name != MEMBERS[datatype]]


def binary(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    return np.array(values, DTYPES[datatype]).tobytes()


@settings(max_examples=400, deadline=None)
@given(contents(others=True), st.integers(0, 30))
def test_what_protobuf_reads_is_read_here(case: tuple[str, bytes], cut: int) -> None:
    datatype, data = case
    values, others = theirs(data, datatype)
    pieces = [memoryview(data)]
    if others:
        with pytest.raises(Misfit, match="belong in"):
            from_contents(pieces, datatype, len(values))
        return
    read = from_contents(pieces, datatype, len(values))
    if datatype in FIXED:  # also where there is more than one way to be no number
        np.testing.assert_array_equal(np.frombuffer(read, DTYPES[datatype]), np.array(values, DTYPES[datatype]))
    else:
        assert bytes(read) == binary(datatype, values)
    with pytest.raises(Misfit, match="elements"):
        from_contents(pieces, datatype, len(values) + 1)
    if values:
        with pytest.raises(Misfit, match="elements"):
            from_contents(pieces, datatype, len(values) - 1)


@settings(max_examples=600, deadline=None)
@given(contents(others=False), st.data())
def test_bytes_that_are_no_message_are_none_here_either(case: tuple[str, bytes], data: st.DataObject) -> None:
    datatype, whole = case
    hurt = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 2)) if hurt else 0):
        hurt[data.draw(st.integers(0, len(hurt) - 1))] = data.draw(st.integers(0, 255))
    try:
        values, others = theirs(bytes(hurt), datatype)
    except DecodeError:
        with pytest.raises((Malformed, Misfit)):
            from_contents([memoryview(hurt)], datatype, len(theirs(whole, datatype)[0]))
        return
    try:
        read = from_contents([memoryview(hurt)], datatype, len(values))
    except Misfit:
        assert others
    except Malformed as malformed:
        # Groups, and tags that are too large, of which protobuf knows what to make.
        if "wire type" not in str(malformed) and "does not end" not in str(malformed):
            raise
    else:
        assert not others
        assert len(read) == len(binary(datatype, values))


@pytest.mark.parametrize("datatype", ["INT8", "INT16", "UINT8", "UINT16"])
def test_narrow_numbers_fit_or_are_named(datatype: str) -> None:
    bounds = np.iinfo(DTYPES[datatype])
    message = pb.InferTensorContents()
    getattr(message, MEMBERS[datatype]).extend([0, bounds.min, bounds.max])
    good = message.SerializeToString()
    assert from_contents([memoryview(good)], datatype, 3) == binary(datatype, [0, bounds.min, bounds.max])
    getattr(message, MEMBERS[datatype]).append(bounds.max + 1)
    told = f"element 3 is {bounds.max + 1}, {datatype} holds {bounds.min} to {bounds.max}"
    with pytest.raises(Misfit, match=told):
        from_contents([memoryview(message.SerializeToString())], datatype, 4)


@pytest.mark.parametrize("form", ["packed", "alone", "both"])
def test_more_than_one_piece_of_numbers(form: str) -> None:
    """Numbers on both sides of the pieces in which they are read, of all widths."""
    values = [2 ** (index % 64) + index for index in range(60_000)]
    encoded = [varint(value % 2**64) for value in values]
    content = b"".join(encoded)
    packed = b"\x2a" + varint(len(content)) + content
    alone = b"".join(b"\x28" + each for each in encoded)
    data = {"packed": packed, "alone": alone, "both": packed + alone}[form]
    read = from_contents([memoryview(data)], "UINT64", len(values) * (2 if form == "both" else 1))
    np.testing.assert_array_equal(np.frombuffer(read, "<u8"), np.array(theirs(data, "UINT64")[0], "<u8"))


@pytest.mark.parametrize(
    "data",
    [b"\x1a\x01\x80", b"\x1a\x0b" + b"\x80" * 10 + b"\x01", b"\x18", b"\x18\x80", b"\x18" + b"\x80" * 10 + b"\x01",
     b"\x1a\x05\x01", b"\x1a", b"\x18\x01" * 20 + b"\x18\xff", b"\x00\x01"],
)  # fmt: skip
def test_numbers_that_do_not_end(data: bytes) -> None:
    with pytest.raises(DecodeError):
        pb.InferTensorContents.FromString(data)
    with pytest.raises(Malformed):
        from_contents([memoryview(data)], "INT64", 1)


def test_forms_that_alternate_are_bounded() -> None:
    data = (b"\x1a\x01\x01" + b"\x18\x01") * FIELDS_MAX
    with pytest.raises(Malformed, match="pieces of contents"):
        from_contents([memoryview(data)], "INT64", 2 * FIELDS_MAX)


def test_contents_in_several_fields_are_one() -> None:
    """As protobuf merges them; and what is left of the message is all the rest of it."""
    message = pb.ModelInferRequest(model_name="m", id="i")
    for name in ("x", "y"):
        message.inputs.add(name=name, datatype="INT32", shape=[2]).contents.int_contents.extend([1, -2])
    lone = pb.ModelInferRequest.InferInputTensor(name="z", datatype="INT32", shape=[3])
    halves = b"".join(
        b"\x2a" + varint(len(half)) + half
        for half in (pb.InferTensorContents(int_contents=some).SerializeToString() for some in ([1], [2, 3]))
    )
    tensor = lone.SerializeToString() + halves + b"\x1a\x01\x05"
    data = message.SerializeToString() + b"\x2a" + varint(len(tensor)) + tensor + b"\x12\x017"
    rest, found = without_contents(data)
    assert [from_contents(each, "INT32", size) for each, size in zip(found, (2, 2, 3), strict=True)] == [
        struct.pack("<2i", 1, -2), struct.pack("<2i", 1, -2), struct.pack("<3i", 1, 2, 3),
    ]  # fmt: skip
    expected = pb.ModelInferRequest.FromString(data)
    for each in expected.inputs:
        each.ClearField("contents")
    assert pb.ModelInferRequest.FromString(rest) == expected
    assert without_contents(b"\x0a\x01m") == (b"\x0a\x01m", [])
