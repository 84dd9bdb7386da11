"""Keys as words: any key is a row of 64-bit words, and two keys are equal exactly when their words are.

Rule of this file: it turns keys into words and words into hashes, and holds nothing. A table has keys of one width.
Width 0 are whole numbers: one word, the number itself. From width 1 on they are byte strings: the string, one byte 1,
and zeros up to the width, so that ``b"a"`` and ``b"a\\0"`` differ. A number and its decimal digits are one key, for an
entity's id comes as either: each kind of table takes both.

Hashes are seeded: who chooses keys cannot know which of them meet. Thorup, "High speed hashing for integers and
strings", 2015: for one word two multiplications by odd numbers (two words never have one hash, and meet in the upper
bits with at most twice the chance of pure luck), for several pair-multiply-shift (one hash with a chance of 2^-32) and
then the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

Words = NDArray[np.uint64]
"""Keys: [n, words of each]."""
Hashes = NDArray[np.uint64]
Hashing = Callable[[Words], Hashes]
"""[n, words] to [n]."""
Keys = NDArray[np.int64] | Sequence[bytes]

WORD_BYTES: Final = 8
NUMBER: Final = re.compile(rb"0|-?[1-9][0-9]{0,18}")
"""The one way to write a whole number of 64 bits in digits; what is longer is none."""
LEAST, MOST = -(2**63), 2**63 - 1
HALF: Final = np.uint64(32)
LOW_HALF: Final = np.uint64(2**32 - 1)
_ALL: Final = np.ones(16_384, np.bool_)
_ALL.setflags(write=False)


def words(keys: Keys, width: int) -> tuple[Words, NDArray[np.bool_]]:
    """The keys' words [n, max(1, width)], and which of them can be keys of this width at all: byte strings shorter than
    ``width`` words, or for width 0 canonical numbers. The words of the others mean nothing."""
    if width == 0:
        if isinstance(keys, np.ndarray):
            whole = np.ascontiguousarray(keys, np.int64).view(np.uint64).reshape(-1, 1)
            return whole, _ALL[: len(whole)] if len(whole) <= len(_ALL) else np.ones(len(whole), np.bool_)
        return _numbers(keys)
    if isinstance(keys, np.ndarray):
        keys = [b"%d" % key for key in keys.tolist()]
    sizes = np.fromiter(map(len, keys), np.int64, len(keys))
    if sizes.max(initial=0) >= width * WORD_BYTES:  # whoever sends megabytes is not to have them copied
        keys = [key[: width * WORD_BYTES] for key in keys]
    filled = np.array([key + b"\x01" for key in keys], f"S{width * WORD_BYTES}")
    return filled.view(np.uint64).reshape(-1, width), sizes < width * WORD_BYTES


def keys_of(found: Words, width: int) -> list[bytes]:
    """The keys that have these words; numbers as their digits."""
    if width == 0:
        return [b"%d" % number for number in found[:, 0].view(np.int64).tolist()]
    return [key[:-1] for key in found.copy().view(f"S{width * WORD_BYTES}")[:, 0].tolist()]  # without zeros at its end


def _numbers(keys: Sequence[bytes]) -> tuple[Words, NDArray[np.bool_]]:
    read = [int(key) if NUMBER.fullmatch(key) else None for key in keys]
    fits = np.array([number is not None and LEAST <= number <= MOST for number in read], np.bool_)
    known = [number if fit else 0 for number, fit in zip(read, fits.tolist(), strict=True)]
    return np.array(known, np.int64).reshape(-1, 1).view(np.uint64), fits


def hashing(width: int, seed: bytes) -> Hashing:
    """Hashes for keys of so many words (0 and 1 alike). The seed must be a secret, or the keys must be ours."""
    count = max(1, width)
    drawn = np.frombuffer(blake3(seed).digest(length=WORD_BYTES * (2 * count + 3)), np.uint64)
    low, high = drawn[3 : count + 3], drawn[count + 3 :]
    add, first, last = drawn[0], drawn[1] | np.uint64(1), drawn[2] | np.uint64(1)

    def spread(found: Hashes) -> Hashes:
        found ^= found >> HALF
        found *= last
        return found

    def one(keys: Words) -> Hashes:
        return spread(keys[:, 0] * first)

    def several(keys: Words) -> Hashes:
        pairs = (keys & LOW_HALF) + low
        pairs *= (keys >> HALF) + high
        return spread(pairs.sum(axis=1, dtype=np.uint64) + add)

    return one if count == 1 else several
