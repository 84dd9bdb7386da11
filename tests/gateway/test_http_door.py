"""The HTTP door before an upstream that records raw bytes: what goes through, what stays, what is refused."""

import asyncio
import contextlib
import gzip
import json

import pytest

from gateway.app import Gateway
from gateway.sources import load

SECONDS = 10.0
POST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LISTENERS = {f"TAILRACE_SERVER__{name}": '"127.0.0.1:0"' for name in ("HTTP", "GRPC", "ADMIN")}


class Upstream:
    """A server that keeps every request's raw head and body, and answers ``reply``, or as ``script`` does.

    Health probes are answered and not kept.
    """

    def __init__(self):
        self.heads, self.bodies = [], []
        self.reply = OK
        self.script = None
        self.url = ""

    async def serve(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /v2/health/"):
                    writer.write(OK)
                    continue
                self.heads.append(head)
                if self.script is not None:
                    await self.script(reader, writer)
                    continue
                self.bodies.append(await whole(head, reader))
                writer.write(self.reply)
        writer.close()

    def fields(self, index=-1):
        """Header fields of a request, as they came, without Host."""
        lines = self.heads[index].decode().split("\r\n")[1:-2]
        return [line for line in lines if not line.startswith("Host: ")]


async def chunk(reader):
    size = int(await reader.readuntil(b"\r\n"), 16)
    return (await reader.readexactly(size + 2))[:-2]


async def whole(head, reader):
    """A message's body by its framing."""
    lowered = head.lower()
    if b"transfer-encoding: chunked" in lowered:
        parts = []
        while part := await chunk(reader):
            parts.append(part)
        return b"".join(parts)
    _, found, rest = lowered.partition(b"content-length: ")
    return await reader.readexactly(int(rest.split(b"\r\n")[0])) if found else b""


class Door:
    """A running gateway in this loop, and raw connections to it."""

    def __init__(self, gateway, url, tls):
        self.gateway, self.port = gateway, int(url.rpartition(":")[2])
        self.writers = []
        self.tls = tls
        self.told = ["X-Forwarded-For: 127.0.0.1", f"X-Forwarded-Proto: {'https' if tls else 'http'}"]
        self.told += ["X-Forwarded-Host: h"]

    async def connect(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls)
        self.writers.append(writer)
        return reader, writer

    async def ask(self, message):
        """(status, header lines, body) of one request on a connection of its own."""
        reader, writer = await self.connect()
        writer.write(message)
        return await answer(reader, message.startswith(b"HEAD"))

    def replica(self):
        (state,) = self.gateway.homes["upstream"].pool.states()
        return state


async def answer(reader, only_head=False):
    async with asyncio.timeout(SECONDS):
        head = await reader.readuntil(b"\r\n\r\n")
        body = b"" if only_head else await whole(head, reader)
    first, *lines = head.decode().split("\r\n")[:-2]
    return int(first.split()[1]), lines, body


async def until(true):
    """Let the gateway, which lives in this loop, go on until ``true()``."""
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


def problem(got, status):
    """The document of an answer that must be a problem."""
    assert got[0] == status, got
    assert "Content-Type: application/problem+json" in got[1]
    document = json.loads(got[2])
    assert document["error"] == document["detail"]
    return document


@pytest.fixture
async def upstream():
    found = Upstream()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield found
    server.close()


@pytest.fixture(params=["edge", "aiohttp", "edge-tls", "aiohttp-tls"])
async def open_door(request, upstream, pem):
    """``await open_door(KEY=value)`` -> a gateway before the upstream; keys are environment overrides."""
    doors = []
    lane, _, tls = request.param.partition("-")

    async def start(url=None, **overrides):
        edge = "true" if lane == "edge" else "false"
        environ = LISTENERS | {"TAILRACE_SERVER__DRAIN": "1s", "TAILRACE_SERVER__EDGE": edge}
        if tls:
            environ |= {"TAILRACE_SERVER__TLS__CERTIFICATE": str(pem.certificate)}
            environ |= {"TAILRACE_SERVER__TLS__KEY": str(pem.key)}
        gateway = Gateway(load(None, environ | overrides, [url or upstream.url]))
        http, _ = await gateway.start()
        doors.append(Door(gateway, http, pem.caller() if tls else None))
        return doors[-1]

    yield start
    for door in doors:
        for writer in door.writers:
            writer.close()
        await door.gateway.stop()


async def test_a_request_goes_out_as_it_came_without_what_was_for_us_alone(upstream, open_door):
    door = await open_door()
    kept = ["X-One: 1", "X-One: 2", "Accept-Encoding: gzip", "Cookie: a=b", "Authorization: Bearer t", "Via: 1.0 x"]
    dropped = ["Connection: keep-alive, X-Hop", "X-Hop: 1", "Keep-Alive: 5", "TE: trailers", "Upgrade: h2c"]
    dropped += ["Proxy-Authorization: p", "Proxy-Connection: close", "Trailer: X"]
    lines = "\r\n".join([*kept, *dropped, "Content-Length: 3"]).replace("X-One: 2", "x-one: 2").encode()
    assert (await door.ask(POST + lines + b"\r\n\r\nabc"))[0] == 200
    assert upstream.heads[0].startswith(b"POST /v2/models/m/infer HTTP/1.1\r\n")
    sent = [line.replace("X-One: 2", "x-one: 2") for line in kept]
    assert upstream.fields() == [*sent, "Via: 1.1 tailrace", *door.told, "Content-Length: 3"]
    assert upstream.bodies == [b"abc"]


async def test_an_answer_comes_back_as_it_is_without_what_was_for_us_alone(upstream, open_door):
    kept = ["Content-Type: x/y", "Set-Cookie: a=1", "Set-Cookie: b=2", "Content-Encoding: gzip", "Server: t"]
    dropped = ["Connection: X-Hop", "X-Hop: 1", "Keep-Alive: timeout=5", "Proxy-Authenticate: Basic", "Upgrade: h2c"]
    upstream.reply = (
        b"HTTP/1.1 418 Teapot\r\nContent-Length: 3\r\n" + "\r\n".join([*kept, *dropped, "", "abc"]).encode()
    )
    status, lines, body = await (await open_door()).ask(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (status, body) == (418, b"abc")
    names = ("Cache-Status", "Server-Timing", "Tailrace-Provenance", "Date", "Content-Length")
    assert [line for line in lines if not line.startswith(names)] == kept


async def test_the_server_names_itself_and_not_its_library(open_door):
    door = await open_door()
    for path in (b"/v2/health/live", b"/v2/models/m", b"//", b"/v2"):
        assert "Server: tailrace" in (await door.ask(b"GET " + path + b" HTTP/1.1\r\nHost: h\r\n\r\n"))[1]


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("/v2/models/a%20b/infer?x=%2f&y", "/v2/models/a%20b/infer?x=%2f&y"),
        ("/v2/models/%6D", "/v2/models/%6D"),
        ("http://h/v2/models/m?a=1", "/v2/models/m?a=1"),
        ("/any'thing;(x)!$&*+,=:@~", "/any'thing;(x)!$&*+,=:@~"),
    ],
)
async def test_targets_go_out_byte_by_byte(upstream, open_door, asked, sent):
    assert (await (await open_door()).ask(f"GET {asked} HTTP/1.1\r\nHost: h\r\n\r\n".encode()))[0] == 200
    assert upstream.heads[0].split(b" ")[1].decode() == sent


