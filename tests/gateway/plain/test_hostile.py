"""An endpoint's posts as bytes that no client of good will sends, on both lanes."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.gateway.plain.conftest import Front, Open, Predictor, until
from tests.gateway.plain.test_endpoints import CACHED, SHORT

SECONDS = 10.0
BODY = b'{"inputs": [1, 2]}'
HEAD = b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"


async def exchange(front: Front, *pieces: bytes) -> bytes:
    """What comes back on a connection of its own until the gateway has nothing more to say and we have closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    async with asyncio.timeout(SECONDS):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        got = head + await reader.readexactly(length)
    writer.close()
    return got


def sized(body: bytes, head: bytes = HEAD) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def chunked(body: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:3], body[3:]))
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


async def test_a_chunked_body_is_the_same_question(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED)
    assert b"cache=miss" in await exchange(front, chunked(BODY))
    assert b"cache=hit" in await exchange(front, sized(BODY))
    assert b"cache=hit" in await exchange(front, *[bytes([byte]) for byte in chunked(BODY)])
    assert b"cache=hit" in await exchange(front, *[bytes([byte]) for byte in sized(BODY)])
    ((_, fields, body),) = predictor.posts
    assert (body, fields["Content-Length"]) == (BODY, str(len(BODY)))
    assert "Transfer-Encoding" not in fields


WRONG = [
    b"Content-Length: 18\r\nContent-Length: 17\r\n\r\n" + BODY,
    b"Content-Length: 18\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY,
    b"Content-Length: +18\r\n\r\n" + BODY,
    b"Content-Length: 0x12\r\n\r\n" + BODY,
    b"Content-Length: -1\r\n\r\n" + BODY,
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY,
    b"Bad\x00Field: 1\r\nContent-Length: 18\r\n\r\n" + BODY,
]


@pytest.mark.parametrize("rest", WRONG)
async def test_what_has_two_lengths_or_none_is_refused(predictor: Predictor, open_front: Open, rest: bytes) -> None:
    front = await open_front(CACHED)
    assert (await exchange(front, HEAD + rest)).startswith(b"HTTP/1.1 400 ")
    assert predictor.posts == []
    assert (await front.predict(1)).status == 200


async def test_a_body_that_stays_short_is_nobodys_question(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED, TAILRACE_SERVER__BODY_TIMEOUT="100ms")
    got = await exchange(front, HEAD + b"Content-Length: 100\r\n\r\n" + BODY)
    assert got.startswith(b"HTTP/1.1 408 ")
    _, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(HEAD + b"Content-Length: 100\r\n\r\n" + BODY)
    writer.close()
    assert (await front.predict(1)).cache == "miss"
    assert len(predictor.posts) == 1


async def test_what_follows_a_body_is_the_next_request(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED)
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write((sized(BODY) + sized(b'{"inputs": [4]}')) * 20 + b"GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n")
    async with asyncio.timeout(SECONDS):
        for number in range(40):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            assert json.loads(await reader.readexactly(length)) == {"sum": 4 if number % 2 else 3}
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
    writer.close()
    assert len(predictor.posts) == 2


