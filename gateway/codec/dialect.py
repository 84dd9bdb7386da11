"""Which form a request is in, and which its answer is wanted in: one head's Content-Type and Accept, decided once.

Rule of this file: it chooses and hands on; what a form looks like is ``http.py``'s, ``msgpack.py``'s, ``plain.py``'s.
A media type that it does not know is the protocol's own form, which is what Triton makes of it too, so that nothing
changes for a client that does not ask for anything else.

Packed is what goes under one of the three names that MessagePack has; an answer goes under the one that was asked for.
Problems go the way their answer would have gone; there is no registered type for a problem in MessagePack, so it goes
under the same name, and is known by its ``type``, which begins with ``urn:tailrace:problem:``.
"""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.codec import extent, http, msgpack, ndarray, plain
from gateway.codec.http import BodyLimits, Buffer, Field
from gateway.problem import Problem
from tiers.facts import ModelFacts
from tiers.inference import InferRequest, InferResponse, Provenance
from tiers.v2.request import WireForm

PACKED_MEDIA: Final = ("application/msgpack", "application/vnd.msgpack", "application/x-msgpack")
JSON: Final = "application/json"
OCTETS: Final = "application/octet-stream"
ENVELOPE: Final = frozenset({"model", "version", "auth", "cache_control"})
"""What the map of a call says that a head says over HTTP."""


class Dialect(msgspec.Struct, frozen=True):
    """The forms of one request. ``plain``: it is made of plain values, else it is the protocol; ``packed``: it is in
    MessagePack; ``answers``: the media type of an answer in MessagePack, "" for JSON; ``octets``: the protocol's
    answer is wanted as bytes behind its JSON, whatever the request says of its outputs; ``called``: the request is the
    map of a call, which holds what a head says too (``ENVELOPE``), and to its answer the door adds where it is from."""

    plain: bool = False
    packed: bool = False
    answers: str = ""
    octets: bool = False
    called: bool = False


PROTOCOL: Final = Dialect()
"""The protocol in JSON, or with bytes behind it."""


class Asked(msgspec.Struct, frozen=True):
    """What is asked, beside the body. ``facts`` are there for a plain request, which needs them to be understood."""

    model: str
    version: str = ""
    json_length: str | None = None
    facts: ModelFacts | None = None


class Told(msgspec.Struct, frozen=True):
    """What is answered. ``form`` and ``request_id`` are the request's."""

    response: InferResponse
    provenance: Provenance
    form: WireForm
    request_id: str = ""
    coding: str | None = None
    """What `http.negotiate` chose."""


def dialect_of(content_type: str | None, accept: str | None, plain: bool) -> Dialect:
    """The forms that a head's Content-Type and Accept mean (RFC 9110 sections 8.3 and 12.5.1)."""
    own = _media(content_type or "")
    packed = own in PACKED_MEDIA
    weights = _weights(accept or "")
    if not weights:
        return Dialect(plain, packed, own if packed else "")
    rest = weights.get("application/*", weights.get("*/*", 0.0))
    theirs = [media for media in weights if media in PACKED_MEDIA]
    best = max(theirs, key=lambda media: weights[media], default="")
    of_packed = (weights.get(best, rest), bool(best))
    named = [weights[media] for media in (JSON, OCTETS) if media in weights]
    of_json = (max(named, default=rest), bool(named))
    if of_packed[0] > 0 and (of_packed > of_json or (of_packed == of_json and packed)):
        return Dialect(plain, packed, best or (own if packed else PACKED_MEDIA[0]))
    octets = packed and not plain and weights.get(OCTETS, 0.0) > weights.get(JSON, 0.0)
    return Dialect(plain, packed, "", octets)


def decode(body: Buffer, dialect: Dialect, asked: Asked, limits: BodyLimits) -> tuple[InferRequest, WireForm]:
    """One infer request from its body, which has no content coding (any more). Raises Refused: 400 or 413.

    Tensors may be slices of ``body``: keep it unchanged while the request lives.
    """
    if dialect.packed:
        extent.check_plain(body, ndarray.plain_bytes_max(limits.message))
    if dialect.plain:
        assert asked.facts is not None
        subject = plain.Subject(asked.model, asked.version, asked.facts, ENVELOPE if dialect.called else frozenset())
        read = plain.decode_packed if dialect.packed else plain.decode_json
        return read(body, subject, limits), WireForm()
    if not dialect.packed:
        return http.decode(body, asked.model, asked.version, asked.json_length, limits)
    request, form = msgpack.decode(body, asked.model, asked.version, limits)
    return request, WireForm(binary_all=True) if dialect.octets else form


def encode(dialect: Dialect, told: Told) -> tuple[list[Buffer], list[Field]]:
    """Body parts of an answer and the header fields that describe them. Raises Refused when an output cannot take the
    form asked for."""
    if not (dialect.plain or dialect.answers):
        return http.encode(told.response, told.form, told.request_id, told.coding)
    fields = [("Content-Type", dialect.answers or JSON)]
    if dialect.plain:
        provenance = None if dialect.called else told.provenance
        body = plain.encode(told.response, provenance, told.request_id, bool(dialect.answers))
    else:
        body = msgpack.encode(told.response, told.request_id)
    return http.coded([body], fields, told.coding)


def problem_body(problem: Problem, dialect: Dialect) -> tuple[bytes, list[Field]]:
    """A problem in the form its answer would have had, and the header fields that belong to it."""
    if not dialect.answers:
        return problem.body(), problem.headers()
    fields = [(name, dialect.answers if name == "Content-Type" else value) for name, value in problem.headers()]
    return msgspec.msgpack.encode(problem.document()), fields


def _media(value: str) -> str:
    return value.partition(";")[0].strip(" \t").lower()


def _weights(accept: str) -> dict[str, float]:
    """What an Accept says of each media range; members that are not well formed do not count."""
    weights: dict[str, float] = {}
    for member in accept.lower().split(","):
        media, *parameters = (part.strip(" \t") for part in member.split(";"))
        weight = http.quality([each for each in parameters if each.startswith("q=")])
        if media and weight is not None:
            weights[media] = max(weight, weights.get(media, 0.0))
    return weights
