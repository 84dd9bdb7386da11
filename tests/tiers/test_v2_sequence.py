"""A glance at a request for its sequence: what Triton would see there, and never a complaint."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiers.v2.sequence import sequence_of

INPUTS = '"inputs": [{"name": "x", "datatype": "INT32", "shape": [1], "data": [1]}]'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'{{"parameters": {{"sequence_id": 42, "sequence_start": true}}, {INPUTS}}}', "42"),
        (f'{{{INPUTS}, "parameters": {{"sequence_id": "caller-7"}}}}', "caller-7"),
        ('{"parameters": {"sequence_id": 18446744073709551615}}', "18446744073709551615"),
        ('{"parameters": {"sequence_id": 0}}', ""),
        ('{"parameters": {"sequence_id": ""}}', ""),
        ('{"parameters": {"sequence_id": null}}', ""),
        ('{"parameters": {"sequence_id": true}}', ""),
        ('{"parameters": {"sequence_id": 1.5}}', ""),
        ('{"parameters": {}, "id": "sequence_id"}', ""),
        ('{"inputs": [{"name": "sequence_id"}]}', ""),
        ('{"parameters": {"sequence_id": 4', ""),
        ('[{"sequence_id": 4}]', ""),
        ('{"parameters": 1, "sequence_id": 2}', ""),
        ('"sequence_id"', ""),
        ("", ""),
    ],
)
def test_what_it_is(text: str, expected: str) -> None:
    assert sequence_of(text.encode()) == expected


@given(st.binary(max_size=200), st.binary(max_size=50))
def test_it_never_complains(one: bytes, other: bytes) -> None:
    assert isinstance(sequence_of(one + b'"sequence_id"' + other), str)


def test_nor_does_it_of_depth() -> None:
    deep = b'{"a": ' + b"[" * 100_000 + b'"sequence_id"' + b"]" * 100_000 + b"}"
    assert sequence_of(deep) == ""


@given(st.dictionaries(st.text(), st.integers() | st.text()), st.integers(1, 2**64 - 1) | st.text(min_size=1))
def test_it_is_found_among_others(others: dict[str, int | str], sequence: int | str) -> None:
    text = json.dumps({"id": "sequence_id", "parameters": others | {"sequence_id": sequence}}, ensure_ascii=False)
    assert sequence_of(text.encode()) == str(sequence)
