"""Heads of answers: parsed by the strict parser or refused; bodies end where the parser says."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiers.backends.answer import AnswerHeads, FramedBody, Nonsense, may_begin

OK = b"HTTP/1.1 200 OK\r\n"


async def read(head: bytes) -> object:
    return AnswerHeads(asyncio.get_running_loop()).read(head)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (OK + b"Content-Length: 5\r\n\r\n", (200, 5, False, True)),
        (OK + b"Content-Length: 5\r\nConnection: close\r\n\r\n", (200, 5, False, False)),
        (OK + b"transfer-encoding: Chunked\r\n\r\n", (200, None, True, True)),
        (OK + b"\r\n", (200, None, False, False)),
        (b"HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n", (404, 0, False, True)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", (200, 5, False, False)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n", (200, 5, False, True)),
        (b"HTTP/1.1 100 Continue\r\n\r\n", (100, None, False, True)),
        (b"HTTP/1.1 204 No\r\n\r\n", (204, None, False, True)),
    ],
)
async def test_what_a_head_says(head: bytes, expected: tuple[int, int | None, bool, bool]) -> None:
    loop = asyncio.get_running_loop()
    heads = AnswerHeads(loop)
    first = heads.read(head)
    assert (first.status, first.length, first.chunked, first.keep_alive) == expected
    assert heads.read(bytes(bytearray(head))) is first


@pytest.mark.parametrize(
    "head",
    [
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        OK + b"Content-Length: 5\r\ncontent-length: 5\r\n\r\n",
        OK + b"Content-Length: 5, 5\r\n\r\n",
        OK + b"Content-Length: -5\r\n\r\n",
        OK + b"Content-Length: +5\r\n\r\n",
        OK + b"Content-Length: 0x5\r\n\r\n",
        OK + b"Content-Length: 5 5\r\n\r\n",
        OK + b"Content-Length:\r\n\r\n",
        OK + b"Content-Length: 99999999999999999999\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Transfer-Encoding: xchunked\r\n\r\n",
        OK + b"Transfer-Encoding:\x0bchunked\r\n\r\n",
        OK + b"Transfer-Encoding : chunked\r\n\r\n",
        OK + b"Transfer-Encoding: identity\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"A: b\r\n Content-Length: 5\r\n\r\n",
        OK + b"A: b\nContent-Length: 5\r\n\r\n",
        OK + b"A: b\rContent-Length: 5\r\n\r\n",
        OK + b"A: \0\r\n\r\n",
        OK + b"A b\r\n\r\n",
        OK + b": b\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 5\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"\r\n" + OK + b"\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n",
    ],
)
async def test_a_head_in_doubt_is_refused(head: bytes) -> None:
    with pytest.raises(Nonsense):
        await read(head)


async def test_nobody_behind_us_says_what_an_answer_of_ours_is_made_of() -> None:
    head = await read(OK + b"Tailrace-Provenance: cache=hit\r\nX-A: b\r\nContent-Length: 0\r\n\r\n")
    assert head.headers == (("X-A", "b"), ("Content-Length", "0"))
    assert b"Provenance" not in head.lines


@given(st.binary(max_size=60))
def test_any_other_bytes_are_refused_or_read(noise: bytes) -> None:
    async def one() -> None:
        for head in (noise + b"\r\n\r\n", OK + noise + b"\r\n\r\n"):
            try:
                await read(head)
            except Nonsense:
                continue
            assert head.index(b"\r\n\r\n") == len(head) - 4

    asyncio.run(one())


async def test_the_memory_is_bounded_and_never_wrong() -> None:
    heads = AnswerHeads(asyncio.get_running_loop(), heads_max=8, remembered_bytes_max=200)
    for number in range(100):
        assert heads.read(OK + b"Content-Length: %d\r\n\r\n" % number).length == number
        assert len(heads) <= 8
    size = len(heads)
    assert heads.read(OK + b"A: " + b"b" * 500 + b"\r\nContent-Length: 7\r\n\r\n").length == 7
    assert len(heads) == size


def test_what_can_still_become_a_head() -> None:
    head = OK + b"A: b\r\nContent-Length: 5\r\n\r\n"
    assert all(may_begin(head[:end], max(0, end - 1)) for end in range(1, len(head)))
    assert not may_begin(b"SSH-2.0", 0)
    assert not may_begin(b"\n", 0)
    assert not may_begin(b"HTTP/1.1 200 OK\n", 15)
    assert not may_begin(b"HTTP/1.1 200 OK\nA", 0)


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = b"3;x=y\r\none\r\n2\r\n\r\n\r\n0\r\nTrailer: t\r\n\r\n"


@given(
    st.lists(st.integers(0, len(BODY)), max_size=6),
    st.sampled_from([b"", b"\r\n", b"\n", b"H", b"HTTP/1.1 200 OK\r\n\r\n"]),
)
def test_a_chunked_body_ends_where_it_ends(cuts: list[int], after: bytes) -> None:
    async def one() -> None:
        framed = FramedBody(asyncio.get_running_loop(), CHUNKED, True)
        whole, edges = b"", [0, *sorted(cuts), len(BODY)]
        data = [BODY[start:end] for start, end in pairwise(edges) if end > start]
        data[-1] += after
        for piece in data:
            assert not framed.ended
            whole += framed.feed(piece)
        assert framed.ended
        assert whole == b"one\r\n"
        assert framed.clean is (after == b"")

    asyncio.run(one())


@pytest.mark.parametrize("body", [b"x\r\n", b"-1\r\n", b"3\r\nonetwo\r\n", b"FFFFFFFFFFFFFFFFFF\r\n", b"3\r\none3"])
async def test_a_broken_chunk_is_nonsense(body: bytes) -> None:
    framed = FramedBody(asyncio.get_running_loop(), CHUNKED, True)
    with pytest.raises(Nonsense):
        framed.feed(body)


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    framed = FramedBody(asyncio.get_running_loop(), OK + b"\r\n", False)
    assert framed.feed(b"one\n") == b"one\n"
    assert not framed.ended
    assert framed.close()
    half = FramedBody(asyncio.get_running_loop(), CHUNKED, True)
    half.feed(b"3\r\non")
    assert not half.close()
