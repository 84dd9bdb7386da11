"""One replica: whatever goes wrong on the wire leaves as UpstreamError or Rejected; requests get nothing added."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from degrade.breaker import BreakerOptions
from degrade.deadline import Deadline
from degrade.ladder import Failure
from tiers.backends.call import Call
from tiers.backends.fields import end_to_end
from tiers.backends.triton_http import ASKING_CONNECTIONS_MAX, TritonHttp, TritonOptions
from tiers.inference import InferRequest, Rejected, RequestedOutput, Tensor, UpstreamError
from tiers.pool import Pool, PoolOptions

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
REQUEST = InferRequest("m", (Tensor("x", "FP32", (1,), b"\0\0\x80\x3f"),), id="7")
HEADER = json.dumps(
    {
        "model_name": "m",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}],
    }
).encode()


def http(status: int, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


GOOD = http(200, HEADER + b"abcd", f"Inference-Header-Content-Length: {len(HEADER)}")


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return head, await reader.readexactly(length)


@asynccontextmanager
async def serving(handler: Handler, **options: float) -> AsyncIterator[TritonHttp]:
    """A raw server on a free port and the replica that talks to it; connections are dropped at the end."""
    writers: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            await handler(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    make: Callable[..., TritonOptions] = TritonOptions
    replica = TritonHttp(f"http://127.0.0.1:{port}", make(**options))
    try:
        yield replica
    finally:
        await replica.close()
        server.close()
        for writer in writers:
            writer.close()


def answering(*answers: bytes, seen: list[tuple[bytes, bytes]] | None = None) -> Handler:
    """Each connection's requests get these bytes in turn; then the connection is closed."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            request = await read_request(reader)
            if seen is not None:
                seen.append(request)
            writer.write(answer)
            await writer.drain()

    return handler


async def infer(replica: TritonHttp, request: InferRequest = REQUEST, seconds: float = 30.0) -> object:
    now = time.monotonic()
    return await replica.infer(request, Deadline.after(now, seconds), now)


async def test_a_good_answer_and_what_was_sent() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with serving(answering(GOOD, seen=seen)) as replica:
        now = time.monotonic()
        request = InferRequest("m/ü", REQUEST.inputs, version="2", parameters={"k": "v"})
        with pytest.raises(UpstreamError, match="for model 'm'"):
            await replica.infer(request, Deadline.after(now, 2.5), now)
    head, body = seen[0]
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v2/models/m%2F%C3%BC/versions/2/infer HTTP/1.1"
    names = {line.split(b":")[0].lower() for line in lines[1:] if line}
    assert names == {b"host", b"content-type", b"content-length", b"inference-header-content-length"}
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"Inference-Header"))
    assert json.loads(body[:length])["parameters"] == {"k": "v", "timeout": 2_500_000, "binary_data_output": True}
    assert body[length:] == REQUEST.inputs[0].data


async def test_the_answer_is_decoded() -> None:
    async with serving(answering(GOOD)) as replica:
        now = time.monotonic()
        response = await replica.infer(REQUEST, Deadline.after(now, 30), now)
    assert (response.model, response.version, bytes(response.outputs[0].data)) == ("m", "1", b"abcd")


@pytest.mark.parametrize(("own", "sent"), [(7, 7), (9_000_000, 1_000_000), (0, 1_000_000)])
async def test_the_callers_own_sooner_timeout_stays(own: int, sent: int) -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with serving(answering(GOOD, seen=seen)) as replica:
        await replica.infer(InferRequest("m", REQUEST.inputs, parameters={"timeout": own}), Deadline(6.0), 5.0)
    header = seen[0][1].split(b"\0")[0]
    assert f'"timeout":{sent}'.encode() in header


