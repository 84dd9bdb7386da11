"""What the runs have exercised, in a table; and what they must not have left out.

Rule of this file: it counts. A kind of fault, of label or of step that no run has met proves nothing, so it is a
failure of the world's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from cache.stores.store import KINDS
from degrade.ladder import Failure
from tests.sim import faults

DUE: Final[Mapping[str, tuple[str, ...]]] = {
    "fault": faults.ALL,
    "store": KINDS,
    "cache": ("hit", "stale", "miss", "bypass", "none"),
    "step": ("replica", "tier", "stale", "snapshot", "default"),
    "status": ("200", "408", "429", "503", "504"),
    "breaker": ("open", "half_open", "closed"),
    "operator": ("purge", "reload", "restart", "kill", "remove", "switch"),
    "level": ("1", "2", "3", "4"),
    "passed": ("200", "503"),
    "rows": ("fresh", "stale", "snapshot", "absent", "lost"),
    "epoch": ("turned",),
    "reason": (
        "fresh", "revalidating", "max-stale", "absent", "expired", "epoch", "no-cache", "max-age", "only-if-cached",
        "partial", "second", "off", "snapshot", "brownout",
        *(each.value for each in Failure if each not in (Failure.OVERSIZED, Failure.LATE)),
    ),
}  # fmt: skip
"""By group, what must have been met at least once. OVERSIZED needs an answer of 256 MiB, and LATE a
deadline that passes between two steps that take no time here; both have tests of their own."""
RUNS_MIN: Final = 2000
"""What fewer runs have left out is told, and no failure."""


def left_out(met: Mapping[str, int]) -> list[str]:
    """What was never met."""
    return [f"{group} {word}" for group, words in DUE.items() for word in words if not met.get(f"{group} {word}")]


def table(met: Counter[str]) -> Iterator[str]:
    """Lines of text: each group, and how often each of its words was met."""
    for group in dict.fromkeys([*DUE, *sorted({name.partition(" ")[0] for name in met})]):
        named = [(name.partition(" "), count) for name, count in met.items()]
        words = {word or first: count for (first, _, word), count in named if first == group}
        told = ", ".join(f"{word or '(none)'} {count}" for word, count in sorted(words.items(), key=_often))
        yield f"  {group:10} {told}"


def _often(pair: tuple[str, int]) -> tuple[int, str]:
    return -pair[1], pair[0]
