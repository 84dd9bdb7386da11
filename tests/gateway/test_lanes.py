"""All lanes of the HTTP door say the same, whatever comes in whatever pieces; none is desynchronised."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import runpy
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvloop
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.app import Gateway
from gateway.doors.edge import EdgeConnection
from gateway.doors.head import Lane
from gateway.sources import load

CASES = Path(__file__).parents[1] / "cases"
DESYNC = list(runpy.run_path(str(CASES / "desync.py"))["streams"]())
STREAMS = runpy.run_path(str(CASES / "streams.py"))
STREAMS_MIN = 3200
TAGGED_MIN = 50
TURNS = 50
"""Of the loop: more than any answer takes that needs no other process."""
SECONDS = 20.0
RESET = b"(reset)"
CONNECTIONS = 48
MOMENT = "3s"
LANES = ("edge", "aiohttp")
GATEWAYS = (*LANES, "aiohttp alone", "edge under TLS")
DOORS = (0, 1, 3)
"""The gateways that are asked through a socket."""
FACTS = {"name": "m", "versions": ["1"], "inputs": [], "outputs": []}
TENSOR = {"datatype": "INT32", "shape": [-1]}
DOCUMENTS = {
    b"/v2/models/m": {**FACTS, "inputs": [{"name": "x", **TENSOR}], "outputs": [{"name": "y", **TENSOR}]},
    b"/v2/models/m/config": {"name": "m", "max_batch_size": 0},
    b"/v2/models/m/stats": {"model_stats": []},
}
INFERENCE = {
    "model_name": "m",
    "model_version": "1",
    "outputs": [{"name": "y", "datatype": "INT32", "shape": [1], "data": [7]}],
}


class Upstream:
    """Answers as a Triton with one model would, and keeps the head of every request that is no question."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.serving: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                target = head.split(b" ")[1]
                if target not in (b"/v2/health/ready", b"/v2/models/m", b"/v2/models/m/config", b"/v2/models/m/stats"):
                    self.heads.append(head)
                await self._body(head.lower(), reader)
                told = INFERENCE if target.endswith(b"/infer") else DOCUMENTS.get(target, {})
                body = json.dumps(told).encode()
                target = target.replace(b"/versions/1", b"")
                if b"/versions/" in target:
                    body = b'{"error":"unknown version"}'
                    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                    continue
                sent = b"" if head.startswith(b"HEAD ") else body
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), sent))
        writer.close()

    async def _body(self, head: bytes, reader: asyncio.StreamReader) -> None:
        if b"\r\ntransfer-encoding:" in head:
            assert b"\r\ntransfer-encoding: chunked\r\n" in head, head
            assert b"content-length" not in head, head
            while size := int(await reader.readuntil(b"\r\n"), 16):
                await reader.readexactly(size + 2)
            await reader.readexactly(2)
        elif found := re.search(rb"\r\ncontent-length: ([0-9]+)\r\n", head):
            await reader.readexactly(int(found[1]))


