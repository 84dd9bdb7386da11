"""What goes wrong, where and when: spells of bad weather, made in advance of one seed.

Rule of this file: it decides and does nothing. A place asks whether it is struck now, and does what it is told; values
alone go to and fro, so that whatever has places (a simulated network, a proxy before a real server, a guarded switch of
a running gateway) can be given the same weather. It knows neither an event loop nor a protocol.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

LATENCY: Final = "latency"  # what is sent comes later
HANG: Final = "hang"  # what is sent does not come, and the connection stays
RESET: Final = "reset"  # the connection breaks
TRUNCATE: Final = "truncate"  # a part of it comes, and then the connection's end
CORRUPT: Final = "corrupt"  # a byte of it is another
DRIP: Final = "drip"  # it comes in crumbs
HALF_OPEN: Final = "half-open"  # the other side is gone and nobody is told
REFUSE: Final = "refuse"  # nobody listens
SWALLOW: Final = "swallow"  # connecting is never answered
OF_LINKS: Final = (LATENCY, HANG, RESET, TRUNCATE, CORRUPT, DRIP, HALF_OPEN, REFUSE, SWALLOW)

SHAPE: Final = "shape"  # an answer of another shape than is due
NAN: Final = "nan"  # numbers that are none
ERROR: Final = "error"  # the model raises
OVERLOAD: Final = "overload"  # 503: too much to do
STUB: Final = "stub"  # the server lives and the model's process does not
MISSING: Final = "missing"  # an output is left out
SLOW: Final = "slow"  # the model takes its time
OF_MODELS: Final = (SHAPE, NAN, ERROR, OVERLOAD, STUB, MISSING, SLOW)

NOAUTH: Final = "noauth"
READONLY: Final = "readonly"
LOADING: Final = "loading"
WRONG_TYPE: Final = "wrong-type"
FULL: Final = "full"
MASTER_DOWN: Final = "master-down"
ROTTEN: Final = "rotten"  # a value that is not what it should be
GARBAGE: Final = "garbage"  # bytes that are no reply
FLUSH: Final = "flush"  # everything is forgotten
EARS: Final = "ears"  # who listens for writes is cut off
OF_STORES: Final = (NOAUTH, READONLY, LOADING, WRONG_TYPE, FULL, MASTER_DOWN, ROTTEN, GARBAGE, FLUSH, EARS)

STALL: Final = "stall"  # the event loop does nothing for a while
STEP: Final = "step"  # the civil clock is set
KILL: Final = "kill"  # a process ends, and comes back with what it has on its disk
RELOAD: Final = "reload"  # a model becomes another
OF_PROCESSES: Final = (STALL, STEP, KILL, RELOAD)

DISK_FULL: Final = "disk-full"
DISK_REFUSES: Final = "disk-refuses"  # it can be read only
DISK_HANGS: Final = "disk-hangs"  # what is begun takes its time
DISK_ROTS: Final = "disk-rots"  # bytes of what lies there are others
DISK_GONE: Final = "disk-gone"  # somebody removes the directory
OF_DISKS: Final = (DISK_FULL, DISK_REFUSES, DISK_HANGS, DISK_ROTS, DISK_GONE)

ALL: Final = (*OF_LINKS, *OF_MODELS, *OF_STORES, *OF_PROCESSES, *OF_DISKS)


class Spell(Struct, frozen=True):
    """From ``begins`` until ``ends`` a ``share`` of what happens at ``place`` suffers ``kind``; ``seconds``: how long,
    where it is a matter of time; ``at``: how far into it, from 0 to 1."""

    place: str
    kind: str
    begins: float
    ends: float
    share: float = 1.0
    seconds: float = 0.0
    at: float = 0.5


class Weather:
    """All spells of one run. ``struck`` counts what has been suffered, by kind."""

    def __init__(self, spells: Iterable[Spell], chance: random.Random) -> None:
        self.struck: Counter[str] = Counter()
        self._chance = chance
        self._at: dict[str, list[Spell]] = {}
        for spell in spells:
            self._at.setdefault(spell.place, []).append(spell)

    @property
    def spells(self) -> list[Spell]:
        return [spell for each in self._at.values() for spell in each]

    def at(self, place: str) -> Sequence[Spell]:
        """All that may strike there."""
        return self._at.get(place, ())

    def strikes(self, place: str, now: float, *kinds: str) -> Spell | None:
        """What strikes here and now, if something of these kinds does."""
        for spell in self._at.get(place, ()):
            if spell.kind in kinds and spell.begins <= now < spell.ends and self._chance.random() < spell.share:
                self.struck[spell.kind] += 1
                return spell
        return None

    def suffered(self, kind: str) -> None:
        """Something of this kind has been done by somebody else's hand."""
        self.struck[kind] += 1


class Climate(Struct, frozen=True):
    """Of what weather is made: what can happen at each ``place``, between ``begins`` and ``ends``, ``spells`` of
    it."""

    places: Sequence[tuple[str, Sequence[str]]]
    begins: float
    ends: float
    spells: int


def forecast(climate: Climate, chance: random.Random) -> list[Spell]:
    """Spells by chance: some brief and hard, some long and light."""
    made = []
    for _ in range(climate.spells):
        place, kinds = climate.places[chance.randrange(len(climate.places))]
        kind = kinds[chance.randrange(len(kinds))]
        begins = chance.uniform(climate.begins, climate.ends)
        lasts = chance.choice((0.2, 0.8, 2.0, 5.0)) * chance.uniform(0.5, 1.5)
        share = chance.choice((1.0, 1.0, 0.6, 0.25))
        seconds = chance.choice((0.005, 0.03, 0.2, 0.8)) * chance.uniform(0.5, 2.0)
        ends = min(begins + lasts, climate.ends)
        made.append(Spell(place, kind, begins, ends, share, seconds, chance.random()))
    return made
