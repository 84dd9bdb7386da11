"""An answer is right only if everything about it is."""

from __future__ import annotations

import json

import pytest

from benchmarks.check import cache_state, fault
from benchmarks.peers.start import Counts
from benchmarks.rounds import count_faults
from benchmarks.scenarios import SMALL, Expect, question

ASKED = question(SMALL, 1)
OUTPUT = {"name": "y", "datatype": "FP32", "shape": [1, 10], "parameters": {"binary_data_size": 40}}


def answer(tensor: bytes = ASKED.answer, model: str = "bench_fp32", **output: object) -> tuple[dict[str, str], bytes]:
    head = json.dumps({"model_name": model, "model_version": "1", "outputs": [OUTPUT | output]}).encode()
    return {"inference-header-content-length": str(len(head))}, head + tensor


def test_the_right_answer() -> None:
    assert fault(ASKED, 200, *answer()) == ""


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        (*answer(question(SMALL, 2).answer), "wrong bytes"),
        (*answer(ASKED.answer[:-1]), "wrong bytes"),
        (*answer(ASKED.answer + b"\0"), "wrong bytes"),
        (*answer(model="other"), "wrong outputs"),
        (*answer(shape=[10]), "wrong outputs"),
        (*answer(datatype="FP64"), "wrong outputs"),
        ({}, answer()[1], "no usable"),
        ({"inference-header-content-length": "5"}, answer()[1], "unreadable"),
        ({"inference-header-content-length": "2"}, b"[]", "unreadable"),
    ],
)
def test_a_wrong_answer(headers: dict[str, str], body: bytes, said: str) -> None:
    assert said in fault(ASKED, 200, headers, body)


@pytest.mark.parametrize("status", [199, 201, 204, 304, 429, 500, 503])
def test_another_status(status: int) -> None:
    assert f"status {status}" in fault(ASKED, status, *answer())


@pytest.mark.parametrize(
    ("headers", "state"),
    [
        ({"cache-status": "tailrace; hit; ttl=3599"}, "hit"),
        ({"cache-status": "tailrace;hit"}, "hit"),
        ({"cache-status": "tailrace; fwd=uri-miss; stored"}, "miss"),
        ({"cache-status": "tailrace; fwd=bypass; detail=hit"}, "miss"),
        ({"x-cache": "HIT"}, "hit"),
        ({"x-cache": "MISS"}, "miss"),
        ({"x-cache": "EXPIRED"}, "miss"),
        ({}, ""),
    ],
)
def test_cache_state(headers: dict[str, str], state: str) -> None:
    assert cache_state(headers) == state


ZERO = Counts(100, 10, 10)


@pytest.mark.parametrize(
    ("expect", "own_cache", "after", "right"),
    [
        (Expect.HITS, False, Counts(100, 10, 10), True),
        (Expect.HITS, False, Counts(101, 10, 10), False),
        (Expect.HITS, True, Counts(1100, 1010, 10), True),
        (Expect.HITS, True, Counts(1116, 1026, 10), True),
        (Expect.HITS, True, Counts(1100, 1009, 10), False),
        (Expect.HITS, True, Counts(1101, 1010, 11), False),
        (Expect.FORWARDS, False, Counts(1100, 10, 10), True),
        (Expect.FORWARDS, False, Counts(1116, 10, 10), True),
        (Expect.FORWARDS, False, Counts(1099, 10, 10), False),
        (Expect.FORWARDS, False, Counts(1117, 10, 10), False),
        (Expect.FORWARDS, True, Counts(1100, 10, 1010), True),
        (Expect.FORWARDS, True, Counts(1100, 11, 1009), False),
    ],
)
def test_triton_must_have_counted_what_was_due(expect: Expect, own_cache: bool, after: Counts, right: bool) -> None:
    assert (count_faults(expect, own_cache, ZERO, after, requests=1000, connections=16) == []) == right
