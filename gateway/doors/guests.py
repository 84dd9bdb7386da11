"""How many calls of one address are in work at the gRPC door.

Rule of this file: it counts, and knows no call. grpc itself bounds calls of all callers together, so that one of them
could have all places: a stream may stay open for as long as its caller likes.
"""

from __future__ import annotations

from collections import Counter


class Guests:
    """At most ``calls_max`` calls of an address at once. ``closing``: no more are let in; those are
    ``turned_away``."""

    def __init__(self, calls_max: int) -> None:
        self._calls_max = calls_max
        self._calls: Counter[str] = Counter()
        self.closing = False
        self.turned_away = 0

    def enter(self, address: str) -> bool:
        """Take a place; whether there was one. If so it must be left again."""
        if self._calls[address] >= self._calls_max:
            return False
        self._calls[address] += 1
        return True

    def leave(self, address: str) -> None:
        self._calls[address] -= 1
        if self._calls[address] <= 0:
            del self._calls[address]

    def __len__(self) -> int:
        """Addresses with a call in work."""
        return len(self._calls)
