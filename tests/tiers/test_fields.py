"""Request heads: one well-formed head whatever the strings, and nothing that nobody asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiers.backends.fields import Headers, IllFormed, RequestHeads


async def pieces() -> AsyncIterator[bytes]:
    yield b"x"


def test_what_frames_the_body() -> None:
    heads = RequestHeads("h:1")
    assert heads.outgoing("GET", "/a", (), None).head == b"GET /a HTTP/1.1\r\nHost: h:1\r\n\r\n"
    assert heads.outgoing("POST", "/a", (), None).head.endswith(b"\r\nContent-Length: 0\r\n\r\n")
    lying = (("Content-Length", "99"),)
    sent = heads.outgoing("POST", "/a", lying, b"abc")
    assert (sent.head.count(b"Content-Length"), sent.parts) == (1, (b"abc",))
    assert sent.head.endswith(b"Content-Length: 3\r\n\r\n")
    assert heads.outgoing("POST", "/a", (), pieces()).head.endswith(b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert heads.outgoing("POST", "/a", lying, pieces()).length == 99
    assert heads.outgoing("POST", "/a", (("Content-Length", "0" * 30 + "7"),), pieces()).length == 7
    assert not heads.outgoing("HEAD", "/a", (), None).answer_has_body


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("CONNECT", "/", ()),
        ("GET /x HTTP/1.1\r\nA:", "/", ()),
        ("", "/", ()),
        ("GET", "*", ()),
        ("GET", "http://elsewhere/", ()),
        ("GET", "/a b", ()),
        ("GET", "/a\r\nX: y", ()),
        ("GET", "/\ud800", ()),
        ("GET", "/", (("A", "b\r\nC: d"),)),
        ("GET", "/", (("A", "b\nC: d"),)),
        ("GET", "/", (("A", "b\0"),)),
        ("GET", "/", (("A B", "c"),)),
        ("GET", "/", (("A:", "c"),)),
        ("GET", "/", (("", "c"),)),
        ("POST", "/", (("Content-Length", "1"), ("content-length", "2"))),
        ("POST", "/", (("Content-Length", "+1"),)),
        ("POST", "/", (("Content-Length", "1, 1"),)),
    ],
)
def test_what_is_no_request_is_refused(method: str, target: str, headers: Headers) -> None:
    with pytest.raises(IllFormed):
        RequestHeads("h").outgoing(method, target, headers, pieces())


@given(
    st.text(max_size=8),
    st.text(max_size=12),
    st.lists(st.tuples(st.text(max_size=8), st.text(max_size=12)), max_size=3),
)
def test_a_head_has_the_lines_that_were_asked_for(method: str, rest: str, pairs: list[tuple[str, str]]) -> None:
    try:
        head = RequestHeads("h").outgoing(method, "/" + rest, tuple(pairs), b"").head
    except IllFormed:
        return
    assert head.endswith(b"\r\n\r\n")
    assert head.index(b"\r\n\r\n") == len(head) - 4
    lines = head[:-4].split(b"\r\n")
    assert b"\n" not in b"".join(lines)
    assert b"\r" not in b"".join(lines)
    assert len(lines) <= len(pairs) + 3
    assert len(lines[0].split(b" ")) == 3


def test_heads_are_remembered_within_a_bound() -> None:
    heads = RequestHeads("h", heads_max=4)
    for number in range(50):
        heads.outgoing("GET", f"/{number}", (("A", "b" * (number * 150)),), None)
        assert len(heads._known) <= 4
    assert heads.outgoing("GET", "/49", (("A", "c"),), None).head.split(b"\r\n")[2] == b"A: c"
