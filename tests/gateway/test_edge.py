"""One connection of the edge lane: whose bytes are whose whenever they come, and how long each state may last."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.admission.auth import Directory
from gateway.admission.forwarded import Proxies
from gateway.codec.dialect import PROTOCOL
from gateway.doors.buffered import Buffered
from gateway.doors.edge import EdgeConnection
from gateway.doors.handover import OURS, LentTransport
from gateway.doors.head import HeadBounds, Heads, Judgement, Lane
from gateway.doors.lane import Clocks, Desk, EdgeLane, EdgeOptions, Times
from gateway.doors.question import Reply
from gateway.operate.telemetry import Telemetry

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"
OURS_HEAD = b"POST /v2/models/r/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 40\r\n\r\n"
CHUNKED = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
TIMES = Times(head=1.0, body=2.0, idle=5.0, write=3.0)
PIPELINED_BYTES_MAX = 100
BUFFERED_BYTES_MAX = 200
SMALL_BYTES = 20


class Transport:
    """Keeps what is written, and whether it is read from."""

    def __init__(self) -> None:
        self.written = b""
        self.reading = True
        self.has_half_ends = True
        self.ended = self.closed = self.aborted = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 1) if name == "peername" else default

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def pause_reading(self) -> None:
        assert self.reading, "stopped twice"
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def write(self, data: bytes) -> None:
        assert not self.ended, "nothing may be written after the end"
        self.written += data

    def writelines(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return self.has_half_ends

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class Theirs:
    """The other lane: keeps what it is given."""

    transport: LentTransport

    def __init__(self) -> None:
        self.given: list[bytes] = []

    def connection_made(self, transport: LentTransport) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        return None

    def data_received(self, data: bytes) -> None:
        self.given.append(data)

    pause_writing = resume_writing = lambda self: None


class Answering:
    """The exchange: knows no body, and answers when it is told to."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.asked: list[bytes] = []
        self.reply = Reply(200, [], b"{}", "miss")

    def recall(self, question: object, body: bytes, now: float) -> tuple[None, None]:
        self.asked.append(body)
        return None, None

    async def answer(self, *_: object) -> Reply:
        await self.ready.wait()
        return self.reply


class Known(Heads):
    """Heads of which one is a route's; the rest of them goes to the other lane."""

    def judge(self, head: bytes) -> Judgement:
        if head != OURS_HEAD:
            return super().judge(head)
        question: Any = SimpleNamespace(digester=None, route=SimpleNamespace(name="r", timeout=60.0), dialect=PROTOCOL)
        return Judgement(Lane.EDGE, 40, question)


class Scene:
    """A lane with a clock that stands, connections on it, and what is at their ends."""

    def __init__(self) -> None:
        self.now = 0.0
        self.exchange = Answering()
        self.theirs = Theirs()
        nothing: Any = self.exchange
        heads = Known({}, Directory({}, True), HeadBounds(8192, 0), Proxies())
        buffered = Buffered(BUFFERED_BYTES_MAX, SMALL_BYTES)
        desk = Desk(heads, nothing, Telemetry(self.time), buffered, self.foreign, nothing, Proxies())
        options = EdgeOptions(8192, 10, 10, TIMES, PIPELINED_BYTES_MAX)
        self.lane = EdgeLane(desk, Clocks(self.time, self.time), options)

    def time(self) -> float:
        return self.now

    def foreign(self, _: object) -> Any:
        return self.theirs

    def fill(self) -> None:
        """Let other connections hold all that may be held."""
        for _ in range(5):
            self.connect()[0].data_received(OURS_HEAD + bytes(40))

    def connect(self) -> tuple[EdgeConnection, Transport]:
        connection, transport = EdgeConnection(self.lane), Transport()
        untyped: Any = transport
        connection.connection_made(untyped)
        return connection, transport

    def after(self, seconds: float) -> None:
        """Let time pass, and look for those who took too long."""
        self.now += seconds
        self.lane.sweep(self.now)