@pytest.mark.parametrize("target", ["//h/v2", "/v2/models/../x", "/v2/models/m%2Finfer", "*", "http://h//v2"])
async def test_ambiguous_targets_reach_nobody(upstream, open_door, target):
    got = await (await open_door()).ask(f"OPTIONS {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    assert problem(got, 400)["reason"] == "target"
    assert upstream.heads == []


async def test_an_upload_arrives_while_it_is_sent(upstream, open_door):
    arrived = asyncio.Queue()

    async def script(reader, writer):
        while part := await chunk(reader):
            arrived.put_nowait(part)
        writer.write(OK)

    upstream.script = script
    reader, writer = await (await open_door()).connect()
    writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n")
    async with asyncio.timeout(SECONDS):
        for text in (b"one", b"two", b"six"):  # each is sent only when the one before has arrived
            writer.write(b"3\r\n" + text + b"\r\n")
            assert await arrived.get() == text
    writer.write(b"0\r\n\r\n")
    assert (await answer(reader))[0] == 200


async def test_an_answer_is_passed_on_while_it_comes(upstream, open_door):
    received = asyncio.Event()

    async def script(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for text in (b"data: 1\n\n", b"data: 2\n\n"):
            writer.write(b"9\r\n" + text + b"\r\n")
            await received.wait()  # the next piece comes only when the caller has this one
            received.clear()
        writer.write(b"0\r\n\r\n")

    upstream.script = script
    reader, writer = await (await open_door()).connect()
    writer.write(b"GET /v2/models/m/generate_stream HTTP/1.1\r\nHost: h\r\n\r\n")
    async with asyncio.timeout(SECONDS):
        await reader.readuntil(b"\r\n\r\n")
        for text in (b"data: 1\n\n", b"data: 2\n\n"):
            assert await chunk(reader) == text
            received.set()
        assert await chunk(reader) == b""


async def test_the_body_is_asked_for_when_the_caller_waits_to_be_asked(upstream, open_door):
    door = await open_door()
    reader, writer = await door.connect()
    writer.write(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    async with asyncio.timeout(SECONDS):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    assert (await answer(reader))[0] == 200
    assert upstream.fields() == ["Via: 1.1 tailrace", *door.told, "Content-Length: 3"]
    assert upstream.bodies == [b"abc"]


async def test_a_body_that_will_be_refused_is_not_asked_for(upstream, open_door):
    door = await open_door(TAILRACE_SERVER__PASSTHROUGH_BYTES_MAX="1KiB")
    problem(await door.ask(POST + b"Expect: 100-continue\r\nContent-Length: 1025\r\n\r\n"), 413)
    problem(await door.ask(POST + b"Expect: 200-ok\r\nContent-Length: 3\r\n\r\n"), 417)
    assert upstream.heads == []


async def test_a_chunked_body_over_the_limit_is_413_and_not_the_replicas_fault(upstream, open_door):
    door = await open_door(TAILRACE_SERVER__PASSTHROUGH_BYTES_MAX="1KiB")
    for _ in range(7):  # more than open a breaker
        message = POST + b"Transfer-Encoding: chunked\r\n\r\n401\r\n" + b"a" * 1025 + b"\r\n0\r\n\r\n"
        assert problem(await door.ask(message), 413)["bytes_max"] == 1024
        assert door.replica().breaker == "closed"
    assert (await door.ask(POST + b"Content-Length: 1024\r\n\r\n" + b"a" * 1024))[0] == 200
    assert upstream.bodies[-1] == b"a" * 1024


async def begun_upload(upstream, door):
    """A connection whose upload has begun to arrive upstream."""
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def script(reader, writer):
        assert await chunk(reader) == b"hello"
        arrived.set()
        assert await reader.read() == b""  # the gateway gives the connection up
        gone.set()

    upstream.script = script
    reader, writer = await door.connect()
    writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    async with asyncio.timeout(SECONDS):
        await arrived.wait()
    return reader, writer, gone


async def test_a_caller_who_breaks_off_an_upload_is_not_the_replicas_fault(upstream, open_door):
    door = await open_door()
    for _ in range(7):
        _, writer, gone = await begun_upload(upstream, door)
        writer.transport.abort()
        async with asyncio.timeout(SECONDS):
            await gone.wait()
        assert door.replica().breaker == "closed"
    upstream.script = None
    assert (await door.ask(POST + b"Content-Length: 0\r\n\r\n"))[0] == 200
    assert door.replica().in_flight == 0


async def test_an_upload_that_stops_being_http_is_400_and_not_the_replicas_fault(upstream, open_door):
    door = await open_door()
    for _ in range(7):
        reader, writer, gone = await begun_upload(upstream, door)
        writer.write(b"ZZ\r\n\r\n")
        assert "chunk size" in problem(await answer(reader), 400)["detail"]
        async with asyncio.timeout(SECONDS):
            await gone.wait()
            assert await reader.read() == b""
        assert door.replica().breaker == "closed"


async def test_half_an_answer_never_passes_for_a_whole_one(upstream, open_door):
    async def script(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        writer.close()

    upstream.script = script
    reader, writer = await (await open_door()).connect()
    writer.write(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
    received = b""
    async with asyncio.timeout(SECONDS):
        with contextlib.suppress(ConnectionResetError):
            while part := await reader.read(65536):
                received += part
    assert b"0\r\n\r\n" not in received


async def test_an_answer_that_comes_before_the_upload_has_ended(upstream, open_door):
    async def script(reader, writer):
        await chunk(reader)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        writer.close()

    upstream.script = script
    reader, writer = await (await open_door()).connect()
    writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    status, _, body = await answer(reader)
    assert (status, body) == (400, b"no")


async def test_a_kept_connection_that_has_died_is_renewed_for_what_may_be_asked_twice(upstream, open_door):
    async def once(reader, writer):
        writer.write(OK)
        await reader.read(1)  # the next request: gone without a word, as an old connection is
        writer.transport.abort()

    upstream.script = once
    door = await open_door()
    ask = b"GET /v2/models/m HTTP/1.1\r\nHost: h\r\n\r\n"
    for _ in range(3):
        assert (await door.ask(ask))[0] == 200
    refused = problem(await door.ask(POST + b"Content-Length: 0\r\n\r\n"), 503)
    assert "closed the connection before any answer" in refused["detail"]
    assert door.replica().breaker == "closed"
    assert door.replica().in_flight == 0


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("framing", "body"),
    [(b"Transfer-Encoding: chunked", b"0\r\n\r\n"), (b"Content-Length: 0", b""), (b"Connection: close", b"")],
)
async def test_an_answer_without_content_is_an_answer(upstream, open_door, framing, body, at_once):
    async def script(reader, writer):
        head = b"HTTP/1.1 200 OK\r\nX-A: 1\r\n" + framing + b"\r\n\r\n"
        if at_once:
            writer.write(head + body)
        else:
            writer.write(head)
            await writer.drain()
            await asyncio.sleep(0.01)  # another segment, most likely
            writer.write(body)
        if b"close" in framing:
            writer.close()

    upstream.script = script
    status, lines, got = await (await open_door()).ask(b"GET /v2/x HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (status, got) == (200, b"")
    assert "X-A: 1" in lines


async def test_a_replica_cannot_name_away_what_frames_its_answer(upstream, open_door):
    upstream.reply = b"HTTP/1.1 200 OK\r\nConnection: content-length, X-A\r\nX-A: 1\r\nContent-Length: 2\r\n\r\nok"
    reader, writer = await (await open_door()).connect()
    for _ in range(2):
        writer.write(b"GET /v2/x HTTP/1.1\r\nHost: h\r\n\r\n")
        status, lines, body = await answer(reader)
        assert (status, body) == (200, b"ok")
        assert "X-A: 1" not in lines


async def test_pipelined_requests_that_pass_through_are_answered_in_order(upstream, open_door):
    async def script(reader, writer):
        number = (await reader.readuntil(b"."))[:-1]
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n" + number + b"\r\n0\r\n\r\n")

    upstream.script = script
    reader, writer = await (await open_door()).connect()
    writer.write(b"".join(POST + b"Content-Length: 2\r\n\r\n%d." % number for number in range(5)))
    for number in range(5):
        assert (await answer(reader))[2] == b"%d" % number


async def test_head_is_asked_as_get_and_the_connection_goes_on(upstream, open_door):
    reader, writer = await (await open_door()).connect()
    for _ in range(2):
        writer.write(b"HEAD /v2 HTTP/1.1\r\nHost: h\r\n\r\n")
        status, lines, _ = await answer(reader, only_head=True)
        assert status == 200
        assert "Content-Length: 2" in lines
    writer.write(b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await answer(reader))[2] == b"ok"
    assert [head.split(b" ")[0] for head in upstream.heads] == [b"GET"] * 3


@pytest.mark.parametrize(
    "reply", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"]
)
async def test_an_upstream_that_answers_nonsense_is_a_503(upstream, open_door, reply):
    upstream.reply = reply
    got = await (await open_door()).ask(b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n")
    assert problem(got, 503)["retry_after"] >= 1


async def test_an_upstream_that_is_not_there_is_a_503_and_not_ready(open_door, unused_port):
    door = await open_door(f"http://127.0.0.1:{unused_port}")
    problem(await door.ask(POST + b"Content-Length: 0\r\n\r\n"), 503)
    assert (await door.ask(b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n"))[2] == b'{"live":true}'
    await door.gateway.homes["upstream"].pool.probe_once()
    status, _, body = await door.ask(b"GET /v2/health/ready HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (status, json.loads(body)["ready"]) == (503, False)


@pytest.fixture
async def unused_port():
    """A port that is bound and refuses connections."""
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, start_serving=False)
    port = server.sockets[0].getsockname()[1]
    server.close()
    return port


@pytest.mark.parametrize(
    ("path", "switch"),
    [
        ("/v2/repository/models/m/load", "repository"),
        ("/v2/logging", "logging"),
        ("/v2/trace/setting", "trace"),
        ("/v2/systemsharedmemory/region/r/register", "shared_memory"),
    ],
)
async def test_each_switch_allows_its_own_paths_only(upstream, open_door, path, switch):
    message = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    others = {"repository", "logging", "trace", "shared_memory"} - {switch}
    closed = await open_door(TAILRACE_SERVER__ALLOW=json.dumps(sorted(others)))
    document = problem(await closed.ask(message), 403)
    assert document["config_key"] == f'"{switch}" in server.allow'
    assert upstream.heads == []
    assert (await (await open_door(TAILRACE_SERVER__ALLOW=json.dumps([switch]))).ask(message))[0] == 200


async def test_a_body_that_does_not_come_in_time_is_408(upstream, open_door):
    route = '{ tiers = [{ backend = "upstream", model = "m" }], timeout = "50ms" }'
    door = await open_door(TAILRACE_ROUTES__M=route)
    assert "50" in problem(await door.ask(POST + b"Content-Length: 3\r\n\r\nab"), 408)["detail"].replace("0.05", "50")
    assert not [head for head in upstream.heads if b"/infer" in head]


# -- peers who take their time ----------------------------------------------------------------------

ROUTE_R = {"TAILRACE_ROUTES__R": '{ tiers = [{ backend = "upstream", model = "m" }] }'}
BACKEND = "TAILRACE_BACKENDS__UPSTREAM__"


@pytest.mark.parametrize("begun", [b"P", b"POST /v2/models/r/infer HTTP/1.1\r\nHost: h\r\nX", b"GET /v2 HTTP/1.1\r\n"])
async def test_a_head_that_does_not_come_in_time_is_408_and_the_connection_ends(open_door, begun):
    door = await open_door(TAILRACE_SERVER__HEAD_TIMEOUT="100ms", **ROUTE_R)
    reader, writer = await door.connect()
    writer.write(begun)
    assert "head did not arrive within 0.1 s" in problem(await answer(reader), 408)["detail"]
    async with asyncio.timeout(SECONDS):
        assert await reader.read() == b""


async def test_a_head_that_comes_byte_by_byte_has_no_more_time_than_any_other(open_door):
    door = await open_door(TAILRACE_SERVER__HEAD_TIMEOUT="200ms", **ROUTE_R)
    reader, writer = await door.connect()
    writer.write(b"POST /v2/models/r/infer HTTP/1.1\r\nX: ")
    got = asyncio.create_task(answer(reader))
    while not got.done():  # `answer` bounds it
        writer.write(b"x")
        await asyncio.wait((got,), timeout=0.02)
    assert "head did not arrive within 0.2 s" in problem(await got, 408)["detail"]


async def test_a_body_of_a_route_has_the_servers_time_for_bodies(open_door):
    door = await open_door(TAILRACE_SERVER__BODY_TIMEOUT="100ms", **ROUTE_R)
    for lines in (b"Content-Length: 9\r\n\r\nab", b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"):
        message = b"POST /v2/models/r/infer HTTP/1.1\r\nHost: h\r\n" + lines
        assert "body did not arrive within 0.1 s" in problem(await door.ask(message), 408)["detail"]


async def test_bodies_beyond_what_all_may_hold_are_refused_and_then_taken_again(upstream, open_door):
    bounds = {"TAILRACE_SERVER__BUFFERED_BYTES_MAX": "300KiB", "TAILRACE_SERVER__BODY_BYTES_MAX": "200KiB"}
    door = await open_door(**bounds, **ROUTE_R)
    message = b"POST /v2/models/r/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n"
    holding = [await door.connect() for _ in range(3)]
    for _, writer in holding:
        writer.write(message + bytes(100_000))
    await until(lambda: door.gateway.buffered.bytes == 300_000)
    refused = await door.ask(message + bytes(199_999))
    assert "server.buffered_bytes_max" in problem(refused, 503)["detail"]
    assert [line for line in refused[1] if line.startswith("Retry-After: ")]
    small = message.replace(b"200000", b"2000") + bytes(2000)
    problem(await door.ask(small), 400)  # the few who hold all there is lock nobody else out
    for _, writer in holding:
        writer.transport.abort()
    await until(lambda: door.gateway.buffered.bytes == 0)
    problem(await door.ask(message + bytes(200_000)), 400)


async def test_what_a_compressed_body_inflates_to_is_held_too(upstream, open_door):
    bounds = {"TAILRACE_SERVER__BUFFERED_BYTES_MAX": "300KiB", "TAILRACE_SERVER__BODY_BYTES_MAX": "290KiB"}
    door = await open_door(**bounds, **ROUTE_R)
    lines = b"POST /v2/models/r/infer HTTP/1.1\r\nHost: h\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    body = gzip.compress(bytes(280_000))
    holder = await door.connect()
    holder[1].write(lines.replace(b"Content-Encoding: gzip\r\n", b"") % 200_000 + bytes(100_000))
    await until(lambda: door.gateway.buffered.bytes == 100_000)
    refused = await door.ask(lines % len(body) + body)
    assert "server.buffered_bytes_max" in problem(refused, 503)["detail"]
    assert door.gateway.buffered.bytes == 100_000
    holder[1].transport.abort()
    await until(lambda: door.gateway.buffered.bytes == 0)
    problem(await door.ask(lines % len(body) + body), 400)
    assert door.gateway.buffered.bytes == 0


async def test_what_is_costly_to_read_is_not_read_for_a_quota_that_is_spent(upstream, open_door):
    spent = ', quota = { rate = 1, per = "1h", burst = 1, hits_count = true } }'
    door = await open_door(TAILRACE_ROUTES__R=ROUTE_R["TAILRACE_ROUTES__R"][:-2] + spent)
    lines = b"POST /v2/models/r/infer HTTP/1.1\r\nHost: h\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n"
    assert "gzip" in problem(await door.ask(lines + b"nope"), 400)["detail"]  # the quota is not charged for that
    head = b"POST /v2/models/r/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 64\r\n\r\n"
    body = b'{"inputs":[{"name":"x","datatype":"INT32","shape":[1],"data":[1]}]}'
    await door.ask(head.replace(b"64", b"%d" % len(body)) + body)
    told = problem(await door.ask(lines + b"nope"), 429)
    assert "Quota route:r is spent" in told["detail"]


async def test_a_length_with_zeros_before_it_is_a_length(upstream, open_door):
    door = await open_door()
    assert (await door.ask(POST + b"Content-Length: 00000000000000000000000002\r\n\r\nab"))[0] == 200
    assert upstream.bodies == [b"ab"]


@pytest.mark.parametrize("form", ["one line", "many lines"])
async def test_a_head_over_its_bound_is_431(open_door, form):
    door = await open_door(TAILRACE_SERVER__HEADER_BYTES_MAX="4KiB", **ROUTE_R)
    fields = b"X: %b\r\n" % (b"x" * 4100) if form == "one line" else b"X: xxxxxxxx\r\n" * 400
    message = b"POST /v2/models/r/infer HTTP/1.1\r\nHost: h\r\n%b\r\n" % fields
    assert "server.header_bytes_max (4096 bytes)" in problem(await door.ask(message), 431)["detail"]


@pytest.mark.parametrize("lines", [b"Content-Length: 9\r\n\r\nab", b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"])
async def test_an_upload_that_falls_silent_is_408_and_not_the_replicas_fault(upstream, open_door, lines):
    door = await open_door(TAILRACE_SERVER__BODY_TIMEOUT="100ms")
    assert "server.body_timeout" in problem(await door.ask(POST + lines), 408)["detail"]
    assert door.replica().breaker == "closed"
    assert door.replica().in_flight == 0


async def test_a_caller_who_does_not_read_its_answer_is_cut_and_the_work_ends(upstream, open_door):
    gone = asyncio.Event()

    async def script(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
                await writer.drain()
        gone.set()

    upstream.script = script
    door = await open_door(TAILRACE_SERVER__WRITE_TIMEOUT="100ms")
    reader, writer = await door.connect()
    reader._transport.pause_reading()
    writer.write(b"GET /v2/models/m/slow HTTP/1.1\r\nHost: h\r\n\r\n")
    async with asyncio.timeout(SECONDS):
        await gone.wait()
    assert door.replica().in_flight == 0
    assert door.replica().breaker == "closed"


async def test_slow_uploads_take_no_connection_from_routes_and_probes(upstream, open_door):
    settings = {BACKEND + "PASSTHROUGH_CONNECTIONS_MAX": "2", BACKEND + "CONNECTIONS_MAX": "2"}
    door = await open_door(**settings, **ROUTE_R)
    slow = [await begun_upload(upstream, door) for _ in range(2)]
    upstream.script = None
    waiting = asyncio.create_task(door.ask(POST + b"Content-Length: 1\r\n\r\nx"))
    pool = door.gateway.homes["upstream"].pool
    await pool.probe_once()
    assert (door.replica().ready, door.replica().breaker) == (True, "closed")
    body = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "INT32", "data": [1]}]}'
    message = b"POST /v2/models/r/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
    before = len(upstream.heads)
    await door.ask(message + body)
    assert len(upstream.heads) > before, "the route could not ask its model"
    assert not waiting.done()
    for _, writer, gone in slow:
        writer.transport.abort()
        async with asyncio.timeout(SECONDS):
            await gone.wait()
    assert (await waiting)[0] == 200


# -- what passes through is limited too ---------------------------------------------------------------

KEY = b"X-API-Key: k\r\n"
CALLER = {
    "TAILRACE_CALLERS__A": '{ key_sha256 = "8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a", '
    'quota = { rate = 2, per = "1h" } }'
}


async def test_a_callers_quota_holds_for_what_passes_through(upstream, open_door):
    door = await open_door(**CALLER)
    for left in (1, 0):
        status, lines, _ = await door.ask(POST + KEY + b"Content-Length: 0\r\n\r\n")
        assert status == 200
        assert any(line.startswith(f'RateLimit: "caller:a";r={left};') for line in lines)
    problem(await door.ask(POST + KEY + b"Content-Length: 0\r\n\r\n"), 429)
    assert (await door.ask(b"GET /v2/models/m/config HTTP/1.1\r\nHost: h\r\n" + KEY + b"\r\n"))[0] == 200
    assert len(upstream.heads) == 3


@pytest.mark.parametrize("path", [b"generate", b"generate_stream"])
async def test_generate_of_a_route_keeps_to_its_quota_and_its_body_limit(upstream, open_door, path):
    route = (
        '{ tiers = [{ backend = "upstream", model = "m" }], limits = { body_bytes_max = "1KiB" }, '
        'quota = { rate = 2, per = "1h" } }'
    )
    door = await open_door(TAILRACE_ROUTES__R=route)
    post = b"POST /v2/models/r/" + path + b" HTTP/1.1\r\nHost: h\r\n"
    assert (await door.ask(post + b"Content-Length: 0\r\n\r\n"))[0] == 200
    assert upstream.heads[-1].startswith(b"POST /v2/models/m/" + path + b" ")
    too_large = problem(await door.ask(post + b"Content-Length: 1025\r\n\r\n"), 413)
    assert "routes.r.limits.body_bytes_max" in too_large["detail"]
    problem(await door.ask(post + b"Content-Length: 0\r\n\r\n"), 429)


async def test_generate_of_a_route_with_declared_inputs_is_refused(upstream, open_door):
    door = await open_door(
        TAILRACE_ROUTES__R='{ tiers = [{ backend = "upstream", model = "m" }], inputs = { x = { max = 1.0 } } }'
    )
    got = await door.ask(b"POST /v2/models/r/generate HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
    assert "use infer" in problem(got, 403)["detail"]
    assert not [head for head in upstream.heads if b"generate" in head]


@pytest.mark.parametrize("version", ["01", "x", "-1", "1e3", "99999999999999999999"])
async def test_what_is_no_version_is_404_on_a_route(upstream, open_door, version):
    door = await open_door(**ROUTE_R)
    path = f"POST /v2/models/r/versions/{version}/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{{}}"
    assert "versions are numbers" in problem(await door.ask(path.encode()), 404)["detail"]


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2/models/r/ready", "/v2/models/r"])
async def test_what_can_only_be_read_is_405_for_other_methods(open_door, path):
    door = await open_door(**ROUTE_R)
    got = await door.ask(f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n".encode())
    problem(got, 405)
    assert "Allow: GET, HEAD" in got[1]


async def test_a_query_is_asked_as_a_post_is_and_says_what_it_may_be_made_of(upstream, open_door):
    door = await open_door(**ROUTE_R)
    path = b"/v2/models/r/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n"
    packed = "application/msgpack, application/vnd.msgpack, application/x-msgpack"
    media = f"Accept-Query: application/json, application/octet-stream, {packed}"
    body = b"\r\n{}"
    of_post = problem(await door.ask(b"POST " + path + body), 400)
    for named in (b"application/json", b"Application/Octet-Stream; a=b"):
        assert problem(await door.ask(b"QUERY " + path + b"Content-Type: " + named + b"\r\n" + body), 400) == of_post
    assert "Content-Type" in problem(await door.ask(b"QUERY " + path + body), 400)["detail"]
    other = await door.ask(b"QUERY " + path + b"Content-Type: application/sql\r\n" + body)
    assert "application/sql" in problem(other, 415)["detail"]
    refused = await door.ask(b"PUT " + path + body)
    problem(refused, 405)
    for lines in (other[1], refused[1]):
        assert media in lines
    status, lines, _ = await door.ask(b"OPTIONS /v2/models/r/infer HTTP/1.1\r\nHost: h\r\n\r\n")
    assert status == 204
    assert media in lines
    assert "Allow: POST, QUERY, OPTIONS" in lines


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"Content-Encoding: g\xffip", 400),
        (b"Inference-Header-Content-Length: \xff", 400),
        (b"Accept-Encoding: \xff", 400),
        (b"Cache-Control: \xff", 400),
        (b"X-API-Key: \xff", 401),
        (b"Authorization: Bearer \xff", 401),
        (b"Authorization: \xff\xfe", 401),
    ],
)
async def test_bytes_that_are_no_text_in_a_field_are_the_callers_fault(open_door, line, status):
    door = await open_door(**ROUTE_R, **CALLER)
    message = b"POST /v2/models/r/infer HTTP/1.1\r\nHost: h\r\n" + line + b"\r\nContent-Length: 2\r\n\r\n{}"
    problem(await door.ask(message), status)