async def test_a_huge_body_is_refused_before_it_is_taken_in(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED + 'body_bytes_max = "64KiB"\n')
    assert (await exchange(front, HEAD + b"Content-Length: 999999999999\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
    endless = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"4000\r\n" + b"x" * 0x4000 + b"\r\n") * 5
    assert (await exchange(front, endless)).startswith(b"HTTP/1.1 413 ")
    assert predictor.posts == []
    assert front.gateway.buffered.bytes == 0
    large = await open_front(CACHED)
    body = json.dumps({"inputs": [1] * 2_000_000}).encode()
    for state in ("miss", "hit"):
        told = await large.ask("POST", "/predict", body, {"Content-Type": "application/json"})
        assert (told.cache, told.document) == (state, {"sum": 2_000_000})
    assert large.gateway.buffered.bytes == 0


async def test_bodies_of_all_together_are_bounded(predictor: Predictor, open_front: Open) -> None:
    bound = {"TAILRACE_SERVER__BUFFERED_BYTES_MAX": "1MiB", "TAILRACE_SERVER__BODY_BYTES_MAX": "1MiB"}
    front = await open_front(CACHED, **bound)
    predictor.gate.clear()
    asked = [
        asyncio.create_task(front.ask("POST", "/predict", bytes([number]) * 400_000)) for number in range(5)
    ]
    await until(lambda: sum(task.done() for task in asked) == 3)
    predictor.gate.set()
    assert sorted(told.status for told in await asyncio.gather(*asked)) == [200, 200, 503, 503, 503]
    assert front.gateway.buffered.bytes == 0


async def test_a_coded_body_goes_on_as_it_is_and_is_a_question_of_its_own(
    predictor: Predictor, open_front: Open
) -> None:
    front = await open_front(CACHED)
    coded = gzip.compress(BODY, mtime=0)
    fields = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    told = [await front.ask("POST", "/predict", coded, fields) for _ in range(3)]
    assert [each.cache for each in told] == ["miss", "hit", "hit"]
    assert (await front.ask("POST", "/predict", coded, {"Content-Type": "application/json"})).cache == "miss"
    assert (await front.ask("POST", "/predict", BODY, {"Content-Type": "application/json"})).cache == "miss"
    assert [body for _, _, body in predictor.posts] == [coded, coded, BODY]
    assert predictor.posts[0][1]["Content-Encoding"] == "gzip"
    bomb = gzip.compress(b"0" * 2**24)
    assert (await front.ask("POST", "/predict", bomb, fields)).status == 200, "nothing is inflated here"


async def test_bytes_beyond_ascii_in_a_head_are_bytes(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED)
    for value in (b"caf\xc3\xa9", b"\xff\xfe"):
        for state in (b"cache=miss", b"cache=hit", b"cache=hit"):
            assert state in await exchange(front, sized(BODY, HEAD + b"Accept: " + value + b"\r\n"))
    query = HEAD.replace(b"/predict", b"/predict?q=\xc3\xa9")
    assert b"HTTP/1.1 " in await exchange(front, sized(BODY, query))
    assert (await front.predict(1)).status == 200


@pytest.mark.parametrize("target", [b"//predict", b"/./predict", b"/x/../predict", b"/predict%2f", b"/predict%00"])
async def test_a_path_with_two_readings_is_refused(predictor: Predictor, open_front: Open, target: bytes) -> None:
    front = await open_front(CACHED)
    assert (await exchange(front, sized(BODY, HEAD.replace(b"/predict", target)))).startswith(b"HTTP/1.1 400 ")
    assert predictor.asked == []


Reply = Callable[[asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def answering(*replies: bytes) -> AsyncIterator[str]:
    """A server that answers the first posts with these bytes, and closes the connection after each."""
    left = list(replies)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"POST "):
                await reader.readexactly(len(BODY))
                writer.write(left.pop(0))
            else:
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_an_answer_that_ends_with_its_connection_is_not_kept(open_front: Open) -> None:
    reply = b"HTTP/1.1 200 OK\r\n\r\nhalf or whole"
    async with answering(reply, reply) as url:
        front = await open_front(CACHED, [url])
        for _ in range(2):
            told = await front.ask("POST", "/predict", BODY)
            assert (told.status, told.cache, told.body) == (200, "miss", b"half or whole")
            assert "Content-Type" not in told.headers


BROKEN = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nhalf",
    b"nonsense\r\n\r\n",
    b"",
]


@pytest.mark.parametrize("reply", BROKEN)
async def test_half_an_answer_is_none_and_an_old_one_is_better(open_front: Open, reply: bytes) -> None:
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"
    async with answering(good, reply, reply) as url:
        front = await open_front(SHORT + "[backends.plain.breaker]\nconsecutive_failures = 100\n", [url])
        assert (await front.ask("POST", "/predict", BODY)).body == b"good"
        await asyncio.sleep(0.03)
        old = await front.ask("POST", "/predict", BODY)
        assert (old.status, old.cache, old.body) == (200, "stale", b"good")
        other = await front.ask("POST", "/predict?other", BODY)
        assert other.status == 503
        assert "Retry-After" in other.headers


async def test_an_answer_without_a_body_and_one_with_odd_bytes_come_through(open_front: Open) -> None:
    bare = b"HTTP/1.1 204 No Content\r\n\r\n"
    odd = b"HTTP/1.1 200 OK\r\nX-Name: caf\xc3\xa9 100%d\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    async with answering(bare, odd) as url:
        front = await open_front(CACHED, [url])
        assert ((await front.ask("POST", "/predict?1", BODY)).status) == 204
        for state in ("miss", "hit", "hit"):
            told = await front.ask("POST", "/predict?2", BODY)
            assert (told.cache, told.body, told.headers["X-Name"]) == (state, b"ok", "café 100%d")


@pytest.mark.parametrize(
    "field",
    [
        b"X_Forwarded_Host: evil.example",
        b"X_HTTP_Method_Override: DELETE",
        b"X-Auth-Token: mine",
        b"Api-Key: mine",
        b"X-Amz-Security-Token: mine",
        b"Ocp-Apim-Subscription-Key: mine",
    ],
)
async def test_what_may_be_for_one_alone_is_left_to_nobody(
    predictor: Predictor, open_front: Open, field: bytes
) -> None:
    front = await open_front(CACHED)
    for _ in range(2):
        assert b"cache=bypass" in await exchange(front, sized(BODY, HEAD + field + b"\r\n"))
    assert b"cache=miss" in await exchange(front, sized(BODY))
    assert b"cache=hit" in await exchange(front, sized(BODY))
    assert b"cache=bypass" in await exchange(front, sized(BODY, HEAD + field + b"\r\n"))
    assert len(predictor.posts) == 4


async def test_a_forwarded_that_a_trusted_proxy_let_through_is_in_the_key(
    predictor: Predictor, open_front: Open
) -> None:
    front = await open_front(CACHED, TAILRACE_SERVER__TRUSTED_PROXIES='["127.0.0.1"]')
    evil = HEAD + b"Forwarded: for=6.6.6.6;host=evil.example\r\n"
    assert b"cache=miss" in await exchange(front, sized(BODY, evil))
    assert b"cache=hit" in await exchange(front, sized(BODY, evil))
    for _ in range(3):
        last = await exchange(front, sized(BODY))
    assert b"cache=hit" in last
    assert len(predictor.posts) == 2


@pytest.mark.parametrize("field", ["X-Forwarded-For", "X-Real-IP", "Forwarded"])
async def test_who_asks_decides_where_vary_says_so(predictor: Predictor, open_front: Open, field: str) -> None:
    trusting = {"TAILRACE_SERVER__TRUSTED_PROXIES": '["127.0.0.1"]'}
    front = await open_front(CACHED + f'vary = ["{field}"]\n', **trusting)
    said = {"Forwarded": ("for=192.0.2.1", "for=192.0.2.2")}.get(field, ("192.0.2.1", "192.0.2.2"))
    for number, who in enumerate(said, 1):
        asked = sized(BODY, HEAD + f"{field}: {who}\r\n".encode())
        assert b"cache=miss" in await exchange(front, asked)
        for _ in range(3):
            assert b"cache=hit" in await exchange(front, asked)
        assert len(predictor.posts) == number


@pytest.mark.parametrize("interim", [b"100 Continue", b"102 Processing", b"103 Early Hints"])
async def test_what_a_server_says_before_its_answer_is_none(open_front: Open, interim: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                said = b"HTTP/1.1 %b\r\nLink: </a>\r\n\r\n" % interim
                writer.write(said * 2 + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    front = await open_front(CACHED, [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"])
    for path in ("/predict", "/other"):
        told = await front.ask("POST", path, b"{}")
        assert (told.status, told.document) == (200, {})
    server.close()
