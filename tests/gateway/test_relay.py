"""What passes through on the edge lane, callback by callback: what is written, held and counted, and what is left."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from gateway.admission.auth import Directory
from gateway.admission.forwarded import Proxies
from gateway.doors.answers import Answers
from gateway.doors.buffered import Buffered
from gateway.doors.edge import EdgeConnection
from gateway.doors.head import HeadBounds, Heads
from gateway.doors.lane import Clocks, Desk, EdgeLane, EdgeOptions, Times
from gateway.doors.relay import JOINED_BYTES_MAX, Relay
from gateway.operate.telemetry import Telemetry
from tests.gateway.test_edge import Transport
from tiers.backends.answer import AnswerHead
from tiers.backends.call import Call

HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n"
LINES = b"HTTP/1.1 200 OK\r\nA: b\r\n"
TIMES = Times(idle=5.0, answer=9.0, silence=7.0)


class Carried:
    """A call on its way, which holds its listener as one in life does."""

    def __init__(self, listener: Relay) -> None:
        self.listener = listener
        self.left = False

    def abort(self) -> None:
        self.left = True

    def resume(self) -> None: ...


class Replica:
    """Takes what is passed on, and answers when a test does."""

    replicas = ("one",)

    def __init__(self) -> None:
        self.got: list[tuple[Call, bytes]] = []
        self.carried: Carried | None = None
        self.heads: dict[int, AnswerHead] = {}  # as a connection knows them again

    def relay(self, call: Call, body: bytes, listener: Relay, seconds: float, sequence: str) -> Carried:
        assert (seconds, sequence) == (TIMES.answer, "")
        self.got.append((call, body))
        self.carried = Carried(listener)
        return self.carried

    def answer(self, body: bytes) -> None:
        carried, self.carried = self.carried, None
        assert carried is not None
        head = self.heads.setdefault(len(body), AnswerHead(200, (("A", "b"),), len(body), False, True, LINES))
        carried.listener.answer(head, body)


class Scene:
    """A connection of a caller, and a replica, by a clock that stands."""

    def __init__(self) -> None:
        self.now = 1.0
        self.wall = 0.0
        self.replica: Any = Replica()
        self.buffered = Buffered(1000, 100)
        self.telemetry = Telemetry(self.time)
        heads = Heads({}, Directory({}, True), HeadBounds(8192, 2**20), Proxies())
        unused: Any = None
        desk = Desk(heads, unused, self.telemetry, self.buffered, unused, self.replica, Proxies())
        clocks = Clocks(self.time, lambda: self.wall)
        self.lane = EdgeLane(desk, clocks, EdgeOptions(8192, 10, 10, TIMES))
        self.connection, self.transport = EdgeConnection(self.lane), Transport()
        untyped: Any = self.transport
        self.connection.connection_made(untyped)

    def time(self) -> float:
        return self.now

    def written(self) -> bytes:
        written, self.transport.written = self.transport.written, b""
        return written


@pytest.fixture
def scene() -> Scene:
    return Scene()


def expected(body: bytes, milliseconds: str, date: str = "Thu, 01 Jan 1970 00:00:00 GMT", more: bytes = b"") -> bytes:
    told = (
        f"Content-Length: {len(body)}\r\nCache-Status: tailrace; fwd=bypass; detail=passthrough\r\n"
        f"Server-Timing: tailrace;dur={milliseconds}, cache;desc=bypass\r\n"
        "Tailrace-Provenance: cache=bypass, reason=passthrough\r\n"
    )
    return LINES + told.encode() + more + f"Date: {date}\r\nServer: tailrace\r\n\r\n".encode() + body


@pytest.mark.parametrize("cut", [1, len(HEAD) - 1, len(HEAD), len(HEAD) + 1, len(HEAD) + 4])
async def test_a_request_goes_on_whole_and_is_held_until_its_answer_is_written(cut: int, scene: Scene) -> None:
    connection, replica = scene.connection, scene.replica
    for number in range(3):
        for part in (HEAD + b"body")[:cut], (HEAD + b"body")[cut:]:
            if part:
                connection.data_received(part)
        assert [body for _, body in replica.got] == [b"body"] * (number + 1)
        assert scene.buffered.bytes == 4
        assert connection.limit == scene.now + TIMES.answer
        scene.now += 2.0
        replica.answer(b"{}")
        assert scene.written() == expected(b"{}", "2000.000")
        assert scene.buffered.bytes == 0
        assert connection.limit == scene.now + TIMES.idle
    assert b'tailrace_responses_total{route="(passthrough)",status="200"} 3.0' in scene.telemetry.exposition()


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.0, "0.000"), (0.000_312_4, "0.312"), (0.004_095, "4.095"), (0.004_096, "4.096")]
)
async def test_how_long_it_took_is_told_in_milliseconds(seconds: float, told: str, scene: Scene) -> None:
    scene.now = 0.0
    scene.connection.data_received(HEAD + b"body")
    scene.now = seconds
    scene.replica.answer(b"{}")
    assert scene.written() == expected(b"{}", told)


async def test_a_large_answer_that_comes_at_once(scene: Scene) -> None:
    scene.connection.data_received(HEAD + b"body")
    body = bytes(JOINED_BYTES_MAX + 1)
    scene.replica.answer(body)
    assert scene.written() == expected(body, "0.000")
    assert scene.connection.limit == scene.now + TIMES.idle


async def test_the_date_is_that_of_the_answer_and_not_of_the_last_one_like_it(scene: Scene) -> None:
    for wall in (0.0, 0.5, 1.0):
        scene.wall = wall
        scene.lane.sweep(scene.now)
        scene.connection.data_received(HEAD + b"body")
        scene.replica.answer(b"{}")
        assert scene.written() == expected(b"{}", "0.000", f"Thu, 01 Jan 1970 00:00:0{int(wall)} GMT")


async def test_the_last_answer_of_a_gateway_that_ends_says_so(scene: Scene) -> None:
    scene.connection.data_received(HEAD + b"body")
    draining = asyncio.create_task(scene.lane.drain(60.0))
    await asyncio.sleep(0)
    assert not scene.transport.closed
    scene.replica.answer(b"{}")
    assert scene.written() == expected(b"{}", "0.000", more=b"Connection: close\r\n")
    assert scene.transport.closed
    scene.connection.connection_lost(None)
    await draining


async def test_what_came_behind_a_request_is_begun_when_that_has_its_answer(scene: Scene) -> None:
    scene.connection.data_received(HEAD + b"one.")
    scene.connection.data_received(HEAD + b"two.")
    assert len(scene.replica.got) == 1
    scene.replica.answer(b"{}")
    assert len(scene.replica.got) == 1, "the replica's connection is in the middle of its turn"
    await asyncio.sleep(0)
    assert [body for _, body in scene.replica.got] == [b"one.", b"two."]
    scene.replica.answer(b"{}")
    assert scene.written() == expected(b"{}", "0.000") * 2
    assert scene.buffered.bytes == 0


async def test_nothing_is_written_to_who_is_leaving(scene: Scene) -> None:
    scene.connection.data_received(HEAD + b"body")
    scene.transport.abort()
    scene.replica.answer(b"{}")
    assert scene.written() == b""
    scene.connection.connection_lost(None)
    assert scene.buffered.bytes == 0
    assert scene.replica.carried is None


async def test_who_leaves_takes_the_work_along(scene: Scene) -> None:
    scene.connection.data_received(HEAD + b"body")
    scene.connection.connection_lost(None)
    assert scene.replica.carried.left
    assert scene.buffered.bytes == 0


async def test_no_passage_is_left_for_the_collector(scene: Scene) -> None:
    """Cycles of it would be collected again and again, and while that is done nobody is answered."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            scene.connection.data_received(HEAD + b"body")
            scene.replica.answer(b"{}")
        assert [each for each in gc.get_objects() if isinstance(each, Relay)] == []
    finally:
        gc.enable()


@pytest.mark.parametrize(("raw", "remembered"), [(LINES + b"\r\n", 1), (b"", 0), (LINES + b"x" * 4096, 0)])
def test_a_head_is_made_once_if_it_may_come_again(raw: bytes, remembered: int) -> None:
    answers = Answers(0.0)
    head = AnswerHead(200, (("A", "b"),), 4, False, True, LINES, raw)
    told = [answers.of_passed(head, 0.001, b"", b"body") for _ in range(2)]
    assert told[0] == told[1]
    assert told[0].startswith(LINES + b"Content-Length: 4\r\n")
    assert len(answers._passed) == remembered
    answers.set_date(1.0)
    assert len(answers._passed) == 0, "the date is another"
