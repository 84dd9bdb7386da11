"""An endpoint at run time: one POST path of a server that speaks plain HTTP, whose answers may be kept by body.

Rule of this file: state that belongs to one endpoint and the small decisions that need only it, as ``route.py`` is for
models; the order in which a request meets them is ``pipeline.py``'s. Nothing of a body is read: equal bytes are equal
questions. What an answer says of its own keeping is ``storing.py``'s.

What a request's key holds grows: every field that some answer's Vary has named is in it from then on. So a key is never
too small, and an answer that did not name a field is found by those who do not send it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from operator import itemgetter
from typing import Final
from urllib.parse import unquote

import msgspec

from cache.digest import Key, post_digest
from cache.entry import Entry, Found, Freshness
from cache.flight import Flights
from cache.response import ResponseCache
from degrade.deadline import Deadline, Ticker
from degrade.gate import Priority
from degrade.ladder import Step
from gateway.admission.auth import Caller
from gateway.config import Endpoint as EndpointConfig
from gateway.config_load import priority_of
from gateway.copies import Copies, Standing
from gateway.doors.path import Target
from gateway.recall import RecallRules
from gateway.service import (
    DECENT_SHARE,
    ENTRY_OVERHEAD_BYTES,
    FLIGHTS_MAX,
    NO_EPOCH,
    Admitted,
    Filled,
    Given,
    Served,
    Terms,
    Wire,
    allowances_of,
    answers_alike,
    cache_of,
)
from gateway.storing import FORWARDED, Life, life_of, varying
from tiers.backends.call import Call, Reply
from tiers.backends.erring import Erred, answered
from tiers.backends.fields import Headers
from tiers.inference import UpstreamError
from tiers.pool import Pool, Work
from tiers.seat import Replica

DECIDING: Final = frozenset(
    {
        *("x-forwarded-host", "x-forwarded-proto", "content-type", "content-encoding", "accept", "accept-encoding"),
        *("x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url"),
        *("x-forwarded-port", "x-forwarded-prefix", "x-forwarded-scheme", "x-forwarded-server", "x-host", FORWARDED),
    }
)
"""Request fields that are in every key. X-Forwarded-Host is what the server is told of the caller's Host, and may be
written into what it answers; and there are others by which servers are told of another method, path or place. Nobody
names them in Vary, and who may send them could otherwise leave an answer of their making for all."""

CREDENTIALS: Final = re.compile(r"auth|cookie|token|secret|session|signature|password|credential|api-?key|-key$")
"""What a request with such a field gets is its sender's alone (RFC 9111 section 3.5), unless the field was meant for
the gateway. Servers have many names for keys: one too many costs a hit, one too few gives an answer away."""

VARIES_MAX: Final = 16
"""Fields of Vary that a key takes in; an answer that names more is not kept."""

KEYS_TRIED: Final = 3
"""Of one request, each with what the copy under the one before says of Vary: more than two answers that name different
fields is nothing that a server does."""

NO_SCHEMA: Final = b""
"""Nothing is known of what such a server takes and gives."""

_FIELD_BYTES: Final = 150
_NOT_KEPT: Final = frozenset({"content-length", "date", "server"})
"""Fields of an answer that the gateway writes itself."""


NO_ENDPOINTS: Final[Mapping[str, Endpoint]] = {}


class Post(msgspec.Struct, frozen=True):
    """What is posted to an endpoint. ``query``: with its question mark, or "". ``fields`` are the head's as the server
    gets them."""

    query: str
    fields: Headers
    body: bytes = b""


class Page(msgspec.Struct, frozen=True, gc=False):
    """A server's answer. ``life`` None: it is not kept."""

    status: int
    fields: Headers
    body: bytes
    life: Life | None = None

    @property
    def version(self) -> str:
        return ""

    @property
    def size(self) -> int:
        """Bytes that it keeps alive."""
        return len(self.body) + sum([_FIELD_BYTES + len(name) + len(value) for name, value in self.fields])

    def compact(self) -> Page:
        """It is so already."""
        return self


