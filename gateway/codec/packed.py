"""MessagePack, one value at a time: maps, arrays, texts and bytes as they lie in a message, nothing copied.

Rule of this file: it knows the format and nothing of what a message means. Values come as ``msgspec.Raw``, which are
views of the message; what is to be read of one is read by its type, so nothing that was not asked for becomes an
object, no code is ever run for what a peer sends (there is no ext type here, and no pickle), and ``Malformed`` is all
that is raised. A map that has a key twice is refused: its readers would not agree on which of the two counts.

The format's nesting is walked by msgspec in C, which counts its own depth and stops at Python's recursion limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec
from msgspec import Raw

from tiers.v2.message import Malformed, check_count, shown

T = TypeVar("T")
Packed = bytes | memoryview | Raw
"""One value, as it lies in a message."""

ARRAY: Final = "an array"
MAP: Final = "a map"
BYTES: Final = "bytes"
TEXT: Final = "a string"
OTHER: Final = "something else"

MEMBERS_MAX: Final = 1024
"""Of one map: three times what the largest that means anything has. A member costs some 200 bytes, whatever it says."""

_MAPS: Final = msgspec.msgpack.Decoder(dict[str, Raw])
_MAPS_OF_BYTES: Final = msgspec.msgpack.Decoder(dict[bytes, Raw])
_ARRAYS: Final = msgspec.msgpack.Decoder(list[Raw])
_TEXTS: Final = msgspec.msgpack.Decoder(str)
_VIEWS: Final = msgspec.msgpack.Decoder(memoryview)

_FAULTS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, OverflowError)


def kind(value: Packed) -> str:
    """What a value is, by its first byte: ``ARRAY``, ``MAP``, ``BYTES``, ``TEXT`` or ``OTHER``."""
    first = _first(value)
    if first & 0xF0 == 0x80 or first in (0xDE, 0xDF):
        return MAP
    if first & 0xF0 == 0x90 or first in (0xDC, 0xDD):
        return ARRAY
    if 0xC4 <= first <= 0xC6:
        return BYTES
    if first & 0xE0 == 0xA0 or 0xD9 <= first <= 0xDB:
        return TEXT
    return OTHER


def length(value: Packed) -> int:
    """How many members a map says it has, or elements an array; raises Malformed for a head that is cut."""
    view = memoryview(value)
    first = _first(value)
    if first & 0xE0 == 0x80:  # fixmap and fixarray
        return first & 0x0F
    size = 2 if first in (0xDC, 0xDE) else 4
    head = view[1 : 1 + size]
    if len(head) < size:
        raise Malformed("msgpack", "the MessagePack is truncated")
    return int.from_bytes(head, "big")


def head_bytes(value: Packed) -> int:
    """How many bytes come before the first member of a map, or element of an array."""
    return {0xDC: 3, 0xDD: 5, 0xDE: 3, 0xDF: 5}.get(_first(value), 1)


def members(value: Packed, what: str) -> Mapping[str, Raw]:
    """A map with strings for keys (or all of them bytes, which are read as UTF-8). Raises Malformed, also for a key
    that comes twice."""
    if kind(value) != MAP:
        raise Malformed("member", f"{what} must be {MAP}, got {kind(value)}")
    check_count(f"members in {what}", length(value), MEMBERS_MAX)
    try:
        found = _MAPS.decode(value)
    except msgspec.ValidationError:  # keys are no strings
        found = _with_keys_of_bytes(value, what)
    except _FAULTS as error:
        raise _unreadable(error) from error
    if len(found) != length(value):
        raise Malformed("duplicate", f"{what} has a key twice")
    return found


def elements(value: Packed, what: str, count_max: int) -> list[Raw]:
    """An array. Raises Malformed."""
    if kind(value) != ARRAY:
        raise Malformed("member", f"{what} must be {ARRAY}, got {kind(value)}")
    check_count(what, length(value), count_max)
    return read(_ARRAYS, value, what)


def text(value: Packed, what: str) -> str:
    """A string. Raises Malformed."""
    return read(_TEXTS, value, what)


def view(value: Packed, what: str) -> memoryview:
    """Bytes, as a view of the message. Raises Malformed."""
    return read(_VIEWS, value, what)


def read(decoder: msgspec.msgpack.Decoder[T], value: Packed, what: str) -> T:
    """A value as the decoder's type. Raises Malformed."""
    try:
        return decoder.decode(value)
    except msgspec.ValidationError as error:
        told = str(error).partition(" - at `")[0].replace("`", "'")
        raise Malformed("member", f"{what}: {told}") from error
    except _FAULTS as error:
        raise _unreadable(error) from error


def _with_keys_of_bytes(value: Packed, what: str) -> dict[str, Raw]:
    try:
        found = _MAPS_OF_BYTES.decode(value)
        return {key.decode(): member for key, member in found.items()}
    except msgspec.ValidationError as error:
        raise Malformed("member", f"the keys of {what} must be strings") from error
    except _FAULTS as error:
        raise _unreadable(error) from error


def _first(value: Packed) -> int:
    whole = memoryview(value)
    if not whole:
        raise Malformed("msgpack", "the MessagePack is empty")
    return whole[0]


def _unreadable(error: Exception) -> Malformed:
    if isinstance(error, RecursionError):
        return Malformed("depth", "the MessagePack is nested too deep")
    if isinstance(error, UnicodeDecodeError):
        return Malformed("utf8", "a string in the MessagePack is not valid UTF-8")
    return Malformed("msgpack", f"not valid MessagePack: {shown(str(error))[1:-1]}")
