"""The memory of request heads: judged once by the strict parser, known again by their exact bytes.

Rule of this file: nothing is parsed by hand. A head that was never seen goes to the C parser (llhttp)
whole and alone; what the parser made of it, and what the gateway thinks of that, is remembered under
the very same bytes. A head that differs in one byte is another head. Bounded.

A judgement holds only what cannot change in a process's life: which route or endpoint and which caller, made from
the configuration at the start. Epochs, entries, quotas and what is left of them are looked up in the route
for every request, so that a purge, a changed model or a spent quota holds for the next request of a head
that is remembered; no judgement need be dropped for them.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from aiohttp import HttpVersion10, HttpVersion11
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy

from cache.digest import WireDigester
from gateway.admission.auth import Caller, Directory
from gateway.admission.forwarded import Proxies
from gateway.doors.onward import passed_on, withheld
from gateway.doors.passthrough import Passage, is_plain
from gateway.doors.path import Target, target_of
from gateway.doors.posting import AnyQuestion, judge_post
from gateway.doors.question import identify, judge
from gateway.endpoint import NO_ENDPOINTS, Endpoint, endpoint_of
from gateway.problem import Refused
from gateway.route import Route
from tiers.backends.call import Call
from tiers.v2.message import JSON_LENGTH_HEADER

HEADS_MAX: Final = 4096
"""Heads remembered: a client library makes a handful, one for each body length."""

HEAD_BYTES_REMEMBERED_MAX: Final = 2048
HEAD_LINES_REMEMBERED_MAX: Final = 48
"""Larger heads are judged each time. What a line means takes up to 250 bytes beside it, so that all that is
remembered stays under 60 MiB, however hostile, and is about 5 MiB with heads as clients make them."""

_RELAYED_METHODS: Final = frozenset({"GET", "POST"})
_ELSEWHERE: Final = frozenset({"transfer-encoding", "expect", "trailer"})


class Lane(enum.Enum):
    """Who answers a request, and what is known of its end."""

    EDGE = "edge"
    """This lane: an infer request of a route, a post of an endpoint, or one that passes through, its body's
    length known and small."""
    AIOHTTP = "aiohttp"
    """The other lane, for one request whose length is known; what follows is looked at again."""
    AIOHTTP_FOR_GOOD = "aiohttp-for-good"
    """The other lane until the connection rests: only its parser knows where this request ends."""


class Judgement(msgspec.Struct, frozen=True):
    """What a head means. ``length`` is the body's, in bytes; on the edge lane either ``question`` or
    ``passage`` is there. ``anonymous``: no credential was judged, so the caller is whoever is at the other end, or
    where ``hops`` lead from there (``forwarded.py``)."""

    lane: Lane
    length: int = 0
    question: AnyQuestion | None = None
    passage: Passage | None = None
    anonymous: bool = False
    hops: tuple[str, ...] = ()

    @property
    def digester(self) -> WireDigester | None:
        """What makes wire keys under this head, if that is known of the head alone."""
        return None if self.question is None else self.question.digester


_FOR_GOOD: Final = Judgement(Lane.AIOHTTP_FOR_GOOD)


class HeadBounds(msgspec.Struct, frozen=True):
    """``header_bytes_max`` bounds a line of a head, as on the other lane; ``relayed_bytes_max`` the body of a
    request that passes through here."""

    header_bytes_max: int
    relayed_bytes_max: int


class Heads:
    """Judges heads and remembers. Without ``edge`` everything is the other lane's."""

    def __init__(
        self,
        routes: Mapping[str, Route],
        directory: Directory,
        bounds: HeadBounds,
        proxies: Proxies,
        edge: bool = True,
        endpoints: Mapping[str, Endpoint] = NO_ENDPOINTS,
    ) -> None:
        self._routes = routes
        self._endpoints = endpoints
        self._edge = edge
        self._relayed_bytes_max = bounds.relayed_bytes_max
        self._withheld = withheld(directory.has_keys)
        self._directory = directory
        self._proxies = proxies
        self._header_bytes_max = bounds.header_bytes_max
        self._known: dict[bytes, Judgement] = {}
        self.judged = 0
        self.recall: Callable[[bytes], Judgement | None] = self._known.get
        """The judgement of a head seen before, by its exact bytes up to and with the blank line."""

    def __len__(self) -> int:
        return len(self._known)

    def judge(self, head: bytes) -> Judgement:
        """Parse and judge a whole head. Never raises: what cannot be judged is the other lane's."""
        judgement = self._judge(head)
        self.judged += 1
        small = len(head) <= HEAD_BYTES_REMEMBERED_MAX and head.count(b"\n") <= HEAD_LINES_REMEMBERED_MAX
        if small and judgement.lane is not Lane.AIOHTTP_FOR_GOOD:
            if len(self._known) >= HEADS_MAX:
                del self._known[next(iter(self._known))]  # the oldest: a flood of new heads ages out
            self._known[head] = judgement
        return judgement

    def _judge(self, head: bytes) -> Judgement:
        loop = asyncio.get_running_loop()
        parser = HttpRequestParser(
            BaseProtocol(loop),
            loop,
            2**16,
            max_line_size=self._header_bytes_max,
            max_field_size=self._header_bytes_max,
            auto_decompress=False,
        )
        try:
            messages, upgraded, tail = parser.feed_data(head)
        except HttpProcessingError:
            return _FOR_GOOD  # the other lane says what is wrong, and closes
        if len(messages) != 1 or tail:
            return _FOR_GOOD
        message = messages[0][0]
        headers = message.headers
        lengths = headers.getall("Content-Length", ())
        if any(name in headers for name in _ELSEWHERE) or message.chunked or message.method == "CONNECT":
            return _FOR_GOOD
        if message.version not in (HttpVersion10, HttpVersion11) or len(lengths) > 1:
            return _FOR_GOOD
        if lengths and not (lengths[0].isascii() and lengths[0].isdigit()):
            return _FOR_GOOD
        length = int(lengths[0]) if lengths else 0
        if message.should_close or message.upgrade or upgraded or message.version != HttpVersion11:
            return Judgement(Lane.AIOHTTP, length)
        return self._of_request(message.method, message.path, headers, length)

    def _of_request(self, method: str, raw: str, headers: CIMultiDictProxy[str], length: int) -> Judgement:
        elsewhere = Judgement(Lane.AIOHTTP, length)
        if not self._edge:
            return elsewhere
        try:
            target = target_of(method, raw)
            endpoint = endpoint_of(self._endpoints, method, target)
            if endpoint is not None:
                caller = identify(self._directory, headers, "")
                return self._ours(length, judge_post(target, headers, endpoint, caller, self._withheld), headers)
            route = self._routes.get(target.model)
            if route is None:
                absent = target.kind == "predict" and self._routes  # which is ours where there are routes
                return elsewhere if absent else self._passing(method, target, headers, length)
            if target.kind not in ("infer", "predict"):
                return elsewhere
            caller = identify(self._directory, headers, "")
            question = judge(method, target, headers, route, caller)
        except Refused:
            return elsewhere  # the other lane judges again and says what is wrong
        return self._ours(length, question, headers)

    def _ours(self, length: int, question: AnyQuestion, headers: CIMultiDictProxy[str]) -> Judgement:
        if length > question.body_bytes_max:
            return Judgement(Lane.AIOHTTP, length)
        hops = self._proxies.hops(headers)
        return Judgement(Lane.EDGE, length, question, anonymous=_is_anonymous(question.caller), hops=hops)

    def _passing(self, method: str, target: Target, headers: CIMultiDictProxy[str], length: int) -> Judgement:
        """A request that no route answers. The other lane has those that the gateway answers itself, that change
        a server, that are large, or whose answers are not what HTTP says of their method."""
        ours = target.kind in ("live", "ready") or target.changes is not None
        if ours or length > self._relayed_bytes_max or method not in _RELAYED_METHODS or "Max-Forwards" in headers:
            return Judgement(Lane.AIOHTTP, length)
        caller = identify(self._directory, headers, "")
        call = Call(method, target.raw, passed_on(headers.items(), self._withheld))
        plain = is_plain(method, target, headers)
        passage = Passage(call, caller, target.works(method), plain, headers.get(JSON_LENGTH_HEADER))
        return Judgement(Lane.EDGE, length, None, passage, _is_anonymous(caller), self._proxies.hops(headers))


def _is_anonymous(caller: Caller) -> bool:
    return caller.name == "addr:"
