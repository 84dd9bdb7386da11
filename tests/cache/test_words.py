"""Keys as words: equal exactly when the keys are; hashes that depend on the seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.words import LEAST, hashing, keys_of, words

SEED = b"a test's"
short = st.binary(max_size=23) | st.sampled_from([b"", b"\x00", b"\x01", b"\x01\x00", b"a", b"a\x00", b"a\x01"])


@given(short, short, st.integers(3, 5))
def test_byte_strings_have_equal_words_exactly_when_they_are_equal(one: bytes, other: bytes, width: int) -> None:
    found, fits = words([one, other], width)
    assert fits.all()
    assert found.shape == (2, width)
    assert (found[0] == found[1]).all() == (one == other)
    hashes = hashing(width, SEED)(found)
    assert (hashes[0] == hashes[1]) == (one == other)


@given(st.lists(short, max_size=8), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8))
def test_words_lead_back_to_their_keys(keys: list[bytes], numbers: list[int]) -> None:
    assert keys_of(words(keys, 3)[0], 3) == keys
    assert keys_of(words(np.array(numbers, np.int64), 0)[0], 0) == [b"%d" % number for number in numbers]


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_a_byte_string_fits_if_one_byte_is_left(keys: list[bytes]) -> None:
    assert words(keys, 1)[1].tolist() == [len(key) < 8 for key in keys]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8))
def test_a_number_and_its_digits_are_one_key(numbers: list[int]) -> None:
    digits = [b"%d" % number for number in numbers]
    for width in (0, 3):
        as_numbers, fit = words(np.array(numbers, np.int64), width)
        as_digits, fit_too = words(digits, width)
        assert fit.all()
        assert fit_too.all()
        assert as_numbers.tolist() == as_digits.tolist()


@pytest.mark.parametrize(
    "text", [b"", b"-", b"-0", b"007", b"+7", b" 7", b"7 ", b"1_0", b"0x7", b"9223372036854775808"]
)
def test_what_is_no_canonical_number_is_no_key_among_numbers(text: bytes) -> None:
    assert words([text, b"7"], 0)[1].tolist() == [False, True]


@pytest.mark.parametrize("width", [0, 1, 3])
def test_another_seed_gives_other_hashes(width: int) -> None:
    keys, _ = words(np.arange(1, 1000), width)
    assert not (hashing(width, b"one")(keys) == hashing(width, b"other")(keys)).any()


def test_numbers_never_share_a_hash() -> None:
    keys, _ = words(np.concatenate([np.arange(50_000), np.arange(50_000) << 44, np.arange(50_000) + LEAST]), 0)
    assert len(np.unique(hashing(0, SEED)(keys))) == len(np.unique(keys))
