"""Which replica: the less loaded of two, never one that is known to fail; a sequence's is always the same one.

Rule of this file: functions of the seats, the time and chance. Nobody is asked here and no permit is taken, so whoever
acts on a choice does so in the same turn of the event loop.

Choice: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001.
"""

from __future__ import annotations

import random as chance
from collections.abc import Sequence
from zlib import crc32

from tiers.seat import Seat


def choose(loads: Sequence[int], random: chance.Random) -> int:
    """The index of the less loaded of two drawn at random; of equals, the first drawn."""
    assert loads, "choose needs a candidate"
    count = len(loads)
    if count == 1:
        return 0
    # As `sample` would draw two, in five times the time: the second of those that are left.
    first, second = int(random.random() * count), int(random.random() * (count - 1))
    if second >= first:
        second += 1
    return first if loads[first] <= loads[second] else second


def pick(seats: Sequence[Seat], key: str, now: float, random: chance.Random) -> Seat | None:
    """A replica whose breakers allow the model, one that says it is ready before one that does not. ``key``: what the
    model's answers are judged by; "" for a call that is about none.

    Not ready is no veto: one broken model makes a strict Triton unready for all the others.
    """
    among = allowed(seats, key, now)
    if len(among) == 1:
        return among[0]
    candidates = [seat for seat in among if seat.ready] or among
    if not candidates:
        return None
    return candidates[choose([seat.in_flight for seat in candidates], random)]


def home(seats: Sequence[Seat], sequence: str, key: str, now: float) -> Seat | None:
    """Where a sequence lives: the first in an order of its own of the replicas whose breakers allow the model.

    D. Thaler, C. Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM ToN 6(1), 1998.
    """
    among = allowed(seats, key, now)
    return max(among, key=lambda seat: crc32(f"{seat.label} {sequence}".encode()), default=None)


def allowed(seats: Sequence[Seat], key: str, now: float) -> list[Seat]:
    """Those whose breakers allow the model."""
    among = []
    for seat in seats:
        answers = seat.answers.get(key)
        if seat.reach.allows(now) and (answers is None or answers.allows(now)):
            among.append(seat)
    return among
