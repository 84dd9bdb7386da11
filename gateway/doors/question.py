"""What an infer request's head asks, and the reply it gets: values, and how a head is judged.

Rule of this file: pure. A head is judged once: which route, which caller, and all of it that decides the answer's
bytes. The same head need not be judged again (``head.py``), so nothing here may depend on what changes.
"""

from __future__ import annotations

from typing import Final

import msgspec
from multidict import CIMultiDict, CIMultiDictProxy

from cache.digest import WireDigester
from gateway.admission.auth import Caller, Directory, Unauthenticated
from gateway.codec import http as codec
from gateway.codec.dialect import JSON, OCTETS, PACKED_MEDIA, PROTOCOL, Dialect, dialect_of
from gateway.config import VERSION
from gateway.doors.path import Target
from gateway.problem import (
    Refused,
    malformed,
    method_not_allowed,
    not_found,
    unauthenticated,
    unsupported_query,
)
from gateway.route import Route
from gateway.till import Dues, dues
from tiers.v2.message import JSON_LENGTH_HEADER

Headers = CIMultiDict[str] | CIMultiDictProxy[str]
Fields = list[tuple[str, str]]

METHODS: Final = ("POST", "QUERY")
"""QUERY (RFC 10008) says what an infer request is: safe, and with a body. Its answers are those of POST."""

QUERY_MEDIA: Final = (JSON, OCTETS, *PACKED_MEDIA)
"""What a QUERY may be made of (Accept-Query): JSON, JSON with binary tensors behind it, MessagePack."""

CREDENTIALS: Final = ("Authorization", "X-API-Key")


class Question(msgspec.Struct, frozen=True):
    """An infer request's judged head. ``digester`` holds all but the body that decides the answer's
    bytes; None where an answer must not be recognised by its bytes. ``hit_dues``: the quotas that a hit
    uses up."""

    route: Route
    caller: Caller
    version: str
    body: codec.BodyHeaders
    dialect: Dialect
    answer_coding: str | None
    directives: codec.CacheDirectives
    body_bytes_max: int
    digester: WireDigester | None
    hit_dues: Dues

    def by(self, name: str) -> Question:
        """The same, asked by the caller of this name, who shows no key."""
        caller = msgspec.structs.replace(self.caller, name=name)
        hit_dues = dues(self.route.allowances, caller, works=False)
        return msgspec.structs.replace(self, caller=caller, hit_dues=hit_dues)


class Manner(msgspec.Struct, frozen=True):
    """How a question is asked: all of a head but who asks what of which route."""

    dialect: Dialect
    directives: codec.CacheDirectives
    body: codec.BodyHeaders = codec.BodyHeaders()
    answer_coding: str | None = None


class Reply(msgspec.Struct, frozen=True):
    """An answer ready for any HTTP server. ``state`` is the word it is counted under."""

    status: int
    fields: Fields
    body: bytes
    state: str


def judge(method: str, target: Target, headers: Headers, route: Route, caller: Caller) -> Question:
    """What an infer request's head asks of a route. Raises Refused."""
    if method not in METHODS:
        raise Refused(method_not_allowed(method, METHODS, QUERY_MEDIA))
    if method == "QUERY":
        _check_query_media(_single(headers, "Content-Type"))
    check_version(route, target.version)
    encoding = _single(headers, "Content-Encoding")
    body = codec.BodyHeaders(encoding, _single(headers, JSON_LENGTH_HEADER))
    dialect = dialect_in(headers, target)
    coding = codec.negotiate(", ".join(headers.getall("Accept-Encoding", ())))
    directives = codec.parse_cache_control(", ".join(headers.getall("Cache-Control", ())))
    return question_of(route, caller, target.version, Manner(dialect, directives, body, coding))


def question_of(route: Route, caller: Caller, version: str, manner: Manner) -> Question:
    """A question to a route, asked in this manner."""
    digester = None
    cache = route.config.cache
    if cache is not None and manner.directives == codec.NO_DIRECTIVES:
        tenant = "" if cache.shared else caller.tenant
        decides = (route.name, tenant, version, manner.body, manner.answer_coding, manner.dialect)
        digester = WireDigester(msgspec.msgpack.encode(decides))
    return Question(
        route=route,
        caller=caller,
        version=version,
        body=manner.body,
        dialect=manner.dialect,
        answer_coding=manner.answer_coding,
        directives=manner.directives,
        body_bytes_max=route.body_limits.bytes_max,
        digester=digester,
        hit_dues=dues(route.allowances, caller, works=False),
    )


def dialect_in(headers: Headers, target: Target) -> Dialect:
    """The forms that a head means; the protocol's own for what is no text, or is said twice and so means nothing."""
    if target.kind not in ("infer", "predict"):
        return PROTOCOL
    types = headers.getall("Content-Type", ())
    accept = ", ".join(headers.getall("Accept", ()))
    content_type = types[0] if len(types) == 1 and types[0].isascii() else None
    return dialect_of(content_type, accept if accept.isascii() else None, plain=target.kind == "predict")


def identify(directory: Directory, headers: Headers, peer: str) -> Caller:
    """Who sent a head: the same on both lanes. ``peer``: its address, for who shows no key.

    Raises Refused: 401 for a key that is none of ours, 400 for more than one. Which of two is meant is a
    guess, and a proxy in front that adds its own must not be overruled by what its client wrote.
    """
    if directory.has_keys:
        for name in CREDENTIALS:
            if len(headers.getall(name, ())) > 1:
                raise Refused(malformed(f"The header {name} is given more than once.", "duplicate-header"))
    return identified(directory, headers.get("Authorization"), headers.get("X-API-Key"), peer)


def identified(directory: Directory, authorization: str | None, api_key: str | None, peer: str) -> Caller:
    """Who shows these credentials. Raises Refused: 401 for one that is none of ours, 400 for two that differ."""
    try:
        return directory.identify(authorization, api_key, peer)
    except Unauthenticated as error:
        if error.reason == "conflict":
            raise Refused(malformed(f"{error}.", "conflict")) from None
        raise Refused(unauthenticated(str(error))) from None


def check_version(route: Route, version: str) -> None:
    """Whatever is asked of a version: raises Refused (404) for one that the route's configuration rules out."""
    if version and not VERSION.fullmatch(version):
        raise Refused(not_found(f"Route {route.name} has no version {version}: versions are numbers."))
    if version and len(route.tiers) > 1:
        detail = f"Route {route.name} has {len(route.tiers)} tiers, each with a version of its own; ask without one."
        raise Refused(not_found(detail))
    bound = route.tiers[0].version
    if version and bound not in ("", version):
        raise Refused(not_found(f"Route {route.name} serves version {bound} only, not {version}."))


def _single(headers: Headers, name: str) -> str | None:
    values = headers.getall(name, ())
    if len(values) > 1:
        raise Refused(malformed(f"The header {name} is given {len(values)} times.", "duplicate-header"))
    if values and not values[0].isascii():  # bytes above 127 are surrogates here, which nothing can encode
        raise Refused(malformed(f"The header {name} holds bytes that are not ASCII.", "header"))
    return values[0] if values else None


def _check_query_media(value: str | None) -> None:
    """RFC 10008 section 2.1: a query without a media type is refused, and so is one that is not answered here."""
    if value is None:
        raise Refused(malformed("A QUERY must have a Content-Type.", "content-type"))
    media = value.partition(";")[0].strip(" \t").lower()
    if media not in QUERY_MEDIA:
        raise Refused(unsupported_query(f"A QUERY's Content-Type is {media[:64]!r}", QUERY_MEDIA))