async def turn() -> None:
    """Let what is ready go on: a task that was woken, and what that wakes."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def scene() -> Scene:
    return Scene()


# -- order --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(1, len(POST + LIVE)))
async def test_what_waited_comes_before_what_comes_now(cut: int, scene: Scene) -> None:
    connection, _ = scene.connect()
    theirs = scene.theirs
    connection.data_received(LIVE + (POST + LIVE)[:cut])
    assert theirs.given == [LIVE]
    connection.foreign_done()
    connection.data_received((POST + LIVE)[cut:])  # before the loop has turned
    assert b"".join(theirs.given) == LIVE + POST
    connection.foreign_done()
    await asyncio.sleep(0)
    assert b"".join(theirs.given) == LIVE + POST + LIVE


# -- how long a state may last ------------------------------------------------------------------------


def idle(connection: EdgeConnection) -> None:
    """Nothing is sent."""


def head_begun(connection: EdgeConnection) -> None:
    connection.data_received(LIVE[:9])


def body_begun(connection: EdgeConnection) -> None:
    connection.data_received(OURS_HEAD + b"b")


def at_rest(connection: EdgeConnection) -> None:
    """A request whose end only the other lane knows is answered."""
    connection.data_received(CHUNKED)
    connection.foreign_began()
    connection.foreign_done()


def at_rest_once_read(connection: EdgeConnection) -> None:
    """The same, and its peer was slow to read the answer."""
    connection.data_received(CHUNKED)
    connection.foreign_began()
    connection.pause_writing()
    connection.foreign_done()
    connection.resume_writing()


def not_read(connection: EdgeConnection) -> None:
    connection.data_received(LIVE)
    connection.pause_writing()


def not_read_and_done(connection: EdgeConnection) -> None:
    not_read(connection)
    connection.foreign_done()


def half_chunked(connection: EdgeConnection) -> None:
    connection.data_received(CHUNKED[:-2] + b"X: y")
    connection.data_received(b"\xff\n")  # no head of ours: the strict parser's from here on


@pytest.mark.parametrize(
    ("begin", "seconds", "status"),
    [
        (idle, TIMES.idle, b""),
        (head_begun, TIMES.head, b"408"),
        (body_begun, TIMES.body, b"408"),
        (half_chunked, TIMES.head, b"408"),
        (at_rest, TIMES.idle, b""),
        (at_rest_once_read, TIMES.idle, b""),
        (not_read, TIMES.write, b""),
        (not_read_and_done, TIMES.write, b""),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
async def test_a_peer_has_its_time_and_no_more(
    begin: Callable[[EdgeConnection], None], seconds: float, status: bytes, scene: Scene
) -> None:
    connection, transport = scene.connect()
    begin(connection)
    scene.after(seconds)
    assert not transport.aborted
    assert not transport.ended
    scene.after(0.001)
    assert transport.aborted or transport.ended
    assert transport.written[9:12] == status
    assert sum(scene.lane.cuts.values()) == 1


async def test_a_cut_is_answered_once_and_waits_no_longer_than_an_answer_may_take(scene: Scene) -> None:
    connection, transport = scene.connect()
    head_begun(connection)
    scene.after(TIMES.head + 1)
    assert transport.written.startswith(b"HTTP/1.1 408 ")
    assert transport.ended
    told = transport.written
    connection.data_received(LIVE[9:])  # too late
    scene.after(TIMES.write + 1)
    scene.after(TIMES.write + 1)
    assert transport.written == told
    assert transport.aborted
    assert scene.theirs.given == []


async def test_work_of_ours_is_bounded_by_its_deadline_not_here(scene: Scene) -> None:
    connection, transport = scene.connect()
    connection.data_received(OURS_HEAD + bytes(40))
    assert connection.limit == math.inf
    scene.exchange.ready.set()
    await turn()
    assert transport.written.startswith(b"HTTP/1.1 200 ")
    assert connection.limit == scene.now + TIMES.idle


async def test_a_head_known_from_the_last_request_takes_no_byte_of_another(scene: Scene) -> None:
    connection, _ = scene.connect()
    longer = OURS_HEAD.replace(b"Host: h\r\n", b"Host: h\r\nX-A: 1\r\n")
    requests = [OURS_HEAD + bytes([number]) * 40 for number in range(6)]
    scene.exchange.ready.set()
    for sent in (
        [requests[0]],
        [requests[1]],
        [requests[2][:-1], requests[2][-1:]],
        [requests[3] + requests[4]],
        [longer + b"\x05" * 40],  # as long as no other, and not ours
        [requests[5]],
    ):
        for piece in sent:
            connection.data_received(piece)
        await turn()
        if sent[0].startswith(longer):
            assert b"".join(scene.theirs.given) == sent[0]
            connection.foreign_done()
    assert scene.exchange.asked == [bytes([number]) * 40 for number in range(6)]


async def test_a_status_that_nobody_has_registered_goes_out_without_a_phrase(scene: Scene) -> None:
    connection, transport = scene.connect()
    scene.exchange.reply = Reply(499, [], b"{}", "problem")
    scene.exchange.ready.set()
    connection.data_received(OURS_HEAD + bytes(40))
    await turn()
    assert transport.written.startswith(b"HTTP/1.1 499 \r\nContent-Length: 2\r\n")
    assert connection.limit == scene.now + TIMES.idle


async def test_a_bug_in_writing_an_answer_ends_the_connection(scene: Scene) -> None:
    connection, transport = scene.connect()
    scene.exchange.reply = Reply(200, None, b"{}", "miss")  # type: ignore[arg-type]  # the bug
    scene.exchange.ready.set()
    connection.data_received(OURS_HEAD + bytes(40))
    await turn()
    assert transport.aborted


async def test_no_second_answer_follows_one_of_the_other_lane(scene: Scene) -> None:
    connection, transport = scene.connect()
    connection.data_received(b"POST / HTTP/1.1\nHost: h")  # what its parser refuses at once
    assert connection.limit == scene.now + TIMES.head
    scene.theirs.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    scene.after(TIMES.head + 1)  # it has not come to closing yet
    assert transport.written == b"HTTP/1.1 400 Bad Request\r\n\r\n"
    scene.theirs.transport.close()
    assert transport.ended


# -- how much may be held -----------------------------------------------------------------------------


async def test_reading_goes_on_when_neither_lane_has_it_stopped(scene: Scene) -> None:
    connection, transport = scene.connect()
    connection.data_received(LIVE + POST * 3)
    assert len(POST * 3) > PIPELINED_BYTES_MAX
    assert not transport.reading, "too much waits behind the request in work"
    scene.theirs.transport.pause_reading()
    connection.resume(OURS)
    assert not transport.reading, "the other lane cannot take more"
    scene.theirs.transport.resume_reading()
    assert transport.reading


async def test_the_other_lane_cannot_begin_what_ours_has_stopped(scene: Scene) -> None:
    connection, transport = scene.connect()
    connection.data_received(LIVE + POST * 3)
    scene.theirs.transport.pause_reading()
    scene.theirs.transport.resume_reading()
    assert not transport.reading
    for _ in range(3):
        connection.foreign_done()
        await asyncio.sleep(0)  # it looks at the next when the other lane has ended its turn
    assert transport.reading


async def test_every_byte_of_a_body_is_counted_until_its_answer_and_then_none(scene: Scene) -> None:
    connection, _ = scene.connect()
    connection.data_received(OURS_HEAD + bytes(30))
    assert scene.lane.buffered.bytes == 30
    connection.data_received(bytes(10) + OURS_HEAD[:7])
    assert scene.lane.buffered.bytes == 47
    assert scene.exchange.asked == [bytes(40)]
    scene.exchange.ready.set()
    await turn()
    assert scene.lane.buffered.bytes == 7
    connection.connection_lost(None)
    assert scene.lane.buffered.bytes == 0


async def test_a_body_beyond_what_all_may_hold_is_503_and_the_others_go_on(scene: Scene) -> None:
    scene.fill()
    connection, transport = scene.connect()
    connection.data_received(OURS_HEAD + bytes(39))
    assert transport.written.startswith(b"HTTP/1.1 503 ")
    assert b"server.buffered_bytes_max" in transport.written
    assert transport.ended
    assert scene.lane.buffered.bytes == 200
    assert scene.lane.buffered.refused == 1


async def test_a_whole_body_beyond_what_all_may_hold_is_503_and_the_connection_stays(scene: Scene) -> None:
    scene.fill()
    connection, transport = scene.connect()
    connection.data_received(OURS_HEAD + bytes(40))
    assert transport.written.startswith(b"HTTP/1.1 503 ")
    assert not transport.ended
    assert connection.limit == TIMES.idle
    assert scene.lane.buffered.bytes == 200


# -- how it ends --------------------------------------------------------------------------------------


async def test_a_connection_that_the_other_lane_ends_is_heard_to_its_end(scene: Scene) -> None:
    connection, transport = scene.connect()
    connection.data_received(CHUNKED)
    scene.theirs.transport.close()
    assert transport.ended, "our side says that nothing more comes"
    assert not transport.closed, "and their last bytes are read, so that no reset takes our answer away"
    assert scene.theirs.transport.is_closing()
    connection.data_received(LIVE)
    assert scene.theirs.given == [CHUNKED]
    scene.after(TIMES.write + 1)
    assert transport.aborted


async def test_a_transport_without_half_ends_is_closed_and_holds_nothing_more(scene: Scene) -> None:
    connection, transport = scene.connect()
    transport.has_half_ends = False
    connection.data_received(OURS_HEAD + b"b")
    scene.after(TIMES.body + 1)
    assert transport.written.startswith(b"HTTP/1.1 408 ")
    assert transport.closed
    assert not transport.ended
    assert scene.lane.buffered.bytes == 0
    assert connection.limit == scene.now + TIMES.write
    scene.after(TIMES.write + 1)
    assert transport.aborted


@pytest.mark.parametrize("begin", [idle, head_begun, at_rest])
async def test_draining_ends_who_has_begun_nothing(begin: Callable[[EdgeConnection], None], scene: Scene) -> None:
    connection, transport = scene.connect()
    begin(connection)
    draining = asyncio.create_task(scene.lane.drain(60.0))
    await asyncio.sleep(0)
    assert transport.closed
    connection.connection_lost(None)
    await draining


async def test_draining_waits_for_an_answer_and_says_that_it_is_the_last(scene: Scene) -> None:
    connection, transport = scene.connect()
    connection.data_received(OURS_HEAD + bytes(40))
    draining = asyncio.create_task(scene.lane.drain(60.0))
    await asyncio.sleep(0)
    assert not transport.closed
    scene.exchange.ready.set()
    await turn()
    assert transport.closed
    assert b"\r\nConnection: close\r\n" in transport.written
    connection.connection_lost(None)
    await draining


async def test_who_is_over_a_limit_of_connections_is_told_apart(scene: Scene) -> None:
    ends = [scene.connect() for _ in range(11)]
    assert [transport.aborted for _, transport in ends] == [False] * 10 + [True]
    assert dict(scene.lane.cuts) == {"full": 1}
    for connection, _ in ends:
        connection.connection_lost(None)
    assert not scene.lane.connections
    assert not scene.connect()[1].aborted
