"""What a POST's head asks of an endpoint: a value, and how such a head is judged.

Rule of this file: pure, as ``question.py`` is for infer requests; a head is judged once. Nothing is refused here that
the server behind would not refuse: what it takes is its own to say.
"""

from __future__ import annotations

import msgspec

from cache.digest import WireDigester
from gateway.admission.auth import Caller
from gateway.admission.forwarded import Origin, Proxies
from gateway.codec import http as codec
from gateway.codec.dialect import PROTOCOL, Dialect
from gateway.doors.onward import passed_on
from gateway.doors.path import Target
from gateway.doors.question import Headers, Question
from gateway.endpoint import Endpoint, Post, raw
from gateway.storing import OURS
from gateway.till import Dues, dues


class Posting(msgspec.Struct, frozen=True):
    """A judged head; ``post`` has no body yet. ``digester``, once it is ``told``, holds all that the server gets of the
    head but who asks, so that what is known by it is known whatever the answer varies by; None where an answer must not
    be recognised by its bytes. ``hit_dues``: the quotas that a hit uses up."""

    route: Endpoint
    caller: Caller
    post: Post
    directives: codec.CacheDirectives
    hit_dues: Dues
    digester: WireDigester | None = None
    dialect: Dialect = PROTOCOL
    """How it is refused."""

    @property
    def body_bytes_max(self) -> int:
        return self.route.body_bytes_max

    def by(self, name: str) -> Posting:
        """The same, by the caller of this name, who shows no key."""
        caller = msgspec.structs.replace(self.caller, name=name)
        return msgspec.structs.replace(self, caller=caller, hit_dues=dues(self.route.allowances, caller, works=False))

    def told(self, proxies: Proxies, origin: Origin) -> Posting:
        """The same, with what a server is told of where it comes from."""
        post = msgspec.structs.replace(self.post, fields=proxies.told(self.post.fields, origin))
        return msgspec.structs.replace(self, post=post, digester=self._digester(post))

    def _digester(self, post: Post) -> WireDigester | None:
        endpoint = self.route
        if endpoint.cache is None or self.directives != codec.NO_DIRECTIVES or endpoint.uncacheable(post):
            return None
        named = [(name.lower(), raw(value)) for name, value in post.fields]
        told = [(name, value) for name, value in named if name not in OURS or endpoint.decides(name)]
        decides = ("post", endpoint.name, endpoint.tenant(self.caller), raw(post.query), told)
        return WireDigester(msgspec.msgpack.encode(decides))


AnyQuestion = Question | Posting
"""What a caller asks of a route or an endpoint."""


def judge_post(
    target: Target, headers: Headers, endpoint: Endpoint, caller: Caller, withheld: frozenset[str]
) -> Posting:
    """What a head asks of an endpoint; ``withheld`` are the fields that stay here."""
    _, mark, query = target.raw.partition("?")
    post = Post(mark + query, passed_on(headers.items(), withheld))
    directives = codec.parse_cache_control(", ".join(headers.getall("Cache-Control", ())))
    return Posting(endpoint, caller, post, directives, dues(endpoint.allowances, caller, works=False))
