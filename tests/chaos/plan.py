"""What is broken when: a schedule from a seed, made before anything runs.

Rule of this file: pure. The same seed and length give the same plan; what a machine makes of the times is not its
business (a process's turn that comes late is done late, a link's not at all; what is left out is told).

Three lanes go side by side, so that faults of different parts meet: Triton with the links to it, Redis with the links
to it and what it can answer, and the workers with the callers' link. Within a lane one thing is broken at a time, or
nobody could say what a server that is stopped does about being killed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from tests.chaos.proxy import Fault

PROCESS: Final = ("kill", "stop", "restart", "flap")
STUB: Final = ("kill", "stop", "stop-long", "flap")
ANSWERS: Final = ("oom", "noreplicas", "noauth", "readonly", "masterdown", "loading")
LINKS: Final = ("http", "grpc", "tables", "second", "door", "grpc-door")
"""Gateway to Triton over HTTP and gRPC, to Redis for tables and for the second level; callers to gateway likewise."""

WARM_SECONDS: Final = 4.0
"""Before the first fault: caches must hold something, or nothing could be stale."""
LONG_SECONDS: Final = 180.0
"""A run of at least so long has time for long faults too."""
STOP_SECONDS_MAX: Final = 3.0
"""Of a worker: whoever asked it waits so long beside the deadline."""

COSTS: Final = {
    ("triton", "kill"): 3.5, ("triton", "restart"): 3.5, ("triton", "flap"): 7.0, ("stub", "kill"): 1.5,
    ("stub", "stop-long"): 2.0, ("stub", "flap"): 3.0, ("worker", "kill"): 2.0, ("worker", "restart"): 2.0,
    ("worker", "flap"): 4.0, ("redis", "flap"): 0.5,
}  # fmt: skip
"""Seconds that it takes beside its own to make well again, on two cores that do much else; others take none."""


class Deed(Struct, frozen=True):
    """One thing that is done to one part, and undone ``seconds`` later. ``at``: seconds from the run's beginning."""

    lane: str
    at: float
    seconds: float
    part: str
    what: str

    @property
    def name(self) -> str:
        """``PART WHAT``."""
        return f"{self.part} {self.what}"


def deck(lane: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What a lane does at least once, and what its links do."""
    faults = [fault.value for fault in Fault]
    processes, links = {
        "triton": ([("triton", PROCESS), ("stub", STUB)], ("http", "grpc")),
        "redis": ([("redis", PROCESS), ("answer", ANSWERS)], ("tables", "second")),
        "edge": ([("worker", PROCESS)], ("door", "grpc-door")),
    }[lane]
    musts = [(part, what) for part, whats in processes for what in whats]
    return musts, [(f"link-{link}", fault) for link in links for fault in faults]


LANES: Final = ("triton", "redis", "edge")


def plan(seed: int, seconds: float) -> list[Deed]:
    """All deeds of a run whose faults end after ``seconds``, in the order in which they begin."""
    found: list[Deed] = []
    for lane in LANES:
        found += _lane(lane, random.Random(f"{seed} {lane}"), seconds)
    return sorted(found, key=lambda deed: (deed.at, deed.lane))


def _lane(lane: str, chance: random.Random, seconds: float) -> list[Deed]:
    deeds: list[Deed] = []
    at = WARM_SECONDS
    for part, what in _order(lane, chance, seconds - WARM_SECONDS):
        lasts = _lasts(part, what, chance, seconds)
        if at + lasts + COSTS.get((part, what), 0.0) > seconds:
            break
        deeds.append(Deed(lane, round(at, 3), round(lasts, 3), part, what))
        rest = chance.uniform(3.0, 8.0) if seconds >= LONG_SECONDS else chance.uniform(0.5, 1.5)
        at += lasts + COSTS.get((part, what), 0.0) + rest
    return deeds


def _order(lane: str, chance: random.Random, seconds: float) -> Sequence[tuple[str, str]]:
    """In a short run all musts, and of the links what fits between; in a long one whole decks, shuffled, again and
    again."""
    musts, links = deck(lane)
    chance.shuffle(links)
    if seconds >= LONG_SECONDS:
        found: list[tuple[str, str]] = []
        for _ in range(1 + int(seconds / LONG_SECONDS) * 2):
            whole = [*musts, *links]
            chance.shuffle(whole)
            found += whole
        return found
    left = seconds - sum(2.2 + COSTS.get(each, 0.0) for each in musts)
    whole = [*musts, *links[: max(1, int(left / 2.2))]]
    chance.shuffle(whole)
    return whole


def _lasts(part: str, what: str, chance: random.Random, seconds: float) -> float:
    if (part, what) == ("stub", "stop"):
        return chance.uniform(0.3, 0.8)  # longer, and Triton may abort when it goes on
    if (part, what) == ("stub", "stop-long"):
        return chance.uniform(1.2, 2.0)
    if what in ("flap", "restart"):
        return 0.0
    if part == "worker":
        return chance.uniform(0.5, STOP_SECONDS_MAX if seconds >= LONG_SECONDS else 2.0)
    return chance.uniform(1.0, 6.0) if seconds >= LONG_SECONDS else chance.uniform(0.8, 1.8)