class Endpoint:
    """One endpoint. ``body_bytes_max``: the server's bound on bodies, where it has none of its own."""

    epoch = 0  # nothing tells that such a server has become another

    def __init__(self, name: str, config: EndpointConfig, pool: Pool, body_bytes_max: int) -> None:
        self.name = name
        self.title = f"Endpoint {name}"
        self.limit = "server.body_bytes_max" if config.body_bytes_max is None else f"endpoints.{name}.body_bytes_max"
        self.body_bytes_max = int(config.body_bytes_max or body_bytes_max)
        self.config = config
        self.timeout = float(config.timeout)
        self.steps = tuple(Step(step) for step in config.degrade)
        self.allowances = allowances_of("endpoint", name, config.quota, config.caller_quota)
        cache = config.cache
        self.cache: ResponseCache[Served[Page], Wire] | None = cache_of(cache)
        self.recall_rules = RecallRules(0.0 if cache is None else float(cache.refresh))
        self.refreshes_max = 0 if cache is None else cache.refreshes_max
        self.priority = priority_of(config.priority, Priority.NORMAL)
        self.browned = config.brownout
        self.flights: Flights[tuple[Key, int, Priority], Filled[Page]] = Flights(FLIGHTS_MAX)
        self.refreshing: set[Key] = set()
        self.copied: Copies[Served[Page]] | None = None
        self._pool = pool
        self._succeeded = False  # another endpoint goes on with the answers kept here
        self._declared = DECIDING.union(name.lower() for name in config.vary)
        self._deciding = set(self._declared)  # and what Vary has named; a successor's too

    def under(self, config: EndpointConfig, pool: Pool, body_bytes_max: int) -> Endpoint:
        """This endpoint under another configuration: the same one if nothing is different, else its successor, which
        goes on with the answers kept here unless others might be given now."""
        successor = Endpoint(self.name, config, pool, body_bytes_max)
        if pool is self._pool and config == self.config and successor.body_bytes_max == self.body_bytes_max:
            return self
        if pool is self._pool and answers_alike(config, self.config, "body_bytes_max"):
            successor.cache, successor._deciding = self.cache, self._deciding
            if self.copied is not None:
                successor.copy(self.copied)
            self._succeeded = True
        return successor

    @property
    def asks(self) -> list[str]:
        """Its path, as operators name it."""
        return [f"{self.config.backend or ''}{self.config.path}"]

    @property
    def level(self) -> int:
        """Its backend's brownout level."""
        return self._pool.gates.level

    @property
    def in_parts(self) -> bool:
        """Never: a page is one whole."""
        return False

    @property
    def row_cache(self) -> None:
        """There are no rows in a page."""

    @property
    def second(self) -> None:
        """Nothing tells that such a server has become another, so none of its answers is fresh elsewhere."""

    @property
    def copies(self) -> Standing | None:
        """What says whether copies of its answers may be used."""
        return None if self.copied is None else self.copied.standing

    def copy(self, copied: Copies[Served[Page]]) -> None:
        """Leave copies of answers on the disk, and take those that are there: old ones, for nothing tells whether the
        server is still the same."""
        assert self.cache is not None
        self.copied = copied
        copied.standing.watch(lambda: self.epoch, lambda: None, lambda: NO_SCHEMA)
        copied.watch(self.cache)

    @property
    def refreshes(self) -> int:
        """Background refreshes under way, each of another key."""
        return len(self.refreshing)

    def tenant(self, caller: Caller) -> str:
        """Whose answers a caller may have."""
        return "" if self.config.cache is None or self.config.cache.shared else caller.tenant

    def decides(self, field: str) -> bool:
        """Whether a request field, in lower case, is part of every key."""
        return field in self._deciding

    def uncacheable(self, request: Post) -> str:
        """Why a request is never cached, in one word; empty if it may be."""
        for name, _ in request.fields:
            if "_" in name:
                return "underscore"  # CGI and WSGI know no difference to the field with a hyphen, which is in the key
            if CREDENTIALS.search(name.lower()):
                return "credentials"
        return ""

    def digest(self, caller: Caller, request: Post) -> bytes:
        """What makes two posts the same one: all of a head that decides an answer, and every byte of the body."""
        told = [(name.lower(), raw(value)) for name, value in request.fields if name.lower() in self._deciding]
        told.sort(key=itemgetter(0))  # those of one name stay in their order
        decides = (self.name, self.tenant(caller), raw(request.query), told)
        return post_digest(msgspec.msgpack.encode(decides), request.body)

    def for_all(self, request: Post) -> Post:
        """The first one's: what others say beside it decides nothing, or it is not for them (see ``settled``)."""
        return request

    async def admit(self, request: Post, deadline: Deadline, seconds: float) -> Admitted:
        """Nothing is known of what may be posted."""
        return Admitted()

    async def find(
        self, caller: Caller, request: Post, key: Key, now: float, until: float
    ) -> Found[Served[Page]] | None:
        """What is kept of an answer."""
        assert self.cache is not None
        return self.cache.find(key, now)

    async def kept(
        self, caller: Caller, request: Post, key: Key, now: float, until: float
    ) -> Found[Served[Page]] | None:
        """What was copied of an answer, which is an old one. What its Vary names is in every key from then on: if it
        was not in this one, the copy is this request's only if it has no such field, and there may be another under the
        key that has it."""
        for _ in range(KEYS_TRIED):
            copy = None if self.copied is None else await self.copied.find(key.digest, now, until)
            named = None if copy is None else varying(copy.value.response.fields)
            if copy is None or named is None or len(self._deciding | named) > len(self._declared) + VARIES_MAX:
                return None
            self._deciding |= named
            asked = self.digest(caller, request)
            if asked == key.digest:
                page = copy.value.response
                assert page.life is not None, "nothing else is copied"
                size = page.size + ENTRY_OVERHEAD_BYTES
                entry = Entry(copy.value, size, copy.made_at, page.life.ttl, page.life.max_stale, NO_EPOCH)
                freshness = entry.freshness(now, key.epoch)
                return None if freshness is Freshness.DEAD else Found(entry, freshness, is_copy=True)
            key = Key(asked, key.epoch)
        return None

    def declared(self, request: Post) -> str:
        """Nothing: a server's own error says more to its clients."""
        return ""

    async def found(self, seconds: float) -> bool:
        """Of its server's replicas."""
        return await self._pool.found(seconds)

    async def ask(self, request: Post, deadline: Deadline, terms: Terms, ticker: Ticker) -> Given[Page]:
        """The server's answer, whatever it is. Raises Rejected for what cannot be written as a request, and
        UpstreamError, which is Erred where the server said so itself."""
        again = Step.REPLICA in terms.options.order
        target = self.config.path + request.query  # not the caller's spelling of it, which is in no key
        call = Call("POST", target, request.fields, request.body, work=True, again=again)

        async def at(replica: Replica, now: float) -> Reply:
            return answered(replica.url, await replica.exchange(call, deadline, now))

        claim = terms.options.claim
        work = Work(f"POST {self.config.path}", at, again, self.timeout * DECENT_SHARE, claim=claim)
        got = await self._pool.ask(work, deadline)
        return Given(Served(self._page(got.response)), (), got.passed)

    def settled(self, caller: Caller, request: Post, key: Key, given: Given[Page]) -> Key | None:
        """Where an answer is true, now that its Vary is known; None if it is not to be kept."""
        page = given.served.response
        named = varying(page.fields)
        if page.life is None or named is None:
            return None
        if named <= self._declared:
            return key
        if len(self._deciding | named) > len(self._declared) + VARIES_MAX:
            return None
        self._deciding |= named  # it may have grown since the key was made, by this answer or another
        return Key(self.digest(caller, request), key.epoch)

    def entry(self, served: Served[Page], epoch: int, now: float) -> Entry[Served[Page]]:
        """An entry for a page that may be kept."""
        page = served.response
        assert page.life is not None, "settled says which may be kept"
        life = page.life
        return Entry(served, page.size + ENTRY_OVERHEAD_BYTES, now - life.age, life.ttl, life.max_stale, epoch)

    def instead(self, error: UpstreamError) -> Page | None:
        """A server's own word on its failure: its clients know it."""
        return self._page(error.reply) if isinstance(error, Erred) else None

    def forget(self) -> None:
        """Drop what is kept, unless a successor goes on with it."""
        if self.cache is not None and not self._succeeded:
            self.cache.purge()  # its queues are circles that nobody else would cut

    async def close(self) -> None:
        """Give up fills under way."""
        await self.flights.close()
        self.forget()

    def _page(self, reply: Reply) -> Page:
        cache = self.config.cache
        life = None if cache is None else life_of(reply, float(cache.ttl), float(cache.max_stale))
        dropped = _NOT_KEPT if life is None else _NOT_KEPT | {"age"}  # which is counted on
        fields = tuple([(name, value) for name, value in reply.headers if name.lower() not in dropped])
        return Page(reply.status, fields, reply.body, life)


def endpoint_of(endpoints: Mapping[str, Endpoint], method: str, target: Target) -> Endpoint | None:
    """The endpoint that a request is for, in whatever spelling of its path; None if it passes through."""
    if not endpoints or method != "POST" or target.kind != "other":
        return None
    return endpoints.get(unquote(target.raw.partition("?")[0]))


def raw(text: str) -> bytes:
    """A head's text as the bytes that it came in."""
    return text.encode("utf-8", "surrogateescape")
