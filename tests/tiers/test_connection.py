"""One connection before hostile servers: whatever they do, nobody gets another's answer, and doubt closes it."""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from degrade.deadline import Deadline
from degrade.ladder import Failure
from tiers.backends.call import Call, Reply
from tiers.backends.triton_http import TritonHttp, TritonOptions
from tiers.inference import Rejected, UpstreamError

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Handler = Callable[[Reader, Writer], Awaitable[None]]
FOREVER = Deadline(float("inf"))
GET = Call("GET", "/")


class Server:
    """A raw server; ``accepted`` counts its connections."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.accepted = 0
        self.writers: list[Writer] = []

    async def connected(self, reader: Reader, writer: Writer) -> None:
        self.accepted += 1
        self.writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._handler(reader, writer)
        writer.close()


@asynccontextmanager
async def serving(handler: Handler, **options: float) -> AsyncIterator[tuple[TritonHttp, Server]]:
    server = Server(handler)
    listener = await asyncio.start_server(server.connected, "127.0.0.1", 0)
    make: Callable[..., TritonOptions] = TritonOptions
    replica = TritonHttp(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", make(**options))
    try:
        yield replica, server
    finally:
        await replica.close()
        listener.close()
        for writer in server.writers:
            writer.close()


async def read_request(reader: Reader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"\r\nContent-Length: (\d+)", head)
    return head, await reader.readexactly(int(found[1]) if found else 0)


def http(body: bytes, *fields: str, status: int = 200) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def answers(*each: bytes) -> Handler:
    """The same answers on every connection, one for each request; then silence until the client leaves."""

    async def handler(reader: Reader, writer: Writer) -> None:
        for answer in each:
            await read_request(reader)
            writer.write(answer)
        await reader.read(-1)

    return handler


async def ask(replica: TritonHttp, call: Call = GET) -> Reply:
    return await replica.exchange(call, FOREVER, 0.0)


FORMS = {
    "length": http(b"body", "A: b"),
    "chunked": b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n",
    "continue": b"HTTP/1.1 100 Continue\r\n\r\n" + http(b"body"),
    "close": b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\nbody",
}


@pytest.mark.parametrize("form", FORMS)
async def test_an_answer_in_every_two_pieces_and_byte_by_byte(form: str) -> None:
    answer = FORMS[form]
    cuts = [[answer[:cut], answer[cut:]] for cut in range(1, len(answer))]
    cuts.append([answer[at : at + 1] for at in range(len(answer))])
    remaining = iter(cuts)

    async def handler(reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            for piece in next(remaining):
                writer.write(piece)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            if form == "close":
                return

    async with serving(handler) as (replica, server):
        for _ in cuts:
            assert (await ask(replica)).body == b"body"
        assert server.accepted == (len(cuts) if form == "close" else 1)


@pytest.mark.parametrize(
    "answer",
    [
        http(b"one") + http(b"two"),
        http(b"one") + b"\r\n",
        http(b"one") + b"H",
        FORMS["chunked"] + b"\r\n",
        FORMS["chunked"] + http(b"two"),
        http(b"one", "Connection: close"),
        b"HTTP/1.0 200 X\r\nContent-Length: 3\r\n\r\none",
        b"HTTP/1.1 204 X\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 304 X\r\n\r\nbody",
        http(b"", status=500) + b"0",
    ],
)
@pytest.mark.parametrize("known", [False, True])
async def test_a_connection_in_doubt_is_not_used_again(answer: bytes, known: bool) -> None:
    """Nor is it where an answer that leaves no doubt, and begins likewise, has come before."""
    before = [http(b"one")] if known else []
    async with serving(answers(*before, answer, answer)) as (replica, server):
        for _ in before:
            assert (await ask(replica)).body == b"one"
        first = await ask(replica)
        assert (await ask(replica)).body == (b"one" if known else first.body)
        assert server.accepted == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 X\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 X\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nfour",
        b"HTTP/1.1 103 Early\r\nContent-Length: 0\r\n\r\n" + http(b"one"),
        b"HTTP/1.1 103 Early\r\n\r\n" * 9 + http(b"one"),
        b"HTTP/1.1 101 Switch\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + http(b"one"),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9 + http(b"one"),
        b"HTTP/1.1 200 X\nContent-Length: 3\n\none",
        b"HTTP/1.1 200 X\r\nA: " + b"a" * 70_000,
        b"HTTP/1.1 200 X\r\nA: " + b"a" * 70_000 + b"\r\n\r\n",
        b"\r\n\r\n",
        b"220 smtp.example ESMTP\r\n",
        b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_nonsense_is_told_at_once_and_closes(answer: bytes) -> None:
    async with serving(answers(answer, answer)) as (replica, server):
        for count in (1, 2):
            with pytest.raises(UpstreamError, match="nonsense") as caught:
                await ask(replica)
            assert (caught.value.failure, caught.value.before_answer) == (Failure.BROKEN, False)
            assert server.accepted == count


async def test_answers_without_a_body() -> None:
    async def handler(reader: Reader, writer: Writer) -> None:
        while True:
            head, _ = await read_request(reader)
            if head.startswith(b"HEAD"):
                writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 9\r\n\r\n")
            elif b"/204" in head:
                writer.write(b"HTTP/1.1 204 X\r\n\r\n")
            elif b"/304" in head:
                writer.write(b"HTTP/1.1 304 X\r\nContent-Length: 9\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 9\r\n\r\n123456789")

    async def lying(reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            writer.write(http(b"body"))

    async with serving(lying) as (replica, server):  # an answer to HEAD has no body, whatever came before
        for method, size in (("GET", 4), ("HEAD", 0), ("GET", 4)):
            assert len((await ask(replica, Call(method, "/"))).body) == size
        assert server.accepted == 2
    async with serving(handler) as (replica, server):
        for method, target, status, size in (
            ("HEAD", "/", 200, 0),
            ("GET", "/204", 204, 0),
            ("GET", "/304", 304, 0),
        ) * 2:
            reply = await ask(replica, Call(method, target))
            assert (reply.status, len(reply.body)) == (status, size)
            assert len((await ask(replica)).body) == 9  # the very head that HEAD got, now with a body
        assert server.accepted == 1


async def test_an_answer_before_any_request_closes_the_connection() -> None:
    async def handler(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(http(b"one"))
        await writer.drain()
        spoken.set()
        await speak.wait()
        writer.write(http(b"stolen"))
        await reader.read(-1)
        gone.set()

    spoken, speak, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with serving(handler) as (replica, server):
        assert (await ask(replica)).body == b"one"
        speak.set()
        await gone.wait()  # nothing was asked, and it has been closed
        assert (await ask(replica)).body == b"one"
        assert server.accepted == 2


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("known", [False, True])
async def test_an_answer_before_the_whole_request_ends_the_connection(streamed: bool, known: bool) -> None:
    """The rest of the request would be read as the next one, and its answer be the next caller's. So would it be if one
    that begins likewise had come before, after all of its request."""

    async def handler(reader: Reader, writer: Writer) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"/small" in head:
                await reader.readexactly(1)
                writer.write(http(b"small", status=413))
                continue
            writer.write(http(b"large", status=413))
            await enough.wait()
            await reader.read(-1)

    enough = asyncio.Event()
    never = asyncio.Event()
    closed: list[bool] = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            yield b"x" * 1000
            await never.wait()
        finally:
            closed.append(True)

    async with serving(handler) as (replica, server):
        small = Call("POST", "/small", (), b"x")
        if known:
            assert (await ask(replica, small)).body == b"small"
        body: bytes | AsyncIterator[bytes] = endless() if streamed else b"x" * 50_000_000
        assert (await ask(replica, Call("POST", "/", (), body))).body == b"large"
        assert closed == ([True] if streamed else [])
        assert (await ask(replica, small)).body == b"small"
        assert server.accepted == 2
        enough.set()


async def test_sending_waits_for_a_server_that_does_not_read() -> None:
    produced = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal produced
        for _ in range(2000):
            produced += 100_000
            yield b"x" * 100_000

    async def handler(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await stalled(lambda: produced)
        assert produced < 50_000_000
        reading.set()
        size = 0
        while size < 200_000_000:
            size += len(await reader.readexactly(100_000))
        writer.write(http(b"all"))

    reading = asyncio.Event()
    async with serving(handler) as (replica, _):
        call = Call("POST", "/", (("Content-Length", "200000000"),), body())
        assert (await ask(replica, call)).body == b"all"
        assert reading.is_set()


async def stalled(measure: Callable[[], int]) -> None:
    """Until ``measure`` has not moved for a hundred turns of the loop."""
    last, turns = -1, 0
    while turns < 100:
        await asyncio.sleep(0.001)
        turns = turns + 1 if measure() == last else 0
        last = measure()


@pytest.mark.parametrize("chunked", [False, True])
async def test_reading_waits_for_a_caller_who_does_not_take(chunked: bool) -> None:
    pieces, sent = 1000, 0

    async def handler(reader: Reader, writer: Writer) -> None:
        nonlocal sent
        while True:
            await read_request(reader)
            sent = 0
            framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % (pieces * 0x10000)
            writer.write(b"HTTP/1.1 200 X\r\n" + framing + b"\r\n\r\n")
            for _ in range(pieces):
                writer.write(b"10000\r\n" + b"y" * 0x10000 + b"\r\n" if chunked else b"y" * 0x10000)
                await writer.drain()
                sent += 1
            writer.write(b"0\r\n\r\n" if chunked else b"")

    async with serving(handler, stream_bytes_max=100_000) as (replica, server):
        for _ in range(2):
            async with replica.stream(GET, FOREVER, 0.0) as streamed:
                await stalled(lambda: sent)
                assert sent < pieces
                assert sum([len(piece) async for piece in streamed.chunks]) == pieces * 0x10000
        assert server.accepted == 1


@pytest.mark.parametrize(("promised", "given"), [(5, [b"123"]), (5, [b"123", b"456"]), (0, [b"1"])])
async def test_a_body_that_is_not_as_long_as_it_says_is_never_sent_as_if(promised: int, given: list[bytes]) -> None:
    got: list[bytes] = []

    async def handler(reader: Reader, writer: Writer) -> None:
        got.append((await reader.read(-1)).partition(b"\r\n\r\n")[2])
        done.set()

    async def body() -> AsyncIterator[bytes]:
        for piece in given:
            yield piece

    done = asyncio.Event()
    async with serving(handler) as (replica, _):
        with pytest.raises(Rejected, match="cannot be sent"):
            await ask(replica, Call("POST", "/", (("Content-Length", str(promised)),), body()))
        await done.wait()
    assert len(got[0]) <= promised


async def test_requests_that_cannot_be_written_are_rejected() -> None:
    async with serving(answers()) as (replica, server):
        for call in (Call("GET", "/ HTTP/1.1\r\nX: y"), Call("GET", "/", (("A", "b\nc"),)), Call("CONNECT", "/")):
            with pytest.raises(Rejected):
                await ask(replica, call)
            with pytest.raises(Rejected):
                async with replica.stream(call, FOREVER, 0.0):
                    pass
        assert server.accepted == 0


@pytest.mark.parametrize("cut", [0, 1, 20, -1])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_only_a_kept_connection_that_gave_no_byte_is_tried_again(method: str, cut: int) -> None:
    answer = http(b"one")

    async def handler(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(answer)
        await read_request(reader)
        writer.write(answer[:cut])

    async with serving(handler) as (replica, server):
        call = Call(method, "/", (), None if method == "GET" else b"")
        assert (await ask(replica, call)).body == b"one"
        if cut == 0 and method == "GET":
            assert (await ask(replica, call)).body == b"one"
            assert server.accepted == 2
            return
        with pytest.raises(UpstreamError) as caught:
            await ask(replica, call)
        assert caught.value.failure is (Failure.BROKEN if cut else Failure.DROPPED)
        assert server.accepted == 1


async def test_cancelled_everywhere_nothing_is_left_and_nobody_gets_anothers_answer() -> None:
    """Cancel after each number of turns of the loop; then what is asked must get its own answer."""

    async def handler(reader: Reader, writer: Writer) -> None:
        while True:
            head, _ = await read_request(reader)
            answer = http(head.split(b" ")[1])
            for start in range(0, len(answer), 7):
                writer.write(answer[start : start + 7])
                await asyncio.sleep(0)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x"
            await asyncio.sleep(0)

    async def streamed(replica: TritonHttp, target: str) -> None:
        call = Call("POST", target, (("Content-Length", "3"),), body())
        async with replica.stream(call, FOREVER, 0.0) as answer:
            async for _ in answer.chunks:
                pass

    async with serving(handler, passthrough_connections_max=2) as (replica, _):
        for turns in range(60):
            tasks = [asyncio.create_task(streamed(replica, f"/s{turns}-{each}")) for each in range(2)]
            tasks += [asyncio.create_task(ask(replica, Call("GET", f"/e{turns}-{each}"))) for each in range(3)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            targets = [f"/c{turns}-{each}" for each in range(4)]
            replies = await asyncio.gather(*(ask(replica, Call("GET", target)) for target in targets))
            assert [reply.body.decode() for reply in replies] == targets
        for pool in replica.connections:
            assert (pool.waiting, pool.open) == (0, pool.idle)
        assert replica.connections[1].open <= 2


def misbehaving(random_: random.Random) -> Handler:
    """Echoes what it was asked, but often gets HTTP wrong; never lies about a request it read properly."""

    async def handler(reader: Reader, writer: Writer) -> None:
        last = b"nobody's"
        while True:
            kind = random_.randrange(14)
            head = await reader.readuntil(b"\r\n\r\n")
            name = head.split(b" ")[1]
            size = int(re.search(rb"\r\nContent-Length: (\d+)", head)[1])  # type: ignore[index]  # always given here
            if kind == 0:  # early, and the rest of the request is still to come
                writer.write(http(name))
            body = await reader.readexactly(size)
            answer = http(name + body[:1])
            if kind == 1:
                return
            if kind == 2:
                writer.write(answer[: random_.randrange(len(answer))])
                return
            writes = {
                3: answer + http(last),
                4: answer + answer[: random_.randrange(1, 20)],
                5: b"HTTP/1.1 100 Continue\r\n\r\n" + answer,
                6: b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(name), name),
                7: b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(name), name)
                + http(last),
                8: b"HTTP/1.1 200 X\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + http(last),
                9: b"HTTP/1.1 200 X\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n" + http(last),
                10: b"HTTP/1.1 101 X\r\n\r\n" + http(last),
                11: b"HTTP/1.1 204 X\r\nContent-Length: 99\r\n\r\n" + http(last),
            }
            if kind:
                writer.write(writes.get(kind, answer))
            if kind == 12:
                await writer.drain()
                await asyncio.sleep(0.002)
                if reader.at_eof():
                    return
            last = name

    return handler


@pytest.mark.parametrize("seed", range(6))
async def test_nobody_gets_anothers_answer(seed: int) -> None:
    chance = random.Random(seed)
    outcomes: list[str] = []

    async def caller(replica: TritonHttp, number: int, chance: random.Random) -> None:
        for turn in range(15):
            name = f"/{number}-{turn}-"
            size = chance.choice([0, 1, 100, 3_000_000])
            body: bytes | AsyncIterator[bytes] = b"x" * size
            if chance.random() < 0.3:
                body = pieces(size)
            try:
                call = Call(chance.choice(["POST", "GET"]), name, (("Content-Length", str(size)),), body)
                if chance.random() < 0.5:
                    reply = await ask(replica, call)
                    status, got = reply.status, reply.body
                else:
                    async with replica.stream(call, FOREVER, 0.0) as streamed:
                        status = streamed.status
                        got = b"".join([piece async for piece in streamed.chunks])
            except UpstreamError as error:
                outcomes.append(error.failure.value)
                continue
            outcomes.append("answered")
            assert status == 204 or got.startswith(name.encode()), (name, got)

    async def pieces(size: int) -> AsyncIterator[bytes]:
        for start in range(0, size, 65_536):
            yield b"x" * min(65_536, size - start)

    async with serving(misbehaving(chance), connections_max=5, passthrough_connections_max=5) as (replica, _):
        await asyncio.gather(*(caller(replica, number, random.Random(seed * 100 + number)) for number in range(20)))
        for pool in replica.connections:
            assert (pool.waiting, pool.open) == (0, pool.idle)
    assert outcomes.count("answered") > 100
    assert len(set(outcomes)) > 1


async def test_tls_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    listener = await asyncio.start_server(
        Server(answers(http(b"one"), http(b"two"))).connected, "localhost", 0, ssl=context
    )
    url = f"https://localhost:{listener.sockets[0].getsockname()[1]}"
    stranger = TritonHttp(url, TritonOptions(connect_timeout=20.0))
    with pytest.raises(UpstreamError) as caught:
        await ask(stranger)
    assert caught.value.failure is Failure.UNREACHABLE
    await stranger.close()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    known = TritonHttp(url, TritonOptions(connect_timeout=20.0))
    assert [(await ask(known)).body, (await ask(known)).body] == [b"one", b"two"]
    await known.close()
    listener.close()
