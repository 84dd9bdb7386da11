"""The HTTP door under TLS, on both event loops: who is let in, how long a handshake may take, and how it all ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trustme

from gateway.app import Gateway
from gateway.doors import doorkeeper
from gateway.doors import lane as lanes
from gateway.doors.http import HttpDoor
from gateway.sources import load

SECONDS = 10.0
LARGE = 5_000_000
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n"
LAST = b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
LISTENERS = {f"TAILRACE_SERVER__{name}": '"127.0.0.1:0"' for name in ("HTTP", "GRPC", "ADMIN")}


class Upstream:
    """Echoes what is posted to it; ``gate`` holds answers back while it is not set."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                _, _, length = head.partition(b"content-length: ")
                body = await reader.readexactly(int(length.split(b"\r\n")[0] or 0)) if length else b"ok"
                if head.startswith(b"post"):
                    self.asked += 1
                    await self.gate.wait()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()


class Door:
    """A gateway with TLS, and connections to it."""

    def __init__(self, gateway: Gateway, url: str, pem: Any) -> None:
        self.gateway, self.port, self.pem = gateway, int(url.rpartition(":")[2]), pem
        assert url == f"https://127.0.0.1:{self.port}"

    async def connect(self, shown: Any = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.pem.caller(shown))

    async def plain(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    @property
    def lane(self) -> lanes.EdgeLane:
        return self.gateway.doors.lane

    def outcomes(self) -> dict[str, float]:
        text = self.gateway.telemetry.exposition().decode()
        lines = [line for line in text.splitlines() if line.startswith("tailrace_tls_handshakes_total{")]
        return {line.split('"')[1]: float(line.split()[-1]) for line in lines}


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


async def all_of(reader: asyncio.StreamReader) -> bytes:
    """Until the other side ends, in whatever manner."""
    async with asyncio.timeout(SECONDS):
        try:
            return await reader.read()
        except (ConnectionError, ssl.SSLError):
            return b""


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    async with asyncio.timeout(SECONDS):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        return int(head.split()[1]), await reader.readexactly(length)


Open = Callable[..., Awaitable[Door]]


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    found = Upstream()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
    yield found
    server.close()


@pytest.fixture
async def open_door(own_pem: Any, upstream: Any, caplog: Any, capsys: Any) -> AsyncIterator[Open]:
    doors: list[Door] = []
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    caplog.set_level(logging.INFO)

    async def start(**overrides: str) -> Door:
        environ = LISTENERS | {
            "TAILRACE_SERVER__DRAIN": "5s",
            "TAILRACE_SERVER__TLS__CERTIFICATE": str(own_pem.certificate),
            "TAILRACE_SERVER__TLS__KEY": str(own_pem.key),
        }
        environ |= {f"TAILRACE_SERVER__{key}": value for key, value in overrides.items()}
        gateway = Gateway(load(None, environ, [upstream.url]))
        http, _ = await gateway.start()
        doors.append(Door(gateway, http, own_pem))
        return doors[-1]

    yield start
    for door in doors:
        await door.gateway.stop()
        assert not door.lane.connections
        assert door.lane.buffered.bytes == 0
    assert not faults, faults
    told = capsys.readouterr()
    assert "Traceback" not in caplog.text + told.out + told.err
    assert "bug" not in told.out


# -- requests -----------------------------------------------------------------------------------------


async def test_one_connection_takes_every_lane_in_turn(open_door: Open) -> None:
    door = await open_door()
    reader, writer = await door.connect()
    tls: Any = writer.get_extra_info("ssl_object")
    assert tls.version() == "TLSv1.3"
    sizes = (10, 150_000, LARGE, 0, 70_000)
    for size in sizes:
        body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size + body)
        assert await answer(reader) == (200, body or b"")
        writer.write(LIVE)
        assert (await answer(reader))[0] == 200
    writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    writer.write(b"3\r\nabc\r\n0\r\n\r\n")
    async with asyncio.timeout(SECONDS):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    writer.write(LAST)
    assert b"HTTP/1.1 200" in await all_of(reader)
    writer.close()
    assert door.outcomes() == {"done": 1.0}


