"""Both lanes of the HTTP door say the same, whatever comes in whatever pieces; neither is desynchronised."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.app import Gateway
from gateway.sources import load

SECONDS = 20.0
RESET = b"(reset)"
CONNECTIONS = 64
MOMENT = "400ms"
LANES = ("true", "false")
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


def _cases() -> list[tuple[str, bytes]]:
    path = Path(__file__).parent.parent / "cases" / "desync.py"
    spec = importlib.util.spec_from_file_location("desync", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.streams())


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
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
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
    """Two gateways that differ in the lane alone, before one upstream, in a loop of their own."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.upstream = Upstream()
        self.gateways: list[Gateway] = []
        self.ports: list[int] = []
        self.runner.run(self._start())

    async def _start(self) -> None:
        self.server = await asyncio.start_server(self.upstream.serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        for lane in LANES:
            environ = {
                "TAILRACE_SERVER__HTTP": '"127.0.0.1:0"',
                "TAILRACE_SERVER__GRPC": "off",
                "TAILRACE_SERVER__ADMIN": '"127.0.0.1:0"',
                "TAILRACE_SERVER__DRAIN": "100ms",
                "TAILRACE_SERVER__EDGE": lane,
                "TAILRACE_SERVER__HEAD_TIMEOUT": MOMENT,
                "TAILRACE_SERVER__BODY_TIMEOUT": MOMENT,
                "TAILRACE_SERVER__IDLE_TIMEOUT": MOMENT,
                "TAILRACE_ROUTES__R": '{ tiers = [{ backend = "upstream", model = "m" }], cache = { ttl = "1h" } }',
            }
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

    async def talk(self, lane: int, pieces: list[bytes]) -> bytes:
        """All that comes back on one connection until the gateway ends it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[lane])
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
def house() -> Iterator[House]:
    made = House()
    yield made
    made.close()


def alike(one: bytes, other: bytes) -> bool:
    """Whether two lanes said the same, as far as both could be heard."""
    heard, also = statuses(one), statuses(other)
    if one.endswith(RESET) or other.endswith(RESET):
        both = min(len(heard), len(also))
        return heard[:both] == also[:both]
    return heard == also


def statuses(received: bytes) -> list[int]:
    return [int(each) for each in re.findall(rb"HTTP/[0-9]\.[0-9] ([0-9]{3}) ", received)]


async def difference(house: House, pieces: list[bytes]) -> list[bytes]:
    """What the lanes say to a stream alone, if that differs each time of three: where the machine is busy, a head
    that comes in pieces may take longer than it has."""
    said: list[bytes] = []
    for _ in range(3):
        said = [await house.talk(lane, pieces) for lane in range(len(LANES))]
        if alike(*said):
            return []
    return said


# -- streams with two ends --------------------------------------------------------------------------


def test_there_are_enough_of_them() -> None:
    names = [name for name, _ in _cases()]
    assert len(names) == len(set(names)) >= 300


def test_nothing_hidden_is_ever_acted_on_and_both_lanes_say_the_same(house: House) -> None:
    cases = _cases()

    async def everything() -> list[list[bytes]]:
        turns = asyncio.Semaphore(CONNECTIONS)

        async def one(raw: bytes) -> list[bytes]:
            async with turns:
                return [await house.talk(lane, [raw]) for lane in range(len(LANES))]

        return await asyncio.gather(*(one(raw) for _, raw in cases))

    told = house.runner.run(everything())
    for (name, raw), (edge, other) in zip(cases, told, strict=True):
        if not alike(edge, other):
            assert house.runner.run(difference(house, [raw])) == [], name
        assert len([status for status in statuses(edge) if status >= 200]) <= 1, (name, edge)
        assert 500 not in statuses(edge), (name, edge)
    assert not [head for head in house.upstream.heads if b"smuggled" in head]
    assert house.upstream.heads, "some of these are legal, and reach the upstream"


# -- streams in any pieces ----------------------------------------------------------------------------

BODY = b'{"inputs": [{"name": "x", "datatype": "INT32", "shape": [1], "data": [%d]}]}'
NAMES = st.sampled_from(
    [b"X-A", b"x-a", b"Content-Type", b"Cache-Control", b"Accept-Encoding", b"Accept", b"User-Agent"]
)
DIRECTIVES = (b"no-cache", b"no-store", b"only-if-cached", b"max-age=0")
VALUES = st.sampled_from((b"", b"a", *DIRECTIVES, b"gzip", b"deflate, gzip;q=0", b"application/json"))
FIELD = st.tuples(NAMES, st.sampled_from([b":", b": ", b":\t", b":  "]), VALUES, st.sampled_from([b"", b" ", b"\t"]))
ILL_FORMED = st.sampled_from(
    [b""] * 4 + [b" X: y\r\n", b"X : y\r\n", b"X\r\n", b"X: \x00\r\n", b"X: y\n", b"\xff: y\r\n"]
)
TARGETS = st.sampled_from(
    [b"/v2/models/r/infer"] * 5
    + [b"/v2/models/m/infer", b"/v2/models/r/versions/1/infer", b"/v2/models/r", b"/v2/models/r/ready"]
    + [b"/v2/models/r/../r/infer", b"/v2/models/nobody/infer", b"/v2/models/r/infer?x=1"]
    + [b"/v2/health/live", b"/v2/repository/models/m/load"]
)
METHODS = st.sampled_from([b"POST"] * 6 + [b"GET", b"HEAD", b"PUT", b"OPTIONS", b"post", b"QUERY"])


@st.composite
def request_bytes(draw: st.DrawFn) -> bytes:
    """A request, most of them legal, that ends where it says."""
    body = draw(st.sampled_from([BODY % 1, BODY % 2, BODY % 3, b"{}", b"", b"\x00" * 40]))
    fields = [b"Host: h\r\n"]
    fields += [b"%b%b%b%b\r\n" % field for field in draw(st.lists(FIELD, max_size=4))]
    fields.append(draw(ILL_FORMED))
    if draw(st.integers(0, 9)) == 0:
        fields.append(b"Transfer-Encoding: chunked\r\n")
        body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    else:
        fields.append(b"Content-Length: %d\r\n" % len(body))
    if draw(st.integers(0, 19)) == 0:
        fields.append(b"Connection: close\r\n")
    head = draw(METHODS) + b" " + draw(TARGETS) + b" HTTP/1.1\r\n"
    return head + b"".join(draw(st.permutations(fields))) + b"\r\n" + body


LAST = b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
"""So that a stream that is understood to its end need not wait for a limit."""


KNOWN = b"POST /v2/models/r/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY % 1), BODY % 1)


@pytest.mark.parametrize("lane", range(len(LANES)), ids=LANES)
def test_requests_behind_a_hit_are_answered(house: House, lane: int) -> None:
    assert statuses(house.runner.run(house.talk(lane, [KNOWN + LAST]))) == [200, 200]
    assert statuses(house.runner.run(house.talk(lane, [3 * KNOWN + LAST]))) == [200] * 4
    cut = len(KNOWN) + 9
    assert statuses(house.runner.run(house.talk(lane, [(2 * KNOWN)[:cut], (2 * KNOWN)[cut:] + LAST]))) == [200] * 3


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Up to four requests on one connection, cut anywhere."""
    raw = b"".join(draw(st.lists(request_bytes(), min_size=1, max_size=4))) + LAST
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=12)))
    return [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.generate),  # a batch's odd ones are told one by one: nothing to shrink
)
@given(batch=st.lists(streams(), min_size=16, max_size=16))
def test_any_stream_gets_the_same_answers_on_both_lanes(house: House, batch: list[list[bytes]]) -> None:
    async def one(lane: int) -> list[bytes]:
        return await asyncio.gather(*(house.talk(lane, pieces) for pieces in batch))

    async def everything() -> list[list[bytes]]:
        return await asyncio.gather(*(one(lane) for lane in range(len(LANES))))

    for gateway in house.gateways:
        cache = gateway.routes["r"].cache
        assert cache is not None
        cache.purge()
    for lane in range(len(LANES)):  # so that some are hits
        assert statuses(house.runner.run(house.talk(lane, [KNOWN + LAST]))) == [200, 200]
    edge, other = house.runner.run(everything())
    odd = [pieces for one, also, pieces in zip(edge, other, batch, strict=True) if not alike(one, also)]
    different = [(pieces, said) for pieces in odd if (said := house.runner.run(difference(house, pieces)))]
    assert not different, different
