"""The HTTP wire of an inference: header fields and body bytes to values, and values to both.

Rule of this file: pure functions of their arguments, no I/O, no clock; whatever a caller sends that is
wrong is ``Refused``. It does not know which models exist, nor what the cache or the tiers did beyond
what ``Provenance`` tells. Every character that reaches a header field is printable ASCII by
construction, so no name that a caller or a model chose can split a header.

RFC 9110 (negotiation, codings), 9111 (Cache-Control, Age), 9211 (Cache-Status), 9651 (structured
fields); Inference-Header-Content-Length is Triton's own and counts bytes of the *inflated* body.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final

import msgspec

from gateway.problem import Problem, Refused, malformed, too_large, unsupported_encoding
from tiers.inference import InferRequest, InferResponse, Provenance, TableTold
from tiers.v2 import coding as codings
from tiers.v2.coding import CODINGS, GZIP_BITS, ZLIB_BITS
from tiers.v2.forms import RequestForms
from tiers.v2.message import DEFAULT_LIMITS, JSON_LENGTH_HEADER, Limits, Malformed
from tiers.v2.request import WireForm, decode_request
from tiers.v2.response import encode_response

PASSED: Final = Provenance(cache="bypass", reason="passthrough")
"""All that is known of an answer that passes through."""

CACHE_NAME: Final = "tailrace"

Buffer = bytes | memoryview
Field = tuple[str, str]

_LEVEL: Final = 1  # tensors hardly compress; higher levels cost 5 times the CPU for a few percent
_DIGITS: Final = re.compile(r"[0-9]{1,19}")
_WEIGHT: Final = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")
_TOKEN: Final = re.compile(r"[A-Za-z*][A-Za-z0-9!#$%&'*+\-.^_`|~:/]*")
_DIRECTIVE: Final = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)(?:=(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]*)))?")
_TEXT_MAX: Final = 128  # characters of a model's name or a reason in one header member
_INTEGER_MAX: Final = 999_999_999_999_999  # RFC 9651 section 3.3.1
_PLACE: Final = "\0"  # where a number goes in a template; no field can hold it
_SECONDS_MAX: Final = 2**31  # RFC 9111 section 1.2.2: what a delta-seconds too large becomes

TOLD_MAX: Final = 1024
"""Provenances whose text is remembered; each is about 500 bytes."""

_FORWARDED: Final = {
    "request": "request",
    "no-cache": "request",
    "no-store": "request",
    "max-age": "request",
    "stale": "stale",
    "dead": "stale",
    "epoch": "stale",
    "expired": "stale",
    "partial": "partial",
    "uri-miss": "uri-miss",
    "bypass": "bypass",
}
"""A miss's reason to the ``fwd`` value of RFC 9211 section 2.2; any other reason is ``miss``."""


class BodyHeaders(msgspec.Struct, frozen=True):
    """The request's header fields that say how to read its body; None when absent."""

    content_encoding: str | None = None
    json_length: str | None = None


class BodyLimits(msgspec.Struct, frozen=True):
    """``bytes_max`` bounds the body both as sent and inflated; ``message`` what the message may hold.
    ``forms`` remembers what messages within these bounds say."""

    bytes_max: int = 64 * 2**20
    message: Limits = DEFAULT_LIMITS
    forms: RequestForms | None = None


