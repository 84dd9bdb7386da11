"""A snapshot as one file, to be taken to another host.

    "TRSNAP", version                                    8 bytes
    for each record: 4 bytes of length (little-endian), 16 of its name, the sealed record
    a length of 0
    how many records, 8 bytes; BLAKE3-256 of all before  40

Rule of this file: the format alone, written and read as a stream. A file that is not whole gives nothing: who reads
goes over all of it before the first record is used. Each record has its own checksum besides.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import IO, Final

from blake3 import blake3

from degrade.record import NAME_BYTES, RECORD_BYTES_MAX, unpacked

MAGIC: Final = b"TRSNAP\x00\x01"
_LENGTH: Final = struct.Struct("<I")
_COUNT: Final = struct.Struct("<Q")
_DIGEST_BYTES: Final = 32
HELD_BYTES_MAX: Final = RECORD_BYTES_MAX + 64
"""Of a record, with its seal."""


class Damaged(Exception):
    """It is no export, or not a whole one. The message says why."""


def write(file: IO[bytes], records: Iterable[tuple[bytes, bytes]]) -> int:
    """Write names and sealed records; how many there were. Raises OSError."""
    digest, count = blake3(), 0

    def put(part: bytes) -> None:
        digest.update(part)
        file.write(part)

    put(MAGIC)
    for name, held in records:
        put(_LENGTH.pack(len(held)) + name + held)
        count += 1
    put(_LENGTH.pack(0) + _COUNT.pack(count))
    file.write(digest.digest(_DIGEST_BYTES))
    return count


def check(file: IO[bytes]) -> int:
    """Read all of it; how many records it has. Raises Damaged and OSError."""
    count = 0
    for name, held in _parts(file):
        if unpacked(name, held) is None:
            raise Damaged(f"record {count} is not whole")
        count += 1
    return count


def read(file: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The records of a file that has been checked. Raises Damaged and OSError."""
    return _parts(file)


def _parts(file: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    digest, count = blake3(), 0

    def take(size: int) -> bytes:
        part = file.read(size)
        if len(part) != size:
            raise Damaged("it ends too early")
        digest.update(part)
        return part

    if take(len(MAGIC)) != MAGIC:
        raise Damaged("it is no export of a snapshot, or of another version")
    while size := _LENGTH.unpack(take(_LENGTH.size))[0]:
        if size > HELD_BYTES_MAX:
            raise Damaged(f"record {count} claims {size} bytes")
        yield take(NAME_BYTES), take(size)
        count += 1
    if _COUNT.unpack(take(_COUNT.size))[0] != count:
        raise Damaged(f"it tells of another number of records than the {count} that it has")
    if file.read(_DIGEST_BYTES + 1) != digest.digest(_DIGEST_BYTES):
        raise Damaged("its checksum is another one")
