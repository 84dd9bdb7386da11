"""An exported snapshot is whole, or it is nothing."""

from __future__ import annotations

import io

import pytest

from degrade import portable
from degrade.record import Record, name_of, packed, seal


def records(count: int) -> list[tuple[bytes, bytes]]:
    made = []
    for key in range(count):
        record = Record("answer", "routes/r", b"%d" % key, b"f", b"w", 1.0, 2.0, b"payload %d" % key * (key + 1))
        name = name_of(record.kind, record.source, record.key)
        made.append((name, seal(name, packed(record))))
    return made


def exported(count: int) -> bytes:
    file = io.BytesIO()
    assert portable.write(file, records(count)) == count
    return file.getvalue()


@pytest.mark.parametrize("count", [0, 1, 40])
def test_what_is_written_is_read(count: int) -> None:
    content = exported(count)
    assert portable.check(io.BytesIO(content)) == count
    assert list(portable.read(io.BytesIO(content))) == records(count)


def test_no_flipped_byte_and_no_cut_is_whole() -> None:
    content = exported(5)
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        for damaged in (bytes(flipped), content[:at]):
            with pytest.raises(portable.Damaged):
                portable.check(io.BytesIO(damaged))
    with pytest.raises(portable.Damaged):
        portable.check(io.BytesIO(content + b"\0"))


def test_a_record_that_lies_under_another_name_is_none() -> None:
    (name, _), (_, other) = records(2)
    file = io.BytesIO()
    portable.write(file, [(name, other)])
    file.seek(0)
    with pytest.raises(portable.Damaged, match="record 0 is not whole"):
        portable.check(file)
