"""Several fields as one value: the bytes of each behind its length, so that a hash is a value like any other.

Rule of this file: it never leaves this process's memory, so it has no version. A field that is absent is told from an
empty one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from cache.stores.store import StoreError

_LENGTH: Final = struct.Struct("<i")
_ABSENT: Final = _LENGTH.pack(-1)


def framed(fields: Sequence[bytes | None]) -> bytes:
    """The fields in their order."""
    return b"".join(_ABSENT if each is None else _LENGTH.pack(len(each)) + each for each in fields)


def unframed(value: bytes, fields: int) -> list[bytes | None]:
    """So many fields, and nothing behind them; raises StoreError ("corrupt") otherwise."""
    found: list[bytes | None] = []
    at = 0
    for _ in range(fields):
        if at + _LENGTH.size > len(value):
            raise StoreError("corrupt", f"ends within field {len(found) + 1} of {fields}")
        (length,) = _LENGTH.unpack_from(value, at)
        at += _LENGTH.size
        if length < 0:
            found.append(None)
            continue
        if at + length > len(value):
            raise StoreError("corrupt", f"ends within field {len(found) + 1} of {fields}")
        found.append(value[at : at + length])
        at += length
    if at != len(value):
        raise StoreError("corrupt", f"goes on behind field {fields}")
    return found
