"""One record of a snapshot: what was last known good under a key, and whether it may still be used.

Rule of this file: values in, values out. A record is MessagePack, sealed under its name (``cache/sealed.py``): what was
damaged, cut short or moved under another name is nothing. What a payload means is its owner's, who hands in what it
must be (`Terms`); here is what every record is held against before it is used, and the one word for what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import msgspec
from blake3 import blake3

from cache.sealed import sealed, unsealed, value_of

NAME_BYTES: Final = 16
V = TypeVar("V")

PAYLOAD_BYTES_MAX: Final = 1024 * 1024
"""A larger one would hold up a reader, on the event loop, for milliseconds."""
RECORD_BYTES_MAX: Final = PAYLOAD_BYTES_MAX + 64 * 1024
"""With all that is beside a payload: two names, two words, a key."""
SKEW_SECONDS_MAX: Final = 5.0
"""How far ahead of our clock something may have been made: by clocks that agree to seconds, and no more."""

REASONS: Final = ("checksum", "fingerprint", "purged", "clock", "age", "value")
"""What can be wrong with a record, in the order in which it is looked at."""


class Record(msgspec.Struct, frozen=True, array_like=True):
    """``kind``: what it is ("answer", "feature", "facts"). ``source``: whose ("routes/digits"). ``key``: its owner's.
    ``fingerprint``: of the schema and the rules under which the payload means something. ``word``: the version of what
    it was made by, as its owner tells versions; b"": nobody knows. ``made_at`` and ``written_at``: Unix seconds."""

    kind: str
    source: str
    key: bytes
    fingerprint: bytes
    word: bytes
    made_at: float
    written_at: float
    payload: bytes


class Terms(msgspec.Struct, Generic[V], frozen=True):
    """What a record must be to be used. ``seconds_max``: how old at most. ``read``: what its payload says; None if it
    cannot be read, or its values are not finite and in their range. ``made_after``: Unix seconds; what was made until
    then is purged."""

    fingerprint: bytes
    seconds_max: float
    read: Callable[[bytes], V | None]
    made_after: float = -math.inf


class Good(msgspec.Struct, Generic[V], frozen=True):
    """A record that may be used, and what it says."""

    record: Record
    value: V


def name_of(kind: str, source: str, key: bytes) -> bytes:
    """Where such a record lies."""
    return blake3(b"\0".join((kind.encode(), source.encode(), key))).digest(NAME_BYTES)


def packed(record: Record) -> bytes:
    """The record as bytes, not sealed yet."""
    return msgspec.msgpack.encode(record)


def seal(name: bytes, written: bytes) -> bytes:
    """Packed bytes as they may lie under ``name``."""
    return sealed(name, written)


def unpacked(name: bytes, held: bytes) -> Record | None:
    """The record that was sealed under ``name``; None if it is not that, whole."""
    written = unsealed(name, held, RECORD_BYTES_MAX)
    if written is None:
        return None
    record = value_of(Record, written)
    return record if record is not None and name_of(record.kind, record.source, record.key) == name else None


def judged(record: Record | None, terms: Terms[V], now: float) -> Good[V] | str:
    """A record that is good, read; or why it is not to be used, one of `REASONS`. ``now``: Unix seconds."""
    reason = doubted(record, terms, now)
    if record is None or reason:
        return reason
    value = terms.read(record.payload)
    return "value" if value is None else Good(record, value)


def doubted(record: Record | None, terms: Terms[V], now: float) -> str:
    """What is wrong with a record, whatever its payload says; "" if nothing."""
    if record is None:
        return "checksum"
    if record.fingerprint != terms.fingerprint:
        return "fingerprint"
    if record.made_at <= terms.made_after:
        return "purged"
    if not record.made_at <= now + SKEW_SECONDS_MAX:  # a NaN too
        return "clock"
    if age(record, now) > terms.seconds_max:
        return "age"
    return ""


def age(record: Record, now: float) -> float:
    """Seconds since it was made, and never less than it had when it was written: the wall clock may have been set
    back since."""
    return max(0.0, record.written_at - record.made_at, now - record.made_at)


def drifted(found: int, declared: int, share_max: float) -> bool:
    """Whether there are so many fewer (or more) good records than were told last that something is wrong with the
    whole."""
    return abs(found - declared) > share_max * declared
