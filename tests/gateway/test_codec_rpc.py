"""MessagePack-RPC's frames: whole, byte by byte, and in any pieces; what is none ends the stream with a reason."""

from __future__ import annotations

import contextlib
import random
import struct
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.codec.extent import DEPTH_MAX, check_plain
from gateway.codec.rpc import Call, FrameFault, Frames, argument, begun, call_of, known_id, with_members
from gateway.problem import Refused
from tiers.v2.message import Malformed

BYTES_MAX = 2**20


def pieces(stream: bytes, sizes: list[int]) -> list[bytes]:
    found, at = [], 0
    for size in sizes:
        found.append(stream[at : at + size])
        at += size
    return [*found, stream[at:]]


def fed(
    stream: bytes, sizes: list[int], bytes_max: int = BYTES_MAX, plain_bytes_max: int | None = None, steps: int = 10**5
) -> tuple[list[bytes], Frames]:
    frames, messages = Frames(bytes_max, plain_bytes_max), []
    for piece in pieces(stream, sizes):
        messages += frames.feed(piece, steps)
        while frames.unread:
            messages += frames.feed(b"", steps)
    for message in messages:
        assert message.size == sum(map(len, message.pieces))
        assert b"".join(message.pieces).startswith(message.prefix)
    return [message.taken() for message in messages], frames


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(width=32) | st.binary(max_size=40)
    | st.text(max_size=40) | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20))
    | st.lists(st.integers(0, 127), max_size=300) | st.lists(st.floats(width=32), max_size=40),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=20),
    max_leaves=30,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(VALUES, max_size=4), max_size=4), st.lists(st.integers(1, 60), max_size=30), st.booleans(),
       st.sampled_from([1, 3, 10**5]))  # fmt: skip
def test_messages_end_where_their_values_do_whatever_pieces_they_come_in(
    sent: list[list[Any]], sizes: list[int], single: bool, steps: int
) -> None:
    raw = [msgpack.packb(message, use_single_float=single) for message in sent]
    messages, frames = fed(b"".join(raw), sizes, steps=steps)
    assert messages == raw
    assert (frames.fault, frames.held) == (None, 0)


MESSAGES = [
    [0, 1, "infer", [{"inputs": [{"name": "x", "data": b"\0" * 70_000}]}]],
    [0, 2**32 - 1, "predict", [{"inputs": {"x": [[float(index), 1, -1, 300, "a" * 40] for index in range(40)]}}]],
    [2, "health", []],
    [0, 200, "m", [[1] * 2000, [1.5] * 2000, [True, 1.5] * 50, ["a"] * 20, {}, []]],
]


def test_byte_by_byte() -> None:
    stream = b"".join(msgpack.packb(message) for message in MESSAGES)
    frames = Frames(BYTES_MAX)
    found = [message for at in range(len(stream)) for message in frames.feed(stream[at : at + 1])]
    assert [msgpack.unpackb(message.taken()) for message in found] == MESSAGES


def test_a_head_is_whole_when_the_parameters_have_begun_or_are_next() -> None:
    stream = msgpack.packb([0, 300, "infer", [{"a": [[1]]}]])
    front = len(msgpack.packb([0, 300, "infer", []])) - 1
    frames = Frames(BYTES_MAX)
    for at in range(len(stream) - 1):
        frames.feed(stream[at : at + 1])
        assert frames.head_is_whole == (at + 1 >= front), at
        assert frames.known_id() == (300 if at >= 4 else None)
        assert frames.held == at + 1


FAULTS = [
    ("a number", b"\x01", "must be an array", None),
    ("a map", b"\x81\x01\x02", "must be an array", None),
    ("text", b"GET / HTTP/1.1\r\n", "must be an array", None),
    ("a value that is none", b"\x94\x00\x07\xc1", "0xc1", 7),
    ("a value that is none, deep inside", b"\x94\x00\xcd\x01\x00\xa1m\x91\x81\xa1a\xc1", "0xc1", 256),
    ("nested without end", b"\x94\x00\xce\x00\x01\x00\x00\xa1m" + b"\x91" * 1000, "deeper", 65536),
    ("nested maps without end", b"\x94\x00\x07\xa1m" + b"\x81\x01" * 1000, "deeper", 7),
    ("bytes that will be too many", b"\x94\x00\x07\xa1m\x91\xc6\x00\x20\x00\x00", "more than", 7),
    ("text that will be too long", b"\x94\x00\x07\xdb\xff\xff\xff\xff", "more than", 7),
    ("an ext that will be too long", b"\x94\x00\x07\xc9\xff\xff\xff\xff", "more than", 7),
    ("values that will be too many", b"\x94\x00\x07\xa1m\xdd\x00\x20\x00\x00", "more than", 7),
    ("members that will be too many", b"\x94\x00\x07\xa1m\xdf\x00\x09\x00\x00", "more than", 7),
    ("more than is allowed in all", b"\x94\x00\x07\xa1m\x95" + (b"\xc6\x00\x04\x00\x00" + bytes(2**18)) * 5, "more", 7),
]