class CacheDirectives(msgspec.Struct, frozen=True):
    """Cache-Control of a request (RFC 9111 section 5.2.1); seconds. ``max_stale`` inf: any age."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_stale: float | None = None
    max_age: float | None = None


NO_DIRECTIVES: Final = CacheDirectives()


def decode(
    body: Buffer, model: str, version: str, json_length: str | None, limits: BodyLimits
) -> tuple[InferRequest, WireForm]:
    """One infer request from its body, which has no content coding (any more: see ``inflate``); ``json_length``
    is the header field's value. Raises Refused: 400 or 413.

    The tensors may be slices of ``body``: keep it unchanged while the request lives.
    """
    try:
        length = parse_json_length(json_length)
        if limits.forms is not None:
            return limits.forms.decode(body, length, model, version)
        return decode_request(body, length, model, version, limits.message)
    except Malformed as fault:
        raise Refused(_problem(fault)) from fault


def encode(
    response: InferResponse, form: WireForm, request_id: str, encoding: str | None = None
) -> tuple[list[Buffer], list[Field]]:
    """Body parts of an answer and the header fields that describe them (no Content-Length).

    ``encoding`` is what ``negotiate`` chose. Raises Refused when an output cannot take the form asked for.
    """
    try:
        parts, json_length = encode_response(response, form, request_id)
    except Malformed as fault:
        raise Refused(_problem(fault)) from fault
    if json_length is None:
        fields = [("Content-Type", "application/json")]
    else:
        fields = [("Content-Type", "application/octet-stream"), (JSON_LENGTH_HEADER, str(json_length))]
    return coded(parts, fields, encoding)


def coded(parts: list[Buffer], fields: list[Field], encoding: str | None) -> tuple[list[Buffer], list[Field]]:
    """A body in the coding that was chosen, and with it the fields that say so."""
    if encoding is not None:
        parts = [deflate_body(parts, encoding)]
        fields.append(("Content-Encoding", encoding))
    fields.append(("Vary", "Accept, Accept-Encoding"))  # also where neither made a difference (RFC 9110 section 12.5.5)
    return parts, fields


def parse_json_length(value: str | None) -> int | None:
    """Inference-Header-Content-Length, strictly digits (Triton reads ``x`` as 0, and then guesses)."""
    if value is None:
        return None
    if not _DIGITS.fullmatch(value):
        raise Refused(malformed(f"{JSON_LENGTH_HEADER} must be a number of bytes, got {value[:32]!r}", "header-length"))
    return int(value)


def inflate(body: Buffer, encoding: str | None, bytes_max: int) -> Buffer:
    """The body without its one content coding; at most ``bytes_max`` bytes either way.

    ``deflate`` is zlib's format, or the bare DEFLATE some clients send (RFC 9110 section 8.4.1.2 knows
    of them). Raises Refused: 413 for a bomb, 400 for a stream that is broken, cut or followed by more,
    415 for any other coding or more than one.
    """
    try:
        return codings.inflate(body, encoding, bytes_max)
    except Malformed as fault:
        if fault.status == 415:
            raise Refused(unsupported_encoding(str(fault))) from fault
        raise Refused(too_large(str(fault), bytes_max) if fault.status == 413 else _problem(fault)) from fault


def negotiate(accept_encoding: str | None) -> str | None:
    """The coding to answer in: gzip, deflate, or None for none (RFC 9110 section 12.5.3).

    The heaviest wins, gzip before deflate before none. Members that are not well formed do not count.
    With identity forbidden and nothing else possible the answer goes out plain all the same.
    """
    if not accept_encoding:
        return None
    weights: dict[str, float] = {}
    for member in accept_encoding.lower().split(","):
        name, *parameters = (part.strip(" \t") for part in member.split(";"))
        found = quality(parameters)
        if name and found is not None:
            weights[CODINGS.get(name, name)] = found
    rest = weights.get("*", 0.0)
    best, best_weight = None, weights.get("identity", 0.0)
    for coding in ("deflate", "gzip"):
        weight = weights.get(coding, rest)
        if weight > 0 and weight >= best_weight:
            best, best_weight = coding, weight
    return best


def deflate_body(parts: Iterable[Buffer], encoding: str) -> bytes:
    """All parts as one gzip or deflate (zlib) stream; the same parts give the same bytes."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, GZIP_BITS if encoding == "gzip" else ZLIB_BITS)
    pieces = [stream.compress(part) for part in parts]
    pieces.append(stream.flush())
    return b"".join(pieces)


