"""Feast's online store in Redis, read only: a team that has one need not move its data.

    key     the entity's join keys and values (serialization version 3), then the project's name
    fields  of a hash: MurmurHash3 of VIEW:FEATURE, four bytes, little-endian; and _ts:VIEW
    values  protobuf messages, feast.types.Value

Rule of this file: it knows Feast's layout, and writes nothing. Layout: docs/specs/online_store_format.md of
feast-dev/feast; the tests hold it against what the ``feast`` package wrote.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import numpy as np

from cache.stores.frame import unframed
from cache.stores.node import Command, Reply
from cache.stores.redis import Hashes
from cache.stores.servers import Asked
from cache.stores.store import Found, StoreError
from cache.vector import Bounds, Decoded, Rows, decode_each
from cache.words import Keys

_STRING: Final = 2
_INT64: Final = 4
"""Of Feast's enumeration of types."""

_VARINTS: Final = frozenset({3, 4, 7, 8})
"""Fields of a Value that are integers: int32, int64, bool, timestamp."""
_DOUBLE, _FLOAT = 5, 6
_LISTS: Final = {13: "varint", 14: "varint", 15: "<f8", 16: "<f4", 17: "varint", 18: "varint"}
"""Fields of a Value that are lists of numbers, and how an element lies in them when they are packed."""
_NUMBERS_MAX: Final = 65_536
"""Of one value: more is no feature of ours."""


class FeastKeys:
    """A feature view's keys: made of ids, and told from others' of the same server. One join key."""

    def __init__(self, project: str, join_key: str) -> None:
        named = join_key.encode()
        self.prefix = struct.pack("<III", 1, _STRING, len(named)) + named
        self.suffix = project.encode()

    def keys(self, ids: Keys) -> list[bytes]:
        """Ids that are integers are Feast's INT64, others its STRING."""
        prefix, suffix = self.prefix, self.suffix
        if isinstance(ids, np.ndarray):
            return [prefix + struct.pack("<IIq", _INT64, 8, each) + suffix for each in ids.tolist()]
        return [prefix + struct.pack("<II", _STRING, len(each)) + each + suffix for each in ids]

    def ids(self, keys: Sequence[bytes]) -> list[bytes]:
        """The ids of those keys that are this view's; integers in decimal digits."""
        return [each for each in map(self._id, keys) if each is not None]

    def _id(self, key: bytes) -> bytes | None:
        body = key[len(self.prefix) : len(key) - len(self.suffix)]
        if len(body) < 8 or not key.startswith(self.prefix) or not key.endswith(self.suffix):
            return None
        kind, length = struct.unpack_from("<II", body)
        if len(body) != 8 + length:
            return None
        if kind == _INT64 and length == 8:
            return b"%d" % int.from_bytes(body[8:], "little", signed=True)
        return body[8:] if kind == _STRING else None


class FeastHashes:
    """The layout of a feature view's values: these features of it, in this order."""

    def __init__(self, view: str, features: Sequence[str]) -> None:
        self._hashes = Hashes([field_of(view, feature) for feature in features])

    def together(self, keys: Sequence[bytes]) -> Iterator[tuple[Asked, int]]:
        return self._hashes.together(keys)

    def one(self, key: bytes) -> Command:
        return self._hashes.one(key)

    def found(self, reply: Reply) -> Found:
        return self._hashes.found(reply)

    def write(self, key: bytes, value: bytes, ttl: float | None) -> list[Command]:
        raise StoreError("refused", "Feast's data is read only: feast materialize writes it")


