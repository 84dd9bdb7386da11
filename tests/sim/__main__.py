"""``make sim``: worlds in virtual time, one for each seed, until one of them breaks or all have held.

    python -m tests.sim --runs 10000          so many seeds, from --first on
    python -m tests.sim --seed 123            one seed, and its story
    python -m tests.sim --planted             the seed that notices each planted bug, for its `first` in mutations.py

Exit code 1: an invariant was violated, or something that should have been exercised never was.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from typing import Final

from tests.sim.coverage import RUNS_MIN, left_out, table
from tests.sim.mutations import MUTATIONS, noticed
from tests.sim.world import Report, run

CHUNK: Final = 25
"""Seeds between two collections of garbage."""
TOLD_SECONDS: Final = 5.0
FAILURES_MAX: Final = 5
STORY_LINES: Final = 60


def chunk(seeds: range) -> list[Report]:
    """Run some seeds, one after the other."""
    gc.disable()
    reports = [run(seed) for seed in seeds]
    gc.collect()
    return reports


def reports(seeds: range, jobs: int) -> Iterator[Report]:
    """All seeds' reports, in their order."""
    parts = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    if jobs == 1:
        for part in parts:
            yield from chunk(part)
        return
    with ProcessPoolExecutor(jobs) as pool:
        for done in pool.map(chunk, parts):
            yield from done


def one(seed: int) -> int:
    """One seed, told at length."""
    report = run(seed, story=True)
    print("\n".join(report.story))
    print(f"\nseed {seed}: {report.answers} answers, trace {report.trace}")
    print(f"VIOLATED {report.violation}" if report.violation else "all invariants held")
    return 1 if report.violation else 0


def many(seeds: range, jobs: int) -> int:
    """Many seeds, told in numbers."""
    met: Counter[str] = Counter()
    failed: list[Report] = []
    began = told = time.monotonic()
    answers = count = steps = 0
    for report in reports(seeds, jobs):
        count, answers, steps = count + 1, answers + report.answers, steps + report.steps
        met.update(report.met)
        if report.violation:
            failed.append(report)
            print(f"\nseed {report.seed} VIOLATED {report.violation}", flush=True)
        if time.monotonic() - told > TOLD_SECONDS:
            told = time.monotonic()
            rate = 60 * count / (told - began)
            print(f"{count:6} of {len(seeds)} runs, {rate:5.0f} a minute, {len(failed)} violations", flush=True)
        if len(failed) >= FAILURES_MAX:
            break
    seconds = time.monotonic() - began
    print(f"\n{count} runs in {seconds:.0f} s ({60 * count / seconds:.0f} a minute, {jobs} at once): "
          f"{answers} answers judged, {steps} steps, {len(failed)} violations\n")  # fmt: skip
    print("Exercised:\n" + "\n".join(table(met)))
    missing = left_out(met)
    if missing:
        print(f"\nNever exercised: {', '.join(missing)}")
    for report in failed:
        print(f"\nseed {report.seed}: {report.violation[:400]}\n  replay it: make sim SEED={report.seed}"
              f"\n  keep it: a line in tests/sim/seeds.txt\n  its last moments:")  # fmt: skip
        print("\n".join(f"    {line[:200]}" for line in islice(report.story, max(0, len(report.story) - 12), None)))
    return 1 if failed or (missing and count >= RUNS_MIN) else 0


def planted() -> int:
    """Which world notices each of the planted bugs, its `first` before any other."""
    found = [noticed(mutation) for mutation in MUTATIONS]
    for mutation, report in zip(MUTATIONS, found, strict=True):
        told = "nobody" if report is None else f"{report.seed}"
        print(f"{told:>6}  {mutation.name}" + (f" (not {mutation.first})" if told != f"{mutation.first}" else ""))
    return 1 if None in found else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="one seed, told at length")
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--planted", action="store_true", help="the seed that notices each planted bug")
    options = parser.parse_args()
    if options.planted:
        return planted()
    if options.seed is not None:
        return one(options.seed)
    return many(range(options.first, options.first + options.runs), options.jobs)


if __name__ == "__main__":
    sys.exit(main())
