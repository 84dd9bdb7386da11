"""A value for a place that others can write to, and where it may break: what comes out is what went in, or nothing.

    "TR", layout's version, form (0 as it is, 1 zlib)    4 bytes
    bytes of the value                                   4, little-endian
    BLAKE3-128 of all else, and of its key               16
    the value, in that form

Rule of this file: framing, and whether what is framed is of a kind at all; what it says is its owner's. Nothing that
can lie under a key raises here.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, TypeVar

import msgspec
from blake3 import blake3

T = TypeVar("T")

VERSION: Final = 1
COMPRESSED_FROM: Final = 4096
"""Bytes from which a value is compressed: below it saves little memory, and each costs its look-up time."""
WORTH: Final = 0.9
"""A compressed value that is larger than this share is kept as it is: every reader would inflate it for nothing."""

_HEAD: Final = struct.Struct("<2sBBI")
_MAGIC: Final = b"TR"
_PLAIN, _ZLIB = 0, 1
_DIGEST_BYTES: Final = 16
OVERHEAD_BYTES: Final = _HEAD.size + _DIGEST_BYTES


def sealed(key: bytes, value: bytes) -> bytes:
    """The value as it may lie under ``key``, and under no other."""
    form, body = _PLAIN, value
    if len(value) >= COMPRESSED_FROM:
        smaller = zlib.compress(value, 1)
        if len(smaller) <= WORTH * len(value):
            form, body = _ZLIB, smaller
    head = _HEAD.pack(_MAGIC, VERSION, form, len(value))
    return b"".join((head, _digest(head, key, body), body))


def unsealed(key: bytes, held: bytes, bytes_max: int) -> bytes | None:
    """The value that was sealed under ``key``; None if this is not it, whole and of at most ``bytes_max`` bytes."""
    if len(held) < OVERHEAD_BYTES:
        return None
    head, digest, body = held[: _HEAD.size], held[_HEAD.size : OVERHEAD_BYTES], held[OVERHEAD_BYTES:]
    magic, version, form, size = _HEAD.unpack(head)
    if magic != _MAGIC or version != VERSION or form not in (_PLAIN, _ZLIB) or size > bytes_max:
        return None
    if _digest(head, key, body) != digest:
        return None
    if form == _PLAIN:
        return body if len(body) == size else None
    try:
        value = zlib.decompressobj().decompress(body, size + 1)  # never more, whatever it claims
    except zlib.error:
        return None
    return value if len(value) == size else None


def value_of(kind: type[T], written: bytes) -> T | None:
    """What MessagePack wrote of this kind; None for all other bytes, members that lie too deep included."""
    try:
        return msgspec.msgpack.decode(written, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _digest(head: bytes, key: bytes, body: bytes) -> bytes:
    return blake3(b"".join((head, len(key).to_bytes(4, "little"), key, body))).digest(_DIGEST_BYTES)
