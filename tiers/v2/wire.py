"""The outermost fields of a protobuf message, found without reading what is in them.

Rule of this file: protobuf's encoding (https://protobuf.dev/programming-guides/encoding) and nothing of any message.
Fields that hold bytes are slices, not copies, whatever their size. Bytes that are no fields are ``Malformed``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tiers.v2.message import Malformed

LENGTH_DELIMITED: Final = 2
_FIXED_BYTES: Final = {1: 8, 5: 4}
_VARINT_BITS_MAX: Final = 63  # the tenth byte holds one bit more
FIELDS_MAX: Final = 2048
"""Outermost fields of one message: 256 inputs, outputs and tensors, 64 parameters, and what is unknown to us."""

Span = tuple[int, int, int, int]
"""A field's number, and where it begins, where its content begins (-1: it is no bytes), and where it ends."""


def spans(message: bytes | memoryview) -> Iterator[Span]:
    """The outermost fields in order; raises Malformed for bytes that are none."""
    at, end, count = 0, len(message), 0
    while at < end:
        count += 1
        if count > FIELDS_MAX:
            raise Malformed("too-many", f"the message has more than {FIELDS_MAX} fields")
        begin = at
        tag = message[at]
        if tag < 128:
            at += 1
        else:
            tag, at = varint(message, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise Malformed("protobuf", f"the message has a field without a number at byte {begin}")
        content = -1
        if kind == LENGTH_DELIMITED:
            if at < end and message[at] < 128:
                size = message[at]
                at += 1
            else:
                size, at = varint(message, at)
            content = at
            at += size
        elif kind == 0:
            _, at = varint(message, at)
        elif kind in _FIXED_BYTES:
            at += _FIXED_BYTES[kind]
        else:  # groups, which were given up in 2008, and two numbers that mean nothing
            raise Malformed("protobuf", f"the message has a field of wire type {kind} at byte {begin}")
        if at > end:
            raise Malformed("protobuf", f"field {number} at byte {begin} ends {at - end} bytes after the message")
        yield number, begin, content, at


def varint(message: bytes | memoryview, at: int) -> tuple[int, int]:
    """A number of up to 64 bits, and where it ends; raises Malformed."""
    value = shift = 0
    while at < len(message):
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >= 2**64:
                break
            return value, at
        shift += 7
        if shift > _VARINT_BITS_MAX:
            break
    raise Malformed("protobuf", f"the message has a number that does not end, or is too large, before byte {at}")


def field(number: int, data: bytes | memoryview) -> tuple[bytes, bytes | memoryview]:
    """A field that holds bytes: its beginning, and the bytes as they are."""
    return packed(number << 3 | LENGTH_DELIMITED) + packed(len(data)), data


def packed(value: int) -> bytes:
    """A number that is not negative, as a varint."""
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)
