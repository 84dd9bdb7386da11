"""What passes through to a replica: a place and a connection are given back exactly once, however it ends."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from degrade.breaker import Breaker, BreakerOptions
from degrade.deadline import Deadline
from degrade.ladder import Failure
from tests.tiers.test_connection import Reader, Writer, answers, http, read_request, serving
from tiers.backends.answer import AnswerHead
from tiers.backends.call import Call
from tiers.backends.triton_http import TritonHttp
from tiers.inference import Rejected, UpstreamError
from tiers.pool import Pool, PoolOptions
from tiers.seat import Seat, Seated

SECONDS = 10.0
POST = Call("POST", "/v2/models/m/infer", (("A", "b"),))


class Listener:
    """Keeps what comes, and how."""

    def __init__(self) -> None:
        self.held = 0
        self.how: list[str] = []
        self.body = b""
        self.error: UpstreamError | None = None
        self.over = asyncio.Event()

    def begin(self, head: AnswerHead, follows: bool) -> None:
        self.how.append("begin")

    def feed(self, piece: bytes) -> None:
        self.body += piece

    def finish(self) -> None:
        self.how.append("finish")
        self.over.set()

    def answer(self, head: AnswerHead, body: bytes) -> None:
        self.how.append("answer")
        self.body = body
        self.over.set()

    def fail(self, error: UpstreamError) -> None:
        self.error = error
        self.over.set()


def pool_of(replica: TritonHttp) -> Pool:
    return Pool([replica], PoolOptions(), asyncio.get_running_loop().time, random.Random(0))


async def passed(pool: Pool, call: Call, body: bytes) -> Listener:
    """What comes of a call, which is in flight until that has come."""
    listener = Listener()
    pool.relay(call, body, listener, SECONDS)
    assert pool.states()[0].in_flight == 1
    async with asyncio.timeout(SECONDS):
        await listener.over.wait()
    assert pool.states()[0].in_flight == 0
    return listener


def at_rest(replica: TritonHttp) -> bool:
    return all(each.open == each.idle for each in replica.connections)


async def test_an_answer_like_the_last_one_is_told_in_one_call_and_any_other_in_three() -> None:
    one, two = http(b"one"), http(b"two", "A: b")
    async with serving(answers(one, one, two, two, one, http(b"longer"))) as (replica, server):
        pool = pool_of(replica)
        told = [await passed(pool, POST, b"x") for _ in range(6)]
        assert [each.body for each in told] == [b"one", b"one", b"two", b"two", b"one", b"longer"]
        whole, pieces = ["answer"], ["begin", "finish"]
        assert [each.how for each in told] == [pieces, whole, pieces, whole, pieces, pieces]
        assert at_rest(replica)
        assert server.accepted == 1


async def test_the_answer_of_a_head_has_no_body_whatever_it_says() -> None:
    head = http(b"longer").removesuffix(b"longer")
    async with serving(answers(head, head)) as (replica, server):
        pool = pool_of(replica)
        told = [await passed(pool, Call("HEAD", "/v2"), b"") for _ in range(2)]
        assert [(each.how, each.body, each.error) for each in told] == [(["begin", "finish"], b"", None)] * 2
        assert server.accepted == 1


async def test_one_call_goes_out_with_bodies_of_any_length() -> None:
    bodies: list[bytes] = []

    async def handler(reader: Reader, writer: Writer) -> None:
        while True:
            bodies.append((await read_request(reader))[1])
            writer.write(http(b"ok"))

    async with serving(handler) as (replica, _):
        pool = pool_of(replica)
        sent = [b"a", b"bc", b"", b"a", bytes(70_000), b"d"]
        for body in sent:
            await passed(pool, POST, body)
        assert bodies == sent


async def test_an_answer_too_large_to_be_held_as_a_whole_is_none_where_its_like_has_passed_through() -> None:
    async with serving(answers(*[http(b"one")] * 3), answer_bytes_max=2) as (replica, server):
        pool = pool_of(replica)
        assert [(await passed(pool, POST, b"x")).body for _ in range(2)] == [b"one", b"one"]
        with pytest.raises(UpstreamError) as caught:
            await replica.exchange(Call("POST", "/", (), b"x"), Deadline(math.inf), 0.0)
        assert caught.value.failure is Failure.OVERSIZED
        assert server.accepted == 1


@pytest.mark.parametrize(("method", "body", "again"), [("GET", b"", True), ("GET", b"x", False), ("POST", b"", False)])
async def test_only_a_question_is_sent_again_when_its_kept_connection_has_died(
    method: str, body: bytes, again: bool
) -> None:
    async def once(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(http(b"ok"))
        await read_request(reader)

    async with serving(once) as (replica, server):
        pool, call = pool_of(replica), Call(method, "/")
        first, second = [await passed(pool, call, body) for _ in range(2)]
        assert (first.body, first.error) == (b"ok", None)
        assert server.accepted == (2 if again else 1)
        assert second.body == (b"ok" if again else b"")
        assert again or (second.error is not None and second.error.failure is Failure.DROPPED)
        assert at_rest(replica)


async def test_what_cannot_be_written_takes_no_place() -> None:
    async with serving(answers()) as (replica, server):
        pool = pool_of(replica)
        for _ in range(2):
            with pytest.raises(Rejected):
                pool.relay(Call("POST", "/a b"), b"", Listener(), SECONDS)
        assert pool.states()[0].in_flight == 0
        assert server.accepted == 0


async def test_a_call_that_is_given_up_or_broken_off_leaves_nothing_behind() -> None:
    begun = asyncio.Event()

    async def handler(reader: Reader, writer: Writer) -> None:
        _, body = await read_request(reader)
        writer.write(http(b"one")[:-1])
        begun.set()
        if body == b"given up":
            await reader.read(-1)

    async with serving(handler) as (replica, _):
        pool = pool_of(replica)
        broken = await passed(pool, POST, b"broken off")
        assert broken.error is not None
        assert broken.error.failure is Failure.BROKEN
        begun.clear()
        listener = Listener()
        carried = pool.relay(POST, b"given up", listener, SECONDS)
        async with asyncio.timeout(SECONDS):
            await begun.wait()
        for _ in range(2):
            carried.abort()
            assert pool.states()[0].in_flight == 0
        await asyncio.sleep(0)
        assert not listener.over.is_set()
        assert at_rest(replica)


async def test_nobody_there_speaks_against_the_replica_and_is_told_at_once_in_the_end() -> None:
    async with serving(answers()) as (replica, _):
        pass
    replica = TritonHttp(replica.url, replica._options)
    pool = pool_of(replica)
    for _ in range(BreakerOptions().consecutive_failures):
        listener = await passed(pool, POST, b"x")
        assert listener.error is not None
        assert listener.error.failure is Failure.UNREACHABLE
    with pytest.raises(UpstreamError, match="no replica can be reached"):
        pool.relay(POST, b"x", Listener(), SECONDS)
    assert pool.states()[0].in_flight == 0
    await pool.close()


UNREACHABLE = UpstreamError(Failure.UNREACHABLE, "gone")


def place(failures: int) -> tuple[Seat, Seated]:
    """A place at a replica whose breaker opens at the third failure in a row, after so many."""
    replica: TritonHttp = object.__new__(TritonHttp)
    replica.url = "http://h"
    seat = Seat(replica, Breaker(BreakerOptions(consecutive_failures=3)))
    for _ in range(failures):
        Seated(seat, _begun(seat), lambda: 0.0, False).left(UNREACHABLE)
    seat.in_flight += 1
    return seat, Seated(seat, _begun(seat), lambda: 0.0)


def _begun(seat: Seat):  # type: ignore[no-untyped-def]
    leave = seat.reach.begin(0.0)
    assert leave is not None
    return leave


@pytest.mark.parametrize(
    ("end", "failures_after"),
    [
        (lambda seated: seated.answered(), 0),
        (lambda seated: (seated.reached(), seated.left()), 0),
        (lambda seated: (seated.reached(), seated.left(UNREACHABLE)), 0),
        (lambda seated: seated.left(), 1),
        (lambda seated: seated.left(UpstreamError(Failure.BROKEN, "half")), 1),
        (lambda seated: seated.left(UNREACHABLE), 2),
    ],
    ids=["answered", "reached, left", "reached, broken", "left", "broken", "not reached"],
)
def test_a_place_speaks_once_for_its_replica_or_against_it(end, failures_after):  # type: ignore[no-untyped-def]
    seat, seated = place(1)
    end(seated)
    assert seat.in_flight == 0
    seated.left(UNREACHABLE)  # again: it has ended
    assert seat.in_flight == 0
    for _ in range(3 - failures_after - 1):
        Seated(seat, _begun(seat), lambda: 0.0, False).left(UNREACHABLE)
    assert seat.reach.state == "closed"
    Seated(seat, _begun(seat), lambda: 0.0, False).left(UNREACHABLE)
    assert seat.reach.state == "open"
