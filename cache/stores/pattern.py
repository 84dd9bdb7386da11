"""A table's key pattern: ``user:{id}`` makes store keys of ids, and ids of store keys.

Rule of this file: text only. What comes before ``{id}`` is the prefix by which a table's keys are known in a store, and
what comes after it their suffix. Ids are bytes; a 64-bit integer is the same id as its decimal digits
(`cache/words.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from cache.words import Keys

HOLE: Final = "{id}"


class Pattern:
    """``written`` has ``{id}`` once; raises ValueError otherwise."""

    def __init__(self, written: str) -> None:
        before, hole, after = written.partition(HOLE)
        if not hole or HOLE in after:
            raise ValueError(f"{written!r} must have {HOLE} in it, once: user:{HOLE}")
        self.prefix = before.encode()
        self.suffix = after.encode()

    def keys(self, ids: Keys) -> list[bytes]:
        """The store's keys of these ids, in their order."""
        prefix, suffix = self.prefix, self.suffix
        if isinstance(ids, np.ndarray):
            return [b"%b%d%b" % (prefix, each, suffix) for each in ids.tolist()]
        return [prefix + each + suffix for each in ids]

    def id(self, key: bytes) -> bytes | None:
        """The id that has this key; None if it is no key of this pattern."""
        if len(key) < len(self.prefix) + len(self.suffix) or not key.startswith(self.prefix):
            return None
        return key[len(self.prefix) : len(key) - len(self.suffix)] if key.endswith(self.suffix) else None

    def ids(self, keys: Sequence[bytes]) -> list[bytes]:
        """The ids of those keys that are of this pattern."""
        return [each for key in keys if (each := self.id(key)) is not None]
