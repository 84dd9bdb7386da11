"""A connection under TLS takes what is written as a plain one does: piece by piece, in order, and it says when full."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.doors.secured import PIECE_BYTES_MAX, Secured


class Below:
    """The loop's TLS: takes pieces, and says it is full once it holds ``room`` bytes that the peer has not read."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.held = 0
        self.written: list[bytes] = []
        self.closed = self.aborted = False
        self.above: Any = None

    def set_write_buffer_limits(self, high: int) -> None:
        assert high == PIECE_BYTES_MAX

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written.append(bytes(data))
        self.held += len(data)
        if self.held > self.room:
            self.above.pause_writing()

    def drained(self) -> None:
        self.held = 0
        self.above.resume_writing()

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def get_write_buffer_size(self) -> int:
        return self.held


class Above(asyncio.Protocol):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.told.append("lost")


@pytest.fixture
def joined() -> tuple[Secured, Below, Above]:
    above, below = Above(), Below(PIECE_BYTES_MAX)
    secured = below.above = Secured(lambda: above)
    untyped: Any = below
    secured.connection_made(untyped)
    return secured, below, above


Joined = tuple[Secured, Below, Above]


def test_small_writes_go_straight_down(joined: Joined) -> None:
    secured, below, above = joined
    secured.write(b"a")
    secured.writelines([b"b", b"", b"c"])
    assert b"".join(below.written) == b"abc"
    assert above.told == []


def test_a_large_answer_waits_here_and_the_writer_hears_of_it_once(joined: Joined) -> None:
    secured, below, above = joined
    answer = bytes(range(256)) * 4096
    secured.writelines([b"head", answer])
    assert secured.get_write_buffer_size() == len(answer) + 4
    secured.write(b"next")
    assert max(map(len, below.written)) <= PIECE_BYTES_MAX
    turns = 0
    while below.held > below.room:
        assert above.told == ["pause"]
        assert below.held <= below.room + 2 * PIECE_BYTES_MAX
        below.drained()
        turns += 1
    assert turns > 5
    assert above.told == ["pause", "resume"]
    assert b"".join(below.written) == b"head" + answer + b"next"
    assert secured.get_write_buffer_size() == below.held


def test_closing_waits_for_what_is_written(joined: Joined) -> None:
    secured, below, _ = joined
    answer = bytes(5 * PIECE_BYTES_MAX)
    secured.write(answer)
    secured.close()
    secured.close()
    assert secured.is_closing()
    assert not below.closed
    secured.write(b"too late")
    while not below.closed:
        below.drained()
    assert b"".join(below.written) == answer


def test_aborting_waits_for_nothing(joined: Joined) -> None:
    secured, below, above = joined
    secured.write(bytes(5 * PIECE_BYTES_MAX))
    secured.abort()
    assert below.aborted
    before = len(below.written)
    secured.resume_writing()
    assert len(below.written) == before
    secured.connection_lost(None)
    secured.connection_lost(None)
    secured.write(b"too late")
    assert len(below.written) == before
    assert above.told.count("lost") == 1


def test_half_an_end_does_not_exist(joined: Joined) -> None:
    assert not joined[0].can_write_eof()