class House:
    """Gateways that differ in the lane alone, before one upstream, in a loop of their own, which is users' loop."""

    def __init__(self, pem: Any) -> None:
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.pem = pem
        self.upstream = Upstream()
        self.gateways: list[Gateway] = []
        self.ports: list[int] = []
        self.runner.run(self._start())

    async def _start(self) -> None:
        self.server = await asyncio.start_server(self.upstream.serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        for lane in GATEWAYS:
            environ = {
                "TAILRACE_SERVER__HTTP": '"127.0.0.1:0"',
                "TAILRACE_SERVER__GRPC": "off",
                "TAILRACE_SERVER__ADMIN": '"127.0.0.1:0"',
                "TAILRACE_SERVER__ALLOW": "[]",
                "TAILRACE_SERVER__DRAIN": "100ms",
                "TAILRACE_SERVER__EDGE": "false" if "aiohttp" in lane else "true",
                "TAILRACE_SERVER__HEAD_TIMEOUT": MOMENT,
                "TAILRACE_SERVER__BODY_TIMEOUT": MOMENT,
                "TAILRACE_SERVER__IDLE_TIMEOUT": MOMENT,
                "TAILRACE_ROUTES__R": '{ tiers = [{ backend = "upstream", model = "m" }], cache = { ttl = "1h" } }',
            }
            if "TLS" in lane:
                environ["TAILRACE_SERVER__TLS__CERTIFICATE"] = str(self.pem.certificate)
                environ["TAILRACE_SERVER__TLS__KEY"] = str(self.pem.key)
            gateway = Gateway(load(None, environ, [url]))
            http, _ = await gateway.start()
            self.gateways.append(gateway)
            self.ports.append(int(http.rpartition(":")[2]))

    async def _stop(self) -> None:
        for gateway in self.gateways:
            await gateway.stop()
        self.server.close()
        await asyncio.gather(*self.upstream.serving, return_exceptions=True)

    def close(self) -> None:
        self.runner.run(self._stop())
        self.runner.close()

    def protocol(self, lane: int) -> asyncio.Protocol:
        """A new connection of a lane's own, or (2) aiohttp's of the same handler, with nothing of ours before it."""
        gateway = self.gateways[lane]
        return EdgeConnection(gateway.doors.lane) if lane < len(LANES) else gateway.doors.listener()

    async def talk(self, lane: int, pieces: list[bytes]) -> bytes:
        """All that comes back on one connection until the gateway ends it."""
        tls = self.pem.caller() if "TLS" in GATEWAYS[lane] else None
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[lane], ssl=tls)
        received = b""
        try:
            async with asyncio.timeout(SECONDS):
                for piece in pieces:
                    writer.write(piece)
                    await asyncio.sleep(0)
                while data := await reader.read(2**16):
                    received += data
        except ConnectionError:  # closed while pieces were on the way: TCP may lose what was said before
            received += RESET
        writer.close()
        return received


@pytest.fixture(scope="module")
def house(pem: Any) -> Iterator[House]:
    made = House(pem)
    yield made
    made.close()


def alike(one: bytes, *others: bytes) -> bool:
    """Whether lanes said the same, as far as all could be heard."""
    heard = [statuses(each) for each in (one, *others)]
    if any(each.endswith(RESET) for each in (one, *others)):
        both = min(len(each) for each in heard)
        heard = [each[:both] for each in heard]
    return all(each == heard[0] for each in heard)


def statuses(received: bytes) -> list[int]:
    return [int(each) for each in re.findall(rb"HTTP/[0-9]\.[0-9] ([0-9]{3}) ", received)]


async def difference(house: House, pieces: list[bytes]) -> list[bytes]:
    """What the lanes say to a stream alone, if that differs each time of three: where the machine is busy, a head
    that comes in pieces may take longer than it has."""
    said: list[bytes] = []
    for _ in range(3):
        said = [await house.talk(lane, pieces) for lane in DOORS]
        if alike(*said):
            return []
    return said


# -- streams with two ends --------------------------------------------------------------------------


def test_there_are_enough_of_them() -> None:
    names = [name for name, _ in DESYNC]
    assert len(names) == len(set(names)) >= 300


def test_nothing_hidden_is_ever_acted_on_and_all_lanes_say_the_same(house: House) -> None:
    async def everything() -> list[list[bytes]]:
        turns = asyncio.Semaphore(CONNECTIONS)

        async def one(raw: bytes) -> list[bytes]:
            async with turns:
                return await asyncio.gather(*(house.talk(lane, [raw]) for lane in DOORS))

        return await asyncio.gather(*(one(raw) for _, raw in DESYNC))

    told = house.runner.run(everything())
    for (name, raw), said in zip(DESYNC, told, strict=True):
        if not alike(*said):
            assert house.runner.run(difference(house, [raw])) == [], name
        for each in said:
            assert len([status for status in statuses(each) if status >= 200]) <= 1, (name, each)
            assert 500 not in statuses(each), (name, each)
    assert not [head for head in house.upstream.heads if b"smuggled" in head]
    assert house.upstream.heads, "some of these are legal, and reach the upstream"


