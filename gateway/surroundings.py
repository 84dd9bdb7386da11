"""What a gateway takes from the machine around it beside its sockets: time, chance, secrets and a disk.

Rule of this file: values. A whole gateway is made with them, so that all of it can be run in virtual time on one seed
(``tests/sim/``), and nothing below reads a clock or rolls dice of its own.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from time import monotonic, time

import msgspec

from degrade.deadline import Ticker
from degrade.snapshot import SnapshotOptions
from gateway.depot import Depot, depot


class Surroundings(msgspec.Struct, frozen=True):
    """``ticker``: monotonic seconds; ``wall``: Unix seconds; ``chance``: for what nobody need guess; ``secret``: so
    many bytes that nobody can; ``depot``: a folder where copies lie, by its bounds and the wall clock."""

    ticker: Ticker
    wall: Ticker
    chance: random.Random
    secret: Callable[[int], bytes]
    depot: Callable[[Path, SnapshotOptions, Ticker], Depot] = depot


def real() -> Surroundings:
    """This machine's own."""
    return Surroundings(monotonic, time, random.Random(), os.urandom)