def parse_cache_control(value: str | None) -> CacheDirectives:
    """The directives this gateway honours; what it cannot read it takes the careful way.

    A ``max-age`` that is no number counts as 0, a ``max-stale`` that is none as absent; of repeated
    directives the stricter holds (RFC 9111 section 4.2.1). Several header lines: join them with commas.
    """
    if not value:
        return NO_DIRECTIVES
    flags: set[str] = set()
    max_stale: float | None = None
    max_age: float | None = None
    for name, argument in directives_in(value):
        if name == "max-stale":
            stale = math.inf if argument is None else delta_seconds(argument)
            if stale is not None:
                max_stale = stale if max_stale is None else min(max_stale, stale)
        elif name == "max-age":
            age = delta_seconds(argument or "") or 0.0
            max_age = age if max_age is None else min(max_age, age)
        else:
            flags.add(name)
    return CacheDirectives(
        no_cache="no-cache" in flags,
        no_store="no-store" in flags,
        only_if_cached="only-if-cached" in flags,
        max_stale=max_stale,
        max_age=max_age,
    )


def directives_in(value: str) -> Iterator[tuple[str, str | None]]:
    """The names of Cache-Control's directives, in lower case, and their arguments."""
    for match in _DIRECTIVE.finditer(value):
        yield match.group(1).lower(), match.group(2) if match.group(2) is not None else match.group(3)


def provenance_headers(provenance: Provenance, duration_seconds: float | None = None) -> list[Field]:
    """Cache-Status, Age (of an answer that is not all new), Server-Timing and Tailrace-Provenance.

    Without a duration Server-Timing names only the cache state: a hit by its bytes is not worth a clock.
    """
    ttl = None if provenance.ttl_left is None else str(_whole(provenance.ttl_left))
    milliseconds = None
    if duration_seconds is not None:
        duration = max(0.0, duration_seconds) * 1000.0
        milliseconds = f"{duration if math.isfinite(duration) else 0:.3f}"
    return _told(provenance, str(_whole(max(0.0, provenance.age))), ttl, milliseconds)


def hit_lines(provenance: Provenance) -> bytes:
    """What `provenance_headers` tells of a hit by its bytes, as lines of a head with places (``%d``) for its
    whole seconds of time to live, of age, and of age again: an entry's hits differ in nothing else."""
    fields = _told(provenance, _PLACE, _PLACE, None)
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields])
    return lines.replace("%", "%%").replace(_PLACE, "%d").encode("ascii")


def passthrough_lines() -> tuple[bytes, bytes]:
    """What `provenance_headers` tells of what passes through: up to its milliseconds, and from there on."""
    fields = _told(PASSED, "", None, _PLACE)
    before, after = "".join([f"{name}: {value}\r\n" for name, value in fields]).encode("ascii").split(_PLACE.encode())
    return before, after


def _told(provenance: Provenance, age: str, ttl: str | None, milliseconds: str | None) -> list[Field]:
    timeless = provenance
    if provenance.ttl_left is not None or provenance.age:
        timeless = msgspec.structs.replace(provenance, age=0.0, ttl_left=None)
    status, timing, story = _words(timeless, age, ttl)
    fields = [("Cache-Status", status)]
    if provenance.is_aged:
        fields.append(("Age", age))
    if milliseconds is not None:
        timing = f"tailrace;dur={milliseconds}, {timing}"
    fields.append(("Server-Timing", timing))
    fields.append(("Tailrace-Provenance", story))
    return fields


@lru_cache(maxsize=TOLD_MAX)
def _words(provenance: Provenance, age: str, ttl: str | None) -> tuple[str, str, str]:
    """Cache-Status, the end of Server-Timing and Tailrace-Provenance of one without its seconds, which are given as
    text: most answers of a second tell the same."""
    return _cache_status(provenance, ttl), f"cache;desc={_item(provenance.cache)}", _provenance(provenance, age)


