"""Records: what is wrong with one is a word, and nothing damaged is ever one."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import pytest

from degrade.record import PAYLOAD_BYTES_MAX, Good, Record, Terms, age, drifted, judged, name_of, packed, seal, unpacked

NOW = 1_000_000.0
GOOD = Record("answer", "routes/r", b"key", b"schema", b"word", NOW - 10, NOW - 5, b"payload")
TERMS = Terms(b"schema", 60.0, lambda payload: payload if payload == b"payload" else None, NOW - 40)


def changed(**fields: object) -> Record:
    return msgspec.structs.replace(GOOD, **fields)


def name(record: Record) -> bytes:
    return name_of(record.kind, record.source, record.key)


def test_a_record_comes_back_as_it_was() -> None:
    for record in (GOOD, changed(payload=bytes(PAYLOAD_BYTES_MAX)), changed(payload=b"", word=b"", key=b"")):
        assert unpacked(name(record), seal(name(record), packed(record))) == record


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (GOOD, ""),
        (None, "checksum"),
        (changed(fingerprint=b"other"), "fingerprint"),
        (changed(made_at=NOW - 61, written_at=NOW - 61), "purged"),
        (changed(payload=b"broken"), "value"),
        (changed(made_at=NOW + 6), "clock"),
        (changed(made_at=NOW + 4, written_at=NOW + 4), ""),
        (changed(made_at=math.nan), "clock"),
        (changed(made_at=NOW - 40, written_at=NOW), "purged"),
        (changed(made_at=NOW - 39, written_at=NOW), ""),
        (changed(made_at=NOW - 30, written_at=NOW + 30), ""),
        (changed(made_at=NOW - 30, written_at=NOW + 31), "age"),
        (changed(fingerprint=b"other", made_at=NOW - 100, payload=b""), "fingerprint"),
    ],
)
def test_what_is_wrong_with_a_record_is_one_word(record: Record | None, reason: str) -> None:
    judgement = judged(record, TERMS, NOW)
    assert judgement == (reason or Good(record, b"payload"))


def test_a_record_may_be_so_old_and_no_older() -> None:
    terms = Terms(b"schema", 60.0, lambda payload: payload)
    assert judged(GOOD, terms, NOW + 50) == Good(GOOD, GOOD.payload)
    assert judged(GOOD, terms, NOW + 50.5) == "age"


@pytest.mark.parametrize(("now", "seconds"), [(NOW, 10), (NOW + 50, 60), (NOW - 7, 5), (0.0, 5), (NOW - 9, 5)])
def test_a_record_is_never_younger_than_it_was_written(now: float, seconds: float) -> None:
    assert age(GOOD, now) == seconds


def test_no_record_lies_under_anothers_name() -> None:
    assert unpacked(name(changed(key=b"other")), seal(name(GOOD), packed(GOOD))) is None
    moved = name(changed(key=b"other"))
    assert unpacked(moved, seal(moved, packed(GOOD))) is None, "sealed there, and still another's"


def test_who_something_is_of_is_part_of_its_name() -> None:
    parts = [("ab", "c", b"d"), ("a", "bc", b"d"), ("a", "b", b"cd"), ("a", "bcd", b""), ("abcd", "", b"")]
    assert len({name_of(*each) for each in parts}) == len(parts)


def test_what_is_larger_than_a_record_may_be_is_nothing() -> None:
    """However small it lies there: it is compressed."""
    for more, is_there in ((0, True), (64 * 1024, False)):
        record = changed(payload=bytes(PAYLOAD_BYTES_MAX + more))
        held = seal(name(record), packed(record))
        assert len(held) < 64 * 1024
        assert (unpacked(name(record), held) is not None) is is_there


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"\0", lambda _: b"", lambda b: bytes(len(b))])
def test_what_is_not_whole_is_nothing(damage: Callable[[bytes], bytes]) -> None:
    assert unpacked(name(GOOD), damage(seal(name(GOOD), packed(GOOD)))) is None


def test_what_is_sealed_and_no_record_is_nothing() -> None:
    for written in (b"", b"\x90", msgspec.msgpack.encode(("answer", "routes/r")), b"\xc1"):
        assert unpacked(name(GOOD), seal(name(GOOD), written)) is None


@pytest.mark.parametrize(
    ("found", "declared", "share", "is_wrong"),
    [
        (100, 100, 0.01, False), (99, 100, 0.01, False), (98, 100, 0.01, True), (148, 150, 0.01, True),
        (0, 0, 0.01, False), (1, 0, 0.01, True),
    ],
)
def test_a_count_may_differ_by_its_share(found: int, declared: int, share: float, is_wrong: bool) -> None:
    assert drifted(found, declared, share) is is_wrong
