"""What a run comes to: the table of all answers, how available each way was, and what is wrong with it.

Rule of this file: it counts what others have judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from msgspec import Struct

from tests.chaos.judge import BAD, DEADLINE_SECONDS, GOOD, KINDS
from tests.chaos.load import LATE_SECONDS, Seen

AGES: Final = ((2.0, "stale <2s"), (10.0, "<10s"), (60.0, "<60s"), (float("inf"), "older"))
COLUMNS: Final = ("fresh", "hit", *(name for _, name in AGES), "snapshot", "fast-only", "default", "503", "cut", *BAD)


class Way(Struct, frozen=True):
    """Some of the requests."""

    whose: str
    kind: str = ""
    again: bool | None = None


class Run(Struct, frozen=True):
    """A whole run. ``met``: by link and fault, how many connections or answers met it. ``faults``: what is wrong beside
    the answers."""

    seed: int
    seconds: float
    seen: Sequence[Seen]
    done: Mapping[str, int]
    left: Sequence[str]
    met: Mapping[str, int]
    aborts: int
    healed_seconds: float
    bad: Sequence[str]
    faults: Sequence[str]

    @property
    def bad_count(self) -> int:
        return sum(self.counts("gateway")[word] + self.counts("link")[word] for word in BAD)

    def counts(self, whose: str, kind: str = "") -> Counter[str]:
        """By column."""
        found: Counter[str] = Counter()
        for each in self.seen:
            if each.whose == whose and kind in ("", each.kind):
                found[column(each)] += 1
        return found

    def of(self, way: Way) -> list[Seen]:
        return [
            each
            for each in self.seen
            if each.whose == way.whose and way.kind in ("", each.kind) and way.again in (None, each.again)
        ]

    def availability(self, way: Way) -> float:
        """The mean, over all seconds in which somebody asked or waited, of the share of the requests in work then to
        which there came a right answer, labelled for what it is, within the deadline and a second. Of all requests it
        would say something else: callers who are refused at once ask more often than those who wait in vain. Of those
        begun in a second too: a second in which all callers wait in vain would not count at all."""
        seconds: dict[int, list[bool]] = {}
        for each in self.of(way):
            good = each.verdict.outcome in GOOD and each.seconds <= LATE_SECONDS
            for second in range(int(each.ended - each.seconds), int(each.ended) + 1):
                seconds.setdefault(second, []).append(good)
        return sum(sum(each) / len(each) for each in seconds.values()) / max(1, len(seconds))


def column(seen: Seen) -> str:
    if seen.verdict.outcome != "stale":
        return seen.verdict.outcome
    return next(name for bound, name in AGES if seen.verdict.age < bound)


def table(run: Run) -> str:
    """The whole report as text."""
    lines = [f"{'':<14}" + " ".join(f"{name:>10}" for name in COLUMNS)]
    for whose, title in (("gateway", ""), ("link", "by the link")):
        kinds = (*KINDS, "") if whose == "gateway" else ("",)
        for kind in kinds:
            counts = run.counts(whose, kind)
            name = title or kind or "all"
            lines.append(f"{name:<14}" + " ".join(f"{counts[name] or '-':>10}" for name in COLUMNS))
    lines.append("")
    lines.append(f"{'':<28}{'asked':>8}{'available':>11}{'p50 ms':>8}{'p99 ms':>8}{'longest s':>11}{'late':>6}")
    for whose, name in (("gateway", "gateway"), ("direct", "Triton itself")):
        lines += [f"{f'{name}, {kind}':<28}{_times(run, Way(whose, kind))}" for kind in KINDS if whose == "gateway"]
        lines.append(f"{f'{name}, asked again':<28}{_times(run, Way(whose, again=True))}")
        lines.append(f"{f'{name}, never asked before':<28}{_times(run, Way(whose, again=False))}")
        lines.append(f"{f'{name}, all':<28}{_times(run, Way(whose))}")
    lines.append("")
    lines.append("done: " + ", ".join(f"{name} {count}" for name, count in sorted(run.done.items())))
    lines.append("left out for want of time: " + (", ".join(run.left) or "nothing"))
    lines.append("met by links: " + ", ".join(f"{name} {count}" for name, count in sorted(run.met.items())))
    lines.append(f"Triton ended, or stood still, by itself {run.aborts} times")
    lines.append(f"{run.healed_seconds:.1f} s after the last fault all was as before")
    lines += [f"BAD {line}" for line in (*run.bad, *run.faults)]
    lines.append(f"seed {run.seed}, {run.seconds:.0f} s: " + ("NOT well" if run.bad_count or run.faults else "well"))
    return "\n".join(lines)


def _times(run: Run, way: Way) -> str:
    taken = [each.seconds for each in run.of(way)]
    p50, p99, longest = (float(np.quantile(taken or [0.0], share)) for share in (0.5, 0.99, 1.0))
    late = sum(seconds > DEADLINE_SECONDS + 1.0 for seconds in taken)
    share = 100 * run.availability(way)
    return f"{len(taken):>8}{share:>10.2f}%{1e3 * p50:>8.1f}{1e3 * p99:>8.0f}{longest:>11.2f}{late:>6}"