@pytest.mark.parametrize("target", ["/v2/models/m", "https://h/v2/models/m"])
async def test_the_scheme_is_https_for_aiohttp_too(
    target: str, open_door: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    handle = HttpDoor.handle

    async def handled(self: HttpDoor, request: Any) -> Any:
        seen.append(f"{request.scheme} {request.url}")
        return await handle(self, request)

    monkeypatch.setattr(HttpDoor, "handle", handled)
    door = await open_door(EDGE="false")
    reader, writer = await door.connect()
    writer.write(f"GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    assert (await all_of(reader)).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert seen == ["https https://h/v2/models/m"]


async def test_only_http_1_1_is_offered(open_door: Open) -> None:
    door = await open_door()
    context = door.pem.caller()
    context.set_alpn_protocols(["h2", "http/1.1"])
    _, writer = await asyncio.open_connection("127.0.0.1", door.port, ssl=context)
    told: Any = writer.get_extra_info("ssl_object")
    assert told.selected_alpn_protocol() == "http/1.1"
    writer.close()


async def test_a_minimum_refuses_what_is_older(open_door: Open) -> None:
    door = await open_door(TLS__MINIMUM='"1.3"')
    context = door.pem.caller()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", door.port, ssl=context)
    await until(lambda: door.outcomes() == {"protocol": 1.0})


async def test_the_last_answer_arrives_though_bytes_of_the_peer_are_unread(open_door: Open) -> None:
    door = await open_door()
    reader, writer = await door.connect()
    writer.write(b"GET / HTTP/1.1\r\nno header\r\n\r\n" + bytes(300_000))
    received = await all_of(reader)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.endswith(b"}")
    writer.close()


async def test_who_does_not_read_a_large_answer_is_cut_after_the_time_for_that(open_door: Open) -> None:
    door = await open_door(WRITE_TIMEOUT="300ms", IDLE_TIMEOUT="1h")
    _, writer = await door.connect()
    body = bytes(4 * LARGE)
    writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    transport: Any = writer.transport
    transport.pause_reading()
    await until(lambda: door.lane.cuts["write"] == 1)
    await until(lambda: not door.lane.connections)
    writer.close()


async def test_who_reads_slowly_gets_all_of_a_large_answer(open_door: Open) -> None:
    door = await open_door(IDLE_TIMEOUT="1h")
    reader, writer = await door.connect()
    body = bytes(range(256)) * (LARGE // 256)
    writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    writer.write(LAST)
    received = b""
    async with asyncio.timeout(30.0):
        while data := await reader.read(2**16):
            received += data
            await asyncio.sleep(0)
    assert received.partition(b"\r\n\r\n")[2].startswith(body)
    assert received[-200:].count(b"true") == 1
    writer.close()


# -- handshakes ---------------------------------------------------------------------------------------


HELLO = bytes.fromhex("16030100a5010000a1")  # of a ClientHello that never comes


@pytest.mark.parametrize("begun", [b"", HELLO], ids=["nothing", "half of it"])
async def test_a_handshake_that_does_not_end_is_cut(begun: bytes, open_door: Open) -> None:
    door = await open_door(HEAD_TIMEOUT="200ms")
    reader, writer = await door.plain()
    writer.write(begun)
    assert await all_of(reader) == b""
    await until(lambda: not door.lane.connections)
    assert door.outcomes() == {"timeout": 1.0}
    assert door.lane.cuts["handshake"] == 1
    writer.close()


@pytest.mark.parametrize("limit", ["CONNECTIONS_MAX", "CONNECTIONS_PER_ADDRESS_MAX"])
async def test_handshakes_under_way_count_as_connections(limit: str, open_door: Open) -> None:
    door = await open_door(**{limit: "3"})
    waiting = [await door.plain() for _ in range(3)]
    await until(lambda: len(door.lane.connections) == 3)
    with pytest.raises((ConnectionError, ssl.SSLError)):
        await door.connect()
    assert sum(door.lane.cuts.values()) == 1
    waiting.pop()[1].close()
    await until(lambda: len(door.lane.connections) == 2)
    reader, writer = await door.connect()
    writer.write(LIVE)
    assert (await answer(reader))[0] == 200
    assert len(door.lane.connections) == 3
    for _, each in (*waiting, (reader, writer)):
        each.close()
    await until(lambda: not door.lane.connections)


async def test_http_without_tls_is_ended(open_door: Open) -> None:
    door = await open_door()
    reader, writer = await door.plain()
    writer.write(LIVE)
    assert b"HTTP" not in await all_of(reader)
    writer.close()
    await until(lambda: not door.lane.connections)
    assert door.outcomes() == {"plain": 1.0}


async def test_tls_where_there_is_none_is_a_400(upstream: Any, pem: Any) -> None:
    gateway = Gateway(load(None, LISTENERS | {"TAILRACE_SERVER__DRAIN": "0s"}, [upstream.url]))
    http, _ = await gateway.start()
    port = int(http.rpartition(":")[2])
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", port, ssl=pem.caller())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        pem.caller().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(outgoing.read())
    assert (await all_of(reader)).startswith(b"HTTP/1.1 400 ")
    writer.close()
    await gateway.stop()


async def test_garbage_and_peers_that_leave_say_nothing_in_the_log(open_door: Open) -> None:
    door = await open_door()
    for sent in (b"", HELLO, bytes(300), b"\x16\x03\x01\x00\x05hello", b"\xff" * 70_000):
        _, writer = await door.plain()
        writer.write(sent)
        writer.close()
    with socket.create_connection(("127.0.0.1", door.port)) as each:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # a reset
    await until(lambda: sum(door.outcomes().values()) == 6 and not door.lane.connections)
    assert set(door.outcomes()) <= {"protocol", "left", "plain"}
    reader, writer = await door.connect()
    writer.write(LAST)
    assert (await all_of(reader)).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_a_caller_without_the_right_certificate_is_refused(open_door: Open, own_pem: Any) -> None:
    door = await open_door(TLS__CLIENT_CA=str(own_pem.ca))
    reader, writer = await door.connect(own_pem.issue("caller"))
    writer.write(LAST)
    assert (await all_of(reader)).startswith(b"HTTP/1.1 200 ")
    writer.close()
    for shown in (None, own_pem.issue("stranger", trustme.CA())):
        with contextlib.suppress(ConnectionError, ssl.SSLError):  # TLS 1.3 lets a client know only when it reads
            reader, writer = await door.connect(shown)
            writer.write(LAST)
            assert await all_of(reader) == b""
            writer.close()
    await until(lambda: door.outcomes() == {"done": 1.0, "certificate": 2.0})


# -- new certificates ---------------------------------------------------------------------------------


def shown_by(writer: asyncio.StreamWriter) -> Any:
    told: Any = writer.get_extra_info("ssl_object")
    return told.getpeercert()["serialNumber"]


async def test_new_connections_see_a_new_certificate_and_old_ones_go_on(
    open_door: Open, own_pem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorkeeper, "RENEWAL_SECONDS", 0.02)
    door = await open_door()
    reader, writer = await door.connect()
    first = shown_by(writer)
    own_pem.key.write_text("not yet")
    await until(lambda: b"tailrace_tls_renewal_failing 1.0" in door.gateway.telemetry.exposition())
    _, second = await door.connect()
    assert shown_by(second) == first
    own_pem.issue("server")
    await until(lambda: b"tailrace_tls_renewals_total 1.0" in door.gateway.telemetry.exposition())
    _, third = await door.connect()
    assert shown_by(third) != first
    writer.write(LIVE)
    assert (await answer(reader))[0] == 200
    for each in (writer, second, third):
        each.close()


# -- the end ------------------------------------------------------------------------------------------


async def test_draining_ends_handshakes_and_idle_connections_and_waits_for_answers(
    open_door: Open, upstream: Any
) -> None:
    door = await open_door()
    upstream.gate.clear()
    reader, writer = await door.connect()
    body = bytes(150_000)
    writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await until(lambda: bool(upstream.asked))
    idle, idle_writer = await door.connect()
    silent, silent_writer = await door.plain()
    await until(lambda: len(door.lane.connections) == 3)
    stopping = asyncio.create_task(door.gateway.stop())
    assert await all_of(idle) == b""
    assert await all_of(silent) == b""
    idle_writer.close()
    silent_writer.close()
    with pytest.raises(OSError):
        await door.plain()
    assert not stopping.done()
    upstream.gate.set()
    received = await all_of(reader)
    assert b"\r\nConnection: close\r\n" in received
    assert received.endswith(body)
    writer.close()
    async with asyncio.timeout(SECONDS):
        await stopping


async def test_draining_does_not_wait_for_idle_clients_that_do_not_read(open_door: Open, own_pem: Any) -> None:
    """As clients' pools of connections do not: they answer no goodbye before they are used again."""
    door = await open_door(DRAIN="1h")

    def connect() -> ssl.SSLSocket:
        connected = door.pem.caller().wrap_socket(
            socket.create_connection(("127.0.0.1", door.port), SECONDS),
            server_hostname="localhost",
            suppress_ragged_eofs=False,
        )
        connected.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n")
        assert connected.recv(100).startswith(b"HTTP/1.1 200 ")
        return connected

    silent = await asyncio.to_thread(connect)
    async with asyncio.timeout(SECONDS):
        await door.gateway.stop()
    while silent.read(1000):  # an end without a goodbye would be an SSLError
        pass
    silent.close()
