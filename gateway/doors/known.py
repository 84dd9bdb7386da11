"""Requests known whole: the very bytes of small requests that were hits, and what was made of them.

Rule of this file: only what never changes is remembered, which is whose head it is and the digest of its bytes. What
may change (the entry, its freshness, the epoch, the quota) is looked up for every request, so that a purge, a changed
model or a spent quota holds for the next one, and nothing need be dropped here for it. A request that differs in one
byte is another request. Bounded, and dropped as a whole with the judgements of a reload.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from gateway.doors.answers import LastHit
from gateway.doors.head import Judgement

REQUESTS_MAX: Final = 4096
REQUEST_BYTES_MAX: Final = 2048
"""Of head and body together. To find a request again takes as long as to hash it, and the cryptographic hash of large
bodies is the faster one; up to this it saves two thirds of that. All of them are less than 10 MiB."""


class Known(msgspec.Struct, frozen=True, gc=False):
    """What a request's bytes led to: the judgement of its head, the wire key, and how its last answer began."""

    judgement: Judgement
    wire: bytes
    last: LastHit


class Requests:
    """Remembers, the oldest making way."""

    def __init__(self) -> None:
        self._known: dict[bytes, Known] = {}
        self.recall: Callable[[bytes], Known | None] = self._known.get
        """What the bytes of a whole request led to, if that is known."""

    def __len__(self) -> int:
        return len(self._known)

    def note(self, request: bytes, judgement: Judgement, wire: bytes) -> None:
        """Remember a request that was a hit, if it is small. The judgement must be that of the request's own head."""
        if len(request) > REQUEST_BYTES_MAX:
            return
        if len(self._known) >= REQUESTS_MAX:
            del self._known[next(iter(self._known))]
        self._known[request] = Known(judgement, wire, LastHit())