STRINGS = json.dumps(
    {
        "model_name": "m",
        "model_version": "1",
        "outputs": [
            {"name": "y", "datatype": "BYTES", "shape": [2**18 + 1], "parameters": {"binary_data_size": 2**20 + 4}}
        ],
    }
).encode()
MANY = http(200, STRINGS + b"\0" * (2**20 + 4), f"Inference-Header-Content-Length: {len(STRINGS)}")
OVERLOADED = Failure.OVERLOADED
FAILED_TO_PROCESS = b'{"error":"Failed to process the request(s) for model \'m_0\', message: %b"}'


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (http(500, b'{"error":"Stub process \'m_0\' is not healthy."}'), Failure.BROKEN),
        (http(500, FAILED_TO_PROCESS % b"Stub process 'm_0' is not healthy."), Failure.BROKEN),
        (http(500, FAILED_TO_PROCESS % b"KeyError: x"), Failure.RAISED),
        (http(500, b'{"error":"told to"}'), Failure.RAISED),
        (http(500, b'{"error":"bad value the stub process"}'), Failure.RAISED),
        (http(500, b'{"error":"bad value Stub process \'m_0\' is not healthy."}'), Failure.RAISED),
        (http(500, FAILED_TO_PROCESS % b"ValueError: Stub process 'm_0' is not healthy."), Failure.RAISED),
        (http(500, b'{"error":"Stub process \'other_0\' is not healthy."}'), Failure.RAISED),
        (http(500, b'{"error":""}'), Failure.RAISED),
        (http(500, b"<html>"), Failure.BROKEN),
        (http(502, b"<html>"), Failure.BROKEN),
        (http(503, b'{"error":"queue full"}'), Failure.OVERLOADED),
        (http(429, b""), Failure.OVERLOADED),
        (http(302, b"", "Location: /elsewhere"), Failure.BROKEN),
        (http(404, b'{"error":"Request for unknown model: \'m\' is not found"}'), Failure.BROKEN),
        (http(404, b'{"error":"Request for unknown model: \'m\' has no available versions"}'), Failure.BROKEN),
        (http(503, b'{"error":"Request for unknown model: \'m\' version 1 is not at ready state"}'), Failure.BROKEN),
        (http(503, b'{"error":"Request for unknown model: \'n\' version 1 is not at ready state"}'), OVERLOADED),
        (http(401, b'{"error":"who are you?"}'), Failure.RAISED),
        (http(403, b"<html>"), Failure.RAISED),
        (http(407, b""), Failure.RAISED),
        (http(408, b""), Failure.RAISED),
        (http(413, b"big"), Failure.RAISED),
        (http(400, b"<html>"), Failure.RAISED),
        (http(404, b"no such page"), Failure.BROKEN),
        (http(404, b'{"error":"Not Found"}'), Failure.RAISED),
        (http(404, b'{"error":"Request for unknown model: \'mx\' is not found"}'), Failure.RAISED),
        (http(404, b'{"error":"Request for unknown model: \'xm\' version 1 is not found"}'), Failure.RAISED),
        (http(200, b"not json"), Failure.BROKEN),
        (http(200, b"[" * 50_000), Failure.BROKEN),
        (http(200, HEADER + b"abc", f"Inference-Header-Content-Length: {len(HEADER)}"), Failure.BROKEN),
        (http(200, HEADER, "Inference-Header-Content-Length: x"), Failure.BROKEN),
        (http(200, b'{"model_name":"m","model_version":"1","outputs":[]}' + b" " * 2_000_000), Failure.OVERSIZED),
        (MANY, Failure.OVERSIZED),
        (GOOD[:-2], Failure.BROKEN),
        (GOOD.replace(b'"m"', b'"n"'), Failure.BROKEN),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Failure.BROKEN),
        (b"", Failure.DROPPED),
    ],
)
async def test_what_goes_wrong_is_mapped(answer: bytes, failure: Failure) -> None:
    async with serving(answering(answer), answer_bytes_max=1_500_000) as replica:
        with pytest.raises(UpstreamError) as caught:
            await infer(replica)
    assert caught.value.failure is failure
    assert caught.value.before_answer is (failure is Failure.DROPPED)
    assert replica.url in str(caught.value)


async def test_an_endless_chunked_answer_is_bounded() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            await writer.drain()

    async with serving(handler, answer_bytes_max=100_000) as replica:
        with pytest.raises(UpstreamError, match="more than 100000 bytes"):
            await infer(replica)