@pytest.mark.parametrize(("name", "stream", "word", "msgid"), FAULTS, ids=[case[0] for case in FAULTS])
def test_a_stream_that_is_none_ends_with_a_reason(name: str, stream: bytes, word: str, msgid: int | None) -> None:
    before = msgpack.packb([0, 1, "a", []])
    for sizes in ([], [1] * min(len(stream), 200)):
        messages, frames = fed(before + stream, sizes)
        assert messages == [before]
        assert frames.fault is not None
        assert word in frames.fault.problem.detail
        assert frames.fault.msgid == msgid
        assert frames.held == 0
        assert frames.feed(before) == []


def test_values_that_take_too_many_steps_are_refused() -> None:
    hostile = b"\x94\x00\x07\xa1m\xdd" + struct.pack(">I", 2**19 + 100) + b"\xa1a\x01" * (2**18 + 50)
    _, frames = fed(hostile, [])
    assert frames.fault is not None
    assert "too many values" in frames.fault.problem.detail


def test_no_more_is_looked_at_in_one_turn_than_was_asked_for() -> None:
    frames, stream = Frames(BYTES_MAX), b"".join(msgpack.packb([0, 1, "m", [1.5, 1] * 50]) for _ in range(20))
    assert [len(frames.feed(piece, 50)) for piece in (stream, b"", b"", b"")] == [0, 0, 1, 0]
    assert frames.unread
    assert len(frames.feed(b"", 10**5)) == 19
    assert not frames.unread


def test_what_is_beside_strings_and_bytes_has_a_bound_of_its_own() -> None:
    def of(params: object) -> bytes:
        return msgpack.packb([0, 7, "m", [params]])

    allowed = of([b"\0" * 5000, "a" * 5000, [1] * 900])
    for sizes in ([], [1] * len(allowed)):
        assert fed(allowed, sizes, plain_bytes_max=1000)[1].fault is None
        messages, frames = fed(allowed + of([1] * 1001), sizes, plain_bytes_max=1000)
        assert (messages, frames.fault is None) == ([allowed], False)
        assert frames.fault is not None
        assert (frames.fault.msgid, frames.fault.problem.status) == (7, 413)
        assert "too many values" in frames.fault.problem.detail


def test_a_value_in_one_piece_is_held_to_the_same_bound() -> None:
    for value in (b"\0" * 3_000_000, [b"\0" * 2_000_000, [1] * 900], [1] * 990, []):
        check_plain(msgpack.packb(value), 1000)
    for value in ([1] * 1001, [b"\0" * 2_000_000, [1.5] * 120]):
        with pytest.raises(Refused, match="too many values"):
            check_plain(msgpack.packb(value), 1000)
    check_plain(b"\x92\xc5\x09\x00" + bytes(2304) + b"\xdd\x00", 1000)  # cut, which is for its reader to say
    check_plain(bytes(1500), 1000)  # and so are bytes behind it
    with pytest.raises(Refused, match="more than"):
        check_plain(b"\xc6\x00\x10\x00\x00" + bytes(2000), 1000)
    with pytest.raises(Refused, match="0xc1"):
        check_plain(b"\x92\xc1" + bytes(1500), 1000)


@pytest.mark.parametrize(
    ("message", "msgid"),
    [
        ([0, 1, "m"], None),
        ([], None),
        ([1, 1, None, None], None),
        ([2, 1, "m", []], None),
        ([0, -1, "m", []], None),
        ([0, 2**32, "m", []], None),
        ([0, 7, b"m", []], 7),
        ([0, 7, "m" * 65, []], 7),
        ([0, "7", "m", []], None),
        ([0, 7, "m", [], 1], None),
        ([0, "m", []], None),
        ([2, 7, []], None),
    ],
)
def test_a_message_that_is_no_call_is_a_fault_of_the_stream(message: list[Any], msgid: int | None) -> None:
    with pytest.raises(FrameFault) as found:
        call_of(msgpack.packb(message))
    assert found.value.fault.msgid == msgid
    with pytest.raises(FrameFault) as found:
        begun(msgpack.packb(message))
    assert found.value.fault.msgid == msgid


