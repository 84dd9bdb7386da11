"""What a small hostile message may cost: counted in work, never in seconds."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from tiers import datatype
from tiers.v2 import message, tensors
from tiers.v2.message import DEFAULT_LIMITS as LIMITS
from tiers.v2.message import Malformed
from tiers.v2.request import decode_request


class Counted(str):
    """A member's name that counts how often it is compared."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_a_repeated_member_is_found_in_one_walk() -> None:
    names = [Counted(f"{number:05}") for number in range(5000)]
    Counted.compared = 0
    with pytest.raises(Malformed, match="duplicate member"):
        message._unique([*((name, 1) for name in names), (Counted("04999"), 1)])
    assert Counted.compared < 10 * len(names)  # a name for each other name would be 25 million


def test_more_members_than_any_message_needs_are_refused_unread() -> None:
    extra = {str(number): 1 for number in range(LIMITS.members_max + 1)}
    with pytest.raises(Malformed, match="members in the JSON"):
        decode_request(json.dumps({"inputs": [], "z": extra}).encode(), None, "m", "", LIMITS)


def _strings(shape: list[int], size: int) -> tuple[bytes, int]:
    tensor = {"name": "x", "datatype": "BYTES", "shape": shape, "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + bytes(size), len(head)


def test_a_tensor_is_walked_no_further_than_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    walked = 0

    def spans(data: bytes | memoryview) -> object:
        nonlocal walked
        for span in datatype.bytes_spans(data):
            walked += 1
            yield span

    monkeypatch.setattr(tensors, "bytes_spans", spans)
    body, length = _strings([3], 4_000_000)  # a million empty strings where three are due
    with pytest.raises(Malformed, match="needs 3 elements, got more"):
        decode_request(body, length, "m", "", LIMITS)
    assert walked == 4


def test_too_many_strings_are_refused_before_any_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "bytes_spans", lambda data: pytest.fail("walked"))
    count = LIMITS.bytes_elements_max + 1
    body, length = _strings([count], 4 * count)
    with pytest.raises(Malformed, match="BYTES elements"):
        decode_request(body, length, "m", "", LIMITS)


X = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}
WORDS = {"name": "w", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}


@pytest.mark.parametrize(
    ("last", "tail", "told"),
    [
        ({"datatype": "FP33"}, b"", "invalid datatype"),
        ({"shape": [-1]}, b"", "negative dimension"),
        ({"name": "w"}, b"", "duplicate input"),
        ({"name": ""}, b"", "empty name"),
        ({"data": None, "parameters": {"binary_data_size": 4}}, b"", "has both data"),
        ({}, b"?", "left over"),
    ],
)
def test_nothing_is_walked_while_anything_cheap_is_wrong(
    monkeypatch: pytest.MonkeyPatch, last: dict[str, object], tail: bytes, told: str
) -> None:
    for name in ("bytes_spans", "from_json"):
        monkeypatch.setattr(tensors, name, lambda *_: pytest.fail("elements were looked at"))
    head = json.dumps({"inputs": [WORDS, X, X | {"name": "z"} | last]}).encode()
    with pytest.raises(Malformed, match=told):
        decode_request(head + b"\1\0\0\0a" + tail, len(head), "m", "", LIMITS)


def test_counting_strings_keeps_none_of_them() -> None:
    body, length = _strings([LIMITS.bytes_elements_max], 4 * LIMITS.bytes_elements_max)
    tracemalloc.start()
    decode_request(body, length, "m", "", LIMITS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(body)
