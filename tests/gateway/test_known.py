"""Requests known whole: nothing that may change is remembered with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from cache.entry import Entry
from gateway.admission.quota import Quota, Verdict, ratelimit_lines
from gateway.app import Gateway
from gateway.doors.answers import Answers
from gateway.doors.edge import EdgeConnection
from gateway.doors.head import Judgement, Lane
from gateway.doors.known import REQUEST_BYTES_MAX, REQUESTS_MAX, TRIED_OF, Requests
from gateway.pipeline import WireAnswer
from gateway.service import Heading, Response, Served
from gateway.service import Wire as Ready
from gateway.sources import load
from tests.gateway.test_lanes import INFERENCE, Answer, Upstream, Wire, answers

SECONDS = 10.0
OFTEN = TRIED_OF + 4
"""Times that a request is asked until it is known whole, and then some."""
BODY = b'{"inputs":[{"name":"x","datatype":"INT32","shape":[1],"data":[%d]}]}'
CACHED = '{ tiers = [{ backend = "upstream", model = "m" }], cache = { ttl = "1h" }%s }'
QUOTA = ", caller_quota = { rate = 1, per = '1h', burst = 20, hits_count = true }"


def request(value: int = 7, target: bytes = b"/v2/models/r/infer", fields: bytes = b"") -> bytes:
    body = BODY % value
    return b"POST %b HTTP/1.1\r\nHost: h\r\n%bContent-Length: %d\r\n\r\n%b" % (target, fields, len(body), body)


def output(value: int) -> dict[str, object]:
    """What the model gives from now on."""
    return {"name": "y", "datatype": "INT32", "shape": [1], "data": [value]}


class Peer(Wire):
    """A caller at an address, who asks one thing after the other over one connection."""

    def __init__(self, house: House, address: str = "127.0.0.1") -> None:
        self.address = address
        self.answered = asyncio.Event()
        super().__init__(EdgeConnection(house.gateway.doors.lane))

    def get_extra_info(self, name: str, default: object = None) -> object:
        return (self.address, 1) if name == "peername" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(data)
        self.answered.set()

    async def ask(self, asked: bytes) -> Answer:
        self.heard.clear()
        self.answered.clear()
        self.say(asked)
        async with asyncio.timeout(SECONDS):
            await self.answered.wait()
        (answer,) = answers(bytes(self.heard))
        return answer

    async def states(self, asked: bytes, times: int) -> list[str]:
        """What is said of each of so many answers: hit or fwd=miss, or its status if it is none."""
        said = []
        for _ in range(times):
            answer = await self.ask(asked)
            told = dict(answer.fields).get("cache-status", "")
            said.append(told.split(";")[1].strip() if answer.status == 200 else str(answer.status))
        return said


class House:
    """A gateway before a model that answers whatever it is asked."""

    def __init__(self, gateway: Gateway, upstream: Upstream) -> None:
        self.gateway, self.upstream = gateway, upstream

    @property
    def requests(self) -> Requests:
        return self.gateway.doors.lane.requests

    @property
    def asked(self) -> int:
        """How often a model or a server behind was asked."""
        return len(self.upstream.heads)


@asynccontextmanager
async def opened(route: str = "", **more: str) -> AsyncIterator[House]:
    upstream = Upstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    environ = {f"TAILRACE_SERVER__{door}": '"127.0.0.1:0"' for door in ("HTTP", "ADMIN")}
    environ |= {"TAILRACE_SERVER__GRPC": "off", "TAILRACE_SERVER__DRAIN": "100ms", "TAILRACE_ROUTES__R": CACHED % route}
    gateway = Gateway(load(None, environ | more, [url]))
    await gateway.start()
    try:
        yield House(gateway, upstream)
    finally:
        await gateway.stop()
        server.close()
        await asyncio.gather(*filter(None, upstream.serving), return_exceptions=True)


async def test_a_request_that_comes_again_is_known_whole_and_answered_as_before() -> None:
    async with opened() as house:
        peer = Peer(house)
        first, *others = [await peer.ask(request()) for _ in range(OFTEN)]
        assert house.asked == 1
        assert len(house.requests) == 1
        assert {other.body for other in others} == {first.body}
        assert others[1:] == others[:-1], "known whole or by its parts, it is the same answer"
        text = house.gateway.telemetry.exposition().decode()
        assert f'tailrace_answers_total{{cache="hit",reason="fresh",route="r"}} {OFTEN - 1}.0' in text
        assert await Peer(house, "127.0.0.2").states(request(), 4) == ["hit"] * 4
        assert (house.asked, len(house.requests)) == (1, 1), "and known for everybody"


async def test_another_byte_is_another_request_with_another_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened() as house:
        peer = Peer(house)
        assert await peer.states(request(7), OFTEN) == ["fwd=miss", *["hit"] * (OFTEN - 1)]
        assert len(request(8)) == len(request(7))
        monkeypatch.setitem(INFERENCE, "outputs", [output(8)])
        assert await peer.states(request(8), OFTEN) == ["fwd=miss", *["hit"] * (OFTEN - 1)]
        assert (house.asked, len(house.requests)) == (2, 2)
        told = [(await peer.ask(request(value))).body for value in (7, 8, 7, 8)]
        assert [b"[7]" in each for each in told] == [b"[8]" not in each for each in told] == [True, False, True, False]


async def test_an_epochs_turn_and_a_purge_hold_for_the_very_next_request() -> None:
    async with opened() as house:
        peer, route = Peer(house), house.gateway.standing.routes["r"]
        assert await peer.states(request(), OFTEN) == ["fwd=miss", *["hit"] * (OFTEN - 1)]
        route.turn()
        assert await peer.states(request(), OFTEN) == ["fwd=stale", *["hit"] * (OFTEN - 1)]
        assert route.cache is not None
        route.cache.purge()
        assert await peer.states(request(), 3) == ["fwd=miss", "hit", "hit"]
        assert house.asked == 3


async def test_an_answer_that_replaces_another_has_a_head_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened() as house:
        peer, lane = Peer(house), house.gateway.doors.lane
        now = lane.ticker()
        lane.ticker = lambda: now
        assert await peer.states(request(), OFTEN) == ["fwd=miss", *["hit"] * (OFTEN - 1)]
        before = await peer.ask(request())
        monkeypatch.setitem(INFERENCE, "outputs", [output(1234567)])
        assert (await Peer(house).ask(request(fields=b"Cache-Control: no-cache\r\n"))).status == 200
        await peer.states(request(), OFTEN)
        after = await peer.ask(request())
        assert b"1234567" in after.body
        assert b"1234567" not in before.body
        lengths = [int(dict(each.fields)["content-length"]) for each in (before, after)]
        assert lengths == [len(before.body), len(after.body)]


async def test_a_spent_quota_holds_for_the_very_next_request_of_its_caller_and_for_no_other() -> None:
    async with opened(QUOTA) as house:
        one, two = Peer(house, "127.0.0.1"), Peer(house, "127.0.0.2")
        assert await one.states(request(), 22) == ["fwd=miss", *["hit"] * 19, "429", "429"]
        assert len(house.requests) == 1
        text = house.gateway.telemetry.exposition().decode()
        assert 'tailrace_refusals_total{problem="quota",route="r"} 2.0' in text
        assert 'tailrace_responses_total{route="r",status="429"} 2.0' in text
        assert await two.states(request(), 21) == [*["hit"] * 20, "429"]


async def test_what_is_left_of_a_quota_is_told_anew_each_time() -> None:
    async with opened(QUOTA) as house:
        peer = Peer(house)
        left = [dict((await peer.ask(request())).fields)["ratelimit"] for _ in range(20)]
        assert [each.split(";")[1] for each in left] == [f"r={each}" for each in range(19, -1, -1)]


async def test_age_is_told_anew_each_second() -> None:
    async with opened() as house:
        peer, lane = Peer(house), house.gateway.doors.lane
        assert await peer.states(request(), OFTEN) == ["fwd=miss", *["hit"] * (OFTEN - 1)]
        began = lane.ticker()
        said = []
        for seconds in (10, 10.2, 20, 3000, 7200):
            lane.ticker = lambda now=began + seconds: now  # type: ignore[misc]
            peer.heard.clear()
            peer.say(request())
            age = bytes(peer.heard).partition(b"\r\nAge: ")[2].partition(b"\r\n")[0]
            said.append(int(age or -1))
        assert said[:-1] == pytest.approx([10, 10, 20, 3000], abs=1)
        assert said[-1] == -1, "its time to live is over"


async def test_a_request_has_its_own_time_however_long_ago_the_last_one_came() -> None:
    async with opened() as house:
        peer, lane = Peer(house), house.gateway.doors.lane
        ticker, hours = house.gateway._ticker, 0.0
        later = lambda: ticker() + hours * 3600.0  # noqa: E731
        lane.ticker = house.gateway._exchange._ticker = house.gateway.pipeline._ticker = later
        assert await peer.states(request(7), 2) == ["fwd=miss", "hit"]
        hours = 0.5
        assert await peer.states(request(8), 2) == ["fwd=miss", "hit"]


async def test_a_head_that_is_judged_again_is_known_again() -> None:
    async with opened() as house:
        assert await Peer(house).states(request(), OFTEN) == ["fwd=miss", *["hit"] * (OFTEN - 1)]
        house.gateway.doors.lane.heads._known.clear()
        peer = Peer(house)
        assert await peer.states(request(), OFTEN) == ["hit"] * OFTEN
        known = house.requests.recall(request())
        assert known is not None
        head = request().partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        assert known.judgement is house.gateway.doors.lane.heads.recall(head)


async def test_a_reload_begins_anew() -> None:
    async with opened() as house:
        assert await Peer(house).states(request(), OFTEN) == ["fwd=miss", *["hit"] * (OFTEN - 1)]
        lane = house.gateway.doors.lane
        lane.take(house.gateway.doors.desk())
        assert len(house.requests) == 0
        assert await Peer(house).states(request(), 3) == ["hit"] * 3


async def test_what_is_known_by_who_asks_is_not_known_whole() -> None:
    endpoint = '{ path = "/predict", backend = "upstream", cache = { ttl = "1h" } }'
    async with opened(TAILRACE_ENDPOINTS__E=endpoint) as house:
        peer = Peer(house)
        states = await peer.states(request(target=b"/predict"), OFTEN)
        assert states[1:] == ["hit"] * (OFTEN - 1)
        assert len(house.requests) == 0, "a server is told who asks, so that its answers may differ by that"


async def test_what_stays_alone_or_is_asked_by_ever_other_heads_is_not_kept() -> None:
    async with opened() as house:
        for _ in range(OFTEN):
            assert (await Peer(house).ask(request())).status == 200
        peer = Peer(house)
        for number in range(OFTEN):
            assert (await peer.ask(request(fields=b"X-Trace: %d\r\n" % number))).status == 200
        assert len(house.requests) == 0


def test_what_is_told_of_a_quota_is_this_callers() -> None:
    def verdict(name: str, remaining: int, reset: float) -> Verdict:
        return Verdict(True, remaining, reset, 0.0, Quota(1.0, 1.0, 10, name))

    answers = Answers(0.0)
    entry = Entry(Served(cast(Response, None)), 1, 0.0, 60.0, 0.0, 0)
    heading = Heading((), b"%d %d %d")

    def told(quota: Verdict | None) -> bytes:
        return answers.of_hit(WireAnswer(Ready(b"", heading), entry, 1.0, quota))[1]

    quotas = [verdict("a", 3, 1.0), verdict("b", 3, 1.0), verdict("b", 2, 1.0), verdict("b", 2, 4.0)]
    for quota in (*quotas, None, *reversed(quotas)):
        assert told(quota) == told(quota) == (b"" if quota is None else ratelimit_lines(quota))


def test_memory_is_bounded() -> None:
    requests, judgement = Requests(), Judgement(Lane.EDGE)

    def offer(request: bytes) -> bool:
        for _ in range(TRIED_OF):
            requests.offer(request, judgement, b"")
        return requests.recall(request) is not None

    assert all(offer(b"%d" % number) for number in range(REQUESTS_MAX + 10))
    assert len(requests) == REQUESTS_MAX
    assert requests.recall(b"9") is None, "the oldest make way"
    assert requests.recall(b"10") is not None
    for _ in range(TRIED_OF):
        assert not any(offer(b"x" * (REQUEST_BYTES_MAX + 1)) for _ in range(TRIED_OF - 1))
        requests.offer(b"small", judgement, b"")
    assert requests.recall(b"small") is not None, "whatever large ones are asked between"
    assert offer(b"x" * REQUEST_BYTES_MAX)
