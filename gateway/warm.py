"""Filling caches before callers come: what was asked once, or will be, is asked of a running gateway at a bounded rate.

Rule of this file: a client of the gateway and nothing more, so what it fills is what callers find, and quotas, limits
and ladder hold for it as for them. A file has one request in each line, as JSON:

    {"route": "digits", "inputs": {"image": [[0, 0, 5]]}}      a list of keys: as POST /v1/predict/digits takes them
    {"path": "/v2/models/digits/infer", "body": {...}}         a request log: the JSON that was posted, and where

Lines are read as they are asked for, so a file may be of any length.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import IO, Final
from urllib.parse import quote

import aiohttp
import msgspec

from degrade.deadline import Ticker
from gateway.doors.path import target_of
from gateway.problem import Refused

LINE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of one request: a gateway's own default for a body."""
ANSWER_SECONDS_MAX: Final = 60.0
"""For one answer; a gateway gives one within its route's time."""
FAILED_IN_A_ROW_MAX: Final = 100
"""After so many it is no use, and only load."""

_STATE: Final = re.compile(r"cache=(\w+)")
_FILLED: Final = ("miss", "stale")


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a file: ``route`` and ``inputs``, or ``path`` and ``body``."""

    route: str = ""
    inputs: msgspec.Raw = msgspec.Raw()
    path: str = ""
    body: msgspec.Raw = msgspec.Raw()


class Post(msgspec.Struct, frozen=True):
    """What is sent, and where to."""

    path: str
    body: bytes


class WarmOptions(msgspec.Struct, frozen=True):
    """``url``: of a running gateway's HTTP door. ``rate``: requests a second at most, ``in_flight_max`` at once.
    ``key``: an API key."""

    url: str
    rate: float
    in_flight_max: int = 8
    key: str = ""


class Unreadable(ValueError):
    """A line is no request; says why."""


def read_post(line: bytes) -> Post:
    """What a line asks. Raises Unreadable, also for a path that would change a server."""
    if len(line) > LINE_BYTES_MAX:
        raise Unreadable(f"has more than {LINE_BYTES_MAX} bytes")
    try:
        told = msgspec.json.decode(line, type=Line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(str(error)) from None
    by_route, by_path = bool(told.route and told.inputs), bool(told.path and told.body)
    if by_route == by_path:
        raise Unreadable('needs "route" and "inputs", or "path" and "body"')
    if by_route:
        return Post(f"/v1/predict/{quote(told.route, safe='')}", b'{"inputs":' + bytes(told.inputs) + b"}")
    try:
        target = target_of("POST", told.path)
    except (Refused, UnicodeEncodeError):
        raise Unreadable(f"path {told.path!r} is none") from None
    if target.changes is not None:
        raise Unreadable(f"path {told.path!r} changes a server")
    return Post(told.path, bytes(told.body))


class Pace:
    """A time for each request, ``1 / rate`` seconds apart at least: what was late is not made up for."""

    def __init__(self, rate: float, now: float) -> None:
        assert rate > 0
        self._gap = 1.0 / rate
        self._next = now

    def wait(self, now: float) -> float:
        """Seconds until the next one may go."""
        at = max(now, self._next)
        self._next = at + self._gap
        return at - now


class Warming:
    """One run. ``outcomes``: filled, known, passed (kept by nobody), refused, failed, unreadable."""

    def __init__(self, options: WarmOptions, ticker: Ticker, sleep: Callable[[float], Awaitable[None]]) -> None:
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        """The first thing wrong of each kind."""
        self._options = options
        self._ticker = ticker
        self._sleep = sleep
        self._pace = Pace(options.rate, ticker())
        self._failed_in_a_row = 0

    async def run(self, lines: IO[bytes]) -> bool:
        """Ask every line once; whether all was answered. Ends early when the gateway does not answer."""
        headers = {"Content-Type": "application/json"} | ({"X-API-Key": self._options.key} if self._options.key else {})
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX)
        posts = self._posts(lines)
        async with aiohttp.ClientSession(self._options.url, headers=headers, timeout=timeout) as session:
            await asyncio.gather(*(self._work(session, posts) for _ in range(self._options.in_flight_max)))
        return not (self.outcomes["refused"] or self.outcomes["failed"] or self.outcomes["unreadable"])

    def _posts(self, lines: IO[bytes]) -> Iterator[Post]:
        number = 0
        while line := lines.readline(LINE_BYTES_MAX + 2):
            number += 1
            if not line.strip():
                continue
            try:
                yield read_post(line)
            except Unreadable as fault:
                self._tell("unreadable", f"line {number}: {fault}")
                if len(line) > LINE_BYTES_MAX:  # its end is not in sight
                    return

    async def _work(self, session: aiohttp.ClientSession, posts: Iterator[Post]) -> None:
        for post in posts:
            await self._sleep(self._pace.wait(self._ticker()))
            if self._failed_in_a_row >= FAILED_IN_A_ROW_MAX:
                return
            try:
                # Not where an answer leads: the key is for this gateway alone.
                async with session.post(post.path, data=post.body, allow_redirects=False) as answer:
                    text = await answer.text(errors="replace")
                    self._judge(post, answer, text)
            except (aiohttp.ClientError, TimeoutError) as error:
                self._failed_in_a_row += 1
                self._tell("failed", f"{post.path}: {error or 'no answer in time'}")

    def _judge(self, post: Post, answer: aiohttp.ClientResponse, text: str) -> None:
        if answer.status >= 500:
            self._failed_in_a_row += 1
            self._tell("failed", f"{post.path}: {answer.status} {text[:300]}")
            return
        self._failed_in_a_row = 0
        if answer.status >= 300:
            self._tell("refused", f"{post.path}: {answer.status} {text[:300]}")
            return
        found = _STATE.search(answer.headers.get("Tailrace-Provenance", ""))
        state = found[1] if found else ""
        self.outcomes["known" if state == "hit" else "filled" if state in _FILLED else "passed"] += 1

    def _tell(self, outcome: str, message: str) -> None:
        if not self.outcomes[outcome]:
            self.faults.append(f"{outcome}: {message}")
        self.outcomes[outcome] += 1