class FeastValues:
    """Features of numbers, and of lists of numbers, one behind the other, in a row of any shape."""

    def __init__(
        self, features: int, shape: tuple[int, ...], dtype: Literal["float32", "float16"], bounds: Bounds
    ) -> None:
        self.dtype: np.dtype[np.floating] = np.dtype("<f2" if dtype == "float16" else "<f4")
        self.shape = shape
        self._features = features
        self._bounds = bounds

    def decode(self, values: Sequence[Found]) -> Decoded:
        return decode_each(values, self.shape, self.dtype, self._bounds, self._row)

    def encode(self, rows: Rows) -> list[bytes]:
        raise NotImplementedError("Feast's data is read only")

    def _row(self, value: bytes) -> list[float]:
        row: list[float] = []
        for field in unframed(value, self._features):
            row += numbers_of(field or b"")
        return row


def field_of(view: str, feature: str) -> bytes:
    """The name that a feature has in a hash."""
    return struct.pack("<I", murmur3(f"{view}:{feature}".encode()))


def numbers_of(message: bytes) -> list[float]:
    """The numbers of one feast.types.Value; raises StoreError ("corrupt") if it has none."""
    try:
        fields = list(_fields(message))
        if len(fields) != 1:
            raise StoreError("corrupt", "is no value" if fields else "has no value")
        ((number, wire, content),) = fields
        if isinstance(content, int):
            if number in _VARINTS and wire == 0:
                return [float(_signed(content))]
        elif number == _DOUBLE and wire == 1:
            return list(struct.unpack("<d", content))
        elif number == _FLOAT and wire == 5:
            return list(struct.unpack("<f", content))
        elif number in _LISTS and wire == 2:
            return _listed(content, _LISTS[number])
        raise StoreError("corrupt", f"is of Feast's type {number}, which is no number")
    except (IndexError, struct.error, ValueError):
        raise StoreError("corrupt", "is no message of Feast's") from None


def _listed(message: bytes, form: str) -> list[float]:
    """A list message: field 1, packed, or once for each element."""
    found: list[float] = []
    for number, wire, content in _fields(message):
        if number != 1:
            raise StoreError("corrupt", "is no list of Feast's")
        if isinstance(content, int):
            found.append(float(_signed(content)))
        elif form != "varint":
            found += np.frombuffer(content, form).tolist()
        elif wire == 2:
            found += _varints(content)
        if len(found) > _NUMBERS_MAX:
            raise StoreError("corrupt", f"has more than {_NUMBERS_MAX} numbers")
    return found


def _fields(message: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(number, wire type, content) of each field; raises IndexError or ValueError."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == 0:
            content, at = _varint(message, at)
            yield tag >> 3, wire, content
            continue
        if wire == 2:
            length, at = _varint(message, at)
        else:
            length = {1: 8, 5: 4}[wire] if wire in (1, 5) else -1
        if length < 0 or at + length > len(message):
            raise ValueError("no message")
        yield tag >> 3, wire, message[at : at + length]
        at += length


def _varints(packed: bytes) -> list[float]:
    found, at = [], 0
    while at < len(packed):
        number, at = _varint(packed, at)
        found.append(float(_signed(number)))
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number & (2**64 - 1), at
        if shift > 63:
            raise ValueError("no varint has eleven bytes")


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def murmur3(text: bytes, seed: int = 0) -> int:
    """MurmurHash3 for x86, 32 bits (Austin Appleby, public domain): what Feast names its fields by."""
    first, second, mask = 0xCC9E2D51, 0x1B873593, 2**32 - 1
    state = seed
    whole = len(text) // 4 * 4
    for (block,) in struct.iter_unpack("<I", text[:whole]):
        mixed = block * first & mask
        state ^= ((mixed << 15 | mixed >> 17) & mask) * second & mask
        state = (((state << 13 | state >> 19) & mask) * 5 + 0xE6546B64) & mask
    if whole < len(text):
        mixed = int.from_bytes(text[whole:], "little") * first & mask
        state ^= ((mixed << 15 | mixed >> 17) & mask) * second & mask
    state ^= len(text)
    state = (state ^ state >> 16) * 0x85EBCA6B & mask
    state = (state ^ state >> 13) * 0xC2B2AE35 & mask
    return state ^ state >> 16
