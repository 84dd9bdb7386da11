"""How many bytes of requests all connections together hold in memory, and the bound on that. Where one connection has
many calls in work (MessagePack-RPC), their answers count too while the peer does not take them.

Rule of this file: a number and its bound; what to do when it is reached is the holder's to decide. Bytes
are counted when they have come, not when a head announces them: an announcement costs its sender nothing.
Small bodies are counted, but never refused: a few callers who hold all there is must not lock the others
out, and what the small ones come to is bounded by the number of connections.
"""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from gateway.problem import Problem, Refused, unavailable

SMALL_BYTES: Final = 64 * 1024
"""A body that is welcome even when no more should be taken in."""

RETRY_AFTER_SECONDS: Final = 1.0
"""When to come back after a refusal: bodies held are answered within their routes' timeouts, mostly far sooner."""


class Buffered:
    """Bytes of requests held, over all connections of a process. ``bytes_max``: ``server.buffered_bytes_max``;
    ``small_bytes``: what one request may hold all the same."""

    def __init__(self, bytes_max: int, small_bytes: int = SMALL_BYTES) -> None:
        self.bytes_max = bytes_max
        self.small_bytes = small_bytes
        self.bytes = 0
        self.refused = 0

    def add(self, count: int) -> None:
        """Count bytes that have come, or (negative) are no longer held. Who then finds it full lets go of its own."""
        self.bytes += count

    @property
    def full(self) -> bool:
        """Whether nothing more should be taken in."""
        return self.bytes > self.bytes_max

    def refuses(self, count: int) -> bool:
        """Whether a request that holds ``count`` bytes is one too many."""
        return count > self.small_bytes and self.bytes > self.bytes_max

    def refusal(self) -> Problem:
        """503 for a body that came when no more could be held. Counts it."""
        self.refused += 1
        detail = f"Requests in work hold server.buffered_bytes_max ({self.bytes_max} bytes); try again."
        return unavailable(detail, RETRY_AFTER_SECONDS)


class Held:
    """What one request holds, until its block ends."""

    def __init__(self, buffered: Buffered) -> None:
        self._buffered = buffered
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._buffered.add(-self._bytes)

    def add(self, count: int) -> None:
        """``count`` more bytes have come. Raises Refused (503) if that is more than can be held."""
        self._bytes += count
        self._buffered.add(count)
        if self._buffered.refuses(self._bytes):
            raise Refused(self._buffered.refusal())
