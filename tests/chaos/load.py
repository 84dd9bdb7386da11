"""Those who ask while things break: callers of the gateway, callers behind the link to it, callers of Triton itself,
and who writes the rows that features are made of.

Rule of this file: it asks, times, and counts; what an answer is says ``judge.py``. One client for all: the same
requests, the same patience, no second try.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Final

import aiohttp
import numpy as np
from msgspec import Struct
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tests.chaos.hands import Hands, Span
from tests.chaos.house import House
from tests.chaos.judge import DEADLINE_SECONDS, KINDS, Answer, Board, Question, Verdict, item_row, judged
from tests.chaos.plan import STOP_SECONDS_MAX
from tests.chaos.spoken import Came, Dropped, GrpcCaller

CALLERS: Final = (
    ("gateway", "http", 9), ("gateway", "grpc", 4), ("link", "door", 2), ("link", "grpc-door", 2),
    ("direct", "http", 6),
)  # fmt: skip
"""Of whom, by which door or link, how many."""
PAUSE_SECONDS: Final = 0.03
HUNG_SECONDS: Final = DEADLINE_SECONDS + STOP_SECONDS_MAX + 15.0
"""Beyond this no answer is on its way any more, whatever two cores have to do."""
LATE_SECONDS: Final = DEADLINE_SECONDS + 1.0
HOT: Final = 24
"""Inputs that are asked again and again, by half of all requests."""
HOT_SHARE: Final = 0.5
USERS: Final = 12
ITEMS: Final = 12
WRITE_SECONDS: Final = 0.25
WRITER_SECONDS: Final = 1.0
SETTLING_SECONDS: Final = 1.0
"""After a worker or a link is well again its old connections may still end."""
ROWS: Final = 4
MODELS: Final = {"cascade": "large"}
FAULTS_SHOWN_MAX: Final = 20


class Seen(Struct, frozen=True):
    """One request: of whom (the gateway, by a link or not, or Triton: direct), of what kind, and what came of it.
    ``again``: it is one that is asked again and again, so its answer may be known."""

    whose: str
    kind: str
    again: bool
    verdict: Verdict
    seconds: float
    ended: float


class Load:
    """The whole load, and its accounts."""

    def __init__(self, house: House, hands: Callable[[], Hands | None], seed: int) -> None:
        self.seen: list[Seen] = []
        self.bad: list[str] = []
        self.board = Board()
        self.writes: Counter[str] = Counter()
        self._house = house
        self._hands = hands
        self._chance = random.Random(f"{seed} load")
        self._new = count(10_000)
        self._stopping = False

    async def run(self, stop: asyncio.Event) -> None:
        """Ask until ``stop``; requests in work come to their end."""
        async with asyncio.TaskGroup() as group:
            for whose, way, number in CALLERS:
                for _ in range(number):
                    group.create_task(self._direct() if whose == "direct" else self._called(whose, way))
            group.create_task(self._write())
            await stop.wait()
            self._stopping = True

    def tally(self, whose: str, kind: str = "", since: int = 0) -> Counter[str]:
        chosen = (each for each in self.seen[since:] if each.whose == whose and kind in ("", each.kind))
        return Counter(each.verdict.outcome for each in chosen)

    # -- callers -----------------------------------------------------------------------------------------------------

    async def _called(self, whose: str, way: str) -> None:
        """A caller of the gateway."""
        house = self._house
        address = house.proxies[way].address if whose == "link" else ""
        if way.startswith("grpc"):
            caller = GrpcCaller(address or house.serving.grpc_address)
            try:
                await self._call(whose, lambda asked: self._judged(way, asked, caller.ask(asked, HUNG_SECONDS)))
            finally:
                await caller.close()
            return
        base = f"http://{address}" if address else house.serving.http_url
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=HUNG_SECONDS)) as session:
            await self._call(whose, lambda asked: self._judged(way, asked, post(session, base, asked)))

    async def _direct(self) -> None:
        """A caller of Triton, by the links that the gateway has: what a route asks over gRPC over gRPC."""
        base = f"http://{self._house.proxies['http'].address}"
        caller = GrpcCaller(self._house.proxies["grpc"].address)
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=HUNG_SECONDS)) as session:

                def ask(asked: Question) -> Awaitable[Came]:
                    return caller.ask(asked, LATE_SECONDS) if asked.by_grpc else post(session, base, asked)

                await self._call("direct", lambda question: _ask_triton(ask, question))
        finally:
            await caller.close()

    async def _call(self, whose: str, ask: Callable[[Question], Awaitable[Verdict]]) -> None:
        """Ask until it is enough."""
        while not self._stopping:
            await asyncio.sleep(PAUSE_SECONDS * (0.5 + self._chance.random()))
            question = self._question()
            began, sent = time.monotonic(), time.time()
            verdict = await ask(question)
            seen = Seen(whose, question.kind, again(question), verdict, time.monotonic() - began, time.time())
            self.seen.append(seen)
            if verdict.why and len(self.bad) < FAULTS_SHOWN_MAX:
                self.bad.append(f"{whose} {question.kind} {verdict.outcome} at {sent:.2f}: {verdict.why}")

    def _question(self) -> Question:
        """Half of them for what is asked again and again."""
        chance = self._chance
        kind = chance.choice(KINDS)

        def number() -> int:
            return chance.randrange(HOT)

        hot = chance.random() < HOT_SHARE  # of a batch all, or none
        if kind == "features":
            return Question(kind, ((float(chance.randint(1, USERS)), float(chance.randint(1, ITEMS))),))
        numbers = [number() if hot else next(self._new) for _ in range(ROWS if kind == "rows" else 1)]
        return Question(kind, tuple((float(each), float(3 * each + 1)) for each in numbers))

    async def _judged(self, way: str, question: Question, asking: Awaitable[Came]) -> Verdict:
        sent = time.time()
        try:
            status, headers, document = await asking
        except TimeoutError:
            return self._excused(way, sent, Verdict("hung", why="no answer"))
        except (Dropped, aiohttp.ClientError, ValueError) as error:
            return self._excused(way, sent, Verdict("dropped", why=repr(error)))
        slack = self._stalled(sent)
        verdict = judged(question, Answer(status, headers, document, sent, time.time(), slack), self.board)
        return self._excused(way, sent, verdict) if verdict.outcome == "error" else verdict

    def _excused(self, way: str, sent: float, verdict: Verdict) -> Verdict:
        """``cut``, if its connection's other end, or the link itself, was broken meanwhile; else what it is. Nobody who
        hangs is excused but behind the broken link."""
        parts = {f"link-{way}"} if way.endswith("door") else set()
        if verdict.outcome == "dropped":
            parts.add("worker")
        return Verdict("cut") if any(self._overlaps(part, sent) for part in parts) else verdict

    def _spans(self, part: str) -> list[Span]:
        hands = self._hands()
        if hands is None:
            return []
        now = [Span(part, hands.open[part], time.time())] if part in hands.open else []
        return now + [span for span in hands.spans if span.part == part]

    def _overlaps(self, part: str, sent: float) -> bool:
        return any(span.ended + SETTLING_SECONDS >= sent for span in self._spans(part))

    def _stalled(self, sent: float) -> float:
        """How long a worker may have been stopped while this was asked, or the flight that it joined."""
        near = DEADLINE_SECONDS + STOP_SECONDS_MAX
        return STOP_SECONDS_MAX if any(span.ended + near >= sent for span in self._spans("stall")) else 0.0

    # -- the writer --------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        """Every user anew, and every item, four times a second; not by a link that is broken."""
        redis = self._house.redis
        client = Redis(
            host=redis.host, port=redis.port, protocol=2, socket_timeout=WRITER_SECONDS,
            socket_connect_timeout=WRITER_SECONDS, retry=Retry(NoBackoff(), 0),
        )  # fmt: skip
        items = {f"i:{item}": np.array(item_row(item), "<f4").tobytes() for item in range(1, ITEMS + 1)}
        for version in count(1):
            if self._stopping:
                break
            rows = {f"u:{user}": np.array([user, version], "<f4").tobytes() for user in range(1, USERS + 1)}
            for user in range(1, USERS + 1):
                self.board.write(user, version, time.time())
            try:
                await client.mset(rows)
                for user in range(1, USERS + 1):
                    self.board.acknowledge(user, version, time.time())
                await client.mset(items)
                self.writes["written"] += 1
            except RedisError as error:
                self.writes[type(error).__name__] += 1
            except TimeoutError:
                self.writes["TimeoutError"] += 1
            await asyncio.sleep(WRITE_SECONDS)
        await client.aclose()


async def post(session: aiohttp.ClientSession, base: str, question: Question) -> Came:
    """Ask over HTTP. Raises Dropped, and what aiohttp does."""
    async with session.post(f"{base}/v2/models/{question.kind}/infer", json=body(question)) as answer:
        document: Any = await answer.json(content_type=None)
        if not isinstance(document, dict):
            raise Dropped("no JSON object")
        return answer.status, dict(answer.headers), document


async def _ask_triton(ask: Callable[[Question], Awaitable[Came]], question: Question) -> Verdict:
    """The same question of the model itself, which is told a user's row and an item's: "fresh" or "failed"."""
    rows = question.rows
    if question.kind == "features":
        rows = tuple((user, 1.0, *item_row(item)) for user, item in rows)
    asked = Question(MODELS.get(question.kind, "stamped"), rows, question.kind == "rpc")
    try:
        async with asyncio.timeout(LATE_SECONDS):
            _, _, document = await ask(asked)
        found = {output["name"]: output["data"] for output in document["outputs"]}["y"]
    except (TimeoutError, Dropped, aiohttp.ClientError, ValueError, LookupError, TypeError):
        return Verdict("failed")
    return Verdict("fresh" if tuple(found) == tuple(each for row in rows for each in row) else "failed")


def again(question: Question) -> bool:
    """Whether it is made of what is asked again and again. Features are joined anew each time."""
    return question.kind != "features" and all(row[0] < HOT for row in question.rows)


def body(question: Question) -> dict[str, object]:
    """The request, in the protocol's JSON."""
    if question.kind == "features":
        ((user, item),) = question.rows
        return {
            "inputs": [
                {"name": "user", "shape": [1], "datatype": "INT64", "data": [int(user)]},
                {"name": "item", "shape": [1], "datatype": "INT64", "data": [int(item)]},
            ]
        }
    flat = [each for row in question.rows for each in row]
    shape = [len(question.rows), len(question.rows[0])]
    return {"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": flat}]}
