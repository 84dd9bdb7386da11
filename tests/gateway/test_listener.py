"""The HTTP server of one address: what its parser refuses gets a problem document, and the connection ends."""

import asyncio
import contextlib
import json

import pytest
from aiohttp import web, web_protocol

from gateway.address import Address
from gateway.doors.listener import Listener, ParserMissing, listen, require_strict_parser
from gateway.problem import Refused

GET = b"GET / HTTP/1.1\r\nHost: h\r\n"
POST = b"POST / HTTP/1.1\r\nHost: h\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SECONDS = 10.0


@pytest.fixture
async def serving():
    """``await serving(handler)`` -> a function that opens a connection to a listener with that handler."""
    started = []

    async def start(handler, connections_max=100):
        listener = Listener(handler, 8192, connections_max)
        server, url = await listen(listener, Address("127.0.0.1", 0))
        started.append((server, listener))
        return lambda: asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))

    yield start
    for server, listener in started:
        server.close()
        await listener.shutdown(1.0)


async def echo(request):
    return web.Response(body=await request.read())


async def answers(connect, message):
    """All bytes until the server closes the connection."""
    reader, writer = await connect()
    writer.write(message)
    async with asyncio.timeout(SECONDS):
        received = await reader.read()
    writer.close()
    return received


def parsed(received):
    """(status, header fields by lower-case name, body) of the only answer in these bytes."""
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert len(body) == int(fields["content-length"]), "exactly one answer"
    return int(first.split()[1]), fields, body


REFUSED = {
    "both lengths": (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "Content-Length"),
    "both lengths, other order": (
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        400,
        "Content-Length",
    ),
    "two lengths": (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400, "Content-Length"),
    "equal lengths": (POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400, "Content-Length"),
    "a list of lengths": (POST + b"Content-Length: 3, 3\r\n\r\nabc", 400, "Content-Length"),
    "negative length": (POST + b"Content-Length: -1\r\n\r\n", 400, "Content-Length"),
    "signed length": (POST + b"Content-Length: +1\r\n\r\na", 400, "Content-Length"),
    "hexadecimal length": (POST + b"Content-Length: 0x1\r\n\r\na", 400, "Content-Length"),
    "length over 64 bits": (POST + b"Content-Length: 99999999999999999999999\r\n\r\n", 400, "Content-Length"),
    "chunk size no number": (CHUNKED + b"ZZ\r\n", 400, "chunk size"),
    "chunk size negative": (CHUNKED + b"-1\r\n", 400, "chunk size"),
    "chunk size over 64 bits": (CHUNKED + b"11111111111111111\r\n", 400, "hunk size"),
    "chunk longer than its size": (CHUNKED + b"2\r\nabc\r\n0\r\n\r\n", 400, "chunk"),
    "bare line feed after a chunk": (CHUNKED + b"1\r\na\n0\r\n\r\n", 400, "chunk"),
    "space before the colon": (GET + b"X : 1\r\n\r\n", 400, "header"),
    "folded header": (GET + b"X: 1\r\n 2\r\n\r\n", 400, "header"),
    "control character in a header": (GET + b"X: a\x00b\r\n\r\n", 400, "header"),
    "bare carriage return": (GET + b"X: a\rb\r\n\r\n", 400, "HTTP/1.1"),
    "header without a colon": (GET + b"nonsense\r\n\r\n", 400, "header"),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "Host"),
    "two hosts": (GET + b"Host: i\r\n\r\n", 400, "Host"),
    "unknown method": (b"BREW / HTTP/1.1\r\nHost: h\r\n\r\n", 400, "method"),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400, "HTTP/1.1"),
    "no version": (b"GET /\r\n\r\n", 505, "HTTP/0.9"),
    "raw bytes in the target": (b"GET /\xff HTTP/1.1\r\nHost: h\r\n\r\n", 400, "url"),
    "header too long": (GET + b"X: " + b"a" * 9000 + b"\r\n\r\n", 431, "server.header_bytes_max"),
    "target too long": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 431, "server.header_bytes_max"),
    "too many headers": (GET + b"X: 1\r\n" * 200 + b"\r\n", 400, "Too many headers"),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505, "HTTP/2.0"),
    "gzip below chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "gzip"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_no_acceptable_http_gets_a_problem_and_the_connection_ends(serving, name):
    reached = []

    async def handler(request):
        reached.append(await request.read())
        return web.Response()

    message, status, word = REFUSED[name]
    got, fields, body = parsed(await answers(await serving(handler), message))
    assert (got, fields["content-type"]) == (status, "application/problem+json")
    document = json.loads(body)
    assert document["status"] == status
    assert document["error"] == document["detail"]
    assert word in document["detail"]
    assert fields["server"] == "tailrace"
    assert not reached


@pytest.mark.parametrize("name", [name for name in REFUSED if "chunk" in name and "gzip" not in name])
async def test_a_body_that_stops_being_http_while_it_is_read_is_refused_at_once(serving, name):
    begun, seen = asyncio.Event(), []

    async def handler(request):
        seen.append(await request.content.readany())
        begun.set()
        try:
            await request.read()
        except Refused as refused:
            seen.append(refused.problem.detail)
            return web.Response(status=400)
        return web.Response()

    reader, writer = await (await serving(handler))()
    message, _, word = REFUSED[name]
    writer.write(CHUNKED + b"5\r\nhello\r\n")
    async with asyncio.timeout(SECONDS):
        await begun.wait()
        writer.write(message.removeprefix(CHUNKED) + b"\r\n\r\n")
        status, _, _ = parsed(await reader.read())
    assert status == 400
    assert seen[0] == b"hello"
    assert word in seen[1]
    writer.close()