@pytest.mark.parametrize(
    ("request_", "answer", "status"),
    [
        (REQUEST, http(400, b'{"error":"unexpected shape for input"}'), 400),
        (REQUEST, http(404, b'{"error":"Unable to find shared memory region: \'model is not ready\'"}'), 404),
        (REQUEST, http(404, b'{"error":"Unable to find shared memory region: \'is unloading\'"}'), 404),
        (REQUEST, http(404, b'{"error":""}'), 404),
        (REQUEST, http(404, b'{"error":"no such row: Not Found"}'), 404),
        (REQUEST, http(400, b'{"error":"no Request for unknown model: \'m\' is not found"}'), 400),
        (
            InferRequest("m", REQUEST.inputs, version="9"),
            http(404, b'{"error":"Request for unknown model: \'m\' version 9 is not found"}'),
            404,
        ),
    ],
)
async def test_the_callers_fault_is_rejected(request_: InferRequest, answer: bytes, status: int) -> None:
    async with serving(answering(answer)) as replica:
        with pytest.raises(Rejected) as caught:
            await infer(replica, request_)
    assert caught.value.status == status
    assert not str(caught.value).startswith("{")


async def test_a_missing_output_may_be_this_inputs_doing() -> None:
    async with serving(answering(GOOD)) as replica:
        with pytest.raises(UpstreamError, match="without output 'z'") as caught:
            await infer(replica, InferRequest("m", REQUEST.inputs, (RequestedOutput("z"),)))
    assert caught.value.failure is Failure.RAISED


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(-1)


@pytest.mark.parametrize("seconds", [0.05, 0.0])
async def test_a_hanging_replica_times_out(seconds: float) -> None:
    async with serving(hang) as replica:
        with pytest.raises(UpstreamError) as caught:
            await infer(replica, seconds=seconds)
    assert caught.value.failure is Failure.TIMEOUT


async def test_a_half_answer_that_hangs_times_out() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(GOOD[:-2])
        await reader.read(-1)

    async with serving(handler) as replica:
        with pytest.raises(UpstreamError) as caught:
            await infer(replica, seconds=0.1)
    assert caught.value.failure is Failure.TIMEOUT


async def test_nobody_listens() -> None:
    async with serving(hang) as replica:
        pass
    lonely = TritonHttp(replica.url, TritonOptions())
    with pytest.raises(UpstreamError) as caught:
        await infer(lonely)
    await lonely.close()
    assert (caught.value.failure, caught.value.before_answer) == (Failure.UNREACHABLE, True)


async def test_a_kept_connection_that_was_closed_is_retried_on_a_fresh_one() -> None:
    connections: list[int] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        await read_request(reader)
        writer.write(GOOD)
        await read_request(reader)  # and closes without a word

    async with serving(handler) as replica:
        await infer(replica)
        await infer(replica)
        assert len(connections) == 2
        await infer(replica)  # the fresh connection was not kept: a new one
        sequence = InferRequest("m", REQUEST.inputs, parameters={"sequence_id": 1})
        with pytest.raises(UpstreamError) as caught:
            await infer(replica, sequence)
    assert caught.value.failure is Failure.DROPPED


