"""An answer is right only if everything about it is."""

from __future__ import annotations

import json

import pytest

from benchmarks.check import cache_state, fault, json_part
from benchmarks.client import Load
from benchmarks.peers.upstream import Counts
from benchmarks.questions import question
from benchmarks.scenarios import MODEL, QUOTA_RATE, SMALL, Expect
from benchmarks.verdicts import count_faults, quota_faults

ASKED = question(SMALL, 1)
OUTPUT = {"name": "y", "datatype": "FP32", "shape": [1, 10], "parameters": {"binary_data_size": 40}}


def answer(tensor: bytes = ASKED.answer, model: str = "bench_fp32", **output: object) -> tuple[dict[str, str], bytes]:
    head = json.dumps({"model_name": model, "model_version": "1", "outputs": [OUTPUT | output]}).encode()
    return {"inference-header-content-length": str(len(head))}, head + tensor


def test_the_right_answer() -> None:
    headers, body = answer()
    assert fault(ASKED, MODEL, 200, headers, body) == ""
    assert json_part(headers, body) + ASKED.answer == body


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
    assert said in fault(ASKED, MODEL, 200, headers, body)


@pytest.mark.parametrize("status", [199, 201, 204, 304, 429, 500, 503])
def test_another_status(status: int) -> None:
    assert f"status {status}" in fault(ASKED, MODEL, status, *answer())


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
SEEN = Load(requests=990, late=10, fresh=200)


@pytest.mark.parametrize(
    ("expect", "own_cache", "after", "right"),
    [
        (Expect.HITS, False, Counts(100, 10, 10), True),
        (Expect.HITS, False, Counts(101, 10, 10), False),
        (Expect.HITS, True, Counts(1100, 1010, 10), True),
        (Expect.HITS, True, Counts(1100, 1009, 10), False),
        (Expect.HITS, True, Counts(1101, 1010, 11), False),
        (Expect.FORWARDS, False, Counts(1100, 10, 10), True),
        (Expect.FORWARDS, False, Counts(1099, 10, 10), False),
        (Expect.FORWARDS, False, Counts(1101, 10, 10), False),
        (Expect.FORWARDS, False, Counts(1100, 11, 10), False),
        (Expect.FORWARDS, True, Counts(1100, 10, 1010), True),
        (Expect.FORWARDS, True, Counts(1100, 11, 1009), False),
        (Expect.FRESH, False, Counts(300, 10, 10), True),
        (Expect.FRESH, False, Counts(301, 10, 10), False),
        (Expect.FRESH, True, Counts(1100, 810, 210), True),
        (Expect.FRESH, True, Counts(1100, 809, 211), False),
    ],
)
def test_an_upstream_must_have_counted_what_was_due(
    expect: Expect, own_cache: bool, after: Counts, right: bool
) -> None:
    assert (count_faults(expect, own_cache, ZERO, after, SEEN) == []) == right


@pytest.mark.parametrize(
    ("allowed", "refused", "right"),
    [(4 * QUOTA_RATE, 9, True), (5 * QUOTA_RATE, 9, False), (QUOTA_RATE, 9, False), (4 * QUOTA_RATE, 0, False)],
)
def test_a_quota_lets_through_what_is_due_and_no_more(allowed: int, refused: int, right: bool) -> None:
    seen = Load(requests=allowed + refused, also=refused, microseconds=3e6)
    assert (quota_faults(seen) == []) == right
