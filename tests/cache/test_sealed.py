"""What comes out of a seal is what went in, or nothing."""

from __future__ import annotations

import random
import struct
import zlib

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from cache.sealed import COMPRESSED_FROM, OVERHEAD_BYTES, sealed, unsealed

MAX = 1 << 20
SQUEEZED = b"the same again " * 600
NOISE = random.Random(1).randbytes(COMPRESSED_FROM)
VALUES = [b"", b"x", b"short value", SQUEEZED, NOISE]


@given(st.binary(max_size=40), st.binary(max_size=3 * COMPRESSED_FROM))
def test_what_went_in_comes_out(key: bytes, value: bytes) -> None:
    assert unsealed(key, sealed(key, value), MAX) == value


@pytest.mark.parametrize("value", VALUES, ids=["empty", "one", "short", "squeezed", "noise"])
def test_every_broken_byte_is_seen(value: bytes) -> None:
    held = sealed(b"k", value)
    for at in range(len(held)):
        for other in {held[at] ^ 1, held[at] ^ 0x80, 0, 255} - {held[at]}:
            broken = held[:at] + bytes([other]) + held[at + 1 :]
            assert unsealed(b"k", broken, MAX) is None, at
    for end in range(len(held)):
        assert unsealed(b"k", held[:end], MAX) is None
    assert unsealed(b"k", held + b"\0", MAX) is None


@given(st.binary(max_size=200))
def test_what_others_wrote_is_nothing(held: bytes) -> None:
    assert unsealed(b"k", held, MAX) is None


def test_it_lies_under_its_key_alone() -> None:
    held = sealed(b"a", b"value")
    assert unsealed(b"b", held, MAX) is None
    assert unsealed(b"", held, MAX) is None


def test_what_can_be_squeezed_is_and_what_cannot_is_not() -> None:
    assert len(sealed(b"k", SQUEEZED)) < len(SQUEEZED) // 10
    assert len(sealed(b"k", NOISE)) == len(NOISE) + OVERHEAD_BYTES
    assert len(sealed(b"k", SQUEEZED[: COMPRESSED_FROM - 1])) == COMPRESSED_FROM - 1 + OVERHEAD_BYTES


def forged(form: int, size: int, body: bytes) -> bytes:
    """A value whose seal is whole, by one who knows how."""
    head = struct.pack("<2sBBI", b"TR", 1, form, size)
    return head + blake3(head + (1).to_bytes(4, "little") + b"k" + body).digest(16) + body


def test_a_value_that_lies_of_its_size_is_nothing() -> None:
    bomb = zlib.compress(bytes(MAX), 9)
    assert unsealed(b"k", forged(1, MAX, bomb), MAX) == bytes(MAX)
    assert unsealed(b"k", forged(1, MAX, bomb), MAX - 1) is None
    assert unsealed(b"k", forged(1, 10, bomb), MAX) is None
    assert unsealed(b"k", forged(1, 10, b"no zlib"), MAX) is None
    assert unsealed(b"k", forged(0, 10, b"short"), MAX) is None
    assert unsealed(b"k", forged(2, 5, b"other"), MAX) is None
