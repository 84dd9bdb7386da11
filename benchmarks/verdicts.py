"""Whether what was counted fits what was asked: by the upstream, and by a quota.

Rule of this file: pure. The client waits for every answer that is under way at a run's end, so that all
numbers are exact.
"""

from __future__ import annotations

from typing import Final

from benchmarks.client import Load
from benchmarks.peers.upstream import Counts
from benchmarks.scenarios import QUOTA_RATE, Expect

SLACK_SECONDS: Final = 0.5
"""A quota earns while the client starts and while its last answers are on the way."""
DUE_SHARE: Final = 0.5
"""The share of what a quota allows that must have been answered: a quota that refuses everybody is none."""


def count_faults(expect: Expect, own_cache: bool, before: Counts, after: Counts, seen: Load) -> list[str]:
    """Whether the upstream's counters fit a run.

    ``own_cache``: the counters are those of a Triton with a response cache that is the peer itself.
    """
    succeeded = after.succeeded - before.succeeded
    hits, misses = after.cache_hits - before.cache_hits, after.cache_misses - before.cache_misses
    computed = {Expect.HITS: 0, Expect.FORWARDS: seen.answered, Expect.FRESH: seen.fresh}[expect]
    known = seen.answered - computed
    if own_cache:
        fits = (hits, misses) == (known, computed)
        return [] if fits else [f"Triton's cache hit {hits} times and missed {misses}, not {known} and {computed}"]
    if hits:
        return [f"{hits} requests that should be computed were answered by Triton's cache"]
    return [] if succeeded == computed else [f"{succeeded} of {seen.answered} requests were computed, not {computed}"]


def quota_faults(seen: Load) -> list[str]:
    """Whether a quota of QUOTA_RATE a second, and as many at once, let through what is due and no more."""
    allowed, seconds = seen.answered - seen.also, seen.microseconds / 1e6
    most = QUOTA_RATE + QUOTA_RATE * (seconds + SLACK_SECONDS)
    least = QUOTA_RATE * seconds * DUE_SHARE
    if not seen.also:
        return ["nobody was refused"]
    return [] if least <= allowed <= most else [f"{allowed} requests were allowed, not {least:.0f} to {most:.0f}"]