def _problem(fault: Malformed) -> Problem:
    return too_large(str(fault)) if fault.status == 413 else malformed(str(fault), fault.reason)


def quality(parameters: Sequence[str]) -> float | None:
    """The q of one member: 1 when absent, None when it is not a weight."""
    if not parameters:
        return 1.0
    name, _, value = parameters[0].partition("=")
    if len(parameters) > 1 or name.strip() != "q" or not _WEIGHT.fullmatch(value.strip()):
        return None
    return float(value)


def delta_seconds(text: str) -> float | None:
    """A number of seconds (RFC 9111 section 1.2.2); None for what is none."""
    if not text.isascii() or not text.isdigit():
        return None
    return float(_SECONDS_MAX) if len(text) > 10 else float(min(int(text), _SECONDS_MAX))


def _whole(value: float) -> int:
    """A structured-field integer: rounded down, and within what RFC 9651 allows."""
    if math.isnan(value):
        return 0
    return math.floor(min(max(value, -_INTEGER_MAX), _INTEGER_MAX))


def _cache_status(provenance: Provenance, ttl: str | None) -> str:
    reason = provenance.reason
    members = [CACHE_NAME]
    if provenance.cache in ("hit", "stale"):
        members.append("hit")
        if ttl is not None:
            members.append(f"ttl={ttl}")
        told = "" if provenance.cache == "hit" else reason
    elif provenance.cache == "none":
        told = reason
    else:
        forwarded = "bypass" if provenance.cache == "bypass" else _FORWARDED.get(reason, "miss")
        members.append(f"fwd={forwarded}")
        if provenance.stored:
            members.append("stored")
        if provenance.collapsed:
            members.append("collapsed")
        told = "" if reason in (forwarded, "stored") else reason
    if told:
        members.append(f"detail={_item(told)}")
    return "; ".join(members)


def _provenance(provenance: Provenance, age: str) -> str:
    members = [f"cache={_item(provenance.cache)}"]
    if provenance.reason:
        members.append(f"reason={_item(provenance.reason)}")
    for name, text in (("tier", provenance.tier), ("version", provenance.version)):
        if text:
            members.append(f"{name}={_string(text)}")
    if provenance.is_aged:
        members.append(f"age={age}")
    if provenance.rows:
        members.append(f"rows={_whole(provenance.rows)}")
        members.append(f"escalated={_whole(provenance.rows_escalated)}")
    if provenance.rows_kept:
        members.append(f"kept={_whole(provenance.rows_kept)}")
    if provenance.tables:
        members.append(f"tables=({' '.join(map(_table, provenance.tables))})")
    if provenance.steps:
        members.append(f"steps=({' '.join(_item(step) for step in provenance.steps)})")
    if provenance.degraded:
        members.append("degraded")
    if provenance.brownout:
        members.append(f"brownout={provenance.brownout}")
    return ", ".join(members)


def _table(told: TableTold) -> str:
    """A table's name, with what its rows were as parameters."""
    words = "fresh", "stale", "snapshot", "absent", "lost"
    counts = zip(words, (told.fresh, told.stale, told.snapshot, told.absent, told.lost), strict=True)
    return _item(told.name) + "".join([f";{word}={count}" for word, count in counts if count]) + f";age={int(told.age)}"


def _item(text: str) -> str:
    """A token where the text is one, else a string."""
    return text if len(text) <= _TEXT_MAX and _TOKEN.fullmatch(text) else _string(text)


def _string(text: str) -> str:
    """A string, or for anything beyond printable ASCII a display string (RFC 9651 section 3.3.8)."""
    if len(text) > _TEXT_MAX:
        text = text[: _TEXT_MAX - 3] + "..."
    if text.isascii() and text.isprintable():
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    safe = [
        chr(code) if 32 <= code < 127 and code not in b'%"' else f"%{code:02x}"
        for code in text.encode("utf-8", "replace")
    ]
    return '%"' + "".join(safe) + '"'