async def test_a_kept_connection_that_was_closed_with_nobody_left_behind_it_was_dropped() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(GOOD)
        await read_request(reader)
        server.close()  # so nobody listens any more
        writer.close()

    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    replica = TritonHttp(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", TritonOptions())
    try:
        await infer(replica)
        with pytest.raises(UpstreamError) as caught:
            await infer(replica)
    finally:
        await replica.close()
        server.close()
    assert caught.value.drops == 1


async def test_a_model_that_does_not_answer_this_way_at_all_is_no_failure_of_a_replica() -> None:
    words = b'{"error":"Inference request to decoupled model must be streamed"}'
    async with serving(answering(http(501, words))) as replica:
        with pytest.raises(Rejected) as caught:
            await infer(replica)
    assert (caught.value.status, str(caught.value)) == (501, "Inference request to decoupled model must be streamed")


async def test_callers_are_not_told_where_in_a_models_files_it_was() -> None:
    words = FAILED_TO_PROCESS % b"KeyError: x\\n\\nAt:\\n  /models/m/1/model.py(7): execute\\n"
    async with serving(answering(http(500, words))) as replica:
        with pytest.raises(UpstreamError, match=r"KeyError: x$"):
            await infer(replica)


async def test_pass_through_is_verbatim() -> None:
    seen: list[tuple[bytes, bytes]] = []
    answer = http(
        418, b"\x1f\x8bzip", "Content-Encoding: gzip", "Connection: X-Hop", "X-Hop: 1", "X-End: 2", "Set-Cookie: a=b"
    )
    async with serving(answering(answer, answer, seen=seen)) as replica:
        headers = (
            ("Accept-Encoding", "br"),
            ("Connection", "close, X-Mine"),
            ("X-Mine", "1"),
            ("TE", "trailers"),
            ("Proxy-Authorization", "secret"),
            ("Host", "public"),
            ("X-Twice", "1"),
            ("X-Twice", "2"),
        )
        call = Call("POST", "/v2/a%2Fb/../c//d?x=%7e&y=a+b%zz", headers, b"body")
        for _ in range(2):
            async with replica.stream(call, Deadline(30.0), 0.0) as streamed:
                body = b"".join([piece async for piece in streamed.chunks])
    assert (streamed.status, body) == (418, b"\x1f\x8bzip")
    assert streamed.headers == (
        ("Content-Length", "5"),
        ("Content-Encoding", "gzip"),
        ("X-End", "2"),
        ("Set-Cookie", "a=b"),
    )
    for head, sent in seen:
        lines = head.split(b"\r\n")
        assert lines[0] == b"POST /v2/a%2Fb/../c//d?x=%7e&y=a+b%zz HTTP/1.1"
        assert sent == b"body"
        names = sorted(line.split(b":")[0].lower() for line in lines[1:] if line)
        assert names == [b"accept-encoding", b"content-length", b"host", b"x-twice", b"x-twice"]


async def test_streaming_stays_streaming_both_ways() -> None:
    more = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"chunked" in head.lower()
        assert await reader.readuntil(b"0\r\n\r\n") == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await more.wait()
        writer.write(b"4\r\nlast\r\n0\r\n\r\n")

    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async with serving(handler) as replica:
        call = Call("POST", "/v2/models/m/generate_stream", (), body())
        async with replica.stream(call, Deadline(30.0), 0.0) as streamed:
            assert await anext(streamed.chunks) == b"first"
            more.set()
            assert [piece async for piece in streamed.chunks] == [b"last"]


class TooLarge(Exception):
    """What a door may raise while it hands on a body."""


@pytest.mark.parametrize("answered", [False, True], ids=["before-the-head", "after-the-head"])
@pytest.mark.parametrize("fault", [TooLarge("7 bytes"), ConnectionResetError("left"), TimeoutError("slow")])
async def test_what_the_callers_body_raises_comes_out_as_itself(fault: Exception, answered: bool) -> None:
    head_is_there = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"one\r\n")
        if answered:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await reader.read(-1)

    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        if answered:
            await head_is_there.wait()
        raise fault

    async with serving(handler) as replica:
        made = Pool([replica], PoolOptions(BreakerOptions(consecutive_failures=1)), time.monotonic, random.Random(1))
        call = Call("POST", "/v2/models/m/infer", (), body())

        async def forward() -> None:
            async with made.forward(call, Deadline.after(time.monotonic(), 30.0)) as streamed:
                head_is_there.set()
                async for _ in streamed.chunks:
                    pass

        with pytest.raises(type(fault)) as caught:
            await forward()
        assert caught.value is fault
        assert made.states()[0].breaker == "closed"


async def test_a_stream_that_breaks_off_is_broken_and_silence_times_out() -> None:
    def partly(then: Handler) -> Handler:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfirst")
            await writer.drain()
            await then(reader, writer)

        return handler

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        return

    for then, failure in ((leave, Failure.BROKEN), (hang, Failure.TIMEOUT)):
        async with (
            serving(partly(then), stream_idle_timeout=0.1) as replica,
            replica.stream(Call("GET", "/"), Deadline(30.0), 0.0) as streamed,
        ):
            assert await anext(streamed.chunks) == b"first"
            with pytest.raises(UpstreamError) as caught:
                await anext(streamed.chunks)
        assert caught.value.failure is failure


async def test_leaving_a_stream_or_a_call_closes_its_connection() -> None:
    gone = asyncio.Event()
    asked = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        await reader.read(-1)
        gone.set()

    async with serving(handler) as replica:
        task = asyncio.create_task(infer(replica))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 30)


