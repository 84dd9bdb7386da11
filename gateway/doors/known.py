"""Requests known whole: the very bytes of small requests that were hits, and what was made of them.

Rule of this file: what decides an answer is remembered only where it never changes, which is whose head it is and the
digest of its bytes. What may change (the entry, its freshness, the epoch, the quota) is looked up for every request, so
that a purge, a changed model or a spent quota holds for the next one, and nothing need be dropped here for it. Another
byte makes another request. Bounded, and dropped as a whole with the judgements of a reload.
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
bodies is the faster one; up to this it saves two thirds of that. All of them take less than 20 MiB, judgements that are
remembered nowhere else included."""

TRIED_OF: Final = 8
"""One of so many hits that are not known is remembered: what comes again and again soon is one of them, and where each
is another, hardly any pays for being put in and taken out."""


class Known(msgspec.Struct, frozen=True, gc=False):
    """What a request's bytes led to: the judgement of its head, the wire key, and how its last answer began."""

    judgement: Judgement
    wire: bytes
    last: LastHit


class Requests:
    """Remembers, the oldest making way."""

    def __init__(self) -> None:
        self._known: dict[bytes, Known] = {}
        self._offered = 0
        self.recall: Callable[[bytes], Known | None] = self._known.get
        """What the bytes of a whole request led to, if that is known."""

    def __len__(self) -> int:
        return len(self._known)

    def offer(self, request: bytes, judgement: Judgement, wire: bytes) -> None:
        """A request that was a hit and is not known: remember it, if it is small, and its turn to be tried. The
        judgement must be that of the request's own head."""
        if len(request) > REQUEST_BYTES_MAX:
            return
        self._offered += 1
        if self._offered % TRIED_OF:
            return
        self._known.pop(request, None)  # under a judgement that its head had before
        if len(self._known) >= REQUESTS_MAX:
            del self._known[next(iter(self._known))]
        self._known[request] = Known(judgement, wire, LastHit())