@pytest.mark.parametrize(
    "message", [[0, 7, "infer", [{"a": b"\0" * 5000}]], [2, "m", {}], [0, 2**32 - 1, "x", [1] * 999]]
)
def test_what_a_long_call_begins_with_is_known_without_its_parameters(message: list[Any]) -> None:
    raw = msgpack.packb(message)
    for prefix in (raw, raw[:40]):
        call, at = begun(prefix)
        assert (call.msgid, call.method) == (message[1] if message[0] == 0 else None, message[-2])
        assert msgpack.unpackb(raw[at:]) == message[-1]


def test_calls_and_notifications() -> None:
    assert call_of(msgpack.packb([0, 7, "m", []])).msgid == 7
    told = call_of(msgpack.packb([2, "m", [{}]]))
    assert (told.msgid, told.method) == (None, "m")


def test_the_argument_is_a_map_alone_or_in_an_array_or_nothing() -> None:
    def of(params: object) -> object:
        call: Call = call_of(msgpack.packb([0, 1, "m", params]))
        return msgpack.unpackb(argument(call.params))

    assert of([{"a": 1}]) == of({"a": 1}) == {"a": 1}
    assert of([]) == {}
    assert of([1]) == 1  # which is no map, as whoever reads it will say
    for wrong in ([1, 2], 1, "a", None):
        with pytest.raises(Malformed):
            of(wrong)


def test_members_are_added_without_reading_the_others() -> None:
    whole = msgpack.packb({"a": b"\0" * 100, "b": 2})
    assert msgpack.unpackb(b"".join(with_members(whole, {"c": [1]}))) == {"a": b"\0" * 100, "b": 2, "c": [1]}


def test_known_ids() -> None:
    for msgid in (0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1):
        raw = msgpack.packb([0, msgid, "m", []])
        assert known_id(raw[:8]) == msgid
        for cut in range(len(msgpack.packb(msgid)) + 2):
            assert known_id(raw[:cut]) is None
    assert known_id(msgpack.packb([1, 7, None, None])) is None
    assert known_id(b"") is None


def test_any_bytes_are_messages_or_a_fault() -> None:
    chance = random.Random(7)
    seeds = [msgpack.packb(message) for message in MESSAGES]
    for _ in range(400):
        stream = bytearray(b"".join(chance.choices(seeds, k=2)))[: chance.choice([100, 2000, 10**6])]
        for _ in range(chance.randrange(1, 6)):
            stream[chance.randrange(len(stream))] = chance.randrange(256)
        sizes = [chance.randrange(1, 3000) for _ in range(20)]
        messages, frames = fed(bytes(stream), sizes)
        again, also = fed(bytes(stream), [])
        assert messages == again
        assert (frames.fault, frames.held) == (also.fault, also.held)
        for message in messages:
            with contextlib.suppress(FrameFault, Malformed):
                argument(call_of(message).params)


def test_what_a_stream_makes_us_hold_is_what_it_sent() -> None:
    for hostile in (
        b"\x94\x00\x07\xa1m\x91\xc6" + struct.pack(">I", 2**20 - 100),
        b"\x94\x00\x07\xa1m\xdd" + struct.pack(">I", 2**20 - 100),
    ):
        stream = hostile + bytes(2**19)
        frames = Frames(BYTES_MAX)
        tracemalloc.start()
        for at in range(0, len(stream), 4096):
            frames.feed(stream[at : at + 4096])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert frames.held == len(stream)
        assert peak < 1.2 * len(stream)
    frames, stream = Frames(BYTES_MAX), hostile + bytes(2**16)
    tracemalloc.start()
    for at in range(len(stream)):
        frames.feed(stream[at : at + 1])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert frames.held == len(stream)
    assert peak < 4 * len(stream)
    deep = Frames(BYTES_MAX)
    deep.feed(b"\x94\x00\x07\xa1m" + b"\x91" * (DEPTH_MAX - 1))
    assert deep.fault is None