async def test_a_refusal_after_good_requests_leaves_their_answers_alone(serving):
    reader, writer = await (await serving(echo))()
    for text in (b"one", b"two"):
        writer.write(POST + b"Content-Length: 3\r\n\r\n" + text)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(3) == text
    writer.write(b"nonsense\r\n\r\n")
    assert parsed(await reader.read())[0] == 400
    writer.close()


async def test_pipelined_requests_are_answered_in_order(serving):
    message = b"".join(POST + b"Content-Length: 1\r\n\r\n" + bytes([48 + n]) for n in range(8))
    received = await answers(await serving(echo), message + GET + b"Connection: close\r\n\r\n")
    assert [part[:1] for part in received.split(b"\r\n\r\n")[1:9]] == [b"%d" % n for n in range(8)]


async def test_a_body_is_never_inflated_here(serving):
    message = POST + b"Content-Encoding: gzip\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
    assert parsed(await answers(await serving(echo), message))[2] == b"abc"


async def test_a_handler_that_breaks_answers_a_problem_and_shows_nothing(serving, caplog):
    async def handler(request):
        raise ZeroDivisionError("secret")

    caplog.set_level("CRITICAL")
    status, fields, body = parsed(await answers(await serving(handler), GET + b"\r\n"))
    assert (status, fields["content-type"]) == (500, "application/problem+json")
    assert b"secret" not in body


async def test_an_own_server_field_is_kept(serving):
    async def handler(request):
        return web.Response(headers={"Server": "upstream/1"})

    message = GET + b"Connection: close\r\n\r\n"
    assert parsed(await answers(await serving(handler), message))[1]["server"] == "upstream/1"


async def test_a_caller_who_leaves_cancels_the_work(serving):
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request):
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    _, writer = await (await serving(handler))()
    writer.write(GET + b"\r\n")
    async with asyncio.timeout(SECONDS):
        await begun.wait()
        writer.close()
        await cancelled.wait()


async def test_connections_over_the_limit_are_cut_and_the_others_live(serving):
    connect = await serving(echo, connections_max=2)
    kept = []
    for text in (b"a", b"b"):
        reader, writer = await connect()
        writer.write(POST + b"Content-Length: 1\r\n\r\n" + text)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(1) == text
        kept.append((reader, writer))
    reader, over = await connect()
    async with asyncio.timeout(SECONDS):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    over.close()
    for reader, writer in kept:
        writer.write(POST + b"Content-Length: 1\r\n\r\nz")
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(1) == b"z"
        writer.close()


async def test_addresses(serving, tmp_path):
    path = str(tmp_path / "socket")
    server, where = await listen(Listener(echo, 8192, 10), Address(path=path))
    assert where == f"unix:{path}"
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(POST + b"Connection: close\r\nContent-Length: 1\r\n\r\nu")
    assert parsed(await reader.read())[2] == b"u"
    writer.close()
    server.close()


async def test_an_address_in_use_is_an_oserror(serving):
    connect = await serving(echo)
    _, writer = await connect()
    host, port = writer.get_extra_info("peername")
    with pytest.raises(OSError, match="in use"):
        await listen(Listener(echo, 8192, 10), Address(host, port))
    writer.close()


def test_the_parser_must_be_the_strict_one(monkeypatch):
    require_strict_parser()

    class Loose:
        __module__ = "aiohttp.http_parser"

    monkeypatch.setattr("gateway.doors.listener.HttpRequestParser", Loose)
    with pytest.raises(ParserMissing, match="C parser"):
        require_strict_parser()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (web_protocol, "_ErrInfo"),
        (web_protocol.RequestHandler, "_messages"),
        (web_protocol.RequestHandler, "_request_in_progress"),
        (web_protocol.RequestHandler, "_waiter"),
        (web.BaseRequest, "_prepare_hook"),
    ],
)
def test_what_we_use_of_aiohttps_inside_is_still_there(owner, name):
    where = "docs/decisions/0007-what-we-use-of-aiohttps-inside.md"
    assert hasattr(owner, name), f"aiohttp has moved {owner.__name__}.{name}: see {where}"
    if name == "_ErrInfo":
        assert {"exc", "message"} <= set(web_protocol._ErrInfo.__annotations__), f"its fields have changed: see {where}"


async def test_a_refusal_of_the_parser_is_an_answer_in_http_1_1(serving):
    connect = await serving(echo)
    assert (await answers(connect, b"GET / HTTP/1.1\r\nbad header\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_a_body_that_turns_bad_after_its_answer_is_no_failure_of_ours(serving, caplog):
    begun = asyncio.Event()

    async def answered(request):
        begun.set()
        return web.Response(body=b"early")

    connect = await serving(answered)
    reader, writer = await connect()
    writer.write(CHUNKED)
    async with asyncio.timeout(SECONDS):
        await begun.wait()
        await reader.readuntil(b"early")
        writer.write(b"zz\r\n")
        await reader.read()
    writer.close()
    assert "Unhandled exception" not in caplog.text