# -- streams in any pieces ----------------------------------------------------------------------------

KNOWN = b"POST /v2/models/r/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (
    len(STREAMS["KNOWN"]),
    STREAMS["KNOWN"],
)
LAST = STREAMS["LAST"]


@pytest.mark.parametrize("lane", DOORS, ids=[GATEWAYS[lane] for lane in DOORS])
def test_requests_behind_a_hit_are_answered(house: House, lane: int) -> None:
    assert statuses(house.runner.run(house.talk(lane, [KNOWN + LAST]))) == [200, 200]
    assert statuses(house.runner.run(house.talk(lane, [3 * KNOWN + LAST]))) == [200] * 4
    cut = len(KNOWN) + 9
    assert statuses(house.runner.run(house.talk(lane, [(2 * KNOWN)[:cut], (2 * KNOWN)[cut:] + LAST]))) == [200] * 3


class Wire(asyncio.Transport):
    """A connection without a socket: each piece arrives as it was cut, and nothing that was said is lost."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.heard = bytearray()
        self.ended = asyncio.get_running_loop().create_future()
        self._protocol = protocol
        self._closing = False
        self._paused = False
        self._held: list[bytes] = []
        protocol.connection_made(self)

    def say(self, piece: bytes) -> None:
        if self._paused:
            self._held.append(piece)
        elif not self._closing:
            self._protocol.data_received(piece)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        while self._held and not self._paused:
            self.say(self._held.pop(0))

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 1) if name == "peername" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing:
            self.heard += data

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        asyncio.get_running_loop().call_soon(self.close)  # the peer has heard all there is, and closes

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._lose)

    def abort(self) -> None:
        self.close()

    def _lose(self) -> None:
        self._protocol.connection_lost(None)
        if not self.ended.done():
            self.ended.set_result(None)


class Answer(NamedTuple):
    """One answer, less what depends on when it was given."""

    status: int
    fields: tuple[tuple[str, str], ...]
    body: bytes


HEAD = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")
UNREADABLE = b"The request is not valid HTTP/1.1:"
OF_THE_MOMENT = frozenset({"date", "server-timing", "age"})


def answers(heard: bytes) -> list[Answer]:
    """All answers of a connection. The bodies of these servers have nothing in them that looks like a head."""
    found = list(HEAD.finditer(heard))
    begins = [each.start() for each in found] + [len(heard)]
    assert begins[0] == 0, heard
    return [_answer(each, heard[each.end() : end]) for each, end in zip(found, begins[1:], strict=True)]


def _answer(head: re.Match[bytes], body: bytes) -> Answer:
    fields = []
    for line in head[2].decode("latin-1").splitlines():
        name, _, value = line.partition(": ")
        if name.lower() not in OF_THE_MOMENT:
            fields.append((name.lower(), re.sub(r"(ttl|age)=-?[0-9]+", r"\1=", value)))
    if UNREADABLE in body:  # what follows is what the parser happened to have in its hands
        body = body.partition(UNREADABLE)[0]
        fields = [field for field in fields if field[0] != "content-length"]
    return Answer(int(head[1]), tuple(sorted(fields)), body)


HOST = b"Host: h\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LIVE = b"GET /v2/health/live HTTP/1.1\r\n" + HOST
HIDDEN = b"GET /v2/models/m/smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
OFFER = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
INFER = b"POST /v2/models/r/infer HTTP/1.1\r\n" + HOST
HIDING = b"POST /v2/models/m/infer HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(HIDDEN)

LESSONS = {
    # aiohttp drops what it reads together with the end of a request that offers another protocol than WebSocket, and
    # would go on in the middle of the next one.
    "an offer to upgrade is answered, and what is behind it too": ([LIVE + OFFER + b"\r\n" + KNOWN + LAST], [200] * 3),
    "an offer with a body": ([KNOWN.replace(HOST, HOST + OFFER) + HIDING, HIDDEN + LAST], [200] * 3),
    "an offer behind a body in chunks is the last that is answered": (
        [LIVE + CHUNKED + b"\r\n0\r\n\r\n" + KNOWN.replace(HOST, HOST + OFFER) + HIDING, HIDDEN + LAST],
        [200] * 2,
    ),
    # It also forgets what it reads together with something illegal.
    "what is illegal takes no answer from what came before": (
        [LIVE + CHUNKED + b"\r\n0\r\n\r\n" + LIVE + b"\r\n" + b"GET / HTTP/1.1\r\nX : y\r\n\r\n"],
        [200, 200, 400],
    ),
    "the same where a blank line is in two pieces": (
        [LIVE + CHUNKED + b"\r\n0\r\n\r\n" + LIVE + b"\r", b"\n" + b"GET / HTTP/1.1\r\nX : y\r\n\r\n"],
        [200, 200, 400],
    ),
    "a request behind the last one takes no answer from it": (
        [LIVE + b"Connection: close\r\n\r\n" + KNOWN + LAST],
        [200],
    ),
    "a body that turns bad is answered in its turn": (
        [KNOWN + LIVE + CHUNKED + b"\r\n0\r\n\r\n" + LIVE + b"\r\n" + INFER, CHUNKED + b"\r\nzz\r\n" + LAST],
        [200, 200, 200, 400],
    ),
}


@pytest.mark.parametrize("lane", range(len(LANES)), ids=LANES)
@pytest.mark.parametrize("lesson", LESSONS)
def test_what_was_learnt(house: House, lesson: str, lane: int) -> None:
    pieces, expected = LESSONS[lesson]
    stream = STREAMS["Stream"](tuple(pieces), 1, True, frozenset())
    assert [each.status for each in house.runner.run(told(house, lane, stream))] == expected
    assert not [head for head in house.upstream.heads if b"smuggled" in head]


@pytest.mark.parametrize("lane", range(len(LANES)), ids=LANES)
def test_what_passes_through_is_given_no_type(house: House, lane: int) -> None:
    asked = (b"GET /v2/models/m HTTP/1.1\r\n", b"POST /v2/models/m/x HTTP/1.1\r\n")
    raw = (*(line + HOST + b"\r\n" for line in asked), LAST)
    for answer in house.runner.run(told(house, lane, STREAMS["Stream"](raw, 1, True, frozenset())))[:-1]:
        assert answer.status == 200
        assert "content-type" not in dict(answer.fields)


@pytest.mark.parametrize("lane", range(len(LANES)), ids=LANES)
@pytest.mark.parametrize("line", [b"GET /v2/health/live\r\n", b"GET /v2/health/live HTTP/2.0\r\n"])
def test_answers_are_in_our_version(house: House, line: bytes, lane: int) -> None:
    [answer] = house.runner.run(told(house, lane, STREAMS["Stream"]((line + HOST + b"\r\n",), 1, True, frozenset())))
    assert answer.status == 505  # a head of another version would not have been one of HEAD's


@pytest.mark.parametrize("lane", range(len(LANES)), ids=LANES)
@pytest.mark.parametrize("asked", [LIVE + b"\r\n", LIVE + CHUNKED + b"\r\n0\r\n\r\n"])
@pytest.mark.parametrize("half", [b"", LIVE])
def test_what_aiohttp_holds_is_let_go_of_between_requests(house: House, half: bytes, asked: bytes, lane: int) -> None:
    """Its memory is several times ours; but half a request that it was given is not forgotten."""

    async def talk() -> list[int]:
        connection = house.protocol(lane)
        assert isinstance(connection, EdgeConnection)
        wire = Wire(connection)
        for piece in (asked, half):
            if piece:
                wire.say(piece)
            for _ in range(TURNS):
                await asyncio.sleep(0)
        connection.rest()
        assert (connection._handler is None) == (not half or CHUNKED not in asked)  # else it was given the half
        wire.say((b"\r\n" if half else b"") + KNOWN + LAST)
        async with asyncio.timeout(SECONDS):
            await wire.ended
        return statuses(bytes(wire.heard))

    assert house.runner.run(talk()) == [200] * (4 if half else 3)


@pytest.mark.parametrize("lane", range(len(LANES)), ids=LANES)
@pytest.mark.parametrize(
    "pieces",
    [[LIVE + b"\r\n", KNOWN[:20]], [LIVE + CHUNKED + b"\r\n0\r\n\r", b"\n"]],
    ids=["the next head has begun here", "its last byte came alone"],
)
def test_it_is_let_go_of_however_the_request_came(house: House, pieces: list[bytes], lane: int) -> None:
    async def talk() -> list[int]:
        connection = house.protocol(lane)
        assert isinstance(connection, EdgeConnection)
        wire = Wire(connection)
        for piece in pieces:
            wire.say(piece)
            for _ in range(TURNS):
                await asyncio.sleep(0)
        assert connection.rest()
        assert connection._handler is None
        wire.say((KNOWN[20:] if pieces[-1] == KNOWN[:20] else b"") + LAST)
        async with asyncio.timeout(SECONDS):
            await wire.ended
        return statuses(bytes(wire.heard))

    assert house.runner.run(talk()) == [200] * (3 if pieces[-1] == KNOWN[:20] else 2)


def test_a_body_that_does_not_come_ends_the_connection(house: House) -> None:
    streams = [
        STREAMS["Stream"]((INFER + framing + b"\r\n",), 1, True, frozenset())
        for framing in (b"Content-Length: 9\r\n", CHUNKED)
    ]

    async def everything() -> list[list[Answer]]:
        return await asyncio.gather(*(told(house, lane, each) for lane in range(len(LANES)) for each in streams))

    for answered in house.runner.run(everything()):
        assert [(each.status, dict(each.fields)["connection"]) for each in answered] == [(408, "close")]


@pytest.mark.parametrize("lane", range(len(LANES)), ids=LANES)
def test_a_body_that_turns_bad_while_it_is_read_has_the_last_answer_and_that_says_so(house: House, lane: int) -> None:
    warm(house)
    pieces = (KNOWN + INFER + CHUNKED + b"\r\n", b"1" + b"0" * 16 + b"\r\n")
    answered = house.runner.run(told(house, lane, STREAMS["Stream"](pieces, 1, True, frozenset())))
    assert [each.status for each in answered] == [200, 400]
    assert dict(answered[-1].fields)["connection"] == "close"


async def told(house: House, lane: int, stream: Any) -> list[Answer]:
    """What a lane says to a stream."""
    protocol = house.protocol(lane)
    wire = Wire(protocol)
    async with asyncio.timeout(SECONDS):
        for number, piece in enumerate(stream.pieces):
            wire.say(piece)
            if number % stream.turn == 0:
                await asyncio.sleep(0)
                if stream.rests and isinstance(protocol, EdgeConnection):
                    protocol.rest()
        await wire.ended
    return answers(bytes(wire.heard))


def comparable(stream: Any) -> range:
    """The lanes that must agree. aiohttp alone has no limit on a head's time, and forgets requests that arrive in one
    read with something illegal or the end of a connection."""
    alone = not any(tag.startswith("illegal") or tag in ENDING for tag in stream.tags)
    return range(len(LANES) + alone)


ENDING = frozenset({"unfinished", "close", "1.0", "upgrade"})
LATE = 408
"""Whether half a head was there before the answer to the last request decides if its sender is told of its time."""


async def heard(house: House, stream: Any) -> list[list[Answer]]:
    """What each lane says, less a last word on time."""
    said = await asyncio.gather(*(told(house, lane, stream) for lane in comparable(stream)))
    late = "unfinished" in stream.tags
    return [each[:-1] if late and each and each[-1].status == LATE else each for each in said]


def warm(house: House) -> None:
    """Nothing is cached but KNOWN, which is known by its bytes."""
    for lane, gateway in enumerate(house.gateways):
        cache = gateway.routes["r"].cache
        assert cache is not None
        cache.purge()
        plain = STREAMS["Stream"]((2 * KNOWN + LAST,), 1, True, frozenset())
        assert [each.status for each in house.runner.run(told(house, lane, plain))] == [200, 200, 200]
        assert cache.wires == 1


def generated() -> list[Any]:
    """All streams; hypothesis throws the dice, always the same."""
    thrown: list[bytes] = []

    @settings(
        max_examples=STREAMS_MIN,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),  # they are asked together, later: nothing to shrink
    )
    @given(shown=st.binary(min_size=STREAMS["DICE_BYTES"], max_size=STREAMS["DICE_BYTES"]))
    def throw(shown: bytes) -> None:
        thrown.append(shown)

    throw()
    return [STREAMS["stream"](shown, serial) for serial, shown in enumerate(thrown)]


def difference_told(stream: Any, lanes: list[list[Answer]]) -> str:
    told = [f"{len(stream.pieces)} pieces, a turn after {stream.turn}, {sorted(stream.tags)}"]
    told += [repr(piece) for piece in stream.pieces]
    for lane, answered in enumerate(lanes):
        told += [f"lane {lane}:", *(f"  {each}" for each in answered)]
    return "\n".join(told)


@pytest.mark.timeout(600)  # half a minute where nothing else runs
def test_any_stream_gets_the_same_answers_on_both_lanes(house: House) -> None:
    streams = generated()
    warm(house)

    async def everything() -> list[list[list[Answer]]]:
        turns = asyncio.Semaphore(CONNECTIONS)

        async def one(stream: Any) -> list[list[Answer]]:
            async with contextlib.nullcontext() if "unfinished" in stream.tags else turns:
                return await heard(house, stream)

        return await asyncio.gather(*(one(stream) for stream in streams))

    said = house.runner.run(everything())
    for stream, lanes in zip(streams, said, strict=True):
        for _ in range(2):  # alone: where the machine is busy, a head in pieces may take longer than it has
            if all(lane == lanes[0] for lane in lanes):
                break
            warm(house)
            lanes[:] = house.runner.run(heard(house, stream))
        assert all(lane == lanes[0] for lane in lanes), difference_told(stream, lanes)
    they_were_what_they_are_for(streams, said)
    for gateway, edge in zip(house.gateways[:3], (True, False, False), strict=True):
        known = gateway.doors.lane.heads._known.values()
        assert any(judgement.lane is Lane.EDGE for judgement in known) == edge


def they_were_what_they_are_for(streams: list[Any], said: list[list[list[Answer]]]) -> None:
    """There were enough of each kind, and what came of them was not one kind of refusal."""
    assert len({stream.pieces for stream in streams}) >= 3000
    tags = Counter(tag for stream in streams for tag in stream.tags)
    assert not {tag: tags[tag] for tag in STREAMS["TAGS"] if tags[tag] < TAGGED_MIN}
    assert set(tags) == set(STREAMS["TAGS"])
    assert sum(len(lanes) > len(LANES) for lanes in said) >= 700, "with aiohttp alone beside both lanes"
    edge = [lanes[0] for lanes in said]
    statuses_of = [[answer.status for answer in each] for each in edge]
    assert sum(200 in each for each in statuses_of) >= 2000
    assert sum(len([status for status in each if status >= 200]) > 2 for each in statuses_of) >= 1000, "pipelined"
    hits = [dict(answer.fields).get("cache-status", "").startswith("tailrace; hit") for each in edge for answer in each]
    assert sum(hits) >= 500
    seen = {status for each in statuses_of for status in each}
    assert seen >= {100, 200, 204, 400, 403, 405, 417, 431, 504, 505}
    assert 500 not in seen
