"""What runs of too much load come to: goodput, the p99 of those who were to be spared, and how soon it is over.

Rule of this file: pure. A request without an answer in time counts as one that took for ever.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec import Struct

from benchmarks.overload.load import Asked


class Line(Struct, frozen=True):
    """One run. ``goodput``: answers within the deadline, a second. ``p99``: of the streams that were to be spared,
    seconds, infinite if one in a hundred had no answer in time. ``recovery``: seconds from the end of the load until
    answers are as quick as ever, infinite if it took longer than was looked for."""

    system: str
    load: str
    goodput: float
    p50: float
    p99: float
    answered: float
    outcomes: dict[str, int]
    recovery: float = math.nan


def line(system: str, load: str, told: Sequence[Asked], seconds: float, spared: Iterable[str]) -> Line:
    """A run of so many seconds."""
    named = frozenset(spared)
    theirs = [each for each in told if each.stream in named]
    good = [each for each in told if each.outcome == "ok"]
    return Line(
        system,
        load,
        len(good) / seconds,
        quantile(theirs, 0.5),
        quantile(theirs, 0.99),
        sum(each.outcome == "ok" for each in theirs) / max(1, len(theirs)),
        dict(Counter(each.outcome for each in told)),
    )


def quantile(told: Sequence[Asked], share: float) -> float:
    """Seconds within which this share was answered; infinite if fewer were."""
    took = sorted(each.seconds if each.outcome == "ok" else math.inf for each in told)
    return took[min(len(took) - 1, math.ceil(share * len(took)) - 1)] if took else math.nan


def recovered(told: Sequence[Asked], usual: float, run: int = 5) -> float:
    """When the first of ``run`` answers in a row came that took no longer than twice the ``usual``, from the beginning
    of ``told``, which is asked after the load."""
    row: list[Asked] = []
    for each in sorted(told, key=lambda asked: asked.at):
        row = [*row, each] if each.outcome == "ok" and each.seconds <= 2.0 * usual else []
        if len(row) == run:
            return row[0].at
    return math.inf


def table(lines: Sequence[Line], peaks: dict[str, float], usual: dict[str, float]) -> str:
    """The lines in Markdown; ``peaks``: each system's best goodput, ``usual``: its p99 of the spared when nothing else
    is asked."""
    rows = [
        "| load | system | goodput/s | of its peak | spared p50 | p99 | p99 / unloaded | answered | refused | late | "
        "normal after |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for each in lines:
        cells = (
            each.load,
            each.system,
            f"{each.goodput:.1f}",
            f"{each.goodput / peaks[each.system]:.0%}" if peaks.get(each.system) else "",
            _ms(each.p50),
            _ms(each.p99),
            f"{each.p99 / usual[each.system]:.2f}" if math.isfinite(each.p99) else "∞",
            f"{each.answered:.1%}",
            str(each.outcomes.get("shed", 0)),
            str(each.outcomes.get("late", 0)),
            "" if math.isnan(each.recovery) else f"{each.recovery:.1f} s" if math.isfinite(each.recovery) else "never",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def middle(values: Iterable[float]) -> float:
    """The median; not a number of nothing."""
    found = list(values)
    return statistics.median(found) if found else math.nan


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if math.isfinite(seconds) else "∞"
