"""What is remembered of heads: exact repeats, and never more than is said."""

from __future__ import annotations

import tracemalloc

import pytest

from gateway.admission.auth import Directory
from gateway.admission.forwarded import Proxies
from gateway.doors.head import HEADS_MAX, HeadBounds, Heads, Lane


def made() -> Heads:
    return Heads({}, Directory({}, True), HeadBounds(65536, 1024), Proxies())


def head(number: int, lines: int, value: str = "") -> bytes:
    fields = "".join([f"a{line}:{value}\r\n" for line in range(lines)])
    return f"POST /v2/models/m/infer HTTP/1.1\r\nHost: {number}\r\nContent-Length: 4\r\n{fields}\r\n".encode()


async def test_a_head_is_judged_once() -> None:
    heads = made()
    asked = head(1, 3)
    assert heads.recall(asked) is None
    judgement = heads.judge(asked)
    assert (judgement.lane, judgement.length, judgement.anonymous) == (Lane.EDGE, 4, True)
    assert heads.recall(bytes(bytearray(asked))) is judgement
    assert heads.judged == 1


@pytest.mark.parametrize("large", [head(1, 60), head(1, 2, "x" * 1500)], ids=["many lines", "long lines"])
async def test_what_is_large_is_judged_each_time(large: bytes) -> None:
    heads = made()
    assert heads.judge(large).lane is Lane.EDGE
    assert heads.recall(large) is None


async def test_hostile_heads_take_no_more_memory_than_is_said() -> None:
    heads = made()
    tracemalloc.start()
    try:
        for number in range(HEADS_MAX + 10):
            heads.judge(head(number, 44, "x" * 35 if number % 2 else ""))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(heads) == HEADS_MAX
    assert held < 60 * 2**20