async def test_exchange_gives_any_status_and_retries_get() -> None:
    async with serving(answering(http(503, b"no"))) as replica:
        reply = await replica.exchange(Call("GET", "/v2/health/ready"), Deadline(30.0), 0.0)
    assert (reply.status, reply.body) == (503, b"no")


async def test_a_probe_waits_behind_nothing_that_callers_ask() -> None:
    waiting, all_wait = 0, asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, _ = await read_request(reader)
        if b"/health/" in head:
            writer.write(http(400, b""))
            await writer.drain()
        nonlocal waiting
        waiting += 1
        if waiting == ASKING_CONNECTIONS_MAX:
            all_wait.set()
        await reader.read(-1)

    async with serving(handler) as replica:
        pool = Pool([replica], PoolOptions(probe_timeout=20.0), time.monotonic, random.Random(7))
        deadline = Deadline.after(time.monotonic(), 60.0)
        asked = [
            asyncio.create_task(pool.exchange(Call("GET", "/v2/models/m/ready"), deadline))
            for _ in range(ASKING_CONNECTIONS_MAX)
        ]
        await all_wait.wait()
        await pool.probe_once()
        assert not pool._seats[0].ready
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def test_who_answers_on_a_kept_connection_and_takes_no_new_one_is_not_back() -> None:
    """What callers need is a connection, and a probe's was made while it could be."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(http(200, b""))
            await writer.drain()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    replica = TritonHttp(f"http://127.0.0.1:{port}", TritonOptions())
    pool = Pool([replica], PoolOptions(BreakerOptions(consecutive_failures=2)), time.monotonic, random.Random(7))
    deadline = Deadline.after(time.monotonic(), 60.0)
    await pool.probe_once()
    server.close()
    await pool.probe_once()
    assert pool.states()[0].ready, "nobody has missed anything yet"
    for _ in range(2):
        with pytest.raises(UpstreamError):
            await pool.infer(REQUEST, deadline)
    await pool.probe_once()
    assert (pool.states()[0].breaker, pool.states()[0].ready) == ("open", False)
    server = await asyncio.start_server(connected, "127.0.0.1", port)
    await pool.probe_once()
    assert (pool.states()[0].breaker, pool.states()[0].ready) == ("closed", True)
    await pool.close()
    server.close()


def test_end_to_end() -> None:
    pairs = (
        ("Keep-Alive", "5"),
        ("Upgrade", "h2c"),
        ("Trailer", "x"),
        ("Proxy-Thing", "1"),
        ("Transfer-Encoding", "x"),
    )
    assert end_to_end((*pairs, ("A", "1"))) == (("A", "1"),)


async def test_a_line_that_triton_cannot_read_is_refused_before_it_is_sent() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with serving(answering(http(200, b""), seen=seen)) as replica:
        for call in (Call("GET", "/v2", (("X-Big", "a" * 8000),)), Call("GET", "/v2?" + "a" * 8000)):
            with pytest.raises(Rejected, match="longer than 8000 bytes") as caught:
                await replica.exchange(call, Deadline(9e9), 0.0)
            assert caught.value.status == 431
    assert not seen


@pytest.mark.parametrize("asked", [True, False])
async def test_a_call_that_only_waited_for_a_connection_of_ours_is_no_silence(asked: bool) -> None:
    now = 0.0
    begun = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        begun.set()
        await asyncio.Event().wait()

    async with serving(silent, connections_max=1) as replica:
        pool = Pool([replica], PoolOptions(BreakerOptions(consecutive_failures=1)), lambda: now, random.Random(1))
        far = Deadline(1000.0)
        other = InferRequest("other", ())
        holder = asyncio.create_task(pool.infer(REQUEST, far, decent=1.0))
        await begun.wait()
        waiting = asyncio.create_task(pool.infer(other, far, decent=1.0))
        await asyncio.sleep(0)
        now += 2.0
        left, model = (holder, "m") if asked else (waiting, "other")
        left.cancel()
        await asyncio.wait((left,))
        assert pool.states()[0].models_open == ((model,) if asked else ())
        for task in (holder, waiting):
            task.cancel()
        await asyncio.wait((holder, waiting))
