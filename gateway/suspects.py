"""Which requests a gateway's workers have died of: what is suspected, and what is refused and until when.

Rule of this file: digests and times in, verdicts out. It knows no process, no memory that is shared and no request.

A request is suspected that was in work when a worker died, and *condemned* when that happens again while nobody has
answered it in between. Whatever was in work beside a deadly request is suspected with it, so an answer clears
(``acquitted``): who is innocent is answered by another worker, or by the same one anew, and begins from nothing. To be
refused wrongly a request must have been in work at two deaths and never been answered between them.

A sentence ends (``REFUSED_SECONDS``): what has been repaired is served again. The death before it is remembered, so a
request that is deadly still costs one worker for each sentence, and not two.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

DEATHS_MAX: Final = 2
"""A worker may die of anything once. What was in work twice is no chance."""

REFUSED_SECONDS: Final = 600.0
"""Long enough for a caller that repeats itself to cost a worker six times an hour at most; short enough that nobody
needs to be told when the model, or the gateway, has been repaired."""

SUSPECTS_MAX: Final = 4096
"""Requests remembered in all: as many as one worker can have in work (``notes.py``). Who was suspected first goes."""

REFUSED_MAX: Final = SUSPECTS_MAX
"""Requests refused at once. What one worker had in work is all that its death can condemn: were it less, the innocent
beside a deadly request could end its sentence. The oldest sentence ends for a new one."""


class Suspect(msgspec.Struct, frozen=True):
    """A request by its digest. ``until``: refused until then, in the ticker's seconds; 0: it is only suspected."""

    digest: bytes
    until: float = 0.0


class Suspects:
    """All that is known of deadly requests, oldest first."""

    def __init__(self) -> None:
        self._deaths: dict[bytes, int] = {}
        self._until: dict[bytes, float] = {}

    def died(self, in_work: Iterable[bytes], now: float) -> tuple[bytes, ...]:
        """A worker has died with these in work; those that are refused from now on because of it."""
        self.forgive(now)
        condemned = []
        for digest in dict.fromkeys(in_work):
            if digest in self._until:
                continue  # it was begun before it was condemned
            deaths = self._deaths.pop(digest, 0) + 1
            self._deaths[digest] = deaths
            if deaths >= DEATHS_MAX:
                condemned.append(digest)
                self._until[digest] = now + REFUSED_SECONDS
        while len(self._until) > REFUSED_MAX:
            oldest = next(iter(self._until))
            del self._until[oldest]
            self._deaths.pop(oldest, None)
        while len(self._deaths) > SUSPECTS_MAX:
            oldest = next(digest for digest in self._deaths if digest not in self._until)
            del self._deaths[oldest]
        return tuple(digest for digest in condemned if digest in self._until)

    def acquitted(self, digests: Iterable[bytes], now: float) -> None:
        """These have been answered. Of what is condemned that says nothing: it was begun before."""
        self.forgive(now)  # whose sentence is over may have been answered since
        for digest in digests:
            if digest not in self._until:
                self._deaths.pop(digest, None)

    def forgive(self, now: float) -> None:
        """End what sentences have passed; one death stays remembered."""
        for digest in [digest for digest, until in self._until.items() if until <= now]:
            del self._until[digest]
            self._deaths[digest] = DEATHS_MAX - 1

    def refused(self, now: float) -> int:
        """How many are refused now."""
        return sum(until > now for until in self._until.values())

    def known(self) -> tuple[Suspect, ...]:
        """All of them, ``SUSPECTS_MAX`` at most."""
        return tuple(Suspect(digest, self._until.get(digest, 0.0)) for digest in self._deaths)
