"""Each fault of a network, on all links behind a gateway at once, one after the other: what callers get is right, or
labelled, or a 503; and what is mended is used again."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import numpy as np
import pytest

from examples.tritonserver import TritonEnvironment
from tests.chaos.house import House
from tests.chaos.judge import GOOD, KINDS, Answer, Board, Question, Verdict, item_row, judged
from tests.chaos.load import HUNG_SECONDS, post
from tests.chaos.proxy import Fault

BEHIND = ("http", "grpc", "tables", "second")
HEALED_SECONDS = 60.0
USER, VERSION, ITEM = 5, 1, 2


class Asker:
    """One request of each route, again and again, always a new one."""

    def __init__(self, house: House, session: aiohttp.ClientSession) -> None:
        self._house = house
        self._session = session
        self._board = Board()
        self._number = 1000
        with house.redis.client() as client:
            client.set(f"u:{USER}", np.array([USER, VERSION], "<f4").tobytes())
            client.set(f"i:{ITEM}", np.array(item_row(ITEM), "<f4").tobytes())
        self._board.write(USER, VERSION, time.time())
        self._board.acknowledge(USER, VERSION, time.time())

    async def ask(self) -> list[Verdict]:
        return [*await asyncio.gather(*(self._one(kind) for kind in KINDS))]

    async def _one(self, kind: str) -> Verdict:
        self._number += 1
        row = (USER, ITEM) if kind == "features" else (self._number, 3 * self._number + 1)
        question = Question(kind, ((float(row[0]), float(row[1])),))
        sent = time.time()
        status, headers, document = await post(self._session, self._house.serving.http_url, question)
        return judged(question, Answer(status, headers, document, sent, time.time()), self._board)


@pytest.mark.timeout(300)
async def test_whatever_the_links_behind_a_gateway_do(triton_environment: TritonEnvironment) -> None:
    """All four of them at once, one fault after the other."""
    patience = aiohttp.ClientTimeout(total=HUNG_SECONDS)
    async with House(triton_environment, 1) as house, aiohttp.ClientSession(timeout=patience) as session:
        asker = Asker(house, session)
        for fault in Fault:
            for link in BEHIND:
                house.proxies[link].switch(fault)
            for _ in range(2):
                verdicts = await asker.ask()
                assert all(each.outcome in (*GOOD, "503") for each in verdicts), (fault, verdicts)
            for link in BEHIND:
                house.proxies[link].switch(None)
            assert house.proxies["http"].done[fault.value] > 0
            end = time.monotonic() + HEALED_SECONDS
            while not all(each.outcome in ("fresh", "hit") for each in await asker.ask()):
                assert time.monotonic() < end, fault
                await asyncio.sleep(0.1)
        assert "Traceback" not in house.serving.log()
